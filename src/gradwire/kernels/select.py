"""Exact top-k, compiled by Numba: a sampled threshold, a pass that collects candidates, a selection among them.

Magnitudes are compared as the integers their bits are, sign cleared. The pass can add one vector to another on its way.
Where the sample misleads, the k-th magnitude is found by counting: by its upper 16 bits, then by its lower 15.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from gradwire.journal import Journal
from gradwire.kernels import dense, reference, threads
from gradwire.kernels.blocks import BLOCK, INFINITE, SIGNLESS, reaching, sum_reaching, write_sum
from gradwire.kernels.jit import array, inline, kernel, pair, trailing_zeros
from gradwire.kernels.sampling import sample_plan
from gradwire.kernels.scratch import borrow

__all__ = ["add_topk", "take_sample", "topk"]

_LOW_BITS = 15
_CLASS_BITS = 12
_CLASSES_FROM = 1 << 13  # candidates from which counting classes pays
_COUNT_FROM = 1 << 17  # values from which counting, with its 65,536 classes, costs less than sorting in part
_0, _1 = np.uint64(0), np.uint64(1)
_SEED, _FACTOR, _TERM = np.uint64(0x9E3779B97F4A7C15), np.uint64(6364136223846793005), np.uint64(1442695040888963407)

_U32, _I64, _F32 = array(types.uint32), array(types.int64), array(types.float32)
_OUT_U32, _OUT_I64, _OUT_F32 = (array(t, readonly=False) for t in (types.uint32, types.int64, types.float32))

Bits = NDArray[np.uint32]


class _Piece(NamedTuple):
    """Candidates of one range: how many there is room for, how far in they are, and their bits."""

    range: slice
    room: int
    places: Bits
    bits: Bits


def topk(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Select the k entries of largest magnitude; see ``reference.topk``."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    if k == 0 or not bits.size:
        return np.empty(0, np.int64)
    if plan := sample_plan(bits.size, k):
        sample = np.empty(plan[0], np.uint32)
        take_sample(bits, sample)
        if sampled := _threshold(sample & SIGNLESS, plan[1]):
            threshold, pieces = sampled[0], _pieces(sampled[1], bits.size, threads.split(bits.size))
            tasks = [partial(_collect, bits[p.range], threshold, p.room, p.places, p.bits) for p in pieces]
            if (found := _among(threads.run(tasks), pieces, threshold, k)) is not None:
                return found[0]
    return _without_sample(bits, k)


def add_topk(
    total: NDArray[np.float32],
    addend: NDArray[np.float32] | Sequence[NDArray[np.float32]],
    decay: float,
    k: int,
    journal: Journal,
) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    """Add and select in one pass; see ``reference.add_topk``."""
    added = dense.Added(total, addend, np.float32(decay))
    if plan := sample_plan(total.size, k):
        sample = np.empty(plan[0], np.float32)
        _sample_sums(total, added, sample)
        if sampled := _threshold(sample.view(np.uint32) & SIGNLESS, plan[1]):
            threshold, pieces = sampled[0], _pieces(sampled[1], total.size, added.ranges)
            journal.note(added.take_out)
            tasks = [
                partial(_add_collect, total[p.range], addend, added.decay, threshold, p.room, p.places, p.bits, done)
                for p, addend, done in zip(pieces, added.addends, added.done, strict=True)
            ]
            counts = threads.run(tasks)
            if not added.complete:
                added.take_out()
                return None
            if (found := _among(counts, pieces, threshold, k)) is not None:
                return found
            return _with_numbers(total, _without_sample(total.view(np.uint32), k))
    return _with_numbers(total, topk(total, k)) if added.put_in(journal) else None


def _with_numbers(
    values: NDArray[np.float32], chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return chosen, dense.gather(values, chosen)


def _threshold(sample: Bits, rank: int) -> tuple[np.uint32, NDArray[np.bool_]] | None:
    """The magnitude of this rank from above, and what reaches it; None where that is far more, as in ties."""
    at = sample.size - rank
    threshold = np.uint32(min(max(1, int(np.partition(sample, at)[at])), int(INFINITE)))
    reaches = sample >= threshold
    return (threshold, reaches) if np.count_nonzero(reaches) <= 2 * rank else None


def _pieces(reaches: NDArray[np.bool_], d: int, ranges: list[slice]) -> list[_Piece]:
    """Make room for the candidates of each range, by what the sample, taken in order, has of it."""
    pieces: list[_Piece] = []
    size = reaches.size
    for r in ranges:
        expected = int(np.count_nonzero(reaches[r.start * size // d : -(-r.stop * size // d)])) + 1
        room = math.ceil(1.25 * (expected + 4 * math.sqrt(expected)) * d / size)
        room = min(r.stop - r.start, room)
        memory = borrow(f"candidates {len(pieces)}", 2 * (room + BLOCK), np.uint32)
        pieces.append(_Piece(r, room, memory[: room + BLOCK], memory[room + BLOCK :]))
    return pieces


def _without_sample(bits: Bits, k: int) -> NDArray[np.int64]:
    """Select where no sample leads."""
    return _by_counting(bits, k) if bits.size > _COUNT_FROM else reference.topk(bits.view(np.float32), k)


def _among(
    counts: list[int], pieces: list[_Piece], threshold: np.uint32, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    """Select the k largest candidates and their numbers, or None where there are too few, or more than had room."""
    if sum(counts) < k or any(map(operator.gt, counts, [p.room for p in pieces])):
        return None
    found = [p.bits[:c] for c, p in zip(counts, pieces, strict=True)]
    kth, num_above = _kth(found, threshold, k)
    chosen, numbers = np.empty(k + 1, np.int64), np.empty(k + 1, np.uint32)  # with room for one that is not kept
    written, ties = 0, k - num_above
    for piece, bits in zip(pieces, found, strict=True):
        written, ties = _pick(piece.places, bits, np.uint32(kth), ties, piece.range.start, written, chosen, numbers)
    return chosen[:k], numbers[:k].view(np.float32)


def _kth(pieces: list[Bits], lowest: np.uint32, k: int) -> tuple[int, int]:
    """The k-th largest magnitude and how many are above it: by counting classes, then inside the one it is in."""
    if sum(bits.size for bits in pieces) < _CLASSES_FROM:
        return _kth_of(np.concatenate(pieces) & SIGNLESS, k, 0)
    largest = max(int(_largest(bits)) for bits in pieces)
    shift = np.uint32(max(0, (largest - int(lowest)).bit_length() - _CLASS_BITS))
    counts = np.zeros(1 << _CLASS_BITS, np.int64)
    for bits in pieces:
        _count_classes(bits, lowest, shift, counts)
    border, above = _border(counts, k)
    inside = np.empty(int(counts[border]) + 1, np.uint32)
    at = 0
    for bits in pieces:
        at = _take_class(bits, lowest, shift, np.uint32(border), at, inside)
    return _kth_of(inside[:at], k, above)


def _kth_of(magnitudes: Bits, k: int, above: int) -> tuple[int, int]:
    """The same among all magnitudes but the ``above`` largest; they are rearranged."""
    at = magnitudes.size - (k - above)
    magnitudes.partition(at)
    return int(magnitudes[at]), above + int(np.count_nonzero(magnitudes > magnitudes[at]))


def _by_counting(bits: Bits, k: int) -> NDArray[np.int64]:
    """The selection by the exact k-th magnitude, whatever the values are."""
    ranges = threads.split(bits.size)
    uppers = [np.zeros(1 << 16, np.int64) for _ in ranges]
    threads.run([partial(_count_upper, bits[r], c) for r, c in zip(ranges, uppers, strict=True)])
    upper, above = _border(np.sum(uppers, axis=0), k)
    lowers = [np.zeros(1 << _LOW_BITS, np.int64) for _ in ranges]
    threads.run([partial(_count_lower, bits[r], np.uint32(upper), c) for r, c in zip(ranges, lowers, strict=True)])
    lower, more = _border(np.sum(lowers, axis=0), k - above)
    kth = upper << _LOW_BITS | lower
    out = np.empty(min(k, above + more + sum(int(c[lower]) for c in lowers)) if kth else above + more, np.int64)
    ties = out.size - above - more  # exact zeros are never selected
    tasks, at = [], 0
    for r, u, c in zip(ranges, uppers, lowers, strict=True):
        own = int(u[upper + 1 :].sum() + c[lower + 1 :].sum())
        equal = min(ties, int(c[lower]))
        tasks.append(partial(_pick_all, bits[r], np.uint32(kth), equal, r.start, out[at : at + own + equal]))
        at, ties = at + own + equal, ties - equal
    threads.run(tasks)
    return out


def _border(counts: NDArray[np.int64], k: int) -> tuple[int, int]:
    """The class that the k-th largest is in, and how many are in classes above."""
    from_above = np.cumsum(counts[::-1])
    at = int(np.searchsorted(from_above, k))
    return counts.size - 1 - at, int(from_above[at] - counts[counts.size - 1 - at])


@inline
def _place(i: Any, word: Any, step: Any, size: Any) -> Any:
    """Somewhere in stretch i, by the word's upper bits."""
    return min(np.int64((i + np.float64(word >> np.uint64(11)) * 2.0**-53) * step), size - 1)


