"""Local training against closed forms, batched against one by one, running statistics, evaluation, devices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gradwire.compressors.sparsify import dense
from gradwire.errors import ConfigError
from gradwire.federated.data.models import build_model
from gradwire.federated.data.task import Task
from gradwire.federated.data.tasks import load_task
from gradwire.federated.data.train import Trainer, _moved, draw_batches, draw_shifts
from gradwire.federated.experiment import Experiment
from gradwire.federated.simulation import Simulation
from gradwire.layout import Layout
from gradwire.rng import Key


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """One torch thread: where other tests share the cores, two make every tiny step wait for the scheduler."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_task(name, shape, num_examples=40, num_classes=10, characters=False, seed=3):
    generator = torch.Generator().manual_seed(seed)
    if characters:
        inputs = torch.randint(num_classes, (num_examples, *shape), generator=generator)
        targets = torch.randint(num_classes, (num_examples, *shape), generator=generator)
    else:
        inputs = torch.randn(num_examples, *shape, generator=generator)
        targets = torch.randint(num_classes, (num_examples,), generator=generator)
    half = num_examples // 2
    return Task(name, inputs[:half], targets[:half], inputs[half:], targets[half:], "test", num_classes, None, "mlp")


@pytest.fixture(scope="module")
def digits():
    return load_task("digits")


def some_batches(num_clients, local_steps, batch_size, num_examples, seed=0):
    shard = np.arange(num_examples)
    return [draw_batches(shard, Key(seed, 0, i), local_steps, batch_size) for i in range(num_clients)]


def softmax(logits):
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


# ---- batched and one by one


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("mlp", "digits"),
        ("mlp", tiny_task("mnist", (1, 28, 28))),
        ("cnn", tiny_task("mnist", (1, 28, 28))),
        ("cnn", tiny_task("cifar10", (3, 32, 32))),
        ("char_transformer", tiny_task("shakespeare", (16,), num_classes=11, characters=True)),
    ],
    ids=["mlp-digits", "mlp-mnist", "cnn-mnist", "cnn-cifar10", "char_transformer"],
)
def test_batched_and_one_by_one_give_the_same_updates(model, task, digits):
    task = digits if task == "digits" else task
    batches = some_batches(3, 4, 5, len(task.train_inputs))
    results = []
    for batched in (True, False):
        trainer = Trainer(task, build_model(model, task, 1), batched=batched)
        assert trainer.batched is batched
        results.append(trainer.local_updates(trainer.initial(), batches, 0.1))
    (together, losses_together), (apart, losses_apart) = results
    assert together.dtype == apart.dtype == np.float32
    assert together.shape == apart.shape == (3, trainer.layout.d)
    scale = np.abs(apart).max()
    assert scale > 1e-4
    np.testing.assert_allclose(together, apart, rtol=0, atol=2e-5 * scale)
    np.testing.assert_allclose(losses_together, losses_apart, rtol=1e-5)
    assert not np.allclose(apart[0], apart[1], atol=1e-2 * scale)


def test_one_client_gets_the_same_update_whoever_trains_beside_it(digits):
    trainer = Trainer(digits, build_model("mlp", digits, 0), batched=True)
    batches = some_batches(5, 3, 8, 100)
    all_updates, _ = trainer.local_updates(trainer.initial(), batches, 0.2)
    for i in (0, 4):
        alone, _ = trainer.local_updates(trainer.initial(), batches[i : i + 1], 0.2)
        np.testing.assert_allclose(alone[0], all_updates[i], rtol=0, atol=2e-6)


@pytest.mark.parametrize("batched", [True, False])
def test_training_changes_neither_the_start_nor_what_follows(digits, batched):
    trainer = Trainer(digits, build_model("mlp", digits, 0), batched=batched)
    start = trainer.initial()
    before = start.copy()
    batches = some_batches(2, 2, 4, 50)
    first, _ = trainer.local_updates(start, batches, 0.3)
    first = first.copy()
    other, _ = trainer.local_updates(start + np.float32(0.1), batches, 0.3)
    assert not np.allclose(first, other)
    again, _ = trainer.local_updates(start, batches, 0.3)
    np.testing.assert_array_equal(start, before)
    np.testing.assert_array_equal(first, again)


