"""What is run: dense with some learning rates, with a seed of its own; then every method, as far as dense's best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gradwire as gw

METHODS = (
    "dense()",
    "ef(topk(0.01) | fractional(16))",
    "qsgd(4)",
    "momentum(dither(density=0.01, golden=True), 0.8, gain=0.5)",
    "momentum(dense(), 0.8, gain=0.5)",
)
DENSE = METHODS[0]
SEEDS = (0, 1, 2)
TUNING_SEED = 100
Run = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A model and how it is trained.

    Attributes:
        name: what results call it.
        part: what ``--only`` calls it.
        title: what the page calls it.
        rates: learning rates that dense is tried with.
        rounds: of a run that is shown.
        tuning_rounds: of one that is not.
        evaluations: how many there are in a run that is shown.
        settings: of the experiment, the same for both.
    """

    name: str
    part: str
    title: str
    rates: tuple[float, ...]
    rounds: int
    tuning_rounds: int
    evaluations: int
    settings: Mapping[str, Any] = field(hash=False)


def _settings(clients: int, local_steps: int, batch_size: int, warmup_rounds: int) -> dict[str, Any]:
    return {
        "clients": clients,
        "local_steps": local_steps,
        "batch_size": batch_size,
        "warmup_rounds": warmup_rounds,
        "partition": "natural",
        "schedule": "cosine",
    }


KINDS = (
    Kind("char", "char", "the character transformer", (0.4, 1.0), 120, 60, 15, _settings(5, 20, 2, 10)),
    Kind("lora", "lora", "adapters alone", (0.4, 1.0), 30, 8, 10, _settings(6, 5, 4, 3)),
    Kind("full", "lora", "all parameters", (0.012, 0.03), 30, 8, 10, _settings(6, 5, 4, 3)),
)
PARTS = tuple(dict.fromkeys(kind.part for kind in KINDS))


class Job(NamedTuple):
    """One run.

    Attributes:
        kind: its name.
        method: the spec.
        seed: ``TUNING_SEED``, or one that is shown.
        learning_rate: of local SGD, before the schedule.
        rounds: how many.
    """

    kind: str
    method: str
    seed: int
    learning_rate: float
    rounds: int


def found_of(runs: Iterable[Run]) -> dict[Job, Run]:
    """Runs by what they are of."""
    return {Job(*(run[name] for name in Job._fields)): run for run in runs}


def tuning(kind: Kind) -> list[Job]:
    """The runs that a learning rate is chosen by."""
    return [Job(kind.name, DENSE, TUNING_SEED, rate, kind.tuning_rounds) for rate in kind.rates]


def chosen(found: Mapping[Job, Run], kind: Kind) -> float | None:
    """Dense's learning rate of the least loss, the smaller one of equals; None while a run is missing."""
    jobs = tuning(kind)
    if not all(job in found for job in jobs):
        return None
    return min(jobs, key=lambda job: (_loss(found[job]), job.learning_rate)).learning_rate


def report(found: Mapping[Job, Run], kind: Kind, method: str) -> list[Job]:
    """The runs that are shown of a method, once dense's learning rate is known."""
    rate = chosen(found, kind)
    if rate is None:
        return []
    return [Job(kind.name, method, seed, round(rate / reach(method), 9), kind.rounds) for seed in SEEDS]


def reach(method: str) -> float:
    """How far a method goes in the end for a constant update, against that update: more than 1 where momentum gains."""
    compressor = gw.parse(method)
    gains = isinstance(compressor, gw.momentum) and compressor.gain is not None
    return compressor.gain / (1 - compressor.mu) if gains else 1.0


def due(found: Mapping[Job, Run], kinds: Sequence[Kind] = KINDS) -> Job | None:
    """What is run next: a seed of every method of every kind before the second of any; None when all is done."""
    return next(_missing(found, kinds), None)


def _missing(found: Mapping[Job, Run], kinds: Sequence[Kind]) -> Iterator[Job]:
    for number in range(len(SEEDS)):
        for kind in kinds:
            yield from (job for job in tuning(kind) if job not in found)
            for method in METHODS:
                yield from (job for job in report(found, kind, method)[number : number + 1] if job not in found)


def _loss(run: Run) -> float:
    return math.inf if run["loss"] is None else run["loss"]
