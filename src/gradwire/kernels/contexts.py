"""Levels of a grid, coded with contexts, compiled by Numba: bit for bit what ``contexts_reference.py`` computes.

One walk over all coordinates writes levels, or reads them, or chooses each by what it costs before it is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from gradwire.kernels.context_tables import (
    BLOCK,
    BLOCKS,
    COUNTS,
    LEAST_CHANCE,
    LOGITS,
    MAGNITUDES,
    MOST_COUNTED,
    MOST_LOGIT,
    PLACES,
    PRICES,
    SIGN_PRICE,
    SIGNS,
    SQUASHED,
    UNARY,
    initial_states,
    initial_weights,
)
from gradwire.kernels.jit import array, inline, kernel, leading_zeros, plain
from gradwire.kernels.range_coder import (
    decode_bit,
    encode_bit,
    ended,
    finish_writing,
    has_room,
    new_state,
    start_reading,
    start_writing,
)

__all__ = ["choose_levels", "decode_levels", "encode_levels"]

U, S = np.uint64, np.int64
WRITE, READ, CHOOSE = range(3)
_BLOCK_BITS = 1 + BLOCK * (2 + UNARY + 61)  # of a block at most

_EVEN = S(1 << 15)
_MOST_LOGIT, _UNARY, _MOST_COUNTED, _BLOCK = S(MOST_LOGIT), S(UNARY), S(MOST_COUNTED), S(BLOCK)
_BLOCKS, _SKIPS, _BLOCK_LOCALS = S(BLOCKS), S(BLOCKS) + 64, S(BLOCKS) + 192
_PRODUCTS, _NEIGHBOURS, _LOCALS = S(PLACES), S(PLACES) + 64, S(PLACES) + 64 + 8 * 192
_COLUMN_SIGNS, _ROW_SIGNS, _SIGNS_ABOVE = S(SIGNS), S(SIGNS) + 64, S(SIGNS) + 128
_MAGNITUDES, _OF_NEIGHBOURS = S(MAGNITUDES), S(MAGNITUDES) + 14 * 24
_OF_BLOCK, _OF_PLACE, _OF_SIGN = S(0), S(4), S(8)  # weights

_U8, _U32, _I32, _I64 = (array(t) for t in (types.uint8, types.uint32, types.int32, types.int64))
_OUT_U8, _OUT_U32, _OUT_U64, _OUT_I32, _OUT_I64 = (
    array(t, readonly=False) for t in (types.uint8, types.uint32, types.uint64, types.int32, types.int64)
)

Levels = NDArray[np.int32]
Scalar = Any  # inside kernels: int64 but where noted


def encode_levels(
    levels: NDArray[np.int32], lengths: NDArray[np.int64], columns: NDArray[np.int64], most: int
) -> NDArray[np.uint8]:
    """Write levels."""
    return _written(WRITE, plain(levels, np.int32), lengths, columns, most, 0)[1]


def choose_levels(
    amounts: NDArray[np.int32], lengths: NDArray[np.int64], columns: NDArray[np.int64], most: int, price: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Choose levels for numbers in steps times 256, by squared error and cost, and write them."""
    return _written(CHOOSE, amounts, lengths, columns, most, price)


def _written(
    mode: int, given: Levels, lengths: NDArray[np.int64], columns: NDArray[np.int64], most: int, price: int
) -> tuple[Levels, NDArray[np.uint8]]:
    """The levels, and their bytes: in more room where there is too little."""
    room = given.size // 4 + 4 * _BLOCK_BITS
    while True:
        levels = given.astype(np.int32)  # a walk writes them back, or those that it chooses
        out = np.empty(room, np.uint8)
        size = _run(mode, levels, lengths, columns, most, price, _NOTHING, out)
        if size >= 0:
            return levels, out[1:size]
        room *= 8


def decode_levels(
    data: NDArray[np.uint8], lengths: NDArray[np.int64], columns: NDArray[np.int64], most: int
) -> NDArray[np.int32] | None:
    """Read levels; None where the bytes are not exactly those of some."""
    levels = np.zeros(int(lengths.sum()), np.int32)
    right = _run(READ, levels, lengths, columns, most, 0, plain(data, np.uint8), np.empty(0, np.uint8))
    return levels if right else None


