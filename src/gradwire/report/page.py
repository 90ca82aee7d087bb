"""Write report.html: one page that holds its own script and style, opens offline and loads nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gradwire.errors import ConfigError
from gradwire.report import charts, offline, tables
from gradwire.report.bars import Style
from gradwire.report.folders import TASK, Folder, common, differences, read_folders
from gradwire.report.load import RoundPoint, Run
from gradwire.report.series import Runs, styles_of, swatch
from gradwire.report.sheets import Sheet, sheets_of
from gradwire.report.verdict import verdict

__all__ = ["build_report", "render"]

_NAME, _NAME_OF_SEVERAL = "report.html", "comparison.html"
_MOST_SHEET_BYTES = 5_000_000  # with the figures, beside half a million of plotly


def build_report(*directories: Path | str, out: Path | str | None = None) -> Path:
    """Build the page of one folder of runs, or one that compares several folders.

    The page is written beside its place and moved there in one step, so readers see the old one or the
    new one. Equal inputs give equal bytes.

    Args:
        *directories: folders of finished or interrupted runs, with their summary.json and metrics.jsonl.
        out: the file to write; None: report.html in the folder, or, of several folders, comparison.html here.

    Returns:
        The path of the page.

    Raises:
        ConfigError: a file is missing, damaged or of the wrong shape, or the page cannot be written.
        BackendUnavailable: jinja2 is not installed.

    Example:
        >>> build_report("runs/2025-01-01")  # doctest: +SKIP
        PosixPath('runs/2025-01-01/report.html')
        >>> build_report("runs/plain", "runs/tuned", out="tuning.html")  # doctest: +SKIP
        PosixPath('tuning.html')
    """
    if not directories:
        raise ConfigError("a report needs the folder of a run, got none")
    folders = read_folders([Path(directory) for directory in directories])
    path = (folders[0].path / _NAME if len(folders) == 1 else Path(_NAME_OF_SEVERAL)) if out is None else Path(out)
    # Lone surrogates are valid in JSON strings and have no UTF-8.
    offline.replace_file(path, render(folders, path.parent).encode("utf-8", errors="backslashreplace"))
    return path


def render(folders: Sequence[Folder], beside: Path) -> str:
    """Render the page.

    Args:
        folders: what it shows.
        beside: the folder it will lie in: links to the files behind it begin there.

    Returns:
        The HTML.

    Raises:
        BackendUnavailable: jinja2 is not installed.
    """
    runs = [run for folder in folders for run in folder.runs]
    points = [point for folder in folders for point in folder.points]
    experiment, differing = common(folders), differences(folders)
    rows = tables.rows_of(runs)
    ranked = not any(name in differing for name in TASK)
    specs = {row.method: row.spec for row in rows} | {point.method: point.spec for point in points}
    styles = styles_of(specs, {method for method, spec in specs.items() if tables.is_dense(spec)})
    drawn = Runs(rows, points, styles)
    shown, figures = charts.draw(drawn)
    sheets, every = _sheets(drawn, _MOST_SHEET_BYTES - len(offline.script_json(figures)))
    grouped = any("legendgroup" in trace for figure in figures.values() for trace in figure["data"])
    columns = tables.columns_of(rows)
    several_seeds = any(len(row.seeds) > 1 for row in rows)
    return offline.render(
        "page.html.j2",
        figures,
        sheets,
        every=every,
        title=_title(experiment),
        verdict=verdict(rows) if ranked else "Trained or tested on different data, so none is ranked before another.",
        settings=_settings(experiment, rows),
        folders=[folder.name for folder in folders],
        differences=differing,
        sources=[_links(folder, beside) for folder in folders],
        notes=_notes(rows, runs, points),
        several_seeds=several_seeds,
        columns=columns,
        table=_table(rows, columns, styles, several_seeds=several_seeds, ranked=ranked),
        virtual=any(row.virtual_seconds for row in rows),
        legend=[
            {"method": method, "group": f"m{position}", **swatch(style)}
            for position, (method, style) in enumerate(styles.items())
            if grouped
        ],
        charts=shown,
    )


def _sheets(runs: Runs, most: int) -> tuple[dict[str, str], bool]:
    """The sheets as the page holds them, of fewer rounds where they take more than ``most``; whether all are there."""
    sheets = {name: _packed(sheet) for name, sheet in sheets_of(runs).items()}
    size = sum(map(len, sheets.values()))
    if size <= most:
        return sheets, True
    longest = max((len(points) for seeds in runs.seeds.values() for points in seeds.values()), default=0)
    fewer = max(4, int(0.9 * longest * most / size))
    return {name: _packed(sheet) for name, sheet in sheets_of(runs, fewer).items()}, False


def _packed(sheet: Sheet) -> str:
    return offline.packed(json.dumps(sheet, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def _links(folder: Folder, beside: Path) -> dict[str, str]:
    """The files behind a page, as links that begin where it lies."""
    try:
        way = Path(os.path.relpath(folder.path, beside)).as_posix()
    except ValueError:  # on another drive
        way = Path(os.path.abspath(folder.path)).as_posix()
    start = "" if way == "." else f"{quote(os.fsencode(way))}/"
    return {"name": folder.name, "summary": f"{start}summary.json", "metrics": f"{start}metrics.jsonl"}


def import_report() -> None:
    """Check that a report can be built later, before hours are spent on what it would show.

    Raises:
        BackendUnavailable: jinja2 is not installed.
    """
    offline.environment()


def _table(
    rows: Sequence[tables.Row],
    columns: Sequence[tables.Column],
    styles: Mapping[str, Style],
    *,
    several_seeds: bool,
    ranked: bool,
) -> list[dict[str, Any]]:
    best = {column.key: tables.best_rows(rows, column) if ranked else frozenset() for column in columns}
    lines: list[dict[str, Any]] = []
    for position, row in enumerate(rows):
        badge, badge_title = "", ""
        if row.status == "partial":
            badge = f"partial: {row.rounds_done} of {row.rounds} rounds"
            badge_title = "interrupted: its totals are those of the rounds that were done"
        elif row.num_partial:
            badge = f"{row.num_partial} partial {'seed' if row.num_partial == 1 else 'seeds'} left out"
            badge_title = "interrupted runs are not part of the mean"
        lines.append(
            {
                "method": row.method,
                "spec": "" if row.spec in row.method else row.spec,
                **swatch(styles[row.method]),
                "badge": badge,
                "badge_title": badge_title,
                "seeds": _seeds(row.seeds) if several_seeds else "",
                "cells": [
                    {
                        "text": parts[0],
                        "spread": parts[1],
                        "title": tables.cell_title(row, column.key),
                        "best": position in best[column.key],
                    }
                    for column in columns
                    for parts in [tables.cell_parts(row, column.key)]
                ],
            }
        )
    return lines


def _seeds(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(str(seed) for seed in seeds)}"


def _title(experiment: Mapping[str, Any]) -> str:
    subject = ", ".join(str(experiment[key]) for key in ("data", "model") if key in experiment)
    return f"gradwire report: {subject}" if subject else "gradwire report"


def _settings(experiment: Mapping[str, Any], rows: Sequence[tables.Row]) -> list[str]:
    settings: dict[str, Any] = dict(experiment)
    for name in ("clients", "rounds"):
        numbers = sorted({getattr(row, name) for row in rows})
        if numbers:
            settings[name] = numbers[0] if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    if rows:
        settings.setdefault("seeds", sorted({seed for row in rows for seed in row.seeds}))
    told: list[str] = []
    forms = {
        "data": "{}",
        "test_name": "tested on the {}",
        "model": "{}",
        "num_parameters": "{:,} parameters",
        "clients": "{} clients",
        "rounds": "{} rounds",
        "local_steps": "{} local steps",
        "partition": "{} partition",
        "batch_size": "batch size {}",
        "learning_rate": "learning rate {}",
        "seeds": "{}",
        "version": "gradwire {}",
    }
    for key, form in forms.items():
        if key not in settings:
            continue
        value = settings[key]
        if key == "seeds":
            value = _seeds(value if isinstance(value, list) else [value])
        told.append(form.format(value if key == "num_parameters" else str(value)))
    return told


def _notes(rows: Sequence[tables.Row], runs: Sequence[Run], points: Sequence[RoundPoint]) -> list[str]:
    """Say what keeps these figures from being compared as they stand."""
    notes: list[str] = []
    partial = [row for row in rows if row.status == "partial"]
    if partial:
        names = ", ".join(f"{row.method} ({row.rounds_done} of {row.rounds} rounds)" for row in partial)
        notes.append(f"Interrupted before the end, so neither ranked nor in the verdict: {names}.")
    if len({(run.clients, run.rounds_done) for run in runs if run.status == "complete"}) > 1:
        notes.append("The methods ran with different numbers of clients or rounds: compare ratios, not totals.")
    sent: dict[tuple[str, int], int] = {}
    for point in points:
        sent[point.method, point.seed] = sent.get((point.method, point.seed), 0) + point.uplink_bytes
    for run in runs:
        name = f"{run.method}, seed {run.seed}"
        parts = (run.header_bytes, run.support_bytes, run.values_bytes)
        known = [part for part in parts if part is not None]
        total_parts = sum(known) + run.again_bytes
        if len(known) == len(parts) and total_parts != run.uplink_bytes:
            again = " and what was sent again" if run.again_bytes else ""
            notes.append(
                f"{name}: header, support and values{again} add up to {total_parts:,} bytes, uplink_bytes says "
                f"{run.uplink_bytes:,}."
            )
        total = sent.get((run.method, run.seed))
        if total is not None and total != run.uplink_bytes:
            notes.append(
                f"{name}: the rounds in metrics.jsonl add up to {total:,} uplink bytes, summary.json says "
                f"{run.uplink_bytes:,}."
            )
    return notes
