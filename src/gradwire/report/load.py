"""Read and check summary.json and metrics.jsonl: everything after this may trust what it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradwire.errors import ConfigError
from gradwire.report.clients import ClientCounts, read_clients
from gradwire.report.values import (
    MAX_INT,
    clock,
    decode,
    fraction,
    get,
    label,
    number,
    optional_text,
    optional_whole,
    read_bytes,
    show,
    text,
    whole,
)

__all__ = ["RoundPoint", "Run", "parse_experiment", "parse_runs", "read_metrics", "read_summary"]

_STATUSES = ("complete", "partial")


@dataclass(frozen=True, slots=True)
class Run:
    """One entry of ``runs`` in summary.json; ``None`` is a value that was not measured.

    ``method`` is what tells a run from the others, its label, and ``spec`` the text of its compressor: they are
    equal where only compressors are compared. ``folder`` is the name of the folder it is from where several are
    compared, else empty. Figures of links, regions and targets are ``None`` without them.
    """

    method: str
    folder: str
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
    wan_downlink_bytes: int | None
    num_parameters: int | None
    virtual_seconds: float | None
    target_accuracy: float | None
    target_virtual_seconds: float | None
    target_total_bytes: int | None
    compression_seconds: float | None
    client_rounds_per_second: float | None


@dataclass(frozen=True, slots=True)
class RoundPoint:
    """One line of metrics.jsonl, as far as the charts need it; ``method`` and ``spec`` as in ``Run``.

    What the run did not write, being of an older version or of another host, is None.
    """

    method: str
    spec: str
    seed: int
    index: int
    accuracy: float | None
    loss: float | None
    test_loss: float | None
    uplink_bytes: int
    virtual_seconds: float | None
    num_sent: int | None
    num_late: int | None
    num_lost: int | None
    num_idle: int | None
    num_kept: int | None
    num_moved: int | None
    overlap: float | None
    residual_norm: float | None
    update_norm: float | None
    clients: ClientCounts | None


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
    summary = decode(read_bytes(path), str(path))
    if not isinstance(summary, dict):
        raise ConfigError(f'{path} must be a JSON object with "runs", got {show(summary)}')
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
    lines = read_bytes(path).split(b"\n")
    points: dict[tuple[str, int, int], RoundPoint] = {}
    for line_number, line in enumerate(lines, start=1):
        where = f"{path} line {line_number}"
        if not line.strip():
            continue
        try:
            record = decode(line, where)
        except ConfigError:
            if line_number == len(lines):  # no newline after it: the writer was stopped in mid-line
                break
            raise
        if not isinstance(record, dict):
            raise ConfigError(f"{where} must be a JSON object, got {show(record)}")
        point = RoundPoint(
            method=label(record, where),
            spec=text(record, "method", where),
            seed=whole(record, "seed", where, minimum=-MAX_INT),
            index=whole(record, "round", where),
            accuracy=fraction(record, "accuracy", where),
            loss=number(record, "loss", where, required=False),
            test_loss=number(record, "test_loss", where, required=False),
            uplink_bytes=whole(record, "uplink_bytes", where),
            virtual_seconds=clock(record, "virtual_seconds", where),
            num_sent=optional_whole(record, "num_sent", where),
            num_late=optional_whole(record, "num_late", where),
            num_lost=optional_whole(record, "num_lost", where),
            num_idle=optional_whole(record, "num_idle", where),
            num_kept=optional_whole(record, "num_kept", where),
            num_moved=optional_whole(record, "num_moved", where),
            overlap=fraction(record, "overlap", where, required=False),
            residual_norm=number(record, "residual_norm", where, required=False),
            update_norm=number(record, "update_norm", where, required=False),
            clients=read_clients(record, where),
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
    runs = get(summary, "runs", source)
    if not isinstance(runs, Sequence) or isinstance(runs, str):
        raise ConfigError(f"{source}: runs must be a list, got {show(runs)}")
    num_parameters = parse_experiment(summary, source).get("num_parameters")
    parsed: list[Run] = []
    seen: set[tuple[str, int]] = set()
    for position, record in enumerate(runs):
        where = f"{source} runs[{position}]"
        if not isinstance(record, Mapping):
            raise ConfigError(f"{where} must be a JSON object, got {show(record)}")
        run = _run(record, where, num_parameters)
        if (run.method, run.seed) in seen:
            raise ConfigError(f"{where} repeats run {show(run.method)} with seed {run.seed}, expected one of each")
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
        raise ConfigError(f"{where} must be a JSON object, got {show(experiment)}")
    settings = {str(key): value for key, value in experiment.items() if value is not None}
    if "num_parameters" in settings:
        whole(settings, "num_parameters", where, minimum=1)
    return settings


def _run(record: Mapping[str, Any], where: str, num_parameters: int | None) -> Run:
    rounds = whole(record, "rounds", where)
    rounds_done = optional_whole(record, "rounds_done", where)
    rounds_done = rounds if rounds_done is None else rounds_done
    status = record.get("status")
    if status is None:
        status = "complete" if rounds_done >= rounds else "partial"
    if status not in _STATUSES:
        raise ConfigError(f"{where}: status must be 'complete' or 'partial', got {show(status)}")
    text(record, "model_sha256", where)
    virtual_seconds = clock(record, "virtual_seconds", where)
    target_virtual_seconds = clock(record, "target_virtual_seconds", where)
    return Run(
        method=label(record, where),
        folder="",
        spec=text(record, "method", where),
        algorithm=optional_text(record, "algorithm", where),
        links=optional_text(record, "links", where),
        budget=optional_text(record, "budget", where),
        seed=whole(record, "seed", where, minimum=-MAX_INT),
        clients=whole(record, "clients", where),
        rounds=rounds,
        rounds_done=rounds_done,
        status=status,
        final_accuracy=fraction(record, "final_accuracy", where),
        uplink_bytes=whole(record, "uplink_bytes", where),
        downlink_bytes=whole(record, "downlink_bytes", where),
        other_bytes=whole(record, "other_bytes", where),
        dense_uplink_bytes=whole(record, "dense_uplink_bytes", where),
        compression_ratio=number(record, "compression_ratio", where),
        bits_per_parameter=number(record, "bits_per_parameter", where),
        seconds=number(record, "seconds", where),
        header_bytes=optional_whole(record, "header_bytes", where),
        support_bytes=optional_whole(record, "support_bytes", where),
        values_bytes=optional_whole(record, "values_bytes", where),
        again_bytes=optional_whole(record, "again_bytes", where) or 0,
        wan_uplink_bytes=optional_whole(record, "wan_uplink_bytes", where) or None,
        wan_downlink_bytes=optional_whole(record, "wan_downlink_bytes", where) or None,
        num_parameters=num_parameters,
        virtual_seconds=virtual_seconds or None,  # a clock that stood still measured nothing
        target_accuracy=fraction(record, "target_accuracy", where, required=False),
        target_virtual_seconds=target_virtual_seconds if virtual_seconds else None,
        target_total_bytes=optional_whole(record, "target_total_bytes", where),
        compression_seconds=number(record, "compression_seconds", where, required=False),
        client_rounds_per_second=number(record, "client_rounds_per_second", where, required=False),
    )
