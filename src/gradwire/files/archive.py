"""Files: a model update in safetensors <-> a .gw file, one tensor at a time.

docs/format.md, "Files", is the law for every byte written here. Memory is bounded by the largest tensor, never by
the file.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from gradwire.aggregation.aggregator import Aggregator
from gradwire.compressors.compressor import Compressor, Round, Vector, accumulate, decompress
from gradwire.compressors.feedback import ef
from gradwire.compressors.pipeline import Pipeline, Sparsifier, Stage
from gradwire.compressors.sparsify import topk
from gradwire.errors import BadChecksum, ConfigError, DecodeError, LimitExceeded, Malformed, Truncated, UpdateError
from gradwire.files.safetensors_io import (
    DTYPES,
    SafetensorsReader,
    SafetensorsWriter,
    TensorInfo,
    from_float32,
    open_output,
    to_float32,
)
from gradwire.files.selection import Candidates, find_border
from gradwire.layout import Layout, check_finite
from gradwire.rng import Key
from gradwire.wire import Limits, decode, encode, inspect
from gradwire.wire.reader import Reader, varint

__all__ = ["GwReader", "aggregate_files", "compress_file", "decompress_file", "inspect_file"]

MAGIC = b"GWFILE"
VERSION = 1
_FLOATS = ("F32", "F16", "BF16")
_DTYPE_CODES = {name: code for code, name in enumerate(DTYPES)}
_MAX_HEADER_BYTES = 2**28

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class _Header:
    """What comes before the containers of a .gw file."""

    spec: str
    tensors: tuple[TensorInfo, ...]

    def write(self) -> bytes:
        body = _text(self.spec) + varint(len(self.tensors))
        for info in self.tensors:
            body += _text(info.name) + bytes([_DTYPE_CODES[info.dtype]]) + varint(len(info.shape))
            body += b"".join(varint(n) for n in info.shape)
        head = MAGIC + bytes([VERSION]) + varint(len(body)) + body
        return head + struct.pack("<I", zlib.crc32(head))


class GwReader:
    """A .gw file read tensor by tensor; use as a context manager.

    Args:
        path: the file.

    Attributes:
        spec: the text of the compressor it was made with.
        tensors: what it holds, in order.

    Raises:
        ConfigError: when it cannot be opened.
        DecodeError: when it is no .gw file or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        try:
            with _naming(path):
                header = _read_header(self._file)
        except BaseException:
            self._file.close()
            raise
        self.spec, self.tensors = header.spec, header.tensors

    def blobs(self) -> Iterator[tuple[TensorInfo, bytes]]:
        """Read each tensor's bytes in order: a container for floats, the raw data for other dtypes."""
        with _naming(self.path):
            for info in self.tensors:
                size = _read_varint(self._file, f"size of tensor {info.name!r}")
                if info.dtype not in _FLOATS and size != info.num_bytes + 4:
                    raise Malformed(f"tensor {info.name!r} must take {info.num_bytes + 4} bytes, got {size}")
                blob = _take(self._file, size, f"tensor {info.name!r}")
                if info.dtype not in _FLOATS:
                    if struct.unpack("<I", blob[-4:])[0] != zlib.crc32(blob[:-4]):
                        raise BadChecksum(f"tensor {info.name!r}: raw data damaged")
                    blob = blob[:-4]
                yield info, blob
            if self._file.read(1):
                raise Malformed("bytes left over after the last tensor")

    def payload_of(self, info: TensorInfo, blob: bytes) -> Any:
        """Decode a float tensor's container, checked against the file's header."""
        with _naming(self.path):
            payload = decode(blob, Limits())
            if payload.d != info.num_elements:
                raise Malformed(f"tensor {info.name!r} has {info.num_elements} elements, its container {payload.d}")
            if payload.reference_digest is not None:
                raise Malformed(f"tensor {info.name!r} leans on a reference, which a file has none of")
            return payload

    def __enter__(self) -> GwReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def compress_file(
    source: Path, target: Path, compressor: Compressor, residual: Path | None = None, progress: Progress | None = None
) -> int:
    """Compress a safetensors update into a .gw file.

    Float tensors (float32, float16, bfloat16) are compressed, others travel as they are. A model-wide ``topk``
    selects over all float tensors of the file, exactly: the update and the residual are then read twice, and what may
    be among the selected is laid aside in a temporary file beside the target. Otherwise they are read once.

    Args:
        source: the update.
        target: the .gw file; appears only when it is whole.
        compressor: for instance ``gw.topk(0.001) | gw.uniform(8)``; ``ef(...)`` needs a residual file.
        residual: safetensors file of the residual: added to the update where it exists, and replaced by what was not
            sent once the .gw file is in its place.
        progress: called with a tensor's name and how many source bytes were worked through.

    Returns:
        Bytes of the .gw file.

    Raises:
        ConfigError: on files or a spec that cannot be used.
        UpdateError: on NaN or Inf, naming the tensor.
    """
    stage, feedback = _stage(compressor, residual)
    density = _model_wide_density(stage)
    with ExitStack() as files:
        update = files.enter_context(SafetensorsReader(source))
        floats = [info for info in update.tensors if info.dtype in _FLOATS]
        before = files.enter_context(SafetensorsReader(residual)) if residual and residual.exists() else None
        if before is not None:
            _check_residual(before, floats)

        def corrected(info: TensorInfo) -> Vector:
            vector = to_float32(update.raw(info), info.dtype)
            if before is not None:
                vector += to_float32(before.raw(replace(info, dtype="F32")), "F32")
            try:
                check_finite(vector, f"tensor {info.name!r}")
            except UpdateError as error:
                raise UpdateError(f"{source}: {error}") from None
            return vector

        writer = (
            files.enter_context(SafetensorsWriter(residual, [replace(info, dtype="F32") for info in floats]))
            if residual and feedback
            else None
        )
        output = open_output(target)
        try:
            candidates = None
            if density is not None:
                border = find_border(density, [info.num_elements for info in floats], lambda i: corrected(floats[i]))
                candidates = files.enter_context(Candidates(border, target.parent, whole=writer is not None))
                for info in floats:
                    candidates.put(corrected(info))
            output.write(_Header(str(compressor), update.tensors).write())
            for number, info in enumerate(update.tensors):
                if info.dtype not in _FLOATS:
                    raw = update.raw(info).tobytes()
                    blob = raw + struct.pack("<I", zlib.crc32(raw))
                else:
                    if candidates is None:
                        vector, pipeline = corrected(info), stage
                    else:
                        vector, chosen = candidates.take(info.num_elements)
                        pipeline = Pipeline((chosen, *stage.stages[1:]))
                    blob = _compress_tensor(pipeline, vector, number)
                    if writer is not None:
                        accumulate(vector, decode(blob), -1.0)
                        writer.write(vector.view(np.uint8))
                output.write(varint(len(blob)) + blob)
                if progress is not None:
                    progress(info.name, info.num_bytes)
        except BaseException:
            output.discard()
            raise
        output.commit()
        return output.num_bytes