_NOTHING = np.empty(0, np.uint8)


def _run(
    mode: int,
    levels: Levels,
    lengths: NDArray[np.int64],
    columns: NDArray[np.int64],
    most: int,
    price: int,
    data: NDArray[np.uint8],
    out: NDArray[np.uint8],
) -> int:
    above, sums, signs = (np.zeros(int(columns.max(initial=0)) + 2, np.int32) for _ in range(3))
    states, weights = initial_states(), initial_weights()
    held = (new_state(), states, weights, np.zeros(256, np.int64), above, sums, signs)
    return int((_write, _read, _choose_and_write)[mode](levels, lengths, columns, most, price, data, out, *held))


@inline
def _log8(value: Scalar) -> Scalar:
    """Eight times the logarithm to base 2 of 8 or more, by its highest four bits."""
    exponent = S(63) - S(leading_zeros(U(value)))
    return (exponent << 3) + ((value >> (exponent - 3)) & 7)


@inline
def _clip(value: Scalar, most: Scalar) -> Scalar:
    return min(max(value, S(0)), S(most))


@inline
def _sign(value: Scalar) -> Scalar:
    return S(value > 0) - S(value < 0)


@inline
def _learn(states: Any, at: Scalar, bit: Scalar) -> None:
    """Move a context's chance towards a bit."""
    state = S(states[U(at)])
    seen = state & 1023
    chance = (state >> 10) + ((((bit << 22) - (state >> 10)) * COUNTS[U(seen)]) >> 16)
    states[U(at)] = np.uint32(chance << 10 | min(seen + 1, _MOST_COUNTED))


@inline
def _logit(states: Any, at: Scalar) -> Scalar:
    """The logit of a context's chance."""
    return S(LOGITS[U(states[U(at)] >> 20)])


@inline
def _chance(x: Scalar, y: Scalar, z: Scalar, weights: Any, w: Scalar) -> Scalar:
    """The chance of a one, times 2^16, of three logits in their mixture."""
    logit = (x * weights[U(w)] + y * weights[U(w + 1)] + z * weights[U(w + 2)]) >> 16
    return S(SQUASHED[U(min(max(logit, -_MOST_LOGIT), _MOST_LOGIT) + _MOST_LOGIT)])


@inline
def _chance_in(states: Any, weights: Any, w: Scalar, a: Scalar, b: Scalar, c: Scalar) -> Scalar:
    """The chance of a one, times 2^16, in three contexts."""
    return _chance(_logit(states, a), _logit(states, b), _logit(states, c), weights, w)


@inline
def _code(mode: Scalar, state: Any, data: Any, out: Any, chance: Scalar, bit: Scalar) -> Scalar:
    """Write or read a bit."""
    if mode == READ:
        return S(decode_bit(state, data, U(chance)))
    encode_bit(state, out, U(chance), bit != 0)
    return bit


@inline
def _mixed(
    mode: Scalar, state: Any, data: Any, out: Any, states: Any, weights: Any, w: Scalar,
    a: Scalar, b: Scalar, c: Scalar, bit: Scalar,
) -> Scalar:  # fmt: skip
    """Code a bit in three contexts, mixed; all of them learn, and so does the mixture."""
    x, y, z = _logit(states, a), _logit(states, b), _logit(states, c)
    chance = _chance(x, y, z, weights, w)
    bit = _code(mode, state, data, out, chance, bit)
    error = (bit << 16) - chance
    weights[U(w)] += (x * error) >> 16
    weights[U(w + 1)] += (y * error) >> 16
    weights[U(w + 2)] += (z * error) >> 16
    _learn(states, a, bit)
    _learn(states, b, bit)
    _learn(states, c, bit)
    return bit


@inline
def _tail(mode: Scalar, state: Any, data: Any, out: Any, rest: Scalar) -> Scalar:
    """Code a number of 0 or more: that and one in Elias' gamma code, its bits of even odds."""
    value, width = rest + 1, S(0)
    while _code(mode, state, data, out, _EVEN, S((value >> (width + 1)) != 0)) and width < 30:
        width += 1
    found = S(1)
    for place in range(width):
        found = found << 1 | _code(mode, state, data, out, _EVEN, (value >> (width - 1 - place)) & 1)
    return found - 1


