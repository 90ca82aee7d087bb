"""Flower over a slow link: a SuperLink on one host, two SuperNodes on the other, a model of five million parameters."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchmarks.flower import slow_link
from benchmarks.flower.kept import Run, run_left
from benchmarks.flower.net import federation
from benchmarks.markdown import code, table
from gradwire.report.tables import format_bytes

SPECS = ("none", "ef(topk(0.01))", "ef(topk(0.02) | fractional(16))")
MEGABITS = 10
ROUNDS = 5
NODES = 2
HIDDEN = "2048,2368"  # with the 64 inputs of digits
_ROUND = re.compile(r"model (\w+), accuracy (\d\.\d{4})")


def measure(data_dir: str | None, done: Callable[[list[Run]], None]) -> None:
    """Run what is left, one at a time."""
    run_left("link", {str(number): partial(_run, spec) for number, spec in enumerate(SPECS)}, 1, done)


def key(run: Run) -> int:
    """Tell which run it is, and its place among the others."""
    return SPECS.index(run["spec"])


def _run(spec: str) -> Run:
    seen: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name, slow_link.slow_link(MEGABITS) as link:
        server, clients = link.hosts

        def saw(line: str) -> None:
            if found := _ROUND.search(line):
                down, up = link.sent()
                seen.append({"seconds": time.monotonic(), "up": up, "down": down, "accuracy": float(found[2])})

        with federation(Path(name), NODES, None, server, clients) as net:
            net.run(
                3600.0,
                saw,
                spec=spec,
                data="digits",
                hidden=HIDDEN,
                num_server_rounds=ROUNDS,
                num_clients=NODES,
                timeout=600.0,
            )
    if len(seen) != ROUNDS + 1:
        raise RuntimeError(f"{len(seen)} rounds seen in place of {ROUNDS + 1}: the log was cut")
    rounds = [
        {name: after[name] - before[name] for name in ("seconds", "up", "down")} for before, after in pairwise(seen)
    ]
    return {
        "spec": spec,
        "megabits": MEGABITS,
        "clients": NODES,
        "num_parameters": _num_parameters(),
        "rounds": rounds,
        "final_accuracy": seen[-1]["accuracy"],
    }


def _num_parameters() -> int:
    widths = [64, *map(int, HIDDEN.split(",")), 10]
    return sum((a + 1) * b for a, b in pairwise(widths))


def document(runs: list[Run]) -> str:
    """The table, with what is there."""
    rows = []
    for run in runs:
        cells = ["plain Flower" if run["spec"] == "none" else code(run["spec"])]
        for name in ("up", "down"):
            own = _later(run, name)
            cells += [format_bytes(own), _times(_later(runs[0], name) / own, run)]
        own = _later(run, "seconds")
        cells += [f"{own:.0f} s", _times(_later(runs[0], "seconds") / own, run)]
        cells += [f"{sum(r['seconds'] for r in run['rounds']):.0f} s"]
        rows.append(cells)
    headings = ["", "up, a round", "fewer", "down, a round", "fewer", "a round", "faster", f"all {ROUNDS} rounds"]
    return table(headings, rows)


def _later(run: Run, name: str) -> float:
    """The mean of the rounds after the first, in which the model goes to all nodes whole."""
    return sum(r[name] for r in run["rounds"][1:]) / (len(run["rounds"]) - 1)


def _times(ratio: float, run: Run) -> str:
    return "" if run["spec"] == "none" else f"{ratio:.1f}x"
