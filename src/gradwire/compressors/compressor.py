"""The lossy half: update <-> Payload.

A compressor is a frozen value; what it remembers between rounds is a ``State`` passed in and returned.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import LARGEST
from gradwire.compressors.guarantee import Guarantee
from gradwire.compressors.references import Reference, as_reference
from gradwire.compressors.summing import add_up
from gradwire.errors import ConfigError, Malformed, ProtocolError, StaleReference
from gradwire.fields import Field
from gradwire.journal import Journal
from gradwire.kernels import ops
from gradwire.kernels.scratch import borrow
from gradwire.layout import Layout
from gradwire.named import Named
from gradwire.payload import Every, Fielded, Known, Part, Payload
from gradwire.rng import Key
from gradwire.wire.dithering import read_beside

__all__ = [
    "LARGEST_UPDATE",
    "Compressor",
    "Occupied",
    "Phases",
    "Round",
    "Sharing",
    "State",
    "Vector",
    "accumulate",
    "decompress",
    "joined",
    "largest_magnitude",
    "least_shared",
    "resolve",
]

Vector = NDArray[np.float32]
Sharing = Literal["none", "partly", "whole"]
Phases: TypeAlias = Generator["Vector | Payload", Any, "tuple[Vector | Reference, State]"]
"""The exchanges of a compression by all workers together: vectors, whose sums are sent back, and payloads, of which
those of all workers are sent back, by rank. In the end the mean, and the next state."""

LARGEST_UPDATE = LARGEST * 0.999
"""The largest magnitude that sums may have: float32's, with some room for rounding."""


@dataclass(frozen=True, eq=False)
class Occupied:
    """Where a vector, which does not change, is anything but 0.0: looked for once, by whoever asks first.

    Attributes:
        vector: (d,) float32.

    Example:
        >>> import numpy as np
        >>> from gradwire.compressors.compressor import Occupied
        >>> Occupied(np.array([0, 3, -0.0], np.float32)).places.tolist()
        [1, 2]
    """

    vector: Vector

    @cached_property
    def places(self) -> NDArray[np.int64] | None:
        """(m,) int64 increasing; None where that is everywhere."""
        return ops.occupied(self.vector, self.vector.size - 1)


@dataclass(frozen=True)
class Round:
    """What both ends agree on for one compression.

    Attributes:
        index: the round, 0 or more.
        key: randomness for (seed, round, client).
        reference: what decoding the last downlink blob gave, (d,) float32 or a ``Reference``; None without one.
        reference_digest: eight bytes that name the reference, or None to make them of its numbers.
        reference_weights: sum of the weights of the round the reference came from.
        weight: the client's weight in the mean, > 0.
        num_bytes: the payload must fit in this many bytes, or None.
        num_rounds: rounds of the whole run, where known.
        sequence: the sender's running number.
        sum_weights: None on the uplink; the round's total weight on the downlink.
        num_kept: keep this many entries instead of what a density says, or None.
        num_workers: workers that take part in ``phases``.
        largest: the ``num_largest`` largest entries of the update, where whoever made the update found them on the
            way: (m,) int64 increasing, and the numbers there, (m,) float32.
        occupied: where a vector is not zero, of use where the update is that very array; or None.
        held_field: levels of rows and columns that both ends hold, of use to what ``uses_field``; or None.
        support: coordinates that a sparsifier sends instead of those it would choose, since all clients of the round
            send them: (k,) int64 increasing, of the model's parameters; None where each chooses.

    Example:
        >>> import gradwire as gw
        >>> gw.Round(index=3).weight
        1.0
    """

    index: int = 0
    key: Key = field(default_factory=lambda: Key(0))
    reference: Vector | Reference | None = None
    reference_digest: bytes | None = None
    reference_weights: float = 1.0
    weight: float = 1.0
    num_bytes: int | None = None
    num_rounds: int | None = None
    sequence: int = 0
    sum_weights: float | None = None
    num_kept: int | None = None
    num_workers: int = 1
    largest: tuple[NDArray[np.int64], Vector] | None = None
    occupied: Occupied | None = None
    held_field: Field | None = None
    support: NDArray[np.int64] | None = None

    def knowing(self, largest: tuple[NDArray[np.int64], Vector] | None) -> Round:
        """Return this round with other ``largest``."""
        known = object.__new__(Round)  # dataclasses.replace takes several times as long, in every call
        vars(known).update(vars(self), largest=largest)
        return known


