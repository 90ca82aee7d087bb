"""Pieces: what came of a payload that comes in packets, in memory no larger than what came."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_integer, check_number
from gradwire.errors import ProtocolError, StateError
from gradwire.payload import Payload

__all__ = ["Coverage", "Pieces", "bits_of", "from_bits"]

_WORD = 64


@dataclass(frozen=True)
class _Words:
    """A set of coordinates: the words of a bitmap in which there are any.

    Attributes:
        places: (k,) int64, increasing: which words of the bitmap.
        words: (k,) uint64, not 0: coordinate 64 p + b is bit b of word p.
    """

    places: NDArray[np.int64]
    words: NDArray[np.uint64]

    @classmethod
    def of(cls, indices: NDArray[np.int64]) -> _Words:
        """Make the set of some increasing coordinates."""
        bits = np.left_shift(np.uint64(1), (indices & (_WORD - 1)).astype(np.uint64))
        return cls._grouped(indices >> 6, bits)

    @classmethod
    def _grouped(cls, places: NDArray[np.int64], words: NDArray[np.uint64]) -> _Words:
        """Join the words that are of one place; places do not decrease."""
        if not places.size:
            return cls(places, words)
        starts = np.flatnonzero(np.concatenate([[True], places[1:] != places[:-1]]))
        return cls(places[starts], np.bitwise_or.reduceat(words, starts))

    def overlaps(self, other: _Words) -> bool:
        """Tell whether a coordinate is in both; takes time in proportion to the other one."""
        at = np.searchsorted(self.places, other.places)
        at[at == self.places.size] = 0
        both = self.words[at] & other.words
        return bool(both[self.places[at] == other.places].any())

    def joined(self, other: _Words) -> _Words:
        """Return the coordinates that are in either."""
        places = np.concatenate([self.places, other.places])
        order = np.argsort(places, kind="stable")
        return self._grouped(places[order], np.concatenate([self.words, other.words])[order])


@dataclass(frozen=True)
class Coverage:
    """A set of coordinates that grows a packet at a time.

    It is kept as sets each at most half as large as the one before: a packet is looked up in a few of them, and joins
    the last ones only where it is of their size. So all packets together take time in proportion to their entries, but
    for a logarithm, and at most 16 bytes an entry that came and half a byte a coordinate of the model are held.

    Attributes:
        levels: the sets, largest first, with no coordinate in common.

    Example:
        >>> import numpy as np
        >>> coverage = Coverage().joined(Coverage.of(np.array([1, 70])))
        >>> coverage.overlaps(Coverage.of(np.array([2, 70]))), coverage.overlaps(Coverage.of(np.array([2, 71])))
        (True, False)
    """

    levels: tuple[_Words, ...] = ()

    @classmethod
    def of(cls, indices: NDArray[np.int64]) -> Coverage:
        """Make the set of some coordinates: (k,) int64, increasing."""
        return cls((_Words.of(indices),)) if indices.size else cls()

    def overlaps(self, other: Coverage) -> bool:
        """Tell whether a coordinate is in both."""
        return any(level.overlaps(new) for level in self.levels for new in other.levels)

    def joined(self, other: Coverage) -> Coverage:
        """Return the coordinates that are in either; they have none in common."""
        levels = list(self.levels)
        for new in other.levels:
            while levels and levels[-1].places.size < 2 * new.places.size:
                new = levels.pop().joined(new)
            levels.append(new)
        return Coverage(tuple(levels))

    def state(self) -> list[NDArray[Any]]:
        """Return a copy as two arrays: (k,) int64 and (k,) uint64."""
        whole = _Words(np.empty(0, np.int64), np.empty(0, np.uint64))
        for level in reversed(self.levels):
            whole = level.joined(whole)
        return [whole.places.copy(), whole.words.copy()]

    @classmethod
    def from_state(cls, state: Any, d: int) -> Coverage:
        """Read what ``state`` gave, of coordinates below d, or raise StateError."""
        places, words = (np.array(array) for array in state)
        if places.dtype != np.int64 or words.dtype != np.uint64 or places.ndim != 1 or places.shape != words.shape:
            raise StateError(f"coverage must be (k,) int64 and (k,) uint64, got {places.shape} and {words.shape}")
        if places.size and not (places[0] >= 0 and places[-1] * _WORD < d and (np.diff(places) > 0).all()):
            raise StateError(f"coverage must be increasing words of coordinates below {d}")
        return cls((_Words(places, words),)) if places.size else cls()


@dataclass(frozen=True)
class Pieces:
    """The packets that came of a payload whose round may still come.

    Attributes:
        round: the payload's round.
        count: how many packets it has.
        packets: those that came, packet n as bit n.
        coverage: the coordinates they hold.
        norm: the Euclidean norm of what was counted of them, where that is bounded.
    """

    round: int
    count: int
    packets: int = 0
    coverage: Coverage = field(default_factory=Coverage)
    norm: float = 0.0

    @cached_property
    def complete(self) -> bool:
        """Whether all of them came."""
        return self.packets.bit_count() == self.count

    def has(self, number: int) -> bool:
        """Tell whether a packet came."""
        return bool(self.packets >> number & 1)

    def joined(self, payload: Payload) -> Pieces:
        """Return this with one more packet, whose norm is not in yet.

        Raises:
            ProtocolError: on a packet of another payload of the same number, or one that sends a coordinate again that
                another one has sent.
        """
        number, count = payload.packet or (0, 1)
        if (payload.round, count) != (self.round, self.count):
            raise ProtocolError(
                f"payload {payload.sequence} of round {self.round} has {self.count} packets, "
                f"got one of {count} of round {payload.round}"
            )
        packets = self.packets | 1 << number
        if packets.bit_count() == 1 == count:
            return replace(self, packets=packets)  # nobody to share coordinates with
        starts = np.cumsum([0, *(part.length for part in payload.parts)])
        inside = [
            start + part.support.indices
            for start, part in zip(starts, payload.parts, strict=False)
            if part.support.num_kept
        ]
        new = Coverage.of(np.concatenate(inside)) if inside else Coverage()
        if self.coverage.overlaps(new):
            raise ProtocolError(f"packet {number} of payload {payload.sequence} repeats coordinates of another packet")
        return replace(self, packets=packets, coverage=self.coverage.joined(new))

    def state(self) -> list[Any]:
        """Return a copy as arrays and plain values."""
        return [self.round, self.count, bits_of(self.packets), *self.coverage.state(), self.norm]

    @classmethod
    def from_state(cls, state: Any, d: int) -> Pieces:
        """Read what ``state`` gave, of a payload of length d, or raise StateError."""
        round, count, packets, places, words, norm = state
        pieces = cls(
            check_integer("round", round, 0, 2**63 - 1),
            check_integer("packets", count, 1),
            from_bits(packets),
            Coverage.from_state((places, words), d),
            check_number("norm", norm),
        )
        if pieces.norm < 0 or pieces.packets >> pieces.count:
            raise StateError(
                f"a payload of {pieces.count} packets has none of a higher number, and a norm of 0 or more"
            )
        return pieces


def bits_of(packets: int) -> NDArray[np.uint8]:
    """Turn a number into its bytes, lowest first."""
    return np.frombuffer(packets.to_bytes(-(-packets.bit_length() // 8), "little"), np.uint8).copy()


def from_bits(saved: Any) -> int:
    """Turn its bytes back into a number, or raise StateError."""
    if not isinstance(saved, np.ndarray) or saved.dtype != np.uint8 or saved.ndim != 1:
        raise StateError(f"saved bits must be a uint8 vector, got {type(saved).__name__}")
    return int.from_bytes(saved.tobytes(), "little")
