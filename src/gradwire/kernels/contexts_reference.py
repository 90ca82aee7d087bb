"""Levels of a grid, coded with contexts, in plain Python: what ``contexts.py``, compiled, computes bit for bit.

Coordinates come in stretches, a tensor each, row by row. Blocks of 16 in a row that are all zero are said in one bit.
Of each bit, three contexts that learn from the bits before say a chance: from how much the row and the column have held
so far, from the neighbours before it and above it, and from what was near. The chances are mixed as logits, with
weights that learn as well (signs likewise); of magnitudes two chances are averaged. All numbers are integers, and
nothing but the payload itself is leant on.

Source: mixing as in Mahoney's lpaq ("Adaptive weighing of context models", 2005); contexts of neighbours as in image
coders since Weinberger, Rissanen and Arps 1996; the choice by price: rate-distortion optimised quantization.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
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
from gradwire.kernels.range_reference import Decoder, Encoder

__all__ = ["choose_levels", "decode_levels", "encode_levels"]

Levels = NDArray[np.int32]
Code = Callable[[int, int], int]  # (chance of a one times 2^16, the bit where it is written) -> the bit
Context = tuple[int, int, int]

_OF_BLOCK, _OF_PLACE, _OF_SIGN = 0, 4, 8  # weights
_COUNTS: list[int] = COUNTS.tolist()
_LOGITS: list[int] = LOGITS.tolist()
_PRICES: list[int] = PRICES.tolist()
_SQUASHED: list[int] = SQUASHED.tolist()


def encode_levels(
    levels: NDArray[np.int32], lengths: NDArray[np.int64], columns: NDArray[np.int64], most: int
) -> NDArray[np.uint8]:
    """Write levels.

    Args:
        levels: (d,) int32, none beyond +-most.
        lengths: (s,) int64: coordinates of each stretch, together d.
        columns: (s,) int64, 1 or more: coordinates of a row of each.
        most: the largest magnitude there may be, 1 or more.

    Returns:
        (m,) uint8, of which the last one is not 0.
    """
    encoder = Encoder()

    def code(chance: int, bit: int) -> int:
        encoder.write(bit, chance)
        return bit

    _Walk(code, most).over(levels.tolist(), lengths, columns, None)
    return np.frombuffer(encoder.finish(), np.uint8)


def choose_levels(
    amounts: NDArray[np.int32], lengths: NDArray[np.int64], columns: NDArray[np.int64], most: int, price: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Choose levels for numbers in steps times 256, by squared error and cost, and write them.

    Of a number the nearest level, one less, and none are weighed against each other, by what they cost just then; then
    the levels of a block against none in the whole of it.

    Args:
        amounts: (d,) int32: numbers in steps, times 256.
        lengths: as for ``encode_levels``.
        columns: likewise.
        most: likewise.
        price: what 1/256 bit is worth, in squares of 1/256 step.

    Returns:
        (d,) int32, the levels; and their bytes, those of ``encode_levels``.
    """
    encoder = Encoder()

    def code(chance: int, bit: int) -> int:
        encoder.write(bit, chance)
        return bit

    levels = amounts.tolist()
    _Walk(code, most).over(levels, lengths, columns, price)
    return np.array(levels, np.int32), np.frombuffer(encoder.finish(), np.uint8)


def decode_levels(
    data: NDArray[np.uint8], lengths: NDArray[np.int64], columns: NDArray[np.int64], most: int
) -> NDArray[np.int32] | None:
    """Read levels written by ``encode_levels``.

    Args:
        data: (m,) uint8: those bytes and no others.
        lengths: as they were written with.
        columns: likewise.
        most: likewise.

    Returns:
        (d,) int32; None where the bytes are not exactly those of some levels.
    """
    decoder = Decoder(data.tobytes())
    levels: list[int | None] = [None] * int(lengths.sum())
    right = _Walk(lambda chance, bit: decoder.read(chance), most).over(levels, lengths, columns, None)
    return np.array(levels, np.int32) if right and decoder.ended() else None


def _log8(value: int) -> int:
    """Eight times the logarithm to base 2 of 8 or more, by its highest four bits."""
    exponent = value.bit_length() - 1
    return 8 * exponent + (value >> exponent - 3 & 7)


def _clip(value: int, most: int) -> int:
    return min(max(value, 0), most)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