@dataclass
class State:
    """What a compressor remembers: its layout and named arrays and numbers.

    Attributes:
        layout: the layout it was made for.
        memory: name -> array or plain value; ``"residual"`` is error feedback's (d,) float32. Empty vectors of a fresh
            state may have any length later, all the same one; those of int64 are lists of coordinates.
        journal: how to take back what the last ``compress`` changed of its arrays in place.

    Example:
        >>> import gradwire as gw
        >>> sorted(gw.ef(gw.topk(0.1)).init(gw.Layout.flat(10)).memory)
        ['residual']
    """

    layout: Layout
    memory: dict[str, Any] = field(default_factory=dict)
    journal: Journal = field(default_factory=Journal, repr=False, compare=False)

    def having(self, memory: dict[str, Any]) -> State:
        """Return a state of another memory, some of it perhaps the same arrays: they share one journal."""
        return State(self.layout, memory, self.journal)

    def attempt(self) -> State:
        """Return a state for one ``compress`` that may have to be taken back: where its bytes cannot be sent, say.

        Returns:
            A state of the same arrays, with a journal of its own. Once ``journal.undo()`` of it ran, this state is as
            it was, to float32 rounding; that holds until either is compressed with again, and while the update that
            was compressed is unchanged.

        Example:
            >>> import numpy as np, gradwire as gw
            >>> compressor, update = gw.ef(gw.topk(0.5)), np.array([4, 1], np.float32)
            >>> state = compressor.init(gw.Layout.flat(2))
            >>> attempt = state.attempt()
            >>> payload, after = compressor.compress(update, attempt)
            >>> attempt.journal.undo()
            >>> state.memory["residual"].tolist()
            [0.0, 0.0]
        """
        return State(self.layout, dict(self.memory))


