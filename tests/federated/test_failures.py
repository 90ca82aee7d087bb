"""What goes wrong under a run: full disks, damaged files, too little memory. Each is named, and destroys nothing."""

from __future__ import annotations

import copy
import errno
import json
import os
import sqlite3
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gradwire as gw
from examples import up_to
from gradwire.errors import GradwireError, StateError
from gradwire.federated import runs
from gradwire.federated.data.tasks import load_task
from gradwire.federated.experiment import Experiment
from gradwire.federated.folder import RunFolder
from gradwire.federated.runs import run_experiment
from gradwire.federated.simulation import Simulation

SETTINGS = {"methods": ["ef(topk(0.1))"], "rounds": 4, "clients": 3, "local_steps": 1, "batch_size": 4}
ON_DISK = {**SETTINGS, "clients_on_disk": True}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def go(folder, stop_after=None):
    asked = iter(range(1, 10_000))
    return run_experiment(folder, lambda *_: None, lambda *_: None, lambda: next(asked) == stop_after)


def stopped(path, values):
    assert go(RunFolder.create(path, Experiment.build(values)), stop_after=2) is False
    return path


def contents(path):
    return {f: (path / f).read_bytes() for f in os.listdir(path)}


# ---- clients on disk


DAMAGE = {
    "no database": lambda file: file.write_bytes(b"this is text, not a database, and long enough to be looked at" * 20),
    "a hole": lambda file: file.write_bytes(file.read_bytes()[:4096] + b"\xff" * 8192 + file.read_bytes()[12_288:]),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2]),
    "other columns": lambda file: change(file, "DROP TABLE members", "CREATE TABLE members (who INTEGER)"),
    "no state": lambda file: change(file, "UPDATE members SET state = NULL"),
    "a text for a state": lambda file: change(file, "UPDATE members SET state = 'state'"),
    "half a state": lambda file: change(file, "UPDATE members SET state = substr(state, 1, 1000)"),
}


def change(file, *statements):
    base = sqlite3.connect(file)
    for statement in statements:
        base.execute(statement)
    base.commit()
    base.close()


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_to_clients_on_disk_is_a_state_error_that_names_the_file(tmp_path, name):
    path = stopped(tmp_path / "run", ON_DISK)
    assert (path / "members.sqlite").stat().st_size > 12_288
    DAMAGE[name](path / "members.sqlite")
    with pytest.raises(StateError, match=r"members\.sqlite: "):
        go(RunFolder.open(path))


@pytest.mark.parametrize(
    ("code", "number"), [(sqlite3.SQLITE_FULL, errno.ENOSPC), (sqlite3.SQLITE_IOERR | 2 << 8, errno.EIO)]
)
def test_a_full_disk_under_clients_is_an_os_error(tmp_path, monkeypatch, code, number):
    from gradwire.federated.rounds import members

    class Full:
        def __init__(self, base):
            self.base = base

        def executemany(self, *_):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = code
            raise error

        def __getattr__(self, name):
            return getattr(self.base, name)

    connect = sqlite3.connect
    monkeypatch.setattr(members.sqlite3, "connect", lambda path: Full(connect(path)))
    folder = RunFolder.create(tmp_path / "run", Experiment.build(ON_DISK))
    with pytest.raises(OSError, match=r"disk is full: '.*members\.sqlite'") as caught:
        run_experiment(folder, lambda *_: None, lambda *_: None, lambda: False, load_task("digits"))
    assert caught.value.errno == number
    monkeypatch.undo()
    assert go(RunFolder.open(tmp_path / "run")) is True


# ---- full disks


