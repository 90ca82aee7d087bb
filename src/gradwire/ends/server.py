"""Server: the aggregating end of a conversation, without any input or output of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gradwire.aggregation.aggregator import Aggregator
from gradwire.checks import check_integer
from gradwire.compressors.compressor import Compressor, Occupied, Round, State, Vector, decompress
from gradwire.compressors.sparsify import dense
from gradwire.ends.comparing import check_mean
from gradwire.ends.fields import Estimate
from gradwire.ends.inbox import Clipped, Inbox
from gradwire.ends.locking import locked
from gradwire.errors import ConfigError, StateError
from gradwire.fields import Field
from gradwire.kernels import ops
from gradwire.layout import Layout, as_update
from gradwire.payload import Floats, Payload
from gradwire.rng import Key
from gradwire.saved import check_memory, copy_memory, from_saved, reading_state, to_saved
from gradwire.wire import encode

__all__ = ["Result", "Server", "ServerStep"]


@dataclass(frozen=True)
class Result:
    """What a round came to.

    Attributes:
        update: (d,) float32: the weighted mean of what arrived; zeros when nothing did. For ``ef21`` the mean of all
            clients' mirrors, silent ones included, each counting the same whatever its weight.
        applied: (d,) float32: exactly what decoding ``blob`` gives; what every end adds to the model. Without a step,
            where nothing is lost on the way down, ``update`` itself: copy it before changing one of them in place.
        blob: what goes to each client.
        sum_weights: total weight received.
        num_received: payloads accepted.
        accepted: (client_id, sequence) of each, in order of arrival.
        packets: of those that came in packets: (client_id, sequence) -> the packet numbers that arrived.
        round: the round that closed.
        clipped: what was longer than ``max_norm``, and how much of it was counted.

    Example:
        >>> import gradwire as gw
        >>> result = gw.Server(gw.dense(), gw.Layout.flat(2)).close_round()
        >>> result.update.tolist(), result.num_received
        ([0.0, 0.0], 0)
    """

    update: Vector
    applied: Vector
    blob: bytes
    sum_weights: float
    num_received: int
    accepted: tuple[tuple[int, int], ...]
    packets: dict[tuple[int, int], frozenset[int]]
    round: int
    clipped: tuple[Clipped, ...] = ()


@runtime_checkable
class ServerStep(Protocol):
    """What a step can tell beside making one, so that a round can always be closed; plain functions need not."""

    def __call__(self, update: Vector, /) -> Vector:
        """Make one step: (d,) float32 -> (d,) float32."""

    def undo_point(self) -> Callable[[], None]:
        """Return what puts the step's memory back as it is now."""

    def largest_update(self, largest: float) -> float:
        """Tell how large a mean's entries may be for a finite step with none above ``largest``."""