def test_small_models_are_batched_by_default_and_large_ones_and_batchnorm_are_not(digits):
    assert Trainer(digits, build_model("mlp", digits, 0)).batched
    images = tiny_task("cifar10", (3, 32, 32))
    assert not Trainer(images, build_model("cnn", images, 0)).batched
    assert not Trainer(images, nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3072, 2))).batched


def test_batchnorm_in_one_batch_gives_the_same_updates_and_statistics():
    images = tiny_task("cifar10", (3, 8, 8))
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)]
    batches = some_batches(3, 4, 5, len(images.train_inputs))
    start = Trainer(images, nn.Sequential(*layers)).initial()
    updates = []
    for batched in (True, False):
        trainer = Trainer(images, nn.Sequential(*layers), batched=batched, weight_decay=0.1)
        updates.append(trainer.local_updates(start, batches, 0.1)[0])
    np.testing.assert_allclose(*updates, rtol=0, atol=2e-5 * np.abs(updates[1]).max())
    assert np.abs(updates[0][:, trainer.layout.num_parameters :]).min() > 0


# ---- closed forms


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("local_steps", [1, 3])
def test_softmax_regression_equals_the_closed_form(batched, local_steps):
    task = tiny_task("digits", (7,), num_classes=4)
    trainer = Trainer(task, nn.Sequential(nn.Linear(7, 4)), batched=batched)
    x, y = task.train_inputs.numpy().astype(np.float64), task.train_targets.numpy()
    batches = some_batches(3, local_steps, 6, len(x))
    start = trainer.initial()
    names = [t.name for t in trainer.layout.tensors]
    assert names == ["0.weight", "0.bias"]

    updates, losses = trainer.local_updates(start, batches, 0.25)
    for i, steps in enumerate(batches):
        weight, bias = start[:28].reshape(4, 7).astype(np.float64), start[28:].astype(np.float64)
        mean_loss = 0.0
        for rows in steps:
            probabilities = softmax(x[rows] @ weight.T + bias)
            mean_loss += -np.log(probabilities[np.arange(6), y[rows]]).mean() / local_steps
            error = (probabilities - np.eye(4)[y[rows]]) / 6
            weight, bias = weight - 0.25 * error.T @ x[rows], bias - 0.25 * error.sum(0)
        expected = np.concatenate([weight.ravel(), bias]) - start
        np.testing.assert_allclose(updates[i], expected, rtol=0, atol=5e-7)
        assert losses[i] == pytest.approx(mean_loss, rel=1e-5)


@pytest.mark.parametrize("batched", [True, False])
def test_one_step_of_the_digits_mlp_equals_backpropagation_by_hand(digits, batched):
    trainer = Trainer(digits, build_model("mlp", digits, 5), batched=batched)
    start = trainer.initial()
    pieces = {k: v.astype(np.float64) for k, v in trainer.layout.unflatten(start).items()}
    (w1, b1), (w2, b2) = ((pieces[f"{i}.weight"], pieces[f"{i}.bias"]) for i in (1, 3))
    batches = some_batches(2, 1, 32, 1000)
    updates, _ = trainer.local_updates(start, batches, 0.2)
    for update, (rows,) in zip(updates, batches, strict=True):
        x, y = digits.train_inputs.numpy()[rows].astype(np.float64), digits.train_targets.numpy()[rows]
        before = x @ w1.T + b1
        hidden = np.maximum(before, 0)
        error = (softmax(hidden @ w2.T + b2) - np.eye(10)[y]) / 32
        back = (error @ w2) * (before > 0)
        gradient = {"1.weight": back.T @ x, "1.bias": back.sum(0), "3.weight": error.T @ hidden, "3.bias": error.sum(0)}
        expected = trainer.layout.flatten({k: (-0.2 * g).astype(np.float32) for k, g in gradient.items()})
        np.testing.assert_allclose(update, expected, rtol=0, atol=1e-6)


# ---- what algorithms add


def small_norm():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


@pytest.fixture(scope="module")
def normed():
    """A task, a model with running statistics, four clients' batches and a start."""
    task = tiny_task("cifar10", (3, 8, 8))
    torch.manual_seed(0)
    model = small_norm()
    return task, model, some_batches(4, 5, 6, 20), Trainer(task, model).initial()