def decompress_file(source: Path, target: Path, progress: Progress | None = None) -> None:
    """Turn a .gw file back into safetensors: every name, shape and dtype as it was.

    Args:
        source: the .gw file.
        target: the safetensors file; appears only when it is whole.
        progress: called with a tensor's name and its bytes.

    Raises:
        ConfigError: on files that cannot be opened or written.
        DecodeError: on a damaged .gw file; no file is left then.
    """
    with GwReader(source) as reader, SafetensorsWriter(target, reader.tensors) as writer:
        for info, blob in reader.blobs():
            if info.dtype in _FLOATS:
                with _naming(source):
                    vector = decompress(reader.payload_of(info, blob))
                writer.write(from_float32(vector, info.dtype))
            else:
                writer.write(np.frombuffer(blob, np.uint8))
            if progress is not None:
                progress(info.name, info.num_bytes)


def aggregate_files(
    sources: list[Path], target: Path, weights: list[float] | None = None, progress: Progress | None = None
) -> None:
    """Average .gw files of the same tensors into one safetensors update.

    Args:
        sources: one .gw file a client.
        target: the safetensors file, float tensors as float32; other tensors are taken from the first file.
        weights: one a file, or None for equal ones.
        progress: called with a tensor's name and its bytes.

    Raises:
        ConfigError: on files that hold different tensors, or weights that do not fit.
        DecodeError: on a damaged file; no file is left then.
    """
    weights = [1.0] * len(sources) if weights is None else weights
    if len(weights) != len(sources):
        raise ConfigError(f"weights must be one a file: {len(sources)} files, got {len(weights)} weights")
    with ExitStack() as files:
        readers = [files.enter_context(GwReader(path)) for path in sources]
        if not readers:
            raise ConfigError("aggregate needs a file or more, got none")
        for reader in readers[1:]:
            if reader.tensors != readers[0].tensors:
                raise ConfigError(f"{reader.path}: holds other tensors than {readers[0].path}")
        wide = [replace(i, dtype="F32") if i.dtype in _FLOATS else i for i in readers[0].tensors]
        writer = files.enter_context(SafetensorsWriter(target, wide))
        for rows in zip(*(reader.blobs() for reader in readers), strict=True):
            info = rows[0][0]
            if info.dtype not in _FLOATS:
                writer.write(np.frombuffer(rows[0][1], np.uint8))
            else:
                payloads = [reader.payload_of(info, blob) for reader, (_, blob) in zip(readers, rows, strict=True)]
                with _naming(target):
                    aggregator = Aggregator(Layout.flat(info.num_elements))
                for payload, weight in zip(payloads, weights, strict=True):
                    aggregator.add(payload, weight)
                writer.write(aggregator.mean().view(np.uint8))
            if progress is not None:
                progress(info.name, info.num_bytes)


