"""When compression pays: bytes saved on a link against seconds spent at its ends."""

from __future__ import annotations

import math

__all__ = ["LINKS", "break_even", "round_seconds"]

LINKS = {"5 Mbit/s": 5e6, "100 Mbit/s": 100e6, "1 Gbit/s": 1e9, "10 Gbit/s": 10e9}
"""Name -> bits a second."""


def break_even(dense_bytes: int, num_bytes: int, seconds: float, dense_seconds: float) -> float:
    """Return the bandwidth below which a method is faster than sending dense float32.

    Both take as long where ``8 num_bytes / B + seconds = 8 dense_bytes / B + dense_seconds``.

    Args:
        dense_bytes: bytes of the dense update.
        num_bytes: bytes of the compressed one.
        seconds: compressing it and receiving it.
        dense_seconds: the same for the dense update.

    Returns:
        Bits a second; infinity where it takes no more time at the ends, 0 where it saves no bytes.

    Example:
        >>> break_even(dense_bytes=1000, num_bytes=200, seconds=3.0, dense_seconds=1.0)
        3200.0
    """
    saved_bits, spent = 8 * (dense_bytes - num_bytes), seconds - dense_seconds
    if saved_bits <= 0:
        return 0.0
    return saved_bits / spent if spent > 0 else math.inf


def round_seconds(num_bytes: int, seconds: float, bits_per_second: float) -> float:
    """Return how long one upload takes: compressed, sent and received.

    Example:
        >>> round_seconds(num_bytes=1000, seconds=0.5, bits_per_second=8000)
        1.5
    """
    return 8 * num_bytes / bits_per_second + seconds
