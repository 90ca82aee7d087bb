"""Federated algorithms against Flower's strategies, the papers' formulas in float64 and plain loops."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradwire as gw
from examples import up_to
from gradwire.federated.algorithms import (
    Algorithm,
    BufferedStep,
    fedadagrad,
    fedadam,
    fedasync,
    fedavg,
    fedavgm,
    fedbuff,
    fednova,
    fedprox,
    fedyogi,
    parse_algorithm,
    scaffold,
)
from gradwire.federated.algorithms.controls import control_correction, control_update
from gradwire.federated.data.task import Task
from gradwire.federated.data.train import Trainer, draw_batches
from gradwire.rng import Key

D = 50
LAYOUT = gw.Layout.flat(D)
WITH_STATISTICS = gw.Layout.from_arrays(
    {"w": np.zeros(4, np.float32), "n.running_mean": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)}
)


def some_updates(num, d=D, seed=0, scale=0.05):
    """Updates of very different sizes, with zeros among them."""
    rng = np.random.default_rng(seed)
    updates = rng.standard_normal((num, d)) * scale * 10.0 ** rng.uniform(-3, 1, d)
    updates[:, rng.random(d) < 0.1] = 0
    return updates.astype(np.float32)


def linear_task(num_examples=60, seed=3):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, 7, generator=generator)
    targets = torch.randint(4, (num_examples,), generator=generator)
    return Task("digits", inputs, targets, inputs, targets, "test", 4, None, "mlp")


def softmax_gradient(task, model, rows):
    """The gradient of softmax regression by hand, in float64."""
    x, y = task.train_inputs.numpy()[rows].astype(np.float64), task.train_targets.numpy()[rows]
    logits = x @ model[:28].reshape(4, 7).T + model[28:]
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    error = (probabilities - np.eye(4)[y]) / len(rows)
    return np.concatenate([(error.T @ x).ravel(), error.sum(0)])


# ---- against Flower


@pytest.fixture(scope="module")
def flower():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations among its own dependencies
        strategies = pytest.importorskip("flwr.serverapp.strategy", reason="flwr, the oracle, is not installed")
        app = pytest.importorskip("flwr.app", reason="flwr, the oracle, is not installed")
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield app, strategies
    logger.setLevel(before)


def flower_rounds(app, strategy, model, updates, weights, first_round):
    """Feed a strategy the models that clients with these updates would send; give the model after each round."""
    record = lambda x: app.ArrayRecord({"w": app.Array(np.ascontiguousarray(x, np.float32))})  # noqa: E731
    models = []
    for round_index, of_clients in enumerate(updates):
        if hasattr(strategy, "eta"):  # what configure_train does in every round ...
            strategy.current_arrays = {"w": model}
        elif hasattr(strategy, "current_arrays") and strategy.current_arrays is None:  # ... and FedAvgM's in the first
            strategy.current_arrays = record(model)
        contents = [
            app.RecordDict({"arrays": record(model + u), "metrics": app.MetricRecord({"num-examples": weight})})
            for u, weight in zip(of_clients, weights, strict=True)
        ]  # a Message can only be made inside a running app; this is all that is read of one
        replies = [SimpleNamespace(content=content, has_error=lambda: False) for content in contents]
        arrays, _ = strategy.aggregate_train(first_round + round_index, replies)
        model = next(iter(arrays.values())).numpy()
        models.append(model)
    return models


@pytest.mark.parametrize(
    ("ours", "theirs", "arguments", "first_round"),
    [
        (fedavg(), "FedAvg", {}, 1),
        (fedprox(mu=0.5), "FedProx", {"proximal_mu": 0.5}, 1),
        (fedavgm(0.7, 0.5), "FedAvgM", {"server_momentum": 0.7, "server_learning_rate": 0.5}, 1),
        (fedavg(0.3), "FedAvgM", {"server_momentum": 0.0, "server_learning_rate": 0.3}, 1),
        # bias is corrected in round t by 1 - beta^t; Flower says t + 1 for t, counting rounds from 1
        (
            fedadam(0.02, 0.8, 0.95, 1e-2, initial=0, bias_correction=True),
            "FedAdam",
            {"eta": 0.02, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2},
            0,
        ),
        (
            fedyogi(0.02, 0.8, 0.95, 1e-2, initial=0),
            "FedYogi",
            {"eta": 0.02, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2},
            1,
        ),
        (fedadagrad(0.02, tau=1e-2, initial=0), "FedAdagrad", {"eta": 0.02, "tau": 1e-2}, 1),
    ],
    ids=lambda value: str(value) if isinstance(value, (str, Algorithm)) else None,
)
def test_models_are_those_of_flower(flower, ours, theirs, arguments, first_round):
    app, strategies = flower
    weights = [3.0, 1.0, 8.0]
    updates = some_updates(6 * 3).reshape(6, 3, D)
    model = np.random.default_rng(1).standard_normal(D).astype(np.float32)
    expected = flower_rounds(app, getattr(strategies, theirs)(**arguments), model, updates, weights, first_round)

    server = gw.Server(gw.dense(), LAYOUT, step=ours.make_step(LAYOUT))
    clients = [gw.Client(gw.dense(), LAYOUT, client_id=i) for i in range(3)]
    for of_clients, wanted in zip(updates, expected, strict=True):
        for client, update, weight in zip(clients, of_clients, weights, strict=True):
            server.receive(client.compress(update, weight), client.client_id, weight)
        result = server.close_round()
        for client in clients:
            client.end_round(result.blob, delivered=True)
        before, model = model, model + result.applied
        # Flower subtracts models, whose rounding near 1 the adaptive ones divide by sqrt(v) + tau
        np.testing.assert_allclose(model, wanted, rtol=0, atol=5e-6)
    assert np.abs(model - before).max() > 1e-3


def test_flower_corrects_adams_bias_by_one_round_more(flower):
    """Where it differs from Kingma and Ba: the same m and v, another learning rate."""
    app, strategies = flower
    updates = some_updates(3).reshape(3, 1, D)
    arguments = {"eta": 0.02, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2}
    models = [
        np.zeros(D),
        *flower_rounds(app, strategies.FedAdam(**arguments), np.zeros(D, np.float32), updates, [1.0], 1),
    ]
    step = fedadam(0.02, 0.8, 0.95, 1e-2, initial=0).make_step(LAYOUT)
    for t, (of_clients, before, after) in enumerate(zip(updates, models[:-1], models[1:], strict=True), start=1):
        factor = math.sqrt(1 - 0.95 ** (t + 1)) / (1 - 0.8 ** (t + 1))
        np.testing.assert_allclose(step(of_clients[0]) * factor, after - before, rtol=1e-4, atol=1e-7)


# ---- against the papers' formulas


def paper_steps(algorithm, updates):
    """Hsu et al.'s momentum, and Reddi et al.'s Algorithm 2, line by line in float64."""
    eta = algorithm.server_learning_rate
    if isinstance(algorithm, fedavgm):
        v = np.zeros(updates.shape[1])
        for update in updates.astype(np.float64):
            v = algorithm.momentum * v + update
            yield eta * v
        return
    m = np.zeros(updates.shape[1])
    v = np.full(updates.shape[1], algorithm.tau**2 if algorithm.initial is None else algorithm.initial)
    for t, delta in enumerate(updates.astype(np.float64), start=1):
        m = algorithm.beta_1 * m + (1 - algorithm.beta_1) * delta
        match algorithm:
            case fedadagrad():
                v = v + delta**2
            case fedyogi():
                v = v - (1 - algorithm.beta_2) * delta**2 * np.sign(v - delta**2)
            case fedadam():
                v = algorithm.beta_2 * v + (1 - algorithm.beta_2) * delta**2
        rate = eta
        if getattr(algorithm, "bias_correction", False):
            rate = eta * math.sqrt(1 - algorithm.beta_2**t) / (1 - algorithm.beta_1**t)
        yield rate * m / (np.sqrt(v) + algorithm.tau)


OPTIMISERS = [
    fedavgm(),
    fedavgm(0.0, 2.0),
    fedadam(),
    fedadam(0.03, 0.5, 0.5, 0.1, initial=0.2),
    fedadam(bias_correction=True),
    fedyogi(),
    fedyogi(0.03, 0.5, 0.5, 0.1, initial=0.2),
    fedadagrad(),
    fedadagrad(0.03, 0.5, 0.1, initial=0.2),
]


@pytest.mark.parametrize("algorithm", OPTIMISERS, ids=str)
def test_steps_are_those_of_the_papers(algorithm):
    updates = some_updates(8)
    step = algorithm.make_step(LAYOUT)
    for update, expected in zip(updates, paper_steps(algorithm, updates), strict=True):
        before = update.copy()
        delta = step(update)
        assert delta.dtype == np.float32
        np.testing.assert_allclose(delta, expected, rtol=2e-4, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_array_equal(update, before)


def test_v_starts_where_the_paper_lets_it():
    """With beta_1 = 0 and beta_2 -> 1 the first step is eta u / (sqrt(initial) + tau), whatever the update."""
    update = np.array([1e-4, -1e-3, 0, 1e-4], np.float32)
    layout = gw.Layout.flat(4)
    for initial, divisor in ((None, 0.02), (0.25, 0.51)):
        step = fedadam(1.0, 0.0, 1 - 1e-7, 0.01, initial=initial).make_step(layout)
        np.testing.assert_allclose(step(update), update / divisor, rtol=1e-4)


def test_a_learning_rate_of_one_needs_no_step():
    for algorithm in (fedavg, fedprox, scaffold):
        assert algorithm().make_step(LAYOUT) is None
        update = some_updates(1)[0]
        np.testing.assert_array_equal(
            algorithm(server_learning_rate=0.5).make_step(LAYOUT)(update), update * np.float32(0.5)
        )


# ---- every step

ALL = [
    fedavg(0.5),
    fedprox(0.1, 0.5),
    fednova(0.5),
    scaffold(0.5),
    fedavgm(),
    fedadam(bias_correction=True),
    fedyogi(),
    fedadagrad(),
    fedasync(),
    fedbuff(2, 0.5),
]


def count(step, *weights):
    for weight in weights:
        if step is not None:
            step.count(weight)


@pytest.mark.parametrize("algorithm", ALL, ids=str)
def test_running_statistics_become_the_plain_mean(algorithm):
    step, plain = (algorithm.make_step(layout) for layout in (WITH_STATISTICS, gw.Layout.flat(5)))
    for update in some_updates(3, 7):
        count(step, 1.0, 0.5)
        count(plain, 1.0, 0.5)
        delta = step(update)
        np.testing.assert_array_equal(delta[:5], plain(update[:5]))
        scale = 1.5 * {"fedasync": 0.6, "fedbuff": 0.5}[type(algorithm).__name__] if algorithm.asynchronous else 1.0
        np.testing.assert_allclose(delta[5:], scale * update[5:], rtol=1e-6)
    sizes = [v.size for v in step.state_dict()["memory"].values() if isinstance(v, np.ndarray)]
    assert set(sizes) <= {5}
    assert len(sizes) <= 2


@pytest.mark.parametrize("algorithm", ALL, ids=str)
def test_saved_steps_go_on_bit_for_bit(algorithm):
    updates = some_updates(6)
    step, other = algorithm.make_step(LAYOUT), algorithm.make_step(LAYOUT)
    for update in updates[:3]:
        count(step, 1.0)
        step(update)
    count(step, 0.25)
    state = step.state_dict()
    expected = []
    for update in updates[3:]:
        expected.append(step(update))
        count(step, 0.5)
    other.load_state_dict(state)
    for update, wanted in zip(updates[3:], expected, strict=True):
        np.testing.assert_array_equal(other(update), wanted)
        count(other, 0.5)
    again = algorithm.make_step(LAYOUT)
    again.load_state_dict(state)  # neither saving nor loading shares arrays with a step that went on
    np.testing.assert_array_equal(again(updates[3]), expected[0])


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("algorithm", ALL, ids=str)
def test_saved_states_share_nothing_with_the_step(algorithm):
    update = some_updates(1)[0]
    step, untouched = algorithm.make_step(LAYOUT), algorithm.make_step(LAYOUT)
    for each in (step, untouched):
        each(update)
        count(each, 0.5)
    for loads in (False, True):
        state = step.state_dict()
        if loads:
            step.load_state_dict(state)
        for name, value in state["memory"].items():
            state["memory"][name] = value + 1
            if isinstance(value, np.ndarray):
                value += 1
        assert same(step.state_dict()["memory"], untouched.state_dict()["memory"])
    saved = step.state_dict()["memory"]
    count(step, 0.5)
    assert same(saved, untouched.state_dict()["memory"])


@pytest.mark.parametrize("algorithm", ALL, ids=str)
def test_a_state_of_something_else_changes_nothing(algorithm):
    step = algorithm.make_step(LAYOUT)
    count(step, 0.5)
    step(some_updates(1)[0])
    before = step.state_dict()
    memory = before["memory"]
    wrong = [
        None,
        {},
        {**before, "spec": "fedavg(server_learning_rate=0.25)"},
        {**before, "layout": gw.Layout.flat(D + 1).digest.hex()},
        {**before, "format": 2},
        {**before, "memory": None},
        {**before, "memory": {**memory, "more": 1}},
    ]
    for name, value in memory.items():
        bad = [None, "x", -1, math.nan] if not isinstance(value, np.ndarray) else [None, value[1:], value + np.inf, 0.0]
        bad += [-value - 1] if name == "squares" else []
        wrong += [{**before, "memory": {**memory, name: b}} for b in bad]
    for state in wrong:
        with pytest.raises(gw.StateError):
            step.load_state_dict(state)
        assert same(step.state_dict()["memory"], memory)


@pytest.mark.parametrize("algorithm", ALL, ids=str)
def test_updates_that_cannot_be_change_nothing(algorithm):
    step = algorithm.make_step(LAYOUT)
    count(step, 1.0)
    step(some_updates(1)[0])
    count(step, 1.0)
    before = step.state_dict()["memory"]
    for bad in (np.full(D, np.nan), np.full(D, -np.inf), np.zeros(D + 1)):
        with pytest.raises(gw.UpdateError):
            step(bad.astype(np.float32))
        assert same(step.state_dict()["memory"], before)


@pytest.mark.parametrize(
    ("algorithm", "first", "then", "what"),
    [
        (fedavg(100.0), 1, 1e37, "fedavg's step"),
        (fedavgm(0.5), 3e38, 3e38, "fedavgm's momentum"),
        (fedavgm(0.5, 1000.0), 1, 1e37, "fedavgm's step"),
        (fedadam(), 1, 1e20, "fedadam's squares"),
        (fedadam(1e18, tau=1e-18, initial=0, beta_2=0), 1e10, 1e-30, "fedadam's step"),
        (fedyogi(), 1, 1e21, "fedyogi's squares"),
        (fedadagrad(), 1.5e19, 1.5e19, "fedadagrad's squares"),
        (fedbuff(1, 1e4), 1, 1e37, "fedbuff's step"),
    ],
    ids=str,
)
def test_a_step_beyond_float32_is_refused_by_name_and_changes_nothing(algorithm, first, then, what):
    step = algorithm.make_step(gw.Layout.flat(2))
    count(step, 1.0)
    step(np.float32([first, 0]))
    count(step, 1.0)
    before = step.state_dict()["memory"]
    with pytest.raises(gw.UpdateError, match=f"^{what} must be finite, got "):
        step(np.float32([then, 1]))
    assert same(step.state_dict()["memory"], before)


# ---- asynchronous


@pytest.mark.parametrize(
    ("algorithm", "staleness", "weight"),
    [
        (fedasync(), 0, 1.0),
        (fedasync(), 3, 0.5),
        (fedasync(exponent=2), 2, 1 / 9),
        (fedasync(exponent=0), 7, 1.0),
        (fedasync(staleness="hinge"), 4, 1.0),
        (fedasync(staleness="hinge"), 5, 1 / 11),
        (fedasync(staleness="hinge"), 14, 1 / 101),
        (fedasync(staleness="hinge", slope=0.5, threshold=0), 0, 1.0),
        (fedasync(staleness="hinge", slope=0.5, threshold=0), 2, 0.5),
        (fedasync(staleness="constant"), 1000, 1.0),
        (fedbuff(), 0, 1.0),
        (fedbuff(), 8, 1 / 3),
        (fedbuff(exponent=1), 3, 0.25),
        (fedavg(), 3, 1.0),
    ],
    ids=str,
)
def test_weights_of_late_payloads(algorithm, staleness, weight):
    assert algorithm.weight(staleness) == pytest.approx(weight, rel=1e-12)


@given(
    st.sampled_from([fedasync(exponent=1e18), fedasync(staleness="hinge", slope=1e18), fedbuff(exponent=50), fedbuff()])
)
def test_no_payload_is_too_late_for_a_server(algorithm):
    for staleness in (0, 1, 5, 100, 2**62):
        weight = algorithm.weight(staleness)
        assert 0 < weight <= 1
        server = gw.Server(gw.dense(), gw.Layout.flat(1))
        server.receive(gw.Client(gw.dense(), gw.Layout.flat(1)).compress(np.ones(1, np.float32)), 0, weight)


@pytest.mark.parametrize("staleness", [-1, 0.5, True, None, "1"])
def test_staleness_is_a_number_of_steps(staleness):
    for algorithm in (fedasync(), fedbuff()):
        with pytest.raises(gw.ConfigError, match="staleness must be an integer of 0 or more"):
            algorithm.weight(staleness)


@pytest.mark.parametrize(
    "algorithm",
    [fedasync(), fedasync(0.3, "hinge", threshold=1), fedbuff(3, 0.7), fedbuff(1, exponent=1.0)],
    ids=str,
)
def test_asynchronous_sequences(algorithm):
    """Payloads of all ages through Server, against the papers' sums in float64."""
    rng = np.random.default_rng(5)
    k = algorithm.buffer_size
    updates, ages = some_updates(8 * k).reshape(8, k, D), rng.integers(0, 6, (8, k))
    step = algorithm.make_step(LAYOUT)
    server = gw.Server(gw.dense(), LAYOUT, step=step)
    clients = [gw.Client(gw.dense(), LAYOUT, client_id=i) for i in range(k)]
    model, expected = np.zeros(D), np.zeros(D)
    for of_clients, of_ages in zip(updates, ages, strict=True):
        for client, update, age in zip(clients, of_clients, of_ages, strict=True):
            weight = algorithm.weight(int(age))
            server.receive(client.compress(update, weight), client.client_id, weight)
            step.count(weight)
        result = server.close_round()
        for client in clients:
            client.end_round(result.blob, delivered=True)
        model += result.applied
        for update, age in zip(of_clients.astype(np.float64), of_ages, strict=True):
            if isinstance(algorithm, fedbuff):
                expected += algorithm.server_learning_rate * update / (1 + age) ** algorithm.exponent / k
            elif algorithm.staleness == "hinge":
                expected += algorithm.mixing * update * (1 if age <= 1 else 1 / (10 * (age - 1) + 1))
            else:
                expected += algorithm.mixing * update / np.sqrt(1 + age)
        np.testing.assert_allclose(model, expected, rtol=1e-5, atol=1e-7)


