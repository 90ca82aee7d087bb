"""Worker: one of several that agree on the mean of their updates, step by step."""

from __future__ import annotations

import logging
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

import gradwire.errors
from gradwire.aggregation.mean import mean_of
from gradwire.checks import check_flag, check_integer
from gradwire.compressors.compressor import Compressor, Phases, Round, State, Vector, decompress, joined
from gradwire.compressors.feedback import ef
from gradwire.compressors.references import Reference, as_reference
from gradwire.compressors.sparsify import dense
from gradwire.compressors.summing import num_summed
from gradwire.ddp.cost import AGAIN, Choice
from gradwire.ddp.device import compress_there, place_residual, selects_there, send_whole
from gradwire.ddp.exchange import Exchange, Message
from gradwire.ends.downlink import reference_digest
from gradwire.errors import ConfigError, GradwireError, ProtocolError, StateError
from gradwire.layout import Layout, check_finite
from gradwire.payload import Payload
from gradwire.rng import Key
from gradwire.saved import check_memory, check_state, copy_memory, from_saved, reading_state, to_bytes, to_saved
from gradwire.wire import Limits, decode, encode

__all__ = ["Worker"]

_log = logging.getLogger("gradwire")

STATE_FORMAT = 1
_LONGEST_TEXT = 1000  # characters of an error that the others are told
_ADDED_UP = {"residual", "momentum"}  # memory of which the mean over workers is what is conserved


@dataclass(frozen=True)
class _Held:
    """What the mean of the step before travels down as, and the vector it stands for."""

    blob: bytes
    reference: Reference


@dataclass(frozen=True)
class _Saved:
    """A saved state that was checked."""

    step: int
    seed: int
    memory: dict[str, Any]
    held: _Held | None
    summed: bool


