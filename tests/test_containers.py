"""Containers: what users hold a model in, named and put back."""

from __future__ import annotations

import collections
import io
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradwire as gw
from examples import up_to
from gradwire.containers import describe, name_of


def ones(*shape: int, dtype: str = "float32") -> Any:
    return np.ones(shape, dtype)


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def names(arrays: Any) -> list[str]:
    return [t.name for t in gw.Layout.from_arrays(arrays).tensors]


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"w": ones(2), "b": ones(1)}, ["w", "b"]),
        (collections.OrderedDict(w=ones(2)), ["w"]),
        ([ones(2), ones(1)], ["0", "1"]),
        ((ones(2),), ["0"]),
        (iter([ones(2), ones(1)]), ["0", "1"]),
        ((a for a in [ones(2)]), ["0"]),
        (iter([("w", ones(2)), ("b", ones(1))]), ["w", "b"]),
        ([("w", ones(2)), ("b", ones(1))], ["w", "b"]),
        ({"w": ones(2)}.items(), ["w"]),
        ({"w": ones(2)}.values(), ["0"]),
        (collections.OrderedDict(w=ones(2)).items(), ["w"]),
        ({0: ones(2), np.int64(3): ones(1)}, ["0", "3"]),
        ({("params", "dense", 0): ones(2)}, ["params/dense/0"]),
        ({"params": {"dense": {"kernel": ones(2), "bias": ones(1)}}}, ["params/dense/kernel", "params/dense/bias"]),
        ([(ones(2, 2), ones(2)), (ones(2, 1), ones(1))], ["0/0", "0/1", "1/0", "1/1"]),
        ({"a": Layer(ones(2), ones(1))}, ["a/kernel", "a/bias"]),
        ({"a": {}, "b": [], "w": ones(2)}, ["w"]),
        ({"": ones(2)}, [""]),
        ([], []),
        ({"gain": np.float32(1.0)}, ["gain"]),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_names(arrays, expected):
    assert names(arrays) == expected


def test_a_module_stands_for_its_state_dict():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    layout = gw.Layout.from_arrays(model)
    assert layout == gw.Layout.from_arrays(model.state_dict())
    assert torch.equal(layout.flatten(model), layout.flatten(model.state_dict()))
    model.load_state_dict(layout.unflatten(layout.flatten(model)), strict=False)
    both = gw.Layout.from_arrays({"a": torch.nn.Linear(1, 1), "b": torch.nn.Linear(1, 1)})
    assert [t.name for t in both.tensors] == ["a/weight", "a/bias", "b/weight", "b/bias"]


def test_named_parameters_leave_the_statistics_out():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    layout = gw.Layout.from_arrays(model.named_parameters())
    assert layout.d == layout.num_parameters == 24
    assert layout.container is None, "pairs are no more than a dict"
    back = layout.unflatten(layout.flatten(model.named_parameters()))
    assert all(torch.equal(back[name], p.detach()) for name, p in model.named_parameters())


def test_a_list_comes_back_as_a_list():
    """As Flower hands models on: values without names, among them a counter that does not travel."""
    arrays = [ones(2, 3), np.array(7, np.int64), ones(3, dtype="float16")]
    layout = gw.Layout.from_arrays(arrays)
    back = layout.unflatten(layout.flatten(arrays))
    assert type(back) is list
    assert back[1] is None
    assert [a.dtype for a in (back[0], back[2])] == [np.float32, np.float16]
    assert np.array_equal(back[0], arrays[0])


def test_flatten_takes_any_container_of_the_same_names():
    layout = gw.Layout.from_arrays({"a": {"w": ones(2)}, "b": [ones(1)]})
    expected = layout.flatten({"a": {"w": ones(2)}, "b": [ones(1)]})
    for other in ({"a/w": ones(2), "b/0": ones(1)}, {("a", "w"): ones(2), ("b", 0): ones(1)},
                  iter([("b/0", ones(1)), ("a/w", ones(2))])):  # fmt: skip
        assert np.array_equal(layout.flatten(other), expected)


