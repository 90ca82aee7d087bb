"""Federated algorithms: what the server makes of the mean, how late payloads count, what clients add to gradients.

An algorithm is a frozen value, as a compressor is; ``str`` gives the text ``parse_algorithm`` reads. What it remembers
between rounds is a ``Step``, which ``Server(step=...)`` calls. The adaptive ones move parameters alone: running
statistics, the last d - ``layout.num_parameters`` coordinates, become the plain mean.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from gradwire.checks import check_flag, check_integer, check_number
from gradwire.compressors.compressor import Vector
from gradwire.compressors.spec import parse, read_call
from gradwire.errors import ConfigError, nearest
from gradwire.federated.algorithms.steps import AdaptiveStep, BufferedStep, MomentumStep, Step, scaled_step
from gradwire.layout import Layout

__all__ = [
    "Algorithm",
    "fedadagrad",
    "fedadam",
    "fedasync",
    "fedavg",
    "fedavgm",
    "fedbuff",
    "fedprox",
    "fedyogi",
    "parse_algorithm",
    "scaffold",
]

_STALENESS = ("polynomial", "hinge", "constant")
_LEAST_WEIGHT = 2.0**-64  # the least a Server takes


class Algorithm(ABC):
    """Say how federated rounds are run, as a pure value.

    Subclasses are frozen dataclasses whose fields are their parameters, each with a default.

    Attributes:
        registry: name -> class of every algorithm.
        summary: what it does, in a few words.
        citation: where it is from.
        asynchronous: whether the server steps whenever ``buffer_size`` payloads have arrived, however old their models.
        uses_controls: whether clients and server keep control variates, see ``control_correction``.

    Example:
        >>> from gradwire.federated.algorithms.algorithm import fedavgm, parse_algorithm
        >>> parse_algorithm("fedavgm(momentum=0.5)") == fedavgm(0.5)
        True
    """

    registry: ClassVar[dict[str, type[Algorithm]]] = {}
    summary: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    asynchronous: ClassVar[bool] = False
    uses_controls: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__name__.islower() and not cls.__name__.startswith("_"):
            Algorithm.registry[cls.__name__] = cls

    @property
    def proximal(self) -> float:
        """FedProx's mu, which clients multiply w - w_start with and add to each gradient; 0: nothing is added."""
        return 0.0

    @property
    def road(self) -> str | None:
        """Spec text of what control variates travel with; None: the method's own."""
        return None

    @property
    def buffer_size(self) -> int:
        """How many payloads an asynchronous server waits for before it steps."""
        return 1

    def weight(self, staleness: int) -> float:
        """Weigh a payload by its age.

        Args:
            staleness: how many steps the server made since the client got its model, 0 or more.

        Returns:
            s(t - tau) in (0, 1]; 1 for algorithms that wait for all.
        """
        return 1.0

    @abstractmethod
    def make_step(self, layout: Layout) -> Step | None:
        """Make what ``Server(step=...)`` takes, before the first round.

        Args:
            layout: the model's layout.

        Returns:
            A fresh step; None where the mean is applied as it is.
        """

    def _check(self, check: Callable[[str, Any], Any], *names: str) -> None:
        """Put each of these parameters through a check, and keep what it gives."""
        for name in names:
            object.__setattr__(self, name, check(name, getattr(self, name)))

    def __str__(self) -> str:
        changed = [f.name for f in fields(self) if getattr(self, f.name) != f.default]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    __repr__ = __str__


def parse_algorithm(text: str) -> Algorithm:
    """Build the algorithm a spec describes.

    Args:
        text: for instance ``"fedavgm(momentum=0.5)"``; ``str(algorithm)`` of any algorithm is one.

    Returns:
        The algorithm; ``parse_algorithm(str(a)) == a``.

    Raises:
        ConfigError: on a spec that cannot be read or a parameter out of range; the message points at the character.

    Example:
        >>> from gradwire.federated.algorithms.algorithm import parse_algorithm
        >>> parse_algorithm("fedprox(mu=0.1, server_learning_rate=1)").proximal
        0.1
    """
    built: Algorithm = read_call(text, Algorithm, Algorithm.registry, "algorithm", "fedavg()")
    return built


