"""Server optimisers: momentum, Adam, Yogi and Adagrad on the mean.

They move parameters alone: running statistics, the last d - ``layout.num_parameters`` coordinates, become the plain
mean.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gradwire.checks import check_flag
from gradwire.compressors.compressor import LARGEST_UPDATE, Vector, largest_magnitude
from gradwire.errors import StateError
from gradwire.federated.algorithms.algorithm import Algorithm, check_below_one, check_not_negative, check_positive
from gradwire.federated.algorithms.steps import Step
from gradwire.layout import Layout

__all__ = ["Adaptive", "AdaptiveStep", "MomentumStep", "fedadagrad", "fedadam", "fedavgm", "fedyogi"]


@dataclass(frozen=True, repr=False)
class fedavgm(Algorithm):
    """Keep the server's momentum: v <- beta v + update; x <- x + eta v.

    Args:
        momentum: beta in [0, 1).
        server_learning_rate: eta.

    Raises:
        ConfigError: on a value outside these.

    Example:
        >>> from gradwire.federated.algorithms import fedavgm
        >>> str(fedavgm(momentum=0.5))
        'fedavgm(momentum=0.5)'

    Source: Hsu et al. 2019 (arXiv 1909.06335), section 4.3.
    Deviations: eta, 1 in the paper. Running statistics are averaged and have no momentum.
    """

    momentum: float = 0.9
    server_learning_rate: float = 1.0

    summary: ClassVar[str] = "fedavg with momentum at the server"
    citation: ClassVar[str] = "Hsu et al. 2019, arXiv:1909.06335"

    def __post_init__(self) -> None:
        self._check(check_below_one, "momentum")
        self._check(check_positive, "server_learning_rate")

    def make_step(self, layout: Layout) -> Step:
        """Start with a momentum of zeros."""
        return MomentumStep(self, layout)


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

    def largest_update(self, largest: float) -> float:
        """Tell how large: eta (beta |v| + |u|) and the steps it makes in rounds to come have to fit together."""
        beta = self.algorithm.momentum
        room = largest * (1 - beta) / max(1.0, self.algorithm.server_learning_rate)
        return max(0.0, room - beta * largest_magnitude(self._memory["momentum"]))


class Adaptive(Algorithm):
    """What the adaptive server optimisers share: m, v and x of Reddi et al., Algorithm 2."""

    server_learning_rate: float
    beta_1: float
    tau: float
    initial: float | None

    def __post_init__(self) -> None:
        self._check(check_positive, "server_learning_rate", "tau")
        self._check(check_below_one, "beta_1")
        if self.initial is not None:
            self._check(check_not_negative, "initial")

    @abstractmethod
    def next_squares(self, squares: Vector, square: Vector) -> Vector:
        """Return v_t, newly made, of v_{t-1} and the update's elementwise square, both (n,) float32."""

    def rate(self, rounds: int) -> float:
        """Return the learning rate of the round of this 1-based number."""
        return self.server_learning_rate

    def make_step(self, layout: Layout) -> Step:
        """Start with m = 0 and v = ``initial``."""
        return AdaptiveStep(self, layout)


@dataclass(frozen=True, repr=False)
class fedadam(Adaptive):
    """Step each parameter by its mean over its root mean square.

    m <- beta_1 m + (1 - beta_1) u; v <- beta_2 v + (1 - beta_2) u^2; x <- x + eta m / (sqrt(v) + tau).

    Args:
        server_learning_rate: eta.
        beta_1: decay of the mean, in [0, 1).
        beta_2: decay of the squares, in [0, 1).
        tau: the degree of adaptivity, > 0: below it parameters move in proportion to their update.
        initial: v before the first round, 0 or more; tau^2 where None.
        bias_correction: take eta sqrt(1 - beta_2^t) / (1 - beta_1^t) in round t = 1, 2, ... for eta; it corrects for
            an ``initial`` of 0.

    Raises:
        ConfigError: on a value outside these.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.federated.algorithms import fedadam
        >>> step = fedadam(0.1, initial=0.0, bias_correction=True).make_step(gw.Layout.flat(2))
        >>> [round(float(x), 3) for x in step(np.array([1, -100], np.float32))]
        [0.099, -0.1]

    Source: Reddi et al. 2020 (arXiv 2003.00295), Algorithm 2; bias correction: Kingma and Ba 2014 (arXiv 1412.6980),
        before section 2.1.
    Deviations: v starts at tau^2, the least the paper allows. Flower's starts at 0 and corrects the bias, taking t + 1
        for t. Running statistics are averaged, not stepped.
    """

    server_learning_rate: float = 0.03
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    initial: float | None = None
    bias_correction: bool = False

    summary: ClassVar[str] = "Adam at the server"
    citation: ClassVar[str] = "Reddi et al. 2020, arXiv:2003.00295"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(check_below_one, "beta_2")
        check_flag("bias_correction", self.bias_correction)

    def next_squares(self, squares: Vector, square: Vector) -> Vector:
        """Return beta_2 v + (1 - beta_2) u^2."""
        square *= np.float32(1 - self.beta_2)
        square += np.float32(self.beta_2) * squares
        return square

    def rate(self, rounds: int) -> float:
        """Return eta, corrected where asked."""
        if not self.bias_correction:
            return self.server_learning_rate
        return float(self.server_learning_rate * (1 - self.beta_2**rounds) ** 0.5 / (1 - self.beta_1**rounds))


