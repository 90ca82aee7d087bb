"""Sixteen methods on MNIST, iid and two shards a client: final accuracy against measured uplink bytes.

    python -m benchmarks mnist --data-dir DIR

Takes about fifteen minutes on two cores: the two partitions run side by side, one thread each.
"""

from __future__ import annotations

import io
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

PARTITIONS = ("iid", "shards:2")
METHODS = (
    "dense()",
    "fp16()",
    "ef(uniform(4))",
    "qsgd(8)",
    "ternary()",
    "ef(sign())",
    "topk(0.01)",
    "ef(topk(0.01))",
    "ef(topk(0.001))",
    "ef(topk(0.01) | fractional(16))",
    "ef(randk(0.01))",
    "ef(threshold(density=0.01))",
    "momentum_correction(topk(0.01), momentum=0.5)",
    "powersgd(2)",
    "ef(powersgd(2))",
    "ef21(topk(0.01))",
)
PARTS = METHODS


def measure(data_dir: str | None, parts: Sequence[str]) -> Found | None:
    """Train with some of the methods, on either partition."""
    try:
        load_task("mnist", Path(data_dir) if data_dir else None)
    except ConfigError as error:
        print(f"mnist is left out: {error}")
        return None
    context = multiprocessing.get_context("spawn")
    with context.Pool(len(PARTITIONS)) as pool:
        of_each = pool.starmap(_measure, [(p, data_dir, list(parts)) for p in PARTITIONS])
    return dict(zip(PARTITIONS, of_each, strict=True))


def merge(old: Found, new: Found) -> Found:
    """Put newly trained methods in the place of older runs of the same."""
    merged = {**old}
    for partition in PARTITIONS:
        runs = new[partition]["runs"]
        again = {r["method"] for r in runs}
        runs = [r for r in old[partition]["runs"] if r["method"] not in again] + runs
        runs.sort(key=lambda r: (METHODS.index(r["method"]), r["seed"]))
        merged[partition] = {**old[partition], "runs": runs}
    return merged


def _measure(partition: str, data_dir: str | None, methods: list[str]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    values: dict[str, Any] = {"data": "mnist", "partition": partition, "methods": methods, "seeds": [0, 1, 2]}
    values |= {"rounds": 40, "evaluate_every": 40} | ({"data_dir": data_dir} if data_dir else {})
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder.create(Path(name) / "run", Experiment.build(values))
        run_experiment(folder, lambda *_: None, lambda *_: None, lambda: False)
        found: dict[str, Any] = json.loads((folder.path / "summary.json").read_text())
    found["experiment"].pop("data_dir", None)
    return found


def document(found: Found) -> dict[str, str]:
    """The table and its plot."""
    e = found["iid"]["experiment"]
    parts = [
        f"{e['model']} of {e['num_parameters']:,} parameters, {e['clients']} clients, {e['rounds']} rounds of "
        f"{e['local_steps']} local steps, batch {e['batch_size']}, learning rate {e['learning_rate']}; accuracy on "
        f"MNIST's test set, mean and standard deviation of {len(e['seeds'])} seeds; uplink of all clients and rounds.",
        _table(found),
        "![accuracy against uplink bytes](mnist.svg)",
        describe(found),
    ]
    return {"docs/results.md#mnist": "\n\n".join(parts), "docs/mnist.svg": _plot(found)}


def _of(found: dict[str, Any], partition: str, method: str) -> list[dict[str, Any]]:
    return [r for r in found[partition]["runs"] if r["method"] == method]


def _accuracy(runs: list[dict[str, Any]]) -> tuple[float, float]:
    accuracies = [100 * r["final_accuracy"] for r in runs]
    return statistics.mean(accuracies), statistics.stdev(accuracies)


def _table(found: dict[str, Any]) -> str:
    rows = []
    for method in dict.fromkeys(r["method"] for r in found["iid"]["runs"]):
        cells = [code(method)]
        for partition in PARTITIONS:
            mean, spread = _accuracy(_of(found, partition, method))
            cells.append(f"{mean:.2f} ± {spread:.2f} %")
        runs = _of(found, "iid", method)
        cells.append(format_bytes(statistics.mean(r["uplink_bytes"] for r in runs)))
        cells.append(f"{statistics.mean(r['compression_ratio'] for r in runs):.1f}x")
        cells.append(f"{statistics.mean(r['bits_per_parameter'] for r in runs):.3f}")
        rows.append(cells)
    headings = ["method", "accuracy, iid", "accuracy, 2 shards", "uplink, iid", "ratio", "bits per parameter"]
    return table(headings, rows)


def _plot(found: Found) -> str:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "gradwire"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PARTITIONS), figsize=(13, 5.5), sharey=False)
    for axis, partition in zip(axes, PARTITIONS, strict=True):
        methods = list(dict.fromkeys(r["method"] for r in found[partition]["runs"]))
        for number, method in enumerate(methods):
            runs = _of(found, partition, method)
            mean, spread = _accuracy(runs)
            uplink = statistics.mean(r["uplink_bytes"] for r in runs) / 1e6
            marker = "osD^v<>Pp*hX8dH"[number % 15]
            axis.errorbar(uplink, mean, yerr=spread, marker=marker, linestyle="none", capsize=2, label=method)
        axis.set_xscale("log")
        axis.set_xlabel("uplink of all clients and rounds (MB, log scale)")
        axis.set_ylabel("test accuracy (%)")
        axis.set_title({"iid": "iid", "shards:2": "two shards a client"}[partition])
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    picture = io.StringIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return picture.getvalue()


# the second glossary's table: technique -> (compression, communication, convergence, client memory, server)
_CLAIMS = {
    "Top-k": ("90-99 %", "with error feedback", "low", "low"),
    "Quantization": ("75-95 %", "with error feedback", "very low", "low"),
    "Low rank": ("80-90 %", "under conditions", "moderate", "moderate"),
    "Error feedback": ("none of its own", "enables the others'", "high", "low"),
}
_OURS = {
    "Top-k": ("topk(0.01)", "ef(topk(0.01))", "topk"),
    "Quantization": ("qsgd(8)", "ef(uniform(4))", "uniform"),
    "Low rank": ("powersgd(2)", "ef(powersgd(2))", "powersgd"),
    "Error feedback": ("topk(0.01)", "ef(topk(0.01))", "ef"),
}


def glossary(found: Found, methods: Found) -> dict[str, str]:
    """What the glossary claims of each technique, beside what was measured."""
    costs = {m["name"]: m for m in methods["methods"]}
    dense, _ = _accuracy(_of(found, "iid", "dense()"))
    rows = []
    for technique, (compression, convergence, memory, server) in _CLAIMS.items():
        alone, with_feedback, stage = _OURS[technique]
        saved = 100 * (1 - 1 / statistics.mean(r["compression_ratio"] for r in _of(found, "iid", with_feedback)))
        gap_alone = _accuracy(_of(found, "iid", alone))[0] - dense
        gap = _accuracy(_of(found, "iid", with_feedback))[0] - dense
        cost = costs[stage]
        rows.append(
            [
                technique,
                f"{compression}; `{with_feedback}` saves {saved:.1f} %",
                f"{convergence}; `{alone}` {gap_alone:+.2f}, `{with_feedback}` {gap:+.2f} points against dense",
                f"{memory}; {cost['state_vectors']:.2f} vectors kept, {cost['peak_vectors']:.2f} at peak",
                f"{server}; {cost['receive_in_adds']:.1f} passes of an add to receive",
            ]
        )
    headings = ["technique", "compression: claimed; ours", "convergence", "client memory", "server cost"]
    return {"docs/results.md#glossary": table(headings, rows)}
