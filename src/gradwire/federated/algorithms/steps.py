"""Steps: what a server's optimiser makes of each round's mean, and what it remembers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gradwire.compressors.compressor import Vector
from gradwire.layout import Layout, as_update, check_finite
from gradwire.named import Named
from gradwire.saved import check_memory, check_state, copy_memory, from_saved, reading_state, to_saved

__all__ = ["ScaledStep", "Step", "scaled_step"]

STATE_FORMAT = 1


class Step(ABC):
    """Turn each round's mean into what is added to the model, and remember what that takes.

    Args:
        algorithm: whose step it is.
        layout: the model's layout.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.federated.algorithms import fedavgm
        >>> step = fedavgm(momentum=0.5).make_step(gw.Layout.flat(2))
        >>> [step(np.array([1, 2], np.float32)).tolist() for _ in range(2)]
        [[1.0, 2.0], [1.5, 3.0]]
    """

    def __init__(self, algorithm: Named, layout: Layout) -> None:
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

    def undo_point(self) -> Callable[[], None]:
        """Return what puts the memory back as it is now."""
        return partial(setattr, self, "_memory", dict(self._memory))

    @abstractmethod
    def largest_update(self, largest: float) -> float:
        """Tell how large a mean's entries may be for a step that is finite and has none above ``largest``.

        Args:
            largest: > 0.

        Returns:
            The magnitude, 0 or more; what is remembered may leave less room than there was.
        """

    def count(self, weight: float, local_steps: int = 1) -> None:  # noqa: B027
        """Take note of one payload that ``Server.receive`` accepted; most steps need not.

        Args:
            weight: what the server weighs it with.
            local_steps: how many its client made, 1 or more.

        Raises:
            ConfigError: on a weight or number outside these; nothing is changed then.
        """

    @abstractmethod
    def _advance(self, delta: Vector) -> dict[str, Any]:
        """Turn the (d,) float32 mean into the step, in place; return the memory after it, leaving this one alone."""

    def _check_memory(self, memory: dict[str, Any]) -> None:  # noqa: B027
        """Refuse a memory that no run of this step can have left; names, shapes and kinds were looked at before.

        Raises:
            StateError: on one.
        """

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
            self._check_memory(memory)
        self._memory = memory


class ScaledStep(Step):
    """delta = eta * update."""

    def __init__(self, algorithm: Named, layout: Layout, rate: float) -> None:
        super().__init__(algorithm, layout)
        self._rate = rate

    def _advance(self, delta: Vector) -> dict[str, Any]:
        delta[: self.layout.num_parameters] *= np.float32(self._rate)
        return {}

    def largest_update(self, largest: float) -> float:
        """Tell how large: ``largest`` over eta, where that is above 1."""
        return largest / max(1.0, self._rate)


def scaled_step(algorithm: Named, layout: Layout, rate: float) -> Step | None:
    """Make the step that scales; None where there is nothing to scale."""
    return None if rate == 1 else ScaledStep(algorithm, layout, rate)
