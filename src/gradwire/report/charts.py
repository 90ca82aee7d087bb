"""The charts of a run's page: a row each. What a chart is drawn by gets ``Runs`` and gives a plotly figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from gradwire.report.bars import Figure, direction_bars, time_bars, upload_bars
from gradwire.report.load import RoundPoint
from gradwire.report.plots import accuracy_lines, client_points, final_points, loss_lines, round_lines, value_of
from gradwire.report.series import Runs
from gradwire.report.tables import Row

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
        sheet: whose columns are its CSV: ``methods``, ``rounds`` or ``clients``.
        columns: which of them, beside those that name the row; none: all.
    """

    name: str
    title: str
    shows: str
    draw: Draw | Mapping[str, Draw]
    caption: str = ""
    key: tuple[tuple[str, str], ...] = field(default=())
    bands: bool = False
    empty: str = ""
    sheet: str = "methods"
    columns: tuple[str, ...] = ()

    def views(self) -> dict[str, tuple[str, Draw]]:
        """Return name of the figure -> what its button says and what draws it."""
        if callable(self.draw):
            return {self.name: ("", self.draw)}
        return {f"{self.name}_{label.replace(' ', '_')}": (label, draw) for label, draw in self.draw.items()}


def _density(point: RoundPoint, row: Row | None) -> float | None:
    if point.num_kept is None or not point.num_sent or row is None or not row.num_parameters:
        return None
    return point.num_kept / point.num_sent / row.num_parameters


def _aggregate_density(point: RoundPoint, row: Row | None) -> float | None:
    if point.num_moved is None or row is None or not row.num_parameters:
        return None
    return point.num_moved / row.num_parameters


def _missing(point: RoundPoint, row: Row | None) -> float | None:
    counts = [count for count in (point.num_late, point.num_lost, point.num_idle) if count is not None]
    return sum(counts) if counts else None


_DENSITY = "density %{y:.3g} %"
_SHARE_TITLE = "share of the coordinates (%)"

