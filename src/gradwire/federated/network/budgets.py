"""Budgets: how many local steps and bytes a client gets in a round, from its connection and the deadline."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_integer, check_number
from gradwire.compressors.compressor import Compressor
from gradwire.errors import ConfigError
from gradwire.federated.network.links import Connection
from gradwire.named import Named, read

__all__ = ["Budget", "Plan", "fit", "none", "parse_budget", "round_shares"]


@dataclass(frozen=True)
class Plan:
    """What one client is to do in one round.

    Attributes:
        local_steps: SGD steps, 1 or more.
        num_bytes: most bytes of its payload, or None for as many as it takes.
    """

    local_steps: int
    num_bytes: int | None = None


@dataclass(frozen=True, repr=False)
class Budget(Named, kind="budget", example="fit()", must_say=("summary",)):
    """A policy: ``plan`` and a summary are all a new one needs, and fields where it has parameters."""

    @abstractmethod
    def plan(self, connection: Connection, start: float, seconds: float, local_steps: int) -> Plan:
        """Decide what a client does.

        Args:
            connection: its link and its compute speed.
            start: the virtual second at which it holds the model and may begin to train.
            seconds: until the deadline, from then; inf where there is none.
            local_steps: how many steps a client makes that has the time.

        Returns:
            The plan.
        """


@dataclass(frozen=True, repr=False)
class none(Budget):
    """Let every client do all steps and send what its compressor makes of them."""

    summary: ClassVar[str] = "all steps, as many bytes as they take"

    def plan(self, connection: Connection, start: float, seconds: float, local_steps: int) -> Plan:
        """Plan all steps and any number of bytes."""
        return Plan(local_steps)


@dataclass(frozen=True, repr=False)
class fit(Budget):
    """Let every client train and send for just as long as the deadline allows.

    A share of the time goes to training: as many steps as the client makes in it, at least one and at most all. What
    is left, less a margin, goes to the upload: the most bytes the link carries in it.

    Args:
        compute_share: share of the time for training, in (0, 1).
        margin: share of the time for the upload that is left unused, in [0, 1).
        least_bytes: budget of clients that have time for less; they will be late.
        most_bytes: budget of clients that have time for more, or None.

    Example:
        >>> from gradwire.federated.network.links import lora
        >>> from gradwire.rng import Key
        >>> connection = lora().connection(Key(0, client=0))
        >>> fit().plan(connection, start=0.0, seconds=10.0, local_steps=20)
        Plan(local_steps=5, num_bytes=2343)

    Source: none; deadlines for clients by their speed: FedCS, Nishio and Yonetani 2019 (arXiv 1804.08333), which
        leaves slow clients out; fewer local steps for them: FedProx, Li et al. 2020 (arXiv 1812.06127), section 3.
    Deviations: none.
    """

    compute_share: float = 0.5
    margin: float = 0.05
    least_bytes: int = 128
    most_bytes: int | None = None

    summary: ClassVar[str] = "as many steps and bytes as the deadline leaves time for"

    def __post_init__(self) -> None:
        for name, low in (("compute_share", 0.0), ("margin", -1.0)):
            value = check_number(name, getattr(self, name))
            if not max(low, 0.0) <= value < 1 or value == low:
                raise ConfigError(f"{name} must be in {'(' if low == 0 else '['}0, 1), got {value}")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "least_bytes", check_integer("least_bytes", self.least_bytes, 1))
        if self.most_bytes is not None:
            object.__setattr__(self, "most_bytes", check_integer("most_bytes", self.most_bytes, self.least_bytes))

    def plan(self, connection: Connection, start: float, seconds: float, local_steps: int) -> Plan:
        """Plan as many steps and bytes as there is time for."""
        steps = local_steps
        while steps > 1 and connection.computed(steps, start) - start > self.compute_share * seconds:
            steps -= 1
        trained = connection.computed(steps, start)
        left = max(0.0, (start + seconds - trained) * (1 - self.margin))
        num_bytes = connection.upload_budget(left, trained) if trained < float("inf") else 0
        most = num_bytes if self.most_bytes is None else min(num_bytes, self.most_bytes)
        return Plan(steps, max(most, self.least_bytes))


def parse_budget(text: str) -> Budget:
    """Build the policy a text describes.

    Args:
        text: for instance ``"fit(compute_share=0.3)"`` or ``"none()"``.

    Returns:
        The policy; ``parse_budget(str(b)) == b``.

    Raises:
        ConfigError: on a text that cannot be read or a parameter out of range.

    Example:
        >>> parse_budget("fit(margin=0.0)")
        fit(margin=0.0)
    """
    return read(text, Budget)  # type: ignore[type-abstract]


def round_shares(compressor: Compressor, budget: Budget, d: int, num_rounds: int) -> NDArray[np.float64]:
    """Say how long each round may take, as a share of the mean round.

    Where clients get budgets, the method's schedule (AdapTop-K's) decides how they are spread over the rounds: round t
    takes k_t / mean(k) of the time, and every client's bytes follow. Anything else makes all rounds alike.

    Args:
        compressor: the method.
        budget: the policy.
        d: number of parameters.
        num_rounds: T.

    Returns:
        (num_rounds,) float64, with mean 1 over the length of the schedule.

    Example:
        >>> import gradwire as gw
        >>> round_shares(gw.adaptopk(0.1, t_hat=4), fit(), 100, 8).round(2).tolist()
        [1.5, 1.5, 0.5, 0.5, 0.5, 0.5, 1.5, 1.5]
        >>> round_shares(gw.topk(0.1), fit(), 100, 2).tolist()
        [1.0, 1.0]
    """
    shares, schedule = np.ones(num_rounds), compressor.schedule(d, num_rounds)
    if schedule is not None and not isinstance(budget, none):
        kept = schedule[:num_rounds]
        shares[: kept.size] = kept / schedule.mean()  # rounds after a schedule's end get a mean round's time
    return shares
