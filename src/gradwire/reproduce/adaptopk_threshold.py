"""AdapTop-K beside one threshold for the whole run (Sahu et al. 2021, arXiv 2108.00951), at Top-K's bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradwire.compressors.compressor import Compressor, Round, State, Vector
from gradwire.compressors.feedback import ef
from gradwire.compressors.guarantee import Contractive, Guarantee
from gradwire.compressors.pipeline import Sparsifier
from gradwire.compressors.sparsify import num_kept_of, part_at, threshold
from gradwire.kernels import ops
from gradwire.payload import Part
from gradwire.reproduce.units import thinned

__all__ = ["train_at_equal_bytes"]

_TRIES = 5
_NEAR = 0.02


@dataclass(frozen=True, repr=False)
class _Noting(Sparsifier):
    """Top-k that notes the mean magnitude of what it sends."""

    density: float
    noted: list[float] = field(default_factory=list)

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Select the largest magnitudes."""
        part = part_at(update, ops.topk(update, num_kept_of(self.density, update.size)))
        self.noted.append(float(np.abs(part.numbers()).mean()))
        return [part]

    def guarantee(self, d: int) -> Guarantee:
        """As top-k's."""
        return Contractive(num_kept_of(self.density, d) / d)

    def __str__(self) -> str:
        return f"topk({self.density!r})"


def train_at_equal_bytes(settings: dict[str, Any], progress: Callable[[float], None]) -> dict[str, Any]:
    """Train Top-K, then with one threshold, changed until a run's uplink is within 2 % of Top-K's.

    The first threshold is the mean magnitude that Top-K sent: with error feedback the same mass then takes about as
    many entries. The next ones follow from what each run took.

    Args:
        settings: an experiment's with one seed, and ``density``; and ``data_dir``.
        progress: called with the share done, of the most runs there may be.

    Returns:
        What a training unit gives of the run nearest to Top-K's bytes, ``threshold``, ``topk_uplink_bytes``, and
        ``tries``: [threshold, bytes] of each run.
    """
    from gradwire.federated.experiment import Experiment
    from gradwire.federated.runs import describe, prepare
    from gradwire.federated.simulation import Simulation

    density = settings.pop("density")
    experiment = Experiment.build({**settings, "methods": [f"ef(topk({density!r}))"]}, "threshold")
    task, seed, total = prepare(experiment), experiment.seeds[0], experiment.rounds

    def train(compressor: Compressor, number: int) -> tuple[Simulation, list[Any]]:
        simulation, metrics = Simulation(experiment, compressor, task, seed), []
        for one in simulation.rounds():
            metrics.append(one)
            if one.round % 50 == 0:
                progress((number + (one.round + 1) / total) / (_TRIES + 1))
        return simulation, metrics

    noting = _Noting(density)
    wanted = train(ef(noting), 0)[0].totals.uplink_bytes
    tries: list[tuple[float, Simulation, list[Any]]] = []
    value = float(np.mean(noting.noted))
    for number in range(1, _TRIES + 1):
        tries.append((value, *train(ef(threshold(value)), number)))
        taken = [(value, simulation.totals.uplink_bytes) for value, simulation, _ in tries]
        if abs(taken[-1][1] / wanted - 1) <= _NEAR:
            break
        value = _next(taken, wanted)
    value, simulation, metrics = min(tries, key=lambda tried: abs(tried[1].totals.uplink_bytes - wanted))
    return {
        "summary": simulation.summary(),
        "experiment": describe(experiment, task, simulation),
        "accuracy": [[m.round, m.accuracy] for m in metrics if m.accuracy is not None],
        "loss": thinned([[m.round, m.loss] for m in metrics]),
        "uplink_bytes": thinned([[m.round, m.uplink_bytes] for m in metrics]),
        "threshold": value,
        "topk_uplink_bytes": wanted,
        "tries": taken,
    }


def _next(tries: Sequence[tuple[float, int]], wanted: int) -> float:
    """The threshold at which a line through the logs of the last two tries has the bytes wanted.

    With one try bytes are taken to fall as 1 / threshold.
    """
    value, taken = tries[-1]
    slope = -1.0
    if len(tries) > 1:
        before, had = tries[-2]
        if value != before and taken != had:
            slope = min(-0.25, math.log(taken / had) / math.log(value / before))
    return float(value * (wanted / taken) ** (1 / slope))
