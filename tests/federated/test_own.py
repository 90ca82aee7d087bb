"""Your own model and data: against a plain training loop, and what it says of what it cannot use."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

import gradwire as gw
from gradwire import cli
from gradwire.errors import ConfigError
from gradwire.federated import own_task, simulate
from gradwire.federated.data.train import Trainer, draw_batches
from gradwire.federated.experiment import Experiment
from gradwire.federated.folder import RunFolder
from gradwire.federated.runs import run_experiment
from gradwire.federated.simulation import Simulation
from gradwire.rng import Key

X = torch.randn(120, 6, generator=torch.Generator().manual_seed(1))
LABELS = (X[:, :3].sum(1) > 0).long()
HEIGHTS = (X @ torch.arange(1.0, 7.0))[:, None]


def classify(**options):
    return own_task(lambda: nn.Linear(6, 2), (X, LABELS), (X[:40], LABELS[:40]), **options)


def squares(outputs, targets):
    return ((outputs - targets) ** 2).mean()


def near(outputs, targets):
    return (outputs - targets).abs().lt(1).float().mean()


def run(task, methods="dense()", **settings):
    given = {"clients": 4, "rounds": 3, "local_steps": 2, "batch_size": 8, "learning_rate": 0.05, "show": False}
    return simulate(task, methods, **{**given, **settings})


def test_it_is_plain_federated_averaging(tmp_path):
    """The oracle: SGD in a loop on the same batches, and the mean of the models."""
    rows = [np.arange(i, 120, 3) for i in range(3)]
    model = nn.Linear(6, 1)
    task = own_task(model, (X, HEIGHTS), (X, HEIGHTS), loss=squares, metric=near, clients=rows)
    results = run(task, clients=3, partition="natural")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for index in range(3):
        trained = []
        for client in range(3):
            mine = nn.Linear(6, 1)
            mine.load_state_dict(state)
            for batch in draw_batches(rows[client], Key(0, index, client), 2, 8):
                mine.zero_grad()
                squares(mine(X[batch]), HEIGHTS[batch]).backward()
                with torch.no_grad():
                    for p in mine.parameters():
                        p -= 0.05 * p.grad
            trained.append(mine.state_dict())
        state = {name: sum(t[name] for t in trained) / 3 for name in state}
    for name, tensor in state.items():
        torch.testing.assert_close(results.models["dense()", 0][name], tensor, atol=1e-5, rtol=1e-4)
    accuracy = float(near(X @ state["weight"].T + state["bias"], HEIGHTS))
    assert results.rounds[-1]["accuracy"] == pytest.approx(accuracy, abs=0.01)
    assert not torch.equal(model.weight, state["weight"])  # what was given is left alone


def test_results_are_those_of_the_files(tmp_path):
    out = tmp_path / "run"
    results = run(classify(), ["dense()", gw.ef(gw.topk(0.2))], out=out, seeds=(0, 1))
    assert [(r["label"], r["seed"]) for r in results.runs] == [
        (m, s) for m in ("dense()", "ef(topk(0.2))") for s in (0, 1)
    ]
    assert len(results.rounds) == 4 * 3
    assert results.report == out / "report.html"
    assert results.report.stat().st_size > 10_000
    again = run(classify(), ["dense()", gw.ef(gw.topk(0.2))], out=out, seeds=(0, 1))
    assert again.runs == results.runs
    assert again.models == {}
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.05 and is 0\.1"):
        run(classify(), ["dense()", gw.ef(gw.topk(0.2))], out=out, seeds=(0, 1), learning_rate=0.1)


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 120

    def __getitem__(self, i):
        return X[i], int(LABELS[i])


def test_data_may_be_arrays_or_a_data_set():
    from_arrays = own_task(lambda: nn.Linear(6, 2), (X.double().numpy(), LABELS.int().numpy()), (X, LABELS))
    from_data_set = own_task(lambda: nn.Linear(6, 2), Data(), Data())
    hashes = {run(task).runs[0]["model_sha256"] for task in (from_arrays, from_data_set)}
    assert len(hashes) == 1


def test_a_function_is_called_with_the_seed_and_a_module_is_the_start():
    drawn = run(classify(), seeds=(0, 1), rounds=1, learning_rate=1e-9).models
    assert not torch.equal(drawn["dense()", 0]["weight"], drawn["dense()", 1]["weight"])
    model = nn.Linear(6, 2)
    task = own_task(model, (X, LABELS), (X, LABELS))
    given = run(task, seeds=(0, 1), rounds=1, learning_rate=1e-9).models
    for seed in (0, 1):
        torch.testing.assert_close(given["dense()", seed]["weight"], model.weight.detach())


MODELS = {
    "linear": lambda: nn.Linear(6, 2),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2)),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_cannot_be_batched_is_trained_one_by_one_and_repeats(name):
    task = own_task(MODELS[name], (X, LABELS), (X, LABELS))
    assert Trainer(task, task.build()).batched == (name == "linear")
    first, second = (run(task).runs[0]["model_sha256"] for _ in range(2))
    assert first == second


def test_a_loss_of_ones_own_is_batched_to_the_same_model():
    task = own_task(lambda: nn.Linear(6, 1), (X, HEIGHTS), (X, HEIGHTS), loss=squares, metric=near)
    torch.manual_seed(0)
    model = task.build()
    batches = [np.arange(16).reshape(2, 8), np.arange(16, 32).reshape(2, 8)]
    together, apart = (Trainer(task, model, batched=b) for b in (True, False))
    assert Trainer(task, model).batched
    for found, expected in zip(
        together.local_updates(together.initial(), batches, 0.01),
        apart.local_updates(apart.initial(), batches, 0.01),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


# ---- what is trained, and what is not


def two_layers() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


class Tied(nn.Module):
    """One matrix on the way in and on the way out, under two names, as language models have it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.inside, self.outside = nn.Linear(6, 6), nn.Linear(6, 6)
        self.outside.weight = self.inside.weight
        self.register_buffer("scale", torch.full((6,), 0.5))
        self.spare = nn.Parameter(torch.ones(3))  # nothing reads it

    def forward(self, x):
        return self.outside(torch.tanh(self.inside(x * self.scale)))


