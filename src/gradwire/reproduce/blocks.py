"""What a report is made of, before anybody decides whether it becomes HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Block", "Chart", "Heading", "Series", "Table", "Text"]


@dataclass(frozen=True)
class Heading:
    """A heading.

    Attributes:
        text: plain text.
    """

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: plain text; `code` stands between backquotes.
    """

    text: str


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        headings: one a column.
        rows: cells, as text; `code` stands between backquotes.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: for the legend.
        x: abscissas.
        y: ordinates, as many.
        spread: half the height of the band round y, or nothing.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = field(default=())


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        name: a file name for it.
        title: what it shows.
        x_label: name and unit of the abscissas.
        y_label: name and unit of the ordinates.
        series: its lines.
        log_x: whether the abscissas are on a logarithmic scale.
        log_y: whether the ordinates are.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False


Block = Heading | Text | Table | Chart
