"""Cost: when it takes less time to sum whole gradients than to compress them; the same answer at all workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["AGAIN", "Choice", "Link", "compressed_seconds", "dense_seconds", "link_of", "sum_bytes"]

AGAIN = 1000
"""Steps after which it is looked at again."""

_STEPS = 3  # compressed steps that are measured before it is decided
_CLEARLY = 1.25  # how much faster the other way must be
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Link:
    """What collectives take.

    Attributes:
        latency: seconds of one that moves next to nothing.
        seconds_per_byte: for each byte that a worker sends, reading and adding included.

    Example:
        >>> from gradwire.ddp.cost import Link
        >>> Link(0.001, 8e-8).latency
        0.001
    """

    latency: float
    seconds_per_byte: float


def link_of(small: float, large: float, num_bytes: int, num_workers: int) -> Link:
    """Work out a link from two sums over all workers.

    Args:
        small: seconds that one of a few numbers took.
        large: seconds that one of ``num_bytes`` more took.
        num_bytes: of each worker.
        num_workers: W.

    Returns:
        The link.

    Example:
        >>> from gradwire.ddp.cost import link_of
        >>> link_of(0.001, 0.081, 1_000_000, 2)
        Link(latency=0.001, seconds_per_byte=8e-08)
    """
    sent = sum_bytes(num_bytes, num_workers)
    return Link(small, max(0.0, large - small) / sent if sent else 0.0)


def sum_bytes(num_bytes: int, num_workers: int) -> float:
    """Tell what each worker sends for a sum over all of them, along a ring.

    Args:
        num_bytes: of the numbers that are summed.
        num_workers: W.

    Returns:
        Bytes: 2 (W - 1) / W times as many.

    Example:
        >>> from gradwire.ddp.cost import sum_bytes
        >>> sum_bytes(4000, 4)
        6000.0
    """
    return 2 * num_bytes * (num_workers - 1) / num_workers


def compressed_seconds(link: Link, num_bytes: float, computing: float) -> float:
    """Estimate a step in which what is exchanged is compressed.

    Args:
        link: as measured.
        num_bytes: that each worker sends.
        computing: seconds that compressing, reading and applying took.

    Returns:
        Seconds.
    """
    return computing + link.latency + num_bytes * link.seconds_per_byte


def dense_seconds(link: Link, d: int, num_workers: int) -> float:
    """Estimate a step in which whole gradients are summed.

    Args:
        link: as measured.
        d: number of parameters.
        num_workers: W.

    Returns:
        Seconds.
    """
    return link.latency + sum_bytes(_FLOAT_BYTES * d, num_workers) * link.seconds_per_byte


@dataclass
class Choice:
    """How updates travel for now; decided from what all workers know alike.

    Attributes:
        link: as measured; None for never whole.
        d: number of parameters.
        num_workers: W.
        dense: whether whole updates are summed.
        summed: whether numbers at coordinates that all workers send are summed, rather than gathered from each.

    Example:
        >>> from gradwire.ddp.cost import Choice, Link
        >>> choice = Choice(Link(0.0001, 1e-10), 1000, 2)
        >>> for step in range(4):
        ...     choice.note_gathered(500)
        ...     choice.note([0.01, 0.01])
        >>> choice.dense, choice.summed
        (True, False)
    """

    link: Link | None
    d: int
    num_workers: int
    dense: bool = False
    summed: bool = False
    _sent: float = field(default=0.0, repr=False)
    _computing: list[float] = field(default_factory=list, repr=False)
    _steps: int = field(default=0, repr=False)
    _settled: bool = field(default=False, repr=False)

    def note_gathered(self, num_bytes: int, num_summed: int = 0, num_told: float = 0.0) -> None:
        """Take note of what was gathered, and decide whether to sum from now on: it takes no coding of numbers.

        Args:
            num_bytes: of the longest blob.
            num_summed: numbers that could have been summed instead; 0 where none could.
            num_told: bytes that would still have had to be gathered.
        """
        gathered = float((self.num_workers - 1) * num_bytes)
        summed = sum_bytes(_FLOAT_BYTES * num_summed, self.num_workers) + (self.num_workers - 1) * num_told
        self.summed = num_summed > 0 and summed <= _CLEARLY * gathered
        self._sent = summed if self.summed else gathered

    def note(self, seconds: Sequence[float]) -> None:
        """Take note of a compressed step, and decide whether to send whole updates where that is due.

        Args:
            seconds: that each worker computed in the step before; 0 where it did not.
        """
        self._steps += 1
        if self.link is None:
            return
        if slowest := max(seconds):
            self._computing = [*self._computing, slowest][-_STEPS:]
        if len(self._computing) < _STEPS or (self._settled and self._steps < AGAIN):
            return
        compressed = compressed_seconds(self.link, self._sent, min(self._computing))
        self.dense = compressed > _CLEARLY * dense_seconds(self.link, self.d, self.num_workers)
        self._settled, self._steps = True, 0

    def note_dense(self) -> None:
        """Take note of a step in which gradients were summed whole; after many the other way is measured again."""
        self._steps += 1
        if self._steps >= AGAIN:
            self.dense, self._settled, self._steps, self._computing = False, False, 0, []
