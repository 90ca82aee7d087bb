"""A sparse reference is the vector it stands for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradwire as gw
from gradwire.compressors import references
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


def selections(monkeypatch):
    """The calls of the selection from now on."""
    calls = []

    def topk(values, k):
        calls.append(k)
        return plain.topk(values, k)

    monkeypatch.setattr(references.ops, "topk", topk)
    return calls


@pytest.mark.parametrize("dense", [False, True])
def test_what_was_selected_is_remembered(dense, monkeypatch):
    vector = np.random.default_rng(0).integers(-9, 10, 400).astype(np.float32)
    listed = None if dense else np.flatnonzero(vector)
    reference = gw.Reference(400, vector if dense else vector[listed], listed)
    calls = selections(monkeypatch)
    asked = [(0, 400, 40), (0, 400, 30), (0, 200, 40), (200, 200, 40), (0, 400, 300)]
    for _ in range(3):
        for start, length, k in [*asked, *asked[:1]]:
            found = reference.largest(start, length, k)
            np.testing.assert_array_equal(found, plain.topk(vector[start : start + length], k))
            assert not found.flags.writeable
    assert len(calls) < 18
    calls.clear()
    for _ in range(100):
        reference.largest(*asked[0])
    assert len(calls) <= 1
    held = sum(found.size for found in reference._selected.values())
    assert held <= reference.numbers.size // (4 if dense else 1)


def test_a_server_selects_once_a_round_from_its_reference(monkeypatch):
    layout, compressor = gw.Layout.flat(1000), gw.parse("tcs(0.1, 0.02)")
    clients = [gw.Client(compressor, layout, client_id=i) for i in range(5)]
    server = gw.Server(compressor, layout)
    for number in range(3):
        rng = np.random.default_rng(number)
        blobs = [client.compress(rng.standard_normal(1000).astype(np.float32)) for client in clients]
        with monkeypatch.context() as patch:
            calls = selections(patch)
            for client_id, blob in enumerate(blobs):
                server.receive(blob, client_id)
            assert calls == ([100] if number else [])
        result = server.close_round()
        for client in clients:
            client.end_round(result.blob)
