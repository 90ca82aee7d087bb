"""Lines and points as plain plotly figures (dicts of ``data`` and ``layout``): equal input gives equal figures.

Names of methods are user text. Plotly reads a few HTML tags in labels, so names are HTML-escaped here;
that the JSON cannot leave its ``<script>`` is the page's business.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gradwire.report.bars import SHARED_LAYOUT, Figure, Style, wrapped
from gradwire.report.clients import KINDS, is_number
from gradwire.report.load import RoundPoint
from gradwire.report.series import Line, Runs, Value, front, thinned
from gradwire.report.tables import Row

__all__ = ["accuracy_lines", "band", "client_points", "final_points", "loss_lines", "round_lines", "value_of"]

_WIDE = 100.0  # what spans more than this factor is drawn on a log scale
_MOST_POINTS = 2000  # of a figure
_FEW = 10  # whole numbers that all get a tick
_MOST_MARKERS = 60  # of a line: more are a blur
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")

# the abscissa of lines, and by which factor its values have to differ for a log scale
_AXES: dict[str, tuple[dict[str, Any], float]] = {
    "rounds": ({"title": {"text": "round"}, "rangemode": "tozero", "tickformat": ",d"}, float("inf")),
    "uplink": ({"title": {"text": "uplink bytes so far"}, "rangemode": "tozero", "tickformat": "~s"}, 10.0),
    "clock": ({"title": {"text": "virtual time (s)"}, "rangemode": "tozero", "tickformat": "~s"}, _WIDE),
}


def accuracy_lines(runs: Runs, *, against: str) -> Figure | None:
    """Draw the accuracy of every method as a line, with a band over its seeds.

    Args:
        runs: what is drawn from.
        against: the abscissa, an attribute of ``Line``: ``uplink``, ``rounds`` or ``clock``. Against what it costs
            (bytes, time) the line is pale, and its Pareto front is drawn over it as steps.

    Returns:
        The figure, ``None`` where there is nothing to draw.
    """
    lines = runs.lines(lambda point, row: None if point.accuracy is None else 100 * point.accuracy)
    title = {"title": {"text": "test accuracy (%)"}, "ticksuffix": " "}
    return _drawn(runs, lines, against, title, "accuracy %{y:.2f} %", fronts=against != "rounds")


def loss_lines(runs: Runs, *, name: str, against: str) -> Figure | None:
    """Draw a loss of every method as a line, with a band over its seeds.

    Args:
        runs: what is drawn from.
        name: ``test_loss`` or ``loss``, the training's.
        against: as for ``accuracy_lines``.

    Returns:
        The figure, ``None`` where no round has that loss.
    """
    title = {"title": {"text": "training loss" if name == "loss" else "test loss"}, "tickformat": "~g"}
    return _drawn(runs, runs.lines(value_of(name)), against, title, "loss %{y:.4g}")


def round_lines(
    runs: Runs, value: Value, *, title: str, said: str, percent: bool = False, wide: float = _WIDE
) -> Figure | None:
    """Draw a figure of rounds as a line for each method.

    Args:
        runs: what is drawn from.
        value: what ``Runs.lines`` takes.
        title: of the ordinate, with its unit.
        said: of a point, as plotly's hovertemplate.
        percent: whether values are shares, to be drawn in percent.
        wide: by which factor values have to differ to be drawn on a log scale.

    Returns:
        The figure, ``None`` where no round has the figure.
    """
    factor = 100.0 if percent else 1.0

    def scaled(point: RoundPoint, row: Row | None) -> float | None:
        found = value(point, row)
        return None if found is None else factor * found

    lines = runs.lines(scaled)
    if all(value == 0 for line in lines for value in line.values):
        return None
    axis = {"title": {"text": title}, "rangemode": "tozero", "tickformat": "~g"}
    return _drawn(
        runs, lines, "rounds", _scaled(axis, [value for line in lines for value in line.values] or [0.0], wide), said
    )


def value_of(name: str) -> Value:
    """Return what reads an attribute of a round."""

    def value(point: RoundPoint, row: Row | None) -> float | None:
        found: float | None = getattr(point, name)
        return found

    return value


def client_points(runs: Runs, *, kind: str, title: str) -> Figure | None:
    """Draw what each client sent, received or lost as a point for each method, averaged over seeds.

    Args:
        runs: what is drawn from.
        kind: which count: one of ``KINDS``.
        title: of the ordinate, with its unit.

    Returns:
        The figure, ``None`` where nothing was counted. Clients with none are left out.
    """
    column = KINDS.index(kind)
    data, numbered = [], True
    for method, seeds in runs.clients.items():
        found: dict[str, float] = {}
        for one in seeds.values():
            for name, count in zip(one.names, one.counts[:, column].tolist(), strict=True):
                found[name] = found.get(name, 0.0) + count / len(seeds)
        numbered = numbered and all(map(is_number, found))
        found = {name: count for name, count in found.items() if count}
        if not found:
            continue
        names, counts = list(found), list(found.values())
        kept = thinned(counts, _share(len(runs.clients)))
        data.append(
            {
                **_named(runs, method),
                "mode": "markers",
                "x": [names[i] for i in kept],
                "y": [_short(counts[i]) for i in kept],
                "hovertemplate": "<b>%{meta}</b><br>client %{x}<br>%{y:,}<extra></extra>",
            }
        )
    if not data:
        return None
    for trace in data:
        trace["x"] = [int(name) for name in trace["x"]] if numbered else [html.escape(name) for name in trace["x"]]
    xaxis: dict[str, Any] = {"title": {"text": "client"}, "type": "category"}
    if numbered:
        last = max(x for trace in data for x in trace["x"])
        ends = {"range": [-0.03 * last - 0.5, 1.03 * last + 0.5], "tickformat": "d"}
        xaxis = _scaled({"title": {"text": "client"}, **ends}, [0, last])
    yaxis = {"title": {"text": title}, "rangemode": "tozero", "tickformat": "~s" if "bytes" in title else ",d"}
    return _figure(data, xaxis, _scaled(yaxis, [y for trace in data for y in trace["y"]]))


def final_points(runs: Runs) -> Figure | None:
    """Draw every method's final accuracy against its uplink bytes, with the Pareto front of each kind of method.

    Of one kind are methods whose text differs in numbers alone.

    Args:
        runs: what is drawn from.

    Returns:
        The figure, ``None`` where fewer than two methods have both figures.
    """
    rows = [row for row in runs.rows if row.accuracy is not None and row.uplink_bytes.mean > 0]
    if len(rows) < 2:
        return None
    places = {row.method: (row.uplink_bytes.mean, 100 * row.accuracy.mean) for row in rows if row.accuracy is not None}
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(_NUMBER.sub("#", row.method), []).append(row)
    data: list[dict[str, Any]] = []
    for members in kinds.values():
        best = _best([row.method for row in members], places)
        if len(best) > 1:
            style = runs.styles[best[0]]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [_short(places[method][0]) for method in best],
                    "y": [_short(places[method][1]) for method in best],
                    "line": {"color": style.color, "width": 1.5, "dash": "dot", "shape": "hv"},
                    "hoverinfo": "skip",
                    "showlegend": False,
                }
            )
    of_all = set(_best(list(places), places))
    for row in rows:
        x, y = places[row.method]
        trace = _named(runs, row.method)
        marker = {**trace["marker"], "size": 13 if row.method in of_all else 8}
        among = "<br>on the front of all" if row.method in of_all else ""
        said = f"<b>%{{meta}}</b><br>accuracy %{{y:.2f}} %<br>uplink %{{x:,}} B{among}<extra></extra>"
        data.append(
            {**trace, "mode": "markers", "x": [_short(x)], "y": [_short(y)], "marker": marker, "hovertemplate": said}
        )
    axis = {"title": {"text": "uplink bytes of the whole run"}, "rangemode": "tozero", "tickformat": "~s"}
    return _figure(
        data,
        _scaled(axis, [x for x, _ in places.values()], 10.0),
        {"title": {"text": "final test accuracy (%)"}, "ticksuffix": " "},
    )


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


def _drawn(
    runs: Runs, lines: Sequence[Line], against: str, yaxis: dict[str, Any], said: str, *, fronts: bool = False
) -> Figure | None:
    """Lines against rounds, bytes or time; what is not above 0 there is left out."""
    data: list[dict[str, Any]] = []
    reached: list[float] = []
    for line in lines:
        along: Sequence[float] = getattr(line, against)
        there = [i for i, value in enumerate(along) if value > 0]
        kept = [there[i] for i in thinned([line.values[i] for i in there], _share(len(lines)))]
        if not kept:
            continue
        x, y = ([_short(values[i]) for i in kept] for values in (along, line.values))
        reached += x
        if line.num_seeds > 1:
            low, high = ([_short(bound[i]) for i in kept] for bound in (line.low, line.high))
            data.append(band(x, low, high, runs.styles[line.method]) | {"legendgroup": line.group})
        data.append(_line(runs, line, kept, x, y, said, pale=fronts))
        if fronts:
            best = front(y)
            steps = {"mode": "lines", "hoverinfo": "skip", "showlegend": False, "meta": "front"}
            shape = {**_named(runs, line.method)["line"], "width": 2.5, "shape": "hv"}
            ends = [*best, len(y) - 1]  # what was best goes on to the end
            xs, ys = [x[i] for i in ends], [*(y[i] for i in best), y[best[-1]]]
            data.append({**_named(runs, line.method), **steps, "line": shape, "x": xs, "y": ys})
    if not data:
        return None
    axis, wide = _AXES[against]
    return _figure(data, _scaled(axis, reached, wide), yaxis)


def _line(
    runs: Runs, line: Line, kept: Sequence[int], x: Sequence[float], y: Sequence[float], said: str, *, pale: bool
) -> dict[str, Any]:
    shown = ["<b>%{meta}</b>", "round %{customdata[0]:,}", said, "uplink so far %{customdata[1]:,} B"]
    details: list[Sequence[float]] = [line.rounds, line.uplink]
    if any(line.clock):
        shown.append("virtual time %{customdata[2]:,.4g} s")
        details.append(line.clock)
    if line.num_seeds > 1:
        ends = (f"%{{customdata[{len(details) + i}]}}" for i in range(2))
        shown.append(f"mean of {line.num_seeds} seeds, {' to '.join(ends)}")
        details += [line.low, line.high]
    trace = _named(runs, line.method)
    return {
        **trace,
        "mode": "lines+markers" if len(kept) <= _MOST_MARKERS else "lines",
        "x": x,
        "y": y,
        "customdata": [[_short(detail[i]) for detail in details] for i in kept],
        "hovertemplate": "<br>".join(shown) + "<extra></extra>",
        **({"opacity": 0.45, "line": {**trace["line"], "width": 1.2}} if pale else {}),
    }


def _named(runs: Runs, method: str) -> dict[str, Any]:
    """What all traces of a method have in common."""
    style = runs.styles[method]
    return {
        "type": "scatter",
        "name": html.escape(method),
        "meta": wrapped(method),
        "line": {"color": style.color, "dash": style.dash, "width": 2},
        "marker": {"color": style.color, "symbol": style.symbol, "size": 6},
        "legendgroup": runs.group(method),
    }


def _best(methods: Sequence[str], places: Mapping[str, tuple[float, float]]) -> list[str]:
    """Those that no other beats in both bytes and accuracy, the cheapest first."""
    ordered = sorted(methods, key=lambda method: (places[method][0], -places[method][1]))
    return [ordered[i] for i in front([places[method][1] for method in ordered])]


def _figure(data: list[dict[str, Any]], xaxis: Mapping[str, Any], yaxis: Mapping[str, Any]) -> Figure:
    return {
        "data": data,
        "layout": {
            "xaxis": {**xaxis, "automargin": True},
            "yaxis": {**yaxis, "automargin": True},
            "hovermode": "closest",
            "height": 400,
            "margin": {"l": 56, "r": 16, "t": 30, "b": 52},
            **SHARED_LAYOUT,
        },
    }


def _scaled(axis: dict[str, Any], values: Sequence[float], wide: float = _WIDE) -> dict[str, Any]:
    """An axis for some values: on a log scale where they are above 0 and span more than a factor of ``wide``."""
    low, high = min(values), max(values)
    if low <= 0 or high <= wide * low:
        whole = str(axis.get("tickformat", "")).endswith("d") and high <= _FEW
        return {**axis, "dtick": 1} if whole else axis
    title, decades = axis["title"]["text"], math.log10(high / low)
    said = f"{title[:-1]}, log scale)" if title.endswith(")") else f"{title} (log scale)"
    return {**axis, "title": {"text": said}, "type": "log", "dtick": "D2" if decades < 2 else math.ceil(decades / 6)}


def _share(num_traces: int) -> int:
    """How many points each of some traces of a figure may have."""
    return max(20, _MOST_POINTS // num_traces)


def _short(value: float) -> float:
    """A number in no more digits than a chart can show; whole ones stay whole."""
    return int(value) if float(value).is_integer() else float(f"{value:.6g}")
