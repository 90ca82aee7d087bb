"""safetensors files a tensor at a time: reading without loading the file, writing without holding it.

The safetensors package itself gives NumPy no bfloat16 and writes only whole models; the format is a length, a JSON
header and the tensors' bytes, so this reads and writes just that. It reads what the package reads, and dtypes that
are newer than it; a name that stands twice is refused here whatever it says.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import ConfigError
from gradwire.files.atomic import AtomicFile
from gradwire.files.dtypes import TensorInfo, can_take
from gradwire.files.foreign import describe
from gradwire.files.paths import naming_file, open_input

__all__ = ["SafetensorsReader", "SafetensorsWriter", "open_output", "read_json"]

_METADATA = "__metadata__"
_MAX_HEADER_BYTES = 100_000_000


class SafetensorsReader:
    """A file read tensor by tensor; use as a context manager.

    Args:
        path: the file.

    Attributes:
        path: the file.
        paths: all files that are read: this one.
        tensors: what it holds, in the order of their bytes.
        metadata: its ``__metadata__``, text by name.

    Raises:
        ConfigError: when the file is missing or is no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.paths = path, [path]
        with ExitStack() as stack:
            self._file = stack.enter_context(open_input(path))
            with naming_file(path):
                self._offsets, self.metadata = self._read_header()
            stack.pop_all()
        self.tensors = tuple(self._offsets)

    def _read_header(self) -> tuple[dict[TensorInfo, int], dict[str, str]]:
        size = os.fstat(self._file.fileno()).st_size
        head = self._file.read(32)
        header_bytes = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
        if not 2 <= header_bytes <= min(size - 8, _MAX_HEADER_BYTES):
            said = describe(self.path, head) or f"a header of {header_bytes} bytes in {size}"
            raise ConfigError(f"{self.path}: not a safetensors file: {said}")
        self._file.seek(8)
        try:
            header = read_json(self._file.read(header_bytes))
            metadata = _metadata(header.pop(_METADATA, None))
            found = {_tensor(name, entry): entry["data_offsets"][0] for name, entry in header.items()}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            said = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__} in its header"
            raise ConfigError(f"{self.path}: not a safetensors file: {said}") from None
        ordered = dict(sorted(found.items(), key=lambda item: (item[1], item[0].num_bytes)))
        end = 0
        for info, start in ordered.items():
            if start != end:
                what = "overlaps the one before it" if start < end else f"has a hole of {start - end} bytes before it"
                raise ConfigError(f"{self.path}: not a safetensors file: tensor {info.name!r} {what}")
            end += info.num_bytes
        data_bytes = size - 8 - header_bytes
        if end != data_bytes:
            what = "cut short" if end > data_bytes else "bytes left over after the last tensor"
            raise ConfigError(f"{self.path}: {what}: its tensors take {end} bytes, and {data_bytes} are there")
        return {info: 8 + header_bytes + start for info, start in ordered.items()}, metadata

    def raw(self, info: TensorInfo) -> NDArray[np.uint8]:
        """Read a tensor's bytes: (num_bytes,) uint8, a copy."""
        try:
            out = np.empty(info.num_bytes, np.uint8)
        except MemoryError:
            raise MemoryError(f"{self.path}: tensor {info.name!r} is too large for this machine's memory") from None
        with naming_file(self.path):
            self._file.seek(self._offsets[info])
            if self._file.readinto(out.data) != out.size:
                raise ConfigError(f"{self.path}: cut short while tensor {info.name!r} was read")
        return out

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> SafetensorsReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SafetensorsWriter:
    """A file written tensor by tensor, in place of the old one once ``commit`` is called; use as a context manager.

    Args:
        path: the file.
        tensors: what will be written, in this order.
        metadata: its ``__metadata__``, text by name.

    Raises:
        ConfigError: when it cannot be written.
    """

    def __init__(self, path: Path, tensors: Iterable[TensorInfo], metadata: Mapping[str, str]) -> None:
        header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
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
        if len(text) > _MAX_HEADER_BYTES:
            raise ConfigError(f"{path}: a safetensors header has at most {_MAX_HEADER_BYTES} bytes, got {len(text)}")
        with ExitStack() as stack:
            self._output = stack.enter_context(open_output(path))
            self._output.write(struct.pack("<Q", len(text)) + text)
            stack.pop_all()

    def write(self, data: NDArray[np.uint8]) -> None:
        """Write the next tensor's bytes, or a piece of them."""
        self._output.write(data.data)

    def finish(self) -> None:
        """Bring what was written to the disk; see ``AtomicFile.finish``."""
        self._output.finish()

    def commit(self) -> None:
        """Put the file in its place, after the last tensor was written."""
        self._output.commit()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._output.__exit__(kind, error, trace)


def open_output(path: Path) -> AtomicFile:
    """Start a file that appears only when it is whole.

    Raises:
        ConfigError: when it cannot be written there.
    """
    try:
        return AtomicFile(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def read_json(text: bytes) -> dict[str, Any]:
    """Read a JSON object in UTF-8 in which no name stands twice and no integer is written as -0.

    Raises:
        ConfigError: on a name that stands twice.
        ValueError: on anything else that is no such object.
    """
    found = json.loads(text.decode(), object_pairs_hook=_once, parse_int=_integer)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ConfigError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in its header")
    return found


def _integer(text: str) -> int:
    if text.startswith("-"):
        raise ValueError("no size is negative")
    return int(text)


def _metadata(found: Any) -> dict[str, str]:
    found = {} if found is None else found
    if not isinstance(found, dict) or any(not isinstance(text, str) for text in found.values()):
        raise ConfigError(f"{_METADATA} must be text by name")
    for text in (*found, *found.values()):
        text.encode()
    return found


def _tensor(name: str, entry: dict[str, Any]) -> TensorInfo:
    name.encode()
    dtype, shape = entry["dtype"], _whole_numbers(entry["shape"])
    start, stop = _whole_numbers(entry["data_offsets"])
    if not isinstance(dtype, str) or stop < start:
        raise ValueError("no dtype, or an end before its start")
    info = TensorInfo(name, dtype, shape, stop - start)
    if not can_take(info):
        raise ConfigError(f"tensor {name!r}: {dtype} of shape {shape} does not take {info.num_bytes} bytes")
    return info


def _whole_numbers(values: Any) -> tuple[int, ...]:
    """A JSON list of integers of 0 or more, below 2^48."""
    if not isinstance(values, list) or any(type(n) is not int or not 0 <= n < 2**48 for n in values):
        raise ValueError("not a list of sizes")
    return tuple(values)
