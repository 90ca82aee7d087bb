"""Cost: when it takes less time to sum whole gradients than to compress them; the same answer at all workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Choice", "Link", "dense_seconds", "gather_seconds", "link_of"]

_STEPS = 3  # compressed steps that are measured before it is decided
_CLEARLY = 1.25  # how much faster the other way must be
_AGAIN = 1000  # steps after which it is looked at again
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
        num_workers: W. In a sum each sends 2 (W - 1) / W times its bytes.

    Returns:
        The link.

    Example:
        >>> from gradwire.ddp.cost import link_of
        >>> link_of(0.001, 0.081, 1_000_000, 2)
        Link(latency=0.001, seconds_per_byte=8e-08)
    """
    sent = 2 * num_bytes * (num_workers - 1) / num_workers
    return Link(small, max(0.0, large - small) / sent if sent else 0.0)


def gather_seconds(link: Link, num_bytes: int, num_workers: int, computing: float) -> float:
    """Estimate a step in which each worker hears every other one's blob.

    Args:
        link: as measured.
        num_bytes: of the longest blob.
        num_workers: W.
        computing: seconds that compressing, reading and applying took.

    Returns:
        Seconds.
    """
    return computing + link.latency + (num_workers - 1) * num_bytes * link.seconds_per_byte


def dense_seconds(link: Link, d: int, num_workers: int) -> float:
    """Estimate a step in which whole gradients are summed.

    Args:
        link: as measured.
        d: number of parameters.
        num_workers: W.

    Returns:
        Seconds.
    """
    sent = 2 * _FLOAT_BYTES * d * (num_workers - 1) / num_workers
    return link.latency + sent * link.seconds_per_byte


@dataclass
class Choice:
    """Whether gradients are summed whole for now; decided from what all workers know alike.

    Attributes:
        link: as measured; None for never whole.
        d: number of parameters.
        num_workers: W.
        dense: what was decided.

    Example:
        >>> from gradwire.ddp.cost import Choice, Link
        >>> choice = Choice(Link(0.0001, 1e-10), 1000, 2)
        >>> for step in range(4):
        ...     choice.note(500, [0.01, 0.01])
        >>> choice.dense
        True
    """

    link: Link | None
    d: int
    num_workers: int
    dense: bool = False
    _computing: list[float] = field(default_factory=list, repr=False)
    _steps: int = field(default=0, repr=False)
    _settled: bool = field(default=False, repr=False)

    def note(self, num_bytes: int, seconds: Sequence[float]) -> None:
        """Take note of a compressed step, and decide where that is due.

        Args:
            num_bytes: of the longest blob.
            seconds: that each worker computed in the step before; 0 where it did not.
        """
        self._steps += 1
        if self.link is None:
            return
        if slowest := max(seconds):
            self._computing = [*self._computing, slowest][-_STEPS:]
        if len(self._computing) < _STEPS or (self._settled and self._steps < _AGAIN):
            return
        gather = gather_seconds(self.link, num_bytes, self.num_workers, min(self._computing))
        self.dense = gather > _CLEARLY * dense_seconds(self.link, self.d, self.num_workers)
        self._settled, self._steps = True, 0

    def note_dense(self) -> None:
        """Take note of a step in which gradients were summed whole; after many the other way is measured again."""
        self._steps += 1
        if self._steps >= _AGAIN:
            self.dense, self._settled, self._steps, self._computing = False, False, 0, []
