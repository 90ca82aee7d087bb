"""safetensors files a tensor at a time: reading without loading the file, writing without holding it.

The safetensors package itself gives NumPy no bfloat16 and writes only whole models; the format is a length, a JSON
header and the tensors' bytes, so this reads and writes just that.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import ConfigError
from gradwire.files.store import AtomicFile
from gradwire.kernels import ops

__all__ = ["DTYPES", "SafetensorsReader", "SafetensorsWriter", "TensorInfo", "open_output"]

# safetensors name -> bytes of an element
DTYPES = {
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F64": 8,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        name: its key.
        dtype: a key of ``DTYPES``.
        shape: its dimensions.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return self.num_elements * DTYPES[self.dtype]


class SafetensorsReader:
    """A file mapped into memory; use as a context manager.

    Args:
        path: the file.

    Attributes:
        tensors: what it holds, in the order of their bytes.

    Raises:
        ConfigError: when the file is missing or is no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        try:
            self._offsets = self._read_header()
        except BaseException:
            self._file.close()
            raise
        self.tensors = tuple(self._offsets)

    def _read_header(self) -> dict[TensorInfo, int]:
        size = os.fstat(self._file.fileno()).st_size
        head = self._file.read(8)
        header_bytes = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= header_bytes <= min(size - 8, _MAX_HEADER_BYTES):
            raise ConfigError(f"{self.path}: not a safetensors file: header of {header_bytes} bytes in {size}")
        try:
            header: dict[str, Any] = json.loads(self._file.read(header_bytes))
            found: dict[TensorInfo, int] = {}
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                name.encode()
                info = TensorInfo(name, entry["dtype"], _whole_numbers(entry["shape"]))
                start, stop = _whole_numbers(entry["data_offsets"])
                if info.dtype not in DTYPES:
                    raise ConfigError(
                        f"{self.path}: tensor {name!r} has dtype {info.dtype}, known: {', '.join(DTYPES)}"
                    )
                if stop - start != info.num_bytes:
                    raise ConfigError(f"{self.path}: tensor {name!r}: shape and bytes do not agree")
                if 8 + header_bytes + stop > size:
                    raise ConfigError(f"{self.path}: cut short: tensor {name!r} ends past the {size} bytes there are")
                found[info] = 8 + header_bytes + start
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{self.path}: not a safetensors file: {type(error).__name__} in its header") from None
        ordered = dict(sorted(found.items(), key=lambda item: (item[1], item[0].num_bytes)))
        end = 0
        for info, offset in ordered.items():
            if offset < end:
                raise ConfigError(f"{self.path}: tensor {info.name!r} overlaps the one before it")
            end = offset + info.num_bytes
        return ordered

    def raw(self, info: TensorInfo) -> NDArray[np.uint8]:
        """Read a tensor's bytes: (num_bytes,) uint8, a copy."""
        out = np.empty(info.num_bytes, np.uint8)
        self._file.seek(self._offsets[info])
        if self._file.readinto(out.data) != out.size:
            raise ConfigError(f"{self.path}: cut short while tensor {info.name!r} was read")
        return out

    def pieces(self, info: TensorInfo, num_elements: int) -> Iterable[NDArray[np.float32]]:
        """Read a float tensor as float32 vectors of at most ``num_elements``."""
        width = DTYPES[info.dtype]
        for start in range(0, info.num_elements, num_elements):
            count = min(num_elements, info.num_elements - start)
            data = np.empty(count * width, np.uint8)
            self._file.seek(self._offsets[info] + start * width)
            if self._file.readinto(data.data) != data.size:
                raise ConfigError(f"{self.path}: cut short while tensor {info.name!r} was read")
            yield to_float32(data, info.dtype)

    def __enter__(self) -> SafetensorsReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class SafetensorsWriter:
    """A file written tensor by tensor, in place of the old one only once it is whole; use as a context manager.

    Args:
        path: the file.
        tensors: what will be written, in this order.

    Raises:
        ConfigError: when it cannot be written.
    """

    def __init__(self, path: Path, tensors: Iterable[TensorInfo]) -> None:
        self.path = path
        header: dict[str, Any] = {}
        offset = 0
        for info in tensors:
            header[info.name] = {
                "dtype": info.dtype,
                "shape": list(info.shape),
                "data_offsets": [offset, offset + info.num_bytes],
            }
            offset += info.num_bytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._expected = 8 + len(text) + offset
        self._output = open_output(path)
        self._output.write(struct.pack("<Q", len(text)) + text)

    def write(self, data: NDArray[np.uint8]) -> None:
        """Write the next tensor's bytes, or a piece of them."""
        self._output.write(data.data)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._output.num_bytes == self._expected:
            self._output.commit()
        else:
            self._output.discard()


def _whole_numbers(values: Any) -> tuple[int, ...]:
    """A JSON list of integers of 0 or more, below 2^48."""
    if not isinstance(values, list) or any(type(n) is not int or not 0 <= n < 2**48 for n in values):
        raise ValueError("not a list of sizes")
    return tuple(values)


def open_output(path: Path) -> AtomicFile:
    """Start a file that appears only when it is whole.

    Raises:
        ConfigError: when it cannot be written there.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: cannot be written: it is a folder")
    try:
        return AtomicFile(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def to_float32(data: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Read little-endian F32, F16 or BF16 bytes as float32."""
    if dtype == "F32":
        return data.view("<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        return data.view("<f2").astype(np.float32)
    return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[np.uint8]:
    """Write float32 as little-endian F32, F16 or BF16 bytes, rounding to nearest even."""
    if dtype == "F32":
        return values.astype("<f4", copy=False).view(np.uint8)
    if dtype == "F16":
        return np.clip(values, -65504, 65504).astype("<f2").view(np.uint8)
    return ops.bfloat16_bits(values).astype("<u2", copy=False).view(np.uint8)
