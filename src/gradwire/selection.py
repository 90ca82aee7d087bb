"""Exact model-wide selection over tensors that are never in memory together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gradwire.compressor import Vector
from gradwire.sparsify import num_kept_of

__all__ = ["model_wide_counts"]

_SHIFT = 12  # magnitudes are counted by their top 19 of 31 bits: 4 MB of counters
_PIECE = 1 << 20


def model_wide_counts(density: float, sizes: list[int], tensor: Callable[[int], Vector]) -> list[int]:
    """Count how many entries of each tensor are among the k of largest magnitude of all.

    Magnitudes are first counted by their leading bits, which leaves one class of nearly equal ones to split;
    its members are then looked at one by one. Ties go to the earlier tensor, and to the lower index inside one.

    Args:
        density: k / d, k as for ``topk``.
        sizes: elements of each tensor.
        tensor: gives the (size,) float32 vector of a number; called twice for each.

    Returns:
        One count a tensor; they add up to k, or to the number of non-zero entries where that is smaller.
    """
    k = num_kept_of(density, sum(sizes)) if sum(sizes) else 0
    histogram = np.zeros(1 << (31 - _SHIFT), np.int64)
    for number in range(len(sizes)):
        for bits in _pieces(tensor(number)):
            nonzero = bits[bits > 0]
            histogram += np.bincount(nonzero >> _SHIFT, minlength=histogram.size)
    from_top = np.cumsum(histogram[::-1])[::-1]  # entries in this class or above
    if from_top[0] <= k:
        border, missing = -1, 0
    else:
        border = int(np.flatnonzero(from_top > k)[-1])
        missing = k - int(from_top[border] - histogram[border])
    counts = [0] * len(sizes)
    members: list[NDArray[np.int64]] = []
    for number in range(len(sizes)):
        for bits in _pieces(tensor(number)):
            classes = bits >> _SHIFT
            counts[number] += int(np.count_nonzero((classes > border) & (bits > 0)))
            inside = bits[(classes == border) & (bits > 0)].astype(np.int64)
            members.append(np.stack([inside, np.full(inside.size, number)], axis=1))
    if missing:
        candidates = np.concatenate(members)
        chosen = np.argsort(-candidates[:, 0], kind="stable")[:missing]
        for number, extra in zip(*np.unique(candidates[chosen, 1], return_counts=True), strict=True):
            counts[int(number)] += int(extra)
    return counts


def _pieces(vector: Vector) -> list[NDArray[np.int32]]:
    """Magnitudes as integers, which sort alike, in pieces that bound what is copied."""
    return [
        (vector[start : start + _PIECE].view(np.int32) & np.int32(0x7FFFFFFF))
        for start in range(0, vector.size, _PIECE)
    ]
