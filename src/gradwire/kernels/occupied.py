"""Where a vector is not zero, compiled by Numba: one pass where a sample tells how much room that takes, else two."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from gradwire.kernels import blocks, threads
from gradwire.kernels.blocks import BLOCK
from gradwire.kernels.jit import array, count_ones, kernel, plain, trailing_zeros
from gradwire.kernels.select import take_sample

__all__ = ["occupied"]

_SAMPLED = 1 << 12  # values of a range
_0, _1 = np.uint64(0), np.uint64(1)

_U32, _OUT_I64 = array(types.uint32), array(types.int64, readonly=False)

Bits = NDArray[np.uint32]


def occupied(values: NDArray[np.float32], most: int) -> NDArray[np.int64] | None:
    """Find what is not zero; see ``reference.occupied``."""
    bits = plain(values, np.float32).view(np.uint32)
    ranges = threads.split(bits.size)
    rooms = [_expected(bits[r]) for r in ranges]
    if sum(rooms) <= most:
        found, counts = _collect(bits, ranges, rooms)
        if all(count <= room for count, room in zip(counts, rooms, strict=True)):
            return _joined(found, counts)
    counts = threads.run([partial(_count, bits[r]) for r in ranges])
    return _joined(*_collect(bits, ranges, counts)) if sum(counts) <= most else None


def _expected(bits: Bits) -> int:
    """Room for what is not zero, by a sample: enough but where that misleads."""
    if bits.size <= 2 * _SAMPLED:
        return bits.size
    sample = np.empty(_SAMPLED, np.uint32)
    take_sample(bits, sample)
    number = int(np.count_nonzero(sample))
    return min(bits.size, math.ceil((number + 4 * math.sqrt(number) + 4) * bits.size / _SAMPLED))


def _collect(bits: Bits, ranges: list[slice], rooms: list[int]) -> tuple[list[NDArray[np.int64]], list[int]]:
    """Of each range the places found, as far as there is room, and how many they are."""
    found = [np.empty(room + BLOCK, np.int64) for room in rooms]
    tasks = [partial(_write, bits[r], r.start, n, out) for r, n, out in zip(ranges, rooms, found, strict=True)]
    return found, threads.run(tasks)


def _joined(found: list[NDArray[np.int64]], counts: list[int]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *(x[:n] for x, n in zip(found, counts, strict=True))])


@kernel(types.int64, _U32, types.int64, types.int64, _OUT_I64)
def _write(bits: Bits, base: int, room: int, places: NDArray[np.int64]) -> int:
    """Write where values are not zero; the count stops growing a block past the room."""
    count = 0
    whole = bits.size // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        mask = blocks.occupied(bits, start)
        while mask != _0:
            places[count] = base + start + np.int64(trailing_zeros(mask))
            mask &= mask - _1
            count += 1
        if count > room:
            return count
    for at in range(whole, bits.size):
        if bits[at] != 0:
            places[count] = base + at
            count += 1
    return count


@kernel(types.int64, _U32)
def _count(bits: Bits) -> Any:
    """Count what is not zero."""
    count = _0
    whole = bits.size // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        count += count_ones(blocks.occupied(bits, start))
    for at in range(whole, bits.size):
        count += np.uint64(bits[at] != 0)
    return count