@kernel(types.void, _U32, _OUT_U32)
def take_sample(bits: Bits, sample: Bits) -> None:
    """Take values at pseudo-random places, one in each of equally long stretches."""
    word, step = _SEED, bits.size / sample.size
    for i in range(sample.size):
        word = word * _FACTOR + _TERM
        sample[i] = bits[_place(i, word, step, bits.size)]


def _sample_sums(total: NDArray[np.float32], added: dense.Added, sample: NDArray[np.float32]) -> None:
    """Take the same of sums that are not made yet, from each piece in proportion."""
    size, d = sample.size, total.size
    for r, addend in zip(added.ranges, added.addends, strict=True):
        some = sample[r.start * size // d : r.stop * size // d]
        if some.size:
            _sample_sum(total[r], addend, added.decay, some)


@kernel(types.void, _F32, _F32, types.float32, _OUT_F32)
def _sample_sum(
    total: NDArray[np.float32], addend: NDArray[np.float32], decay: Any, sample: NDArray[np.float32]
) -> None:
    """The same of a sum that is not made yet."""
    word, step = _SEED, total.size / sample.size
    for i in range(sample.size):
        word = word * _FACTOR + _TERM
        at = _place(i, word, step, total.size)
        sample[i] = total[at] * decay + addend[at]


@kernel(types.int64, _U32, types.uint32, types.int64, _OUT_U32, _OUT_U32)
def _collect(bits: Bits, threshold: Any, room: int, places: Bits, found: Bits) -> int:
    """Write where magnitudes reach the threshold, and what is there; the count stops growing a block past the room."""
    count = 0
    whole = bits.size // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        mask = reaching(bits, start, threshold)
        while mask != _0:
            j = np.int64(trailing_zeros(mask))
            mask &= mask - _1
            places[count] = start + j
            found[count] = bits[start + j]
            count += 1
        if count > room:
            return count
    for at in range(whole, bits.size):
        if bits[at] & SIGNLESS >= threshold:
            places[count] = at
            found[count] = bits[at]
            count += 1
    return count


@kernel(types.int64, _OUT_F32, _F32, types.float32, types.uint32, types.int64, _OUT_U32, _OUT_U32, _OUT_I64)
def _add_collect(
    total: NDArray[np.float32],
    addend: NDArray[np.float32],
    decay: Any,
    threshold: Any,
    room: int,
    places: Bits,
    found: Bits,
    done: NDArray[np.int64],
) -> int:
    """Add up and collect at once, up to the first block that would not be finite."""
    bits = total.view(np.uint32)
    count = 0
    whole = total.size // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        mask = sum_reaching(total, addend, start, decay, threshold)
        if mask != _0 and sum_reaching(total, addend, start, decay, INFINITE) != _0:
            done[0] = start
            return count
        write_sum(total, addend, start, decay)
        while mask != _0:
            j = np.int64(trailing_zeros(mask))
            mask &= mask - _1
            places[count] = start + j
            found[count] = bits[start + j]
            count += 1
        if count > room:
            threshold = INFINITE  # only what is not finite matters from here on
    for at in range(whole, total.size):
        if not np.isfinite(total[at] * decay + addend[at]):
            done[0] = whole
            return count
    for at in range(whole, total.size):
        total[at] = total[at] * decay + addend[at]
        if bits[at] & SIGNLESS >= threshold:
            places[count] = at
            found[count] = bits[at]
            count += 1
    done[0] = total.size
    return count


@kernel(types.uint32, _U32)
def _largest(bits: Bits) -> Any:
    """Find the largest magnitude."""
    largest = np.uint32(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & SIGNLESS)
    return largest


@kernel(types.void, _U32, types.uint32, types.uint32, _OUT_I64)
def _count_classes(bits: Bits, lowest: Any, shift: Any, counts: NDArray[np.int64]) -> None:
    """Count magnitudes by their upper bits above the lowest one."""
    for value in bits:
        counts[((value & SIGNLESS) - lowest) >> shift] += 1


@kernel(types.int64, _U32, types.uint32, types.uint32, types.uint32, types.int64, _OUT_U32)
def _take_class(bits: Bits, lowest: Any, shift: Any, border: Any, at: int, out: Bits) -> int:
    """Write the magnitudes of one class from a place on; the place after them. One more is overwritten there."""
    for value in bits:
        out[at] = value & SIGNLESS
        at += ((value & SIGNLESS) - lowest) >> shift == border
    return at


@kernel(pair(types.int64), _U32, _U32, types.uint32, types.int64, types.int64, types.int64, _OUT_I64, _OUT_U32)
def _pick(
    places: Bits, bits: Bits, kth: Any, ties: int, base: int, at: int, chosen: NDArray[np.int64], numbers: Bits
) -> tuple[int, int]:
    """Write the candidates above the k-th magnitude and the first of those that equal it; where, and ties left."""
    for i in range(bits.size):
        magnitude = bits[i] & SIGNLESS
        chosen[at] = base + np.int64(places[i])
        numbers[at] = bits[i]
        equal = magnitude == kth and ties > 0
        ties -= equal
        at += equal or magnitude > kth
    return at, ties


@kernel(types.void, _U32, types.uint32, types.int64, types.int64, _OUT_I64)
def _pick_all(bits: Bits, kth: Any, ties: int, base: int, out: NDArray[np.int64]) -> None:
    """Write all places above the k-th magnitude and the first of those that equal it, in order."""
    count = 0
    for i in range(bits.size):
        magnitude = bits[i] & SIGNLESS
        if magnitude > kth or (magnitude == kth and ties > 0):
            ties -= magnitude == kth
            out[count] = base + i
            count += 1


@kernel(types.void, _U32, _OUT_I64)
def _count_upper(bits: Bits, counts: NDArray[np.int64]) -> None:
    """Count magnitudes by their upper 16 bits."""
    for value in bits:
        counts[(value & SIGNLESS) >> np.uint32(_LOW_BITS)] += 1


@kernel(types.void, _U32, types.uint32, _OUT_I64)
def _count_lower(bits: Bits, upper: Any, counts: NDArray[np.int64]) -> None:
    """Count the magnitudes with these upper bits by their lower 15."""
    for value in bits:
        magnitude = value & SIGNLESS
        if magnitude >> np.uint32(_LOW_BITS) == upper:
            counts[magnitude & np.uint32((1 << _LOW_BITS) - 1)] += 1
