"""Golomb-coded positions: the parameter that suits them, and reading them back safely."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import Malformed
from gradwire.kernels import ops
from gradwire.wire.reader import Reader

__all__ = ["golomb_parameter", "read_golomb"]

_SHORT = 4096


def golomb_parameter(gaps: NDArray[np.int64]) -> tuple[int, int]:
    """Find the Golomb parameter of fewest bits near the one that suits geometric gaps of this mean.

    Args:
        gaps: (k,) int64, k >= 1.

    Returns:
        The parameter m, 1 or more, and the bits it takes.

    Source: Gallager and van Voorhis 1975: for success probability p the best m is the smallest with
        (1 - p)^m + (1 - p)^(m + 1) <= 1.
    """
    total = int(gaps.sum())
    if total == 0:
        return 1, ops.golomb_num_bits(gaps, 1)
    p = gaps.size / (gaps.size + total)
    best = max(1, math.ceil(-math.log(2 - p) / math.log1p(-p)))
    rice = 1 << (best.bit_length() - 1)
    candidates = {best, rice}
    if gaps.size < _SHORT:  # short lists stray from the geometric law, and trying more is cheap
        candidates |= {max(1, best * 3 // 4), best * 5 // 4, 2 * rice}
    num_bits, m = min((ops.golomb_num_bits(gaps, m), m) for m in candidates)
    return m, num_bits


def read_golomb(reader: Reader, count: int, length: int, what: str) -> NDArray[np.int64]:
    """Read a Golomb parameter and ``count`` increasing positions below ``length``.

    Args:
        reader: where the bytes start; moved past them.
        count: how many, 1 or more.
        length: positions stay below this.
        what: for the error.

    Returns:
        (count,) int64, increasing.

    Raises:
        DecodeError: when they are not there.
    """
    m = reader.varint(f"Golomb parameter of {what}", below=length + 1)
    if m == 0 or count > length:
        raise Malformed(f"{what}: {count} positions below {length} with Golomb parameter {m} cannot be")
    found = ops.golomb_decode(reader.rest(), count, m, length)
    if found is None:
        raise Malformed(f"{what}: {count} positions below {length} with Golomb parameter {m} not found")
    reader.take(found[1], what)
    return found[0]
