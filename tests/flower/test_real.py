"""Real processes on loopback, offline: SuperLink, SuperNodes and the example app, started and stopped here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from apps import member_of
from fake_grid import FakeGrid
from flwr.app import Context, RecordDict

import gradwire as gw

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "flower-mnist"
BIN = Path(sys.executable).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BIN / "flower-superlink").exists(), reason="Flower's commands are not installed"),
]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Net:
    """Processes of one federation, their logs in a folder, all ended with it."""

    def __init__(self, folder: Path, num_nodes: int) -> None:
        self.folder = folder
        self.port, *self.node_ports = free_ports(1 + num_nodes)
        self.processes: dict[str, subprocess.Popen] = {}
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "net"\n[superlink.net]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.env = {
            **os.environ,
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT / "src"),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def spawn(self, name: str, *command: str, **env: str) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.env, **env},
                cwd=self.folder,
                start_new_session=True,
            )
        return self.processes[name]

    def superlink(self) -> None:
        self.spawn(
            "superlink", "flower-superlink", "--insecure", "--disable-runtime-dependency-installation",
            "--port", str(self.port), "--database", str(self.folder / "state.db"),
        )  # fmt: skip
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                return
            time.sleep(0.3)
        raise AssertionError(self.log("superlink"))

    def supernode(self, number: int, num_nodes: int) -> None:
        self.spawn(
            f"node{number}", "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.port}",
            "--host", "127.0.0.1", "--port", str(self.node_ports[number]),
            "--node-config", f"partition-id={number} num-partitions={num_nodes}",
            GRADWIRE_STATE=str(self.folder / f"state{number}"),
        )  # fmt: skip

    def run(self, app: Path, seconds: float, **config: str | int | float) -> str:
        given = " ".join(f"{k.replace('_', '-')}={json.dumps(v)}" for k, v in config.items())
        done = subprocess.run(
            [str(BIN / "flwr"), "run", str(app), "net", "--stream", "-c", given],
            capture_output=True, text=True, timeout=seconds, env=self.env, cwd=self.folder, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


@contextmanager
def federation(folder: Path, num_nodes: int) -> Iterator[Net]:
    net = Net(folder, num_nodes)
    try:
        net.superlink()
        for number in range(num_nodes):
            net.supernode(number, num_nodes)
        yield net
    finally:
        net.close()


def in_one_process(folder: Path, num_rounds: int, spec: str) -> str:
    """The same app on a grid in this process: the model's SHA-256."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        from flower_mnist import client_app, server_app
        from flower_mnist.client_app import app
    finally:
        sys.path.remove(str(EXAMPLE))
    from gradwire.flower import CompressionMod

    client_app.compress = CompressionMod(state_dir=folder / "states")
    config = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    config |= {"num-server-rounds": num_rounds, "spec": spec, "data": "digits", "conversation": "trial"}
    config["out"] = str(folder / "out")
    grid = FakeGrid()
    for number in range(3):
        grid.add(app, partition_id=number).run_config = config
    server_app.main(grid, Context(1, 1, {}, RecordDict(), config))
    return json.loads((folder / "out" / "summary.json").read_text())["runs"][0]["model_sha256"]


