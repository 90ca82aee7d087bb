"""The figures behind the charts as columns: what a chart's CSV is made of, inside the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradwire.report.clients import KINDS
from gradwire.report.load import RoundPoint
from gradwire.report.series import Runs, thinned
from gradwire.report.tables import Row

__all__ = ["Sheet", "sheets_of"]

Sheet = dict[str, list[Any]]

_COUNTS = tuple(f"{kind}_bytes" if kind in ("uplink", "downlink", "other") else f"num_{kind}" for kind in KINDS)
_OF_ROUNDS = (
    "accuracy",
    "loss",
    "test_loss",
    "uplink_bytes",
    "virtual_seconds",
    "num_sent",
    "num_late",
    "num_lost",
    "num_idle",
    "num_kept",
    "num_moved",
    "overlap",
    "update_norm",
    "residual_norm",
)
_OF_METHODS = (
    "accuracy",
    "uplink_bytes",
    "downlink_bytes",
    "other_bytes",
    "wan_uplink_bytes",
    "wan_downlink_bytes",
    "header_bytes",
    "support_bytes",
    "values_bytes",
    "compression_ratio",
    "bits_per_parameter",
    "virtual_seconds",
    "target_virtual_seconds",
    "target_total_bytes",
    "seconds",
    "compression_seconds",
    "client_rounds_per_second",
)


def sheets_of(runs: Runs, most_rounds: int | None = None) -> dict[str, Sheet]:
    """Make the sheets: ``methods``, ``rounds`` and ``clients``.

    Args:
        runs: what the charts are drawn from.
        most_rounds: how many rounds of a run to keep, those of the highest and lowest accuracy among them; None: all.

    Returns:
        Name -> column -> values; columns without any value, and sheets without rows, are left out.
    """
    made = {"methods": _methods(runs.rows), "rounds": _rounds(runs, most_rounds), "clients": _clients(runs)}
    return {name: sheet for name, sheet in made.items() if sheet}


def _methods(rows: Sequence[Row]) -> Sheet:
    found: list[dict[str, Any]] = []
    for row in rows:
        stats = {name: getattr(row, name) for name in _OF_METHODS}
        means = {name: None if stat is None else _short(stat.mean) for name, stat in stats.items()}
        found.append({"method": row.method, "seeds": " ".join(map(str, row.seeds)), "rounds": row.rounds_done, **means})
    return _columns(found)


def _held(accuracies: list[float | None]) -> list[float]:
    """Each round's accuracy, where it was not measured the one before."""
    held, last = [], next((a for a in accuracies if a is not None), 0.0)
    for accuracy in accuracies:
        last = last if accuracy is None else accuracy
        held.append(last)
    return held


def _rounds(runs: Runs, most: int | None) -> Sheet:
    found: list[dict[str, Any]] = []
    for method, seeds in runs.seeds.items():
        for seed, points in seeds.items():
            kept = range(len(points)) if most is None else thinned(_held([p.accuracy for _, p in points]), most)
            found += [_round(method, seed, *points[i]) for i in kept]
    return _columns(found)


def _round(method: str, seed: int, total: int, point: RoundPoint) -> dict[str, Any]:
    values = {name: _short(getattr(point, name)) for name in _OF_ROUNDS}
    return {"method": method, "seed": seed, "round": point.index + 1, "uplink_bytes_so_far": total, **values}


def _clients(runs: Runs) -> Sheet:
    found: list[dict[str, Any]] = []
    for method, seeds in runs.clients.items():
        for seed, one in seeds.items():
            found += [
                {"method": method, "seed": seed, "client": name, **dict(zip(_COUNTS, counts, strict=True))}
                for name, counts in zip(one.names, one.counts.tolist(), strict=True)
            ]
    return _columns(found)


def _columns(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    names = list(rows[0]) if rows else []
    columns = {name: [row[name] for row in rows] for name in names}
    return {name: column for name, column in columns.items() if any(value is not None for value in column)}


def _short(value: float | None) -> float | None:
    """A number in seven digits, whole ones as they are."""
    if value is None or float(value).is_integer():
        return value
    return float(f"{value:.7g}")
