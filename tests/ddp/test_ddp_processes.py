"""Workers that end, stop or start again, as processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import ddp_cases
import numpy as np
import pytest
from ddp_ranks import Ranks

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "ddp-mnist" / "train.py"

LOST = """
import sys, time, os, datetime, warnings
import torch, torch.distributed as dist
from gradwire.ddp import register
from gradwire.ddp.cost import Link
from gradwire.ddp.exchange import Exchange
from gradwire.errors import ProtocolError
store, rank, what, way = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
warnings.simplefilter("ignore")
Exchange.link = lambda self: Link(0.0, 0.0)  # so that whole gradients take no time
timeout = datetime.timedelta(seconds=12)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2, timeout=timeout)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(40, 3))
state = register(model, "ef(topk(0.1))" if way != "phases" else "ef(cyclic(0.3))", fallback=way == "dense")
for step in range(10):
    if rank == 1 and step == 7:
        os.kill(os.getpid(), 9) if what == "killed" else time.sleep(600)
    start, path = time.monotonic(), state.path
    try:
        model(torch.ones(1, 40)).sum().backward()
    except ProtocolError as error:
        print(step, path, round(time.monotonic() - start), type(error).__name__, error, flush=True)
        os._exit(0)
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


@pytest.mark.slow
@pytest.mark.parametrize(("what", "longest"), [("killed", 8), ("stopped", 30)])
@pytest.mark.parametrize("way", ["gather", "phases", "dense"])
def test_a_worker_that_is_lost_is_named_in_time(tmp_path, what, longest, way):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", LOST, str(tmp_path / "store"), str(rank), what, way],
            stdout=subprocess.DEVNULL if rank else subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for rank in (0, 1)
    ]
    try:
        said, _ = workers[0].communicate(timeout=300)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    step, path, seconds, text = said.split(" ", 3)
    assert (step, path, workers[0].returncode) == ("7", way, 0)
    assert text.startswith("ProtocolError worker 0 of 2 lost another one, which ended or stopped: ")
    assert int(seconds) <= longest


def torchrun(folder: Path, *arguments: str, **more: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        *arguments[:-1],
        str(EXAMPLE),
        "--data",
        "digits",
        "--steps",
        "40",
        "--save-every",
        "10",
        "--repeatable",
    ]
    command += ["--folder", str(folder), "--spec", arguments[-1]]
    found = environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", **more)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=found, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_restart_by_torchrun_ends_as_if_there_was_none(tmp_path):
    """The example's line tells the sum of all parameters, to the last bit."""
    spec, said = "ef(topk(0.05) | fractional(8))", []
    for name, arguments, stop in (("whole", [], ""), ("stopped", ["--max-restarts", "2"], "23")):
        (tmp_path / name).mkdir()
        out = torchrun(tmp_path / name, *arguments, spec, STOP_AT=stop)
        said.append(re.search(r"2 workers: accuracy (\S+);.* add up to (\S+)", out).groups())
    assert said[0] == said[1]


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["ef(topk(0.05) | fractional(8))", "ef(randk(0.05, shared=True))", "ef(powersgd(1))"])
def test_four_workers_stay_the_same(tmp_path, spec):
    """Their parameters after each of 20 steps, to the last bit; and nothing is lost."""
    four = Ranks(4, tmp_path)
    try:
        workers = four.run(ddp_cases.train, spec, 4, 20, {"bucket_cap_mb": 0.004})
    finally:
        four.close()
    for worker in workers:
        assert worker["hashes"] == workers[0]["hashes"]
        assert worker["bytes_sent"] == workers[0]["bytes_sent"]
    assert len(set(workers[0]["hashes"])) == 20
    raw = np.sum([w["own"] for w in workers], axis=(0, 1), dtype=np.float64)
    left = np.sum([w["residual"] for w in workers], axis=0, dtype=np.float64)
    sent = 4 * np.sum(workers[0]["given"], axis=0, dtype=np.float64)
    np.testing.assert_allclose(sent + left, raw, rtol=0, atol=2e-5 * np.abs(raw).max())
