"""The state of a client, server or region in a file: what comes back, and what is refused without a change."""

from __future__ import annotations

import os

import numpy as np
import pytest

import gradwire as gw

LAYOUT = gw.Layout.from_arrays({"w": np.empty((10, 20), np.float32), "b": np.empty(20, np.float32)})
SPEC = gw.ef(gw.topk(0.05) | gw.uniform(4))
RNG = np.random.default_rng(6)


def update():
    return RNG.standard_normal(LAYOUT.d).astype(np.float32)


def make(kind):
    if kind == "client":
        return gw.Client(SPEC, LAYOUT, client_id=3, seed=2)
    return gw.Server(SPEC, LAYOUT, max_staleness=2) if kind == "server" else gw.Region(SPEC, LAYOUT, region_id=1)


def used(kind):
    """An end in the middle of things: pending payloads, packets half arrived, a reference held."""
    end, other = make(kind), gw.Client(SPEC, LAYOUT, client_id=5)
    if kind == "client":
        server = gw.Server(SPEC, LAYOUT)
        end.compress(update())
        end.end_round(server.close_round().blob, delivered=False)
        end.packets(update(), 60)
        return end
    end.receive(other.compress(update(), 2.0), 5, 2.0)
    end.receive(gw.Client(SPEC, LAYOUT, client_id=6).packets(update(), 80)[0], 6)
    if kind == "server":
        end.close_round()
        end.receive(gw.Client(SPEC, LAYOUT, client_id=7).compress(update(), round=1), 7)
    return end


def next_bytes(end, kind):
    if kind == "client":
        return end.compress(np.linspace(-1, 1, LAYOUT.d, dtype=np.float32))
    return end.close_round().blob if kind == "server" else end.forward().blob


@pytest.mark.parametrize("kind", ["client", "server", "region"])
def test_an_end_goes_on_where_it_was(tmp_path, kind):
    end, twin = used(kind), make(kind)
    gw.save_state(tmp_path / "state", end)
    gw.load_state(tmp_path / "state", twin)
    assert os.listdir(tmp_path) == ["state"]
    assert next_bytes(twin, kind) == next_bytes(end, kind)
    gw.save_state(str(tmp_path / "state"), twin)
    gw.load_state(str(tmp_path / "state"), end)


@pytest.mark.parametrize("kind", ["client", "server", "region"])
def test_the_file_is_safetensors_and_holds_no_pickle(tmp_path, kind):
    from safetensors import safe_open

    gw.save_state(tmp_path / "state", used(kind))
    with safe_open(tmp_path / "state", "np") as file:
        assert set(file.metadata()) == {"format", "tree", "crc32"}
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "state", allow_pickle=False)


def test_what_belongs_to_something_else_is_refused_and_changes_nothing(tmp_path):
    gw.save_state(tmp_path / "client", used("client"))
    gw.save_state(tmp_path / "server", used("server"))
    wrong = [
        ("server", make("client"), "is the state of a 'server', expected one of a 'client'"),
        ("client", make("region"), "is the state of a 'client', expected one of a 'region'"),
        ("client", gw.Client(gw.ef(gw.topk(0.1)), LAYOUT, 3), "has spec"),
        ("client", gw.Client(SPEC, gw.Layout.flat(LAYOUT.d), 3), "another layout"),
        ("client", gw.Client(SPEC, LAYOUT, 4), "is of client 3, expected 4"),
        ("server", gw.Server(gw.dense(), LAYOUT), "has spec"),
        ("none", make("client"), "No such file"),
    ]
    for name, end, said in wrong:
        before = str(end.state_dict())
        with pytest.raises(gw.StateError, match=said) as caught:
            gw.load_state(tmp_path / name, end)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert str(end.state_dict()) == before


def test_a_damaged_byte_is_noticed_and_changes_nothing(tmp_path):
    end = make("client")
    gw.save_state(tmp_path / "state", used("client"))
    whole, before = (tmp_path / "state").read_bytes(), str(end.state_dict())
    for at in [*range(0, len(whole), 97), len(whole) - 1]:
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]):
            (tmp_path / "state").write_bytes(data)
            with pytest.raises(gw.StateError, match="state: "):
                gw.load_state(tmp_path / "state", end)
    assert str(end.state_dict()) == before


def test_files_of_other_kinds_are_refused(tmp_path):
    from safetensors.numpy import save_file

    from gradwire.files.store import write_state

    save_file({"w": np.ones(3)}, tmp_path / "model")
    write_state(tmp_path / "other", {"round": 3})
    write_state(tmp_path / "more", {"end": "client", "state": make("client").state_dict(), "more": 1})
    write_state(tmp_path / "no-dict", {"end": "client", "state": [1]})
    write_state(tmp_path / "no-kind", {"end": ["client"], "state": {}})
    for name in ("model", "other", "more", "no-dict", "no-kind"):
        with pytest.raises(gw.StateError, match=f"{name}: "):
            gw.load_state(tmp_path / name, make("client"))


@pytest.mark.parametrize("end", [None, {}, gw.topk(0.1), gw.Client])
def test_only_ends_have_a_state(tmp_path, end):
    for call in (gw.save_state, gw.load_state):
        with pytest.raises(gw.ConfigError, match="that of a Client, Server or Region"):
            call(tmp_path / "state", end)


def test_a_failed_write_leaves_the_state_before(tmp_path, monkeypatch):
    end = used("client")
    gw.save_state(tmp_path / "state", end)
    before = (tmp_path / "state").read_bytes()
    end.compress(update())

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space") as caught:
        gw.save_state(tmp_path / "state", end)
    assert caught.value.filename == str(tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == before
    assert os.listdir(tmp_path) == ["state"]
