"""Task: one data set, ready to train on; and the row that a task's own file says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gradwire.errors import BackendUnavailable
from gradwire.federated.data.files import DataFiles

if TYPE_CHECKING:
    import torch

__all__ = ["Labels", "Task", "TaskRow", "import_torch", "make_task"]

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Task:
    """Hold one data set, ready to train on.

    Args:
        name: its row's.
        train_inputs: digits (n, 64) float32 in [0, 1]; images (n, channels, height, width) float32,
            normalised by the channel's published mean and standard deviation; shakespeare (n, 64) int64
            characters.
        train_targets: (n,) int64 labels; shakespeare (n, 64) int64, the next character after each.
        test_inputs: the held-out inputs, in the same form.
        test_targets: the held-out targets, in the same form.
        test_name: what the held-out set is, to be printed beside any accuracy on it.
        num_classes: labels are 0 <= label < num_classes.
        groups: (n,) int64, the natural client of each training example (shakespeare's speaker), or None.
        default_model: the name of the model meant for it.
        build: makes the model, where it is the user's own, drawing from torch's generator; ``default_model`` is then
            what it is called.
        loss: (outputs, targets) -> a scalar; None for cross-entropy.
        metric: (outputs, targets) -> a mean over the examples in [0, 1], larger is better; None for accuracy.

    Source: none.

    Deviations: none.
    """

    name: str
    train_inputs: torch.Tensor
    train_targets: torch.Tensor
    test_inputs: torch.Tensor
    test_targets: torch.Tensor
    test_name: str
    num_classes: int
    groups: Labels | None
    default_model: str
    build: Callable[[], torch.nn.Module] | None = None
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    metric: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    @property
    def labels(self) -> npt.NDArray[Any]:
        """(n,) or (n, length) integers that partitions go by; zeros where targets are no labels."""
        targets = np.asarray(self.train_targets)
        return targets if targets.dtype.kind in "iu" and targets.ndim in (1, 2) else np.zeros(len(targets), np.int64)


@dataclass(frozen=True)
class TaskRow:
    """Say what there is to know of a task before its data is read.

    Attributes:
        name: what experiments call it.
        load: makes the task of its files, found by the names of ``files``.
        files: what it is read from, or None where it comes with a package.
        default_model: the name of the model meant for it.
        learning_rate: of local SGD with that model, where an experiment says none.
        evaluations: about how many there are in a run, where an experiment does not say; None: after every round.
    """

    name: str
    load: Callable[[Mapping[str, Path]], Task]
    files: DataFiles | None
    default_model: str
    learning_rate: float
    evaluations: int | None = 20


def make_task(
    row: TaskRow,
    train: tuple[npt.NDArray[Any], Labels],
    test: tuple[npt.NDArray[Any], Labels],
    test_name: str,
    num_classes: int = 10,
    groups: Labels | None = None,
) -> Task:
    """Make a task of arrays: see ``Task``."""
    torch = import_torch()
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (*train, *test)]
    inputs, targets, held_out, held_out_targets = tensors
    return Task(
        row.name, inputs, targets, held_out, held_out_targets, test_name, num_classes, groups, row.default_model
    )


def import_torch() -> Any:
    """Import torch.

    Raises:
        BackendUnavailable: where it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailable(f"tasks need torch, got {error}: pip install 'gradwire[sim]'") from error
    return torch
