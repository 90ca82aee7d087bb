"""Golomb-coded positions: the parameter that suits them, and reading them back safely."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import Malformed
from gradwire.kernels import ops
from gradwire.wire.reader import Reader

__all__ = ["golomb_parameter", "golomb_parameters", "least_bits", "read_golomb"]

_SHORT = 4096
_TRIED = 5


def golomb_parameter(gaps: NDArray[np.int64]) -> tuple[int, int]:
    """Find the Golomb parameter of fewest bits near the one that suits geometric gaps of this mean.

    Args:
        gaps: (k,) int64, k >= 1.

    Returns:
        The parameter m, 1 or more, and the bits it takes.
    """
    tried = _candidates(gaps.size, int(gaps.sum()))
    return _cheapest(tried, ops.golomb_bits(gaps, np.array([gaps.size]), np.array([tried]))[0].tolist())


def golomb_parameters(gaps: NDArray[np.int64], stops: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Find the parameter of each stretch of gaps.

    Args:
        gaps: (k,) int64.
        stops: (s,) int64 increasing: where stretches, none of them empty, end; the last one is k.

    Returns:
        For each stretch the parameter, 1 or more, and the bits it takes.
    """
    starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]])
    totals = np.add.reduceat(gaps, starts)
    tried = np.array([_candidates(int(n), int(total)) for n, total in zip(stops - starts, totals, strict=True)])
    return [_cheapest(*row) for row in zip(tried.tolist(), ops.golomb_bits(gaps, stops, tried).tolist(), strict=True)]


def least_bits(count: int, total: int) -> float:
    """Bound the bits that gaps take with the parameter found for them, from below, without looking at them.

    A gap g takes floor(g / m) + 1 bits, at least (g + 1) / m, and a remainder of floor(log2 m) bits or one more.

    Args:
        count: how many gaps, 1 or more.
        total: their sum.

    Returns:
        The bound, over all the parameters that are tried.
    """
    tried = set(_candidates(count, total))
    return min((total + count) / m + count * (m.bit_length() - 1) for m in tried)


def _cheapest(parameters: list[int], bits: list[int]) -> tuple[int, int]:
    """The parameter of fewest bits, the smaller one of two, and its bits."""
    num_bits, m = min(zip(bits, parameters, strict=True))
    return m, num_bits


def _candidates(count: int, total: int) -> list[int]:
    """Parameters worth trying for so many gaps of this sum; some may be the same.

    Source: Gallager and van Voorhis 1975: for success probability p the best m is the smallest with
        (1 - p)^m + (1 - p)^(m + 1) <= 1.
    """
    if total == 0:
        return [1] * _TRIED
    p = count / (count + total)
    best = max(1, math.ceil(-math.log(2 - p) / math.log1p(-p)))
    rice = 1 << (best.bit_length() - 1)
    if count >= _SHORT:
        return [best, rice, best, best, best]
    # short lists stray from the geometric law
    return [best, rice, max(1, best * 3 // 4), best * 5 // 4, 2 * rice]


def read_golomb(
    reader: Reader, count: int, length: int, what: str, start: int = 0, out: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Read a Golomb parameter and ``count`` increasing positions below ``length``.

    Args:
        reader: where the bytes start; moved past them.
        count: how many, 1 or more.
        length: positions stay below this.
        what: for the error.
        start: what is added to each position.
        out: (count,) int64 to write to, or None.

    Returns:
        (count,) int64, increasing.

    Raises:
        DecodeError: when they are not there.
    """
    m = reader.varint(f"Golomb parameter of {what}", below=length + 1)
    if m == 0 or count > length:
        raise Malformed(f"{what}: {count} positions below {length} with Golomb parameter {m} cannot be")
    found = ops.golomb_decode(reader.rest(), count, m, length, start, out)
    if found is None:
        raise Malformed(f"{what}: {count} positions below {length} with Golomb parameter {m} not found")
    reader.take(found[1], what)
    return found[0]