class _Walk:
    """The contexts, and a walk over all coordinates."""

    def __init__(self, code: Code, most: int) -> None:
        self._code, self._most = code, most
        self._states: list[int] = initial_states().tolist()
        self._weights: list[int] = initial_weights().tolist()

    def over(
        self,
        levels: list[int] | list[int | None],
        lengths: NDArray[np.int64],
        columns: NDArray[np.int64],
        price: int | None,
    ) -> bool:
        """Code all levels, in place; False where those that were read are none that a writer writes."""
        self._levels, self._price, self._at = levels, price, 0
        try:
            for length, width in zip(lengths.tolist(), columns.tolist(), strict=True):
                self._stretch(length, width)
        except _Refused:
            return False
        return True

    def _stretch(self, length: int, width: int) -> None:
        self._above, self._sums, self._signs = ([0] * (width + 2) for _ in range(3))
        total, first, row = 0, self._at, 0
        while self._at < first + length:
            mean = max(((total << 16) + 32768) // (self._at - first + 8), 16)
            row += 1
            total += self._row(min(width, first + length - self._at), mean, 128 - _log8(row << 16) - _log8(mean))

    def _row(self, width: int, mean: int, offset: int) -> int:
        """Code a row; what its magnitudes add up to."""
        self._mean, self._offset, self._in_row, self._near, self._trend = mean, offset, 0, mean, 0
        self._one = self._two = self._sign_before = self._left = 0
        skips = 0
        for start in range(1, width + 1, BLOCK):
            block = range(start, min(start + BLOCK, width + 1))
            skips = (skips << 1 | (1 - self._block(block, skips))) & 3
        return self._in_row

    def _block(self, block: range, skips: int) -> int:
        """Code a block; whether anything is in it."""
        above = self._above[block.start : block.stop]
        seen, summed = any(above), sum(self._sums[block.start : block.stop])
        self._of_row = self._row_rate(block.start)
        of_column = _log8((summed << 16) + self._mean) - 32 + self._offset
        product, nearby = _clip((of_column + self._of_row >> 2) - 8, 47), _clip((_log8(self._near) >> 2) - 8, 31)
        pattern = (skips * 2 + seen) * 2 + (self._above[block.stop] != 0)
        context = (
            BLOCKS + product,
            BLOCKS + 64 + 8 * pattern + _clip((self._of_row >> 3) - 4, 7),
            BLOCKS + 192 + 16 * nearby + _clip((of_column + _log8(self._mean) >> 3) - 4, 15),
        )
        inside = slice(self._at, self._at + len(block))
        if self._price is not None:
            self._levels[inside] = self._chosen(block, self._chance(context, _OF_BLOCK), product)
        wanted = self._mixed(context, _OF_BLOCK, int(any(self._levels[inside])))
        if wanted:
            before = self._in_row
            for j in block:
                self._place(j)
            if self._in_row == before:
                raise _Refused
        else:
            self._left = above[-1]
            self._above[block.start : block.stop] = [0] * len(block)
            self._near = max(self._near - (self._near >> 1) - (self._near >> 3), 15)
            self._one = self._two = self._sign_before = 0
            self._levels[inside] = [0] * len(block)
            self._at += len(block)
        return wanted

    def _place(self, j: int) -> None:
        """Code a coordinate."""
        over, right = self._above[j], self._above[j + 1]
        product, nearby, column = self._rates(j, self._near)
        amount, found = self._levels[self._at] or 0, 0
        context = self._places(product, nearby, column, self._one, self._two, self._left, over, right)
        if self._mixed(context, _OF_PLACE, int(amount != 0)):
            up, back, ahead = _sign(over), _sign(self._left), _sign(right)
            before = self._sign_before + 1
            context = (
                SIGNS + min(max(self._signs[j], -7), 7) + 7 + 16 * before,
                SIGNS + 64 + (self._trend >> 12) + 8 + 20 * (up + 1),
                SIGNS + 128 + (back + 1) * 27 + (ahead + 1) * 9 + (up + 1) * 3 + before,
            )
            sign = self._sign_before = 2 * self._mixed(context, _OF_SIGN, int(amount > 0)) - 1
            self._trend += ((sign << 15) - self._trend) >> 3
            self._signs[j] += sign
            size = self._magnitude(abs(amount), product, min(self._one, 4) * 5 + min(abs(over), 4))
            if size > self._most:
                raise _Refused
            found = sign * size
            shown = min(size, UNARY)
            self._sums[j] += shown
            self._in_row += shown
            self._near += shown << 12
            self._of_row = self._row_rate(j)
        self._near -= self._near >> 4
        self._two, self._one, self._left = self._one, abs(found), over
        self._above[j] = self._levels[self._at] = found
        self._at += 1

    def _row_rate(self, j: int) -> int:
        """Eight times the logarithm of what a coordinate of this row holds in the mean, times 2^16."""
        return _log8((self._in_row << 16) + (self._mean << 3)) - _log8(j + 7 << 16) + 128

    def _rates(self, j: int, near: int) -> Context:
        """What row and column together, what is near, and the column let expect."""
        total = min(self._sums[j], 255)
        of_column = _log8((total << 16) + (self._mean if total < 16 else 0)) + self._offset
        return (
            _clip((of_column + self._of_row >> 2) - 8, 47),
            _clip((_log8(near) >> 2) - 8, 31),
            _clip((of_column + _log8(self._mean) >> 2) - 8, 31),
        )

    def _places(
        self, product: int, nearby: int, column: int, one: int, two: int, left: int, over: int, right: int
    ) -> Context:
        """The contexts of whether a coordinate is sent."""
        pattern = (min(one, 3) * 4 + min(abs(over), 3)) * 3 + min(two, 2)
        pattern = pattern * 4 + min(abs(left) + abs(right), 3)
        row = _clip((self._of_row >> 3) - 4, 7)
        return PLACES + product, PLACES + 64 + 192 * row + pattern, PLACES + 1600 + 32 * nearby + column

    def _magnitude(self, size: int, product: int, pattern: int) -> int:
        """Code a magnitude of 1 or more."""
        for k in range(1, min(self._most, UNARY)):
            a, b = self._ladder(k, product), MAGNITUDES + 14 * 24 + 25 * (k - 1) + pattern
            chance = (self._states[a] >> 17) + (self._states[b] >> 17)
            more = self._code(min(max(chance, LEAST_CHANCE), 65536 - LEAST_CHANCE), int(size > k))
            self._learn(a, more)
            self._learn(b, more)
            if not more:
                return k
        return UNARY + self._tail(size - UNARY) if self._most > UNARY else self._most

    def _tail(self, rest: int) -> int:
        """Code a number of 0 or more: that and one in Elias' gamma code, its bits of even odds."""
        value, width = max(rest, 0) + 1, 0
        while self._code(1 << 15, int(value >> width + 1 != 0)) and width < 30:
            width += 1
        found = 1
        for place in reversed(range(width)):
            found = found << 1 | self._code(1 << 15, value >> place & 1)
        return found - 1

    @staticmethod
    def _ladder(k: int, product: int) -> int:
        """The context of row and column for whether a magnitude is more than k."""
        return MAGNITUDES + 24 * (k - 1) + (product >> 1)

    def _chance(self, context: Context, w: int) -> int:
        """The chance of a one, times 2^16, in three contexts."""
        logits = (_LOGITS[self._states[at] >> 20] for at in context)
        mixed = sum(x * weight for x, weight in zip(logits, self._weights[w : w + 3], strict=True)) >> 16
        return _SQUASHED[min(max(mixed, -MOST_LOGIT), MOST_LOGIT) + MOST_LOGIT]

    def _mixed(self, context: Context, w: int, bit: int) -> int:
        """Code a bit in three contexts, mixed; all of them learn, and so does the mixture."""
        chance = self._chance(context, w)
        bit = self._code(chance, bit)
        for i, at in enumerate(context):
            self._weights[w + i] += _LOGITS[self._states[at] >> 20] * ((bit << 16) - chance) >> 16
        for at in context:
            self._learn(at, bit)
        return bit

    def _learn(self, at: int, bit: int) -> None:
        """Move a context's chance towards a bit."""
        chance, seen = self._states[at] >> 10, self._states[at] & 1023
        chance += ((bit << 22) - chance) * _COUNTS[seen] >> 16
        self._states[at] = chance << 10 | min(seen + 1, MOST_COUNTED)

    # the choice of levels

    def _chosen(self, block: range, chance: int, product_of: int) -> list[int]:
        """The levels of a block of least squared error and cost, zeros where these are as good."""
        price = self._price or 0
        amounts = self._levels[self._at : self._at + len(block)]
        nothing = [0] * len(block)
        if not any(abs(x or 0) >= 128 for x in amounts):
            return nothing
        bits = _PRICES[chance >> 4] - _PRICES[65536 - chance >> 4]
        near, one, two, left = self._near, self._one, self._two, self._left
        saved, certain, found = 0, False, []
        for j, amount in zip(block, amounts, strict=True):
            amount = amount or 0
            size, over = abs(amount), self._above[j]
            nearest, best = min(size + 128 >> 8, self._most), 0
            if nearest:
                product, nearby, column = self._rates(j, near)
                best = self._nearest(size, nearest, product)
                if best > 2 or nearest > UNARY - 1:
                    certain = True
                else:
                    context = self._places(product, nearby, column, one, two, left, over, self._above[j + 1])
                    sent = self._chance(context, _OF_PLACE)
                    none, needed = _PRICES[65536 - sent >> 4], _PRICES[sent >> 4] + SIGN_PRICE
                    for k in range(1, best + 1):
                        more = self._states[self._ladder(k, product)] >> 20
                        needed += _PRICES[more] if k < best else _PRICES[4096 - more]
                    if (size - 256 * best) ** 2 + price * needed < size * size + price * none:
                        bits += needed
                    else:
                        best = 0
                        bits += none
                saved += size * size - (size - 256 * best) ** 2
                near += min(best, UNARY) << 12
            else:
                bits += _PRICES[4096 - (self._states[PLACES + product_of] >> 20)]
            near -= near >> 4
            two, one, left = one, best, over
            found.append(best if amount > 0 else -best)
        return found if certain or (any(found) and saved > price * bits) else nothing

    def _nearest(self, size: int, nearest: int, product: int) -> int:
        """The nearest level of 1 or more, or one less where that is cheaper."""
        below = nearest - 1
        if below == 0 or below >= UNARY - 1:
            return nearest
        more, after = (self._states[self._ladder(k, product)] >> 20 for k in (below, nearest))
        saved = _PRICES[more] + _PRICES[4096 - after] - _PRICES[4096 - more]
        close = (size - 256 * nearest) ** 2 + (self._price or 0) * saved
        return below if (size - 256 * below) ** 2 < close else nearest


class _Refused(Exception):
    """A level beyond the most that there may be, or a block that is not skipped and holds nothing."""
