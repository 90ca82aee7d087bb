"""Local training: the same SGD steps for many clients, one after the other or all in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from gradwire.errors import ConfigError
from gradwire.federated.models import cross_entropy
from gradwire.federated.tasks import Task
from gradwire.layout import Layout
from gradwire.rng import Key

__all__ = ["Trainer"]

_MAX_BATCHED_PARAMETERS = 60_000
_EVALUATION_EXAMPLES = 1000
_MOST_SHIFTED = 4


class Trainer:
    """Runs H local SGD steps of each client from the same model and gives the model differences.

    Args:
        task: the data.
        model: the architecture; its parameters are the initial model.
        device: where to train.
        batched: whether clients are trained in one batch with ``torch.func.vmap``; None chooses: batched for small
            models without BatchNorm, and on a GPU.
        weight_decay: lambda of the penalty lambda / 2 |w|^2, on all parameters.
        precision: ``"float32"``, or ``"bfloat16"`` for the forward and backward pass; parameters and updates stay
            float32.

    Attributes:
        layout: of the model's state: parameters first, running statistics last.
        batched: whether clients are trained in one batch.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        device: str = "cpu",
        batched: bool | None = None,
        weight_decay: float = 0.0,
        precision: str = "float32",
    ) -> None:
        self.device = _device(device)
        self.model = model.to(self.device)
        if self.device.type != "cpu":
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.layout = Layout.from_arrays(model.state_dict())
        has_statistics = self.layout.num_parameters < self.layout.d
        if batched is None:
            small = not has_statistics and self.layout.d <= _MAX_BATCHED_PARAMETERS
            batched = small or self.device.type != "cpu"
        self.batched = batched
        self.weight_decay = weight_decay
        self._half = precision == "bfloat16"
        self._train = (task.train_inputs.to(self.device), task.train_targets.to(self.device))
        self._test = (task.test_inputs.to(self.device), task.test_targets.to(self.device))

    def initial(self) -> NDArray[np.float32]:
        """Return the model's current state as a flat vector: (d,) float32."""
        flat: Tensor = self.layout.flatten(self.model.state_dict())
        return flat.cpu().numpy()

    def local_updates(
        self,
        start: NDArray[np.float32],
        batches: Sequence[NDArray[np.int64]],
        learning_rate: float,
        shifts: Sequence[NDArray[np.int64]] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Train every client from the same model.

        Args:
            start: (d,) float32, the global model; not modified.
            batches: for each client (local_steps, batch_size) int64 indices of training examples.
            learning_rate: step size of SGD.
            shifts: for each client (local_steps, batch_size, 3) int64: how each image is moved down, to the right and
                whether it is mirrored, see ``draw_shifts``; None leaves them alone.

        Returns:
            (num_clients, d) float32 model differences and (num_clients,) float32 mean training losses.

        Source: TCS (arXiv 2101.08837) Algorithm 1, lines 3-6, and Eq. (2).
        """
        model = torch.from_numpy(start).to(self.device)
        train = self._train_batched if self.batched else self._train_one_by_one
        moves = None if shifts is None else torch.from_numpy(np.stack(shifts)).to(self.device)
        updates, losses = train(model, batches, learning_rate, moves)
        return updates.cpu().numpy(), losses.cpu().numpy()

    def evaluate(self, model: NDArray[np.float32]) -> float:
        """Return the accuracy of a (d,) float32 model on the held-out examples, in [0, 1]."""
        self._load(torch.from_numpy(model).to(self.device))
        self.model.eval()
        inputs, targets = self._test
        right = 0
        with torch.no_grad():
            for x, y in _pieces(inputs, targets):
                with self._autocast():
                    logits = self.model(x)
                right += int((logits.argmax(-1) == y).sum())
        self.model.train()
        return right / targets.numel()

    def _train_one_by_one(
        self, start: Tensor, batches: Sequence[NDArray[np.int64]], learning_rate: float, moves: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        updates = torch.empty(len(batches), self.layout.d, device=self.device)
        losses = torch.zeros(len(batches), device=self.device)
        parameters: list[Tensor] = list(self.model.parameters())
        self.model.train()
        for client, steps in enumerate(batches):
            self._load(start)
            for step, rows in enumerate(torch.from_numpy(steps).to(self.device)):
                inputs, targets = self._examples(rows, None if moves is None else moves[client, step])
                with self._autocast():
                    loss = cross_entropy(self.model(inputs), targets)
                gradients = torch.autograd.grad(loss, parameters)
                with torch.no_grad():
                    if self.weight_decay:
                        torch._foreach_mul_(parameters, 1 - learning_rate * self.weight_decay)
                    torch._foreach_add_(parameters, gradients, alpha=-learning_rate)
                    losses[client] += loss.detach() / len(steps)
            torch.sub(self.layout.flatten(self.model.state_dict()), start, out=updates[client])
        return updates, losses

    def _train_batched(
        self, start: Tensor, batches: Sequence[NDArray[np.int64]], learning_rate: float, moves: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(np.stack(batches)).to(self.device)  # (clients, steps, examples)
        models = start.repeat(len(batches), 1)
        views = {t.name: models[:, t.offset : t.stop].view(len(batches), *t.shape) for t in self.layout.tensors}
        statistics = {t.name: views.pop(t.name) for t in self.layout.tensors if t.buffer}
        for name, buffer in self.model.named_buffers():  # counters are no floats: they neither travel nor matter here
            statistics.setdefault(name, buffer.expand(len(batches), *buffer.shape).clone())
        losses = torch.zeros(len(batches), device=self.device)

        def loss_of(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, targets: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            moved = {name: buffer.clone() for name, buffer in buffers.items()}
            with self._autocast():
                logits = functional_call(self.model, (parameters, moved), (inputs,))
                return cross_entropy(logits, targets), moved

        step = vmap(grad_and_value(loss_of, has_aux=True))
        self.model.train()
        for i in range(rows.shape[1]):
            inputs, targets = self._examples(rows[:, i], None if moves is None else moves[:, i])
            gradients, (loss, moved) = step(views, statistics, inputs, targets)
            for name, statistic in statistics.items():
                statistic.copy_(moved[name])
            for name, view in views.items():
                if self.weight_decay:
                    view.mul_(1 - learning_rate * self.weight_decay)
                view.sub_(gradients[name], alpha=learning_rate)
            losses += loss / rows.shape[1]
        return models - start, losses

    def _examples(self, rows: Tensor, moves: Tensor | None) -> tuple[Tensor, Tensor]:
        """Some training examples and their targets, moved where asked: rows (...), moves (..., 3)."""
        inputs = self._train[0][rows]
        return inputs if moves is None else _moved(inputs, moves), self._train[1][rows]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._half)

    def _load(self, flat: Tensor) -> None:
        state: dict[str, Any] = self.model.state_dict()
        for name, piece in self.layout.unflatten(flat).items():
            state[name].copy_(piece)


def draw_batches(shard: NDArray[np.int64], key: Key, local_steps: int, batch_size: int) -> NDArray[np.int64]:
    """Draw one client's examples for one round, independently and with replacement.

    Args:
        shard: (n,) int64 indices of the client's examples.
        key: randomness of (seed, round, client).
        local_steps: number of steps.
        batch_size: examples to a step.

    Returns:
        (local_steps, batch_size) int64 indices of training examples.
    """
    positions = key.derive(purpose="batches").uniform(local_steps * batch_size) * np.float32(shard.size)
    chosen: NDArray[np.int64] = shard[np.minimum(positions.astype(np.int64), shard.size - 1)]
    return chosen.reshape(local_steps, batch_size)


def draw_shifts(key: Key, local_steps: int, batch_size: int) -> NDArray[np.int64]:
    """Draw how one client's images are moved in one round: by -4 to 4 pixels each way, mirrored or not.

    Args:
        key: randomness of (seed, round, client).
        local_steps: number of steps.
        batch_size: examples to a step.

    Returns:
        (local_steps, batch_size, 3) int64: down and to the right in [-4, 4], mirrored in {0, 1}.
    """
    drawn = key.derive(purpose="shifts").uniform(3 * local_steps * batch_size).reshape(local_steps, batch_size, 3)
    spans = np.array([2 * _MOST_SHIFTED + 1, 2 * _MOST_SHIFTED + 1, 2], np.float32)
    moves: NDArray[np.int64] = (drawn * spans).astype(np.int64) - np.array([_MOST_SHIFTED, _MOST_SHIFTED, 0])
    return moves


def _moved(images: Tensor, moves: Tensor) -> Tensor:
    """Images (..., c, h, w) shifted by (..., 3) moves, zeros moving in."""
    height, width = images.shape[-2:]
    flat, by = images.reshape(-1, *images.shape[-3:]), moves.reshape(-1, 3)
    m = _MOST_SHIFTED
    padded = nn.functional.pad(flat, (m, m, m, m))
    rows = torch.arange(height, device=images.device) + m - by[:, :1]  # (n, h)
    columns = torch.arange(width, device=images.device).expand(len(by), -1)
    columns = torch.where(by[:, 2:] == 1, width - 1 - columns, columns) + m - by[:, 1:2]
    numbers = torch.arange(len(by), device=images.device)
    moved = padded[numbers[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (n, h, w, c)
    return moved.permute(0, 3, 1, 2).reshape(images.shape)


def _pieces(inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(inputs), _EVALUATION_EXAMPLES):
        rows = slice(start, start + _EVALUATION_EXAMPLES)
        yield inputs[rows], targets[rows]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].split(". ")[0][:100]
        raise ConfigError(f"device must be one torch can use here, got {name!r}: {reason}") from None
    return device
