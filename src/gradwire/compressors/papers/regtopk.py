"""RegTop-k: entries that other clients cancelled last time are passed over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_density, check_number
from gradwire.compressors.compressor import Round, State, Vector
from gradwire.compressors.guarantee import Contractive, Guarantee
from gradwire.compressors.pipeline import Sparsifier
from gradwire.compressors.references import Reference, as_reference
from gradwire.compressors.sparsify import largest_of, listed_part, num_kept_of, part_at
from gradwire.errors import ConfigError, nearest
from gradwire.kernels import ops
from gradwire.layout import Layout
from gradwire.payload import Part, Payload

__all__ = ["LIKELIHOODS", "distortion", "regtopk"]

_Likelihood = Callable[[NDArray[np.float64]], NDArray[np.float64]]
LIKELIHOODS: dict[str, _Likelihood] = {
    "tanh": np.tanh,
    "gaussian": lambda x: -np.expm1(-np.square(x)),
    "rational": lambda x: 1.0 - 1.0 / (1.0 + x),
}
"""u of x = |1 + Delta| / mu: 0 where x is 0, rising to 1."""


def distortion(
    aggregate: NDArray[np.floating],
    sent: NDArray[np.floating],
    weight: float,
    divisor: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Return the posterior distortion Delta = (A - w s) / (w c): how far others pushed an entry, next to oneself.

    Args:
        aggregate: A of round t - 1, any shape.
        sent: s, what this client sent of it in that round, of the same shape.
        weight: w > 0, this client's share of the round's weights.
        divisor: c: s itself, or what the client would send now; of the same shape.

    Returns:
        float64 of the same shape: -1 where the others cancelled the entry, 0 where they left it alone. 0 / 0 counts as
        0, x / 0 is infinite.

    Example:
        >>> import numpy as np
        >>> from gradwire.compressors.papers.regtopk import distortion
        >>> distortion(np.array([0.0, 1.0]), np.array([2.0, 2.0]), 0.5, np.array([2.0, 2.0])).tolist()
        [-1.0, 0.0]

    Source: RegTop-k (arXiv 2501.05633, 2409.14893), posterior distortion.
    Deviations: the paper leaves open what becomes of a zero.
    """
    own = weight * sent.astype(np.float64)
    others = aggregate.astype(np.float64) - own
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = others / (weight * divisor.astype(np.float64))
    return np.where(others == 0, 0.0, ratio)


