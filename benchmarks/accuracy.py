"""Accuracy against bytes: dense, top-k with and without error feedback, three seeds each, on real images.

    python -m benchmarks accuracy [--data-dir DIR]

MNIST is left out, and the result says so, where its files are not found.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import code, table
from benchmarks.results import Found, describe
from gradwire.errors import ConfigError
from gradwire.federated.data.tasks import load_task
from gradwire.federated.experiment import Experiment
from gradwire.federated.folder import RunFolder
from gradwire.federated.runs import run_experiment
from gradwire.report.tables import format_bytes

SEEDS = (0, 1, 2)
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {
        "methods": [
            "dense()",
            "topk(0.01)",
            "ef(topk(0.01))",
            "ef(topk(0.01) | uniform(8))",
            "ef(randk(0.01))",
            "ef(uniform(4))",
        ],
        "rounds": 100,
    },
    "mnist": {"methods": ["dense()", "topk(0.01)", "ef(topk(0.01))"], "rounds": 100, "evaluate_every": 50},
}


PARTS = tuple(SETTINGS)


def measure(data_dir: str | None, parts: Sequence[str]) -> Found:
    """Train on some of the data sets."""
    found: Found = {}
    context = multiprocessing.get_context("spawn")
    for data in parts:
        try:
            load_task(data, Path(data_dir) if data_dir else None)
        except ConfigError as error:
            found[data] = {"left_out": str(error)}
            continue
        with context.Pool(len(SEEDS)) as pool:
            of_seeds = pool.starmap(_measure, [(data, seed, data_dir) for seed in SEEDS])
        found[data] = of_seeds[0]
        found[data]["experiment"]["seeds"] = list(SEEDS)
        found[data]["runs"] = [run for one in of_seeds for run in one["runs"]]
    return found


def _measure(data: str, seed: int, data_dir: str | None) -> dict[str, Any]:
    """One seed in a process of its own, with one torch thread."""
    import torch

    torch.set_num_threads(1)
    values = {"data": data, "seeds": [seed], **SETTINGS[data]} | ({"data_dir": data_dir} if data_dir else {})
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder.create(Path(name) / "run", Experiment.build(values))
        run_experiment(folder, lambda *_: None, lambda *_: None, lambda: False)
        found: dict[str, Any] = json.loads((folder.path / "summary.json").read_text())
    found["experiment"].pop("data_dir", None)
    return found


def document(found: Found) -> dict[str, str]:
    """The tables."""
    sections = []
    for data in SETTINGS:
        if "left_out" in found[data]:
            sections.append(f"### {data}\n\nNot measured: its files were not found.")
            continue
        e = found[data]["experiment"]
        sections.append(
            f"### {data}\n\n{e['model']} of {e['num_parameters']:,} parameters, {e['clients']} clients "
            f"({e['partition']}), "
            f"{e['rounds']} rounds of {e['local_steps']} local steps, batch {e['batch_size']}, learning rate "
            f"{e['learning_rate']}; accuracy on the {e['test_name']}, mean and standard deviation of seeds "
            f"{', '.join(map(str, e['seeds']))}.\n\n{_table(found[data]['runs'])}"
        )
    return {
        "docs/results.md#accuracy": "\n\n".join([*sections, describe(found)]),
        "README.md#accuracy": _table(found["digits"]["runs"]),
    }


def _table(runs: list[dict[str, Any]]) -> str:
    methods = list(dict.fromkeys(r["method"] for r in runs))
    dense_bytes = statistics.mean(r["uplink_bytes"] for r in runs if r["method"] == "dense()")
    rows = []
    for method in methods:
        mine = [r for r in runs if r["method"] == method]
        accuracies = [100 * r["final_accuracy"] for r in mine]
        uplink = statistics.mean(r["uplink_bytes"] for r in mine)
        rows.append(
            [
                code(method),
                f"{statistics.mean(accuracies):.1f} ± {statistics.stdev(accuracies):.1f} %",
                format_bytes(uplink),
                f"{dense_bytes / uplink:.1f}x",
                f"{statistics.mean(r['compression_ratio'] for r in mine):.1f}x",
                f"{statistics.mean(r['bits_per_parameter'] for r in mine):.3f}",
            ]
        )
    return table(
        ["method", "accuracy", "uplink", "fewer bytes than the dense run", "than raw float32", "bits per parameter"],
        rows,
    )
