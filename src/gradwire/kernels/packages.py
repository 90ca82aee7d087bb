"""Package-merge, compiled by Numba: number for number what ``models.package_merge`` finds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from gradwire.kernels.jit import array, kernel
from gradwire.kernels.models import HUFFMAN_BITS, lengths_by

__all__ = ["huffman_lengths", "package_merge"]


def huffman_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Find code lengths, see ``models.huffman_lengths``."""
    return lengths_by(package_merge, counts)


def package_merge(leaves: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Find the depths of leaves, see ``models.package_merge``."""
    depths = np.zeros(leaves.size, np.uint8)
    weights = np.empty(4 * leaves.size, np.int64)
    num_leaves = np.empty(HUFFMAN_BITS * (2 * leaves.size + 1), np.int32)
    _package_merge(leaves, weights, num_leaves, depths)
    return depths


@kernel(
    types.void,
    array(types.int64, readonly=True),
    array(types.int64, readonly=False),
    array(types.int32, readonly=False),
    array(types.uint8, readonly=False),
)
def _package_merge(
    leaves: NDArray[np.int64], weights: NDArray[np.int64], num_leaves: NDArray[np.int32], depths: NDArray[np.uint8]
) -> None:
    """Merge level by level.

    ``weights`` has room for the nodes of two levels, ``num_leaves`` for the number of leaves among the t lightest nodes
    of each level.
    """
    size: Any = leaves.size
    width: Any = 2 * size + 1
    here: Any = 0
    there: Any = 2 * size
    for i in range(size):
        weights[i] = leaves[i]
    for i in range(size + 1):
        num_leaves[i] = i
    num_nodes: Any = size
    for level in range(1, HUFFMAN_BITS):
        num_packages = num_nodes // 2
        leaf: Any = 0
        package: Any = 0
        num_leaves[level * width] = 0
        num_nodes = size + num_packages
        for node in range(num_nodes):
            weight = np.int64(0)
            if package < num_packages:
                weight = weights[here + 2 * package] + weights[here + 2 * package + 1]
            if leaf < size and (package == num_packages or leaves[leaf] <= weight):
                weights[there + node] = leaves[leaf]
                leaf += 1
            else:
                weights[there + node] = weight
                package += 1
            num_leaves[level * width + node + 1] = leaf
        here, there = there, here
    taken: Any = 2 * size - 2
    for level in range(HUFFMAN_BITS - 1, -1, -1):
        found = num_leaves[level * width + taken]
        for i in range(found):
            depths[i] += 1
        taken = 2 * (taken - found)
