"""Exact top-k, compiled by Numba: a sampled threshold, a pass that collects candidates, a selection among them.

Magnitudes are compared as the integers their bits are, sign cleared. Where the sample misleads, the k-th magnitude is
found by counting: by its upper 16 bits, then by its lower 15.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from gradwire.kernels import reference
from gradwire.kernels.jit import array, kernel

__all__ = ["topk"]

_BLOCK = 64  # values looked at together: their maximum is a few vector instructions
_MIN_SAMPLE = 512
_SAMPLE_SHARE = 512  # one value in so many is sampled, but no fewer than that
_LOW_BITS = 15
_CLASS_BITS = 12
_COUNT_FROM = 1 << 17  # values from which counting, with its 65,536 classes, costs less than sorting in part
_SIGNLESS = np.uint32(0x7FFFFFFF)

_U32, _I64 = array(types.uint32), array(types.int64)
_OUT_U32, _OUT_I64 = array(types.uint32, readonly=False), array(types.int64, readonly=False)


def topk(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Select the k entries of largest magnitude; see ``reference.topk``."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    if k == 0 or not bits.size:
        return np.empty(0, np.int64)
    found = _among_candidates(bits, k)
    if found is not None:
        return found
    return _by_counting(bits, k) if bits.size > _COUNT_FROM else reference.topk(values, k)


def _among_candidates(bits: NDArray[np.uint32], k: int) -> NDArray[np.int64] | None:
    """The selection, or None where the sampled threshold leaves too few or too many candidates."""
    d = bits.size
    size = min(d, max(_MIN_SAMPLE, d // _SAMPLE_SHARE))
    expected = size * k / d
    rank = math.ceil(expected + 3 * math.sqrt(expected) + 1)
    if rank > size // 2:
        return None
    sample = np.empty(size, np.uint32)
    _sample(bits, sample)
    threshold = max(1, int(np.partition(sample, size - rank)[size - rank]))
    capacity = min(d, 2 * rank * d // size + 64)
    candidates, magnitudes = np.empty(capacity + _BLOCK, np.int64), np.empty(capacity + _BLOCK, np.uint32)
    count = _collect(bits, np.uint32(threshold), capacity, candidates, magnitudes)
    if not k <= count <= capacity:
        return None
    candidates, magnitudes = candidates[:count], magnitudes[:count]
    kth, num_above = _kth(magnitudes, k, threshold)
    out = np.empty(k, np.int64)
    _pick(candidates, magnitudes, np.uint32(kth), k - num_above, out)
    return out


def _kth(magnitudes: NDArray[np.uint32], k: int, lowest: int) -> tuple[int, int]:
    """The k-th largest magnitude and how many are above it: by counting classes, then inside the one it is in."""
    shift = max(0, int(magnitudes.max() - lowest).bit_length() - _CLASS_BITS)
    counts = np.zeros(1 << _CLASS_BITS, np.int64)
    _count_classes(magnitudes, np.uint32(lowest), np.uint32(shift), counts)
    border, above = _border(counts, k)
    inside = np.empty(int(counts[border]), np.uint32)
    _take_class(magnitudes, np.uint32(lowest), np.uint32(shift), np.uint32(border), inside)
    at = inside.size - (k - above)
    inside = np.partition(inside, at)
    return int(inside[at]), above + int(np.count_nonzero(inside > inside[at]))


def _by_counting(bits: NDArray[np.uint32], k: int) -> NDArray[np.int64]:
    """The selection by the exact k-th magnitude, whatever the values are."""
    counts = np.zeros(1 << 16, np.int64)
    _count_upper(bits, counts)
    upper, above = _border(counts, k)
    counts = np.zeros(1 << _LOW_BITS, np.int64)
    _count_lower(bits, np.uint32(upper), counts)
    lower, more = _border(counts, k - above)
    kth = upper << _LOW_BITS | lower
    above += more
    ties = k - above if kth else 0  # exact zeros are never selected
    out = np.empty(above + ties, np.int64)
    _pick_all(bits, np.uint32(kth), ties, out)
    return out


def _border(counts: NDArray[np.int64], k: int) -> tuple[int, int]:
    """The class that the k-th largest is in, and how many are in classes above."""
    from_above = np.cumsum(counts[::-1])
    at = int(np.searchsorted(from_above, k))
    return counts.size - 1 - at, int(from_above[at] - counts[counts.size - 1 - at])


@kernel(types.void, _U32, _OUT_U32)
def _sample(bits: NDArray[np.uint32], sample: NDArray[np.uint32]) -> None:
    """Take magnitudes at pseudo-random places, one in each of equally long stretches."""
    d, size = bits.size, sample.size
    stretch = d // size
    word = np.uint64(0x9E3779B97F4A7C15)
    for i in range(size):
        word = word * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        within = np.int64((word >> np.uint64(33)) % np.uint64(stretch))
        sample[i] = bits[i * stretch + within] & _SIGNLESS


@kernel(types.int64, _U32, types.uint32, types.int64, _OUT_I64, _OUT_U32)
def _collect(
    bits: NDArray[np.uint32],
    threshold: Any,
    capacity: int,
    candidates: NDArray[np.int64],
    magnitudes: NDArray[np.uint32],
) -> int:
    """Write the places and magnitudes that reach the threshold; the count stops growing past the capacity."""
    count = 0
    whole = bits.size // _BLOCK * _BLOCK
    for start in range(0, whole, _BLOCK):
        block = bits[start : start + _BLOCK]
        largest = np.uint32(0)
        for j in range(_BLOCK):
            largest = max(largest, block[j] & _SIGNLESS)
        if largest < threshold:
            continue
        for j in range(_BLOCK):
            magnitude = block[j] & _SIGNLESS
            candidates[count] = start + j
            magnitudes[count] = magnitude
            count += magnitude >= threshold
        if count > capacity:
            return count
    for i in range(whole, bits.size):
        magnitude = bits[i] & _SIGNLESS
        if magnitude >= threshold and count < candidates.size:
            candidates[count] = i
            magnitudes[count] = magnitude
            count += 1
    return count


@kernel(types.void, _U32, types.uint32, types.uint32, _OUT_I64)
def _count_classes(magnitudes: NDArray[np.uint32], lowest: Any, shift: Any, counts: NDArray[np.int64]) -> None:
    """Count magnitudes by their upper bits above the lowest one."""
    for magnitude in magnitudes:
        counts[(magnitude - lowest) >> shift] += 1


@kernel(types.void, _U32, types.uint32, types.uint32, types.uint32, _OUT_U32)
def _take_class(magnitudes: NDArray[np.uint32], lowest: Any, shift: Any, border: Any, out: NDArray[np.uint32]) -> None:
    """Write the magnitudes of one class."""
    count = 0
    for magnitude in magnitudes:
        if (magnitude - lowest) >> shift == border:
            out[count] = magnitude
            count += 1


@kernel(types.void, _I64, _U32, types.uint32, types.int64, _OUT_I64)
def _pick(
    candidates: NDArray[np.int64], magnitudes: NDArray[np.uint32], kth: Any, ties: int, out: NDArray[np.int64]
) -> None:
    """Write the candidates above the k-th magnitude and the first of those that equal it, in order."""
    count = 0
    for i in range(candidates.size):
        if magnitudes[i] > kth or (magnitudes[i] == kth and ties > 0):
            ties -= magnitudes[i] == kth
            out[count] = candidates[i]
            count += 1


@kernel(types.void, _U32, types.uint32, types.int64, _OUT_I64)
def _pick_all(bits: NDArray[np.uint32], kth: Any, ties: int, out: NDArray[np.int64]) -> None:
    """Write all places above the k-th magnitude and the first of those that equal it, in order."""
    count = 0
    for i in range(bits.size):
        magnitude = bits[i] & _SIGNLESS
        if magnitude > kth or (magnitude == kth and ties > 0):
            ties -= magnitude == kth
            out[count] = i
            count += 1


@kernel(types.void, _U32, _OUT_I64)
def _count_upper(bits: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
    """Count magnitudes by their upper 16 bits."""
    for value in bits:
        counts[(value & _SIGNLESS) >> np.uint32(_LOW_BITS)] += 1


@kernel(types.void, _U32, types.uint32, _OUT_I64)
def _count_lower(bits: NDArray[np.uint32], upper: Any, counts: NDArray[np.int64]) -> None:
    """Count the magnitudes with these upper bits by their lower 15."""
    for value in bits:
        magnitude = value & _SIGNLESS
        if magnitude >> np.uint32(_LOW_BITS) == upper:
            counts[magnitude & np.uint32((1 << _LOW_BITS) - 1)] += 1
