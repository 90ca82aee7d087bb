"""What is run next: the same successive halving for every method, as a function of what was found so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.pareto.methods import DENSE, PLAIN, Entry, Setting

TUNING_SEEDS = (0, 1)
REPORT_SEEDS = (10, 11, 12, 13, 14)
NUM_SECOND = 6  # settings of a method that run to the end
NUM_THIRD = 2  # of these, how many run with the second seed
Run = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """A task and how it is dealt to clients.

    Attributes:
        name: what ``--only`` calls it.
        title: what pages call it.
        values: settings of the experiment.
        num_candidates: how many settings of each method are tried, the best ones where all were; None: all.
    """

    name: str
    title: str
    values: Mapping[str, Any] = field(hash=False)
    num_candidates: int | None = None

    @property
    def rounds(self) -> int:
        """How many rounds a run has."""
        rounds: int = self.values["rounds"]
        return rounds


_MNIST = {"data": "mnist", "clients": 10, "rounds": 100}
TUNED = Setup("mnist-dirichlet", "MNIST, Dirichlet(0.3)", {**_MNIST, "partition": "dirichlet:0.3"})
SETUPS = (
    TUNED,
    Setup("mnist-iid", "MNIST, iid", {**_MNIST, "partition": "iid"}, 2),
    Setup("mnist-shards", "MNIST, two shards a client", {**_MNIST, "partition": "shards:2"}, 2),
    Setup(
        "mnist-partial",
        "MNIST, Dirichlet(0.3), 10 of 50 clients a round",
        {**_MNIST, "partition": "dirichlet:0.3", "clients": 50, "participation": 0.2, "rounds": 150},
        2,
    ),
    Setup(
        "cifar10",
        "CIFAR-10, Dirichlet(0.3)",
        {
            "data": "cifar10",
            "model": "small_cnn",
            "clients": 10,
            "rounds": 100,
            "partition": "dirichlet:0.3",
            "learning_rate": 0.05,
        },
        2,
    ),
    Setup(
        "shakespeare",
        "tinyshakespeare, by speakers",
        {"data": "shakespeare", "clients": 10, "rounds": 60, "partition": "natural", "batch_size": 8},
        2,
    ),
)


class Job(NamedTuple):
    """One run.

    Attributes:
        setup: its name.
        split: ``validation`` or ``test``: what it is evaluated on.
        family: of the method.
        level: of the method.
        setting: what is tuned.
        seed: of the run.
        stop: after how many rounds it ends.
    """

    setup: str
    split: str
    family: str
    level: str
    setting: Setting
    seed: int
    stop: int


Found = Mapping[Job, Run]


def job_of(run: Run) -> Job:
    """The job that a line of the result file is of."""
    return Job(**{name: run[name] for name in Job._fields} | {"setting": Setting(*run["setting"])})


def found_of(runs: Iterable[Run]) -> dict[Job, Run]:
    """Runs by what they are."""
    return {job_of(run): run for run in runs}


def halving(found: Found, setup: Setup, entry: Entry) -> tuple[list[list[Job]], list[Setting]]:
    """The tuning of a method, on the validation split, as far as what was found says what it is.

    Args:
        found: the runs so far.
        setup: the task.
        entry: the method.

    Returns:
        The stages so far: all settings for a quarter of the rounds, some to the end, the best of these with a second
        seed; or, where not all are tried, those that were best where they were, to the end. And, once all of that is
        found, the settings that ran to the end, the best one first: else none.
    """

    def jobs(settings: Iterable[Setting], seed: int, stop: int) -> list[Job]:
        return [Job(setup.name, "validation", *entry.names, setting, seed, stop) for setting in settings]

    (first, second), end = TUNING_SEEDS, setup.rounds
    if setup.num_candidates is not None:
        best = halving(found, TUNED, entry)[1][: setup.num_candidates]
        only = jobs(best, first, end)
        return [only], ranked(found, only) if all(job in found for job in only) else []
    stages = [jobs(entry.settings(), first, end // 4)]
    if all(job in found for job in stages[0]):
        stages.append(jobs(of_each_kind(ranked(found, stages[0]), NUM_SECOND), first, end))
    if all(job in found for stage in stages for job in stage) and len(stages) == 2:
        stages.append(jobs(ranked(found, stages[1])[:NUM_THIRD], second, end))
    if len(stages) < 3 or not all(job in found for job in stages[2]):
        return stages, []
    finalists = {job.setting for job in stages[2]}
    both = ranked(found, [job for stage in stages[1:] for job in stage if job.setting in finalists])
    return stages, both + [s for s in ranked(found, stages[1]) if s not in finalists]


def report(found: Found, setup: Setup, entry: Entry) -> list[Job]:
    """The runs on the test set that a method is judged by, once it is tuned; those of plain dense at once."""
    chosen = halving(found, setup, entry)[1][:1]
    settings = dict.fromkeys([PLAIN, *chosen] if entry == DENSE else chosen)
    return [
        Job(setup.name, "test", *entry.names, setting, seed, setup.rounds)
        for setting in settings
        for seed in REPORT_SEEDS
    ]


def ranked(found: Found, jobs: Iterable[Job]) -> list[Setting]:
    """The settings of some jobs, those of the highest mean accuracy first; one that failed is last."""
    scores: dict[Setting, list[float]] = {}
    for job in jobs:
        scores.setdefault(job.setting, []).append(found[job]["accuracy"] or 0.0)
    return sorted(scores, key=lambda setting: -sum(scores[setting]) / len(scores[setting]))


def of_each_kind(settings: Sequence[Setting], count: int) -> list[Setting]:
    """The best of each kind of momentum, and the best of the others up to a number; in the order given."""
    firsts = {next(s for s in settings if s.kind == kind) for kind in dict.fromkeys(s.kind for s in settings)}
    others = [s for s in settings if s not in firsts][: max(0, count - len(firsts))]
    return [s for s in settings if s in firsts or s in others]


def due(found: Found, setup: Setup, entry: Entry) -> list[Job]:
    """What is to be run of a method now: the missing jobs of its first stage that has any."""
    for stage in (*halving(found, setup, entry)[0], report(found, setup, entry)):
        if missing := [job for job in stage if job not in found]:
            return missing
    return []


def num_runs(found: Found, setup: Setup, entry: Entry) -> tuple[int, int]:
    """How many runs a method had, and how many it is to have in all."""
    stages, best = halving(found, setup, entry)
    jobs = {job for stage in (*stages, report(found, setup, entry)) for job in stage}
    done = sum(job in found for job in jobs)
    if best:
        return done, len(jobs)
    num = len(entry.settings())
    tuning = setup.num_candidates or num + min(num, NUM_SECOND) + NUM_THIRD
    return done, tuning + len(REPORT_SEEDS) * (2 if entry == DENSE else 1)
