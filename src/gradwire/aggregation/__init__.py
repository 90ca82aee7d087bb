"""Many payloads -> one: means, medians, an analog channel, and the text that names them."""

from gradwire.aggregation.text import Aggregation, mean, median, over_the_air, parse_aggregation, trimmed_mean

__all__ = ["Aggregation", "mean", "median", "over_the_air", "parse_aggregation", "trimmed_mean"]
