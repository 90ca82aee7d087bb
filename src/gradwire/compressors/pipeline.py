"""Stages and how they run one after the other: at most one sparsifier, then one quantizer, then one coder."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.compressor import Compressor, Occupied, Round, Sharing, State, Vector
from gradwire.compressors.guarantee import Contractive, Guarantee, compose
from gradwire.compressors.references import Reference, as_reference
from gradwire.errors import ConfigError
from gradwire.kernels import ops
from gradwire.layout import Layout
from gradwire.payload import Cyclic, Every, Explicit, Floats, Grouped, Known, Part, Payload, Seeded, Support, Values
from gradwire.rng import Key
from gradwire.wire import encode

__all__ = ["Coder", "Pipeline", "Quantizer", "Sparsifier", "Stage", "largest_fitting", "listing_pays", "pruned"]


class Stage(Compressor):
    """A compressor that can stand in a pipeline; only sparsifiers may remember something between rounds."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order; a single stage is a pipeline of one."""
        return (self,)

    @cached_property
    def _roles(self) -> tuple[Sparsifier | None, Quantizer | None, str]:
        """The sparsifier and the quantizer among the stages, and the coder's name."""
        sparsifier = _sparsifier_of(self.stages)
        own = "auto" if sparsifier is None else sparsifier.own_coder
        return (
            sparsifier,
            next((s for s in self.stages if isinstance(s, Quantizer)), None),
            next((type(s).__name__ for s in self.stages if isinstance(s, Coder)), own),
        )

    @property
    def shares(self) -> Sharing:
        """What the sparsifier says; without one every client sends every coordinate."""
        sparsifier = self._roles[0]
        return "whole" if sparsifier is None else sparsifier.shares

    @property
    def led(self) -> bool:
        """What the sparsifier says."""
        sparsifier = self._roles[0]
        return sparsifier is not None and sparsifier is not self and sparsifier.led

    def shared_support(self, layout: Layout, round: Round) -> NDArray[np.int64] | None:
        """Tell what the sparsifier says; without one it is every coordinate."""
        sparsifier = self._roles[0]
        if sparsifier is None or sparsifier is self:
            return np.arange(layout.num_parameters, dtype=np.int64) if self.shares == "whole" else None
        return sparsifier.shared_support(layout, round)

    def largest_support(self, d: int, index: int) -> int:
        """Tell what the sparsifier keeps at most; without one it is every coordinate."""
        sparsifier = self._roles[0]
        return d if sparsifier is None else sparsifier.most_kept(d)

    def init(self, layout: Layout) -> State:
        """Make the state: the layout alone."""
        return State(layout)

    def compress(self, update: Vector, state: State, round: Round | None = None) -> tuple[Payload, State]:
        """Turn an update into a payload; see ``Compressor.compress``."""
        round = round or Round()
        payload = _run(self, update, state, round)
        sparsifier = self._roles[0]
        return payload, state if sparsifier is None else sparsifier.remember(update, payload, state, round)

    def __or__(self, other: object) -> Compressor:
        """Put a stage after this one."""
        if isinstance(other, Stage):
            return Pipeline((*self.stages, *other.stages))
        return super().__or__(other)


class Sparsifier(Stage):
    """Choose coordinates."""

    @abstractmethod
    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Choose coordinates of an update and give the float32 values there.

        Args:
            update: (num_parameters,) float32, not modified.
            state: the model's layout, and what was remembered; not modified.
            round: what both ends agree on.
            num_kept: keep about this many instead of what the density says; None: as the density says.

        Returns:
            Parts that tile the update, with Floats values where a quantizer may follow.
        """

    def remember(self, update: Vector, payload: Payload, state: State, round: Round) -> State:
        """Return the state after a round; nothing is remembered here.

        Args:
            update: (d,) float32: what was compressed, not modified.
            payload: what is sent of it, later stages included.
            state: the state before; consumed.
            round: what both ends agree on.

        Returns:
            The state for the next round.
        """
        return state

    def most_kept(self, d: int) -> int:
        """Tell how many of d coordinates are sent at most, where there is no byte budget: what a quantizer gets."""
        return d

    @property
    def shares(self) -> Sharing:
        """How far all clients of a round choose the same coordinates; a sparsifier that makes them says so here."""
        return "none"

    @property
    def budget(self) -> int | None:
        """Bytes the whole payload must fit in, or None."""
        return None

    @property
    def adjustable(self) -> bool:
        """Whether ``num_kept`` is obeyed, so that a byte budget can be met."""
        return False

    @property
    def own_coder(self) -> str:
        """How symbols are coded where no coder is named."""
        return "auto"

    @property
    def quantizes(self) -> bool:
        """Whether the values come rounded, so that no quantizer may follow."""
        return False

    @property
    def scheduled(self) -> bool:
        """Whether what is kept depends on the round's number."""
        return False

    @property
    def unnamed(self) -> bool:
        """Whether supports may lean on the reference, so that a reader without it cannot tell the coordinates."""
        return False


