"""The reader of safetensors against the safetensors package: what the one refuses the other must refuse."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open

from examples import up_to
from gradwire.errors import ConfigError
from gradwire.files.dtypes import DTYPES, TensorInfo, from_float32, to_float32
from gradwire.files.safetensors_io import SafetensorsReader, SafetensorsWriter

OTHERS = {"F4": 0.5, "F6_E2M3": 0.75, "F6_E3M2": 0.75, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8}


def whole(header, data=b""):
    text = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(name="a", dtype='"F32"', shape="[1]", offsets="[0,4]", more=""):
    return f'"{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}'


A, B = tensor(), tensor("b", offsets="[4,8]")
HEADERS = {  # (header, bytes of data, whether it is read); the package decides, but for the last five
    "plain": (f"{{{A}}}", 4, True),
    "two": (f"{{{B},{A}}}", 8, True),
    "spaces": (f" {{{A}}}   ", 4, True),
    "nothing": ("{}", 0, True),
    "scalar": ("{" + tensor(shape="[]") + "}", 4, True),
    "no name": ("{" + tensor("") + "}", 4, True),
    "no elements": ("{" + tensor(shape="[0]", offsets="[0,0]") + "," + tensor("b") + "}", 4, True),
    "metadata": (f'{{"__metadata__":{{"x":"y"}},{A}}}', 4, True),
    "null metadata": (f'{{"__metadata__":null,{A}}}', 4, True),
    "unknown field": ("{" + tensor(more=',"more":[{}]') + "}", 4, True),
    "hole at the start": (f"{{{B}}}", 8, False),
    "hole": (f"{{{A},{tensor('b', offsets='[8,12]')}}}", 12, False),
    "overlap": (f"{{{A},{tensor('b', offsets='[2,6]')}}}", 6, False),
    "same bytes": (f"{{{A},{tensor('b')}}}", 4, False),
    "bytes left over": (f"{{{A}}}", 5, False),
    "bytes in an empty file": ("{}", 1, False),
    "cut short": (f"{{{A}}}", 3, False),
    "name twice": (f"{{{A},{tensor(offsets='[4,8]')}}}", 8, False),
    "metadata twice": (f'{{"__metadata__":{{}},"__metadata__":{{}},{A}}}', 4, False),
    "metadata of numbers": (f'{{"__metadata__":{{"x":1}},{A}}}', 4, False),
    "metadata of text": (f'{{"__metadata__":"x",{A}}}', 4, False),
    "field twice": ("{" + tensor(more=',"shape":[1]') + "}", 4, False),
    "float size": ("{" + tensor(shape="[1.0]") + "}", 4, False),
    "minus zero": ("{" + tensor(offsets="[-0,4]") + "}", 4, False),
    "huge product": ("{" + tensor(shape=f"[{','.join(['281474976710655'] * 30)}]") + "}", 4, False),
    "half a byte": ("{" + tensor(dtype='"F4"', shape="[3]", offsets="[0,2]") + "}", 2, False),
    "half a pair": ("{" + tensor("\\ud800") + "}", 4, False),
    "UTF-16": (f"{{{A}}}".encode("utf-16"), 4, False),
    "byte order mark": (f"\ufeff{{{A}}}", 4, False),
    "zeros after it": (f"{{{A}}}\0\0", 4, False),
    "list": ("[]", 0, False),
    "null tensor": ('{"a":null}', 0, False),
    "unknown dtype": ("{" + tensor(dtype='"F99"') + "}", 4, None),
    "one tensor twice": (f"{{{A},{A}}}", 4, None),
    "metadata's name twice": (f'{{"__metadata__":{{"x":"1","x":"1"}},{A}}}', 4, None),
    "a list for a tensor": ('{"a":["F32",[1],[0,4]]}', 4, None),
    "large dimension": ("{" + tensor(shape="[281474976710656,0]", offsets="[0,0]") + "}", 0, None),
}


def oracle(data):
    try:
        found = deserialize(data)
    except SafetensorError:
        return None
    return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in found}


def ours(path):
    try:
        with SafetensorsReader(path) as reader:
            return {i.name: (i.dtype, i.shape, reader.raw(i).tobytes()) for i in reader.tensors}
    except ConfigError:
        return None


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_taken_or_refused_as_by_the_package(tmp_path, name):
    header, num_bytes, is_read = HEADERS[name]
    (tmp_path / "x").write_bytes(whole(header, bytes(range(num_bytes))))
    found = ours(tmp_path / "x")
    if is_read is None:  # newer dtypes are taken, what stands twice or is not written as a table never
        assert (found is not None) == (name == "unknown dtype")
    else:
        assert (found is not None) == is_read
        assert found == oracle((tmp_path / "x").read_bytes())


_sizes = st.integers(0, 6)
_entries = st.lists(
    st.tuples(st.sampled_from([*DTYPES, *OTHERS]), st.lists(_sizes, max_size=3), _sizes, _sizes), max_size=3
)


@given(entries=_entries, fit=st.booleans(), extra=st.integers(-2, 2), order=st.randoms(use_true_random=False))
@settings(max_examples=up_to(300))
def test_any_shapes_offsets_and_lengths_are_judged_as_by_the_package(tmp_path_factory, entries, fit, extra, order):
    end, described = 0, []
    for number, (dtype, shape, start, stop) in enumerate(entries):
        size = int(np.prod(shape, dtype=int) * {**DTYPES, **OTHERS}[dtype])
        start, stop = (end, end + size) if fit else (end + start - stop, end + size)
        end = max(end, stop)
        described.append((f"t{number}", dtype, shape, [start, stop]))
    order.shuffle(described)
    header = {n: {"dtype": d, "shape": s, "data_offsets": o} for n, d, s, o in described}
    path = tmp_path_factory.getbasetemp() / "judged"
    path.write_bytes(whole(json.dumps(header), bytes(max(0, end + (0 if fit else extra)))))
    assert ours(path) == oracle(path.read_bytes())


def test_what_is_written_the_package_reads(tmp_path):
    tensors = [TensorInfo("b", "F32", (2, 3), 24), TensorInfo("é\n", "C64", (), 8), TensorInfo("none", "I64", (0,), 0)]
    with SafetensorsWriter(tmp_path / "x", tensors, {"format": "pt", "é": "\x1b"}) as writer:
        writer.write(np.arange(6, dtype="<f4").view(np.uint8))
        writer.write(np.arange(8, dtype=np.uint8))
        writer.commit()
    found = oracle((tmp_path / "x").read_bytes())
    assert found == {
        "b": ("F32", (2, 3), np.arange(6, dtype="<f4").tobytes()),
        "é\n": ("C64", (), bytes(range(8))),
        "none": ("I64", (0,), b""),
    }
    with safe_open(tmp_path / "x", "np") as file:
        assert file.metadata() == {"format": "pt", "é": "\x1b"}
    with SafetensorsReader(tmp_path / "x") as reader:
        assert (reader.tensors, reader.metadata) == (tuple(tensors), {"format": "pt", "é": "\x1b"})


def test_a_file_that_was_not_committed_is_not_there(tmp_path):
    with SafetensorsWriter(tmp_path / "x", [TensorInfo("a", "U8", (1,), 1)], {}) as writer:
        writer.write(np.zeros(1, np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_read_in_the_order_of_their_bytes(tmp_path):
    (tmp_path / "x").write_bytes(whole(f"{{{B},{A}}}", bytes(8)))
    with SafetensorsReader(tmp_path / "x") as reader:
        assert [info.name for info in reader.tensors] == ["a", "b"]


def test_what_is_wrong_is_said_with_the_file_and_the_tensor(tmp_path):
    wrong = {
        "hole": "tensor 'b' has a hole of 4 bytes",
        "name twice": "'a' stands twice",
        "overlap": "tensor 'b' overlaps",
        "half a byte": "tensor 'a': F4 of shape (3,)",
    }
    for name, said in wrong.items():
        header, num_bytes, _ = HEADERS[name]
        (tmp_path / name).write_bytes(whole(header, bytes(num_bytes)))
        with pytest.raises(ConfigError) as caught:
            SafetensorsReader(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert said in str(caught.value)


@pytest.mark.parametrize(("dtype", "numpy"), [("F32", "<f4"), ("F16", "<f2"), ("F64", "<f8")])
def test_floats_are_numpy_s(dtype, numpy):
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(1000) * 10.0 ** rng.integers(-9, 5, 1000)).clip(-60000, 60000).astype(numpy)
    wide = to_float32(values.view(np.uint8), dtype)
    assert wide.tobytes() == values.astype(np.float32).tobytes()
    assert from_float32(wide, dtype).tobytes() == wide.astype(numpy).tobytes()


def test_bfloat16_is_torch_s():
    torch = pytest.importorskip("torch")
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    wide = to_float32(values.view(torch.uint8).numpy(), "BF16")
    assert wide.tobytes() == values.float().numpy().tobytes()
    mixed = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert from_float32(mixed.numpy(), "BF16").tobytes() == mixed.to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
