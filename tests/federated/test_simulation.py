"""The simulator against a FedAvg written here, bytes counted at the seam, and what must not change the result."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

import gradwire as gw
from gradwire.ends.client import Client
from gradwire.ends.server import Server
from gradwire.errors import UpdateError
from gradwire.federated.data.models import build_model
from gradwire.federated.data.task import Task
from gradwire.federated.data.tasks import load_task
from gradwire.federated.data.train import draw_batches
from gradwire.federated.experiment import Experiment
from gradwire.federated.rounds import federation
from gradwire.federated.simulation import Simulation
from gradwire.rng import Key

SMALL = {"rounds": 4, "clients": 5, "local_steps": 3, "batch_size": 8}
METHODS = [
    "dense()",
    "topk(0.01)",
    "ef(topk(0.01))",
    "ef(topk(0.02) | uniform(8))",
    "ef(randk(0.02))",
    "ef(uniform(4))",
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """One torch thread: where other tests share the cores, two make every tiny step wait for the scheduler."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return load_task("digits")


def simulation(task, method="dense()", seed=0, batched=None, **settings):
    settings = {**SMALL, "methods": [method], **settings}
    return Simulation(Experiment.build(settings), gw.parse(method), task, seed, batched)


def run(sim):
    return list(sim.rounds())


# ---- FedAvg, written again


def fedavg(task, initial, shards, seed, rounds, local_steps, batch_size, learning_rate):
    """McMahan et al. 2017, Algorithm 1, on the digits mlp, in float64, clients weighted by their examples."""
    shapes = [(128, 64), (128,), (10, 128), (10,)]
    sizes = [int(np.prod(s)) for s in shapes]
    x, y = task.train_inputs.double(), task.train_targets
    model = torch.from_numpy(initial).double()
    for t in range(rounds):
        after = []
        for k, shard in enumerate(shards):
            weights = model.clone().requires_grad_()
            for rows in draw_batches(shard, Key(seed, t, k), local_steps, batch_size):
                w1, b1, w2, b2 = (p.view(s) for p, s in zip(weights.split(sizes), shapes, strict=True))
                logits = functional.relu(x[rows] @ w1.T + b1) @ w2.T + b2
                loss = -functional.log_softmax(logits, 1)[torch.arange(len(rows)), y[rows]].mean()
                (gradient,) = torch.autograd.grad(loss, weights)
                weights = (weights - learning_rate * gradient).detach().requires_grad_()
            after.append(weights.detach())
        total = sum(len(s) for s in shards)
        model = sum(len(s) / total * w for s, w in zip(shards, after, strict=True))
    return model.numpy()


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("partition", ["iid", "dirichlet:0.2"])
def test_dense_is_fedavg(digits, partition, batched):
    sim = simulation(digits, partition=partition, batched=batched, learning_rate=0.3, seed=3)
    sizes = [len(s) for s in sim.federation.shards]
    assert sum(sizes) == len(digits.train_inputs)
    if partition != "iid":
        assert max(sizes) > 2 * min(sizes)
    model = build_model("mlp", digits, 3)
    initial = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    np.testing.assert_array_equal(sim.model, initial)
    run(sim)
    expected = fedavg(digits, initial, sim.federation.shards, 3, 4, 3, 8, 0.3)
    moved = np.abs(expected - initial).max()
    assert moved > 0.05
    np.testing.assert_allclose(sim.model, expected, rtol=0, atol=5e-6)


def test_unweighted_averaging_would_be_noticed(digits):
    """The comparison above can fail: on unequal shards the plain mean is far from what it asserts."""
    sim = simulation(digits, partition="dirichlet:0.2", learning_rate=0.3, seed=3)
    initial = sim.model.copy()
    equal = [s[:1].repeat(10) for s in sim.federation.shards]
    run(sim)
    wrong = fedavg(digits, initial, equal, 3, 4, 3, 8, 0.3)
    assert np.abs(sim.model - wrong).max() > 1e-2


def test_weights_are_the_clients_examples(digits, monkeypatch):
    sim = simulation(digits, partition="dirichlet:0.3")
    given = {"compress": {}, "receive": {}}
    compress, receive = Client.compress_opened, Server.receive

    def spy_compress(self, update, weight=1.0, **options):
        given["compress"][self.client_id] = weight
        return compress(self, update, weight=weight, **options)

    def spy_receive(self, blob, client_id=0, weight=1.0):
        given["receive"][client_id] = weight
        return receive(self, blob, client_id=client_id, weight=weight)

    monkeypatch.setattr(Client, "compress_opened", spy_compress)
    monkeypatch.setattr(Server, "receive", spy_receive)
    run(sim)
    expected = {i: len(s) for i, s in enumerate(sim.federation.shards)}
    assert given["compress"] == given["receive"] == expected


