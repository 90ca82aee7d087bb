"""A round can always be closed: what step, downlink or forward could not hold is refused when it arrives."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest

import gradwire as gw
from gradwire.federated.algorithms import fedadagrad, fedadam, fedasync, fedavg, fedavgm, fedbuff, fedyogi

LAYOUT = gw.Layout.flat(4)
ALGORITHMS = [
    fedavg(2.0),
    fedavgm(0.9, 2.0),
    fedadam(),
    fedadam(1e3, tau=1e-9),
    fedadam(initial=0.0, bias_correction=True),
    fedyogi(),
    fedadagrad(),
    fedbuff(3, 5.0),
    fedasync(),
]
MAGNITUDES = [3.3e38, 1e30, 1e20, 3e18, 1e10, 1.0]


def blob_of(value, index, client_id=0):
    """The payload of a client that sends one a round."""
    payload = gw.decode(gw.Client(gw.dense(), LAYOUT, client_id).compress(np.full(4, value, np.float32), round=index))
    return gw.encode(replace(payload, sequence=index))


@pytest.mark.parametrize("downlink", ["dense()", "ef(topk(0.25))", "momentum_correction(topk(0.25))", "ef(uniform(4))"])
@pytest.mark.parametrize("algorithm", [None, *ALGORITHMS], ids=str)
def test_whatever_is_accepted_the_round_closes(algorithm, downlink):
    step = None if algorithm is None else algorithm.make_step(LAYOUT)
    server = gw.Server(gw.dense(), LAYOUT, downlink=gw.parse(downlink), step=step)
    rng = np.random.default_rng(0)
    accepted = 0
    for index in range(40):
        for client_id in range(3):
            value = float(rng.choice(MAGNITUDES) * rng.choice([-1, 1]))
            with contextlib.suppress(gw.ProtocolError):
                server.receive(blob_of(value, index, client_id), client_id, weight=0.5)
                accepted += 1
                if hasattr(step, "count"):
                    step.count(0.5)
        result = server.close_round()
        assert np.isfinite(result.applied).all()
    assert accepted > 40


def test_one_entry_of_a_wrong_client_does_not_hold_up_the_others():
    server = gw.Server(gw.dense(), LAYOUT, step=fedadam().make_step(LAYOUT))
    with pytest.raises(gw.ProtocolError, match=r"largest entry 1e\+20 .* the mean may reach 1.8\d*e\+16"):
        server.receive(blob_of(1e20, 0))
    for client_id in range(1, 10):
        server.receive(blob_of(1.0, 0, client_id), client_id)
    result = server.close_round()
    assert result.num_received == 9
    assert (result.applied > 0).all()


def test_a_lossless_server_takes_what_float32_holds():
    server = gw.Server(gw.dense(), LAYOUT)
    server.receive(blob_of(3.39e38, 0), weight=0.5)
    assert server.close_round().applied.tolist() == [np.float32(3.39e38)] * 4


def test_room_comes_back_as_a_momentum_fades():
    step = fedavgm(0.5).make_step(LAYOUT)
    server = gw.Server(gw.dense(), LAYOUT, step=step)
    server.receive(blob_of(1.6e38, 0))
    server.close_round()
    room = []
    for _ in range(3):
        room.append(step.largest_update(3.4e38))
        server.close_round()
    assert room == pytest.approx([0.9e38, 1.3e38, 1.5e38], rel=1e-3)


@pytest.mark.parametrize("forward", ["ef(topk(0.25))", "ef(dense())", "momentum_correction(topk(0.25))"])
def test_a_region_can_forward_whatever_it_accepted(forward):
    region, server = gw.Region(gw.dense(), LAYOUT, forward=gw.parse(forward)), gw.Server(gw.dense(), LAYOUT)
    rng = np.random.default_rng(1)
    for index in range(20):
        for client_id in range(3):
            value = float(rng.choice(MAGNITUDES))
            with contextlib.suppress(gw.ProtocolError):
                region.receive(blob_of(value, index, client_id), client_id)
        up = region.forward()
        lost = bool(rng.integers(2))
        if up is not None and not lost:
            server.receive(up.blob, 0, up.weight)
        region.end_round(server.close_round().blob, delivered=up is not None and not lost)


def test_weights_of_a_region_add_up_to_a_weight():
    region = gw.Region(gw.dense(), LAYOUT)
    region.receive(blob_of(1.0, 0), 0, 2.0**63)
    region.receive(blob_of(1.0, 0, 1), 1, 2.0**63)
    with pytest.raises(gw.ProtocolError, match="weights may add up to"):
        region.receive(blob_of(1.0, 0, 2), 2, 2.0**12)
    server = gw.Server(gw.dense(), LAYOUT)
    up = region.forward()
    server.receive(up.blob, 0, up.weight)
    assert server.close_round().applied.tolist() == [1.0] * 4


# --- a round that is dropped ----------------------------------------------------------------------


def failing_step(update):
    if np.abs(update).max() > 5:
        raise gw.UpdateError("more than this host's step takes")
    return update


def test_a_round_that_cannot_be_closed_is_dropped_and_nothing_is_lost():
    layout, rng = gw.Layout.flat(20), np.random.default_rng(0)
    clients = [gw.Client(gw.ef(gw.topk(0.2)), layout, n) for n in range(3)]
    server = gw.Server(gw.ef(gw.topk(0.2)), layout, step=failing_step)
    raw, counted = np.zeros((3, 20)), np.zeros((3, 20))
    for index in range(6):
        for n, client in enumerate(clients):
            update = (rng.standard_normal(20) * (100 if index == 2 and n == 1 else 0.1)).astype(np.float32)
            raw[n] += update
            server.receive(blob := client.compress(update), n)
            counted[n] += gw.decompress(gw.decode(blob))
        try:
            result = server.close_round()
        except gw.UpdateError:
            dropped = server.drop_round()
            assert dropped == ((0, index), (1, index), (2, index))
            for n, client in enumerate(clients):
                counted[n] -= gw.decompress(gw.decode(client.pending[0]))
            result = server.close_round()
        assert result.num_received in (0, 3)
        for n, client in enumerate(clients):
            client.end_round(result.blob, delivered=(n, index) in result.accepted)
        clients[1].load_state_dict(clients[1].state_dict())
        if index == 2:  # the wrong update would come again: this client starts afresh
            raw[1], counted[1] = 0, 0
            clients[1] = gw.Client(gw.ef(gw.topk(0.2)), layout, 1)
            clients[1].end_round(result.blob)
            clients[1].skip_to(index + 1)
    for n, client in enumerate(clients):
        np.testing.assert_allclose(client.state_dict()["residual"] + counted[n], raw[n], atol=1e-4)


@pytest.mark.parametrize("restart", [False, True])
def test_what_was_dropped_can_be_received_again(restart):
    layout = gw.Layout.flat(40)
    server = gw.Server(gw.topk(0.5), layout, max_staleness=1)
    clients = [gw.Client(gw.topk(0.5), layout, n) for n in range(2)]
    packets = clients[0].packets(np.arange(1, 41, dtype=np.float32), 80)
    whole = clients[1].compress(np.ones(40, np.float32))
    server.receive(packets[0], 0)
    server.close_round()
    expected = server.state_dict()
    for blob, n in (*((packet, 0) for packet in packets[1:]), (whole, 1)):
        server.receive(blob, n)
    if restart:
        saved, server = server.state_dict(), gw.Server(gw.topk(0.5), layout, max_staleness=1)
        server.load_state_dict(saved)
    assert server.counted(1) == ((0, 0),)
    assert set(server.drop_round()) == {(0, 0), (1, 0)}
    assert server.counted(1) == ()
    for name in ("pieces", "senders", "counted", "accepted", "began"):
        assert repr(server.state_dict()[name]) == repr(expected[name]), name
    with pytest.raises(gw.Duplicate):
        server.receive(packets[0], 0)
    for packet in packets[1:]:
        server.receive(packet, 0)
    server.receive(whole, 1)
    assert server.close_round().num_received == 2


def test_mirrors_cannot_be_dropped():
    server = gw.Server(gw.ef21(gw.topk(0.5)), LAYOUT, num_clients=1)
    with pytest.raises(gw.ConfigError, match="steps of mirrors"):
        server.drop_round()
