"""The app on trial: copies of it, what it should come to, and whether its books balance."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from apps import logged, member_of
from fake_grid import FakeGrid
from flwr.app import Context, RecordDict
from net import Net

import gradwire as gw

APP = Path(__file__).with_name("trial_app")
NAME = "trial"


def copy_app(folder: Path, *changes: tuple[str, str, str]) -> Path:
    """Copy the app; each change is of a file: what stood there once, what stands there now."""
    app = folder / "app"
    shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in changes:
        path = app / "trial_app" / name
        text = path.read_text()
        assert text.count(old) == 1, (name, old)
        path.write_text(text.replace(old, new))
    return app


def config_of(**config: Any) -> dict[str, Any]:
    """The app's config, with changes."""
    given = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    return given | {key.replace("_", "-"): value for key, value in config.items()}


def models(said: str) -> list[str]:
    """The models that a run logged, before the first round and after each: the beginnings of their SHA-256."""
    return re.findall(r"model ([0-9a-f]{12}),", said)


def import_app() -> Any:
    """The app's modules, to be run here."""
    sys.path.insert(0, str(APP))
    try:
        from trial_app import client_app, server_app, task
    finally:
        sys.path.remove(str(APP))
    return client_app, server_app, task


def in_one_process(monkeypatch: Any, folder: Path, **config: Any) -> list[str]:
    """The same app on a grid in this process: the model after each round."""
    client_app, server_app, _ = import_app()
    folder.mkdir()
    monkeypatch.setenv("TRIAL", str(folder))
    monkeypatch.setenv("GRADWIRE_STATE", str(folder / "states"))
    given = config_of(out=str(folder / "out"), **config)
    grid = FakeGrid()
    for number in range(given["num-clients"]):
        grid.add(client_app.app, partition_id=number).run_config = given
    with logged() as lines:
        server_app.main(grid, Context(1, 1, {}, RecordDict(), given))
    return models("\n".join(lines))


def with_plain_ends(num_rounds: int, *, absent: dict[int, int] | None = None, **config: Any) -> list[str]:
    """The same training with nothing but Client and Server: the model after each round.

    ``absent``: client -> the round, counted from 1, from which on nothing of it is counted.
    """
    _, _, task = import_app()
    given = config_of(**config)
    start = task.make_model()
    layout, compressor = gw.Layout.from_arrays(start), gw.parse(given["spec"])
    clients = {i: gw.Client(compressor, layout, client_id=i) for i in range(given["num-clients"])}
    server = gw.Server(compressor, layout)
    model = layout.flatten(start)
    digests = [hashlib.sha256(model.tobytes()).hexdigest()[:12]]
    for index in range(num_rounds):
        for i, client in clients.items():
            if index + 1 < (absent or {}).get(i, num_rounds + 1):
                trained, num_examples = task.train(layout.unflatten(model), i, given["num-clients"], index + 1)
                update = layout.flatten(trained) - model
                server.receive(client.compress(update, num_examples, round=index), i, num_examples)
        result = server.close_round()
        for client in clients.values():
            client.end_round(result.blob)
        model = model + result.applied
        digests.append(hashlib.sha256(model.tobytes()).hexdigest()[:12])
    return digests


def missing(net: Net, client: int, folder: Path | None = None) -> float:
    """Law 1 of one client, from the books: |raw - counted - pending - residual| / |raw|."""
    member = member_of(net.state_dir(client) if folder is None else folder, NAME, client)
    raw = [np.load(path).astype(np.float64) for path in net.books.glob(f"raw-{client}-*.npy")]
    counted = {int(p.stem.split("-")[2]): np.load(p) for p in net.books.glob(f"counted-{client}-*.npy")}
    assert len(raw) == member.client.sequence, "what was trained and remembered has a number each"
    left = sum(raw) - sum(counted.values()) - member.client.state_dict()["residual"]
    for number, blob in zip(member.client.pending_sequences, member.client.pending, strict=True):
        left -= 0 if number in counted else gw.decompress(gw.decode(blob))
    return float(np.linalg.norm(left) / np.linalg.norm(sum(raw)))
