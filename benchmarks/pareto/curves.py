"""How many bytes a method needs for an accuracy: read off its own curve, with an interval over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

_SHARE = 0.9  # of the resamples, which an interval holds


@dataclass(frozen=True)
class Point:
    """A method at one level.

    Attributes:
        label: what it is.
        num_bytes: (n,) of a run, by seed.
        accuracy: (n,) in [0, 1], by seed, the same seeds for all points.
    """

    label: str
    num_bytes: NDArray[np.float64]
    accuracy: NDArray[np.float64]


@dataclass(frozen=True)
class Needed:
    """What a method needs for a target.

    Attributes:
        num_bytes: read off the mean curve; None where that does not reach the target.
        at_most: whether the cheapest level is there already, so that fewer bytes might do.
        low: of the interval; None where too few resamples reach the target.
        high: of the interval; None where too few resamples reach the target.
        reached: share of the resamples that reach it.
        best: the highest mean accuracy of the curve, less the target.
    """

    num_bytes: float | None
    at_most: bool
    low: float | None
    high: float | None
    reached: float
    best: float


def needed(num_bytes: Sequence[float], accuracy: Sequence[float], target: float) -> float | None:
    """Tell the least bytes at which a curve is at a target: straight lines over the logarithm of the bytes.

    Args:
        num_bytes: of its points, in any order.
        accuracy: of the same.
        target: the accuracy.

    Returns:
        The bytes; those of its cheapest point where that is there already, None where no point is.

    Example:
        >>> round(needed([100.0, 10_000.0], [0.8, 0.9], 0.85)), needed([100.0], [0.8], 0.7), needed([100.0], [0.8], 0.9)
        (1000, 100.0, None)
    """
    points = sorted(zip(num_bytes, accuracy, strict=True))
    for number, (here, there) in enumerate(points):
        if there >= target:
            if number == 0:
                return here
            before, below = points[number - 1]
            share = (target - below) / (there - below)
            return math.exp(math.log(before) + share * (math.log(here) - math.log(before)))
    return None


def resamples(num_seeds: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """All ways to draw as many seeds with replacement.

    Returns:
        (m, num_seeds) int64, how often each seed is drawn; (m,) float64, the chance of each way.
    """
    rows = list(combinations_with_replacement(range(num_seeds), num_seeds))
    counts = np.array([np.bincount(row, minlength=num_seeds) for row in rows])
    ways = [math.factorial(num_seeds) / math.prod(map(math.factorial, row)) for row in counts.tolist()]
    return counts, np.array(ways) / num_seeds**num_seeds


def bytes_for(points: Sequence[Point], reference: NDArray[np.float64], less: float) -> Needed:
    """Tell what a method needs to be at most so much below a reference, seeds paired.

    Args:
        points: of the method, with the reference's seeds.
        reference: (n,) accuracy of what it is compared with, by seed.
        less: how much lower it may be.

    Returns:
        The bytes, and the interval that holds 90 % of all resamples of the seeds, the same of method and reference.
    """
    sizes, accuracies = (np.array([getattr(p, name) for p in points]) for name in ("num_bytes", "accuracy"))
    target = float(reference.mean()) - less
    mean = needed(sizes.mean(axis=1), accuracies.mean(axis=1), target)
    counts, chances = resamples(reference.size)
    shares = counts / reference.size
    drawn = [
        needed(s, a, t)
        for s, a, t in zip((sizes @ shares.T).T, (accuracies @ shares.T).T, shares @ reference - less, strict=True)
    ]
    cheapest = float(sizes.mean(axis=1).min())
    low, high = (_quantile(drawn, chances, share) for share in ((1 - _SHARE) / 2, (1 + _SHARE) / 2))
    return Needed(
        num_bytes=mean,
        at_most=mean is not None and mean <= cheapest,
        low=low,
        high=high,
        reached=float(sum(chance for d, chance in zip(drawn, chances, strict=True) if d is not None)),
        best=float(accuracies.mean(axis=1).max()) - target,
    )


def _quantile(drawn: Sequence[float | None], chances: NDArray[np.float64], share: float) -> float | None:
    """The least of some numbers that this share of the chances is not above; what is None is above all."""
    total = 0.0
    for number, chance in sorted((math.inf if d is None else d, c) for d, c in zip(drawn, chances, strict=True)):
        total += chance
        if total >= share - 1e-12:
            return None if number == math.inf else number
    return None
