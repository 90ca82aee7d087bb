"""Adaptive strategies and sparse updates: what is lost, and which settings win it back.

In the simulator, in one process: its strategies are Flower's, which tests/federated/algorithms compares them with.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from functools import partial
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
    "local_steps": 40,
    "batch_size": 64,
    "learning_rate": 0.2,
}
DENSE, SPARSE, SHORT = "dense()", "ef(topk(0.01))", "ef(topk(0.02) | fractional(16))"


def _adam(eta: float, tau: float, beta_1: float = 0.9) -> str:
    """Flower's: its squares start at 0, and the bias is corrected."""
    settings = f"server_learning_rate={eta}, beta_1={beta_1}, tau={tau}, initial=0.0, bias_correction=True"
    return f"fedadam({settings})"


# what a row is called -> (algorithm, methods)
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "FedAvg": ("fedavg()", (DENSE, SPARSE)),
    "FedAdam, eta 0.03, tau 0.001": (_adam(0.03, 0.001), (DENSE, SPARSE, "ef(topk(0.05))", "ef(uniform(4))")),
    "FedAdam, eta 0.1, tau 0.1": (_adam(0.1, 0.1), (SPARSE,)),
    "FedAdam, eta 0.1, tau 0.01": (_adam(0.1, 0.01), (DENSE, SPARSE)),
    "FedAdam, eta 0.1, tau 0.01, beta_1 0": (_adam(0.1, 0.01, 0.0), (DENSE, SPARSE, SHORT)),
    "FedYogi, eta 0.03, tau 0.001": ("fedyogi(server_learning_rate=0.03, initial=0.0)", (DENSE, SPARSE)),
    "FedYogi, eta 0.03, tau 0.01, beta_1 0": (
        "fedyogi(server_learning_rate=0.03, beta_1=0.0, tau=0.01, initial=0.0)",
        (SPARSE,),
    ),
    "FedAdagrad, eta 0.1, tau 0.01": (
        "fedadagrad(server_learning_rate=0.1, tau=0.01, initial=0.0)",
        (DENSE, SPARSE),
    ),
    "FedAvgM, momentum 0.9, rate 0.3": ("fedavgm(server_learning_rate=0.3)", (DENSE, SPARSE)),
}


def measure(data_dir: str | None, done: Callable[[list[Run]], None]) -> None:
    """Run what is left, each seed in a process of its own."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    where = str(Path(data_dir).resolve()) if data_dir else None
    found: list[Run] = []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for runs in pool.imap_unordered(partial(_run, data_dir=where), SEEDS):
            found += runs
            done(found)


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
            spread = f" ± {stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
            ratio = mean(run["compression_ratio"] for run in mine)
            rows.append([cell(row), code(method), f"{mean(accuracies):.1f}{spread} %", f"{ratio:.1f}x"])
    return table(["strategy", "spec", "accuracy", "fewer bytes up"], rows)
