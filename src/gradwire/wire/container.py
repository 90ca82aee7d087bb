"""The container: payload <-> bytes, and what is inside a blob without making a vector of it.

docs/format.md, "Container", is the law for every byte written here.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gradwire.errors import (
    BadChecksum,
    ConfigError,
    DecodeError,
    LimitExceeded,
    Malformed,
    Truncated,
    UnsupportedVersion,
)
from gradwire.kernels import threads
from gradwire.payload import Dithered, Fielded, Floats, Known, Part, Payload
from gradwire.wire import contexts, index, values
from gradwire.wire.fields import decode_field, encode_field
from gradwire.wire.limits import Limits
from gradwire.wire.reader import Reader, varint

__all__ = ["Opened", "decode", "encode", "inspect", "read", "write"]

MAGIC = b"GW"
VERSION = 1
DOWNLINK, REFERENCE, SEVERAL_PARTS, PACKET, PADDED, FIELD = 1, 2, 4, 8, 16, 32
LOOKED_AT = 512  # coordinates of dithered supports that a byte pays for, times ``Limits.max_expansion``


@dataclass(frozen=True)
class _Sizes:
    """Where a part's bytes are: its codecs' names and how many bytes each section takes."""

    support_name: str
    values_name: str
    support_bytes: int
    values_bytes: int


def encode(payload: Payload) -> bytes:
    """Turn a payload into the bytes that travel.

    Args:
        payload: from ``Compressor.compress``.

    Returns:
        The blob; equal payloads of the same coder give equal blobs. It takes no fewer bytes than readers ask for by
        default: one for ``Limits.max_expansion`` entries, and for 512 times as many coordinates of a dithered support.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> compressor = gw.topk(0.5)
        >>> payload, _ = compressor.compress(np.array([3.0, 1.0], np.float32), compressor.init(gw.Layout.flat(2)))
        >>> gw.decode(gw.encode(payload)) == payload
        True
    """
    return write(payload).blob


def _sections(part: Part, coder: str) -> list[tuple[int, bytes]]:
    """Codec and bytes of a part's support and, where it has any, of its values.

    Side by side where they are many; in one stream with contexts where that was asked for and takes fewer bytes.
    """
    if coder != "context":
        return _apart(part, coder)
    together = contexts.encode_part(part)
    if together is not None and _size(together) < contexts.least_apart(part):
        return together
    apart = _apart(part, "auto")
    return apart if together is None or _size(apart) <= _size(together) else together


def _sizes_of(sections: list[tuple[int, bytes]], num_bytes: int) -> _Sizes:
    """Where the bytes of a part are that takes so many."""
    support_name, last = index.NAMES[sections[0][0]], sections[-1]
    if len(sections) == 1:
        return _Sizes(support_name, "none", num_bytes, 0)
    values_bytes = 1 + len(last[1])
    return _Sizes(support_name, values.name_of(last[0]), num_bytes - values_bytes, values_bytes)


def _size(sections: list[tuple[int, bytes]]) -> int:
    return sum(1 + len(data) for _, data in sections)


def _apart(part: Part, coder: str) -> list[tuple[int, bytes]]:
    tasks = [partial(index.encode_support, part.support)]
    if part.support.num_kept:
        tasks.append(partial(values.encode_values, part.values, coder))
    return threads.run(tasks) if part.support.num_kept >= threads.FEW else [task() for task in tasks]


def decode(blob: bytes | bytearray | memoryview, limits: Limits | None = None) -> Payload:
    """Read a blob back.

    Total: any bytes whatever give a Payload or a DecodeError, and no array is made that the bytes do not pay for.

    Args:
        blob: the bytes.
        limits: what to refuse; the defaults of ``Limits`` when None.

    Returns:
        The payload that was encoded, its numbers all finite.

    Raises:
        DecodeError: Truncated, BadChecksum, LimitExceeded, UnsupportedVersion, UnknownCodec or Malformed.

    Example:
        >>> import gradwire as gw
        >>> gw.decode(gw.Server(gw.dense(), gw.Layout.flat(3)).close_round().blob).num_kept
        0
    """
    return read(blob, limits).payload


@dataclass(frozen=True, eq=False)
class Opened:
    """A blob and what it says: who hosts many ends in one process hands it on, so that it is not read again.

    Attributes:
        blob: the bytes.
        payload: what they say.
        header_bytes: of the blob: container.
        support_bytes: of the blob: which coordinates.
        values_bytes: of the blob: the numbers, and what it was filled up with.
    """

    blob: bytes
    payload: Payload
    header_bytes: int
    support_bytes: int
    values_bytes: int
    _sizes: tuple[_Sizes, ...]

    @classmethod
    def of(cls, blob: bytes, payload: Payload, sizes: Sequence[_Sizes], padding: int) -> Opened:
        """Add up what the parts take."""
        support_bytes = sum(s.support_bytes for s in sizes)
        values_bytes = sum(s.values_bytes for s in sizes) + padding
        header_bytes = len(blob) - support_bytes - values_bytes
        return cls(blob, payload, header_bytes, support_bytes, values_bytes, tuple(sizes))

    @property
    def support_name(self) -> str:
        """How coordinates are written, in all parts."""
        return _join(size.support_name for size in self._sizes)

    @property
    def values_name(self) -> str:
        """How numbers are written, in all parts."""
        return _join(size.values_name for size in self._sizes)


def write(payload: Payload) -> Opened:
    """Turn a payload into the bytes that travel, and see where they go: what ``read`` of them would give.

    Args:
        payload: from ``Compressor.compress``; kept as it is, not copied.

    Returns:
        The blob, as ``encode`` makes it, and the payload.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.wire import read, write
        >>> compressor = gw.topk(0.5)
        >>> payload, _ = compressor.compress(np.array([3.0, 1.0], np.float32), compressor.init(gw.Layout.flat(2)))
        >>> opened = write(payload)
        >>> opened.values_bytes == read(opened.blob).values_bytes
        True
    """
    several = len(payload.parts) > 1
    flags = (
        (DOWNLINK if payload.sum_weights is not None else 0)
        | (REFERENCE if payload.reference_digest is not None else 0)
        | (SEVERAL_PARTS if several else 0)
        | (PACKET if payload.packet is not None else 0)
        | (FIELD if payload.shipped_field is not None else 0)
    )
    out = bytearray(MAGIC)
    out += bytes([VERSION, flags])
    out += varint(payload.d) + varint(payload.round) + varint(payload.sequence)
    out += payload.layout_digest
    if payload.reference_digest is not None:
        out += payload.reference_digest
    if payload.sum_weights is not None:
        out += struct.pack("<d", payload.sum_weights)
    if payload.packet is not None:
        out += varint(payload.packet[0]) + varint(payload.packet[1])
    if several:
        out += varint(len(payload.parts))
    coded = covered = looked_at = 0
    sizes: list[_Sizes] = []
    for part in payload.parts:
        covered += part.length
        looked_at = covered if isinstance(part.support, (Dithered, Fielded)) else looked_at
        start = len(out)
        if several:
            out += varint(part.length)
        sections = _sections(part, payload.coder)
        for codec, data in sections:
            out.append(codec)
            out += data
        sizes.append(_sizes_of(sections, len(out) - start))
        coded += part.values.num_coded
    if payload.shipped_field is not None:
        out += encode_field(payload.shipped_field)
        coded += payload.shipped_field.levels.size
    needed = max(-(-coded // Limits.max_expansion), -(-looked_at // (Limits.max_expansion * LOOKED_AT)))
    missing = needed - len(out)
    if missing > 0:
        out[3] |= PADDED
        out += bytes(missing)
    out += struct.pack("<I", zlib.crc32(out))
    return Opened.of(bytes(out), payload, sizes, max(0, missing))


def read(blob: bytes | bytearray | memoryview, limits: Limits | None = None) -> Opened:
    """Read a blob, and see where its bytes go.

    Args:
        blob: the bytes.
        limits: as ``decode``.

    Returns:
        The blob and its payload.

    Raises:
        DecodeError: as ``decode``.

    Example:
        >>> import gradwire as gw
        >>> from gradwire.wire import read
        >>> opened = read(gw.Server(gw.dense(), gw.Layout.flat(3)).close_round().blob)
        >>> opened.payload.num_kept, opened.values_bytes
        (0, 0)
    """
    data, payload, sizes, padding = _read(blob, limits or Limits())
    return Opened.of(data, payload, sizes, padding)


def inspect(blob: bytes | bytearray | memoryview, limits: Limits | None = None) -> dict[str, Any]:
    """Tell what a blob holds and what each piece costs.

    Args:
        blob: the bytes.
        limits: what to refuse; the defaults of ``Limits`` when None.

    Returns:
        ``kind``, ``d``, ``num_kept``, ``num_parts``, ``round``, ``sequence``, ``codec`` (of support and of
        values), ``header_bytes``, ``support_bytes``, ``values_bytes``, ``total_bytes`` (their sum),
        ``bits_per_parameter`` and ``bits_per_index`` (None where there is nothing to divide by), ``layout_digest``
        and ``sum_weights``.

    Raises:
        DecodeError: as ``decode``.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> client = gw.Client(gw.topk(0.01), gw.Layout.flat(1000))
        >>> gw.inspect(client.compress(np.arange(1000, dtype=np.float32)))["num_kept"]
        10
    """
    opened = read(blob, limits)
    payload, num_bytes, kept = opened.payload, len(opened.blob), opened.payload.num_kept
    return {
        "kind": "uplink" if payload.sum_weights is None else "downlink",
        "d": payload.d,
        "num_kept": kept,
        "num_parts": len(payload.parts),
        "round": payload.round,
        "sequence": payload.sequence,
        "codec": {
            "support": opened.support_name,
            "values": opened.values_name,
        },
        "header_bytes": opened.header_bytes,
        "support_bytes": opened.support_bytes,
        "values_bytes": opened.values_bytes,
        "total_bytes": num_bytes,
        "bits_per_parameter": 8 * num_bytes / payload.d if payload.d else None,
        "bits_per_index": 8 * opened.support_bytes / kept if kept else None,
        "layout_digest": payload.layout_digest.hex(),
        "sum_weights": payload.sum_weights,
    }


def _join(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(name for name in names if name != "none")) or "none"


def _read(blob: bytes | bytearray | memoryview, limits: Limits) -> tuple[bytes, Payload, list[_Sizes], int]:
    if not isinstance(blob, (bytes, bytearray, memoryview)):
        raise ConfigError(f"a blob is bytes, got {type(blob).__name__}")
    num_bytes = memoryview(blob).nbytes
    if num_bytes > limits.max_bytes:
        raise LimitExceeded(f"blob must be at most {limits.max_bytes} bytes, got {num_bytes}")
    data = bytes(blob)  # a buffer that may change later is copied, bytes are not
    view = memoryview(data)
    if len(view) >= 2 and bytes(view[:2]) != MAGIC:
        raise Malformed(f"not a gradwire payload: it must start with {MAGIC!r}, got {bytes(view[:2])!r}")
    if len(view) < 8:
        raise Truncated(f"blob must be at least 8 bytes, got {len(view)}")
    if view[2] != VERSION:
        raise UnsupportedVersion(f"format version must be {VERSION}, got {view[2]}")
    expected, got = struct.unpack("<I", view[-4:])[0], zlib.crc32(view[:-4])
    if expected != got:
        raise BadChecksum(
            f"CRC-32 of the {len(view) - 4} bytes must be {expected:08x}, got {got:08x}: damaged or cut short"
        )
    reader = Reader(view[:-4])
    try:
        payload, sizes, flags = _read_container(reader, limits)
    except DecodeError:
        raise
    except (ValueError, OverflowError, IndexError) as error:
        raise Malformed(f"payload: {error}") from error
    rest = reader.rest()
    if flags & PADDED:
        if not rest.size or rest.any():
            raise Malformed(f"padding must be one byte or more, all 0, got {rest.size}")
    elif rest.size:
        raise Malformed(f"{rest.size} bytes left over after the last part")
    return data, payload, sizes, rest.size


def _read_container(reader: Reader, limits: Limits) -> tuple[Payload, list[_Sizes], int]:
    reader.take(3, "magic and version")
    flags = reader.byte("flags")
    if flags & ~(DOWNLINK | REFERENCE | SEVERAL_PARTS | PACKET | PADDED | FIELD):
        raise Malformed(f"unknown flags {flags:#04x}")
    d = reader.varint("d")
    if d > limits.max_parameters:
        raise LimitExceeded(f"d must be at most {limits.max_parameters}, got {d}")
    round_index = reader.varint("round")
    sequence = reader.varint("sequence")
    layout_digest = bytes(reader.take(4, "layout hash"))
    reference_digest = bytes(reader.take(8, "reference hash")) if flags & REFERENCE else None
    sum_weights: float | None = None
    if flags & DOWNLINK:
        weights: float = struct.unpack("<d", reader.take(8, "sum of weights"))[0]
        if not (math.isfinite(weights) and weights >= 0):
            raise Malformed(f"sum of weights must be finite and 0 or more, got {weights}")
        sum_weights = weights
    packet: tuple[int, int] | None = None
    if flags & PACKET:
        number, count = reader.varint("packet number"), reader.varint("number of packets")
        if number >= count:
            raise Malformed(f"packet number must be below {count}, got {number}")
        packet = (number, count)
    num_parts = reader.varint("number of parts") if flags & SEVERAL_PARTS else 1
    if num_parts > limits.max_parts:
        raise LimitExceeded(f"parts must be at most {limits.max_parts}, got {num_parts}")
    if flags & FIELD and not flags & DOWNLINK:
        raise Malformed("a field needs a sum of weights: only a server ships it")
    if flags & SEVERAL_PARTS and num_parts < 2:
        raise Malformed(f"several parts announced, got {num_parts}")
    parts: list[Part] = []
    sizes: list[_Sizes] = []
    covered = coded = skipped = 0
    for _ in range(num_parts):
        start = reader.position
        length = reader.varint("part length", below=d - covered + 1) if flags & SEVERAL_PARTS else d
        covered += length
        part, size = _read_part(reader, start, length, covered, round_index, limits)
        if size.support_name == index.NAMES[index.CONTEXT]:
            skipped += length
            contexts.check_length(skipped, reader, limits)
        coded += part.values.num_coded
        if coded > limits.max_expansion * reader.size:
            raise LimitExceeded(f"{coded} entries out of {reader.size} bytes: at most {limits.max_expansion} a byte")
        parts.append(part)
        sizes.append(size)
    shipped = decode_field(reader, d, coded, limits) if flags & FIELD else None
    if covered != d:
        raise Malformed(f"parts must cover {d} coordinates, got {covered}")
    if reference_digest is None and any(isinstance(part.support, Known) for part in parts):
        raise Malformed("a known support needs a reference hash")
    named = (layout_digest, reference_digest, sum_weights, packet)
    coder = "context" if any(size.support_name == index.NAMES[index.CONTEXT] for size in sizes) else "auto"
    payload = Payload(d, tuple(parts), round_index, sequence, *named, coder, shipped)
    return payload, sizes, flags


def _read_part(
    reader: Reader, start: int, length: int, covered: int, round_index: int, limits: Limits
) -> tuple[Part, _Sizes]:
    codec = reader.byte("support codec")
    if codec in (index.DITHERED, index.FIELDED) and covered > LOOKED_AT * limits.max_expansion * reader.size:
        raise LimitExceeded(
            f"{covered} thresholds out of {reader.size} bytes: at most {LOOKED_AT * limits.max_expansion} a byte"
        )
    if codec == index.CONTEXT:
        part, middle, codec = contexts.decode_part(length, reader, limits)
        names = index.NAMES[index.CONTEXT], values.name_of(codec)
        return part, _Sizes(*names, middle - start, reader.position - middle)
    support = index.decode_support(codec, length, round_index, reader, limits)
    middle = reader.position
    support_name = index.NAMES[codec]
    if support.num_kept == 0:
        return Part(support, Floats(np.empty(0, np.float32))), _Sizes(support_name, "none", middle - start, 0)
    codec = reader.byte("value codec")
    numbers = values.decode_values(codec, support, reader, limits)
    return Part(support, numbers), _Sizes(support_name, values.name_of(codec), middle - start, reader.position - middle)
