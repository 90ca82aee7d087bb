"""Averaging .gw files: tensor by tensor, by name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradwire.aggregation.aggregator import Aggregator, check_weight
from gradwire.errors import ConfigError, ProtocolError, nearest
from gradwire.files.archive import Progress
from gradwire.files.dtypes import FLOATS, TensorInfo, from_float32
from gradwire.files.gwfile import GwReader, naming_damage
from gradwire.files.paths import check_paths
from gradwire.files.safetensors_io import SafetensorsWriter
from gradwire.layout import Layout

__all__ = ["aggregate_files"]

_COUNTERS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


def aggregate_files(
    sources: Sequence[Path | str],
    target: Path | str,
    weights: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Average .gw files of the same tensors into one safetensors update.

    Tensors go by name, in whatever order a file has them. Float tensors are averaged, into float64 where a file has
    them so, else into float32, whatever they are in each file. Integers and booleans, which count steps and the like,
    are those of the first file. Tensors of all other dtypes must be the same in all files. Of ``__metadata__``
    everything is kept that no two files contradict each other in.

    Args:
        sources: one .gw file a client.
        target: the safetensors file; appears only when it is whole.
        weights: one a file, or None for equal ones.
        progress: called with a tensor's name and its bytes in the first file.

    Returns:
        Names of the integer tensors that are not the same in all files.

    Raises:
        ConfigError: on files that hold different tensors, naming one, or weights that do not fit; and where the target
            is one of the sources.
        DecodeError: on a damaged file; no file is left then.
        OSError: on a full disk, naming the file.
    """
    paths, target = [Path(path) for path in sources], Path(target)
    if not paths:
        raise ConfigError("aggregate needs a file or more, got none")
    weights = [1.0] * len(paths) if weights is None else [check_weight(weight) for weight in weights]
    if len(weights) != len(paths):
        raise ConfigError(f"weights must be one a file: {len(paths)} files, got {len(weights)} weights")
    check_paths([target], paths)
    with ExitStack() as files:
        readers = [files.enter_context(GwReader(path)) for path in paths]
        columns = _match(readers)
        wide = [_averaged(column) for column in columns]
        writer = files.enter_context(SafetensorsWriter(target, wide, _common_metadata(readers)))
        differing = []
        for info, column in zip(wide, columns, strict=True):
            if info.dtype in FLOATS:
                writer.write(_mean(readers, column, weights, info.dtype))
            else:
                raw, same = _first(readers, column)
                writer.write(np.frombuffer(raw, np.uint8))
                if not same:
                    differing.append(info.name)
            if progress is not None:
                progress(info.name, column[0].num_bytes)
        writer.commit()
        return tuple(differing)


def _match(readers: list[GwReader]) -> list[list[TensorInfo]]:
    """For each tensor of the first file what it is in every file."""
    first = readers[0]
    columns = [[info] for info in first.tensors]
    for reader in readers[1:]:
        found = {info.name: info for info in reader.tensors}
        for column in columns:
            ours = column[0]
            theirs = found.pop(ours.name, None)
            if theirs is None:
                close = nearest(ours.name, [info.name for info in reader.tensors])
                raise ConfigError(f"{reader.path}: has no tensor {ours.name!r}, which {first.path} has{close}")
            if theirs.shape != ours.shape:
                raise ConfigError(
                    f"{reader.path}: tensor {ours.name!r} has shape {theirs.shape}, {ours.shape} in {first.path}"
                )
            if theirs.dtype != ours.dtype and not (theirs.dtype in FLOATS and ours.dtype in FLOATS):
                raise ConfigError(
                    f"{reader.path}: tensor {ours.name!r} is {theirs.dtype}, {ours.dtype} in {first.path}: only "
                    f"{', '.join(FLOATS)} can be averaged with each other"
                )
            column.append(theirs)
        if found:
            raise ConfigError(f"{reader.path}: has a tensor {next(iter(found))!r}, which {first.path} has not")
    return columns


def _averaged(column: list[TensorInfo]) -> TensorInfo:
    if column[0].dtype not in FLOATS:
        return column[0]
    return column[0].as_dtype("F64" if any(info.dtype == "F64" for info in column) else "F32")


def _mean(readers: list[GwReader], column: list[TensorInfo], weights: list[float], dtype: str) -> NDArray[np.uint8]:
    first = readers[0].payload_of(column[0], readers[0].blob(column[0]))  # a file that lies of its size is refused here
    with naming_damage(readers[0].path):
        aggregator = Aggregator(Layout.flat(first.d))
    for reader, info, weight in zip(readers, column, weights, strict=True):
        payload = first if info is column[0] else reader.payload_of(info, reader.blob(info))
        try:
            aggregator.add(payload, weight)
        except ProtocolError as error:
            raise ProtocolError(f"{reader.path}: tensor {info.name!r}: {error}") from None
    return from_float32(aggregator.mean(), dtype)


def _first(readers: list[GwReader], column: list[TensorInfo]) -> tuple[bytes, bool]:
    """The first file's bytes of a tensor, and whether all files have the same."""
    raw, same = readers[0].blob(column[0]), True
    for reader, info in zip(readers[1:], column[1:], strict=True):
        if reader.blob(info) != raw:
            same = False
            if info.dtype not in _COUNTERS:
                raise ConfigError(
                    f"{reader.path}: tensor {info.name!r} is not the same as in {readers[0].path}, and {info.dtype} "
                    "cannot be averaged"
                )
    return raw, same


def _common_metadata(readers: list[GwReader]) -> dict[str, str]:
    """What some file says and no file contradicts."""
    said: dict[str, set[str]] = {}
    for reader in readers:
        for name, text in reader.metadata.items():
            said.setdefault(name, set()).add(text)
    return {name: texts.pop() for name, texts in said.items() if len(texts) == 1}
