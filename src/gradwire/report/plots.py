"""Lines over rounds as plain plotly figures (dicts of ``data`` and ``layout``): equal input gives equal figures.

Names of methods are user text. Plotly reads a few HTML tags in labels, so names are HTML-escaped here;
that the JSON cannot leave its ``<script>`` is the page's business.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gradwire.report.bars import SHARED_LAYOUT, Figure, Style, wrapped
from gradwire.report.load import RoundPoint
from gradwire.report.tables import Row, format_bytes, format_seconds

__all__ = ["Curve", "Runs", "accuracy_lines", "band", "styles_of"]

# Okabe and Ito's palette without black (lost in the dark) and yellow (lost in the light).
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#8A8A8A"
_WIDE = 100
_DASHES = ("solid", "dot", "dashdot", "longdashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")


def styles_of(methods: Iterable[str], dense: Collection[str] = ("dense()",)) -> dict[str, Style]:
    """Give every method a colour, dash and marker; dense ones are dashed, the first of them grey.

    Args:
        methods: in order, each once.
        dense: which of them send everything.

    Returns:
        Method to style. Six colours, each in four dashes, before a pair repeats.
    """
    styles: dict[str, Style] = {}
    position = 0
    for method in methods:
        if method in dense and not any(style.color == _GREY for style in styles.values()):
            styles[method] = Style(_GREY, "dash", "circle-open")
            continue
        color = _PALETTE[position % len(_PALETTE)]
        dash, symbol = _DASHES[position // len(_PALETTE) % len(_DASHES)], _SYMBOLS[position % len(_SYMBOLS)]
        styles[method] = Style(color, "dash", "circle-open") if method in dense else Style(color, dash, symbol)
        position += 1
    return styles


@dataclass(frozen=True)
class Runs:
    """What the charts of a page are drawn from.

    Attributes:
        rows: one a method.
        points: one a round, method and seed; those of seeds that are not in a method's row are left out.
        styles: what ``styles_of`` gave for all methods of rows and points.
    """

    rows: Sequence[Row]
    points: Sequence[RoundPoint]
    styles: Mapping[str, Style]

    @cached_property
    def curves(self) -> list[Curve]:
        """One a method, over the rounds that all its seeds evaluated."""
        return _curves(self.rows, self.points, self.styles)


@dataclass(frozen=True, slots=True)
class Curve:
    """A method over the rounds that all its seeds evaluated; accuracies in percent."""

    method: str
    group: str
    num_seeds: int
    rounds: list[int]
    uplink: list[float]
    clock: list[float]
    accuracy: list[float]
    low: list[float]
    high: list[float]
    loss: list[float | None]


def _curves(rows: Sequence[Row], points: Sequence[RoundPoint], styles: Mapping[str, Style]) -> list[Curve]:
    wanted = {row.method: set(row.seeds) for row in rows}
    series: dict[str, dict[int, list[RoundPoint]]] = {}
    for point in points:
        if point.seed in wanted.get(point.method, {point.seed}):
            series.setdefault(point.method, {}).setdefault(point.seed, []).append(point)
    curves = []
    for position, method in enumerate(styles):
        seeds = []
        for one_seed in series.get(method, {}).values():
            total, evaluated = 0, {}
            for point in sorted(one_seed, key=lambda point: point.index):
                total += point.uplink_bytes
                if point.accuracy is not None:
                    evaluated[point.index] = (total, point.accuracy, point.loss, point.virtual_seconds or 0.0)
            if evaluated:
                seeds.append(evaluated)
        shared = sorted(set.intersection(*(set(seed) for seed in seeds))) if seeds else []
        if not shared:
            continue
        at = [[seed[index] for seed in seeds] for index in shared]
        curves.append(
            Curve(
                method=method,
                group=f"m{position}",
                num_seeds=len(seeds),
                rounds=[index + 1 for index in shared],
                uplink=[_mean([total for total, _, _, _ in values]) for values in at],
                clock=[_mean([clock for _, _, _, clock in values]) for values in at],
                accuracy=[100 * _mean([accuracy for _, accuracy, _, _ in values]) for values in at],
                low=[100 * min(accuracy for _, accuracy, _, _ in values) for values in at],
                high=[100 * max(accuracy for _, accuracy, _, _ in values) for values in at],
                loss=[_mean_or_none([loss for _, _, loss, _ in values]) for values in at],
            )
        )
    return curves


def accuracy_lines(runs: Runs, *, against: str) -> Figure | None:
    """Draw the accuracy of every method as a line, with a band over its seeds.

    Args:
        runs: what is drawn from.
        against: the abscissa, an attribute of ``Curve``: ``uplink``, ``rounds`` or ``clock``.

    Returns:
        The figure, ``None`` where there is nothing to draw.
    """
    data: list[dict[str, Any]] = []
    reached: list[float] = []
    for curve in runs.curves:
        style = runs.styles[curve.method]
        along: Sequence[float] = getattr(curve, against)
        kept = [i for i, value in enumerate(along) if value > 0]
        if not kept:
            continue
        x = [along[i] for i in kept]
        reached += x
        if curve.num_seeds > 1:
            low, high = ([bound[i] for i in kept] for bound in (curve.low, curve.high))
            data.append(band(x, low, high, style) | {"legendgroup": curve.group})
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": html.escape(curve.method),
                "meta": wrapped(curve.method),
                "x": x,
                "y": [curve.accuracy[i] for i in kept],
                "customdata": [_hover(curve, i) for i in kept],
                "line": {"color": style.color, "dash": style.dash, "width": 2},
                "marker": {"color": style.color, "symbol": style.symbol, "size": 6},
                "hovertemplate": "<b>%{meta}</b><br>%{customdata}<extra></extra>",
                "legendgroup": curve.group,
            }
        )
    if not data:
        return None
    xaxis: dict[str, Any] = {"title": {"text": "round"}, "rangemode": "tozero", "tickformat": ",d"}
    if against == "uplink":
        xaxis = {
            "title": {"text": "cumulative uplink bytes (log scale)"},
            "type": "log",
            "tickformat": "~s",
        }
    if against == "clock":
        xaxis = {"title": {"text": "virtual seconds"}, "rangemode": "tozero", "tickformat": ",~r"}
        if max(reached) > _WIDE * min(reached):
            xaxis = {"title": {"text": "virtual seconds (log scale)"}, "type": "log", "tickformat": ",~r"}
    yaxis = {"title": {"text": "test accuracy (%)"}, "ticksuffix": " "}
    return {
        "data": data,
        "layout": {
            "xaxis": xaxis,
            "yaxis": yaxis,
            "hovermode": "closest",
            "height": 400,
            "margin": {"l": 56, "r": 16, "t": 30, "b": 52},
            **SHARED_LAYOUT,
        },
    }


def _hover(curve: Curve, i: int) -> str:
    spread = ""
    if curve.num_seeds > 1:
        low, high = curve.low[i], curve.high[i]
        spread = f" (mean of {curve.num_seeds} seeds, {low:.2f} to {high:.2f})"
    loss = curve.loss[i]
    shown_loss = "" if loss is None else f"<br>training loss {loss:.4g}"
    clock = f"<br>virtual time {curve.clock[i]:,.4g} s ({format_seconds(curve.clock[i])})" if curve.clock[i] else ""
    return (
        f"round {curve.rounds[i]}<br>accuracy {curve.accuracy[i]:.2f} %{spread}"
        f"<br>uplink so far {curve.uplink[i]:,.0f} B ({format_bytes(curve.uplink[i])}){clock}{shown_loss}"
    )


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(values) == 1 else sum(values) / len(values)


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], style: Style) -> dict[str, Any]:
    """Return the trace of an area between two lines, pale in a style's colour."""
    red, green, blue = (int(style.color[i : i + 2], 16) for i in (1, 3, 5))
    return {
        "type": "scatter",
        "x": [*x, *reversed(x)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},0.18)",
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
    }
