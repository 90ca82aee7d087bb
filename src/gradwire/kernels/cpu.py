"""The op table for large inputs, compiled by Numba: bit for bit what ``reference.py`` computes.

Streams are read and written as 64-bit words, least significant bit first, in the order of bytes of a little-endian
machine: Numba runs on no other. Kernels take no lock and make no array but their results; whatever is not a loop stays
in NumPy. What each op computes is said in ``reference.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from gradwire.kernels.jit import array, count_ones, inline, kernel, plain, trailing_zeros
from gradwire.kernels.models import (
    ANS_LOW,
    HUFFMAN_BITS,
    INVALID,
    MODEL_BITS,
    ans_num_lanes,
    frequencies_sum_up,
    huffman_codes,
    huffman_table,
)
from gradwire.kernels.reference import (
    ans_states,
    check_codes,
    check_symbols,
    golomb_window,
    remainder_code,
)

__all__ = [
    "ans_decode",
    "ans_encode",
    "count_symbols",
    "find",
    "gaps",
    "golomb_bits",
    "golomb_decode",
    "golomb_encode",
    "golomb_encode_stretches",
    "huffman_decode",
    "huffman_encode",
    "join_float32",
    "merge",
    "pack",
    "positions",
    "quotients",
    "split_float32",
    "unpack",
]

# Kernels count in uint64: such an index needs no test for being negative. Constants are typed, since Numba makes
# float64 of uint64 and int64 mixed.
U = np.uint64
_0, _1, _2, _3, _4, _6, _7, _8, _16, _63, _64 = (U(n) for n in (0, 1, 2, 3, 4, 6, 7, 8, 16, 63, 64))
_SLOT_BITS, _SLOT_MASK, _LOW = U(MODEL_BITS), U((1 << MODEL_BITS) - 1), U(ANS_LOW)
_RECIPROCAL_BITS, _WORD_MASK, _RENORM_BITS, _SLOTS = U(44), U(0xFFFF), U(32 - MODEL_BITS), U(1 << MODEL_BITS)
_ENTRY_BITS, _ENTRY_MASK, _INVALID, _WINDOW_MASK = U(8), U(15), U(INVALID), U((1 << HUFFMAN_BITS) - 1)

_U8, _U16, _U32, _U64, _I64, _F32 = (
    array(t) for t in (types.uint8, types.uint16, types.uint32, types.uint64, types.int64, types.float32)
)
_OUT_U8, _OUT_U16, _OUT_U32, _OUT_U64, _OUT_I64, _OUT_F32 = (
    array(t, readonly=False)
    for t in (types.uint8, types.uint16, types.uint32, types.uint64, types.int64, types.float32)
)


_LANES = 32  # sums kept side by side
_TABLES = 4

Words = NDArray[np.uint64]
Scalar = Any  # inside kernels: uint64 but where noted


def _emit_load(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    address = builder.gep(builder.bitcast(data, ir.IntType(8).as_pointer()), [args[1]])
    return builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)


def _type_load(context: Any, words: Any, byte: Any) -> Any:
    """Read the eight bytes from a byte on."""
    return types.uint64(words, types.uint64), _emit_load


_load: Any = intrinsic(_type_load)


@inline
def _peek(words: Words, position: Scalar) -> Scalar:
    """Read the 57 bits or more from a position on; the word after the one it is in must exist."""
    return _load(words, position >> _3) >> (position & _7)


def _to_words(data: NDArray[np.uint8], num_bytes: int) -> Words:
    """Copy bytes to words, with zeros after the last and at least one whole word of them."""
    words = np.zeros(num_bytes // 8 + 2, np.uint64)
    words.view(np.uint8)[: min(data.size, num_bytes)] = data[:num_bytes]
    return words


def _to_bytes(words: Words, num_bits: int) -> NDArray[np.uint8]:
    """Look at the first bits of words as bytes."""
    return words.view(np.uint8)[: -(-num_bits // 8)]


# --- fixed width ------------------------------------------------------------------------------------------------------


def pack(symbols: NDArray[np.integer], width: int) -> NDArray[np.uint8]:
    """Write the lower bits of symbols as fixed-width fields, one after the other."""
    num_bits = symbols.size * width
    words = np.zeros(num_bits // 64 + 1, np.uint64)
    _pack(plain(symbols, np.uint32), width, words)
    return _to_bytes(words, num_bits)


@kernel(types.void, _U32, types.uint64, _OUT_U64)
def _pack(symbols: NDArray[np.uint32], width: Scalar, words: Words) -> None:
    mask = (_1 << width) - _1
    word, used, at = _0, _0, _0
    for symbol in symbols:
        field = U(symbol) & mask
        word |= field << used
        used += width
        if used >= _64:
            words[at] = word
            at += _1
            used -= _64
            word = field >> (width - used)
    if used:
        words[at] = word


def unpack(data: NDArray[np.uint8], num_symbols: int, width: int) -> NDArray[np.int64]:
    """Read fixed-width fields back."""
    symbols = np.empty(num_symbols, np.int64)
    _unpack(_to_words(data, -(-num_symbols * width // 8)), width, symbols)
    return symbols


@kernel(types.void, _U64, types.uint64, _OUT_I64)
def _unpack(words: Words, width: Scalar, symbols: NDArray[np.int64]) -> None:
    mask = (_1 << width) - _1
    for i in range(symbols.size):
        symbols[i] = np.int64(_peek(words, U(i) * width) & mask)


# --- supports ---------------------------------------------------------------------------------------------------------


def find(haystack: NDArray[np.int64], needles: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find where each of some increasing integers is among others."""
    places = np.empty(needles.size, np.int64)
    _find(plain(haystack, np.int64), plain(needles, np.int64), places)
    return places


