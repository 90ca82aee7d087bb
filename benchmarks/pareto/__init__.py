"""Accuracy against bytes, every method tuned alike: docs/pareto.md.

    python -m benchmarks pareto [--only TASK] [--workers N] --data-dir DIR

All of it takes about a day of one core. Every run that is done is a line of benchmarks/results/pareto.jsonl, so that it
may be stopped at any moment, in any way, and goes on with the next run; ``--document`` makes the page of what there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import results
from benchmarks.pareto.methods import entries
from benchmarks.pareto.page import document
from benchmarks.pareto.plan import SETUPS, Run, found_of
from benchmarks.results import Found

__all__ = ["PARTS", "document", "measure"]

NAME = "pareto"
PARTS = tuple(setup.name for setup in SETUPS)


def measure(data_dir: str | None, parts: Sequence[str], workers: int = 1) -> Found:
    """Run what is left of some tasks, and return all there is."""
    from benchmarks.pareto.runs import run_all

    where = str(Path(data_dir).resolve()) if data_dir else None
    found = found_of(results.load(NAME)["runs"]) if results.is_there(NAME) else {}

    def finished(run: Run) -> None:
        results.append(NAME, run)
        accuracy = "overflowed" if run["accuracy"] is None else f"{100 * run['accuracy']:.2f} %"
        print(
            f"{run['setup']} {run['split']} {run['spec']} {run['algorithm']} seed {run['seed']}, {run['stop']} rounds: "
            f"{accuracy}, {run['uplink_bytes']:,} bytes, {run['seconds']} s",
            flush=True,
        )

    run_all(found, [setup for setup in SETUPS if setup.name in parts], entries(), where, workers, finished)
    return results.load(NAME)