class Compressor(Named, kind="stage", example="topk(0.01)"):
    """update <-> Payload, as a pure value.

    Subclasses are frozen dataclasses whose fields are their parameters; ``str()`` is the spec text that builds
    an equal one, and every subclass with a public name can be used in a spec.

    Attributes:
        typical: the spec that a stage's figures are measured with; empty where that is the stage without parameters.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> compressor = gw.topk(0.5)
        >>> state = compressor.init(gw.Layout.flat(4))
        >>> payload, state = compressor.compress(np.array([1, -4, 2, 0], np.float32), state)
        >>> gw.decompress(payload).tolist()
        [0.0, -4.0, 2.0, 0.0]
    """

    joins: ClassVar[bool] = True
    typical: ClassVar[str] = ""

    @property
    def uses_reference(self) -> bool:
        """Whether ``Round.reference`` is read."""
        return False

    @property
    def uses_field(self) -> bool:
        """Whether ``Round.held_field`` is read, here or inside."""
        return any(inner.uses_field for inner in self.inside)

    @property
    def needs_mean(self) -> bool:
        """Whether the reference must be the clients' mean as it is: no step, nothing lost on the way, no other rule."""
        return False

    @property
    def checks_update(self) -> bool:
        """Whether ``compress`` itself refuses an update that is not finite, so that nobody has to look before."""
        return False

    @cached_property
    def inside(self) -> tuple[Compressor, ...]:
        """The compressors among its parameters; none where it is no wrapper or pipeline."""
        values = [getattr(self, name) for name in getattr(self, "__dataclass_fields__", ())]
        return tuple(v for value in values for v in (value if isinstance(value, tuple) else (value,)) if _is_one(v))

    @property
    def uses_num_rounds(self) -> bool:
        """Whether ``Round.num_rounds`` is read, here or inside: whether early rounds depend on how many there are."""
        return any(inner.uses_num_rounds for inner in self.inside)

    def schedule(self, d: int, num_rounds: int) -> NDArray[np.int64] | None:
        """Tell how many entries each round keeps, where that is laid down for the whole run, here or inside.

        Args:
            d: number of parameters.
            num_rounds: rounds of the run.

        Returns:
            (T,) int64, where T is ``num_rounds``, or what the compressor itself says; None where nothing is laid down.
        """
        found = (inner.schedule(d, num_rounds) for inner in self.inside)
        return next((schedule for schedule in found if schedule is not None), None)

    @property
    def mirrored(self) -> bool:
        """Whether payloads are steps of a mirror that the server keeps of each client, as ``ef21``'s are."""
        return False

    @property
    def shares(self) -> Sharing:
        """How far the payloads that clients compress in one round are over the same coordinates.

        ``'whole'``: all of them; a coordinate that is not listed is then zero, or sent by nobody. ``'partly'``: those
        that the reference gives, and some of each client's own. ``'none'``: each client chooses its own.
        """
        return "none"

    @property
    def led(self) -> bool:
        """Whether the coordinates that all clients of a round send are those that one of them proposes."""
        return False

    def shared_support(self, layout: Layout, round: Round) -> NDArray[np.int64] | None:
        """Tell which coordinates all clients of a round send, where that is known before their updates are.

        Args:
            layout: the model's layout.
            round: what both ends agree on; the client in its key does not matter.

        Returns:
            (k,) int64 increasing, of the model's parameters: what ``Round.support`` may be. None where it follows from
            a client's own update, or from a reference that is not given.

        Example:
            >>> import gradwire as gw
            >>> gw.ef(gw.cyclic(0.25)).shared_support(gw.Layout.flat(8), gw.Round(index=1)).tolist()
            [2, 3]
        """
        return None

    def largest_support(self, d: int, index: int) -> int:
        """Tell how many coordinates a support may have that somebody else chose: as many as would be sent without one.

        Args:
            d: number of parameters.
            index: the round.

        Returns:
            The number; d where nothing is laid down.

        Example:
            >>> import gradwire as gw
            >>> gw.ef(gw.leader(0.25) | gw.fixed(8, 1.0)).largest_support(8, index=0)
            2
        """
        return d

    @abstractmethod
    def init(self, layout: Layout) -> State:
        """Make the state before the first round.

        Args:
            layout: the model's layout.

        Returns:
            A fresh state.
        """

    @abstractmethod
    def compress(self, update: Vector, state: State, round: Round | None = None) -> tuple[Payload, State]:
        """Turn an update into a payload.

        Args:
            update: (d,) float32, finite, not modified.
            state: from ``init`` or the last call; consumed: its buffers may be reused, ``state.journal`` then knows
                how to undo that.
            round: what both ends agree on; round 0 of seed 0 when None.

        Returns:
            The payload and the next state.
        """

    def compress_pieces(
        self, pieces: Sequence[Vector], state: State, round: Round | None = None
    ) -> tuple[Payload, State]:
        """Turn an update that lies in several places into a payload: that of ``compress``.

        Args:
            pieces: float32 vectors that are the update, one after the other; finite, not modified. While the state's
                journal may be used they stay as they are.
            state: as for ``compress``.
            round: as for ``compress``.

        Returns:
            The payload and the next state.
        """
        return self.compress(joined(pieces), state, round)

    @abstractmethod
    def guarantee(self, d: int) -> Guarantee:
        """Tell what is promised for updates of length d."""

    def num_largest(self, state: State, round: Round) -> int | None:
        """Tell how many of the update's largest entries the choice is made among, where that is known before.

        Args:
            state: what ``compress`` will be given.
            round: what ``compress`` will be given.

        Returns:
            The number that ``Round.largest`` may hold, of the model's parameters; None where it would be of no use.
        """
        return None

    def largest_update(self, state: State) -> float:
        """Tell what magnitude an update's entries may have for ``compress`` to take it for certain.

        Args:
            state: what ``compress`` will be given.

        Returns:
            The magnitude, 0 or more; what is remembered and added to the update leaves less room in float32.
        """
        return LARGEST_UPDATE

    def restore(self, payload: Payload, state: State, reference: Vector | Reference | None = None) -> State:
        """Take back a payload that was not delivered.

        Args:
            payload: from ``compress``.
            state: the current state; consumed.
            reference: the vector the payload leans on, where it leans on one: (d,) float32 or a ``Reference``.

        Returns:
            The state that remembers it; a compressor without memory loses it.
        """
        return state

    @property
    def summable(self) -> bool:
        """Whether ``phases`` can be used: payloads of several workers add up without being decoded."""
        return self.shares != "none" and not self.mirrored

    def adds_up(self, index: int) -> bool:
        """Tell whether a round's ``phases`` give the mean of the payloads that the workers would make alone.

        What each of them sends is known before the exchange then, and leaves its residual as in ``compress``. Else they
        make the result together, as ``powersgd``'s workers do.

        Args:
            index: the round.
        """
        return self.shares != "none" and not self.mirrored

    def phases(self, update: Vector, state: State, round: Round | None = None) -> Phases:
        """Compress together with the other workers: what all of them send is summed, what each one chose is told.

        Args:
            update: (d,) float32, finite, not modified.
            state: from ``init`` or the last call; consumed.
            round: what all workers agree on; ``num_workers`` says how many there are.

        Yields:
            (n,) float32 to be summed over all workers; the sum, (n,) float32, is sent back. Or, where supports are
            shared in part, a payload to be told to all workers; a list of theirs, by rank, is sent back.

        Returns:
            The mean over workers of what was exchanged, (d,) float32 or a ``Reference``, the same at all of them; and
            the next state.

        Raises:
            ConfigError: when the compressor is not ``summable``.
        """
        round = round or Round()
        if not self.adds_up(round.index):
            raise ConfigError(f"{self} cannot be summed over workers without being decoded")
        payload, after = self.compress(update, state, round)
        parts = resolve(payload, round.reference)
        mean = yield from add_up(payload, parts, state.layout, self.shares == "whole", round.num_workers)
        return mean, after

    def __or__(self, other: object) -> Compressor:
        """Put a stage after this one."""
        if not isinstance(other, Compressor):
            raise ConfigError(f"a stage can only be followed by a stage, got {other!r}")
        raise ConfigError(f"{self} | {other}: wrap the whole pipeline instead, for instance ef(topk(0.01) | fp16())")


