"""Start: train your own task from a script, and have its results as Python objects, with files and page beside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gradwire.compressors.compressor import Compressor
from gradwire.errors import ConfigError
from gradwire.federated.data.task import Task
from gradwire.federated.experiment import Experiment
from gradwire.federated.folder import RunFolder
from gradwire.federated.runs import run_experiment
from gradwire.federated.simulation import RoundMetrics, Simulation
from gradwire.progress import RunDisplay
from gradwire.report import build_report

__all__ = ["Results", "simulate"]


@dataclass(frozen=True)
class Results:
    """What an experiment came to.

    Attributes:
        runs: an entry a method and seed, as in summary.json: ``label``, ``seed``, ``final_accuracy``,
            ``final_test_loss``, ``uplink_bytes``, ``compression_ratio`` and so on; ``pandas.DataFrame(results.runs)``
            takes it.
        rounds: an entry a round, as in metrics.jsonl.
        models: (label, seed) -> the final model as a state dict, of runs that this call finished.
        report: the page, where there is a folder.
    """

    runs: list[dict[str, Any]]
    rounds: list[dict[str, Any]]
    models: dict[tuple[str, int], dict[str, Any]] = field(repr=False)
    report: Path | None


def simulate(
    task: Task,
    methods: str | Compressor | Sequence[str | Compressor],
    *,
    out: Path | str | None = None,
    seeds: Iterable[int] = (0,),
    show: bool = True,
    **settings: Any,
) -> Results:
    """Train a task of your own with one compressor or several, and compare accuracy and bytes.

    Args:
        task: from ``own_task``.
        methods: what compresses the way up: specs or compressors.
        out: a folder for metrics.jsonl, summary.json and report.html; called again with the same, it goes on where it
            was stopped. None: nothing is kept.
        seeds: each method runs with each.
        show: live progress and a table, in a terminal or a notebook.
        **settings: those of an experiment: ``clients``, ``rounds``, ``local_steps``, ``batch_size``, ``learning_rate``,
            ``partition``, ``algorithms``, ``links`` and all others (docs/federated.md).

    Returns:
        The results.

    Raises:
        ConfigError: on settings that cannot be, or a folder of another experiment.
        UpdateError: where training diverges, naming the run.

    Example:
        >>> import torch
        >>> from gradwire.federated import own_task, simulate
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> task = own_task(torch.nn.Linear(4, 2), (x, (x.sum(1) > 0).long()), (x, (x.sum(1) > 0).long()))
        >>> results = simulate(task, ["dense()", "ef(topk(0.25))"], clients=4, rounds=3, show=False)
        >>> [run["method"] for run in results.runs]
        ['dense()', 'ef(topk(0.25))']
    """
    if not isinstance(task, Task):
        raise ConfigError(f"task must be what own_task makes, got {type(task).__name__}")
    if isinstance(methods, (str, Compressor)):
        methods = [methods]
    given = {"data": f"own:{task.name}", "methods": [str(m) for m in methods], "seeds": list(seeds), **settings}
    experiment = Experiment.build(given, "simulate")
    models: dict[tuple[str, int], dict[str, Any]] = {}
    with ExitStack() as stack:
        path = Path(stack.enter_context(TemporaryDirectory())) / "run" if out is None else Path(out)
        begun = (path / "experiment.toml").is_file()
        folder = RunFolder(path, experiment) if begun else RunFolder.create(path, experiment)
        display = stack.enter_context(RunDisplay(path)) if show else None

        def progressed(simulation: Simulation, metrics: RoundMetrics) -> None:
            if display is not None:
                display.progressed(simulation, metrics)
            if simulation.finished:
                models[simulation.label, simulation.seed] = simulation.federation.trainer.state_of(simulation.model)

        started: Callable[[Simulation, int, int], None] = lambda *_: None  # noqa: E731
        run_experiment(folder, started if display is None else display.started, progressed, lambda: False, task)
        report = None if out is None else build_report(path)
        if display is not None and report is not None:
            display.finish(report, complete=True)
        runs = json.loads((path / "summary.json").read_text(encoding="utf-8"))["runs"]
        rounds = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    return Results(runs, rounds, models, report)
