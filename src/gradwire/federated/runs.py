"""A run's folder: experiment.toml, metrics.jsonl, summary.json, and what is needed to go on after a stop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gradwire.errors import ConfigError, ProtocolError, StateError, UpdateError
from gradwire.federated.data.task import Task
from gradwire.federated.data.tasks import load_task
from gradwire.federated.experiment import Experiment, Variant
from gradwire.federated.simulate import RoundMetrics, Simulation
from gradwire.files.store import load_state, save_state, write_atomically

__all__ = ["RunFolder", "prepare", "run_experiment"]

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
        return cls(path, Experiment.read(path / "experiment.toml"))

    @property
    def runs(self) -> list[tuple[Variant, int]]:
        """Each (variant, seed) of the experiment in the order they are run."""
        return [(variant, seed) for variant in self.experiment.variants() for seed in self.experiment.seeds]

    def finished(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Return the summary entries of runs that are complete, by (label, seed)."""
        file = self.path / "summary.json"
        if not file.is_file():
            return {}
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))["runs"]
            return {(r["label"], r["seed"]): r for r in entries if r["status"] == "complete"}
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
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
        """Drop lines of metrics.jsonl that a checkpoint does not cover, and a last line cut short.

        Raises:
            ConfigError: on a line that is no record of a round.
        """
        file = self.path / "metrics.jsonl"
        kept: list[str] = []
        lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
        for number, line in enumerate(lines):
            if number == len(lines) - 1 and not line.endswith(b"\n"):
                break
            try:
                if keep(json.loads(line)):
                    kept.append(line.decode())
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise ConfigError(f"{file}, line {number + 1}: no record of a round: {error}") from None
        write_atomically(file, "".join(kept).encode())

    def load_checkpoint(self) -> _Checkpoint | None:
        """Read the state of the run under way, if there is one.

        Raises:
            StateError: when it is damaged or of something else.
        """
        if not self.checkpoint.is_file():
            return None
        state = load_state(self.checkpoint)
        try:
            rounds_done = state["totals"]["rounds_done"]
            found = _Checkpoint(str(state["label"]), int(state["seed"]), int(rounds_done), state)
            if type(rounds_done) is not int:
                raise TypeError(f"rounds_done must be an integer, got {rounds_done!r}")
        except (LookupError, TypeError, ValueError) as error:
            raise StateError(f"{self.checkpoint}: not a run's state: {type(error).__name__}: {error}") from error
        return found


@dataclass(frozen=True)
class _Checkpoint:
    """A run under way: which, how far, and its whole state."""

    label: str
    seed: int
    rounds_done: int
    state: dict[str, Any]


def prepare(experiment: Experiment) -> Task:
    """Load an experiment's data and check that every setting fits it, before anything is written.

    Raises:
        ConfigError: on data, model, partition or device that cannot be used.
    """
    task = load_task(experiment.data, Path(experiment.data_dir) if experiment.data_dir else None)
    with TemporaryDirectory() as folder:
        for variant in experiment.variants():
            compressor, seed = variant.compressor, experiment.seeds[0]
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
        ConfigError: on data or settings that cannot be used.
        StateError: on a damaged checkpoint.
        UpdateError: where training diverges, naming the run; what was done is in the folder.
    """
    done = folder.finished()
    if all((variant.label, seed) in done for variant, seed in folder.runs):
        return True
    experiment = folder.experiment
    task = prepare(experiment) if task is None else task
    saved = folder.load_checkpoint()
    covered = (saved.label, saved.seed) if saved else None
    folder.cut_metrics(
        lambda r: (
            (r["label"], r["seed"]) in done
            or (saved is not None and (r["label"], r["seed"]) == covered and r["round"] < saved.rounds_done)
        )
    )
    for number, (variant, seed) in enumerate(folder.runs):
        name = (variant.label, seed)
        if name in done:
            continue
        simulation = Simulation(variant.experiment, variant.compressor, task, seed, None, variant.label, folder.path)
        if saved is not None and name == covered:
            try:
                simulation.load_state_dict(saved.state)
            except (StateError, LookupError, TypeError, ValueError) as error:
                raise StateError(f"{folder.checkpoint}: cannot be resumed: {error}") from error
        else:
            simulation.forget()
        started(simulation, number, len(folder.runs))
        try:
            stopped = _run_one(folder, simulation, progressed, stop)
        except (ConfigError, ProtocolError, StateError, UpdateError) as error:
            where = f"{variant.label}, seed {seed}, round {simulation.totals.rounds_done}"
            hint = "; did training diverge?" if isinstance(error, UpdateError) else ""
            raise type(error)(f"{where}: {error}{hint}") from error
        finally:
            entry = simulation.summary()
            simulation.close()
            folder.write_summary([*done.values(), entry], describe(experiment, task, simulation))
        if stopped:
            return False
        done[name] = entry
        folder.checkpoint.unlink(missing_ok=True)
        for file in folder.path.glob("members.sqlite*"):
            file.unlink()
    return True


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
    """Run one simulation to its end; True when stopped before it."""
    last_saved = time.monotonic()
    with _threads(simulation), (folder.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for metrics in simulation.rounds():
            file.write(json.dumps(asdict(metrics)) + "\n")
            progressed(simulation, metrics)
            stopping = stop() and not simulation.finished
            if stopping or time.monotonic() - last_saved > _CHECKPOINT_SECONDS:
                file.flush()
                save_state(folder.checkpoint, simulation.state_dict())
                simulation.saved()
                last_saved = time.monotonic()
            if stopping:
                return True
    return False
