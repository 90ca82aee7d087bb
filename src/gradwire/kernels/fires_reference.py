"""Rounding with thresholds that both ends know, in NumPy: what ``fires.py``, compiled, computes bit for bit.

Coordinate i has a threshold of 32 bits. A number of magnitude a, in steps, becomes floor(a), and one more where its
threshold, as a fraction of 2^32, is below the rest: it fires. Who knows the thresholds knows where fires are likely: a
coordinate of small magnitude can only fire where its threshold is smaller still. So only those of small thresholds are
coded, each in the context of how small, in half octaves, beside the mean magnitude.

Source: Ziv 1985, "On universal quantization" (IEEE Trans. Inf. Theory 31); Zamir and Feder 1992, "On universal
    quantization by randomized uniform/lattice quantizers" (38), who code a dithered quantizer given its dither.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwire.kernels.range_reference import COUNT
from gradwire.kernels.range_reference import decode_bits as read_bits
from gradwire.kernels.range_reference import encode_bits as write_bits

__all__ = [
    "DEPTH",
    "LANES",
    "LARGEST_COUNT",
    "LEVELS",
    "ONES",
    "REACH",
    "SUMMED",
    "WEIGHT",
    "ZEROS",
    "Thresholds",
    "chunks",
    "context_of",
    "decode_fires",
    "encode_fires",
    "first_of",
    "half_octave",
    "last_candidate",
    "octaves_of",
    "outside",
    "round_known",
    "sum_magnitudes",
    "thresholds",
]

LARGEST_COUNT = 1 << 24
"""The most steps that a number may be rounded to."""
WEIGHT = 32 * COUNT
"""What the initial counts of a context add up to."""
# fires among so many coordinates, by the distance of their thresholds: as in updates of a small network on MNIST
ONES = np.array(
    [
        *(23593, 22938, 22282, 21627, 20644, 19333, 18022, 16712, 15401, 13435, 11633, 9994),  # below the level
        *(7209, 5472, 3670, 2556, 1573, 885, 469, 229, 111, 46, 15),
    ],
    np.uint64,
)
"""Initial counts of fires in each context."""
ZEROS = np.uint64(WEIGHT) - ONES
"""Initial counts of others."""
LEVELS = 128
"""Levels of the mean magnitude, in half octaves of 2^-32 steps, are 0 to 127."""
DEPTH, REACH = 12, 10
"""Thresholds so many half octaves below the level, and above, are told apart; above that nothing is coded."""
SUMMED, LANES = 1 << 16, 32
_CHUNK = 1 << 18
_ROOT_TWO = 0xB504F334  # 2^31.5, rounded up


class Thresholds(NamedTuple):
    """Which thresholds: those of coordinates c 2^32 to (c + 1) 2^32 - 1 are made of word c.

    Attributes:
        words: (n,) uint64, a word for each 2^32 coordinates.
        offset: 0 to 2^32 - 1: what is added to all of them, modulo 2^32.
    """

    words: NDArray[np.uint64]
    offset: int = 0


def thresholds(which: Thresholds, start: int, stop: int) -> NDArray[np.uint32]:
    """Make the thresholds of some coordinates, which are all of one word.

    Args:
        which: which thresholds.
        start: the first coordinate.
        stop: the one after the last; of the same multiple of 2^32.

    Returns:
        (stop - start,) uint32.

    Source: the mixing is Wellons' "lowbias32", a second key put in between.
    """
    word = int(which.words[start >> 32])
    x = np.arange(start & 0xFFFFFFFF, (start & 0xFFFFFFFF) + stop - start, dtype=np.uint64).astype(np.uint32)
    x = x * np.uint32(0x9E3779B1) + np.uint32(word & 0xFFFFFFFF)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= np.uint32(word >> 32)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x + np.uint32(which.offset)


def half_octave(value: int) -> int:
    """Return the half octave of an integer: 2 e for 2^(e - 1) <= value < 2^(e - 1/2), or 2 e + 1; 0 for 0."""
    e = value.bit_length()
    leading = value << (32 - e) if e <= 32 else value >> (e - 32)
    return 2 * e + int(leading >= _ROOT_TWO)


def first_of(octave: int) -> int:
    """Return the least integer of a half octave, 0 for those below the second."""
    e, upper = octave >> 1, octave & 1
    if e == 0:
        return 0
    return -(-_ROOT_TWO >> (32 - e)) if upper else 1 << (e - 1)


def last_candidate(level: int, reach: int = REACH) -> int:
    """Return the largest threshold that is coded at a level, so many half octaves above it."""
    octave = level + reach + 1
    return (1 << 32) - 1 if octave >= 66 else first_of(octave) - 1


def octaves_of(values: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the half octaves of some integers."""
    bounds = np.array([first_of(octave) for octave in range(2, 66)], np.uint64)
    octaves = np.searchsorted(bounds, values.astype(np.uint64), side="right") + 1
    octaves[values == 0] = 0
    return octaves.astype(np.int64)


