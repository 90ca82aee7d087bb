"""Local SGD: workers train by themselves, and exchange how far they came every so many steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradwire.checks import check_integer
from gradwire.compressors.compressor import Compressor
from gradwire.compressors.references import Reference
from gradwire.compressors.spec import parse
from gradwire.ddp.exchange import Exchange, Message
from gradwire.ddp.model import trained
from gradwire.ddp.worker import Worker
from gradwire.errors import ConfigError, ProtocolError, StateError, UpdateError
from gradwire.kernels import ops
from gradwire.layout import Layout
from gradwire.saved import from_saved, reading_state, saved_integer, saved_vector, to_saved

__all__ = ["LocalSGD"]


class LocalSGD:
    """Exchange compressed pseudo-gradients, what the model was less what it is, after every ``sync_every`` steps.

    Without an outer optimizer the workers take over the mean of their models: local SGD. With one, its step is made of
    the mean pseudo-gradient: ``torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)`` is DiLoCo's,
    and a compressor such as ``ef(topk(0.01, scope=4096) | uniform(2), decay=0.95)`` beside it SparseLoCo's. Running
    statistics are averaged whole. All workers begin with the first one's model, what is not trained of it included, and
    hold the same one, bit for bit, after each exchange.

    It is a context: inside of it the optimizer's steps are counted. Every worker has to make as many; steps that a
    ``GradScaler`` leaves out are none, so do without its scale or call ``sync`` by yourself. The workers meet when it
    is first entered, each with its model: of a run that goes on, the one it saved, whether that was loaded before or
    after this was made. It may be entered again; ``close`` is for when there is nothing more to exchange.

    Args:
        model: the bare module, the same kind at all workers; or a DDP model inside of each of them.
        optimizer: what makes the local steps.
        compressor: a ``Compressor`` or its text, the same at all workers.
        sync_every: local steps from one exchange to the next, 1 or more.
        outer_optimizer: an optimizer over the model's parameters, or None for the mean.
        process_group: the workers; all processes when None.
        seed: of randomness, the same at all workers.
        warmup_steps: how many steps there is an exchange after each of, at the beginning.
        fallback: whether to send whole pseudo-gradients where that takes less time, as measured.

    Raises:
        ConfigError: on an argument that cannot be; at all workers where theirs differ.

    Example:
        >>> import torch, torch.distributed as dist
        >>> from gradwire.ddp import LocalSGD
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with LocalSGD(model, optimizer, "ef(topk(0.5))", sync_every=2) as local:
        ...     for _ in range(4):
        ...         optimizer.zero_grad()
        ...         model(torch.ones(1, 4)).sum().backward()
        ...         optimizer.step()
        >>> local.num_syncs
        2
        >>> dist.destroy_process_group()

    Source: Stich 2019, "Local SGD Converges Fast and Communicates Little" (arXiv 1805.09767), Algorithm 1; DiLoCo,
        Douillard et al. 2023 (arXiv 2311.08105), Algorithm 1; SparseLoCo (arXiv 2508.15706).
    Deviations: pseudo-gradients are compressed in all of them. An optimizer's own state stays at its worker.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        compressor: Compressor | str,
        sync_every: int,
        *,
        outer_optimizer: torch.optim.Optimizer | None = None,
        process_group: dist.ProcessGroup | None = None,
        seed: int = 0,
        warmup_steps: int = 0,
        fallback: bool = True,
    ) -> None:
        self.sync_every = check_integer("sync_every", sync_every, 1)
        self.warmup_steps = check_integer("warmup_steps", warmup_steps, 0)
        module = model.module if isinstance(model, DistributedDataParallel) else model
        self._module = module
        self._parameters = trained(module)
        statistics = {name: b for name, b in module.named_buffers() if b.is_floating_point()}
        if outer_optimizer is not None:
            _check_outer(outer_optimizer, optimizer, self._parameters)
        self._optimizer, self._outer = optimizer, outer_optimizer
        self._tensors = {**self._parameters, **statistics}
        layout = Layout.from_arrays(self._tensors, statistics=lambda name: name in statistics)
        compressor = parse(compressor) if isinstance(compressor, str) else compressor
        self._worker = Worker(compressor, layout, Exchange.beside(process_group), seed, fallback)
        self._handle: Any = None
        self._num_steps = self._since = 0
        self._rounds = any(tensor.dtype != torch.float32 for tensor in self._tensors.values())
        self._room: Tensor | None = None  # for updates, from the first exchange on
        self._has_met = self._has_loaded = False
        self._before = self._flat()  # the model that all had, in float32
        self._start = self._as_written()

    @property
    def num_syncs(self) -> int:
        """How many exchanges there were."""
        return self._worker.step

    @property
    def path(self) -> str:
        """How the next pseudo-gradient travels: ``'gather'``, ``'phases'`` or ``'dense'``."""
        return self._worker.path

    @property
    def bytes_sent(self) -> int:
        """What this worker gave to the exchange so far, for each of the others to receive."""
        return self._worker.exchange.bytes_sent

    def __enter__(self) -> LocalSGD:
        self._meet()
        self._handle = self._optimizer.register_step_post_hook(lambda *_: self._stepped())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def close(self) -> None:
        """Give the exchange's group back, its threads and sockets, once all workers have called this.

        What was exchanged and remembered stays to be read and saved; ``sync`` raises StateError from then on, and so
        does an optimizer's step that one is due after. Nothing happens the second time.
        """
        self._worker.exchange.close()

    @torch.no_grad()
    def _meet(self) -> None:
        """Begin with the first worker's model, or, where all of them loaded a state, with what each of them has."""
        if self._has_met:
            return
        exchange = self._worker.exchange
        loaded = [bool(told.body) for told in exchange.gather(Message(b"x" * self._has_loaded, 0, 0))]
        if not any(loaded):
            self._before = self._flat()
            exchange.share(self._before)
            self._write(self._before)
            self._start = self._as_written()
            self._share_rest(exchange)
        elif not all(loaded):
            ranks = [rank for rank, has in enumerate(loaded) if not has]
            raise ProtocolError(f"all workers must load a state, or none: workers {ranks} of {len(loaded)} did not")
        self._has_met = True

    def _share_rest(self, exchange: Exchange) -> None:
        """Give every worker the first one's parameters and buffers that are not exchanged, whatever their dtype."""
        ignored = set(getattr(self._module, "_ddp_params_and_buffers_to_ignore", ()))
        named = [*self._module.named_parameters(), *self._module.named_buffers()]
        rest = [t.detach() for name, t in named if name not in self._tensors and name not in ignored and t.numel()]
        if not rest:
            return
        flats = [t.cpu().contiguous().reshape(-1).view(torch.uint8) for t in rest]
        shared = torch.cat(flats)
        exchange.share(shared)
        for tensor, piece in zip(rest, torch.split(shared, [flat.numel() for flat in flats]), strict=True):
            tensor.copy_(piece.clone().view(tensor.dtype).view(tensor.shape))

    def _stepped(self) -> None:
        self._num_steps += 1
        self._since += 1
        if self._since >= self.sync_every or self._num_steps <= self.warmup_steps:
            self.sync()

    @torch.no_grad()
    def sync(self) -> None:
        """Exchange now, and go on from what all workers agree on; all of them call this.

        Raises:
            GradwireError: what went wrong at a worker, the same at all of them. Models stay as they are then, but one
                that is not finite, which goes back to the model all had; and the next step tries again.
        """
        self._meet()
        if self._room is None:
            self._room = torch.empty_like(self._before)
        update = torch.sub(self._start, self._flat(self._room), out=self._room)
        try:
            mean = self._worker.mean((update.numpy(),))
        except UpdateError:
            if not update.isfinite().all():
                self._write(self._before)
            raise
        if self._outer is None:
            self._take_off(mean)
            self._write(self._before)
        else:
            self._write(self._before)
            self._outer_step(self._outer, torch.from_numpy(mean.vector))
            self._before = self._flat()
        self._start = self._as_written()
        self._since = 0

    def _as_written(self) -> Tensor:
        """What the model holds where all of it was written: rounded to its dtypes, from which local steps begin.

        What rounding takes is kept in ``_before``, or small steps would never move a bfloat16 model.
        """
        if not self._rounds:
            return self._before
        out = torch.empty_like(self._before)
        for t in self._worker.layout.tensors:
            out[t.offset : t.stop] = self._before[t.offset : t.stop].to(self._tensors[t.name].dtype)
        return out

    def _take_off(self, mean: Reference) -> None:
        """Go from the model that all had to the one that all have now."""
        if mean.indices is None:
            self._before -= torch.from_numpy(mean.numbers)
        else:
            ops.accumulate_at(self._before.numpy(), mean.indices, mean.numbers, -1.0)

    def _outer_step(self, outer: torch.optim.Optimizer, mean: Tensor) -> None:
        held = {name: p.grad for name, p in self._parameters.items()}
        try:
            for t in self._worker.layout.tensors:
                piece, tensor = mean[t.offset : t.stop].view(t.shape), self._tensors[t.name]
                if t.buffer:
                    tensor.sub_(piece.to(tensor))
                else:
                    tensor.grad = piece.to(tensor)
            outer.step()
        finally:
            for name, gradient in held.items():
                self._parameters[name].grad = gradient

    def _flat(self, out: Tensor | None = None) -> Tensor:
        """The model as one vector, (d,) float32 on the CPU."""
        out = torch.empty(self._worker.layout.d) if out is None else out
        for t in self._worker.layout.tensors:
            out[t.offset : t.stop] = self._tensors[t.name].detach().reshape(-1)
        return out

    def _write(self, flat: Tensor) -> None:
        with torch.no_grad():
            for t in self._worker.layout.tensors:
                self._tensors[t.name].copy_(flat[t.offset : t.stop].view(t.shape))

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that must survive a restart, of this worker alone: each saves its own.

        Returns:
            What ``CommState.state_dict`` has, and ``before`` (the model after the last exchange, (d,) float32),
            ``since`` (local steps from there) and ``num_steps``. Model and optimizers are the caller's to save, at
            each worker, as they are.
        """
        own = {"before": self._before.numpy().copy(), "since": self._since, "num_steps": self._num_steps}
        return self._worker.state_dict() | to_saved(own)

    def load_state_dict(self, state: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        """Continue where ``state_dict`` was taken, at all workers; the model is loaded by the caller, before or after.

        Args:
            state: as for ``CommState.load_state_dict``. In a list, all of them were taken right after an exchange where
                there are now more workers or fewer.

        Raises:
            StateError: on states of something else; nothing is changed then.
        """
        with reading_state():
            all_states = [from_saved(s) for s in ([state] if isinstance(state, Mapping) else state)]
            first = all_states[0]
            if not isinstance(state, Mapping) and first["world_size"] == self._worker.exchange.num_workers:
                first = all_states[self._worker.exchange.rank]
            before = saved_vector("before", np.asarray(first["before"]), (self._worker.layout.d,))
            since, steps = (saved_integer(name, first[name]) for name in ("since", "num_steps"))
            others = first["world_size"] != self._worker.exchange.num_workers
            if others and any(s["since"] for s in all_states):
                raise StateError("states of another number of workers must be taken right after an exchange")
        self._worker.load_state_dict(state)
        self._before, self._since, self._num_steps = torch.tensor(before), since, steps
        self._start, self._has_loaded = self._as_written(), True


def _check_outer(outer: Any, optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor]) -> None:
    if not isinstance(outer, torch.optim.Optimizer) or outer is optimizer:
        raise ConfigError(f"outer_optimizer must be another optimizer over the model's parameters, got {outer!r}")
    held = {id(p) for group in outer.param_groups for p in group["params"]}
    if missing := [name for name, p in parameters.items() if id(p) not in held]:
        raise ConfigError(f"outer_optimizer must hold every parameter of the model, {missing[0]!r} is not in it")
