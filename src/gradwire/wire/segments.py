"""Segments: cut a support where its density changes, so that each stretch has its own Golomb parameter."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gradwire.kernels import ops
from gradwire.wire.golomb import golomb_parameters
from gradwire.wire.reader import varint

__all__ = ["choose_segments"]

_HEAD_BITS = 56.0  # length, count and parameter of a segment, roughly
_ROWS = 64  # ends whose costs are worked out together
_MAX_CUTS = 768  # more candidate cuts than this are thinned out: the search is quadratic


def choose_segments(
    length: int, indices: NDArray[np.int64], gaps: NDArray[np.int64], cuts: tuple[int, ...]
) -> bytes | None:
    """Write a support as segments between some of the candidate cuts.

    The cuts used are those of least estimated cost (binomial entropy of each segment plus its head), found by
    dynamic programming over all ways to merge neighbours; the bytes are exact.

    Args:
        length: number of coordinates.
        indices: (k,) int64 increasing, k >= 1.
        gaps: (k,) int64: those before the indices; changed for a while, and left as they were.
        cuts: candidate boundaries, increasing, inside (0, length).

    Returns:
        The bytes of the segmented code, or None where one parameter for all seems as good.
    """
    bounds = np.array([0, *cuts[:: -(-len(cuts) // _MAX_CUTS)], length], np.int64)
    ranks = indices.searchsorted(bounds)
    stretches = zip(pairwise(bounds.tolist()), pairwise(ranks.tolist()), strict=True)
    apart = sum(_bits_of(stop - start, high - low) for (start, stop), (low, high) in stretches)
    if _bits_of(length, indices.size) - apart < 2 * _HEAD_BITS:
        return None
    chosen = _cheapest_cuts(bounds, ranks)
    if len(chosen) < 3:
        return None
    edges, stops = bounds[chosen], ranks[chosen]
    filled = stops[1:] > stops[:-1]
    firsts = stops[:-1][filled]
    whole = gaps[firsts]
    gaps[firsts] = indices[firsts] - edges[:-1][filled]
    parameters = np.array([m for m, _ in golomb_parameters(gaps, stops[1:][filled])])
    written = iter(ops.golomb_encode_stretches(gaps, stops[1:][filled], parameters))
    gaps[firsts] = whole
    named = iter(parameters.tolist())
    out = bytearray(varint(len(chosen) - 1))
    for (start, stop), (low, high) in zip(pairwise(edges.tolist()), pairwise(stops.tolist()), strict=True):
        if stop < length:
            out += varint(stop - start)
        out += varint(high - low)
        if high > low:
            out += varint(next(named)) + next(written).tobytes()
    return bytes(out)


def _cheapest_cuts(bounds: NDArray[np.int64], ranks: NDArray[np.int64]) -> list[int]:
    """Positions in ``bounds`` of the cheapest segmentation, both ends included."""
    best = np.zeros(bounds.size)
    source = np.zeros(bounds.size, np.int64)
    for first in range(1, bounds.size, _ROWS):
        last = min(first + _ROWS, bounds.size)
        # of the segments from each bound to each of these ends; those that would end before they start mean nothing
        lengths = np.maximum(bounds[first:last, None] - bounds[None, : last - 1], 0)
        counts = np.maximum(ranks[first:last, None] - ranks[None, : last - 1], 0)
        costs = _HEAD_BITS + _entropy_bits(lengths, counts)
        for end in range(first, last):
            total = best[:end] + costs[end - first, :end]
            source[end] = at = int(total.argmin())
            best[end] = total[at]
    path = [bounds.size - 1]
    while path[-1]:
        path.append(int(source[path[-1]]))
    return path[::-1]


def _bits_of(length: int, count: int) -> float:
    """Bits of ``count`` positions among ``length``."""
    skipped = length - count
    kept_bits = count * math.log2(length / count) if count else 0.0
    return kept_bits + skipped * math.log2(length / skipped) if skipped else kept_bits


def _entropy_bits(lengths: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """``_bits_of`` many at once, each array of the same shape."""
    n, k = np.maximum(lengths, 1).astype(np.float64), counts.astype(np.float64)
    skipped = lengths - k
    bits: NDArray[np.float64] = k * np.log2(n / np.maximum(k, 1.0)) + skipped * np.log2(n / np.maximum(skipped, 1.0))
    return bits
