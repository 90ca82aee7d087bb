"""Fields of row and column levels <-> bytes.

docs/format.md, "Field", is the law for every byte written here.
"""

from __future__ import annotations

import numpy as np

from gradwire.errors import LimitExceeded, Malformed
from gradwire.fields import MOST, Field, num_levels
from gradwire.kernels import ops
from gradwire.wire.limits import Limits
from gradwire.wire.reader import Reader, varint

__all__ = ["decode_field", "encode_field"]

_WIDTHS = (1, 4, 7, 8)  # columns of what flattens images of so many: their levels are alike


def encode_field(field: Field) -> bytes:
    """Write a field: its stretches, and its levels in one stream with contexts, of the best width tried."""
    out = varint(field.num_stretches)
    for length, columns in zip(field.lengths, field.columns, strict=True):
        out += varint(length) + varint(columns)
    unit = max(1, int(np.gcd.reduce(field.levels.astype(np.int64))))
    integers, size = field.levels.astype(np.int32) // unit, field.levels.size
    best = None
    for width in (width for width in _WIDTHS if width <= size):
        stream = ops.encode_levels(integers, np.array([size]), np.array([width]), MOST // unit).tobytes()
        tried = varint(width) + varint(len(stream)) + stream
        best = tried if best is None or len(tried) < len(best) else best
    return out + varint(unit) + (best or b"")


def decode_field(reader: Reader, d: int, coded: int, limits: Limits) -> Field:
    """Read a field.

    Args:
        reader: where its bytes start; moved past them.
        d: most coordinates it may have.
        coded: entries that the container has beside its levels.
        limits: what to refuse.

    Returns:
        The field.

    Raises:
        DecodeError: on anything docs/format.md does not allow.
    """
    count = reader.varint("number of stretches")
    if count == 0:
        raise Malformed("a field needs a stretch or more, got none")
    if count > limits.max_parts:
        raise LimitExceeded(f"stretches must be at most {limits.max_parts}, got {count}")
    reader.need(2 * count, "stretches")
    lengths, columns, left, size = [], [], d, 0
    for _ in range(count):
        length = reader.varint("length of a stretch", below=left + 1)
        wide = reader.varint("columns", below=length + 1)
        if wide == 0:
            raise Malformed("stretches and their columns must be 1 or more, got 0")
        lengths.append(length)
        columns.append(wide)
        left -= length
        size += num_levels(length, wide)
    if coded + size > limits.max_expansion * reader.size:
        raise LimitExceeded(
            f"{coded} entries and {size} levels out of {reader.size} bytes: at most {limits.max_expansion} a byte"
        )
    unit, width = reader.varint("unit of levels", below=MOST + 1), reader.varint("width", below=min(size, 2**16) + 1)
    if not unit or not width:
        raise Malformed(f"unit and width of a field must be 1 or more, got {unit} and {width}")
    data = np.frombuffer(reader.take(reader.varint("bytes of the levels"), "levels"), np.uint8)
    integers = ops.decode_levels(data, np.array([size]), np.array([width]), MOST // unit)
    if integers is None:
        raise Malformed(f"stream of {size} levels not found")
    return Field(tuple(lengths), tuple(columns), (integers * unit).astype(np.int8))
