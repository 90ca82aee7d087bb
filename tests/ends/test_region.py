"""Regions: the same mean as without them, nothing lost between them and the server, and one reference for all ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradwire as gw

D = 40
LAYOUT = gw.Layout.flat(D)
SPEC = gw.ef(gw.topk(0.1))


def updates_of(seed, num_clients):
    return np.random.default_rng(seed).standard_normal((num_clients, D)).astype(np.float32)


def forward_all(regions, server):
    """Let each region forward, all of it arriving."""
    for region in regions:
        up = region.forward()
        if up is not None:
            server.receive(up.blob, client_id=region.region_id, weight=up.weight)
    return server.close_round()


@pytest.mark.parametrize("spec", ["dense()", "ef(topk(0.1))", "ef(topk(0.1) | uniform(4))", "tcs(0.2, 0.05)"])
def test_the_mean_is_that_of_one_server(spec):
    compressor = gw.parse(spec)
    weights = [1.0, 3.0, 2.0, 5.0, 4.0]
    flat = [gw.Client(compressor, LAYOUT, client_id=i) for i in range(5)]
    below = [gw.Client(compressor, LAYOUT, client_id=i) for i in range(5)]
    single, top = gw.Server(compressor, LAYOUT), gw.Server(gw.ef(gw.dense()), LAYOUT)
    regions = [gw.Region(compressor, LAYOUT, region_id=r) for r in range(2)]
    for index in range(4):
        updates = updates_of(index, 5)
        for i in range(5):
            single.receive(flat[i].compress(updates[i], weights[i]), i, weights[i])
            regions[i % 2].receive(below[i].compress(updates[i], weights[i]), i, weights[i])
        expected, found = single.close_round(), forward_all(regions, top)
        np.testing.assert_allclose(found.update, expected.update, rtol=2e-6, atol=1e-7)
        assert found.sum_weights == 15
        assert found.num_received == 2
        for region in regions:
            np.testing.assert_array_equal(region.end_round(found.blob), found.applied)
        for client in below:
            np.testing.assert_array_equal(client.end_round(found.blob), found.applied)
        for client in flat:
            client.end_round(expected.blob)


def test_only_one_blob_a_region_crosses():
    region = gw.Region(SPEC, LAYOUT)
    sizes = []
    for i in range(20):
        blob = gw.Client(SPEC, LAYOUT, client_id=i).compress(updates_of(i, 1)[0])
        region.receive(blob, i)
        sizes.append(len(blob))
    up = region.forward()
    assert len(up.blob) < sum(sizes) / 2
    assert up.weight == 20
    assert len(up.accepted) == 20
    kept = gw.inspect(up.blob)["num_kept"]
    assert kept <= 20 * 4  # sparse: no more coordinates than the clients sent


@given(st.lists(st.booleans(), min_size=3, max_size=6), st.sampled_from(["ef(dense())", "ef(topk(0.05))"]))
def test_nothing_is_lost_on_the_way_up(arrives, forward):
    """Sum of clients' updates = what the server applied + residuals of the clients and of the region."""
    region, server = gw.Region(SPEC, LAYOUT, forward=gw.parse(forward)), gw.Server(gw.dense(), LAYOUT)
    client = gw.Client(SPEC, LAYOUT)
    raw, applied = np.zeros(D), np.zeros(D)
    for index, arrived in enumerate(arrives):
        update = updates_of(index, 1)[0]
        raw += update
        region.receive(client.compress(update))
        up = region.forward()
        if arrived:
            server.receive(up.blob, weight=up.weight)
        result = server.close_round()
        applied += result.applied
        region.end_round(result.blob, delivered=arrived)
        client.end_round(result.blob, delivered=True)
    held = client.state_dict()["residual"] + region.state_dict()["up"]["residual"]
    np.testing.assert_allclose(applied + held, raw, atol=1e-5)


def test_a_region_that_heard_nothing_stays_silent():
    region, server = gw.Region(SPEC, LAYOUT), gw.Server(gw.dense(), LAYOUT)
    assert region.forward() is None
    region.end_round(server.close_round().blob)
    assert region.round == 1
    region.receive(gw.Client(SPEC, LAYOUT).compress(updates_of(0, 1)[0], round=1))
    assert region.forward().weight == 1


def test_order_of_calls_is_kept():
    region, server = gw.Region(SPEC, LAYOUT), gw.Server(gw.dense(), LAYOUT)
    blob = gw.Client(SPEC, LAYOUT).compress(updates_of(0, 1)[0])
    region.receive(blob)
    with pytest.raises(gw.Duplicate):
        region.receive(blob)
    closing = server.close_round().blob
    with pytest.raises(gw.ProtocolError, match="round 0 holds 1 payloads: forward them first"):
        region.end_round(closing)
    region.forward()
    with pytest.raises(gw.ProtocolError, match="round 0 was forwarded; expected nothing before it ends"):
        region.receive(gw.Client(SPEC, LAYOUT, client_id=1).compress(updates_of(1, 1)[0]), 1)
    with pytest.raises(gw.ProtocolError, match="round 0 was forwarded before; expected end_round"):
        region.forward()
    region.end_round(closing)
    with pytest.raises(gw.Duplicate):
        region.receive(blob)


def test_state_continues_byte_for_byte():
    region = gw.Region(SPEC, LAYOUT, forward=gw.ef(gw.topk(0.05)))
    client = gw.Client(SPEC, LAYOUT)
    region.receive(client.compress(updates_of(0, 1)[0]))
    other = gw.Region(SPEC, LAYOUT, forward=gw.ef(gw.topk(0.05)))
    other.load_state_dict(region.state_dict())
    assert other.forward().blob == region.forward().blob
    other.load_state_dict(region.state_dict())
    with pytest.raises(gw.ProtocolError, match="was forwarded before"):
        other.forward()
    with pytest.raises(gw.StateError):
        gw.Region(gw.topk(0.1), LAYOUT).load_state_dict(region.state_dict())
    with pytest.raises(gw.StateError):
        gw.Region(SPEC, LAYOUT, forward=gw.ef(gw.topk(0.05)), region_id=1).load_state_dict(region.state_dict())


def test_mirrors_are_refused():
    with pytest.raises(gw.ConfigError, match="mirror"):
        gw.Region(gw.ef21(gw.topk(0.1)), LAYOUT)
    with pytest.raises(gw.ConfigError, match="forward cannot keep a mirror"):
        gw.Region(SPEC, LAYOUT, forward=gw.ef21(gw.topk(0.1)))