class Quantizer(Stage):
    """Send numbers in fewer bits.

    Attributes:
        scope: what a scale or table covers: ``'part'``: all that the sparsifier chose together; ``'tensor'``: each
            tensor apart; ``'model'``: everything; an integer: each block of that many coordinates. The pipeline sees to
            ``'tensor'``, where ``quantize`` gets a part for each; the rest is up to ``quantize``.
    """

    scope: str | int = "part"

    @abstractmethod
    def quantize(self, parts: list[Part], key: Key) -> list[Part]:
        """Replace the values of parts.

        Args:
            parts: with Floats float32 values, none of them empty.
            key: randomness for stochastic rounding.

        Returns:
            The same supports with other values.
        """


class Coder(Stage):
    """Name how symbols become bytes; nothing is lost. The class's name is the coder's."""

    def guarantee(self, d: int) -> Guarantee:
        """Nothing is lost: Contractive(1)."""
        return Contractive(1.0)


@dataclass(frozen=True, repr=False)
class Pipeline(Stage):
    """Stages in order: at most one sparsifier, one quantizer, one coder."""

    members: tuple[Stage, ...]

    def __post_init__(self) -> None:
        ranks = [_rank(s) for s in self.members]
        for before, after, stage in zip(ranks, ranks[1:], self.members[1:], strict=False):
            if after <= before:
                raise ConfigError(
                    f"{stage} cannot stand there: a pipeline is sparsifier | quantizer | coder, got {self}"
                )
        sparsifier, quantizer, _ = self._roles
        if sparsifier is not None and sparsifier.quantizes and quantizer is not None:
            raise ConfigError(f"{quantizer} cannot follow {sparsifier}, which rounds numbers itself")
        blocks = quantizer is not None and isinstance(quantizer.scope, int)
        if sparsifier is not None and sparsifier.unnamed and blocks:
            raise ConfigError(
                f"{quantizer} cannot follow {sparsifier}: a reader without the reference does not know which block a "
                "number is in; use scope='tensor' or scope='model'"
            )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order."""
        return self.members

    @property
    def uses_reference(self) -> bool:
        """Whether a stage reads the reference."""
        return any(stage.uses_reference for stage in self.members)

    @property
    def needs_mean(self) -> bool:
        """Whether a stage needs the reference to be the clients' mean."""
        return any(stage.needs_mean for stage in self.members)

    def init(self, layout: Layout) -> State:
        """Make the state: the sparsifier's."""
        return self.members[0].init(layout)

    def num_largest(self, state: State, round: Round) -> int | None:
        """Tell how many of the largest entries the sparsifier chooses among."""
        return self.members[0].num_largest(state, round)

    def restore(self, payload: Payload, state: State, reference: Vector | Reference | None = None) -> State:
        """Tell the sparsifier what was not delivered."""
        return self.members[0].restore(payload, state, reference)

    def guarantee(self, d: int) -> Guarantee:
        """Tell what is promised: see ``compose``."""
        guarantee: Guarantee = Contractive(1.0)
        count = d
        for stage in self.members:
            guarantee = compose(guarantee, stage.guarantee(count))
            if isinstance(stage, Sparsifier):
                count = stage.most_kept(d)
        return guarantee

    def __str__(self) -> str:
        return " | ".join(map(str, self.members))

    __repr__ = __str__


def _rank(stage: Stage) -> int:
    if isinstance(stage, Sparsifier):
        return 0
    if isinstance(stage, Quantizer):
        return 1
    if isinstance(stage, Coder):
        return 2
    raise ConfigError(f"{stage} cannot stand in a pipeline")


def _sparsifier_of(stages: tuple[Stage, ...]) -> Sparsifier | None:
    return next((s for s in stages if isinstance(s, Sparsifier)), None)


