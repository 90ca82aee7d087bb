"""Passes over whole vectors, compiled by Numba, at the speed of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from gradwire.kernels.jit import array, kernel

__all__ = ["add_finite"]

_BLOCK = 512  # added up in the first cache and looked at, before it is written
_SIGNLESS, _INFINITE = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)

_F32, _OUT_F32 = array(types.float32), array(types.float32, readonly=False)


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
