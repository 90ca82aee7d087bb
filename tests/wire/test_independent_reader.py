"""The second reader of docs/format.md against every golden file and against what the library writes today."""

from __future__ import annotations

import ast
import random
import struct
import sys
import zlib
from pathlib import Path

import fuzz
import independent_reader as other
import numpy as np
import pytest
from test_golden import BLOBS, EXPECTED, FILES, hex_bits, indices_of, read, values_of

import gradwire as gw
from gradwire.files.dtypes import DTYPES
from gradwire.kernels import ops
from gradwire.payload import Cyclic, Every, Explicit, Factors, Floats, Known, Levels, Seeded, Symbols
from gradwire.wire import container, entropy, index, values

SOURCE = Path(other.__file__)
FLOATS = ("F32", "F16", "BF16", "F64")


def dense(blob: bytes, reference: list[float] | None = None) -> list[float]:
    header, indices, numbers = other.read_container(blob, reference)
    out = [0.0] * header["d"]
    for i, x in zip(indices, numbers, strict=True):
        out[i] += x
    return out


def test_it_is_independent():
    text = SOURCE.read_text()
    assert len(text.splitlines()) <= 460
    tree = ast.parse(text)
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", BLOBS)
def test_golden_containers(name):
    expected = EXPECTED[name]
    reference = field = None
    if expected["reference_file"]:
        reference = dense(read(expected["reference_file"]))
        field = other.read_container(read(expected["reference_file"]))[0].get("field")
    header, indices, numbers = other.read_container(read(name), reference, field)
    assert header.pop("field", None) == _field_of(name)
    assert header == {key: expected[key] for key in header}
    assert indices == indices_of(expected["indices"])
    assert [struct.pack(">f", x).hex() for x in numbers] == values_of(expected["values"])


def _field_of(name: str) -> tuple[str, list[int]] | None:
    """What the library reads of a field, as the other reader says it."""
    field = gw.decode(read(name)).shipped_field
    return None if field is None else (field.digest.hex(), field.at(np.arange(field.length)).tolist())


def rounded(number: float, dtype: str) -> bytes:
    """A float32 in its tensor's dtype: nearest even, beyond the largest finite number that number."""
    if dtype in ("F32", "F64"):
        return struct.pack("<f" if dtype == "F32" else "<d", number)
    if dtype == "F16":
        return struct.pack("<e", min(65504.0, max(-65504.0, number)))
    bits = struct.unpack("<I", struct.pack("<f", number))[0]
    up = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return struct.pack("<H", up if up & 0x7F80 != 0x7F80 else up & 0x8000 | 0x7F7F)


@pytest.mark.parametrize("name", FILES)
def test_golden_files(name):
    names = dict(enumerate(DTYPES))
    spec, metadata, tensors = other.read_file(read(name))
    assert (spec, metadata) == (EXPECTED[name]["spec"], EXPECTED[name]["metadata"])
    found = []
    for tensor, dtype, shape, blob in tensors:
        dtype = names.get(dtype, dtype)
        data = b"".join(rounded(x, dtype) for x in dense(blob)) if dtype in FLOATS else blob[:-4]
        found.append({"name": tensor, "dtype": dtype, "shape": shape, "data": data.hex()})
    assert sorted(found, key=str) == sorted(EXPECTED[name]["tensors"], key=str)


# what the library writes today


def agree(payload: gw.Payload, reference: np.ndarray | None = None, blob: bytes | None = None) -> None:
    blob = gw.encode(payload) if blob is None else blob
    header, indices, numbers = other.read_container(blob, None if reference is None else reference.tolist())
    assert header["d"] == payload.d
    assert header["round"] == payload.round
    from gradwire.compressors.compressor import resolve

    parts = resolve(payload, reference)
    starts = np.cumsum([0, *(p.length for p in parts)]).tolist()
    expected = [s + i for s, p in zip(starts, parts, strict=False) for i in p.support.indices.tolist()]
    assert indices == expected
    assert hex_bits(numbers) == [b for p in parts for b in hex_bits(p.numbers())]
    if payload.d < 10_000:
        total = np.array(dense(blob, None if reference is None else reference.tolist()), np.float32)
        assert total.tobytes() == gw.decompress(payload, reference).tobytes()


def explicit(d: int, chosen) -> Explicit:
    return Explicit(d, np.asarray(chosen, np.int64))


