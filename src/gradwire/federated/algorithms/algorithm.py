"""What a federated algorithm is: a frozen value that says what the server makes of the mean and how clients train.

``str`` gives the text ``parse_algorithm`` reads. What it remembers between rounds is a ``Step``, which
``Server(step=...)`` calls.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from gradwire.checks import check_number
from gradwire.errors import ConfigError
from gradwire.federated.algorithms.steps import Step
from gradwire.layout import Layout
from gradwire.named import Named, read

__all__ = ["Algorithm", "check_below_one", "check_not_negative", "check_positive", "parse_algorithm"]


class Algorithm(Named, kind="algorithm", example="fedavg()"):
    """Say how federated rounds are run, as a pure value.

    Subclasses are frozen dataclasses whose fields are their parameters, each with a default.

    Attributes:
        asynchronous: whether the server steps whenever ``buffer_size`` payloads have arrived, however old their models.
        uses_controls: whether clients and server keep control variates, see ``control_correction``.

    Example:
        >>> from gradwire.federated.algorithms import fedavgm, parse_algorithm
        >>> parse_algorithm("fedavgm(momentum=0.5)") == fedavgm(0.5)
        True
    """

    asynchronous: ClassVar[bool] = False
    uses_controls: ClassVar[bool] = False

    @property
    def proximal(self) -> float:
        """FedProx's mu, which clients multiply w - w_start with and add to each gradient; 0: nothing is added."""
        return 0.0

    def scale(self, local_steps: int) -> float:
        """Tell what a client multiplies its update with before it is compressed; running statistics stay as they are.

        Args:
            local_steps: how many it made, 1 or more.

        Returns:
            1 for algorithms that average updates whatever their length.
        """
        return 1.0

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


def parse_algorithm(text: str) -> Algorithm:
    """Build the algorithm a spec describes.

    Args:
        text: for instance ``"fedavgm(momentum=0.5)"``; ``str(algorithm)`` of any algorithm is one.

    Returns:
        The algorithm; ``parse_algorithm(str(a)) == a``.

    Raises:
        ConfigError: on a spec that cannot be read or a parameter out of range; the message points at the character.

    Example:
        >>> from gradwire.federated.algorithms import parse_algorithm
        >>> parse_algorithm("fedprox(mu=0.1, server_learning_rate=1)").proximal
        0.1
    """
    return read(text, Algorithm)  # type: ignore[type-abstract]


# ---- checks of parameters: squares of these stay within float32


def check_positive(name: str, value: Any) -> float:
    """Return a number of [1e-18, 1e18], or raise ConfigError."""
    if not 1e-18 <= check_number(name, value) <= 1e18:
        raise ConfigError(f"{name} must be in [1e-18, 1e18], got {value!r}")
    return float(value)


def check_not_negative(name: str, value: Any) -> float:
    """Return a number of [0, 1e18], or raise ConfigError."""
    if not 0 <= check_number(name, value) <= 1e18:
        raise ConfigError(f"{name} must be in [0, 1e18], got {value!r}")
    return float(value)


def check_below_one(name: str, value: Any) -> float:
    """Return a number of [0, 1), or raise ConfigError."""
    if not 0 <= check_number(name, value) < 1:
        raise ConfigError(f"{name} must be in [0, 1), got {value!r}")
    return float(value)
