"""Steps: what a server's optimiser makes of each round's mean, and what it remembers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from gradwire.aggregation.aggregator import check_weight
from gradwire.compressors.compressor import Vector
from gradwire.errors import StateError
from gradwire.layout import Layout, as_update, check_finite
from gradwire.saved import check_memory, check_state, copy_memory, from_saved, reading_state, to_saved

if TYPE_CHECKING:
    from gradwire.federated.algorithms.algorithm import Adaptive, Algorithm, fedavgm

__all__ = ["AdaptiveStep", "BufferedStep", "MomentumStep", "ScaledStep", "Step", "scaled_step"]

STATE_FORMAT = 1


class Step(ABC):
    """Turn each round's mean into what is added to the model, and remember what that takes.

    Args:
        algorithm: whose step it is.
        layout: the model's layout.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.federated.algorithms.algorithm import fedavgm
        >>> step = fedavgm(momentum=0.5).make_step(gw.Layout.flat(2))
        >>> [step(np.array([1, 2], np.float32)).tolist() for _ in range(2)]
        [[1.0, 2.0], [1.5, 3.0]]
    """

    def __init__(self, algorithm: Algorithm, layout: Layout) -> None:
        self.algorithm = algorithm
        self.layout = layout
        self._memory: dict[str, Any] = {}

    def __call__(self, update: Vector) -> Vector:
        """Make one step.

        Args:
            update: (d,) float32, the mean of a round; not modified.

        Returns:
            (d,) float32, newly made: what to add to the model.

        Raises:
            UpdateError: on a wrong shape, NaN or Inf, or a result that is not finite; nothing is changed then.
        """
        delta = as_update(update, self.layout.d, layout=self.layout).copy()
        with np.errstate(all="ignore"):  # what is not finite is found below
            memory = self._advance(delta)
        name = type(self.algorithm).__name__
        for key, value in memory.items():
            if isinstance(value, np.ndarray):
                check_finite(value, f"{name}'s {key}", self.layout)
        check_finite(delta, f"{name}'s step", self.layout)
        self._memory = memory
        return delta

    @abstractmethod
    def _advance(self, delta: Vector) -> dict[str, Any]:
        """Turn the (d,) float32 mean into the step, in place; return the memory after it, leaving this one alone."""

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of what must survive a restart: ``format``, ``spec``, ``layout`` and ``memory``."""
        state = {
            "format": STATE_FORMAT,
            "spec": str(self.algorithm),
            "layout": self.layout.digest.hex(),
            "memory": copy_memory(self._memory),
        }
        return to_saved(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Args:
            state: from ``state_dict`` of the same algorithm and layout; not modified.

        Raises:
            StateError: on a state of something else; nothing is changed then.
        """
        state = from_saved(state)
        check_state(state, STATE_FORMAT, str(self.algorithm), self.layout)
        with reading_state():
            memory = copy_memory(state["memory"])
            check_memory(memory, self._memory, self.layout.num_parameters)
            if "squares" in memory and (memory["squares"] < 0).any():
                raise StateError("state's squares must be 0 or more")
        self._memory = memory


class ScaledStep(Step):
    """delta = eta * update."""

    def __init__(self, algorithm: Algorithm, layout: Layout, rate: float) -> None:
        super().__init__(algorithm, layout)
        self._rate = rate

    def _advance(self, delta: Vector) -> dict[str, Any]:
        delta[: self.layout.num_parameters] *= np.float32(self._rate)
        return {}


def scaled_step(algorithm: Algorithm, layout: Layout, rate: float) -> Step | None:
    """Make the step that scales; None where there is nothing to scale."""
    return None if rate == 1 else ScaledStep(algorithm, layout, rate)


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
        >>> from gradwire.federated.algorithms.algorithm import fedbuff
        >>> algorithm = fedbuff(buffer_size=2)
        >>> step = algorithm.make_step(gw.Layout.flat(1))
        >>> weights = [algorithm.weight(0), algorithm.weight(3)]
        >>> for weight in weights:
        ...     step.count(weight)
        >>> step(np.array([(weights[0] * 1 + weights[1] * 4) / sum(weights)], np.float32)).tolist()
        [1.5]
    """

    def __init__(self, algorithm: Algorithm, layout: Layout, scale: float, rate: float = 1.0) -> None:
        super().__init__(algorithm, layout)
        self._scale = scale
        self._rate = rate
        self._memory = {"counted": 0.0}

    def count(self, weight: float) -> None:
        """Count one accepted payload.

        Args:
            weight: its ``Algorithm.weight``.

        Raises:
            ConfigError: on a weight outside [2^-64, 2^64]; nothing is changed then.
        """
        self._memory["counted"] += check_weight(weight)

    def _advance(self, delta: Vector) -> dict[str, Any]:
        delta *= np.float32(self._scale * self._memory["counted"])
        delta[: self.layout.num_parameters] *= np.float32(self._rate)
        return {"counted": 0.0}


class MomentumStep(Step):
    """v = beta v + update, delta = eta v."""

    algorithm: fedavgm

    def __init__(self, algorithm: fedavgm, layout: Layout) -> None:
        super().__init__(algorithm, layout)
        self._memory = {"momentum": np.zeros(layout.num_parameters, np.float32)}

    def _advance(self, delta: Vector) -> dict[str, Any]:
        step = delta[: self.layout.num_parameters]
        momentum = np.float32(self.algorithm.momentum) * self._memory["momentum"]
        momentum += step
        np.multiply(momentum, np.float32(self.algorithm.server_learning_rate), out=step)
        return {"momentum": momentum}


class AdaptiveStep(Step):
    """m = beta_1 m + (1 - beta_1) update; v by the algorithm; delta = eta m / (sqrt(v) + tau)."""

    algorithm: Adaptive

    def __init__(self, algorithm: Adaptive, layout: Layout) -> None:
        super().__init__(algorithm, layout)
        initial = algorithm.tau**2 if algorithm.initial is None else algorithm.initial
        self._memory = {
            "momentum": np.zeros(layout.num_parameters, np.float32),
            "squares": np.full(layout.num_parameters, initial, np.float32),
            "rounds": 0,
        }

    def _advance(self, delta: Vector) -> dict[str, Any]:
        step = delta[: self.layout.num_parameters]
        beta, rounds = self.algorithm.beta_1, self._memory["rounds"] + 1
        squares = self.algorithm.next_squares(self._memory["squares"], np.square(step))
        step *= np.float32(1 - beta)
        momentum = np.float32(beta) * self._memory["momentum"]
        momentum += step
        divisor = np.sqrt(squares)
        divisor += np.float32(self.algorithm.tau)
        np.divide(momentum, divisor, out=step)
        step *= np.float32(self.algorithm.rate(rounds))
        return {"momentum": momentum, "squares": squares, "rounds": rounds}