def trained_by_hand(model, rows, rounds=3):
    """SGD in a loop on the batches of two clients, and the mean of the models."""
    start = copy.deepcopy(model.state_dict())
    for index in range(rounds):
        states = []
        for client, mine in enumerate(rows):
            model.load_state_dict(start)
            for batch in draw_batches(mine, Key(0, index, client), 2, 8):
                model.zero_grad()
                nn.functional.cross_entropy(model(X[batch]), LABELS[batch]).backward()
                with torch.no_grad():
                    for p in model.parameters():
                        if p.grad is not None:
                            p -= 0.05 * p.grad
            states.append(copy.deepcopy(model.state_dict()))
        start = {name: (states[0][name] + states[1][name]) / 2 for name in start}
    return start


def trained_by_two(model, batched: bool, method: str = "dense()"):
    """The same by the simulator: the final model, and its summary."""
    rows = [np.arange(0, 120, 2), np.arange(1, 120, 2)]
    task = own_task(model, (X, LABELS), (X, LABELS), clients=rows)
    settings = {"clients": 2, "partition": "natural", "rounds": 3, "local_steps": 2, "batch_size": 8}
    experiment = Experiment.build({"data": "own:own", "methods": [method], "learning_rate": 0.05, **settings})
    simulation = Simulation(experiment, gw.parse(method), task, 0, batched)
    assert len(list(simulation.rounds())) == 3
    found = simulation.federation.trainer.state_of(simulation.model), simulation.summary()
    for name, tensor in trained_by_hand(copy.deepcopy(model), rows).items() if method == "dense()" else ():
        torch.testing.assert_close(found[0][name], tensor, atol=1e-5, rtol=1e-4)
    return found


