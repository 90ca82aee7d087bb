"""The code of what fired beside a field, compiled by Numba: bit for bit what ``fielded_reference.py`` computes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from gradwire.fields import MOST, Field
from gradwire.kernels.blocks import BLOCK
from gradwire.kernels.fielded_reference import FIELD_ONES, FIELD_ZEROS, NARROWER
from gradwire.kernels.fires import (
    chances_of,
    emit_thresholds,
    finish_stream,
    half_octave_of,
    start_reading_stream,
    start_stream,
    stream_ended,
    threshold_at,
)
from gradwire.kernels.fires_reference import DEPTH, LEVELS, REACH, Thresholds, last_candidate
from gradwire.kernels.jit import array, inline, kernel, plain, trailing_zeros
from gradwire.kernels.range_coder import CODE, LEAST, LOW, SPAN, chance_of_one, has_room, new_state, refill, widen
from gradwire.kernels.range_reference import COUNT

__all__ = ["decode_fires", "encode_fires", "outside"]

U, W = np.uint64, np.uint32
_0, _1, _16, _32, _COUNT = U(0), U(1), U(16), U(32), U(COUNT)
_BELOW = 2 * MOST  # what the levels of a row and a column may take away

_U8, _U32, _U64, _I8, _I64 = (array(t) for t in (types.uint8, types.uint32, types.uint64, types.int8, types.int64))
_OUT_U8, _OUT_U32, _OUT_U64, _OUT_I64 = (
    array(t, readonly=False) for t in (types.uint8, types.uint32, types.uint64, types.int64)
)
_LANES, _MASK = ir.VectorType(ir.IntType(32), BLOCK), ir.IntType(64)

Scalar = Any
Bytes = NDArray[np.uint8]


def _emit_reached(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    lasts, *rest = args
    data = context.make_array(signature.args[0])(context, builder, lasts).data
    most = builder.load(builder.bitcast(data, _LANES.as_pointer()), align=4)
    return builder.bitcast(builder.icmp_unsigned("<=", emit_thresholds(builder, *rest), most), _MASK)


def _type_reached(context: Any, lasts: Any, start: Any, low: Any, high: Any, offset: Any) -> Any:
    """Tell which of the 64 coordinates from ``start`` on have thresholds of at most ``lasts``, one for each of them."""
    return types.uint64(lasts, *[types.uint32] * 4), _emit_reached


_reached: Any = intrinsic(_type_reached)


@lru_cache(maxsize=LEVELS)
def _tables(level: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Of each sum of a row's and a column's level, from the least on: the coordinate's level, its largest threshold."""
    levels = np.clip(np.arange(level - _BELOW, level + _BELOW + 1), 0, LEVELS - 1)
    return levels, np.array([last_candidate(found, REACH - NARROWER) for found in levels.tolist()], np.uint32)


def _arrays(field: Field) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
    return np.array(field.lengths, np.int64), np.array(field.columns, np.int64), plain(field.levels, np.int8)


def outside(indices: NDArray[np.int64], level: int, which: Thresholds, field: Field) -> NDArray[np.bool_]:
    """Tell which coordinates have thresholds above what is coded; see ``fielded_reference.outside``."""
    indices = plain(indices, np.int64)
    found = np.empty(indices.size, np.uint8)
    lasts = _tables(level)[1]
    _outside(indices, plain(which.words, np.uint64), which.offset, *_arrays(field), lasts, found)
    return found.view(np.bool_)