def test_a_fresh_payload_is_mixed_as_fedasync_mixes_models():
    step = fedasync(mixing=0.3).make_step(LAYOUT)
    model, trained = np.random.default_rng(0).standard_normal((2, D)).astype(np.float32)
    step.count(fedasync(mixing=0.3).weight(0))
    np.testing.assert_allclose(model + step(trained - model), 0.7 * model + 0.3 * trained, atol=1e-6)


def test_what_was_counted_is_forgotten_with_the_step_alone():
    step = fedbuff(2).make_step(gw.Layout.flat(1))
    step.count(1.0)
    assert step(np.float32([4])).tolist() == [2.0]
    assert step(np.float32([4])).tolist() == [0.0]
    step.count(0.5)
    with pytest.raises(gw.ConfigError, match="weight must be positive"):
        step.count(-1.0)
    assert step(np.float32([4])).tolist() == [1.0]


# ---- FedProx and SCAFFOLD, with Trainer


@pytest.mark.parametrize("batched", [True, False])
def test_fedprox_is_plain_descent_on_its_objective(batched):
    """Eq. (2): autograd on F(w) + mu / 2 |w - w_t|^2 written out, in float64."""
    task = linear_task()
    trainer = Trainer(task, nn.Sequential(nn.Linear(7, 4)), batched=batched)
    start = trainer.initial()
    batches = [draw_batches(np.arange(60), Key(0, 0, i), 5, 6) for i in range(2)]
    algorithm = fedprox(mu=0.8)
    updates, losses = trainer.local_updates(start, batches, 0.3, proximal=algorithm.proximal)
    for update, loss, steps in zip(updates, losses, batches, strict=True):
        origin = torch.from_numpy(start).double()
        w = origin.clone().requires_grad_()
        sum_losses = 0.0
        for rows in steps:
            x, y = task.train_inputs[rows].double(), task.train_targets[rows]
            fit = nn.functional.cross_entropy(x @ w[:28].view(4, 7).T + w[28:], y)
            (gradient,) = torch.autograd.grad(fit + 0.4 * ((w - origin) ** 2).sum(), w)
            w = (w - 0.3 * gradient).detach().requires_grad_()
            sum_losses += fit.item()
        np.testing.assert_allclose(update, (w - origin).detach().numpy(), rtol=0, atol=1e-6)
        assert loss == pytest.approx(sum_losses / 5, rel=1e-5)
    free, _ = trainer.local_updates(start, batches, 0.3)
    assert np.linalg.norm(free) > 1.2 * np.linalg.norm(updates)