class Server(Inbox):
    """Takes blobs in, closes rounds, and says what to send down.

    Many threads may call its methods: one runs at a time, and the others wait. What is remembered of each client is
    bounded by ``max_staleness``, whatever is lost.

    Args:
        compressor: what the clients compress with.
        layout: the model's layout.
        seed: seed of the run, the same at all ends.
        downlink: what compresses the way down; lossless by default.
        step: update -> delta, run inside ``close_round`` on the (d,) float32 mean (a server optimiser, clipping); the
            mean itself when None. A ``ServerStep`` also says what it can take: larger payloads are refused.
        num_clients: how many clients there are, for schemes that mirror each of them (``ef21`` needs it); client ids
            are then below it.
        max_staleness: accept payloads of this many closed rounds.
        aggregator: what adds payloads up, made from the layout: ``Aggregator``, a weighted mean, when None.
        max_norm: the longest a payload may be, in the Euclidean norm of its entries, all its packets together; longer
            ones are scaled down to it, and ``result.clipped`` says so. None for any length.
        num_rounds: rounds of the whole run, for a ``downlink`` with a schedule and to tell whether a field still pays;
            or None.
        payloads_per_round: how many payloads of one client and round are counted, the first ones that come; None for
            any number, as asynchronous clients need it, who send again before a round ends.

    Raises:
        ConfigError: on an argument of another kind; ``ef21`` without ``num_clients``, clipped, or on the way down; a
            step, lossy downlink or other aggregator than the mean with a compressor that ``needs_mean``.

    Attributes:
        round: the round that is open.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> layout = gw.Layout.flat(2)
        >>> server = gw.Server(gw.dense(), layout)
        >>> for i, weight in enumerate((1.0, 3.0)):
        ...     client = gw.Client(gw.dense(), layout, client_id=i)
        ...     server.receive(client.compress(np.full(2, 4 * i, np.float32), weight), i, weight)
        >>> server.close_round().update.tolist()
        [3.0, 3.0]
    """

    def __init__(
        self,
        compressor: Compressor,
        layout: Layout,
        seed: int = 0,
        downlink: Compressor | None = None,
        step: Callable[[Vector], Vector] | None = None,
        num_clients: int | None = None,
        max_staleness: int = 0,
        aggregator: Callable[[Layout], Aggregator] | None = None,
        max_norm: float | None = None,
        num_rounds: int | None = None,
        payloads_per_round: int | None = 1,
    ) -> None:
        downlink = dense() if downlink is None else downlink
        super().__init__(compressor, layout, seed, num_clients, max_staleness, aggregator, max_norm, payloads_per_round)
        if not isinstance(downlink, Compressor):
            raise ConfigError(f"downlink must be a Compressor, got {downlink!r}; gw.parse reads spec text")
        if step is not None and not callable(step):
            raise ConfigError(f"step must be a function update -> delta or None, got {step!r}")
        if downlink.mirrored:
            raise ConfigError(f"downlink must send what is applied, {downlink} sends steps of a mirror; use ef")
        check_mean(compressor, layout.num_parameters, aggregator=self._aggregator, step=step, downlink=downlink)
        self.downlink = downlink
        self.step = step
        self.num_rounds = None if num_rounds is None else check_integer("num_rounds", num_rounds, 1)
        self._downlink_state = downlink.init(layout)
        self._estimate = Estimate.of(layout) if compressor.uses_field else None

    @locked
    def close_round(self) -> Result:
        """End the open round: mean, step, downlink.

        Returns:
            The result; its blob goes to every client. A round nothing arrived in gives zeros and a valid blob.

        Raises:
            UpdateError: when ``step`` gives something that is no finite (d,) float vector. Whenever this fails, by an
                interrupt or for want of memory too, the round stays open and nothing is changed: not the downlink's
                memory, nor that of a step that can be undone (``ServerStep``).
        """
        before = dict(vars(self))
        undo_step = self.step.undo_point() if isinstance(self.step, ServerStep) else None
        state = self._downlink_state.attempt()
        try:
            result, after, shipped = self._closed(state)
            self._downlink_state = State(self.layout, after.memory)
            self._follow(result.blob, shipped)
            self.round += 1
        except BaseException:  # an interrupt or no memory, too
            vars(self).update(before)
            state.journal.undo()
            if undo_step is not None:
                undo_step()
            raise
        return result

    def _closed(self, state: State) -> tuple[Result, State, Field | None]:
        """What closing the round comes to, the downlink's next state, and the field that is shipped."""
        update = delta = self._aggregator.mean()
        if self.step is not None:
            delta = as_update(self.step(update.copy()), self.layout.d, what="what step gives", layout=self.layout)
        occupied = Occupied(delta)
        agreed = Round(
            index=self.round,
            key=Key(self.seed, self.round, purpose="downlink"),
            sequence=self.round,
            num_rounds=self.num_rounds,
            sum_weights=self._aggregator.sum_weights,
            occupied=occupied,
        )
        payload, state = self.downlink.compress(delta, state, agreed)
        shipped = self._learn(update)
        blob = encode(payload if shipped is None else replace(payload, shipped_field=shipped))
        result = Result(
            update=update,
            applied=update if delta is update and _is(payload, occupied) else decompress(payload),
            blob=blob,
            sum_weights=self._aggregator.sum_weights,
            num_received=self._aggregator.num_received,
            accepted=tuple(self._accepted),
            packets=self._packets(),
            round=self.round,
            clipped=tuple(self._clipped),
        )
        return result, state, shipped

    def _learn(self, update: Vector) -> Field | None:
        """Take in what the round says of rows and columns; return the field to ship, where it pays."""
        if self._estimate is None:
            return None
        sample = self._sample
        reference = None if sample is None else self.reference_of(sample)
        left = None if self.num_rounds is None else max(0, self.num_rounds - self.round - 1)
        num_received = self._aggregator.num_received
        self._estimate, field = self._estimate.after(update, sample, reference, num_received, left)
        return field

    def _set_limits(self) -> None:
        room = self.downlink.largest_update(self._downlink_state)
        self._aggregator.largest_mean = (
            self.step.largest_update(room) if isinstance(self.step, ServerStep) and room else room
        )

    @locked
    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that must survive a restart: arrays and plain values only.

        Returns:
            ``format``, ``spec``, ``downlink``, ``layout``, ``seed``, ``round``, the open round's ``sum`` ((d,) float32,
            weighted and not divided; for ``ef21`` of all mirrors, with ``num_clients``), ``sum_weights``,
            ``num_received``, ``accepted``, what was ``counted`` of each client, the downlink's ``scheme`` memory,
            the past ``references`` and ``fields``, and the ``estimate`` that fields are made of. The step's own state
            is the caller's.
        """
        memory = copy_memory(self._downlink_state.memory)
        return to_saved(
            super().state_dict()
            | {
                "downlink": str(self.downlink),
                "scheme": memory,
                "estimate": None if self._estimate is None else self._estimate.saved(),
            }
        )

    @locked
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Args:
            state: from ``state_dict`` of a server with the same specs and layout; not modified.

        Raises:
            StateError: on a state of something else; nothing is changed then.
        """
        state = from_saved(state)
        take_over = self._checked_state(state)
        downlink = state.get("downlink")
        if not isinstance(downlink, str) or downlink != str(self.downlink):
            raise StateError(f"state has downlink {downlink!r}, expected {str(self.downlink)!r}")
        with reading_state():
            memory = copy_memory(state["scheme"])
            check_memory(memory, self.downlink.init(self.layout).memory, self.layout.num_parameters)
            estimate = None if self._estimate is None else self._estimate.read(state["estimate"])
        take_over()
        self._downlink_state = State(self.layout, memory)
        self._estimate = estimate


def _is(payload: Payload, occupied: Occupied) -> bool:
    """Whether a payload stands for a vector that is 0.0 at one place or more, bit for bit."""
    if any(not isinstance(part.values, Floats) or part.values.coding != "float32" for part in payload.parts):
        return False
    if occupied.places is None or payload.num_kept != occupied.places.size:
        return False
    start = 0
    for part in payload.parts:
        sent = part.numbers().view(np.uint32)
        there = ops.gather(occupied.vector[start : start + part.length], part.support.indices).view(np.uint32)
        if not (sent.all() and np.array_equal(sent, there)):
            return False
        start += part.length
    return True
