"""FedNova against the paper's closed forms on quadratics, and against its formula written out on real data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

import gradwire as gw
from gradwire.federated.algorithms import fedavg, fednova
from gradwire.federated.data.tasks import load_task
from gradwire.federated.data.train import draw_batches
from gradwire.federated.experiment import Experiment
from gradwire.federated.simulation import Simulation
from gradwire.rng import Key

MINIMA = np.array([0.0, 10.0, 4.0])  # of F_i(x) = (x - e_i)^2 / 2
SHARES = np.array([0.5, 0.2, 0.3])  # p_i
STEPS = np.array([1, 8, 3])  # tau_i


def fixed_point(algorithm, rate, rounds):
    """Where rounds of exact local descent on the quadratics end."""
    layout = gw.Layout.flat(1)
    step = algorithm.make_step(layout)
    server = gw.Server(gw.dense(), layout, step=step)
    clients = [gw.Client(gw.dense(), layout, client_id=i) for i in range(3)]
    x = 1.0
    for _ in range(rounds):
        for client, minimum, share, num_steps in zip(clients, MINIMA, SHARES, STEPS, strict=True):
            update = ((1 - rate) ** num_steps - 1) * (x - minimum)  # y - x after that many steps
            sent = np.float32([update * algorithm.scale(int(num_steps))])
            server.receive(client.compress(sent, weight=share), client.client_id, weight=share)
            if step is not None:
                step.count(share, int(num_steps))
        result = server.close_round()
        for client in clients:
            client.end_round(result.blob)
        x += float(result.applied[0])
    return x


@pytest.mark.parametrize("rate", [0.02, 0.2])
def test_fixed_points_are_those_of_lemma_1(rate):
    """FedAvg's clients count (1 - (1 - eta)^tau) times, FedNova's that divided by tau."""
    pull = 1 - (1 - rate) ** STEPS
    for algorithm, weights in ((fedavg(), SHARES * pull), (fednova(), SHARES * pull / STEPS)):
        expected = float(weights @ MINIMA / weights.sum())
        assert fixed_point(algorithm, rate, 400) == pytest.approx(expected, rel=1e-4)


def test_fedavg_is_biased_and_fednova_is_not():
    true = float(SHARES @ MINIMA)
    biased = float(SHARES * STEPS @ MINIMA / (SHARES @ STEPS))
    assert biased - true > 2.9
    assert fixed_point(fedavg(), 0.005, 900) == pytest.approx(biased, abs=0.1)
    assert fixed_point(fednova(), 0.005, 900) == pytest.approx(true, abs=0.1)


def test_with_equal_steps_it_is_fedavg():
    layout, rng = gw.Layout.flat(20), np.random.default_rng(0)
    updates = rng.standard_normal((4, 20)).astype(np.float32)
    step, algorithm = fednova(0.5).make_step(layout), fednova(0.5)
    for weight in (1.0, 2.0, 3.0, 4.0):
        step.count(weight, 5)
    mean = np.average(updates, axis=0, weights=[1, 2, 3, 4]).astype(np.float32)
    np.testing.assert_allclose(step(mean * np.float32(algorithm.scale(5))), 0.5 * mean, rtol=1e-6)


def test_running_statistics_are_the_plain_mean():
    layout = gw.Layout.from_arrays({"w": np.zeros(2, np.float32), "n.running_mean": np.zeros(1, np.float32)})
    step = fednova().make_step(layout)
    step.count(1.0, 4)
    assert step(np.float32([1, 2, 3])).tolist() == [4, 8, 3]
    assert step(np.zeros(3, np.float32)).tolist() == [0, 0, 0]  # a round nobody was heard in


@pytest.mark.parametrize("local_steps", [0, -1, 1.5, True])
def test_steps_that_cannot_be(local_steps):
    step = fednova().make_step(gw.Layout.flat(1))
    with pytest.raises(gw.ConfigError, match="local_steps"):
        step.count(1.0, local_steps)
    with pytest.raises(gw.ConfigError, match="local_steps"):
        fednova().scale(local_steps)


# ---- in a run


def trained(task, start, shard, seed, round, client, num_steps, rate):
    """One client's model after some of the local steps it draws, on the digits mlp, in float64."""
    sizes = [128 * 64, 128, 10 * 128, 10]
    x, y = task.train_inputs.double(), task.train_targets
    weights = torch.from_numpy(start).double().requires_grad_()
    for rows in draw_batches(shard, Key(seed, round, client), 3, 8)[:num_steps]:
        w1, b1, w2, b2 = weights.split(sizes)
        logits = functional.relu(x[rows] @ w1.view(128, 64).T + b1) @ w2.view(10, 128).T + b2
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, y[rows]), weights)
        weights = (weights - rate * gradient).detach().requires_grad_()
    return weights.detach().numpy()


@pytest.mark.parametrize("settings", [{}, {"regions": 2}], ids=["one server", "regions"])
def test_a_run_with_unequal_steps_is_the_formula(tmp_path, settings):
    header = "client,seconds,uplink_bits_per_second,downlink_bits_per_second,latency_seconds,steps_per_second,available"
    rows = [f"{i},0,1e12,1e12,0,{i + 1},1" for i in range(3)]
    (tmp_path / "speeds.csv").write_text("\n".join([header, *rows]) + "\n")
    e = Experiment.build(
        {
            "methods": ["dense()"],
            "algorithms": ["fednova(server_learning_rate=0.7)"],
            "links": [f"trace('{tmp_path}/speeds.csv')"],
            "budgets": ["fit(compute_share=0.5)"],
            "deadline_seconds": 2.1,
            "partition": "dirichlet:0.3",
            "clients": 3,
            "rounds": 3,
            "local_steps": 3,
            "batch_size": 8,
            "learning_rate": 0.3,
            **settings,
        }
    )
    task = load_task("digits")
    sim = Simulation(e, gw.dense(), task, seed=5)
    model, shards = sim.model.astype(np.float64), sim.federation.shards
    shares = np.array([len(shard) for shard in shards]) / len(task.train_inputs)
    taus = np.array([1, 2, 3])  # in half the deadline, at 1, 2 and 3 steps a second
    unlike = 0.0
    for t, _ in enumerate(sim.rounds()):
        start = model.astype(np.float32)
        moved = [trained(task, start, shards[i], 5, t, i, int(taus[i]), 0.3) - start for i in range(3)]
        unlike = max(unlike, float(np.abs(moved[0]).max()))
        model = model + 0.7 * (shares @ taus) * (shares / taus @ np.array(moved))
        np.testing.assert_allclose(sim.model, model, rtol=0, atol=2e-5)
    assert unlike > 0.01


def test_packets_count_a_client_once(monkeypatch):
    from gradwire.federated.algorithms.fednova import NormalisedStep

    counted = []
    monkeypatch.setattr(NormalisedStep, "count", lambda self, weight, local_steps: counted.append(local_steps))
    e = Experiment.build(
        {
            "methods": ["ef(topk(0.1))"],
            "algorithms": ["fednova()"],
            "mtu": 300,
            "clients": 3,
            "rounds": 2,
            "local_steps": 2,
            "packet_duplication": 0.5,
        }
    )
    sim = Simulation(e, gw.parse("ef(topk(0.1))"), load_task("digits"), seed=0)
    list(sim.rounds())
    assert counted == [2] * 6