# ---- the mean


@dataclass(frozen=True, repr=False)
class fedavg(Algorithm):
    """Add the mean of the clients' differences to the model: x <- x + eta * sum of (n_k / n) (w_k - x).

    Args:
        server_learning_rate: eta; 1 is the paper's.

    Raises:
        ConfigError: on a value outside [1e-18, 1e18].

    Example:
        >>> import gradwire as gw
        >>> from gradwire.federated.algorithms.algorithm import fedavg
        >>> fedavg().make_step(gw.Layout.flat(3)) is None
        True

    Source: McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1; eta: Reddi et al. 2020 (arXiv 2003.00295), Algorithm 1.
    Deviations: none.
    """

    server_learning_rate: float = 1.0

    summary: ClassVar[str] = "the weighted mean of the clients' models"
    citation: ClassVar[str] = "McMahan et al. 2017, arXiv:1602.05629"

    def __post_init__(self) -> None:
        self._check(check_positive, "server_learning_rate")

    def make_step(self, layout: Layout) -> Step | None:
        """Scale by the server's learning rate; None where it is 1."""
        return scaled_step(self, layout, self.server_learning_rate)


@dataclass(frozen=True, repr=False)
class fedprox(Algorithm):
    """Hold clients near the model they were given: each minimises F_k(w) + mu / 2 |w - w_t|^2.

    Args:
        mu: weight of the proximal term, 0 or more; its gradient is mu (w - w_t).
        server_learning_rate: as ``fedavg``'s.

    Raises:
        ConfigError: on a value outside these.

    Example:
        >>> from gradwire.federated.algorithms.algorithm import fedprox
        >>> fedprox(mu=0.1).proximal
        0.1

    Source: Li et al. 2018 (arXiv 1812.06127), Eq. (2) and Algorithm 2.
    Deviations: the mean is weighted and over the clients of the round; how inexact a solution is comes from the number
        of local steps, which may differ between clients, not from a gamma.
    """

    mu: float = 0.01
    server_learning_rate: float = 1.0

    summary: ClassVar[str] = "fedavg whose clients are held near the global model"
    citation: ClassVar[str] = "Li et al. 2018, arXiv:1812.06127"

    def __post_init__(self) -> None:
        self._check(_not_negative, "mu")
        self._check(check_positive, "server_learning_rate")

    @property
    def proximal(self) -> float:
        """Return mu."""
        return self.mu

    def make_step(self, layout: Layout) -> Step | None:
        """Scale by the server's learning rate; None where it is 1."""
        return scaled_step(self, layout, self.server_learning_rate)


# ---- server optimisers