@pytest.mark.parametrize("batched", [True, False])
def test_what_is_frozen_stays_and_does_not_travel(batched):
    """The head alone moves, as in a loop by hand, and is all that is counted."""
    model = two_layers()
    model[0].requires_grad_(False)
    found, summary = trained_by_two(model, batched)
    assert list(found) == list(model.state_dict())
    assert torch.equal(found["0.weight"], model[0].weight)
    assert not torch.equal(found["2.weight"], model[2].weight)
    assert summary["dense_uplink_bytes"] == 4 * (8 * 2 + 2) * 2 * 3


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("method", ["dense()", "ef(topk(0.2))"])
def test_tied_parameters_travel_once_and_stay_tied(batched, method):
    """Beside them a buffer, which no step moves, and a parameter that nothing reads."""
    state, summary = trained_by_two(Tied(), batched, method)
    assert torch.equal(state["inside.weight"], state["outside.weight"])
    assert torch.equal(state["scale"], torch.full((6,), 0.5))
    assert torch.equal(state["spare"], torch.ones(3))
    assert summary["dense_uplink_bytes"] == 4 * (36 + 6 + 6 + 3 + 6) * 2 * 3


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="nothing to train: no parameter has requires_grad"):
        own_task(two_layers().requires_grad_(False), (X, LABELS), (X, LABELS))


def test_the_loss_on_held_out_examples_is_told():
    """The task's own, of the final model."""
    task = own_task(nn.Linear(6, 1), (X, HEIGHTS), (X[:50], HEIGHTS[:50]), loss=squares, metric=near)
    results = run(task, rounds=4, evaluate_every=2)
    state = results.models["dense()", 0]
    expected = float(squares(X[:50] @ state["weight"].T + state["bias"], HEIGHTS[:50]))
    told = [r["test_loss"] for r in results.rounds]
    assert [loss is None for loss in told] == [True, False, True, False]
    assert told[-1] == results.runs[0]["final_test_loss"] == pytest.approx(expected, rel=1e-5)


# ---- what cannot be


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": 3}, "model must be a torch module or a function that makes one, got int"),
        ({"model": lambda: 3}, "model must be a torch module or make one, got int"),
        ({"model": lambda: nn.Linear(5, 2)}, r"does not take inputs \(2, 6\) float32: RuntimeError"),
        ({"loss": lambda o, t: o}, "loss must give a scalar that carries gradients"),
        ({"loss": squares, "train": (X, LABELS)}, None),
        ({"metric": lambda o, t: torch.tensor(2.0)}, r"metric must give a number in \[0, 1\]"),
        ({"metric": lambda o, t: o.nothing}, "the metric does not take outputs"),
        ({"train": (X, LABELS[:7])}, r"as many inputs as targets, got \(120, 6\) float32 and \(7,\) int64"),
        ({"train": X}, "train must be"),
        ({"train": 7}, "train must be"),
        ({"clients": [[0, 1], [1, 2]]}, "no row twice, client 1"),
        ({"clients": [[0, 120]]}, r"rows in \[0, 120\), client 0"),
        ({"clients": [[0, 1]]}, "118 are nobody's"),
    ],
)
def test_what_is_of_no_use_is_refused_with_what_it_said(change, said):
    given = {"model": lambda: nn.Linear(6, 2), "train": (X, LABELS), "test": (X, LABELS), **change}
    if said is None:
        own_task(**{**given, "train": (X, HEIGHTS), "test": (X, HEIGHTS), "metric": near})
        return
    with pytest.raises(ConfigError, match=said):
        own_task(**given)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="task must be what own_task makes, got str"):
        simulate("digits", "dense()")
    with pytest.raises(ConfigError, match="model is for the tasks that come with gradwire, own has its own"):
        run(classify(), model="mlp")
    with pytest.raises(ConfigError, match="natural needs the data's own clients"):
        run(classify(), partition="natural")