def _run(pipeline: Stage, update: Vector, state: State, round: Round) -> Payload:
    layout = state.layout
    sparsifier, quantizer, coder = pipeline._roles
    occupied = round.occupied if round.occupied is not None and round.occupied.vector is update else Occupied(update)

    def payload(num_kept: int | None) -> Payload:
        parameters = update[: layout.num_parameters]
        if round.support is not None:
            parts = [_at(parameters, round.support)]
        elif sparsifier is None:
            parts = [Part(Every(parameters.size), Floats(parameters))]
        else:
            parts = sparsifier.sparsify(parameters, state, round, num_kept)
        if quantizer is not None:
            parts = _quantize(quantizer, parts, layout, round)
        if layout.num_parameters < layout.d:
            statistics = update[layout.num_parameters :]
            parts = [*parts, Part(Every(statistics.size), Floats(statistics))]
        return Payload(
            layout.d,
            tuple(_own(part, update) for part in _all_pruned(parts, occupied)),
            round=round.index,
            sequence=round.sequence,
            layout_digest=layout.digest,
            reference_digest=_digest_for(parts, round),
            sum_weights=round.sum_weights,
            coder=coder,
        )

    num_bytes = round.num_bytes
    if num_bytes is None and sparsifier is not None:
        num_bytes = sparsifier.budget
    if num_bytes is None:
        return payload(round.num_kept)
    if sparsifier is not None and sparsifier.adjustable:
        return largest_fitting(payload, layout.num_parameters, num_bytes)
    made = payload(None)
    if len(encode(made)) > num_bytes:
        raise ConfigError(
            f"num_bytes must be at least {len(encode(made))} for {pipeline}, "
            f"which has no number of entries to lower, got {num_bytes}"
        )
    return made


def _at(parameters: Vector, chosen: NDArray[np.int64]) -> Part:
    """The part that sends the coordinates that were agreed on."""
    if chosen.size == parameters.size:
        return Part(Every(parameters.size), Floats(parameters))
    return Part(Explicit(parameters.size, chosen), Floats(ops.gather(parameters, chosen)))


def _digest_for(parts: list[Part], round: Round) -> bytes | None:
    """The name of the reference, where a part leans on it: that of its blob, or else of its numbers."""
    if round.reference is None or not any(isinstance(part.support, Known) for part in parts):
        return None
    return (
        round.reference_digest
        or hashlib.sha256(as_reference(round.reference).vector.astype("<f4").tobytes()).digest()[:8]
    )


