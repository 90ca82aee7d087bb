"""Error feedback: what was not sent is remembered, and sent later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_flag, check_number
from gradwire.compressors.compressor import (
    Compressor,
    Phases,
    Round,
    Sharing,
    State,
    Vector,
    accumulate,
    decompress,
    joined,
    largest_magnitude,
    resolve,
)
from gradwire.compressors.guarantee import Absolute, Contractive, Guarantee, Unknown, as_contraction
from gradwire.compressors.references import Reference, as_reference
from gradwire.errors import ConfigError
from gradwire.journal import Journal
from gradwire.kernels import ops
from gradwire.layout import Layout, check_finite
from gradwire.payload import Every, Payload

__all__ = ["ef", "ef21", "has_feedback", "has_momentum", "momentum_correction"]

_SMALL = 1024  # numbers for which a compressor must promise enough before it is known what model it is for


def has_feedback(compressor: Compressor) -> bool:
    """Tell whether a compressor, or one inside it, keeps a residual or a mirror: what is not sent is sent later."""
    return _remembers(compressor, "residual", "mirror")


def has_momentum(compressor: Compressor) -> bool:
    """Tell whether a compressor, or one inside it, keeps a momentum: what is sent is of earlier updates too."""
    return _remembers(compressor, "momentum")


def _remembers(compressor: Compressor, *what: str) -> bool:
    return any(name.rpartition(".")[2] in what for name in compressor.init(Layout.flat(1)).memory)


@dataclass(frozen=True, repr=False)
class _Feedback(Compressor):
    """What the wrappers of this module share."""

    compressor: Compressor

    @property
    def uses_reference(self) -> bool:
        """Whether the inner compressor reads the reference."""
        return self.compressor.uses_reference

    @property
    def shares(self) -> Sharing:
        """What the inner compressor says."""
        return self.compressor.shares

    @property
    def needs_mean(self) -> bool:
        """Whether the inner compressor needs the reference to be the clients' mean."""
        return self.compressor.needs_mean

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

    accepted: ClassVar[tuple[type[Guarantee], ...]] = (Contractive, Absolute)
    otherwise: ClassVar[str] = "its residual can grow without bound"

    def guarantee(self, d: int) -> Guarantee:
        """Nothing about a single round: what one round loses a later one sends."""
        return Unknown()

    def _check_inner(self) -> None:
        """Refuse what cannot be inside, whatever the model."""
        name = type(self).__name__
        if not isinstance(self.compressor, Compressor):
            raise ConfigError(f"{name} wraps a compressor, got {self.compressor!r}")
        if has_feedback(self.compressor):
            raise ConfigError(f"{name} cannot wrap {self.compressor}: one residual is enough")
        if has_momentum(self.compressor):
            raise ConfigError(
                f"{name} cannot wrap {self.compressor}: it would take what momentum adds for an error, and take it "
                "back; put momentum outside, as in momentum(ef(topk(0.01)), 0.8)"
            )
        self._check_promise(_SMALL)

    def _check_promise(self, d: int) -> None:
        """Refuse a compressor that does not promise enough of updates of this length."""
        guarantee = self.compressor.guarantee(d)
        if not isinstance(as_contraction(guarantee), self.accepted):
            raise ConfigError(
                f"{type(self).__name__} needs a contractive compressor, got {self.compressor} with guarantee "
                f"{guarantee} for {d} numbers: {self.otherwise}"
            )

    def _begin(self, layout: Layout) -> State:
        """The inner compressor's state, once it is known to promise enough for this model."""
        self._check_promise(layout.num_parameters)
        return self.compressor.init(layout)


