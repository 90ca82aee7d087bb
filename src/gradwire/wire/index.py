"""Index coding: a support <-> bytes, the cheapest code chosen by exact cost.

docs/format.md, "Supports", is the law for every byte written here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import Malformed, Truncated, UnknownCodec
from gradwire.kernels import ops
from gradwire.payload import SUPPORT_PURPOSE, Every, Explicit, Seeded, Support
from gradwire.rng import Key
from gradwire.wire.reader import Reader, varint

__all__ = ["NAMES", "decode_support", "encode_support", "explicit_num_bytes"]

NONE, EVERY, GOLOMB, BITMAP, SEEDED = range(5)
NAMES = {NONE: "none", EVERY: "every", GOLOMB: "golomb", BITMAP: "bitmap", SEEDED: "seeded"}


def encode_support(support: Support) -> tuple[int, bytes]:
    """Write a support in its cheapest code.

    Args:
        support: the support.

    Returns:
        The codec's number and its bytes.
    """
    if isinstance(support, Every):
        return EVERY, b""
    if support.num_kept == 0:
        return NONE, b""
    if isinstance(support, Seeded):
        client = 0 if support.key.client is None else support.key.client + 1
        return SEEDED, varint(support.count) + varint(support.key.seed) + varint(client)
    gaps = ops.gaps(support.indices)
    m = golomb_parameter(gaps)
    head = varint(support.num_kept) + varint(m)
    if len(head) + -(-ops.golomb_num_bits(gaps, m) // 8) <= -(-support.length // 8):
        return GOLOMB, head + ops.golomb_encode(gaps, m).tobytes()
    bitmap = np.zeros(support.length, np.uint8)
    bitmap[support.indices] = 1
    return BITMAP, np.packbits(bitmap, bitorder="little").tobytes()


def explicit_num_bytes(indices: NDArray[np.int64], length: int) -> int:
    """Count the bytes ``encode_support`` would write for these indices, without writing them."""
    if not indices.size:
        return 0
    gaps = ops.gaps(indices)
    m = golomb_parameter(gaps)
    golomb = len(varint(indices.size)) + len(varint(m)) + -(-ops.golomb_num_bits(gaps, m) // 8)
    return min(golomb, -(-length // 8))


def golomb_parameter(gaps: NDArray[np.int64]) -> int:
    """Find the Golomb parameter of fewest bits near the one that suits geometric gaps of this mean.

    Args:
        gaps: (k,) int64, k >= 1.

    Returns:
        The parameter m, 1 or more.

    Source: Gallager and van Voorhis 1975: for success probability p the best m is the smallest with
        (1 - p)^m + (1 - p)^(m + 1) <= 1.
    """
    p = gaps.size / (gaps.size + float(gaps.sum()))
    if p == 1.0:
        return 1
    best = max(1, math.ceil(-math.log(2 - p) / math.log1p(-p)))
    rice = 1 << (best.bit_length() - 1)
    candidates = sorted({best, max(1, best - 1), rice, 2 * rice})
    return min(candidates, key=lambda m: ops.golomb_num_bits(gaps, m))


def decode_support(codec: int, length: int, round: int, reader: Reader) -> Support:
    """Read a support.

    Args:
        codec: the codec's number.
        length: number of coordinates of the part.
        round: the payload's round, which seeded supports are drawn for.
        reader: where its bytes start; moved past them.

    Returns:
        The support.

    Raises:
        DecodeError: on anything docs/format.md does not allow.
    """
    if codec == NONE:
        return Explicit(length, np.empty(0, np.int64))
    if codec == EVERY:
        return Every(length)
    if codec == GOLOMB:
        count = reader.varint("number of indices", below=length + 1)
        m = reader.varint("Golomb parameter", below=length + 1)
        if count == 0 or m == 0:
            raise Malformed(f"Golomb support needs a count and a parameter of 1 or more, got {count} and {m}")
        found = ops.golomb_decode(reader.rest(), count, m, length)
        if found is None:
            raise Malformed(f"Golomb support: {count} indices below {length} with parameter {m} not found")
        reader.take(found[1], "Golomb support")
        return Explicit(length, found[0])
    if codec == BITMAP:
        data = np.frombuffer(reader.take(-(-length // 8), "bitmap support"), np.uint8)
        bits = np.unpackbits(data, bitorder="little")
        if bits[length:].any() or not bits.any():
            raise Malformed("bitmap support: unused bits must be 0 and one coordinate or more be set")
        return Explicit(length, np.flatnonzero(bits))
    if codec == SEEDED:
        count = reader.varint("number of indices", below=length + 1)
        seed = reader.varint("seed")
        client = reader.varint("client")
        if count == 0:
            raise Malformed("seeded support needs a count of 1 or more, got 0")
        if count > 8 * reader.remaining:
            raise Truncated(f"seeded support of {count} coordinates, but only {reader.remaining} bytes follow")
        return Seeded(length, count, Key(seed, round, client - 1 if client else None, SUPPORT_PURPOSE))
    raise UnknownCodec(f"support codec must be one of {sorted(NAMES)}, got {codec}")
