"""Supports of what fired when an update was rounded with thresholds that both ends know.

docs/format.md, "dithered", is the law for every byte written here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gradwire.errors import LimitExceeded, Malformed
from gradwire.kernels import ops
from gradwire.kernels.fires_reference import LEVELS, Thresholds
from gradwire.payload import THRESHOLDS_PURPOSE, Dithered
from gradwire.rng import Key
from gradwire.wire.golomb import golomb_parameter, read_golomb
from gradwire.wire.limits import Limits
from gradwire.wire.reader import Reader, varint

__all__ = ["decode_dithered", "encode_dithered", "thresholds_of"]

_GOLDEN = 0x9E3779B9  # 2^32 times the golden section
_MASK = (1 << 32) - 1


def thresholds_of(key: Key, golden: bool, length: int) -> Thresholds:
    """Draw the thresholds of a part.

    Args:
        key: of purpose ``"thresholds"``.
        golden: leave the round out of the key, and move all thresholds on by the golden section for each round.
        length: number of coordinates.

    Returns:
        The thresholds: a word for each 2^32 coordinates.
    """
    num_words = -(-length >> 32)
    if golden:
        return Thresholds(replace(key, round=0).words(num_words), key.round * _GOLDEN & _MASK)
    return Thresholds(key.words(num_words))


def encode_dithered(support: Dithered) -> bytes:
    """Write a support, of one coordinate or more."""
    which = thresholds_of(support.key, support.golden, support.length)
    indices, level = support.chosen, support.level
    client = 0 if support.key.client is None else support.key.client + 1
    out = bytearray(varint(indices.size))
    out.append(level | LEVELS * support.golden)
    out += varint(support.key.seed) + varint(client)
    apart = ops.outside(indices, level, which)
    rare = indices[apart]
    out += varint(rare.size)
    if rare.size:
        gaps = ops.gaps(rare)
        m, _ = golomb_parameter(gaps)
        out += varint(m) + ops.golomb_encode(gaps, m).tobytes()
    code = ops.encode_fires(support.length, indices[~apart] if rare.size else indices, level, which)
    return bytes(out + varint(code.size)) + code.tobytes()


def decode_dithered(length: int, round: int, reader: Reader, limits: Limits) -> Dithered:
    """Read a support.

    Args:
        length: number of coordinates of the part.
        round: the payload's round, which the thresholds are drawn for.
        reader: where its bytes start; moved past them.
        limits: what to refuse.

    Returns:
        The support.

    Raises:
        DecodeError: on anything docs/format.md does not allow.
    """
    count = reader.varint("number of indices", below=length + 1)
    if count == 0:
        raise Malformed("dithered support needs a count of 1 or more, got 0")
    if count > limits.max_expansion * reader.size:
        raise LimitExceeded(
            f"{count} indices out of {reader.size} bytes: at most {limits.max_expansion} a byte allowed"
        )
    level = reader.byte("level")
    golden, level = level >= LEVELS, level % LEVELS
    seed, client = reader.varint("seed"), reader.varint("client")
    key = Key(seed, round, client - 1 if client else None, THRESHOLDS_PURPOSE)
    which = thresholds_of(key, golden, length)
    num_rare = reader.varint("number of indices apart", below=count + 1)
    rare = read_golomb(reader, num_rare, length, "indices apart") if num_rare else np.empty(0, np.int64)
    if not ops.outside(rare, level, which).all():
        raise Malformed("indices apart must have thresholds that are not coded")
    code = np.frombuffer(reader.take(reader.varint("size of the range code"), "range code"), np.uint8)
    found = ops.decode_fires(code, length, count - num_rare, level, which)
    if found is None:
        raise Malformed(f"range code of {count - num_rare} fires among {length} coordinates not found")
    chosen = np.sort(np.concatenate([found, rare])) if num_rare else found
    return Dithered(length, chosen, key, level, golden)
