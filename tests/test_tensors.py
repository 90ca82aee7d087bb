"""Tensors: which are taken, and floats that never overflow on their way back."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gradwire as gw
from examples import up_to
from gradwire.tensors import cast

finite = hnp.arrays(np.float32, st.integers(0, 8), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def back(values: np.ndarray | torch.Tensor, dtype: str):
    """A vector through a layout of that dtype."""
    holder = torch.ones(len(values), dtype=getattr(torch, dtype))
    return gw.Layout.from_arrays({"w": holder}).unflatten(values)["w"]


@settings(max_examples=up_to(200), deadline=None)
@given(finite)
def test_half_precision_is_rounded_and_never_infinite(values):
    expected = np.clip(values, -65504, 65504).astype(np.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = back(values, "float16")
    assert got.dtype == np.float16
    assert np.isfinite(got).all()
    assert np.array_equal(got, expected)
    assert np.array_equal(back(torch.from_numpy(values), "float16").numpy(), expected)


@settings(max_examples=up_to(200), deadline=None)
@given(finite)
def test_bfloat16_is_rounded_and_never_infinite(values):
    got = back(torch.from_numpy(values), "bfloat16")
    plain = torch.from_numpy(values).to(torch.bfloat16)
    largest = torch.tensor(float.fromhex("0x1.fep127"), dtype=torch.bfloat16)
    expected = torch.where(plain.isinf(), torch.sign(plain) * largest, plain)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, expected)
    assert np.array_equal(back(values, "bfloat16"), values), "NumPy has none: the float32 numbers"


def test_borders_of_half_precision():
    values = np.float32([65503.9, 65504, 65519.996, 65520, 70000, -1e30, 3.4e38, 2**-25, -(2**-26), 0])
    expected = [65504, 65504, 65504, 65504, 65504, -65504, 65504, 0, -0.0, 0]
    assert back(values, "float16").tolist() == expected
    assert back(torch.from_numpy(values), "float16").tolist() == expected
    top = np.float32([3.3895314e38, 3.4e38, -3.4028235e38])
    assert torch.isfinite(back(torch.from_numpy(top), "bfloat16")).all()


def test_the_same_numbers_as_the_fp16_stage():
    values = np.float32([1e5, -1e5, 0.1, 65519, 2049])
    sent = gw.decompress(gw.decode(gw.Client(gw.fp16(), gw.Layout.flat(5)).compress(values)))
    assert np.array_equal(back(values, "float16").astype(np.float32), sent)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_what_is_not_finite_stays_so(dtype):
    values = np.float32([np.inf, -np.inf, np.nan, 1])
    for vector in (values, torch.from_numpy(values)):
        got = np.asarray(back(vector, dtype).to(torch.float64) if torch.is_tensor(vector) else back(vector, dtype))
        assert np.array_equal(got.astype(np.float64), values, equal_nan=True)


def test_wider_vectors_saturate_too():
    values = np.array([1e39, -1e300, 2.0])
    limit = float(np.finfo(np.float32).max)
    assert back(values, "float32").tolist() == [limit, -limit, 2.0]
    assert back(torch.from_numpy(values), "float32").tolist() == [limit, -limit, 2.0]
    assert back(values, "float16").tolist() == [65504, -65504, 2]
    assert back(values, "float64").tolist() == values.tolist()


def test_casting_to_the_same_dtype_copies_nothing():
    array = np.ones(3, np.float32)
    assert np.shares_memory(cast(array, "float32", "="), array)
    tensor = torch.ones(3)
    assert cast(tensor, "float32", "=").data_ptr() == tensor.data_ptr()


def test_any_byte_order_comes_back_as_it_was():
    arrays = {"big": np.array([1.5, -2], ">f4"), "little": np.array([0.1, 3], "<f8"), "half": np.array([70.5], ">f2"),
              "count": np.array([1], ">i8"), "native": np.array([1], "=f4")}  # fmt: skip
    layout = gw.Layout.from_arrays(arrays)
    update = layout.flatten(arrays)
    assert update.dtype == np.dtype("=f4")
    assert update.tolist() == [1.5, -2, np.float32(0.1), 3, 70.5, 1]
    for name, array in layout.unflatten(update).items():
        assert array.dtype.str == arrays[name].dtype.str, name
        assert np.array_equal(array, arrays[name].astype(np.float32)), name
    native = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in arrays.items()}
    assert gw.Layout.from_arrays(native).digest == layout.digest, "payloads of one fit the other"
    tensors = layout.unflatten(torch.from_numpy(update))
    assert tensors["big"].tolist() == [1.5, -2], "torch has the machine's order only"
    assert layout.unflatten(update.astype(">f4"))["native"].dtype.isnative


def test_torch_and_numpy_together():
    arrays = {
        "a": np.array([1, 2], ">f8"),
        "b": torch.tensor([3.0], dtype=torch.bfloat16),
        "c": np.array(4, np.float16),
    }
    layout = gw.Layout.from_arrays(arrays)
    for order in (("a", "b", "c"), ("b", "c", "a")):
        update = layout.flatten({name: arrays[name] for name in order})
        assert torch.is_tensor(update)
        assert update.dtype == torch.float32
        assert update.tolist() == [1, 2, 3, 4]


QUANTIZED = torch.ones(4)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    QUANTIZED = torch.quantize_per_tensor(QUANTIZED, 0.1, 0, torch.qint8)
    SPARSE_ROWS = torch.ones(2, 2).to_sparse_csr()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones(4, np.complex64), r"got complex64; pass its real and imaginary parts as floats"),
        (torch.ones(4, dtype=torch.complex64), r"got complex64; pass its real and imaginary parts as floats"),
        (QUANTIZED, r"got qint8; it is quantized: pass tensor.dequantize\(\)"),
        (torch.ones(4).to(torch.float8_e4m3fn), "got float8_e4m3fn; pass it as bfloat16"),
        (torch.ones(4).to(torch.float8_e5m2), "got float8_e5m2; pass it as bfloat16"),
        (torch.ones(4).to_sparse(), r"is sparse or nested: pass tensor.to_dense\(\)"),
        (SPARSE_ROWS, "is sparse"),
        (np.array([None] * 4), "got object; pass an array of numbers"),
        (np.array(["a"] * 4), "got str32; leave it out"),
        (np.zeros(4, "M8[s]"), "got datetime64"),
        (np.zeros(4, [("a", "f4")]), "got void32"),
        pytest.param(np.ones(4, np.longdouble), "pass it as float64",
                     marks=pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="a float64 here")),
    ],
    ids=lambda v: v if isinstance(v, str) else str(v.dtype),
)  # fmt: skip
def test_dtypes_that_cannot_be_taken(value, message):
    with pytest.raises(gw.ConfigError, match=f"tensor 'layer.w'.*{message}"):
        gw.Layout.from_arrays({"layer.w": value})
    with pytest.raises(gw.UpdateError, match=f"tensor 'layer.w'.*{message}"):
        gw.Layout.from_arrays({"layer.w": np.ones(4, np.float32)}).flatten({"layer.w": value})


def test_a_lazy_module_must_run_first():
    with pytest.raises(gw.ConfigError, match=r"tensor 'weight' has no shape yet: run the module once first"):
        gw.Layout.from_arrays(torch.nn.LazyLinear(3))


def test_a_model_without_numbers_has_a_layout_but_no_vector():
    model = torch.nn.Linear(3, 2, device="meta")
    layout = gw.Layout.from_arrays(model)
    assert layout == gw.Layout.from_arrays(torch.nn.Linear(3, 2))
    with pytest.raises(gw.UpdateError, match="tensor 'weight' is on the meta device"):
        layout.flatten(model)
    with pytest.raises(gw.UpdateError, match="update is on the meta device"):
        gw.Client(gw.dense(), layout).compress(torch.ones(8, device="meta"))


@pytest.mark.parametrize(
    "update", [np.ones(2, complex), np.ones(2, int), torch.ones(2, dtype=torch.int64), [1, 2], "ab"]
)
def test_unflatten_takes_floats_alone(update):
    with pytest.raises(gw.UpdateError, match="update must be a float vector"):
        gw.Layout.flat(2).unflatten(update)


def test_sparse_updates_are_refused():
    with pytest.raises(gw.UpdateError, match="update is sparse"):
        gw.Client(gw.dense(), gw.Layout.flat(4)).compress(torch.ones(4).to_sparse())