def test_every_example_is_one_client_s(digits):
    sim = simulation(digits, partition="shards:2")
    assert sorted(np.concatenate(sim.federation.shards)) == list(range(len(digits.train_inputs)))


# ---- bytes


class Seam:
    """Counts what is handed over between Client and Server, and the initial model's blob."""

    def __init__(self, monkeypatch):
        self.up, self.down, self.other = [], [], []
        receive, end_round, encode = Server.receive, Client.end_round, federation.encode

        def bytes_of(read):
            """What was read may be handed over beside the bytes, since it is nothing but what they say."""
            assert type(read.blob) is bytes
            assert gw.decode(read.blob) == read.payload
            return read.blob

        def spy_receive(server, opened, *args, **options):
            self.up.append(bytes_of(opened))
            return receive(server, self.up[-1], *args, **options)

        def spy_end_round(client, downlink, *args, **options):
            self.down.append((client.client_id, bytes_of(downlink)))
            return end_round(client, self.down[-1][1], *args, **options)

        def spy_encode(payload):
            self.other.append(encode(payload))
            return self.other[-1]

        monkeypatch.setattr(Server, "receive", spy_receive)
        monkeypatch.setattr(Client, "end_round", spy_end_round)
        monkeypatch.setattr(federation, "encode", spy_encode)


@pytest.mark.parametrize("method", METHODS)
def test_totals_are_the_bytes_counted_at_the_seam(digits, monkeypatch, method):
    seam = Seam(monkeypatch)
    sim = simulation(digits, method, partition="dirichlet:0.5")
    metrics = run(sim)
    summary = sim.summary()
    assert len(seam.up) == len(seam.down) == 4 * 5
    assert summary["uplink_bytes"] == sum(map(len, seam.up))
    assert summary["downlink_bytes"] == sum(len(blob) for _, blob in seam.down)
    assert summary["other_bytes"] == 5 * sum(map(len, seam.other))
    assert len(seam.other) == 1
    for t, m in enumerate(metrics):
        assert m.uplink_bytes == sum(map(len, seam.up[5 * t : 5 * t + 5]))
        assert m.downlink_bytes == sum(len(blob) for _, blob in seam.down[5 * t : 5 * t + 5])
        assert m.header_bytes + m.support_bytes + m.values_bytes == m.uplink_bytes
    parts = summary["header_bytes"], summary["support_bytes"], summary["values_bytes"]
    assert sum(parts) == summary["uplink_bytes"]
    assert summary["header_bytes"] <= 32 * len(seam.up)
    d = 9_610
    assert summary["dense_uplink_bytes"] == 4 * d * 20
    assert summary["compression_ratio"] == pytest.approx(4 * d * 20 / summary["uplink_bytes"])
    assert summary["bits_per_parameter"] == pytest.approx(8 * summary["uplink_bytes"] / (20 * d))


def test_the_model_is_what_the_blobs_alone_give(digits, monkeypatch):
    """A client that sees only the initial blob and the downlink blobs holds the server's model."""
    seam = Seam(monkeypatch)
    sim = simulation(digits, "ef(topk(0.02) | uniform(8))")
    run(sim)
    model = gw.decompress(gw.decode(seam.other[0])).copy()
    for _, blob in seam.down[::5]:
        model += gw.decompress(gw.decode(blob))
    np.testing.assert_array_equal(model, sim.model)
    assert len({blob for _, blob in seam.down}) == 4


@pytest.mark.parametrize("method", ["ef(topk(0.01))", "ef(randk(0.02))", "ef(uniform(4))"])
def test_nothing_is_lost_between_residual_and_server(digits, monkeypatch, method):
    """Law 1 in the simulator: what was sent plus the residual is the sum of the raw updates."""
    raw, compress = {}, Client.compress_opened

    def spy(self, update, **options):
        raw[self.client_id] = raw.get(self.client_id, 0) + np.asarray(update, np.float64)
        return compress(self, update, **options)

    monkeypatch.setattr(Client, "compress_opened", spy)
    seam = Seam(monkeypatch)
    sim = simulation(digits, method, rounds=8)
    run(sim)
    for i, client in enumerate(sim.clients):
        sent = sum(gw.decompress(gw.decode(blob)).astype(np.float64) for blob in seam.up[i::5])
        residual = client.state_dict()["residual"]
        error = np.linalg.norm(sent + residual - raw[i]) / np.linalg.norm(raw[i])
        assert error < 1e-5
        assert np.linalg.norm(residual) > 0


