"""TCS: the support follows the last aggregate, which both ends hold; only new coordinates travel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_density
from gradwire.compressors.compressor import Round, Sharing, State, Vector
from gradwire.compressors.guarantee import Contractive, Guarantee, Unknown
from gradwire.compressors.pipeline import Sparsifier
from gradwire.compressors.references import as_reference
from gradwire.compressors.sparsify import largest_of, listed_part, num_kept_of
from gradwire.kernels import ops
from gradwire.layout import Layout
from gradwire.payload import Floats, Known, Part

__all__ = ["tcs"]


@dataclass(frozen=True, repr=False)
class tcs(Sparsifier):
    """Send the coordinates where the last aggregate was largest, without naming them, and a few others, named.

    m_global = S_top(reference, K_global) and m_local = S_top(u outside m_global, K_local); u is sent on both. The
    reference is what the server sent down last, after its step where it has one, so that only m_local's indices travel.
    Error feedback goes outside, and a quantizer inside, so that its error is fed back too:
    ``ef(tcs(0.01, 0.001) | fractional(16))`` is the paper's TCS with 5 bits. A client without the current reference, as
    in round 0 or where references come late, sends its own top K_global with indices. Warm-up rounds are
    ``ef(warmup(tcs(0.01, 0.001), 5))``.

    K_global = min(d, max(1, round(global_density * d))), but no more than the reference has entries that are not zero;
    K_local likewise, among the other coordinates, and none where local_density is 0: the mask of the last warm-up
    round then stays, a control that says what new coordinates are worth. Ties go to the lower index.

    Args:
        global_density: phi_global, in (0, 1].
        local_density: phi_local, in [0, 1].

    Raises:
        ConfigError: on a density outside these.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> compressor = gw.tcs(0.25, 0.25)
        >>> round = gw.Round(index=1, reference=np.array([0, 9, 1, 0], np.float32))
        >>> update = np.array([3, 1, 2, 4], np.float32)
        >>> payload, _ = compressor.compress(update, compressor.init(gw.Layout.flat(4)), round)
        >>> gw.decompress(payload, round.reference).tolist()
        [0.0, 1.0, 0.0, 4.0]

    Source: TCS (arXiv 2101.08837) Algorithm 2; Eq. (4)-(6); lines 5, 9 and 10.
    Deviations: S_top takes exactly K entries and never a zero, where the paper's takes all ties; m_local is chosen
        outside m_global, as line 9 means.
    """

    global_density: float
    local_density: float

    summary: ClassVar[str] = "where the last aggregate was largest, unnamed, and a few others"
    citation: ClassVar[str] = "TCS, arXiv:2101.08837"
    typical: ClassVar[str] = "ef(tcs(0.01, 0.001))"

    def __post_init__(self) -> None:
        object.__setattr__(self, "global_density", check_density(self.global_density, "global_density"))
        object.__setattr__(self, "local_density", check_density(self.local_density, "local_density", may_be_zero=True))

    @property
    def uses_reference(self) -> bool:
        """Whether the reference is read: it is the last aggregate."""
        return True

    @property
    def shares(self) -> Sharing:
        """The known coordinates are every client's, the others each one's own."""
        return "partly"

    @property
    def unnamed(self) -> bool:
        """Whether supports may lean on the reference: yes."""
        return True

    @property
    def adjustable(self) -> bool:
        """Whether a byte budget can be met by keeping fewer: yes, of both kinds in proportion."""
        return True

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Take the known coordinates and the largest of the others."""
        num_global, num_local = self._counts(update.size, num_kept)
        if round.reference is None:
            first = num_global if num_kept is None else num_kept
            return [listed_part(update.size, *(round.largest or largest_of(update, first)), state.layout)]
        known = as_reference(round.reference).largest(0, update.size, num_global)  # line 5
        if num_kept is not None and self.local_density:
            num_local = num_kept - known.size  # a budget is used up where the reference has too few entries
        # line 9: the largest entries outside are among the num_local + known.size largest of all
        largest, numbers = round.largest or largest_of(update, min(update.size, known.size + num_local))
        outside = ops.find(known, largest) < 0
        others = largest[outside]
        extra = others[ops.topk(numbers[outside], min(num_local, others.size))]
        support = Known(update.size, int(known.size), extra, known)
        return [Part(support, Floats(ops.gather(update, support.indices)))]  # line 10

    def shared_support(self, layout: Layout, round: Round) -> NDArray[np.int64] | None:
        """Tell the known coordinates, where the reference is given: those that no client chooses by itself."""
        if round.reference is None:
            return None
        d = layout.num_parameters
        return as_reference(round.reference).largest(0, d, self._counts(d, None)[0])

    def num_largest(self, state: State, round: Round) -> int | None:
        """Tell K_global + K_local, or K_global where there is no reference."""
        if round.num_bytes is not None or round.num_kept is not None:
            return None
        d = state.layout.num_parameters
        num_global, num_local = self._counts(d, None)
        return num_global if round.reference is None else min(d, num_global + num_local)

    def most_kept(self, d: int) -> int:
        """Tell K_global + K_local."""
        return min(d, sum(self._counts(d, None)))

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(min(K_global, K_local) / d): the largest K_local of what is not known are sent."""
        if not self.local_density:
            return Unknown()
        return Contractive(min(self._counts(d, None)) / d if d else 1.0)

    def _counts(self, d: int, num_kept: int | None) -> tuple[int, int]:
        if d == 0:
            return 0, 0
        if num_kept is None:
            return num_kept_of(self.global_density, d), num_kept_of(self.local_density, d) if self.local_density else 0
        num_global = round(num_kept * self.global_density / (self.global_density + self.local_density))
        return num_global, num_kept - num_global
