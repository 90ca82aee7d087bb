"""Where nodes keep their state: what it costs them, and what is said of it."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import ModuleType

import pytest
from apps import flat, initial, logged, make_app, plain_run
from fake_grid import FakeGrid
from flwr.serverapp.strategy import FedAvg

from gradwire.flower import CompressedStrategy, CompressionMod
from gradwire.flower.state import FolderStore

SPEC = "ef(topk(0.05))"


@pytest.mark.parametrize(
    ("engine", "config", "synced"),
    [
        (False, {"num_partitions": 3}, 1),  # a real node, as Flower's tutorials start them
        (True, {"num_partitions": 3}, 0),  # Flower's simulation engine
        (True, {}, 1),  # a real node whose app uses ray
    ],
)
def test_a_message_waits_for_the_disk_once_and_not_in_a_simulation(tmp_path, monkeypatch, engine, config, synced):
    calls = []
    monkeypatch.setattr(os, "fsync", calls.append)
    if engine:
        monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    else:
        monkeypatch.delitem(sys.modules, "ray", raising=False)
    app = make_app(CompressionMod(state_dir=tmp_path))
    grid = FakeGrid()
    for i in range(3):
        grid.add(app, partition_id=i, **config)
    result = CompressedStrategy(FedAvg(), SPEC).start(grid, initial(), 4, 5)
    assert len(calls) == synced * len(grid.replies)
    assert flat(result.arrays).tobytes() == plain_run(SPEC, 4).tobytes()


def test_both_ends_say_where_they_keep_what(tmp_path):
    def run(mod, **settings):
        grid = FakeGrid()
        grid.add(make_app(CompressionMod(**mod)), partition_id=0)
        inner = FedAvg(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1)
        with logged() as lines:
            CompressedStrategy(inner, SPEC, **settings).start(grid, initial(), 2, 5)
        return lines

    lines = run(mod={"state_dir": tmp_path}, conversation="trial", state_file=tmp_path / "server.state")
    for said in (
        f"client 0 keeps what it did not send yet in {tmp_path / 'trial' / 'client-0.state'}",
        f"the server keeps its state in {tmp_path / 'server.state'}",
    ):
        assert sum(said in line for line in lines) == 1
    [said] = [s for s in lines if "conversation 'trial'" in s]
    assert "ef(topk(0.05)) up, some 60 bytes a client and round in place of 840" in said
    lines = run(mod={"state": "context"})
    assert any("keeps what it did not send yet in Flower's context, in memory" in s for s in lines)
    assert any("in memory alone: state_file= lets a run that was killed go on" in s for s in lines)


def test_clients_of_one_machine_begin_at_the_same_time(tmp_path):
    """As many as there are open a conversation that is new to all, and each gets its state."""
    num_clients, num_conversations = 8, 25
    together = Barrier(num_clients, timeout=10)

    def begin(client: int) -> int:
        for number in range(num_conversations):
            together.wait()
            with FolderStore(tmp_path / "states").open(f"run-{number}", client) as place:
                assert place.read() is None
        return client

    with ThreadPoolExecutor(num_clients) as pool:
        assert list(pool.map(begin, range(num_clients))) == list(range(num_clients))
