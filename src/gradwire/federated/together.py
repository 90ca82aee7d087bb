"""Which settings go together, and which do nothing without others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from gradwire.compressors.compressor import Compressor
from gradwire.compressors.dithering import NOISY_BITS, noisy_dither
from gradwire.errors import ConfigError
from gradwire.federated.algorithms import fedavgm, parse_algorithm
from gradwire.federated.algorithms.algorithm import Algorithm
from gradwire.federated.settings import Settings

__all__ = ["NEEDS", "check_needs", "check_together", "warn_of_noise"]

_LOSSES = ("packet_loss", "packet_duplication", "packet_reordering", "disconnection")


class _Need(NamedTuple):
    """What a setting needs to be read in a run: how that is said, and whether a run has it."""

    reason: str
    met: Callable[[Settings], bool]


_PACKETS = _Need("is about packets: set mtu, for instance 1200", lambda e: e.mtu is not None)
_REGIONS = _Need("does nothing without regions", lambda e: e.regions > 0)

# all other settings are read in every run
NEEDS: dict[str, _Need] = {
    **dict.fromkeys(_LOSSES, _PACKETS),
    "reorder_seconds": _Need(
        "does nothing without packet_loss or packet_reordering",
        lambda e: e.packet_loss > 0 or e.packet_reordering > 0,
    ),
    "forward": _REGIONS,
    "region_link": _REGIONS,
    "warmup_from": _Need("does nothing without warmup_rounds", lambda e: e.warmup_rounds > 0),
    "schedule": _Need("does nothing where all rounds are the warm-up's", lambda e: e.warmup_rounds < e.rounds),
    "weighting": _Need(
        "does nothing to asynchronous algorithms, which weigh payloads by age", lambda e: not e.algorithm.asynchronous
    ),
    "examples_per_second": _Need(
        "is for asynchronous algorithms such as fedbuff()", lambda e: e.algorithm.asynchronous
    ),
    "max_staleness": _Need("is for asynchronous algorithms", lambda e: e.algorithm.asynchronous),
    "deadline_seconds": _Need(
        "does nothing on ideal links without budgets or lost packets",
        lambda e: e.links != ["ideal()"] or e.budgets != ["none()"] or any(getattr(e, name) for name in _LOSSES),
    ),
    "stop_at_target": _Need("needs target_accuracy", lambda e: e.target_accuracy is not None),
}


def check_needs(names: Iterable[str], made: Settings, runs: Sequence[Settings], source: str) -> None:
    """Refuse settings that no run reads.

    Args:
        names: those that were given.
        made: their values.
        runs: every run they are for: one method, algorithm, kind of links and budget each.
        source: where they are from, for the error.

    Raises:
        ConfigError: on one that is not its default and read in none of the runs.
    """
    for name in names:
        need = NEEDS.get(name)
        changed = getattr(made, name) != type(made).model_fields[name].default
        if need is not None and changed and not any(need.met(run) for run in runs):
            raise ConfigError(f"{source}: {name} {need.reason}")


def check_together(made: Settings, source: str) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ConfigError: on some that do.
    """
    algorithms = [parse_algorithm(text) for text in made.algorithms]
    late = [str(a) for a in algorithms if a.asynchronous]
    controls = [str(a) for a in algorithms if a.uses_controls]
    budgets = [text for text in made.budgets if text != "none()"]
    refused = [
        (
            budgets and made.mtu is not None,
            f"{', '.join(budgets)} and mtu: packets send what fits the deadline as it is",
        ),
        (budgets and made.deadline_seconds is None, f"{', '.join(budgets)} needs deadline_seconds"),
        (controls and made.mtu is not None, f"{', '.join(controls)} sends control variates whole: no mtu"),
        (late and made.regions, f"{', '.join(late)} has no rounds for regions to forward in"),
        (controls and made.regions, f"{', '.join(controls)} keeps its control variates at one server: no regions"),
        (late and made.mtu is not None, f"{', '.join(late)} sends payloads whole: no mtu"),
        (
            made.aggregation != "mean()" and (late or made.mtu is not None or budgets),
            f"{made.aggregation} needs whole payloads of one round over the same coordinates: "
            "no asynchronous algorithm, mtu or budgets",
        ),
        (
            made.deadline_seconds is not None and late and len(budgets) < len(made.budgets),
            f"deadline_seconds means nothing to {', '.join(late)} without budgets",
        ),
        (made.regions > made.clients, f"regions must be at most clients {made.clients}, got {made.regions}"),
    ]
    reason = next((text for wrong, text in refused if wrong), None)
    if reason is not None:
        raise ConfigError(f"{source}: {reason}")


def warn_of_noise(algorithm: Algorithm, compressor: Compressor, d: int) -> None:
    """Warn where a server's momentum would multiply rounding noise that is large already.

    Args:
        algorithm: the run's.
        compressor: its method.
        d: number of parameters.
    """
    found = noisy_dither(compressor, d)
    if found is None or not isinstance(algorithm, fedavgm) or not algorithm.momentum:
        return
    gain = algorithm.server_learning_rate / (1 - algorithm.momentum)
    if gain > 1:
        warnings.warn(
            f"{algorithm} multiplies the rounding noise of {found} by {gain:g}, and below {NOISY_BITS:g} bits a "
            "parameter that may grow until training is lost: take 0.02 to 0.04 bits, as dither(density=0.004) to "
            "dither(density=0.008), or a server_learning_rate of at most 1 - momentum",
            stacklevel=3,
        )
