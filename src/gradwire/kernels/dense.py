"""Passes over whole vectors, compiled by Numba, at the speed of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from gradwire.kernels.jit import array, kernel

__all__ = ["add_finite"]

_BLOCK = 2048  # looked at before it is written, while it is in the first cache
_LARGEST = np.float32(np.finfo(np.float32).max)

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
    for start in range(0, total.size, _BLOCK):
        stop = min(start + _BLOCK, total.size)
        wrong = 0
        for i in range(start, stop):
            wrong |= not abs(total[i] * decay + addend[i]) <= _LARGEST
        if wrong:
            return start
        for i in range(start, stop):
            total[i] = total[i] * decay + addend[i]
    return total.size


@kernel(types.void, _OUT_F32, _F32, types.float32)
def _undo(total: NDArray[np.float32], addend: NDArray[np.float32], decay: Any) -> None:
    """Take an addend out again, to float32 rounding."""
    for i in range(total.size):
        total[i] = (total[i] - addend[i]) / decay