# ---- from the command

MODULE = """
import torch
from gradwire.federated import own_task

def task():
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
    return own_task(torch.nn.Linear(4, 2), (x, (x.sum(1) > 0).long()), (x, (x.sum(1) > 0).long()))

def nothing():
    return 3
"""


def command(monkeypatch, capsys, *words) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["gradwire", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err


def test_the_command_runs_a_task_that_it_is_given_by_name(monkeypatch, capsys, tmp_path):
    (tmp_path / "my_task.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "my_task", None)
    monkeypatch.delitem(sys.modules, "my_task")
    few = ("--rounds", 2, "--clients", 3, "--out", "run")
    assert command(monkeypatch, capsys, "run", "--task", "my_task:task", *few)[0] == 0
    assert "own" in (tmp_path / "run" / "summary.json").read_text()
    code, said = command(monkeypatch, capsys, "run", "--resume", "run")
    assert (code, "pass --task my_task:task to run that code" in said) == (2, True)
    assert command(monkeypatch, capsys, "run", "--resume", "run", "--task", "my_task:task")[0] == 0
    for words, expected in [
        (("--task", "my_task:other", "--out", "a"), "there is no such function"),
        (("--task", "my_task:nothing", "--out", "b"), "must give what own_task makes, got int"),
        (("--task", "no_such_module:task", "--out", "c"), "there is no such function: No module named"),
        (("--task", "digits", "--out", "d"), "--task must be package.module:function, got digits"),
        (("--task", "my_task:task", "--data", "digits", "--out", "e"), "give one of them"),
    ]:
        code, said = command(monkeypatch, capsys, "run", *words)
        assert (code, expected in said) == (2, True), said
    (tmp_path / "settings.toml").write_text('data = "my_task:task"\n')
    code, said = command(monkeypatch, capsys, "run", "settings.toml", "--out", "f")
    assert (code, "pass --task my_task:task to run that code" in said) == (2, True)


def test_a_loss_below_0_and_frozen_weights_are_seen_on_resume(tmp_path):
    """A likelihood's loss may have any sign; whoever goes on with another backbone is told."""

    def task(seed):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        model[0].requires_grad_(False)
        rng = np.random.default_rng(0)
        data = rng.standard_normal((40, 3)).astype(np.float32), rng.integers(0, 2, 40)
        return own_task(model, data, data, loss=lambda out, y: torch.nn.functional.cross_entropy(out, y) - 5)

    given = {"methods": ["ef(topk(0.5))"], "rounds": 4, "clients": 2, "evaluate_every": 1}
    folder = RunFolder.create(tmp_path / "run", Experiment.build(given))
    asked = iter([False, True])
    assert run_experiment(folder, lambda *_: None, lambda *_: None, lambda: next(asked), task(1)) is False
    with pytest.raises(gw.StateError, match="frozen parameters, which do not travel, are not those"):
        run_experiment(RunFolder.open(tmp_path / "run"), lambda *_: None, lambda *_: None, lambda: False, task(2))
    assert run_experiment(RunFolder.open(tmp_path / "run"), lambda *_: None, lambda *_: None, lambda: False, task(1))
    (run,) = json.loads((tmp_path / "run" / "summary.json").read_text())["runs"]
    assert -5 < run["final_test_loss"] < 0


def test_a_metric_that_is_nan_is_worth_nothing():
    data = np.zeros((4, 3), np.float32), np.zeros(4, np.int64)
    task = own_task(torch.nn.Linear(3, 2), data, data, metric=lambda out, y: float("nan") if len(y) > 2 else 0.5)
    trainer = Trainer(task, torch.nn.Linear(3, 2))
    assert trainer.evaluate(trainer.initial()).accuracy == 0.0
