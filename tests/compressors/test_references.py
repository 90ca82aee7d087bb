"""A sparse reference is the vector it stands for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradwire as gw
from gradwire.compressors.references import as_reference
from gradwire.kernels import reference as plain

SPECS = ["dense()", "topk(0.3)", "topk(0.2, scope='tensor')", "by_tensor(topk(0.2))", "randk(0.4)", "cyclic(0.3)",
         "topk(0.3) | sign()", "topk(1e-9)"]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), zeros=st.floats(0, 1))
def test_equals_the_vector(spec, seed, zeros):
    rng = np.random.default_rng(seed)
    shapes = {"w": (7, 5), "b": (3,), "empty": (0, 2), "running_mean": (4,)}
    layout = gw.Layout.from_arrays({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    update = np.where(rng.random(layout.d) < zeros, 0, rng.integers(-3, 4, layout.d)).astype(np.float32)
    payload = gw.decode(gw.Client(gw.parse(spec), layout).compress(update))
    vector, sparse = gw.decompress(payload), gw.Reference.of(payload)
    assert sparse.d == layout.d
    np.testing.assert_array_equal(sparse.vector, vector)
    for start, length in ((0, layout.num_parameters), (3, 20), (layout.num_parameters, 4), (5, 0)):
        for k in {0, min(1, length), length // 2, length}:
            expected = plain.topk(vector[start : start + length], k)
            np.testing.assert_array_equal(sparse.largest(start, length, k), expected)
            np.testing.assert_array_equal(as_reference(vector).largest(start, length, k), expected)
    indices = np.flatnonzero(rng.random(layout.d) < 0.5)
    np.testing.assert_array_equal(sparse.at(indices), vector[indices])
    np.testing.assert_array_equal(as_reference(vector).at(indices), vector[indices])


@pytest.mark.parametrize("spec", ["tcs(0.1, 0.05)", "ef(tcs(0.1, 0.05) | fractional(4))", "ef(regtopk(0.1))"])
def test_compressors_take_either(spec):
    rng = np.random.default_rng(0)
    layout, compressor = gw.Layout.flat(1000), gw.parse(spec)
    payload = gw.decode(gw.Client(gw.topk(0.1), layout).compress(rng.standard_normal(1000).astype(np.float32)))
    blobs = []
    for reference in (gw.Reference.of(payload), gw.decompress(payload)):
        state = compressor.init(layout)
        update = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
        for index in range(2):
            made, state = compressor.compress(update, state, gw.Round(index=index, reference=reference))
            arrived = gw.decompress(made, reference)
            blobs.append((gw.encode(made), arrived.tobytes()))
    assert blobs[:2] == blobs[2:]