@kernel(types.void, _I64, _I64, _OUT_I64)
def _find(haystack: NDArray[np.int64], needles: NDArray[np.int64], places: NDArray[np.int64]) -> None:
    at = 0
    for i in range(needles.size):
        while at < haystack.size and haystack[at] < needles[i]:
            at += 1
        places[i] = at if at < haystack.size and haystack[at] == needles[i] else -1


def merge(
    indices: NDArray[np.int64], numbers: NDArray[np.float32], others: NDArray[np.int64], addends: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Add two vectors of which only the coordinates that may differ from zero are listed."""
    union, total = np.empty(indices.size + others.size, np.int64), np.empty(indices.size + others.size, np.float32)
    first = plain(indices, np.int64), plain(numbers, np.float32)
    size = _merge(*first, plain(others, np.int64), plain(addends, np.float32), union, total)
    return union[:size], total[:size]


@kernel(types.int64, _I64, _F32, _I64, _F32, _OUT_I64, _OUT_F32)
def _merge(
    indices: NDArray[np.int64],
    numbers: NDArray[np.float32],
    others: NDArray[np.int64],
    addends: NDArray[np.float32],
    union: NDArray[np.int64],
    total: NDArray[np.float32],
) -> int:
    i, j, at, zero = 0, 0, 0, np.float32(0)
    while i < indices.size and j < others.size:
        a, b = indices[i], others[j]
        number = numbers[i] if a <= b else zero
        addend = addends[j] if b <= a else zero
        union[at] = min(a, b)
        total[at] = number + addend
        i += a <= b
        j += b <= a
        at += 1
    while i < indices.size:
        union[at] = indices[i]
        total[at] = numbers[i] + zero
        i += 1
        at += 1
    while j < others.size:
        union[at] = others[j]
        total[at] = zero + addends[j]
        j += 1
        at += 1
    return at


def gaps(indices: NDArray[np.int64], out: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Count the skipped coordinates before each index."""
    counted = np.empty(indices.size, np.int64) if out is None else out
    _gaps(plain(indices, np.int64), counted)
    return counted


@kernel(types.void, _I64, _OUT_I64)
def _gaps(indices: NDArray[np.int64], counted: NDArray[np.int64]) -> None:
    if indices.size:
        counted[0] = indices[0]
    for i in range(1, indices.size):
        counted[i] = indices[i] - indices[i - 1] - 1


def golomb_bits(gaps: NDArray[np.int64], stops: NDArray[np.int64], parameters: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the bits ``golomb_encode`` writes of each stretch with each of its parameters."""
    bits, num_long = np.empty(parameters.size, np.int64), np.empty(parameters.size, np.int64)
    _golomb_cost(plain(gaps, np.int64), plain(stops, np.int64), plain(parameters, np.int64).ravel(), bits, num_long)
    return bits.reshape(parameters.shape)


def golomb_encode(gaps: NDArray[np.int64], m: int) -> NDArray[np.uint8]:
    """Write gaps in split Golomb code."""
    return golomb_encode_stretches(gaps, np.array([gaps.size]), np.array([m]))[0]


def golomb_encode_stretches(
    gaps: NDArray[np.int64], stops: NDArray[np.int64], parameters: NDArray[np.int64]
) -> list[NDArray[np.uint8]]:
    """Write each stretch of gaps in split Golomb code with its own parameter."""
    gaps, stops, parameters = plain(gaps, np.int64), plain(stops, np.int64), plain(parameters, np.int64)
    bits, num_long = np.empty(stops.size, np.int64), np.empty(stops.size, np.int64)
    _golomb_cost(gaps, stops, parameters, bits, num_long)
    sizes: list[int] = bits.tolist()
    words = np.zeros(sum(sizes) // 64 + len(sizes), np.uint64)
    _golomb_encode(gaps, stops, parameters, num_long, bits, words)
    written, at = [], 0
    for num_bits in sizes:
        written.append(_to_bytes(words[at:], num_bits))
        at += num_bits // 64 + 1
    return written


def golomb_decode(
    data: NDArray[np.uint8],
    num_gaps: int,
    m: int,
    limit: int,
    start: int = 0,
    out: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], int] | None:
    """Read indices written by ``golomb_encode``."""
    if num_gaps == 0:
        return np.empty(0, np.int64), 0
    window = golomb_window(data, num_gaps, m, limit)
    if window is None:
        return None
    width, short = _remainder_code(m)
    indices = np.empty(num_gaps, np.int64) if out is None else out
    words = _to_words(window, window.size)
    end = _golomb_decode(words, 8 * window.size, m, short, width, limit, start, indices.view(np.uint64))
    if end < 0 or (end % 8 and window[end // 8] >> end % 8):
        return None
    return indices, -(-end // 8)


def _remainder_code(m: int) -> tuple[int, int]:
    """Bits of a remainder's field, and the first remainder with an extra bit; for m = 1 there is none."""
    return remainder_code(m) if m > 1 else (0, 1)


@inline
def _divided(gap: Any, m: Any, reciprocal: Any) -> Any:
    """Quotient and remainder, in float64, which is exact here: a product with 1 / m is at most one off."""
    quotient = np.floor(gap * reciprocal)
    remainder = gap - quotient * m
    below, above = np.float64(remainder < 0), np.float64(remainder >= m)
    return quotient - below + above, remainder + m * below - m * above


@inline
def _code(m: Any) -> Any:
    """Bits of a remainder's field, and the first remainder with an extra bit; see ``reference.remainder_code``."""
    if m == 1:
        return 0, 1
    width = 0
    while (1 << width) < m:
        width += 1
    return width - 1, (1 << width) - m


@kernel(types.void, _I64, _I64, _I64, _OUT_I64, _OUT_I64)
def _golomb_cost(
    gaps: NDArray[np.int64],
    stops: NDArray[np.int64],
    parameters: NDArray[np.int64],
    bits: NDArray[np.int64],
    num_long: NDArray[np.int64],
) -> None:
    """Of each stretch, with each of its parameters, count all bits, and the remainders with an extra bit."""
    start, number = 0, parameters.size // stops.size
    sums, counts = np.empty(_LANES), np.empty(_LANES)
    for stretch in range(stops.size):
        here = gaps[start : stops[stretch]]
        start = stops[stretch]
        whole = here.size // _LANES * _LANES
        first = stretch * number
        for i in range(first, first + number):
            if i > first and parameters[i] == parameters[first]:
                bits[i], num_long[i] = bits[first], num_long[first]
                continue
            width, least = _code(parameters[i])
            m, short = np.float64(parameters[i]), np.float64(least)
            reciprocal = 1.0 / m
            sums[:] = 0.0
            counts[:] = 0.0
            for at in range(0, whole, _LANES):
                some = here[at : at + _LANES]
                for j in range(_LANES):  # of a fixed length: becomes vector instructions
                    quotient, remainder = _divided(np.float64(some[j]), m, reciprocal)
                    sums[j] += quotient
                    counts[j] += np.float64(remainder >= short)
            for at in range(whole, here.size):
                quotient, remainder = _divided(np.float64(here[at]), m, reciprocal)
                sums[0] += quotient
                counts[0] += np.float64(remainder >= short)
            num_long[i] = np.int64(counts.sum())
            bits[i] = np.int64(sums.sum()) + here.size * (1 + width) + num_long[i]


@kernel(types.void, _I64, _I64, _I64, _I64, _I64, _OUT_U64)
def _golomb_encode(
    gaps: NDArray[np.int64],
    stops: NDArray[np.int64],
    parameters: NDArray[np.int64],
    num_long: NDArray[np.int64],
    bits: NDArray[np.int64],
    words: Words,
) -> None:
    """Write stretches, each from a word on: the first one, or where the one before, of so many bits, ends."""
    quotients, remainders = np.empty(_LANES), np.empty(_LANES)
    start, begin = 0, 0
    for stretch in range(stops.size):
        stop = stops[stretch]
        code = _code(parameters[stretch])
        width, short, m = U(code[0]), U(code[1]), np.float64(parameters[stretch])
        reciprocal = 1.0 / m
        word, used, at = _0, _0, U(begin)
        extra = (at << _6) + U(stop - start) * width
        unary = extra + U(num_long[stretch])
        for first in range(start, stop, _LANES):
            here = gaps[first : min(first + _LANES, stop)]
            if here.size == _LANES:
                for i in range(_LANES):  # of a fixed length: becomes vector instructions
                    quotient, remainder = _divided(np.float64(here[i]), m, reciprocal)
                    quotients[i], remainders[i] = quotient, remainder
            else:
                for i in range(here.size):
                    quotients[i], remainders[i] = _divided(np.float64(here[i]), m, reciprocal)
            for i in range(here.size):
                remainder = U(np.int64(remainders[i]))
                is_long = remainder >= short
                shifted = remainder + short
                head = shifted >> _1 if is_long else remainder
                word |= head << used
                used += width
                if used >= _64:
                    words[at] = word
                    at += _1
                    used -= _64
                    word = head >> (width - used)
                words[extra >> _6] |= (shifted & U(is_long)) << (extra & _63)
                extra += U(is_long)
                unary += U(np.int64(quotients[i]))
                words[unary >> _6] |= _1 << (unary & _63)
                unary += _1
        if used:
            words[at] |= word
        start, begin = stop, begin + bits[stretch] // 64 + 1


def count_symbols(symbols: NDArray[np.uint16], num_symbols: int) -> NDArray[np.int64]:
    """Count how often each symbol occurs."""
    counts = np.zeros(_TABLES * num_symbols, np.int64)
    _count_symbols(plain(symbols, np.uint16), counts, num_symbols)
    return counts[:num_symbols]


@kernel(types.void, _U16, _OUT_I64, types.int64)
def _count_symbols(symbols: NDArray[np.uint16], counts: NDArray[np.int64], num_symbols: int) -> None:
    """Count in several tables in turn: one after the other in the same place would wait for each other."""
    for i in range(symbols.size):
        counts[(i % _TABLES) * num_symbols + symbols[i]] += 1
    for table in range(1, _TABLES):
        for symbol in range(num_symbols):
            counts[symbol] += counts[table * num_symbols + symbol]


def positions(
    quotients: NDArray[np.uint16], more: NDArray[np.int64], cap: int, low: NDArray[np.int64], shift: int, limit: int
) -> NDArray[np.int64] | None:
    """Add up gaps, of which upper and lower bits are given apart."""
    indices = np.empty(quotients.size, np.int64)
    numbers = plain(quotients, np.uint16), plain(more, np.int64), plain(low, np.int64)
    return indices if _positions(*numbers, cap, shift, limit, indices) else None


@kernel(types.boolean, _U16, _I64, _I64, types.int64, types.int64, types.int64, _OUT_I64)
def _positions(
    quotients: NDArray[np.uint16],
    more: NDArray[np.int64],
    low: NDArray[np.int64],
    cap: int,
    shift: int,
    limit: int,
    indices: NDArray[np.int64],
) -> bool:
    position, used = -1, 0
    for i in range(quotients.size):
        quotient = np.int64(quotients[i])
        if quotient == cap:
            quotient += more[used]
            used += 1
        position += (quotient << shift) + low[i] + 1
        if position >= limit:
            return False
        indices[i] = position
    return True


def quotients(gaps: NDArray[np.int64], shift: int, largest: int) -> NDArray[np.uint16]:
    """Divide by a power of two, with all that is larger than ``largest`` cut to it."""
    found = np.empty(gaps.size, np.uint16)
    _quotients(plain(gaps, np.int64), shift, largest, found)
    return found


@kernel(types.void, _I64, types.int64, types.int64, _OUT_U16)
def _quotients(gaps: NDArray[np.int64], shift: int, largest: int, found: NDArray[np.uint16]) -> None:
    for i in range(gaps.size):
        found[i] = min(gaps[i] >> shift, largest)


@kernel(types.int64, _U64, *(types.uint64,) * 6, _OUT_U64)
def _golomb_decode(
    words: Words,
    num_bits: Scalar,
    m: Scalar,
    short: Scalar,
    width: Scalar,
    limit: Scalar,
    start: Scalar,
    indices: Words,
) -> Scalar:
    """Read indices; the position after the last bit, or -1."""
    count = U(indices.size)
    mask = (_1 << width) - _1
    extra = count * width
    unary = extra
    for rank in range(indices.size):
        head = _peek(words, U(rank) * width) & mask
        indices[rank] = head
        unary += U(head >= short)
    if unary + count > num_bits:
        return -1
    most = np.int64((limit - count) // m)
    at = unary >> _6
    word = words[at] & ~((_1 << (unary & _63)) - _1)
    base = (at << _6) - unary  # below 0 in the first word, where arithmetic is modulo 2^64
    i, remainders, position = _0, _0, _0
    while True:
        # Quotients so far are at least base - i: with this test, and m and limit in bounds, no product leaves int64.
        if np.int64(base - i) > most or remainders > limit:
            return -1
        for _ in range(min(count_ones(word), count - i)):
            position = base + trailing_zeros(word)
            word &= word - _1
            head = indices[i]
            is_long = head >= short
            bit = words[extra >> _6] >> (extra & _63) & _1
            remainders += (head << _1) + bit - short if is_long else head
            extra += U(is_long)
            indices[i] = (position - i) * m + remainders + i + start
            i += _1
        if i == count:
            break
        at += _1
        if at << _6 >= num_bits:
            return -1
        word = words[at]
        base += _64
    return np.int64(unary + position + _1) if indices[count - _1] - start < limit else -1


# --- asymmetric numeral systems ---------------------------------------------------------------------------------------


def ans_encode(symbols: NDArray[np.uint16], frequencies: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Write symbols in interleaved range asymmetric numeral system (rANS) code."""
    if symbols.size == 0:
        return np.empty(0, np.uint8)
    if not frequencies_sum_up(frequencies) or int(symbols.max()) >= frequencies.size:
        check_symbols(symbols, frequencies)
    reciprocals, spans = np.empty(frequencies.size, np.uint64), np.empty(frequencies.size, np.uint32)
    _ans_spans(plain(frequencies, np.uint32), reciprocals, spans)
    lanes = ans_num_lanes(symbols.size)
    states = np.full(4, ANS_LOW, np.uint64)
    words = np.empty(symbols.size + 1, np.uint16)
    first = _ans_encode(plain(symbols, np.uint16), reciprocals, spans, lanes, states, words)
    if first < 0:
        check_symbols(symbols, frequencies)
    code = np.empty(4 * lanes + 2 * (words.size - first), np.uint8)
    code[: 4 * lanes].view("<u4")[:] = states[:lanes]
    code[4 * lanes :].view("<u2")[:] = words[first:]
    return code


@kernel(types.none, _U32, _OUT_U64, _OUT_U32)
def _ans_spans(frequencies: NDArray[np.uint32], reciprocals: Words, spans: NDArray[np.uint32]) -> None:
    """Of each symbol what ``_ans_push`` takes: r, and f << 16 | where its slots start."""
    start = _0
    for i in range(frequencies.size):
        f = U(frequencies[i])
        reciprocals[i] = ((_1 << U(44)) - _1) // f + _1 if f else _0
        spans[i] = np.uint32(f << _16 | start)
        start += f


@inline
def _ans_push(x: Scalar, reciprocal: Scalar, span: Scalar, words: Scalar, at: Scalar) -> tuple[Scalar, Scalar]:
    """Write one symbol into a state; a word that leaves it goes to words[at], and at moves down.

    The product is exact: after the shift x < f 2^20, so with r = ceil(2^44 / f), x r < 2^64 and
    floor(x r / 2^44) = floor(x / f) for every f in 1 .. 2^12.
    """
    f = U(span) >> _16
    words[at] = np.uint16(x & _WORD_MASK)
    full = U(x >= f << _RENORM_BITS)
    x >>= full << _4
    quotient = x * reciprocal >> _RECIPROCAL_BITS
    return x + quotient * (_SLOTS - f) + (U(span) & _WORD_MASK), at - full


@kernel(types.int64, _U16, _U64, _U32, types.uint64, _OUT_U64, _OUT_U16)
def _ans_encode(
    symbols: NDArray[np.uint16],
    reciprocals: Words,
    spans: NDArray[np.uint32],
    lanes: Scalar,
    states: Words,
    words: NDArray[np.uint16],
) -> Scalar:
    """Write symbols; where the words start, or -1 when a symbol has no frequency."""
    at = U(words.size) - _1
    i = U(symbols.size)
    absent = False
    while i & _3 or (lanes == _1 and i):
        i -= _1
        symbol = symbols[i]
        absent |= spans[symbol] >> _16 == _0
        states[i & (lanes - _1)], at = _ans_push(
            states[i & (lanes - _1)], reciprocals[symbol], spans[symbol], words, at
        )
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    while i:
        i -= _4
        s0, s1, s2, s3 = symbols[i], symbols[i + _1], symbols[i + _2], symbols[i + _3]
        e0, e1, e2, e3 = spans[s0], spans[s1], spans[s2], spans[s3]
        absent |= min(min(e0, e1), min(e2, e3)) >> _16 == _0
        x3, at = _ans_push(x3, reciprocals[s3], e3, words, at)
        x2, at = _ans_push(x2, reciprocals[s2], e2, words, at)
        x1, at = _ans_push(x1, reciprocals[s1], e1, words, at)
        x0, at = _ans_push(x0, reciprocals[s0], e0, words, at)
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    return -1 if absent else np.int64(at + _1)


def ans_decode(
    data: NDArray[np.uint8], num_symbols: int, frequencies: NDArray[np.uint32]
) -> tuple[NDArray[np.uint16], int] | None:
    """Read symbols written by ``ans_encode``."""
    if num_symbols == 0:
        return np.empty(0, np.uint16), 0
    found = ans_states(data, num_symbols)
    if found is None or not frequencies_sum_up(frequencies):
        return None
    lanes = found.size
    states = np.zeros(4, np.uint64)
    states[:lanes] = found
    by_slot, rows = np.empty(1 << MODEL_BITS, np.uint16), np.empty(1 << MODEL_BITS, np.uint32)
    _slots(plain(frequencies, np.uint32), by_slot, rows)
    symbols = np.empty(num_symbols, np.uint16)
    num_words = _ans_decode(plain(data[4 * lanes :], np.uint8), by_slot, rows, lanes, states, symbols)
    if num_words < 0 or (states[:lanes] != ANS_LOW).any():
        return None
    return symbols, 4 * lanes + 2 * num_words


@kernel(types.void, _U32, _OUT_U16, _OUT_U32)
def _slots(frequencies: NDArray[np.uint32], by_slot: NDArray[np.uint16], rows: NDArray[np.uint32]) -> None:
    """Of each slot find the symbol, and its frequency and the slot's place among the symbol's, 16 bits each."""
    slot = _0
    for symbol in range(frequencies.size):
        for place in range(frequencies[symbol]):
            by_slot[slot] = symbol
            rows[slot] = frequencies[symbol] << np.uint32(16) | np.uint32(place)
            slot += _1


@inline
def _ans_pull(x: Scalar, row: Scalar, data: Scalar, at: Scalar) -> tuple[Scalar, Scalar]:
    """Take the symbol of a table row out of a state, and the word it needs, if any, from data; at moves past it."""
    x = (U(row) >> _16) * (x >> _SLOT_BITS) + (U(row) & _WORD_MASK)
    low = x < _LOW
    word = U(data[at]) | U(data[at + _1]) << _8
    return (x << _16 | word if low else x), at + (U(low) << _1)


@kernel(types.int64, _U8, _U16, _U32, types.uint64, _OUT_U64, _OUT_U16)
def _ans_decode(
    data: NDArray[np.uint8],
    by_slot: NDArray[np.uint16],
    rows: NDArray[np.uint32],
    lanes: Scalar,
    states: Words,
    symbols: NDArray[np.uint16],
) -> Scalar:
    """Read symbols; how many words that took, or -1 when there are too few."""
    at, i, count, end = _0, _0, U(symbols.size), U(data.size)
    if lanes == _4:
        x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
        while i + _4 <= count and at + _8 <= end:
            t0, t1, t2, t3 = x0 & _SLOT_MASK, x1 & _SLOT_MASK, x2 & _SLOT_MASK, x3 & _SLOT_MASK
            symbols[i] = by_slot[t0]
            symbols[i + _1] = by_slot[t1]
            symbols[i + _2] = by_slot[t2]
            symbols[i + _3] = by_slot[t3]
            x0, at = _ans_pull(x0, rows[t0], data, at)
            x1, at = _ans_pull(x1, rows[t1], data, at)
            x2, at = _ans_pull(x2, rows[t2], data, at)
            x3, at = _ans_pull(x3, rows[t3], data, at)
            i += _4
        states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    while i < count:
        x = states[i & (lanes - _1)]
        slot = x & _SLOT_MASK
        symbols[i] = by_slot[slot]
        x = (U(rows[slot]) >> _16) * (x >> _SLOT_BITS) + (U(rows[slot]) & _WORD_MASK)
        if x < _LOW:
            if at + _2 > end:
                return -1
            x = x << _16 | U(data[at]) | U(data[at + _1]) << _8
            at += _2
        states[i & (lanes - _1)] = x
        i += _1
    return np.int64(at >> _1)


# --- Huffman ----------------------------------------------------------------------------------------------------------


def huffman_encode(symbols: NDArray[np.uint16], lengths: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Write symbols in canonical Huffman code."""
    if symbols.size == 0:
        return np.empty(0, np.uint8)
    if int(symbols.max()) >= lengths.size:
        check_codes(symbols, lengths)
    entries = huffman_codes(lengths).astype(np.uint32) << np.uint32(8) | lengths
    words = np.empty(symbols.size * HUFFMAN_BITS // 64 + 1, np.uint64)
    num_bits = _huffman_encode(plain(symbols, np.uint16), entries, words)
    if num_bits < 0:
        check_codes(symbols, lengths)
    return _to_bytes(words, num_bits).copy()


@kernel(types.int64, _U16, _U32, _OUT_U64)
def _huffman_encode(symbols: NDArray[np.uint16], entries: NDArray[np.uint32], words: Words) -> Scalar:
    """Write symbols; the number of bits, or -1 when a symbol has no code."""
    word, used, at = _0, _0, _0
    absent = False
    for symbol in symbols:
        entry = U(entries[symbol])
        size = entry & _ENTRY_MASK
        absent |= size == _0
        word |= entry >> _ENTRY_BITS << used
        used += size
        if used >= _64:
            words[at] = word
            at += _1
            used -= _64
            word = entry >> _ENTRY_BITS >> (size - used)
    words[at] = word
    return -1 if absent else np.int64((at << _6) + used)


def huffman_decode(
    data: NDArray[np.uint8], num_symbols: int, lengths: NDArray[np.uint8]
) -> tuple[NDArray[np.uint16], int] | None:
    """Read symbols written by ``huffman_encode``."""
    if num_symbols == 0:
        return np.empty(0, np.uint16), 0
    table = huffman_table(lengths)
    if table is None or num_symbols > 8 * data.size:
        return None
    window = data[: -(-num_symbols * HUFFMAN_BITS // 8)]
    symbols = np.empty(num_symbols, np.uint16)
    end = _huffman_decode(_to_words(window, window.size), 8 * window.size, table, symbols)
    if end < 0 or (end % 8 and window[end // 8] >> end % 8):
        return None
    return symbols, -(-end // 8)


@kernel(types.int64, _U64, types.uint64, _U32, _OUT_U16)
def _huffman_decode(words: Words, num_bits: Scalar, table: NDArray[np.uint32], symbols: NDArray[np.uint16]) -> Scalar:
    """Read symbols; the position after the last bit, or -1."""
    position, i, count, flags = _0, _0, U(symbols.size), _0
    while i + _4 <= count and position <= num_bits:
        bits = _peek(words, position)
        for _ in range(4):
            entry = U(table[bits & _WINDOW_MASK])
            symbols[i] = np.uint16(entry >> _ENTRY_BITS)
            size = entry & _ENTRY_MASK
            bits >>= size
            position += size
            flags |= entry
            i += _1
    while i < count and position <= num_bits:
        entry = U(table[_peek(words, position) & _WINDOW_MASK])
        symbols[i] = np.uint16(entry >> _ENTRY_BITS)
        position += entry & _ENTRY_MASK
        flags |= entry
        i += _1
    return np.int64(position) if position <= num_bits and not flags & _INVALID else -1


# --- float32 ----------------------------------------------------------------------------------------------------------


def split_float32(bits: NDArray[np.uint32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Take float32 numbers apart: exponents, and sign and mantissa."""
    exponents, rest = np.empty(bits.size, np.uint8), np.empty(3 * bits.size, np.uint8)
    _split_float32(plain(bits, np.uint32), exponents, rest)
    return exponents, rest


@kernel(types.void, _U32, _OUT_U8, _OUT_U8)
def _split_float32(bits: NDArray[np.uint32], exponents: NDArray[np.uint8], rest: NDArray[np.uint8]) -> None:
    for i in range(bits.size):
        number = U(bits[i])
        at = _3 * U(i)
        exponents[i] = np.uint8(number >> U(23) & U(0xFF))
        rest[at] = np.uint8(number & U(0xFF))
        rest[at + _1] = np.uint8(number >> _8 & U(0xFF))
        rest[at + _2] = np.uint8(number >> _16 & U(0x7F) | number >> U(24) & U(0x80))


def join_float32(exponents: NDArray[np.uint8], rest: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Put together what ``split_float32`` took apart."""
    bits = np.empty(exponents.size, np.uint32)
    if rest.size != 3 * bits.size:
        raise ValueError(f"rest must have {3 * bits.size} bytes, got {rest.size}")
    _join_float32(plain(exponents, np.uint8), plain(rest, np.uint8), bits)
    return bits


@kernel(types.void, _U8, _U8, _OUT_U32)
def _join_float32(exponents: NDArray[np.uint8], rest: NDArray[np.uint8], bits: NDArray[np.uint32]) -> None:
    for i in range(bits.size):
        at = _3 * U(i)
        top = U(rest[at + _2])
        low = U(rest[at]) | U(rest[at + _1]) << _8 | (top & U(0x7F)) << _16
        bits[i] = np.uint32((top & U(0x80)) << U(24) | U(exponents[i]) << U(23) | low)
