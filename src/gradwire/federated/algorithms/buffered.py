"""Asynchronous algorithms: FedAsync and FedBuff add payloads as they arrive, the older their model the less."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gradwire.aggregation.aggregator import check_weight
from gradwire.checks import check_integer
from gradwire.compressors.compressor import Vector
from gradwire.errors import ConfigError, nearest
from gradwire.federated.algorithms.algorithm import Algorithm, check_not_negative, check_positive
from gradwire.federated.algorithms.steps import Step
from gradwire.layout import Layout

__all__ = ["BufferedStep", "fedasync", "fedbuff"]

_STALENESS = ("polynomial", "hinge", "constant")
_LEAST_WEIGHT = 2.0**-64  # the least a Server takes


class BufferedStep(Step):
    """Make the asynchronous step: delta = eta * scale * (sum of s_i u_i), given the mean (sum of s_i u_i) / sum of s_i.

    The host calls ``count`` once for each payload that ``Server.receive`` accepted, with the same weight. Running
    statistics are scaled too, by all but eta: their clients started from models of different ages.

    Args:
        algorithm: whose step it is.
        layout: the model's layout.
        scale: 1 / K for a buffer of K payloads, or the mixing weight alpha.
        rate: eta, the server's learning rate, of parameters alone.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.federated.algorithms import fedbuff
        >>> algorithm = fedbuff(buffer_size=2)
        >>> step = algorithm.make_step(gw.Layout.flat(1))
        >>> weights = [algorithm.weight(0), algorithm.weight(3)]
        >>> for weight in weights:
        ...     step.count(weight)
        >>> step(np.array([(weights[0] * 1 + weights[1] * 4) / sum(weights)], np.float32)).tolist()
        [1.5]
    """

    algorithm: Algorithm

    def __init__(self, algorithm: Algorithm, layout: Layout, scale: float, rate: float = 1.0) -> None:
        super().__init__(algorithm, layout)
        self._scale = scale
        self._rate = rate
        self._memory = {"counted": 0.0}

    def count(self, weight: float, local_steps: int = 1) -> None:
        """Count one accepted payload.

        Args:
            weight: its ``Algorithm.weight``.
            local_steps: not read.

        Raises:
            ConfigError: on a weight outside [2^-64, 2^64]; nothing is changed then.
        """
        self._memory["counted"] += check_weight(weight)

    def _advance(self, delta: Vector) -> dict[str, Any]:
        delta *= np.float32(self._scale * self._memory["counted"])
        delta[: self.layout.num_parameters] *= np.float32(self._rate)
        return {"counted": 0.0}

    def largest_update(self, largest: float) -> float:
        """Tell how large, of as many payloads as the algorithm waits for, each of weight 1 at most."""
        whole = max(1.0, self._scale * max(self.algorithm.buffer_size, self._memory["counted"]))
        return float(largest / (whole * max(1.0, self._rate)))


@dataclass(frozen=True, repr=False)
class fedasync(Algorithm):
    """Add each payload as it arrives, the less the older its model: x_t = x_{t-1} + alpha s(t - tau) u.

    s(k) is 1 for ``'constant'``, (k + 1)^-a for ``'polynomial'``, and for ``'hinge'`` 1 up to k = b, then
    1 / (a (k - b) + 1).

    Args:
        mixing: alpha in (0, 1].
        staleness: ``'polynomial'``, ``'hinge'`` or ``'constant'``.
        exponent: polynomial's a, 0 or more.
        slope: hinge's a, 0 or more.
        threshold: hinge's b, an integer of 0 or more.

    Raises:
        ConfigError: on a value outside these.

    Example:
        >>> from gradwire.federated.algorithms import fedasync
        >>> fedasync().weight(3), fedasync(staleness="hinge").weight(5)
        (0.5, 0.09090909090909091)

    Source: Xie et al. 2019 (arXiv 1903.03934), Algorithm 1, and section 5 for s.
    Deviations: the paper mixes models, x_t = (1 - alpha_t) x_{t-1} + alpha_t x_new, which is this and
        alpha_t (x_tau - x_{t-1}) more: nothing for a fresh payload, but for a late one a difference that is dense even
        where payloads are sparse, and the way down with it. s is never below 2^-64.
    """

    mixing: float = 0.6
    staleness: str = "polynomial"
    exponent: float = 0.5
    slope: float = 10.0
    threshold: int = 4

    summary: ClassVar[str] = "every payload as it arrives, late ones less"
    citation: ClassVar[str] = "Xie et al. 2019, arXiv:1903.03934"
    asynchronous: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check(check_positive, "mixing")
        if self.mixing > 1:
            raise ConfigError(f"mixing must be in (0, 1], got {self.mixing!r}")
        if self.staleness not in _STALENESS or not isinstance(self.staleness, str):
            hint = nearest(str(self.staleness), _STALENESS)
            raise ConfigError(f"staleness must be 'polynomial', 'hinge' or 'constant', got {self.staleness!r}{hint}")
        self._check(check_not_negative, "exponent", "slope")
        object.__setattr__(self, "threshold", check_integer("threshold", self.threshold, 0))
        for name, kind in (("exponent", "polynomial"), ("slope", "hinge"), ("threshold", "hinge")):
            if self.staleness != kind and getattr(self, name) != getattr(fedasync, name):
                raise ConfigError(f"{name} does nothing where staleness is {self.staleness!r}; it is {kind!r}'s")

    def weight(self, staleness: int) -> float:
        """Return s(staleness)."""
        staleness = check_integer("staleness", staleness, 0)
        if self.staleness == "polynomial":
            return _polynomial(staleness, self.exponent)
        if self.staleness == "hinge" and staleness > self.threshold:
            return max(1 / (self.slope * (staleness - self.threshold) + 1), _LEAST_WEIGHT)
        return 1.0

    def make_step(self, layout: Layout) -> BufferedStep:
        """Scale by alpha, running statistics too: models are mixed whole."""
        return BufferedStep(self, layout, self.mixing)


@dataclass(frozen=True, repr=False)
class fedbuff(Algorithm):
    """Step when K payloads have arrived, the older its model the less each counts: x <- x + eta / K * sum of s_i u_i.

    s_i = 1 / (1 + tau_i)^a, where tau_i is the number of steps since the client got its model.

    Args:
        buffer_size: K, 1 or more.
        server_learning_rate: eta.
        exponent: a, 0 or more.

    Raises:
        ConfigError: on a value outside these.

    Example:
        >>> from gradwire.federated.algorithms import fedbuff
        >>> fedbuff(buffer_size=3).buffer_size, fedbuff().weight(3)
        (3, 0.5)

    Source: Nguyen et al. 2021 (arXiv 2106.06639), Algorithm 1; s: 1 / sqrt(1 + tau) of its experiments.
    Deviations: none. s is never below 2^-64; the sum is over K even where the host steps earlier.
    """

    buffer_size: int = 10
    server_learning_rate: float = 1.0
    exponent: float = 0.5

    summary: ClassVar[str] = "a step every so many payloads, late ones less"
    citation: ClassVar[str] = "Nguyen et al. 2021, arXiv:2106.06639"
    asynchronous: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "buffer_size", check_integer("buffer_size", self.buffer_size, 1))
        self._check(check_positive, "server_learning_rate")
        self._check(check_not_negative, "exponent")

    def weight(self, staleness: int) -> float:
        """Return s of this staleness."""
        return _polynomial(check_integer("staleness", staleness, 0), self.exponent)

    def make_step(self, layout: Layout) -> BufferedStep:
        """Scale by eta / K."""
        return BufferedStep(self, layout, 1 / self.buffer_size, self.server_learning_rate)


def _polynomial(staleness: int, exponent: float) -> float:
    return max(math.pow(1 + staleness, -exponent), _LEAST_WEIGHT)
