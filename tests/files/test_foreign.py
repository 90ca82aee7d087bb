"""Files of other kinds are told by name, with what to do; made here by the tools that make them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save

import gradwire as gw
from gradwire.files import compress_file, decompress_file

ARRAYS = {"w": np.ones(3, np.float32)}


def made_by_torch(new):
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save({"w": torch.ones(3)}, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def made_by_numpy(save_with):
    file = io.BytesIO()
    save_with(file)
    return file.getvalue()


def a_zip(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"x")
    return file.getvalue()


KINDS = {
    "torch": (lambda: made_by_torch(True), "PyTorch file .zip archive.: load it with torch.load"),
    "torch-before-1.6": (lambda: made_by_torch(False), "pickle .an old PyTorch .pt"),
    "pickle": (lambda: pickle.dumps({"w": 1}), "a pickle"),
    "npz": (lambda: made_by_numpy(lambda f: np.savez(f, **ARRAYS)), r"NumPy archive \(\.npz\)"),
    "npy": (lambda: made_by_numpy(lambda f: np.save(f, ARRAYS["w"])), r"NumPy array \(\.npy\)"),
    "zip": (lambda: a_zip("model.safetensors"), "a zip archive: unpack it first"),
    "half-a-zip": (lambda: a_zip("x")[:-9], "a damaged zip archive"),
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "run 'git lfs pull'"),
    "json": (lambda: json.dumps({"a": 1}).encode(), "JSON text"),
    "page": (lambda: b"<!DOCTYPE html><html><body>401</body></html>", "a web page"),
    "gzip": (lambda: gzip.compress(save(ARRAYS)), "a gzip archive"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "empty": (lambda: b"", "empty"),
    "payload": (lambda: gw.Client(gw.dense(), gw.Layout.flat(9)).compress(np.ones(9, np.float32)), "a single payload"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_is_is_said_in_place_of_what_it_is_not(tmp_path, kind):
    make, said = KINDS[kind]
    (tmp_path / "x").write_bytes(make())
    with pytest.raises(gw.ConfigError, match=rf"x: not a safetensors file: .*{said}"):
        compress_file(tmp_path / "x", tmp_path / "out", gw.topk(0.5))
    with pytest.raises(gw.DecodeError, match=rf"x: not a \.gw file: .*{said}"):
        decompress_file(tmp_path / "x", tmp_path / "out")


def test_the_two_kinds_of_our_own_are_told_apart(tmp_path):
    (tmp_path / "x.st").write_bytes(save(ARRAYS))
    compress_file(tmp_path / "x.st", tmp_path / "x.gw", gw.dense())
    with pytest.raises(gw.ConfigError, match=r"a \.gw file: 'gradwire decompress'"):
        compress_file(tmp_path / "x.gw", tmp_path / "out", gw.dense())
    with pytest.raises(gw.DecodeError, match="a safetensors file: 'gradwire compress'"):
        decompress_file(tmp_path / "x.st", tmp_path / "out")


def test_what_cannot_be_told_is_described(tmp_path):
    (tmp_path / "x").write_bytes(b"\x01" * 40)
    with pytest.raises(gw.ConfigError, match="a header of 72340172838076673 bytes in 40"):
        compress_file(tmp_path / "x", tmp_path / "out", gw.dense())
    with pytest.raises(gw.DecodeError, match=r"it must start with b'GWFILE', got b'\\x01"):
        decompress_file(tmp_path / "x", tmp_path / "out")
