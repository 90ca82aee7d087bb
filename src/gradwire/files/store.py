"""State on disk: nested dicts and lists of arrays and plain values, with a checksum, written whole or not at all.

It is a safetensors file: the arrays in their order, and in the metadata the tree they hang in as JSON, and the CRC-32
of both.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from gradwire.errors import StateError
from gradwire.files.atomic import write_atomically
from gradwire.files.paths import open_input

__all__ = ["pack_state", "read_state", "unpack_state", "write_state"]

_FORMAT = "gradwire-state-2"
_ARRAY = "__array__"


def write_state(path: Path, state: dict[str, Any], synced: bool = True) -> None:
    """Write a state to a file, replacing what was there only once the new one is whole.

    Args:
        path: the file; its folder must exist.
        state: nested dicts with text keys, lists, NumPy arrays, numbers, text, None, True and False.
        synced: False leaves it to the system when it reaches the disk: it survives the process, not the machine.

    Raises:
        StateError: on anything else inside.
        OSError: when it cannot be written.
    """
    write_atomically(path, pack_state(state), synced)


def read_state(path: Path) -> dict[str, Any]:
    """Read a state written by ``write_state``.

    Args:
        path: the file.

    Returns:
        The state.

    Raises:
        StateError: when the file is missing, damaged or of another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        open_input(path).close()  # a pipe would be waited for
        with safe_open(str(path), framework="numpy") as file:
            return _tree(file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}, str(path))  # noqa: SIM118
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None


def pack_state(state: dict[str, Any]) -> bytes:
    """Return the bytes ``write_state`` writes.

    Args:
        state: as for ``write_state``.

    Returns:
        A safetensors file, as bytes.

    Raises:
        StateError: on anything but arrays and plain values inside.
    """
    from safetensors.numpy import save

    arrays: dict[str, Any] = {}
    tree = json.dumps(_strip(state, arrays, "state"))
    return save(arrays, {"format": _FORMAT, "tree": tree, "crc32": _checksum(tree, arrays)})


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
        return _tree(header.get("__metadata__") or {}, load(data), source)
    except (SafetensorError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise _unreadable(source, error) from None


def _unreadable(source: object, error: Exception) -> StateError:
    said = str(error)
    return StateError(said if said.startswith(f"{source}: ") else f"{source}: cannot be read: {said}")


def _strip(value: Any, arrays: dict[str, Any], where: str) -> Any:
    if isinstance(value, np.ndarray):
        name = f"a{len(arrays)}"
        if value.dtype.kind not in "biuf":
            raise StateError(f"{where}: arrays must be of numbers, got {value.dtype}")
        whole = value if value.flags.c_contiguous else np.ascontiguousarray(value)
        arrays[name] = whole.astype(whole.dtype.newbyteorder("<"), copy=False)
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


def _checksum(tree: str, arrays: dict[str, Any]) -> str:
    """CRC-32 of the tree, and of each array's dtype, shape and bytes in the order of their names."""
    crc = zlib.crc32(tree.encode())
    for name in sorted(arrays):
        array = arrays[name]
        crc = zlib.crc32(f"{name} {array.dtype.name} {array.shape}".encode(), crc)
        crc = zlib.crc32(array.reshape(-1).view(np.uint8).data, crc)
    return f"{crc:08x}"


def _tree(metadata: dict[str, str], arrays: dict[str, Any], source: str) -> dict[str, Any]:
    if metadata.get("format") != _FORMAT:
        raise StateError(f"{source}: format must be {_FORMAT!r}, got {metadata.get('format')!r}")
    if metadata["crc32"] != _checksum(metadata["tree"], arrays):
        raise StateError(f"{source}: damaged: its CRC-32 does not match")
    tree = _fill(json.loads(metadata["tree"]), arrays)
    if not isinstance(tree, dict):
        raise StateError(f"{source}: a state is a dict, got {type(tree).__name__}")
    return tree


def _fill(value: Any, arrays: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return np.asarray(arrays[value[_ARRAY]])
        return {k: _fill(v, arrays) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, arrays) for v in value]
    return value