class Worker:
    """Compresses this worker's updates, exchanges them, and gives their mean: the same bits at all workers.

    What goes wrong at one worker is raised at all of them, as the same error; every worker is then as it was, and the
    next step goes on. A step that failed counts as one.

    Args:
        compressor: the same at all workers.
        layout: the model's layout, the same at all workers.
        exchange: the workers.
        seed: of randomness, the same at all workers.
        fallback: whether to send whole updates where that takes less time.
        device: where updates come as tensors and the residual is, for a compressor that ``selects_there``; None for
            arrays on the host.

    Raises:
        ConfigError: on a compressor that keeps mirrors or must know the number of rounds; at all workers where theirs
            differ.

    Attributes:
        step: the next step's number.
        computing: seconds that the caller worked beside ``mean`` in this step.
    """

    def __init__(
        self,
        compressor: Compressor,
        layout: Layout,
        exchange: Exchange,
        seed: int = 0,
        fallback: bool = True,
        device: torch.device | None = None,
    ) -> None:
        if not isinstance(compressor, Compressor):
            raise ConfigError(f"compressor must be a Compressor, got {compressor!r}; gw.parse reads spec text")
        if compressor.mirrored:
            raise ConfigError(f"{compressor} keeps a mirror of each worker, which nobody holds here: use ef")
        if compressor.uses_num_rounds:
            raise ConfigError(f"{compressor} must know how long the run is, which is not known here: give it rounds=")
        self.compressor, self.layout, self.exchange = compressor, layout, exchange
        self.seed = Key(seed).seed
        self.step = 0
        self.computing = 0.0
        self._computed = 0.0
        self._device = device
        self._state = self._having(compressor.init(layout).memory)
        self._held: _Held | None = None
        self._limits = Limits.of(layout.d)
        self._spec = zlib.crc32(str(compressor).encode())
        self._whole = _whole(compressor, self._state)
        self._agree(fallback)
        measured = fallback and self._whole is not None and exchange.num_workers > 1
        self._choice = Choice(exchange.link() if measured else None, layout.d, exchange.num_workers)
        self._was_dense = self._said = False
        self._compares = True

    def _agree(self, fallback: bool) -> None:
        """Compare what must be the same at all workers."""
        told = f"{self.compressor}\nseed {self.seed}\nlayout {self.layout.digest.hex()}\nfallback {fallback}"
        for rank, other in enumerate(self.exchange.gather(Message(told.encode(), 0, self._spec))):
            for here, there in zip(told.split("\n"), other.body.decode().split("\n"), strict=True):
                if here != there:
                    raise ConfigError(
                        f"all workers must have the same compressor, layout, seed and fallback: {here!r} at worker "
                        f"{self.exchange.rank}, {there!r} at worker {rank}"
                    )

    @property
    def path(self) -> str:
        """How this step's updates travel: ``'gather'``, ``'phases'`` or ``'dense'``."""
        if self._choice.dense:
            return "dense"
        if not self.compressor.summable:
            return "gather"
        if not self.compressor.adds_up(self.step):
            return "phases"
        return "phases" if self._choice.summed and self.step % AGAIN else "gather"

    @property
    def is_plain(self) -> bool:
        """Whether nothing is remembered that a whole update would have to take along: its sum is all there is."""
        return self._choice.dense and self._was_dense

    def mean(
        self,
        pieces: Sequence[Any],
        error: Exception | None = None,
        check: Callable[[Reference], None] | None = None,
    ) -> Reference:
        """Return the mean of all workers' updates, each as its compressor sends it.

        Args:
            pieces: float32 vectors that are this worker's update, one after the other, or one tensor on ``device``; not
                modified, and not to be modified before this returns.
            error: why there is no update at this worker, or None.
            check: raises where the mean cannot be taken; the same at all workers.

        Returns:
            The mean, given by few numbers where it is sparse.

        Raises:
            GradwireError: what went wrong at a worker, the same at all of them. All are as they were then.
        """
        start, waited, path = time.perf_counter(), self.exchange.waited, self.path
        attempt = self._state.attempt()
        exchanged = {"gather": self._gathered, "phases": self._in_phases, "dense": self._summed}[path]
        try:
            if self._compares:
                self._compares = False
                self._compare(error)
            mean, after, held = exchanged(pieces, attempt, error)
            if check is not None:
                check(mean)
            self._state, self._held = State(self.layout, after.memory), held
            self._was_dense = path == "dense"
        except BaseException:  # an interrupt or no memory, too
            attempt.journal.undo()
            raise
        finally:
            self.step += 1
            spent = self.computing + time.perf_counter() - start - (self.exchange.waited - waited)
            self._computed, self.computing = 0.0 if path == "dense" else spent, 0.0
        return mean

    def _compare(self, error: Exception | None) -> None:
        """Compare where all workers are: some may have loaded another state, or none."""
        held = "none" if self._held is None else reference_digest(self._held.blob).hex()
        told = f"seed {self.seed}\nreference {held}\nsums {self._choice.summed}"
        for rank, other in enumerate(self._hear(told.encode(), error)):
            for here, there in zip(told.split("\n"), other.body.decode().split("\n"), strict=True):
                if here != there:
                    raise ProtocolError(
                        f"all workers must go on from states of one run: {here!r} at worker {self.exchange.rank}, "
                        f"{there!r} at worker {rank}"
                    )

    def skip(self) -> None:
        """Count a step in which the caller summed whole updates itself: see ``is_plain``."""
        self.step += 1
        self._choice.note_dense()

    def _round(self) -> Round:
        held = self._held
        return Round(
            index=self.step,
            key=Key(self.seed, self.step, self.exchange.rank),
            reference=None if held is None else held.reference,
            reference_digest=None if held is None else reference_digest(held.blob),
            reference_weights=1.0 if held is None else float(self.exchange.num_workers),
            sequence=self.step,
            num_workers=self.exchange.num_workers,
        )

    def _checked(self, pieces: Sequence[Any], compressor: Compressor) -> Sequence[Vector]:
        if compressor.checks_update:
            return pieces
        update = joined(pieces)
        check_finite(update, "update", self.layout)
        return (update,)

    def _compress(self, pieces: Sequence[Any], attempt: State, agreed: Round) -> tuple[Payload, State]:
        if self._device is not None and selects_there(self.compressor):
            return compress_there(self.compressor, pieces[0], attempt, agreed)
        return self.compressor.compress_pieces(self._checked(pieces, self.compressor), attempt, agreed)

    def _gathered(
        self, pieces: Sequence[Any], attempt: State, error: Exception | None
    ) -> tuple[Reference, State, _Held | None]:
        """Compress, tell all others, read what they tell."""
        body, agreed = b"", self._round()
        try:
            if error is None:
                payload, after = self._compress(pieces, attempt, agreed)
                body = encode(payload)
        except Exception as failure:  # whatever it is, the others wait
            error = failure
        messages = self._hear(body, error)
        payloads = self._read_all(messages, payload)
        mean = mean_of(payloads, self.layout, agreed.reference)
        self._note_gathered(messages, payloads[0])
        return mean, after, self._next_held(mean)

    def _read_all(self, messages: list[Message], own: Payload) -> list[Payload]:
        """All workers' payloads; this worker's own is what decoding its blob gives."""
        return [
            own if rank == self.exchange.rank else decode(message.body, self._limits)
            for rank, message in enumerate(messages)
        ]

    def _note_gathered(self, messages: list[Message], first: Payload) -> None:
        """Weigh what was gathered against a sum of what is shared: by the first worker's payload, as all of them do."""
        longest = max(len(message.body) for message in messages)
        if self.compressor.summable:
            whole = self.compressor.shares == "whole"
            summed = num_summed(first, self.layout, whole)
            told = 0.0 if whole else longest * max(0, first.num_kept - summed) / max(1, first.num_kept)
            self._choice.note_gathered(longest, summed, told)
        else:
            self._choice.note_gathered(longest)
        self._note(messages)

    def _note(self, messages: list[Message]) -> None:
        self._choice.note([message.seconds for message in messages])
        if not self._choice.dense or self._said:
            return
        self._said = True
        if self.exchange.rank == 0:
            said = (
                f"from step {self.step + 1} on gradients are summed whole, which takes less time on this link than "
                f"{self.compressor}; it is measured again from time to time, and fallback=False never does it"
            )
            try:
                warnings.warn(said, stacklevel=2)
            except UserWarning:  # made an error, which would have one worker leave a step that all others make
                _log.warning("%s", said)

    def _next_held(self, mean: Reference) -> _Held | None:
        """The next step's reference, which is what a server would have sent down, and its name."""
        if not self.compressor.uses_reference:
            return None
        agreed = Round(index=self.step, sequence=self.step, sum_weights=float(self.exchange.num_workers))
        payload, _ = dense().compress_listed(mean, State(self.layout), agreed)
        return _Held(encode(payload), Reference.of(payload))

    def _in_phases(
        self, pieces: Sequence[Any], attempt: State, error: Exception | None
    ) -> tuple[Reference, State, _Held | None]:
        """Exchange what a compressor says, phase by phase."""
        agreed = self._round()
        settled = self.compressor.adds_up(agreed.index)
        phases: Phases | None = None
        ended: tuple[Vector | Reference, State] | None = None
        answer: Any = None
        number = 0
        while ended is None:
            said: Vector | Payload = np.empty(0, np.float32)
            body = b""
            try:
                if error is None and phases is None:
                    update = joined(self._checked(pieces, self.compressor))
                    phases = self.compressor.phases(update, attempt, agreed)
                if error is None and phases is not None:
                    said = phases.send(answer)
                    body = encode(said) if isinstance(said, Payload) else b""
            except StopIteration as done:
                ended = done.value
                if settled:  # what comes after the exchange goes wrong at all workers or at none
                    break
            except Exception as failure:  # whatever it is, the others wait
                error = failure
            if error is not None:
                said = self._blank(agreed, number)
            if isinstance(said, Payload):
                answer = self._read_all(self._hear(body, error), said)
            else:  # in the end a sum of nothing, which tells that the last phase went well everywhere
                answer, messages = self._sum(said, error)
                if not number:
                    self._note(messages)
            number += 1
        mean, after = ended
        found = as_reference(mean)
        return found, after, self._next_held(found)

    def _blank(self, agreed: Round, number: int) -> Vector | Payload:
        """What is said in a phase where there is nothing to say: zeros, as many as the others sum, or a payload."""
        zeros = np.zeros(self.layout.d, np.float32)
        phases = self.compressor.phases(zeros, self.compressor.init(self.layout), agreed)
        try:
            said = next(phases)
            for _ in range(number):
                said = phases.send([said] if isinstance(said, Payload) else np.zeros_like(said))
        except StopIteration:
            return zeros[:0]
        return said if isinstance(said, Payload) else np.zeros_like(said)

    def _summed(
        self, pieces: Sequence[Any], attempt: State, error: Exception | None
    ) -> tuple[Reference, State, _Held | None]:
        """Sum whole updates, and all that was not sent so far with them."""
        vector, whole = np.zeros(0, np.float32), self._whole or dense()
        try:
            if error is None:
                if self._device is not None and selects_there(self.compressor):
                    vector, after = send_whole(self.compressor, pieces[0], attempt), attempt
                else:
                    payload, after = whole.compress_pieces(self._checked(pieces, whole), attempt, self._round())
                    vector = decompress(payload)
        except Exception as failure:  # whatever it is, the others wait
            error = failure
        if error is not None:
            vector = np.zeros(self.layout.d, np.float32)
        total, _ = self._sum(vector, error)
        check_finite(total, "the sum of the updates", self.layout)
        self._choice.note_dense()
        return Reference(self.layout.d, total / np.float32(self.exchange.num_workers)), after, None

    def _sum(self, vector: Vector, error: Exception | None) -> tuple[Vector, list[Message]]:
        """Add up over all workers, and raise what any of them tells as an error."""
        told = Message(b"", self.step, self._spec, error is not None, self._computed)
        total, messages = self.exchange.sum(vector, told)
        own = messages[self.exchange.rank]
        if any(m.failed or (m.step, m.spec) != (own.step, own.spec) for m in messages):
            self._hear(b"", error)
        return total, messages

    def _hear(self, body: bytes, error: Exception | None) -> list[Message]:
        """Tell all workers, and raise what any of them tells as an error."""
        if error is not None:
            body = _told(error)
        messages = self.exchange.gather(Message(body, self.step, self._spec, error is not None, self._computed))
        ranks = range(len(messages))
        if any(message.spec != self._spec for message in messages):
            raise ConfigError("all workers must have the same compressor, and they have not any more")
        for rank, message in zip(ranks, messages, strict=True):
            if message.failed:
                self._raise(rank, message, error)
        if any(message.step != self.step for message in messages):
            steps = ", ".join(f"{message.step} at worker {rank}" for rank, message in zip(ranks, messages, strict=True))
            raise ProtocolError(f"all workers must be at the same step: {steps}; load a state of the same step at each")
        return messages

    def _raise(self, rank: int, message: Message, error: Exception | None) -> NoReturn:
        told = message.body.decode(errors="replace")
        name, _, text = told.partition(": ")
        kind: Any = getattr(gradwire.errors, name, None)
        known = isinstance(kind, type) and issubclass(kind, GradwireError)
        where = f"worker {rank} of {self.exchange.num_workers}, step {message.step}: "
        raise (kind(where + text) if known else GradwireError(where + told)) from error

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that must survive a restart, of this worker alone: arrays and plain values.

        Returns:
            ``format``, ``spec``, ``layout`` (hash), ``seed``, ``step``, ``rank``, ``world_size``, ``residual`` ((d,)
            float32, or None without error feedback), ``scheme`` (the compressor's other memory), ``reference`` (a
            blob, or None), ``summed`` (whether what is shared is summed).
        """
        memory = copy_memory(self._state.memory | self._on_host())
        return to_saved(
            {
                "format": STATE_FORMAT,
                "spec": str(self.compressor),
                "layout": self.layout.digest.hex(),
                "seed": self.seed,
                "step": self.step,
                "rank": self.exchange.rank,
                "world_size": self.exchange.num_workers,
                "residual": memory.pop("residual", None),
                "scheme": memory,
                "reference": None if self._held is None else np.frombuffer(self._held.blob, np.uint8).copy(),
                "summed": self._choice.summed,
            }
        )

    def load_state_dict(self, state: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        """Continue where ``state_dict`` was taken; every worker loads.

        Args:
            state: this worker's, of as many workers as there are now. Or those of all old workers, in a list: where
                there are as many as now each takes its own, else each begins with the mean of their residuals (and
                momenta), so that the mean over the new workers is what it was over the old ones.

        Raises:
            StateError: on states of something else; nothing is changed then.
        """
        with reading_state():
            given = [from_saved(s) for s in ([state] if isinstance(state, dict) else state)]
            read = [self._read(s) for s in given]
            num_old = check_integer("world_size", given[0]["world_size"], 1)
            ranks = [int(s["rank"]) for s in given]
        here, workers = self.exchange.rank, self.exchange.num_workers
        if isinstance(state, dict) and (num_old, ranks) != (workers, [here]):
            raise StateError(
                f"state is of worker {ranks[0]} of {num_old}, expected worker {here} of {workers}; "
                "with another number of workers load the list of all their states"
            )
        if not isinstance(state, dict) and ranks != list(range(num_old)):
            raise StateError(f"the states of all {num_old} workers are needed, in order, got those of {ranks}")
        if len({(s.step, s.seed, s.held and s.held.blob, s.summed) for s in read}) > 1:
            raise StateError("states must be of the same step")
        first = read[0] if isinstance(state, dict) or num_old != workers else read[here]
        memory = first.memory if num_old == workers else _joined([s.memory for s in read])
        self.step, self.seed, self._held = first.step, first.seed, first.held
        self._state, self._was_dense, self._compares = self._having(memory), False, True
        self._choice.summed = first.summed and num_old == workers

    def _having(self, memory: dict[str, Any]) -> State:
        return State(self.layout, memory if self._device is None else place_residual(memory, self._device))

    def _on_host(self) -> dict[str, Any]:
        """A residual on a device, as an array."""
        return {} if self._device is None else {"residual": self._state.memory["residual"].cpu().numpy()}

    def _read(self, state: Any) -> _Saved:
        check_state(state, STATE_FORMAT, str(self.compressor), self.layout)
        memory = copy_memory(state["scheme"])
        if state["residual"] is not None:
            memory["residual"] = np.array(state["residual"], np.float32)
        check_memory(memory, self.compressor.init(self.layout).memory, self.layout.num_parameters)
        held = None
        if state["reference"] is not None:
            blob = to_bytes(state["reference"])
            held = _Held(blob, Reference.of(decode(blob, self._limits)))
        step = check_integer("step", state["step"], 0, 2**63 - 1)
        return _Saved(step, Key(state["seed"]).seed, memory, held, check_flag("summed", state["summed"]))


def _joined(memories: list[dict[str, Any]]) -> dict[str, Any]:
    """What each of another number of workers begins with."""
    joined: dict[str, Any] = {}
    for name, first in memories[0].items():
        values = [memory[name] for memory in memories]
        if name.rpartition(".")[2] in _ADDED_UP:
            total: NDArray[np.float64] = np.sum(values, axis=0, dtype=np.float64)
            joined[name] = (total / len(values)).astype(np.float32)
        elif all(np.array_equal(first, value) for value in values):
            joined[name] = first
        else:
            raise StateError(f"{name} differs between the old workers: it can only be continued by as many")
    return joined


def _whole(compressor: Compressor, state: State) -> Compressor | None:
    """What sends whole updates and takes along all that compressor has not sent; None where nothing can."""
    memory = set(state.memory)
    if compressor.uses_reference or not memory <= {"residual"}:
        return None  # a momentum would be cleared where it is sent, and that is everywhere
    if isinstance(compressor, ef):
        return replace(compressor, compressor=dense())
    return None if memory else dense()


def _told(error: Exception) -> bytes:
    """An error as the others hear of it."""
    return f"{type(error).__name__}: {error}"[:_LONGEST_TEXT].encode()