def extra_arguments(trainer, num_clients, seed=0):
    rng = np.random.default_rng(seed)
    n, d = trainer.layout.num_parameters, trainer.layout.d
    starts = rng.uniform(0.01, 0.1, (num_clients, d)).astype(np.float32)
    return {
        "proximal": {"proximal": 0.7},
        "corrections": {"corrections": 0.1 * rng.standard_normal((num_clients, n)).astype(np.float32)},
        "corrections of d": {"corrections": 0.1 * rng.standard_normal((num_clients, d)).astype(np.float32)},
        "local_steps": {"local_steps": [2, 5, 1, 4][:num_clients]},
        "all take fewer": {"local_steps": [3] * num_clients},
        "starts": {"start": starts},
        "all": {
            "start": starts,
            "proximal": 0.3,
            "corrections": 0.1 * rng.standard_normal((num_clients, n)).astype(np.float32),
            "local_steps": [2, 5, 1, 4][:num_clients],
            "shifts": [draw_shifts(Key(0, 0, i), 5, 6) for i in range(num_clients)],
        },
    }


KINDS = ["proximal", "corrections", "corrections of d", "local_steps", "all take fewer", "starts", "all"]


@pytest.mark.parametrize("kind", KINDS)
def test_batched_and_one_by_one_agree_whatever_is_added(normed, kind):
    task, model, batches, start = normed
    results = []
    for batched in (True, False):
        trainer = Trainer(task, model, batched=batched, weight_decay=0.05)
        arguments = {"start": start, **extra_arguments(trainer, 4)[kind]}
        results.append(trainer.local_updates(batches=batches, learning_rate=0.1, **arguments))
        plain, _ = trainer.local_updates(start, batches, 0.1)
        assert np.abs(results[-1][0] - plain).max() > 1e-3
    (together, losses_together), (apart, losses_apart) = results
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-5 * max(1, np.abs(apart).max()))
    np.testing.assert_allclose(losses_together, losses_apart, rtol=1e-5)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_each_client_trains_as_if_alone(normed, kind, batched):
    """Its own start, its own correction, and no more than its own steps, in its place among the results."""
    task, model, batches, start = normed
    trainer = Trainer(task, model, batched=batched)
    arguments = {"start": start, **extra_arguments(trainer, 4)[kind]}
    updates, losses = trainer.local_updates(batches=batches, learning_rate=0.1, **arguments)
    for i in range(4):
        steps = arguments.get("local_steps", [5] * 4)[i]
        alone, loss = trainer.local_updates(
            arguments["start"][i] if arguments["start"].ndim == 2 else start,
            [batches[i][:steps]],
            0.1,
            [arguments["shifts"][i][:steps]] if "shifts" in arguments else None,
            proximal=arguments.get("proximal", 0.0),
            corrections=arguments["corrections"][i : i + 1] if "corrections" in arguments else None,
        )
        np.testing.assert_allclose(updates[i], alone[0], rtol=0, atol=1e-5)
        assert losses[i] == pytest.approx(loss[0], rel=1e-5)


@pytest.mark.parametrize("batched", [True, False])
def test_a_step_with_everything_in_closed_form(batched):
    """Two steps of w <- w - eta (g + lambda w + mu (w - w_start) + correction), g from steps without the rest."""
    task = tiny_task("line", (7,), num_classes=4)
    plain = Trainer(task, nn.Sequential(nn.Linear(7, 4)), batched=batched)
    decayed = Trainer(task, nn.Sequential(nn.Linear(7, 4)), batched=batched, weight_decay=0.25)
    start, correction = np.random.default_rng(0).standard_normal((2, plain.layout.d)).astype(np.float32)
    (batches,) = some_batches(1, 2, 4, 20)
    w = start
    for rows in batches:
        gradient = plain.local_updates(w, [rows[None]], 1.0)[0][0] / -1.0
        w = w - np.float32(0.1) * (gradient + 0.25 * w + 0.5 * (w - start) + correction)
    updates, _ = decayed.local_updates(start, [batches], 0.1, proximal=0.5, corrections=correction[None])
    np.testing.assert_allclose(updates[0], w - start, rtol=0, atol=2e-6)


