"""Running jobs: each in a process of one torch thread, its line appended to the result file when it is done."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from threading import Thread

import gradwire as gw
from benchmarks.pareto.methods import Entry
from benchmarks.pareto.plan import Job, Run, Setup, due
from gradwire.errors import GradwireError
from gradwire.federated.data.task import Task
from gradwire.federated.data.tasks import load_task
from gradwire.federated.experiment import Experiment
from gradwire.federated.simulation import Simulation

_BEFORE_END = (5, 3, 1, 0)  # how many rounds before the end the model is evaluated: the accuracy is the mean
_HELD_OUT = 10  # every so-manieth training example is of the validation split


def run_all(
    found: dict[Job, Run],
    setups: Sequence[Setup],
    methods: Sequence[Entry],
    data_dir: str | None,
    workers: int,
    finished: Callable[[Run], None],
) -> None:
    """Run what is left of some tasks, a method after the other, each from its tuning to its report.

    Args:
        found: the runs so far; what is finished is added.
        setups: the tasks.
        methods: who is compared.
        data_dir: folder of the data files.
        workers: how many processes.
        finished: is called with each run.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
        at_work: dict[Future[Run], Job] = {}
        while True:
            tasks = _next(found, setups, methods, set(at_work.values()))
            while len(at_work) < workers and (task := next(tasks, None)) is not None:
                at_work[pool.submit(run, *task, data_dir)] = task[0]
            if not at_work:
                return
            for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                found[at_work.pop(future)] = future.result()
                finished(future.result())


def _next(
    found: dict[Job, Run], setups: Sequence[Setup], methods: Sequence[Entry], at_work: set[Job]
) -> Iterator[tuple[Job, Setup, Entry]]:
    """What can be begun now, in order."""
    for setup in setups:
        for entry in methods:
            for job in due(found, setup, entry):
                if job not in at_work:
                    yield job, setup, entry


def _begin() -> None:
    """Make ready a process, which ends where the one that it works for was killed."""
    import torch

    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def run(job: Job, setup: Setup, entry: Entry, data_dir: str | None = None) -> Run:
    """Train once.

    Args:
        job: what.
        setup: its task.
        entry: its method.
        data_dir: folder of the data files.

    Returns:
        A line of the result file; its accuracy is None where a number overflowed on the way.
    """
    spec, algorithm = entry.spec(job.setting), job.setting.algorithm
    experiment = Experiment.build(
        {**setup.values, "methods": [spec], "algorithms": [algorithm], "evaluate_every": setup.rounds}
    )
    began = time.perf_counter()
    simulation = Simulation(experiment, gw.parse(spec), _task(experiment.data, data_dir, job.split), job.seed)
    accuracies: list[float] = []
    failed = None
    try:
        for metrics in simulation.rounds():
            left = job.stop - 1 - metrics.round
            if left in _BEFORE_END:
                last = metrics.accuracy is not None
                accuracies.append(
                    metrics.accuracy if last else simulation.federation.trainer.evaluate(simulation.model).accuracy
                )
            if left == 0:
                break
    except GradwireError as error:
        failed = f"{type(error).__name__}: {error}"[:200]
    summary = simulation.summary()
    return {
        **job._asdict(),
        "spec": spec,
        "algorithm": algorithm,
        "accuracy": None if failed else statistics.mean(accuracies),
        "accuracies": accuracies,
        **{name: summary[name] for name in ("uplink_bytes", "downlink_bytes", "other_bytes", "rounds_done")},
        "num_sent": simulation.totals.num_sent,
        "num_parameters": simulation.num_parameters,
        "local_steps": experiment.local_steps,
        "seconds": round(time.perf_counter() - began, 1),
        **({"failed": failed} if failed else {}),
    }


@lru_cache(maxsize=1)
def _whole(data: str, data_dir: str | None) -> Task:
    return load_task(data, Path(data_dir) if data_dir else None)


@lru_cache(maxsize=2)
def _task(data: str, data_dir: str | None, split: str) -> Task:
    """A data set; for tuning, every tenth training example stands in for its held-out set, which is not there."""
    whole = _whole(data, data_dir)
    return validation_of(whole) if split == "validation" else whole


def validation_of(task: Task) -> Task:
    """A task that is evaluated on every tenth of its training examples, and trains on the others."""
    import torch

    held_out = torch.arange(len(task.train_inputs)) % _HELD_OUT == _HELD_OUT - 1
    return replace(
        task,
        train_inputs=task.train_inputs[~held_out],
        train_targets=task.train_targets[~held_out],
        test_inputs=task.train_inputs[held_out],
        test_targets=task.train_targets[held_out],
        test_name="validation tenth",
        groups=None if task.groups is None else task.groups[~held_out.numpy()],
    )
