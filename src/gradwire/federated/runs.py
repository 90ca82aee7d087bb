"""Running an experiment in its folder: everything that is left of it, saved so that it can be stopped at any moment."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gradwire.errors import ConfigError, ProtocolError, StateError, UpdateError
from gradwire.federated.data.task import Task
from gradwire.federated.data.tasks import load_task
from gradwire.federated.experiment import Experiment, Variant
from gradwire.federated.folder import Checkpoint, RunFolder
from gradwire.federated.simulation import RoundMetrics, Simulation
from gradwire.files.store import write_state

__all__ = ["prepare", "run_experiment"]

_CHECKPOINT_SECONDS = 20.0


def prepare(experiment: Experiment) -> Task:
    """Load an experiment's data and check that every setting fits it, before anything is written.

    Raises:
        ConfigError: on data, model, partition or device that cannot be used.
    """
    task = load_task(experiment.data, Path(experiment.data_dir) if experiment.data_dir else None)
    with TemporaryDirectory() as folder:
        for variant in experiment.variants():
            compressor, seed = variant.compressor, experiment.seeds[0]
            with _saying_what_lacked(variant.label, Path(folder)):
                Simulation(variant.experiment, compressor, task, seed, None, variant.label, Path(folder)).close()
    return task


def run_experiment(
    folder: RunFolder,
    started: Callable[[Simulation, int, int], None],
    progressed: Callable[[Simulation, RoundMetrics], None],
    stop: Callable[[], bool],
    task: Task | None = None,
) -> bool:
    """Run what is left of an experiment, keeping its folder valid at every moment.

    Args:
        folder: from ``RunFolder.create`` or ``RunFolder.open``.
        started: called with each simulation, its number and the number of runs.
        progressed: called after each round.
        stop: asked after each round whether to end early; everything is saved then.
        task: from ``prepare``, or None to load it.

    Returns:
        True when all runs are complete, False when stopped early.

    Raises:
        ConfigError: on data or settings that cannot be used, also where they were changed since; where another process
            is at work in the folder.
        StateError: on a damaged checkpoint.
        UpdateError: where training diverges, naming the run; what was done is in the folder.
        MemoryError: where there is not enough memory, naming the run.
        OSError: where the disk is full, for instance; what was done before the last checkpoint is in the folder.
    """
    with folder.lock():
        return _run_all(folder, started, progressed, stop, task)


def _run_all(
    folder: RunFolder,
    started: Callable[[Simulation, int, int], None],
    progressed: Callable[[Simulation, RoundMetrics], None],
    stop: Callable[[], bool],
    task: Task | None,
) -> bool:
    done, saved = folder.progress()
    experiment, runs = folder.experiment, folder.runs
    if all((variant.label, seed) in done for variant, seed in runs):
        return True
    task = prepare(experiment) if task is None else task
    for number, (variant, seed) in enumerate(runs):
        name = (variant.label, seed)
        if name in done:
            continue
        with _saying_what_lacked(f"{variant.label}, seed {seed}", folder.path):
            simulation = _start(folder, variant, seed, task, saved)
        started(simulation, number, len(runs))
        try:
            stopped = _run_one(folder, simulation, progressed, stop)
        except BaseException:
            with suppress(OSError):  # a full disk holds no summary either
                _write_summary(folder, task, simulation, done)
            raise
        finally:
            simulation.close()
        _write_summary(folder, task, simulation, done)
        if stopped:
            return False
        done[name] = simulation.summary()
        folder.checkpoint.unlink(missing_ok=True)
        for file in folder.path.glob("members.sqlite*"):
            file.unlink()
    return True


def _start(folder: RunFolder, variant: Variant, seed: int, task: Task, saved: Checkpoint | None) -> Simulation:
    """Make a simulation, as it is before its first round or as the checkpoint has it."""
    simulation = Simulation(variant.experiment, variant.compressor, task, seed, None, variant.label, folder.path)
    if saved is None or saved.name != (variant.label, seed):
        simulation.forget()
        return simulation
    try:
        simulation.load_state_dict(saved.state)
    except StateError as error:
        simulation.close()
        raise StateError(f"{folder.checkpoint}: cannot be resumed: {error}") from error
    return simulation


def _write_summary(
    folder: RunFolder, task: Task, simulation: Simulation, done: Mapping[tuple[str, int], dict[str, Any]]
) -> None:
    folder.write_summary([*done.values(), simulation.summary()], describe(folder.experiment, task, simulation))


@contextmanager
def _threads(simulation: Simulation) -> Iterator[None]:
    """One torch thread while clients of a small model are trained in one batch: more only wait for each other."""
    before = torch.get_num_threads()
    if simulation.batched:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(experiment: Experiment, task: Task, simulation: Simulation) -> dict[str, Any]:
    """Return what summary.json says of the experiment beside its settings."""
    from gradwire import __version__

    return {
        **experiment.model_dump(exclude={"data_dir", "methods"}),
        "model": experiment.model or task.default_model,
        "learning_rate": experiment.step_size,
        "test_name": task.test_name,
        "num_parameters": simulation.num_parameters,
        "version": __version__,
    }


def _run_one(
    folder: RunFolder,
    simulation: Simulation,
    progressed: Callable[[Simulation, RoundMetrics], None],
    stop: Callable[[], bool],
) -> bool:
    """Run one simulation to its end; True when stopped before it.

    A checkpoint is written only once the lines of its rounds are on the disk.
    """
    last_saved = time.monotonic()
    with (
        _saying_where(simulation, folder.path),
        _threads(simulation),
        folder.metrics.open("a", encoding="utf-8") as file,
    ):
        for metrics in simulation.rounds():
            file.write(json.dumps(vars(metrics)) + "\n")
            progressed(simulation, metrics)
            stopping = stop() and not simulation.finished
            due = stopping or time.monotonic() - last_saved > _CHECKPOINT_SECONDS
            if due or simulation.finished:
                file.flush()
                os.fsync(file.fileno())
            if due and not simulation.finished:
                write_state(folder.checkpoint, {**simulation.state_dict(), "settings": folder.settings()})
                simulation.saved()
                last_saved = time.monotonic()
            if stopping:
                return True
    return False


@contextmanager
def _saying_where(simulation: Simulation, path: Path) -> Iterator[None]:
    """Put the run and the round in front of what an error says."""
    where = f"{simulation.label}, seed {simulation.seed}"
    try:
        with _saying_what_lacked(where, path):
            yield
    except (ConfigError, ProtocolError, StateError, UpdateError) as error:
        hint = "; did training diverge?" if isinstance(error, UpdateError) else ""
        raise type(error)(f"{where}, round {simulation.totals.rounds_done}: {error}{hint}") from error


@contextmanager
def _saying_what_lacked(where: str, path: Path) -> Iterator[None]:
    """Say whose memory ran out, whichever library asked for it, and on which disk there was no room."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocat" not in str(error):
            raise
        raise MemoryError(f"{where}: {str(error).strip().partition(chr(10))[0]}") from error
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
