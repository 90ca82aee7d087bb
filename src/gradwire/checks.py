"""Checks of stage parameters, each with the message a user needs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import ConfigError, nearest

__all__ = [
    "LARGEST",
    "check_bytes",
    "check_density",
    "check_flag",
    "check_integer",
    "check_number",
    "check_scope",
    "check_support",
]

LARGEST = float(np.finfo(np.float32).max)
"""The largest number float32 holds."""


def check_number(name: str, value: Any) -> float:
    """Return ``value`` as a finite float, or raise ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ConfigError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ConfigError(f"{name} must be finite, got {value!r}")
    return float(value)


def check_density(value: Any, name: str = "density", may_be_zero: bool = False) -> float:
    """Return a density of (0, 1], or of [0, 1] where it may be zero, as a float, or raise ConfigError."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1 or (value == 0 and not may_be_zero):
        raise ConfigError(f"{name} must be in {'[' if may_be_zero else '('}0, 1], got {value!r}")
    return float(value)


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return an integer of [low, high], or raise ConfigError."""
    span = f"in [{low}, {high}]" if high is not None else f"of {low} or more"
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or value < low
        or (high is not None and value > high)
    ):
        raise ConfigError(f"{name} must be an integer {span}, got {value!r}")
    return int(value)


def check_bytes(value: Any) -> int | None:
    """Return a byte budget of 1 or more, or None, or raise ConfigError."""
    return None if value is None else check_integer("num_bytes", value, 1)


def check_flag(name: str, value: Any) -> bool:
    """Return True or False, or raise ConfigError."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {value!r}")
    return value


def check_scope(value: Any) -> str | int:
    """Return ``'model'``, ``'tensor'`` or a block length, or raise ConfigError."""
    names = ("model", "tensor")
    if value in names and isinstance(value, str):
        return value
    if isinstance(value, str):
        raise ConfigError(f"scope must be 'model', 'tensor' or a block length, got {value!r}{nearest(value, names)}")
    return check_integer("scope", value, 1)


def check_support(value: Any, d: int) -> NDArray[np.int64]:
    """Return coordinates that all clients send, (k,) int64 increasing in [0, d), k >= 1; or raise ConfigError."""
    found = np.asarray(value)
    if found.ndim != 1 or found.dtype.kind not in "iu" or not 0 < found.size <= d:
        raise ConfigError(f"support must be 1 to {d} integers, got {found.dtype} {found.shape}")
    found = found.astype(np.int64)
    if found[0] < 0 or found[-1] >= d or not (np.diff(found) > 0).all():
        raise ConfigError(f"support must be increasing coordinates in [0, {d})")
    return found
