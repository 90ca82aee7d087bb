"""What the context coder and its reference share: tables, and where each kind of context is.

Tables are integers, rounded from values that no two libraries round differently: a test keeps them away from halves.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLOCK",
    "BLOCKS",
    "COUNTS",
    "LEAST_CHANCE",
    "LOGITS",
    "MAGNITUDES",
    "MOST_COUNTED",
    "MOST_LOGIT",
    "PLACES",
    "PRICES",
    "SIGNS",
    "SIGN_PRICE",
    "SIZE",
    "SQUASHED",
    "UNARY",
    "initial_states",
    "initial_weights",
]

MOST_LOGIT = 2560
"""Logarithms of odds are kept within ten, in units of 1/256."""
LEAST_CHANCE = 4
"""No bit is thought rarer than this, of 2^16."""
MOST_COUNTED = 127
"""A context learns as if it had seen no more bits than this."""
UNARY = 15
"""Magnitudes up to this are coded bit by bit, each bit in a context; what is beyond in an Elias code of even odds."""

BLOCK = 16
"""Coordinates of a row that are said together to be zero."""
BLOCKS, PLACES, SIGNS, MAGNITUDES = 0, 704, 704 + 64 + 8 * 192 + 32 * 32, 704 + 64 + 8 * 192 + 32 * 32 + 256
SIZE = MAGNITUDES + (UNARY - 1) * (24 + 25 + 32)

SQUASHED: NDArray[np.int32] = np.array(
    [
        min(65536 - LEAST_CHANCE, max(LEAST_CHANCE, round(65536 / (1 + math.exp(-z / 256)))))
        for z in range(-MOST_LOGIT, MOST_LOGIT + 1)
    ],
    np.int32,
)
"""(5121,) the chance, times 2^16, of a logit z / 256 at z + 2560."""
LOGITS: NDArray[np.int32] = np.array(
    [round(256 * math.log((2 * i + 1) / (8191 - 2 * i))) for i in range(4096)], np.int32
)
"""(4096,) 256 times the logit of a chance of (i + 1/2) / 4096."""
COUNTS: NDArray[np.int32] = np.array([(2 << 16) // (2 * n + 3) for n in range(MOST_COUNTED + 1)], np.int32)
"""(128,) by how much, times 2^16, a context that has seen n bits moves towards the next."""
SIGN_PRICE = 160
"""What a sign is thought to cost, in 1/256 bit."""
PRICES: NDArray[np.int32] = np.array([13 * 256, *(round(-256 * math.log2(i / 4096)) for i in range(1, 4097))], np.int32)
"""(4097,) bits, times 256, of an event whose chance is i / 4096."""


def initial_states() -> NDArray[np.uint32]:
    """Make the contexts as they are before the first bit.

    Returns:
        (SIZE,) uint32: a chance times 2^22, and, in the ten lowest bits, how many bits were seen.
    """
    states = np.empty(SIZE, np.uint32)
    states[:PLACES] = (1 << 22) // 10 << 10
    states[PLACES:SIGNS] = (1 << 22) // 8 << 10
    states[SIGNS:MAGNITUDES] = 1 << 31
    states[MAGNITUDES:] = (1 << 22) * 3 // 10 << 10
    return states


def initial_weights() -> NDArray[np.int64]:
    """Make the weights of the mixtures, times 2^16: of blocks, places, signs and three kinds of magnitude bits.

    Returns:
        (24,) int64: four each, of which the last is not used.
    """
    weights = np.zeros(24, np.int64)
    for kind, weight in enumerate((1 / 3, 1 / 3, 3 / 7, 2 / 5, 2 / 5, 2 / 5)):
        weights[4 * kind : 4 * kind + 3] = int(65536 * weight)
    return weights
