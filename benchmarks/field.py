"""What the field of row and column levels saves: bytes of the same numbers with it and without.

    python -m benchmarks field --data-dir DIR

MNIST's CNN, ten clients, dirichlet:0.3, 100 rounds. The numbers sent, and so the accuracies, are the same in both
runs of a pair. Takes about ten minutes on two cores: the seeds run side by side, one thread each.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradwire as gw
from benchmarks.markdown import code, table
from benchmarks.results import Found, describe
from gradwire.errors import ConfigError
from gradwire.federated.data.tasks import load_task
from gradwire.federated.experiment import Experiment
from gradwire.federated.simulate import Simulation

SEEDS = (0, 1)
PAIRS = {
    "dither(density=0.001, golden=True)": "dither(density=0.001, golden=True, field=True)",
    "dither(density=0.004, golden=True)": "dither(density=0.004, golden=True, field=True)",
    "momentum(dither(density=0.002, golden=True), 0.8, gain=0.5)": (
        "momentum(dither(density=0.002, golden=True, field=True), 0.8, gain=0.5)"
    ),
}
PARTS = tuple(PAIRS)
ROUNDS = 100


def measure(data_dir: str | None, parts: Sequence[str]) -> Found | None:
    """Train with some of the pairs, in all seeds."""
    try:
        load_task("mnist", Path(data_dir) if data_dir else None)
    except ConfigError as error:
        print(f"mnist is left out: {error}")
        return None
    context = multiprocessing.get_context("spawn")
    with context.Pool(len(SEEDS)) as pool:
        of_seeds = pool.starmap(_measure, [(seed, data_dir, tuple(parts)) for seed in SEEDS])
    return {"runs": [run for runs in of_seeds for run in runs]}


def merge(old: Found, new: Found) -> Found:
    """Put newly measured pairs in the place of older figures of the same."""
    runs = {(run["pair"], run["spec"], run["seed"]): run for run in [*old["runs"], *new["runs"]]}
    return {**new, "runs": list(runs.values())}


def _measure(seed: int, data_dir: str | None, pairs: tuple[str, ...]) -> list[dict[str, Any]]:
    import torch

    torch.set_num_threads(1)
    values: dict[str, Any] = {"data": "mnist", "partition": "dirichlet:0.3", "rounds": ROUNDS, "evaluate_every": ROUNDS}
    task = load_task("mnist", Path(data_dir) if data_dir else None)
    runs = []
    for pair in pairs:
        for spec in (pair, PAIRS[pair]):
            simulation = Simulation(Experiment.build({**values, "methods": [spec]}), gw.parse(spec), task, seed)
            simulation.federation.trainer.model.to(memory_format=torch.channels_last)
            shipped = []
            for metrics in simulation.rounds():
                blob = simulation.federation.last_blobs[0]
                if gw.decode(blob).shipped_field is not None:
                    shipped.append(metrics.round)
            found = simulation.summary()
            names = ("final_accuracy", "uplink_bytes", "downlink_bytes", "dense_uplink_bytes")
            runs.append({"pair": pair, "spec": spec, "seed": seed, "shipped": shipped, **{n: found[n] for n in names}})
    return runs


def document(found: Found) -> dict[str, str]:
    """The table."""
    rows = []
    for pair in PAIRS:
        runs = [run for run in found["runs"] if run["pair"] == pair]
        without, beside = ([run for run in runs if (run["spec"] == pair) == plain] for plain in (True, False))
        mean = {
            name: [statistics.mean(run[name] for run in of) for of in (without, beside)]
            for name in ("final_accuracy", "uplink_bytes", "downlink_bytes")
        }
        if any(a["final_accuracy"] != b["final_accuracy"] for a, b in zip(without, beside, strict=True)):
            raise SystemExit(f"{pair}: a field must not change what is sent")
        (plain, up), (down, more) = mean["uplink_bytes"], mean["downlink_bytes"]
        rows.append(
            [
                code(PAIRS[pair]),
                f"{100 * mean['final_accuracy'][0]:.2f} %",
                f"{plain / 1000:.1f} kB",
                f"**{up / 1000:.1f} kB**",
                f"{100 * (1 - up / plain):.1f} %",
                f"{(more - down) / 1000:.1f} kB",
                f"{100 * (plain - up - more + down) / plain:.1f} %",
                ", ".join(str(run["shipped"])[1:-1] or "never" for run in beside).replace(", ", " ", 0),
            ]
        )
    headings = ["method", "accuracy", "uplink without", "with", "less", "downlink more", "less in all", "shipped after"]
    return {"docs/results.md#field": f"{table(headings, rows)}\n\n{describe(found)}"}
