"""AdapTop-K: more entries early and late in the run, fewer in between, for the bytes of Top-K."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_density, check_integer, check_number
from gradwire.compressors.compressor import Round, State, Vector
from gradwire.compressors.guarantee import Contractive, Guarantee
from gradwire.compressors.pipeline import Sparsifier
from gradwire.compressors.sparsify import largest_of, listed_part, num_kept_of, part_at
from gradwire.errors import ConfigError
from gradwire.kernels import ops
from gradwire.layout import Layout
from gradwire.payload import Part, Payload

__all__ = ["adaptopk", "adaptopk_online", "hindsight_schedule", "turning_point"]


@dataclass(frozen=True, repr=False)
class _Adaptive(Sparsifier):
    """What both schedules share: rounds of k + g and of k - g entries, as many of one as of the other."""

    density: float
    gamma: float = 0.5
    rounds: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", check_density(self.density))
        object.__setattr__(self, "gamma", check_number("gamma", self.gamma))
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"gamma must be in [0, 1], got {self.gamma!r}")
        if self.rounds is not None:
            object.__setattr__(self, "rounds", check_integer("rounds", self.rounds, 1))

    @property
    def scheduled(self) -> bool:
        """Whether what is kept depends on the round's number: yes."""
        return True

    @property
    def uses_num_rounds(self) -> bool:
        """Whether ``Round.num_rounds`` is read: where ``rounds`` does not say it."""
        return self.rounds is None

    @property
    def adjustable(self) -> bool:
        """Whether a byte budget can be met by keeping fewer: yes."""
        return True

    def guarantee(self, d: int) -> Guarantee:
        """Contractive((k - g) / d)."""
        k, g = self._amounts(d)
        return Contractive((k - g) / d if d else 1.0)

    def _amounts(self, d: int) -> tuple[int, int]:
        """The integers k and g."""
        if d == 0:
            return 0, 0
        k = num_kept_of(self.density, d)
        return k, min(round(self.gamma * k), k - 1, d - k)

    def _total(self, round: Round) -> int:
        total = self.rounds or round.num_rounds
        if total is None:
            raise ConfigError(f"{self} must know how long the run is: give it rounds=, or Client(num_rounds=)")
        return total


