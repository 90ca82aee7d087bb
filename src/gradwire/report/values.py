"""Checked values of the JSON objects that runs write: what is wrong is named with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradwire.errors import ConfigError

__all__ = [
    "MAX_INT",
    "clock",
    "decode",
    "fraction",
    "get",
    "label",
    "number",
    "optional_text",
    "optional_whole",
    "read_bytes",
    "show",
    "text",
    "whole",
]

MAX_INT = 2**63
_MAX_SHOWN = 60


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a run's file, or raise ConfigError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist, expected a file written by gradwire run") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error


def decode(raw: bytes, where: str) -> Any:
    """Return what JSON says, or raise ConfigError with the place."""
    try:
        return json.loads(raw.decode("utf-8"))
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply, expected plain JSON") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 text at byte {error.start}, expected JSON") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if b"\n" in raw.strip() else f"column {error.colno}"
        raise ConfigError(f"{where} is not valid JSON: {error.msg} at {place}") from None
    except ValueError as error:  # for instance an integer of ten thousand digits
        raise ConfigError(f"{where} is not valid JSON: {error}") from None


def show(value: object) -> str:
    """Return a value as an error quotes it."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def get(record: Mapping[str, Any], key: str, where: str) -> Any:
    """Return the value of a key that must be there."""
    if key not in record:
        raise ConfigError(f"{where}: key {key!r} is missing")
    return record[key]


def text(record: Mapping[str, Any], key: str, where: str) -> str:
    """Return a string."""
    value = get(record, key, where)
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {key} must be a string, got {show(value)}")
    return value


def optional_text(record: Mapping[str, Any], key: str, where: str) -> str | None:
    """Return a string, None where there is none."""
    return None if record.get(key) is None else text(record, key, where)


def label(record: Mapping[str, Any], where: str) -> str:
    """Return what tells a run from the others: its label, else its method."""
    found = optional_text(record, "label", where)
    return text(record, "method", where) if found is None else found


def whole(record: Mapping[str, Any], key: str, where: str, *, minimum: int = 0) -> int:
    """Return an integer of 64 bits, by default not negative."""
    value = get(record, key, where)
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < MAX_INT:
        expected = f"an integer >= {minimum}" if minimum > -MAX_INT else "an integer of 64 bits"
        raise ConfigError(f"{where}: {key} must be {expected}, got {show(value)}")
    return value


def optional_whole(record: Mapping[str, Any], key: str, where: str) -> int | None:
    """Return an integer >= 0, None where there is none."""
    return None if record.get(key) is None else whole(record, key, where)


def number(record: Mapping[str, Any], key: str, where: str, *, required: bool = True) -> float | None:
    """Return a finite number; None for null, NaN and infinities."""
    value = get(record, key, where) if required else record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where}: {key} must be a number or null, got {show(value)}")
    try:
        found = float(value)
    except OverflowError:
        raise ConfigError(f"{where}: {key} must be a number or null, got {show(value)}") from None
    return found if math.isfinite(found) else None


def clock(record: Mapping[str, Any], key: str, where: str) -> float | None:
    """Return a virtual second, None where there is none."""
    value = number(record, key, where, required=False)
    if value is not None and not 0.0 <= value < MAX_INT:
        raise ConfigError(f"{where}: {key} must be in [0, 2^63) or null, got {show(value)}")
    return value


def fraction(record: Mapping[str, Any], key: str, where: str, *, required: bool = True) -> float | None:
    """Return a number in [0, 1]; None for null and NaN."""
    value = number(record, key, where, required=required)
    if value is not None and not 0.0 <= value <= 1.0:
        raise ConfigError(f"{where}: {key} must be in [0, 1] or null, got {show(value)}")
    return value
