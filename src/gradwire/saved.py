"""Saved state: what it is made of, and the checks that every end makes before it believes one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import DecodeError, StateError
from gradwire.layout import Layout
from gradwire.tensors import is_torch, unreadable

__all__ = [
    "StateArray",
    "check_memory",
    "check_state",
    "copy_memory",
    "from_saved",
    "reading_state",
    "saved_integer",
    "saved_number",
    "saved_real",
    "saved_vector",
    "to_bytes",
    "to_saved",
]

_TORCH_PROTOCOL = 2  # torch.save's, and the only one that torch.load reads by default


class StateArray(np.ndarray[Any, np.dtype[Any]]):
    """An array of a state: an ordinary one, which ``torch.save`` writes as a tensor.

    ``torch.load`` refuses NumPy arrays unless it is told to trust the file. Everyone else who copies or stores such an
    array gets a NumPy one, and so does everyone who calculates with it.

    Example:
        >>> import numpy as np
        >>> from gradwire.saved import StateArray
        >>> array = np.float32([1, 2]).view(StateArray)
        >>> isinstance(array, np.ndarray), type(array + 1).__name__
        (True, 'ndarray')
    """

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Give results as NumPy gives them of ordinary arrays; what is changed in place stays what it is."""
        return self if array is self else np.asarray(array)[()]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Name no class of gradwire: the reader need not have it."""
        torch = sys.modules.get("torch")
        if protocol == _TORCH_PROTOCOL and torch is not None:
            return torch.from_numpy(np.array(self)).__reduce_ex__(protocol)
        return np.asarray(self).__reduce_ex__(protocol)


def to_saved(state: dict[str, Any]) -> dict[str, Any]:
    """Make a state of what a ``state_dict`` method gathers.

    Args:
        state: arrays, NumPy numbers and plain values, in dicts, lists and tuples.

    Returns:
        The same of ``StateArray`` views and plain values, in dicts and lists: what torch and others can store.
    """
    return {key: _saved(value) for key, value in state.items()}


def _saved(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.view(StateArray)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return to_saved(value)
    return [_saved(v) for v in value] if isinstance(value, (list, tuple)) else value


def from_saved(state: Any) -> Any:
    """Read a state, wherever it was: what was saved with torch has tensors in place of arrays.

    Args:
        state: from ``to_saved``, possibly after ``torch.load`` or a copy; not modified.

    Returns:
        The same of ordinary NumPy arrays, which share memory with it, and plain values.

    Raises:
        StateError: on a tensor that no array stands for.
    """
    if is_torch(state):
        if (why := unreadable(state)) is not None:
            raise StateError(f"state holds a tensor that {why}")
        with reading_state():
            return state.detach().cpu().numpy()
    if isinstance(state, np.ndarray):
        return np.asarray(state)
    if isinstance(state, Mapping):
        return {key: from_saved(value) for key, value in state.items()}
    return [from_saved(value) for value in state] if isinstance(state, (list, tuple)) else state


def check_state(state: Any, state_format: int, spec: str, layout: Layout) -> None:
    """Raise StateError unless a saved state names this format, spec and layout."""
    if not isinstance(state, dict):
        raise StateError(f"a state is a dict, got {type(state).__name__}")
    for name, value in {"format": state_format, "spec": spec, "layout": layout.digest.hex()}.items():
        got = state.get(name)
        if name == "layout" and isinstance(got, str) and got != value:
            raise StateError(f"state {layout.mismatch(got)}")
        if type(got) is not type(value) or got != value:
            raise StateError(f"state has {name} {got!r}, expected {value!r}")


@contextmanager
def reading_state() -> Iterator[None]:
    """Turn whatever goes wrong while a saved state is read into a StateError."""
    try:
        yield
    except (DecodeError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StateError(f"state cannot be read: {type(error).__name__}: {error}") from error


def copy_memory(memory: dict[str, Any]) -> dict[str, Any]:
    """Copy a compressor's memory, arrays included."""
    return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in memory.items()}


def check_memory(memory: dict[str, Any], expected: dict[str, Any], d: int) -> None:
    """Raise StateError unless a memory is one that a compressor could have.

    Args:
        memory: name -> array or plain value.
        expected: the memory of a fresh state: names, shapes and dtypes are compared, and numbers are finite. Vectors
            that are empty there may have any length, one for all those of the same prefix; int64 ones are increasing.
        d: coordinates are below it.
    """
    lengths: dict[str, int] = {}
    if set(memory) != set(expected):
        raise StateError(f"state holds {sorted(memory)}, expected {sorted(expected)}")
    for name, value in expected.items():
        got = memory[name]
        if not isinstance(value, np.ndarray):
            limit = 2**63 if isinstance(value, int) else np.inf
            if type(got) is not type(value) or not 0 <= got < limit:
                raise StateError(f"state's {name} must be a {type(value).__name__} of 0 or more, got {got!r}")
            continue
        shape: tuple[int, ...] = value.shape
        if shape == (0,) and d and np.ndim(got) == 1:
            length = lengths.setdefault(name.rpartition(".")[0], np.size(got))
            shape = (min(length, d),)
        if not isinstance(got, np.ndarray) or got.shape != shape or got.dtype != value.dtype:
            raise StateError(f"state's {name} must be {shape} {value.dtype}, got {np.shape(got)}")
        if got.dtype.kind == "f" and not np.isfinite(got).all():
            raise StateError(f"state's {name} must be finite")
        if value.shape == (0,) and got.dtype == np.int64 and not _are_coordinates(got, d):
            raise StateError(f"state's {name} must be increasing coordinates below {d}")


def _are_coordinates(numbers: NDArray[np.int64], d: int) -> bool:
    inside = not numbers.size or (numbers[0] >= 0 and numbers[-1] < d)
    return bool(inside and (np.diff(numbers) > 0).all())


def to_bytes(saved: Any) -> bytes:
    """Turn a saved uint8 array back into bytes, or raise StateError."""
    if not isinstance(saved, np.ndarray) or saved.dtype != np.uint8 or saved.ndim != 1:
        raise StateError(f"saved bytes must be a uint8 vector, got {type(saved).__name__}")
    return saved.tobytes()


def saved_integer(name: str, saved: Any, low: int = 0, high: int = 2**63 - 1) -> int:
    """Return a saved integer of [low, high], or raise StateError."""
    if isinstance(saved, bool) or not isinstance(saved, (int, np.integer)) or not low <= saved <= high:
        raise StateError(f"state's {name} must be an integer in [{low}, {high}], got {saved!r}")
    return int(saved)


def saved_number(name: str, saved: Any) -> float:
    """Return a saved number of 0 or more, inf included, or raise StateError."""
    if isinstance(saved, bool) or not isinstance(saved, (int, float)) or not saved >= 0:
        raise StateError(f"state's {name} must be a number of 0 or more, got {saved!r}")
    return float(saved)


def saved_real(name: str, saved: Any) -> float:
    """Return a saved number of any sign, inf and NaN included, or raise StateError."""
    if isinstance(saved, bool) or not isinstance(saved, (int, float)):
        raise StateError(f"state's {name} must be a number, got {saved!r}")
    return float(saved)


def saved_vector(name: str, saved: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a copy of a saved array of finite float32 numbers, or raise StateError."""
    if not isinstance(saved, np.ndarray) or saved.dtype != np.float32 or saved.shape != shape:
        raise StateError(f"state's {name} must be {shape} float32, got {np.shape(saved)}")
    if not np.isfinite(saved).all():
        raise StateError(f"state's {name} must be finite")
    return saved.copy()
