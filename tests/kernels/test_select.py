"""The compiled top-k against NumPy's partition, on inputs that mislead its sample too."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradwire.kernels import reference, select

KINDS = {
    "normal": lambda rng, d: rng.standard_normal(d),
    "constant": lambda rng, d: np.ones(d),
    "zeros": lambda rng, d: np.zeros(d),
    "few values": lambda rng, d: rng.integers(-2, 3, d),
    "cauchy": lambda rng, d: np.clip(rng.standard_cauchy(d), -1e30, 1e30),
    "nearly all zero": lambda rng, d: np.where(rng.random(d) < 0.001, rng.standard_normal(d), 0),
    "all at the end": lambda rng, d: np.arange(d) * (np.arange(d) >= d - d // 50),
    "denormals": lambda rng, d: np.arange(d) * 1e-42,
    "wide": lambda rng, d: -np.exp(np.clip(rng.standard_normal(d) * 20, -80, 80)),
}


@pytest.mark.parametrize("d", [1, 2, 127, 128, 129, 5000, 50_890, 300_001])
@pytest.mark.parametrize("kind", KINDS)
def test_topk_is_exact(kind, d):
    values = KINDS[kind](np.random.default_rng(d), d).astype(np.float32)
    for k in sorted({0, 1, min(d, 3), max(1, d // 1000), max(1, d // 100), max(1, d // 3), d}):
        np.testing.assert_array_equal(select.topk(values, k), reference.topk(values, k))


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, st.integers(1, 700), elements=st.floats(-2, 2, width=16)), st.data())
def test_ties_go_to_the_lower_index(values, data):
    k = data.draw(st.integers(1, values.size))
    order = np.lexsort((np.arange(values.size), -np.abs(values)))[:k]
    expected = np.sort(order[values[order] != 0])
    np.testing.assert_array_equal(select.topk(values, k), expected)
    np.testing.assert_array_equal(select._by_counting(values.view(np.uint32), k), expected)


def test_slices_and_strided_views():
    values = np.random.default_rng(0).standard_normal(40_000).astype(np.float32)
    for view in (values[1:], values[::2], values[::-1]):
        np.testing.assert_array_equal(select.topk(view, 400), reference.topk(view, 400))
