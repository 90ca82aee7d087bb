"""A run's folder: experiment.toml, metrics.jsonl, summary.json, and what is needed to go on after a stop."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradwire.errors import ConfigError, StateError
from gradwire.federated.experiment import Experiment, Variant
from gradwire.federated.resume import Begun, check_unchanged
from gradwire.files.atomic import write_atomically
from gradwire.files.lock import locked
from gradwire.files.store import read_state
from gradwire.saved import reading_state

__all__ = ["Checkpoint", "Name", "RunFolder"]

Name = tuple[str, int]
_FILES = ("checkpoint.safetensors", "experiment.toml", "metrics.jsonl", "report.html", "summary.json")


@dataclass(frozen=True)
class Checkpoint:
    """A run under way: which, how far, and its whole state."""

    name: Name
    rounds_done: int
    state: dict[str, Any]


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
        refused = ConfigError(f"--out {path}: exists and is not an empty folder; choose another, or --resume {path}")
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise refused
            path.mkdir(parents=True, exist_ok=True)
            made = cls(path, experiment)
            with locked(made.lock_file):
                if list(path.iterdir()) != [made.lock_file]:
                    raise refused
                write_atomically(path / "experiment.toml", experiment.toml().encode())
        except OSError as error:
            raise ConfigError(f"--out {path}: cannot be written: {error.strerror}") from None
        return made

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

    @property
    def checkpoint(self) -> Path:
        """The state of the run under way."""
        return self.path / "checkpoint.safetensors"

    @property
    def metrics(self) -> Path:
        """One line a round."""
        return self.path / "metrics.jsonl"

    @property
    def lock_file(self) -> Path:
        """What whoever is at work here holds."""
        return self.path / ".lock"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process at work here; what an earlier one was writing when it was killed is removed.

        Raises:
            ConfigError: when another process is.
        """
        with locked(self.lock_file) as held:
            if held:
                for name in _FILES:
                    for left in self.path.glob(f".{name}.*"):
                        left.unlink(missing_ok=True)
            else:
                warnings.warn(f"{self.path}: no locks here: let no other process work there", stacklevel=3)
            yield

    def progress(self) -> tuple[dict[Name, dict[str, Any]], Checkpoint | None]:
        """Find out how far the run got, and put metrics.jsonl in the state it had then.

        Returns:
            The summary entries of runs that are complete, and the run under way, if there is one.

        Raises:
            ConfigError: when settings were changed that what was run depends on, or files are damaged or lack rounds;
                nothing is changed then.
            StateError: on a damaged checkpoint.
        """
        done, settings = self._finished()
        saved = self._load_checkpoint()
        begun = [Begun(*name, int(entry["rounds_done"]), complete=True) for name, entry in done.items()]
        if saved is not None and saved.name not in done:
            begun.append(Begun(*saved.name, saved.rounds_done, complete=False))
            settings = saved.state["settings"] if settings is None else settings
        else:
            saved = None
        if begun and settings is not None:
            before = Experiment.build(settings, f"{self.path}: the settings it was run with")
            check_unchanged(before, self.experiment, begun, str(self.path / "experiment.toml"))
        self._cut_metrics({(b.label, b.seed): b.rounds_done for b in begun})
        return done, saved

    def write_summary(self, entries: list[dict[str, Any]], described: dict[str, Any]) -> None:
        """Replace summary.json."""
        found = {"experiment": described, "settings": self.settings(), "runs": entries}
        write_atomically(self.path / "summary.json", (json.dumps(found, indent=1) + "\n").encode())

    def settings(self) -> dict[str, Any]:
        """Return the settings a later process compares its own with; where the data lies may change."""
        return {k: v for k, v in self.experiment.model_dump(exclude={"data_dir"}).items() if v is not None}

    def _finished(self) -> tuple[dict[Name, dict[str, Any]], dict[str, Any] | None]:
        """Summary entries of the runs that are complete, and the settings they were run with."""
        file = self.path / "summary.json"
        if not file.is_file():
            return {}, None
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            done = {(r["label"], r["seed"]): r for r in found["runs"] if r["status"] == "complete"}
            if not all(type(r["rounds_done"]) is int for r in done.values()):
                raise TypeError("rounds_done must be an integer")
            return done, dict(found["settings"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise ConfigError(f"{file}: not a run's summary: {error}") from None

    def _load_checkpoint(self) -> Checkpoint | None:
        if not self.checkpoint.is_file():
            return None
        state = read_state(self.checkpoint)
        try:
            with reading_state():
                label, seed, rounds_done = state["label"], state["seed"], state["totals"]["rounds_done"]
                if (type(label), type(seed), type(rounds_done)) != (str, int, int) or rounds_done < 0:
                    raise TypeError(f"no run has {label!r}, seed {seed!r}, rounds_done {rounds_done!r}")
                state["settings"] = dict(state["settings"])
        except StateError as error:
            raise StateError(f"{self.checkpoint}: not a run's state: {error}") from error
        return Checkpoint((label, seed), rounds_done, state)

    def _cut_metrics(self, covered: Mapping[Name, int]) -> None:
        """Drop lines of metrics.jsonl that nothing covers, and a last line cut short; miss those that are gone.

        Args:
            covered: how many rounds of each run there must be.

        Raises:
            ConfigError: on a line that is no record of a round, or rounds that are missing.
        """
        kept: list[bytes] = []
        found: dict[Name, list[int]] = {name: [] for name in covered}
        data = self.metrics.read_bytes() if self.metrics.is_file() else b""
        lines = data.splitlines(keepends=True)
        for number, line in enumerate(lines):
            if number == len(lines) - 1 and not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
                name, index = (record["label"], record["seed"]), record["round"]
                if index < covered.get(name, 0):
                    found[name].append(int(index))
                    kept.append(line)
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise ConfigError(f"{self.metrics}, line {number + 1}: no record of a round: {error}") from None
        for (label, seed), rounds in found.items():
            wanted = list(range(covered[label, seed]))
            if rounds != wanted:
                odd = next((i for i, r in enumerate(rounds) if r != i), len(rounds))
                raise ConfigError(
                    f"{self.metrics}: {label}, seed {seed}: {len(wanted)} rounds were run, but not all their lines are "
                    f"there, in order and once: look at round {odd}; start a new run with --out"
                )
        if b"".join(kept) != data:
            write_atomically(self.metrics, b"".join(kept))
