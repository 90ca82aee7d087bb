"""How many values of a vector to look at, to guess where its k-th magnitude is."""

from __future__ import annotations

import functools
import math

__all__ = ["sample_plan"]

_LEAST = 512
_SHARE = 512  # at most one value in so many is sampled, but no fewer than the number above
_EXPECTED = 200  # sampled values above the k-th magnitude that are enough


@functools.lru_cache(maxsize=256)
def sample_plan(d: int, k: int) -> tuple[int, int] | None:
    """Plan a sample that gives a threshold a little below the k-th magnitude: three standard deviations, and a rank.

    Args:
        d: how many values there are.
        k: how many are to be selected.

    Returns:
        How many to sample, and the rank in the sample, from above, of the threshold; None where that would leave more
        than half of them, or there is nothing to select.
    """
    if k == 0 or d == 0:
        return None
    size = min(d, max(_LEAST, min(d // _SHARE, _EXPECTED * d // k)))
    expected = size * k / d
    rank = math.ceil(expected + 3 * math.sqrt(expected) + 1)
    return (size, rank) if rank <= size // 2 else None