def inspect_file(path: Path) -> dict[str, Any]:
    """Tell what a .gw file holds: totals in the terms of ``gw.inspect``, and each tensor.

    Args:
        path: the .gw file.

    Returns:
        ``kind`` "file", ``spec``, ``d``, ``num_kept``, the byte counts (containers, sizes and the file's own header
        count as header; other dtypes as values), ``bits_per_parameter``, ``bits_per_index`` and ``tensors``, one
        dict each.

    Raises:
        ConfigError: when it cannot be opened.
        DecodeError: when it is damaged.
    """
    tensors: list[dict[str, Any]] = []
    with GwReader(path) as reader:
        for info, blob in reader.blobs():
            entry: dict[str, Any] = {"name": info.name, "dtype": info.dtype, "shape": list(info.shape)}
            if info.dtype in _FLOATS:
                reader.payload_of(info, blob)
                entry |= inspect(blob)
            else:
                entry |= {
                    "d": 0,
                    "num_kept": 0,
                    "support_bytes": 0,
                    "values_bytes": len(blob),
                    "total_bytes": len(blob),
                }
            tensors.append(entry)
        total = path.stat().st_size
        sums = {k: sum(t[k] for t in tensors) for k in ("d", "num_kept", "support_bytes", "values_bytes")}
        return {
            "kind": "file",
            "spec": reader.spec,
            "num_tensors": len(tensors),
            **sums,
            "header_bytes": total - sums["support_bytes"] - sums["values_bytes"],
            "total_bytes": total,
            "bits_per_parameter": 8 * total / sums["d"] if sums["d"] else None,
            "bits_per_index": 8 * sums["support_bytes"] / sums["num_kept"] if sums["num_kept"] else None,
            "tensors": tensors,
        }


def _stage(compressor: Compressor, residual: Path | None) -> tuple[Stage, bool]:
    """The pipeline to run on each tensor, and whether what it does not send is kept."""
    inner = compressor
    if isinstance(compressor, ef):
        if residual is None:
            raise ConfigError(f"{compressor} keeps a residual: give --residual FILE")
        if compressor.decay != 1.0:
            raise ConfigError(f"a residual file does not decay: give ef(...) without decay, got {compressor}")
        inner = compressor.compressor
    if not isinstance(inner, Stage):
        raise ConfigError(f"files take a pipeline of stages, or ef(...) round one; got {compressor}")
    scheduled = any(isinstance(stage, Sparsifier) and stage.scheduled for stage in inner.stages)
    if scheduled or inner.uses_reference or inner.init(Layout.flat(1)).memory:
        raise ConfigError(f"a file has no rounds, and {inner} depends on them; use topk")
    return inner, residual is not None


