"""Blocks as one self-contained HTML page."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from gradwire.report import offline
from gradwire.report.bars import SHARED_LAYOUT, Figure
from gradwire.report.plots import band
from gradwire.report.series import styles_of, swatch
from gradwire.reproduce.blocks import Block, Chart

__all__ = ["render"]


def render(title: str, settings: Sequence[str], blocks: Sequence[Block]) -> str:
    """Render a page that opens offline.

    Args:
        title: its title.
        settings: what to say under it.
        blocks: its content.

    Returns:
        The HTML.

    Raises:
        BackendUnavailable: jinja2 is not installed.
    """
    charts = [block for block in blocks if isinstance(block, Chart)]
    return offline.render(
        "blocks.html.j2",
        {chart.name: _figure(chart) for chart in charts},
        {chart.name: offline.packed(json.dumps(_sheet(chart), separators=(",", ":"))) for chart in charts},
        title=title,
        settings=settings,
        blocks=[{"kind": type(b).__name__, **{f.name: getattr(b, f.name) for f in fields(b)}} for b in blocks],
        legends={chart.name: _legend(chart) for chart in charts},
    )


def _legend(chart: Chart) -> list[dict[str, str]]:
    styles = styles_of(series.name for series in chart.series)
    groups = (f"{chart.name}-{number}" for number in range(len(styles)))
    return [{"name": name, "group": group, **swatch(styles[name])} for name, group in zip(styles, groups, strict=True)]


def _sheet(chart: Chart) -> dict[str, list[Any]]:
    """What a chart's CSV is made of."""
    rows: list[tuple[str, float, float, float | None]] = []
    for series in chart.series:
        spreads = series.spread if len(series.spread) else [None] * len(series.x)
        rows += [(series.name, x, y, spread) for x, y, spread in zip(series.x, series.y, spreads, strict=True)]
    names = ("series", chart.x_label, chart.y_label, "spread")
    return {name: [row[column] for row in rows] for column, name in enumerate(names)}


def _figure(chart: Chart) -> Figure:
    styles = styles_of(series.name for series in chart.series)
    data: list[dict[str, Any]] = []
    for number, series in enumerate(chart.series):
        style, group = styles[series.name], {"legendgroup": f"{chart.name}-{number}"}
        if len(series.spread):
            low, high = ([y + sign * s for y, s in zip(series.y, series.spread, strict=True)] for sign in (-1, 1))
            data.append(band(series.x, low, high, style) | group)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(series.x) < 40 else "lines",
                "name": html.escape(series.name),
                "x": list(series.x),
                "y": list(series.y),
                "line": {"color": style.color, "dash": style.dash, "width": 2},
                "marker": {"color": style.color, "symbol": style.symbol, "size": 6},
                **group,
            }
        )
    axes = {
        "xaxis": {"title": {"text": html.escape(chart.x_label)}, "type": "log" if chart.log_x else "linear"},
        "yaxis": {"title": {"text": html.escape(chart.y_label)}, "type": "log" if chart.log_y else "linear"},
    }
    shown = {"height": 420, "hovermode": "closest", "margin": {"l": 64, "r": 16, "t": 30, "b": 52}}
    return {"data": data, "layout": {**SHARED_LAYOUT, **axes, **shown}}