@pytest.mark.parametrize("batched", [True, False])
def test_scaffold_is_algorithm_1(batched):
    """Three clients of unequal data and steps, option II, all lines in float64 by hand."""
    task = linear_task()
    trainer = Trainer(task, nn.Sequential(nn.Linear(7, 4)), batched=batched)
    layout, n, eta_l = trainer.layout, 3, 0.3
    shards, num_steps = [np.arange(4), np.arange(4, 20), np.arange(20, 60)], [2, 6, 4]
    algorithm = scaffold(server_learning_rate=0.8)
    step = algorithm.make_step(layout)
    model = trainer.initial()
    server_control, client_controls = np.zeros(layout.d, np.float32), np.zeros((n, layout.d), np.float32)
    x, c, c_i = model.astype(np.float64), np.zeros(layout.d), np.zeros((n, layout.d))
    for t in range(5):
        batches = [draw_batches(shard, Key(0, t, i), 6, 3) for i, shard in enumerate(shards)]
        taking_part = [0, 1, 2] if t != 3 else [0, 2]

        updates, _ = trainer.local_updates(
            model,
            [batches[i] for i in taking_part],
            eta_l,
            corrections=control_correction(server_control, client_controls[taking_part]),
            local_steps=[num_steps[i] for i in taking_part],
        )
        changes = np.stack(
            [
                control_update(layout, server_control, update, num_steps[i], eta_l)
                for i, update in zip(taking_part, updates, strict=True)
            ]
        )
        client_controls[taking_part] += changes
        model = model + step(updates.mean(0))
        server_control = server_control + changes.sum(0) / np.float32(n)

        ys, c_plus = [], c_i.copy()
        for i in taking_part:
            y = x.copy()
            for k in range(num_steps[i]):
                y = y - eta_l * (softmax_gradient(task, y, batches[i][k]) - c_i[i] + c)
            c_plus[i] = c_i[i] - c + (x - y) / (num_steps[i] * eta_l)
            ys.append(y)
        delta_x, delta_c = np.mean(ys, 0) - x, np.mean((c_plus - c_i)[taking_part], 0)
        x, c, c_i = x + 0.8 * delta_x, c + len(taking_part) / n * delta_c, c_plus

        np.testing.assert_allclose(client_controls, c_i, rtol=0, atol=2e-5)
        np.testing.assert_allclose(server_control, c, rtol=0, atol=2e-5)
        np.testing.assert_allclose(model, x, rtol=0, atol=1e-5)
    assert np.abs(c).max() > 0.01
    assert np.abs(c_i - c).max() > 0.1


