"""A model-wide top-k over a file: exact, in two reads, in bounded memory, and nothing left behind."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import gradwire as gw
from examples import up_to
from gradwire.compressors.sparsify import num_kept_of
from gradwire.files import selection
from gradwire.files.archive import compress_file, decompress_file
from gradwire.files.gwfile import GwReader
from gradwire.files.identity import Identity
from gradwire.files.safetensors_io import SafetensorsReader
from gradwire.kernels import ops

RNG = np.random.default_rng(0)
ONE_CLASS = (np.float32(1).view(np.int32) + np.arange(4096, dtype=np.int32)).view(np.float32)
MAGNITUDES = {  # what entries are drawn from
    "constant": [0.25],
    "two values": [0.25, np.nextafter(np.float32(0.25), np.float32(1))],
    "two classes": [0.25, 0.5],
    "few, with zeros": [0.0, 0.0, 1.0, 2.0, 3.0],
    "nothing but zeros": [0.0],
    "denormal": [0.0, *(np.arange(1, 9, dtype=np.int32).view(np.float32))],
    "denormal and least normal": [0.0, 1e-45, 1e-40, 1.17549435e-38, 1e-37],
    "one class": list(ONE_CLASS[::128]),
    "one class's ends": [ONE_CLASS[0], ONE_CLASS[-1], np.nextafter(np.float32(1), np.float32(0))],
    "extremes": [0.0, 1e-45, 1.0, float(np.finfo(np.float32).max)],
    "many": list(np.abs(RNG.standard_normal(500)) ** 8),
}


@st.composite
def tensors(draw):
    """Up to six float32 tensors, drawn from a few magnitudes with both signs, some of them sorted."""
    choices = np.array(MAGNITUDES[draw(st.sampled_from(sorted(MAGNITUDES)))], np.float32)
    sizes = draw(st.lists(st.integers(0, 60), min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    flat = rng.choice(choices, sum(sizes)) * rng.choice(np.float32([-1, 1]), sum(sizes))
    order = draw(st.sampled_from(["as drawn", "rising", "falling"]))
    if order != "as drawn":
        flat = flat[np.argsort(np.abs(flat) if order == "rising" else -np.abs(flat), kind="stable")]
    return np.split(flat, np.cumsum(sizes)[:-1])


def select(vectors, density, folder, whole=False):
    """Choose by two reads, and what is given back: (vector, indices) of each tensor."""
    border = selection.find_border(density, [v.size for v in vectors], lambda i: vectors[i])
    with selection.Candidates(border, folder, whole) as candidates:
        for vector in vectors:
            candidates.put(vector)
        taken = [candidates.take(vector.size) for vector in vectors]
    return [(vector, chosen.indices) for vector, chosen in taken]


def expected(vectors, density):
    """Indices in each tensor of a top-k over all of them in memory."""
    flat = np.concatenate(vectors)
    k = num_kept_of(density, flat.size) if flat.size else 0
    chosen = ops.topk(flat, k)
    starts = np.cumsum([0, *(v.size for v in vectors)])
    return [chosen[(chosen >= a) & (chosen < b)] - a for a, b in itertools.pairwise(starts)]


def old_way(vector, num_kept, stages, key):
    """A tensor's container when its count is known beforehand."""
    round = gw.Round(index=key.round, key=key, num_kept=num_kept)
    compressor = gw.parse(" | ".join(["topk(1.0)", *stages]))
    payload, _ = compressor.compress(vector, compressor.init(gw.Layout.flat(vector.size)), round)
    return gw.encode(payload)


@given(tensors(), st.floats(0.001, 1.0), st.booleans(), st.sampled_from([1, 3, 16, 1000]))
@settings(max_examples=up_to(150), deadline=None)
def test_the_selection_is_that_of_a_top_k_in_memory(tmp_path_factory, vectors, density, whole, piece):
    with mock.patch.object(selection, "_PIECE", piece):
        found = select(vectors, density, tmp_path_factory.getbasetemp(), whole)
    for vector, (given_back, chosen), right in zip(vectors, found, expected(vectors, density), strict=True):
        assert np.array_equal(chosen, right)
        assert np.array_equal(given_back[chosen].view(np.int32), vector[chosen].view(np.int32))
        if whole:
            assert np.array_equal(given_back.view(np.int32), vector.view(np.int32))