@dataclass(frozen=True, repr=False)
class regtopk(Sparsifier):
    """Send the k entries of largest |a|^y u(|1 + Delta| / mu), unscaled, where u is tanh.

    Delta compares the last aggregate with what this client sent of it: an entry that the other clients cancelled has
    Delta = -1 and is passed over, so that all clients turn to entries that survive the mean. Entries not sent in the
    round before, or sent and not delivered, have factor 1, and so has every entry where the client lacks the current
    reference: round 0 is topk. The client's share w is its weight over the sum of weights of that round. Error feedback
    goes outside, ``ef(regtopk(0.01))``: the update here is then a, the accumulated gradient, and the residual keeps
    what is not sent.

    The aggregate is the reference, what the server applied, and must be the clients' mean: a ``Server`` or ``Region``
    with a step, a way down or up that loses something, or another aggregator refuses it. A client whose reference comes
    late sends as topk does.

    What is remembered is sparse: the coordinates and numbers sent last.

    Args:
        density: k / d in (0, 1], k as for topk; entries of score 0 are not sent.
        mu: how far from cancelled an entry must be to count in full, > 0; towards 0 this is topk, but for entries that
            were cancelled exactly.
        denominator: ``'previous'``: Delta is relative to what was sent in the round before; ``'current'``: to what
            would be sent now, as the summary's formula has it.
        exponent: y in (0, 1], the paper's open question 1.
        likelihood: u, the open question 2: ``'tanh'``, ``'gaussian'`` (1 - exp(-x^2)) or ``'rational'`` (x / (1 + x)).

    Raises:
        ConfigError: on a value outside these.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> layout = gw.Layout.flat(2)
        >>> compressor = gw.ef(gw.regtopk(0.5))
        >>> clients = [gw.Client(compressor, layout, client_id=i) for i in range(2)]
        >>> server = gw.Server(compressor, layout)
        >>> for _ in range(2):
        ...     for client, cancelling in zip(clients, (9.0, -9.0)):
        ...         server.receive(client.compress(np.float32([cancelling, 1.0])), client.client_id)
        ...     result = server.close_round()
        ...     applied = [client.end_round(result.blob) for client in clients]
        >>> result.update.tolist()
        [0.0, 2.0]

    Source: RegTop-k (arXiv 2501.05633, 2409.14893); omega_n is w.
    Deviations: ``denominator='previous'`` is the authors' code, ``'current'`` the paper's text; a zero is safe, see
        ``distortion``; what was sent is what arrives, quantized if it was.
    """

    density: float
    mu: float = 4.0
    denominator: str = "previous"
    exponent: float = 1.0
    likelihood: str = "tanh"

    summary: ClassVar[str] = "topk that passes over what other clients cancelled"
    citation: ClassVar[str] = "RegTop-k, arXiv:2501.05633"
    typical: ClassVar[str] = "ef(regtopk(0.01))"

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", check_density(self.density))
        for name in ("mu", "exponent"):
            object.__setattr__(self, name, check_number(name, getattr(self, name)))
        if self.mu <= 0:
            raise ConfigError(f"mu must be above 0, got {self.mu!r}")
        if not 0 < self.exponent <= 1:
            raise ConfigError(f"exponent must be in (0, 1], got {self.exponent!r}")
        for name, known in (("denominator", ("previous", "current")), ("likelihood", tuple(LIKELIHOODS))):
            value = getattr(self, name)
            if value not in known:
                hint = nearest(value, known) if isinstance(value, str) else ""
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}{hint}")

    @property
    def uses_reference(self) -> bool:
        """Whether the reference is read: it is the last aggregate."""
        return True

    @property
    def needs_mean(self) -> bool:
        """Whether the reference must be the clients' mean: yes, Delta compares it with what was sent."""
        return True

    @property
    def adjustable(self) -> bool:
        """Whether a byte budget can be met by keeping fewer: yes."""
        return True

    def init(self, layout: Layout) -> State:
        """Make the state: nothing was sent yet."""
        nothing = {"sent_indices": np.empty(0, np.int64), "sent_numbers": np.empty(0, np.float32)}
        return State(layout, {**nothing, "next_round": 0, "sent_weight": 1.0})

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Select the entries of largest score."""
        d = update.size
        count = num_kept if num_kept is not None else num_kept_of(self.density, d) if d else 0
        sent = self._compared(state, round)
        if self.exponent != 1:
            scores = np.abs(update) ** np.float32(self.exponent)
            scores[sent] *= self._factors(ops.gather(update, sent), slice(None), state, round)
            return [part_at(update, ops.topk(scores, count), state.layout)]
        # no factor is above 1: of the count + sent.size largest, count or more were not sent and keep their scores
        largest, numbers = round.largest or largest_of(update, min(d, count + sent.size))
        places = ops.find(largest, sent)
        inside = np.flatnonzero(places >= 0)
        places = places[inside]
        scores = np.abs(numbers)
        scores[places] *= self._factors(numbers[places], inside, state, round)
        chosen = ops.topk(scores, min(count, scores.size))
        return [listed_part(d, largest[chosen], numbers[chosen], state.layout)]

    def remember(self, update: Vector, payload: Payload, state: State, round: Round) -> State:
        """Keep what was sent, as it arrives."""
        indices, numbers = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        start = 0
        for part in payload.parts:
            if start < state.layout.num_parameters:
                indices.append(start + part.support.indices)
                numbers.append(part.numbers())
            start += part.length
        sent = {"sent_indices": np.concatenate(indices), "sent_numbers": np.concatenate(numbers)}
        return State(state.layout, {**sent, "next_round": round.index + 1, "sent_weight": float(round.weight)})

    def restore(self, payload: Payload, state: State, reference: Vector | Reference | None = None) -> State:
        """Forget what was not delivered: it counts as not sent."""
        if payload.round + 1 != state.memory["next_round"]:
            return state
        starts = np.cumsum([0, *(part.length for part in payload.parts)])
        lost = [start + part.support.indices for start, part in zip(starts, payload.parts, strict=False)]
        arrived = ~np.isin(state.memory["sent_indices"], np.concatenate(lost))
        kept = {name: state.memory[name][arrived] for name in ("sent_indices", "sent_numbers")}
        return State(state.layout, {**state.memory, **kept})

    def num_largest(self, state: State, round: Round) -> int | None:
        """Tell k and as many more as were sent in the round before."""
        if self.exponent != 1 or round.num_bytes is not None or round.num_kept is not None:
            return None
        d = state.layout.num_parameters
        return min(d, num_kept_of(self.density, d) + self._compared(state, round).size) if d else 0

    def most_kept(self, d: int) -> int:
        """Tell k."""
        return num_kept_of(self.density, d) if d else 0

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(0): what is sent is sent whole, but it may be small."""
        return Contractive(0.0)

    def _compared(self, state: State, round: Round) -> NDArray[np.int64]:
        """What was sent in the round before and can be compared with the aggregate: (n,) int64, increasing."""
        sent: NDArray[np.int64] = state.memory["sent_indices"]
        current = round.reference is not None and state.memory["next_round"] == round.index
        return sent if current else sent[:0]

    def _factors(self, now: Vector, which: slice | NDArray[np.int64], state: State, round: Round) -> Vector:
        """The factors of the scores of some that were sent, where ``now`` is what would be sent: float32, at most 1."""
        if not now.size:
            return now
        sent: Vector = state.memory["sent_numbers"][which]
        aggregate = as_reference(round.reference).at(state.memory["sent_indices"][which])
        weight = state.memory["sent_weight"] / round.reference_weights
        delta = distortion(aggregate, sent, weight, sent if self.denominator == "previous" else now)
        with np.errstate(over="ignore"):  # what is beyond float64 has factor 1
            return LIKELIHOODS[self.likelihood](np.abs(1 + delta) / self.mu).astype(np.float32)
