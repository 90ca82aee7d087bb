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
