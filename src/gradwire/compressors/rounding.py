"""What quantizers are made of: random numbers for rounding, and tables of the levels that are used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.compressor import Vector
from gradwire.kernels import ops
from gradwire.payload import Levels
from gradwire.rng import Key

__all__ = ["as_levels", "dither"]


def dither(key: Key, sizes: Sequence[int]) -> list[Vector]:
    """Draw a number of [0, 1) for each number that is to be rounded at random.

    They are one stream over all parts, so that how an update is cut into parts changes none of them.

    Args:
        key: what ``quantize`` was given: it names seed, round and client.
        sizes: how many numbers each part has.

    Returns:
        A (size,) float32 a part: multiples of 2^-24, so that a number x of [0, 1) with at most 24 bits after the point
        is above one of them with exactly the probability x.

    Example:
        >>> import gradwire as gw
        >>> from gradwire.compressors.rounding import dither
        >>> (a, b), [c] = dither(gw.Key(0), [2, 1]), dither(gw.Key(0), [3])
        >>> bool((c[:2] == a).all() and (c[2:] == b).all())
        True
    """
    return list(np.split(key.derive(purpose="dither").uniform(sum(sizes)), np.cumsum(sizes)[:-1]))


def as_levels(
    found: NDArray[np.uint16], table: NDArray[np.floating], numbers: Vector, counts: NDArray[np.int64] | None = None
) -> Levels:
    """Make the values of a part whose numbers are signed entries of a table of magnitudes.

    Entries that no number uses are left out of the table, for each takes four bytes.

    Args:
        found: (k,) uint16: each number's place in the table.
        table: (n,) magnitudes, 0 or more and finite in float32; n at most 32,768.
        numbers: (k,) float32: their signs are sent. -0.0 counts as positive.
        counts: (m,) how many use each entry, where that is known; of those after the m-th it is none.

    Returns:
        The values.

    Example:
        >>> import numpy as np
        >>> from gradwire.compressors.rounding import as_levels
        >>> values = as_levels(np.uint16([2, 0, 2]), np.float32([1, 2, 4]), np.float32([3.5, -0.7, -5]))
        >>> values.levels.tolist(), values.symbols.tolist()
        ([1.0, 4.0], [2, 1, 3])
    """
    if counts is None:
        counts = ops.count_symbols(found, table.size)
    used = counts > 0
    ranks = (used.cumsum() - used).astype(np.uint16)
    return Levels(ops.signed_symbols(found, ranks, numbers), table[: used.size][used].astype(np.float32))
