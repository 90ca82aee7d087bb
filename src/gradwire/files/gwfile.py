"""The bytes of a .gw file: a header, then one tensor's data after the other. docs/format.md, section 10, is the law."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from gradwire.errors import BadChecksum, DecodeError, LimitExceeded, Malformed, Truncated, UnsupportedVersion
from gradwire.files.dtypes import DTYPES, FLOATS, TensorInfo, can_take
from gradwire.files.foreign import describe
from gradwire.files.paths import naming_file, open_input
from gradwire.payload import Payload
from gradwire.wire import Limits, decode
from gradwire.wire.reader import Reader, varint

__all__ = ["MAGIC", "GwReader", "Header", "naming_damage", "pack_raw"]

MAGIC = b"GWFILE"
VERSION = 1
_OTHER = 255  # the dtype code of all that has none: the name and the bytes follow
_CODES = {name: code for code, name in enumerate(DTYPES)}
_NAMES = list(DTYPES)
_MAX_HEADER_BYTES = 2**28


@dataclass(frozen=True)
class Header:
    """What comes before the tensors' data.

    Attributes:
        spec: the text of the compressor it was made with.
        metadata: the ``__metadata__`` of the safetensors file it was made from.
        tensors: what it holds, in order.
    """

    spec: str
    metadata: dict[str, str]
    tensors: tuple[TensorInfo, ...]

    def write(self) -> bytes:
        """Return the header's bytes."""
        body = [_text(self.spec), varint(len(self.metadata))]
        body += [_text(name) + _text(value) for name, value in self.metadata.items()]
        body.append(varint(len(self.tensors)))
        for info in self.tensors:
            code = _CODES.get(info.dtype, _OTHER)
            other = _text(info.dtype) + varint(info.num_bytes) if code == _OTHER else b""
            shape = b"".join(varint(n) for n in (len(info.shape), *info.shape))
            body.append(_text(info.name) + bytes([code]) + other + shape)
        joined = b"".join(body)
        head = MAGIC + bytes([VERSION]) + varint(len(joined)) + joined
        return head + struct.pack("<I", zlib.crc32(head))


