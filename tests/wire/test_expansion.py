"""Few bytes for many entries: fewer the longer the runs are, never fewer than readers ask for, whatever the code."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradwire as gw
from examples import up_to
from gradwire.compressors import dithering
from gradwire.payload import Every, Explicit, Floats, Levels, Seeded, Symbols
from gradwire.wire import entropy

MOST = gw.Limits().max_expansion
PADDED = 16


def least(num_entries: int) -> int:
    """The bytes of a container, checksum included, that a reader asks for."""
    return -(-num_entries // MOST) + 4


def signs(symbols: np.ndarray, coder: str) -> gw.Payload:
    values = Symbols(symbols, 2, np.array([2.0], np.float32))
    return gw.Payload(symbols.size, (gw.Part(Every(symbols.size), values),), coder=coder)


@pytest.mark.parametrize("coder", ["rle()", "auto()"])
def test_bytes_fall_as_runs_lengthen(coder):
    n = 1_000_000
    client = gw.Client(gw.parse(f"sign() | {coder}"), gw.Layout.flat(n))
    draws = np.random.default_rng(0).random(n)
    sizes = []
    for length in (
        6,
        8,
        12,
        16,
        24,
        32,
        48,
        56,
        60,
        64,
        70,
        80,
        100,
        120,
        128,
        150,
        300,
        1000,
        10_000,
        1_000_000,
        None,
    ):
        flips = draws < (1 / length if length else 0)  # the flips of longer runs are some of those of shorter ones
        update = np.where(np.cumsum(flips) % 2, np.float32(-1), np.float32(1))
        blob = client.compress(update)
        sizes.append(len(blob))
        assert gw.decompress(gw.decode(blob)).tobytes() == update.tobytes()
    floor = least(n)
    assert sizes[-1] == floor < 16_000
    assert sizes == sorted(sizes, reverse=True)
    assert all(a > b for a, b in pairwise(sizes) if a > floor), "strictly, until the bound"


@settings(max_examples=up_to(60), deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 7, 60, 63, 64, 65, 127, 128, 129, 500, 3000]), min_size=1, max_size=40),
    coder=st.sampled_from([*entropy.CODERS, "auto"]),
)
def test_a_container_takes_what_its_codes_need_or_readers_ask_for(lengths, coder):
    symbols = np.repeat(np.arange(len(lengths)) % 2, lengths).astype(np.uint16)
    payload = signs(symbols, coder)
    blob = gw.encode(payload)
    _, stream = entropy.encode_symbols(symbols, 2, coder)
    d = 1 + (symbols.size > 127) + (symbols.size > 16_383)
    needed = 4 + d + 2 + 4 + 1 + 1 + 1 + 1 + 4 + len(stream) + 4
    assert len(blob) == max(needed, least(symbols.size))
    assert bool(blob[3] & PADDED) == (needed < least(symbols.size))
    assert gw.decode(blob) == payload
    assert gw.inspect(blob)["header_bytes"] == 4 + d + 2 + 4 + 4


N = 40_000
ONES = np.ones(N, np.float32)
CHEAP = {
    "rle": [gw.Part(Every(N), Symbols(np.zeros(N, np.uint16), 2, ONES[:1]))],
    "levels": [gw.Part(Every(N), Levels(np.zeros(N, np.uint16), ONES[:1]))],
    "many symbols": [gw.Part(Every(N), Symbols(np.full(N, 60_000, np.uint16), 65_536, ONES[:1]))],
    "runs": [gw.Part(Explicit(2 * N, np.arange(N) + 7), Symbols(np.zeros(N, np.uint16), 2, ONES[:1]))],
    "seeded": [gw.Part(Seeded(2 * N, N, gw.Key(1, 0, 2, "support")), Symbols(np.zeros(N, np.uint16), 2, ONES[:1]))],
    "parts": [gw.Part(Every(N), Symbols(np.zeros(N, np.uint16), 2, ONES[:1]))] * 3
    + [gw.Part(Explicit(9, np.empty(0, np.int64)), Floats(ONES[:0])), gw.Part(Every(2), Floats(ONES[:2]))],
    "blocks": [gw.Part(Every(N), Symbols(np.zeros(N, np.uint16), 2, ONES[: N // 20_000], 20_000))],
}


@pytest.mark.parametrize("coder", ["ans", "rle", "auto"])
@pytest.mark.parametrize("name", CHEAP)
def test_every_code_that_could_take_nearly_nothing(name, coder):
    parts = tuple(CHEAP[name])
    payload = gw.Payload(sum(p.length for p in parts), parts, coder=coder)
    blob = gw.encode(payload)
    assert len(blob) == least(payload.num_kept)
    assert gw.decode(blob) == payload
    assert gw.decompress(gw.decode(blob)).tobytes() == gw.decompress(payload).tobytes()
    with pytest.raises(gw.LimitExceeded):
        gw.decode(blob, gw.Limits(max_expansion=MOST - 1))
    assert blob[-5] == 0
    shorter = blob[:-5] + struct.pack("<I", zlib.crc32(blob[:-5]))
    with pytest.raises(gw.LimitExceeded):
        gw.decode(shorter)


def test_what_is_long_enough_is_not_padded():
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    for spec in ("dense()", "topk(0.1)", "uniform(4)", "sign()", "dense() | ans()", "sign() | huffman()"):
        blob = gw.Client(gw.parse(spec), gw.Layout.flat(5000)).compress(x)
        assert not blob[3] & PADDED


def test_packets_are_padded_too():
    client = gw.Client(gw.sign(), gw.Layout.flat(100_000))
    blobs = client.packets(np.ones(100_000, np.float32), 400)
    assert len(blobs) > 1
    assert max(map(len, blobs)) <= 400
    assert sum(gw.decode(blob).num_kept for blob in blobs) == 100_000
    assert any(blob[3] & PADDED for blob in blobs)


def test_a_byte_pays_for_so_many_thresholds(monkeypatch):
    """Few fires among many coordinates: padded to a byte for 65,536, and refused by who allows fewer."""
    monkeypatch.setattr(dithering, "_LISTED", 0)  # else a plain list takes their place
    d = 6_000_000
    update = np.zeros(d, np.float32)
    update[[5, d - 9]] = 8.0
    blob = gw.Client(gw.dither(4.0), gw.Layout.flat(d)).compress(update)
    assert len(blob) == -(-d // 65_536) + 4
    assert blob[3] & PADDED
    assert gw.decompress(gw.decode(blob)).tobytes() == update.tobytes()
    with pytest.raises(gw.LimitExceeded, match="thresholds"):
        gw.decode(blob, gw.Limits(max_expansion=MOST - 2))
    with pytest.raises(gw.LimitExceeded, match="thresholds"):
        gw.decode(blob[:-5] + struct.pack("<I", zlib.crc32(blob[:-5])))
