"""Rounding with thresholds that both ends know, compiled by Numba: bit for bit what ``fires_reference.py`` computes.

Thresholds are made anew wherever they are needed, 64 at once in vector registers: that is faster than to read them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from gradwire.kernels import threads
from gradwire.kernels.blocks import BLOCK
from gradwire.kernels.fires_reference import (
    DEPTH,
    LANES,
    LARGEST_COUNT,
    ONES,
    SUMMED,
    ZEROS,
    Thresholds,
    last_candidate,
)
from gradwire.kernels.jit import array, inline, kernel, maker, pair, plain, trailing_zeros
from gradwire.kernels.range_coder import (
    CODE,
    LEAST,
    LOW,
    SPAN,
    chance_of_one,
    ended,
    finish_writing,
    has_room,
    new_state,
    refill,
    start_reading,
    start_writing,
    widen,
)
from gradwire.kernels.range_reference import COUNT

__all__ = [
    "chances_of",
    "decode_fires",
    "emit_thresholds",
    "encode_fires",
    "finish_stream",
    "half_octave_of",
    "outside",
    "round_known",
    "start_reading_stream",
    "start_stream",
    "stream_ended",
    "sum_magnitudes",
    "threshold_at",
]

U, W = np.uint64, np.uint32
_0, _1, _16, _COUNT = U(0), U(1), U(16), U(COUNT)
_WORD_BITS, _LOW_WORD = 32, 0xFFFFFFFF
_ROOT_TWO, _2_32 = U(0xB504F334), 2.0**32
_SIGNLESS = 0x7FFFFFFF
_TINY = 2.0**-100
_MARGIN = 1 + 2.0**-18  # what a product in float32 is raised by, so that rounding hides no fire

_F32, _U8, _U32, _U64, _I64 = (array(t) for t in (types.float32, types.uint8, types.uint32, types.uint64, types.int64))
_OUT_U8, _OUT_U64, _OUT_I64, _OUT_I32, _OUT_F64 = (
    array(t, readonly=False) for t in (types.uint8, types.uint64, types.int64, types.int32, types.float64)
)

_LANE, _MASK = ir.IntType(32), ir.IntType(64)
_LANES, _REALS = ir.VectorType(_LANE, BLOCK), ir.VectorType(ir.FloatType(), BLOCK)
_GOLDEN, _FIRST, _SECOND = 0x9E3779B1, 0x7FEB352D, 0x846CA68B

Scalar = Any
Bytes = NDArray[np.uint8]


def _constant(number: int) -> Any:
    return ir.Constant(_LANES, [number] * BLOCK)


def _all(builder: Any, value: Any, vector: Any) -> Any:
    """A vector of one value."""
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(_LANE, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_LANES, [0] * BLOCK))


def emit_thresholds(builder: Any, start: Any, low: Any, high: Any, offset: Any) -> Any:
    """The thresholds of the 64 coordinates from ``start`` on; see ``fires_reference.thresholds``."""
    first = builder.add(builder.mul(start, ir.Constant(_LANE, _GOLDEN)), low)
    steps = ir.Constant(_LANES, [_GOLDEN * i & _LOW_WORD for i in range(BLOCK)])
    x = builder.add(_all(builder, first, _LANES), steps)
    x = builder.xor(x, builder.lshr(x, _constant(16)))
    x = builder.mul(x, _constant(_FIRST))
    x = builder.xor(x, _all(builder, high, _LANES))
    x = builder.xor(x, builder.lshr(x, _constant(15)))
    x = builder.mul(x, _constant(_SECOND))
    x = builder.xor(x, builder.lshr(x, _constant(16)))
    return builder.add(x, _all(builder, offset, _LANES))


def _emit_low(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    found = emit_thresholds(builder, *args[:4])
    return builder.bitcast(builder.icmp_unsigned("<=", found, _all(builder, args[4], _LANES)), _MASK)


def _type_low(context: Any, start: Any, low: Any, high: Any, offset: Any, last: Any) -> Any:
    """Tell which of the 64 coordinates from ``start`` on have thresholds of at most ``last``, bit by bit."""
    return types.uint64(*[types.uint32] * 5), _emit_low


_low: Any = intrinsic(_type_low)


def _emit_perhaps(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    bits, at, scale, *rest = args
    data = context.make_array(signature.args[0])(context, builder, bits).data
    values = builder.load(builder.bitcast(builder.gep(data, [at]), _LANES.as_pointer()), align=4)
    magnitudes = builder.bitcast(builder.and_(values, _constant(_SIGNLESS)), _REALS)
    found = builder.lshr(emit_thresholds(builder, *rest), _constant(8))
    reached = builder.fmul(magnitudes, _all(builder, scale, _REALS))
    return builder.bitcast(builder.fcmp_ordered(">", reached, builder.sitofp(found, _REALS)), _MASK)


def _type_perhaps(context: Any, bits: Any, at: Any, scale: Any, start: Any, low: Any, high: Any, offset: Any) -> Any:
    """Tell which of 64 values fire, and a few that may not: |x| scale > threshold / 2^8, scale 2^24 / step and more."""
    return types.uint64(bits, types.int64, types.float32, *[types.uint32] * 4), _emit_perhaps


_perhaps: Any = intrinsic(_type_perhaps)


@inline
def threshold_at(at: Scalar, low: Scalar, high: Scalar, offset: Scalar) -> Scalar:
    """One threshold: uint32 in, uint32 out."""
    x = W(at * W(_GOLDEN) + low)
    x = W(x ^ (x >> W(16)))
    x = W(x * W(_FIRST))
    x = W(x ^ high)
    x = W(x ^ (x >> W(15)))
    x = W(x * W(_SECOND))
    x = W(x ^ (x >> W(16)))
    return W(x + offset)


def _stretches(length: int, which: Thresholds) -> list[tuple[int, int, tuple[int, int, int]]]:
    """Ranges of coordinates that are of one word each: start, stop, and what makes the thresholds."""
    found = []
    for number in range(-(-length >> _WORD_BITS)):
        word = int(which.words[number])
        start = number << _WORD_BITS
        made_of = (word & _LOW_WORD, word >> _WORD_BITS, which.offset)
        found.append((start, min(start + (1 << _WORD_BITS), length), made_of))
    return found


def sum_magnitudes(values: NDArray[np.float32]) -> tuple[float, float]:
    """Add up magnitudes, and find the largest; see ``fires_reference.sum_magnitudes``."""
    values = plain(values, np.float32)
    sums = np.empty(-(-values.size // SUMMED))
    largest = threads.over(values.size, lambda r: _sum_magnitudes(values, r.start, r.stop, sums))
    return sum(sums.tolist()), float(np.uint32(max(largest, default=0)).view(np.float32))


@kernel(types.uint32, _F32, types.int64, types.int64, _OUT_F64)
def _sum_magnitudes(values: NDArray[np.float32], start: int, stop: int, sums: NDArray[np.float64]) -> Any:
    """Write the sum of each stretch; a range starts with one. Return the bits of the largest magnitude."""
    bits = values.view(np.uint32)
    lanes, most = np.empty(LANES), np.empty(LANES, np.uint32)
    most[:] = 0
    for first in range(start, stop, SUMMED):
        last = min(first + SUMMED, stop)
        whole = first + (last - first) // LANES * LANES
        lanes[:] = 0.0
        for at in range(first, whole, LANES):
            some, same = values[at : at + LANES], bits[at : at + LANES]
            for j in range(LANES):  # of a fixed length: becomes vector instructions
                lanes[j] += np.float64(abs(some[j]))
                most[j] = max(most[j], same[j] & W(_SIGNLESS))
        for at in range(whole, last):
            lanes[at - whole] += np.float64(abs(values[at]))
            most[0] = max(most[0], bits[at] & W(_SIGNLESS))
        total = 0.0
        for lane in lanes:
            total += lane
        sums[first // SUMMED] = total
    return most.max()


def round_known(
    values: NDArray[np.float32], step: float, which: Thresholds
) -> tuple[NDArray[np.int64], NDArray[np.int32]] | None:
    """Round numbers to multiples of a step; see ``fires_reference.round_known``."""
    values = plain(values, np.float32)
    scale = np.float32(2.0**24 / step * _MARGIN if step > _TINY else np.inf)
    pieces: list[tuple[NDArray[np.int64], NDArray[np.int32]] | None] = []
    for start, stop, made_of in _stretches(values.size, which):
        task = partial(_rounded, values[start:stop], step, scale, made_of, start)
        pieces += threads.over(stop - start, task)
    found = [piece for piece in pieces if piece is not None]
    if len(found) < len(pieces):
        return None
    places = [np.empty(0, np.int64), *(piece[0] for piece in found)]
    return np.concatenate(places), np.concatenate([np.empty(0, np.int32), *(piece[1] for piece in found)])


def _rounded(
    values: NDArray[np.float32], step: float, scale: np.float32, made_of: tuple[int, int, int], base: int, part: slice
) -> tuple[NDArray[np.int64], NDArray[np.int32]] | None:
    """What fires in a range of a stretch: None where a number is too large."""
    start, stop = part.start, part.stop
    room = max(1024, (stop - start) // 64)
    places, counts, found = np.empty(room, np.int64), np.empty(room, np.int32), 0
    while True:
        start, found = _round(values, start, stop, step, scale, *made_of, places, counts, found)
        if start < 0:
            return None
        if start == stop:
            break
        places, counts = np.append(places, np.empty_like(places)), np.append(counts, np.empty_like(counts))
    return places[:found] + base, counts[:found]


@kernel(
    pair(types.int64), _F32, types.int64, types.int64, types.float64, types.float32,
    types.uint32, types.uint32, types.uint32, _OUT_I64, _OUT_I32, types.int64,
)  # fmt: skip
def _round(
    values: NDArray[np.float32],
    start: int,
    stop: int,
    step: float,
    scale: Any,
    low: Scalar,
    high: Scalar,
    offset: Scalar,
    places: NDArray[np.int64],
    counts: NDArray[np.int32],
    found: int,
) -> Any:
    """Write what fires, as far as there is room: where to go on, below 0 where a number is too large; and how many."""
    bits = values.view(np.uint32)
    at = start
    while at < stop:
        if found + BLOCK > places.size:
            return at, found
        end = min(at + BLOCK, stop)
        mask = (_1 << U(end - at)) - _1 if end - at < BLOCK else _perhaps(bits, at, scale, W(at), low, high, offset)
        while mask != _0:
            i = at + np.int64(trailing_zeros(mask))
            mask &= mask - _1
            scaled = np.float64(abs(values[i])) / step
            if scaled >= LARGEST_COUNT:
                return -1, found
            whole = np.floor(scaled)
            rest = np.floor((scaled - whole) * _2_32)
            count = np.int32(whole) + np.int32(np.float64(threshold_at(W(i), low, high, offset)) < rest)
            if count:
                places[found] = i
                counts[found] = -count if values[i] < 0 else count
                found += 1
        at = end
    return stop, found


def outside(indices: NDArray[np.int64], level: int, which: Thresholds) -> NDArray[np.bool_]:
    """Tell which coordinates have thresholds above what is coded; see ``fires_reference.outside``."""
    indices = plain(indices, np.int64)
    words = plain(which.words, np.uint64)
    found = np.empty(indices.size, np.uint8)
    _outside(indices, words, which.offset, last_candidate(level), found)
    return found.view(np.bool_)


@kernel(types.void, _I64, _U64, types.uint32, types.uint32, _OUT_U8)
def _outside(indices: NDArray[np.int64], words: NDArray[np.uint64], offset: Scalar, last: Scalar, found: Bytes) -> None:
    for i in range(indices.size):
        at = U(indices[i])
        word = words[at >> U(_WORD_BITS)]
        found[i] = threshold_at(W(at), W(word), W(word >> U(_WORD_BITS)), offset) > last


def _emit_bit_length(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    zeros = builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))
    return builder.sub(ir.Constant(_LANE, 32), zeros)


def _type_bit_length(context: Any, value: Any) -> Any:
    """Count the bits of a uint32 up to its highest one."""
    return types.uint32(types.uint32), _emit_bit_length


_bit_length: Any = intrinsic(_type_bit_length)


@inline
def half_octave_of(value: Scalar) -> Any:
    """Return the half octave of a uint32, int64; see ``fires_reference.half_octave``."""
    e = U(_bit_length(value))
    upper = U(value) << (U(32) - e) >= _ROOT_TWO
    return 2 * np.int64(e) + np.int64(upper)


@inline
def _context(value: Scalar, level: Any) -> Any:
    """The context of a threshold; see ``fires_reference.context_of``."""
    return U(max(half_octave_of(value) - level + DEPTH, 0))


@maker
def chances_of(ones: NDArray[np.uint64], zeros: NDArray[np.uint64]) -> Any:
    """The probabilities of all contexts: a division takes long, and is done before it is needed."""
    chances = np.empty(ones.size, np.uint64)
    for at in range(ones.size):
        chances[at] = chance_of_one(ones[at], zeros[at])
    return chances


def encode_fires(length: int, indices: NDArray[np.int64], level: int, which: Thresholds) -> NDArray[np.uint8]:
    """Write which of the coded coordinates fire; see ``fires_reference.encode_fires``."""
    indices, last = plain(indices, np.int64), last_candidate(level)
    out = np.empty(4 * BLOCK + indices.size, np.uint8)
    while True:
        state, ones, zeros = new_state(), ONES.copy(), ZEROS.copy()
        start_stream(state)
        done = 0
        for start, stop, made_of in _stretches(length, which):
            done = int(_encode(start, stop, *made_of, last, level, indices, done, ones, zeros, state, out))
            if done < 0:
                break
        if done >= 0 and (size := finish_stream(state, out)):
            return out[1:size]
        out = np.empty(2 * out.size, np.uint8)


@kernel(types.void, _OUT_U64)
def start_stream(state: NDArray[np.uint64]) -> None:
    """Begin to write a stream."""
    start_writing(state)


@kernel(types.int64, _OUT_U64, _OUT_U8)
def finish_stream(state: NDArray[np.uint64], out: Bytes) -> Any:
    """End a stream: its size; 0 where there is no room."""
    return np.int64(finish_writing(state, out)) if has_room(state, out, 1) else 0


@kernel(
    types.int64, types.int64, types.int64, types.uint32, types.uint32, types.uint32, types.uint32, types.int64,
    _I64, types.int64, _OUT_U64, _OUT_U64, _OUT_U64, _OUT_U8,
)  # fmt: skip
def _encode(
    start: int,
    stop: int,
    low: Scalar,
    high: Scalar,
    offset: Scalar,
    last: Scalar,
    level: int,
    indices: NDArray[np.int64],
    done: int,
    ones: NDArray[np.uint64],
    zeros: NDArray[np.uint64],
    state: NDArray[np.uint64],
    out: Bytes,
) -> Any:
    """Write a stretch: how many of the indices are done, below 0 where there is no room."""
    following = indices[done] if done < indices.size else -1
    span, least, chances = state[SPAN], state[LOW], chances_of(ones, zeros)
    for block in range(start, stop, BLOCK):
        mask = _low(W(block), low, high, offset, last)
        if stop - block < BLOCK:
            mask &= (_1 << U(stop - block)) - _1
        if not has_room(state, out, BLOCK):
            return -1
        while mask != _0:
            i = block + np.int64(trailing_zeros(mask))
            mask &= mask - _1
            at = _context(threshold_at(W(i), low, high, offset), level)
            bound = (span >> _16) * chances[at]
            if i == following:
                span = bound
                ones[at] += _COUNT
                done += 1
                following = indices[done] if done < indices.size else -1
            else:
                least += bound
                span -= bound
                zeros[at] += _COUNT
            chances[at] = chance_of_one(ones[at], zeros[at])
            if span < LEAST:
                state[SPAN], state[LOW] = span, least
                widen(state, out)
                span, least = state[SPAN], state[LOW]
    state[SPAN], state[LOW] = span, least
    return done


def decode_fires(
    data: NDArray[np.uint8], length: int, num_fires: int, level: int, which: Thresholds
) -> NDArray[np.int64] | None:
    """Read what ``encode_fires`` wrote."""
    data, last = plain(data, np.uint8), last_candidate(level)
    state, ones, zeros = new_state(), ONES.copy(), ZEROS.copy()
    indices = np.empty(num_fires, np.int64)
    start_reading_stream(state, data)
    done = 0
    for start, stop, made_of in _stretches(length, which):
        done = int(_decode(data, start, stop, *made_of, last, level, indices, done, ones, zeros, state))
        if done < 0:
            return None
    return indices if done == num_fires and stream_ended(state, data) else None


@kernel(types.void, _OUT_U64, _U8)
def start_reading_stream(state: NDArray[np.uint64], data: Bytes) -> None:
    """Begin to read a stream."""
    start_reading(state, data)


@kernel(types.boolean, _OUT_U64, _U8)
def stream_ended(state: NDArray[np.uint64], data: Bytes) -> Any:
    """Tell whether a stream ends where it must."""
    return ended(state, data)


@kernel(
    types.int64, _U8, types.int64, types.int64, types.uint32, types.uint32, types.uint32, types.uint32, types.int64,
    _OUT_I64, types.int64, _OUT_U64, _OUT_U64, _OUT_U64,
)  # fmt: skip
def _decode(
    data: Bytes,
    start: int,
    stop: int,
    low: Scalar,
    high: Scalar,
    offset: Scalar,
    last: Scalar,
    level: int,
    indices: NDArray[np.int64],
    done: int,
    ones: NDArray[np.uint64],
    zeros: NDArray[np.uint64],
    state: NDArray[np.uint64],
) -> Any:
    """Read a stretch: how many fires there are up to its end, below 0 where they are more than there is room for."""
    span, code, chances = state[SPAN], state[CODE], chances_of(ones, zeros)
    for block in range(start, stop, BLOCK):
        mask = _low(W(block), low, high, offset, last)
        if stop - block < BLOCK:
            mask &= (_1 << U(stop - block)) - _1
        while mask != _0:
            i = block + np.int64(trailing_zeros(mask))
            mask &= mask - _1
            at = _context(threshold_at(W(i), low, high, offset), level)
            bound = (span >> _16) * chances[at]
            if code < bound:
                span = bound
                ones[at] += _COUNT
                if done == indices.size:
                    return -1
                indices[done] = i
                done += 1
            else:
                code -= bound
                span -= bound
                zeros[at] += _COUNT
            chances[at] = chance_of_one(ones[at], zeros[at])
            if span < LEAST:
                state[SPAN], state[CODE] = span, code
                refill(state, data)
                span, code = state[SPAN], state[CODE]
    state[SPAN], state[CODE] = span, code
    return done
