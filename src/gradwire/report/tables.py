"""The figures of a comparison as rows, without HTML: the page and the terminal table share them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    "format_bytes",
    "rows_of",
    "summary_rows",
    "verdict",
]

_NOTHING = "–"  # noqa: RUF001 - an en dash is what a table shows for "not measured"
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_CLOSE_ENOUGH = 0.02


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
    compression_share: Stat | None
    client_rounds_per_second: Stat | None
    seconds: Stat | None
    compression_seconds: Stat | None

    @property
    def is_dense(self) -> bool:
        """Whether this is the uncompressed run that others are measured against."""
        return self.method.replace(" ", "") == "dense()"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table: the ``Row`` field it shows, its title, and which end is best (or ``None``)."""

    key: str
    title: str
    best: str | None
    help: str


COLUMNS: tuple[Column, ...] = (
    Column("accuracy", "Accuracy", "high", "of the final model on the test examples"),
    Column("uplink_bytes", "Uplink", "low", "bytes from clients to the server, all clients and rounds"),
    Column("downlink_bytes", "Downlink", "low", "bytes from server to clients, every copy counted"),
    Column("other_bytes", "Other", "low", "initial model, resynchronisation and control variates"),
    Column("compression_ratio", "Compression ratio", "high", "dense float32 bytes over uplink bytes"),
    Column("bits_per_parameter", "Bits per parameter", "low", "8 times an upload's bytes over parameters"),
    Column("compression_share", "Compression time", "low", "share of the time spent in Client and Server"),
    Column("client_rounds_per_second", "Client-rounds/s", "high", "client rounds simulated a second"),
    Column("seconds", "Time", "low", "wall-clock seconds of the whole run"),
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


def cell_parts(row: Row, key: str) -> tuple[str, str]:
    """Write one figure and its standard deviation over seeds.

    Args:
        row: a row.
        key: a ``Column.key``.

    Returns:
        The mean with its unit, an en dash where nothing was measured; and the deviation in the same unit,
        empty for a single seed or where all seeds agree exactly.
    """
    stat: Stat | None = getattr(row, key)
    if stat is None:
        return _NOTHING, ""
    mean, std = stat.mean, stat.std or 0.0
    if key.endswith("_bytes"):
        return format_bytes(mean), format_bytes(std) if std else ""
    scale, unit, digits = 1.0, "", 2
    if key in ("accuracy", "compression_share"):
        scale, unit, digits = 100.0, " %", 1
    elif key == "seconds":
        unit, digits = " s", 1
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
        return "not measured"
    is_bytes = key.endswith("_bytes")
    exact = [f"{value:,.0f}" if is_bytes else f"{value:.6g}" for value in stat.values]
    unit = " bytes" if is_bytes else ""
    if len(exact) == 1:
        return f"{exact[0]}{unit}"
    mean = f"{stat.mean:,.1f}" if is_bytes else f"{stat.mean:.6g}"
    return f"mean {mean}{unit} of {len(exact)} seeds: {'; '.join(exact)}"


def best_rows(rows: Sequence[Row], column: Column) -> frozenset[int]:
    """Find which rows hold the best figure of a column.

    Args:
        rows: all rows; partial ones never win, since they have sent less for being shorter.
        column: one of ``COLUMNS``.

    Returns:
        Positions in ``rows``; empty where nothing is compared or all are equal.
    """
    means: dict[int, float] = {}
    for position, row in enumerate(rows):
        stat: Stat | None = getattr(row, column.key)
        if stat is not None and row.status == "complete":
            means[position] = stat.mean
    if column.best is None or len(set(means.values())) < 2:
        return frozenset()
    best = min(means.values()) if column.best == "low" else max(means.values())
    return frozenset(position for position, mean in means.items() if mean == best)


def verdict(rows: Sequence[Row]) -> str:
    """Say in one sentence which method pays: the fewest uplink bytes within two points of dense.

    Args:
        rows: what ``summary_rows`` gave.

    Returns:
        Plain text, which says so where there is no dense run to compare with or no method that pays.
    """
    if not rows:
        return "No run has finished a round yet, so there is nothing to compare."
    dense = next((row for row in rows if row.is_dense), None)
    if dense is None:
        return "There is no dense() run here, so nothing says what compression costs in accuracy."
    if dense.status != "complete":
        return "The dense() run is only partial, so nothing says what compression costs in accuracy."
    if dense.accuracy is None:
        return "The dense() run has no final accuracy, so nothing says what compression costs in accuracy."
    others = [row for row in rows if not row.is_dense and row.status == "complete"]
    if not others:
        return "Only dense() ran to its end, so there is no compressed run to compare it with."
    target = dense.accuracy.mean
    floor = target - _CLOSE_ENOUGH - 1e-9
    close = [row for row in others if row.accuracy is not None and row.accuracy.mean >= floor]
    if not close:
        return f"No method comes within 2 points of the {_percent(target)} that dense() reaches."
    winner = min(close, key=lambda row: row.uplink_bytes.mean)
    spent, dense_spent = winner.uplink_bytes.mean, dense.uplink_bytes.mean
    if spent >= dense_spent or spent <= 0 or winner.accuracy is None:
        return f"No method within 2 points of dense() ({_percent(target)}) sends fewer uplink bytes than it."
    return (
        f"{winner.method} reaches {_percent(winner.accuracy.mean)} against {_percent(target)} dense "
        f"with {_times(dense_spent / spent)} fewer uplink bytes "
        f"({format_bytes(spent)} instead of {format_bytes(dense_spent)})."
    )


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
        compression_share=Stat(shares) if shares else None,
        client_rounds_per_second=stat("client_rounds_per_second"),
        seconds=stat("seconds"),
        compression_seconds=stat("compression_seconds"),
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _times(ratio: float) -> str:
    if ratio < 9.95:
        return f"{ratio:.1f}x" if ratio >= 1.1 else f"{ratio:.2f}x"
    return f"{ratio:,.0f}x"


def _three_digits(value: float) -> str:
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
