"""Real processes on loopback, offline: a SuperLink, SuperNodes and runs, started, killed and stopped by a test."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from certificates import write_certificates, write_node_key

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

REAL = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BIN / "flower-superlink").exists(), reason="Flower's commands are not installed"),
]
"""Marks of every test that uses this."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Net:
    """Processes of one federation, ended with it; logs, states, books and what runs write lie in its folder.

    Args:
        folder: made if need be.
        num_nodes: SuperNodes that ``with`` starts.
        secure: TLS, and nodes that are known by their keys.
        superexec: a process of its own runs the ServerApps, so that they outlive the SuperLink.
        simulation: the SuperLink is one of the simulation engine, which has nodes of its own.
        traits: node -> environment that it has from the start.
    """

    def __init__(
        self,
        folder: Path,
        num_nodes: int = 3,
        *,
        secure: bool = False,
        superexec: bool = False,
        simulation: bool = False,
        traits: dict[int, dict[str, str]] | None = None,
    ) -> None:
        self.folder, self.num_nodes, self.traits = folder, num_nodes, traits or {}
        self.secure, self.superexec, self.simulation = secure, superexec, simulation
        self.books, self.out = folder / "books", folder / "out"
        self.port, *self.node_ports = free_ports(1 + num_nodes)
        self.processes: dict[str, subprocess.Popen] = {}
        self._all: list[subprocess.Popen] = []
        home = folder / "home"
        for made in (home, self.books):
            made.mkdir(parents=True)
        trust = "insecure = true"
        if secure:
            write_certificates(folder)
            trust = f'root-certificates = "{folder / "ca.crt"}"'
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "net"\n[superlink.net]\naddress = "127.0.0.1:{self.port}"\n{trust}\n'
        )
        self.env = {
            **os.environ,
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT / "src"),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_worker_niceness": "0",  # 15 otherwise: on a busy machine its workers hardly start
            "TRIAL": str(self.books),
        }

    def __enter__(self) -> Net:
        try:
            self.superlink()
            if self.superexec:
                self.spawn("superexec", "flower-superexec", "--insecure", "--runtime-api-address", self.address)
            for number in range(self.num_nodes):
                self.join(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self._all:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)
        mark = f"TRIAL={self.books}".encode()
        for entry in Path("/proc").glob("[0-9]*"):  # what they started in sessions of its own, Ray for one
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def spawn(self, name: str, *command: str, **env: str) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.env, **env},
                cwd=self.folder,
                start_new_session=True,
            )
        self.processes[name] = process
        self._all.append(process)
        return process

    def kill(self, name: str, *pids: int) -> None:
        """SIGKILL, to that process alone, and to others that go with it."""
        self.processes[name].kill()
        self.processes[name].wait()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def superlink(self) -> None:
        """Start it, the first time or again, and wait until it answers."""
        trust = ["--insecure"]
        if self.secure:
            files = {"ca-certfile": "ca.crt", "certfile": "server.crt", "keyfile": "server.key"}
            trust = [part for key, name in files.items() for part in (f"--ssl-{key}", str(self.folder / name))]
            trust.append("--enable-supernode-auth")
        self.spawn(
            "superlink", "flower-superlink", *trust, "--disable-runtime-dependency-installation",
            "--host", "127.0.0.1", "--port", str(self.port), "--database", str(self.folder / "state.db"),
            "--isolation", "process" if self.superexec else "subprocess",
            *(["--simulation"] if self.simulation else []),
        )  # fmt: skip
        context = ssl.create_default_context(cafile=self.folder / "ca.crt") if self.secure else None
        url = f"http{'s' * self.secure}://{self.address}/health"

        def healthy() -> bool:
            with suppress(OSError), urllib.request.urlopen(url, timeout=2, context=context):
                return True
            return False

        self.wait(healthy, "the SuperLink answers", 120)

    def join(self, number: int) -> None:
        """Start a SuperNode for the first time; where nodes are authenticated, with a key of its own."""
        if self.secure:
            write_node_key(self.folder / f"key{number}")
            self.flwr("supernode", "register", str(self.folder / f"key{number}.pub"), "net")
        self.supernode(number)

    def supernode(self, number: int) -> None:
        """Start it, the first time or again."""
        trust = ["--insecure"]
        if self.secure:
            trust = ["--root-certificates", str(self.folder / "ca.crt")]
            trust += ["--auth-supernode-private-key", str(self.folder / f"key{number}")]
        self.spawn(
            f"node{number}", "flower-supernode", *trust, "--superlink", self.address,
            "--host", "127.0.0.1", "--port", str(self.node_ports[number]),
            "--node-config", f"partition-id={number} num-partitions={self.num_nodes}",
            GRADWIRE_STATE=str(self.state_dir(number)), **self.traits.get(number, {}),
        )  # fmt: skip

    def state_dir(self, number: int) -> Path:
        return self.folder / f"state{number}"

    def node_ids(self, number: int) -> list[int]:
        """The ids that a SuperNode had, one for each time that it got in."""
        return [int(said) for said in re.findall(r"SuperNode ID: (\d+)", self.log(f"node{number}"))]

    def flwr(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments],
            capture_output=True, text=True, timeout=120, env=self.env, cwd=self.folder, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, app: Path, *options: str, **config: str | int | float) -> subprocess.Popen:
        """Start a run, the config's dashes written as underscores; what it says goes into run.log."""
        config = {"out": str(self.out), "num_clients": self.num_nodes, **config}
        given = " ".join(f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in config.items())
        return self.spawn("run", "flwr", "run", str(app), "net", "--stream", "-c", given, *options)

    def run(self, app: Path, *options: str, seconds: float = 500, **config: str | int | float) -> str:
        """Run to the end; what this run and those before it said."""
        process = self.start(app, *options, **config)
        assert process.wait(timeout=seconds) == 0, self.log("run")
        return self.log("run")

    def runs(self) -> list[dict[str, Any]]:
        """What ``flwr list`` knows of the runs, the newest first."""
        return json.loads(self.flwr("list", "net", "--format", "json"))["runs"]

    def summary(self) -> dict[str, Any]:
        """What the run wrote of itself last."""
        return json.loads((self.out / "summary.json").read_text())["runs"][0]

    def rounds(self) -> list[dict[str, Any]]:
        """What it wrote of each round."""
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]

    def hold(self, name: str) -> None:
        """Have an instant of the app held: see the app's ``hooks.py``."""
        (self.books / f"hold-{name}").touch()

    def wait_held(self, name: str) -> int:
        """Wait until an instant is reached: the id of the process that is held there."""
        held = self.books / f"held-{name}"
        self.wait(held.exists, f"{name} is reached", 200)
        return int(held.read_text())

    def release(self, name: str) -> None:
        (self.books / f"hold-{name}").unlink()

    def wait(self, done: Callable[[], bool], what: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not done():
            if time.monotonic() > until:
                logs = {path.stem: path.read_text(errors="replace")[-3000:] for path in self.folder.glob("*.log")}
                raise AssertionError(f"waited {seconds} s until {what}", logs)
            time.sleep(0.2)

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""
