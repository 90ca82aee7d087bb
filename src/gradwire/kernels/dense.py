"""Passes over whole vectors, compiled by Numba, at the speed of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from gradwire.kernels import reference
from gradwire.kernels.jit import array, kernel

__all__ = ["add_finite", "find_intervals"]

_BLOCK = 512  # added up in the first cache and looked at, before it is written
_SIGNLESS, _INFINITE = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)

_MAX_COMPARED = 64  # edges that are compared with one by one; among more a place is searched for

_F32, _F64 = array(types.float32), array(types.float64)
_OUT_F32, _OUT_F64 = array(types.float32, readonly=False), array(types.float64, readonly=False)
_OUT_I64, _OUT_U16 = array(types.int64, readonly=False), array(types.uint16, readonly=False)


def add_finite(total: NDArray[np.float32], addend: NDArray[np.float32], decay: float) -> bool:
    """Add in place where all sums are finite; see ``reference.add_finite``."""
    done = _add(total, np.ascontiguousarray(addend), np.float32(decay))
    if done < total.size:
        _undo(total[:done], np.ascontiguousarray(addend[:done]), np.float32(decay))
    return bool(done == total.size)


@kernel(types.int64, _OUT_F32, _F32, types.float32)
def _add(total: NDArray[np.float32], addend: NDArray[np.float32], decay: Any) -> int:
    """Add block by block; return where the first block starts whose sums are not all finite, or the end."""
    scratch = np.empty(_BLOCK, np.float32)
    bits = scratch.view(np.uint32)
    whole = total.size // _BLOCK * _BLOCK
    for start in range(0, whole, _BLOCK):  # loops over slices of a fixed length become vector instructions
        here, more = total[start : start + _BLOCK], addend[start : start + _BLOCK]
        for i in range(_BLOCK):
            scratch[i] = here[i] * decay + more[i]
        largest = np.uint32(0)
        for i in range(_BLOCK):
            largest = max(largest, bits[i] & _SIGNLESS)
        if largest >= _INFINITE:
            return start
        for i in range(_BLOCK):
            here[i] = scratch[i]
    for i in range(whole, total.size):
        scratch[i - whole] = total[i] * decay + addend[i]
        if bits[i - whole] & _SIGNLESS >= _INFINITE:
            return whole
    for i in range(whole, total.size):
        total[i] = scratch[i - whole]
    return total.size


@kernel(types.void, _OUT_F32, _F32, types.float32)
def _undo(total: NDArray[np.float32], addend: NDArray[np.float32], decay: Any) -> None:
    """Take an addend out again, to float32 rounding."""
    for i in range(total.size):
        total[i] = (total[i] - addend[i]) / decay


def find_intervals(
    magnitudes: NDArray[np.float32], edges: NDArray[np.float64], zero: int
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.float64]]:
    """Find intervals and add up what is in each; see ``reference.find_intervals``."""
    if edges.size > _MAX_COMPARED:
        return reference.find_intervals(magnitudes, edges, zero)
    found = np.empty(magnitudes.size, np.uint16)
    counts, sums = np.zeros(max(zero, edges.size) + 1, np.int64), np.zeros(max(zero, edges.size) + 1)
    _compare(np.ascontiguousarray(magnitudes), edges, zero, found, counts, sums)
    last = int(np.flatnonzero(counts)[-1]) + 1
    return found, counts[:last], sums[:last]


@kernel(types.void, _F32, _F64, types.int64, _OUT_U16, _OUT_I64, _OUT_F64)
def _compare(
    magnitudes: NDArray[np.float32],
    edges: NDArray[np.float64],
    zero: int,
    found: NDArray[np.uint16],
    counts: NDArray[np.int64],
    sums: NDArray[np.float64],
) -> None:
    """Count the edges that are not below each magnitude."""
    for i in range(magnitudes.size):
        magnitude = np.float64(magnitudes[i])
        interval = 0
        for edge in edges:
            interval += edge >= magnitude
        if magnitude == 0:
            interval = zero
        found[i] = interval
        counts[interval] += 1
        sums[interval] += magnitude
