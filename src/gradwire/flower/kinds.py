"""Kinds: what an inner strategy asks of replies, and which specs it can work with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedXgbBagging,
    FedXgbCyclic,
    FedYogi,
    Strategy,
)

from gradwire.compressors.compressor import Compressor
from gradwire.compressors.dithering import NOISY_BITS, noisy_dither
from gradwire.compressors.papers.regtopk import regtopk
from gradwire.compressors.pipeline import Sparsifier
from gradwire.compressors.sparsify import dense, topk
from gradwire.errors import ConfigError

__all__ = ["check_asynchronous", "check_strategy", "owner_of", "takes_mean", "warnings_of"]

_MEANS = [s.aggregate_train for s in (FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad)]
_ADAPTIVE = (FedAdam, FedYogi, FedAdagrad)
_CLIPPED_BY_CLIENTS = (DifferentialPrivacyClientSideAdaptiveClipping, DifferentialPrivacyClientSideFixedClipping)


def takes_mean(inner: Strategy) -> bool:
    """Tell whether a strategy asks for no more than the weighted mean, so that it may be handed that alone."""
    return type(inner).aggregate_train in _MEANS


def owner_of(inner: Strategy, name: str) -> Any:
    """Find who has an attribute: a strategy, or one that it wraps; None where nobody has."""
    return next((strategy for strategy in _chain(inner) if hasattr(strategy, name)), None)


def check_strategy(inner: Any, spec: Compressor, downlink: Compressor, max_staleness: int) -> None:
    """Check that a strategy and a spec can work together.

    Args:
        inner: the strategy.
        spec: what compresses the way up.
        downlink: what compresses the way down.
        max_staleness: how late payloads may be counted.

    Raises:
        ConfigError: where they cannot.
    """
    if not isinstance(inner, Strategy):
        raise ConfigError(f"inner must be a strategy of flwr.serverapp.strategy, got {type(inner).__name__}")
    name = type(inner).__name__
    if any(isinstance(strategy, (FedXgbBagging, FedXgbCyclic)) for strategy in _chain(inner)):
        raise ConfigError(f"{name} aggregates trees, not vectors: there is nothing to compress")
    if owner_of(inner, "weighted_by_key") is None:
        raise ConfigError(f"{name} must say by its weighted_by_key which metric is a client's weight")
    if spec.mirrored:
        raise ConfigError(
            f"{spec} needs every client in every round and no disk lost, which Flower does not promise; use ef"
        )
    plain = type(inner).aggregate_train is FedAvg.aggregate_train and downlink == dense()
    if any(isinstance(part, regtopk) for part in _parts(spec)) and not plain:
        raise ConfigError(
            f"{spec} compares what it sent with the mean that came of it: {name} with downlink {downlink} applies "
            "something else; use FedAvg or FedProx and no downlink"
        )
    clipped = any(isinstance(strategy, _CLIPPED_BY_CLIENTS) for strategy in _chain(inner))
    if clipped and not isinstance(spec, (dense, topk)):
        raise ConfigError(
            f"{name} counts on what a client sends being no longer than its clipped update, which {spec} does not "
            "keep: use topk(...) or dense() without feedback or quantizer, or clip at the server"
        )
    if not takes_mean(inner) and max_staleness:
        raise ConfigError(f"{name} looks at each reply of a round: max_staleness must be 0, got {max_staleness}")


def check_asynchronous(inner: Strategy, spec: Compressor) -> None:
    """Check that a strategy and a spec can work where no round waits for anybody.

    Args:
        inner: the strategy.
        spec: what compresses the way up.

    Raises:
        ConfigError: where they cannot.
    """
    name = type(inner).__name__
    if not takes_mean(inner):
        raise ConfigError(
            f"{name} looks at each reply of a round, and asynchronous replies start from models of any age: use a "
            "strategy that takes the mean, such as FedAvg"
        )
    if spec.needs_mean:
        raise ConfigError(f"{spec} compares what it sent with the clients' mean, and late payloads are not averaged")


def warnings_of(inner: Strategy, spec: Compressor, d: int | None = None) -> list[str]:
    """Say what works and not as well as one might think.

    Args:
        inner: the strategy.
        spec: what compresses the way up.
        d: number of parameters, where it is known.

    Returns:
        A line for each.
    """
    name = type(inner).__name__
    said: list[str] = []
    if type(inner).start is not Strategy.start:
        said.append(f"{name} has a start of its own, which is not run: CompressedStrategy's is")
    if not takes_mean(inner):
        said.append(f"{name} looks at each reply, which is made dense for it: that takes a model's memory a client")
    noisy, momentum = noisy_dither(spec, d), _momentum(inner, "server_momentum")
    if noisy is not None and 0 < momentum < 1:
        rate = getattr(owner_of(inner, "server_learning_rate"), "server_learning_rate", 1.0)
        if (gain := float(rate) / (1 - momentum)) > 1:
            said.append(
                f"{name} has a momentum of {momentum:g}, which multiplies the rounding noise of {noisy} by {gain:g}: "
                f"below {NOISY_BITS:g} bits a parameter that may grow until training is lost; take 0.02 to 0.04 bits, "
                "as dither(density=0.004) to dither(density=0.008), or a server_learning_rate of at most 1 - momentum"
            )
    sparse = any(isinstance(part, Sparsifier) and not isinstance(part, dense) for part in _parts(spec))
    if not sparse:
        return said
    if any(isinstance(strategy, _ADAPTIVE) for strategy in _chain(inner)):
        said.append(
            f"{name} divides each coordinate by its past size: of one that {spec} sends rarely, what was gathered "
            "meanwhile is divided away, and training is slower than without compression; take a tau of about the root "
            "mean square of a round's mean, and eta some ten times that: 0.01 and 0.1 in docs/flower.md"
        )
    if momentum := _momentum(inner, "beta_1", "server_momentum"):
        said.append(
            f"{name} has a momentum of {momentum:g}: what {spec} sends comes late already, and momentum spreads it "
            "over the rounds after; without it (beta_1=0, server_momentum=0) training is faster"
        )
    return said


def _momentum(inner: Strategy, *names: str) -> float:
    """What a strategy, or one that it wraps, keeps of its last step; 0 for nothing."""
    found = (getattr(strategy, name, None) for strategy in _chain(inner) for name in names)
    return next((float(value) for value in found if value), 0.0)


def _chain(inner: Any) -> Iterator[Any]:
    while inner is not None:
        yield inner
        inner = getattr(inner, "strategy", None)


def _parts(spec: Compressor) -> Iterator[Compressor]:
    """All compressors that a spec is made of, itself included."""
    yield spec
    if is_dataclass(spec):
        for f in fields(spec):
            value = getattr(spec, f.name)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Compressor):
                    yield from _parts(part)