def largest_fitting(payload: Callable[[int], Payload], d: int, num_bytes: int) -> Payload:
    """Find the most entries whose payload fits in a number of bytes, by bisection.

    Args:
        payload: makes the payload that keeps k entries, 0 <= k <= d.
        d: the most entries there are.
        num_bytes: the most bytes.

    Returns:
        A payload that fits while that of one entry more does not, or that of all d.

    Raises:
        ConfigError: where not even an empty payload fits.
    """
    best = payload(0)
    if len(encode(best)) > num_bytes:
        raise ConfigError(
            f"num_bytes must be at least {len(encode(best))}, the size of an empty payload here, got {num_bytes}"
        )
    everything = payload(d)  # needs no indices, so that it may fit where a little less does not
    if len(encode(everything)) <= num_bytes:
        return everything
    low, high = 0, d
    while high - low > 1:
        # an entry seldom costs less than a bit, so there is little point in looking far above what was paid for
        middle = min((low + high) // 2, 2 * low + 8 * num_bytes)
        tried = payload(middle)
        if len(encode(tried)) <= num_bytes:
            low, best = middle, tried
        else:
            high = middle
    return best


def _quantize(quantizer: Quantizer, parts: list[Part], layout: Layout, round: Round) -> list[Part]:
    """Quantize parts; where each tensor has a scale of its own, cut them first, or their values alone."""
    groups = [[part] for part in parts]
    if quantizer.scope == "tensor" and layout.cuts:
        starts = np.cumsum([0, *(part.length for part in parts)]).tolist()
        groups = [_by_tensor(part, start, layout) for start, part in zip(starts, parts, strict=False)]
    pieces = [piece for group in groups for piece in group]
    filled = [i for i, piece in enumerate(pieces) if piece.support.num_kept]
    quantized = quantizer.quantize([pieces[i] for i in filled], round.key) if filled else []
    for i, piece in zip(filled, quantized, strict=True):
        pieces[i] = piece
    rest = iter(pieces)
    out: list[Part] = []
    for part, group in zip(parts, groups, strict=True):
        made = [next(rest) for _ in group]
        out += [_grouped(part.support, made)] if isinstance(part.support, (Seeded, Cyclic)) else made
    return out


def _by_tensor(part: Part, start: int, layout: Layout) -> list[Part]:
    """A part, which begins at a coordinate of the model, in pieces of one tensor each."""
    edges = [0, *(cut - start for cut in layout.cuts if start < cut < start + part.length), part.length]
    columns = dict(zip((0, *layout.cuts), layout.columns, strict=True))
    numbers, support = part.numbers(), part.support
    indices = np.empty(0, np.int64) if isinstance(support, (Every, Known)) else support.indices
    found: list[Part] = []
    for low, high in pairwise(edges):
        inside: Support
        if isinstance(support, Every):
            inside, kept = Every(high - low), numbers[low:high]
        elif isinstance(support, Known):
            inside, kept = _known_between(support, numbers, low, high)
        else:
            a, b = np.searchsorted(indices, [low, high])
            width = columns.get(start + low, 0)
            inside, kept = Explicit(high - low, indices[a:b] - low, (), (width,) if width else ()), numbers[a:b]
        found.append(Part(inside, Floats(kept)))
    return found


def _known_between(support: Known, numbers: Vector, low: int, high: int) -> tuple[Support, Vector]:
    """A stretch of a known support: what is among the largest of all the model is among the largest there too."""
    known, extra = (x - low for x in (support.indices[: support.count], support.extra))
    (a, b), (c, d) = (np.searchsorted(x, [0, high - low]) for x in (known, extra))
    inside = Known(high - low, int(b - a), extra[c:d], known[a:b])
    return inside, np.concatenate([numbers[a:b], numbers[support.count + c : support.count + d]])


def _grouped(support: Support, pieces: list[Part]) -> Part:
    """The part that sends what its pieces do, where its support cannot be cut."""
    members = [piece.values for piece in pieces if piece.support.num_kept] or [pieces[0].values]
    return Part(support, Grouped(tuple(members)) if len(members) > 1 else members[0])


def _own(part: Part, update: Vector) -> Part:
    """Copy values that are still the update's own memory: the payload outlives it, and error feedback changes it."""
    values = part.values
    if isinstance(values, Floats) and np.may_share_memory(values.data, update):
        return Part(part.support, Floats(values.data.copy(), values.coding))
    return part


def _all_pruned(parts: list[Part], occupied: Occupied) -> Iterator[Part]:
    """Prune each part; those that are a stretch of the update itself by where it is not zero."""
    start = 0
    for part in parts:
        stop = start + part.length
        places = None
        if isinstance(part.support, Every) and _is_stretch(part.values, occupied.vector[start:stop]):
            places = occupied.places
        if places is not None:
            low, high = np.searchsorted(places, [start, stop])
            places = places[low:high] - start
        yield pruned(part, places)
        start = stop


def _is_stretch(values: Values, stretch: Vector) -> bool:
    """Whether values are the very memory of a stretch of the update."""
    return isinstance(values, Floats) and values.data.ctypes.data == stretch.ctypes.data


def pruned(part: Part, occupied: NDArray[np.int64] | None = None) -> Part:
    """Leave out entries whose value came out as zero, where indices travel or leaving them out is cheaper.

    Args:
        part: any part.
        occupied: (n,) int64 increasing: where the numbers of a part that sends every coordinate are anything but 0.0,
            if it is known.

    Returns:
        A part that stands for the same numbers.
    """
    support = part.support
    if not isinstance(support, (Every, Explicit)) or support.num_kept == 0:
        return (
            part
            if support.num_kept
            else Part(Explicit(support.length, np.empty(0, np.int64)), Floats(np.empty(0, np.float32)))
        )
    if not part.values.zeros_possible or (isinstance(support, Explicit) and support.written is not None):
        return part  # streams with contexts hold no zeros
    kept = _not_zero(part.numbers(), occupied)
    if kept is None:
        return part
    chosen = kept if isinstance(support, Every) else support.indices[kept]
    if kept.size == 0:
        return Part(Explicit(support.length, chosen), Floats(np.empty(0, np.float32)))
    hints = (support.cuts, support.columns) if isinstance(support, Explicit) else ()
    listed = Explicit(support.length, chosen, *hints)
    fewer = Part(listed, part.values.take(kept, support))
    if isinstance(support, Explicit) or listing_pays(listed, fewer.values.num_bytes, part.values.num_bytes):
        return fewer
    return part


def listing_pays(support: Explicit, num_bytes: int, all_bytes: int) -> bool:
    """Tell whether to list coordinates, and send what is there, is cheaper than to send every coordinate.

    Args:
        support: the list; neither empty nor everything.
        num_bytes: what the numbers there take.
        all_bytes: what all numbers take.

    Returns:
        Whether it is, by the entropy of the choice.
    """
    length, kept = support.length, support.num_kept
    skipped = length - kept
    index_bits = kept * math.log2(length / kept) + skipped * math.log2(length / skipped)
    return index_bits / 8 + num_bytes < all_bytes


def _not_zero(numbers: Vector, occupied: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Where numbers are not zero, -0.0 being one; None where none is."""
    if occupied is None:
        occupied = ops.occupied(numbers, numbers.size - 1)
    if occupied is None:
        negative = numbers == 0
        return np.flatnonzero(~negative) if negative.any() else None
    negative = ops.gather(numbers, occupied) == 0
    kept = occupied[~negative] if negative.any() else occupied
    return kept if kept.size < numbers.size else None
