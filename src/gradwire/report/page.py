"""Write DIR/report.html: one page that holds its own script and style, opens offline and loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradwire.report import offline, plots, tables
from gradwire.report.bars import Style
from gradwire.report.load import (
    RoundPoint,
    Run,
    parse_experiment,
    parse_runs,
    read_metrics,
    read_summary,
)

__all__ = ["build_report", "render"]

_NAME = "report.html"
# CSS borders know fewer patterns than plotly's lines.
_BORDERS = {"solid": "solid", "dash": "dashed", "dot": "dotted", "dashdot": "dashed", "longdashdot": "double"}


def build_report(directory: Path) -> Path:
    """Build DIR/report.html from DIR/summary.json and DIR/metrics.jsonl.

    The page is written beside its place and moved there in one step, so readers see the old one or the
    new one. Equal inputs give equal bytes.

    Args:
        directory: the folder of a finished or interrupted ``gradwire run``.

    Returns:
        The path of the page.

    Raises:
        ConfigError: a file is missing, damaged or of the wrong shape, or the page cannot be written.
        BackendUnavailable: plotly or jinja2 is not installed.

    Example:
        >>> build_report(Path("runs/2025-01-01"))  # doctest: +SKIP
        PosixPath('runs/2025-01-01/report.html')
    """
    directory = Path(directory)
    summary = read_summary(directory)
    page = render(summary, read_metrics(directory), source=str(directory / "summary.json"))
    path = directory / _NAME
    # Lone surrogates are valid in JSON strings and have no UTF-8.
    offline.replace_file(path, page.encode("utf-8", errors="backslashreplace"))
    return path


def render(summary: Mapping[str, Any], points: Sequence[RoundPoint], *, source: str = "summary.json") -> str:
    """Render the page.

    Args:
        summary: the contents of summary.json.
        points: the lines of metrics.jsonl.
        source: what error messages call the summary.

    Returns:
        The HTML.

    Raises:
        ConfigError: the summary is of the wrong shape.
        BackendUnavailable: plotly or jinja2 is not installed.
    """
    runs = parse_runs(summary, source)
    experiment = parse_experiment(summary, source)
    rows = tables.rows_of(runs)
    styles = plots.styles_of(dict.fromkeys([*(row.method for row in rows), *(p.method for p in points)]))
    figures = plots.build_figures(rows, points, styles, experiment.get("num_parameters"))
    several_seeds = any(len(row.seeds) > 1 for row in rows)

    environment, markup = offline.environment()
    plotly_js = plots.plotly_js().replace("</script", "<\\/script") if figures else ""
    page_js = offline.resource("page.js")
    return str(
        environment.get_template("page.html.j2").render(
            title=_title(experiment),
            policy=offline.policy(plotly_js, page_js),
            verdict=tables.verdict(rows),
            settings=_settings(experiment, rows),
            notes=_notes(rows, runs, points),
            several_seeds=several_seeds,
            columns=tables.COLUMNS,
            table=_table(rows, styles, several_seeds=several_seeds),
            legend=[
                {"method": method, "group": f"m{position}", **_swatch(style)}
                for position, (method, style) in enumerate(styles.items())
            ],
            figures=figures,
            figures_json=markup(offline.script_json(figures)),
            css=markup(offline.resource("page.css")),
            plotly_js=markup(plotly_js),
            page_js=markup(page_js),
        )
    )


def import_report() -> None:
    """Check that a report can be built later, before hours are spent on what it would show.

    Raises:
        BackendUnavailable: plotly or jinja2 is not installed.
    """
    offline.environment()
    plots.plotly_js()


def _swatch(style: Style) -> dict[str, str]:
    return {"color": style.color, "border": _BORDERS[style.dash]}


def _table(rows: Sequence[tables.Row], styles: Mapping[str, Style], *, several_seeds: bool) -> list[dict[str, Any]]:
    best = {column.key: tables.best_rows(rows, column) for column in tables.COLUMNS}
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
                **_swatch(styles[row.method]),
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
                    for column in tables.COLUMNS
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
    if rows:
        settings.setdefault("clients", rows[0].clients)
        settings.setdefault("rounds", rows[0].rounds)
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
    if len({(row.clients, row.rounds) for row in rows}) > 1:
        notes.append("The methods ran with different numbers of clients or rounds: compare ratios, not totals.")
    sent: dict[tuple[str, int], int] = {}
    for point in points:
        sent[point.method, point.seed] = sent.get((point.method, point.seed), 0) + point.uplink_bytes
    for run in runs:
        name = f"{run.method}, seed {run.seed}"
        parts = (run.header_bytes, run.support_bytes, run.values_bytes)
        known = [part for part in parts if part is not None]
        if len(known) == len(parts) and sum(known) != run.uplink_bytes:
            notes.append(
                f"{name}: header, support and values add up to {sum(known):,} bytes, uplink_bytes says "
                f"{run.uplink_bytes:,}."
            )
        total = sent.get((run.method, run.seed))
        if total is not None and total != run.uplink_bytes:
            notes.append(
                f"{name}: the rounds in metrics.jsonl add up to {total:,} uplink bytes, summary.json says "
                f"{run.uplink_bytes:,}."
            )
    return notes
