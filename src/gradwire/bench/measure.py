"""Timing in rounds: every operation once a round, beside the floor measured in that round."""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Operation", "Samples", "measure", "peak_bytes", "seconds_of"]


_OWN_READINGS = 3


@dataclass(frozen=True)
class Operation:
    """Something to time.

    Attributes:
        group: ``peer``, ``ours`` or ``adversarial``.
        name: unique among those measured together.
        run: called with the number of the round; what it returns is freed after the clock was read.
        note: what it is, for a reader.
        parts: how many clients one call serves; its seconds are divided by that.
        floor: an addition of the very arrays that it adds, run right before it, where its ratio is to that.
    """

    group: str
    name: str
    run: Callable[[int], object]
    note: str = ""
    parts: int = 1
    floor: Callable[[int], object] | None = None


@dataclass(frozen=True)
class Samples:
    """What was measured: one number a round for the floor and for each operation.

    Attributes:
        floors: seconds of the floor.
        seconds: name -> seconds of the operation.
        own: name -> seconds of its own floor, for operations that have one.
    """

    floors: list[float]
    seconds: dict[str, list[float]]
    own: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """Put together what was measured one after the other; an operation's floor is that of its own part."""
        seconds = {name: taken for part in parts for name, taken in part.seconds.items()}
        own = {name: part.own.get(name, part.floors) for part in parts for name in part.seconds}
        return cls([floor for part in parts for floor in part.floors], seconds, own)

    @property
    def floor(self) -> float:
        """Median seconds of the floor."""
        return statistics.median(self.floors)

    def median(self, name: str) -> float:
        """Median seconds of an operation."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str) -> float:
        """Median of an operation's seconds over the floor's, its own where it has one, of the same round."""
        floors = self.own.get(name, self.floors)
        return statistics.median(s / f for s, f in zip(self.seconds[name], floors, strict=True))

    def compare(self, these: Iterable[str], those: Iterable[str]) -> float:
        """Median of what some operations took together over what others took together in the same round."""
        pairs = zip(self._together(these), self._together(those), strict=True)
        return statistics.median(a / b for a, b in pairs)

    def _together(self, names: Iterable[str]) -> list[float]:
        return [sum(taken) for taken in zip(*(self.seconds[name] for name in names), strict=True)]

    def row(self, operation: Operation) -> dict[str, Any]:
        """Describe an operation and what it took."""
        name = operation.name
        return {
            "group": operation.group,
            "name": name,
            "seconds": self.median(name),
            "ratio": self.ratio(name),
            "note": operation.note,
        }


def measure(
    floor: Callable[[int], object],
    operations: Sequence[Operation],
    rounds: int,
    warm_up: int = 2,
    progressed: Callable[[float], None] = lambda share: None,
) -> Samples:
    """Run every operation once a round and time it.

    The floor runs before each of them, and its time of the round is the median, so that one disturbance does not
    shift all ratios of a round. An operation's own floor runs right before it, a few times, and the median counts.

    Args:
        floor: called with the number of the round.
        operations: in the order they run in; later ones may use what earlier ones left.
        rounds: rounds that count.
        warm_up: rounds before these, which do not.
        progressed: called with the share that is done.

    Returns:
        The samples.
    """
    floors: list[float] = []
    seconds: dict[str, list[float]] = {operation.name: [] for operation in operations}
    own: dict[str, list[float]] = {}
    for number in range(warm_up + rounds):
        readings: list[float] = []
        for position, operation in enumerate(operations):
            readings.append(seconds_of(floor, number))
            before = [seconds_of(operation.floor, number) for _ in range(_OWN_READINGS) if operation.floor]
            taken = seconds_of(operation.run, number) / operation.parts
            if number >= warm_up:
                seconds[operation.name].append(taken)
                if before:
                    own.setdefault(operation.name, []).append(statistics.median(before))
            progressed((number + (position + 1) / len(operations)) / (warm_up + rounds))
        if number >= warm_up:
            floors.append(statistics.median(readings))
    return Samples(floors, seconds, own)


def seconds_of(function: Callable[[int], object], number: int) -> float:
    """Time one call; what it returns is freed after the clock was read."""
    began = time.perf_counter()
    result = function(number)
    taken = time.perf_counter() - began
    del result
    return taken


def peak_bytes(function: Callable[[], object]) -> int:
    """Return how much more memory NumPy and Python held at most during a call than before it."""
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = function()
        peak = tracemalloc.get_traced_memory()[1]
        del result
    finally:
        tracemalloc.stop()
    return peak - before
