"""What a round's record says of each client, of supports and of residuals, against the blobs themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_federation import LOSSY, Road, run, simulation, trace

from gradwire.ends.client import Client
from gradwire.errors import StateError
from gradwire.federated.data.tasks import load_task
from gradwire.wire import decode


@pytest.fixture(scope="module")
def digits():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_task("digits")
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "settings",
    [
        {"participation": 0.6},
        {**LOSSY, "rounds": 4},
        {"algorithms": ["fedbuff(buffer_size=2)"], "links": ["mix(fibre=2, lora=1)"]},
        {"algorithms": ["scaffold()"], "links": ["mix(fibre=3, lora=2)"], "deadline_seconds": 4.0, "rounds": 3},
        {"regions": 2, "rounds": 2},
    ],
)
def test_parts_of_clients_add_up_to_the_round(digits, settings):
    sim = simulation(digits, **settings)
    kinds = {
        "uplink": "uplink_bytes",
        "downlink": "downlink_bytes",
        "other": "other_bytes",
        "late": "num_late",
        "lost": "num_lost",
        "idle": "num_idle",
    }
    for m in run(sim):
        for kind, total in kinds.items():
            assert sum(part.get(kind, 0) for part in m.clients.values()) == getattr(m, total)
        assert all(count > 0 for part in m.clients.values() for count in part.values())
    summary = sim.summary()
    assert 0 < summary["density"] <= 1
    if "mtu" not in settings and "fedbuff" not in str(settings):
        assert sim.totals.num_sent == sim.totals.num_received + sim.totals.num_late + sim.totals.num_lost


def test_each_client_s_bytes_are_those_it_sent(digits, monkeypatch):
    road = Road(monkeypatch)
    metrics = run(simulation(digits, participation=0.6))
    sent = {}
    for client_id, _, size in road.sent:
        sent[client_id] = sent.get(client_id, 0) + size
    counted = {}
    for m in metrics:
        for client_id, part in m.clients.items():
            counted[client_id] = counted.get(client_id, 0) + part.get("uplink", 0)
    assert counted == sent


def test_who_was_late_or_lost_or_did_not_begin(digits, tmp_path):
    links = trace(
        tmp_path,
        "0,0,8000000,8000000,0.001,100,1",
        "1,0,400,8000000,0.001,100,1",  # uploads for longer than the deadline
        "2,0,8000000,8000000,0.001,0.1,1",  # would train for longer than the deadline
        "3,0,400,8000000,0.001,100,1",  # is away before its upload ends
        "3,0.5,400,8000000,0.001,100,0",
    )
    settings = {"clients": 4, "links": links, "deadline_seconds": 2.0, "rounds": 1, "partition": "iid"}
    (m,) = run(simulation(digits, **settings))
    found = {i: {k: n for k, n in part.items() if k in ("late", "lost", "idle")} for i, part in m.clients.items()}
    assert found == {0: {}, 1: {"late": 1}, 2: {"idle": 1}, 3: {"lost": 1}}
    assert (m.num_sent, m.num_received, m.num_late, m.num_lost, m.num_idle) == (3, 1, 1, 1, 1)


def test_supports_are_those_of_the_blobs(digits, monkeypatch):
    road = Road(monkeypatch)
    sim = simulation(digits, "ef(topk(0.02))", partition="iid")
    before = None
    for t, m in enumerate(run(sim)):
        payloads = [decode(blob) for _, blob, _, index in road.accepted if index == t]
        chosen = [set(p.parts[0].support.indices.tolist()) for p in payloads]
        moved = set(np.flatnonzero(road.results[t].update).tolist())
        assert m.num_kept == sum(map(len, chosen))
        assert moved <= set().union(*chosen)
        assert m.num_moved == len(moved) > 0
        assert m.overlap == (None if before is None else pytest.approx(len(moved & before) / len(moved)))
        before = moved
    assert 0 < m.overlap < 1


def test_the_residual_is_what_was_computed_and_not_sent(digits, monkeypatch):
    road = Road(monkeypatch)
    sim = simulation(digits, clients=2, evaluate_every=2, partition="iid")
    norms = {}
    for t, m in enumerate(sim.rounds()):
        left = [road.raw[i] - road.counted(i) for i in (0, 1)]
        norms[t] = np.sqrt(np.mean([np.dot(e, e) for e in left]))
        assert m.residual_norm == (pytest.approx(norms[t], rel=1e-4) if m.accuracy is not None else None)
    assert run(simulation(digits, "topk(0.02)", rounds=1))[0].residual_norm is None


def test_a_client_hands_out_its_residual_as_it_is(digits):
    sim = simulation(digits, rounds=1, clients=2, partition="iid")
    run(sim)
    for client in sim.clients:
        np.testing.assert_array_equal(client.residual, client.state_dict()["residual"])
    assert Client(sim.compressor.compressor, sim.layout).residual is None


def test_a_run_that_goes_on_knows_the_support_of_the_round_before(digits):
    whole = run(simulation(digits))
    first = simulation(digits)
    rounds = first.rounds()
    for _ in range(2):
        next(rounds)
    state = first.state_dict()
    later = simulation(digits)
    later.load_state_dict(state)
    assert [m.overlap for m in later.rounds()] == [m.overlap for m in whole[2:]]
    assert whole[2].overlap > 0
    with pytest.raises(StateError, match="moved must be 9610 bits"):
        simulation(digits).load_state_dict({**state, "moved": state["moved"][:-1]})