leaves = st.sampled_from(["float16", "float32", "float64", ">f4", ">f2", "<f8"]).flatmap(
    lambda dtype: st.lists(st.integers(-8, 8), max_size=3).map(lambda values: np.array(values, dtype))
)
keys = st.one_of(st.text("abc.", min_size=1, max_size=3), st.integers(0, 3), st.tuples(st.text("xyz"), st.just(9)))
held = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.tuples(inner, inner).map(lambda pair: Layer(*pair)),
    ),
    max_leaves=8,
)


def alike(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return a.dtype == b.dtype and a.dtype.byteorder == b.dtype.byteorder and np.array_equal(a, b)


@settings(max_examples=up_to(150), deadline=None)
@given(held.filter(lambda value: isinstance(value, (dict, list, tuple))))
def test_what_was_given_comes_back(value):
    layout = gw.Layout.from_arrays(value)
    assert alike(layout.unflatten(layout.flatten(value)), value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (ones(3), r"got ndarray; give the array a name, as in \{'weight': array\}, or use Layout.flat\(d\)"),
        (torch.ones(3), "got Tensor; give the array a name"),
        ("model.pt", "got str; read the file first"),
        (io.BytesIO(b"x"), "got BytesIO; read the file first"),
        (None, "got None; pass a dict"),
        (3, "got the int 3; pass a dict"),
        ({1, 2}, "got set; pass a dict"),
        ([1.0, 2.0], "got a list of float; pass a dict"),
        (torch.nn.Linear, "got type; pass a dict"),
        (type("Model", (), {"variables": ()})(), r"pass \{v.path: v for v in model.variables\}"),
        ({None: ones(1)}, "keys must be text, integers or tuples of them, got None"),
        ({"a": {1.5: ones(1)}}, "got 1.5 in 'a'"),
        ({("a", None): ones(1)}, r"got \('a', None\)"),
        ({0: ones(1), "0": ones(1)}, "two entries are named '0'"),
        ({"a": {"b": ones(1)}, "a/b": ones(1)}, "two entries are named 'a/b'"),
        ({"w": ones(1), "_extra_state": None}, "entry '_extra_state'.*got None; leave it out"),
        ({"w": ones(1), "_extra_state": io.BytesIO()}, "entry '_extra_state'.*got BytesIO; leave it out"),
        ({"a": {"lr": 0.1}}, "entry 'a/lr'.*got the float 0.1; leave it out, or pass np.float32 of it"),
        ({"state": {0: ones()}, "groups": [{"lr": 0.1}]}, "entry 'groups/0/lr'.*got the float 0.1"),
        ({"epoch": 3, "w": ones(1)}, "entry 'epoch'.*got the int 3"),
        ({"w": [1.0, 2.0]}, "entry 'w'.*got a list of float; pass np.array"),
        ({"name": "resnet"}, "entry 'name'.*got str; leave it out"),
        ([ones(1), None], "entry '1'.*got None"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)  # fmt: skip
def test_what_cannot_be_taken_is_named(arrays, message):
    with pytest.raises(gw.ConfigError, match=message):
        gw.Layout.from_arrays(arrays)


def test_flatten_says_the_same_of_updates():
    layout = gw.Layout.from_arrays({"w": ones(3)})
    with pytest.raises(gw.UpdateError, match=r"entry 'w'.*got a list of float; pass np.array"):
        layout.flatten({"w": [1.0, 2.0, 3.0]})
    with pytest.raises(gw.UpdateError, match="give the array a name"):
        layout.flatten(ones(3))
    with pytest.raises(gw.UpdateError, match=r"entry 'w'.*got None"):
        layout.flatten({"w": None})


def test_words():
    assert [name_of(key) for key in ("w", 3, np.int32(4), ("a", 0), (), None, 1.5, b"w")] == [
        "w", "3", "4", "a/0", None, None, None, None,
    ]  # fmt: skip
    assert describe([]) == "list"