def context_of(values: NDArray[np.uint32], level: int) -> NDArray[np.uint32]:
    """Return the contexts of some thresholds, none of which is above ``last_candidate(level)``."""
    return np.maximum(octaves_of(values) - level + DEPTH, 0).astype(np.uint32)


def chunks(length: int) -> Iterator[tuple[int, int]]:
    """Cut coordinates into ranges that are worked on at a time."""
    return ((start, min(start + _CHUNK, length)) for start in range(0, length, _CHUNK))


def sum_magnitudes(values: NDArray[np.float32]) -> tuple[float, float]:
    """Add up magnitudes, in an order of its own, and find the largest.

    A stretch of 65,536 numbers is 32 sums in float64, of every 32nd number each, which are added up in order, as the
    stretches are.

    Args:
        values: (d,) float32, anything.

    Returns:
        The sum, of whatever where not all are finite; and the largest magnitude, infinity or NaN then.
    """
    total, largest = 0.0, np.uint32(0)
    for start in range(0, values.size, SUMMED):
        bits = values[start : start + SUMMED].view(np.uint32) & np.uint32(0x7FFFFFFF)
        largest = max(largest, bits.max())
        rows = np.zeros(-(-bits.size // LANES) * LANES)
        rows[: bits.size] = bits.view(np.float32)
        total += sum(rows.reshape(-1, LANES).sum(axis=0).tolist())
    return total, float(largest.view(np.float32))


def round_known(
    values: NDArray[np.float32], step: float, which: Thresholds
) -> tuple[NDArray[np.int64], NDArray[np.int32]] | None:
    """Round numbers to multiples of a step, up where their thresholds are below what would be lost.

    With a = |x| / step in float64, the magnitude is floor(a), plus one where the threshold is below
    floor(2^32 (a - floor(a))).

    Args:
        values: (d,) float32, finite.
        step: a float32 above 0.
        which: the thresholds.

    Returns:
        Where it is not zero, (k,) int64 increasing, and how many steps there, (k,) int32 with the signs of the numbers;
        None where that would be more than ``LARGEST_COUNT``.
    """
    places, counts = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for start, stop in chunks(values.size):
        scaled = np.abs(values[start:stop]).astype(np.float64) / step
        if scaled.max() >= LARGEST_COUNT:
            return None
        whole = np.floor(scaled)
        rest = np.floor((scaled - whole) * 2.0**32).astype(np.int64)
        count = whole.astype(np.int32) + (thresholds(which, start, stop) < rest)
        found = np.flatnonzero(count)
        places.append(start + found)
        counts.append(np.where(values[start:stop][found] < 0, -count[found], count[found]).astype(np.int32))
    return np.concatenate(places), np.concatenate(counts)


def outside(indices: NDArray[np.int64], level: int, which: Thresholds) -> NDArray[np.bool_]:
    """Tell which coordinates have thresholds above what is coded at a level.

    Args:
        indices: (k,) int64 increasing.
        level: the level.
        which: the thresholds.

    Returns:
        (k,) bool.
    """
    last = last_candidate(level)
    return np.array([int(thresholds(which, i, i + 1)[0]) > last for i in indices.tolist()], bool)


def _candidates(length: int, level: int, which: Thresholds) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """The coordinates that are coded, and their contexts."""
    places, contexts = [np.empty(0, np.int64)], [np.empty(0, np.uint32)]
    for start, stop in chunks(length):
        here = thresholds(which, start, stop)
        found = np.flatnonzero(here <= last_candidate(level))
        places.append(start + found)
        contexts.append(context_of(here[found], level))
    return np.concatenate(places), np.concatenate(contexts)


def encode_fires(length: int, indices: NDArray[np.int64], level: int, which: Thresholds) -> NDArray[np.uint8]:
    """Write which of the coded coordinates fire.

    Args:
        length: number of coordinates.
        indices: (k,) int64 increasing: those that fire, none of them ``outside``.
        level: half octave of the mean magnitude, in steps times 2^32.
        which: the thresholds.

    Returns:
        (m,) uint8: a range code of a bit for each candidate, in order.
    """
    places, contexts = _candidates(length, level, which)
    bits = np.zeros(places.size, np.uint8)
    bits[np.searchsorted(places, indices)] = 1
    return write_bits(bits, contexts, ONES, ZEROS)


def decode_fires(
    data: NDArray[np.uint8], length: int, num_fires: int, level: int, which: Thresholds
) -> NDArray[np.int64] | None:
    """Read what ``encode_fires`` wrote.

    Args:
        data: (m,) uint8: those bytes and no others.
        length: number of coordinates.
        num_fires: how many fire.
        level: the level.
        which: the thresholds.

    Returns:
        (num_fires,) int64 increasing; None where the bytes are not exactly those of so many fires.
    """
    places, contexts = _candidates(length, level, which)
    bits = read_bits(data, contexts, ONES, ZEROS)
    if bits is None or int(bits.sum()) != num_fires:
        return None
    return places[np.flatnonzero(bits)]
