"""Models for the entropy coders: frequencies, code lengths, costs and the tables made of them.

A model is small (one number a symbol) and made once a blob, so there is one implementation for all backends. It is
integer arithmetic throughout: the same counts give the same model everywhere.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ANS_LOW",
    "HUFFMAN_BITS",
    "INVALID",
    "MODEL_BITS",
    "SCALED_BELOW",
    "ans_bits",
    "ans_num_lanes",
    "check_num_present",
    "frequencies_sum_up",
    "huffman_codes",
    "huffman_lengths",
    "huffman_table",
    "lengths_by",
    "normalise_frequencies",
    "package_merge",
]

MODEL_BITS = 12
"""Bits of a frequency: frequencies sum to 2^12."""
SCALED_BELOW = 1 << 34
"""Counts that add up to less are scaled in 64 bits."""
ANS_LOW = 1 << 16
"""Coder states are kept in [2^16, 2^32)."""
ANS_LANES = 4
ANS_LANES_FROM = 1024
HUFFMAN_BITS = 12
"""Longest Huffman code."""
INVALID = 1 << 7
"""Flag of the entries of a Huffman table that no code leads to."""
_TOTAL = 1 << MODEL_BITS
_COST_BITS = 20


def ans_num_lanes(num_symbols: int) -> int:
    """Number of interleaved coder states: 4 from 1024 symbols on, else 1."""
    return ANS_LANES if num_symbols >= ANS_LANES_FROM else 1


def frequencies_sum_up(frequencies: NDArray[np.uint32]) -> bool:
    """Tell whether frequencies, whatever they are, sum to 4096 exactly."""
    return int(frequencies.sum(dtype=np.uint64)) == _TOTAL


def ans_bits(counts: NDArray[np.int64], frequencies: NDArray[np.uint32]) -> float:
    """Estimate the bits ``ans_encode`` writes, closely enough to choose by.

    It is ``sum counts * (12 - log2 frequency)`` and 32 bits for each state; each logarithm is rounded to a multiple
    of 2^-20, so that the sum is exact and the same on every machine.

    Args:
        counts: (s,) int64, how often each symbol occurs.
        frequencies: (s,) uint32, each 4096 or less.

    Returns:
        The number of bits; infinity where a symbol that occurs has frequency 0.
    """
    if (counts[frequencies == 0] > 0).any():
        return math.inf
    states = 32 * ans_num_lanes(int(counts.sum())) if counts.any() else 0
    return states + int((counts * symbol_costs()[frequencies]).sum()) / (1 << _COST_BITS)


@functools.cache
def symbol_costs() -> NDArray[np.int64]:
    """Cost of a symbol of each frequency 0 .. 4096, in 2^-20 bits (0 at frequency 0)."""
    return np.array(
        [0, *(round((1 << _COST_BITS) * (MODEL_BITS - math.log2(f))) for f in range(1, _TOTAL + 1))], np.int64
    )


def normalise_frequencies(counts: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Scale counts to frequencies that sum to 4096, of nearly the least coding cost there is.

    Start from ``max(1, floor(4096 * count / total))`` for each symbol that occurs. Raising a frequency from f to f + 1
    gains, with o = 2 f + 1, ``g(count, f) = floor(2^32 * count * o / (3 o^2 - 1))``, proportional to
    ``count * ln((f + 1) / f)`` but for 0.2 % or less. While the sum is below 4096, raise the symbol that gains most;
    while it is above, lower the one (of those above 1) that loses least, g(count, f - 1). Then, while some raise gains
    more than some lowering loses, do both. Ties go to the lower symbol.

    Args:
        counts: (s,) int64, 0 or more; 1 to 4096 of them above 0.

    Returns:
        (s,) uint32: 1 or more where the count is, else 0.

    Raises:
        ValueError: when no symbol or more than 4096 symbols occur.
    """
    present = np.flatnonzero(counts)
    check_num_present(present.size)
    weights: list[int] = counts[present].tolist()
    total = sum(weights)
    chosen = [max(1, _TOTAL * weight // total) for weight in weights]
    raises = [(-_gain(weight, f), i) for i, (weight, f) in enumerate(zip(weights, chosen, strict=True))]
    lowers = [(_gain(weight, f - 1), i) for i, (weight, f) in enumerate(zip(weights, chosen, strict=True)) if f > 1]
    heapq.heapify(raises)
    heapq.heapify(lowers)

    def step(i: int, by: int) -> None:
        chosen[i] += by
        heapq.heappush(raises, (-_gain(weights[i], chosen[i]), i))
        if chosen[i] > 1:
            heapq.heappush(lowers, (_gain(weights[i], chosen[i] - 1), i))

    missing = _TOTAL - sum(chosen)
    while True:
        # An entry is stale when its symbol has moved since; the true one is in the heap as well.
        while raises and raises[0][0] != -_gain(weights[raises[0][1]], chosen[raises[0][1]]):
            heapq.heappop(raises)
        while lowers and lowers[0][0] != _gain(weights[lowers[0][1]], chosen[lowers[0][1]] - 1):
            heapq.heappop(lowers)
        if missing > 0:
            step(heapq.heappop(raises)[1], 1)
            missing -= 1
        elif missing < 0:
            step(heapq.heappop(lowers)[1], -1)
            missing += 1
        elif lowers and -raises[0][0] > lowers[0][0]:
            up, down = heapq.heappop(raises)[1], heapq.heappop(lowers)[1]
            step(up, 1)
            step(down, -1)
        else:
            break
    frequencies = np.zeros(counts.size, np.uint32)
    frequencies[present] = chosen
    return frequencies


def check_num_present(number: int) -> None:
    """Check that so many symbols can have a frequency each."""
    if not 1 <= number <= _TOTAL:
        raise ValueError(f"counts must hold 1 to {_TOTAL} symbols that occur, got {number}")


def _gain(weight: int, f: int) -> int:
    """What raising a frequency from f to f + 1 gains; lowering to 0 costs more than anything."""
    if f == 0:
        return 1 << 200
    o = 2 * f + 1
    return (weight * o << 32) // (3 * o * o - 1)


def huffman_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Find the code lengths of least total cost, none above 12 bits.

    Symbols are sorted by count, then symbol, and merged by package-merge, where a leaf goes before a package of the
    same weight.

    Args:
        counts: (s,) int64, 0 or more; at most 4096 of them above 0.

    Returns:
        (s,) uint8: 0 for symbols that do not occur; 1 where only one does.

    Raises:
        ValueError: when more than 4096 symbols occur.

    Source: Larmore and Hirschberg 1990, "A fast algorithm for optimal length-limited Huffman codes".
    """
    return lengths_by(package_merge, counts)


def lengths_by(merge: Callable[[NDArray[np.int64]], NDArray[np.uint8]], counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Find the code lengths, see ``huffman_lengths``, with this ``package_merge``."""
    lengths = np.zeros(counts.size, np.uint8)
    present = np.flatnonzero(counts)
    if present.size > 1 << HUFFMAN_BITS:
        raise ValueError(f"at most {1 << HUFFMAN_BITS} symbols may occur, got {present.size}")
    if present.size < 2:
        lengths[present] = 1
        return lengths
    order = present[np.argsort(counts[present], kind="stable")]
    lengths[order] = merge(counts[order])
    return lengths


def package_merge(leaves: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Find the depths, none above 12, of the leaves of the cheapest binary tree.

    Args:
        leaves: (s,) int64 weights, in increasing order; s from 2 to 4096.

    Returns:
        (s,) uint8.

    Source: Larmore and Hirschberg 1990.
    """
    weights = leaves
    num_leaves = [np.arange(leaves.size + 1)]  # num_leaves[level][t]: leaves among the t lightest nodes
    for _ in range(HUFFMAN_BITS - 1):
        pairs = weights[: weights.size // 2 * 2].reshape(-1, 2).sum(axis=1)
        nodes = np.concatenate([leaves, pairs])
        lightest = np.argsort(nodes, kind="stable")
        weights = nodes[lightest]
        num_leaves.append(np.concatenate([[0], np.cumsum(lightest < leaves.size)]))
    taken = 2 * leaves.size - 2
    depths = np.zeros(leaves.size, np.uint8)
    for level in reversed(num_leaves):
        depths[: level[taken]] += 1
        taken = 2 * (taken - int(level[taken]))
    return depths


def huffman_codes(lengths: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Make the canonical code of valid lengths: shorter codes first, then lower symbols.

    Args:
        lengths: (s,) uint8.

    Returns:
        (s,) uint16: each code with its first bit lowest; 0 for absent symbols.

    Raises:
        ValueError: when the lengths make no complete code and are no single symbol's.
    """
    if huffman_table(lengths) is None:
        raise ValueError("code lengths must form a complete code of at most 12 bits or be one symbol's")
    present, spans = _canonical(lengths)
    codes = np.zeros(lengths.size, np.uint16)
    codes[present] = _reversed_indices()[np.cumsum(spans) - spans]
    return codes


def huffman_table(lengths: NDArray[np.uint8]) -> NDArray[np.uint32] | None:
    """Make the table that decodes one symbol from the next 12 bits of a stream.

    Args:
        lengths: (s,) uint8, anything; s <= 2^16.

    Returns:
        (4096,) uint32: ``symbol << 8 | length``, with INVALID set where no code leads; None when the lengths make no
        complete code and are no single symbol's.
    """
    present, spans = _canonical(lengths)
    if present.size == 1 and lengths[present[0]] == 1:
        entry = int(present[0]) << 8 | 1
        return np.tile(np.array([entry, entry | INVALID], np.uint32), _TOTAL // 2)
    if present.size < 2 or int(spans.sum()) != _TOTAL or int(lengths.max()) > HUFFMAN_BITS:
        return None
    entries = present.astype(np.uint32) << np.uint32(8) | lengths[present]
    return np.repeat(entries, spans)[_reversed_indices()]


def _canonical(lengths: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Symbols in code order, and how many of the 4096 strings of 12 bits start with each one's code."""
    present = np.flatnonzero(lengths)
    present = present[np.argsort(lengths[present], kind="stable")]
    return present, np.int64(1) << np.maximum(HUFFMAN_BITS - lengths[present].astype(np.int64), 0)


@functools.cache
def _reversed_indices() -> NDArray[np.int64]:
    """0 .. 4095 with their 12 bits in reverse."""
    indices = np.arange(1 << HUFFMAN_BITS)
    turned = np.zeros_like(indices)
    for bit in range(HUFFMAN_BITS):
        turned |= (indices >> bit & 1) << (HUFFMAN_BITS - 1 - bit)
    return turned