@dataclass(frozen=True, repr=False)
class adaptopk(_Adaptive):
    """Send the k_t entries of largest magnitude: k_t = k - g for t_hat / 2 <= t < (t_hat + T) / 2, else k + g.

    k is topk's, and g = round(gamma * k), lowered where k - g would be below 1 or k + g above d. The sum of all k_t is
    k T exactly: for odd T one round uses k itself, floor((t_hat + T) / 2), or floor(t_hat / 2) where that is not in the
    run. Rounds after T use k.

    Args:
        density: k / d in (0, 1].
        gamma: g / k in [0, 1].
        rounds: T, or None to take the run's (``Client(num_rounds=)``).
        t_hat: where the bound's coefficients are smallest (``turning_point``), rounded to an integer and clamped to
            [0, T]; half the rounds when None.

    Raises:
        ConfigError: on a value outside these; in ``compress`` when neither ``rounds`` nor the run says what T is.

    Example:
        >>> import gradwire as gw
        >>> gw.adaptopk(0.1, rounds=8, t_hat=4).schedule(100, 8).tolist()
        [15, 15, 5, 5, 5, 5, 15, 15]

    Source: AdapTop-K (arXiv 2210.13532) Algorithm 1; Eq. (19), (20).
    Deviations: t_hat beyond T is clamped, and one round of an odd T uses k, so that the budget of Eq. (4) is met.
    """

    t_hat: float | None = None

    summary: ClassVar[str] = "topk with more entries early and late, fewer in between"
    citation: ClassVar[str] = "AdapTop-K, arXiv:2210.13532"
    typical: ClassVar[str] = "adaptopk(0.01, rounds=100)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t_hat is not None:
            object.__setattr__(self, "t_hat", check_number("t_hat", self.t_hat))
            if self.t_hat < 0:
                raise ConfigError(f"t_hat must be 0 or more, got {self.t_hat!r}")

    def schedule(self, d: int, num_rounds: int) -> NDArray[np.int64]:
        """Return how many entries each round keeps.

        Args:
            d: number of parameters.
            num_rounds: T, where ``rounds`` does not say it.

        Returns:
            (T,) int64, whose sum is k T.
        """
        total = self.rounds or check_integer("num_rounds", num_rounds, 1)
        d = check_integer("d", d, 0)
        return np.array([self._count(t, d, total) for t in range(total)], np.int64)

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Select the largest magnitudes, as many as the round's turn is."""
        count = self._count(round.index, update.size, self._total(round)) if num_kept is None else num_kept
        return [listed_part(update.size, *(round.largest or largest_of(update, count)), state.layout)]

    def num_largest(self, state: State, round: Round) -> int | None:
        """Tell how many the round's turn is."""
        if round.num_bytes is not None or round.num_kept is not None:
            return None
        d = state.layout.num_parameters
        return self._count(round.index, d, self._total(round)) if d else 0

    def _count(self, t: int, d: int, total: int) -> int:
        k, g = self._amounts(d)
        t_hat = total // 2 if self.t_hat is None else min(total, round(self.t_hat))
        middle = (t_hat + total) // 2
        if t >= total or (total % 2 and t == (middle if middle < total else t_hat // 2)):
            return k
        return k - g if t_hat <= 2 * t < t_hat + total else k + g  # Eq. (20)


@dataclass(frozen=True, repr=False)
class adaptopk_online(_Adaptive):
    """AdapTop-K whose rounds of k + g and k - g are chosen as gradient norms are seen.

    The bound of Theorem 1 is lowest when the rounds of largest A_t B_t keep more, B_t = (1 - c)^(T - 1 - t) with
    c = eta mu k / d. Here |u_t|^2 of this round stands for A_t, and the rounds ahead are forecast by Lemma 2,
    alpha / t + beta, fitted by least squares to the norms up to this one. A round keeps k + g where it is among the
    largest of itself and all rounds ahead, as many as there are such turns left; T // 2 rounds keep k + g, as many
    k - g, and one of an odd T keeps k, so that k T entries are sent, if the client takes part in every round.

    Args:
        density: k / d in (0, 1].
        gamma: g / k in [0, 1].
        rounds: T, or None to take the run's (``Client(num_rounds=)``).
        contraction: c in [0, 1): by how much a round is expected to shrink the error; about 1e-6 in practice.

    Raises:
        ConfigError: on a value outside these; in ``compress`` when neither ``rounds`` nor the run says what T is.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> client = gw.Client(gw.adaptopk_online(0.5), gw.Layout.flat(4), num_rounds=4)
        >>> sizes = (4.0, 1.0, 9.0, 1.0)
        >>> blobs = [client.compress(np.full(4, x, np.float32), round=t) for t, x in enumerate(sizes)]
        >>> [gw.inspect(blob)["num_kept"] for blob in blobs]
        [3, 1, 3, 1]

    Source: AdapTop-K (arXiv 2210.13532) Eq. (14)-(18), Lemma 2.
    Deviations: the paper gives t_hat before the run; this estimates alpha and beta in it, from the client's own norms.
        Norms that fall otherwise than alpha / t + beta are forecast too high, and early rounds then get less.
    """

    contraction: float = 0.0

    summary: ClassVar[str] = "adaptopk that decides by the gradient norms it sees"
    citation: ClassVar[str] = "after AdapTop-K, arXiv:2210.13532, Eq. (14)"
    typical: ClassVar[str] = "adaptopk_online(0.01, rounds=100)"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "contraction", check_number("contraction", self.contraction))
        if not 0 <= self.contraction < 1:
            raise ConfigError(f"contraction must be in [0, 1), got {self.contraction!r}")

    def init(self, layout: Layout) -> State:
        """Make the state: turns taken so far, and the sums that least squares needs."""
        counts = dict.fromkeys(("num_more", "num_less", "num_same"), 0)
        return State(layout, {**counts, **dict.fromkeys(_SUMS, 0.0)})

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Select the largest magnitudes, as many as the round deserves."""
        k, g = self._amounts(update.size)
        count = k + g * self._turn(update, state, round) if num_kept is None else num_kept
        return [part_at(update, ops.topk(update, count), state.layout)]

    def remember(self, update: Vector, payload: Payload, state: State, round: Round) -> State:
        """Count the round's turn and its norm."""
        parameters = update[: state.layout.num_parameters]
        turn = self._turn(parameters, state, round)
        memory = dict(state.memory)
        if round.num_bytes is None and round.num_kept is None:  # else this round's number was not its turn's
            memory["num_more" if turn > 0 else "num_less" if turn < 0 else "num_same"] += 1
        memory |= zip(_SUMS, _sums(state, round.index, _square(parameters)), strict=True)
        return State(state.layout, memory)

    def _turn(self, update: Vector, state: State, round: Round) -> int:
        """1 for k + g, -1 for k - g, 0 for k."""
        total, t = self._total(round), round.index
        if t >= total:
            return 0
        more = total // 2 - state.memory["num_more"]
        same = total % 2 - state.memory["num_same"]
        less = total // 2 - state.memory["num_less"]
        ahead = np.arange(t + 1, total)
        norm = _square(update)
        alpha, beta = _fit(*_sums(state, t, norm))
        discount = (1 - self.contraction) ** (total - 1 - ahead.astype(np.float64))
        forecast = np.maximum(alpha / np.maximum(ahead, 1) + beta, 0.0) * discount  # A_t B_t of Eq. (17)
        here = norm * (1 - self.contraction) ** (total - 1 - t)
        larger = int(np.count_nonzero(forecast > here))
        if larger < more or less + same <= 0:
            return int(more > 0)
        return 0 if larger < more + same or less <= 0 else -1


def turning_point(alpha: float, beta: float, learning_rate: float, mu: float, density: float) -> int:
    """Return t_hat, where A_t B_t stops to fall: Eq. (19), in a form without cancellation.

    Args:
        alpha: 2 d F(w_0) / (k eta), Eq. (16).
        beta: d sigma^2 (eta L + 1) / k, Eq. (16).
        learning_rate: eta.
        mu: the Polyak-Lojasiewicz constant, Eq. (6).
        density: k / d.

    Returns:
        The integer t_hat, 0 or more, in rounds; it can lie beyond the run.

    Raises:
        ConfigError: on numbers that are not positive, or eta mu k / d outside (0, 1) in float64; on a t_hat that no
            float64 holds.

    Example:
        >>> from gradwire.compressors.papers.adaptopk import turning_point
        >>> [turning_point(5888, 256, 0.1, mu, 1 / 128) for mu in (0.01, 0.1, 1.0)]
        [1704, 531, 160]

    Source: AdapTop-K (arXiv 2210.13532) Eq. (19).
    Deviations: (-alpha + sqrt(alpha^2 - 4 alpha beta / ln B)) / (2 beta) is computed as
        (2 / -ln B) / (1 + sqrt(1 - 4 (beta / alpha) / ln B)).
    """
    numbers = {"alpha": alpha, "beta": beta, "learning_rate": learning_rate, "mu": mu, "density": density}
    for name, value in numbers.items():
        if check_number(name, value) <= 0:
            raise ConfigError(f"{name} must be above 0, got {value!r}")
    contraction = learning_rate * mu * density
    if not 0 < contraction < 1:
        raise ConfigError(f"learning_rate * mu * density must be in (0, 1), got {contraction!r}")
    rate = -math.log1p(-contraction)
    t_hat = 2 / rate / (1 + math.sqrt(1 + 4 * (beta / alpha) / rate))
    if not math.isfinite(t_hat):
        raise ConfigError(f"t_hat must be finite, got {t_hat!r} for alpha {alpha!r}, beta {beta!r}, rate {rate!r}")
    return math.floor(t_hat)


def hindsight_schedule(square_norms: NDArray[np.float64], d: int, k: int, contraction: float) -> NDArray[np.int64]:
    """Return the k_t that minimise the bound of Theorem 1 when all gradient norms are known.

    The objective of Eq. (14) is linear in n_t, so that the rounds with the largest coefficients of Eq. (15) keep all d
    entries until the budget of k T is spent, and the others none.

    Args:
        square_norms: (T,) |g_t|^2.
        d: number of parameters.
        k: entries to a round on average.
        contraction: eta mu k / d, in [0, 1).

    Returns:
        (T,) int64 of [0, d], whose sum is k T.

    Raises:
        ConfigError: on a k outside [1, d], a contraction outside [0, 1), norms that are no finite vector.

    Example:
        >>> import numpy as np
        >>> from gradwire.compressors.papers.adaptopk import hindsight_schedule
        >>> hindsight_schedule(np.array([4.0, 1.0, 9.0, 2.0]), d=10, k=4, contraction=0.0).tolist()
        [6, 0, 10, 0]

    Source: AdapTop-K (arXiv 2210.13532) Eq. (14), (15).
    Deviations: none.
    """
    d = check_integer("d", d, 1)
    k = check_integer("k", k, 1, d)
    if not 0 <= check_number("contraction", contraction) < 1:
        raise ConfigError(f"contraction must be in [0, 1), got {contraction!r}")
    square_norms = np.asarray(square_norms, np.float64)
    if square_norms.ndim != 1 or not np.isfinite(square_norms).all():
        raise ConfigError(f"square_norms must be a vector of finite numbers, got shape {square_norms.shape}")
    total = square_norms.size
    coefficients = square_norms * (1 - contraction) ** np.arange(total - 1, -1, -1.0)
    order = np.argsort(-coefficients, kind="stable")
    schedule = np.zeros(total, np.int64)
    full, rest = divmod(k * total, d)
    schedule[order[:full]] = d
    if rest:
        schedule[order[full]] = rest
    return schedule


_SUMS = ("sum_1", "sum_x", "sum_y", "sum_xx", "sum_xy")


def _sums(state: State, t: int, norm: float) -> list[float]:
    """What least squares needs, over the rounds before and this one."""
    x = 1.0 / max(1, t)
    return [state.memory[name] + value for name, value in zip(_SUMS, (1.0, x, norm, x * x, x * norm), strict=True)]


def _fit(n: float, x: float, y: float, xx: float, xy: float) -> tuple[float, float]:
    """The alpha >= 0 and beta of alpha / t + beta, by least squares."""
    spread = n * xx - x * x
    alpha = max(0.0, (n * xy - x * y) / spread) if spread > 1e-12 * n * n else 0.0
    return alpha, (y - alpha * x) / n


def _square(update: Vector) -> float:
    """|u|^2 in float64, the same on any number of cores; bounded, so that its square is finite."""
    return min(float(np.square(update, dtype=np.float64).sum()), 1e150)
