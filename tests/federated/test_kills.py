"""Processes that are killed at any moment, 20 times each kind of run, and go on: nothing is different at the end."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import killed
import numpy as np
import pytest

from gradwire.federated.experiment import Experiment
from gradwire.federated.folder import RunFolder

KILLS = 20
MIX = ["mix(lte=2, satellite=2)"]
KINDS = {
    "synchronous": {"algorithms": ["fedadam()"], "participation": 0.5},
    "asynchronous": {"algorithms": ["fedbuff(buffer_size=2)"], "links": ["mix(fibre=2, lte=2)"]},
    "lossy": {
        "links": MIX, "mtu": 150, "packet_loss": 0.3, "packet_duplication": 0.2, "packet_reordering": 0.2,
        "disconnection": 0.3, "deadline_seconds": 1.5,
    },
    "regional": {"regions": 2, "forward": "ef(topk(0.05))", "max_norm": 0.5},
    "on disk": {"clients_on_disk": True, "participation": 0.5},
    "secure": None,
}  # fmt: skip
_TIMES = ("seconds", "compression_seconds", "client_rounds_per_second")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def processes():
    """Processes that need not load torch: they are forked off one that has."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed"])
    return context


def begin(path: Path, kind: str) -> None:
    if KINDS[kind] is None:
        path.mkdir()
    else:
        shared = {"methods": ["ef(topk(0.02))"], "rounds": killed.ROUNDS, "clients": 4, "local_steps": 1, "seeds": [3]}
        RunFolder.create(path, Experiment.build({**shared, **KINDS[kind]}))


def result_of(path: Path) -> list:
    """All that is left of a run but what clocks say."""
    if (path / str(killed.ROUNDS)).is_dir():
        assert [p.name for p in path.iterdir()] == [str(killed.ROUNDS)]
        return np.load(path / str(killed.ROUNDS) / "model.npy").tolist()
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    found = json.loads((path / "summary.json").read_text())["runs"] + lines
    assert not [p.name for p in path.iterdir() if p.name.startswith(("checkpoint", "members"))]
    return [{k: v for k, v in each.items() if k not in _TIMES} for each in found]


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_kills_change_nothing(kind, processes, tmp_path):
    work = killed.secure if KINDS[kind] is None else killed.simulated

    def start(path):
        process = processes.Process(target=work, args=(path,))
        process.start()
        return process

    begin(tmp_path / "undisturbed", kind)
    began = time.monotonic()
    process = start(tmp_path / "undisturbed")
    process.join(300)
    took = time.monotonic() - began
    assert process.exitcode == 0
    expected = result_of(tmp_path / "undisturbed")

    rng, kills, folders = np.random.default_rng(), 0, 0
    while kills < KILLS:
        path = tmp_path / str(folders)
        folders += 1
        begin(path, kind)
        while True:
            process = start(path)
            process.join(rng.uniform(0.0, took) if kills < KILLS else 300)
            if process.exitcode is None and kills < KILLS:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                kills += process.exitcode == -signal.SIGKILL
            else:
                process.join(1)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, f"after {kills} kills"
        assert result_of(path) == expected, f"{kills} kills"
    print(f"{kind}: {kills} kills, {folders} runs to their end, {took:.1f} s undisturbed")