def test_running_statistics_travel_and_are_counted(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 2
    task = Task("cifar10", x, y, x, y, "test", 2, None, "resnet18")
    seam = Seam(monkeypatch)
    sim = simulation(task, "topk(0.001)", rounds=1, clients=1, local_steps=1, batch_size=4, learning_rate=0.01)
    (m,) = run(sim)
    assert m.header_bytes + m.support_bytes + m.values_bytes == m.uplink_bytes == sum(map(len, seam.up))
    num_statistics = 9_600
    assert sim.num_parameters - sim.layout.num_parameters == num_statistics
    for blob in seam.up:
        update = gw.decompress(gw.decode(blob))
        assert (update[-num_statistics:] != 0).mean() > 0.99
        assert np.count_nonzero(update[:-num_statistics]) == round(0.001 * (update.size - num_statistics))


# ---- what must not, and what must, change the result


@pytest.mark.parametrize("method", ["dense()", "ef(topk(0.02))"])
def test_batching_changes_rounding_only(digits, method):
    models = []
    for batched in (True, False):
        sim = simulation(digits, method, batched=batched)
        assert sim.batched is batched
        run(sim)
        models.append(sim.model)
    moved = np.abs(models[0] - simulation(digits, method).model).max()
    np.testing.assert_allclose(models[0], models[1], rtol=0, atol=1e-4 * moved)


def sha256(sim):
    run(sim)
    expected = hashlib.sha256(sim.model.astype("<f4").tobytes()).hexdigest()
    assert sim.summary()["model_sha256"] == expected
    return expected


_PROGRAM = """
import sys
import gradwire as gw
from gradwire.federated.experiment import Experiment
from gradwire.federated.simulation import Simulation
from gradwire.federated.data.tasks import load_task
e = Experiment.build({"rounds": 4, "clients": 5, "local_steps": 3, "batch_size": 8, "methods": sys.argv[2:]})
task = load_task("digits")
for method in e.compressors():
    sim = Simulation(e, method, task, int(sys.argv[1]))
    list(sim.rounds())
    print(sim.summary()["model_sha256"], sim.summary()["uplink_bytes"])
"""


def test_the_same_seed_gives_the_same_model_here_and_in_another_process(digits):
    methods = ["dense()", "ef(topk(0.02))", "ef(randk(0.02))", "topk(0.05) | uniform(4, stochastic=True)"]
    expected = []
    for method in methods:
        np.random.seed(5)  # noqa: NPY002 - the global generators must not matter
        torch.manual_seed(5)
        first = simulation(digits, method, seed=11)
        expected.append(f"{sha256(first)} {first.totals.uplink_bytes}")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, "11", *methods],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"},
        check=True,
    )
    assert done.stdout.split("\n")[:-1] == expected


def test_another_seed_gives_another_model(digits):
    hashes = [sha256(simulation(digits, "ef(topk(0.02))", seed=s, rounds=2)) for s in (0, 1, 2, 2**63 - 1)]
    assert len(set(hashes)) == 4


def test_the_seed_decides_partition_model_batches_and_support_apart(digits):
    a, b = simulation(digits, "randk(0.02)", seed=0), simulation(digits, "randk(0.02)", seed=1)
    assert not np.array_equal(a.model, b.model)
    assert any(not np.array_equal(p, q) for p, q in zip(a.federation.shards, b.federation.shards, strict=True))
    c = simulation(digits, "topk(0.02)", seed=0)
    assert np.array_equal(a.model, c.model)
    assert all(np.array_equal(p, q) for p, q in zip(a.federation.shards, c.federation.shards, strict=True))


