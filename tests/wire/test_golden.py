"""Golden files: what was written once decodes to the same content for ever."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import gradwire as gw
from gradwire import wire
from gradwire.files import archive as files
from gradwire.files.dtypes import DTYPES
from gradwire.files.safetensors_io import SafetensorsReader
from gradwire.payload import Known
from gradwire.wire import container, entropy, index, values

V1 = Path(__file__).parents[1] / "golden" / "v1"
EXPECTED = json.loads((V1 / "expected.json").read_text())
BLOBS = sorted(name for name in EXPECTED if name.endswith(".blob"))
FILES = sorted(name for name in EXPECTED if name.endswith(".gw"))


def read(name: str) -> bytes:
    return (V1 / name).read_bytes()


def indices_of(text: str) -> list[int]:
    """``0-3 7`` -> [0, 1, 2, 3, 7]."""
    pairs = [(run.split("-")[0], run.split("-")[-1]) for run in text.split()]
    return [i for a, b in pairs for i in range(int(a), int(b) + 1)]


def values_of(text: str) -> list[str]:
    """``3f800000 bf800000*2`` -> the bits of each value in hex."""
    return [bits for group in text.split() for bits, *count in [group.split("*")] for _ in range(int(*count or "1"))]


def hex_bits(numbers) -> list[str]:
    return [f"{b:08x}" for b in np.asarray(numbers, np.float32).view(np.uint32).tolist()]


@cache
def reference_of(name: str) -> gw.Reference | None:
    """The vector that a downlink blob gives, and the field in it."""
    other = EXPECTED[name]["reference_file"]
    if not other:
        return None
    payload = gw.decode(read(other))
    return gw.Reference.beside(payload.shipped_field, gw.Reference.of(payload), payload.d)


def content_of(payload: gw.Payload, reference: gw.Reference | None) -> tuple[list[int], list[str]]:
    from gradwire.compressors.compressor import resolve

    indices, bits, start = [], [], 0
    for part in resolve(payload, reference):
        indices += (start + part.support.indices).tolist()
        bits += hex_bits(part.numbers())
        start += part.length
    return indices, bits


def dense_of(d: int, indices: list[int], bits: list[str]) -> np.ndarray:
    """The vector: +0.0 everywhere, and the numbers added."""
    out = np.zeros(d, np.float32)
    out[indices] += np.array([int(b, 16) for b in bits], np.uint32).view(np.float32)
    return out


def test_nothing_is_missing():
    assert sorted(p.name for p in V1.iterdir()) == sorted([*EXPECTED, "expected.json"])
    assert max(p.stat().st_size for p in V1.iterdir() if p.name != "expected.json") < 4096
    assert sum(p.stat().st_size for p in V1.iterdir()) < 150_000


@pytest.mark.parametrize("name", BLOBS)
def test_decodes_as_ever(name):
    expected, blob = EXPECTED[name], read(name)
    payload = gw.decode(blob)
    assert payload.d == expected["d"]
    assert payload.round == expected["round"]
    assert payload.sequence == expected["sequence"]
    assert payload.layout_digest.hex() == expected["layout"]
    assert (payload.reference_digest.hex() if payload.reference_digest else None) == expected["reference"]
    assert payload.sum_weights == expected["sum_weights"]
    assert (list(payload.packet) if payload.packet else None) == expected["packet"]
    indices, bits = content_of(payload, reference_of(name))
    assert indices == indices_of(expected["indices"])
    assert bits == values_of(expected["values"])
    if expected["d"] < 2**20:
        dense = gw.decompress(payload, reference_of(name))
        assert dense.tobytes() == dense_of(expected["d"], indices, bits).tobytes()


@pytest.mark.parametrize("name", BLOBS)
def test_what_is_written_is_what_is_read(name):
    """Who hosts both ends may leave out the reading."""
    written = wire.write(gw.decode(read(name)))
    opened = wire.read(written.blob)
    assert written.payload == opened.payload
    for what in ("blob", "header_bytes", "support_bytes", "values_bytes", "support_name", "values_name"):
        assert getattr(written, what) == getattr(opened, what)


@pytest.mark.parametrize("name", BLOBS)
def test_inspect_agrees(name):
    expected, blob = EXPECTED[name], read(name)
    info = gw.inspect(blob)
    assert info["kind"] == ("uplink" if expected["sum_weights"] is None else "downlink")
    assert info["num_kept"] == len(indices_of(expected["indices"]))
    assert info["header_bytes"] + info["support_bytes"] + info["values_bytes"] == info["total_bytes"] == len(blob)
    if expected["parts"]:
        supports = {support for support, numbers in expected["parts"] if numbers}
        assert supports <= set(info["codec"]["support"].split(", "))
        assert {v for _, v in expected["parts"] if v} == set(info["codec"]["values"].split(", ")) - {"none"}


@pytest.mark.parametrize("name", BLOBS)
def test_encoding_again_keeps_the_content(name):
    payload = gw.decode(read(name))
    again = gw.decode(gw.encode(payload))
    assert again == payload
    assert content_of(again, reference_of(name)) == content_of(payload, reference_of(name))


@pytest.mark.parametrize("name", BLOBS)
def test_damage_is_noticed(name):
    blob = read(name)
    for at in range(len(blob)):
        with pytest.raises(gw.DecodeError):
            gw.decode(blob[:at])
        with pytest.raises(gw.DecodeError):
            gw.decode(blob[:at] + bytes([blob[at] ^ 0x10]) + blob[at + 1 :])


def test_every_code_has_a_golden_file():
    parts = [part for name in BLOBS for part in EXPECTED[name]["parts"] or []]
    assert {support for support, _ in parts} == set(index.NAMES.values())
    codes = {kind | coder << 4 for kind in values._KINDS for coder in entropy.CODERS.values()}
    uncoded = (values.GROUPED, values.MULTIPLES)
    codes -= {kind | coder << 4 for kind in uncoded for coder in entropy.CODERS.values() if coder != entropy.PACKED}
    codes |= {kind | values.CONTEXT << 4 for kind in (values.CENTRED, values.LEVELS)}
    assert {numbers for _, numbers in parts if numbers} == {values.name_of(code) for code in codes}
    flags = {read(name)[3] for name in BLOBS}
    for flag in (
        container.DOWNLINK,
        container.REFERENCE,
        container.SEVERAL_PARTS,
        container.PACKET,
        container.PADDED,
    ):
        assert any(f & flag for f in flags)
    dtypes = {tensor["dtype"] for name in FILES for tensor in EXPECTED[name]["tensors"]}
    assert dtypes > set(DTYPES), "and some that have no code"


def test_known_supports_are_resolved_by_name():
    names = [n for n in BLOBS if any(isinstance(p.support, Known) for p in gw.decode(read(n)).parts)]
    assert names
    for name in names:
        from gradwire.ends.downlink import reference_digest

        assert reference_digest(read(EXPECTED[name]["reference_file"])).hex() == EXPECTED[name]["reference"]
        with pytest.raises(gw.StaleReference):
            gw.decompress(gw.decode(read(name)))


@pytest.mark.parametrize("name", FILES)
def test_files_decompress_as_ever(name, tmp_path):
    expected = EXPECTED[name]
    files.decompress_file(V1 / name, tmp_path / "out.safetensors")
    with SafetensorsReader(tmp_path / "out.safetensors") as reader:
        found = {i.name: (i.dtype, list(i.shape), reader.raw(i).tobytes().hex()) for i in reader.tensors}
        assert reader.metadata == expected["metadata"]
    assert found == {t["name"]: (t["dtype"], t["shape"], t["data"]) for t in expected["tensors"]}
    info = files.inspect_file(V1 / name)
    assert (info["spec"], info["metadata"]) == (expected["spec"], expected["metadata"])
    assert info["total_bytes"] == len(read(name))


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_noticed(name, tmp_path):
    data = read(name)
    for at in range(len(data)):
        (tmp_path / "cut.gw").write_bytes(data[:at])
        with pytest.raises(gw.DecodeError):
            files.inspect_file(tmp_path / "cut.gw")
    for at in range(0, len(data), 3):
        (tmp_path / "bad.gw").write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(gw.DecodeError):
            files.inspect_file(tmp_path / "bad.gw")