@pytest.mark.parametrize("batched", [True, False])
def test_nothing_added_changes_no_bit_and_no_argument_is_modified(normed, batched):
    task, model, batches, start = normed
    trainer = Trainer(task, model, batched=batched)
    plain, losses = trainer.local_updates(start, batches, 0.1)
    same, same_losses = trainer.local_updates(np.tile(start, (4, 1)), batches, 0.1, None, proximal=0.0)
    np.testing.assert_array_equal(plain, same)
    np.testing.assert_array_equal(losses, same_losses)
    arguments = extra_arguments(trainer, 4)["all"]
    before = {name: np.copy(value) for name, value in arguments.items()}
    trainer.local_updates(batches=batches, learning_rate=0.1, **arguments)
    for name, value in before.items():
        np.testing.assert_array_equal(arguments[name], value)


@pytest.mark.parametrize("batched", [True, False])
def test_running_statistics_are_neither_pulled_nor_corrected(normed, batched):
    """One step: statistics see the inputs alone, whatever is added to the gradients."""
    task, model, batches, start = normed
    trainer = Trainer(task, model, batched=batched)
    n = trainer.layout.num_parameters
    corrections = np.ones((4, trainer.layout.d), np.float32)
    plain, _ = trainer.local_updates(start, [b[:1] for b in batches], 0.1)
    added, _ = trainer.local_updates(start, [b[:1] for b in batches], 0.1, proximal=9.0, corrections=corrections)
    np.testing.assert_array_equal(plain[:, n:], added[:, n:])
    np.testing.assert_allclose(added[:, :n], plain[:, :n] - 0.1, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"proximal": -1.0}, "proximal must be 0 or more, got -1.0"),
        ({"proximal": float("nan")}, "proximal must be finite"),
        ({"corrections": np.zeros((2, 5), np.float32)}, r"corrections must have shape \(2, 32\), got \(2, 5\)"),
        ({"corrections": np.zeros(32, np.float32)}, r"corrections must have shape \(2, 32\), got \(32,\)"),
        ({"local_steps": [1]}, "local_steps must be of 2 clients, got 1"),
        ({"local_steps": [1, 0]}, r"local_steps must be an integer in \[1, 3\], got 0"),
        ({"local_steps": [4, 1]}, r"local_steps must be an integer in \[1, 3\], got 4"),
        ({"start": np.zeros((3, 32), np.float32)}, r"start must have shape \(32,\) or \(2, 32\), got \(3, 32\)"),
    ],
)
def test_additions_that_cannot_be(arguments, message):
    task = tiny_task("line", (7,), num_classes=4)
    trainer = Trainer(task, nn.Sequential(nn.Linear(7, 4)))
    arguments = {"start": trainer.initial(), **arguments}
    with pytest.raises(ConfigError, match=message):
        trainer.local_updates(batches=some_batches(2, 3, 4, 20), learning_rate=0.1, **arguments)


# ---- running statistics


