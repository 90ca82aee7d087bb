"""Norm clipping: what is cut, what is counted of it, and that it never lets through more than allowed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradwire as gw
from gradwire.aggregation.clipping import clip_payload

LAYOUT = gw.Layout.flat(200)
SPECS = ["dense()", "topk(0.1)", "topk(0.1) | uniform(4)", "randk(0.1) | qsgd(8)", "sign()", "powersgd(1)"]


def update_of(seed, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(200)).astype(np.float32)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("allowed", [0.0, 0.5, 1e6])
def test_the_formula(spec, allowed):
    payload = gw.decode(gw.Client(gw.parse(spec), LAYOUT).compress(update_of(0)))
    before = gw.decompress(payload).astype(np.float64)
    length = np.linalg.norm(before)
    clipped, norm, factor = clip_payload(payload, allowed)
    np.testing.assert_allclose(gw.decompress(clipped), before * min(1, allowed / length), rtol=1e-6, atol=1e-12)
    assert norm == pytest.approx(min(length, allowed))
    assert factor == pytest.approx(min(1, allowed / length))
    assert (clipped is payload) == (length <= allowed)


def test_the_server_says_what_it_cut():
    server = gw.Server(gw.dense(), LAYOUT, max_norm=2.0)
    honest, poisoned = update_of(0, 0.01), update_of(1, 1e6)
    for i, update in enumerate((honest, poisoned)):
        server.receive(gw.Client(gw.dense(), LAYOUT, client_id=i).compress(update), i)
    result = server.close_round()
    [cut] = result.clipped
    assert (cut.client_id, cut.sequence, cut.packet) == (1, 0, None)
    assert cut.factor == pytest.approx(2 / np.linalg.norm(poisoned.astype(np.float64)))
    np.testing.assert_allclose(2 * result.update, honest + poisoned * cut.factor, rtol=1e-5, atol=1e-7)
    assert server.close_round().clipped == ()


@given(st.permutations(range(5)), st.floats(0.1, 30))
def test_packets_together_are_no_longer_than_allowed(order, allowed):
    client, server = gw.Client(gw.topk(0.5), LAYOUT), gw.Server(gw.topk(0.5), LAYOUT, max_norm=allowed)
    packets = client.packets(update_of(2), mtu=150)
    for number in (n for n in order if n < len(packets)):
        server.receive(packets[number])
    result = server.close_round()
    assert np.linalg.norm(result.update.astype(np.float64)) <= allowed * (1 + 1e-6)
    factors = {c.packet: c.factor for c in result.clipped}
    counted = sum(
        gw.decompress(gw.decode(packets[n])).astype(np.float64) * factors.get(n, 1.0) for n in order if n < len(packets)
    )
    np.testing.assert_allclose(result.update, counted, rtol=1e-5, atol=1e-6)


def test_a_state_remembers_what_was_cut():
    def half(server, packets):
        server.receive(packets[0])
        return server

    packets = gw.Client(gw.topk(0.5), LAYOUT).packets(update_of(3), mtu=150)
    first = half(gw.Server(gw.topk(0.5), LAYOUT, max_norm=1.0), packets)
    second = gw.Server(gw.topk(0.5), LAYOUT, max_norm=1.0)
    second.load_state_dict(first.state_dict())
    for server in (first, second):
        server.receive(packets[1])
    one, other = first.close_round(), second.close_round()
    assert one.clipped == other.clipped
    assert len(one.clipped) == 2
    assert one.blob == other.blob


@pytest.mark.parametrize("max_norm", [0, -1.0, float("nan"), True, "1"])
def test_bad_norms(max_norm):
    with pytest.raises(gw.ConfigError, match="max_norm"):
        gw.Server(gw.dense(), LAYOUT, max_norm=max_norm)


def test_mirrors_are_not_clipped():
    with pytest.raises(gw.ConfigError, match="steps of a mirror"):
        gw.Server(gw.ef21(gw.topk(0.1)), LAYOUT, num_clients=2, max_norm=1.0)
