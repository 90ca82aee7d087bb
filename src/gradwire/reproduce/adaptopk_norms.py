"""Lemma 2 of AdapTop-K (arXiv 2210.13532), the decay of gradients that its schedule leans on, beside recorded norms."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.papers.adaptopk_bounds import norm_coefficients
from gradwire.reproduce.blocks import Block, Chart, Heading, Series, Table, Text

__all__ = ["report_norms"]

_PARTS = (0.01, 0.03, 0.1, 0.3, 1.0)
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def report_norms(cases: Sequence[tuple[str, float, list[dict[str, Any]]]], learning_rate: float) -> list[Block]:
    """Return how squared gradient norms fall in recorded runs, and what Lemma 2 says of them.

    Args:
        cases: what runs have in common, their k / d, and the training results, each with ``square_norm``.
        learning_rate: eta; with one local step an update is eta times a gradient.

    Returns:
        A table, a chart and what they show; nothing without runs.
    """
    rows, lines, powers, shares = [], [], [], []
    for title, density, runs in cases:
        rounds, squares = _squares(runs, learning_rate)
        initial_loss = float(np.mean([run["loss"][0][1] for run in runs]))
        alpha, _ = norm_coefficients(initial_loss, learning_rate, 1.0, 0.0, density)
        powers.append(_slope(rounds, squares))
        shares.append(float((squares * rounds / alpha).max()))
        at = [int(np.searchsorted(rounds, part * rounds[-1])) for part in _PARTS]
        rows.append(
            [
                title,
                str(len(runs)),
                *(f"{squares[i]:.3g}" for i in at),
                f"{powers[-1]:.2f}",
                f"{shares[-1]:.2g}",
            ]
        )
        lines.append(Series(title, rounds.tolist(), squares.tolist()))
    if not rows:
        return []
    heading_rounds = [f"{part * 100:g} % of the rounds" for part in _PARTS]
    return [
        Heading("Lemma 2 beside recorded norms"),
        Text(
            "Lemma 2 bounds E|g_t|^2 by alpha / t + beta, and the schedule is chosen as if it were that. Below, the "
            "mean over clients and seeds of |g_t|^2 in Top-K's runs, which is above that of the clients' mean, which "
            "the lemma has; the power of t that fits it best (the lemma's first term is -1); and the largest share of "
            "alpha / t that it ever is, alpha = 2 d F(w_0) / (k eta) of Eq. (16), beta left out since sigma and L are "
            "not known. F(w_0) is the first stretch of the recorded loss, a little below it."
        ),
        Table(("runs", "seeds", *heading_rounds, "power of t", "most, of alpha / t"), rows),
        Text(
            f"Norms go with powers of t between {min(powers):+.2f} and {max(powers):+.2f}, and are at most "
            f"{max(shares):.2g} of alpha / t, the lemma's first term alone."
            if max(shares) < 1
            else f"Norms go with powers of t between {min(powers):+.2f} and {max(powers):+.2f}, and come up to "
            f"{max(shares):.2g} times alpha / t, the lemma's first term alone."
        ),
        Chart("adaptopk-norms", "Squared gradient norms", "iteration", "mean |g|^2", lines, log_x=True, log_y=True),
    ]


def _squares(runs: list[dict[str, Any]], learning_rate: float) -> Curve:
    """Harmonic means of the rounds, from 1 on, of the stretches recorded, and the mean squared gradient norms there."""
    ends = [-1, *(int(last) for last, _ in runs[0]["square_norm"])]
    rounds = np.array([1 / np.mean(1 / np.arange(before + 2.0, last + 2)) for before, last in pairwise(ends)])
    means = np.array([[square for _, square in run["square_norm"]] for run in runs]).mean(axis=0)
    return rounds, means / learning_rate**2


def _slope(rounds: NDArray[np.float64], squares: NDArray[np.float64]) -> float:
    """The power of t of least squares between the logs."""
    return float(np.polyfit(np.log(rounds), np.log(np.maximum(squares, 1e-30)), 1)[0])
