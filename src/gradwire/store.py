"""Saved state on disk: nested dicts and lists of arrays and plain values, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from gradwire.errors import StateError

__all__ = ["load_state", "save_state", "write_atomically"]

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
    from safetensors.numpy import save

    arrays: dict[str, Any] = {}
    skeleton = _strip(state, arrays, "state")
    write_atomically(path, save(arrays, {"format": _FORMAT, "tree": json.dumps(skeleton)}))


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
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise StateError(f"{path}: format must be {_FORMAT!r}, got {metadata.get('format')!r}")
            tree: dict[str, Any] = _fill(json.loads(metadata["tree"]), file)
            return tree
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise StateError(f"{path}: cannot be read: {error}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that at any moment it is either as before or complete.

    Args:
        path: the file; its folder must exist.
        data: the whole content.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _strip(value: Any, arrays: dict[str, Any], where: str) -> Any:
    if isinstance(value, np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = np.ascontiguousarray(value)
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


def _fill(value: Any, file: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return file.get_tensor(value[_ARRAY])
        return {k: _fill(v, file) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, file) for v in value]
    return value
