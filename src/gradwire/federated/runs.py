"""A run's folder: experiment.toml, metrics.jsonl, summary.json, and what is needed to go on after a stop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradwire.compressor import Compressor
from gradwire.errors import ConfigError, StateError
from gradwire.federated.experiment import Experiment, read_toml
from gradwire.federated.simulate import RoundMetrics, Simulation
from gradwire.federated.tasks import Task, load_task
from gradwire.store import load_state, save_state, write_atomically

__all__ = ["RunFolder", "run_experiment"]

_CHECKPOINT_SECONDS = 20.0


class RunFolder:
    """Where a run's files are, and how far it got.

    Attributes:
        path: the folder.
        experiment: the settings the run was started with.
    """

    def __init__(self, path: Path, experiment: Experiment) -> None:
        self.path = path
        self.experiment = experiment

    @classmethod
    def create(cls, path: Path, experiment: Experiment) -> RunFolder:
        """Make the folder of a new run.

        Raises:
            ConfigError: when it cannot be written or holds anything already; nothing is overwritten.
        """
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise ConfigError(
                    f"--out {path}: exists and is not an empty folder; choose another, or --resume {path}"
                )
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(path / "experiment.toml", experiment.toml().encode())
        except OSError as error:
            raise ConfigError(f"--out {path}: cannot be written: {error.strerror}") from None
        return cls(path, experiment)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Find the folder of a run that was started before.

        Raises:
            ConfigError: when it is no run's folder.
        """
        if not (path / "experiment.toml").is_file():
            raise ConfigError(f"--resume {path}: no experiment.toml there; expected the folder of an earlier run")
        file = path / "experiment.toml"
        return cls(path, Experiment.build(read_toml(file), str(file)))

    def discard_if_empty(self) -> None:
        """Remove the folder of a run that failed before its first round: nothing half-made stays behind."""
        names = {file.name for file in self.path.iterdir()}
        if names <= {"experiment.toml", "metrics.jsonl"} and not self._num_metrics_bytes():
            for name in names:
                (self.path / name).unlink()
            self.path.rmdir()

    def _num_metrics_bytes(self) -> int:
        file = self.path / "metrics.jsonl"
        return file.stat().st_size if file.is_file() else 0

    @property
    def runs(self) -> list[tuple[Compressor, int]]:
        """Each (method, seed) of the experiment in the order they are run."""
        return [(method, seed) for method in self.experiment.compressors() for seed in self.experiment.seeds]

    def finished(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Return the summary entries of runs that are complete, by (method, seed)."""
        file = self.path / "summary.json"
        if not file.is_file():
            return {}
        try:
            entries = json.loads(file.read_text())["runs"]
            return {(r["method"], r["seed"]): r for r in entries if r["status"] == "complete"}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file}: not a run's summary: {error}") from None

    @property
    def checkpoint(self) -> Path:
        """The state of the run under way."""
        return self.path / "checkpoint.safetensors"

    def write_summary(self, entries: list[dict[str, Any]], described: dict[str, Any]) -> None:
        """Replace summary.json."""
        text = json.dumps({"experiment": described, "runs": entries}, indent=1)
        write_atomically(self.path / "summary.json", (text + "\n").encode())

    def cut_metrics(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop lines of metrics.jsonl that a checkpoint does not cover, and a last line cut short."""
        file = self.path / "metrics.jsonl"
        kept: list[str] = []
        for line in file.read_text().splitlines() if file.is_file() else []:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if keep(record):
                kept.append(line)
        write_atomically(file, "".join(f"{line}\n" for line in kept).encode())


def run_experiment(
    folder: RunFolder,
    started: Callable[[Simulation, int, int], None],
    progressed: Callable[[Simulation, RoundMetrics], None],
    stop: Callable[[], bool],
) -> bool:
    """Run what is left of an experiment, keeping its folder valid at every moment.

    Args:
        folder: from ``RunFolder.create`` or ``RunFolder.open``.
        started: called with each simulation, its number and the number of runs.
        progressed: called after each round.
        stop: asked after each round whether to end early; everything is saved then.

    Returns:
        True when all runs are complete, False when stopped early.

    Raises:
        ConfigError: on data or settings that cannot be used.
    """
    done = folder.finished()
    if all((str(method), seed) in done for method, seed in folder.runs):
        return True
    experiment = folder.experiment
    task = load_task(experiment.data, Path(experiment.data_dir) if experiment.data_dir else None)
    saved = load_state(folder.checkpoint) if folder.checkpoint.is_file() else None
    under_way = (saved["method"], saved["seed"], saved["totals"]["rounds_done"]) if saved else ("", -1, 0)
    folder.cut_metrics(
        lambda r: (
            (r["method"], r["seed"]) in done
            or ((r["method"], r["seed"]) == under_way[:2] and r["round"] < under_way[2])
        )
    )
    for number, (method, seed) in enumerate(folder.runs):
        if (str(method), seed) in done:
            continue
        simulation = Simulation(experiment, method, task, seed)
        if saved is not None and (str(method), seed) == under_way[:2]:
            try:
                simulation.load_state_dict(saved)
            except (KeyError, TypeError, ValueError) as error:
                raise StateError(f"{folder.checkpoint}: cannot be resumed: {error}") from error
        started(simulation, number, len(folder.runs))
        stopped = _run_one(folder, simulation, progressed, stop)
        entry = simulation.summary()
        entries = [*done.values(), entry]
        folder.write_summary(entries, describe(experiment, task, simulation))
        if stopped:
            return False
        done[(str(method), seed)] = entry
        folder.checkpoint.unlink(missing_ok=True)
    return True


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
    """Run one simulation to its end; True when stopped before it."""
    last_saved = time.monotonic()
    with (folder.path / "metrics.jsonl").open("a") as file:
        for metrics in simulation.rounds():
            file.write(json.dumps(asdict(metrics)) + "\n")
            progressed(simulation, metrics)
            finished = simulation.totals.rounds_done == folder.experiment.rounds
            stopping = stop() and not finished
            if stopping or time.monotonic() - last_saved > _CHECKPOINT_SECONDS:
                file.flush()
                save_state(folder.checkpoint, simulation.state_dict())
                last_saved = time.monotonic()
            if stopping:
                return True
    return False