class FullFile:
    """A file on a full disk: what is written goes nowhere once it is flushed."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_no_room_for_metrics_names_the_folder(tmp_path, monkeypatch):
    path = stopped(tmp_path / "run", SETTINGS)
    before, real = contents(path), Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, mode="r", **k: FullFile(real(self, mode, **k)) if mode == "a" else real(self, mode, **k),
    )
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        go(RunFolder.open(path))
    monkeypatch.undo()
    assert (path / "checkpoint.safetensors").read_bytes() == before["checkpoint.safetensors"]
    assert go(RunFolder.open(path)) is True
    assert [r["rounds_done"] for r in json.loads((path / "summary.json").read_text())["runs"]] == [4]


def test_no_room_at_all_says_so_once(tmp_path, monkeypatch):
    """The summary that is written after a failure fails as well; the first error is the one that is told."""
    path = stopped(tmp_path / "run", SETTINGS)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "the first")

    monkeypatch.setattr(runs, "write_state", full)
    monkeypatch.setattr(RunFolder, "write_summary", lambda *_: (_ for _ in ()).throw(OSError(5, "the second")))
    with pytest.raises(OSError, match="the first"):
        go(RunFolder.open(path), stop_after=1)
    monkeypatch.undo()
    assert go(RunFolder.open(path)) is True


# ---- memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type float64"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nand more lines"),
    ],
    ids=["numpy", "torch", "gpu"],
)
def test_too_little_memory_names_the_run(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    folder = RunFolder.create(tmp_path / "run", Experiment.build(SETTINGS))
    monkeypatch.setattr("gradwire.federated.data.train.Trainer.local_updates", fail)
    with pytest.raises(MemoryError) as caught:
        go(folder)
    assert str(caught.value).startswith("ef(topk(0.1)), seed 0: ")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert go(RunFolder.open(tmp_path / "run")) is True


def test_another_error_of_torch_stays_what_it_is(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    folder = RunFolder.create(tmp_path / "run", Experiment.build(SETTINGS))
    monkeypatch.setattr("gradwire.federated.data.train.Trainer.local_updates", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        go(folder)


# ---- checkpoints with fields of other kinds


WITH = {
    "packets": {"mtu": 200, "links": ["lte()"], "packet_loss": 0.3, "disconnection": 0.3, "audit": True},
    "controls": {"algorithms": ["scaffold()"], "links": ["lte()"]},
    "late": {"algorithms": ["fedbuff(buffer_size=2)"], "links": ["mix(lora=1, lte=1)"]},
    "regions": {"methods": ["tcs(0.05, 0.01)"], "regions": 2, "algorithms": ["fedadam()"]},
}
KINDS = [
    None, "x", -1, 0.5, 2**70, [], {}, True, [[1]], float("nan"), np.zeros(2, np.int64), np.full(3, np.nan, np.float32),
]  # fmt: skip


@cache
def begun(name):
    """A task, an experiment, its method and the state after two rounds."""
    task = load_task("digits")
    e = Experiment.build({**SETTINGS, "participation": 0.7, **WITH[name]})
    sim = Simulation(e, gw.parse(e.methods[0]), task, 0)
    rounds = sim.rounds()
    next(rounds), next(rounds)
    return task, e, sim.compressor, sim.state_dict()


def places(tree, path=()):
    """The paths to everything in a state; of lists, to the first two."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


def replaced(tree, path, value):
    if not path:
        return value
    made = copy.copy(tree)
    made[path[0]] = replaced(tree[path[0]], path[1:], value)
    return made


@pytest.mark.parametrize("name", WITH)
@settings(max_examples=up_to(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_field_of_another_kind_is_a_named_error(name, data):
    task, e, compressor, state = begun(name)
    path = data.draw(st.sampled_from(list(places(state))))
    sim = Simulation(e, compressor, task, 0)
    with suppress(GradwireError):  # what is taken may be another run's; that has a name as well
        try:
            sim.load_state_dict(replaced(state, path, data.draw(st.sampled_from(KINDS))))
        except StateError:
            return
        next(sim.rounds())
    sim.summary()


def test_an_untouched_state_is_taken():
    for name in WITH:
        task, e, compressor, state = begun(name)
        sim = Simulation(e, compressor, task, 0)
        sim.load_state_dict(state)
        next(sim.rounds())
