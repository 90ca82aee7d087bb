"""Aggregator: payloads in, their weighted mean out, one dense vector whatever the number of clients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import LARGEST, check_integer, check_number
from gradwire.compressors.compressor import LARGEST_UPDATE, Vector, accumulate, largest_magnitude
from gradwire.compressors.references import Reference
from gradwire.errors import ConfigError, ProtocolError, StateError
from gradwire.journal import Journal
from gradwire.kernels import ops
from gradwire.layout import Layout
from gradwire.payload import Factors, Levels, Multiples, Part, Payload
from gradwire.saved import check_memory, from_saved, reading_state, to_saved

__all__ = ["LARGEST_WEIGHT", "Aggregator", "Mirrors", "check_weight"]

_SPARSE = 16  # a sum of which one in so many entries is not zero, or fewer, is worked on as a sparse one
_LARGEST_SUM = LARGEST / 2


class Aggregator:
    """A running weighted sum of payloads, which regional servers merge; for one thread at a time.

    Args:
        layout: the model's layout.

    Attributes:
        sum_weights: total weight added so far.
        num_received: payloads added so far.
        largest_mean: what magnitude the mean's entries may have; payloads with which they could be larger are refused.
        largest_sum_weights: what the weights may add up to.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> layout = gw.Layout.flat(2)
        >>> aggregator = gw.Aggregator(layout)
        >>> for weight, update in ((1.0, [0, 4]), (3.0, [4, 0])):
        ...     client = gw.Client(gw.dense(), layout)
        ...     aggregator.add(gw.decode(client.compress(np.array(update, np.float32))), weight)
        >>> aggregator.mean().tolist()
        [3.0, 1.0]
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._sum = np.zeros(layout.d, np.float32)
        self.sum_weights = 0.0
        self.num_received = 0
        self.largest_mean = LARGEST_UPDATE
        self.largest_sum_weights = math.inf
        self._bound = 0.0
        self._touched: NDArray[np.int64] | None = None  # where the sum is not zero, if that was looked for
        self._stale: NDArray[np.int64] | slice | None = None  # what there still is of the round before

    def add(
        self,
        payload: Payload,
        weight: float = 1.0,
        reference: Vector | Reference | None = None,
        count: bool = True,
        journal: Journal | None = None,
    ) -> None:
        """Add one payload; sparse ones touch only their own coordinates.

        Args:
            payload: from ``compress`` or ``decode``.
            weight: its weight in the mean, from 2^-64 to 2^64.
            reference: the vector it leans on, where it leans on one: (d,) float32 or a ``Reference``.
            count: False for a further packet of a payload whose weight was counted before.
            journal: is told how to take it back, sums to float32 rounding, or None.

        Raises:
            ConfigError: on a weight that is not positive.
            ProtocolError: on a payload of another length, or so large that the sum could leave float32's range;
                nothing is changed.
        """
        weight = check_weight(weight)
        if payload.d != self.layout.d:
            raise ProtocolError(f"payload must have d = {self.layout.d}, got {payload.d}")
        largest = max((_largest(part) for part in payload.parts if part.support.num_kept), default=0.0)
        sum_weights = self.sum_weights + (weight if count else 0.0)
        self.check_sum_weights(sum_weights)
        if self._bound + weight * largest > min(_LARGEST_SUM, self.largest_mean * self._divisor(sum_weights)):
            room = "" if self.largest_mean == LARGEST_UPDATE else f"; the mean may reach {self.largest_mean:g}"
            raise ProtocolError(
                f"payload's largest entry {largest:g} times weight {weight:g} could overflow the sum{room}"
            )
        if journal is not None:
            journal.note_fields(self)
        self._clear()
        self._touched = None
        accumulate(self._sum, payload, weight, reference, journal)
        self._bound += weight * largest
        if count:
            self.sum_weights += weight
            self.num_received += 1

    def check_sum_weights(self, sum_weights: float) -> None:
        """Refuse weights that add up to more than allowed, with ProtocolError."""
        if sum_weights > self.largest_sum_weights:
            raise ProtocolError(f"weights may add up to {self.largest_sum_weights:g}, got {sum_weights:g}")

    def _divisor(self, sum_weights: float) -> float:
        """What the sum is divided by for the mean, once this much weight was received."""
        return sum_weights

    def merge(self, other: Aggregator) -> None:
        """Add what another aggregator holds, which is left as it was.

        Args:
            other: of the same kind and layout.

        Raises:
            ConfigError: on another kind or layout.
            ProtocolError: when the sum could leave float32's range.
        """
        if type(other) is not type(self):
            raise ConfigError(f"aggregators must be of one kind, got {type(other).__name__} and {type(self).__name__}")
        if other.layout.digest != self.layout.digest:
            raise ConfigError(
                f"aggregators can only be merged over the same layout: {self.layout.difference(other.layout)}"
            )
        if self._bound + other._bound > _LARGEST_SUM:
            raise ProtocolError("the merged sum could leave float32's range")
        self._clear()
        other._clear()
        self._touched = None
        self._sum += other._sum
        self._bound += other._bound
        self.sum_weights += other.sum_weights
        self.num_received += other.num_received

    def mean(self) -> Vector:
        """Return the weighted mean so far.

        Returns:
            (d,) float32, newly made: sum of weight * update over sum of weights; zeros when nothing was added.
        """
        self._clear()
        return self._divided(self.sum_weights if self.num_received else 1.0)

    def _divided(self, divisor: float) -> Vector:
        """The sum over a number, newly made; where it is sparse, of what is not zero alone."""
        self._touched = touched = ops.occupied(self._sum, self._sum.size // _SPARSE)
        if touched is None:
            return self._sum / np.float32(divisor)
        out = np.zeros(self._sum.size, np.float32)
        numbers = ops.gather(self._sum, touched) / np.float32(divisor)
        ops.accumulate_at(out, touched, numbers, 1.0)
        if (vanished := numbers == 0).any():  # as -0.0, perhaps, which adding does not leave
            out[touched[vanished]] = numbers[vanished]
        return out

    def reset(self) -> None:
        """Begin the next round: nothing received yet. The memory is the same, and cleared when it is needed."""
        self._stale, self._touched = slice(None) if self._touched is None else self._touched, None
        self.sum_weights, self.num_received, self._bound = 0.0, 0, 0.0

    def _clear(self) -> None:
        """Make the sum zero where it is still that of the round before."""
        if self._stale is not None:
            self._sum[self._stale] = 0
            self._stale = None

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the sum and its counts: ``sum``, ``sum_weights``, ``num_received`` and ``bound``."""
        self._clear()
        state = {
            "sum": self._sum.copy(),
            "sum_weights": self.sum_weights,
            "num_received": self.num_received,
            "bound": self._bound,
        }
        return to_saved(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken; other names in ``state`` are ignored.

        Raises:
            StateError: on a sum of another length; nothing is changed then.
        """
        state = from_saved(state)
        with reading_state():
            total = np.array(state["sum"], np.float32)
            sum_weights, bound = (
                check_number("sum_weights", state["sum_weights"]),
                check_number("bound", state["bound"]),
            )
            num_received = check_integer("num_received", state["num_received"], 0)
            check_memory({"sum": total}, {"sum": self._sum}, self._sum.size)
            if sum_weights < 0 or (num_received > 0) != (sum_weights > 0):
                raise StateError(f"{num_received} payloads cannot weigh {sum_weights}")
        self._sum, self.sum_weights, self.num_received, self._bound = total, sum_weights, num_received, bound
        self._touched = self._stale = None


class Mirrors(Aggregator):
    """The running sum of every client's mirror, one vector however many clients there are, kept from round to round.

    A payload is a step of its sender's mirror: it is added as it is, and its weight only counts towards
    ``sum_weights``. ``mean`` is the mean of all mirrors, those of silent clients included.

    Args:
        layout: the model's layout.
        num_clients: how many mirrors there are.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.aggregation.aggregator import Mirrors
        >>> layout = gw.Layout.flat(2)
        >>> mirrors = Mirrors(layout, 4)
        >>> mirrors.add(gw.decode(gw.Client(gw.dense(), layout).compress(np.array([4, 8], np.float32))), 7.0)
        >>> mirrors.reset()
        >>> mirrors.mean().tolist()
        [1.0, 2.0]

    Source: EF21, Richtarik et al. 2021 (arXiv 2106.05203), Algorithm 2, the master's g.
    Deviations: none.
    """

    def __init__(self, layout: Layout, num_clients: int) -> None:
        super().__init__(layout)
        self.num_clients = num_clients

    def add(
        self,
        payload: Payload,
        weight: float = 1.0,
        reference: Vector | Reference | None = None,
        count: bool = True,
        journal: Journal | None = None,
    ) -> None:
        """Add a step of a mirror; see ``Aggregator.add``. The weight does not scale it."""
        weight = check_weight(weight)
        super().add(payload, 1.0, reference, False, journal)
        if count:
            self.sum_weights += weight
            self.num_received += 1

    def merge(self, other: Aggregator) -> None:
        """Refuse: mirrors outlast a round, so merging them every round would count them again and again."""
        raise ConfigError("mirrors are kept from round to round and cannot be merged")

    def mean(self) -> Vector:
        """Return the mean of all mirrors, (d,) float32, newly made."""
        return self._divided(self.num_clients)

    def _divisor(self, sum_weights: float) -> float:
        return float(self.num_clients)

    def reset(self) -> None:
        """Begin the next round: nothing received yet, and the mirrors where they are."""
        self.sum_weights, self.num_received, self._touched = 0.0, 0, None
        self._bound = largest_magnitude(self._sum)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the sum and its counts, and ``num_clients``."""
        return super().state_dict() | {"num_clients": self.num_clients}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken; other names in ``state`` are ignored.

        Raises:
            StateError: on a sum of another length or over other clients; nothing is changed then.
        """
        if state.get("num_clients") != self.num_clients:
            raise StateError(f"state has num_clients {state.get('num_clients')!r}, expected {self.num_clients}")
        super().load_state_dict(state)


def _largest(part: Part) -> float:
    """A bound of the magnitudes of a part that is not empty: the largest, or what its levels or factors say."""
    if isinstance(part.values, (Factors, Levels, Multiples)):
        return part.values.bound
    return largest_magnitude(part.numbers())


LARGEST_WEIGHT = 2.0**64
"""The largest weight a payload may have."""


def check_weight(weight: float) -> float:
    """Return a weight of [2^-64, 2^64] as a float, or raise ConfigError."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float, np.integer, np.floating)):
        raise ConfigError(f"weight must be a number, got {weight!r}")
    if not 1 / LARGEST_WEIGHT <= weight <= LARGEST_WEIGHT:
        raise ConfigError(f"weight must be positive, from 2^-64 to 2^64, got {weight!r}")
    return float(weight)