CHARTS = (
    Chart(
        "accuracy_bytes",
        "Accuracy against bytes sent",
        "Test accuracy against uplink bytes so far, a line for each method; final values are in the table",
        partial(accuracy_lines, against="uplink"),
        caption="Further left is cheaper, further up is better. Bold steps are a method's Pareto front, the best "
        "accuracy for no more bytes; the pale line is every round.",
        bands=True,
        empty="No round with an accuracy and uplink bytes is recorded in metrics.jsonl.",
        sheet="rounds",
        columns=("accuracy", "uplink_bytes_so_far"),
    ),
    Chart(
        "accuracy_rounds",
        "Accuracy against round",
        "Test accuracy against round, a line for each method; final values are in the table",
        partial(accuracy_lines, against="rounds"),
        caption="A method that trains as well lies on the dashed dense line.",
        bands=True,
        empty="No round with an accuracy is recorded in metrics.jsonl.",
        sheet="rounds",
        columns=("accuracy", "loss"),
    ),
    Chart(
        "loss",
        "Loss",
        "Loss on the test examples and in training, a line for each method",
        {
            "test by bytes": partial(loss_lines, name="test_loss", against="uplink"),
            "test by round": partial(loss_lines, name="test_loss", against="rounds"),
            "training by round": partial(loss_lines, name="loss", against="rounds"),
        },
        caption="Further down is better. Training: the mean over clients and steps of a round.",
        bands=True,
        sheet="rounds",
        columns=("test_loss", "loss", "uplink_bytes_so_far"),
    ),
    Chart(
        "accuracy_final",
        "Final accuracy against all uplink bytes",
        "Final test accuracy against the uplink bytes of the whole run, a point for each method; both are in the table",
        final_points,
        caption="Dotted steps join the Pareto front of methods that differ in numbers alone; no other method beats a "
        "large point in both.",
        columns=("accuracy", "uplink_bytes"),
    ),
    Chart(
        "accuracy_time",
        "Accuracy against virtual time",
        "Test accuracy against virtual time, a line for each method; final values are in the table",
        partial(accuracy_lines, against="clock"),
        caption="Further left is sooner, further up is better. Bold steps are a method's Pareto front.",
        bands=True,
        sheet="rounds",
        columns=("accuracy", "virtual_seconds"),
    ),
    Chart(
        "direction",
        "Bytes by direction",
        "Bytes of a run split into uplink, downlink and the rest, a bar for each method",
        lambda runs: direction_bars(runs.rows, runs.styles),
        key=(("", "uplink"), ("pale", "downlink"), ("hatched", "other"), ("dotted", "between regions and server")),
        columns=("uplink_bytes", "downlink_bytes", "other_bytes", "wan_uplink_bytes", "wan_downlink_bytes"),
    ),
    Chart(
        "clients",
        "Bytes by client",
        "Bytes of each client over the whole run, a point for each client and method",
        {
            "uplink": partial(client_points, kind="uplink", title="uplink bytes of the run"),
            "downlink": partial(client_points, kind="downlink", title="downlink bytes of the run"),
            "other": partial(client_points, kind="other", title="other bytes of the run"),
        },
        caption="Other bytes: the initial model, resynchronisation and control variates.",
        sheet="clients",
        columns=("uplink_bytes", "downlink_bytes", "other_bytes"),
    ),
    Chart(
        "missing",
        "Who was late or lost",
        "Payloads and turns of each client that came to nothing, a point for each client and method",
        {
            "late": partial(client_points, kind="late", title="payloads late in the run"),
            "lost": partial(client_points, kind="lost", title="payloads lost in the run"),
            "idle": partial(client_points, kind="idle", title="turns not begun in the run"),
        },
        caption="Late: after the deadline, or too old. Lost: the link or the session ended before. Idle: not begun, "
        "since training would not have ended in time.",
        sheet="clients",
        columns=("num_late", "num_lost", "num_idle"),
    ),
    Chart(
        "missing_rounds",
        "Late, lost or idle by round",
        "How many payloads and turns came to nothing in each round, a line for each method",
        partial(
            round_lines, value=_missing, title="payloads and turns in a round", said="%{y:,.3g} late, lost or idle"
        ),
        sheet="rounds",
        columns=("num_sent", "num_late", "num_lost", "num_idle"),
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
        columns=("header_bytes", "support_bytes", "values_bytes"),
    ),
    Chart(
        "density",
        "Density",
        "Share of the coordinates sent in each round, a line for each method",
        {
            "of an upload": partial(
                round_lines, value=_density, title=_SHARE_TITLE, said=_DENSITY, percent=True, wide=10.0
            ),
            "of the aggregate": partial(
                round_lines, value=_aggregate_density, title=_SHARE_TITLE, said=_DENSITY, percent=True, wide=10.0
            ),
        },
        caption="The aggregate has the coordinates of all uploads of its round together.",
        sheet="rounds",
        columns=("num_sent", "num_kept", "num_moved"),
    ),
    Chart(
        "overlap",
        "Overlap of supports",
        "Share of an aggregate's coordinates that the aggregate of the round before had, a line for each method",
        partial(
            round_lines,
            value=value_of("overlap"),
            title="coordinates of the round before (%)",
            said="%{y:.3g} % of the coordinates again",
            percent=True,
        ),
        caption="Of the coordinates that a round's aggregate has, how many the round before had as well.",
        sheet="rounds",
        columns=("num_moved", "overlap"),
    ),
    Chart(
        "residual",
        "What error feedback keeps for later",
        "Norm of what was not sent yet, a line for each method with error feedback",
        {
            "residual": partial(
                round_lines,
                value=value_of("residual_norm"),
                title="norm of a residual (root mean square)",
                said="residual %{y:.4g}",
            ),
            "update": partial(
                round_lines,
                value=value_of("update_norm"),
                title="norm of an update (root mean square)",
                said="update %{y:.4g}",
            ),
        },
        caption="Euclidean norms over all parameters, over the clients of a round; an update is as before compression.",
        sheet="rounds",
        columns=("residual_norm", "update_norm"),
    ),
    Chart(
        "time",
        "Where the time went",
        "Seconds of a run split into compression and training, a bar for each method",
        lambda runs: time_bars(runs.rows, runs.styles),
        key=(("", "compression (in Client and Server)"), ("pale", "training and everything else")),
        empty="summary.json does not say how long compression took.",
        columns=("seconds", "compression_seconds"),
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
            shown.append((_with_key(chart, drawn), {name: label for name, (label, _) in drawn.items()}))
    return shown, figures


def _with_key(chart: Chart, drawn: Mapping[str, tuple[str, Figure]]) -> Chart:
    """A chart whose key leaves out parts that no bar has."""
    parts = [figure["data"] for _, figure in drawn.values()]
    key = tuple(entry for n, entry in enumerate(chart.key) if any(any(traces[n]["x"]) for traces in parts))
    return replace(chart, key=key)
