"""safetensors -> .gw -> safetensors: every dtype, metadata, and what cannot be done, named."""

from __future__ import annotations

import itertools
import json
import math
import os
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gradwire as gw
from gradwire.files import compress_file, decompress_file, inspect_file
from gradwire.files.archive import SafetensorsReader
from gradwire.files.atomic import AtomicFile

RNG = np.random.default_rng(3)
WIDTHS = {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F4": 0.5, "F6_E2M3": 0.75, "C64": 8, "F3_FUTURE": 0.375, "I64": 8}


def write(path, tensors, metadata=None):
    """Write (name, dtype, shape, bytes) as they are: the package writes no dtype that NumPy has not."""
    header, body = {"__metadata__": metadata} if metadata else {}, b""
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def read(path):
    with SafetensorsReader(path) as reader:
        return {info.name: (info.dtype, info.shape, reader.raw(info).tobytes()) for info in reader.tensors}


def there_and_back(folder, spec="dense()", **given):
    num_bytes = compress_file(folder / "in", folder / "out.gw", gw.parse(spec), **given)
    decompress_file(folder / "out.gw", folder / "back")
    assert num_bytes == (folder / "out.gw").stat().st_size
    return num_bytes


def test_dtypes_without_a_code_travel_as_they_are(tmp_path):
    tensors = [("w", "F32", (4,), np.ones(4, "<f4").tobytes())]
    for dtype, width in WIDTHS.items():
        tensors.append((f"t {dtype}", dtype, (2, 8), RNG.bytes(int(16 * width))))
    write(tmp_path / "in", tensors)
    there_and_back(tmp_path, "topk(0.5)")
    back = read(tmp_path / "back")
    assert list(back.items())[1:] == [(name, (dtype, shape, data)) for name, dtype, shape, data in tensors[1:]]
    assert np.count_nonzero(np.frombuffer(back["w"][2], "<f4")) == 2
    assert [t["dtype"] for t in inspect_file(tmp_path / "out.gw")["tensors"]] == ["F32", *WIDTHS]


def test_float64_is_compressed_as_float32(tmp_path):
    x = RNG.standard_normal((100, 10))
    save_file({"coef_": x}, tmp_path / "in")
    there_and_back(tmp_path)
    back = load_file(tmp_path / "back")["coef_"]
    assert back.dtype == np.float64
    assert np.array_equal(back, x.astype(np.float32))
    assert there_and_back(tmp_path, "topk(0.01)") < 200
    back = load_file(tmp_path / "back")["coef_"].reshape(-1)
    largest = np.argsort(-np.abs(x.reshape(-1)))[:10]
    assert sorted(np.flatnonzero(back)) == sorted(largest)


def test_a_residual_of_float64_is_what_was_not_sent(tmp_path):
    x = RNG.standard_normal(200)
    save_file({"w": x, "half": np.ones(3, np.float16)}, tmp_path / "in")
    sent = 0
    for _ in range(3):
        there_and_back(tmp_path, "ef(topk(0.1) | uniform(4))", residual=tmp_path / "r")
        sent = sent + load_file(tmp_path / "back")["w"]
    left = load_file(tmp_path / "r")
    assert {array.dtype.name for array in left.values()} == {"float32"}
    np.testing.assert_allclose(sent + left["w"], 3 * x, atol=1e-5)


@pytest.mark.parametrize("dtype", ["F16", "F32", "F64"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_with_its_tensor(tmp_path, dtype, bad):
    kind = {"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]
    save_file({"fine": np.ones(3, kind), "layer.1": np.array([1, bad, 2], kind)}, tmp_path / "in")
    for spec in ("dense()", "topk(0.5)"):
        with pytest.raises(gw.UpdateError, match=r"in: tensor 'layer\.1'.* must be finite, got .* at index 1"):
            there_and_back(tmp_path, spec)
    assert os.listdir(tmp_path) == ["in"]


def test_float64_beyond_float32_is_refused_with_its_tensor(tmp_path):
    save_file({"w": np.array([1, 1e300])}, tmp_path / "in")
    with pytest.raises(gw.UpdateError, match="tensor 'w' as float32 must be finite, got inf at index 1"):
        there_and_back(tmp_path)


def test_a_residual_that_is_not_finite_is_not_put_down_to_the_update(tmp_path):
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "in")
    save_file({"w": np.array([0, np.nan, 0], np.float32)}, tmp_path / "r")
    with pytest.raises(gw.UpdateError, match="tensor 'w' and its residual must be finite"):
        there_and_back(tmp_path, "ef(topk(0.5))", residual=tmp_path / "r")


@pytest.mark.parametrize("metadata", [None, {"format": "pt", "rank": "8", "": "", "é\x1b": "\u202e" * 1000}])
def test_metadata_comes_back(tmp_path, metadata):
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "in", metadata)
    there_and_back(tmp_path)
    with safe_open(tmp_path / "back", "np") as file:
        assert (file.metadata() or {}) == (metadata or {})
    assert inspect_file(tmp_path / "out.gw")["metadata"] == (metadata or {})


def test_a_scale_for_all_tensors_is_refused_where_there_are_several(tmp_path):
    save_file({"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)}, tmp_path / "in")
    for spec in ("uniform(3, scope='model')", "topk(0.5) | sign(scope='model')", "ef(uniform(3, scope='model'))"):
        with pytest.raises(gw.ConfigError, match=r"tensor by tensor, and \w+\(.*scope='model'\) has one scale"):
            there_and_back(tmp_path, spec, residual=tmp_path / "r" if spec.startswith("ef") else None)
    save_file({"a": np.ones(3, np.float32), "n": np.ones(3, np.int8)}, tmp_path / "in")
    there_and_back(tmp_path, "uniform(3, scope='model')")


def test_the_residual_of_another_update_is_refused_with_the_tensor(tmp_path):
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "in")
    for other in ({"b": np.ones(3, np.float32)}, {"a": np.ones(4, np.float32)}, {"a": np.ones(3, np.float16)}, {}):
        save_file(other, tmp_path / "r")
        before = (tmp_path / "r").read_bytes()
        with pytest.raises(gw.ConfigError, match=r"r: is not the residual of this update.*tensor '[ab]'"):
            there_and_back(tmp_path, "ef(topk(0.5))", residual=tmp_path / "r")
        assert (tmp_path / "r").read_bytes() == before


def test_paths_may_be_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"a": np.ones(3, np.float32)}, "in")
    compress_file("in", "out.gw", gw.ef(gw.topk(0.5)), "r")
    decompress_file("out.gw", "back")
    assert sorted(os.listdir()) == ["back", "in", "out.gw", "r"]
    assert inspect_file("out.gw")["d"] == 3


@pytest.mark.parametrize("names", [*itertools.permutations(["in", "out.gw", "r"], 2)])
def test_no_two_files_of_a_call_are_one(tmp_path, names):
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "in")
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "r")
    given = {name: tmp_path / name for name in ("in", "out.gw", "r")}
    given[names[0]] = tmp_path / "link"
    (tmp_path / "link").symlink_to(given[names[1]])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.exists()}
    with pytest.raises(gw.ConfigError, match="is the same file as"):
        compress_file(given["in"], given["out.gw"], gw.ef(gw.topk(0.5)), given["r"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.exists()} == before


@pytest.mark.parametrize("step", ["finish", "commit"])
@pytest.mark.parametrize("call", [0, 1])
def test_a_failure_at_the_end_leaves_the_residual_before(tmp_path, monkeypatch, step, call):
    """Both files are on the disk before the first of them is put in its place."""
    save_file({"a": np.arange(9, dtype=np.float32)}, tmp_path / "in")
    there_and_back(tmp_path, "ef(topk(0.1))", residual=tmp_path / "r")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real, calls = getattr(AtomicFile, step), []

    def failing(self):
        calls.append(self)
        if len(calls) == call + 1:
            raise OSError(28, "No space left on device", "x")
        real(self)

    monkeypatch.setattr(AtomicFile, step, failing)
    with pytest.raises(OSError, match="No space"):
        compress_file(tmp_path / "in", tmp_path / "out.gw", gw.ef(gw.topk(0.1)), tmp_path / "r")
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = {name for name in after if after[name] != before.get(name)}
    assert set(after) == set(before)
    assert changed == ({"out.gw"} if (step, call) == ("commit", 1) else set())


def test_the_old_residual_is_closed_before_it_is_replaced(tmp_path, monkeypatch):
    """Windows replaces no file that is open."""
    save_file({"a": np.arange(9, dtype=np.float32)}, tmp_path / "in")
    there_and_back(tmp_path, "ef(topk(0.1))", residual=tmp_path / "r")
    readers, real, commit = [], SafetensorsReader.__init__, AtomicFile.commit

    def opening(self, path):
        real(self, path)
        readers.append(self)

    def committing(self):
        assert [r.path.name for r in readers if not r._file.closed and r.path.name in ("r", "out.gw")] == []
        commit(self)

    monkeypatch.setattr(SafetensorsReader, "__init__", opening)
    monkeypatch.setattr(AtomicFile, "commit", committing)
    compress_file(tmp_path / "in", tmp_path / "out.gw", gw.ef(gw.topk(0.1)), tmp_path / "r")
    assert {r.path.name for r in readers} == {"in", "r"}
