"""The range coder, compiled by Numba: bit for bit what ``range_reference.py`` computes.

The functions are for other kernels to call, too. A coder's state is five uint64, ``new_state()``. A writer sees that
``has_room`` before each bit; a reader may read on for ever, past the end it finds zeros.

Source: Martin 1979, "Range encoding"; the way that carries are held back is that of Pavlov's LZMA.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from gradwire.kernels.jit import array, inline, kernel, plain
from gradwire.kernels.range_reference import CHANCE_BITS, COUNT, LONGEST, number_counts

__all__ = [
    "CODE",
    "LEAST",
    "LOW",
    "SPAN",
    "chance_of_one",
    "decode_bit",
    "decode_bits",
    "decode_numbers",
    "encode_bit",
    "encode_bits",
    "encode_numbers",
    "ended",
    "finish_writing",
    "has_room",
    "new_state",
    "read_learning",
    "refill",
    "start_reading",
    "start_writing",
    "widen",
    "write_learning",
]

U = np.uint64
_0, _1, _8, _24, _32 = (U(n) for n in (0, 1, 8, 24, 32))
_FULL, LEAST, _BYTE, _CARRY_FROM = U(2**32 - 1), U(2**24), U(255), U(0xFF000000)
_BITS, _MOST, _HALF, _COUNT = U(CHANCE_BITS), U((1 << CHANCE_BITS) - 1), U(1 << (CHANCE_BITS - 1)), U(COUNT)
SPAN, LOW, _POSITION, _HELD, _PENDING = range(5)  # of a writer
CODE, _WINDOW = LOW, _HELD  # of a reader
_FEW = U(1 << 36)
_TAIL = 8  # bytes that one bit and the end take at most

_U8, _U32, _U64 = (array(t) for t in (types.uint8, types.uint32, types.uint64))
_OUT_U8, _OUT_U32, _OUT_U64 = (array(t, readonly=False) for t in (types.uint8, types.uint32, types.uint64))

State = NDArray[np.uint64]
Bytes = NDArray[np.uint8]
Scalar = Any  # inside kernels: uint64 but where noted


def new_state() -> State:
    """Return memory for a writer's or reader's state."""
    return np.empty(5, np.uint64)


@inline
def chance_of_one(ones: Scalar, zeros: Scalar) -> Scalar:
    """Return the probability of a one times 2^16, 1 to 65535, from counts below 2^48 that are not both 0.

    Below 2^36 the quotient, of at most 17 bits, is too far from the next integer for float64 to round it up.
    """
    total = ones + zeros
    if total < _FEW:
        return min(max(U(np.float64(np.int64(ones)) * 65536.0 / np.float64(np.int64(total))), _1), _MOST)
    return min(max((ones << _BITS) // total, _1), _MOST)


@inline
def start_writing(state: State) -> None:
    """Begin a stream."""
    state[SPAN], state[LOW], state[_POSITION], state[_HELD], state[_PENDING] = _FULL, _0, _0, _0, _1


@inline
def has_room(state: State, out: Bytes, num_bits: int) -> Any:
    """Tell whether so many bits more, and the end of the stream, are sure to fit."""
    return state[_POSITION] + state[_PENDING] + U(3 * num_bits + _TAIL) <= U(out.size)


@inline
def encode_bit(state: State, out: Bytes, chance: Scalar, bit: Any) -> None:
    """Write a bit; ``chance`` is the probability of a one times 2^16, 1 to 65535."""
    bound = (state[SPAN] >> _BITS) * chance
    if bit:
        state[SPAN] = bound
    else:
        state[LOW] += bound
        state[SPAN] -= bound
    widen(state, out)


@inline
def widen(state: State, out: Bytes) -> None:
    """Write out what is certain of an interval that has become too short.

    A kernel may keep ``SPAN`` and ``LOW`` of a state to itself, as ``encode_bit`` changes them, while the span is
    ``LEAST`` or more.
    """
    while state[SPAN] < LEAST:
        state[SPAN] <<= _8
        _shift(state, out)


@inline
def _shift(state: State, out: Bytes) -> None:
    """Write the highest byte out, once no carry can change it; byte 0 of ``out`` is before the stream's first."""
    low = state[LOW]
    if low < _CARRY_FROM or low > _FULL:
        carry, position = low >> _32, state[_POSITION]
        out[position] = (state[_HELD] + carry) & _BYTE
        for at in range(_1, state[_PENDING]):
            out[position + U(at)] = (_BYTE + carry) & _BYTE
        state[_POSITION] = position + state[_PENDING]
        state[_PENDING] = _0
        state[_HELD] = (low >> _24) & _BYTE
    state[_PENDING] += _1
    state[LOW] = (low << _8) & _FULL


