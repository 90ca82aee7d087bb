"""Layout: named tensors <-> one flat vector, with NumPy and torch."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradwire as gw
from examples import up_to
from gradwire.layout import as_update

ARRAYS = {
    "conv.weight": np.arange(6, dtype=np.float32).reshape(1, 2, 3),
    "bn.running_mean": np.array([10, 11], np.float32),
    "bn.num_batches_tracked": np.array(7, np.int64),
    "scalar": np.array(0.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "half": np.array([1.5, -2.5], np.float16),
    "double": np.array([[0.25]], np.float64),
    "bn.running_var": np.array([20, 21], np.float32),
}


def test_order_offsets_and_counts():
    layout = gw.Layout.from_arrays(ARRAYS)
    assert [t.name for t in layout.tensors] == [
        "conv.weight", "scalar", "empty", "half", "double", "bn.running_mean", "bn.running_var",
    ]  # fmt: skip
    assert [t.offset for t in layout.tensors] == [0, 6, 7, 7, 9, 10, 12]
    assert [t.stop for t in layout.tensors] == [6, 7, 7, 9, 10, 12, 14]
    assert [t.buffer for t in layout.tensors] == [False] * 5 + [True] * 2
    assert (layout.d, layout.num_parameters) == (14, 10)
    assert layout.skipped == ("bn.num_batches_tracked",)


def test_numpy_round_trip():
    layout = gw.Layout.from_arrays(ARRAYS)
    update = layout.flatten(ARRAYS)
    assert update.dtype == np.float32
    assert update.tolist() == [0, 1, 2, 3, 4, 5, 0.5, 1.5, -2.5, 0.25, 10, 11, 20, 21]
    back = layout.unflatten(update)
    assert set(back) == set(ARRAYS) - {"bn.num_batches_tracked"}
    for name, array in back.items():
        assert array.dtype == ARRAYS[name].dtype, name
        assert array.shape == ARRAYS[name].shape, name
        assert np.array_equal(array, ARRAYS[name]), name
        assert np.shares_memory(array, update) == (array.dtype == np.float32 and array.size > 0), name
    update[0] = 99
    assert back["conv.weight"][0, 0, 0] == 99, "float32 tensors are views"
    assert ARRAYS["conv.weight"][0, 0, 0] == 0, "flatten copies"


def test_buffers_skip():
    layout = gw.Layout.from_arrays(ARRAYS, buffers="skip")
    assert layout.d == layout.num_parameters == 10
    assert set(layout.skipped) == {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}
    assert layout.flatten(ARRAYS).tolist() == [0, 1, 2, 3, 4, 5, 0.5, 1.5, -2.5, 0.25]
    assert "bn.running_mean" not in layout.unflatten(layout.flatten(ARRAYS))
    assert layout.digest != gw.Layout.from_arrays(ARRAYS).digest


def test_integers_and_bools_are_skipped():
    kinds = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.bool_)
    arrays = {np.dtype(k).name: np.ones(2, k) for k in kinds} | {"w": np.ones(2, np.float32)}
    layout = gw.Layout.from_arrays(arrays)
    assert layout.d == 2
    assert len(layout.skipped) == 9
    assert layout.flatten(arrays).tolist() == [1, 1]
    tensors = {"i": torch.ones(2, dtype=torch.int64), "b": torch.ones(2, dtype=torch.bool), "w": torch.ones(2)}
    assert gw.Layout.from_arrays(tensors).skipped == ("i", "b")


def test_torch_round_trip_restores_every_dtype():
    tensors = {
        "w": torch.arange(6, dtype=torch.float32).reshape(2, 3).requires_grad_(),
        "bf": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "half": torch.tensor([0.25], dtype=torch.float16),
        "double": torch.tensor(3.5, dtype=torch.float64),
        "strided": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    }
    layout = gw.Layout.from_arrays(tensors)
    update = layout.flatten(tensors)
    assert isinstance(update, torch.Tensor)
    assert update.dtype == torch.float32
    assert not update.requires_grad
    assert update.tolist() == [0, 1, 2, 3, 4, 5, 1.5, -2.0, 0.25, 3.5, 0, 3, 1, 4, 2, 5]
    back = layout.unflatten(update)
    for name, tensor in back.items():
        assert tensor.dtype == tensors[name].dtype, name
        assert torch.equal(tensor, tensors[name].detach()), name
    assert back["w"].data_ptr() == update.data_ptr(), "float32 tensors are views"
    from_numpy = layout.unflatten(update.numpy())
    assert from_numpy["bf"].dtype == np.float32, "NumPy has no bfloat16"
    assert from_numpy["half"].dtype == np.float16


def test_torch_module_state_dict():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    layout = gw.Layout.from_arrays(model.state_dict())
    assert layout.num_parameters == 12 + 4 + 4 + 4
    assert layout.d == layout.num_parameters + 8
    assert layout.skipped == ("1.num_batches_tracked",)
    assert [t.name for t in layout.tensors if t.buffer] == ["1.running_mean", "1.running_var"]
    update = layout.flatten(model.state_dict())
    back = layout.unflatten(update)
    model.load_state_dict(back | {"1.num_batches_tracked": torch.tensor(0)})


def test_same_digest_for_numpy_and_torch():
    arrays = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float16)}
    tensors = {k: torch.from_numpy(v.copy()) for k, v in arrays.items()}
    assert gw.Layout.from_arrays(arrays) == gw.Layout.from_arrays(tensors)
    assert gw.Layout.from_arrays(arrays).digest == gw.Layout.from_arrays(tensors).digest


def test_digest_is_stable():
    """Pinned: blobs on disk and other processes depend on these four bytes."""
    assert gw.Layout.flat(3).digest.hex() == "c1439091"
    assert gw.Layout.from_arrays(ARRAYS).digest.hex() == "d15def4a"
    assert gw.Layout.from_arrays({}).digest.hex() == "4f53cda1"
    text = json.dumps([["", [3], False]], separators=(",", ":"))
    assert gw.Layout.flat(3).digest == hashlib.sha256(text.encode()).digest()[:4]


def test_digest_tells_layouts_apart():
    def of(**shapes: tuple[int, ...]) -> bytes:
        return gw.Layout.from_arrays({k: np.zeros(v, np.float32) for k, v in shapes.items()}).digest

    digests = [of(a=(2, 3)), of(a=(3, 2)), of(a=(6,)), of(b=(2, 3)), of(a=(2, 3), b=()), of(b=(), a=(2, 3)),
               of(running_mean=(2, 3)), gw.Layout.flat(6).digest]  # fmt: skip
    assert len(set(digests)) == len(digests)


def test_empty_layouts():
    for layout in (gw.Layout.from_arrays({}), gw.Layout.flat(0), gw.Layout.from_arrays({"i": np.ones(2, np.int32)})):
        assert layout.d == layout.num_parameters == 0
    assert gw.Layout.from_arrays({}).flatten({}).shape == (0,)
    assert gw.Layout.from_arrays({}).unflatten(np.zeros(0, np.float32)) == {}
    only_statistics = gw.Layout.from_arrays({"running_mean": np.ones(2, np.float32)})
    assert (only_statistics.d, only_statistics.num_parameters) == (2, 0)


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
names = st.text(max_size=8).filter(lambda s: not s.rsplit(".", 1)[-1].startswith("running_"))


@settings(max_examples=up_to(100), deadline=None)
@given(spec=st.dictionaries(names, st.tuples(shapes, st.sampled_from(["float16", "float32", "float64"])), max_size=6))
def test_round_trip_of_any_model(spec):
    rng = np.random.default_rng(0)
    arrays = {n: rng.integers(-8, 8, shape).astype(dtype) / dtype_one(dtype) for n, (shape, dtype) in spec.items()}
    layout = gw.Layout.from_arrays(arrays)
    update = layout.flatten(arrays)
    assert update.size == layout.d == sum(a.size for a in arrays.values())
    back = layout.unflatten(update)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert np.array_equal(back[name], array)
        assert back[name].shape == array.shape


def dtype_one(dtype: str) -> np.generic:
    return np.dtype(dtype).type(4)


# --- which tensors are running statistics ---------------------------------------------------------


def statistics_of(layout: gw.Layout) -> list[str]:
    return [t.name for t in layout.tensors if t.buffer]


@pytest.mark.parametrize(
    "name",
    [
        "bn.running_mean", "running_var", "bn1_running_var", "block/bn/running_mean",  # torch, MXNet
        "bn/moving_mean", "bn/moving_variance", "BatchNorm/moving_variance:0", "bn0_moving_var",  # Keras, TensorFlow
        "batch_stats/BatchNorm_0/mean", "batch_stats.bn.var", "net/batch_stats/bn/mean",  # Flax
        "bn.num_batches_tracked",
    ],
)  # fmt: skip
def test_running_statistics_of_every_framework(name):
    layout = gw.Layout.from_arrays({name: np.ones(2, np.float32), "kernel": np.ones(3, np.float32)})
    assert statistics_of(layout) == [name]
    skipped = gw.Layout.from_arrays({name: np.ones(2, np.float32), "kernel": np.ones(3, np.float32)}, buffers="skip")
    assert (skipped.skipped, skipped.d) == ((name,), 3)


@pytest.mark.parametrize(
    "name",
    ["bn.weight", "mean", "rerunning_mean", "running_mean.weight", "moving_meaning", "my_batch_stats", "gamma:0"],
)
def test_parameters_of_similar_names(name):
    assert statistics_of(gw.Layout.from_arrays({name: np.ones(2, np.float32)})) == []


def test_flax_variables():
    """Variances keep their sign where the rest is sent as one bit."""
    variables = {"params": {"bn": {"scale": np.ones(3, np.float32)}},
                 "batch_stats": {"bn": {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}}}  # fmt: skip
    layout = gw.Layout.from_arrays(variables)
    assert statistics_of(layout) == ["batch_stats/bn/mean", "batch_stats/bn/var"]
    update = np.float32([1, -2, 3, 0.5, 0.25, -0.125, 0.01, 0.02, 0.03])
    got = layout.unflatten(gw.decompress(gw.decode(gw.Client(gw.sign(), layout).compress(update))))
    assert np.array_equal(got["batch_stats"]["bn"]["var"], update[6:])


def test_statistics_can_be_said():
    arrays = {n: np.ones(1, np.float32) for n in ("w", "ema.w", "ema.b", "pos[0]", "bn.running_mean")}

    def of(statistics):
        return statistics_of(gw.Layout.from_arrays(arrays, statistics=statistics))

    assert of("w") == ["w", "bn.running_mean"], "beside those known by name"
    assert of(["ema.*", "pos[0]"]) == ["ema.w", "ema.b", "pos[0]", "bn.running_mean"]
    assert of([]) == of(None) == ["bn.running_mean"]
    assert of(lambda name: name.startswith("ema")) == ["ema.w", "ema.b"], "a function decides of all"
    numbered = gw.Layout.from_arrays([np.ones(1), np.ones(2), np.ones(3)], statistics=[0, 2])
    assert statistics_of(numbered) == ["0", "2"]
    assert gw.Layout.from_arrays(arrays, "skip", ["ema.*"]).skipped == ("ema.w", "ema.b", "bn.running_mean")
    model = torch.nn.BatchNorm1d(2)
    model.register_buffer("mask", torch.ones(2))
    named = gw.Layout.from_arrays(model, statistics=dict(model.named_buffers()))
    assert statistics_of(named) == ["running_mean", "running_var", "mask"]


@pytest.mark.parametrize(
    ("statistics", "message"),
    [("wieght", r"statistics: no tensor is named 'wieght'; did you mean 'weight'\?"), (["ema.*"], "no tensor is named"),
     (3, "statistics must be names, patterns or a function"), ([None], "must be names, patterns.*got None")],
)  # fmt: skip
def test_statistics_refuses(statistics, message):
    with pytest.raises(gw.ConfigError, match=message):
        gw.Layout.from_arrays({"weight": np.ones(1)}, statistics=statistics)


# --- how two layouts differ -----------------------------------------------------------------------


def layout_of(statistics: tuple[str, ...] = (), **shapes: tuple[int, ...]) -> gw.Layout:
    return gw.Layout.from_arrays({n.replace("__", "."): np.zeros(s) for n, s in shapes.items()}, statistics=statistics)


@pytest.mark.parametrize(
    ("here", "there", "said"),
    [
        (layout_of(a=(2,)), layout_of(a=(2,)), None),
        (layout_of(module__a=(2,), module__b=()), layout_of(a=(2,), b=()),
         "names begin with 'module.' here and not there: the first is 'module.a' here and 'a' there"),
        (layout_of(a=(2,)), layout_of(net__a=(2,)),
         "names begin with 'net.' there and not here: the first is 'a' here and 'net.a' there"),
        (layout_of(a=(2,), b=(2,)), layout_of(b=(2,), a=(2,)),
         "tensors are in another order: number 0 is 'a' here and 'b' there"),
        (layout_of(a=(2,), b=(2, 3)), layout_of(a=(2,), b=(3, 2)), "tensor 'b' has shape (2, 3) here and (3, 2) there"),
        (layout_of(a=(2,), b=(2,)), layout_of(a=(2,)), "tensor 'b' is only here"),
        (layout_of(a=(2,)), layout_of(a=(2,), b=(2,)), "tensor 'b' is only there"),
        (layout_of(a=(2,), b=(2,)), layout_of(a=(2,), c=(2,)), "tensor 'b' is only here, 'c' only there"),
        (layout_of(("a",), a=(2,), b=(2,)), layout_of(a=(2,), b=(2,)),
         "tensor 'a' is a running statistic here and a parameter there"),
        (layout_of(a=(2,)), layout_of(("a",), a=(2,)), "tensor 'a' is a parameter here and a running statistic there"),
        (layout_of(), layout_of(a=(2,)), "tensor 'a' is only there"),
        (gw.Layout.flat(2), layout_of(a=(2,)), "tensor '' is only here, 'a' only there"),
        (gw.Layout.flat(2), gw.Layout.flat(3), "tensor '' has shape (2,) here and (3,) there"),
    ],
)  # fmt: skip
def test_difference(here, there, said):
    assert here.difference(there) == said
    assert (said is None) == (here.digest == there.digest)


@settings(max_examples=up_to(200), deadline=None)
@given(
    a=st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 2), st.booleans()), max_size=3),
    b=st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 2), st.booleans()), max_size=3),
)
def test_a_difference_is_found_whenever_there_is_one(a, b):
    here, there = (layout_of(tuple(n for n, (_, s) in spec.items() if s), **{n: (d,) for n, (d, _) in spec.items()})
                   for spec in (a, b))  # fmt: skip
    assert (here.difference(there) is None) == (here.digest == there.digest)
    assert (there.difference(here) is None) == (here.digest == there.digest)


def test_dtypes_are_no_difference():
    here, there = (gw.Layout.from_arrays({"w": np.zeros(2, dtype)}) for dtype in ("f2", "f8"))
    assert here.difference(there) is None


# --- NaN and Inf name the tensor ------------------------------------------------------------------


@settings(max_examples=up_to(50), deadline=None)
@given(index=st.integers(0, 13))
def test_place(index):
    layout = gw.Layout.from_arrays(ARRAYS)
    marked = np.zeros(14, np.float32)
    marked[index] = 1
    name, array = next((n, a) for n, a in layout.unflatten(marked).items() if a.any())
    where = [int(i[0]) for i in np.nonzero(np.atleast_1d(array))]
    assert layout.place(index) == f"tensor {name!r}" + (f" at {where}" if array.shape else "")
    assert gw.Layout.flat(14).place(index) == ""


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_flatten_names_what_is_not_finite(bad, kind):
    arrays = {"w": np.ones((2, 3), np.float32), "mask": np.ones((2, 2), np.float16)}
    layout = gw.Layout.from_arrays(arrays)
    arrays["mask"][1, 0] = bad
    given = arrays if kind == "numpy" else {n: torch.from_numpy(a) for n, a in arrays.items()}
    said = rf"what is flattened must be finite, got {bad} at index 8, in tensor 'mask' at \[1, 0\] \(1 such "
    with pytest.raises(gw.UpdateError, match=said):
        layout.flatten(given)


@pytest.mark.filterwarnings("error")
def test_float64_beyond_float32_is_no_silent_infinity():
    layout = gw.Layout.from_arrays({"w": np.ones(2)})
    with pytest.raises(gw.UpdateError, match="'w' at \\[1\\]"):
        layout.flatten({"w": np.array([1, 1e39])})


# --- sparsifiers and quantizers leave running statistics alone ------------------------------------


@pytest.mark.parametrize(
    "spec",
    ["topk(0.1)", "topk(0.1, scope='tensor')", "topk(0.1, scope=3)", "randk(0.1) | fp16()", "uniform(1)", "fp16()",
     "topk(0.1) | uniform(2)", "uniform(2, scope='model')", "dense()", "ef(topk(0.1))", "ef(topk(0.1) | uniform(1))"],
)  # fmt: skip
def test_running_statistics_travel_whole(spec):
    arrays = {"w": np.zeros(30, np.float32), "bn.running_mean": np.zeros(4, np.float32), "b": np.zeros(5, np.float32)}
    layout = gw.Layout.from_arrays(arrays)
    update = np.random.default_rng(0).standard_normal(layout.d).astype(np.float32)
    update[-4:] = [1e-7, 0.0, 1234.5678, -3e-12]
    client = gw.Client(gw.parse(spec), layout)
    got = gw.decompress(gw.decode(client.compress(update)))
    assert np.array_equal(got[35:], update[35:])
    residual = client.state_dict()["residual"]
    assert residual is None or not residual[35:].any()


# --- updates --------------------------------------------------------------------------------------


def test_as_update_shares_memory_with_float32():
    array = np.arange(4, dtype=np.float32)
    assert np.shares_memory(as_update(array, 4), array)
    tensor = torch.arange(4, dtype=torch.float32)
    assert as_update(tensor, 4).ctypes.data == tensor.data_ptr()
    assert as_update(tensor.clone().requires_grad_(), 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", ">f8"])
def test_as_update_converts_numpy(dtype):
    got = as_update(np.array([1.5, -2.0], dtype), 2)
    assert got.dtype == np.float32
    assert got.dtype.isnative
    assert got.tolist() == [1.5, -2.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_as_update_converts_torch(dtype):
    got = as_update(torch.tensor([1.5, -2.0], dtype=dtype), 2)
    assert got.dtype == np.float32
    assert got.tolist() == [1.5, -2.0]


def test_as_update_takes_strided_input():
    assert as_update(np.arange(8, dtype=np.float32)[::-2], 4).tolist() == [7, 5, 3, 1]
    assert as_update(torch.arange(8, dtype=torch.float32)[::2], 4).tolist() == [0, 2, 4, 6]


def test_as_update_takes_denormals_and_the_largest_numbers():
    array = np.array([1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)
    assert as_update(array, 4) is array or np.array_equal(as_update(array, 4), array)
    big = np.full(10_000, 3.4e38, np.float32)
    assert np.array_equal(as_update(big, 10_000), big), "a finite vector whose sum overflows float32"


@pytest.mark.parametrize("d", [3, 5000])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_as_update_names_the_first_bad_entry(d, bad):
    array = np.ones(d, np.float32)
    array[2] = bad
    with pytest.raises(gw.UpdateError, match="index 2"):
        as_update(array, d)
    with pytest.raises(gw.UpdateError, match="index 2"):
        as_update(torch.from_numpy(array), d)


def test_as_update_notices_infinities_that_cancel():
    for d in (4, 5000):
        array = np.zeros(d, np.float32)
        array[0], array[-1] = np.inf, -np.inf
        with pytest.raises(gw.UpdateError, match="index 0"):
            as_update(array, d)


@pytest.mark.parametrize(
    "bad",
    [
        np.ones(3, np.float32), np.ones((4, 1), np.float32), np.ones((), np.float32), np.ones(4, np.int32),
        np.ones(4, bool), np.ones(4, complex), np.array(["a"] * 4), np.array([None] * 4), np.full(4, 1e39),
        torch.ones(4, dtype=torch.int64), torch.ones(5), torch.full((4,), 1e39, dtype=torch.float64), None, "1234", 7,
    ],
    ids=lambda bad: f"{type(bad).__name__}-{getattr(bad, 'dtype', '')}-{tuple(getattr(bad, 'shape', ()))}",
)  # fmt: skip
def test_as_update_refuses(bad):
    with pytest.raises(gw.UpdateError, match="update must"):
        as_update(bad, 4)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [-1, 1.5, True, "3", None, float("nan")])
def test_flat_refuses(d):
    with pytest.raises(gw.ConfigError, match="d must be an integer of 0 or more, got"):
        gw.Layout.flat(d)


def test_flat_takes_numpy_integers():
    assert gw.Layout.flat(np.int64(3)) == gw.Layout.flat(3)


def test_unknown_buffers():
    with pytest.raises(gw.ConfigError, match=r"buffers must be 'dense' or 'skip', got 'skp'; did you mean 'skip'\?"):
        gw.Layout.from_arrays(ARRAYS, buffers="skp")


def test_unknown_dtypes():
    with pytest.raises(gw.ConfigError, match=r"tensor 'c'.*complex64"):
        gw.Layout.from_arrays({"c": np.zeros(2, np.complex64)})
    with pytest.raises(gw.ConfigError, match="tensor 's'"):
        gw.Layout.from_arrays({"s": np.array(["a"])})
    with pytest.raises(gw.ConfigError, match="arrays or torch tensors, got a list of float"):
        gw.Layout.from_arrays({"l": [1.0, 2.0]})


def test_flatten_errors_name_the_tensor():
    layout = gw.Layout.from_arrays({"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)})
    good = {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}
    with pytest.raises(gw.UpdateError, match=r"'wieght' is not in the layout; did you mean 'weight'\?"):
        layout.flatten(good | {"wieght": np.zeros(1)})
    with pytest.raises(gw.UpdateError, match="'bias' is missing"):
        layout.flatten({"weight": good["weight"]})
    with pytest.raises(gw.UpdateError, match=r"'weight': shape must be \(2, 3\), got \(3, 2\)"):
        layout.flatten(good | {"weight": np.zeros((3, 2), np.float32)})
    with pytest.raises(gw.UpdateError, match=r"shape \(9,\), got \(8,\)"):
        layout.unflatten(np.zeros(8, np.float32))


def test_layout_is_a_value():
    a, b = gw.Layout.from_arrays(ARRAYS), gw.Layout.from_arrays(ARRAYS)
    assert a == b
    assert hash(a) == hash(b)
    assert a.d == 14
    assert a == b, "cached properties take no part"
    with pytest.raises(AttributeError):
        a.tensors = ()
