"""The reference: the vector both ends hold, kept as sparse as it came."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.fields import Field
from gradwire.kernels import ops
from gradwire.payload import Every, Payload

__all__ = ["Reference", "as_reference"]


@dataclass(frozen=True, eq=False)
class Reference:
    """A vector of which only the listed coordinates may differ from zero; it does not change.

    What ``largest`` selected is remembered, since a server is asked the same for every payload of a round: at most as
    many indices as there are numbers, a quarter of that where all coordinates are listed; older ones are forgotten.

    Attributes:
        d: its length.
        numbers: (k,) float32; (d,) where all coordinates are listed.
        indices: (k,) int64 increasing, or None where all coordinates are listed.
        held_field: levels of rows and columns that a payload leans on, or None.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> blob = gw.Client(gw.topk(0.5), gw.Layout.flat(4)).compress(np.array([1, -4, 2, 0], np.float32))
        >>> reference = gw.Reference.of(gw.decode(blob))
        >>> reference.largest(0, 4, 1).tolist(), reference.at(np.array([0, 2])).tolist()
        ([1], [0.0, 2.0])
    """

    d: int
    numbers: NDArray[np.float32]
    indices: NDArray[np.int64] | None = None
    held_field: Field | None = None
    _selected: dict[tuple[int, int, int], NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, payload: Payload) -> Reference:
        """Make the reference a payload stands for.

        Args:
            payload: one that leans on no reference itself, as a server's does.

        Returns:
            The reference: what ``decompress`` gives, sparse where the payload is.
        """
        numbers = [part.numbers() for part in payload.parts if part.support.num_kept]
        joined = np.concatenate(numbers) if numbers else np.empty(0, np.float32)
        if all(isinstance(part.support, Every) for part in payload.parts):
            return cls(payload.d, joined)
        starts = np.cumsum([0, *(part.length for part in payload.parts)])
        indices = [start + p.support.indices for start, p in zip(starts, payload.parts, strict=False)]
        return cls(payload.d, joined, np.concatenate(indices))

    @classmethod
    def beside(cls, field: Field | None, reference: Reference | None, d: int) -> Reference | None:
        """Join what a payload leans on.

        Args:
            field: the field, or None.
            reference: the reference, or None.
            d: length of the update.

        Returns:
            Both, zeros standing for the vector where there is none; None where there is nothing to lean on.
        """
        if field is None:
            return reference
        if reference is None:
            return cls(d, np.empty(0, np.float32), np.empty(0, np.int64), field)
        return cls(d, reference.numbers, reference.indices, field)

    def largest(self, start: int, length: int, k: int) -> NDArray[np.int64]:
        """Select the k entries of largest magnitude of a stretch, never zeros; ties go to the lower index.

        Args:
            start: where the stretch begins.
            length: how long it is.
            k: how many, 0 <= k <= length.

        Returns:
            (m,) int64 increasing, m <= k, counted from ``start``; read-only.
        """
        asked = (start, length, k)
        found = self._selected.get(asked)
        if found is None:
            found = self._select(start, length, k)
            found.flags.writeable = False
            self._remember(asked, found)
        return found

    def _remember(self, asked: tuple[int, int, int], found: NDArray[np.int64]) -> None:
        room = self.numbers.size // (4 if self.indices is None else 1)
        if found.size > room:
            return
        held = self._selected
        held[asked] = found
        size = sum(x.size for x in list(held.values()))
        for oldest in list(held):
            if size <= room:
                break
            size -= held.pop(oldest, found).size

    def _select(self, start: int, length: int, k: int) -> NDArray[np.int64]:
        if self.indices is None:
            return ops.topk(self.numbers[start : start + length], k)
        low, high = np.searchsorted(self.indices, [start, start + length])
        inside = self.indices[low:high]
        return inside[ops.topk(self.numbers[low:high], min(k, inside.size))] - start

    def at(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Look numbers up.

        Args:
            indices: (n,) int64 increasing, in [0, d).

        Returns:
            (n,) float32.
        """
        if self.indices is None:
            return self.numbers[indices]
        return np.append(self.numbers, np.float32(0))[ops.find(self.indices, indices)]

    @cached_property
    def vector(self) -> NDArray[np.float32]:
        """(d,) float32: the whole of it."""
        if self.indices is None:
            return self.numbers
        out = np.zeros(self.d, np.float32)
        out[self.indices] = self.numbers
        return out


def as_reference(reference: Any) -> Reference:
    """Return a reference given as one, or as a (d,) float32 vector."""
    return reference if isinstance(reference, Reference) else Reference(int(reference.size), np.asarray(reference))