def test_a_clients_control_is_the_mean_of_its_gradients():
    rng = np.random.default_rng(0)
    c, c_i, *gradients = rng.standard_normal((6, D)).astype(np.float32)
    y = np.zeros(D, np.float32)
    for g in gradients:
        y = y - np.float32(0.1) * (g + control_correction(c, c_i))
    np.testing.assert_allclose(c_i + control_update(LAYOUT, c, y, 4, 0.1), np.mean(gradients, 0), rtol=0, atol=1e-5)


def test_running_statistics_have_no_control():
    ones = np.ones(7, np.float32)
    assert control_update(WITH_STATISTICS, ones, ones, 1, 1.0).tolist() == [-2.0] * 5 + [0.0] * 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((LAYOUT, np.zeros(D), np.zeros(D), 0, 0.1), gw.ConfigError, "local_steps must be an integer of 1 or more"),
        ((LAYOUT, np.zeros(D), np.zeros(D), 1, 0.0), gw.ConfigError, "learning_rate must be in"),
        ((LAYOUT, np.zeros(D), np.zeros(D - 1), 1, 0.1), gw.UpdateError, "shape"),
        ((LAYOUT, np.zeros(1), np.zeros(D), 1, 0.1), gw.UpdateError, "shape"),
        ((LAYOUT, np.zeros(D), np.full(D, 1e38), 1, 1e-3), gw.UpdateError, "scaffold's control update"),
    ],
)
def test_control_updates_that_cannot_be(arguments, error, message):
    with pytest.raises(error, match=message):
        control_update(*arguments)


