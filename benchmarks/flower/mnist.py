"""examples/flower-mnist over real processes on loopback: plain Flower, and two specs, three seeds each."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev

from benchmarks.flower.kept import Run, run_left
from benchmarks.flower.net import federation
from benchmarks.markdown import code, table
from gradwire.report.tables import format_bytes

SPECS = ("none", "ef(topk(0.01))", "ef(topk(0.02) | fractional(16))")
SEEDS = (0, 1, 2)
ROUNDS = 25
NODES = 3
NUM_PARAMETERS = 101_770
TOGETHER = 2  # a round is mostly waiting, and its time is not measured here
_FAILED = re.compile(r"and [1-9]\d* failures")
_ACCURACY = re.compile(r"model \w+, accuracy (\d\.\d{4})")


def measure(data_dir: str | None, done: Callable[[list[Run]], None]) -> None:
    """Run what is left, the first seed of each spec first."""
    runs = {
        f"{number}-{seed}": partial(_run, spec, seed, data_dir) for seed in SEEDS for number, spec in enumerate(SPECS)
    }
    run_left("mnist", runs, TOGETHER, done)


def key(run: Run) -> tuple[int, int]:
    """Tell which run it is, and its place among the others."""
    return SPECS.index(run["spec"]), run["seed"]


def _run(spec: str, seed: int, data_dir: str | None) -> Run:
    lines: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, federation(Path(name), NODES, data_dir) as net:
        out = Path(name) / "out"
        config = {"num_server_rounds": ROUNDS, "num_clients": NODES, "timeout": 1800.0}
        net.run(4 * 3600.0, lines.append, spec=spec, seed=seed, out=str(out), **config)
        listed = net.listed()
        books = {} if spec == SPECS[0] else json.loads((out / "summary.json").read_text())["runs"][0]
    log = "".join(lines)
    accuracies = [float(found) for found in _ACCURACY.findall(log)]
    dense = 4 * NUM_PARAMETERS * NODES * ROUNDS  # of what plain Flower sends, the numbers alone
    if len(accuracies) != ROUNDS + 1 or _FAILED.search(log) or books.get("dense_uplink_bytes", dense) != dense:
        raise RuntimeError(f"not every client was counted in every round: {log[-4000:]}")
    return {
        "spec": spec,
        "seed": seed,
        "rounds": ROUNDS,
        "clients": NODES,
        "accuracies": accuracies,
        "uplink_bytes": books.get("uplink_bytes", dense),
        "dense_uplink_bytes": dense,
        "model_sha256": books.get("model_sha256"),
        "inbound_bytes": listed["network-traffic"]["inbound-bytes"],
        "outbound_bytes": listed["network-traffic"]["outbound-bytes"],
        "seconds": round(time.monotonic() - began, 1),
    }


def document(runs: list[Run]) -> str:
    """The table, with what is there."""
    dense = [run for run in runs if run["spec"] == SPECS[0]]
    rows = []
    for spec in SPECS:
        mine = [run for run in runs if run["spec"] == spec]
        pairs = [(run, other) for run in mine for other in dense if run["seed"] == other["seed"]]
        if not pairs:
            continue
        cells = [
            "plain Flower" if spec == SPECS[0] else code(spec),
            str(len(mine)),
            _spread([_last(run) for run in mine]),
        ]
        cells.append(f"{mean(_last(run) - _last(other) for run, other in pairs):+.2f}")
        cells += _bytes([run["uplink_bytes"] for run in mine], [run["dense_uplink_bytes"] for run in mine])
        for name in ("inbound_bytes", "outbound_bytes"):
            cells += _bytes([run[name] for run, _ in pairs], [other[name] for _, other in pairs])
        rows.append(cells)
    headings = [
        "",
        "seeds",
        "accuracy",
        "points",
        "up, in records",
        "fewer",
        "up, as Flower counts",
        "fewer",
        "down",
        "fewer",
    ]
    return table(headings, rows)


def _bytes(own: list[int], dense: list[int]) -> tuple[str, str]:
    """Their mean, and how many times fewer they are."""
    return format_bytes(mean(own)), "" if own == dense else f"{mean(dense) / mean(own):.1f}x"


def _last(run: Run) -> float:
    return 100 * float(run["accuracies"][-1])


def _spread(values: list[float]) -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread} %"
