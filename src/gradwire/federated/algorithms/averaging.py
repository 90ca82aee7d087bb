"""The mean itself: FedAvg, and FedProx, whose clients are held near the model they were given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradwire.federated.algorithms.algorithm import Algorithm, check_not_negative, check_positive
from gradwire.federated.algorithms.steps import Step, scaled_step
from gradwire.layout import Layout

__all__ = ["fedavg", "fedprox"]


@dataclass(frozen=True, repr=False)
class fedavg(Algorithm):
    """Add the mean of the clients' differences to the model: x <- x + eta * sum of (n_k / n) (w_k - x).

    Args:
        server_learning_rate: eta; 1 is the paper's.

    Raises:
        ConfigError: on a value outside [1e-18, 1e18].

    Example:
        >>> import gradwire as gw
        >>> from gradwire.federated.algorithms import fedavg
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
        >>> from gradwire.federated.algorithms import fedprox
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
        self._check(check_not_negative, "mu")
        self._check(check_positive, "server_learning_rate")

    @property
    def proximal(self) -> float:
        """Return mu."""
        return self.mu

    def make_step(self, layout: Layout) -> Step | None:
        """Scale by the server's learning rate; None where it is 1."""
        return scaled_step(self, layout, self.server_learning_rate)