@inline
def _magnitude(
    mode: Scalar, state: Any, data: Any, out: Any, states: Any, most: Scalar, size: Scalar,
    product: Scalar, one: Scalar, over: Scalar,
) -> Scalar:  # fmt: skip
    """Code a magnitude of 1 or more."""
    k = S(1)
    near = _OF_NEIGHBOURS + min(one, S(4)) * 5 + min(abs(over), S(4))
    while k < most and k < _UNARY:
        a, b = _MAGNITUDES + (k - 1) * 24 + (product >> 1), near + (k - 1) * 25
        chance = min(max(S(states[U(a)] >> 17) + S(states[U(b)] >> 17), S(LEAST_CHANCE)), S(65536 - LEAST_CHANCE))
        more = _code(mode, state, data, out, chance, S(size > k))
        _learn(states, a, more)
        _learn(states, b, more)
        if not more:
            return k
        k += 1
    return k + _tail(mode, state, data, out, size - k) if k == _UNARY and k < most else k


@inline
def _places(
    product: Scalar, of_row: Scalar, nearby: Scalar, of_column: Scalar, one: Scalar, two: Scalar,
    left: Scalar, over: Scalar, right: Scalar,
) -> tuple[Scalar, Scalar, Scalar]:  # fmt: skip
    """The contexts of whether a coordinate is sent."""
    pattern = (min(one, S(3)) * 4 + min(abs(over), S(3))) * 3 + min(two, S(2))
    pattern = pattern * 4 + min(abs(left) + abs(right), S(3))
    row = _clip((of_row >> 3) - 4, 7)
    return _PRODUCTS + product, _NEIGHBOURS + 192 * row + pattern, _LOCALS + nearby * 32 + of_column


@inline
def _nearest(states: Any, size: Scalar, nearest: Scalar, price: Scalar, product: Scalar) -> tuple[Scalar, Scalar]:
    """The nearest level of 1 or more, or one less where that is cheaper; and whether it is sure to beat none."""
    below = nearest - 1
    if below == 0 or below >= _UNARY - 1:
        return nearest, S(below > 0)
    here = _MAGNITUDES + (below - 1) * 24 + (product >> 1)
    more, after = S(states[U(here)] >> 20), S(states[U(here + 24)] >> 20)
    saved = S(PRICES[U(more)]) + S(PRICES[U(4096 - after)]) - S(PRICES[U(4096 - more)])
    far, close = size - (below << 8), size - (nearest << 8)
    best = below if far * far < close * close + price * saved else nearest
    return best, S(best > 2)


@inline
def _choose(
    levels: Any, at: Scalar, start: Scalar, end: Scalar, most: Scalar, price: Scalar, states: Any, weights: Any,
    chance: Scalar, table: Any, offset: Scalar, mean: Scalar, near: Scalar, of_row: Scalar, product_of: Scalar,
    one: Scalar, two: Scalar, left: Scalar, above: Any, sums: Any,
) -> Scalar:  # fmt: skip
    """Choose the levels of a block by squared error and cost, none where that is as good; whether one is left."""
    zeros = S(PRICES[U(4096 - (states[U(_PRODUCTS + product_of)] >> 20))])
    kept, error, cost, bits = S(0), S(0), S(0), S(PRICES[U(chance >> 4)]) - S(PRICES[U((65536 - chance) >> 4)])
    for j in range(start, end):
        amount = S(levels[U(at)])
        size = abs(amount)
        nearest = min((size + 128) >> 8, most)
        best = S(0)
        over = S(above[U(j)])
        if nearest:
            of_column = table[U(min(S(sums[U(j)]), S(255)))] + offset
            product = _clip(((of_column + of_row) >> 2) - 8, 47)
            best, sure = _nearest(states, size, nearest, price, product)
            if sure:
                kept += 1 << 20
            else:
                nearby = _clip((_log8(near) >> 2) - 8, 31)
                column = _clip(((of_column + _log8(mean)) >> 2) - 8, 31)
                a, b, c = _places(product, of_row, nearby, column, one, two, left, over, S(above[U(j + 1)]))
                sent = _chance_in(states, weights, _OF_PLACE, a, b, c)
                none, needed = S(PRICES[U((65536 - sent) >> 4)]), S(PRICES[U(sent >> 4)]) + S(SIGN_PRICE)
                for k in range(1, best + 1):
                    more = S(states[U(_MAGNITUDES + (k - 1) * 24 + (product >> 1))] >> 20)
                    needed += PRICES[U(more)] if k < best else PRICES[U(4096 - more)]
                away = size - (best << 8)
                if away * away + price * needed < size * size + price * none:
                    bits += needed
                else:
                    best = S(0)
                    bits += none
            error += size * size
            cost += (size - (best << 8)) * (size - (best << 8))
            near += min(best, _UNARY) << 12
            kept += best
        else:
            bits += zeros
        near -= near >> 4
        two, one, left = one, best, over
        levels[U(at)] = best if amount > 0 else -best
        at += 1
    if kept >= 1 << 20 or (kept and error > cost + price * bits):
        return S(1)
    for back in range(1, end - start + 1):
        levels[U(at - back)] = 0
    return S(0)


