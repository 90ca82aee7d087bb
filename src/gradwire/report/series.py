"""What charts over rounds are drawn from: a figure of each round, averaged over the seeds of a method."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from gradwire.report.bars import Style
from gradwire.report.clients import ClientCounts, add_up
from gradwire.report.load import RoundPoint
from gradwire.report.tables import Row

__all__ = ["Line", "Runs", "Value", "front", "styles_of", "swatch", "thinned"]

# Okabe and Ito's palette without black (lost in the dark) and yellow (lost in the light).
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#8A8A8A"
_DASHES = ("solid", "dot", "dashdot", "longdashdot")
# CSS borders know fewer patterns than plotly's lines.
_BORDERS = {"solid": "solid", "dash": "dashed", "dot": "dotted", "dashdot": "dashed", "longdashdot": "double"}
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")

Value = Callable[[RoundPoint, Row | None], float | None]


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


def swatch(style: Style) -> dict[str, str]:
    """Return what CSS draws of a style in a legend: a colour and the look of a border."""
    return {"color": style.color, "border": _BORDERS[style.dash]}


@dataclass(frozen=True)
class Line:
    """A figure of one method over the rounds in which all its seeds have it.

    Attributes:
        method: whose.
        group: what joins all that is drawn of the method.
        num_seeds: how many seeds are averaged.
        rounds: 1-based.
        uplink: mean bytes that clients had sent by the end of each.
        clock: mean virtual second then; 0 where there is no clock.
        values: the mean figure.
        low: the lowest of a seed.
        high: the highest of a seed.
    """

    method: str
    group: str
    num_seeds: int
    rounds: list[int]
    uplink: list[float]
    clock: list[float]
    values: list[float]
    low: list[float]
    high: list[float]


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
    def seeds(self) -> dict[str, dict[int, list[tuple[int, RoundPoint]]]]:
        """Method -> seed -> (bytes that clients had sent by the end of a round, the round), in order."""
        wanted = {row.method: set(row.seeds) for row in self.rows}
        found: dict[str, dict[int, list[RoundPoint]]] = {method: {} for method in self.styles}
        for point in self.points:
            if point.seed in wanted.get(point.method, {point.seed}):
                found[point.method].setdefault(point.seed, []).append(point)
        return {method: {seed: _summed(points) for seed, points in seeds.items()} for method, seeds in found.items()}

    @cached_property
    def clients(self) -> dict[str, dict[int, ClientCounts]]:
        """Method -> seed -> counts of each client over all rounds, where rounds tell them."""
        found = {}
        for method, seeds in self.seeds.items():
            told = {s: [p.clients for _, p in points if p.clients is not None] for s, points in seeds.items()}
            found[method] = {seed: add_up(counts) for seed, counts in told.items() if counts}
        return {method: seeds for method, seeds in found.items() if seeds}

    def group(self, method: str) -> str:
        """Return what joins all that is drawn of a method."""
        return f"m{list(self.styles).index(method)}"

    def lines(self, value: Value) -> list[Line]:
        """Average a figure of rounds over seeds.

        Args:
            value: (round, the method's row where it has one) -> the figure, None where the round has none.

        Returns:
            One a method that has any.
        """
        rows = {row.method: row for row in self.rows}
        lines = []
        for position, (method, seeds) in enumerate(self.seeds.items()):
            of_seeds = [
                {
                    point.index: (total, point.virtual_seconds or 0.0, found)
                    for total, point in points
                    if (found := value(point, rows.get(method))) is not None
                }
                for points in seeds.values()
            ]
            of_seeds = [rounds for rounds in of_seeds if rounds]
            shared = sorted(set(of_seeds[0]).intersection(*of_seeds[1:])) if of_seeds else []
            if not shared:
                continue
            columns = [[[rounds[index][column] for rounds in of_seeds] for index in shared] for column in range(3)]
            uplink, clock, values = ([_mean(at) for at in column] for column in columns)
            low, high = [min(at) for at in columns[2]], [max(at) for at in columns[2]]
            rounds = [index + 1 for index in shared]
            lines.append(Line(method, f"m{position}", len(of_seeds), rounds, uplink, clock, values, low, high))
        return lines


def front(values: Sequence[float]) -> list[int]:
    """Find the Pareto front of a line whose cost only grows: the positions at which it is higher than ever before.

    Args:
        values: in the order of their cost.

    Returns:
        Positions, increasing.

    Example:
        >>> front([0.1, 0.3, 0.2, 0.4])
        [0, 1, 3]
    """
    best, found = float("-inf"), []
    for position, value in enumerate(values):
        if value > best:
            best = value
            found.append(position)
    return found


def thinned(values: Sequence[float], most: int) -> list[int]:
    """Choose what to draw of a line: the ends, and of each of many equal stretches the lowest and the highest point.

    Args:
        values: (n,) ordinates.
        most: how many to keep, at least 4.

    Returns:
        Positions, increasing, at most ``most``; all of them where there are no more. The extremes are among them.
    """
    n = len(values)
    if n <= most:
        return list(range(n))
    stretches = (most - 2) // 2
    kept = {0, n - 1}
    for i in range(stretches):
        stretch = range(i * n // stretches, (i + 1) * n // stretches)
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(kept)


def _summed(points: Sequence[RoundPoint]) -> list[tuple[int, RoundPoint]]:
    total, found = 0, []
    for point in sorted(points, key=lambda point: point.index):
        total += point.uplink_bytes
        found.append((total, point))
    return found


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(values) == 1 else sum(values) / len(values)
