"""One run: the simulator's own character transformer, or a model from outside through ``own_task`` and ``simulate``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gradwire as gw
from benchmarks.language.plan import KINDS, TUNING_SEED, Job, Run
from gradwire.errors import UpdateError
from gradwire.federated import simulate
from gradwire.federated.data.task import Task
from gradwire.federated.data.tasks import load_task
from gradwire.federated.experiment import Experiment
from gradwire.federated.simulation import Simulation

_HELD_OUT = 10  # every so-manieth training example is what learning rates are judged by

Trained = tuple[list[dict[str, Any]], dict[str, Any]]


def run(job: Job, data_dir: str | None) -> Run:
    """Train once; bytes are those of all clients and rounds."""
    torch.set_num_threads(1)
    kind = next(kind for kind in KINDS if kind.name == job.kind)
    tuned = job.seed == TUNING_SEED
    settings = {
        **kind.settings,
        "learning_rate": job.learning_rate,
        "rounds": job.rounds,
        "evaluate_every": job.rounds if tuned else max(1, job.rounds // kind.evaluations),
    }
    task, about = _task(job.kind, data_dir)
    began = time.perf_counter()
    try:
        train = _of_ours if job.kind == "char" else _of_others
        rounds, summary = train(job, held_out(task) if tuned else task, settings)
    except UpdateError as error:
        rounds, summary = [], {"failed": str(error)[:200]}
    return {**job._asdict(), **about, **told(rounds, summary), "seconds": round(time.perf_counter() - began, 1)}


def told(rounds: Sequence[dict[str, Any]], summary: dict[str, Any]) -> Run:
    """What is kept of a run: at each evaluation the round, the bytes up and down so far, loss and accuracy."""
    points, up, down = [], 0, 0
    for metrics in rounds:
        up, down = up + metrics["uplink_bytes"], down + metrics["downlink_bytes"]
        if metrics["test_loss"] is not None:
            points.append([metrics["round"] + 1, up, down, metrics["test_loss"], metrics["accuracy"]])
    names = ("other_bytes", "dense_uplink_bytes", "failed")
    return {
        "loss": points[-1][3] if points and "failed" not in summary else None,
        "uplink_bytes": up,
        "downlink_bytes": down,
        **{name: summary[name] for name in names if name in summary},
        "points": points,
    }


def held_out(task: Task) -> Task:
    """The task without a tenth of its training examples, which are what a model is judged by."""
    apart = torch.arange(len(task.train_inputs)) % _HELD_OUT == 0
    groups = None if task.groups is None else np.asarray(task.groups)[~apart.numpy()]
    return replace(
        task,
        train_inputs=task.train_inputs[~apart],
        train_targets=task.train_targets[~apart],
        test_inputs=task.train_inputs[apart],
        test_targets=task.train_targets[apart],
        groups=groups,
    )


@cache
def _task(kind: str, data_dir: str | None) -> tuple[Task, dict[str, Any]]:
    """A kind's task, and what the page says of it."""
    task = load_task("shakespeare", Path(data_dir) if data_dir else None)
    if kind == "char":
        return task, {}
    from benchmarks.language import tuned

    return tuned.task(task, adapters=kind == "lora")


def _of_ours(job: Job, task: Task, settings: dict[str, Any]) -> Trained:
    """In one batch: with a few examples a client that is faster, large as the model is for it."""
    experiment = Experiment.build({"data": "shakespeare", "methods": [job.method], **settings})
    simulation = Simulation(experiment, gw.parse(job.method), task, job.seed, batched=True)
    rounds = [asdict(metrics) for metrics in simulation.rounds()]
    return rounds, simulation.summary()


def _of_others(job: Job, task: Task, settings: dict[str, Any]) -> Trained:
    results = simulate(task, job.method, seeds=[job.seed], show=False, **settings)
    return results.rounds, results.runs[0]
