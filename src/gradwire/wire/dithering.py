"""Supports of what fired when an update was rounded with thresholds that both ends know.

docs/format.md, "dithered" and "fielded", is the law for every byte written here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import LimitExceeded, Malformed, StaleReference
from gradwire.fields import Field
from gradwire.kernels import ops
from gradwire.kernels.fires_reference import LEVELS, Thresholds
from gradwire.payload import THRESHOLDS_PURPOSE, Dithered, Fielded
from gradwire.rng import Key
from gradwire.wire.golomb import golomb_parameter, read_golomb
from gradwire.wire.limits import Limits
from gradwire.wire.reader import Reader, varint

__all__ = [
    "beside_field",
    "decode_dithered",
    "decode_fielded",
    "encode_dithered",
    "encode_fielded",
    "read_beside",
    "thresholds_of",
]

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
    apart = ops.outside(indices, level, which)
    code = ops.encode_fires(support.length, indices[~apart], level, which)
    return _head(support) + _tail(indices[apart], code.tobytes())


def beside_field(support: Dithered, field: Field) -> Fielded:
    """Code a support beside a field.

    Args:
        support: of one coordinate or more.
        field: of as many coordinates as the support's part.

    Returns:
        The same coordinates.
    """
    which = thresholds_of(support.key, support.golden, support.length)
    indices, level = support.chosen, support.level
    apart = ops.outside(indices, level, which, field)
    code = ops.encode_fires(support.length, indices[~apart], level, which, field)
    named = (support.num_kept, support.key, level, support.golden, field.digest)
    return Fielded(support.length, *named, indices[apart], code.tobytes(), indices)


def encode_fielded(support: Fielded) -> bytes:
    """Write a support that was coded beside a field."""
    return _head(support) + support.field_digest + _tail(support.apart, support.code)


def _head(support: Dithered | Fielded) -> bytes:
    client = 0 if support.key.client is None else support.key.client + 1
    golden_level = bytes([support.level | LEVELS * support.golden])
    return varint(support.num_kept) + golden_level + varint(support.key.seed) + varint(client)


def _tail(apart: NDArray[np.int64], code: bytes) -> bytes:
    listed = b""
    if apart.size:
        gaps = ops.gaps(apart)
        m, _ = golomb_parameter(gaps)
        listed = varint(m) + ops.golomb_encode(gaps, m).tobytes()
    return varint(apart.size) + listed + varint(len(code)) + code


class _Head(NamedTuple):
    """What both kinds of supports begin with."""

    num_kept: int
    key: Key
    level: int
    golden: bool


def _read_head(length: int, round: int, reader: Reader, limits: Limits) -> _Head:
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
    return _Head(count, Key(seed, round, client - 1 if client else None, THRESHOLDS_PURPOSE), level, golden)


def _read_tail(length: int, count: int, reader: Reader) -> tuple[NDArray[np.int64], bytes]:
    """The listed indices, and the range code."""
    num_apart = reader.varint("number of indices apart", below=count + 1)
    apart = read_golomb(reader, num_apart, length, "indices apart") if num_apart else np.empty(0, np.int64)
    return apart, bytes(reader.take(reader.varint("size of the range code"), "range code"))


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
    head = _read_head(length, round, reader, limits)
    apart, code = _read_tail(length, head.num_kept, reader)
    which = thresholds_of(head.key, head.golden, length)
    if not ops.outside(apart, head.level, which).all():
        raise Malformed("indices apart must have thresholds that are not coded")
    data, num_fires = np.frombuffer(code, np.uint8), head.num_kept - apart.size
    found = ops.decode_fires(data, length, num_fires, head.level, which)
    return Dithered(length, _joined(found, apart, num_fires, length), *head[1:])


def decode_fielded(length: int, round: int, reader: Reader, limits: Limits) -> Fielded:
    """Read a support that was coded beside a field, as far as that goes without it; see ``decode_dithered``."""
    head = _read_head(length, round, reader, limits)
    digest = bytes(reader.take(4, "hash of the field"))
    return Fielded(length, *head, digest, *_read_tail(length, head.num_kept, reader))


def read_beside(support: Fielded, field: Field | None) -> Dithered:
    """Find the coordinates of a support that was coded beside a field, where they are not known.

    Args:
        support: from ``beside_field`` or ``decode_fielded``.
        field: the field both ends hold; None where this end holds none.

    Returns:
        The coordinates.

    Raises:
        StaleReference: where it is not the field that the support names.
        Malformed: where the bytes are no code of so many fires, or the field is of another number of coordinates.
    """
    named = support.length, support.key, support.level, support.golden
    if support.chosen is not None:
        return Dithered(named[0], support.chosen, *named[1:])
    if field is None or field.digest != support.field_digest:
        held = "none" if field is None else field.digest.hex()
        raise StaleReference(f"payload leans on field {support.field_digest.hex()}, this end holds {held}")
    if field.length != support.length:
        raise Malformed(f"a part beside a field needs {field.length} coordinates as it has, got {support.length}")
    which = thresholds_of(support.key, support.golden, support.length)
    if not ops.outside(support.apart, support.level, which, field).all():
        raise Malformed("indices apart must have thresholds that are not coded")
    data, num_fires = np.frombuffer(support.code, np.uint8), support.count - support.apart.size
    found = ops.decode_fires(data, support.length, num_fires, support.level, which, field)
    return Dithered(named[0], _joined(found, support.apart, num_fires, support.length), *named[1:])


def _joined(
    found: NDArray[np.int64] | None, apart: NDArray[np.int64], num_fires: int, length: int
) -> NDArray[np.int64]:
    """All indices, of the range code and listed."""
    if found is None:
        raise Malformed(f"range code of {num_fires} fires among {length} coordinates not found")
    return np.sort(np.concatenate([found, apart])) if apart.size else found
