"""The mean of payloads at hand: the aggregator's bits, and the server's bytes on the way down."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradwire as gw
from examples import up_to
from gradwire.aggregation.mean import mean_of
from gradwire.errors import ConfigError, ProtocolError, UpdateError

SPECS = [
    "topk(0.01)",
    "topk(0.01) | fractional(8)",
    "topk(0.01, scope='tensor')",
    "topk(0.01) | sign(scope='tensor')",
    "randk(0.01)",
    "randk(0.02, shared=True)",
    "cyclic(0.01)",
    "threshold(value=3.0)",
    "dense()",
    "uniform(4)",
    "powersgd(1)",
    "topk(1.0)",
]
LAYOUT = gw.Layout.from_arrays({"a": np.ones((60, 60)), "b": np.ones(1400)})


def aggregated(payloads, layout, reference=None):
    aggregator = gw.Aggregator(layout)
    for payload in payloads:
        aggregator.add(payload, 1.0, reference)
    return aggregator.mean()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_bits_of_the_aggregator(spec, num_workers):
    rng = np.random.default_rng(num_workers)
    clients = [gw.Client(gw.parse(spec), LAYOUT, client_id=i) for i in range(num_workers)]
    updates = [rng.standard_normal(LAYOUT.d).astype(np.float32) for _ in clients]
    payloads = [gw.decode(c.compress(u)) for c, u in zip(clients, updates, strict=True)]
    found = mean_of(payloads, LAYOUT)
    assert found.d == LAYOUT.d
    assert found.vector.tobytes() == aggregated(payloads, LAYOUT).tobytes()


def test_few_coordinates_stay_a_list():
    payloads = [gw.decode(gw.Client(gw.topk(0.01), LAYOUT).compress(np.ones(LAYOUT.d, np.float32)))] * 3
    assert mean_of(payloads, LAYOUT).indices.tolist() == list(range(50))
    assert mean_of(payloads * 3, LAYOUT).indices is None


def test_what_cancels():
    def of(numbers):
        update = np.zeros(LAYOUT.d, np.float32)
        update[[7, 9, 11]] = numbers
        return gw.decode(gw.Client(gw.topk(0.001), LAYOUT).compress(update))

    payloads = [of([1, 2, 3]), of([-1, -2, 2.0**-149])]
    found = mean_of(payloads, LAYOUT)
    assert found.vector.tobytes() == aggregated(payloads, LAYOUT).tobytes()
    assert found.numbers.tolist() == [0.0, 0.0, 1.5]


@pytest.mark.parametrize("spec", ["ef(tcs(0.02, 0.005) | fractional(8))", "ef(tcs(0.02, 0.005))"])
def test_payloads_that_lean_on_the_mean_before(spec):
    """Round after round as with a server: its bytes down, and so its references."""
    rng = np.random.default_rng(3)
    clients = [gw.Client(gw.parse(spec), LAYOUT, client_id=i) for i in range(3)]
    server, reference, applied = gw.Server(gw.parse(spec), LAYOUT), None, 0
    for index in range(4):
        blobs = [c.compress(rng.standard_normal(LAYOUT.d).astype(np.float32)) for c in clients]
        for client, blob in zip(clients, blobs, strict=True):
            server.receive(blob, client.client_id)
        result = server.close_round()
        found = mean_of([gw.decode(blob) for blob in blobs], LAYOUT, reference)
        agreed = gw.Round(index=index, sequence=index, sum_weights=3.0)
        payload, _ = gw.dense().compress_listed(found, gw.State(LAYOUT), agreed)
        assert gw.encode(payload) == result.blob
        reference = gw.Reference.of(payload)
        assert reference.vector.tobytes() == result.applied.tobytes()
        applied += hashlib.sha256(result.blob).digest()[0]
        for client in clients:
            client.end_round(result.blob)
    assert applied


@settings(max_examples=up_to(100), deadline=None)
@given(st.data(), st.integers(1, 200))
def test_a_list_makes_the_payload_of_its_vector(data, d):
    places = sorted(data.draw(st.sets(st.integers(0, d - 1))))
    elements = st.sampled_from([0.0, -0.0, 1.5, -2.0, 1e-45])
    numbers = data.draw(st.lists(elements, min_size=len(places), max_size=len(places)))
    vector = gw.Reference(d, np.array(numbers, np.float32), np.array(places, np.int64))
    state, agreed = gw.State(gw.Layout.flat(d)), gw.Round(index=3, sequence=9, sum_weights=2.5)
    listed, _ = gw.dense().compress_listed(vector, state, agreed)
    assert gw.encode(listed) == gw.encode(gw.dense().compress(vector.vector, state, agreed)[0])


def test_a_list_of_all_there_is():
    for d in (1, 5):
        vector = gw.Reference(d, np.arange(1, d + 1, dtype=np.float32), np.arange(d))
        state = gw.State(gw.Layout.flat(d))
        assert gw.dense().compress_listed(vector, state)[0] == gw.dense().compress(vector.vector, state)[0]


def test_a_list_with_running_statistics():
    layout = gw.Layout.from_arrays({"w": np.ones(100), "running_mean": np.ones(3)})
    vector = gw.Reference(103, np.array([2, 5], np.float32), np.array([4, 101]))
    listed, _ = gw.dense().compress_listed(vector, gw.State(layout))
    assert listed == gw.dense().compress(vector.vector, gw.State(layout))[0]


def test_refused():
    with pytest.raises(ConfigError, match="needs a payload"):
        mean_of([], LAYOUT)
    payload = gw.decode(gw.Client(gw.topk(0.5), gw.Layout.flat(3)).compress(np.ones(3, np.float32)))
    with pytest.raises(ProtocolError, match="d = 5000, got 3"):
        mean_of([payload], LAYOUT)


def test_sums_that_leave_float32():
    update = np.zeros(LAYOUT.d, np.float32)
    update[5] = 3e38
    payloads = [gw.decode(gw.Client(gw.topk(0.001), LAYOUT, client_id=i).compress(update)) for i in range(2)]
    with pytest.raises(UpdateError, match="sum of the payloads"):
        mean_of(payloads, LAYOUT)