@kernel(types.void, _I64, _U64, types.uint32, _I64, _I64, _I8, _U32, _OUT_U8)
def _outside(
    indices: NDArray[np.int64],
    words: NDArray[np.uint64],
    offset: Scalar,
    lengths: NDArray[np.int64],
    columns: NDArray[np.int64],
    levels: NDArray[np.int8],
    lasts: NDArray[np.uint32],
    found: Bytes,
) -> None:
    stretch = start = first = 0
    for k in range(indices.size):
        i = indices[k]
        while i >= start + lengths[stretch]:
            rows = -(-lengths[stretch] // columns[stretch])
            first += rows + columns[stretch] if rows > 1 else 1
            start += lengths[stretch]
            stretch += 1
        rows, row = -(-lengths[stretch] // columns[stretch]), (i - start) // columns[stretch]
        level = np.int64(levels[first + row])
        if rows > 1:
            level += levels[first + rows + i - start - row * columns[stretch]]
        word = words[U(i) >> _32]
        found[k] = threshold_at(W(i), W(word), W(word >> _32), offset) > lasts[level + _BELOW]


@inline
def _fill(levels: NDArray[np.int8], at: Any, row: Any, count: Any, lasts: NDArray[np.uint32], most: Any) -> None:
    """Write the largest thresholds that are coded of some columns of a row."""
    for j in range(count):
        most[j] = lasts[row + levels[at + j]]


@inline
def _candidates(most: NDArray[np.uint32], count: Any, block: Any, low: Any, high: Any, offset: Any) -> Any:
    """Tell which of a block's first coordinates have thresholds that are coded, as bits."""
    mask = _reached(most, block, low, high, offset)
    return mask & ((_1 << U(count)) - _1) if count < BLOCK else mask


@inline
def _context(threshold: Any, level: Any) -> Any:
    """Tell by which context a threshold's bit is coded at a coordinate of some level."""
    return U(max(half_octave_of(threshold) - level + DEPTH, 0))


def encode_fires(
    length: int, indices: NDArray[np.int64], level: int, which: Thresholds, field: Field
) -> NDArray[np.uint8]:
    """Write which of the coded coordinates fire; see ``fielded_reference.encode_fires``."""
    indices, words = plain(indices, np.int64), plain(which.words, np.uint64)
    of_sum, lasts = _tables(level)
    out = np.empty(4 * BLOCK + indices.size, np.uint8)
    while True:
        state, ones, zeros = new_state(), FIELD_ONES.copy(), FIELD_ZEROS.copy()
        start_stream(state)
        args = words, which.offset, *_arrays(field), of_sum, lasts, indices, ones, zeros
        if _encode(*args, np.empty(BLOCK, np.uint32), state, out) and (size := finish_stream(state, out)):
            return out[1:size]
        out = np.empty(2 * out.size, np.uint8)


@kernel(
    types.boolean, _U64, types.uint32, _I64, _I64, _I8, _I64, _U32,
    _I64, _OUT_U64, _OUT_U64, _OUT_U32, _OUT_U64, _OUT_U8,
)  # fmt: skip
def _encode(
    words: NDArray[np.uint64],
    offset: Scalar,
    lengths: NDArray[np.int64],
    columns: NDArray[np.int64],
    levels: NDArray[np.int8],
    of_sum: NDArray[np.int64],
    lasts: NDArray[np.uint32],
    indices: NDArray[np.int64],
    ones: NDArray[np.uint64],
    zeros: NDArray[np.uint64],
    most: NDArray[np.uint32],
    state: NDArray[np.uint64],
    out: Bytes,
) -> Any:
    """Write all stretches; False where there is no room."""
    done = start = first = 0
    following = indices[0] if indices.size else -1
    span, least, chances = state[SPAN], state[LOW], chances_of(ones, zeros)
    for stretch in range(lengths.size):
        length, width = lengths[stretch], columns[stretch]
        rows = -(-length // width)
        for row in range(rows):
            base = np.int64(levels[first + row]) + _BELOW
            begin, end = start + row * width, start + min((row + 1) * width, length)
            block = begin
            while block < end:
                stop = min(block + BLOCK, end, ((block >> 32) + 1) << 32)
                count, word = stop - block, words[U(block) >> _32]
                low, high = W(word), W(word >> _32)
                at = first + rows + block - begin
                if rows > 1:
                    _fill(levels, at, base, count, lasts, most)
                elif block == begin:
                    most[:] = lasts[base]
                mask = _candidates(most, count, W(block), low, high, offset)
                if not has_room(state, out, BLOCK):
                    return False
                while mask != _0:
                    j = np.int64(trailing_zeros(mask))
                    mask &= mask - _1
                    level = of_sum[base + (np.int64(levels[at + j]) if rows > 1 else 0)]
                    c = _context(threshold_at(W(block + j), low, high, offset), level)
                    bound = (span >> _16) * chances[c]
                    if block + j == following:
                        span = bound
                        ones[c] += _COUNT
                        done += 1
                        following = indices[done] if done < indices.size else -1
                    else:
                        least += bound
                        span -= bound
                        zeros[c] += _COUNT
                    chances[c] = chance_of_one(ones[c], zeros[c])
                    if span < LEAST:
                        state[SPAN], state[LOW] = span, least
                        widen(state, out)
                        span, least = state[SPAN], state[LOW]
                block = stop
        start += length
        first += rows + width if rows > 1 else 1
    state[SPAN], state[LOW] = span, least
    return True


def decode_fires(
    data: NDArray[np.uint8], length: int, num_fires: int, level: int, which: Thresholds, field: Field
) -> NDArray[np.int64] | None:
    """Read what ``encode_fires`` wrote."""
    data, words = plain(data, np.uint8), plain(which.words, np.uint64)
    state, ones, zeros = new_state(), FIELD_ONES.copy(), FIELD_ZEROS.copy()
    indices = np.empty(num_fires, np.int64)
    start_reading_stream(state, data)
    args = words, which.offset, *_arrays(field), *_tables(level), indices, ones, zeros
    done = int(_decode(data, *args, np.empty(BLOCK, np.uint32), state))
    return indices if done == num_fires and stream_ended(state, data) else None


@kernel(
    types.int64, _U8, _U64, types.uint32, _I64, _I64, _I8, _I64, _U32, _OUT_I64, _OUT_U64, _OUT_U64, _OUT_U32, _OUT_U64,
)  # fmt: skip
def _decode(
    data: Bytes,
    words: NDArray[np.uint64],
    offset: Scalar,
    lengths: NDArray[np.int64],
    columns: NDArray[np.int64],
    levels: NDArray[np.int8],
    of_sum: NDArray[np.int64],
    lasts: NDArray[np.uint32],
    indices: NDArray[np.int64],
    ones: NDArray[np.uint64],
    zeros: NDArray[np.uint64],
    most: NDArray[np.uint32],
    state: NDArray[np.uint64],
) -> Any:
    """Read all stretches: how many fires there are, below 0 where they are more than there is room for."""
    done = start = first = 0
    span, code, chances = state[SPAN], state[CODE], chances_of(ones, zeros)
    for stretch in range(lengths.size):
        length, width = lengths[stretch], columns[stretch]
        rows = -(-length // width)
        for row in range(rows):
            base = np.int64(levels[first + row]) + _BELOW
            begin, end = start + row * width, start + min((row + 1) * width, length)
            block = begin
            while block < end:
                stop = min(block + BLOCK, end, ((block >> 32) + 1) << 32)
                count, word = stop - block, words[U(block) >> _32]
                low, high = W(word), W(word >> _32)
                at = first + rows + block - begin
                if rows > 1:
                    _fill(levels, at, base, count, lasts, most)
                elif block == begin:
                    most[:] = lasts[base]
                mask = _candidates(most, count, W(block), low, high, offset)
                while mask != _0:
                    j = np.int64(trailing_zeros(mask))
                    mask &= mask - _1
                    level = of_sum[base + (np.int64(levels[at + j]) if rows > 1 else 0)]
                    c = _context(threshold_at(W(block + j), low, high, offset), level)
                    bound = (span >> _16) * chances[c]
                    if code < bound:
                        span = bound
                        ones[c] += _COUNT
                        if done == indices.size:
                            return -1
                        indices[done] = block + j
                        done += 1
                    else:
                        code -= bound
                        span -= bound
                        zeros[c] += _COUNT
                    chances[c] = chance_of_one(ones[c], zeros[c])
                    if span < LEAST:
                        state[SPAN], state[CODE] = span, code
                        refill(state, data)
                        span, code = state[SPAN], state[CODE]
                block = stop
        start += length
        first += rows + width if rows > 1 else 1
    state[SPAN], state[CODE] = span, code
    return done
