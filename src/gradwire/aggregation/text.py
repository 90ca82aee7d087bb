"""Aggregations as text: ``mean()``, ``median()``, ``trimmed_mean(share)``, ``over_the_air(snr_db)``."""

from __future__ import annotations

from gradwire.aggregation.over_the_air import over_the_air
from gradwire.aggregation.robust import Aggregation, mean, median, trimmed_mean
from gradwire.named import read

__all__ = ["Aggregation", "mean", "median", "over_the_air", "parse_aggregation", "trimmed_mean"]


def parse_aggregation(text: str) -> Aggregation:
    """Build the aggregation a text describes.

    Args:
        text: for instance ``"trimmed_mean(0.1)"``.

    Returns:
        The aggregation; ``parse_aggregation(str(a)) == a``.

    Raises:
        ConfigError: on a text that cannot be read or a parameter out of range.

    Example:
        >>> from gradwire.aggregation import parse_aggregation
        >>> parse_aggregation("trimmed_mean( share = 0.1 )")
        trimmed_mean(0.1)
    """
    return read(text, Aggregation)  # type: ignore[type-abstract]
