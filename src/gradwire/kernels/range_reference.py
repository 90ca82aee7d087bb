"""The range coder in plain Python: what ``range_coder.py``, compiled, computes bit for bit.

A bit of which both ends hold the same integer counts takes about as many bits as its probability says. The interval is
32 bits wide at most and never below 2^24; a one takes its lower end. Carries run back into the bytes written before.
Zeros at the end of a stream are left out, since readers find zeros past the end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CHANCE_BITS",
    "COUNT",
    "LONGEST",
    "Decoder",
    "Encoder",
    "chance_of_one",
    "decode_bits",
    "decode_numbers",
    "encode_bits",
    "encode_numbers",
    "number_counts",
]

COUNT = 1 << 10
"""What a bit that was coded adds to its count: initial counts may stand for fractions of a bit."""
CHANCE_BITS = 16
"""A probability is a multiple of 2^-16, never 0 or 1."""
LONGEST = 32
"""Bits of the largest integers that are written."""

_FULL, _LEAST = (1 << 32) - 1, 1 << 24


def chance_of_one(ones: int, zeros: int) -> int:
    """Return the probability of a one, times 2^16: 1 to 65535.

    Args:
        ones: count of ones, 0 or more and below 2^48.
        zeros: count of zeros, likewise; not both are 0.
    """
    return min(max((ones << CHANCE_BITS) // (ones + zeros), 1), (1 << CHANCE_BITS) - 1)


class Encoder:
    """Writes bits, each with the probability that it is a one.

    Example:
        >>> from gradwire.kernels.range_reference import Decoder, Encoder
        >>> encoder = Encoder()
        >>> for bit in (0, 1, 0):
        ...     encoder.write(bit, 1 << 12)
        >>> written = encoder.finish()
        >>> decoder = Decoder(written)
        >>> [decoder.read(1 << 12) for _ in range(3)], decoder.ended()
        ([0, 1, 0], True)
    """

    def __init__(self) -> None:
        self._low, self._span, self._out = 0, _FULL, bytearray()

    def write(self, bit: int, chance: int) -> None:
        """Write a bit; ``chance`` is the probability of a one times 2^16."""
        bound = (self._span >> CHANCE_BITS) * chance
        if bit:
            self._span = bound
        else:
            self._low += bound
            self._span -= bound
        while self._span < _LEAST:
            self._span <<= 8
            self._shift()

    def finish(self) -> bytes:
        """Return the bytes: of all that stand for what was written, those of fewest digits, the lowest of them."""
        self._low = shortest(self._low, self._span)
        for _ in range(4):
            self._shift()
        return bytes(self._out).rstrip(b"\0")

    def _shift(self) -> None:
        """Write the highest byte out."""
        if self._low > _FULL:
            at = len(self._out) - 1
            while self._out[at] == 0xFF:
                self._out[at] = 0
                at -= 1
            self._out[at] += 1
        self._out.append(self._low >> 24 & 0xFF)
        self._low = (self._low << 8) & _FULL


class Decoder:
    """Reads bits back; see ``Encoder``. Any bytes can be read: zeros follow their end.

    Args:
        data: the bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._position, self._window, self._span = data, 0, 0, _FULL
        for _ in range(4):
            self._window = self._window << 8 | self._next()
        self._code = self._window

    def read(self, chance: int) -> int:
        """Read a bit; ``chance`` is the probability of a one times 2^16."""
        bound = (self._span >> CHANCE_BITS) * chance
        bit = int(self._code < bound)
        if bit:
            self._span = bound
        else:
            self._code -= bound
            self._span -= bound
        while self._span < _LEAST:
            byte = self._next()
            self._span <<= 8
            self._code = self._code << 8 | byte
            self._window = (self._window << 8 | byte) & _FULL
        return bit

    def ended(self) -> bool:
        """Tell whether the bytes are exactly those that ``Encoder.finish`` gives after the bits read."""
        if self._position < len(self._data) or self._data[-1:] == b"\0":
            return False
        low = (self._window - self._code) & _FULL
        return self._code == shortest(low, self._span) - low

    def _next(self) -> int:
        self._position += 1
        return self._data[self._position - 1] if self._position <= len(self._data) else 0


def shortest(low: int, span: int) -> int:
    """Return the number of [low, low + span) that ends in the most bytes of zeros; the lowest of these."""
    for width in (32, 24, 16, 8):
        ending = (1 << width) - 1
        if (found := (low + ending) & ~ending) < low + span:
            return found
    return low


