"""Segments: cut a support where its density changes, so that each stretch has its own Golomb parameter."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gradwire.kernels import ops
from gradwire.wire.golomb import golomb_parameter
from gradwire.wire.reader import varint

__all__ = ["choose_segments"]

_HEAD_BITS = 56.0  # length, count and parameter of a segment, roughly
_MAX_CUTS = 768  # more candidate cuts than this are thinned out: the search is quadratic


def choose_segments(length: int, indices: NDArray[np.int64], cuts: tuple[int, ...], below: int) -> bytes | None:
    """Write a support as segments between some of the candidate cuts.

    The cuts used are those of least estimated cost (binomial entropy of each segment plus its head), found by
    dynamic programming over all ways to merge neighbours; the bytes are exact.

    Args:
        length: number of coordinates.
        indices: (k,) int64 increasing, k >= 1.
        cuts: candidate boundaries, increasing, inside (0, length).
        below: give up unless the bytes are fewer than this.

    Returns:
        The bytes of the segmented code, or None where it does not pay.
    """
    bounds = np.array([0, *cuts[:: -(-len(cuts) // _MAX_CUTS)], length], np.int64)
    ranks = np.searchsorted(indices, bounds)
    apart = float(_entropy_bits(np.diff(bounds), np.diff(ranks)).sum())
    together = float(_entropy_bits(bounds[-1:], ranks[-1:])[0])
    if together - apart < 2 * _HEAD_BITS:
        return None
    chosen = _cheapest_cuts(bounds, ranks)
    if len(chosen) < 3:
        return None
    out = bytearray(varint(len(chosen) - 1))
    for low, high in pairwise(chosen):
        start, stop = int(bounds[low]), int(bounds[high])
        if stop < length:
            out += varint(stop - start)
        inside = indices[ranks[low] : ranks[high]] - start
        out += varint(inside.size)
        if inside.size:
            gaps = ops.gaps(inside)
            m, _ = golomb_parameter(gaps)
            out += varint(m) + ops.golomb_encode(gaps, m).tobytes()
        if len(out) >= below:
            return None
    return bytes(out)


def _cheapest_cuts(bounds: NDArray[np.int64], ranks: NDArray[np.int64]) -> list[int]:
    """Positions in ``bounds`` of the cheapest segmentation, both ends included."""
    best = np.zeros(bounds.size)
    source = np.zeros(bounds.size, np.int64)
    for end in range(1, bounds.size):
        costs = best[:end] + _HEAD_BITS + _entropy_bits(bounds[end] - bounds[:end], ranks[end] - ranks[:end])
        source[end] = int(np.argmin(costs))
        best[end] = costs[source[end]]
    path = [bounds.size - 1]
    while path[-1]:
        path.append(int(source[path[-1]]))
    return path[::-1]


def _entropy_bits(lengths: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bits of ``counts`` positions among ``lengths``, each array (n,)."""
    n, k = np.maximum(lengths, 1).astype(np.float64), counts.astype(np.float64)
    skipped = lengths - k
    bits: NDArray[np.float64] = k * np.log2(n / np.maximum(k, 1.0)) + skipped * np.log2(n / np.maximum(skipped, 1.0))
    return bits