@dataclass(frozen=True, repr=False)
class fedyogi(Adaptive):
    """Step as ``fedadam`` does, with squares that move by no more than the update's own.

    v <- v - (1 - beta_2) u^2 sign(v - u^2); m and x as in ``fedadam``.

    Args:
        server_learning_rate: eta.
        beta_1: decay of the mean, in [0, 1).
        beta_2: 1 - beta_2 is how much of u^2 the squares move by; in [0, 1).
        tau: as ``fedadam``'s.
        initial: as ``fedadam``'s.

    Raises:
        ConfigError: on a value outside these.

    Example:
        >>> from gradwire.federated.algorithms import fedyogi
        >>> str(fedyogi(0.01))
        'fedyogi(server_learning_rate=0.01)'

    Source: Reddi et al. 2020 (arXiv 2003.00295), Algorithm 2.
    Deviations: v starts at tau^2, the least the paper allows; Flower's at 0. Running statistics are averaged, not
        stepped.
    """

    server_learning_rate: float = 0.03
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    initial: float | None = None

    summary: ClassVar[str] = "Yogi at the server: Adam whose squares change slowly"
    citation: ClassVar[str] = "Reddi et al. 2020, arXiv:2003.00295"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(check_below_one, "beta_2")

    def next_squares(self, squares: Vector, square: Vector) -> Vector:
        """Return v - (1 - beta_2) u^2 sign(v - u^2)."""
        sign = np.sign(squares - square)
        square *= np.float32(1 - self.beta_2)
        square *= sign
        return np.subtract(squares, square, out=square)


@dataclass(frozen=True, repr=False)
class fedadagrad(Adaptive):
    """Step each parameter by its mean over the root of the sum of all squares so far.

    v <- v + u^2; m and x as in ``fedadam``.

    Args:
        server_learning_rate: eta.
        beta_1: decay of the mean, in [0, 1); 0 in the paper's experiments.
        tau: as ``fedadam``'s.
        initial: as ``fedadam``'s.

    Raises:
        ConfigError: on a value outside these.

    Example:
        >>> from gradwire.federated.algorithms import fedadagrad
        >>> str(fedadagrad(0.03, initial=0))
        'fedadagrad(initial=0.0)'

    Source: Reddi et al. 2020 (arXiv 2003.00295), Algorithm 2.
    Deviations: v starts at tau^2, the least the paper allows; Flower's at 0. Running statistics are averaged, not
        stepped.
    """

    server_learning_rate: float = 0.03
    beta_1: float = 0.0
    tau: float = 1e-3
    initial: float | None = None

    summary: ClassVar[str] = "Adagrad at the server"
    citation: ClassVar[str] = "Reddi et al. 2020, arXiv:2003.00295"

    def next_squares(self, squares: Vector, square: Vector) -> Vector:
        """Return v + u^2."""
        square += squares
        return square


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

    def largest_update(self, largest: float) -> float:
        """Tell how large: eta |m| / tau of this and all rounds to come has to fit, and v + u^2.

        Squares are kept to a millionth of what float32 holds, so that no update fills them up for all that follow.
        """
        beta = self.algorithm.beta_1
        room = largest * (1 - beta) * min(1.0, self.algorithm.tau / self.algorithm.rate(self._memory["rounds"] + 1))
        room = max(0.0, room - beta * largest_magnitude(self._memory["momentum"]))
        squares = min(LARGEST_UPDATE * 2.0**-20, max(0.0, LARGEST_UPDATE - largest_magnitude(self._memory["squares"])))
        return float(min(room, squares**0.5))

    def _check_memory(self, memory: dict[str, Any]) -> None:
        if (memory["squares"] < 0).any():
            raise StateError("state's squares must be 0 or more")