def joined(pieces: Sequence[Vector]) -> Vector:
    """Return one vector of pieces, one after the other.

    Args:
        pieces: one or more, (n,) float32 each.

    Returns:
        The piece itself where there is one; else memory that this thread's next call with several returns again.
    """
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces, out=borrow("joined", sum(piece.size for piece in pieces), np.float32))


def largest_magnitude(vector: Vector) -> float:
    """Return the largest magnitude of a vector's entries, 0 where it has none."""
    return max(float(vector.max()), -float(vector.min())) if vector.size else 0.0


def least_shared(*compressors: Compressor) -> Sharing:
    """Tell what is shared by clients that use these compressors in turn, or on different coordinates."""
    return min((c.shares for c in compressors), key=("none", "partly", "whole").index)


def _is_one(value: object) -> TypeGuard[Compressor]:
    return isinstance(value, Compressor)


def resolve(payload: Payload, reference: Vector | Reference | None) -> list[Part]:
    """Find what a payload's known and fielded supports stand for.

    Args:
        payload: from ``compress`` or ``decode``.
        reference: the vector it leans on, where it leans on one: (d,) float32 or a ``Reference``.

    Returns:
        The payload's parts, every support's indices ready to use.

    Raises:
        Malformed: when the payload leans on entries that its reference does not have, or names one of them again.
        ProtocolError: when the reference has another length than the payload.
        StaleReference: when a reference is needed and not given.
    """
    parts = _beside_field(payload, reference)
    if payload.reference_digest is None:
        return parts
    if reference is None:
        raise StaleReference(f"the payload leans on reference {payload.reference_digest.hex()}, none given")
    if (held := as_reference(reference)).d != payload.d:
        raise ProtocolError(f"reference must have shape ({payload.d},), got ({held.d},)")
    found: list[Part] = []
    start = 0
    for part in parts:
        support = part.support
        if isinstance(support, Known) and support.known is None:
            known = held.largest(start, part.length, support.count)
            if known.size != support.count:
                raise Malformed(f"support leans on {support.count} entries of the reference, it has {known.size}")
            if (ops.find(known, support.extra) >= 0).any():
                raise Malformed("support names a coordinate that the reference gives already")
            part = Part(Known(part.length, support.count, support.extra, known), part.values)
        found.append(part)
        start += part.length
    return found