def encode_bits(
    bits: NDArray[np.uint8], contexts: NDArray[np.uint32], ones: NDArray[np.uint64], zeros: NDArray[np.uint64]
) -> NDArray[np.uint8]:
    """Write bits, each in a context that learns from the bits written in it before.

    The probability of a one is its context's ``ones / (ones + zeros)``; then the bit adds ``COUNT`` to one of them.

    Args:
        bits: (n,) uint8, 0 or 1.
        contexts: (n,) uint32: each bit's context, below c.
        ones: (c,) uint64, counts to begin with, in units of which a bit has ``COUNT``; not modified.
        zeros: (c,) uint64, likewise; of no context are both 0.

    Returns:
        (m,) uint8, of which the last one is not 0.
    """
    encoder = Encoder()
    learning = _Learning(ones, zeros)
    for bit, context in zip(bits.tolist(), contexts.tolist(), strict=True):
        learning.write(encoder, context, bit)
    return np.frombuffer(encoder.finish(), np.uint8)


def decode_bits(
    data: NDArray[np.uint8], contexts: NDArray[np.uint32], ones: NDArray[np.uint64], zeros: NDArray[np.uint64]
) -> NDArray[np.uint8] | None:
    """Read bits written by ``encode_bits``, as many as there are contexts.

    Args:
        data: (m,) uint8: those bytes and no others.
        contexts: (n,) uint32, as they were written with.
        ones: (c,) uint64, as they were written with; not modified.
        zeros: (c,) uint64, likewise.

    Returns:
        (n,) uint8; None where the bytes are not exactly those that ``encode_bits`` makes of some bits.
    """
    decoder = Decoder(data.tobytes())
    learning = _Learning(ones, zeros)
    bits = np.array([learning.read(decoder, context) for context in contexts.tolist()], np.uint8)
    return bits if decoder.ended() else None


class _Learning:
    """Counts of zeros and ones of each context."""

    def __init__(self, ones: NDArray[np.uint64], zeros: NDArray[np.uint64]) -> None:
        self._counts = [[zero, one] for zero, one in zip(zeros.tolist(), ones.tolist(), strict=True)]

    def write(self, encoder: Encoder, context: int, bit: int) -> None:
        """Write a bit in a context, which learns from it."""
        encoder.write(bit, self._chance(context))
        self._counts[context][bit] += COUNT

    def read(self, decoder: Decoder, context: int) -> int:
        """Read a bit in a context, which learns from it."""
        bit = decoder.read(self._chance(context))
        self._counts[context][bit] += COUNT
        return bit

    def _chance(self, context: int) -> int:
        zeros, ones = self._counts[context]
        return chance_of_one(ones, zeros)


def number_counts() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the initial counts of ``encode_numbers``: ones and zeros, (64,) uint64 each."""
    ones, zeros = (np.full(2 * LONGEST, COUNT // 2, np.uint64) for _ in range(2))
    ones[0], zeros[0] = COUNT // 5, 4 * COUNT - COUNT // 5
    return ones, zeros


def encode_numbers(numbers: NDArray[np.uint32], largest: int) -> NDArray[np.uint8]:
    """Write integers above 0, most of which are 1, in range code.

    A number of e + 1 bits is e ones and a zero, which is left out where ``largest`` has no more bits, each in a context
    of its place; then its bits after the first one, of which the highest has a context for each e, and the others none:
    half of them are ones.

    Args:
        numbers: (n,) uint32, 1 to ``largest``.
        largest: below 2^32.

    Returns:
        (m,) uint8, of which the last one is not 0.
    """
    encoder, learning = Encoder(), _Learning(*number_counts())
    for number in numbers.tolist():
        length = number.bit_length() - 1
        for place in range(min(length + 1, largest.bit_length() - 1)):
            learning.write(encoder, place, int(place < length))
        for place in range(length - 1, -1, -1):
            bit = number >> place & 1
            if place == length - 1:
                learning.write(encoder, LONGEST + length, bit)
            else:
                encoder.write(bit, 1 << (CHANCE_BITS - 1))
    return np.frombuffer(encoder.finish(), np.uint8)


def decode_numbers(data: NDArray[np.uint8], num_numbers: int, largest: int) -> NDArray[np.uint32] | None:
    """Read integers written by ``encode_numbers``.

    Args:
        data: (m,) uint8: those bytes and no others.
        num_numbers: how many.
        largest: as they were written with.

    Returns:
        (num_numbers,) uint32; None where the bytes are not exactly those of integers of 1 to ``largest``.
    """
    decoder, learning = Decoder(data.tobytes()), _Learning(*number_counts())
    numbers = np.empty(num_numbers, np.uint32)
    for i in range(num_numbers):
        length = 0
        while length < largest.bit_length() - 1:
            if not learning.read(decoder, length):
                break
            length += 1
        number = 1
        for place in range(length - 1, -1, -1):
            if place == length - 1:
                bit = learning.read(decoder, LONGEST + length)
            else:
                bit = decoder.read(1 << (CHANCE_BITS - 1))
            number = number << 1 | bit
        if number > largest:
            return None
        numbers[i] = number
    return numbers if decoder.ended() else None
