"""Stacked bars: what an upload is made of, which way bytes and where the time went, as plain plotly figures."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradwire.report.tables import Row, format_bytes

__all__ = ["SHARED_LAYOUT", "Figure", "Style", "direction_bars", "num_uploads", "time_bars", "upload_bars", "wrapped"]

Figure = dict[str, Any]

SHARED_LAYOUT: dict[str, Any] = {
    "showlegend": False,
    "hoverlabel": {"namelength": -1, "align": "left"},
    "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12},
}

_WRAP = 44
_LINE_HEIGHT = 16
_BAR_HEIGHT = 22
_GAP = 12
_TOP, _FOOT = 30, 56


@dataclass(frozen=True, slots=True)
class Style:
    """How one method looks in every chart, in the legend and in the table."""

    color: str
    dash: str
    symbol: str


def num_uploads(row: Row) -> float:
    """Count the uploads behind a row's uplink bytes.

    Args:
        row: a row.

    Returns:
        Dense bytes over 4 bytes a parameter; clients times rounds where the parameters are not known.
    """
    if row.num_parameters:
        return row.dense_uplink_bytes.mean / (4 * row.num_parameters)
    return float(row.clients * row.rounds_done)


def upload_bars(rows: Sequence[Row], styles: Mapping[str, Style], *, share: bool) -> Figure | None:
    """Draw the mean upload of every method split into header, support and values.

    Args:
        rows: one a method.
        styles: method to style.
        share: in percent of the upload instead of bytes.

    Returns:
        The figure, ``None`` where no row has the split.
    """
    bars = []
    for row in rows:
        uploads = num_uploads(row)
        header, support, values = row.header_bytes, row.support_bytes, row.values_bytes
        if header is None or support is None or values is None or uploads <= 0:
            continue
        parts = [stat.mean / uploads for stat in (header, support, values)]
        total = sum(parts)
        if total > 0:
            bars.append((row, parts, format_bytes(total)))
    hovers = ("header, references and checksum", "support: which coordinates", "values")
    return _stacked(
        bars,
        styles,
        hovers=hovers,
        looks=("header", "support", "values"),
        share=share,
        title="share of an upload (%)" if share else "bytes per upload (mean)",
        axis={"tickformat": "d"} if share else {"tickformat": "~s"},
        amount=format_bytes,
    )


def direction_bars(rows: Sequence[Row], styles: Mapping[str, Style]) -> Figure | None:
    """Draw the bytes of every method split by the way they went.

    Args:
        rows: one a method.
        styles: method to style.

    Returns:
        The figure, ``None`` where nothing travelled.
    """
    bars = []
    for row in rows:
        between = sum(stat.mean for stat in (row.wan_uplink_bytes, row.wan_downlink_bytes) if stat is not None)
        parts = [row.uplink_bytes.mean, row.downlink_bytes.mean, row.other_bytes.mean, between]
        if sum(parts) > 0:
            bars.append((row, parts, format_bytes(sum(parts))))
    return _stacked(
        bars,
        styles,
        hovers=("uplink", "downlink, every copy", "other", "between regions and server"),
        looks=("values", "support", "header", "dotted"),
        share=False,
        title="bytes of a run",
        axis={"tickformat": "~s"},
        amount=format_bytes,
    )


def time_bars(rows: Sequence[Row], styles: Mapping[str, Style]) -> Figure | None:
    """Draw the time of every method split into compression and the rest.

    Args:
        rows: one a method.
        styles: method to style.

    Returns:
        The figure, ``None`` where no row has both times.
    """
    bars = []
    for row in rows:
        if row.seconds is None or row.compression_seconds is None or row.seconds.mean <= 0:
            continue
        compression = min(row.compression_seconds.mean, row.seconds.mean)
        rest = row.seconds.mean - compression
        bars.append((row, [compression, rest], f"{row.seconds.mean:,.1f} s"))
    return _stacked(
        bars,
        styles,
        hovers=("compression (Client and Server)", "training and the rest"),
        looks=("values", "support"),
        share=False,
        title="seconds per run",
        axis={},
        amount=lambda seconds: f"{seconds:,.3g} s",
    )


# How one part of a bar is told from the next within a method's colour: the CSS legend draws the same.
_LOOKS: dict[str, dict[str, Any]] = {
    "header": {"opacity": 1.0, "pattern": {"shape": "x", "size": 5, "solidity": 0.45, "fillmode": "replace"}},
    "support": {"opacity": 0.4},
    "dotted": {"opacity": 1.0, "pattern": {"shape": ".", "size": 5, "solidity": 0.4, "fillmode": "replace"}},
    "values": {"opacity": 1.0},
}


def _stacked(
    bars: Sequence[tuple[Row, list[float], str]],
    styles: Mapping[str, Style],
    *,
    hovers: Sequence[str],
    looks: Sequence[str],
    share: bool,
    title: str,
    axis: Mapping[str, Any],
    amount: Callable[[float], str],
) -> Figure | None:
    if not bars:
        return None
    labels = [
        f"{wrapped(row.method)}{' (partial)' if row.status != 'complete' else ''}: <b>{total}</b>"
        for row, _, total in bars
    ]
    # The y axis counts pixels downwards, so a label of several lines pushes only what is below it.
    centres: list[float] = []
    bottom = 0.0
    for label in labels:
        centres.append(bottom + _LINE_HEIGHT * (1 + label.count("<br>")) + _BAR_HEIGHT / 2)
        bottom = centres[-1] + _BAR_HEIGHT / 2 + _GAP
    data = []
    for part, (hover, look) in enumerate(zip(hovers, looks, strict=True)):
        texts = []
        for row, parts, total in bars:
            percent = 100 * parts[part] / sum(parts)
            texts.append(
                f"<b>{wrapped(row.method)}</b><br>{hover}<br>{amount(parts[part])}, {percent:.1f} % of {total}"
            )
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": hover,
                "y": centres,
                "x": [100 * parts[part] / sum(parts) if share else parts[part] for _, parts, _ in bars],
                "width": _BAR_HEIGHT,
                "marker": {"color": [styles[row.method].color for row, _, _ in bars], **_LOOKS[look]},
                "customdata": texts,
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )
    annotations = [
        {
            "xref": "paper",
            "x": 0,
            "xanchor": "left",
            "yref": "y",
            "y": centre - _BAR_HEIGHT / 2,
            "yanchor": "bottom",
            "text": label,
            "align": "left",
            "showarrow": False,
        }
        for centre, label in zip(centres, labels, strict=True)
    ]
    return {
        "data": data,
        "layout": {
            "barmode": "stack",
            "annotations": annotations,
            "xaxis": {"title": {"text": title}, "rangemode": "tozero", **axis},
            "yaxis": {"visible": False, "range": [bottom, 0], "fixedrange": True},
            "hovermode": "closest",
            "height": round(bottom) + _TOP + _FOOT,
            "margin": {"l": 8, "r": 24, "t": _TOP, "b": _FOOT},
            **SHARED_LAYOUT,
        },
    }


def wrapped(method: str) -> str:
    """Escape a method's name for a plotly label and break it where it is long.

    Args:
        method: user text.

    Returns:
        Lines of at most 44 characters joined by ``<br>``.
    """
    lines, rest = [], " ".join(method.split()) or "(unnamed)"
    while len(rest) > _WRAP:
        cut = max(rest.rfind(mark, 20, _WRAP) for mark in "(|, ") + 1
        cut = cut or _WRAP
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return "<br>".join(html.escape(line) for line in [*lines, rest])
