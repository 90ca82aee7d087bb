"""Exact model-wide selection over tensors that are never in memory together."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.compressor import Round, State, Vector
from gradwire.compressors.guarantee import Guarantee, Unknown
from gradwire.compressors.pipeline import Sparsifier
from gradwire.compressors.sparsify import num_kept_of, part_at
from gradwire.payload import Part

__all__ = ["Border", "Candidates", "Chosen", "find_border"]

_SHIFT = 12  # magnitudes are counted by their top 19 of 31 bits: 4 MB of counters
_PIECE = 1 << 20
_WHOLE = -1


class Border(NamedTuple):
    """The class of nearly equal magnitudes in which the k-th largest falls, as float32 bits without the sign.

    Attributes:
        low: the least that belongs to it.
        high: the least above it; all from there on are among the k.
        missing: how many of the class are among the k.
    """

    low: int
    high: int
    missing: int


def find_border(density: float, sizes: list[int], tensor: Callable[[int], Vector]) -> Border:
    """Find the class in which the k-th largest magnitude of all falls, zeros left out.

    Args:
        density: k / d, k as for ``topk``.
        sizes: elements of each tensor.
        tensor: gives the (size,) float32 vector of a number; called once for each, in order.

    Returns:
        The border; where fewer than k entries are not zero it lies below them all.
    """
    k = num_kept_of(density, sum(sizes)) if sum(sizes) else 0
    histogram = np.zeros(1 << (31 - _SHIFT), np.int64)
    for number in range(len(sizes)):
        for _, bits in _pieces(tensor(number)):
            histogram += np.bincount(bits >> _SHIFT, minlength=histogram.size)
            histogram[0] -= bits.size - np.count_nonzero(bits)
    from_top = np.cumsum(histogram[::-1])[::-1]  # entries in this class or above
    if from_top[0] <= k:
        return Border(1, 1, 0)
    border = int(np.flatnonzero(from_top > k)[-1])
    missing = k - int(from_top[border] - histogram[border])
    return Border(max(1, border << _SHIFT), (border + 1) << _SHIFT, missing)


@dataclass(frozen=True, eq=False, repr=False)
class Chosen(Sparsifier):
    """Send the coordinates that were chosen before.

    Args:
        indices: (k,) int64, increasing.
    """

    indices: NDArray[np.int64]

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Keep them."""
        return [part_at(update, self.indices)]

    def guarantee(self, d: int) -> Guarantee:
        """Nothing: it depends on what was chosen."""
        return Unknown()


class Candidates:
    """What may be among the k of largest magnitude, laid aside in a temporary file; use as a context manager.

    All tensors are put, then all are taken, in the same order. The k-th magnitude is known when the last was put: the
    border's magnitudes are counted one by one on the way. What cannot be among the k any more, since the class has as
    many before it that are no smaller, is left out.

    Memory is bounded by a tensor. The file takes 8 bytes an entry, 4 a coordinate where that is less. It has no name,
    so that it is gone whatever ends the program.

    Args:
        border: from ``find_border``.
        folder: where the file is.
        whole: lay everything aside, so that ``take`` gives vectors as they were put.

    Raises:
        OSError: when the file cannot be made.
    """

    def __init__(self, border: Border, folder: Path, whole: bool = False) -> None:
        self._border, self._whole = border, whole
        self._inside = np.zeros(1 << _SHIFT, np.int64)  # entries of each magnitude in the border
        self._least = border.low if border.missing else border.high  # what a later entry needs
        self._num_ties = 0  # how many of the magnitude just below it are among the k
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._taken = 0

    def put(self, vector: Vector) -> None:
        """Lay the candidates of the next tensor aside: (n,) float32."""
        for piece, bits in _pieces(vector):
            found = np.flatnonzero(bits >= self._least)
            if self._whole or 2 * found.size >= piece.size:
                self._file.write(struct.pack("<i", _WHOLE))
                self._file.write(piece.data)
            else:
                self._file.write(struct.pack("<i", found.size))
                self._file.write(found.astype(np.uint32).data)
                self._file.write(piece[found].data)
            if self._border.missing:
                self._count(bits[found])

    def _count(self, bits: NDArray[np.int32]) -> None:
        """Count the border's magnitudes, and raise what a later entry needs to be among the k."""
        inside = bits[bits < self._border.high] & ((1 << _SHIFT) - 1)
        self._inside += np.bincount(inside, minlength=self._inside.size)
        from_top = np.cumsum(self._inside[::-1])[::-1]
        if from_top[0] >= self._border.missing:
            kth = int(np.flatnonzero(from_top >= self._border.missing)[-1])
            self._num_ties = self._border.missing - int(from_top[kth] - self._inside[kth])
            self._least = (self._border.high - (1 << _SHIFT)) + kth + 1

    def take(self, size: int) -> tuple[Vector, Chosen]:
        """Give the next tensor back.

        Args:
            size: its elements.

        Returns:
            (size,) float32 with zeros for entries that are not candidates, unless all were laid aside; and the stage
            that chooses those of its entries which are among the k.
        """
        self._file.seek(self._taken)
        vector = np.zeros(size, np.float32)
        chosen = [np.empty(0, np.int64)]
        for start in range(0, size, _PIECE):
            piece = vector[start : start + _PIECE]
            count = struct.unpack("<i", self._file.read(4))[0]
            where = np.arange(piece.size) if count == _WHOLE else np.frombuffer(self._file.read(4 * count), np.uint32)
            values = np.frombuffer(self._file.read(4 * where.size), np.float32)
            piece[where] = values
            bits = _magnitudes(values)
            kept = bits >= self._least
            ties = np.flatnonzero(bits == self._least - 1)[: self._num_ties]
            kept[ties] = True
            self._num_ties -= ties.size
            chosen.append(where[kept].astype(np.int64) + start)
        self._taken = self._file.tell()
        return vector, Chosen(np.concatenate(chosen))

    def __enter__(self) -> Candidates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _magnitudes(vector: Vector) -> NDArray[np.int32]:
    """Magnitudes as integers, which sort alike."""
    bits: NDArray[np.int32] = vector.view(np.int32) & np.int32(0x7FFFFFFF)
    return bits


def _pieces(vector: Vector) -> Iterator[tuple[Vector, NDArray[np.int32]]]:
    """A vector in pieces that bound what is copied, each with its magnitudes."""
    for start in range(0, vector.size, _PIECE):
        piece = vector[start : start + _PIECE]
        yield piece, _magnitudes(piece)
