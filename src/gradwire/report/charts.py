"""The charts of a run's page: a row each. What a chart is drawn by gets ``Runs`` and gives a plotly figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from gradwire.report.bars import Figure, time_bars, upload_bars
from gradwire.report.plots import Runs, accuracy_lines

__all__ = ["CHARTS", "Chart", "draw"]

Draw = Callable[[Runs], Figure | None]


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
        name: of its figure.
        title: above it.
        shows: what it shows, for who cannot see it.
        draw: makes the figure; None where there is nothing to show. Several, by what their buttons say, are views of
            one chart, of which the first is seen first.
        caption: what to look for.
        key: what the looks of its bars stand for: a class of page.css and a word.
        bands: whether lines have bands over seeds.
        empty: what to say where there is nothing to show; empty: the chart is left out.
    """

    name: str
    title: str
    shows: str
    draw: Draw | Mapping[str, Draw]
    caption: str = ""
    key: tuple[tuple[str, str], ...] = field(default=())
    bands: bool = False
    empty: str = ""

    def views(self) -> dict[str, tuple[str, Draw]]:
        """Return name of the figure -> what its button says and what draws it."""
        if callable(self.draw):
            return {self.name: ("", self.draw)}
        return {f"{self.name}_{label}": (label, draw) for label, draw in self.draw.items()}


CHARTS = (
    Chart(
        "accuracy_bytes",
        "Accuracy against bytes sent",
        "Test accuracy against uplink bytes so far, a line for each method; final values are in the table",
        partial(accuracy_lines, against="uplink"),
        caption="Further left is cheaper, further up is better.",
        bands=True,
        empty="No round with an accuracy and uplink bytes is recorded in metrics.jsonl.",
    ),
    Chart(
        "accuracy_rounds",
        "Accuracy against round",
        "Test accuracy against round, a line for each method; final values are in the table",
        partial(accuracy_lines, against="rounds"),
        caption="A method that trains as well lies on the dashed dense line.",
        bands=True,
        empty="No round with an accuracy is recorded in metrics.jsonl.",
    ),
    Chart(
        "accuracy_time",
        "Accuracy against virtual time",
        "Test accuracy against virtual time, a line for each method; final values are in the table",
        partial(accuracy_lines, against="clock"),
        caption="Further left is sooner, further up is better.",
        bands=True,
    ),
    Chart(
        "upload",
        "What an upload is made of",
        "Mean bytes of an upload split into header, support and values, a bar for each method",
        {
            "bytes": lambda runs: upload_bars(runs.rows, runs.styles, share=False),
            "shares": lambda runs: upload_bars(runs.rows, runs.styles, share=True),
        },
        key=(("hatched", "header"), ("pale", "support (which coordinates)"), ("", "values")),
        empty="summary.json does not say how the uplink bytes split into header, support and values.",
    ),
    Chart(
        "time",
        "Where the time went",
        "Seconds of a run split into compression and training, a bar for each method",
        lambda runs: time_bars(runs.rows, runs.styles),
        key=(("", "compression (in Client and Server)"), ("pale", "training and everything else")),
        empty="summary.json does not say how long compression took.",
    ),
)


def draw(runs: Runs) -> tuple[list[tuple[Chart, dict[str, str]]], dict[str, Figure]]:
    """Draw all charts.

    Args:
        runs: what they are drawn from.

    Returns:
        The charts to be shown, in order, each with the names of its figures and what their buttons say, none where it
        is empty; and the figures by name.
    """
    shown, figures = [], {}
    for chart in CHARTS:
        drawn = {name: (label, figure) for name, (label, make) in chart.views().items() if (figure := make(runs))}
        figures.update({name: figure for name, (_, figure) in drawn.items()})
        if drawn or chart.empty:
            shown.append((chart, {name: label for name, (label, _) in drawn.items()}))
    return shown, figures
