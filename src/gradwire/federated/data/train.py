"""Local training: the same SGD steps for many clients, one after the other or all in one batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from gradwire.checks import check_integer, check_number
from gradwire.errors import ConfigError
from gradwire.federated.data.models import cross_entropies, cross_entropy
from gradwire.federated.data.own import can_batch
from gradwire.federated.data.task import Task
from gradwire.federated.data.training import Evaluated
from gradwire.layout import Layout, TensorSpec
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
        layout: of what clients change: trained parameters first, each once, buffers last. Parameters that are frozen,
            with ``requires_grad`` False, are the same at all ends and no part of it.
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
        buffers = dict(model.named_buffers())
        self.layout = Layout.from_arrays(self._state(), statistics=buffers.__contains__)
        has_statistics = self.layout.num_parameters < self.layout.d
        self._own, self._loss, self._metric = task.build is not None, task.loss, task.metric
        if batched is None:
            small = not has_statistics and self.layout.d <= _MAX_BATCHED_PARAMETERS
            batched = small or self.device.type != "cpu"
            if batched and self._own:
                examples = task.train_inputs[:2].to(self.device), task.train_targets[:2].to(self.device)
                batched = can_batch(self.model, self._loss or cross_entropy, *examples)
        self.batched = batched
        self.weight_decay = weight_decay
        self._half = precision == "bfloat16"
        self._train = (task.train_inputs.to(self.device), task.train_targets.to(self.device))
        self._test = (task.test_inputs.to(self.device), task.test_targets.to(self.device))

    def initial(self) -> NDArray[np.float32]:
        """Return the model's current state as a flat vector: (d,) float32."""
        return self._flat().cpu().numpy()

    def state_of(self, model: NDArray[np.float32]) -> dict[str, Any]:
        """Return a (d,) float32 model as a state dict of copies on the CPU, with what is frozen."""
        self._load(torch.from_numpy(model).to(self.device))
        state: dict[str, Any] = self.model.state_dict()
        return {
            name: t.detach().cpu().clone(memory_format=torch.contiguous_format) if isinstance(t, Tensor) else t
            for name, t in state.items()
        }

    def local_updates(
        self,
        start: NDArray[np.float32],
        batches: Sequence[NDArray[np.int64]],
        learning_rate: float,
        shifts: Sequence[NDArray[np.int64]] | None = None,
        *,
        proximal: float = 0.0,
        corrections: NDArray[np.float32] | None = None,
        local_steps: Sequence[int] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Train every client, from the same model or each from its own.

        A step is w <- w - eta (g(w) + lambda w + mu (w - w_start) + correction).

        Args:
            start: (d,) float32, the global model, or (num_clients, d), each client's; not modified.
            batches: for each client (local_steps, batch_size) int64 indices of training examples.
            learning_rate: eta, the step size of SGD.
            shifts: for each client (local_steps, batch_size, 3) int64: how each image is moved down, to the right and
                whether it is mirrored, see ``draw_shifts``; None leaves them alone.
            proximal: mu, which pulls parameters back to where they started, 0 or more.
            corrections: (num_clients, num_parameters or d) float32, what is added to each client's gradients, not
                modified; what it says of running statistics is not read.
            local_steps: for each client how many of its batches it takes, 1 or more; None takes all.

        Returns:
            (num_clients, d) float32 model differences and (num_clients,) float32 mean training losses.

        Raises:
            ConfigError: on ``proximal``, ``corrections``, ``local_steps`` or a ``start`` outside these.

        Source: TCS (arXiv 2101.08837) Algorithm 1, lines 3-6, and Eq. (2); proximal: FedProx (arXiv 1812.06127),
            Eq. (2); corrections: SCAFFOLD (arXiv 1910.06378), Algorithm 1, line 10.
        """
        n, layout = len(batches), self.layout
        if start.shape not in ((layout.d,), (n, layout.d)):
            raise ConfigError(f"start must have shape ({layout.d},) or ({n}, {layout.d}), got {start.shape}")
        if check_number("proximal", proximal) < 0:
            raise ConfigError(f"proximal must be 0 or more, got {proximal!r}")
        if corrections is not None and corrections.shape not in ((n, layout.num_parameters), (n, layout.d)):
            raise ConfigError(f"corrections must have shape ({n}, {layout.num_parameters}), got {corrections.shape}")
        if local_steps is not None:
            if len(local_steps) != n:
                raise ConfigError(f"local_steps must be of {n} clients, got {len(local_steps)}")
            local_steps = [
                check_integer("local_steps", k, 1, len(b)) for k, b in zip(local_steps, batches, strict=True)
            ]
        starts = torch.from_numpy(start).to(self.device).expand(n, -1)
        train = self._train_batched if self.batched else self._train_one_by_one
        moves = None if shifts is None else torch.from_numpy(np.stack(shifts)).to(self.device)
        added = None if corrections is None else torch.from_numpy(corrections).to(self.device)
        updates, losses = train(starts, batches, learning_rate, moves, proximal, added, local_steps)
        return updates.cpu().numpy(), losses.cpu().numpy()

    def evaluate(self, model: NDArray[np.float32]) -> Evaluated:
        """Measure a (d,) float32 model on the held-out examples."""
        self._load(torch.from_numpy(model).to(self.device))
        self.model.eval()
        inputs, targets = self._test
        right, share, loss = 0, 0.0, 0.0
        with torch.no_grad():
            for x, y in _pieces(inputs, targets):
                with self._autocast():
                    logits = self.model(x)
                    loss += float((self._loss or cross_entropy)(logits, y)) * len(x) / len(inputs)
                if self._metric is None:
                    right += int((logits.argmax(-1) == y).sum())
                else:
                    share += float(self._metric(logits, y)) * len(x) / len(inputs)
        self.model.train()
        if self._metric is not None:  # one that is NaN is worth nothing
            return Evaluated(min(1.0, share) if share > 0 else 0.0, loss)
        return Evaluated(right / targets.numel(), loss)

    def _train_one_by_one(
        self,
        starts: Tensor,
        batches: Sequence[NDArray[np.int64]],
        learning_rate: float,
        moves: Tensor | None,
        proximal: float,
        corrections: Tensor | None,
        local_steps: Sequence[int] | None,
    ) -> tuple[Tensor, Tensor]:
        updates = torch.empty(len(batches), self.layout.d, device=self.device)
        losses = torch.zeros(len(batches), device=self.device)
        parameters: dict[str, Tensor] = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.model.train()
        for client, steps in enumerate(batches):
            self._load(starts[client])
            if local_steps is not None:
                steps = steps[: local_steps[client]]
            origin = self._parameters_of(starts[client]) if proximal else {}
            correction = {} if corrections is None else self._parameters_of(corrections[client])
            with self._drawing(steps):
                for step, rows in enumerate(torch.from_numpy(steps).to(self.device)):
                    inputs, targets = self._examples(rows, None if moves is None else moves[client, step])
                    with self._autocast():
                        loss = (self._loss or cross_entropy)(self.model(inputs), targets)
                    slopes = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
                    gradients = dict(zip(parameters, slopes, strict=True))
                    with torch.no_grad():
                        self._descend(parameters, gradients, learning_rate, proximal, origin, correction)
                        losses[client] += loss.detach() / len(steps)
            torch.sub(self._flat(), starts[client], out=updates[client])
        return updates, losses

    def _train_batched(
        self,
        starts: Tensor,
        batches: Sequence[NDArray[np.int64]],
        learning_rate: float,
        moves: Tensor | None,
        proximal: float,
        corrections: Tensor | None,
        local_steps: Sequence[int] | None,
    ) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(np.stack(batches)).to(self.device)  # (clients, steps, examples)
        num_steps = None
        if local_steps is not None:  # most steps first: those not done yet are then always the first ones
            num_steps, order = torch.tensor(local_steps, device=self.device).sort(descending=True, stable=True)
            starts, rows = starts[order], rows[order, : max(local_steps)]
            moves = None if moves is None else moves[order]
            corrections = None if corrections is None else corrections[order]
        models = starts.clone(memory_format=torch.contiguous_format)
        views = self._parameters_of(models)
        origins = self._parameters_of(starts) if proximal else {}
        added = {} if corrections is None else self._parameters_of(corrections)
        statistics = {t.name: _cut(models, t) for t in self.layout.tensors if t.buffer}
        for name, buffer in self.model.named_buffers():  # counters are no floats: they neither travel nor matter here
            statistics.setdefault(name, buffer.expand(len(batches), *buffer.shape).clone())
        losses = torch.zeros(len(batches), device=self.device)
        sums = losses

        def apply(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            moved = {name: buffer.clone() for name, buffer in buffers.items()}
            return functional_call(self.model, (parameters, moved), (inputs,)), moved

        apply_all = vmap(apply)
        self.model.train()
        for i in range(rows.shape[1]):
            if local_steps is not None and (going := sum(k > i for k in local_steps)) < len(rows):
                rows, sums = rows[:going], sums[:going]
                moves = None if moves is None else moves[:going]
                views, statistics, origins, added = (
                    {name: piece[:going] for name, piece in pieces.items()}
                    for pieces in (views, statistics, origins, added)
                )
            inputs, targets = self._examples(rows[:, i], None if moves is None else moves[:, i])
            leaves = {name: view.detach().requires_grad_() for name, view in views.items()}
            with self._autocast():
                logits, moved = apply_all(leaves, statistics, inputs)
                loss = cross_entropies(logits, targets) if self._loss is None else vmap(self._loss)(logits, targets)
            # a client's parameters move its own loss alone: the sum's gradients are each one's
            slopes = torch.autograd.grad(loss.sum(), list(leaves.values()), materialize_grads=True)
            with torch.no_grad():
                for name, statistic in statistics.items():
                    statistic.copy_(moved[name])
                gradients = dict(zip(leaves, slopes, strict=True))
                self._descend(views, gradients, learning_rate, proximal, origins, added)
                sums += loss / (rows.shape[1] if num_steps is None else num_steps[: len(rows)])
        updates = models.sub_(starts)
        if local_steps is None:
            return updates, losses
        back = order.argsort()
        return updates[back], losses[back]

    def _descend(
        self,
        parameters: dict[str, Tensor],
        gradients: dict[str, Tensor],
        learning_rate: float,
        proximal: float,
        origins: dict[str, Tensor],
        corrections: dict[str, Tensor],
    ) -> None:
        """Make one SGD step, in place, of one client's parameters or of many clients' at once: see ``local_updates``.

        Args:
            parameters: by name.
            gradients: by name.
            learning_rate: eta.
            proximal: mu.
            origins: where the parameters started, by name; empty where mu is 0.
            corrections: what is added to the gradients, by name; empty where there is nothing.
        """
        at, slopes = list(parameters.values()), [gradients[name] for name in parameters]
        if origins:
            pulls = torch._foreach_sub(at, [origins[name] for name in parameters])
            slopes = list(torch._foreach_add(slopes, pulls, alpha=proximal))
        if corrections:
            slopes = list(torch._foreach_add(slopes, [corrections[name] for name in parameters]))
        if self.weight_decay:
            torch._foreach_mul_(at, 1 - learning_rate * self.weight_decay)
        torch._foreach_add_(at, slopes, alpha=-learning_rate)

    def _parameters_of(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters in (..., num_parameters or d) flat vectors, by name; running statistics left out."""
        return {t.name: _cut(flat, t) for t in self.layout.tensors if not t.buffer}

    def _examples(self, rows: Tensor, moves: Tensor | None) -> tuple[Tensor, Tensor]:
        """Some training examples and their targets, moved where asked: rows (...), moves (..., 3)."""
        inputs = self._train[0][rows]
        return inputs if moves is None else _moved(inputs, moves), self._train[1][rows]

    @contextmanager
    def _drawing(self, steps: NDArray[np.int64]) -> Iterator[None]:
        """Let what a model of the user's own draws, by dropout say, follow from the client's batches alone."""
        if not self._own:
            yield
            return
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int.from_bytes(hashlib.sha256(steps.tobytes()).digest()[:7]))
            yield

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._half)

    def _state(self) -> dict[str, Tensor]:
        """What clients change of the model's state; of parameters that have several names the first."""
        changed = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        changed.update(name for name, _ in self.model.named_buffers())
        return {name: tensor for name, tensor in self.model.state_dict().items() if name in changed}

    @cached_property
    def frozen_digest(self) -> str:
        """SHA-256 of the parameters that are no part of ``layout``, in hex; of nothing where there are none."""
        digest, changed = hashlib.sha256(), {tensor.name for tensor in self.layout.tensors}
        for name, parameter in self.model.named_parameters():
            if name not in changed:
                digest.update(name.encode() + b"\0")
                digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _flat(self) -> Tensor:
        flat: Tensor = self.layout.flatten(self._state())
        return flat

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


def _cut(flat: Tensor, tensor: TensorSpec) -> Tensor:
    """A view of one tensor in (..., n) flat vectors: (..., *shape)."""
    return flat[..., tensor.offset : tensor.stop].view(*flat.shape[:-1], *tensor.shape)


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