class GwReader:
    """A .gw file read tensor by tensor; use as a context manager.

    Args:
        path: the file.

    Attributes:
        path: the file.
        spec: the text of the compressor it was made with.
        metadata: what ``__metadata__`` it was made from, text by name.
        tensors: what it holds, in order.
        num_bytes: bytes of the file.

    Raises:
        ConfigError: when it cannot be opened.
        DecodeError: when it is no .gw file or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with ExitStack() as stack:
            self._file = stack.enter_context(open_input(path))
            with naming_damage(path):
                self.num_bytes = os.fstat(self._file.fileno()).st_size
                header = self._read_header()
                self.spec, self.metadata, self.tensors = header.spec, header.metadata, header.tensors
                self._places = {info: self._pass_over(info) for info in self.tensors}
                if self._file.tell() != self.num_bytes:
                    raise Malformed("bytes left over after the last tensor")
            stack.pop_all()

    def _read_header(self) -> Header:
        head = self._file.read(32)
        start = head[: len(MAGIC) + 1]
        if not start.startswith(MAGIC):
            is_safetensors = head[8:9] == b"{" and head[4:8] == bytes(4)
            found = "a safetensors file: 'gradwire compress' makes a .gw file of it" if is_safetensors else None
            found = found or describe(self.path, head) or f"it must start with {MAGIC!r}, got {start!r}"
            raise Malformed(f"not a .gw file: {found}")
        if len(start) == len(MAGIC):
            raise Truncated("file version: expected 1 byte, got 0")
        if start[-1] != VERSION:
            raise UnsupportedVersion(f"file version must be {VERSION}, got {start[-1]}")
        self._file.seek(len(start))
        size = self._varint("header size")
        if size > _MAX_HEADER_BYTES:
            raise Malformed(f"header must be at most {_MAX_HEADER_BYTES} bytes, got {size}")
        body = self._take(size, "header")
        checksum = struct.unpack("<I", self._take(4, "header checksum"))[0]
        if checksum != zlib.crc32(start + varint(size) + body):
            raise BadChecksum("the header's CRC-32 does not match")
        reader = Reader(memoryview(body))
        spec = _read_text(reader, "spec")
        pairs = [
            (_read_text(reader, "metadata name"), _read_text(reader, "metadata"))
            for _ in range(reader.varint("number of metadata", below=size + 1))
        ]
        tensors = tuple(_read_tensor(reader) for _ in range(reader.varint("number of tensors", below=size + 1)))
        metadata = dict(pairs)
        twice = len(metadata) != len(pairs) or len({info.name for info in tensors}) != len(tensors)
        if reader.remaining or twice:
            raise Malformed("header has bytes left over or a name twice")
        return Header(spec, metadata, tensors)

    def _pass_over(self, info: TensorInfo) -> tuple[int, int]:
        """Where a tensor's data starts and how many bytes it takes."""
        size = self._varint(f"size of tensor {info.name!r}")
        if info.dtype not in FLOATS and size != info.num_bytes + 4:
            raise Malformed(f"tensor {info.name!r} must take {info.num_bytes + 4} bytes, got {size}")
        start = self._file.tell()
        self._need(size, f"tensor {info.name!r}")
        self._file.seek(start + size)
        return start, size

    def blob(self, info: TensorInfo) -> bytes:
        """Read a tensor's bytes: a container for floats, the raw data for other dtypes."""
        with naming_damage(self.path):
            start, size = self._places[info]
            self._file.seek(start)
            blob = self._take(size, f"tensor {info.name!r}")
            if info.dtype in FLOATS:
                return blob
            if struct.unpack("<I", blob[-4:])[0] != zlib.crc32(memoryview(blob)[:-4]):
                raise BadChecksum(f"tensor {info.name!r}: raw data damaged")
            return blob[:-4]

    def blobs(self) -> Iterator[tuple[TensorInfo, bytes]]:
        """Read each tensor's bytes in order; see ``blob``."""
        for info in self.tensors:
            yield info, self.blob(info)

    def payload_of(self, info: TensorInfo, blob: bytes) -> Payload:
        """Decode a float tensor's container, checked against the file's header."""
        with naming_damage(self.path):
            payload = decode(blob, Limits())
            if payload.d != info.num_elements:
                raise Malformed(f"tensor {info.name!r} has {info.num_elements} elements, its container {payload.d}")
            if payload.reference_digest is not None:
                raise Malformed(f"tensor {info.name!r} leans on a reference, which a file has none of")
            return payload

    def _varint(self, what: str) -> int:
        data = b""
        while not data or data[-1] >= 0x80:
            data += self._take(1, what)
            if len(data) > 10:
                raise Malformed(f"{what}: integer of more than 10 bytes")
        return Reader(memoryview(data)).varint(what)

    def _take(self, size: int, what: str) -> bytes:
        self._need(size, what)
        data = self._file.read(size)
        if len(data) != size:
            raise Truncated(f"{what}: expected {size} bytes, got {len(data)}")
        return data

    def _need(self, size: int, what: str) -> None:
        left = self.num_bytes - self._file.tell()
        if size > left:
            raise Truncated(f"{what}: expected {size} bytes, got {left}")

    def __enter__(self) -> GwReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def pack_raw(raw: bytes) -> bytes:
    """Write the data of a tensor that travels as it is: its bytes and their CRC-32."""
    return raw + struct.pack("<I", zlib.crc32(raw))


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Put a .gw file's name in front of what is said of its bytes."""
    try:
        with naming_file(path):
            yield
    except MemoryError:
        raise LimitExceeded(f"{path}: a tensor of it is too large for this machine's memory") from None
    except DecodeError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise type(error)(f"{path}: {error}") from None


def _text(text: str) -> bytes:
    data = text.encode()
    return varint(len(data)) + data


def _read_text(reader: Reader, what: str) -> str:
    try:
        return bytes(reader.take(reader.varint(f"length of {what}"), what)).decode()
    except UnicodeDecodeError:
        raise Malformed(f"{what} must be UTF-8") from None


def _read_tensor(reader: Reader) -> TensorInfo:
    name = _read_text(reader, "name")
    code = reader.byte("dtype")
    if code >= len(_NAMES) and code != _OTHER:
        raise Malformed(f"dtype code must be below {len(_NAMES)} or {_OTHER}, got {code}")
    dtype = _read_text(reader, "dtype's name") if code == _OTHER else _NAMES[code]
    num_bytes = reader.varint("bytes of a tensor", below=2**63) if code == _OTHER else 0
    shape = tuple(reader.varint("dimension", below=2**48) for _ in range(reader.varint("dimensions", below=65)))
    info = TensorInfo(name, dtype, shape, num_bytes)
    if name == "__metadata__":
        raise Malformed("no tensor can be named '__metadata__'")
    if info.num_elements >= 2**48:
        raise Malformed(f"tensor {name!r} must have fewer than 2^48 elements")
    if code != _OTHER:
        return info.as_dtype(dtype)
    if dtype in DTYPES or not can_take(info):
        raise Malformed(f"tensor {name!r}: dtype {dtype!r} has a code, or does not take {num_bytes} bytes")
    return info
