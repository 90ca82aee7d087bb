"""Payload: what a compressor sends, before any byte is written.

A payload is one or more parts that tile ``[0, d)`` in order. A part is a support (which of its coordinates
are sent) with values. Everything is frozen; only structure is checked here, content where bytes are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import ConfigError, StaleReference
from gradwire.fields import Field
from gradwire.rng import Key

__all__ = [
    "Cyclic",
    "Dithered",
    "Every",
    "Explicit",
    "Factors",
    "Fielded",
    "Floats",
    "Grouped",
    "Known",
    "Levels",
    "Multiples",
    "Part",
    "Payload",
    "Seeded",
    "Support",
    "Symbols",
    "Values",
]

SUPPORT_PURPOSE = "support"
THRESHOLDS_PURPOSE = "thresholds"
FLOAT_CODINGS = ("float32", "float16", "bfloat16")
_BLOCK = 2**15  # products worked on at a time: they stay in the cache


class _Frozen:
    """Equality by content: arrays bit for bit, everything else by ``==``."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        compared = (f.name for f in fields(self) if f.compare)  # type: ignore[arg-type]
        pairs = ((getattr(self, name), getattr(other, name)) for name in compared)
        return all(_same(a, b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Support(_Frozen):
    """Which of ``length`` coordinates are sent. One of Every, Explicit, Seeded, Cyclic, Known, Dithered, Fielded.

    Attributes:
        length: number of coordinates the part covers.
    """

    length: int

    @property
    def num_kept(self) -> int:
        """Number of coordinates sent."""
        raise NotImplementedError

    @property
    def indices(self) -> NDArray[np.int64]:
        """(num_kept,) int64, increasing, relative to the start of the part."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Every(Support):
    """All coordinates."""

    @property
    def num_kept(self) -> int:
        """Number of coordinates sent: all of them."""
        return self.length

    @property
    def indices(self) -> NDArray[np.int64]:
        """(length,) int64: 0, 1, 2, ..."""
        return np.arange(self.length, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Explicit(Support):
    """A list of coordinates that travels.

    Attributes:
        chosen: (k,) int64, strictly increasing, in [0, length).
        cuts: increasing coordinates inside (0, length) where the density may change, such as tensor boundaries: a
            hint for the index coding, not part of the message.
        columns: how many columns each stretch between the cuts has, row by row, or none where that is not known: a hint
            for codes with contexts, not part of the message.
        written: the stream with contexts of just these coordinates and their values, where whoever chose them wrote it
            on the way.
    """

    chosen: NDArray[np.int64]
    cuts: tuple[int, ...] = field(default=(), compare=False)
    columns: tuple[int, ...] = field(default=(), compare=False)
    written: bytes | None = field(default=None, compare=False, repr=False)

    @property
    def num_kept(self) -> int:
        """Number of coordinates sent."""
        return int(self.chosen.size)

    @property
    def indices(self) -> NDArray[np.int64]:
        """(num_kept,) int64, increasing, relative to the start of the part."""
        return self.chosen


@dataclass(frozen=True, eq=False)
class Seeded(Support):
    """Coordinates both ends draw from the same key: no index travels.

    Attributes:
        count: how many coordinates are drawn.
        key: where they are drawn from; its purpose is ``"support"`` and its round the payload's.
    """

    count: int
    key: Key

    @property
    def num_kept(self) -> int:
        """Number of coordinates sent."""
        return self.count

    @cached_property
    def _drawn(self) -> NDArray[np.int64]:
        return self.key.choice(self.length, self.count)

    @property
    def indices(self) -> NDArray[np.int64]:
        """(num_kept,) int64, increasing, relative to the start of the part."""
        return self._drawn


@dataclass(frozen=True, eq=False)
class Cyclic(Support):
    """A window of coordinates that moves on by its width each round: no index travels.

    Attributes:
        count: its width, 1 to length.
        round: the payload's round: the window starts at coordinate round * count modulo length, and goes on at 0
            after the last coordinate.
    """

    count: int
    round: int

    @property
    def num_kept(self) -> int:
        """Number of coordinates sent."""
        return self.count

    @property
    def indices(self) -> NDArray[np.int64]:
        """(num_kept,) int64, increasing, relative to the start of the part."""
        start = self.round * self.count % self.length
        wrapped = max(0, start + self.count - self.length)
        return np.concatenate([np.arange(wrapped), np.arange(start, start + self.count - wrapped)]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Known(Support):
    """The largest entries of a reference both ends hold, whose indices do not travel, and a few more that do.

    Attributes:
        count: how many: the ``count`` entries of largest magnitude of the reference, ties to the lower index.
        extra: (k,) int64, strictly increasing, outside the known coordinates.
        known: (count,) int64 increasing, or None until they are found in the reference.
    """

    count: int
    extra: NDArray[np.int64]
    known: NDArray[np.int64] | None = field(default=None, compare=False)

    @property
    def num_kept(self) -> int:
        """Number of coordinates sent."""
        return self.count + int(self.extra.size)

    @property
    def indices(self) -> NDArray[np.int64]:
        """(num_kept,) int64: the known coordinates, increasing, then the extra ones, increasing."""
        if self.known is None:
            raise StaleReference("this support is known only beside its reference, and none was given")
        return np.concatenate([self.known, self.extra])


@dataclass(frozen=True, eq=False)
class Dithered(Support):
    """Coordinates that fired when an update was rounded with thresholds that both ends draw from a key.

    Where a threshold is small a coordinate is likely to be among them: that is what makes them cheap to tell.

    Attributes:
        chosen: (k,) int64, strictly increasing, in [0, length).
        key: what thresholds are drawn from; its purpose is ``"thresholds"`` and its round the payload's.
        level: the mean magnitude of the update in steps, as the half octave that 2^32 times it is in: 0 to 127.
        golden: whether a coordinate's threshold moves on by the golden section each round, instead of being new.
    """

    chosen: NDArray[np.int64]
    key: Key
    level: int
    golden: bool = False

    @property
    def num_kept(self) -> int:
        """Number of coordinates sent."""
        return int(self.chosen.size)

    @property
    def indices(self) -> NDArray[np.int64]:
        """(num_kept,) int64, increasing, relative to the start of the part."""
        return self.chosen


@dataclass(frozen=True, eq=False)
class Fielded(Support):
    """Coordinates that fired, coded beside a field of row and column levels that both ends hold.

    Attributes:
        count: how many.
        key: as of ``Dithered``.
        level: as of ``Dithered``: the level of a coordinate is this, and what the field says of it.
        golden: as of ``Dithered``.
        field_digest: four bytes that name the field.
        apart: int64, strictly increasing: those that the code leaves out.
        code: the range code of all others.
        chosen: (count,) int64 increasing, or None until they are read beside the field.
    """

    count: int
    key: Key
    level: int
    golden: bool
    field_digest: bytes
    apart: NDArray[np.int64]
    code: bytes
    chosen: NDArray[np.int64] | None = field(default=None, compare=False)

    @property
    def num_kept(self) -> int:
        """Number of coordinates sent."""
        return self.count

    @property
    def indices(self) -> NDArray[np.int64]:
        """(num_kept,) int64, increasing, relative to the start of the part."""
        if self.chosen is None:
            raise StaleReference(
                f"this support is known only beside field {self.field_digest.hex()}, and none was given"
            )
        return self.chosen


@dataclass(frozen=True, eq=False)
class Values(_Frozen):
    """The numbers at a support's coordinates. One of Floats, Symbols, Levels, Multiples, Factors, Grouped."""

    @property
    def num_values(self) -> int:
        """How many there are."""
        raise NotImplementedError

    @property
    def zeros_possible(self) -> bool:
        """Whether a number may be zero; False only where none can."""
        return True

    @property
    def num_bytes(self) -> int:
        """Bytes they take on the wire when nothing is entropy-coded."""
        raise NotImplementedError

    @property
    def num_coded(self) -> int:
        """How many numbers or symbols travel for them."""
        return self.num_values

    def take(self, chosen: NDArray[np.int64], support: Support) -> Values:
        """Return some of the values.

        Args:
            chosen: (m,) int64, increasing: positions among the values.
            support: the support they belong to now.

        Returns:
            (m,) values, which stand for the same numbers.
        """
        raise NotImplementedError

    def numbers(self, support: Support) -> NDArray[np.float32]:
        """Return the float32 numbers these stand for.

        Args:
            support: the part's support, which block scales are counted along.

        Returns:
            (num_values,) float32.
        """
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Floats(Values):
    """Floating-point numbers as they are.

    Attributes:
        data: (k,) float32, or (k,) float16, or (k,) uint16 holding bfloat16 bits.
        coding: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
    """

    data: NDArray[Any]
    coding: str = "float32"

    @property
    def num_values(self) -> int:
        """How many there are."""
        return int(self.data.size)

    @property
    def num_bytes(self) -> int:
        """Bytes they take on the wire when nothing is entropy-coded."""
        return self.data.nbytes

    def take(self, chosen: NDArray[np.int64], support: Support) -> Floats:
        """Return some of the values."""
        return Floats(self.data[chosen], self.coding)

    def numbers(self, support: Support) -> NDArray[np.float32]:
        """Return (k,) float32; float32 data is returned itself, not a copy."""
        if self.coding == "bfloat16":
            return (self.data.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return self.data.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class Symbols(Values):
    """Integers on an evenly spaced grid, centred on zero or with a zero point.

    Symbol s of n stands for ``scale * (s - zero)``, computed in float32. The zero is (n - 1) / 2, so that n odd has an
    exact zero; or it is the scale's zero point, one of the symbols.

    Attributes:
        symbols: (k,) uint16, each below ``num_symbols``.
        num_symbols: n >= 2.
        scales: (s,) float32 > 0: one for all, or one for each block that has a kept entry, in order.
        block: coordinates of the part a scale covers, or 0 for all of them.
        zero_points: (s,) uint16, each below ``num_symbols``: the symbol of zero, or None for a centred grid.
    """

    symbols: NDArray[np.uint16]
    num_symbols: int
    scales: NDArray[np.float32]
    block: int = 0
    zero_points: NDArray[np.uint16] | None = None

    @property
    def num_values(self) -> int:
        """How many there are."""
        return int(self.symbols.size)

    @property
    def num_bytes(self) -> int:
        """Bytes they take on the wire when nothing is entropy-coded."""
        width = (self.num_symbols - 1).bit_length()
        zeros = 0 if self.zero_points is None else self.zero_points.size
        return -(-self.symbols.size * width // 8) + -(-zeros * width // 8) + self.scales.nbytes

    def take(self, chosen: NDArray[np.int64], support: Support) -> Symbols:
        """Return some of the values, with the scales and zero points they need."""
        scales, zeros = self.scales, self.zero_points
        if self.block:
            used = np.unique(block_ranks(support, self.block)[chosen])
            scales, zeros = scales[used], None if zeros is None else zeros[used]
        return Symbols(self.symbols[chosen], self.num_symbols, scales, self.block, zeros)

    def numbers(self, support: Support) -> NDArray[np.float32]:
        """Return (k,) float32: the grid points the symbols stand for."""
        scales, zeros = self.scales, self.zeros
        if self.block:
            ranks = block_ranks(support, self.block)
            scales, zeros = scales[ranks], zeros[ranks]
        return (self.symbols.astype(np.float32) - zeros) * scales

    @property
    def zeros(self) -> NDArray[np.float32]:
        """(s,) float32: where zero is among the symbols, for each scale; between two of them on a centred even grid."""
        if self.zero_points is None:
            return np.full(self.scales.size, (self.num_symbols - 1) / 2, np.float32)
        return self.zero_points.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Levels(Values):
    """Signed entries of a table of magnitudes.

    Symbol s stands for ``levels[s >> 1]``, negated where s is odd.

    Attributes:
        symbols: (k,) uint16, each below ``2 * levels.size``.
        levels: (p,) float32, 0 or more.
    """

    symbols: NDArray[np.uint16]
    levels: NDArray[np.float32]

    @property
    def num_values(self) -> int:
        """How many there are."""
        return int(self.symbols.size)

    @property
    def num_bytes(self) -> int:
        """Bytes they take on the wire when nothing is entropy-coded."""
        return -(-self.symbols.size * (2 * self.levels.size - 1).bit_length() // 8) + self.levels.nbytes

    def take(self, chosen: NDArray[np.int64], support: Support) -> Levels:
        """Return some of the values."""
        return Levels(self.symbols[chosen], self.levels)

    @property
    def bound(self) -> float:
        """No number is of larger magnitude: the largest level."""
        return float(self.levels.max())

    @property
    def zeros_possible(self) -> bool:
        """Whether a number may be zero: whether a level is."""
        return not self.levels.all()

    def numbers(self, support: Support) -> NDArray[np.float32]:
        """Return (k,) float32: the signed magnitudes the symbols stand for."""
        table = np.empty(2 * self.levels.size, np.float32)
        table[::2] = self.levels
        np.negative(self.levels, out=table[1::2])
        return table[self.symbols]


@dataclass(frozen=True, eq=False)
class Multiples(Values):
    """Integers, none of them 0, times a step.

    Attributes:
        counts: (k,) int32: how many steps, -2^24 to 2^24.
        step: above 0; a number is the product in float32.
    """

    counts: NDArray[np.int32]
    step: np.float32

    @property
    def num_values(self) -> int:
        """How many there are."""
        return int(self.counts.size)

    @property
    def num_bytes(self) -> int:
        """Bytes they take on the wire when nothing is entropy-coded."""
        return 4 + -(-self.counts.size * (1 + self.largest.bit_length()) // 8)

    @property
    def zeros_possible(self) -> bool:
        """Whether a number may be zero: none is."""
        return False

    @property
    def largest(self) -> int:
        """The largest magnitude among the integers, 0 where there are none."""
        return max(int(self.counts.max()), -int(self.counts.min())) if self.counts.size else 0

    @property
    def bound(self) -> float:
        """No number is of larger magnitude."""
        return float(np.float32(self.largest) * self.step)

    def take(self, chosen: NDArray[np.int64], support: Support) -> Multiples:
        """Return some of the values."""
        return Multiples(self.counts[chosen], self.step)

    def numbers(self, support: Support) -> NDArray[np.float32]:
        """Return (k,) float32: the products."""
        return self.counts.astype(np.float32) * self.step


@dataclass(frozen=True, eq=False)
class Factors(Values):
    """A matrix of low approximation rank, row by row: entry (i, j) is the sum over k of p[i, k] q[j, k].

    The products are exact in float64, added there in order of k, and the sum is rounded to float32 once: no order
    is left to a linear algebra library, so that the numbers are the same everywhere.

    Attributes:
        p: (m, r) float32.
        q: (n, r) float32, r >= 1.
    """

    p: NDArray[np.float32]
    q: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.p.ndim != 2 or self.q.ndim != 2 or self.p.shape[1] != self.q.shape[1] or self.p.shape[1] == 0:
            raise ConfigError(f"factors must be (m, r) and (n, r) with r >= 1, got {self.p.shape} and {self.q.shape}")

    @property
    def num_values(self) -> int:
        """How many there are: m n."""
        return int(self.p.shape[0] * self.q.shape[0])

    @property
    def num_bytes(self) -> int:
        """Bytes they take on the wire when nothing is entropy-coded."""
        return self.p.nbytes + self.q.nbytes

    @property
    def num_coded(self) -> int:
        """How many numbers travel: r (m + n)."""
        return int(self.p.size + self.q.size)

    @property
    def bound(self) -> float:
        """No number is of larger magnitude: the sum over k of max_i |p[i, k]| max_j |q[j, k]|, in float64."""
        largest = (np.abs(x).max(axis=0, initial=0.0).astype(np.float64) for x in (self.p, self.q))
        total = 0.0
        for p, q in zip(*largest, strict=True):
            total += float(p) * float(q)
        return total

    def take(self, chosen: NDArray[np.int64], support: Support) -> Floats:
        """Return some of the values, as floats: part of a matrix has no factors."""
        return Floats(self.numbers(support)[chosen])

    def numbers(self, support: Support) -> NDArray[np.float32]:
        """Return (m n,) float32: the product, row by row."""
        rows, columns = self.p.shape[0], self.q.shape[0]
        p, q = self.p.astype(np.float64), np.ascontiguousarray(self.q.T, np.float64)
        out = np.empty((rows, columns), np.float32)
        step = max(1, _BLOCK // max(1, columns))
        with np.errstate(over="ignore"):  # decoded factors are bounded; what is computed here is checked by its maker
            for start in range(0, rows, step):
                block = p[start : start + step]
                total = block[:, :1] * q[0]
                product = np.empty_like(total)
                for k in range(1, q.shape[0]):
                    total += np.multiply(block[:, k : k + 1], q[k], out=product)
                out[start : start + step] = total
        return out.reshape(-1)


@dataclass(frozen=True, eq=False)
class Grouped(Values):
    """Values in groups, one after the other in the order of the indices, each with a scale or table of its own.

    Attributes:
        members: the values of each group: two groups or more, none of them empty.
    """

    members: tuple[Values, ...]

    def __post_init__(self) -> None:
        if len(self.members) < 2 or not all(member.num_values for member in self.members):
            raise ConfigError(f"groups must be two or more, none empty, got {[m.num_values for m in self.members]}")
        if any(isinstance(m, (Grouped, Factors)) or (isinstance(m, Symbols) and m.block) for m in self.members):
            raise ConfigError("groups hold numbers, or symbols of one scale: no groups, factors or blocks")

    @property
    def num_values(self) -> int:
        """How many there are."""
        return sum(member.num_values for member in self.members)

    @property
    def zeros_possible(self) -> bool:
        """Whether a number may be zero in one of the groups."""
        return any(member.zeros_possible for member in self.members)

    @property
    def num_bytes(self) -> int:
        """Bytes they take on the wire when nothing is entropy-coded."""
        return sum(member.num_bytes for member in self.members)

    def take(self, chosen: NDArray[np.int64], support: Support) -> Values:
        """Return some of the values, in the groups that are left."""
        stops = np.cumsum([member.num_values for member in self.members])
        pieces = np.split(chosen, np.searchsorted(chosen, stops[:-1]))
        starts = [0, *stops.tolist()]
        left = [
            member.take(piece - start, support)
            for member, piece, start in zip(self.members, pieces, starts, strict=False)
            if piece.size
        ]
        return Grouped(tuple(left)) if len(left) > 1 else left[0] if left else Floats(np.empty(0, np.float32))

    def numbers(self, support: Support) -> NDArray[np.float32]:
        """Return (k,) float32: what each group stands for."""
        return np.concatenate([member.numbers(support) for member in self.members])


def block_ranks(support: Support, block: int) -> NDArray[np.int64]:
    """Number the blocks that hold a kept entry from 0 on and give each kept entry its block's number.

    Args:
        support: the support.
        block: coordinates to a block.

    Returns:
        (num_kept,) int64, non-decreasing.
    """
    blocks = support.indices // block
    if not blocks.size:
        return blocks
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(blocks[1:] != blocks[:-1])])


@dataclass(frozen=True, eq=False)
class Part(_Frozen):
    """A range of coordinates: its support and the values there.

    Attributes:
        support: which coordinates are sent.
        values: the numbers there.

    Example:
        >>> import numpy as np
        >>> from gradwire.payload import Explicit, Floats, Part
        >>> Part(Explicit(5, np.array([3])), Floats(np.array([2.0], np.float32))).length
        5
    """

    support: Support
    values: Values

    @property
    def length(self) -> int:
        """Number of coordinates covered."""
        return self.support.length

    def numbers(self) -> NDArray[np.float32]:
        """Return the (num_kept,) float32 numbers sent."""
        return self.values.numbers(self.support)


@dataclass(frozen=True, eq=False)
class Payload(_Frozen):
    """One message: parts that tile [0, d), and where in the conversation it stands.

    Attributes:
        d: length of the update.
        parts: at least one; their lengths add up to d.
        round: the round it belongs to.
        sequence: the sender's running number; (client_id, sequence) tells replays.
        layout_digest: four bytes of the layout it was made for; zeros when unknown.
        reference_digest: eight bytes of the reference it leans on, or None.
        sum_weights: downlink only: total weight of the clients in the round; None on the uplink.
        packet: (number, count) where this is one of several packets of a payload, else None.
        coder: how symbols are coded: ``"auto"`` (the cheapest), ``"packed"``, ``"huffman"``, ``"ans"``,
            ``"rle"``; or ``"context"``, contexts where they take fewer bytes; not part of the message.
        shipped_field: downlink only: levels that payloads may lean on from now on, or None.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> payload = gw.decode(gw.Client(gw.topk(0.5), gw.Layout.flat(4)).compress(np.float32([4, 3, 2, 1])))
        >>> payload.num_kept
        2
    """

    d: int
    parts: tuple[Part, ...]
    round: int = 0
    sequence: int = 0
    layout_digest: bytes = b"\0\0\0\0"
    reference_digest: bytes | None = None
    sum_weights: float | None = None
    packet: tuple[int, int] | None = None
    coder: str = field(default="auto", compare=False)
    shipped_field: Field | None = None

    def __post_init__(self) -> None:
        covered = 0
        for number, part in enumerate(self.parts):
            covered += part.length
            if part.values.num_values != part.support.num_kept:
                raise ConfigError(
                    f"part {number}: {part.support.num_kept} coordinates but {part.values.num_values} values"
                )
            if isinstance(part.values, Factors) and not isinstance(part.support, Every):
                raise ConfigError(f"part {number}: factors need every coordinate, got {type(part.support).__name__}")
            if isinstance(part.values, Grouped) and isinstance(part.support, Known):
                raise ConfigError(f"part {number}: a known support has no groups, cut it in parts")
        if not self.parts or covered != self.d:
            raise ConfigError(f"parts must tile [0, {self.d}), got {len(self.parts)} parts over {covered} coordinates")

    @property
    def num_kept(self) -> int:
        """Number of coordinates sent."""
        return sum(part.support.num_kept for part in self.parts)


def _same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
            return False
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return bool(a == b)
