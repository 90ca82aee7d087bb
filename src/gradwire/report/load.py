"""Read and check summary.json and metrics.jsonl: everything after this may trust what it is given."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradwire.errors import ConfigError

__all__ = ["RoundPoint", "Run", "parse_experiment", "parse_runs", "read_metrics", "read_summary"]

_MAX_INT = 2**63
_MAX_SHOWN = 60
_STATUSES = ("complete", "partial")


@dataclass(frozen=True, slots=True)
class Run:
    """One entry of ``runs`` in summary.json; ``None`` is a value that was not measured.

    ``method`` is what tells a run from the others, its label, and ``spec`` the text of its compressor: they are
    equal where only compressors are compared. Figures of links, regions and targets are ``None`` without them.
    """

    method: str
    spec: str
    algorithm: str | None
    links: str | None
    budget: str | None
    seed: int
    clients: int
    rounds: int
    rounds_done: int
    status: str
    final_accuracy: float | None
    uplink_bytes: int
    downlink_bytes: int
    other_bytes: int
    dense_uplink_bytes: int
    compression_ratio: float | None
    bits_per_parameter: float | None
    seconds: float | None
    header_bytes: int | None
    support_bytes: int | None
    values_bytes: int | None
    again_bytes: int
    wan_uplink_bytes: int | None
    virtual_seconds: float | None
    target_accuracy: float | None
    target_virtual_seconds: float | None
    target_total_bytes: int | None
    compression_seconds: float | None
    client_rounds_per_second: float | None


@dataclass(frozen=True, slots=True)
class RoundPoint:
    """One line of metrics.jsonl, as far as the charts need it; ``method`` and ``spec`` as in ``Run``."""

    method: str
    spec: str
    seed: int
    index: int
    accuracy: float | None
    loss: float | None
    uplink_bytes: int
    virtual_seconds: float | None


def read_summary(directory: Path) -> Mapping[str, Any]:
    """Read DIR/summary.json into a mapping; its contents are checked by ``parse_runs``.

    Args:
        directory: the folder of one finished or interrupted ``gradwire run``.

    Returns:
        The JSON object.

    Raises:
        ConfigError: the folder or the file is missing or unreadable, or is not a JSON object.
    """
    if not directory.exists():
        raise ConfigError(f"report directory {directory} does not exist, expected the folder of a run")
    if not directory.is_dir():
        raise ConfigError(f"report directory {directory} is not a directory, expected the folder of a run")
    path = directory / "summary.json"
    summary = _decode(_read(path), str(path))
    if not isinstance(summary, dict):
        raise ConfigError(f'{path} must be a JSON object with "runs", got {_show(summary)}')
    return summary


def read_metrics(directory: Path) -> list[RoundPoint]:
    """Read DIR/metrics.jsonl; a last line cut off before its newline is an interrupted run and is ignored.

    Args:
        directory: the folder of one run.

    Returns:
        The points in file order; of two with the same label, seed and round the later one is kept.

    Raises:
        ConfigError: the file is missing, or a line is not a JSON object of the right shape.
    """
    path = directory / "metrics.jsonl"
    lines = _read(path).split(b"\n")
    points: dict[tuple[str, int, int], RoundPoint] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{path} line {number}"
        if not line.strip():
            continue
        try:
            record = _decode(line, where)
        except ConfigError:
            if number == len(lines):  # no newline after it: the writer was stopped in mid-line
                break
            raise
        if not isinstance(record, dict):
            raise ConfigError(f"{where} must be a JSON object, got {_show(record)}")
        point = RoundPoint(
            method=_label(record, where),
            spec=_text(record, "method", where),
            seed=_whole(record, "seed", where, minimum=-_MAX_INT),
            index=_whole(record, "round", where),
            accuracy=_fraction(record, "accuracy", where),
            loss=_number(record, "loss", where, required=False),
            uplink_bytes=_whole(record, "uplink_bytes", where),
            virtual_seconds=_clock(record, "virtual_seconds", where),
        )
        points[point.method, point.seed, point.index] = point
    return list(points.values())


def parse_runs(summary: Mapping[str, Any], source: str = "summary.json") -> list[Run]:
    """Check the runs of a summary; unknown keys are ignored, NaN and null floats become ``None``.

    Args:
        summary: what summary.json holds.
        source: what error messages call it.

    Returns:
        The runs in their order.

    Raises:
        ConfigError: ``runs`` or one of its keys is missing or of the wrong type, or a run is there twice.
    """
    runs = _get(summary, "runs", source)
    if not isinstance(runs, Sequence) or isinstance(runs, str):
        raise ConfigError(f"{source}: runs must be a list, got {_show(runs)}")
    parsed: list[Run] = []
    seen: set[tuple[str, int]] = set()
    for position, record in enumerate(runs):
        where = f"{source} runs[{position}]"
        if not isinstance(record, Mapping):
            raise ConfigError(f"{where} must be a JSON object, got {_show(record)}")
        run = _run(record, where)
        if (run.method, run.seed) in seen:
            raise ConfigError(f"{where} repeats run {_show(run.method)} with seed {run.seed}, expected one of each")
        seen.add((run.method, run.seed))
        parsed.append(run)
    return parsed


def parse_experiment(summary: Mapping[str, Any], source: str = "summary.json") -> dict[str, Any]:
    """Return the optional ``experiment`` of a summary, ``{}`` where there is none.

    Args:
        summary: what summary.json holds.
        source: what error messages call it.

    Returns:
        The settings as they were written; ``num_parameters``, if present, is a positive int.

    Raises:
        ConfigError: it is not an object, or ``num_parameters`` is not a positive integer.
    """
    experiment = summary.get("experiment")
    if experiment is None:
        return {}
    where = f"{source} experiment"
    if not isinstance(experiment, Mapping):
        raise ConfigError(f"{where} must be a JSON object, got {_show(experiment)}")
    settings = {str(key): value for key, value in experiment.items() if value is not None}
    if "num_parameters" in settings:
        _whole(settings, "num_parameters", where, minimum=1)
    return settings


def _run(record: Mapping[str, Any], where: str) -> Run:
    rounds = _whole(record, "rounds", where)
    rounds_done = _optional_whole(record, "rounds_done", where)
    rounds_done = rounds if rounds_done is None else rounds_done
    status = record.get("status")
    if status is None:
        status = "complete" if rounds_done >= rounds else "partial"
    if status not in _STATUSES:
        raise ConfigError(f"{where}: status must be 'complete' or 'partial', got {_show(status)}")
    _text(record, "model_sha256", where)
    virtual_seconds = _clock(record, "virtual_seconds", where)
    target_virtual_seconds = _clock(record, "target_virtual_seconds", where)
    return Run(
        method=_label(record, where),
        spec=_text(record, "method", where),
        algorithm=_optional_text(record, "algorithm", where),
        links=_optional_text(record, "links", where),
        budget=_optional_text(record, "budget", where),
        seed=_whole(record, "seed", where, minimum=-_MAX_INT),
        clients=_whole(record, "clients", where),
        rounds=rounds,
        rounds_done=rounds_done,
        status=status,
        final_accuracy=_fraction(record, "final_accuracy", where),
        uplink_bytes=_whole(record, "uplink_bytes", where),
        downlink_bytes=_whole(record, "downlink_bytes", where),
        other_bytes=_whole(record, "other_bytes", where),
        dense_uplink_bytes=_whole(record, "dense_uplink_bytes", where),
        compression_ratio=_number(record, "compression_ratio", where),
        bits_per_parameter=_number(record, "bits_per_parameter", where),
        seconds=_number(record, "seconds", where),
        header_bytes=_optional_whole(record, "header_bytes", where),
        support_bytes=_optional_whole(record, "support_bytes", where),
        values_bytes=_optional_whole(record, "values_bytes", where),
        again_bytes=_optional_whole(record, "again_bytes", where) or 0,
        wan_uplink_bytes=_optional_whole(record, "wan_uplink_bytes", where) or None,
        virtual_seconds=virtual_seconds or None,  # a clock that stood still measured nothing
        target_accuracy=_fraction(record, "target_accuracy", where, required=False),
        target_virtual_seconds=target_virtual_seconds if virtual_seconds else None,
        target_total_bytes=_optional_whole(record, "target_total_bytes", where),
        compression_seconds=_number(record, "compression_seconds", where, required=False),
        client_rounds_per_second=_number(record, "client_rounds_per_second", where, required=False),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist, expected a file written by gradwire run") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error


def _decode(raw: bytes, where: str) -> Any:
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


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _get(record: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in record:
        raise ConfigError(f"{where}: key {key!r} is missing")
    return record[key]


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    value = _get(record, key, where)
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {key} must be a string, got {_show(value)}")
    return value


def _optional_text(record: Mapping[str, Any], key: str, where: str) -> str | None:
    return None if record.get(key) is None else _text(record, key, where)


def _label(record: Mapping[str, Any], where: str) -> str:
    label = _optional_text(record, "label", where)
    return _text(record, "method", where) if label is None else label


def _whole(record: Mapping[str, Any], key: str, where: str, *, minimum: int = 0) -> int:
    value = _get(record, key, where)
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < _MAX_INT:
        expected = f"an integer >= {minimum}" if minimum > -_MAX_INT else "an integer of 64 bits"
        raise ConfigError(f"{where}: {key} must be {expected}, got {_show(value)}")
    return value


def _optional_whole(record: Mapping[str, Any], key: str, where: str) -> int | None:
    return None if record.get(key) is None else _whole(record, key, where)


def _number(record: Mapping[str, Any], key: str, where: str, *, required: bool = True) -> float | None:
    value = _get(record, key, where) if required else record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where}: {key} must be a number or null, got {_show(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise ConfigError(f"{where}: {key} must be a number or null, got {_show(value)}") from None
    return number if math.isfinite(number) else None


def _clock(record: Mapping[str, Any], key: str, where: str) -> float | None:
    value = _number(record, key, where, required=False)
    if value is not None and not 0.0 <= value < _MAX_INT:
        raise ConfigError(f"{where}: {key} must be in [0, 2^63) or null, got {_show(value)}")
    return value


def _fraction(record: Mapping[str, Any], key: str, where: str, *, required: bool = True) -> float | None:
    value = _number(record, key, where, required=required)
    if value is not None and not 0.0 <= value <= 1.0:
        raise ConfigError(f"{where}: {key} must be in [0, 1] or null, got {_show(value)}")
    return value