# ---- parameters and texts

fractions = st.floats(0, 1, exclude_max=True)
positives = st.floats(1e-18, 1e18)
initials = st.none() | st.floats(0, 1e18)
any_algorithm = st.one_of(
    st.builds(fedavg, positives),
    st.builds(fedprox, st.floats(0, 1e18), positives),
    st.builds(fedavgm, fractions, positives),
    st.builds(fedadam, positives, fractions, fractions, positives, initials, st.booleans()),
    st.builds(fedyogi, positives, fractions, fractions, positives, initials),
    st.builds(fedadagrad, positives, fractions, positives, initials),
    st.builds(scaffold, positives, st.sampled_from([None, "topk(0.1)", "ef(topk(0.1, scope='tensor') | fp16())"])),
    st.builds(fednova, positives),
    st.builds(fedasync, st.floats(1e-18, 1), exponent=st.floats(0, 1e18)),
    st.builds(
        fedasync,
        st.floats(1e-18, 1),
        st.just("hinge"),
        slope=st.floats(0, 1e18),
        threshold=st.integers(0, 2**62),
    ),
    st.builds(fedasync, staleness=st.just("constant")),
    st.builds(fedbuff, st.integers(1, 2**62), positives, st.floats(0, 1e18)),
)


@settings(max_examples=up_to(200), deadline=None)
@given(any_algorithm)
def test_round_trip(algorithm):
    again = parse_algorithm(str(algorithm))
    assert again == algorithm
    assert str(again) == str(algorithm) == repr(algorithm)
    assert hash(again) == hash(algorithm)
    assert 0 < algorithm.weight(3) <= 1
    assert algorithm.buffer_size >= 1


