"""Exact top-k in each block of a vector, compiled by Numba.

The k-th magnitude of the block before, a little lowered, tells what to look among. Where too few reach it, all that is
not zero is looked among.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from gradwire.kernels import threads
from gradwire.kernels.blocks import BLOCK, SIGNLESS, reaching
from gradwire.kernels.jit import array, inline, kernel, plain, trailing_zeros

__all__ = ["topk_blocks"]

_0, _1 = np.uint64(0), np.uint64(1)
_LOWER = 1 << 21  # how much lower the next block's guess is, in a float32's bits: a quarter of an octave
_SEED, _FACTOR, _TERM = np.uint64(0x9E3779B97F4A7C15), np.uint64(6364136223846793005), np.uint64(1442695040888963407)

_U32, _OUT_U32, _OUT_I64 = (
    array(types.uint32),
    array(types.uint32, readonly=False),
    array(types.int64, readonly=False),
)

Bits = NDArray[np.uint32]


def topk_blocks(values: NDArray[np.float32], block: int, k: int, last: int) -> NDArray[np.int64]:
    """Select the entries of largest magnitude in each block; see ``reference.topk_blocks``."""
    bits = plain(values, np.float32).view(np.uint32)
    number = bits.size // block
    step = max(1, -(-number // max(1, len(threads.split(number * block)))))
    pieces = [(slice(i * block, min(i + step, number) * block), k) for i in range(0, number, step) if k]
    if bits.size % block and last:
        pieces.append((slice(number * block, bits.size), last))
    chosen = threads.run([partial(_selected, bits[r], block, kept, r.start) for r, kept in pieces])
    return np.concatenate(chosen) if chosen else np.empty(0, np.int64)


def _selected(bits: Bits, block: int, k: int, base: int) -> NDArray[np.int64]:
    """What is selected of a range of whole blocks, or of a single one that may be shorter."""
    out = np.empty(-(-bits.size // block) * k, np.int64)
    room = min(block, bits.size) + BLOCK
    found = _select(bits, block, k, base, np.empty(room, np.int64), np.empty(room, np.uint32), out)
    return out[:found]


@inline
def _collect(bits: Any, start: Any, stop: Any, threshold: Any, places: Any, magnitudes: Any) -> Any:
    """Write where magnitudes reach the threshold, and those magnitudes; how many do."""
    count = 0
    whole = start + (stop - start) // BLOCK * BLOCK
    for first in range(start, whole, BLOCK):
        mask = reaching(bits, first, threshold)
        while mask != _0:
            at = first + np.int64(trailing_zeros(mask))
            mask &= mask - _1
            places[count] = at
            magnitudes[count] = bits[at] & SIGNLESS
            count += 1
    for rest in range(whole, stop):
        if bits[rest] & SIGNLESS >= threshold:
            places[count] = rest
            magnitudes[count] = bits[rest] & SIGNLESS
            count += 1
    return count


@inline
def _kth(magnitudes: Any, count: Any, k: Any) -> Any:
    """The k-th largest of so many magnitudes, which are rearranged: quickselect with pseudo-random pivots."""
    low, high, target, word = 0, count - 1, k - 1, _SEED
    while low < high:
        word = word * _FACTOR + _TERM
        pivot = magnitudes[low + np.int64((word >> np.uint64(33)) % np.uint64(high - low + 1))]
        i, j = low, high
        while i <= j:
            while magnitudes[i] > pivot:
                i += 1
            while magnitudes[j] < pivot:
                j -= 1
            if i <= j:
                magnitudes[i], magnitudes[j] = magnitudes[j], magnitudes[i]
                i += 1
                j -= 1
        if target <= j:
            high = j
        elif target >= i:
            low = i
        else:
            break
    return magnitudes[target]


@kernel(types.int64, _U32, types.int64, types.int64, types.int64, _OUT_I64, _OUT_U32, _OUT_I64)
def _select(
    bits: Bits, block: int, k: int, base: int, places: NDArray[np.int64], magnitudes: Bits, out: NDArray[np.int64]
) -> int:
    guess, written = np.uint32(1), 0
    for start in range(0, bits.size, block):
        stop = min(start + block, bits.size)
        count = _collect(bits, start, stop, guess, places, magnitudes)
        if count < k and guess > 1:
            guess = np.uint32(1)
            count = _collect(bits, start, stop, guess, places, magnitudes)
        kth, ties = np.uint32(1), count
        if count > k:
            kth = _kth(magnitudes, count, k)
            ties = k
            for i in range(count):
                ties -= bits[places[i]] & SIGNLESS > kth
        for i in range(count):
            magnitude = bits[places[i]] & SIGNLESS
            equal = magnitude == kth and ties > 0
            if magnitude > kth or equal:
                ties -= equal
                out[written] = base + places[i]
                written += 1
        lower = np.int64(kth) - _LOWER
        guess = np.uint32(lower if lower > 1 else 1)
    return written