def test_an_undisturbed_run_is_the_one_of_one_process(tmp_path):
    """Law 2 over real processes, and what the books say."""
    for name in ("real", "fake"):
        (tmp_path / name).mkdir()
    app = tmp_path / "app"
    shutil.copytree(EXAMPLE, app, ignore=shutil.ignore_patterns("__pycache__"))
    out, spec = tmp_path / "out", "ef(topk(0.01))"
    with federation(tmp_path / "real", 3) as net:
        said = net.run(
            app, 500, num_server_rounds=3, data="digits", spec=spec, out=str(out), timeout=90.0, conversation="trial"
        )
        run = json.loads((out / "summary.json").read_text())["runs"][0]
        listed = subprocess.run(
            [str(BIN / "flwr"), "list", "net", "--format", "json"],
            capture_output=True, text=True, timeout=120, env=net.env, cwd=net.folder, check=True,
        )  # fmt: skip
    assert "3 counted" in said
    assert run["rounds_done"] == 3
    assert run["clients"] == 3
    assert run["model_sha256"] == in_one_process(tmp_path / "fake", 3, spec)
    fake = json.loads((tmp_path / "fake" / "out" / "summary.json").read_text())["runs"][0]
    assert (run["uplink_bytes"], run["downlink_bytes"]) == (fake["uplink_bytes"], fake["downlink_bytes"])
    assert run["compression_ratio"] > 40
    traffic = json.loads(listed.stdout)["runs"][0]["network-traffic"]
    inbound = sum(v for k, v in traffic.items() if "inbound" in k and isinstance(v, int))
    assert run["uplink_bytes"] < inbound < run["dense_uplink_bytes"]


BOOKS = """

_train = train


def train(net, config, partition, seed):
    import numpy
    before = numpy.concatenate([t.detach().numpy().ravel().copy() for t in net.state_dict().values()])
    out = _train(net, config, partition, seed)
    after = numpy.concatenate([t.detach().numpy().ravel() for t in net.state_dict().values()])
    numpy.save(f"{FOLDER}/raw-{partition}-{seed}.npy", after - before)
    return out
"""
COUNTED = """

from gradwire import decode, decompress
from gradwire.flower.conversation import Conversation

_receive = Conversation.receive


def receive(self, client, incarnation, blob, weight):
    import numpy
    _receive(self, client, incarnation, blob, weight)
    numpy.save(f"{FOLDER}/counted-{client}-{decode(blob).sequence}.npy", decompress(decode(blob)))


Conversation.receive = receive
"""


def test_a_supernode_killed_between_rounds_loses_nothing(tmp_path):
    """SIGKILL, and it comes back under another id: law 1 of all clients, from books that app and server keep."""
    books, out, app = tmp_path / "books", tmp_path / "out", tmp_path / "app"
    for folder in (books, tmp_path / "real"):
        folder.mkdir()
    shutil.copytree(EXAMPLE, app, ignore=shutil.ignore_patterns("__pycache__"))
    for file, code in (("task.py", BOOKS), ("server_app.py", COUNTED)):
        path = app / "flower_mnist" / file
        path.write_text(f"{path.read_text()}\nFOLDER = {str(books)!r}\n{code}")
    with federation(tmp_path / "real", 3) as net:

        def kill_and_restart() -> None:
            until = time.monotonic() + 300
            while time.monotonic() < until and not (out / "metrics.jsonl").exists():
                time.sleep(0.1)
            net.processes["node1"].kill()
            net.processes["node1"].wait()
            time.sleep(3)
            net.supernode(1, 3)

        killer = threading.Thread(target=kill_and_restart)
        killer.start()
        net.run(app, 560, num_server_rounds=4, data="digits", out=str(out), timeout=120.0, conversation="trial")
        killer.join()
    run = json.loads((out / "summary.json").read_text())["runs"][0]
    assert run["rounds_done"] == 4
    for client in range(3):
        member = member_of(tmp_path / "real" / f"state{client}", "trial", client)
        raw = {int(p.stem.split("-")[2]): np.load(p) for p in books.glob(f"raw-{client}-*.npy")}
        counted = {int(p.stem.split("-")[2]): np.load(p) for p in books.glob(f"counted-{client}-*.npy")}
        if len(raw) > member.client.sequence:  # what was killed before it was remembered was never trained
            del raw[2]
        assert len(raw) == member.client.sequence >= 3
        missing = sum(raw.values()).astype(np.float64) - sum(counted.values())
        for number, blob in zip(member.client.pending_sequences, member.client.pending, strict=True):
            missing -= 0 if number in counted else gw.decompress(gw.decode(blob))
        missing -= member.client.state_dict()["residual"]
        assert np.linalg.norm(missing) <= 1e-6 * np.linalg.norm(sum(raw.values()))
