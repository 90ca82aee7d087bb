"""Runs that test_kills.py kills: each goes on with what it finds in its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

import gradwire as gw
from gradwire.federated import runs
from gradwire.federated.folder import RunFolder
from gradwire.secagg import SecureClient, SecureServer, Terms

ROUNDS = 60
CLIENTS = range(5)
LAYOUT = gw.Layout.flat(4_000)
SPEC = gw.parse("ef(cyclic(0.05) | fixed(8, 0.25))")
TERMS = Terms(len(CLIENTS), 3, gw.fixed(8, 0.25))


def simulated(path: Path) -> None:
    """Go on with a simulation, with a checkpoint after every round."""
    torch.set_num_threads(1)
    runs._CHECKPOINT_SECONDS = 0.0
    runs.run_experiment(RunFolder.open(path), lambda *_: None, lambda *_: None, lambda: False)


def secure(path: Path) -> None:
    """Go on with a training by secure sums; what a round came to is in a folder that is there as a whole or not."""
    clients = {i: gw.Client(SPEC, LAYOUT, client_id=i) for i in CLIENTS}
    server, model = gw.Server(gw.dense(), LAYOUT), np.zeros(LAYOUT.d, np.float32)
    done = max(map(int, (p.name for p in path.iterdir() if p.name.isdecimal())), default=0)
    for left in [p for p in path.iterdir() if p.name != str(done)]:
        shutil.rmtree(left)
    if done:
        model = np.load(path / str(done) / "model.npy")
        for name, end in {"server": server, **clients}.items():
            gw.load_state(path / str(done) / f"{name}.state", end)
    for index in range(done, ROUNDS):
        blobs = {i: c.compress(_target(i) - model, round=index) for i, c in clients.items()}
        total = _summed(blobs, index)
        server.receive(total.blob, 0, total.sum_weights)
        result = server.close_round()
        for i, client in clients.items():
            client.end_round(result.blob, delivered=i in total.clients)
        model += result.applied
        (path / "next").mkdir()
        np.save(path / "next" / "model.npy", model)
        for name, end in {"server": server, **clients}.items():
            gw.save_state(path / "next" / f"{name}.state", end)
        (path / "next").rename(path / str(index + 1))
        shutil.rmtree(path / str(index), ignore_errors=True)


def _target(client: int) -> np.ndarray:
    return np.random.default_rng(client).standard_normal(LAYOUT.d).astype(np.float32) * np.float32(0.1)


def _summed(blobs, index):
    """A secure sum that another client leaves in every round, at another step."""
    secure_server = SecureServer(TERMS, LAYOUT, index)
    secure_clients = {i: SecureClient(TERMS, LAYOUT, i) for i in blobs}
    leaving, at = index % len(blobs), index % 4 + 1
    support = SPEC.shared_support(LAYOUT, gw.Round(index=index))
    steps = (
        (lambda: dict.fromkeys(blobs, secure_server.invitation), lambda i, m: secure_clients[i].join(m)),
        (secure_server.rosters, lambda i, m: secure_clients[i].share(m)),
        (lambda: secure_server.deliveries(support), lambda i, m: secure_clients[i].mask(m, blobs[i], support)),
        (secure_server.survivors, lambda i, m: secure_clients[i].reveal(m)),
    )
    for number, (ask, answer) in enumerate(steps, start=1):
        for i, message in ask().items():
            if i != leaving or number < at:
                secure_server.receive(answer(i, message), i)
    return secure_server.close_round()
