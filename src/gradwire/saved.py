"""Saved state: the checks that every end makes before it believes one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import DecodeError, StateError
from gradwire.layout import Layout

__all__ = [
    "check_memory",
    "check_state",
    "copy_memory",
    "reading_state",
    "saved_integer",
    "saved_number",
    "saved_vector",
    "to_bytes",
]


def check_state(state: Any, state_format: int, spec: str, layout: Layout) -> None:
    """Raise StateError unless a saved state names this format, spec and layout."""
    if not isinstance(state, dict):
        raise StateError(f"a state is a dict, got {type(state).__name__}")
    for name, value in {"format": state_format, "spec": spec, "layout": layout.digest.hex()}.items():
        got = state.get(name)
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


def saved_vector(name: str, saved: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a copy of a saved array of finite float32 numbers, or raise StateError."""
    if not isinstance(saved, np.ndarray) or saved.dtype != np.float32 or saved.shape != shape:
        raise StateError(f"state's {name} must be {shape} float32, got {np.shape(saved)}")
    if not np.isfinite(saved).all():
        raise StateError(f"state's {name} must be finite")
    return saved.copy()
