"""Folders of runs side by side: their names, what is in them, and in which settings they differ."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradwire.errors import ConfigError
from gradwire.report.load import RoundPoint, Run, parse_experiment, parse_runs, read_metrics, read_summary

__all__ = ["Folder", "common", "differences", "names_of", "read_folders"]

# of these, other values mean other accuracies: nothing is ranked across them
TASK = ("data", "test_name")
# told run by run in the table, or about nothing that is compared
_ELSEWHERE = ("methods", "runs", "version", "device")


@dataclass(frozen=True)
class Folder:
    """What one folder holds.

    Attributes:
        path: of the folder.
        name: what tells it from the others.
        experiment: the settings that all its runs share.
        runs: its runs; where several folders are compared, labelled with its name.
        points: its rounds, labelled alike.
    """

    path: Path
    name: str
    experiment: Mapping[str, Any]
    runs: Sequence[Run]
    points: Sequence[RoundPoint]


def read_folders(directories: Sequence[Path]) -> list[Folder]:
    """Read the folders of some runs.

    Args:
        directories: one or more.

    Returns:
        Their contents, in order.

    Raises:
        ConfigError: a folder is there twice, or a file is missing, damaged or of the wrong shape.
    """
    whole = [Path(os.path.abspath(directory)) for directory in directories]
    for position, path in enumerate(whole):
        if path in whole[:position]:
            raise ConfigError(f"report directory {directories[position]} is there twice, expected different folders")
    return [_read(path, name, len(whole) > 1) for path, name in zip(directories, names_of(whole), strict=True)]


def names_of(paths: Sequence[Path]) -> list[str]:
    """Name folders by as much of the ends of their paths as tells them apart.

    Args:
        paths: different absolute paths.

    Returns:
        A name each.

    Example:
        >>> names_of([Path("/a/tuned/seed0"), Path("/a/plain/seed0")])
        ['tuned/seed0', 'plain/seed0']
    """
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def common(folders: Sequence[Folder]) -> dict[str, Any]:
    """Return the settings that all runs of all folders share."""
    first = folders[0].experiment
    differing = differences(folders)
    return {name: value for name, value in first.items() if name not in differing}


def differences(folders: Sequence[Folder]) -> dict[str, list[str]]:
    """Return the settings that differ: name -> what each folder has, an en dash where it does not say."""
    names = dict.fromkeys(name for folder in folders for name in folder.experiment)
    found = {}
    for name in names:
        values = [_written(folder.experiment[name]) if name in folder.experiment else "–" for folder in folders]  # noqa: RUF001
        if len(set(values)) > 1 and name not in _ELSEWHERE:
            found[name] = values
    return found


def _read(path: Path, name: str, several: bool) -> Folder:
    summary, source = read_summary(path), str(path / "summary.json")
    runs, points = parse_runs(summary, source), read_metrics(path)
    if several:
        runs = [replace(run, method=f"{name}: {run.method}", folder=name) for run in runs]
        points = [replace(point, method=f"{name}: {point.method}") for point in points]
    return Folder(path, name, _shared(parse_experiment(summary, source)), runs, points)


def _shared(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that some of its runs changed."""
    tables_of_runs = experiment.get("runs")
    runs = tables_of_runs if isinstance(tables_of_runs, list) else []
    changed = {name for run in runs if isinstance(run, Mapping) for name in run}
    return {name: value for name, value in experiment.items() if name not in changed}


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_written, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)