@pytest.mark.parametrize("name", sorted(Algorithm.registry))
def test_every_algorithm_by_its_name(name):
    algorithm = parse_algorithm(f"{name}()")
    assert type(algorithm) is Algorithm.registry[name]
    assert str(algorithm) == f"{name}()"
    assert algorithm.summary
    assert "arXiv:" in algorithm.citation
    doc = inspect.getdoc(type(algorithm))
    assert all(part in doc for part in ("Args:", "Example:", "Source:", "Deviations:"))
    assert algorithm.asynchronous == isinstance(algorithm.make_step(LAYOUT), BufferedStep)
    with pytest.raises(dataclasses.FrozenInstanceError):
        algorithm.summary = "x"


def test_names_are_the_classes():
    assert set(Algorithm.registry) == {
        *("fedavg", "fedprox", "fednova", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold"),
        *("fedasync", "fedbuff"),
    }
    built = [parse_algorithm(f"{name}()") for name in Algorithm.registry]
    assert [a for a in built if a.uses_controls] == [scaffold()]
    assert [a for a in built if a.asynchronous] == [fedasync(), fedbuff()]
    assert fedprox(0.25).proximal == 0.25
    assert fedavg().proximal == scaffold().proximal == 0.0
    assert (fedbuff().buffer_size, fedasync().buffer_size, fedavg().buffer_size) == (10, 1, 1)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("fedavg(1)", "fedavg()"),
        ("fedavg(server_learning_rate = 2)", "fedavg(server_learning_rate=2.0)"),
        ("fedprox(0.1)", "fedprox(mu=0.1)"),
        ("fedadam(0.03, 0.9, 0.99, initial=0, bias_correction=True)", "fedadam(initial=0.0, bias_correction=True)"),
        ('scaffold(control="ef(topk( density=1e-2 ))")', "scaffold(control='ef(topk(0.01))')"),
        ("fedasync(staleness='hinge', threshold=4)", "fedasync(staleness='hinge')"),
        ("fedbuff(10, 1, .25)", "fedbuff(exponent=0.25)"),
    ],
)
def test_canonical_text(text, canonical):
    assert str(parse_algorithm(text)) == canonical


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fedavg(0)", "server_learning_rate must be in [1e-18, 1e18], got 0 (character 1 of 'fedavg(0)')"),
        ("fedavg(server_learning_rate=-1.0)", "server_learning_rate must be in [1e-18, 1e18], got -1.0"),
        ("fedavg(1e300)", "server_learning_rate must be in [1e-18, 1e18], got 1e+300"),
        ("fedavg(True)", "server_learning_rate must be a number, got True"),
        ("fedavg('x')", "server_learning_rate must be a number, got 'x'"),
        ("fedprox(-0.1)", "mu must be in [0, 1e18], got -0.1"),
        ("fedprox(1e999)", "mu must be finite, got inf"),
        ("fedavgm(1)", "momentum must be in [0, 1), got 1"),
        ("fedadam(beta_1=-0.5)", "beta_1 must be in [0, 1), got -0.5"),
        ("fedadam(beta_2=1.0)", "beta_2 must be in [0, 1), got 1.0"),
        ("fedyogi(beta_2=2)", "beta_2 must be in [0, 1), got 2"),
        ("fedadam(tau=0)", "tau must be in [1e-18, 1e18], got 0"),
        ("fedadagrad(initial=-1)", "initial must be in [0, 1e18], got -1"),
        ("fedadam(bias_correction=1)", "bias_correction must be True or False, got 1"),
        ("scaffold(control='topkk(0.1)')", "control must be a compressor's spec: unknown stage 'topkk'"),
        ("scaffold(control=3)", "control must be a compressor's spec: a spec is text, got int"),
        ("fedasync(1.5)", "mixing must be in (0, 1], got 1.5"),
        ("fedasync(staleness='polynomal')", "got 'polynomal'; did you mean 'polynomial'?"),
        ("fedasync(staleness=['hinge'])", "staleness must be 'polynomial', 'hinge' or 'constant', got ['hinge']"),
        ("fedasync(exponent=-1)", "exponent must be in [0, 1e18], got -1"),
        ("fedasync(slope=None)", "slope must be a number, got None"),
        ("fedasync(threshold=2.5)", "threshold must be an integer of 0 or more, got 2.5"),
        ("fedbuff(0)", "buffer_size must be an integer of 1 or more, got 0"),
        ("fedbuff(server_learning_rate=0)", "server_learning_rate must be in [1e-18, 1e18], got 0"),
        ("fedavgg()", "unknown algorithm 'fedavgg'; did you mean 'fedavg"),
        ("fedavg", "'fedavg' is not an algorithm call; write fedavg(...) (character 1 of 'fedavg')"),
        ("fedprox(nu=1)", "fedprox has no parameter 'nu'; did you mean 'mu'?; it takes mu, server_learning_rate"),
        ("fedprox(1, 2, 3)", "fedprox: too many positional arguments"),
        ("3", "a spec is a call such as fedavg(), got 3"),
        ("topk(0.1)", "unknown algorithm 'topk'"),
        ("fedavg() | fedprox()", "'|' joins stages, got fedavg()"),
        ("fedavg()()", "expected the name of an algorithm"),
        ("fedavg(x.y)", "expected an algorithm call, a number, a text, None, True or False (character 8 of"),
        ("fedavg(", "(character "),
    ],
)
def test_bad_texts_are_config_errors(text, message):
    with pytest.raises(gw.ConfigError) as caught:
        parse_algorithm(text)
    assert message in str(caught.value)
    assert "(character " in str(caught.value)