@dataclass(frozen=True, repr=False)
class ef(_Feedback):
    """Add the residual to the update, compress, keep what was not sent: e' = (u + decay e) - C(u + decay e).

    Args:
        compressor: what compresses the corrected update; contractive or of bounded absolute error, since
            anything else lets the residual grow without bound. Unbiased(omega) with omega <= 1 is contractive too.
            Some quantizers promise less the longer the update is: ``init`` looks again, at the model's length.
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
    Deviations: none. In ``phases``, where one result is exchanged by all workers, each keeps its corrected update less
        that result, as in PowerSGD (arXiv 1905.13727), Algorithm 2: conserved in the mean over workers.
    """

    decay: float = 1.0
    unchecked: bool = False

    otherwise: ClassVar[str] = "its residual can grow without bound; pass unchecked=True to use it all the same"

    summary: ClassVar[str] = "error feedback round any compressor"
    citation: ClassVar[str] = "Karimireddy et al. 2019, arXiv:1901.09847"
    typical: ClassVar[str] = "ef(topk(0.01))"

    def __post_init__(self) -> None:
        object.__setattr__(self, "decay", check_number("decay", self.decay))
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay must be in (0, 1], got {self.decay!r}")
        check_flag("unchecked", self.unchecked)
        self._check_inner()

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(1) round what loses nothing, else nothing: what one round loses a later one sends."""
        inner = self.compressor.guarantee(d)
        return inner if inner == Contractive(1.0) else Unknown()

    def _check_promise(self, d: int) -> None:
        if not self.unchecked:
            super()._check_promise(d)

    def init(self, layout: Layout) -> State:
        """Make the state: a residual of zeros beside the inner compressor's memory.

        Raises:
            ConfigError: on a compressor that promises too little of updates as long as this model's.
        """
        state = self._begin(layout)
        state.memory["residual"] = np.zeros(layout.d, np.float32)
        return state

    def compress(self, update: Vector, state: State, round: Round | None = None) -> tuple[Payload, State]:
        """Turn an update into a payload; the residual given becomes the next one, in place.

        When this fails the residual is left as it was, to float32 rounding.

        Raises:
            UpdateError: on an update that is not finite, or where residual and update add up to more than float32
                holds.
        """
        return self.compress_pieces((update,), state, round)

    def compress_pieces(
        self, pieces: Sequence[Vector], state: State, round: Round | None = None
    ) -> tuple[Payload, State]:
        """Turn an update that lies in several places into a payload, without putting it together first.

        Raises:
            UpdateError: as ``compress`` does.
        """
        residual: Vector = state.memory["residual"]
        round = round or Round()
        journal = state.journal
        journal.clear()  # the round before stands
        try:
            wanted = None if round.support is not None else self.compressor.num_largest(state, round)
            inner = round.knowing(self._add(residual, pieces, wanted, state))
            payload, after = self.compressor.compress(residual, state, inner)
            _take_out(residual, payload, inner, journal)
        except BaseException:
            journal.undo()
            raise
        after.memory["residual"] = residual
        return payload, after

    @property
    def checks_update(self) -> bool:
        """Whether ``compress`` refuses what is not finite: yes."""
        return True

    @property
    def summable(self) -> bool:
        """Whether the inner compressor is."""
        return self.compressor.summable

    def adds_up(self, index: int) -> bool:
        """Tell what the inner compressor does."""
        return self.compressor.adds_up(index)

    def phases(self, update: Vector, state: State, round: Round | None = None) -> Phases:
        """Correct, exchange, keep what was not sent; or corrected - mean, where the mean is made by all together.

        In the latter case it is conserved in the mean over workers, not at each of them.

        Raises:
            UpdateError: where residual and update add up to more than float32 holds.
        """
        if self.adds_up(0 if round is None else round.index):
            return (yield from super().phases(update, state, round))
        corrected = self._corrected(update, state)
        mean, state = yield from self.compressor.phases(corrected, state, round)
        with np.errstate(over="ignore"):
            corrected -= as_reference(mean).vector
        check_finite(corrected, "residual", state.layout)
        state.memory["residual"] = corrected
        return mean, state

    def restore(self, payload: Payload, state: State, reference: Vector | Reference | None = None) -> State:
        """Add a payload that was not delivered back to the residual."""
        return _restored(payload, self.compressor.restore(payload, state, reference), reference)

    def largest_update(self, state: State) -> float:
        """Tell what room the residual leaves."""
        return max(0.0, self.compressor.largest_update(state) - largest_magnitude(state.memory["residual"]))

    def _add(
        self, residual: Vector, pieces: Sequence[Vector], num_largest: int | None, state: State
    ) -> tuple[NDArray[np.int64], Vector] | None:
        """Make the residual the corrected update, and find its largest entries where they are asked for.

        Raises:
            UpdateError: on what is not finite; the residual is as it was then, to float32 rounding.
        """
        largest, d = None, state.layout.num_parameters
        if num_largest is None:
            added = self._add_each(residual, pieces, state.journal)
        elif d == residual.size:
            largest = ops.add_topk(residual, pieces, self.decay, num_largest, state.journal)
            added = largest is not None
        else:
            update = joined(pieces)
            added = ops.add_finite(residual[d:], update[d:], self.decay, state.journal)
            largest = ops.add_topk(residual[:d], update[:d], self.decay, num_largest, state.journal) if added else None
            added = largest is not None
        if not added:
            state.journal.undo()
            update = joined(pieces)
            check_finite(update, "update", state.layout)
            self._corrected(update, state)  # says where
        return largest

    def _add_each(self, residual: Vector, pieces: Sequence[Vector], journal: Journal) -> bool:
        start = 0
        for piece in pieces:
            if not ops.add_finite(residual[start : start + piece.size], piece, self.decay, journal):
                return False
            start += piece.size
        return True

    def _corrected(self, update: Vector, state: State) -> Vector:
        residual: Vector = state.memory["residual"]
        with np.errstate(over="ignore"):
            corrected = residual + update if self.decay == 1.0 else residual * np.float32(self.decay) + update
        check_finite(corrected, "residual + update", state.layout)
        return corrected


def _take_out(residual: Vector, payload: Payload, round: Round, journal: Journal) -> None:
    """Subtract in place what a payload sends; what is there before is known where it sends the largest entries."""
    chosen, largest = round.largest or (None, None)
    start = 0
    for part in resolve(payload, round.reference):
        piece = residual[start : start + part.length]
        start += part.length
        if isinstance(part.support, Every):
            ops.subtract(piece, part.numbers(), journal)
        elif part.support.num_kept:
            indices = part.support.indices
            before = largest if indices is chosen else ops.gather(piece, indices)
            journal.note(partial(piece.__setitem__, indices, before))
            ops.accumulate_at(piece, indices, part.numbers(), -1.0)


@dataclass(frozen=True, repr=False)
class ef21(_Feedback):
    """Keep a mirror g of the update at both ends and send what takes it nearer: c = C(u - g), g' = g + c.

    The server keeps the sum of all mirrors and needs ``Server(num_clients=N)``: its ``result.update`` is their mean,
    (1/N) sum_i g_i, also of clients that were silent in a round and whatever the weights, which only enter
    ``result.sum_weights``. A client that loses its state has lost its mirror and cannot go on.

    Args:
        compressor: C, contractive.

    Raises:
        ConfigError: on a compressor that is not contractive, has a residual or mirror of its own, or needs the mean of
            what was sent.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.compressors.feedback import ef21
        >>> layout = gw.Layout.flat(2)
        >>> client, server = gw.Client(ef21(gw.topk(0.5)), layout), gw.Server(ef21(gw.topk(0.5)), layout, num_clients=1)
        >>> for _ in range(2):
        ...     server.receive(client.compress(np.array([4, 1], np.float32)))
        ...     result = server.close_round()
        ...     applied = client.end_round(result.blob)
        >>> result.update.tolist()
        [4.0, 1.0]

    Source: Richtarik et al. 2021 (arXiv 2106.05203), Algorithm 2.
    Deviations: g starts at 0 before the first round, so that the first payload is C(u), which is the paper's g^0;
        clients may miss rounds, as in EF21-PP (arXiv 2110.03294), and their mirrors then stand still.
    """

    accepted: ClassVar[tuple[type[Guarantee], ...]] = (Contractive,)
    otherwise: ClassVar[str] = "its mirror need not come nearer to the update"

    summary: ClassVar[str] = "a mirror of the update at both ends; differences are sent"
    citation: ClassVar[str] = "Richtarik et al. 2021, arXiv:2106.05203"
    typical: ClassVar[str] = "ef21(topk(0.01))"

    def __post_init__(self) -> None:
        self._check_inner()
        if self.compressor.needs_mean:
            raise ConfigError(f"ef21 cannot wrap {self.compressor}, which needs the mean of what was sent: use ef")

    @property
    def mirrored(self) -> bool:
        """Whether payloads are steps of a mirror that the server keeps: yes."""
        return True

    def init(self, layout: Layout) -> State:
        """Make the state: a mirror of zeros beside the inner compressor's memory."""
        state = self._begin(layout)
        state.memory["mirror"] = np.zeros(layout.d, np.float32)
        return state

    def compress(self, update: Vector, state: State, round: Round | None = None) -> tuple[Payload, State]:
        """Send a step from the mirror towards the update; the mirror given is left as it was when this fails.

        Raises:
            UpdateError: where update and mirror are further apart than float32 holds.
        """
        mirror: Vector = state.memory["mirror"]
        with np.errstate(over="ignore"):
            difference = update - mirror
        check_finite(difference, "update - mirror", state.layout)
        payload, state = self.compressor.compress(difference, state, round)
        state.memory["mirror"] = _moved(state, payload, 1.0, None if round is None else round.reference)
        return payload, state

    def largest_update(self, state: State) -> float:
        """Tell what room the mirror leaves."""
        return max(0.0, self.compressor.largest_update(state) - largest_magnitude(state.memory["mirror"]))

    def restore(self, payload: Payload, state: State, reference: Vector | Reference | None = None) -> State:
        """Take a step that the server did not get out of the mirror again."""
        state = self.compressor.restore(payload, state, reference)
        return State(state.layout, {**state.memory, "mirror": _moved(state, payload, -1.0, reference)})