RNG = np.random.default_rng(11)
CLUSTERED = np.unique(np.concatenate([np.arange(100, 900), np.arange(2000, 2900), [3999]]))
SUPPORTS = {
    "every": Every(50),
    "none": explicit(50, []),
    "golomb": explicit(3000, np.sort(RNG.choice(3000, 40, False))),
    "wide": explicit(2**34, [0, 2**33 + 5, 2**34 - 1]),
    "bitmap": explicit(200, np.sort(RNG.choice(200, 100, False))),
    "runs": explicit(4000, CLUSTERED),
    "entropy": explicit(9000, np.sort(RNG.choice(9000, 1500, False))),
    "segments": Explicit(
        20_000,
        np.concatenate([np.sort(RNG.choice(4000, 1600, False)), 4000 + np.sort(RNG.choice(16_000, 30, False))]),
        (4000, 12_000),
    ),
    "seeded": Seeded(3000, 25, gw.Key(9, 4, 2, "support")),
    "cyclic": Cyclic(3000, 700, 4),
    "cyclic wrapped": Cyclic(300, 70, 4),
    "seeded shared": Seeded(300, 200, gw.Key(2**64 - 1, 4, None, "support")),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_fresh_supports(name):
    support = SUPPORTS[name]
    numbers = RNG.standard_normal(support.num_kept).astype(np.float32)
    agree(gw.Payload(support.length, (gw.Part(support, Floats(numbers)),), round=4))


def test_fresh_known_support():
    reference = RNG.standard_normal(60).astype(np.float32)
    reference[::3] = 0
    reference[1:20:3] = 2.5
    for count in (0, 1, 5, 30):
        chosen = np.flatnonzero(reference == 0)[:7]
        numbers = RNG.standard_normal(count + chosen.size).astype(np.float32)
        part = gw.Part(Known(60, count, chosen), Floats(numbers))
        agree(gw.Payload(60, (part,), reference_digest=bytes(8)), reference)


@pytest.mark.parametrize("coder", [*entropy.CODERS, "auto"])
@pytest.mark.parametrize("size", [1, 2, 35, 1023, 1030])
def test_fresh_values(coder, size):
    x = RNG.standard_normal(size).astype(np.float32)
    made = [
        Floats(x),
        Floats(np.zeros(size, np.float32)),
        Floats(x.astype(np.float16), "float16"),
        Floats((x.view(np.uint32) >> 16).astype(np.uint16), "bfloat16"),
    ]
    for n in (2, 3, 16, 255, 3000):
        symbols = np.clip(RNG.normal(n / 2, n / 8, size), 0, n - 1).astype(np.uint16)
        made.append(Symbols(symbols, n, np.array([0.37], np.float32)))
        ranks = np.arange(size) // 10
        block = min(10, size)
        scales = RNG.random(int(ranks[-1]) + 1).astype(np.float32) + np.float32(0.1)
        made.append(Symbols(symbols, n, scales, block))
        zeros = RNG.integers(0, n, scales.size).astype(np.uint16)
        made += [Symbols(symbols, n, scales[:1], 0, zeros[:1]), Symbols(symbols, n, scales, block, zeros)]
    for p in (1, 2, 5):
        symbols = np.minimum(RNG.geometric(0.5, size) - 1, 2 * p - 1).astype(np.uint16)
        made.append(Levels(symbols, RNG.random(p).astype(np.float32)))
    if size in (35, 1023):
        rows, rank = (5, 3) if size == 35 else (33, 2)
        p, q = (RNG.standard_normal((n, rank)).astype(np.float32) for n in (rows, size // rows))
        made.append(Factors(p, q))
    for numbers in made:
        payload = gw.Payload(size, (gw.Part(Every(size), numbers),), coder=coder)
        agree(payload)


@pytest.mark.parametrize("largest", [1, 2, 3, 15, 16, 2000])
@pytest.mark.parametrize("kind", ["odd", "even", "levels"])
def test_fresh_contexts(kind, largest):
    rng = np.random.default_rng(largest)
    d = 1400
    there = rng.random(d) < np.repeat(rng.random(28) ** 3, 50)
    chosen = np.flatnonzero(there)
    sizes = np.minimum(rng.geometric(0.4, chosen.size) ** (3 if largest > 99 else 1), largest)
    negative = rng.random(chosen.size) < np.repeat(rng.random(28), 50)[chosen]
    if kind == "levels":
        numbers = Levels((2 * (sizes - 1) + negative).astype(np.uint16), rng.random(largest).astype(np.float32))
    else:
        n = 2 * largest + (kind == "odd")
        symbols = np.where(negative, largest - sizes, n - 1 - (largest - sizes))
        numbers = Symbols(symbols.astype(np.uint16), n, np.array([0.3], np.float32))
    support = Explicit(d, chosen, (700, 707), (50, 7, 33))
    payload = gw.Payload(d, (gw.Part(support, numbers),), coder="context")
    assert gw.inspect(gw.encode(payload))["codec"]["support"] == "context"
    agree(payload)


@pytest.mark.parametrize("spec", ["rd(0.1)", "rd(3.0)", "topk(0.1) | fractional(8) | context()"])
def test_fresh_rates(spec):
    x = RNG.standard_normal(2000).astype(np.float32) * np.repeat(RNG.random(40) ** 4, 50).astype(np.float32)
    layout = gw.Layout.from_arrays(
        {"a": np.empty((20, 50)), "b": np.empty(7), "c": np.empty((30, 30)), "d": np.empty(93)}
    )
    blob = gw.Client(gw.parse(spec), layout).compress(x)
    agree(gw.decode(blob), blob=blob)


@pytest.mark.parametrize("seed", range(8))
def test_fresh_random_payloads(seed):
    """Forced codes of supports and of symbols, through the codec functions one by one."""
    rng = np.random.default_rng(seed)
    d = int(rng.integers(600, 6000))
    chosen = np.sort(rng.choice(d, int(rng.integers(513, 590)), False)).astype(np.int64)
    gaps = np.diff(chosen, prepend=-1) - 1
    bitmap = np.zeros(d, np.uint8)
    bitmap[chosen] = 1
    forced = {
        index.RUNS: index._encode_runs(gaps, 1 + int(np.count_nonzero(gaps[1:]))),
        index.BITMAP: np.packbits(bitmap, bitorder="little").tobytes(),
    }
    if (coded := index._encode_entropy(gaps, 10**9)) is not None:
        forced[index.ENTROPY] = coded
    numbers = rng.integers(-3, 4, chosen.size).astype(np.float32)
    codec, data = values.encode_values(Floats(numbers), "auto")
    payload = gw.Payload(d, (gw.Part(explicit(d, chosen), Floats(numbers)),))
    for support, written in forced.items():
        body = gw.encode(payload)[:-4]
        at = len(b"GW\1\0") + len(container.varint(d)) + 2 + 4
        body = body[:at] + bytes([support]) + written + bytes([codec]) + data
        blob = body + struct.pack("<I", zlib.crc32(body))
        assert gw.decode(blob) == payload
        agree(payload, blob=blob)


@pytest.mark.parametrize("kernels", [pytest.param("reference", marks=pytest.mark.slow), "cpu"])
def test_damaged_payloads_that_still_decode(kernels, monkeypatch):
    """What no writer wrote, but both readers accept, stands for the same numbers."""
    monkeypatch.setattr(ops, "BACKEND", kernels)
    blobs, rng, num_read = fuzz.honest_blobs(), random.Random(31), 0
    for _ in range(700):
        blob = fuzz.mutate(blobs, rng)
        try:
            payload = gw.decode(blob, gw.Limits(max_parameters=6000))
            reference = np.linspace(-1, 1, payload.d, dtype=np.float32)
            gw.decompress(payload, reference)
        except (gw.DecodeError, gw.ProtocolError):
            continue
        agree(payload, reference, blob)
        num_read += 1
    assert num_read > 60


@pytest.mark.parametrize("spec", ["topk(0.1)", "topk(0.2) | uniform(4)", "randk(0.6) | fp16()", "uniform(2) | ans()"])
def test_fresh_packets_and_downlinks(spec):
    x = RNG.standard_normal(700).astype(np.float32)
    layout = gw.Layout.from_arrays({"a": np.empty(300), "b": np.empty((20, 20))})
    blobs = gw.Client(gw.parse(spec), layout, client_id=1).packets(x, 200)
    total = np.zeros(700, np.float32)
    for number, blob in enumerate(blobs):
        assert other.read_container(blob)[0]["packet"] == [number, len(blobs)]
        total += np.array(dense(blob), np.float32)
    whole = gw.Client(gw.parse(spec), layout, client_id=1).compress(x)
    assert total.tobytes() == np.array(dense(whole), np.float32).tobytes()
    server = gw.Server(gw.dense(), layout, downlink=gw.parse(spec))
    server.receive(gw.Client(gw.dense(), layout).compress(x), 0, 3.5)
    result = server.close_round()
    assert other.read_container(result.blob)[0]["sum_weights"] == 3.5
    assert np.array(dense(result.blob), np.float32).tobytes() == result.applied.tobytes()
