"""Passes over whole vectors, compiled by Numba, at the speed of memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from gradwire.journal import Journal
from gradwire.kernels import reference, threads
from gradwire.kernels.blocks import BLOCK, INFINITE, sum_reaching, write_sum
from gradwire.kernels.jit import array, kernel, plain

__all__ = ["Added", "accumulate_at", "add_finite", "find_intervals", "gather", "signed_symbols", "subtract"]

SUMMED, LANES = reference.SUMMED, reference.LANES
_SUMMED, _LANES = np.uint64(SUMMED), np.uint64(LANES)
_0 = np.uint64(0)

_TABLE_FROM = 4096  # magnitudes that are worth a table
_CELL_BITS = 16  # lower bits of a float32 in which the numbers of a cell differ
_SIGNLESS_BITS = 31

_F32, _F64, _I64, _U16, _U64 = (
    array(t) for t in (types.float32, types.float64, types.int64, types.uint16, types.uint64)
)
_OUT_F32, _OUT_F64 = array(types.float32, readonly=False), array(types.float64, readonly=False)
_OUT_I64, _OUT_U16 = array(types.int64, readonly=False), array(types.uint16, readonly=False)


def accumulate_at(
    out: NDArray[np.float32], indices: NDArray[np.int64], numbers: NDArray[np.float32], weight: float
) -> None:
    """Add ``weight * numbers`` at distinct indices, in place; see ``reference.accumulate_at``."""
    if not (out.flags.c_contiguous and out.flags.aligned and indices.size == numbers.size):
        reference.accumulate_at(out, indices, numbers, weight)
        return
    indices, numbers = plain(indices, np.int64), plain(numbers, np.float32)
    _check_indices(indices, out.size)
    factor = np.float32(weight)
    threads.over(indices.size, lambda r: _accumulate_at(out, indices[r], numbers[r], factor), threads.FEW)


@kernel(types.void, _OUT_F32, _I64, _F32, types.float32)
def _accumulate_at(
    out: NDArray[np.float32], indices: NDArray[np.int64], numbers: NDArray[np.float32], weight: Any
) -> None:
    for i in range(indices.size):
        out[np.uint64(indices[i])] += weight * numbers[i]


def gather(values: NDArray[np.float32], indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read the numbers at some indices; see ``reference.gather``."""
    values, indices = plain(values, np.float32), plain(indices, np.int64)
    _check_indices(indices, values.size)
    out = np.empty(indices.size, np.float32)
    threads.over(indices.size, lambda r: _gather(values, indices[r], out[r]), threads.FEW)
    return out


