"""Averaging .gw files: by name, in any order and float dtype; and what differs is named."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_archive import read, write

import gradwire as gw
from gradwire.files import aggregate_files, compress_file

RNG = np.random.default_rng(4)


@pytest.fixture
def mean(tmp_path):
    """Average safetensors written by hand: what aggregate_files gave back, and the file it made."""

    def call(*clients, weights=None, metadata=()):
        files = []
        for number, tensors in enumerate(clients):
            write(tmp_path / f"{number}.st", tensors, dict(metadata[number]) if metadata else None)
            files.append(tmp_path / f"{number}.gw")
            compress_file(tmp_path / f"{number}.st", files[-1], gw.dense())
        return aggregate_files(files, tmp_path / "mean.st", weights), tmp_path / "mean.st"

    return call


def floats(name, values, dtype="F32"):
    array = np.asarray(values, {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8"}[dtype])
    return name, dtype, array.shape, array.tobytes()


def test_float64_is_averaged(mean):
    _, path = mean([floats("coef_", np.full(1000, 1.0), "F64")], [floats("coef_", np.full(1000, 3.0), "F64")])
    found = load_file(path)["coef_"]
    assert found.dtype == np.float64
    assert (found == 2).all()


def test_tensors_go_by_name_in_the_first_file_s_order(mean):
    a, b = RNG.standard_normal((2, 3)), RNG.standard_normal(7)
    _, path = mean([floats("a", a), floats("b", b)], [floats("b", 3 * b), floats("a", 5 * a)], weights=[1, 3])
    found = load_file(path)
    np.testing.assert_allclose(found["a"], 4 * a, rtol=1e-6)
    np.testing.assert_allclose(found["b"], 2.5 * b, rtol=1e-6)
    assert list(read(path)) == ["a", "b"]


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (["F32", "F16"], "F32"),
        (["F16", "F16"], "F32"),
        (["F16", "F64"], "F64"),
        (["F32", "F64", "F16"], "F64"),
        (["F32", "F32"], "F32"),
    ],
)
def test_float_dtypes_mix(mean, dtypes, expected):
    _, path = mean(*([floats("w", [1 + n, -2], dtype)] for n, dtype in enumerate(dtypes)))
    dtype, _, data = read(path)["w"]
    assert dtype == expected
    found = np.frombuffer(data, "<f8" if expected == "F64" else "<f4")
    np.testing.assert_array_equal(found, [1 + (len(dtypes) - 1) / 2, -2])


DIFFERENCES = {
    "missing": ([floats("b", [1])], r"1\.gw: has no tensor 'a', which .*0\.gw has"),
    "one more": ([floats("a", [1, 2]), floats("c", [1])], r"1\.gw: has a tensor 'c', which .*0\.gw has not"),
    "shape": ([floats("a", [[1, 2]])], r"1\.gw: tensor 'a' has shape \(1, 2\), \(2,\) in .*0\.gw"),
    "kind": ([floats("a", [1, 2], "I64")], r"1\.gw: tensor 'a' is I64, F32 in .*0\.gw: only"),
    "prefix": ([floats("module.a", [1, 2])], r"1\.gw: has no tensor 'a'"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_what_differs_is_named_with_its_file(mean, tmp_path, name):
    other, said = DIFFERENCES[name]
    with pytest.raises(gw.ConfigError, match=said):
        mean([floats("a", [1, 2])], other)
    assert not (tmp_path / "mean.st").exists()


def test_a_name_that_is_nearly_right_is_pointed_at(mean):
    with pytest.raises(gw.ConfigError, match=r"did you mean 'layer\.weights'"):
        mean([floats("layer.weight", [1])], [floats("layer.weights", [1])])


def test_integers_are_the_first_file_s_and_those_that_differ_are_told(mean):
    def client(steps, table):
        return [floats("w", [1.0]), floats("steps", steps, "I64"), floats("table", table, "I64")]

    differing, path = mean(client(3, [1, 2]), client(5, [1, 2]))
    assert differing == ("steps",)
    assert load_file(path)["steps"] == 3
    assert mean(client(3, [1, 2]), client(3, [1, 2]))[0] == ()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "C64", "F4", "F3_FUTURE"])
def test_other_dtypes_must_be_the_same_everywhere(mean, dtype):
    data = bytes(range(8))
    shape = {"F8_E4M3": (8,), "C64": (1,), "F4": (16,), "F3_FUTURE": (21,)}[dtype]
    _, path = mean([("q", dtype, shape, data)], [("q", dtype, shape, data)])
    assert read(path)["q"] == (dtype, shape, data)
    with pytest.raises(gw.ConfigError, match=rf"1\.gw: tensor 'q' is not the same as in .*0\.gw, and {dtype} cannot"):
        mean([("q", dtype, shape, data)], [("q", dtype, shape, data[::-1])])


def test_metadata_is_kept_where_nobody_contradicts(mean):
    one = [floats("w", [1.0])]
    _, path = mean(one, one, one, metadata=[{"format": "pt", "rank": "8", "id": "1"}, {}, {"id": "2", "format": "pt"}])
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt", "rank": "8"}


def test_a_sum_beyond_float32_names_file_and_tensor(mean):
    with pytest.raises(gw.ProtocolError, match=r"1\.gw: tensor 'w': .* could overflow"):
        mean([floats("w", [1e38])], [floats("w", [1e38])])


def test_the_output_is_no_input(tmp_path):
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "in")
    for name in ("a.gw", "b.gw"):
        compress_file(tmp_path / "in", tmp_path / name, gw.dense())
    before = (tmp_path / "b.gw").read_bytes()
    (tmp_path / "link").symlink_to("b.gw")
    for target in ("b.gw", "link"):
        with pytest.raises(gw.ConfigError, match="is the same file as"):
            aggregate_files([tmp_path / "a.gw", tmp_path / "b.gw"], tmp_path / target)
    assert (tmp_path / "b.gw").read_bytes() == before


@pytest.mark.parametrize(
    ("weights", "said"), [([1.0], "2 files, got 1"), ([1, 0], "positive"), ([1, np.nan], "positive")]
)
def test_weights_that_do_not_fit(mean, weights, said):
    with pytest.raises(gw.ConfigError, match=said):
        mean([floats("w", [1])], [floats("w", [1])], weights=weights)


def test_without_files_there_is_no_mean(tmp_path):
    with pytest.raises(gw.ConfigError, match="a file or more"):
        aggregate_files([], tmp_path / "mean.st")
