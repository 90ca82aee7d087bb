"""Adaptive strategies and sparse updates: what is lost, and which settings win it back.

In the simulator, in one process: its strategies are Flower's, which tests/federated/algorithms compares them with.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.flower.kept import FOLDER, Run
from benchmarks.markdown import cell, code, table
from gradwire.errors import ConfigError
from gradwire.federated.experiment import Experiment
from gradwire.federated.folder import RunFolder
from gradwire.federated.runs import run_experiment

SEEDS = (0, 1, 2)
SETTINGS: dict[str, Any] = {
    "data": "mnist",
    "model": "mlp",
    "clients": 3,
    "rounds": 25,
    "evaluate_every": 25,
    "local_steps": 125,
    "learning_rate": 0.1,
}
TOPK = "ef(topk(0.01))"


def _adam(eta: float, tau: float) -> str:
    return f"fedadam(server_learning_rate={eta}, tau={tau}, initial=0.0, bias_correction=True)"


# what a row is called -> (algorithm, methods)
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "FedAvg": ("fedavg()", ("dense()", TOPK)),
}


def measure(data_dir: str | None, done: Callable[[list[Run]], None]) -> None:
    """Run what is left, each seed in a process of its own."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    where = str(Path(data_dir).resolve()) if data_dir else None
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        of_seeds = pool.starmap(_run, [(seed, where) for seed in SEEDS], chunksize=1)
    done(sorted((run for runs in of_seeds for run in runs), key=key))


def key(run: Run) -> tuple[int, int, int]:
    """Tell which run it is, and its place among the others."""
    row = list(ROWS).index(run["row"])
    return row, ROWS[run["row"]][1].index(run["method"]), run["seed"]


def experiment(seed: int, data_dir: str | None) -> Experiment:
    """All rows with one seed."""
    tables = [{"name": row, "algorithms": [how], "methods": list(methods)} for row, (how, methods) in ROWS.items()]
    where = {"data_dir": data_dir} if data_dir else {}
    return Experiment.build({**SETTINGS, "seeds": [seed], "runs": tables, **where})


def _run(seed: int, data_dir: str | None) -> list[Run]:
    """Everything with one seed, with one torch thread."""
    import torch

    torch.set_num_threads(1)
    asked, path = experiment(seed, data_dir), FOLDER / f"adam-{seed}"
    folder = RunFolder.open(path) if path.exists() else RunFolder.create(path, asked)
    if folder.experiment != asked:
        raise ConfigError(f"{path} is of other settings: move it away")
    run_experiment(folder, lambda *_: None, lambda *_: None, lambda: False)
    names = ("method", "algorithm", "seed", "final_accuracy", "uplink_bytes", "compression_ratio")
    runs = json.loads((path / "summary.json").read_text())["runs"]
    return [{"row": run["label"].partition(" · ")[0], **{name: run[name] for name in names}} for run in runs]


def document(runs: list[Run]) -> str:
    """The table, with what is there."""
    rows = []
    for row, (_, methods) in ROWS.items():
        for method in methods:
            mine = [run for run in runs if run["row"] == row and run["method"] == method]
            if not mine:
                continue
            accuracies = [100 * run["final_accuracy"] for run in mine]
            rows.append(
                [
                    cell(row),
                    code(method),
                    f"{mean(accuracies):.1f} ± {stdev(accuracies):.1f} %",
                    f"{mean(r['compression_ratio'] for r in mine):.0f}x",
                ]
            )
    return table(["strategy", "spec", "accuracy", "fewer bytes up"], rows)