def _moved(state: State, payload: Payload, sign: float, reference: Vector | Reference | None) -> Vector:
    moved: Vector = state.memory["mirror"].copy()
    with np.errstate(over="ignore"):
        accumulate(moved, payload, sign, reference)
    check_finite(moved, "mirror", state.layout)
    return moved


@dataclass(frozen=True, repr=False)
class momentum_correction(_Feedback):
    """Accumulate momentum locally and send the largest sums: u = m u + g, v = v + u, C(v) is sent.

    What was sent leaves v, and u is set to zero there (momentum factor masking), so that stale momentum does not
    push a coordinate again. v is the residual: what was delivered plus v is the sum over rounds of u. The server then
    takes plain steps, without a momentum of its own. Running statistics have no momentum.

    Args:
        compressor: C; contractive or of bounded absolute error.
        momentum: m, in [0, 1); 0 is ``ef``.

    Raises:
        ConfigError: on a compressor that promises neither or has feedback of its own, or a momentum outside [0, 1).

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.compressors.feedback import momentum_correction
        >>> compressor = momentum_correction(gw.topk(0.5), momentum=0.5)
        >>> state = compressor.init(gw.Layout.flat(2))
        >>> for _ in range(2):
        ...     payload, state = compressor.compress(np.array([4, 1], np.float32), state)
        >>> state.memory["momentum"].tolist(), state.memory["residual"].tolist()
        ([0.0, 1.5], [0.0, 2.5])

    Source: DGC, Lin et al. 2018 (arXiv 1712.01887): momentum correction, section 3.2, Eq. (4)-(7); momentum factor
        masking, section 3.3.
    Deviations: C is any compressor; a coordinate counts as sent where what arrives is not zero. A payload that was not
        delivered goes back into v, not into u: its momentum stays masked. Gradient clipping is the host's.
    """

    momentum: float = 0.9

    summary: ClassVar[str] = "momentum before the residual, masked where sent"
    citation: ClassVar[str] = "Lin et al. 2018, arXiv:1712.01887"
    typical: ClassVar[str] = "momentum_correction(topk(0.01))"

    def __post_init__(self) -> None:
        object.__setattr__(self, "momentum", check_number("momentum", self.momentum))
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must be in [0, 1), got {self.momentum!r}")
        self._check_inner()

    def init(self, layout: Layout) -> State:
        """Make the state: a momentum and a residual of zeros beside the inner compressor's memory."""
        state = self._begin(layout)
        state.memory["momentum"] = np.zeros(layout.d, np.float32)
        state.memory["residual"] = np.zeros(layout.d, np.float32)
        return state

    def compress(self, update: Vector, state: State, round: Round | None = None) -> tuple[Payload, State]:
        """Turn an update into a payload; momentum and residual are left as they were when this fails.

        Raises:
            UpdateError: where residual and momentum add up to more than float32 holds.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            momentum = state.memory["momentum"] * np.float32(self.momentum)
            momentum += update
            residual = state.memory["residual"] + momentum
        check_finite(residual, "residual + momentum", state.layout)
        payload, state = self.compressor.compress(residual, state, round)
        sent = decompress(payload, None if round is None else round.reference)
        residual -= sent
        momentum[sent != 0] = 0
        momentum[state.layout.num_parameters :] = 0
        state.memory["momentum"], state.memory["residual"] = momentum, residual
        return payload, state

    def largest_update(self, state: State) -> float:
        """Tell what room residual and momentum leave: the momentum of all rounds to come has to fit, too."""
        room = self.compressor.largest_update(state) - largest_magnitude(state.memory["residual"])
        return max(0.0, room * (1 - self.momentum) - self.momentum * largest_magnitude(state.memory["momentum"]))

    def restore(self, payload: Payload, state: State, reference: Vector | Reference | None = None) -> State:
        """Add a payload that was not delivered back to the residual."""
        return _restored(payload, self.compressor.restore(payload, state, reference), reference)


def _restored(payload: Payload, state: State, reference: Vector | Reference | None) -> State:
    """The state with a payload back in its residual; the one given is left as it was."""
    residual = state.memory["residual"].copy()
    with np.errstate(over="ignore"):
        accumulate(residual, payload, reference=reference)
    check_finite(residual, "residual + what was not delivered", state.layout)
    return State(state.layout, {**state.memory, "residual": residual})