@kernel(types.void, _F32, _I64, _OUT_F32)
def _gather(values: NDArray[np.float32], indices: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    for i in range(indices.size):
        out[i] = values[np.uint64(indices[i])]


def _check_indices(indices: NDArray[np.int64], size: int) -> None:
    if not _inside(indices.view(np.uint64), size):
        raise IndexError(f"indices must be in [0, {size}), got {indices.min()} to {indices.max()}")


@kernel(types.boolean, _U64, types.uint64)
def _inside(indices: NDArray[np.uint64], size: Any) -> bool:
    """Whether all are below ``size``; those below 0 are the largest here."""
    outside = False
    for i in range(indices.size):
        outside |= indices[i] >= size
    return not outside


class Added:
    """An addend on its way into a vector: how far each range has come, so that it can be taken out at any point.

    Kernels leave in ``done`` how many elements of their range are added; none is interrupted on its way.

    Args:
        total: the vector.
        addend: one vector, or several that are it, one after the other.
        decay: what the total is multiplied with.
        weight: what the addend is multiplied with.
    """

    def __init__(
        self,
        total: NDArray[np.float32],
        addend: NDArray[np.float32] | Sequence[NDArray[np.float32]],
        decay: np.float32,
        weight: float = 1.0,
    ) -> None:
        self.decay, self._weight, self._total = decay, np.float32(weight), total
        self.ranges: list[slice] = []
        self.addends: list[NDArray[np.float32]] = []
        start = 0
        for piece in map(np.ascontiguousarray, reference.pieces_of(addend)):
            for r in threads.split(piece.size):
                self.ranges.append(slice(start + r.start, start + r.stop))
                self.addends.append(piece[r])
            start += piece.size
        self.done = [np.zeros(1, np.int64) for _ in self.ranges]

    @property
    def complete(self) -> bool:
        """Whether all of it is in."""
        return sum(int(done[0]) for done in self.done) == self._total.size

    def put_in(self, journal: Journal) -> bool:
        """Add where all sums are finite, and tell whether they were."""
        journal.note(self.take_out)
        parts = zip(self.ranges, self.addends, self.done, strict=True)
        threads.run([partial(_add, self._total[r], addend, self.decay, done) for r, addend, done in parts])
        if not self.complete:
            self.take_out()
        return self.complete

    def take_out(self) -> None:
        """Take out again what was added, to float32 rounding; nothing a second time."""
        for r, addend, done in zip(self.ranges, self.addends, self.done, strict=True):
            _take_out(self._total[r], addend, self.decay, self._weight, done)


def add_finite(total: NDArray[np.float32], addend: NDArray[np.float32], decay: float, journal: Journal) -> bool:
    """Add in place where all sums are finite; see ``reference.add_finite``."""
    return Added(total, addend, np.float32(decay)).put_in(journal)


def subtract(total: NDArray[np.float32], numbers: NDArray[np.float32], journal: Journal) -> None:
    """Subtract in place; see ``reference.subtract``."""
    subtracted = Added(total, numbers, np.float32(1), -1.0)
    journal.note(subtracted.take_out)
    parts = zip(subtracted.ranges, subtracted.addends, subtracted.done, strict=True)
    threads.run([partial(_subtract, total[r], addend, done) for r, addend, done in parts])


@kernel(types.void, _OUT_F32, _F32, _OUT_I64)
def _subtract(total: NDArray[np.float32], numbers: NDArray[np.float32], done: NDArray[np.int64]) -> None:
    for i in range(total.size):
        total[i] -= numbers[i]
    done[0] = total.size


@kernel(types.void, _OUT_F32, _F32, types.float32, _OUT_I64)
def _add(total: NDArray[np.float32], addend: NDArray[np.float32], decay: Any, done: NDArray[np.int64]) -> None:
    """Add block by block, up to the first block whose sums are not all finite."""
    whole = total.size // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        if sum_reaching(total, addend, start, decay, INFINITE) != _0:
            done[0] = start
            return
        write_sum(total, addend, start, decay)
    for i in range(whole, total.size):
        if not np.isfinite(total[i] * decay + addend[i]):
            done[0] = whole
            return
    for i in range(whole, total.size):
        total[i] = total[i] * decay + addend[i]
    done[0] = total.size


@kernel(types.void, _OUT_F32, _F32, types.float32, types.float32, _OUT_I64)
def _take_out(
    total: NDArray[np.float32], addend: NDArray[np.float32], decay: Any, weight: Any, done: NDArray[np.int64]
) -> None:
    """Make of decay * total + weight * addend the total again, to float32 rounding, as far as it was made."""
    for i in range(done[0]):
        total[i] = (total[i] - weight * addend[i]) / decay
    done[0] = 0


def find_intervals(
    magnitudes: NDArray[np.float32], edges: NDArray[np.float64], zero: int
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.float64]]:
    """Find intervals and add up what is in each; see ``reference.find_intervals``.

    Magnitudes of the same upper bits are in one cell: a table tells the intervals its ends are in, mostly the same one.
    Where there are few, all are in one cell.
    """
    magnitudes = plain(magnitudes, np.float32)
    shift, lowest, fewest, most = _SIGNLESS_BITS, 0, np.zeros(1, np.int64), np.full(1, edges.size)
    if magnitudes.size >= _TABLE_FROM:
        shift, bits = _CELL_BITS, magnitudes.view(np.uint32)
        lowest = int(bits.min()) >> shift
        cells = np.arange(lowest, (int(bits.max()) >> shift) + 1, dtype=np.uint32) << np.uint32(shift)
        ends = (cells | np.uint32((1 << shift) - 1)).view(np.float32)
        fewest, most = (edges.size - np.searchsorted(edges, x) for x in (ends, cells.view(np.float32)))
    found = np.empty(magnitudes.size, np.uint16)
    number = max(zero, edges.size) + 1
    row = number * LANES  # for each stretch that is summed apart
    num_cells = -(-found.size // SUMMED) * row
    all_counts, all_sums = np.zeros(num_cells, np.int64), np.zeros(num_cells)

    def compare(r: slice) -> None:  # ranges start at multiples of SUMMED
        rows = slice(r.start // SUMMED * row, -(-r.stop // SUMMED) * row)
        arrays = found[r], all_counts[rows], all_sums[rows]
        _compare(magnitudes[r], shift, lowest, fewest, most, edges, zero, row, *arrays)

    threads.over(found.size, compare, threads.FEW)
    counts, sums = np.zeros(number, np.int64), np.zeros(number)
    _add_up(all_counts, all_sums, counts, sums)
    last = int(counts.nonzero()[0][-1]) + 1
    return found, counts[:last], sums[:last]


@kernel(
    types.void,
    _F32,
    types.uint32,
    types.int64,
    _I64,
    _I64,
    _F64,
    types.int64,
    types.int64,
    _OUT_U16,
    _OUT_I64,
    _OUT_F64,
)
def _compare(
    magnitudes: NDArray[np.float32],
    shift: Any,
    lowest: int,
    fewest: NDArray[np.int64],
    most: NDArray[np.int64],
    edges: NDArray[np.float64],
    zero: int,
    row: int,
    found: NDArray[np.uint16],
    counts: NDArray[np.int64],
    sums: NDArray[np.float64],
) -> None:
    """Count the edges that are not below each magnitude: those above its cell, and those of its cell by bisection."""
    bits = magnitudes.view(np.uint32)
    for i in range(magnitudes.size):
        magnitude = np.float64(magnitudes[i])
        cell = np.uint64(bits[i] >> shift) - np.uint64(lowest)
        interval, most_here = fewest[cell], most[cell]
        while interval < most_here:
            middle = (interval + most_here) >> 1
            if edges[np.uint64(edges.size - 1 - middle)] >= magnitude:
                interval = middle + 1
            else:
                most_here = middle
        found[i] = interval if magnitude != 0 else zero
    for i in range(magnitudes.size):
        at = np.uint64(i) // _SUMMED * np.uint64(row) + np.uint64(found[i]) * _LANES + np.uint64(i) % _LANES
        counts[at] += 1
        sums[at] += magnitudes[i]


@kernel(types.void, _I64, _F64, _OUT_I64, _OUT_F64)
def _add_up(
    all_counts: NDArray[np.int64], all_sums: NDArray[np.float64], counts: NDArray[np.int64], sums: NDArray[np.float64]
) -> None:
    """Add what was summed side by side, in order, and then those of each stretch."""
    row = LANES * sums.size
    for start in range(0, all_sums.size, row):
        for interval in range(sums.size):
            apart = 0.0
            for lane in range(LANES):
                apart += all_sums[start + LANES * interval + lane]
                counts[interval] += all_counts[start + LANES * interval + lane]
            sums[interval] += apart


def signed_symbols(
    found: NDArray[np.uint16], ranks: NDArray[np.uint16], numbers: NDArray[np.float32]
) -> NDArray[np.uint16]:
    """Make symbols of magnitudes and signs; see ``reference.signed_symbols``."""
    symbols = np.empty(found.size, np.uint16)
    _signed_symbols(plain(found, np.uint16), ranks, plain(numbers, np.float32), symbols)
    return symbols


@kernel(types.void, _U16, _U16, _F32, _OUT_U16)
def _signed_symbols(
    found: NDArray[np.uint16],
    ranks: NDArray[np.uint16],
    numbers: NDArray[np.float32],
    symbols: NDArray[np.uint16],
) -> None:
    for i in range(found.size):
        symbols[i] = 2 * ranks[found[i]] + (numbers[i] < 0)
