"""Saved state: what comes back, what is refused, and that a failed write leaves everything as it was."""

from __future__ import annotations

import contextlib
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.numpy import save, save_file

from gradwire.errors import StateError
from gradwire.files.store import load_state, save_state, write_atomically

_DTYPES = ["uint8", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64", "bool"]


def assert_same(got, expected):
    """Equal in value, type, dtype, shape and bit pattern; tuples come back as lists."""
    if isinstance(expected, np.ndarray):
        assert isinstance(got, np.ndarray)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert got.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert isinstance(got, dict)
        assert list(got) == list(expected)
        for key, value in expected.items():
            assert_same(got[key], value)
    elif isinstance(expected, list | tuple):
        assert isinstance(got, list)
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert_same(a, b)
    else:
        assert type(got) is type(expected)
        assert got == expected or (got != got and expected != expected)


def round_trip(folder, state):
    save_state(folder / "state", state)
    return load_state(folder / "state")


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3)])
def test_arrays_come_back_bit_for_bit(tmp_path, dtype, shape):
    array = np.asarray(np.arange(math.prod(shape)).reshape(shape) * 37 + 1).astype(dtype)
    assert_same(round_trip(tmp_path, {"x": array}), {"x": array})


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12, dtype=np.int64)[::-3],
        np.arange(4, dtype=">i8"),
        np.array([np.nan, -0.0, np.inf, -np.inf, 1e-45], np.float32),
    ],
    ids=["transposed", "negative-stride", "big-endian", "special-floats"],
)
def test_arrays_of_any_memory_layout(tmp_path, array):
    got = round_trip(tmp_path, {"x": array})["x"]
    np.testing.assert_array_equal(got, array)
    assert got.dtype == array.dtype.newbyteorder("=")
    assert np.signbit(got).tolist() == np.signbit(array).tolist() if got.dtype.kind == "f" else True


def test_nested_state_comes_back(tmp_path):
    state = {
        "text": "ζ \n\0 'x' 🙂",
        "numbers": [0, -1, 2**63, -(2**70), 0.1, 5e-324, float("inf"), True, False, None],
        "nested": {"a": {"b": [{"c": np.arange(3, dtype=np.uint8)}, [], {}, ""]}},
        "same": [np.zeros(2, np.float32)] * 2,
        "a0": np.ones(1, np.int64),
        "": "empty key",
    }
    assert_same(round_trip(tmp_path, state), state)


def test_tuples_and_numpy_scalars_become_plain(tmp_path):
    got = round_trip(tmp_path, {"t": (1, (2,)), "f": np.float32(0.5), "i": np.int64(7), "b": np.bool_(True)})
    assert_same(got, {"t": [1, [2]], "f": 0.5, "i": 7, "b": True})


_plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"))
_arrays = npst.arrays(st.sampled_from(_DTYPES), npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
_keys = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda k: k != "__array__")
_states = st.recursive(
    _plain | _arrays,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=12,
)


@given(state=st.dictionaries(_keys, _states, max_size=4))
def test_any_state_comes_back(tmp_path_factory, state):
    assert_same(round_trip(tmp_path_factory.mktemp("s"), state), state)


def test_a_loaded_array_is_writable_and_apart_from_the_file(tmp_path):
    save_state(tmp_path / "s", {"x": np.zeros(3, np.float32)})
    load_state(tmp_path / "s")["x"][:] = 1
    assert load_state(tmp_path / "s")["x"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": {1: 2}}, "state.a"),
        ({"a": {"__array__": "a0"}}, "state.a"),
        ({"a": [0, {"b": b"bytes"}]}, "state.a[1].b"),
        ({"a": {1, 2}}, "state.a"),
        ({"a": object()}, "state.a"),
        ({"a": 1j}, "state.a"),
        ({"a": np.array([1 + 1j])}, ""),
        ({"a": np.array([object()], dtype=object)}, ""),
        ({"a": np.array(["text"])}, ""),
    ],
    ids=["int-key", "reserved-key", "bytes", "set", "object", "complex", "complex-array", "object-array", "str-array"],
)
def test_what_cannot_be_saved_is_a_state_error_and_changes_nothing(tmp_path, state, where):
    save_state(tmp_path / "s", {"old": 1})
    with pytest.raises(StateError) as caught:
        save_state(tmp_path / "s", state)
    assert where in str(caught.value)
    assert load_state(tmp_path / "s") == {"old": 1}
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new and longer")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupt_in_mid_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_readers_see_the_old_or_the_new_file_never_a_part(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    seen = []
    real = os.fsync

    def look(descriptor):
        seen.append(path.read_bytes())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_atomically(path, b"new" * 100_000)
    assert seen[0] == b"old"
    assert path.read_bytes() == b"new" * 100_000


def test_writing_into_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        write_atomically(tmp_path / "none" / "file", b"x")


def damaged_files():
    good = save(
        {"a0": np.arange(5, dtype=np.float32)}, {"format": "gradwire-state-1", "tree": '{"x": {"__array__": "a0"}}'}
    )
    meta = {"format": "gradwire-state-1"}
    return {
        "empty": b"",
        "text": b"hello, world, this is no state",
        "zeros": bytes(100),
        "ones": b"\xff" * 100,
        "truncated": good[:-1],
        "half": good[: len(good) // 2],
        "longer": good + b"x",
        "no-metadata": save({"a0": np.zeros(1, np.float32)}),
        "other-format": save({}, {"format": "gradwire-state-2", "tree": "{}"}),
        "no-tree": save({}, meta),
        "tree-no-json": save({}, {**meta, "tree": "{"}),
        "tree-too-deep": save({}, {**meta, "tree": "[" * 100_000}),
        "tree-no-dict": save({}, {**meta, "tree": "[1, 2]"}),
        "array-missing": save({}, {**meta, "tree": '{"x": {"__array__": "a0"}}'}),
        "array-name-no-text": save({}, {**meta, "tree": '{"x": {"__array__": [1]}}'}),
    }


@pytest.mark.parametrize("name", damaged_files())
def test_damaged_and_foreign_files_are_a_state_error_that_names_the_file(tmp_path, name):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(damaged_files()[name])
    with pytest.raises(StateError) as caught:
        load_state(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_another_tool_s_file_are_state_errors(tmp_path):
    save_file({"w": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    for path in (tmp_path / "none", tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(StateError) as caught:
            load_state(path)
        assert str(path) in str(caught.value)


@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_changed_byte_gives_a_state_or_a_state_error(tmp_path_factory, position, flip):
    path = tmp_path_factory.mktemp("s") / "s"
    save_state(path, {"x": np.arange(6, dtype=np.float32), "n": [1, "two", None]})
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= flip
    path.write_bytes(bytes(data))
    with contextlib.suppress(StateError):
        load_state(path)
