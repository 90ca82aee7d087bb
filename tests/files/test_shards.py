"""An update in shards, read by its index as if it were one file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gradwire as gw
from gradwire.files import compress_file, decompress_file
from gradwire.files.safetensors_io import SafetensorsReader
from gradwire.files.shards import open_update

RNG = np.random.default_rng(5)
ARRAYS = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in {"a": 40, "b": (3, 5), "c": 7}.items()}
WHERE = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}


@pytest.fixture
def index(tmp_path):
    for shard in set(WHERE.values()):
        save_file({n: ARRAYS[n] for n, s in WHERE.items() if s == shard}, tmp_path / shard, {"format": "pt"})
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 248}, "weight_map": WHERE}, indent=2))
    return path


def test_shards_are_compressed_as_one_update(index, tmp_path):
    save_file(ARRAYS, tmp_path / "whole")
    residuals = []
    for source in (index, tmp_path / "whole"):
        residuals.append(tmp_path / f"{source.name}.residual")
        compress_file(source, tmp_path / "out.gw", gw.ef(gw.topk(0.1)), residuals[-1], client=0)
    for name, left in load_file(residuals[1]).items():
        assert np.array_equal(load_file(residuals[0])[name], left)
    compress_file(index, tmp_path / "out.gw", gw.dense())
    decompress_file(tmp_path / "out.gw", tmp_path / "back")
    found = load_file(tmp_path / "back")
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in ARRAYS.items()}
    with SafetensorsReader(tmp_path / "back") as reader:
        assert reader.metadata == {"format": "pt"}


def test_a_shard_is_no_output(index, tmp_path):
    before = (tmp_path / "model-2.safetensors").read_bytes()
    with pytest.raises(gw.ConfigError, match="is the same file as"):
        compress_file(index, tmp_path / "model-2.safetensors", gw.dense())
    assert (tmp_path / "model-2.safetensors").read_bytes() == before


def change(index, **weight_map):
    text = json.loads(index.read_text())
    text["weight_map"] |= weight_map
    index.write_text(json.dumps({**text, "weight_map": {n: s for n, s in text["weight_map"].items() if s is not ...}}))


DAMAGE = {
    "shard-missing": (
        lambda i: i.with_name("model-2.safetensors").unlink(),
        "a shard it names: .*model-2.*No such",
    ),
    "shard-cut": (lambda i: i.with_name("model-2.safetensors").write_bytes(b"version https://git-lfs"), "git lfs pull"),
    "tensor-missing": (lambda i: change(i, d="model-1.safetensors"), "for instance tensor 'd'"),
    "tensor-elsewhere": (lambda i: change(i, a="model-2.safetensors"), "for instance tensor 'a'"),
    "tensor-unnamed": (lambda i: change(i, c=...), "for instance tensor 'c'"),
    "outside": (lambda i: change(i, d="../secret"), "its own folder; got '../secret'"),
    "absolute": (lambda i: change(i, d="/etc/passwd"), "its own folder; got '/etc/passwd'"),
    "parent": (lambda i: change(i, d=".."), "its own folder|Is a directory"),
    "windows": (lambda i: change(i, d="..\\secret"), "its own folder"),
    "number": (lambda i: change(i, d=7), "cannot be read"),
    "no-map": (lambda i: i.write_text('{"weight_map": [1]}'), "cannot be read"),
    "empty-map": (lambda i: i.write_text('{"weight_map": {}}'), "got none"),
    "twice": (lambda i: i.write_text('{"weight_map": {"a": "x", "a": "y"}}'), "cannot be read"),
    "too-deep": (lambda i: i.write_text('{"weight_map": ' + "[" * 100_000), "cannot be read"),
    "other-json": (lambda i: i.write_text('{"a": 1}'), "JSON text"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_an_index_that_is_not_so_is_refused_and_named(index, name):
    damage, said = DAMAGE[name]
    damage(index)
    with pytest.raises(gw.ConfigError, match=said) as caught:
        open_update(index)
    assert str(caught.value).startswith(f"{index}: ")


def test_one_tensor_in_two_shards_is_refused(index):
    save_file({"b": ARRAYS["b"], "a": ARRAYS["a"]}, index.with_name("model-2.safetensors"))
    with pytest.raises(gw.ConfigError, match="do not hold what the index says"):
        open_update(index)
