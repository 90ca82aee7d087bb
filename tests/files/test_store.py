"""Saved state: what comes back, what is refused, and that a failed write leaves everything as it was."""

from __future__ import annotations

import contextlib
import math
import os
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.numpy import save, save_file

from gradwire.errors import StateError
from gradwire.files.store import pack_state, read_state, unpack_state, write_state

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
    write_state(folder / "state", state)
    return read_state(folder / "state")


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
    write_state(tmp_path / "s", {"x": np.zeros(3, np.float32)})
    read_state(tmp_path / "s")["x"][:] = 1
    assert read_state(tmp_path / "s")["x"].tolist() == [0, 0, 0]


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
    write_state(tmp_path / "s", {"old": 1})
    with pytest.raises(StateError) as caught:
        write_state(tmp_path / "s", state)
    assert where in str(caught.value)
    assert read_state(tmp_path / "s") == {"old": 1}
    assert os.listdir(tmp_path) == ["s"]


def written(tree, arrays=None, **changes):
    """A state file by hand: the checksum is of the tree and of each array's name, dtype, shape and bytes."""
    arrays = arrays or {}
    crc = zlib.crc32(tree.encode())
    for name, array in sorted(arrays.items()):
        crc = zlib.crc32(f"{name} {array.dtype.name} {array.shape}".encode() + array.tobytes(), crc)
    meta = {"format": "gradwire-state-2", "tree": tree, "crc32": f"{crc:08x}"}
    return save(arrays, {k: v for k, v in {**meta, **changes}.items() if v is not None})


def test_a_file_written_by_hand_is_read(tmp_path):
    (tmp_path / "s").write_bytes(written('{"x": {"__array__": "a0"}, "n": [1]}', {"a0": np.arange(6.0).reshape(2, 3)}))
    assert_same(read_state(tmp_path / "s"), {"x": np.arange(6.0).reshape(2, 3), "n": [1]})


def damaged_files():
    arrays = {"a0": np.arange(5, dtype=np.float32)}
    good = written('{"x": {"__array__": "a0"}}', arrays)
    return {
        "empty": b"",
        "text": b"hello, world, this is no state",
        "zeros": bytes(100),
        "ones": b"\xff" * 100,
        "truncated": good[:-1],
        "half": good[: len(good) // 2],
        "longer": good + b"x",
        "no-metadata": save({"a0": np.zeros(1, np.float32)}),
        "other-format": written("{}", format="gradwire-state-1"),
        "no-tree": save({}, {"format": "gradwire-state-2", "crc32": "00000000"}),
        "no-checksum": written("{}", crc32=None),
        "wrong-checksum": written("{}", crc32="00000000"),
        "other-array": good[:-1] + bytes([good[-1] ^ 1]),
        "more-arrays": save(arrays, {"format": "gradwire-state-2", "tree": "{}", "crc32": f"{zlib.crc32(b'{}'):08x}"}),
        "tree-no-json": written("{"),
        "tree-too-deep": written("[" * 100_000),
        "tree-no-dict": written("[1, 2]"),
        "array-missing": written('{"x": {"__array__": "a1"}}', arrays),
        "array-name-no-text": written('{"x": {"__array__": [1]}}', arrays),
    }


@pytest.mark.parametrize("name", damaged_files())
def test_damaged_and_foreign_files_are_a_state_error_that_names_the_file(tmp_path, name):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(damaged_files()[name])
    with pytest.raises(StateError) as caught:
        read_state(path)
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)
    with pytest.raises(StateError, match="the source"):
        unpack_state(damaged_files()[name], "the source")


def test_a_missing_file_a_folder_and_another_tool_s_file_are_state_errors(tmp_path):
    save_file({"w": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    for path in (tmp_path / "none", tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(StateError) as caught:
            read_state(path)
        assert str(path) in str(caught.value)


@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_changed_byte_is_noticed_where_it_changes_the_state(tmp_path_factory, position, flip):
    path = tmp_path_factory.mktemp("s") / "s"
    state = {"x": np.arange(6, dtype=np.float32), "n": [1, "two", None]}
    write_state(path, state)
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= flip
    path.write_bytes(bytes(data))
    with contextlib.suppress(StateError):
        assert_same(read_state(path), state)


def test_packed_states_are_what_files_hold(tmp_path):
    state = {"x": np.arange(4, dtype=">i4"), "deep": [{"y": np.array(2.5)}]}
    write_state(tmp_path / "s", state)
    for data in ((tmp_path / "s").read_bytes(), pack_state(state)):  # the order of safetensors' metadata is no one's
        assert_same(unpack_state(data, "here"), {"x": np.arange(4, dtype="<i4"), "deep": [{"y": np.array(2.5)}]})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StateError, match="is a pipe"):
        read_state(tmp_path / "pipe")