def test_the_global_generators_keep_their_state(digits):
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run(simulation(digits, "topk(0.02) | uniform(4, stochastic=True)", rounds=2))
    assert torch.equal(before[0], torch.random.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_methods_see_the_same_batches(digits):
    """The first round's training loss does not depend on the method: comparisons are paired."""
    losses = {run(simulation(digits, m, rounds=1))[0].loss for m in METHODS}
    assert len(losses) == 1


def test_state_goes_into_a_fresh_simulation_and_the_next_bytes_are_the_same(digits, monkeypatch):
    method = "ef(topk(0.02) | uniform(8))"
    sim = simulation(digits, method, seed=4)
    rounds = sim.rounds()
    for _ in range(2):
        next(rounds)
    state = sim.state_dict()
    seam = Seam(monkeypatch)
    list(rounds)
    expected, seam.up, frozen = seam.up, [], state["model"].copy()
    other = simulation(digits, method, seed=4)
    other.load_state_dict(state)
    run(other)
    assert seam.up == expected
    np.testing.assert_array_equal(other.model, sim.model)
    np.testing.assert_array_equal(state["model"], frozen)


def test_training_that_diverges_is_an_update_error(digits):
    sim = simulation(digits, learning_rate=1e30)
    with pytest.raises(UpdateError, match="finite"):
        run(sim)


def test_one_client_one_step(digits):
    sim = simulation(digits, "ef(topk(0.01))", clients=1, rounds=1, local_steps=1, batch_size=1)
    (m,) = run(sim)
    assert np.isfinite(m.loss)
    assert 0 <= m.accuracy <= 1


def test_a_run_with_nothing_to_learn_ends_well(digits):
    """A learning rate so small that every update is exactly zero: empty payloads, no division by zero."""
    sim = simulation(digits, "ef(topk(0.01))", learning_rate=1e-44)
    before = sim.model.copy()
    run(sim)
    np.testing.assert_array_equal(sim.model, before)
    summary = sim.summary()
    assert summary["uplink_bytes"] <= 32 * 20
    assert summary["values_bytes"] == 0


# ---- what compression costs in accuracy


class Outcomes:
    """Summaries of several methods and seeds on one task."""

    def __init__(self, task, seeds, methods, **settings):
        experiment = Experiment.build({"methods": methods, **settings})
        self.runs = {}
        for compressor in experiment.compressors():
            for seed in seeds:
                sim = Simulation(experiment, compressor, task, seed)
                run(sim)
                self.runs.setdefault(str(compressor), []).append(sim.summary())

    def mean(self, method, key="final_accuracy"):
        return float(np.mean([r[key] for r in self.runs[method]]))


@pytest.fixture(scope="module", params=[1, pytest.param(3, marks=pytest.mark.slow)], ids=["one-seed", "three-seeds"])
def on_digits(request, digits):
    """10 clients, 100 rounds, the first seed or the mean of three."""
    methods = ["dense()", "topk(0.01)", "ef(topk(0.01))"]
    return Outcomes(digits, range(request.param), methods, evaluate_every=100)


def test_on_digits_ef_topk_is_within_two_points_of_dense(on_digits):
    assert on_digits.mean("dense()") > 0.95
    assert on_digits.mean("ef(topk(0.01))") > on_digits.mean("dense()") - 0.02


def test_on_digits_ef_topk_sends_fifty_times_fewer_bytes_than_the_dense_run(on_digits):
    for ours, dense in zip(on_digits.runs["ef(topk(0.01))"], on_digits.runs["dense()"], strict=True):
        assert dense["uplink_bytes"] <= dense["dense_uplink_bytes"] + 32 * 1000
        assert 50 * ours["uplink_bytes"] <= dense["uplink_bytes"]


def test_on_digits_error_feedback_beats_plain_topk_at_the_same_bytes(on_digits):
    assert on_digits.mean("ef(topk(0.01))") > on_digits.mean("topk(0.01)") + 0.005
    ratio = on_digits.mean("ef(topk(0.01))", "uplink_bytes") / on_digits.mean("topk(0.01)", "uplink_bytes")
    assert 0.95 < ratio < 1.05


@pytest.mark.slow
def test_on_mnist_ef_topk_is_within_one_point_of_dense(data_dir):
    if not (data_dir / "mnist").is_dir():
        pytest.skip("MNIST not found")
    methods = ["dense()", "ef(topk(0.01))"]
    task = load_task("mnist", data_dir)
    outcomes = Outcomes(task, (0, 1, 2), methods, data="mnist", rounds=80, evaluate_every=80)
    assert outcomes.mean("dense()") > 0.965
    assert outcomes.mean("ef(topk(0.01))") > outcomes.mean("dense()") - 0.01
    assert 50 * outcomes.mean("ef(topk(0.01))", "uplink_bytes") <= outcomes.mean("dense()", "uplink_bytes")