@inline
def _shortest(low: Scalar, span: Scalar) -> Scalar:
    """Return the number of [low, low + span) that ends in the most bytes of zeros; the lowest of these."""
    width = _32
    while width > _0:
        ending = (_1 << width) - _1
        found = (low + ending) & ~ending
        if found < low + span:
            return found
        width -= _8
    return low


@inline
def finish_writing(state: State, out: Bytes) -> Any:
    """End a stream, which then is ``out[1:size]``; return the size, 1 or more."""
    state[LOW] = _shortest(state[LOW], state[SPAN])
    for _ in range(5):
        _shift(state, out)
    size = state[_POSITION]
    while size > _1 and out[size - _1] == 0:
        size -= _1
    return max(size, _1)


@inline
def start_reading(state: State, data: Bytes) -> None:
    """Begin to read a stream, which is all of ``data``."""
    code = _0
    for at in range(4):
        code = code << _8 | (U(data[at]) if at < data.size else _0)
    state[SPAN], state[CODE], state[_POSITION], state[_WINDOW] = _FULL, code, U(4), code


@inline
def decode_bit(state: State, data: Bytes, chance: Scalar) -> Any:
    """Read a bit, 0 or 1; ``chance`` is the probability of a one times 2^16, 1 to 65535."""
    bound = (state[SPAN] >> _BITS) * chance
    bit = np.uint8(state[CODE] < bound)
    if bit:
        state[SPAN] = bound
    else:
        state[CODE] -= bound
        state[SPAN] -= bound
    refill(state, data)
    return bit


@inline
def refill(state: State, data: Bytes) -> None:
    """Read on where the interval has become too short.

    A kernel may keep ``SPAN`` and ``CODE`` of a state to itself, as ``decode_bit`` changes them, while the span is
    ``LEAST`` or more.
    """
    while state[SPAN] < LEAST:
        position = state[_POSITION]
        byte = U(data[position]) if position < U(data.size) else _0
        state[_POSITION] = position + _1
        state[_WINDOW] = (state[_WINDOW] << _8 | byte) & _FULL
        state[SPAN] <<= _8
        state[CODE] = state[CODE] << _8 | byte


@inline
def ended(state: State, data: Bytes) -> Any:
    """Tell whether the bytes are exactly those that a writer makes of the bits read."""
    if state[_POSITION] < U(data.size) or (data.size and data[data.size - 1] == 0):
        return False
    low = (state[_WINDOW] - state[CODE]) & _FULL
    return low + state[CODE] == _shortest(low, state[SPAN])


@inline
def write_learning(state: State, out: Bytes, ones: State, zeros: State, at: Any, bit: Any) -> None:
    """Write a bit in a context, which learns from it."""
    encode_bit(state, out, chance_of_one(ones[at], zeros[at]), bit)
    if bit:
        ones[at] += _COUNT
    else:
        zeros[at] += _COUNT


@inline
def read_learning(state: State, data: Bytes, ones: State, zeros: State, at: Any) -> Any:
    """Read a bit in a context, which learns from it."""
    bit = decode_bit(state, data, chance_of_one(ones[at], zeros[at]))
    if bit:
        ones[at] += _COUNT
    else:
        zeros[at] += _COUNT
    return bit


