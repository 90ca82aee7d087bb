"""Units: the pieces of work a reproduction consists of; each is run once and leaves one JSON file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Function", "Paper", "Unit", "thinned"]

Function = Callable[[dict[str, Any], Callable[[float], None]], dict[str, Any]]
"""(settings, progress) -> result: plain values that JSON takes; progress is called with the share done, in [0, 1]."""


@dataclass(frozen=True)
class Unit:
    """A piece of work.

    Attributes:
        name: unique in its reproduction, and a file's name.
        function: key of ``Paper.functions``, or ``"train"``: the settings are then an experiment's with one method and
            one seed.
        settings: plain values that JSON takes.
    """

    name: str
    function: str
    settings: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Paper:
    """How one paper is reproduced.

    Attributes:
        name: as in ``gradwire reproduce NAME``.
        title: the paper's, with its arXiv id.
        units: configuration -> the units in the order they are run.
        functions: what units that do not train call.
        report: (configuration, results by unit's name; some may be missing) -> blocks.
    """

    name: str
    title: str
    units: Callable[[dict[str, Any]], list[Unit]]
    functions: dict[str, Function]
    report: Callable[[dict[str, Any], dict[str, dict[str, Any]]], list[Any]]


def thinned(points: list[list[float]], count: int = 200) -> list[list[float]]:
    """Return at most about ``count`` means over equal stretches of rounds, each at its last round.

    Args:
        points: [round, value] pairs, one a round.
        count: how many to leave.

    Returns:
        [last round, mean] pairs.
    """
    size = -(-len(points) // count)
    pieces = [points[i : i + size] for i in range(0, len(points), size)]
    return [[piece[-1][0], sum(value for _, value in piece) / len(piece)] for piece in pieces]
