"""Own: a task of the user's own model and data."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from gradwire.errors import ConfigError
from gradwire.federated.data.models import accuracy, cross_entropy
from gradwire.federated.data.task import Task, TaskRow

__all__ = ["can_batch", "check_task", "load_own", "own_row", "own_task"]

_PREFIX = "own:"
_LEARNING_RATE = 0.1

Measure = Callable[[Tensor, Tensor], Tensor]


def own_task(
    model: nn.Module | Callable[[], nn.Module],
    train: Any,
    test: Any,
    *,
    loss: Measure | None = None,
    metric: Measure | None = None,
    clients: Sequence[Any] | None = None,
    name: str = "own",
    test_name: str = "held-out examples",
) -> Task:
    """Make a task of a model and data of your own, for ``simulate`` or ``gradwire run --task package.module:function``.

    Args:
        model: a torch module, which every seed starts from; or a function that makes one, called once a seed with
            torch's generator seeded. Parameters with ``requires_grad`` False stay as they are at all ends and do not
            travel: of a model with adapters the adapters alone do.
        train: (inputs, targets), NumPy or torch, n rows each; or a data set of such pairs, which is read into memory.
        test: the same for the held-out examples.
        loss: (outputs, targets) -> a scalar, the mean over the examples; cross-entropy by default.
        metric: (outputs, targets) -> a mean over the examples in [0, 1], larger is better; by default the share of
            examples, or positions, whose largest output is the target's.
        clients: each client's own rows of ``train``, integers, no row twice; take ``partition="natural"`` then.
        name: what results call it.
        test_name: what the held-out examples are, to be printed beside a metric on them.

    Returns:
        The task. Floats are made float32.

    Raises:
        ConfigError: on data of no use, or a model, loss or metric that does not take it, with what they said.

    Example:
        >>> import torch
        >>> from gradwire.federated.data.own import own_task
        >>> x, y = torch.randn(60, 4), torch.arange(60) % 3
        >>> own_task(torch.nn.Linear(4, 3), (x, y), (x[:9], y[:9])).num_classes
        3
    """
    inputs, targets = _tensors(train, "train")
    test_inputs, test_targets = _tensors(test, "test")
    whole = targets.ndim == 1 and not targets.is_floating_point()
    task = Task(
        name,
        inputs,
        targets,
        test_inputs,
        test_targets,
        test_name,
        int(targets.max()) + 1 if whole else 0,
        None if clients is None else _groups(clients, len(inputs)),
        "own",
        _builder(model),
        loss,
        metric,
    )
    check_task(task)
    return task


def own_row(name: str) -> TaskRow:
    """Return the row of a task that is not gradwire's: ``package.module:function``, or one that a script made."""
    return TaskRow(name, lambda files: load_own(name), None, "own", _LEARNING_RATE)


def load_own(name: str) -> Task:
    """Call ``package.module:function``, which makes a task.

    Raises:
        ConfigError: where there is no such function, or it gives something else.
    """
    module, _, function = name.partition(":")
    if name.startswith(_PREFIX):
        raise ConfigError(f"task {name!r} was made by a script, which alone can go on with it: call simulate again")
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"task {name!r}: there is no such function: {error}") from error
    if not isinstance(made, Task):
        raise ConfigError(f"task {name!r} must give what own_task makes, got {type(made).__name__}")
    return made