@given(
    tensors(),
    st.floats(0.001, 1.0),
    st.sampled_from([(), ("uniform(4)",), ("sign()", "ans()"), ("qsgd(4)",), ("fp16()",)]),
    st.booleans(),
)
@settings(max_examples=up_to(60), deadline=None)
def test_a_file_s_containers_are_those_of_a_top_k_in_memory(tmp_path_factory, vectors, density, stages, feedback):
    folder = tmp_path_factory.mktemp("file")
    if stages == ("fp16()",):
        vectors = [np.clip(v, -6e4, 6e4) for v in vectors]
    if feedback:
        vectors = [np.clip(v, -1e30, 1e30).astype(np.float32) for v in vectors]
    save_file({f"t{i}": v for i, v in enumerate(vectors)}, folder / "in.safetensors")
    residual = folder / "residual.safetensors" if feedback else None
    compressor = gw.parse(" | ".join([f"topk({density!r})", *stages]))
    with mock.patch.object(selection, "_PIECE", 16):
        compress_file(folder / "in.safetensors", folder / "out.gw", compressor, residual, client=2, round=5, seed=7)
    with GwReader(folder / "out.gw") as reader:
        blobs = {info.name: blob for info, blob in reader.blobs()}
    keys = Identity(2, 5, 7).keys(list(blobs))
    left = load_file(residual) if residual else {}
    order = [int(name[1:]) for name in blobs]
    for i, right in zip(order, expected([vectors[i] for i in order], density), strict=True):
        blob = blobs[f"t{i}"]
        assert blob == old_way(vectors[i], right.size, stages, keys[f"t{i}"])
        if residual:
            assert np.array_equal(left[f"t{i}"], vectors[i] - gw.decompress(gw.decode(blob)))


@pytest.fixture
def update(tmp_path):
    """An update with tensors of every kind, the residual of the last one, and their paths."""
    sizes = {"a": (40, 50), "b": (0,), "c": (7,), "d": (), "e": (3000,)}
    arrays = {name: np.asarray(RNG.standard_normal(shape), np.float32) for name, shape in sizes.items()}
    residual = {name: np.asarray(RNG.standard_normal(shape), np.float32) for name, shape in sizes.items()}
    save_file({**arrays, "count": np.arange(5)}, tmp_path / "in.safetensors")
    save_file(residual, tmp_path / "residual.safetensors")
    return tmp_path / "in.safetensors", tmp_path / "residual.safetensors"


@pytest.fixture
def reads(monkeypatch):
    """(file, tensor) of every read of a tensor."""
    found = []
    raw = SafetensorsReader.raw

    def counting(self, info):
        found.append((self.path.stem, info.name))
        return raw(self, info)

    monkeypatch.setattr(SafetensorsReader, "raw", counting)
    return found


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize(
    ("spec", "times"),
    [
        ("topk(0.01)", 2),
        ("topk(0.2) | uniform(8)", 2),
        ("topk(1.0) | fp16()", 2),
        ("topk(0.01, scope='tensor')", 1),
        ("uniform(4)", 1),
    ],
)
def test_every_tensor_is_read_twice_for_a_model_wide_top_k_and_else_once(update, reads, spec, times, feedback):
    source, residual = update
    compress_file(source, source.with_name("out.gw"), gw.parse(spec), residual if feedback else None)
    for name in "abcde":
        assert reads.count(("in", name)) == times
        assert reads.count(("residual", name)) == (times if feedback else 0)
    assert reads.count(("in", "count")) == 1


def test_residual_and_what_was_sent_add_up_to_the_update_and_the_residual_before(update, tmp_path):
    source, residual = update
    before = load_file(residual)
    compress_file(source, tmp_path / "out.gw", gw.parse("ef(topk(0.1) | uniform(8))"), residual)
    decompress_file(tmp_path / "out.gw", tmp_path / "back.safetensors")
    whole, after, sent = load_file(source), load_file(residual), load_file(tmp_path / "back.safetensors")
    for name, left in after.items():
        assert np.array_equal(left, whole[name] + before[name] - sent[name])
    assert sum(np.count_nonzero(sent[name]) for name in after) == round(0.1 * (2000 + 7 + 1 + 3000))


