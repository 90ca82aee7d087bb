"""An update in one safetensors file, or in several that an index names."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import ConfigError
from gradwire.files.dtypes import TensorInfo
from gradwire.files.paths import naming_file, open_input
from gradwire.files.safetensors_io import SafetensorsReader, read_json

__all__ = ["ShardedReader", "open_update"]

_MAX_INDEX_BYTES = 100_000_000


def open_update(path: Path) -> SafetensorsReader | ShardedReader:
    """Open an update: a safetensors file, or the index.json of one in shards.

    Args:
        path: the file.

    Returns:
        A reader of all its tensors; use as a context manager.

    Raises:
        ConfigError: when it is neither.
    """
    with open_input(path) as file, naming_file(path):
        head = file.read(8)
        # the first bytes of a safetensors file are a length, of which the last four are 0
        if b"\0" not in head and head.lstrip().startswith(b"{"):
            file.seek(0)
            text = file.read(_MAX_INDEX_BYTES)
            if b'"weight_map"' in text:
                return ShardedReader(path, text)
    return SafetensorsReader(path)


class ShardedReader:
    """Shards read as one file, tensor by tensor, in the order of their names; use as a context manager.

    Args:
        path: the index: JSON whose ``weight_map`` gives each tensor's shard, a file in the same folder.
        text: what is in it.

    Attributes:
        path: the index.
        paths: all files that are read: the index and the shards.
        tensors: what the shards hold.
        metadata: the first shard's ``__metadata__``.

    Raises:
        ConfigError: when a shard is missing or does not hold what the index says.
    """

    def __init__(self, path: Path, text: bytes) -> None:
        self.path = path
        try:
            shard_of: dict[str, str] = read_json(text)["weight_map"]
            shards = sorted(set(shard_of.values()))
            outside = [name for name in shards if name != PurePosixPath(name).name or "\\" in name]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ConfigError(f"{path}: not an index of shards: its 'weight_map' cannot be read") from None
        if not shards or outside:
            got = repr(outside[0]) if outside else "none"
            raise ConfigError(f"{path}: an index names shards, files in its own folder; got {got}")
        self.paths = [path, *(path.parent / name for name in shards)]
        with ExitStack() as stack:
            readers = {name: stack.enter_context(self._open(name)) for name in shards}
            self._stack = stack.pop_all()
        self._reader_of = {info: reader for reader in readers.values() for info in reader.tensors}
        self.tensors = tuple(self._reader_of)
        self.metadata = readers[shards[0]].metadata
        found = {info.name: name for name, reader in readers.items() for info in reader.tensors}
        wrong = sorted(name for name, _ in shard_of.items() ^ found.items())
        if wrong or len(found) != len(self.tensors):
            self.close()
            which = repr(wrong[0]) if wrong else "one that stands in two"
            raise ConfigError(f"{path}: the shards do not hold what the index says, for instance tensor {which}")

    def _open(self, name: str) -> SafetensorsReader:
        try:
            return SafetensorsReader(self.path.parent / name)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: a shard it names: {error}") from None

    def raw(self, info: TensorInfo) -> NDArray[np.uint8]:
        """Read a tensor's bytes: (num_bytes,) uint8, a copy."""
        return self._reader_of[info].raw(info)

    def close(self) -> None:
        """Close the shards."""
        self._stack.close()

    def __enter__(self) -> ShardedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
