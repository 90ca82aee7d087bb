"""Coding with contexts: a support and the symbols there <-> bytes, in one stream.

docs/format.md, "Contexts", is the law for every byte written here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import LimitExceeded, Malformed, UnknownCodec
from gradwire.kernels import ops
from gradwire.payload import Explicit, Levels, Part, Symbols, Values
from gradwire.wire import index
from gradwire.wire.limits import Limits
from gradwire.wire.reader import Reader, varint
from gradwire.wire.values import CENTRED, CONTEXT, LEVELS, read_levels, read_scale

__all__ = ["MOST_COLUMNS", "check_length", "decode_part", "encode_part", "least_apart", "stretches"]

MOST_COLUMNS = 2**16
_SKIPPED = 32  # coordinates that a byte pays for, sent or not, times ``Limits.max_expansion``
_PLAIN_COLUMNS = 1024  # of a vector, whose row has no end of its own

Shape = tuple[NDArray[np.int64], NDArray[np.int64]]  # lengths of the stretches, and their columns


def encode_part(part: Part) -> list[tuple[int, bytes]] | None:
    """Write a part with contexts.

    Args:
        part: any part.

    Returns:
        The codecs and bytes of support and values: of the support its stretches alone. None where the part is no list
        of coordinates with symbols of one scale, none of them zero, or has no columns; or where readers would refuse it
        as too sparse.
    """
    support = part.support
    if not isinstance(support, Explicit) or not support.columns or not support.num_kept:
        return None
    head = _head_of(part.values)
    if head is None:
        return None
    codec, start, most = head
    lengths, columns = stretches(support)
    stream = support.written
    if stream is None:
        signed = _integers_of(part.values)
        if signed is None:
            return None
        whole = np.zeros(support.length, np.int32)
        whole[support.chosen] = signed
        stream = ops.encode_levels(whole, lengths, columns, most).tobytes()
    cuts = varint(lengths.size)
    for number, (length, width) in enumerate(zip(lengths.tolist(), columns.tolist(), strict=True), 1):
        cuts += (varint(length) if number < lengths.size else b"") + varint(width)
    if support.length > _SKIPPED * Limits.max_expansion * (len(cuts) + len(start) + len(stream)):
        return None
    return [(index.CONTEXT, cuts), (codec | CONTEXT << 4, start + varint(len(stream)) + stream)]


def least_apart(part: Part) -> float:
    """Estimate how many bytes other codes of a part that ``encode_part`` writes take at least.

    Args:
        part: with symbols or levels, and an entry or more.

    Returns:
        The entropy of the symbols and three fifths of that of the coordinates, as if they lay anywhere: other codes
        know tensors of unequal density, but no rows and columns.
    """
    counts = np.bincount(part.values.symbols) if isinstance(part.values, (Levels, Symbols)) else np.zeros(1, np.int64)
    kept = part.support.num_kept
    places = np.array([kept, part.length - kept])
    return (_entropy_bits(counts) + 0.6 * _entropy_bits(places)) / 8


def _entropy_bits(counts: NDArray[np.int64]) -> float:
    present = counts[counts > 0]
    return float(present @ np.log2(present.sum() / present))


def stretches(support: Explicit) -> Shape:
    """Return the stretches that a support's cuts and columns make; a vector goes with the stretch before it.

    Args:
        support: with columns.

    Returns:
        (s,) int64 lengths, none of them 0; (s,) int64 columns, 1 to 2^16 each.
    """
    lengths: list[int] = []
    columns: list[int] = []
    for start, stop, width in zip((0, *support.cuts), (*support.cuts, support.length), support.columns, strict=True):
        if width == stop - start and lengths:
            lengths[-1] += stop - start
        else:
            lengths.append(stop - start)
            columns.append(min(width, MOST_COLUMNS if width < stop - start else _PLAIN_COLUMNS))
    return np.array(lengths, np.int64), np.array(columns, np.int64)


def _head_of(values: Values) -> tuple[int, bytes, int] | None:
    """Value kind, what comes before the stream, and the largest magnitude there may be."""
    if isinstance(values, Levels):
        return LEVELS, varint(values.levels.size) + values.levels.astype("<f4").tobytes(), values.levels.size
    if isinstance(values, Symbols) and not values.block and values.zero_points is None:
        start = varint(values.num_symbols) + values.scales.astype("<f4").tobytes()
        return CENTRED, start, values.num_symbols // 2
    return None


def _integers_of(values: Values) -> NDArray[np.int32] | None:
    """Values of a kind that has a head, as integers other than 0; None where one is 0."""
    if isinstance(values, Levels):
        size = (values.symbols >> 1).astype(np.int32) + 1
        return np.where(values.symbols & 1, -size, size)
    if not isinstance(values, Symbols):
        return None
    twice = 2 * values.symbols.astype(np.int32) - (values.num_symbols - 1)
    if not twice.all():
        return None
    return ((twice + np.sign(twice)) // 2 if values.num_symbols % 2 == 0 else twice // 2).astype(np.int32)


def decode_part(length: int, reader: Reader, limits: Limits) -> tuple[Part, int, int]:
    """Read a part written with contexts.

    Args:
        length: number of coordinates of the part.
        reader: where its bytes start, after the support codec; moved past them.
        limits: what to refuse.

    Returns:
        The part; where the values' bytes start; and their codec.

    Raises:
        DecodeError: on anything docs/format.md does not allow.
    """
    lengths, columns = _read_stretches(length, reader, limits)
    check_length(length, reader, limits)
    middle = reader.position
    codec = reader.byte("value codec")
    if codec not in (CENTRED | CONTEXT << 4, LEVELS | CONTEXT << 4):
        raise UnknownCodec(f"contexts need centred values or levels, got value codec {codec:#04x}")
    table: NDArray[np.float32] | None = None
    if codec & 15 == LEVELS:
        table = read_levels(reader)
        most = int(table.size)
    else:
        num_symbols, scale = read_scale(reader)
        most = num_symbols // 2
    size = reader.varint("bytes of the stream")
    data = np.frombuffer(reader.take(size, "stream with contexts"), np.uint8)
    found = ops.decode_levels(data, lengths, columns, most)
    if found is None:
        raise Malformed(f"stream with contexts of {length} coordinates not found")
    chosen = np.flatnonzero(found != 0)
    if chosen.size > limits.max_expansion * reader.size:
        raise LimitExceeded(f"{chosen.size} entries out of {reader.size} bytes: at most {limits.max_expansion} a byte")
    if not chosen.size:
        raise Malformed("contexts need an entry or more, got none")
    signed = found[chosen]
    values: Values
    if table is not None:
        values = Levels((2 * (np.abs(signed) - 1) + (signed < 0)).astype(np.uint16), table)
    elif num_symbols % 2:
        values = Symbols((signed + most).astype(np.uint16), num_symbols, scale)
    else:
        values = Symbols((signed + most - (signed > 0)).astype(np.uint16), num_symbols, scale)
    cuts = tuple(np.cumsum(lengths)[:-1].tolist())
    return Part(Explicit(length, chosen, cuts, tuple(columns.tolist())), values), middle, codec


def check_length(length: int, reader: Reader, limits: Limits) -> None:
    """Refuse more coordinates with contexts than the container's bytes pay for."""
    most = _SKIPPED * limits.max_expansion
    if length > most * reader.size:
        raise LimitExceeded(f"{length} coordinates with contexts out of {reader.size} bytes: at most {most} a byte")


def _read_stretches(length: int, reader: Reader, limits: Limits) -> Shape:
    count = reader.varint("number of stretches")
    if count == 0:
        raise Malformed("contexts need a stretch or more, got none")
    if count > limits.max_parts:
        raise LimitExceeded(f"stretches must be at most {limits.max_parts}, got {count}")
    reader.need(count, "stretches")
    lengths, columns, left = [], [], length
    for number in range(1, count + 1):
        size = left if number == count else reader.varint("length of a stretch", below=left)
        if size == 0:
            raise Malformed("a stretch must not be empty")
        width = reader.varint("columns", below=min(size, MOST_COLUMNS) + 1)
        if width == 0:
            raise Malformed("columns must be 1 or more, got 0")
        lengths.append(size)
        columns.append(width)
        left -= size
    return np.array(lengths, np.int64), np.array(columns, np.int64)
