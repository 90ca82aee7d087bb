"""Saved state on disk: nested dicts and lists of arrays and plain values, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from gradwire.errors import StateError

__all__ = ["AtomicFile", "load_state", "pack_state", "save_state", "unpack_state", "write_atomically"]

_FORMAT = "gradwire-state-1"
_ARRAY = "__array__"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state to a file, replacing what was there only once the new one is whole.

    Args:
        path: the file; its folder must exist.
        state: nested dicts with text keys, lists, NumPy arrays, numbers, text, None, True and False.

    Raises:
        StateError: on anything else inside.
    """
    write_atomically(path, pack_state(state))


def pack_state(state: dict[str, Any]) -> bytes:
    """Return the bytes ``save_state`` writes.

    Args:
        state: as for ``save_state``.

    Returns:
        A safetensors file, as bytes.

    Raises:
        StateError: on anything but arrays and plain values inside.
    """
    from safetensors.numpy import save

    arrays: dict[str, Any] = {}
    skeleton = _strip(state, arrays, "state")
    return save(arrays, {"format": _FORMAT, "tree": json.dumps(skeleton)})


def unpack_state(data: bytes, source: str) -> dict[str, Any]:
    """Read what ``pack_state`` gave.

    Args:
        data: the bytes.
        source: where they are from, for the error.

    Returns:
        The state.

    Raises:
        StateError: when they are damaged or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return _tree(header.get("__metadata__") or {}, load(data).__getitem__, source)
    except (SafetensorError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise StateError(f"{source}: cannot be read: {error}") from error


def load_state(path: Path) -> dict[str, Any]:
    """Read a state written by ``save_state``.

    Args:
        path: the file.

    Returns:
        The state.

    Raises:
        StateError: when the file is missing, damaged or of another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            return _tree(file.metadata() or {}, file.get_tensor, str(path))
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise StateError(f"{path}: cannot be read: {error}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that at any moment it is either as before or complete.

    Args:
        path: the file; its folder must exist.
        data: the whole content.

    Raises:
        OSError: when it cannot be written.
    """
    file = AtomicFile(path)
    try:
        file.write(data)
    except BaseException:
        file.discard()
        raise
    file.commit()


class AtomicFile:
    """A file that appears, or replaces the old one, only when ``commit`` is called.

    Args:
        path: the file.

    Raises:
        OSError: when its folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.num_bytes = 0
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        self._name = Path(name)
        self._file: IO[bytes] = os.fdopen(descriptor, "wb")

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._file.write(data)
        self.num_bytes += len(data)

    def commit(self) -> None:
        """Put the file in its place."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._name.chmod(0o644)
            self._name.replace(self._path)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Forget everything written."""
        self._file.close()
        self._name.unlink(missing_ok=True)


def _strip(value: Any, arrays: dict[str, Any], where: str) -> Any:
    if isinstance(value, np.ndarray):
        name = f"a{len(arrays)}"
        if value.dtype.kind not in "biuf":
            raise StateError(f"{where}: arrays must be of numbers, got {value.dtype}")
        arrays[name] = value if value.flags.c_contiguous else np.ascontiguousarray(value)
        return {_ARRAY: name}
    if isinstance(value, dict):
        bad = next((k for k in value if not isinstance(k, str) or k == _ARRAY), None)
        if bad is not None:
            raise StateError(f"{where}: keys must be text, got {bad!r}")
        return {k: _strip(v, arrays, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strip(v, arrays, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise StateError(f"{where}: cannot be saved, got {type(value).__name__}")


def _tree(metadata: dict[str, str], array_of: Callable[[str], Any], source: str) -> dict[str, Any]:
    if metadata.get("format") != _FORMAT:
        raise StateError(f"{source}: format must be {_FORMAT!r}, got {metadata.get('format')!r}")
    tree = _fill(json.loads(metadata["tree"]), array_of)
    if not isinstance(tree, dict):
        raise StateError(f"{source}: a state is a dict, got {type(tree).__name__}")
    return tree


def _fill(value: Any, array_of: Callable[[str], Any]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return np.asarray(array_of(value[_ARRAY]))
        return {k: _fill(v, array_of) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, array_of) for v in value]
    return value
