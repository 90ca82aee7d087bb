"""Counted: which of a client's payloads were counted, as far back as anybody may still have to know."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gradwire.checks import check_integer
from gradwire.ends.pieces import bits_of, from_bits
from gradwire.errors import StateError

__all__ = ["KEPT", "Counted", "Run"]

KEPT = 8


class Run(NamedTuple):
    """Consecutive payload numbers that were all counted.

    Attributes:
        low: the first of them.
        high: the last of them.
        round: the newest round one of them is of.
    """

    low: int
    high: int
    round: int


@dataclass(frozen=True)
class Counted:
    """The payload numbers of one client that were counted.

    Each payload lost is a gap that splits a run, so that what is known would grow for ever. What is of a round that
    may still come is kept, all of it; of what is older the newest ``KEPT`` runs, and the newest ``KEPT`` payloads that
    came in packets and not whole.

    Attributes:
        runs: of those that came whole, increasing; neither overlapping nor adjacent.
        unfinished: of those of older rounds that came in part: number -> the packets that came, packet n as bit n.
        forgotten: the highest number that was known once and is no more; -1 where there is none.

    Example:
        >>> counted = Counted()
        >>> for number in (0, 1, 3):
        ...     counted = counted.added(number, round=number)
        >>> counted.runs
        (Run(low=0, high=1, round=1), Run(low=3, high=3, round=3))
        >>> counted.added(2, round=2).runs
        (Run(low=0, high=3, round=3),)
    """

    runs: tuple[Run, ...] = ()
    unfinished: dict[int, int] = field(default_factory=dict)
    forgotten: int = -1

    def run_of(self, number: int) -> Run | None:
        """Find the run a number is in, or None."""
        at = bisect_right(self.runs, number, key=lambda run: run.low)
        return self.runs[at - 1] if at and number <= self.runs[at - 1].high else None

    def added(self, number: int, round: int) -> Counted:
        """Return this with one more number, of a payload of some round, that is in no run yet."""
        at = bisect_right(self.runs, number, key=lambda run: run.low)
        first = at - 1 if at and self.runs[at - 1].high == number - 1 else at
        last = at + 1 if at < len(self.runs) and self.runs[at].low == number + 1 else at
        joined = (*self.runs[first:last], Run(number, number, round))
        run = Run(min(r.low for r in joined), max(r.high for r in joined), max(r.round for r in joined))
        return Counted((*self.runs[:first], run, *self.runs[last:]), self.unfinished, self.forgotten)

    def left_behind(self, number: int, packets: int) -> Counted:
        """Return this with a payload whose round is over and that came in part: packet n as bit n."""
        return Counted(self.runs, dict(sorted({**self.unfinished, number: packets}.items())), self.forgotten)

    def without(self, oldest: int) -> Counted:
        """Return this with no more than is kept of the rounds before ``oldest``."""
        if len(self.runs) <= KEPT and len(self.unfinished) <= KEPT:
            return self
        runs = set([run for run in self.runs if run.round < oldest][:-KEPT])
        unfinished = set(list(self.unfinished)[:-KEPT])
        return Counted(
            tuple(run for run in self.runs if run not in runs),
            {number: packets for number, packets in self.unfinished.items() if number not in unfinished},
            max({self.forgotten, *unfinished, *(run.high for run in runs)}),
        )

    def state(self) -> list[Any]:
        """Return a copy as arrays and plain values."""
        unfinished = [[number, bits_of(packets)] for number, packets in self.unfinished.items()]
        return [[list(run) for run in self.runs], unfinished, self.forgotten]

    @classmethod
    def from_state(cls, state: Any) -> Counted:
        """Read what ``state`` gave, or raise StateError."""
        runs, unfinished, forgotten = state
        found = tuple(Run(*(check_integer("counted", number, 0, 2**64 - 1) for number in run)) for run in runs)
        for before, run in zip((Run(-2, -2, 0), *found), found, strict=False):
            if not before.high + 1 < run.low <= run.high:
                raise StateError(f"counted numbers must be increasing and apart, got {before} and {run}")
        packets = {check_integer("unfinished", number, 0, 2**64 - 1): from_bits(bits) for number, bits in unfinished}
        return cls(found, dict(sorted(packets.items())), check_integer("forgotten", forgotten, -1))
