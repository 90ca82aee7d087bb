"""Blocks as one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from gradwire.report import offline
from gradwire.report.bars import SHARED_LAYOUT, Figure
from gradwire.report.plots import band
from gradwire.report.series import styles_of
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
        BackendUnavailable: plotly or jinja2 is not installed.
    """
    return offline.render(
        "blocks.html.j2",
        {block.name: _figure(block) for block in blocks if isinstance(block, Chart)},
        title=title,
        settings=settings,
        blocks=[{"kind": type(b).__name__, **{f.name: getattr(b, f.name) for f in fields(b)}} for b in blocks],
    )


def _figure(chart: Chart) -> Figure:
    styles = styles_of(series.name for series in chart.series)
    data: list[dict[str, Any]] = []
    for series in chart.series:
        style = styles[series.name]
        if len(series.spread):
            low, high = ([y + sign * s for y, s in zip(series.y, series.spread, strict=True)] for sign in (-1, 1))
            data.append(band(series.x, low, high, style))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(series.x) < 40 else "lines",
                "name": html.escape(series.name),
                "x": list(series.x),
                "y": list(series.y),
                "line": {"color": style.color, "dash": style.dash, "width": 2},
                "marker": {"color": style.color, "symbol": style.symbol, "size": 6},
            }
        )
    axes = {
        "xaxis": {"title": {"text": chart.x_label}, "type": "log" if chart.log_x else "linear"},
        "yaxis": {"title": {"text": chart.y_label}, "type": "log" if chart.log_y else "linear"},
    }
    shown = {"showlegend": True, "legend": {"orientation": "h", "y": -0.2}, "height": 460, "hovermode": "closest"}
    return {"data": data, "layout": {**SHARED_LAYOUT, **axes, **shown}}
