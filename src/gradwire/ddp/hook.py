"""Hook: DDP's buckets of gradients <-> the one vector that is exchanged."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradwire.checks import check_flag
from gradwire.compressors.compressor import Compressor, Vector
from gradwire.compressors.references import Reference
from gradwire.compressors.spec import parse
from gradwire.ddp.device import selects_there
from gradwire.ddp.exchange import Exchange
from gradwire.ddp.model import trained
from gradwire.ddp.worker import Worker
from gradwire.errors import ConfigError, ProtocolError, StateError, UpdateError
from gradwire.kernels import ops
from gradwire.layout import Layout, TensorSpec
from gradwire.rng import Key

__all__ = ["CommState", "hook"]

# annotations are evaluated: torch compares those of a hook with its own types

_Bucket = tuple[int, Tensor, list[Tensor], list[Tensor]]  # its number, buffer, parameters and gradients
_Waiting = tuple[_Bucket, torch.futures.Future[Tensor]]

_CACHED = 1 << 16  # numbers that a processor still has at hand when they are looked at again
_ALONE = 1 << 16  # numbers from which a gradient is not copied to be near its neighbours


class CommState:
    """What DDP's hook knows and remembers: ``(CommState(compressor), hook)`` goes where a state and a hook are taken.

    Nothing is exchanged before the first backward pass. Where the model is not given, tensors are known by their
    place in it instead of by name, as DDP's buckets have them in its very first backward pass: give the model to a
    state that is registered later.

    Args:
        compressor: a ``Compressor`` or its text, the same at all workers.
        module: the model that DDP wraps, or None.
        process_group: the group that the model's DDP works in; all processes when None. The exchange has a group of
            its own beside it.
        seed: of randomness, the same at all workers.
        fallback: whether to send whole gradients where that takes less time, as measured.
        on_nonfinite: what to do where a gradient is not finite at a worker: ``"raise"`` UpdateError at all of them, or
            ``"propagate"``: all gradients become NaN at all of them. Nothing is lost of residuals in either case.
        grad_scaler: the ``torch.amp.GradScaler`` in use: residuals are kept in units without its scale, and gradients
            that are not finite propagate, as it expects.
        overlap: ``"auto"``; what is sent is chosen among all gradients, so the exchange begins with the last bucket.

    Raises:
        ConfigError: on an argument that cannot be.

    Attributes:
        compressor: what compresses.

    Example:
        >>> from gradwire.ddp import CommState, hook
        >>> state = CommState("ef(topk(0.01))")
        >>> state.step, state.path  # and then ddp_model.register_comm_hook(state, hook)
        (0, 'gather')
    """

    def __init__(
        self,
        compressor: Compressor | str,
        module: nn.Module | None = None,
        *,
        process_group: dist.ProcessGroup | None = None,
        seed: int = 0,
        fallback: bool = True,
        on_nonfinite: str = "raise",
        grad_scaler: Any = None,
        overlap: str = "auto",
    ) -> None:
        if on_nonfinite not in ("raise", "propagate"):
            raise ConfigError(f"on_nonfinite must be 'raise' or 'propagate', got {on_nonfinite!r}")
        if overlap != "auto":
            raise ConfigError(f"overlap must be 'auto', got {overlap!r}")
        if grad_scaler is not None and not hasattr(grad_scaler, "get_scale"):
            raise ConfigError(f"grad_scaler must be a torch.amp.GradScaler, got {type(grad_scaler).__name__}")
        self.compressor = parse(compressor) if isinstance(compressor, str) else compressor
        if not isinstance(self.compressor, Compressor):
            raise ConfigError(f"compressor must be a Compressor or its text, got {compressor!r}")
        check_flag("fallback", fallback)
        self._seed, self._fallback, self._group = Key(seed).seed, fallback, process_group
        self._propagates = on_nonfinite == "propagate" or grad_scaler is not None
        self._scaler, self._scale = grad_scaler, 1.0
        self._named = None if module is None else trained(module)
        self._worker: Worker | None = None
        self._places: dict[int, TensorSpec] = {}  # by the parameter's id
        self._device: torch.device | None = None  # where the residual is, if not on the host
        self._pieces: dict[int, Tensor] = {}  # gradients so far, by where they begin in the vector
        self._error: Exception | None = None  # what went wrong on the way to the last bucket
        self._waiting: list[_Waiting] = []
        self._summed: list[Tensor] = []
        self._lost: list[ProtocolError] = []
        self._saved: Any = None

    @property
    def step(self) -> int:
        """The next step's number."""
        return 0 if self._worker is None else self._worker.step

    @property
    def path(self) -> str:
        """How the next step's gradients travel: ``'gather'``, ``'phases'`` or ``'dense'``."""
        if self._worker is None:
            return "phases" if self.compressor.summable else "gather"
        return self._worker.path

    @property
    def bytes_sent(self) -> int:
        """What this worker gave to the exchange so far, for each of the others to receive."""
        return 0 if self._worker is None else self._worker.exchange.bytes_sent

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that must survive a restart, of this worker alone: each saves its own.

        Returns:
            ``format``, ``spec``, ``layout`` (hash), ``seed``, ``step``, ``rank``, ``world_size``, ``residual`` ((d,)
            float32 in units without a loss scale, or None without error feedback), ``scheme`` (the compressor's other
            memory), ``reference`` (a blob, or None).

        Raises:
            StateError: before the first backward pass of a state that was not registered with ``register``.
        """
        if self._worker is None:
            raise StateError("there is nothing to save before the first backward pass")
        return self._worker.state_dict()

    def load_state_dict(self, state: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        """Continue where ``state_dict`` was taken: with as many workers and the same ranks, exactly.

        Args:
            state: this worker's. Or those of all old workers, in a list by rank, where there were more or fewer: each
                worker then begins with the mean of their residuals, so that the mean over the workers, which is what
                the model is still owed, stays what it was.

        Raises:
            StateError: on states of something else; nothing is changed then. Before the first backward pass of a state
                that was not registered with ``register``, it is raised there.
        """
        if self._worker is None:
            self._saved = state
        else:
            self._worker.load_state_dict(state)

    def close(self) -> None:
        """Give the exchange's group back, its threads and sockets, once all workers have called this.

        What was exchanged and remembered stays to be read and saved. A backward pass of the model raises StateError
        then, and its gradients are zeros: DDP keeps a hook to its end. Nothing happens the second time.
        """
        if self._worker is not None:
            self._worker.exchange.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *reason: object) -> None:
        if self._worker is not None:  # after an error nobody is waited for: the others hear of it at once
            self._worker.exchange.close(waits=kind is None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy what it was made of, as DDP copies a model without its group: it has met nobody, and owes nothing."""
        return partial(
            CommState,
            seed=self._seed,
            fallback=self._fallback,
            on_nonfinite="propagate" if self._propagates else "raise",
        ), (self.compressor,)

    def meet(self) -> None:
        """Meet the other workers now, where the model is known; all of them call this.

        Raises:
            ConfigError: on a model without gradients, or one that cannot be laid out; at all workers where they differ.
        """
        if self._worker is None and self._named is not None:
            self._begin(self._named)

    def _begin(self, named: dict[str, Tensor]) -> None:
        """Meet them, to exchange gradients of these parameters, in the model's order."""
        layout = Layout.from_arrays(named, statistics=lambda name: False)
        places = dict(zip(map(id, named.values()), layout.tensors, strict=True))
        exchange = Exchange.beside(self._group)
        self._device = _device_of(named, self.compressor)
        self._worker = Worker(self.compressor, layout, exchange, self._seed, self._fallback, self._device)
        self._places = places
        saved, self._saved = self._saved, None
        if saved is not None:
            self._worker.load_state_dict(saved)

    def take(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Take a bucket of gradients, and give what will hold their mean.

        Args:
            bucket: from DDP, which hands all of them over in order.

        Returns:
            The bucket's buffer, later.

        Raises:
            ConfigError: when called by a compiler that hands over single gradients.
        """
        if isinstance(bucket, tuple):
            raise ConfigError(
                "optimize_ddp = 'python_reducer' hands over single gradients: set torch._dynamo.config.optimize_ddp "
                "to True or False"
            )
        found = bucket.index(), bucket.buffer(), bucket.parameters(), bucket.gradients()
        plain = self._worker is not None and self._worker.is_plain and not self._worker.exchange.is_closed
        if plain and self._worker is not None and not found[1].is_cuda:
            return self._sum(self._worker, found[1], bucket.is_last())
        if not found[0]:
            self._emptied()  # what an interrupted backward pass may have left
        devices = [found[1].device] if found[1].is_cuda else None
        future: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)
        self._waiting.append((found, future))
        try:
            if self._error is None:
                self.meet()
                self._keep(found)
        except Exception as error:  # it is told with the last bucket: the others wait, and DDP must come to its end
            self._error = error
        if bucket.is_last():
            try:
                self._finish()
            except Exception as error:
                self._fail(error)
        return future

    def _sum(self, worker: Worker, buffer: Tensor, is_last: bool) -> torch.futures.Future[Tensor]:
        """Sum a whole bucket while the next one is computed, as DDP does without a hook."""
        if not _divide(buffer, worker.exchange.num_workers) and not self._propagates:
            buffer[:1] = torch.nan  # where all workers look for it
        self._summed.append(buffer)
        future = worker.exchange.start_sum(buffer, self._lost.append)
        if is_last:
            worker.skip()
            if not _at_the_end(self._check_sums):
                self._summed.clear()
        return future

    def _check_sums(self) -> None:
        (summed, self._summed), (lost, self._lost) = (self._summed, []), (self._lost, [])
        if lost:
            raise lost[0]
        if not self._propagates and not all(bool(buffer[:1].isfinite().all()) for buffer in summed):
            raise UpdateError(f"step {self.step - 1}: a gradient is not finite at one of the workers")

    def _keep(self, bucket: _Bucket) -> None:
        """Note where a bucket's gradients belong in the vector."""
        if self._worker is None:
            return
        if bucket[1].is_sparse:
            raise ConfigError("a gradient is a sparse tensor, which has no places to compress: use sparse=False")
        start = time.perf_counter()
        self._scale = 1.0 if self._scaler is None else float(self._scaler.get_scale())
        for parameter, gradient in zip(bucket[2], bucket[3], strict=True):
            place = self._places.get(id(parameter))
            if place is None:
                raise ConfigError(
                    f"a gradient of shape {tuple(gradient.shape)} is of no parameter of the model given: where one was "
                    "frozen after DDP was made, wrap the module in DDP anew, and register then"
                )
            if place.num_elements:
                flat = gradient.reshape(-1)
                flat = _on_host(flat) if self._device is None else flat.to(self._device, torch.float32)
                self._pieces[place.offset] = flat if self._scale == 1 else flat * (1 / self._scale)
        self._worker.computing += time.perf_counter() - start

    def _finish(self) -> None:
        """Exchange, and give each bucket its mean."""
        if self._worker is None and self._error is None:
            # DDP's first buckets hold the parameters from the last to the first, each bucket in the model's order
            parameters = [p for bucket, _ in reversed(self._waiting) for p in bucket[2]]
            try:
                self._begin({str(number): parameter for number, parameter in enumerate(parameters)})
                for bucket, _ in self._waiting:
                    self._keep(bucket)
            except Exception as failure:  # of a state that cannot be loaded: the others have met, and wait
                if self._worker is None:
                    raise
                self._error = failure
        worker, error = self._worker, self._error
        if worker is None:
            raise ProtocolError("the workers did not meet") if error is None else error
        pieces = [self._pieces[start] for start in sorted(self._pieces)]
        filled = sum(piece.numel() for piece in pieces)
        if error is None and filled != worker.layout.d:
            error = ConfigError(f"gradients of {filled} parameters came, the model given has {worker.layout.d}")
        if self._device is None:
            update: list[Any] = _fewer([piece.numpy() for piece in pieces])
        else:  # what a failed exchange takes out of the residual again
            update = [torch.cat(pieces)] if pieces else []
        mean = worker.mean(update, error, self._check_halves if self._halves() else None)
        start = time.perf_counter()
        for bucket, _ in self._waiting:
            self._write(bucket, mean, self._scale)
        worker.computing += time.perf_counter() - start
        for bucket, future in self._emptied():
            future.set_result(bucket[1])

    def _halves(self) -> list[_Bucket]:
        return [bucket for bucket, _ in self._waiting if bucket[1].dtype == torch.float16]

    def _check_halves(self, mean: Reference) -> None:
        """Refuse a mean that float16 gradients would hold as infinite."""
        most = torch.finfo(torch.float16).max / self._scale
        for parameter in (p for bucket in self._halves() for p in bucket[2]):
            place = self._places[id(parameter)]
            low, high = place.offset, place.stop
            if mean.indices is not None:
                low, high = np.searchsorted(mean.indices, [low, high])
            largest = float(np.abs(mean.numbers[low:high]).max(initial=0.0))
            if largest > most:
                raise UpdateError(f"gradient {place.name!r} is float16 and cannot hold its mean, {largest:g}")

    def _emptied(self) -> list[_Waiting]:
        waiting, self._waiting, self._pieces, self._error = self._waiting, [], {}, None
        return waiting

    def _write(self, bucket: _Bucket, mean: Reference, scale: float) -> None:
        """Write the mean over a bucket's gradients."""
        _, buffer, parameters, gradients = bucket
        listed = mean.indices
        if listed is not None:
            buffer.zero_()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            place = self._places[id(parameter)]
            if listed is None:
                numbers = torch.from_numpy(mean.numbers[place.offset : place.stop]).view(place.shape)
                gradient.copy_(numbers if scale == 1 else numbers * scale)
                continue
            low, high = np.searchsorted(listed, [place.offset, place.stop])
            if low == high:
                continue
            indices, sent = listed[low:high] - place.offset, mean.numbers[low:high]
            if gradient.device.type == "cpu" and gradient.dtype == torch.float32 and gradient.is_contiguous():
                ops.accumulate_at(gradient.view(-1).numpy(), indices, sent, scale)
                continue
            where, numbers = torch.from_numpy(indices), torch.from_numpy(sent * np.float32(scale))
            whole = torch.zeros(place.num_elements, dtype=gradient.dtype, device=gradient.device)
            whole[where.to(whole.device)] = numbers.to(whole)
            gradient.copy_(whole.view(place.shape))

    def _fail(self, error: Exception) -> None:
        """Let DDP come to its end, with zeros, and raise then; or go on with gradients that are not finite."""
        propagates = self._propagates and isinstance(error, UpdateError)
        for bucket, future in self._emptied():
            if bucket[1].is_sparse:
                bucket[1].zero_()
            else:
                bucket[1].fill_(torch.nan if propagates else 0.0)
            future.set_result(bucket[1])

        def raise_it() -> None:
            raise error

        if not propagates:  # outside of a backward pass it is a worker that joined early, and the others raise it
            _at_the_end(raise_it)


def hook(
    state: CommState,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Exchange gradients: the hook that goes with a ``CommState``.

    Args:
        state: what is known and remembered.
        bucket: from DDP.

    Returns:
        The bucket's mean over all workers, later.

    Example:
        >>> from gradwire.ddp import CommState, hook
        >>> state, its_hook = CommState("ef(topk(0.01) | fractional(16))"), hook
    """
    return state.take(bucket)


def _device_of(named: dict[str, Tensor], compressor: Compressor) -> torch.device | None:
    """Where gradients are and the largest of them are found; None for the host."""
    devices = {parameter.device for parameter in named.values()}
    one = next(iter(devices)) if len(devices) == 1 else None
    return one if one is not None and one.type == "cuda" and selects_there(compressor) else None


def _on_host(flat: Tensor) -> Tensor:
    """Numbers as float32 on the host, from a device through memory that it writes to itself."""
    if flat.is_cuda:
        return torch.empty(flat.shape, dtype=torch.float32, pin_memory=True).copy_(flat)
    return flat.to("cpu", torch.float32)


def _divide(buffer: Tensor, number: int) -> bool:
    """Divide by a number, in place, and tell whether all is finite, in one pass over memory.

    What is finite then adds up to what is finite over so many workers.
    """
    if not buffer.numel():
        return True
    pieces = [buffer[start : start + _CACHED] for start in range(0, buffer.numel(), _CACHED)]
    sums = torch.stack([piece.div_(number).sum() for piece in pieces])
    return bool(sums.isfinite().all()) or bool(buffer.isfinite().all())


def _fewer(pieces: list[Vector]) -> list[Vector]:
    """The same vector in fewer pieces: a copy of small ones costs less than another call."""
    found: list[list[Vector]] = []
    for piece in pieces:
        if found and max(piece.size, found[-1][-1].size) < _ALONE:
            found[-1].append(piece)
        else:
            found.append([piece])
    return [group[0] if len(group) == 1 else np.concatenate(group) for group in found]


def _at_the_end(action: Any) -> bool:
    """Have something run when this backward pass is through, DDP's own end included; False outside of one."""
    engine: Any = torch.autograd.Variable._execution_engine
    try:
        # DDP's end is queued between the two; an error before it would leave the model unusable
        engine.queue_callback(lambda: engine.queue_callback(action))
    except RuntimeError:
        return False
    return True