@dataclass(frozen=True, repr=False)
class fedavgm(Algorithm):
    """Keep the server's momentum: v <- beta v + update; x <- x + eta v.

    Args:
        momentum: beta in [0, 1).
        server_learning_rate: eta.

    Raises:
        ConfigError: on a value outside these.

    Example:
        >>> from gradwire.federated.algorithms.algorithm import fedavgm
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
        self._check(_below_one, "momentum")
        self._check(check_positive, "server_learning_rate")

    def make_step(self, layout: Layout) -> Step:
        """Start with a momentum of zeros."""
        return MomentumStep(self, layout)


class Adaptive(Algorithm):
    """What the adaptive server optimisers share: m, v and x of Reddi et al., Algorithm 2."""

    server_learning_rate: float
    beta_1: float
    tau: float
    initial: float | None

    def __post_init__(self) -> None:
        self._check(check_positive, "server_learning_rate", "tau")
        self._check(_below_one, "beta_1")
        if self.initial is not None:
            self._check(_not_negative, "initial")

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
        >>> from gradwire.federated.algorithms.algorithm import fedadam
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
        self._check(_below_one, "beta_2")
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
        >>> from gradwire.federated.algorithms.algorithm import fedyogi
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
        self._check(_below_one, "beta_2")

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
        >>> from gradwire.federated.algorithms.algorithm import fedadagrad
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


# ---- control variates


@dataclass(frozen=True, repr=False)
class scaffold(Algorithm):
    """Correct each local gradient by the difference of the server's and the client's control variate.

    Local steps are y <- y - eta_l (g(y) - c_i + c), see ``control_correction``; after K of them
    c_i+ = c_i - c + (x - y) / (K eta_l), see ``control_update``. The server adds the sum of the clients' c_i+ - c_i
    over N, the number of all clients, to c, and eta times the mean of y - x to x. All control variates start at 0.

    Args:
        server_learning_rate: eta.
        control: spec text of the compressor that control variates travel with, in either direction; None takes the
            method's own.

    Raises:
        ConfigError: on a learning rate outside [1e-18, 1e18], or a text that is no compressor's.

    Example:
        >>> from gradwire.federated.algorithms.algorithm import scaffold
        >>> scaffold(control="topk(density=0.1)")
        scaffold(control='topk(0.1)')

    Source: Karimireddy et al. 2019 (arXiv 1910.06378), Algorithm 1, option II of line 12.
    Deviations: the paper's mean over the clients is not weighted; here it is by the weights the host gives.
    """

    server_learning_rate: float = 1.0
    control: str | None = None

    summary: ClassVar[str] = "control variates against the drift of unlike clients"
    citation: ClassVar[str] = "Karimireddy et al. 2019, arXiv:1910.06378"
    uses_controls: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check(check_positive, "server_learning_rate")
        if self.control is not None:
            self._check(_spec_text, "control")

    @property
    def road(self) -> str | None:
        """``control``."""
        return self.control

    def make_step(self, layout: Layout) -> Step | None:
        """Scale by the server's learning rate; None where it is 1."""
        return scaled_step(self, layout, self.server_learning_rate)


# ---- asynchronous


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
        >>> from gradwire.federated.algorithms.algorithm import fedasync
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
        self._check(_not_negative, "exponent", "slope")
        object.__setattr__(self, "threshold", check_integer("threshold", self.threshold, 0))

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
        >>> from gradwire.federated.algorithms.algorithm import fedbuff
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
        self._check(_not_negative, "exponent")

    def weight(self, staleness: int) -> float:
        """Return s of this staleness."""
        return _polynomial(check_integer("staleness", staleness, 0), self.exponent)

    def make_step(self, layout: Layout) -> BufferedStep:
        """Scale by eta / K."""
        return BufferedStep(self, layout, 1 / self.buffer_size, self.server_learning_rate)


def _polynomial(staleness: int, exponent: float) -> float:
    return max(math.pow(1 + staleness, -exponent), _LEAST_WEIGHT)


# ---- checks of parameters: squares of these stay within float32


def check_positive(name: str, value: Any) -> float:
    if not 1e-18 <= check_number(name, value) <= 1e18:
        raise ConfigError(f"{name} must be in [1e-18, 1e18], got {value!r}")
    return float(value)


def _not_negative(name: str, value: Any) -> float:
    if not 0 <= check_number(name, value) <= 1e18:
        raise ConfigError(f"{name} must be in [0, 1e18], got {value!r}")
    return float(value)


def _below_one(name: str, value: Any) -> float:
    if not 0 <= check_number(name, value) < 1:
        raise ConfigError(f"{name} must be in [0, 1), got {value!r}")
    return float(value)


def _spec_text(name: str, value: Any) -> str:
    try:
        return str(parse(value))
    except ConfigError as error:
        raise ConfigError(f"{name} must be a compressor's spec: {error}") from None
