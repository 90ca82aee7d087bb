"""FedNova: the mean of updates a local step, so that clients who make more of them do not count for more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gradwire.aggregation.aggregator import check_weight
from gradwire.checks import check_integer
from gradwire.compressors.compressor import Vector
from gradwire.federated.algorithms.algorithm import Algorithm, check_positive
from gradwire.federated.algorithms.steps import Step
from gradwire.layout import Layout

__all__ = ["NormalisedStep", "fednova"]


@dataclass(frozen=True, repr=False)
class fednova(Algorithm):
    """Average updates by the step: x <- x + eta tau_eff * sum of p_i (y_i - x) / tau_i, tau_eff = sum of p_i tau_i.

    tau_i is the number of local steps of client i, and p_i its share of the weight. Where all make as many, it is
    ``fedavg``; where they do not, ``fedavg`` ends up at the minimum of another objective, in which each counts
    tau_i times.

    Args:
        server_learning_rate: eta; 1 is the paper's.

    Raises:
        ConfigError: on a value outside [1e-18, 1e18].

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.federated.algorithms import fednova
        >>> algorithm, layout = fednova(), gw.Layout.flat(1)
        >>> step = algorithm.make_step(layout)
        >>> server = gw.Server(gw.dense(), layout, step=step)
        >>> for i, (update, local_steps) in enumerate(((1.0, 1), (6.0, 3))):
        ...     sent = np.float32([update]) * np.float32(algorithm.scale(local_steps))
        ...     server.receive(gw.Client(gw.dense(), layout, client_id=i).compress(sent), client_id=i)
        ...     step.count(1.0, local_steps)
        >>> server.close_round().applied.tolist()
        [3.0]

    Source: Wang et al. 2020 (arXiv 2007.07481), section 4, for local SGD without momentum, where |a_i|_1 = tau_i; the
        objective of ``fedavg``: Lemma 1.
    Deviations: updates are normalised before they are compressed, and running statistics are not. How many steps a
        client made is told beside its payload, as its weight is.
    """

    server_learning_rate: float = 1.0

    summary: ClassVar[str] = "the mean by the local step, for clients that make unequal numbers of them"
    citation: ClassVar[str] = "Wang et al. 2020, arXiv:2007.07481"

    def __post_init__(self) -> None:
        self._check(check_positive, "server_learning_rate")

    def scale(self, local_steps: int) -> float:
        """Return 1 / tau_i."""
        return 1 / check_integer("local_steps", local_steps, 1)

    def make_step(self, layout: Layout) -> Step:
        """Scale by eta and the mean number of steps."""
        return NormalisedStep(self, layout)


class NormalisedStep(Step):
    """delta = eta tau_eff u of parameters, where the host calls ``count`` for each payload that was accepted."""

    algorithm: fednova

    def __init__(self, algorithm: fednova, layout: Layout) -> None:
        super().__init__(algorithm, layout)
        self._memory = {"weights": 0.0, "steps": 0.0}

    def count(self, weight: float, local_steps: int = 1) -> None:
        """Count one accepted payload, its weight and its client's steps."""
        weight, local_steps = check_weight(weight), check_integer("local_steps", local_steps, 1)
        self._memory["weights"] += weight
        self._memory["steps"] += weight * local_steps

    def largest_update(self, largest: float) -> float:
        """Tell how large: clients make 2^20 local steps at most, or such a round may have to be dropped."""
        return largest / (max(1.0, self.algorithm.server_learning_rate) * 2.0**20)

    def _advance(self, delta: Vector) -> dict[str, Any]:
        weights, steps = self._memory["weights"], self._memory["steps"]
        effective = steps / weights if weights else 0.0  # nothing arrived: there is nothing to scale
        delta[: self.layout.num_parameters] *= np.float32(self.algorithm.server_learning_rate * effective)
        return {"weights": 0.0, "steps": 0.0}