def encode_bits(
    bits: NDArray[np.uint8], contexts: NDArray[np.uint32], ones: NDArray[np.uint64], zeros: NDArray[np.uint64]
) -> NDArray[np.uint8]:
    """Write bits, each in a context that learns; see ``range_reference.encode_bits``."""
    bits, contexts = plain(bits, np.uint8), plain(contexts, np.uint32)
    for room in (bits.size // 2, 3 * bits.size + 3):  # a bit takes little more than 16 bits at most
        out = np.empty(room + 2 * _TAIL, np.uint8)
        size = _encode_bits(bits, contexts, ones.astype(np.uint64), zeros.astype(np.uint64), new_state(), out)
        if size:
            break
    return out[1:size]


@kernel(types.int64, _U8, _U32, _OUT_U64, _OUT_U64, _OUT_U64, _OUT_U8)
def _encode_bits(bits: Bytes, contexts: NDArray[np.uint32], ones: State, zeros: State, state: State, out: Bytes) -> Any:
    """Write bits; 0 where there is no room."""
    start_writing(state)
    for i in range(bits.size):
        if not has_room(state, out, 1):
            return 0
        write_learning(state, out, ones, zeros, contexts[i], bits[i])
    return np.int64(finish_writing(state, out))


def decode_bits(
    data: NDArray[np.uint8], contexts: NDArray[np.uint32], ones: NDArray[np.uint64], zeros: NDArray[np.uint64]
) -> NDArray[np.uint8] | None:
    """Read bits written by ``encode_bits``."""
    bits = np.empty(contexts.size, np.uint8)
    counts = ones.astype(np.uint64), zeros.astype(np.uint64)
    right = _decode_bits(plain(data, np.uint8), plain(contexts, np.uint32), *counts, new_state(), bits)
    return bits if right else None


@kernel(types.boolean, _U8, _U32, _OUT_U64, _OUT_U64, _OUT_U64, _OUT_U8)
def _decode_bits(
    data: Bytes, contexts: NDArray[np.uint32], ones: State, zeros: State, state: State, bits: Bytes
) -> Any:
    start_reading(state, data)
    for i in range(contexts.size):
        bits[i] = read_learning(state, data, ones, zeros, contexts[i])
    return ended(state, data)


def encode_numbers(numbers: NDArray[np.uint32], largest: int) -> NDArray[np.uint8]:
    """Write integers above 0, most of which are 1; see ``range_reference.encode_numbers``."""
    numbers = plain(numbers, np.uint32)
    size, room = 0, numbers.size
    while not size:
        out, room = np.empty(room + 2 * _TAIL, np.uint8), 4 * room
        size = _encode_numbers(numbers, largest, *number_counts(), new_state(), out)
    return out[1:size]


@kernel(types.int64, _U32, types.uint64, _OUT_U64, _OUT_U64, _OUT_U64, _OUT_U8)
def _encode_numbers(
    numbers: NDArray[np.uint32], largest: Scalar, ones: State, zeros: State, state: State, out: Bytes
) -> Any:
    """Write integers; 0 where there is no room."""
    start_writing(state)
    most = _length(largest)
    for number in numbers:
        length = _length(U(number))
        for place in range(min(length + 1, most)):
            if not has_room(state, out, 1):
                return 0
            write_learning(state, out, ones, zeros, place, place < length)
        for i in range(length):
            if not has_room(state, out, 1):
                return 0
            bit = U(number) >> U(length - 1 - i) & _1
            if i == 0:
                write_learning(state, out, ones, zeros, LONGEST + length, bit)
            else:
                encode_bit(state, out, _HALF, bit)
    return np.int64(finish_writing(state, out)) if has_room(state, out, 1) else 0


@inline
def _length(number: Scalar) -> Any:
    """How many bits an integer above 0 has after its first one."""
    length = 0
    while number > _1:
        number >>= _1
        length += 1
    return length


def decode_numbers(data: NDArray[np.uint8], num_numbers: int, largest: int) -> NDArray[np.uint32] | None:
    """Read integers written by ``encode_numbers``."""
    numbers = np.empty(num_numbers, np.uint32)
    right = _decode_numbers(plain(data, np.uint8), largest, *number_counts(), new_state(), numbers)
    return numbers if right else None


@kernel(types.boolean, _U8, types.uint64, _OUT_U64, _OUT_U64, _OUT_U64, _OUT_U32)
def _decode_numbers(
    data: Bytes, largest: Scalar, ones: State, zeros: State, state: State, numbers: NDArray[np.uint32]
) -> Any:
    start_reading(state, data)
    most = _length(largest)
    for i in range(numbers.size):
        length = 0
        while length < most and read_learning(state, data, ones, zeros, length):
            length += 1
        number = _1
        for place in range(length):
            if place == 0:
                bit = read_learning(state, data, ones, zeros, LONGEST + length)
            else:
                bit = decode_bit(state, data, _HALF)
            number = number << _1 | U(bit)
        if number > largest:
            return False
        numbers[i] = number
    return ended(state, data)
