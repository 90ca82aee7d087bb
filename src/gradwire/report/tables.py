"""The figures of a comparison as rows, without HTML: the page and the terminal table share them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradwire.report.load import Run, parse_runs

__all__ = [
    "COLUMNS",
    "Column",
    "Row",
    "Stat",
    "best_rows",
    "cell_parts",
    "cell_text",
    "cell_title",
    "columns_of",
    "format_bytes",
    "format_seconds",
    "is_dense",
    "misses",
    "ranked",
    "rows_of",
    "summary_rows",
    "target",
    "whole_percent",
]

_NOTHING = "–"  # noqa: RUF001 - an en dash is what a table shows for "not measured"
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_DURATIONS = ("seconds", "virtual_seconds", "target_virtual_seconds")


@dataclass(frozen=True, slots=True)
class Stat:
    """One figure over the seeds of a method.

    Args:
        values: one value a seed, at least one.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over seeds; of a single value that value itself, so byte counts stay exact."""
        return self.values[0] if len(self.values) == 1 else statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """The sample standard deviation (n - 1), ``None`` for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True, slots=True)
class Row:
    """One method, averaged over its seeds; a figure nobody measured is ``None``.

    Where a method has complete and partial runs, only the complete ones are averaged and ``num_partial``
    counts the others; where it has partial runs only, those are averaged and ``status`` is ``"partial"``.
    """

    method: str
    folder: str
    spec: str
    algorithm: str | None
    links: str | None
    budget: str | None
    seeds: tuple[int, ...]
    num_partial: int
    status: str
    clients: int
    rounds: int
    rounds_done: int
    accuracy: Stat | None
    uplink_bytes: Stat
    downlink_bytes: Stat
    other_bytes: Stat
    dense_uplink_bytes: Stat
    compression_ratio: Stat | None
    bits_per_parameter: Stat | None
    header_bytes: Stat | None
    support_bytes: Stat | None
    values_bytes: Stat | None
    wan_uplink_bytes: Stat | None
    wan_downlink_bytes: Stat | None
    num_parameters: int | None
    virtual_seconds: Stat | None
    target_accuracy: float | None
    target_virtual_seconds: Stat | None
    target_total_bytes: Stat | None
    compression_share: Stat | None
    client_rounds_per_second: Stat | None
    seconds: Stat | None
    compression_seconds: Stat | None

    @property
    def is_dense(self) -> bool:
        """Whether this is the uncompressed run that others are measured against."""
        return is_dense(self.spec)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table: the ``Row`` field it shows, its title, and which end is best (or ``None``).

    A column that is not ``always`` shown is left out where no row has anything to say in it.
    """

    key: str
    title: str
    best: str | None
    help: str
    always: bool = True


COLUMNS: tuple[Column, ...] = (
    Column("accuracy", "Accuracy", "high", "of the final model on the test examples"),
    Column(
        "target_virtual_seconds",
        "Time to target",
        "low",
        "virtual time when the target accuracy was first measured",
        always=False,
    ),
    Column(
        "target_total_bytes",
        "Bytes to target",
        "low",
        "all that had travelled when the target accuracy was first measured",
        always=False,
    ),
    Column("uplink_bytes", "Uplink", "low", "bytes from clients to the server, all clients and rounds"),
    Column("downlink_bytes", "Downlink", "low", "bytes from server to clients, every copy counted"),
    Column("other_bytes", "Other", "low", "initial model, resynchronisation and control variates"),
    Column("wan_uplink_bytes", "WAN uplink", "low", "bytes from regions to the server", always=False),
    Column("compression_ratio", "Compression ratio", "high", "dense float32 bytes over uplink bytes"),
    Column("bits_per_parameter", "Bits per parameter", "low", "8 times an upload's bytes over parameters"),
    Column("compression_share", "Compression time", "low", "share of the time spent in Client and Server"),
    Column("client_rounds_per_second", "Client-rounds/s", "high", "client rounds simulated a second"),
    Column("seconds", "Time", "low", "wall-clock time of the whole run"),
    Column("virtual_seconds", "Virtual time", "low", "the simulated clock at the end of the run", always=False),
)


def summary_rows(summary: Mapping[str, Any]) -> list[Row]:
    """Compute one row a method from the contents of summary.json.

    Args:
        summary: the JSON object, not modified.

    Returns:
        Rows in the order in which methods first appear.

    Raises:
        ConfigError: a key is missing or of the wrong type.

    Example:
        >>> summary_rows({"runs": []})
        []
    """
    return rows_of(parse_runs(summary))


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Compute one row a method from checked runs.

    Args:
        runs: what ``parse_runs`` gave.

    Returns:
        Rows in the order in which methods first appear.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    return [_row(method, group) for method, group in groups.items()]


def format_bytes(num_bytes: float) -> str:
    """Write a byte count with three digits in decimal units, as networks count.

    Args:
        num_bytes: how many bytes, >= 0.

    Returns:
        For instance ``999 B``, ``1.00 kB``, ``624 kB``.

    Example:
        >>> format_bytes(38_440)
        '38.4 kB'
    """
    if num_bytes < 999.5:
        whole = float(num_bytes).is_integer()
        return f"{num_bytes:.0f} B" if whole or num_bytes >= 10 else f"{num_bytes:.1f} B"
    value = float(num_bytes)
    unit = 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{_three_digits(value)} {_UNITS[unit]}"


def format_seconds(seconds: float) -> str:
    """Write a duration in the unit that fits.

    Args:
        seconds: how long, >= 0.

    Returns:
        For instance ``0.05 s``, ``27.3 s``, ``12.5 min``, ``1.97 h``.

    Example:
        >>> format_seconds(748)
        '12.5 min'
    """
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds >= 1 or seconds == 0 else f"{seconds:.2g} s"
    for unit, size, below in (("min", 60, 120), ("h", 3600, 48)):
        if seconds < size * below:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds / 86_400)} d"


def is_dense(spec: str) -> bool:
    """Whether a method's text is that of sending everything."""
    return spec.replace(" ", "") == "dense()"


