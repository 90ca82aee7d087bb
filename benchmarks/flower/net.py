"""Flower's processes on this machine: a SuperLink, SuperNodes, and runs of examples/flower-mnist on them."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT

EXAMPLE = ROOT / "examples" / "flower-mnist"
BIN = Path(sys.executable).parent
_UP_SECONDS = 600.0
_live: list[Net] = []
_ending = threading.Event()


@dataclass(frozen=True)
class Host:
    """Where processes run.

    Attributes:
        address: under which the others reach it.
        prefix: what is put before a command to run it there.
    """

    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()


def why_not() -> str | None:
    """Say what is missing for runs over real processes; None for nothing."""
    if not (BIN / "flower-superlink").exists():
        return "Flower's commands are not installed beside this Python"
    return None


class Net:
    """The processes of one federation, with their logs in a folder.

    Args:
        folder: empty; for logs, states and the app.
        num_nodes: SuperNodes.
        server: where the SuperLink and the ServerApp run.
        clients: where the SuperNodes run.
        data_dir: the folder of the data files.
    """

    def __init__(self, folder: Path, num_nodes: int, server: Host, clients: Host, data_dir: str | None) -> None:
        self.folder = folder
        self.server, self.clients = server, clients
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        self._port, *self._node_ports = _free_ports(1 + num_nodes)
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "net"\n[superlink.net]\naddress = "{server.address}:{self._port}"\n'
            "insecure = true\n"
        )
        self._app = folder / "app"
        shutil.copytree(EXAMPLE, self._app, ignore=shutil.ignore_patterns("__pycache__"))
        self._env = {
            **os.environ,
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            **({"GRADWIRE_DATA": str(Path(data_dir).resolve())} if data_dir else {}),
        }

    def start_superlink(self) -> None:
        """Start it and wait until it answers."""
        self._spawn(
            "superlink", self.server, "flower-superlink", "--insecure", "--disable-runtime-dependency-installation",
            "--host", self.server.address, "--port", str(self._port),
        )  # fmt: skip
        health = f"http://{self.server.address}:{self._port}/health"
        ask = f"from urllib.request import urlopen; urlopen('{health}', timeout=2)"
        until = time.monotonic() + _UP_SECONDS
        while time.monotonic() < until:
            if subprocess.run([*self.server.prefix, sys.executable, "-c", ask], capture_output=True).returncode == 0:
                return
            time.sleep(0.5)
        raise RuntimeError(f"the SuperLink does not answer: {self.log('superlink')}")

    def start_supernode(self, number: int, num_nodes: int) -> None:
        """Start one; it joins when it is ready."""
        self._spawn(
            f"node{number}", self.clients, "flower-supernode", "--insecure",
            "--superlink", f"{self.server.address}:{self._port}",
            "--host", "127.0.0.1", "--port", str(self._node_ports[number]),
            "--node-config", f"partition-id={number} num-partitions={num_nodes}",
            GRADWIRE_STATE=str(self.folder / f"state{number}"),
        )  # fmt: skip

    def run(self, seconds: float, saw: Callable[[str], None], **config: str | int | float) -> None:
        """Run the app to its end.

        Args:
            seconds: it may take no longer.
            saw: called with every line it logs, as it comes.
            config: of the run, ``_`` for ``-``.

        Raises:
            RuntimeError: where it fails, with the end of its log.
        """
        given = " ".join(f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in config.items())
        command = [*self.server.prefix, str(BIN / "flwr"), "run", str(self._app), "net", "--stream", "-c", given]
        lines: list[str] = []
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._env,
            cwd=self.folder,
            start_new_session=True,
        ) as process:
            self.processes["run"] = process
            watch = threading.Timer(seconds, process.kill)
            watch.start()
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                saw(line)
            watch.cancel()
        if process.returncode or self.listed()["status"] != "finished:completed":
            raise RuntimeError(f"the run failed: {''.join(lines[-40:])}")

    def listed(self) -> dict[str, Any]:
        """Return what Flower itself says of the newest run."""
        done = subprocess.run(
            [*self.server.prefix, str(BIN / "flwr"), "list", "net", "--format", "json"],
            capture_output=True, text=True, timeout=120, env=self._env, cwd=self.folder, check=True,
        )  # fmt: skip
        runs: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
        return runs[0]

    def log(self, name: str) -> str:
        """Return the end of a process's log."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def close(self) -> None:
        """End all of it."""
        for process in reversed(list(self.processes.values())):  # the SuperLink last: others see it go
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)

    def _spawn(self, name: str, host: Host, *command: str, **env: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*host.prefix, str(BIN / command[0]), *command[1:]],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self._env, **env},
                cwd=self.folder,
                start_new_session=True,
            )


@contextmanager
def federation(
    folder: Path, num_nodes: int, data_dir: str | None, server: Host | None = None, clients: Host | None = None
) -> Iterator[Net]:
    """Start a SuperLink and SuperNodes, and end them."""
    if _ending.is_set():
        raise RuntimeError("no more federations are started")
    net = Net(folder, num_nodes, server or Host(), clients or Host(), data_dir)
    _live.append(net)
    try:
        net.start_superlink()
        for number in range(num_nodes):
            net.start_supernode(number, num_nodes)
        yield net
    finally:
        net.close()
        _live.remove(net)


def end_all() -> None:
    """End the processes of all federations, so that what waits for them fails, and start no more."""
    _ending.set()
    for net in tuple(_live):
        net.close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
