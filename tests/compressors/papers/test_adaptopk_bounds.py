"""AdapTop-K's bounds against the recursion they come from, and against SGD on a problem whose constants are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradwire as gw
from gradwire.compressors.papers.adaptopk import hindsight_schedule, turning_point
from gradwire.compressors.papers.adaptopk_bounds import error_bound, error_bound_by_lemma, norm_coefficients

SETTING = {"initial_gap": 3.0, "learning_rate": 0.2, "smoothness": 4.0, "mu": 0.3, "variance": 0.5}


@given(
    st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1e3)), min_size=1, max_size=40),
    st.floats(1e-3, 0.25),
    st.floats(1e-3, 4.0),
    st.floats(0, 10),
)
def test_theorem_1_is_the_appendix_s_recursion(rounds, learning_rate, mu, variance):
    """E_{t+1} <= (1 - eta k mu / d) E_t + eta / 2 (1 - k / d + eta L) sigma^2 - eta n_t / (2 d) |g_t|^2."""
    schedule, norms = np.array([k for k, _ in rounds]), np.array([norm for _, norm in rounds])
    schedule[0] = max(1, schedule[0])
    setting = {**SETTING, "learning_rate": learning_rate, "mu": mu, "variance": variance}
    d, k, eta = 50, schedule.mean(), learning_rate
    error = setting["initial_gap"]
    for k_t, norm in zip(schedule, norms, strict=True):
        noise = eta / 2 * (1 - k / d + eta * setting["smoothness"]) * variance
        error = (1 - eta * k * mu / d) * error + noise - eta * (k_t - k) / (2 * d) * norm
    assert error_bound(schedule, norms, d, **setting) == pytest.approx(error, rel=1e-9, abs=1e-9 * (1 + norms.sum()))


def sgd(schedule, seed, curvature, learning_rate, deviation):
    """SGD on F(w) = 1/2 sum c_i w_i^2 with the k_t largest entries of gradients: squared norms, and F at the end."""
    rng = np.random.default_rng(seed)
    w, norms = np.ones(curvature.size), []
    for k in schedule:
        gradient = curvature * w + deviation * rng.standard_normal(w.size)
        norms.append(gradient @ gradient)
        kept = np.argsort(-np.abs(gradient), kind="stable")[:k]
        w[kept] -= learning_rate * gradient[kept]
    return np.array(norms), 0.5 * float(curvature @ w**2)


@pytest.mark.parametrize(("gamma", "turned"), [(0.0, False), (0.5, False), (0.5, True)])
def test_theorem_1_holds_for_sgd(gamma, turned):
    """Smoothness, PL constant and variance of a quadratic are known; the mean of 200 runs stays below the bound."""
    curvature, deviation = np.linspace(0.5, 2.0, 20), 0.05
    schedule = gw.adaptopk(0.2, gamma=gamma).schedule(20, 60)
    schedule = schedule.max() + schedule.min() - schedule if turned else schedule
    setting = {"learning_rate": 0.4, "smoothness": 2.0, "mu": 0.5, "variance": 20 * deviation**2}
    runs = [sgd(schedule, seed, curvature, 0.4, deviation) for seed in range(200)]
    gap = 0.5 * curvature.sum()
    bounds = [error_bound(schedule, norms, 20, initial_gap=gap, **setting) for norms, _ in runs]
    assert 0 < np.mean([reached for _, reached in runs]) < np.mean(bounds) < 10 * gap


def test_lemma_2_s_coefficients():
    assert norm_coefficients(2.3, 0.1, 10.0, 1.0, 1 / 128) == (pytest.approx(5888), 256)
    assert [turning_point(5888, 256, 0.1, mu, 1 / 128) for mu in (0.01, 0.1, 1.0)] == [1704, 531, 160]


@pytest.mark.parametrize("mu", [0.01, 0.1, 1.0])
def test_the_schedule_is_better_by_corollary_1_where_it_turns_at_t_hat(mu):
    d, total, density = 1280, 3000, 1 / 128
    setting = {"learning_rate": 0.1, "smoothness": 10.0, "variance": 1.0}
    t_hat = turning_point(*norm_coefficients(2.3, **setting, density=density), 0.1, mu, density)
    by_gamma = [
        error_bound_by_lemma(
            gw.adaptopk(density, gamma=gamma, t_hat=t_hat).schedule(d, total),
            d,
            initial_gap=2.3,
            initial_loss=2.3,
            mu=mu,
            **setting,
        )
        for gamma in (0.0, 0.2, 0.5, 0.9)
    ]
    assert by_gamma == sorted(by_gamma, reverse=True)
    assert by_gamma[-1] < by_gamma[0]


def test_corollary_1_is_no_bound():
    """Norms that Lemma 2 allows, but small where more is sent, leave more than it says, and more than Top-K."""
    d, total = 100, 200
    schedule = gw.adaptopk(0.1).schedule(d, total)
    alpha, beta = norm_coefficients(3.0, 0.2, 4.0, 0.5, 0.1)
    norms = np.where(schedule > 10, 0.0, alpha / np.maximum(np.arange(total), 1) + beta)
    said = error_bound_by_lemma(schedule, d, initial_loss=3.0, **SETTING)
    plain = error_bound(np.full(total, 10), norms, d, **SETTING)
    assert said < plain < error_bound(schedule, norms, d, **SETTING)


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=12), st.integers(0, 2**32 - 1))
def test_nothing_is_below_the_schedule_in_hindsight(norms, seed):
    norms, rng = np.array(norms), np.random.default_rng(seed)
    d, k = 12, 4
    best = hindsight_schedule(norms, d, k, SETTING["learning_rate"] * SETTING["mu"] * k / d)
    other = rng.multinomial(k * norms.size, np.ones(norms.size) / norms.size)
    if other.max() <= d:
        bounds = [error_bound(schedule, norms, d, **SETTING) for schedule in (best, other)]
        assert bounds[0] <= bounds[1] + 1e-9 * (1 + norms.sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.3}, r"learning_rate must be in \(0, 1 / smoothness\], got 0.3"),
        ({"learning_rate": 0.0}, "learning_rate must be in"),
        ({"smoothness": -1.0}, "smoothness must be above 0, got -1.0"),
        ({"mu": 5.0}, r"mu must be in \(0, 4.0\], got 5.0"),
        ({"variance": -0.1}, "variance must be 0 or more, got -0.1"),
        ({"initial_gap": float("nan")}, "initial_gap must be finite"),
    ],
)
def test_numbers_that_cannot_be(change, message):
    with pytest.raises(gw.ConfigError, match=message):
        error_bound(np.array([4, 4]), np.ones(2), 8, **{**SETTING, **change})


@pytest.mark.parametrize(
    ("schedule", "norms", "message"),
    [
        ([4, 4], [1.0], "vectors of one length"),
        ([9, 4], [1.0, 1.0], r"numbers in \[0, 8\]"),
        ([0, 0], [1.0, 1.0], "not all 0"),
        ([4, 4], [1.0, -1.0], "finite numbers of 0 or more"),
    ],
)
def test_rounds_that_cannot_be(schedule, norms, message):
    with pytest.raises(gw.ConfigError, match=message):
        error_bound(np.array(schedule), np.array(norms), 8, **SETTING)
