"""Exchange: what workers tell each other, one collective at a time; nothing else here calls torch.distributed.

Every size that a collective needs is known to all workers before: gloo ends the process where sizes differ.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gradwire.compressors.compressor import Vector
from gradwire.ddp.cost import Link, link_of
from gradwire.errors import ProtocolError, StateError

__all__ = ["Exchange", "Message"]

_c10d: Any = dist  # whose groups and stores have no types
_OPEN: set[Any] = set()  # groups that are not closed
_HEADER = struct.Struct("<BxxxIqQd")  # failed, spec, step, bytes of the body, seconds
_FIRST = 256  # bytes that travel in one piece before it is known how long messages are
_ROOM = 33 / 32  # how much longer than the longest message so far the next one may be, and still travel in one piece
_ROUNDED = 64
_EXACT = (1 << 24) - 1  # integers that float32 holds, with zeros added to them
_SMALL, _LARGE = 64, 1 << 17  # float32 numbers that are summed to measure the link
_TRIES = 3


@dataclass(frozen=True)
class Message:
    """What one worker tells the others in a step.

    Attributes:
        body: the blob; where ``failed``, what went wrong, as text.
        step: the worker's step.
        spec: a number that stands for its compressor.
        failed: whether it has no blob.
        seconds: how long it computed in the step before.
    """

    body: bytes
    step: int
    spec: int
    failed: bool = False
    seconds: float = 0.0


class Exchange:
    """The workers of a group, and what they tell each other.

    It stays until it is closed, even where nobody refers to it any more: a worker that closes its sockets while another
    is still reading from them ends the other's exchange.

    Args:
        group: what works on CPU tensors, used by nobody else.
        store: where its workers can meet without it.
        timeout: how long they wait for each other.

    Attributes:
        bytes_sent: what this worker gave to the exchange so far, for each of the others to receive.
        waited: seconds spent in it so far.
    """

    def __init__(self, group: Any, store: Any, timeout: timedelta) -> None:
        self.rank, self.num_workers = group.rank(), group.size()
        self.bytes_sent = 0
        self.waited = 0.0
        self._open, self._store, self._timeout = group, store, timeout
        self._has_lost = False
        self._capacity = _FIRST
        _OPEN.add(group)

    @classmethod
    def beside(cls, base: dist.ProcessGroup | None) -> Exchange:
        """Make a gloo group of its own over the workers of another group; all of them call this.

        Args:
            base: the other group; all processes when None.

        Raises:
            ProtocolError: where there is no process group yet, or a worker does not come.
        """
        if not dist.is_initialized():
            raise ProtocolError("there is no process group yet: call torch.distributed.init_process_group first")
        group = dist.group.WORLD if base is None else base
        if group is None:
            raise ProtocolError("there is no process group any more: it was destroyed")
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        timeout = _timeout_of(group) or _c10d.default_pg_timeout
        try:
            store = _store_of(group, size)
            return cls(_c10d.ProcessGroupGloo(store, rank, size, timeout), store, timeout)
        except RuntimeError as error:
            raise ProtocolError(f"worker {rank} of {size} did not meet all others: {_first_line(error)}") from error

    @property
    def _group(self) -> Any:
        if self._open is None:
            raise StateError(
                "the exchange was closed: wrap the module in DDP anew and register, or make another LocalSGD"
            )
        return self._open

    @property
    def is_closed(self) -> bool:
        """Whether nothing is exchanged any more."""
        return self._open is None

    def close(self, waits: bool = True) -> None:
        """Give the group back, its threads and sockets, once all workers are here, who all call this; or at once."""
        group, self._open = self._open, None
        if group is None:
            return
        try:
            if waits and not self._has_lost:
                self._store.set(f"closed {self.rank}", "")
                self._store.wait([f"closed {rank}" for rank in range(self.num_workers)], self._timeout)
        except RuntimeError:  # they ended, or never come: nobody is left who could read from the sockets
            pass
        finally:
            _OPEN.discard(group)

    def gather(self, message: Message) -> list[Message]:
        """Tell all workers something, and hear what each of them tells.

        One collective where no message is much longer than those before; else one more for the rest.

        Args:
            message: this worker's.

        Returns:
            Those of all workers, by rank.

        Raises:
            ProtocolError: where a worker was lost.
        """
        whole = _HEADER.pack(message.failed, message.spec, message.step, len(message.body), message.seconds)
        whole += message.body
        rows = self._all_gather(whole[: self._capacity], self._capacity)
        headers = [_HEADER.unpack_from(row) for row in rows]
        longest = _HEADER.size + max(length for _, _, _, length, _ in headers)
        if longest > self._capacity:
            rest = self._all_gather(whole[self._capacity :], longest - self._capacity)
            rows = [row + more for row, more in zip(rows, rest, strict=True)]
        self._capacity = max(_FIRST, -(-int(longest * _ROOM) // _ROUNDED) * _ROUNDED)
        return [
            Message(row[_HEADER.size : _HEADER.size + length], step, spec, bool(failed), seconds)
            for row, (failed, spec, step, length, seconds) in zip(rows, headers, strict=True)
        ]

    def _all_gather(self, data: bytes, size: int) -> list[bytes]:
        """The same number of bytes of every worker; shorter ones are filled up."""
        own = torch.zeros(size, dtype=torch.uint8)
        own.numpy()[: len(data)] = np.frombuffer(data, np.uint8)
        rows = [torch.empty(size, dtype=torch.uint8) for _ in range(self.num_workers)]
        with self._exchanging(size) as group:
            group.allgather(rows, own).wait()
        return [row.numpy().tobytes() for row in rows]

    def sum(self, vector: Vector, message: Message) -> tuple[Vector, list[Message]]:
        """Add a vector up over all workers, the same bits at all of them, and hear how each of them is.

        Args:
            vector: (n,) float32, of the same length at all workers; not modified. Zeros where this one failed.
            message: how this worker is; its body is not told.

        Returns:
            (n,) float32, the sum; and all workers' messages by rank, of step and spec the lower 24 bits.

        Raises:
            ProtocolError: where a worker was lost.
        """
        # each worker writes in a row of its own, to which all others add zeros
        summed = torch.zeros(vector.size + 4 * self.num_workers)
        summed[: vector.size] = torch.from_numpy(vector)
        rows = summed[vector.size :].view(self.num_workers, 4)
        told = message.failed, message.step & _EXACT, message.spec & _EXACT, message.seconds
        rows[self.rank] = torch.tensor(told, dtype=torch.float32)
        self._sum(summed)
        numbers: NDArray[np.float32] = summed[: vector.size].numpy()
        return numbers, [
            Message(b"", int(step), int(spec), bool(failed), seconds) for failed, step, spec, seconds in rows.tolist()
        ]

    def _sum(self, tensor: Tensor, largest: bool = False) -> None:
        with self._exchanging(tensor.nbytes) as group:
            group.allreduce([tensor], dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM).wait()

    def start_sum(self, tensor: Tensor, told: Callable[[ProtocolError], object]) -> torch.futures.Future[Tensor]:
        """Begin to add a tensor up over all workers, in place.

        Args:
            tensor: of the same length at all workers.
            told: is called, perhaps by another thread, where a worker was lost; the tensor becomes zeros then.

        Returns:
            What will hold the tensor; it never fails, as torch would not keep what the error was.
        """

        def lost(error: RuntimeError) -> Tensor:
            told(self._lost(error))
            return tensor.zero_()

        def settled(done: torch.futures.Future[list[Tensor]]) -> Tensor:
            try:
                return done.value()[0]
            except RuntimeError as error:
                return lost(error)

        try:
            work = self._group.allreduce([tensor])
        except RuntimeError as error:
            failed: torch.futures.Future[Tensor] = torch.futures.Future()
            failed.set_result(lost(error))
            return failed
        self.bytes_sent += tensor.nbytes
        future: torch.futures.Future[list[Tensor]] = work.get_future()
        return future.then(settled)

    def share(self, tensor: Tensor) -> None:
        """Give every worker the first one's tensor, in place."""
        with self._exchanging(tensor.nbytes) as group:
            group.broadcast(tensor, 0).wait()

    def link(self) -> Link:
        """Measure what a collective takes: the same numbers at all workers, those of the slowest."""
        seconds = torch.empty(2, dtype=torch.float64)
        for at, size in enumerate((_SMALL, _LARGE)):
            numbers, best = torch.zeros(size), float("inf")
            for _ in range(_TRIES):
                start = time.perf_counter()
                self._sum(numbers)
                best = min(best, time.perf_counter() - start)
            seconds[at] = best
        self._sum(seconds, largest=True)
        small, large = seconds.tolist()
        return link_of(small, large, 4 * (_LARGE - _SMALL), self.num_workers)

    def _lost(self, error: RuntimeError) -> ProtocolError:
        self._has_lost = True
        return ProtocolError(
            f"worker {self.rank} of {self.num_workers} lost another one, which ended or stopped: {_first_line(error)}"
        )

    @contextmanager
    def _exchanging(self, num_bytes: int) -> Iterator[Any]:
        group, start = self._group, time.perf_counter()
        try:
            yield group
        except RuntimeError as error:
            raise self._lost(error) from error
        finally:
            self.waited += time.perf_counter() - start
        self.bytes_sent += num_bytes


def _store_of(group: dist.ProcessGroup, size: int) -> Any:
    """Where the workers of a group find each other's addresses: a place that no exchange of theirs had before.

    A group that ``new_group`` makes may come by the name of one that was destroyed, and then by its old addresses.
    """
    ranks = ",".join(map(str, dist.get_process_group_ranks(group)))
    name = hashlib.sha256(ranks.encode()).hexdigest()[:16]
    store = _c10d.PrefixStore(f"gradwire/{name}", _c10d.distributed_c10d._get_default_store())
    # every worker adds one; none begins with the next exchange before all have made this one
    number = (store.add("made", 1) - 1) // size
    return _c10d.PrefixStore(str(number), store)


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().partition("\n")[0]


def _timeout_of(group: dist.ProcessGroup) -> timedelta | None:
    """How long a group's collectives wait: a new group would wait for half an hour, whatever this one does."""
    for kind in ("cpu", "cuda"):
        try:
            timeout: timedelta = group._get_backend(torch.device(kind)).options._timeout
        except (RuntimeError, AttributeError):  # no backend for such tensors, or one without options
            continue
        return timeout
    return None