class TinyNorm(nn.Module):
    """BatchNorm, then a linear layer: the least model with running statistics."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.out = nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.norm(x))


def test_running_statistics_travel_in_the_update():
    task = tiny_task("digits", (3,), num_classes=2)
    trainer = Trainer(task, TinyNorm())
    assert trainer.layout.num_parameters == 3 + 3 + 6 + 2
    assert trainer.layout.d == trainer.layout.num_parameters + 6
    start = trainer.initial()
    batches = some_batches(2, 2, 5, 20)
    updates, _ = trainer.local_updates(start, batches, 0.1)
    for update, steps in zip(updates, batches, strict=True):
        mean, var = np.zeros(3), np.ones(3)
        for rows in steps:
            x = task.train_inputs.numpy()[rows].astype(np.float64)
            mean, var = 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0, ddof=1)
        got = trainer.layout.unflatten(start + update)
        np.testing.assert_allclose(got["norm.running_mean"], mean, atol=1e-6)
        np.testing.assert_allclose(got["norm.running_var"], var, atol=1e-6)


def test_evaluation_uses_the_statistics_of_the_model_it_is_given():
    task = tiny_task("digits", (3,), num_classes=2)
    trainer = Trainer(task, TinyNorm())
    rng = np.random.default_rng(0)
    for _ in range(3):
        arrays = {t.name: rng.uniform(0.5, 2, t.shape).astype(np.float32) for t in trainer.layout.tensors}
        arrays["out.weight"] -= 1
        x = task.test_inputs.numpy()
        normal = (x - arrays["norm.running_mean"]) / np.sqrt(arrays["norm.running_var"] + 1e-5)
        logits = (normal * arrays["norm.weight"] + arrays["norm.bias"]) @ arrays["out.weight"].T + arrays["out.bias"]
        expected = (logits.argmax(1) == task.test_targets.numpy()).mean()
        flat = trainer.layout.flatten(arrays)
        assert trainer.evaluate(flat).accuracy == pytest.approx(expected, abs=1e-6)
        # neither evaluating nor training may leak into the next evaluation
        trainer.local_updates(flat, some_batches(2, 2, 5, 20), 0.1)
        assert trainer.evaluate(flat).accuracy == pytest.approx(expected, abs=1e-6)


def test_resnet18_sends_its_statistics():
    task = tiny_task("cifar10", (3, 8, 8), num_examples=16)
    trainer = Trainer(task, build_model("resnet18", task, 0))
    assert trainer.layout.num_parameters == 11_173_962
    start = trainer.initial()
    updates, _ = trainer.local_updates(start, some_batches(1, 1, 4, 8), 0.01)
    statistics = updates[0, trainer.layout.num_parameters :]
    assert statistics.size == 9_600
    assert np.isfinite(updates).all()
    assert (statistics != 0).mean() > 0.99
    state = trainer.layout.unflatten(torch.from_numpy(start + updates[0]))
    mean = trainer.model.state_dict()["1.running_mean"]
    torch.testing.assert_close(state["1.running_mean"], mean, rtol=1e-5, atol=1e-6)


# ---- evaluation


@pytest.mark.parametrize("num_test", [1, 999, 1000, 1001, 2500])
def test_accuracy_counts_every_held_out_example_once(num_test):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_test, 5, generator=generator)
    targets = torch.randint(3, (num_test,), generator=generator)
    task = Task("digits", inputs[:1], targets[:1], inputs, targets, "test", 3, None, "mlp")
    trainer = Trainer(task, nn.Sequential(nn.Linear(5, 3)))
    model = np.random.default_rng(0).standard_normal(trainer.layout.d).astype(np.float32)
    logits = inputs.numpy() @ model[:15].reshape(3, 5).T + model[15:]
    right = int((logits.argmax(1) == targets.numpy()).sum())
    assert trainer.evaluate(model).accuracy == pytest.approx(right / num_test, abs=1e-6)


def test_accuracy_of_characters_counts_every_position():
    task = tiny_task("shakespeare", (4,), num_classes=3, characters=True)
    trainer = Trainer(task, nn.Embedding(3, 3))
    flat = np.eye(3, dtype=np.float32).ravel()  # predicts each character to come again
    expected = float((task.test_inputs == task.test_targets).double().mean())
    assert trainer.evaluate(flat).accuracy == pytest.approx(expected, abs=1e-6)


# ---- batches


def test_batches_depend_only_on_the_key_and_stay_in_the_shard():
    shard = np.array([3, 5, 8, 1000])
    batches = draw_batches(shard, Key(1, 2, 3), 50, 20)
    assert batches.shape == (50, 20)
    assert batches.dtype == np.int64
    assert set(batches.ravel()) == set(shard)
    np.testing.assert_array_equal(batches, draw_batches(shard, Key(1, 2, 3), 50, 20))
    for other in (Key(2, 2, 3), Key(1, 3, 3), Key(1, 2, 4)):
        assert (batches != draw_batches(shard, other, 50, 20)).any()
    counts = np.unique(batches, return_counts=True)[1]
    assert counts.min() > 180  # 250 expected, standard deviation 14


def test_a_shard_of_one_example():
    assert set(draw_batches(np.array([7]), Key(0), 3, 4).ravel()) == {7}


# ---- devices


@pytest.mark.parametrize("name", ["nonsense", "", "cpu:x", "cuda:-5", "cuda:9999", "cpu cuda"])
def test_a_device_torch_does_not_have_is_a_config_error_of_one_line(digits, name):
    with pytest.raises(ConfigError) as caught:
        Trainer(digits, build_model("mlp", digits, 0), name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_device_that_holds_no_numbers_is_a_config_error(digits):
    with pytest.raises(ConfigError, match="meta"):
        Trainer(digits, build_model("mlp", digits, 0), "meta")


# ---- schedules, shifts, precision


def test_learning_rate_rises_and_falls():
    e = Experiment.build(
        {"rounds": 100, "learning_rate": 0.5, "warmup_rounds": 10, "warmup_from": 0.2, "milestones": [0.5, 0.75]}
    )
    rates = [e.step_size_at(t) for t in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[5] == pytest.approx(0.3)
    assert rates[10] == rates[49] == 0.5
    assert rates[50] == rates[74] == pytest.approx(0.05)
    assert rates[75] == rates[99] == pytest.approx(0.005)


@pytest.mark.parametrize("batched", [True, False])
def test_weight_decay_closed_form(batched):
    task = tiny_task("line", (7,), num_classes=4)
    trainer = Trainer(task, nn.Sequential(nn.Linear(7, 4)), batched=batched)
    decayed = Trainer(task, nn.Sequential(nn.Linear(7, 4)), batched=batched, weight_decay=0.25)
    start = np.random.default_rng(0).standard_normal(trainer.layout.d).astype(np.float32)
    batches = some_batches(1, 1, 4, 20)
    plain, with_decay = (t.local_updates(start, batches, 0.1)[0][0] for t in (trainer, decayed))
    np.testing.assert_allclose(with_decay, plain - 0.1 * 0.25 * start, atol=2e-6)


def test_shifts_move_and_mirror_images():
    shifts = draw_shifts(Key(0, 3, 1), 5, 400)
    assert shifts.shape == (5, 400, 3)
    assert set(np.unique(shifts[..., 0])) == set(np.unique(shifts[..., 1])) == set(range(-4, 5))
    assert set(np.unique(shifts[..., 2])) == {0, 1}
    images = torch.randn(2, 300, 3, 9, 8)
    moved = _moved(images, torch.from_numpy(shifts[:2, :300]))
    for step, i in ((0, 0), (1, 17), (0, 299), (1, 4)):
        down, right, mirrored = shifts[step, i]
        image = images[step, i].numpy()
        image = np.pad(image, ((0, 0), (4, 4), (4, 4)))[:, 4 - down : 13 - down, 4 - right : 12 - right]
        np.testing.assert_array_equal(moved[step, i].numpy(), image[:, :, ::-1] if mirrored else image)


@pytest.mark.parametrize("batched", [True, False])
def test_bfloat16_trains_nearly_the_same_and_sends_float32(batched):
    images = tiny_task("cifar10", (3, 8, 8))
    model = build_model("small_cnn", images, 0)
    shifts = [draw_shifts(Key(0, 0, client), 2, 5) for client in range(2)]
    torch.manual_seed(0)
    start = 0.1 * torch.randn(Layout.from_arrays(model.state_dict()).d).numpy()
    updates = [
        Trainer(images, model, batched=batched, precision=precision).local_updates(
            start, some_batches(2, 2, 5, 20), 0.1, shifts
        )[0]
        for precision in ("float32", "bfloat16")
    ]
    assert updates[1].dtype == np.float32
    cosine = np.sum(updates[0] * updates[1]) / np.linalg.norm(updates[0]) / np.linalg.norm(updates[1])
    assert 0.9 < cosine < 0.999999


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"milestones": [5.0]}, "milestones must be increasing shares"),
        ({"milestones": [0.5, 0.5]}, "milestones must be increasing shares"),
        ({"milestones": [float("nan")]}, "milestones must be increasing shares"),
        ({"rounds": 10, "warmup_rounds": 11}, "warmup_rounds must be at most rounds 10, got 11"),
        ({"precision": "float16"}, "precision"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        Experiment.build(settings)


def test_only_images_can_be_moved(digits):
    with pytest.raises(ConfigError, match="augment moves images"):
        Simulation(Experiment.build({"augment": True}), dense(), digits, 0)
