"""Compressors that compare the reference with what they sent: what a server must leave as it is for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradwire.aggregation.aggregator import Aggregator
from gradwire.compressors.compressor import Compressor
from gradwire.compressors.guarantee import Contractive
from gradwire.errors import ConfigError

__all__ = ["check_mean"]


def check_mean(
    compressor: Compressor,
    d: int,
    *,
    aggregator: Aggregator | None = None,
    step: Callable[..., Any] | None = None,
    downlink: Compressor | None = None,
    forward: Compressor | None = None,
) -> None:
    """Refuse what makes the reference anything but the clients' mean, where a compressor needs it to be.

    Args:
        compressor: what the clients compress with.
        d: number of parameters.
        aggregator: what adds payloads up.
        step: the server's step, or None.
        downlink: what compresses the way down.
        forward: what compresses the way from a region to the server.

    Raises:
        ConfigError: where ``compressor.needs_mean`` and one of them changes the mean.
    """
    if not compressor.needs_mean:
        return
    why = f"{compressor} compares what it sent with the clients' mean, which is what every end must be told"
    if step is not None:
        raise ConfigError(f"{why}: no step can come between, got {step}; use step=None, or topk")
    if aggregator is not None and type(aggregator) is not Aggregator:
        raise ConfigError(f"{why}: the aggregator must be the mean, got {type(aggregator).__name__}; or use topk")
    for name, road in (("downlink", downlink), ("forward", forward)):
        if road is not None and road.guarantee(max(d, 1)) != Contractive(1.0):
            raise ConfigError(f"{why}: {name} must lose nothing, got {road}; use dense(), or topk for the clients")