@inline
def _walk(
    mode: Scalar, levels: Any, lengths: Any, columns: Any, most: Scalar, price: Scalar, data: Any, out: Any,
    state: Any, states: Any, weights: Any, table: Any, above: Any, sums: Any, signs: Any,
) -> Scalar:  # fmt: skip
    """Walk over all coordinates, stretch by stretch, row by row and block by block.

    Returns the bytes written, and one; -1 where there is no room; or 0 where what was read is none that is written.
    """
    for s in range(16, 256):
        table[s] = _log8(S(s) << 16)
    if mode == READ:
        start_reading(state, data)
    else:
        start_writing(state)
    at = S(0)
    for stretch in range(lengths.size):
        first, width = at, columns[stretch]
        above[: width + 2] = 0
        sums[: width + 2] = 0
        signs[: width + 2] = 0
        total, row = S(0), S(0)
        while at < first + lengths[stretch]:
            mean = max(((total << 16) + 32768) // (at - first + 8), S(16))
            for s in range(16):
                table[s] = _log8((S(s) << 16) + mean)
            row += 1
            offset = 128 - _log8(row << 16) - _log8(mean)
            in_row, near, trend, skips = S(0), mean, S(0), S(0)
            one, two, sign, left = S(0), S(0), S(0), S(0)
            stop = 1 + min(width, first + lengths[stretch] - at)
            for start in range(1, stop, _BLOCK):
                if mode != READ and not has_room(state, out, _BLOCK_BITS):
                    return S(-1)
                end = min(start + _BLOCK, stop)
                seen, summed, wanted = S(0), S(0), S(0)
                for j in range(start, end):
                    seen |= S(above[U(j)])
                    summed += sums[U(j)]
                of_row = _log8((in_row << 16) + (mean << 3)) - _log8((start + 7) << 16) + 128
                of_column = _log8((summed << 16) + mean) - 32 + offset
                product, nearby = _clip(((of_column + of_row) >> 2) - 8, 47), _clip((_log8(near) >> 2) - 8, 31)
                a = _BLOCKS + product
                b = _SKIPS + ((skips * 2 + S(seen != 0)) * 2 + S(above[U(end)] != 0)) * 8
                b += _clip((of_row >> 3) - 4, 7)
                c = _BLOCK_LOCALS + nearby * 16 + _clip(((of_column + _log8(mean)) >> 3) - 4, 15)
                if mode == WRITE:
                    for k in range(at, at + end - start):
                        wanted |= S(levels[U(k)] != 0)
                elif mode == CHOOSE:
                    chance = _chance_in(states, weights, _OF_BLOCK, a, b, c)
                    for k in range(at, at + end - start):
                        wanted |= S(abs(levels[U(k)]) >= 128)
                    if wanted:
                        wanted = _choose(
                            levels, at, start, end, most, price, states, weights, chance, table, offset, mean, near,
                            of_row, product, one, two, left, above, sums,
                        )  # fmt: skip
                    else:
                        for k in range(at, at + end - start):
                            levels[U(k)] = 0
                wanted = _mixed(mode, state, data, out, states, weights, _OF_BLOCK, a, b, c, wanted)
                skips = (skips << 1 | (1 - wanted)) & 3
                if not wanted:
                    left = S(above[U(end - 1)])
                    if seen:
                        for j in range(start, end):
                            above[U(j)] = 0
                    near = max(near - (near >> 1) - (near >> 3), S(15))
                    one, two, sign = S(0), S(0), S(0)
                    at += end - start
                    continue
                over, total_before = S(above[U(start)]), in_row
                for j in range(start, end):
                    right = S(above[U(j + 1)])
                    of_column = table[U(min(S(sums[U(j)]), S(255)))] + offset
                    product, nearby = _clip(((of_column + of_row) >> 2) - 8, 47), _clip((_log8(near) >> 2) - 8, 31)
                    column = _clip(((of_column + _log8(mean)) >> 2) - 8, 31)
                    a, b, c = _places(product, of_row, nearby, column, one, two, left, over, right)
                    amount = S(levels[U(at)])
                    found = S(0)
                    if _mixed(mode, state, data, out, states, weights, _OF_PLACE, a, b, c, S(amount != 0)):
                        up, back, ahead = _sign(over), _sign(left), _sign(right)
                        a = _COLUMN_SIGNS + min(max(S(signs[U(j)]), S(-7)), S(7)) + 7 + 16 * (sign + 1)
                        b = _ROW_SIGNS + (trend >> 12) + 8 + 20 * (up + 1)
                        c = _SIGNS_ABOVE + (back + 1) * 27 + (ahead + 1) * 9 + (up + 1) * 3 + sign + 1
                        sign = 2 * _mixed(mode, state, data, out, states, weights, _OF_SIGN, a, b, c, S(amount > 0)) - 1
                        trend += ((sign << 15) - trend) >> 3
                        signs[U(j)] += sign
                        found = _magnitude(mode, state, data, out, states, most, abs(amount), product, one, over)
                        if found > most:
                            return S(0)
                        shown = min(found, _UNARY)
                        sums[U(j)] += shown
                        in_row += shown
                        near += shown << 12
                        of_row = _log8((in_row << 16) + (mean << 3)) - _log8((j + 7) << 16) + 128
                    near -= near >> 4
                    levels[U(at)] = found * sign if found else 0
                    two, one, left, over = one, found, over, right
                    above[U(j)] = levels[U(at)]
                    at += 1
                if in_row == total_before:
                    return S(0)  # a block that was not skipped holds something
            total += in_row
    if mode == READ:
        return S(ended(state, data))
    return S(finish_writing(state, out))


# a walk for each end: compiled apart, with what the others need left out, it takes two thirds of the time

_WALK = (
    types.int64, _OUT_I32, _I64, _I64, types.int64, types.int64, _U8, _OUT_U8, _OUT_U64, _OUT_U32,
    _OUT_I64, _OUT_I64, _OUT_I32, _OUT_I32, _OUT_I32,
)  # fmt: skip


@kernel(*_WALK, counted=False)
def _write(
    levels: Any, lengths: Any, columns: Any, most: Scalar, price: Scalar, data: Any, out: Any,
    state: Any, states: Any, weights: Any, table: Any, above: Any, sums: Any, signs: Any,
) -> Scalar:  # fmt: skip
    return _walk(
        S(WRITE), levels, lengths, columns, most, price, data, out, state, states, weights, table, above, sums, signs
    )


@kernel(*_WALK, counted=False)
def _read(
    levels: Any, lengths: Any, columns: Any, most: Scalar, price: Scalar, data: Any, out: Any,
    state: Any, states: Any, weights: Any, table: Any, above: Any, sums: Any, signs: Any,
) -> Scalar:  # fmt: skip
    return _walk(
        S(READ), levels, lengths, columns, most, price, data, out, state, states, weights, table, above, sums, signs
    )


@kernel(*_WALK, counted=False)
def _choose_and_write(
    levels: Any, lengths: Any, columns: Any, most: Scalar, price: Scalar, data: Any, out: Any,
    state: Any, states: Any, weights: Any, table: Any, above: Any, sums: Any, signs: Any,
) -> Scalar:  # fmt: skip
    return _walk(
        S(CHOOSE), levels, lengths, columns, most, price, data, out, state, states, weights, table, above, sums, signs
    )
