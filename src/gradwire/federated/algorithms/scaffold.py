"""SCAFFOLD: control variates against the drift of unlike clients. What they are and how they travel: ``controls``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from gradwire.compressors.spec import parse
from gradwire.errors import ConfigError
from gradwire.federated.algorithms.algorithm import Algorithm, check_positive
from gradwire.federated.algorithms.steps import Step, scaled_step
from gradwire.layout import Layout

__all__ = ["scaffold"]


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
        >>> from gradwire.federated.algorithms import scaffold
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


def _spec_text(name: str, value: Any) -> str:
    try:
        return str(parse(value))
    except ConfigError as error:
        raise ConfigError(f"{name} must be a compressor's spec: {error}") from None