def _beside_field(payload: Payload, reference: Vector | Reference | None) -> list[Part]:
    """The parts, those that were coded beside a field read with what the reference has of one."""
    field = reference.held_field if isinstance(reference, Reference) else None
    return [
        Part(read_beside(part.support, field), part.values) if isinstance(part.support, Fielded) else part
        for part in payload.parts
    ]


def accumulate(
    out: Vector,
    payload: Payload,
    weight: float = 1.0,
    reference: Vector | Reference | None = None,
    journal: Journal | None = None,
) -> None:
    """Add ``weight`` times a payload to a vector, without making a dense vector of the payload.

    Args:
        out: (d,) float32, modified in place.
        payload: from ``compress`` or ``decode``.
        weight: the factor, rounded to float32.
        reference: the vector the payload leans on, where it leans on one: (d,) float32 or a ``Reference``.
        journal: is told how to take it back, or None.

    Raises:
        ConfigError: when ``out`` has another length.
        Malformed: when the payload leans on entries that its reference does not have, or names one of them again.
        ProtocolError: when the reference has another length than the payload.
        StaleReference: when a reference is needed and not given.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> out = np.ones(2, np.float32)
        >>> blob = gw.Client(gw.dense(), gw.Layout.flat(2)).compress(np.float32([1, 2]))
        >>> gw.accumulate(out, gw.decode(blob), weight=3.0)
        >>> out.tolist()
        [4.0, 7.0]
    """
    if out.shape != (payload.d,):
        raise ConfigError(f"out must have shape ({payload.d},), got {out.shape}")
    start = 0
    for part in resolve(payload, reference):
        piece = out[start : start + part.length]
        start += part.length
        if isinstance(part.support, Every):
            numbers = part.numbers() if weight == 1.0 else part.numbers() * np.float32(weight)
            if journal is None or not ops.add_finite(piece, numbers, 1.0, journal):
                piece += numbers
        elif part.support.num_kept:
            indices = part.support.indices
            if journal is not None:
                journal.note(partial(piece.__setitem__, indices, ops.gather(piece, indices)))
            ops.accumulate_at(piece, indices, part.numbers(), weight)


def decompress(payload: Payload, reference: Vector | Reference | None = None) -> Vector:
    """Make the vector a payload stands for.

    Args:
        payload: from ``compress`` or ``decode``; it describes itself.
        reference: the vector it leans on, (d,) float32 or a ``Reference``; needed only where
            ``payload.reference_digest`` is set.

    Returns:
        (d,) float32.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> blob = gw.Client(gw.dense(), gw.Layout.flat(3)).compress(np.array([1, 2, 3], np.float32))
        >>> gw.decompress(gw.decode(blob)).tolist()
        [1.0, 2.0, 3.0]
    """
    out = np.zeros(payload.d, np.float32)
    accumulate(out, payload, reference=reference)
    return out
