"""Momentum at the client, in front of any compressor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_number
from gradwire.compressors.compressor import Compressor, Phases, Round, Sharing, State, Vector, largest_magnitude
from gradwire.compressors.feedback import has_momentum
from gradwire.compressors.guarantee import Guarantee, Unknown
from gradwire.compressors.references import Reference
from gradwire.errors import ConfigError
from gradwire.layout import Layout, check_finite
from gradwire.payload import Payload

__all__ = ["momentum"]


@dataclass(frozen=True, repr=False)
class momentum(Compressor):
    """Compress a fading sum of the client's updates: v <- mu^(1 + rounds missed) v + u, C(gain v) is sent.

    Noise of single updates is averaged away before it costs bytes. Without ``gain`` what is compressed is the mean of
    all updates so far, each weighing mu to the power of its age in rounds: (1 - mu) / (1 - mu^t) v in the t-th of
    rounds without a gap; a constant update is sent as it is, whoever sat out when. With it, the client moves faster
    than the mean, as with momentum at the server.

    v is made of updates alone, so it is the same whatever became of the payloads: one that is lost is lost or kept as
    ``compressor`` has it, and later payloads repeat what v still holds of it. C's promises hold of gain v: what is
    unbiased stays so, what has a residual conserves the sum over rounds of gain v. Running statistics have no momentum.

    Args:
        compressor: C; with feedback of its own or without. Feedback goes inside: ``ef(momentum(c))`` is refused, for
            it would take what momentum adds for an error and take it back, until what is sent is u again.
        mu: what a round leaves of v, in [0, 1).
        gain: what v is multiplied with, > 0; None for that mean.

    Raises:
        ConfigError: on a compressor with momentum, a mu outside [0, 1) or a gain that is not positive.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> client = gw.Client(gw.momentum(gw.topk(0.5), 0.5, gain=1.0), gw.Layout.flat(2))
        >>> for index in (0, 1, 4):  # it sits out two rounds
        ...     blob = client.compress(np.array([4, 1], np.float32), round=index)
        ...     print(gw.decompress(gw.decode(blob)).tolist())
        [4.0, 0.0]
        [6.0, 0.0]
        [4.75, 0.0]

    Source: Fatkhullin et al. 2023 (arXiv 2305.15155), Algorithm 1, whose EF21-SGDM is ``momentum(ef21(c), 1 - eta)``;
        the mean: Kingma and Ba 2014 (arXiv 1412.6980), section 3.
    Deviations: v starts at 0 and its mean is corrected for that; it fades by rounds, those that a client sat out too,
        so that what is long past does not pull as if it were new.
    """

    compressor: Compressor
    mu: float
    gain: float | None = None

    summary: ClassVar[str] = "a fading mean of the updates, in front of any compressor"
    citation: ClassVar[str] = "Fatkhullin et al. 2023, arXiv:2305.15155"
    typical: ClassVar[str] = "momentum(qsgd(16), 0.8)"

    def __post_init__(self) -> None:
        if not isinstance(self.compressor, Compressor):
            raise ConfigError(f"momentum wraps a compressor, got {self.compressor!r}")
        object.__setattr__(self, "mu", check_number("mu", self.mu))
        if not 0 <= self.mu < 1:
            raise ConfigError(f"mu must be in [0, 1), got {self.mu!r}")
        if self.gain is not None:
            object.__setattr__(self, "gain", check_number("gain", self.gain))
            if self.gain <= 0:
                raise ConfigError(f"gain must be above 0, got {self.gain!r}")
        if has_momentum(self.compressor):
            raise ConfigError(f"momentum cannot wrap {self.compressor}: one momentum is enough")

    @property
    def uses_reference(self) -> bool:
        """Whether the inner compressor reads the reference."""
        return self.compressor.uses_reference

    @property
    def needs_mean(self) -> bool:
        """Whether the inner compressor needs the reference to be the clients' mean."""
        return self.compressor.needs_mean

    @property
    def mirrored(self) -> bool:
        """Whether the inner compressor sends steps of a mirror: of gain v then."""
        return self.compressor.mirrored

    @property
    def shares(self) -> Sharing:
        """What the inner compressor says."""
        return self.compressor.shares

    @property
    def led(self) -> bool:
        """What the inner compressor says."""
        return self.compressor.led

    def shared_support(self, layout: Layout, round: Round) -> NDArray[np.int64] | None:
        """Tell what the inner compressor says."""
        return self.compressor.shared_support(layout, round)

    def largest_support(self, d: int, index: int) -> int:
        """Tell what the inner compressor says."""
        return self.compressor.largest_support(d, index)

    @property
    def summable(self) -> bool:
        """Whether the inner compressor is."""
        return self.compressor.summable

    def adds_up(self, index: int) -> bool:
        """Tell what the inner compressor does."""
        return self.compressor.adds_up(index)

    def init(self, layout: Layout) -> State:
        """Make the state: v and the weights in it, zeros, and its round, beside the inner compressor's memory."""
        state = self.compressor.init(layout)
        state.memory["momentum"] = np.zeros(layout.num_parameters, np.float32)
        state.memory["momentum_weight"], state.memory["momentum_round"] = 0.0, 0
        return state

    def compress(self, update: Vector, state: State, round: Round | None = None) -> tuple[Payload, State]:
        """Turn an update into a payload; v is left as it was when this fails.

        Raises:
            UpdateError: where v, or gain v, is more than float32 holds.
        """
        moved, changed = self._moved(update, state, round)
        payload, state = self.compressor.compress(moved, state, round)
        state.memory.update(changed)
        return payload, state

    def phases(self, update: Vector, state: State, round: Round | None = None) -> Phases:
        """Exchange gain v: the mean over workers of these.

        Raises:
            UpdateError: where v, or gain v, is more than float32 holds.
        """
        moved, changed = self._moved(update, state, round)
        mean, state = yield from self.compressor.phases(moved, state, round)
        state.memory.update(changed)
        return mean, state

    def restore(self, payload: Payload, state: State, reference: Vector | Reference | None = None) -> State:
        """Hand a payload that was not delivered to the inner compressor; v goes on as it is."""
        return self.compressor.restore(payload, state, reference)

    def guarantee(self, d: int) -> Guarantee:
        """Nothing about a single update, unless v is the update itself: what is sent is of other rounds too."""
        return self.compressor.guarantee(d) if self.mu == 0 and self.gain in (None, 1.0) else Unknown()

    def largest_update(self, state: State) -> float:
        """Tell what room v leaves: v of all rounds to come has to fit, too."""
        room = self.compressor.largest_update(state) / max(1.0, self.gain or 1.0)
        return max(0.0, room * (1 - self.mu) - self.mu * largest_magnitude(state.memory["momentum"]))

    def _moved(self, update: Vector, state: State, round: Round | None) -> tuple[Vector, dict[str, object]]:
        """Gain v after an update, (d,) float32, and what is remembered if it is compressed."""
        index, before = 0 if round is None else round.index, state.memory["momentum_round"]
        decay = self.mu ** max(1, index - before)
        weight = decay * state.memory["momentum_weight"] + 1
        moved = update.copy()  # running statistics stay
        parameters = moved[: state.layout.num_parameters]
        with np.errstate(over="ignore"):
            velocity = state.memory["momentum"] * np.float32(decay)
            velocity += parameters
            np.multiply(velocity, np.float32(1 / weight if self.gain is None else self.gain), out=parameters)
        check_finite(velocity, "momentum", state.layout)
        check_finite(moved, "gain * momentum", state.layout)
        return moved, {"momentum": velocity, "momentum_weight": weight, "momentum_round": max(index, before)}
