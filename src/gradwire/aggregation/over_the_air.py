"""Over-the-air computation: clients send at the same time, and the channel adds their numbers up, and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.aggregation.aggregator import Aggregator, check_weight
from gradwire.aggregation.robust import Aggregation
from gradwire.aggregation.sharing import Numbers, check_coordinates, check_support, numbers_of
from gradwire.checks import check_integer, check_number
from gradwire.compressors.compressor import Compressor, Vector
from gradwire.compressors.references import Reference
from gradwire.errors import ConfigError, ProtocolError, StateError, nearest
from gradwire.journal import Journal
from gradwire.layout import Layout
from gradwire.payload import Payload
from gradwire.rng import Key
from gradwire.saved import from_saved, reading_state, to_saved

__all__ = ["OverTheAir", "gaussians", "over_the_air"]

_FADINGS = ("none", "rayleigh")
_LEAST_SNR_DB = -100.0
_LARGEST_DRAW = 6.0  # no Gaussian made of 24-bit uniforms is larger
_LARGEST_SHARE = 0.99  # of what the mean may reach: some more room for rounding


def gaussians(key: Key, num_values: int) -> NDArray[np.float64]:
    """Draw independent Gaussians of mean 0 and variance 1.

    Of 2m uniforms u of the key, m = ceil(n / 2), the pair (u_i, u_(m+i)) gives r cos(2 pi u_(m+i)) as number i and
    r sin(2 pi u_(m+i)) as number m + i, with r = sqrt(-2 ln(1 - u_i)), in float64. None is beyond 5.77.

    Args:
        key: the stream.
        num_values: n, 0 or more.

    Returns:
        (num_values,) float64; their last bits are the mathematical library's.

    Example:
        >>> from gradwire.aggregation.over_the_air import gaussians
        >>> from gradwire.rng import Key
        >>> gaussians(Key(0), 3).shape
        (3,)

    Source: Box and Muller 1958, "A note on the generation of random normal deviates".
    Deviations: uniforms have 24 bits.
    """
    pairs = -(-num_values // 2)
    uniform = key.uniform(2 * pairs).astype(np.float64)
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[:pairs])), 2 * np.pi * uniform[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:num_values]


class OverTheAir(Aggregator):
    """The weighted mean as a radio channel computes it: all clients send at once, one channel use a coordinate.

    Client n of weight w_n has the numbers v_n at the k coordinates all clients share, and its channel the coefficient
    h_n, which it knows. It sends the k amplitudes x_n = a w_n v_n / h_n, one after the other, in step with the others.
    The receiver hears y = sum_n h_n x_n + z = a sum_n w_n v_n + z, with Gaussian z of variance 10^(-snr_db / 10) at
    each channel use, and takes y / (a W), W the sum of weights. The mean over the k uses of the transmit power of the
    client that sends with most is 1: 1 / a is the largest w_n sqrt(|v_n|^2 / k) / |h_n|. Before it sends, each client
    tells this one number digitally and hears a. So the noise in the mean has standard deviation
    10^(-snr_db / 20) / (a W) at each shared coordinate, and none is added where all send zeros.

    Without fading every h_n is 1. With Rayleigh fading |h_n|^2 is exponential with mean 1, drawn anew for each client
    and round and constant within one; a client with |h_n|^2 below ``threshold`` stays silent in the round, with
    probability 1 - exp(-threshold): neither its numbers nor its weight count, ``silent`` does. Whoever counts
    deliveries must see by it that the payload was not delivered.

    What is not shared comes digitally and exactly, as in ``Aggregator``: coordinates of a client's own, as those TCS
    names or those of a client without a reference; a payload any part of which lists its coordinates; and running
    statistics, whose scale is another.

    Args:
        layout: the model's layout.
        snr_db: power of the strongest client over power of the noise, in dB, of [-100, inf]; inf is without noise.
        fading: ``'none'`` or ``'rayleigh'``.
        threshold: least |h_n|^2 a client sends with under fading, above 0.
        seed: seed of the run. Fading is drawn with key (seed, round, arrival number, ``'fading'``), as
            -ln(1 - u); noise with (seed, round, no client, ``'noise'``), see ``gaussians``. Rounds are counted by
            ``reset``.
        zeros_are_values: as for ``Median``: whether coordinates that a payload's list leaves out are zeros.

    Raises:
        ConfigError: on a parameter outside these.

    Attributes:
        sum_weights: total weight heard so far in this round.
        num_received: payloads heard so far in this round.
        silent: clients lost to fading in this round.
        channel_uses: uses of the channel in all rounds: k a round, however many clients send.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.aggregation.over_the_air import OverTheAir
        >>> layout = gw.Layout.flat(2)
        >>> aggregator = OverTheAir(layout, snr_db=30.0)
        >>> for update in ([1, 2], [3, 4], [5, 6]):
        ...     aggregator.add(gw.decode(gw.Client(gw.dense(), layout).compress(np.array(update, np.float32))))
        >>> bool(np.abs(aggregator.mean() - [3, 4]).max() < 1), aggregator.channel_uses
        (True, 2)

    Source: Amiri and Gunduz 2019, arXiv 1901.00844 (additive noise) and 1907.09769 (fading); Zhu, Wang and Huang 2018,
        arXiv 1812.11494 (truncated channel inversion).
    Deviations: a channel use carries one real number; a client's channel is one coefficient a round, not one for each
        subcarrier; the power constraint is that of the round at hand, not an average over fading; coordinates are
        chosen before, not projected at random; clients are in step and know their channels without error.
    """

    def __init__(
        self,
        layout: Layout,
        snr_db: float = 20.0,
        fading: str = "none",
        threshold: float = 0.1,
        seed: int = 0,
        zeros_are_values: bool = False,
    ) -> None:
        super().__init__(layout)
        self.rule = over_the_air(snr_db, fading, threshold)
        self.zeros_are_values = zeros_are_values
        self._seed = Key(seed).seed
        self._round = 0
        self._deviation = 10.0 ** (-self.rule.snr_db / 20)
        self._air: NDArray[np.int64] | None = None
        self._loudest = 0.0
        self.silent = 0
        self.channel_uses = 0

    def add(
        self,
        payload: Payload,
        weight: float = 1.0,
        reference: Vector | Reference | None = None,
        count: bool = True,
        journal: Journal | None = None,
    ) -> None:
        """Let one client send; under fading it may be lost, which ``silent`` tells.

        Args:
            payload: from ``compress`` or ``decode``, whole.
            weight: its weight in the mean, from 2^-64 to 2^64.
            reference: the vector it leans on, where it leans on one: (d,) float32 or a ``Reference``.
            count: True; payloads in packets are refused.
            journal: is told how to take it back, or None.

        Raises:
            ConfigError: on a weight that is not positive.
            ProtocolError: on a payload of another length, one in packets, one whose shared coordinates are not the
                round's, or one so large that the mean could leave float32's range; nothing is changed.
        """
        weight = check_weight(weight)
        found = numbers_of(payload, self.layout, reference, self.zeros_are_values, count)
        air, numbers = self._shared(found)
        if air.size and self._air is not None and not np.array_equal(air, self._air):
            raise ProtocolError(
                f"payload must be over the round's {self._air.size} shared coordinates, got {air.size} others: all "
                "clients need the same compressor, seed, round and reference"
            )
        if journal is not None:
            journal.note_fields(self)
        gain = self._gain(self.num_received + self.silent)
        if gain is None:
            self.silent += 1
            return
        loudest = self._loudest
        if air.size:
            loudest = max(loudest, weight * math.sqrt(float(np.mean(np.square(numbers, dtype=np.float64))) / gain))
        largest = max((float(np.abs(part.numbers).max(initial=0.0)) for part in found), default=0.0)
        reach = self._bound + weight * largest + _LARGEST_DRAW * self._deviation * loudest
        if reach > _LARGEST_SHARE * self.largest_mean * (self.sum_weights + weight):
            raise ProtocolError(f"payload's largest entry {largest:g} times weight {weight:g} could overflow the mean")
        super().add(payload, weight, reference, journal=journal)
        self._loudest = loudest
        if air.size and self._air is None:
            self._air = air
            self.channel_uses += air.size

    def _shared(self, found: list[Numbers]) -> tuple[NDArray[np.int64], Vector]:
        """Where a payload is sent through the air, and what; nowhere where it lists coordinates of its own."""
        parts = [part for part in found if part.start < self.layout.num_parameters and part.numbers.size]
        if not any(part.num_shared for part in parts):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return (
            np.concatenate([part.indices[: part.num_shared] for part in parts]),
            np.concatenate([part.numbers[: part.num_shared] for part in parts]),
        )

    def _gain(self, arrival: int) -> float | None:
        """|h|^2 of the client that arrived as this one, counted from 0; None where it is too small to send."""
        if self.rule.fading == "none":
            return 1.0
        gain = -math.log1p(-float(Key(self._seed, self._round, arrival, "fading").uniform(1)[0]))
        return gain if gain >= self.rule.threshold else None

    def merge(self, other: Aggregator) -> None:
        """Refuse: what two receivers heard has the noise of both; aggregate their means instead."""
        raise ConfigError("each receiver hears its own noise: add up what the receivers' mean() gives instead")

    def mean(self) -> Vector:
        """Return what the receiver takes for the weighted mean.

        Returns:
            (d,) float32, newly made; the same noise each time in a round, zeros when nothing was heard.
        """
        out = super().mean()
        if self._air is not None:
            noise = gaussians(Key(self._seed, self._round, None, "noise"), self._air.size)
            out[self._air] = out[self._air] + noise * (self._deviation * self._loudest / self.sum_weights)
        return out

    def reset(self) -> None:
        """Begin the next round: nothing heard yet, new fading and noise."""
        super().reset()
        self._air, self._loudest, self.silent = None, 0.0, 0
        self._round += 1

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the sum and its counts, and of the channel's.

        Returns:
            What ``Aggregator.state_dict`` gives, and ``aggregation`` (the rule's text), ``air_seed``, ``air_round``,
            ``air_indices`` ((k,) int64 or None), ``loudest``, ``silent`` and ``channel_uses``.
        """
        state = super().state_dict() | {
            "aggregation": str(self.rule),
            "air_seed": self._seed,
            "air_round": self._round,
            "air_indices": None if self._air is None else self._air.copy(),
            "loudest": self._loudest,
            "silent": self.silent,
            "channel_uses": self.channel_uses,
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
            seed = Key(state["air_seed"]).seed
            air = check_coordinates("air_indices", state["air_indices"], self.layout.d)
            loudest = check_number("loudest", state["loudest"])
            if loudest < 0 or (loudest > 0 and air is None):
                raise StateError(f"state's loudest must be 0 or more, and 0 where nobody sent, got {loudest}")
            counts = [check_integer(name, state[name], 0, 2**63) for name in ("air_round", "silent", "channel_uses")]
            if air is not None and not state["num_received"]:
                raise StateError("state has air_indices, but nothing was received")
        super().load_state_dict(state)
        self._seed, self._air, self._loudest = seed, air, loudest
        self._round, self.silent, self.channel_uses = counts


@dataclass(frozen=True, repr=False)
class over_the_air(Aggregation):
    """The weighted mean as a radio channel computes it: see ``OverTheAir``.

    Args:
        snr_db: power of the strongest client over power of the noise, in dB, of [-100, inf].
        fading: ``'none'`` or ``'rayleigh'``.
        threshold: least |h|^2 a client sends with under fading, above 0.

    Raises:
        ConfigError: on a parameter outside these.

    Example:
        >>> from gradwire.aggregation.over_the_air import over_the_air
        >>> str(over_the_air(10.0, fading="rayleigh"))
        "over_the_air(snr_db=10.0, fading='rayleigh')"

    Source: Amiri and Gunduz 2019, arXiv 1901.00844; Zhu, Wang and Huang 2018, arXiv 1812.11494.
    Deviations: those of ``OverTheAir``.
    """

    snr_db: float = 20.0
    fading: str = "none"
    threshold: float = 0.1

    summary: ClassVar[str] = "the weighted mean that a noisy radio channel computes"
    citation: ClassVar[str] = "Amiri and Gunduz 2019, arXiv:1901.00844"

    def __post_init__(self) -> None:
        if self.snr_db != math.inf:
            object.__setattr__(self, "snr_db", check_number("snr_db", self.snr_db))
        if self.snr_db < _LEAST_SNR_DB:
            raise ConfigError(f"snr_db must be of [{_LEAST_SNR_DB:g}, inf], got {self.snr_db!r}")
        if not isinstance(self.fading, str) or self.fading not in _FADINGS:
            hint = nearest(self.fading, _FADINGS) if isinstance(self.fading, str) else ""
            raise ConfigError(f"fading must be 'none' or 'rayleigh', got {self.fading!r}{hint}")
        object.__setattr__(self, "threshold", check_number("threshold", self.threshold))
        if self.threshold <= 0:
            raise ConfigError(f"threshold must be above 0, got {self.threshold!r}")

    def make(self, layout: Layout, seed: int = 0, compressor: Compressor | None = None) -> OverTheAir:
        """Make the aggregator, for clients that send the same coordinates, all or some of them."""
        zeros_are_values = compressor is not None and check_support(compressor, self, partly=True)
        return OverTheAir(layout, self.snr_db, self.fading, self.threshold, seed, zeros_are_values)