def _model_wide_density(stage: Stage) -> float | None:
    """The density of a model-wide topk, or None where a stage works on each tensor apart."""
    selector = stage.stages[0]
    if not isinstance(selector, topk) or selector.scope != "model":
        return None
    if selector.density is None or selector.num_bytes is not None:
        raise ConfigError(f"files take topk with a density, got {selector}")
    return selector.density


def _compress_tensor(stage: Stage, vector: Vector, number: int) -> bytes:
    payload, _ = stage.compress(vector, stage.init(Layout.flat(vector.size)), Round(key=Key(0, 0, number)))
    return encode(payload)


def _check_residual(residual: SafetensorsReader, floats: list[TensorInfo]) -> None:
    expected = {(info.name, info.shape) for info in floats}
    found = {(info.name, info.shape) for info in residual.tensors}
    wrong = next(iter(sorted(expected ^ found)), None)
    if wrong is not None or any(info.dtype != "F32" for info in residual.tensors):
        what = f"tensor {wrong[0]!r} of shape {wrong[1]} is only on one side" if wrong else "it must be float32"
        raise ConfigError(f"{residual.path}: is not the residual of this update: {what}")


def _read_header(file: IO[bytes]) -> _Header:
    start = file.read(len(MAGIC) + 1)
    if start[: len(MAGIC)] != MAGIC[: len(start)] or len(start) < len(MAGIC) + 1:
        raise Malformed(f"not a .gw file: it must start with {MAGIC!r}, got {start[: len(MAGIC)]!r}")
    if start[-1] != VERSION:
        raise Malformed(f"file version must be {VERSION}, got {start[-1]}")
    size = _read_varint(file, "header size")
    if size > _MAX_HEADER_BYTES:
        raise Malformed(f"header must be at most {_MAX_HEADER_BYTES} bytes, got {size}")
    body = _take(file, size, "header")
    checksum = struct.unpack("<I", _take(file, 4, "header checksum"))[0]
    if checksum != zlib.crc32(start + varint(size) + body):
        raise BadChecksum("the header's CRC-32 does not match")
    reader = Reader(memoryview(body))
    try:
        spec = bytes(reader.take(reader.varint("spec length"), "spec")).decode()
        tensors = tuple(_read_tensor(reader) for _ in range(reader.varint("number of tensors", below=size + 1)))
    except UnicodeDecodeError:
        raise Malformed("spec and names must be UTF-8") from None
    if reader.remaining or len({info.name for info in tensors}) != len(tensors):
        raise Malformed("header has bytes left over or a name twice")
    return _Header(spec, tensors)


def _read_tensor(reader: Reader) -> TensorInfo:
    name = bytes(reader.take(reader.varint("name length"), "name")).decode()
    code = reader.byte("dtype")
    if code >= len(DTYPES):
        raise Malformed(f"dtype code must be below {len(DTYPES)}, got {code}")
    shape = tuple(reader.varint("dimension", below=2**48) for _ in range(reader.varint("dimensions", below=65)))
    info = TensorInfo(name, list(DTYPES)[code], shape)
    if name == "__metadata__":
        raise Malformed("no tensor can be named '__metadata__'")
    if info.num_elements >= 2**48:
        raise Malformed(f"tensor {name!r} must have fewer than 2^48 elements")
    return info


def _read_varint(file: IO[bytes], what: str) -> int:
    data = b""
    while not data or data[-1] >= 0x80:
        data += _take(file, 1, what)
        if len(data) > 10:
            raise Malformed(f"{what}: integer of more than 10 bytes")
    return Reader(memoryview(data)).varint(what)


def _take(file: IO[bytes], size: int, what: str) -> bytes:
    left = os.fstat(file.fileno()).st_size - file.tell()
    if size > left:
        raise Truncated(f"{what}: expected {size} bytes, got {left}")
    data = file.read(size)
    if len(data) != size:
        raise Truncated(f"{what}: expected {size} bytes, got {len(data)}")
    return data


def _text(text: str) -> bytes:
    data = text.encode()
    return varint(len(data)) + data


class _naming:
    """Put the file's name in front of what is said of its bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MemoryError):
            raise LimitExceeded(f"{self._path}: a tensor of it is too large for this machine's memory") from None
        if isinstance(error, DecodeError) and not str(error).startswith(str(self._path)):
            raise type(error)(f"{self._path}: {error}") from None