def columns_of(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Choose the columns that have something to show, and name the target in those that are about it.

    Args:
        rows: all rows.

    Returns:
        In the order of ``COLUMNS``; where rows had different targets, those columns rank nobody.
    """
    goal = target(rows)
    shown = []
    for column in COLUMNS:
        if not column.always and all(cell_text(row, column.key) == _NOTHING for row in rows):
            continue
        if column.key.startswith("target_"):
            named = column.title if goal is None else column.title.replace("target", whole_percent(goal))
            column = replace(column, title=named, best=column.best if goal is not None else None)
        shown.append(column)
    return tuple(shown)


def cell_parts(row: Row, key: str) -> tuple[str, str]:
    """Write one figure and its standard deviation over seeds.

    Args:
        row: a row.
        key: a ``Column.key``.

    Returns:
        The mean with its unit, an en dash where nothing was measured; and the deviation, empty for a single
        seed or where all seeds agree exactly. The mean of a target is over the seeds that reached it, and says so.
    """
    stat: Stat | None = getattr(row, key)
    if stat is None:
        return ("not reached" if misses(row, key) else _NOTHING), ""
    mean, std = stat.mean, stat.std or 0.0
    if key.endswith("_bytes") or key in _DURATIONS:
        written = format_bytes if key.endswith("_bytes") else format_seconds
        count = f" ({len(stat.values)} of {len(row.seeds)} seeds)" if misses(row, key) else ""
        return written(mean) + count, written(std) if std else ""
    scale, unit, digits = 1.0, "", 2
    if key in ("accuracy", "compression_share"):
        scale, unit, digits = 100.0, " %", 1
    elif key == "compression_ratio":
        unit, digits = "x", (2 if mean < 10 else 1)
    elif key == "client_rounds_per_second":
        digits = 0 if mean >= 100 else 1
    spread = f"{std * scale:.{digits}f}{unit}" if std else ""
    return f"{mean * scale:.{digits}f}{unit}", spread


def cell_text(row: Row, key: str) -> str:
    """Write one figure in one piece: ``95.3 %``, or ``95.3 % ± 0.4 %`` where there are several seeds.

    Args:
        row: a row.
        key: a ``Column.key``.

    Returns:
        Plain text, an en dash where nothing was measured.
    """
    mean, spread = cell_parts(row, key)
    return f"{mean} ± {spread}" if spread else mean


def cell_title(row: Row, key: str) -> str:
    """Write one figure exactly, each seed's value included: the tooltip behind ``cell_text``.

    Args:
        row: a row.
        key: a ``Column.key``.

    Returns:
        Plain text, ``not measured`` where there is nothing.
    """
    stat: Stat | None = getattr(row, key)
    if stat is None:
        return "not reached" if misses(row, key) else "not measured"
    is_bytes = key.endswith("_bytes")
    exact = [f"{value:,.0f}" if is_bytes else f"{value:.6g}" for value in stat.values]
    unit = " bytes" if is_bytes else " seconds" if key in _DURATIONS else ""
    missed = f"; not reached by {len(row.seeds) - len(exact)} of {len(row.seeds)} seeds" if misses(row, key) else ""
    if len(exact) == 1:
        return f"{exact[0]}{unit}{missed}"
    mean = f"{stat.mean:,.1f}" if is_bytes else f"{stat.mean:.6g}"
    return f"mean {mean}{unit} of {len(exact)} seeds: {'; '.join(exact)}{missed}"


def best_rows(rows: Sequence[Row], column: Column) -> frozenset[int]:
    """Find which rows hold the best figure of a column.

    Args:
        rows: all rows; partial ones never win, since they have sent less for being shorter, nor do those of
            which a seed lacks the figure.
        column: one of ``columns_of(rows)``.

    Returns:
        Positions in ``rows``; empty where nothing is compared or all are equal.
    """
    means: dict[int, float] = {}
    for position, row in enumerate(rows):
        mean = ranked(row, column.key)
        if mean is not None:
            means[position] = mean
    if column.best is None or len(set(means.values())) < 2:
        return frozenset()
    best = min(means.values()) if column.best == "low" else max(means.values())
    return frozenset(position for position, mean in means.items() if mean == best)


def _row(method: str, group: Sequence[Run]) -> Row:
    complete = [run for run in group if run.status == "complete"]
    runs = complete or list(group)

    def stat(key: str) -> Stat | None:
        values = [getattr(run, key) for run in runs]
        known = tuple(value for value in values if value is not None)
        return Stat(known) if known else None

    def always(key: str) -> Stat:
        return Stat(tuple(getattr(run, key) for run in runs))

    shares = tuple(
        run.compression_seconds / run.seconds for run in runs if run.compression_seconds is not None and run.seconds
    )
    return Row(
        method=method,
        folder=runs[0].folder,
        spec=runs[0].spec,
        algorithm=runs[0].algorithm,
        links=runs[0].links,
        budget=runs[0].budget,
        seeds=tuple(run.seed for run in runs),
        num_partial=len(group) - len(complete),
        status="complete" if complete else "partial",
        clients=runs[0].clients,
        rounds=runs[0].rounds,
        rounds_done=min(run.rounds_done for run in runs),
        accuracy=stat("final_accuracy"),
        uplink_bytes=always("uplink_bytes"),
        downlink_bytes=always("downlink_bytes"),
        other_bytes=always("other_bytes"),
        dense_uplink_bytes=always("dense_uplink_bytes"),
        compression_ratio=stat("compression_ratio"),
        bits_per_parameter=stat("bits_per_parameter"),
        header_bytes=stat("header_bytes"),
        support_bytes=stat("support_bytes"),
        values_bytes=stat("values_bytes"),
        wan_uplink_bytes=stat("wan_uplink_bytes"),
        wan_downlink_bytes=stat("wan_downlink_bytes"),
        num_parameters=runs[0].num_parameters,
        virtual_seconds=stat("virtual_seconds"),
        target_accuracy=runs[0].target_accuracy,
        target_virtual_seconds=stat("target_virtual_seconds"),
        target_total_bytes=stat("target_total_bytes"),
        compression_share=Stat(shares) if shares else None,
        client_rounds_per_second=stat("client_rounds_per_second"),
        seconds=stat("seconds"),
        compression_seconds=stat("compression_seconds"),
    )


def ranked(row: Row, key: str) -> float | None:
    """Return a row's mean where it may be compared: the run is complete and every seed has the figure."""
    stat: Stat | None = getattr(row, key)
    return stat.mean if stat and row.status == "complete" and len(stat.values) == len(row.seeds) else None


def target(rows: Sequence[Row]) -> float | None:
    """Return the accuracy that was aimed at, where it is one and the same."""
    targets = {row.target_accuracy for row in rows if row.target_accuracy is not None}
    return targets.pop() if len(targets) == 1 else None


def misses(row: Row, key: str) -> bool:
    """Tell whether a seed did not reach the target that a figure is about."""
    if not key.startswith("target_") or row.target_accuracy is None:
        return False
    if key == "target_virtual_seconds" and row.virtual_seconds is None:
        return False
    stat: Stat | None = getattr(row, key)
    return stat is None or len(stat.values) < len(row.seeds)


def whole_percent(fraction: float) -> str:
    """Write a share that was set: ``95 %``."""
    return f"{100 * fraction:g} %"


def _three_digits(value: float) -> str:
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
