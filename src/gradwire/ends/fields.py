"""The field at the ends: what a server learns of rows and columns, when it ships that, and how it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.compressor import Vector, resolve
from gradwire.compressors.references import Reference
from gradwire.errors import ProtocolError, StateError
from gradwire.fields import MOST, Field, num_levels
from gradwire.layout import Layout
from gradwire.payload import Dithered, Explicit, Floats, Part, Payload
from gradwire.saved import to_bytes
from gradwire.wire import decode, encode
from gradwire.wire.dithering import beside_field, encode_fielded
from gradwire.wire.fields import encode_field
from gradwire.wire.index import encode_support

__all__ = ["HELD", "Estimate", "check_field", "read_field", "saved_field"]

HELD = 16
"""Fields that a server keeps for clients that missed the newer ones."""

_FADING = 0.95  # what a round leaves of the sums
_PRIOR = 1.0  # entries of mean size that each row, column and tensor is held to have had beside what it had
_CHUNK = 1 << 20
_UNITS = (1, 2, 3, 4)  # half octaves that levels may be multiples of
_USUAL = 2


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a server knows of the rows and columns of updates, and what its clients have paid for not knowing it.

    Attributes:
        lengths: of the stretches: the layout's tensors of parameters.
        columns: of each stretch.
        sums: (n,) float64: magnitudes that rounds' means had in each row and column, fading, in the order of a field's
            levels.
        entries: how many numbers these are of, fading.
        regret: bytes that payloads took more than they would have with what was known since the last field was shipped.
        rounds: how many rounds that was.
        seen: rounds since the run began.
    """

    lengths: tuple[int, ...]
    columns: tuple[int, ...]
    sums: NDArray[np.float64]
    entries: float = 0.0
    regret: float = 0.0
    rounds: int = 0
    seen: int = 0

    @classmethod
    def of(cls, layout: Layout) -> Estimate:
        """Make the one of a run that begins."""
        bounds = (0, *layout.cuts, layout.num_parameters) if layout.num_parameters else ()
        lengths = tuple(np.diff(bounds).tolist())
        size = sum(num_levels(n, c) for n, c in zip(lengths, layout.columns, strict=True))
        return cls(lengths, layout.columns, np.zeros(size))

    def after(
        self, update: Vector, sample: Payload | None, reference: Reference | None, num_received: int, left: int | None
    ) -> tuple[Estimate, Field | None]:
        """Learn from a round, and tell what to ship now.

        A field pays where what its lack has cost a round, over all rounds to come, is more than it takes itself. Its
        error falls as one over the rounds it was learnt from: where these are the square root of those to come,
        learning on costs more than it brings. Where nobody knows how many will come, as many as there were are
        expected.

        Args:
            update: (d,) float32: the mean of what arrived.
            sample: one of the payloads that arrived, which stands for all; None where none came whole.
            reference: what it leans on, where it leans on something.
            num_received: how many arrived.
            left: rounds to come, where that is known.

        Returns:
            The next estimate, and the field to ship: None where that does not pay.
        """
        support = None if sample is None else self._support(sample, reference)
        saved = 0
        if support is not None and sample is not None and self.entries:
            saved = len(encode_support(sample.parts[0].support)[1]) - _size_beside(support, self.field())
        (sums, entries), rounds, seen = self._after(update), self.rounds + 1, self.seen + 1
        regret = max(0.0, self.regret + num_received * saved)
        following = Estimate(self.lengths, self.columns, sums, entries, regret, rounds, seen)
        left = seen if left is None else left
        if support is None or not regret or rounds**2 < left:
            return following, None
        if regret * left < num_received * len(encode_field(following.field())) * rounds:
            return following, None

        def cost(unit: int) -> int:
            field = self.field(unit)
            return len(encode_field(field)) + left * _size_beside(support, field)

        shipped = following.field(min(_UNITS, key=cost))
        return Estimate(self.lengths, self.columns, sums, entries, seen=seen), shipped

    def _support(self, sample: Payload, reference: Reference | None) -> Dithered | None:
        """What fired in a payload; None where it is of another kind."""
        found = resolve(sample, reference)[0].support
        return found if isinstance(found, Dithered) and found.length == sum(self.lengths) else None

    def _after(self, update: Vector) -> tuple[NDArray[np.float64], float]:
        """The sums and the number of entries after a round."""
        sums, entries, start, first = self.sums * _FADING, self.entries * _FADING, 0, 0
        for length, columns in zip(self.lengths, self.columns, strict=True):
            rows = -(-length // columns)
            for low in range(0, length, _CHUNK):
                magnitudes = np.abs(update[start + low : start + min(low + _CHUNK, length)])
                places = np.flatnonzero(magnitudes)
                weights, entries = magnitudes[places].astype(np.float64), entries + places.size
                row, column = np.divmod(low + places, columns)
                sums[first : first + rows] += np.bincount(row, weights, rows)
                if rows > 1:
                    sums[first + rows : first + rows + columns] += np.bincount(column, weights, columns)
            start, first = start + length, first + num_levels(length, columns)
        return sums, entries

    def field(self, unit: int = _USUAL) -> Field:
        """Make the field of what is known, of levels that are multiples of a unit."""
        levels, first = np.empty(self.sums.size, np.int8), 0
        shapes = list(zip(self.lengths, self.columns, strict=True))
        totals = self._totals()
        total, d = sum(totals), sum(self.lengths)
        prior = _PRIOR * total / self.entries if self.entries else 0.0
        for (length, columns), whole in zip(shapes, totals, strict=True):
            rows, mean = -(-length // columns), whole / length
            ratio = _ratio(np.array(whole), total * length / d, prior)
            of_rows = np.full(rows, columns * mean)
            of_rows[-1] = (length - (rows - 1) * columns) * mean
            if rows == 1:
                levels[first] = _nearest(ratio, unit)
            else:
                sums = self.sums[first : first + rows + columns]
                levels[first : first + rows] = _nearest(_ratio(sums[:rows], of_rows, prior) * ratio, unit)
                levels[first + rows : first + rows + columns] = _nearest(
                    _ratio(sums[rows:], whole / columns, prior), unit
                )
            first += num_levels(length, columns)
        return Field(self.lengths, self.columns, levels)

    def _totals(self) -> list[float]:
        """The sum of each stretch."""
        totals, first = [], 0
        for length, columns in zip(self.lengths, self.columns, strict=True):
            totals.append(sum(self.sums[first : first + -(-length // columns)].tolist()))
            first += num_levels(length, columns)
        return totals

    def saved(self) -> dict[str, Any]:
        """All of it that changes, for a state."""
        names = ("entries", "regret", "rounds", "seen")
        return {"sums": self.sums.copy(), **{name: getattr(self, name) for name in names}}

    def read(self, saved: dict[str, Any]) -> Estimate:
        """Read what ``saved`` gave, or raise StateError."""
        sums = saved["sums"]
        if not isinstance(sums, np.ndarray) or sums.shape != self.sums.shape or sums.dtype != np.float64:
            raise StateError(f"state's sums must be {self.sums.shape} float64, got {np.shape(sums)}")
        numbers = float(saved["entries"]), float(saved["regret"]), int(saved["rounds"]), int(saved["seen"])
        if not (np.isfinite(sums).all() and (sums >= 0).all() and all(0 <= n < np.inf for n in numbers)):
            raise StateError("state's sums of rows and columns must be finite and 0 or more")
        return Estimate(self.lengths, self.columns, sums.copy(), *numbers)


def _ratio(sums: NDArray[np.float64], expected: NDArray[np.float64] | float, prior: float) -> NDArray[np.float64]:
    """How much more there was than expected, as far as that is certain."""
    return np.asarray((sums + prior) / np.maximum(expected + prior, 1e-300))


def _nearest(ratios: NDArray[np.float64], unit: int) -> NDArray[np.int8]:
    """The multiples of so many half octaves that are nearest to some ratios."""
    most = MOST // unit
    bounds = 2.0 ** ((np.arange(1 - most, most + 1) - 0.5) * unit / 2)  # from which on the next one is nearer
    return (unit * (np.searchsorted(bounds, ratios, side="right") - most)).astype(np.int8)


def _size_beside(support: Dithered, field: Field) -> int:
    """The bytes that a support takes beside a field."""
    return len(encode_fielded(beside_field(support, field)))


def check_field(field: Field | None, layout: Layout) -> Field | None:
    """Return a field that was shipped, or raise ProtocolError where it is not one of this layout."""
    if field is not None and field.length != layout.num_parameters:
        raise ProtocolError(f"blob's field must be of {layout.num_parameters} parameters, got {field.length}")
    return field


def saved_field(field: Field | None) -> NDArray[np.uint8] | None:
    """Return a field as it is kept in a state."""
    if field is None:
        return None
    nothing = Part(Explicit(field.length, np.empty(0, np.int64)), Floats(np.empty(0, np.float32)))
    return np.frombuffer(encode(Payload(field.length, (nothing,), sum_weights=0.0, shipped_field=field)), np.uint8)


def read_field(saved: Any, layout: Layout) -> Field | None:
    """Read what ``saved_field`` gave, or raise StateError."""
    field = None if saved is None else decode(to_bytes(saved)).shipped_field
    if saved is not None and (field is None or field.length != layout.num_parameters):
        raise StateError(f"state's field must be of {layout.num_parameters} parameters")
    return field
