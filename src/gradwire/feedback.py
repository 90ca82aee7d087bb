"""Error feedback: what was not sent is kept and added to the next update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwire.checks import check_flag, check_number
from gradwire.compressor import Compressor, Round, State, Vector, accumulate
from gradwire.errors import ConfigError
from gradwire.guarantee import Absolute, Contractive, Guarantee, Unknown
from gradwire.layout import Layout, check_finite
from gradwire.payload import Payload

__all__ = ["ef"]


@dataclass(frozen=True, repr=False)
class ef(Compressor):
    """Add the residual to the update, compress, keep what was not sent: e' = (u + decay e) - C(u + decay e).

    Args:
        compressor: what compresses the corrected update; contractive or of bounded absolute error, since
            anything else lets the residual grow without bound.
        decay: how much of the residual is kept from round to round, in (0, 1]; 1 loses nothing.
        unchecked: accept any compressor.

    Raises:
        ConfigError: on a compressor that promises neither, or a decay outside (0, 1].

    Example:
        >>> import numpy as np, gradwire as gw
        >>> compressor = gw.ef(gw.topk(0.5))
        >>> payload, state = compressor.compress(np.array([4, 1], np.float32), compressor.init(gw.Layout.flat(2)))
        >>> state.memory["residual"].tolist()
        [0.0, 1.0]

    Source: Stich et al. 2018 (arXiv 1809.07599), Algorithm 1; Karimireddy et al. 2019 (arXiv 1901.09847); TCS
        (arXiv 2101.08837) Eq. (9), (10). decay: DeMo and SparseLoCo (arXiv 2508.15706).
    Deviations: none.
    """

    compressor: Compressor
    decay: float = 1.0
    unchecked: bool = False

    summary: ClassVar[str] = "error feedback round any compressor"
    citation: ClassVar[str] = "Karimireddy et al. 2019, arXiv:1901.09847"

    def __post_init__(self) -> None:
        if not isinstance(self.compressor, Compressor):
            raise ConfigError(f"ef wraps a compressor, got {self.compressor!r}")
        if isinstance(self.compressor, ef):
            raise ConfigError(f"ef cannot wrap ef: one residual is enough, got {self.compressor}")
        object.__setattr__(self, "decay", check_number("decay", self.decay))
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay must be in (0, 1], got {self.decay!r}")
        check_flag("unchecked", self.unchecked)
        guarantee = self.compressor.guarantee(1024)
        if not self.unchecked and not isinstance(guarantee, (Contractive, Absolute)):
            raise ConfigError(
                f"ef needs a contractive compressor, got {self.compressor} with guarantee {guarantee}: its residual "
                "can grow without bound; pass unchecked=True to use it all the same"
            )

    def init(self, layout: Layout) -> State:
        """Make the state: a residual of zeros beside the inner compressor's memory."""
        state = self.compressor.init(layout)
        state.memory["residual"] = np.zeros(layout.d, np.float32)
        return state

    def compress(self, update: Vector, state: State, round: Round | None = None) -> tuple[Payload, State]:
        """Turn an update into a payload; the state given is left as it was when this fails.

        Raises:
            UpdateError: where residual and update add up to more than float32 holds.
        """
        residual: Vector = state.memory["residual"]
        with np.errstate(over="ignore"):
            corrected = residual + update if self.decay == 1.0 else residual * np.float32(self.decay) + update
        check_finite(corrected, "residual + update")
        payload, state = self.compressor.compress(corrected, state, round)
        accumulate(corrected, payload, -1.0, None if round is None else round.reference)
        state.memory["residual"] = corrected
        return payload, state

    @property
    def uses_reference(self) -> bool:
        """Whether the inner compressor reads the reference."""
        return self.compressor.uses_reference

    def restore(self, payload: Payload, state: State, reference: Vector | None = None) -> State:
        """Add a payload that was not delivered back to the residual."""
        state = self.compressor.restore(payload, state, reference)
        residual = state.memory["residual"].copy()
        with np.errstate(over="ignore"):
            accumulate(residual, payload, reference=reference)
        check_finite(residual, "residual + what was not delivered")
        return State(state.layout, {**state.memory, "residual": residual})

    def guarantee(self, d: int) -> Guarantee:
        """Nothing about a single round: what one round loses a later one sends."""
        return Unknown()