def check_task(task: Task) -> None:
    """Try model, loss and metric on two examples; raise ConfigError with what the one that fails says."""
    build = task.build
    if build is None:
        return
    inputs, targets = task.train_inputs[:2], task.train_targets[:2]
    with torch.random.fork_rng(devices=[]):
        model = _tried(f"{task.name}: the model cannot be made", build)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"{task.name}: model must be a torch module or make one, got {type(model).__name__}")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError(f"{task.name}: the model has nothing to train: no parameter has requires_grad")
        model = copy.deepcopy(model)
        outputs = _tried(f"{task.name}: the model does not take inputs {_form(inputs)}", lambda: model(inputs))
        if not isinstance(outputs, Tensor):
            raise ConfigError(f"{task.name}: the model must give a tensor, got {type(outputs).__name__}")
        what = f"outputs {_form(outputs)} and targets {_form(targets)}"
        found = _tried(
            f"{task.name}: the loss does not take {what}", lambda: (task.loss or cross_entropy)(outputs, targets)
        )
        if not isinstance(found, Tensor) or found.ndim or not found.requires_grad:
            raise ConfigError(f"{task.name}: loss must give a scalar that carries gradients, got {found!r}")
        with torch.no_grad():
            metric = task.metric or accuracy
            share = _tried(f"{task.name}: the metric does not take {what}", lambda: float(metric(outputs, targets)))
        if not 0 <= share <= 1:
            raise ConfigError(f"{task.name}: metric must give a number in [0, 1], larger is better; got {share!r}")


def can_batch(model: nn.Module, loss: Measure, inputs: Tensor, targets: Tensor) -> bool:
    """Tell whether many copies of a model can be run as one.

    What cannot: BatchNorm and whatever else changes in place, dropout, steps that depend on values.

    Args:
        model: not modified.
        loss: (outputs, targets) -> a scalar.
        inputs: two examples or more.
        targets: theirs.
    """
    copies = [copy.deepcopy(model) for _ in range(2)]

    def run(parameters: dict[str, Any], buffers: dict[str, Any]) -> Tensor:
        return loss(functional_call(model, (parameters, buffers), (inputs,)), targets)

    with torch.random.fork_rng(devices=[]):
        try:
            vmap(run)(*stack_module_state(copies)).sum().backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            return False
    return True


def _tried(otherwise: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:  # whatever the user's own code raises
        said = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{otherwise}: {type(error).__name__}: {said}") from error


def _builder(model: nn.Module | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    if isinstance(model, nn.Module):
        return lambda: copy.deepcopy(model)
    if not callable(model):
        raise ConfigError(f"model must be a torch module or a function that makes one, got {type(model).__name__}")
    return model


def _tensors(given: Any, name: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets as tensors of as many rows."""
    if not isinstance(given, tuple):
        alone = isinstance(given, (Tensor, np.ndarray))  # inputs without targets
        if alone or not hasattr(given, "__getitem__") or not hasattr(given, "__len__") or not len(given):
            raise ConfigError(f"{name} must be (inputs, targets) or a data set of pairs, got {type(given).__name__}")
        pairs = [given[i] for i in range(len(given))]
        given = tuple(torch.stack([torch.as_tensor(pair[i]) for pair in pairs]) for i in range(2))
    if len(given) != 2:
        raise ConfigError(f"{name} must be (inputs, targets), got {len(given)} things")
    inputs, targets = (torch.as_tensor(array).detach().cpu() for array in given)
    if not inputs.ndim or not targets.ndim or len(inputs) != len(targets) or len(inputs) < 2:
        raise ConfigError(
            f"{name} must have two rows or more, as many inputs as targets, got {_form(inputs)} and {_form(targets)}"
        )
    return _single(inputs), _single(targets)


def _single(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return tensor.float().contiguous()
    return tensor.long().contiguous()


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _groups(clients: Sequence[Any], num_rows: int) -> NDArray[np.int64]:
    """Whose each row is; rows that are nobody's are refused, since partitions deal all of them."""
    groups = np.full(num_rows, -1, np.int64)
    for number, rows in enumerate(clients):
        rows = np.asarray(rows)
        if (
            rows.ndim != 1
            or rows.dtype.kind not in "iu"
            or not rows.size
            or not 0 <= rows.min() <= rows.max() < num_rows
        ):
            raise ConfigError(f"clients must each have rows in [0, {num_rows}), client {number} has {rows!r}")
        if (groups[rows] >= 0).any() or len(np.unique(rows)) < rows.size:
            raise ConfigError(f"clients must have no row twice, client {number} has one that was given before")
        groups[rows] = number
    if (groups < 0).any():
        raise ConfigError(f"clients must have all {num_rows} rows, {int((groups < 0).sum())} are nobody's")
    return groups
