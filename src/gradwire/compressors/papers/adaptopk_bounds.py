"""AdapTop-K's theory: what its bounds come to for numbers that are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_density, check_integer, check_number
from gradwire.errors import ConfigError

__all__ = ["error_bound", "error_bound_by_lemma", "norm_coefficients"]


def norm_coefficients(
    initial_loss: float, learning_rate: float, smoothness: float, variance: float, density: float
) -> tuple[float, float]:
    """Return alpha and beta of Lemma 2: E|g_t|^2 <= alpha / t + beta.

    Args:
        initial_loss: F(w_0), 0 or more.
        learning_rate: eta, in (0, 1 / L].
        smoothness: L > 0.
        variance: sigma^2 of the stochastic gradient's noise, 0 or more.
        density: k / d in (0, 1].

    Returns:
        alpha = 2 d F(w_0) / (k eta) and beta = d sigma^2 (eta L + 1) / k: what ``turning_point`` takes.

    Raises:
        ConfigError: on numbers outside these.

    Example:
        >>> from gradwire.compressors.papers.adaptopk_bounds import norm_coefficients
        >>> norm_coefficients(2.0, 0.1, 10.0, 1.0, 1 / 128)
        (5120.0, 256.0)

    Source: AdapTop-K (arXiv 2210.13532) Eq. (16).
    """
    density = check_density(density)
    _check_step(learning_rate, smoothness)
    _at_least_0(initial_loss=initial_loss, variance=variance)
    return 2 * initial_loss / (density * learning_rate), variance * (learning_rate * smoothness + 1) / density


def error_bound(
    schedule: NDArray[np.integer],
    square_norms: NDArray[np.floating],
    d: int,
    *,
    initial_gap: float,
    learning_rate: float,
    smoothness: float,
    mu: float,
    variance: float,
) -> float:
    """Return Theorem 1's bound of E[F(w_T)] - F* for a schedule and the gradient norms that came with it.

    Args:
        schedule: (T,) k_t of [0, d], T >= 1; k is their mean.
        square_norms: (T,) |g_t|^2 of the stochastic gradients.
        d: number of parameters.
        initial_gap: F(w_0) - F*, 0 or more.
        learning_rate: eta, in (0, 1 / L].
        smoothness: L > 0.
        mu: the Polyak-Lojasiewicz constant of Eq. (6), in (0, L].
        variance: sigma^2 of the stochastic gradient's noise, 0 or more.

    Returns:
        M(k) + N(k) less the sum of (eta n_t / 2 d) |g_t|^2 (1 - eta mu k / d)^(T - 1 - t), with n_t = k_t - k.

    Raises:
        ConfigError: on numbers outside these, arrays of another shape, a schedule that sends nothing.

    Example:
        >>> import numpy as np
        >>> from gradwire.compressors.papers.adaptopk_bounds import error_bound
        >>> setting = dict(initial_gap=1.0, learning_rate=0.5, smoothness=1.0, mu=0.5, variance=0.0)
        >>> error_bound(np.array([4, 4]), np.array([1.0, 0.25]), 8, **setting)
        0.765625

    Source: AdapTop-K (arXiv 2210.13532) Theorem 1, Eq. (13).
    """
    kept, norms = _vectors(schedule, square_norms, d)
    _check_step(learning_rate, smoothness)
    _at_least_0(initial_gap=initial_gap, variance=variance)
    if not 0 < check_number("mu", mu) <= smoothness:
        raise ConfigError(f"mu must be in (0, {smoothness}], got {mu!r}")
    density = float(kept.mean()) / d
    shrinking = 1 - learning_rate * mu * density
    left = shrinking**kept.size
    plain = left * initial_gap + variance / (2 * mu * density) * (1 - density + learning_rate * smoothness) * (1 - left)
    weights = shrinking ** np.arange(kept.size - 1, -1, -1.0)  # B_t
    return float(plain - learning_rate / 2 * ((kept / d - density) * norms * weights).sum())


def error_bound_by_lemma(
    schedule: NDArray[np.integer],
    d: int,
    *,
    initial_gap: float,
    initial_loss: float,
    learning_rate: float,
    smoothness: float,
    mu: float,
    variance: float,
) -> float:
    """Return what Corollary 1 says of a schedule before the run: Theorem 1 with alpha / t + beta for all norms.

    Lemma 2 bounds norms from above, which bounds the error only through rounds that send fewer than k: of the others
    the term is subtracted, and norms below the lemma's leave more than it says. So this is what the schedule is chosen
    by, and no bound; ``error_bound`` of the norms that came is one.

    Args:
        schedule: as for ``error_bound``.
        d: as for ``error_bound``.
        initial_gap: as for ``error_bound``.
        initial_loss: F(w_0), 0 or more.
        learning_rate: as for ``error_bound``.
        smoothness: as for ``error_bound``.
        mu: as for ``error_bound``.
        variance: as for ``error_bound``.

    Returns:
        The right-hand side of Eq. (21).

    Raises:
        ConfigError: as ``error_bound``.

    Example:
        >>> import gradwire as gw
        >>> from gradwire.compressors.papers.adaptopk_bounds import error_bound_by_lemma
        >>> setting = dict(initial_gap=1.0, initial_loss=1.0, learning_rate=0.1, smoothness=1.0, mu=0.1, variance=0.1)
        >>> adapted, plain = gw.adaptopk(0.1, t_hat=20).schedule(100, 100), gw.adaptopk(0.1, gamma=0).schedule(100, 100)
        >>> error_bound_by_lemma(adapted, 100, **setting) < error_bound_by_lemma(plain, 100, **setting)
        True

    Source: AdapTop-K (arXiv 2210.13532) Corollary 1, Eq. (17), (21).
    Deviations: the paper calls it a bound. alpha / t is infinite in round 0, where alpha itself is taken.
    """
    kept, _ = _vectors(schedule, np.zeros(np.shape(schedule)), d)
    alpha, beta = norm_coefficients(initial_loss, learning_rate, smoothness, variance, float(kept.mean()) / d)
    norms = alpha / np.maximum(np.arange(kept.size), 1) + beta
    shared = {"learning_rate": learning_rate, "smoothness": smoothness, "mu": mu, "variance": variance}
    return error_bound(schedule, norms, d, initial_gap=initial_gap, **shared)


def _vectors(
    schedule: NDArray[np.integer], square_norms: NDArray[np.floating], d: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    d = check_integer("d", d, 1)
    kept, norms = np.asarray(schedule, np.float64), np.asarray(square_norms, np.float64)
    if kept.ndim != 1 or kept.shape != norms.shape:
        raise ConfigError(f"schedule and square_norms must be vectors of one length, got {kept.shape}, {norms.shape}")
    if not ((kept >= 0) & (kept <= d)).all() or not kept.any():
        raise ConfigError(f"schedule must be of numbers in [0, {d}], not all 0")
    if not (np.isfinite(norms) & (norms >= 0)).all():
        raise ConfigError("square_norms must be finite numbers of 0 or more")
    return kept, norms


def _check_step(learning_rate: float, smoothness: float) -> None:
    if check_number("smoothness", smoothness) <= 0:
        raise ConfigError(f"smoothness must be above 0, got {smoothness!r}")
    if not 0 < check_number("learning_rate", learning_rate) <= 1 / smoothness:
        raise ConfigError(f"learning_rate must be in (0, 1 / smoothness], got {learning_rate!r}")


def _at_least_0(**numbers: float) -> None:
    for name, value in numbers.items():
        if check_number(name, value) < 0:
            raise ConfigError(f"{name} must be 0 or more, got {value!r}")
