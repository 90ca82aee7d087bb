"""Means over seeds, paired differences with their intervals, and curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from gradwire.reproduce.blocks import Series

__all__ = [
    "accuracies",
    "bits_after",
    "compare",
    "curve",
    "difference",
    "gain_at_the_end",
    "mean_and_spread",
    "paired_interval",
    "show",
    "unpaired_interval",
]


def accuracies(results: Sequence[dict[str, Any]], last: int = 1) -> list[float]:
    """Return the accuracies that training results end with, in per cent: the mean of so many last evaluations."""
    if last == 1:
        return [100 * result["summary"]["final_accuracy"] for result in results]
    return [100 * statistics.mean(y for _, y in result["accuracy"][-last:]) for result in results]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (n - 1); 0 for a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def show(values: Sequence[float], digits: int = 2) -> str:
    """Return ``mean ± standard deviation (n)``, without a deviation for one value; a dash for none."""
    if not values:
        return "-"
    mean, spread = mean_and_spread(values)
    around = f" ± {spread:.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{around} ({len(values)})"


def paired_interval(ours: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Return the mean of paired differences and half its 95 % confidence interval.

    Args:
        ours: a value a seed.
        others: those of the same seeds.

    Returns:
        Mean of ours - others, and t(0.975, n - 1) s / sqrt(n), infinite for fewer than two pairs.

    Example:
        >>> from gradwire.reproduce.statistics import paired_interval
        >>> [round(x, 3) for x in paired_interval([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])]
        [2.0, 2.484]

    Source: Student's t.
    """
    from scipy.stats import t

    differences = [a - b for a, b in zip(ours, others, strict=True)]
    mean, spread = mean_and_spread(differences)
    if len(differences) < 2:
        return mean, math.inf
    return mean, float(t.ppf(0.975, len(differences) - 1)) * spread / math.sqrt(len(differences))


def compare(ours: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]], last: int = 1) -> tuple[str, str]:
    """Return how the accuracies at the end differ on the same seeds, and what may be said of it.

    Args:
        ours: training results by seed.
        others: those they are compared with.
        last: over how many of the last evaluations the mean is taken.

    Returns:
        The mean difference in points with half its 95 % interval (Student's t) and the number of pairs; and ``better``
        or ``worse`` where the interval leaves out 0, else ``no difference shown`` or ``too few seeds``.
    """
    seeds = [seed for seed in ours if seed in others]
    if len(seeds) < 2:
        return "-", "too few seeds"
    mean, half = difference(ours, others, last)
    verdict = "no difference shown" if abs(mean) <= half else "better" if mean > 0 else "worse"
    return f"{mean:+.2f} ± {half:.2f} ({len(seeds)})", verdict


def difference(
    ours: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]], last: int = 1
) -> tuple[float, float]:
    """Return the mean difference of the accuracies at the end, in points, and half its interval: see ``compare``.

    Both are of the seeds that both have, one or more.
    """
    seeds = [seed for seed in ours if seed in others]
    return paired_interval(*(accuracies([runs[s] for s in seeds], last) for runs in (ours, others)))


def unpaired_interval(a: tuple[float, float], b: tuple[float, float], count: int) -> tuple[float, float]:
    """Return the difference of two published means and half its 95 % confidence interval.

    Args:
        a: mean and standard deviation (n - 1), not both 0.
        b: what is taken from it.
        count: n, of each.

    Returns:
        Mean of a - b, and t(0.975, f) times its standard error, f being Welch's degrees of freedom.

    Example:
        >>> from gradwire.reproduce.statistics import unpaired_interval
        >>> [round(x, 2) for x in unpaired_interval((92.44, 0.143), (92.194, 0.247), 5)]
        [0.25, 0.31]

    Source: Welch's t.
    """
    from scipy.stats import t

    first, second = a[1] ** 2 / count, b[1] ** 2 / count
    freedom = (first + second) ** 2 * (count - 1) / (first**2 + second**2)
    return a[0] - b[0], float(t.ppf(0.975, freedom)) * math.sqrt(first + second)


def gain_at_the_end(results: Sequence[dict[str, Any]]) -> float:
    """Return by how many points accuracy rises over the last fifth of training, in the mean over results.

    Args:
        results: of training units, with evaluations throughout; one or more.

    Returns:
        Points of per cent from the last evaluation before the last fifth of the rounds to the last one of all.
    """

    def gain(curve: list[list[float]]) -> float:
        end, reached = curve[-1]
        before = [accuracy for round, accuracy in curve if round + 1 <= 0.8 * (end + 1)] or [curve[0][1]]
        return 100 * (reached - before[-1])

    return statistics.mean(gain(result["accuracy"]) for result in results)


def bits_after(result: dict[str, Any], warmup_rounds: int, key: str = "uplink_bytes") -> float:
    """Return bits per parameter and client after the warm-up, headers included.

    Args:
        result: of a training unit.
        warmup_rounds: rounds to leave out; stretches of the record that reach into them are.
        key: ``"uplink_bytes"`` or ``"downlink_bytes"``, where each client's copy counts.

    Returns:
        8 * bytes / (d * clients), averaged over rounds.
    """
    num_parameters, clients = result["experiment"]["num_parameters"], result["summary"]["clients"]
    before, means = -1, []
    for last, num_bytes in result[key]:
        if before + 1 >= warmup_rounds:
            means.append(num_bytes)
        before = last
    return 8 * statistics.mean(means) / (num_parameters * clients) if means else math.nan


def curve(name: str, results: Sequence[dict[str, Any]], key: str = "accuracy", scale: float = 1.0) -> Series:
    """Return the mean over seeds of a recorded curve, with its standard deviation.

    Args:
        name: for the legend.
        results: of training units with the same rounds.
        key: ``"accuracy"`` (then in per cent) or ``"loss"``.
        scale: what a round is multiplied by on the abscissa.

    Returns:
        The series.
    """
    factor = 100.0 if key == "accuracy" else 1.0
    columns = [[(x + 1) * scale for x, _ in results[0][key]]] if results else [[]]
    values = list(zip(*([factor * y for _, y in result[key]] for result in results), strict=True))
    spread = [mean_and_spread(v)[1] for v in values] if len(results) > 1 else []
    return Series(name, columns[0], [statistics.mean(v) for v in values], spread)
