"""Answers: about some pending payloads, without a blob of the server, and against the reference each leans on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradwire as gw

D = 40
LAYOUT = gw.Layout.flat(D)
LEANING = ["ef(tcs(0.1, 0.05))", "ef(tcs(0.2, 0.05) | fp16())", "ef(regtopk(0.2))"]


def update_of(seed):
    return np.random.default_rng(seed).standard_normal(D).astype(np.float32)


def residual_of(client):
    return client.state_dict()["residual"].astype(np.float64)


@pytest.mark.parametrize("spec", ["ef(topk(0.1))", *LEANING])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_nothing_is_lost_whenever_answers_come(spec, data):
    """Conservation, with rounds closing while payloads are still under way, and a restart now and then."""
    compressor = gw.parse(spec)
    client, server = gw.Client(compressor, LAYOUT), gw.Server(compressor, LAYOUT, max_staleness=6)
    raw, counted = np.zeros(D), np.zeros(D)
    fates = {}
    for index in range(data.draw(st.integers(1, 6))):
        update = update_of(index)
        sequence = client.sequence
        blob = client.compress(update, round=index)
        raw += update
        payload = gw.decode(blob)
        if arrives := data.draw(st.booleans()):
            counted += gw.decompress(payload, server.reference_of(payload))
            server.receive(blob)
        fates[sequence] = arrives
        answers = {s: fates[s] for s in client.pending_sequences if data.draw(st.booleans())}
        downlink = server.close_round().blob
        if data.draw(st.booleans()):
            client.settle(answers)
            client.end_round(downlink, delivered={})
        else:
            client.end_round(downlink, delivered=answers)
        assert set(answers).isdisjoint(client.pending_sequences)
        if data.draw(st.booleans()):
            saved = client.state_dict()
            client = gw.Client(compressor, LAYOUT)
            client.load_state_dict(saved)
    client.settle({s: fates[s] for s in client.pending_sequences})
    assert client.pending == ()
    np.testing.assert_allclose(residual_of(client) + counted, raw, atol=1e-5)


@pytest.mark.parametrize("spec", LEANING)
def test_what_was_lost_is_taken_back_where_it_was_taken_from(spec):
    """Three rounds later, the reference is another one: the support of the lost payload is that of its own."""
    compressor = gw.parse(spec)
    client, server = gw.Client(compressor, LAYOUT), gw.Server(compressor, LAYOUT)
    server.receive(client.compress(update_of(0)))
    client.end_round(server.close_round().blob)
    before = residual_of(client)
    lost = update_of(1)
    client.compress(lost)
    for index in range(2, 5):
        client.end_round(downlink_of(update_of(100 + index), index), delivered={})
    client.settle({1: False})
    np.testing.assert_allclose(residual_of(client), before + lost, atol=1e-5)


def downlink_of(update, index):
    """What a server of the round sends that received one update."""
    server = gw.Server(gw.topk(0.3), LAYOUT)
    server.receive(gw.Client(gw.topk(0.3), LAYOUT).compress(update))
    return gw.encode(replace(gw.decode(server.close_round().blob), round=index, sequence=index))


def test_what_is_not_named_stays_pending():
    client = gw.Client(gw.ef(gw.topk(0.1)), LAYOUT)
    blobs = [client.compress(update_of(seed)) for seed in range(3)]
    client.settle({1: True})
    assert client.pending_sequences == (0, 2)
    assert client.pending == (blobs[0], blobs[2])
    client.settle({})
    assert client.pending_sequences == (0, 2)
    client.end_round(gw.Server(gw.topk(0.1), LAYOUT).close_round().blob, delivered={2: False})
    assert client.pending_sequences == (0,)


def test_packets_of_several_payloads():
    client = gw.Client(gw.ef(gw.topk(0.5)), LAYOUT)
    sent = [client.packets(update_of(seed), 90) for seed in range(2)]
    raw = update_of(0) + update_of(1)
    arrived = [{0}, set(range(len(sent[1])))]
    client.settle({0: arrived[0], 1: arrived[1]})
    counted = sum(gw.decompress(gw.decode(sent[i][n])) for i in range(2) for n in arrived[i])
    np.testing.assert_allclose(residual_of(client) + counted, raw, atol=1e-5)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({7: True}, r"may name the pending payloads \[0, 1\], got 7"),
        ({0: 1}, r"True, False or packet numbers in \[0, 1\), got 1"),
        ({0: {1}}, r"packet numbers in \[0, 1\), got \{1\}"),
        ({0: {True}}, r"packet numbers"),
        ({0}, "needs exactly one payload pending, got 2"),
    ],
)
def test_an_answer_about_nothing_is_refused_and_changes_nothing(answer, message):
    client = gw.Client(gw.ef(gw.topk(0.1)), LAYOUT)
    for seed in range(2):
        client.compress(update_of(seed))
    with pytest.raises(gw.ConfigError, match=message):
        client.settle(answer)
    assert client.pending_sequences == (0, 1)


def test_numbers_jump_forward_alone():
    client = gw.Client(gw.ef(gw.topk(0.1)), LAYOUT)
    client.compress(update_of(0))
    client.skip_to(9)
    assert gw.decode(client.compress(update_of(1))).sequence == 9
    assert client.pending_sequences == (0, 9)
    client.skip_to(10)
    for wrong in (9, -1, 2**63, 1.5, True):
        with pytest.raises(gw.ConfigError, match="sequence"):
            client.skip_to(wrong)
    assert client.sequence == 10
