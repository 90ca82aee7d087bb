"""Robust aggregation: means that a few wrong clients cannot move far, over coordinates that all clients send."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.aggregation.aggregator import Aggregator, check_weight
from gradwire.aggregation.sharing import WHY_SHARED, check_coordinates, check_support, numbers_of
from gradwire.checks import check_integer, check_number
from gradwire.compressors.compressor import LARGEST_UPDATE, Compressor, Vector, largest_magnitude
from gradwire.compressors.references import Reference
from gradwire.errors import ConfigError, ProtocolError, StateError
from gradwire.journal import Journal
from gradwire.layout import Layout
from gradwire.named import Named
from gradwire.payload import Payload
from gradwire.saved import from_saved, reading_state, to_saved

__all__ = [
    "Aggregation",
    "Collector",
    "Median",
    "TrimmedMean",
    "mean",
    "median",
    "trimmed_mean",
]

_CELLS = 2**20  # numbers sorted at a time


class Collector(Aggregator):
    """Keeps every payload's numbers and weight until the round ends. All are over the first one's coordinates.

    What is made of them is a subclass's ``combine``.

    Args:
        layout: the model's layout.
        rule: the aggregation that makes it: a saved state is of one rule.
        zeros_are_values: whether coordinates that a payload's list leaves out are zeros, as they are where the clients'
            compressor chooses none: ``check_support`` says so. A payload with a list is refused otherwise.
    """

    def __init__(self, layout: Layout, rule: Aggregation, zeros_are_values: bool = False) -> None:
        super().__init__(layout)
        self.rule = rule
        self.zeros_are_values = zeros_are_values
        self._indices: NDArray[np.int64] | None = None
        self._rows: list[Vector] = []
        self._weights: list[float] = []

    def combine(self, rows: list[Vector], weights: NDArray[np.float64]) -> NDArray[np.floating]:
        """Make one vector of many.

        Args:
            rows: one (k,) float32 a payload, at least one, not modified.
            weights: (n,) float64 > 0: theirs.

        Returns:
            (k,), finite in float32.
        """
        raise NotImplementedError

    def agree(self, payload: Payload, reference: Vector | Reference | None = None) -> None:
        """Fix the open round's coordinates, instead of leaving that to whoever comes first.

        A wrong client whose payload arrives first would otherwise shut all others out. The server can compress any
        vector itself: ``compressor.compress(zeros, compressor.init(layout), Round(index=t, key=Key(seed, t)))``.

        Args:
            payload: whose coordinates all others must have; its numbers do not count.
            reference: the vector it leans on, where it leans on one: (d,) float32 or a ``Reference``.

        Raises:
            ProtocolError: on a payload that ``add`` would refuse; nothing is changed.
        """
        self._indices, _ = self._read(payload, reference)

    def add(
        self,
        payload: Payload,
        weight: float = 1.0,
        reference: Vector | Reference | None = None,
        count: bool = True,
        journal: Journal | None = None,
    ) -> None:
        """Keep one payload's numbers, beside those of the others.

        Args:
            payload: from ``compress`` or ``decode``, whole.
            weight: from 2^-64 to 2^64; medians and trimmed means only count it towards ``sum_weights``.
            reference: the vector it leans on, where it leans on one: (d,) float32 or a ``Reference``.
            count: True; payloads in packets are refused.
            journal: is told how to take it back, or None.

        Raises:
            ConfigError: on a weight that is not positive.
            ProtocolError: on a payload of another length or over other coordinates than the round's, or a packet of
                one; nothing is changed.
        """
        weight = check_weight(weight)
        indices, row = self._read(payload, reference, count)
        self.check_sum_weights(self.sum_weights + weight)
        if self.largest_mean < LARGEST_UPDATE and (largest := largest_magnitude(row)) > self.largest_mean:
            raise ProtocolError(f"payload's largest entry may be {self.largest_mean:g}, got {largest:g}")
        journal = Journal() if journal is None else journal
        journal.note_fields(self)
        self._indices = indices
        journal.append(self._rows, row)
        journal.append(self._weights, weight)
        self.sum_weights += weight
        self.num_received += 1

    def _read(
        self, payload: Payload, reference: Vector | Reference | None, count: bool = True
    ) -> tuple[NDArray[np.int64], Vector]:
        """The round's coordinates and a payload's numbers there."""
        found = numbers_of(payload, self.layout, reference, self.zeros_are_values, count)
        for number, part in enumerate(found):
            if part.num_shared < part.numbers.size:
                raise ProtocolError(f"payload's part {number} is over its client's own coordinates: {WHY_SHARED}")
        indices = np.concatenate([part.indices for part in found])
        self._check_same(indices)
        return indices, np.concatenate([part.numbers for part in found])

    def _check_same(self, indices: NDArray[np.int64]) -> None:
        if self._indices is not None and not np.array_equal(indices, self._indices):
            raise ProtocolError(
                f"payload must be over the round's {self._indices.size} coordinates, got {indices.size} others: all "
                "clients need the same compressor, seed and round, and no byte budget"
            )

    def merge(self, other: Aggregator) -> None:
        """Take over the numbers another aggregator keeps, which is left as it was.

        Args:
            other: of the same rule and layout.

        Raises:
            ConfigError: on another rule or layout.
            ProtocolError: when its payloads are over other coordinates.
        """
        if not isinstance(other, Collector) or other.rule != self.rule:
            raise ConfigError(f"{self.rule} can only be merged with itself: it needs every client's numbers")
        if other.layout.digest != self.layout.digest:
            raise ConfigError(
                f"aggregators can only be merged over the same layout: {self.layout.difference(other.layout)}"
            )
        if other._indices is not None:
            self._check_same(other._indices)
            self._indices = other._indices
        self._rows, self._weights = self._rows + other._rows, self._weights + other._weights
        self.sum_weights += other.sum_weights
        self.num_received += other.num_received

    def mean(self) -> Vector:
        """Return the rule's result at each coordinate, (d,) float32, newly made; zeros where nothing was sent."""
        out = np.zeros(self.layout.d, np.float32)
        if self._rows and self._indices is not None:
            # adding 0.0 leaves no -0.0, whose place among other zeros is that of its arrival
            out[self._indices] = self.combine(self._rows, np.array(self._weights)) + 0.0
        return out

    def reset(self) -> None:
        """Begin the next round: nothing received yet, and no numbers kept."""
        self._indices, self._rows, self._weights = None, [], []
        self.sum_weights, self.num_received = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of what is kept.

        Returns:
            ``aggregation`` (the rule's text), ``indices`` ((k,) int64, or None before the first payload), ``rows``
            ((n, k) float32), ``weights`` ((n,) float64), ``sum_weights`` and ``num_received``.
        """
        rows = np.stack(self._rows) if self._rows else np.empty((0, 0), np.float32)
        state = {
            "aggregation": str(self.rule),
            "indices": None if self._indices is None else self._indices.copy(),
            "rows": rows,
            "weights": np.array(self._weights, np.float64),
            "sum_weights": self.sum_weights,
            "num_received": self.num_received,
        }
        return to_saved(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken; other names in ``state`` are ignored.

        Raises:
            StateError: on a state of another rule or length; nothing is changed then.
        """
        state = from_saved(state)
        with reading_state():
            if state["aggregation"] != str(self.rule):
                raise StateError(f"state has aggregation {state['aggregation']!r}, expected {str(self.rule)!r}")
            indices = check_coordinates("indices", state["indices"], self.layout.d)
            sum_weights = check_number("sum_weights", state["sum_weights"])
            num_received = check_integer("num_received", state["num_received"], 0)
            saved = state["rows"]
            shape = (num_received, 0 if indices is None or not num_received else indices.size)
            if not isinstance(saved, np.ndarray) or saved.dtype != np.float32 or saved.shape != shape:
                raise StateError(f"state's rows must be {shape} float32, got {np.shape(saved)}")
            if not np.isfinite(saved).all():
                raise StateError("state's rows must be finite")
            weights = state["weights"]
            if not isinstance(weights, np.ndarray) or weights.dtype != np.float64 or weights.shape != (num_received,):
                raise StateError(f"state's weights must be ({num_received},) float64, got {np.shape(weights)}")
            weights = [check_weight(weight) for weight in weights.tolist()]
            if sum_weights < 0 or (num_received > 0) != (sum_weights > 0) or (num_received and indices is None):
                raise StateError(f"{num_received} payloads cannot weigh {sum_weights}")
        self._indices, self._rows, self._weights = indices, list(saved.copy()), weights
        self.sum_weights, self.num_received = sum_weights, num_received


class Median(Collector):
    """The median of what clients sent at each coordinate, whatever their weights.

    Half of the clients, less one, may send anything: the median stays within the range of the others' numbers. With an
    even number of clients it is the mean of the two numbers in the middle. Works over coordinates that all clients of
    a round send; it keeps n x k numbers until the round ends, for n clients and k coordinates.

    Args:
        layout: the model's layout.
        zeros_are_values: whether coordinates that a payload's list leaves out are zeros, as they are where the clients'
            compressor chooses none, such as ``dense()``; ``compressor.shares == 'whole'`` says so. A payload
            with a list is refused otherwise.

    Attributes:
        sum_weights: total weight added so far.
        num_received: payloads added so far.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.aggregation.robust import Median
        >>> layout = gw.Layout.flat(2)
        >>> aggregator = Median(layout, zeros_are_values=True)
        >>> for update in ([1, 2], [3, 4], [1e30, -1e30]):
        ...     aggregator.add(gw.decode(gw.Client(gw.dense(), layout).compress(np.array(update, np.float32))))
        >>> aggregator.mean().tolist()
        [3.0, 2.0]

    Source: Yin et al. 2018 (arXiv 1803.01498), Definition 1.
    Deviations: none.
    """

    def __init__(self, layout: Layout, zeros_are_values: bool = False) -> None:
        super().__init__(layout, median(), zeros_are_values)

    def combine(self, rows: list[Vector], weights: NDArray[np.float64]) -> NDArray[np.floating]:
        """Take the number in the middle of each coordinate."""
        n = len(rows)
        return _by_column(rows, lambda columns: (columns[(n - 1) // 2] + columns[n // 2]) / 2)


class TrimmedMean(Collector):
    """The mean of what clients sent at each coordinate, without its extremes and whatever the weights.

    Of n numbers the floor(share n) smallest and as many largest are dropped, so that as many clients may send anything:
    what is left is within the range of the others' numbers. Works over coordinates that all clients of a round send; it
    keeps n x k numbers until the round ends, for n clients and k coordinates.

    Args:
        layout: the model's layout.
        share: beta, in [0, 0.5); 0 is the plain mean.
        zeros_are_values: as for ``Median``.

    Raises:
        ConfigError: on a share outside [0, 0.5).

    Attributes:
        sum_weights: total weight added so far.
        num_received: payloads added so far.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.aggregation.robust import TrimmedMean
        >>> layout = gw.Layout.flat(1)
        >>> aggregator = TrimmedMean(layout, 0.25, zeros_are_values=True)
        >>> for number in (1, 2, 4, 1e30):
        ...     aggregator.add(gw.decode(gw.Client(gw.dense(), layout).compress(np.array([number], np.float32))))
        >>> aggregator.mean().tolist()
        [3.0]

    Source: Yin et al. 2018 (arXiv 1803.01498), Definition 2.
    Deviations: where share n is no integer it is rounded down.
    """

    def __init__(self, layout: Layout, share: float, zeros_are_values: bool = False) -> None:
        rule = trimmed_mean(share)
        super().__init__(layout, rule, zeros_are_values)
        self.share = rule.share

    def combine(self, rows: list[Vector], weights: NDArray[np.float64]) -> NDArray[np.floating]:
        """Take the mean of each coordinate's numbers but the outermost."""
        n = len(rows)
        dropped = min(math.floor(self.share * n), (n - 1) // 2)  # share * n may be rounded up to n / 2
        return _by_column(rows, lambda columns: columns[dropped : n - dropped].mean(axis=0))


def _by_column(
    rows: list[Vector], middle: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.floating]:
    """What stands for each coordinate's numbers: ``middle`` gets (n, m) at a time, sorted along the first axis."""
    out = np.empty(rows[0].size, np.float32)
    step = max(1, _CELLS // len(rows))
    for low in range(0, out.size, step):
        out[low : low + step] = middle(
            np.sort(np.stack([x[low : low + step] for x in rows]), axis=0).astype(np.float64)
        )
    return out


@dataclass(frozen=True, repr=False)
class Aggregation(Named, kind="aggregation", example="median()"):
    """How a server makes one update of many: a frozen value, whose ``str()`` is the text that builds an equal one.

    Example:
        >>> from gradwire.aggregation.robust import Aggregation, trimmed_mean
        >>> str(trimmed_mean(0.1)), Aggregation.registry["trimmed_mean"](0.1) == trimmed_mean(0.1)
        ('trimmed_mean(0.1)', True)
    """

    @abstractmethod
    def make(self, layout: Layout, seed: int = 0, compressor: Compressor | None = None) -> Aggregator:
        """Make the aggregator.

        Args:
            layout: the model's layout.
            seed: seed of the run.
            compressor: what the clients compress with, where known.

        Returns:
            The aggregator, with nothing received.

        Raises:
            ConfigError: on a compressor whose payloads this aggregation cannot use; the message says why.
        """


@dataclass(frozen=True, repr=False)
class mean(Aggregation):
    """The weighted mean of what arrived: see ``Aggregator``.

    Example:
        >>> import gradwire as gw
        >>> from gradwire.aggregation.robust import mean
        >>> mean().make(gw.Layout.flat(2)).mean().tolist()
        [0.0, 0.0]

    Source: McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1.
    Deviations: none.
    """

    summary: ClassVar[str] = "the weighted mean"
    citation: ClassVar[str] = "McMahan et al. 2017, arXiv:1602.05629"

    def make(self, layout: Layout, seed: int = 0, compressor: Compressor | None = None) -> Aggregator:
        """Make the aggregator, for payloads of any compressor but those that keep mirrors."""
        return Aggregator(layout)


@dataclass(frozen=True, repr=False)
class median(Aggregation):
    """The median at each coordinate: see ``Median``.

    Example:
        >>> import gradwire as gw
        >>> from gradwire.aggregation.robust import median
        >>> median().make(gw.Layout.flat(2), compressor=gw.dense()).mean().tolist()
        [0.0, 0.0]

    Source: Yin et al. 2018 (arXiv 1803.01498), Definition 1.
    Deviations: none.
    """

    summary: ClassVar[str] = "the median at each coordinate, where all clients send the same ones"
    citation: ClassVar[str] = "Yin et al. 2018, arXiv:1803.01498"

    def make(self, layout: Layout, seed: int = 0, compressor: Compressor | None = None) -> Median:
        """Make the aggregator, for clients that all send the same coordinates."""
        return Median(layout, compressor is not None and check_support(compressor, self))


@dataclass(frozen=True, repr=False)
class trimmed_mean(Aggregation):
    """The mean at each coordinate without the smallest and largest numbers: see ``TrimmedMean``.

    Args:
        share: beta, the share of clients dropped at each end, in [0, 0.5).

    Raises:
        ConfigError: on a share outside [0, 0.5).

    Example:
        >>> import gradwire as gw
        >>> from gradwire.aggregation.robust import trimmed_mean
        >>> trimmed_mean(0.1).make(gw.Layout.flat(2), compressor=gw.dense()).mean().tolist()
        [0.0, 0.0]

    Source: Yin et al. 2018 (arXiv 1803.01498), Definition 2.
    Deviations: where share n is no integer it is rounded down.
    """

    share: float

    summary: ClassVar[str] = "the mean at each coordinate without the extremes, where all clients send the same ones"
    citation: ClassVar[str] = "Yin et al. 2018, arXiv:1803.01498"

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", check_number("share", self.share))
        if not 0 <= self.share < 0.5:
            raise ConfigError(f"share must be in [0, 0.5), got {self.share!r}")

    def make(self, layout: Layout, seed: int = 0, compressor: Compressor | None = None) -> TrimmedMean:
        """Make the aggregator, for clients that all send the same coordinates."""
        return TrimmedMean(layout, self.share, compressor is not None and check_support(compressor, self))