class Interrupted(selection.Candidates):
    """Fails at the second tensor it gets or gives."""

    error: type[BaseException]
    at: str

    def put(self, vector):
        self._fail("put")
        super().put(vector)

    def take(self, size):
        self._fail("take")
        return super().take(size)

    def _fail(self, what):
        self.calls = getattr(self, "calls", 0) + (what == self.at)
        if self.calls == 2:
            raise self.error("stopped")


def open_in(folder):
    """Files of a folder that this process has open, nameless ones too."""
    numbers = Path("/proc/self/fd")
    if not numbers.exists():
        return []
    links = []
    for number in os.listdir(numbers):
        try:
            links.append(os.readlink(numbers / number))
        except OSError:
            continue
    return [link for link in links if link.startswith(str(folder))]


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("at", ["put", "take", "nowhere"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
def test_nothing_is_left_behind(update, tmp_path, monkeypatch, at, error, feedback):
    source, residual = update
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("gradwire.files.archive.Candidates", Interrupted)
    monkeypatch.setattr(Interrupted, "at", at, raising=False)
    monkeypatch.setattr(Interrupted, "error", error, raising=False)
    call = (source, tmp_path / "out.gw", gw.parse("topk(0.1)"), residual if feedback else None)
    if at == "nowhere":
        compress_file(*call)
        assert {path.name for path in tmp_path.iterdir()} == {*before, "out.gw"}
    else:
        with pytest.raises(error, match="stopped"):
            compress_file(*call)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert not open_in(tmp_path)


def test_an_infinity_in_the_last_tensor_leaves_the_old_file(tmp_path):
    arrays = {"a": np.ones(10, np.float32), "b": np.float32([1, np.inf])}
    save_file(arrays, tmp_path / "in.safetensors")
    (tmp_path / "out.gw").write_bytes(b"before")
    with pytest.raises(gw.UpdateError, match="tensor 'b'"):
        compress_file(tmp_path / "in.safetensors", tmp_path / "out.gw", gw.parse("topk(0.5)"))
    assert {path.name for path in tmp_path.iterdir()} == {"in.safetensors", "out.gw"}
    assert (tmp_path / "out.gw").read_bytes() == b"before"


WORST = {
    "constant": lambda number, size: np.full(size, 0.5, np.float32),
    "two values": lambda number, size: np.where(np.arange(size) % 2, ONE_CLASS[1], ONE_CLASS[0]).astype(np.float32),
    "one class, rising": lambda number, size: np.repeat(ONE_CLASS[16 * number : 16 * number + 16], size // 16),
    "normal": lambda number, size: np.random.default_rng(number).standard_normal(size, np.float32),
}
BY_K = {"constant", "normal"}  # whose temporary file is of about k entries


@pytest.mark.parametrize("kind", WORST)
@pytest.mark.parametrize("density", [0.001, 0.1, 1.0])
def test_memory_is_that_of_a_tensor_and_the_file_at_most_that_of_the_update(kind, density, tmp_path, monkeypatch):
    size, num_tensors, piece = 1 << 16, 48, 1 << 13
    monkeypatch.setattr(selection, "_PIECE", piece)
    k, num_chosen = round(density * size * num_tensors), 0
    tracemalloc.start()
    try:
        border = selection.find_border(density, [size] * num_tensors, lambda i: WORST[kind](i, size))
        with selection.Candidates(border, tmp_path) as candidates:
            for number in range(num_tensors):
                candidates.put(WORST[kind](number, size))
            num_bytes = candidates._file.tell()
            for _ in range(num_tensors):
                num_chosen += candidates.take(size)[1].indices.size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    num_pieces = num_tensors * size // piece
    assert num_chosen == k
    assert num_bytes <= 4 * (size * num_tensors + num_pieces)
    if kind in BY_K:
        assert num_bytes <= 8 * (1.1 * k + piece) + 4 * num_pieces
    assert peak <= 3 * 8 * 2**19 + 24 * size, "counters, a tensor and its entries"
