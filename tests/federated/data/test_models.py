"""Sizes, determinism, stacking and learning of the simulator's models, on tiny tasks."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from gradwire.errors import ConfigError
from gradwire.federated.data.models import MODEL_NAMES, accuracy, build_model, cross_entropy, loss_and_metric
from gradwire.federated.data.task import Task
from gradwire.federated.data.tasks import load_task
from gradwire.federated.data.train import Trainer


def make_task(name, shape, num_classes=10, characters=False):
    generator = torch.Generator().manual_seed(7)
    if characters:
        inputs = torch.randint(num_classes, (6, *shape), generator=generator)
        targets = torch.randint(num_classes, (6, *shape), generator=generator)
    else:
        inputs = torch.randn(6, *shape, generator=generator)
        targets = torch.randint(num_classes, (6,), generator=generator)
    return Task(name, inputs, targets, inputs, targets, "test", num_classes, None, "mlp")


DIGITS = make_task("digits", (64,))
MNIST = make_task("mnist", (1, 28, 28))
CIFAR = make_task("cifar10", (3, 32, 32))
PLAY = make_task("shakespeare", (64,), 65, characters=True)
STACKABLE = [
    ("mlp", DIGITS),
    ("mlp", MNIST),
    ("cnn", MNIST),
    ("cnn", CIFAR),
    ("small_cnn", CIFAR),
    ("char_transformer", PLAY),
]
ALL = [*STACKABLE, ("resnet18", CIFAR)]


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("name", "task", "low", "high"),
    [
        ("mlp", DIGITS, 64 * 128 + 128 + 128 * 10 + 10, 9_610),
        ("mlp", MNIST, 50_890, 50_890),
        ("cnn", MNIST, 50_000, 120_000),
        ("cnn", CIFAR, 300_000, 600_000),
        ("resnet18", CIFAR, 11_173_962, 11_173_962),
        ("char_transformer", PLAY, 100_000, 150_000),
    ],
)
def test_number_of_parameters(name, task, low, high):
    assert low <= num_parameters(build_model(name, task, 0)) <= high


@pytest.mark.parametrize(("name", "task"), ALL)
def test_output_shape_and_gradients(name, task):
    model = build_model(name, task, 0)
    logits = model(task.train_inputs[:2])
    assert logits.shape == (*task.train_targets[:2].shape, task.num_classes)
    cross_entropy(logits, task.train_targets[:2]).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize(("name", "task"), ALL)
def test_seed_decides_and_global_generators_are_untouched(name, task):
    torch_before, numpy_before = torch.random.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    first = build_model(name, task, 3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_before)  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.randn(5)  # another global state, the same model
        again = build_model(name, task, 3).state_dict()
    other = build_model(name, task, 4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(("name", "task"), STACKABLE)
def test_vmap_over_stacked_parameters_equals_a_loop(name, task):
    models = [build_model(name, task, seed) for seed in range(3)]
    parameters, buffers = stack_module_state(models)
    inputs = task.train_inputs.reshape(3, 2, *task.train_inputs.shape[1:])
    targets = task.train_targets.reshape(3, 2, *task.train_targets.shape[1:])

    def loss(own, buffer, x, y):
        return cross_entropy(functional_call(models[0], (own, buffer), (x,)), y)

    stacked: Any = vmap(grad(loss))(parameters, buffers, inputs, targets)
    for index, model in enumerate(models):
        cross_entropy(model(inputs[index]), targets[index]).backward()
        for key, parameter in model.named_parameters():
            scale = float(parameter.grad.abs().max()) + 1e-6
            torch.testing.assert_close(stacked[key][index], parameter.grad, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(("name", "task"), STACKABLE)
def test_stackable_models_keep_no_running_statistics(name, task):
    model = build_model(name, task, 0)
    assert list(model.state_dict()) == [key for key, _ in model.named_parameters()]


def test_resnet18_against_its_published_shape():
    model = build_model("resnet18", CIFAR, 0)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 17 + 3  # 17 on the road, 3 on shortcuts; with the classifier, 18 layers deep
    assert not any(isinstance(module, nn.MaxPool2d) for module in model.modules())
    assert convolutions[0].kernel_size == (3, 3)
    assert convolutions[0].stride == (1, 1)


def test_what_pools_has_its_channels_last_and_states_are_plain_all_the_same():
    model = build_model("cnn", MNIST, 0)
    assert model[0](MNIST.train_inputs[:2]).is_contiguous(memory_format=torch.channels_last)
    trainer = Trainer(MNIST, model)
    state = trainer.state_of(trainer.initial())
    assert all(tensor.is_contiguous() for tensor in state.values())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())


def test_char_transformer_is_causal():
    model = build_model("char_transformer", PLAY, 0)
    contexts = PLAY.train_inputs[:1].clone()
    before = model(contexts)
    contexts[0, 40] = (contexts[0, 40] + 1) % 65
    after = model(contexts)
    assert torch.allclose(before[0, :40], after[0, :40], atol=1e-6)
    assert not torch.allclose(before[0, 40:], after[0, 40:], atol=1e-3)


def test_loss_and_metric_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    targets = torch.tensor([0, 1, 1])
    by_hand = -np.mean([np.log(1 / (1 + np.exp(-2))), np.log(1 / (1 + np.exp(-1))), np.log(1 / (1 + np.exp(2)))])
    loss, metric = loss_and_metric(logits, targets)
    assert float(loss) == pytest.approx(by_hand, rel=1e-6)
    assert float(metric) == pytest.approx(2 / 3)
    sequence = torch.stack([logits, logits])
    assert float(cross_entropy(sequence, torch.stack([targets, targets]))) == pytest.approx(by_hand, rel=1e-6)
    assert float(accuracy(sequence, torch.stack([targets, 1 - targets]))) == pytest.approx(0.5)


def test_refusals():
    with pytest.raises(ConfigError, match=r"got 'resnet'; did you mean 'resnet18'\?"):
        build_model("resnet", CIFAR, 0)
    for name, task in [("cnn", DIGITS), ("resnet18", PLAY), ("mlp", PLAY), ("char_transformer", DIGITS)]:
        with pytest.raises(ConfigError, match=f"{name} takes .*got {task.name} with"):
            build_model(name, task, 0)
    with pytest.raises(ConfigError, match="8 pixels a side"):
        build_model("cnn", make_task("tiny", (3, 4, 4)), 0)
    for seed in (-1, 2**63):
        with pytest.raises(ConfigError, match="seed must be in"):
            build_model("mlp", DIGITS, seed)
    assert MODEL_NAMES == ("mlp", "cnn", "small_cnn", "resnet18", "char_transformer")


def train(model, inputs, targets, num_steps, batch, rate):
    optimiser = torch.optim.Adam(model.parameters(), rate)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    for step in range(num_steps):
        chosen = order[torch.arange(step * batch, (step + 1) * batch) % len(inputs)]
        optimiser.zero_grad()
        cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
        optimiser.step()
    return model.eval()


def test_mlp_learns_digits():
    task = load_task("digits")
    model = train(build_model(task.default_model, task, 0), task.train_inputs, task.train_targets, 300, 64, 3e-3)
    with torch.no_grad():
        assert float(accuracy(model(task.test_inputs), task.test_targets)) > 0.95


def test_char_transformer_learns_a_cycle():
    symbols = torch.arange(6 * 65).reshape(6, 65) % 5
    model = train(build_model("char_transformer", PLAY, 0), symbols[:, :-1], symbols[:, 1:], 40, 6, 3e-3)
    with torch.no_grad():
        assert float(accuracy(model(symbols[:, :-1]), symbols[:, 1:])) > 0.95


@pytest.mark.slow
def test_cnn_passes_98_percent_on_mnist(data_dir):
    task = load_task("mnist", data_dir)
    model = train(build_model("cnn", task, 0), task.train_inputs, task.train_targets, 1000, 64, 1e-3)
    with torch.no_grad():
        assert float(accuracy(model(task.test_inputs), task.test_targets)) > 0.98
