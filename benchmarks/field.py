"""What the field of row and column levels saves: bytes of the same numbers with it and without.

    python -m benchmarks field --data-dir DIR [--only SPEC]

MNIST's CNN, ten clients, dirichlet:0.3, 100 rounds. A field changes how numbers are coded, not which are sent: of each
payload of a run it is counted how long it would have been without, and of each downlink blob, too. Takes about five
minutes on two cores: the seeds run side by side, one thread each.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradwire as gw
from benchmarks.markdown import code, table
from benchmarks.results import Found, describe
from gradwire.compressors.compressor import resolve
from gradwire.errors import ConfigError
from gradwire.federated.data.tasks import load_task
from gradwire.federated.experiment import Experiment
from gradwire.federated.simulation import Simulation
from gradwire.wire import Opened

SEEDS = (0, 1)
SPECS = (
    "dither(density=0.001, golden=True, field=True)",
    "dither(density=0.004, golden=True, field=True)",
    "momentum(dither(density=0.002, golden=True, field=True), 0.8, gain=0.5)",
)
PARTS = SPECS
ROUNDS = 100


def measure(data_dir: str | None, parts: Sequence[str]) -> Found | None:
    """Train with some of the methods, in all seeds."""
    try:
        load_task("mnist", Path(data_dir) if data_dir else None)
    except ConfigError as error:
        print(f"mnist is left out: {error}")
        return None
    context = multiprocessing.get_context("spawn")
    with context.Pool(len(SEEDS)) as pool:
        runs = pool.starmap(_measure, [(spec, seed, data_dir) for spec in parts for seed in SEEDS], chunksize=1)
    return {"runs": runs}


def merge(old: Found, new: Found) -> Found:
    """Put newly measured methods in the place of older figures of the same."""
    runs = {(run["spec"], run["seed"]): run for run in [*old.get("runs", []), *new["runs"]]}
    return {**new, "runs": sorted(runs.values(), key=lambda run: (SPECS.index(run["spec"]), run["seed"]))}


def _measure(spec: str, seed: int, data_dir: str | None) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    values = {"data": "mnist", "partition": "dirichlet:0.3", "rounds": ROUNDS, "evaluate_every": ROUNDS}
    task = load_task("mnist", Path(data_dir) if data_dir else None)
    simulation = Simulation(Experiment.build({**values, "methods": [spec]}), gw.parse(spec), task, seed)
    federation = simulation.federation
    receive, saved = federation.receive, []
    shipped: dict[str, int] = {}

    def counted(opened: Opened, *more: Any) -> bool:
        payload = opened.payload
        parts = resolve(payload, federation.server.reference_of(payload))
        saved.append(len(gw.encode(replace(payload, parts=tuple(parts)))) - len(opened.blob))
        return receive(opened, *more)

    federation.receive = counted  # type: ignore[method-assign]
    for metrics in simulation.rounds():
        payload = gw.decode(federation.last_blobs[0])
        if payload.shipped_field is not None:
            without = gw.encode(replace(payload, shipped_field=None))
            shipped[str(metrics.round)] = len(federation.last_blobs[0]) - len(without)
    found = simulation.summary()
    names = ("final_accuracy", "uplink_bytes", "downlink_bytes", "clients")
    return {"spec": spec, "seed": seed, "saved": sum(saved), "shipped": shipped, **{n: found[n] for n in names}}


def document(found: Found) -> dict[str, str]:
    """The table."""
    rows = []
    for spec in dict.fromkeys(run["spec"] for run in found["runs"]):
        runs = [run for run in found["runs"] if run["spec"] == spec]
        up, saved, accuracy = (
            statistics.mean(run[n] for run in runs) for n in ("uplink_bytes", "saved", "final_accuracy")
        )
        field = statistics.mean(run["clients"] * sum(run["shipped"].values()) for run in runs)
        rows.append(
            [
                code(spec),
                f"{100 * accuracy:.2f} %",
                f"{(up + saved) / 1000:.1f} kB",
                f"**{up / 1000:.1f} kB** ({100 * saved / (up + saved):.1f} % less)",
                f"{field / 1000:.1f} kB",
                f"{100 * (saved - field) / (up + saved):.1f} %",
                "; ".join(", ".join(run["shipped"]) or "never" for run in runs),
            ]
        )
    headings = ["method", "accuracy", "uplink without", "with", "fields sent", "less in all", "sent after round"]
    return {"docs/results.md#field": f"{table(headings, rows)}\n\n{describe(found)}"}
