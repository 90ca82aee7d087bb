"""Frequencies, compiled by Numba: number for number what ``models.normalise_frequencies`` finds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from gradwire.kernels import models
from gradwire.kernels.jit import array, inline, kernel

__all__ = ["normalise_frequencies"]

_TOTAL = 1 << models.MODEL_BITS


def normalise_frequencies(counts: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Scale counts, less than ``models.SCALED_BELOW`` in all, see ``models.normalise_frequencies``."""
    frequencies = np.empty(counts.size, np.uint32)
    num_present = _normalise(counts, frequencies, np.empty(counts.size, np.int64), np.empty(counts.size, np.int64))
    models.check_num_present(num_present)
    return frequencies


@inline
def _gain(weight: Any, f: Any) -> Any:
    """``models``' gain: the quotient of a number of more than 64 bits, in two steps."""
    o = 2 * f + 1
    by = 3 * o * o - 1
    whole = weight * o // by
    return (whole << 32) + ((weight * o - whole * by) << 32) // by


@kernel(
    types.int64,
    array(types.int64, readonly=True),
    array(types.uint32, readonly=False),
    array(types.int64, readonly=False),
    array(types.int64, readonly=False),
)
def _normalise(
    counts: NDArray[np.int64], frequencies: NDArray[np.uint32], raises: NDArray[np.int64], lowers: NDArray[np.int64]
) -> int:
    """Scale; the number of symbols that occur, nothing being scaled where that is none or too many.

    ``raises`` and ``lowers`` hold what the next step up or down of each symbol gains or loses; -1 where it does not
    occur, and the largest number where it cannot be lowered.
    """
    never: Any = np.int64(2**63 - 1)
    total: Any = np.int64(0)
    num_present: Any = np.int64(0)
    for i in range(counts.size):
        total += counts[i]
        num_present += counts[i] > 0
    if num_present < 1 or num_present > _TOTAL:
        return int(num_present)
    missing: Any = np.int64(_TOTAL)
    for i in range(counts.size):
        f = np.int64(0)
        raises[i], lowers[i] = -1, never
        if counts[i] > 0:
            f = max(np.int64(1), counts[i] * _TOTAL // total)
            raises[i] = _gain(counts[i], f)
            if f > 1:
                lowers[i] = _gain(counts[i], f - 1)
        frequencies[i] = f
        missing -= f
    while True:
        up: Any = np.int64(0)
        down: Any = np.int64(0)
        for i in range(counts.size):
            if raises[i] > raises[up]:
                up = i
            if lowers[i] < lowers[down]:
                down = i
        if missing == 0 and raises[up] <= lowers[down]:
            return int(num_present)
        if missing >= 0:
            frequencies[up] += np.uint32(1)
            lowers[up], raises[up] = raises[up], _gain(counts[up], np.int64(frequencies[up]))
        if missing <= 0:
            frequencies[down] -= np.uint32(1)
            raises[down] = lowers[down]
            lowers[down] = _gain(counts[down], np.int64(frequencies[down]) - 1) if frequencies[down] > 1 else never
        if missing > 0:
            missing -= 1
        elif missing < 0:
            missing += 1
