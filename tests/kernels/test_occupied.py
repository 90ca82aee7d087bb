"""Where vectors are not zero, against NumPy, on ones whose sample misleads too."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from examples import up_to
from gradwire.kernels import occupied, reference

BACKENDS = [occupied.occupied, reference.occupied]
KINDS = {
    "none": lambda rng, d: np.zeros(d),
    "every": lambda rng, d: rng.standard_normal(d),
    "all but one": lambda rng, d: np.arange(d) - d // 2,
    "1 %": lambda rng, d: np.where(rng.random(d) < 0.01, rng.standard_normal(d), 0),
    "half": lambda rng, d: rng.integers(0, 2, d),
    "side by side": lambda rng, d: np.arange(d) < d // 50,
    "negative zeros": lambda rng, d: np.where(rng.random(d) < 0.01, -0.0, 0.0),
    "denormals": lambda rng, d: np.where(rng.random(d) < 0.01, -1e-45, 0.0),
}


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("d", [0, 1, 63, 64, 65, 8193, 30_000, 800_001])
@pytest.mark.parametrize("kind", KINDS)
def test_places_are_numpys(threads, kind, d):
    values = KINDS[kind](np.random.default_rng(d), d).astype(np.float32)
    expected = np.flatnonzero((values != 0) | np.signbit(values))
    for find in BACKENDS:
        for most in {d, expected.size, expected.size + 1, expected.size - 1, 0, d // 16}:
            found = find(values, most) if most >= 0 else None
            if expected.size > most:
                assert found is None
            else:
                assert found.dtype == np.int64
                np.testing.assert_array_equal(found, expected)


@settings(max_examples=up_to(100), deadline=None)
@given(arrays(np.float32, st.integers(0, 200), elements=st.sampled_from([0.0, -0.0, 1.0, -1e-45])), st.integers(0, 200))
def test_bits_count(values, most):
    expected = [i for i, x in enumerate(values.view(np.uint32).tolist()) if x]
    for find in BACKENDS:
        found = find(values, most)
        assert (None if found is None else found.tolist()) == (expected if len(expected) <= most else None)


def test_strided_views():
    values = np.random.default_rng(0).integers(0, 2, 40_000).astype(np.float32)
    for view in (values[1:], values[::2], values[::-1]):
        for find in BACKENDS:
            np.testing.assert_array_equal(find(view, view.size), np.flatnonzero(view))
