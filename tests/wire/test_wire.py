"""The wire: Golomb against a bit-by-bit coder, the container by hand, and bytes that are not what they claim."""

from __future__ import annotations

import contextlib
import itertools
import random
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cases
import gradwire as gw
from examples import up_to
from gradwire.kernels import reference as ops
from gradwire.payload import Every, Explicit, Floats, Seeded
from gradwire.wire import entropy, golomb, index
from gradwire.wire.reader import Reader, varints

# --- Golomb ---------------------------------------------------------------------------------------


def golomb_bits(gaps: list[int], m: int) -> list[int]:
    """The bits ``golomb_encode``'s docstring describes, one at a time."""
    b = 0
    while 2**b < m:
        b += 1
    u = 2**b - m
    fields: list[int] = []
    extras: list[int] = []
    unary: list[int] = []
    for gap in gaps:
        q, r = gap // m, gap % m
        if m > 1:
            if r < u:
                field = r
            else:
                field = (r + u) >> 1
                extras.append((r + u) & 1)
            fields += [(field >> i) & 1 for i in range(b - 1)]
        unary += [0] * q + [1]
    return fields + extras + unary


def to_bytes(bits: list[int]) -> bytes:
    """Bit i of the stream is bit i % 8 of byte i // 8."""
    out = bytearray(-(-len(bits) // 8))
    for i, bit in enumerate(bits):
        out[i // 8] |= bit << (i % 8)
    return bytes(out)


def indices_of(gaps: list[int]) -> list[int]:
    out, at = [], -1
    for gap in gaps:
        at += gap + 1
        out.append(at)
    return out


gap_lists = st.lists(st.one_of(st.integers(0, 8), st.integers(0, 3000)), min_size=1, max_size=50)


@settings(max_examples=up_to(300), deadline=None)
@given(gaps=gap_lists, m=st.one_of(st.integers(1, 70), st.sampled_from([64, 128, 129, 1000, 4096])))
def test_golomb_matches_bit_by_bit(gaps, m):
    bits = golomb_bits(gaps, m)
    array = np.array(gaps, np.int64)
    assert ops.golomb_bits(array, np.array([array.size]), np.array([[m]])).item() == len(bits)
    encoded = ops.golomb_encode(array, m)
    assert encoded.dtype == np.uint8
    assert encoded.tobytes() == to_bytes(bits)
    indices = indices_of(gaps)
    tail = np.frombuffer(b"\xff\x00\xa5", np.uint8)
    for data in (encoded, np.concatenate([encoded, tail])):
        found = ops.golomb_decode(data, len(gaps), m, indices[-1] + 1)
        assert found is not None
        assert found[0].tolist() == indices
        assert found[1] == encoded.size
    assert ops.golomb_decode(encoded, len(gaps), m, indices[-1]) is None, "an index reaches the limit"
    assert ops.golomb_decode(encoded[:-1], len(gaps), m, indices[-1] + 1) is None, "a byte is missing"
    if len(bits) % 8:
        spoilt = encoded.copy()
        spoilt[-1] |= 0x80
        assert ops.golomb_decode(spoilt, len(gaps), m, indices[-1] + 1) is None, "an unused bit is set"


@pytest.mark.parametrize("m", [2**20, 2**31, 2**31 + 1, 2**32 - 5, 2**32, 2**33])
def test_golomb_of_large_parameters(m):
    gaps = [0, m - 1, m, 2 * m + 5, 1, m // 3]
    encoded = ops.golomb_encode(np.array(gaps, np.int64), m)
    assert encoded.tobytes() == to_bytes(golomb_bits(gaps, m))
    found = ops.golomb_decode(encoded, len(gaps), m, 2**40)
    assert found is not None
    assert found[0].tolist() == indices_of(gaps)


@settings(max_examples=up_to(300), deadline=None)
@given(data=st.binary(max_size=40), count=st.integers(1, 30), m=st.integers(1, 2**34), limit=st.integers(1, 2**34))
def test_golomb_decode_of_anything(data, count, m, limit):
    found = ops.golomb_decode(np.frombuffer(data, np.uint8), count, m, limit)
    if found is None:
        return
    indices, num_bytes = found
    assert indices.size == count
    assert indices[0] >= 0
    assert (np.diff(indices) > 0).all()
    assert indices[-1] < limit
    assert num_bytes <= len(data)
    again = ops.golomb_encode(ops.gaps(indices), m).tobytes()
    assert again == data[:num_bytes], "one code for each support"


@settings(max_examples=up_to(100), deadline=None)
@given(indices=st.sets(st.integers(0, 10_000), min_size=1, max_size=60).map(sorted))
def test_gaps(indices):
    expected = [b - a - 1 for a, b in itertools.pairwise([-1, *indices])]
    assert ops.gaps(np.array(indices, np.int64)).tolist() == expected


@settings(max_examples=up_to(200), deadline=None)
@given(width=st.integers(0, 16), data=st.data())
def test_pack_matches_bit_by_bit(width, data):
    symbols = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40))
    bits = [(s >> i) & 1 for s in symbols for i in range(width)]
    packed = ops.pack(np.array(symbols, np.uint16), width)
    assert packed.tobytes() == to_bytes(bits)
    assert ops.unpack(packed, len(symbols), width).tolist() == symbols


# --- other ops of the wire ------------------------------------------------------------------------


def bfloat16_oracle(x: np.float32) -> int:
    """Nearest bfloat16, ties to even, by exact comparison in float64; saturates."""
    bits = int(x.view(np.uint32))
    down = bits >> 16
    candidates = [down, down + 1]

    def number(b: int) -> float:
        return float(np.uint32((b & 0xFFFF) << 16).view(np.float32)) if b & 0x7F80 != 0x7F80 else float("inf")

    value = float(np.abs(x))
    sign = down & 0x8000

    def distance(b: int) -> float:
        return abs(abs(number(b)) - value)

    candidates = [b for b in candidates if b & 0x7F80 != 0x7F80]
    best = min(candidates, key=lambda b: (distance(b), b & 1))
    return sign | best & 0x7FFF


@settings(max_examples=up_to(300), deadline=None)
@given(x=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bfloat16_bits(x):
    x32 = np.float32(x)
    assert int(ops.bfloat16_bits(np.array([x32]))[0]) == bfloat16_oracle(x32)


def test_bfloat16_matches_torch():
    import torch

    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    expected = torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(ops.bfloat16_bits(x), expected)


@settings(max_examples=up_to(200), deadline=None)
@given(
    x=st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=20),
    num_symbols=st.integers(2, 300),
    step=st.floats(2.0**-6, 4, width=32),
)
def test_quantize_grid_gives_the_nearest_grid_point(x, num_symbols, step):
    values = np.array(x, np.float32)
    symbols = ops.quantize_grid(values, np.array([step], np.float32), num_symbols, None)
    grid = np.float64(np.float32(step)) * (np.arange(num_symbols) - (num_symbols - 1) / 2)
    distance = np.abs(grid[symbols] - values.astype(np.float64))
    best = np.abs(grid[None, :] - values.astype(np.float64)[:, None]).min(axis=1)
    assert (distance <= best + 1e-5 * (np.abs(values) + step)).all()


def test_fp16_is_ieee_and_saturates():
    x = np.array([1.0, 65504, 65519, 65520, 1e38, -1e38, 2.0**-25, 2.0**-24, 1.0009766, 0.1], np.float32)
    c = gw.fp16()
    got = gw.decompress(c.compress(x, c.init(gw.Layout.flat(x.size)))[0])
    expected = [np.float32(struct.unpack("<e", struct.pack("<e", min(max(float(v), -65504), 65504)))[0]) for v in x]
    assert got.tolist() == [float(v) for v in expected]


# --- the container by hand ------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def read_varint(blob: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = blob[at]
        at += 1
        value += (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def repaired(body: bytes) -> bytes:
    """The bytes before the checksum, with the right checksum."""
    return body + struct.pack("<I", zlib.crc32(body))


def header(blob: bytes) -> tuple[int, dict[str, int]]:
    """Offset of the sections and the fields before them, parsed by hand."""
    assert blob[:2] == b"GW"
    assert blob[2] == 1
    fields, at = {"flags": blob[3]}, 4
    for name in ("d", "round", "sequence"):
        fields[name], at = read_varint(blob, at)
    return at, fields


@pytest.mark.parametrize("d", [1, 127, 128, 20_000])
@pytest.mark.parametrize("index", [0, 127, 128, 2**40])
def test_container_by_hand(d, index):
    layout = gw.Layout.flat(d)
    client = gw.Client(gw.dense(), layout)
    update = np.arange(1, d + 1, dtype=np.float32)
    blob = client.compress(update, round=index)
    at, fields = header(blob)
    assert fields == {"flags": 0, "d": d, "round": index, "sequence": 0}
    assert blob[4:at] == varint(d) + varint(index) + varint(0)
    assert blob[at : at + 4] == layout.digest
    assert blob[-4:] == zlib.crc32(blob[:-4]).to_bytes(4, "little")
    info = gw.inspect(blob)
    assert info["header_bytes"] <= at + 4 + 1 + 4, "nothing else but the sections"
    assert info["values_bytes"] <= 4 * d + 2
    if d == 1:
        assert struct.pack("<f", 1.0) in blob[at + 4 : -4], "a single number travels as it is, little-endian"
    assert header(client.compress(update, round=index))[1]["sequence"] == 1


def test_downlink_container_by_hand():
    layout = gw.Layout.flat(3)
    server = gw.Server(gw.dense(), layout)
    for i, weight in enumerate((1.5, 2.25)):
        server.receive(gw.Client(gw.dense(), layout, client_id=i).compress(np.ones(3, np.float32)), i, weight)
    blob = server.close_round().blob
    at, fields = header(blob)
    assert fields == {"flags": 1, "d": 3, "round": 0, "sequence": 0}
    assert blob[at : at + 4] == layout.digest
    assert struct.unpack("<d", blob[at + 4 : at + 12]) == (3.75,)
    assert blob[-4:] == zlib.crc32(blob[:-4]).to_bytes(4, "little")
    assert gw.decode(blob).sum_weights == 3.75
    assert gw.inspect(blob)["kind"] == "downlink"


def test_inspect():
    layout = gw.Layout.flat(1000)
    blob = gw.Client(gw.topk(0.01), layout, client_id=3).compress(np.arange(1000, dtype=np.float32), round=9)
    info = gw.inspect(blob)
    assert info["d"] == 1000
    assert info["num_kept"] == 10
    assert info["round"] == 9
    assert info["total_bytes"] == len(blob)
    assert 24 <= info["values_bytes"] <= 42
    assert info["bits_per_parameter"] == 8 * len(blob) / 1000
    assert info["bits_per_index"] == 8 * info["support_bytes"] / 10
    assert set(info["codec"]) == {"support", "values"}
    empty = gw.inspect(gw.Client(gw.topk(0.01), layout).compress(np.zeros(1000, np.float32)))
    assert (empty["num_kept"], empty["bits_per_index"], empty["values_bytes"]) == (0, None, 0)
    assert empty["support_bytes"] <= 1


def test_bits_per_index_at_one_percent_of_ten_million():
    """At most 8.2 bits an index with every byte that is not a value counted (entropy: 8.08)."""
    d, k = 10_000_000, 100_000
    chosen = np.sort(np.random.default_rng(0).choice(d, k, replace=False)).astype(np.int64)
    part = gw.Part(Explicit(d, chosen), Floats(np.ones(k, np.float32)))
    blob = gw.encode(gw.Payload(d, (part,)))
    info = gw.inspect(blob)
    assert info["num_kept"] == k
    assert 8 * (len(blob) - info["values_bytes"]) / k <= 8.2
    assert gw.decode(blob).parts[0].support.indices.tolist() == chosen.tolist()


def test_every_small_support_travels():
    """All subsets of up to 9 coordinates, and all single and adjacent pairs of longer ranges."""
    supports = [(n, s) for n in range(10) for r in range(n + 1) for s in itertools.combinations(range(n), r)]
    supports += [(n, (i,)) for n in range(10, 90, 7) for i in range(n)]
    supports += [(n, (i, i + 1)) for n in range(10, 90, 7) for i in range(n - 1)]
    for length, chosen in supports:
        values = np.arange(1, len(chosen) + 1, dtype=np.float32)
        payload = gw.Payload(length, (gw.Part(Explicit(length, np.array(chosen, np.int64)), Floats(values)),))
        decoded = gw.decode(gw.encode(payload))
        assert decoded.parts[0].support.indices.tolist() == list(chosen), (length, chosen)
        assert np.array_equal(gw.decompress(decoded), gw.decompress(payload))


def test_supports_of_the_longest_updates():
    d = 2**34
    for chosen in ([d - 1], [0], [2**32, 2**33 + 1, d - 2], [2**33, d - 1], list(range(2**33, 2**33 + 5))):
        values = np.ones(len(chosen), np.float32)
        payload = gw.Payload(d, (gw.Part(Explicit(d, np.array(chosen, np.int64)), Floats(values)),))
        assert gw.decode(gw.encode(payload)).parts[0].support.indices.tolist() == chosen
    seeded = gw.Payload(d, (gw.Part(Seeded(d, 5, gw.Key(1, 0, 2, "support")), Floats(np.ones(5, np.float32))),))
    assert gw.decode(gw.encode(seeded)) == seeded


def test_gaps_beyond_32_bits_have_no_more_low_bits_than_readers_take():
    length = 2**47
    chosen = np.cumsum(np.random.default_rng(0).geometric(0.3, 600).astype(np.int64) << 35)
    coded = index._encode_entropy(ops.gaps(chosen), 10**9)
    found = index.decode_support(index.ENTROPY, length, 0, Reader(memoryview(coded)), gw.Limits())
    assert found.indices.tolist() == chosen.tolist()
    values = np.ones(chosen.size, np.float32)
    blob = gw.encode(gw.Payload(length, (gw.Part(Explicit(length, chosen), Floats(values)),)))
    assert gw.decode(blob, gw.Limits(max_parameters=length)).parts[0].support.indices.tolist() == chosen.tolist()


def test_the_cheapest_index_coding_is_taken():
    """Within a few bytes of the best of: a bitmap, and the information bound of the gaps."""
    d = 10_000
    rng = np.random.default_rng(0)
    x = rng.standard_normal(d).astype(np.float32)
    layout = gw.Layout.flat(d)
    for density in (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.99):
        info = gw.inspect(gw.Client(gw.topk(density), layout).compress(x))
        entropy = -(density * np.log2(density) + (1 - density) * np.log2(1 - density)) * d / 8
        assert info["support_bytes"] <= d / 8 + 2
        assert info["support_bytes"] <= 1.06 * entropy + 4 or density > 0.3
    assert gw.inspect(gw.Client(gw.topk(1.0), layout).compress(x))["support_bytes"] <= 1
    assert gw.inspect(gw.Client(gw.randk(0.5), layout, client_id=3, seed=9).compress(x))["support_bytes"] <= 10


# --- what is not a payload ------------------------------------------------------------------------


def honest_blobs() -> dict[str, bytes]:
    """Small blobs of every kind the table of compressors makes, and downlink ones."""
    out = {}
    for row in cases.COMPRESSORS:
        for name, layout in (("flat", gw.Layout.flat(40)), ("model", cases.model_layout(40))):
            for update in ("normal", "spike"):
                compressor = row.build()
                try:
                    client = gw.Client(compressor, layout, client_id=1, seed=2)
                    blob = client.compress(cases.UPDATES[update](40), round=3)
                except gw.ConfigError:
                    continue  # a budget that is too small for this layout
                out[f"{row.spec} {name} {update}"] = blob
    for downlink in ("dense()", "topk(0.1)", "uniform(4)"):
        server = gw.Server(gw.dense(), gw.Layout.flat(40), downlink=gw.parse(downlink))
        server.receive(gw.Client(gw.dense(), gw.Layout.flat(40)).compress(cases.UPDATES["normal"](40)), 0, 3.0)
        out[f"downlink {downlink}"] = server.close_round().blob
    return out


BLOBS = honest_blobs()
SMALL = gw.Limits(max_parameters=5000, max_parts=50)


def outcome(blob: bytes, limits: gw.Limits = SMALL) -> gw.Payload | gw.DecodeError:
    """Decode; whatever comes out must work, and only a DecodeError may be raised."""
    try:
        payload = gw.decode(blob, limits)
    except gw.DecodeError as error:
        assert str(error)  # noqa: PT017
        return error
    assert isinstance(payload, gw.Payload)
    assert payload.d <= limits.max_parameters
    if payload.reference_digest is None:
        out = gw.decompress(payload)
        assert out.shape == (payload.d,)
        assert np.isfinite(out).all()
    again = gw.encode(payload)
    assert gw.decode(again, limits) == payload, "canonical form decodes to an equal payload"
    gw.inspect(blob, limits)
    return payload


def test_honest_blobs_decode():
    """Each blob that a client or server made is one that everyone can read."""
    refused = {name: str(p) for name, blob in BLOBS.items() if not isinstance(p := outcome(blob), gw.Payload)}
    assert not refused


def test_truncated_at_every_length():
    for blob in BLOBS.values():
        for n in range(len(blob)):
            with pytest.raises(gw.DecodeError):
                gw.decode(blob[:n])
            if n >= 4:
                assert isinstance(outcome(repaired(blob[:n])), (gw.Payload, gw.DecodeError))
    for n in range(8):
        with pytest.raises(gw.Truncated):
            gw.decode(blob[:n])


def test_every_single_bit_flip_is_noticed():
    for blob in list(BLOBS.values())[::7]:
        for i in range(8 * len(blob)):
            flipped = bytearray(blob)
            flipped[i // 8] ^= 1 << i % 8
            with pytest.raises(gw.DecodeError):
                gw.decode(bytes(flipped))


def mutate(body: bytes, rng: random.Random) -> bytes:
    """A few random edits; most keep the magic and version so that they get past the first checks."""
    out = bytearray(body)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(min(4, len(out)) if rng.random() < 0.97 else 0, len(out) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            out[at:at] = rng.randbytes(rng.choice((1, 1, 2, 8)))
        elif kind == 3:
            del out[at : at + rng.choice((1, 1, 2, 8))]
        elif kind == 4:
            del out[max(at, 4) :]
        elif kind == 5:
            out[at : at + 1] = varint(rng.choice((2**7, 2**14, 2**32, 2**34, 2**63, 2**64 - 1, 2**70)))
        else:
            source = rng.randrange(len(out) + 1)
            out[at:at] = out[source : source + rng.randrange(12)]
    return bytes(out)


def test_mutation_fuzz():
    """Damage with a repaired checksum: a Payload that works or a DecodeError, and nothing else."""
    rng = random.Random(2026)
    outcomes: dict[str, int] = {}
    names = sorted(BLOBS)
    for _ in range(12_000):
        name = rng.choice(names)
        blob = repaired(mutate(BLOBS[name][:-4], rng))
        try:
            got = outcome(blob)
        except Exception as error:
            pytest.fail(f"{name}: {blob.hex()}: {type(error).__name__}: {error}")
        outcomes[type(got).__name__] = outcomes.get(type(got).__name__, 0) + 1
    assert outcomes["Payload"] > 500, f"the fuzzer no longer gets through: {outcomes}"
    assert outcomes["Malformed"] > 500, outcomes
    assert {"Truncated", "UnknownCodec", "LimitExceeded"} <= set(outcomes), outcomes


@settings(max_examples=up_to(300), deadline=None)
@given(data=st.binary(max_size=60))
def test_random_sections_fuzz(data):
    """An honest header, then anything."""
    for flags in (0, 1, 2, 3, 4, 7, data[0] if data else 8):
        outcome(repaired(b"GW\x01" + bytes([flags]) + data))
        outcome(repaired(b"GW\x01" + bytes([flags]) + varint(40) + varint(0) + varint(1) + b"abcd" + data))


@pytest.mark.parametrize(
    "foreign",
    [b"", b"G", b"GW", b"PK\x03\x04" + b"\0" * 50, b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"{}" * 20, b"\x80\x04\x95." * 9,
     b"\0" * 100, b"\xff" * 100, b"GW\x01" + b"\0" * 100, b"gw\x01\0\0\0\0\0\0\0\0", "GW".encode("utf-16") * 10],
)  # fmt: skip
def test_foreign_bytes(foreign):
    for blob in (foreign, bytearray(foreign), memoryview(foreign)):
        with pytest.raises(gw.DecodeError):
            gw.decode(blob)
        with pytest.raises(gw.DecodeError):
            gw.inspect(blob)


@pytest.mark.parametrize("bad", ["GW", None, 7, [1, 2], np.zeros(20, np.float32)])
def test_what_is_not_bytes(bad):
    with pytest.raises(gw.GradwireError, match="bytes"):
        gw.decode(bad)


def test_bytes_like_arguments():
    blob = next(iter(BLOBS.values()))
    assert gw.decode(bytearray(blob)) == gw.decode(memoryview(blob)) == gw.decode(blob)
    spaced = memoryview(bytes(b for byte in blob for b in (byte, 0)))[::2]
    with contextlib.suppress(gw.GradwireError):
        assert gw.decode(spaced) == gw.decode(blob)


def test_decoded_arrays_do_not_change_with_the_buffer():
    """A payload is frozen: reusing the receive buffer must not change what was decoded from it."""
    layout = gw.Layout.flat(8)
    for spec in ("dense()", "topk(0.5)", "fp16()", "bf16()", "uniform(4)", "randk(0.5)"):
        buffer = bytearray(gw.Client(gw.parse(spec), layout).compress(np.arange(1, 9, dtype=np.float32)))
        payload = gw.decode(buffer)
        before = gw.decompress(payload).tobytes()
        buffer[:] = b"\x55" * len(buffer)
        assert gw.decompress(payload).tobytes() == before, spec


# --- each error -----------------------------------------------------------------------------------


def test_every_decode_error_is_reachable():
    blob = BLOBS["topk(0.3) flat normal"]
    body = blob[:-4]
    at, _ = header(blob)
    with pytest.raises(gw.Truncated):
        gw.decode(blob[:6])
    with pytest.raises(gw.BadChecksum):
        gw.decode(body + bytes(4))
    with pytest.raises(gw.UnsupportedVersion, match="version"):
        gw.decode(repaired(body[:2] + b"\x02" + body[3:]))
    with pytest.raises(gw.LimitExceeded):
        gw.decode(blob, gw.Limits(max_parameters=39))
    with pytest.raises(gw.Malformed):
        gw.decode(b"PK" + body[2:] + bytes(4))
    with pytest.raises(gw.Malformed):
        gw.decode(repaired(body + b"\0"))
    kinds = {type(outcome(repaired(body[: at + 4] + bytes([byte]) + body[at + 5 :]))) for byte in range(256)}
    assert gw.UnknownCodec in kinds
    for cls in (gw.Truncated, gw.BadChecksum, gw.UnsupportedVersion, gw.LimitExceeded, gw.Malformed, gw.UnknownCodec):
        assert issubclass(cls, gw.DecodeError)
        assert issubclass(cls, ValueError)


def test_unknown_flags_are_refused():
    body = BLOBS["topk(0.3) flat normal"][:-4]
    for bit in range(3, 8):
        assert isinstance(outcome(repaired(body[:3] + bytes([body[3] | 1 << bit]) + body[4:])), gw.DecodeError)


@pytest.mark.parametrize("coding", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("count", [1, 40, 3000])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(coding, count, bad):
    """Whoever writes them, however they are coded: no reader takes them."""
    numbers = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    numbers[count // 2] = bad
    data = {
        "float32": numbers,
        "float16": numbers.astype(np.float16),
        "bfloat16": (numbers.view(np.uint32) >> np.uint32(16)).astype(np.uint16),
    }[coding]
    for support in (Every(count), Explicit(count * 9, np.arange(count) * 9)):
        payload = gw.Payload(support.length, (gw.Part(support, Floats(data, coding)),))
        try:
            blob = gw.encode(payload)
        except gw.GradwireError:
            continue
        with pytest.raises(gw.Malformed):
            gw.decode(blob)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_sum_of_weights_is_checked(bad):
    blob = BLOBS["downlink dense()"]
    at, _ = header(blob)
    spoilt = blob[: at + 4] + struct.pack("<d", bad) + blob[at + 12 : -4]
    assert isinstance(outcome(repaired(spoilt)), gw.Malformed)


def one_by_one(data, count, below):
    reader = Reader(memoryview(data))
    values = [reader.varint("number", below) for _ in range(count)]
    return values, reader.position


@given(
    st.lists(st.one_of(st.integers(0, 300), st.integers(0, 2**49 - 1)), max_size=300),
    st.binary(max_size=9),
    st.sampled_from([1, 3, 1 << 14]),
)
def test_many_varints_are_read_as_one_by_one(values, rest, at_once):
    data = b"".join(map(varint, values)) + rest
    reader = Reader(memoryview(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradwire.wire.reader._FEW", 0)
        patch.setattr("gradwire.wire.reader._AT_ONCE", at_once)
        found = reader.varints(len(values), "number", 2**49)
    assert found.dtype == np.int64
    assert (found.tolist(), reader.position) == (values, len(data) - len(rest))


@given(st.binary(max_size=60), st.integers(0, 20), st.sampled_from([1, 200, 2**20, 2**49]), st.sampled_from([1, 4, 99]))
@example(b"\x80" * 7, 1, 2**49, 99)
@example(b"\x01" + b"\x80" * 6, 2, 2**49, 99)
@example(b"\x81\x00", 1, 2**49, 99)
def test_many_varints_are_refused_where_one_of_them_is(data, count, below, at_once):
    try:
        expected = one_by_one(data, count, below)
    except gw.DecodeError:
        expected = None
    reader = Reader(memoryview(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradwire.wire.reader._FEW", 0)
        patch.setattr("gradwire.wire.reader._AT_ONCE", at_once)
        if expected is None:
            with pytest.raises(gw.DecodeError):
                reader.varints(count, "number", below)
        else:
            assert (reader.varints(count, "number", below).tolist(), reader.position) == expected


def test_varints_have_one_form():
    blob = BLOBS["dense() flat normal"]
    for longer in (b"\xa8\x00", b"\xa8\x80\x00", b"\xa8\x80\x80\x80\x80\x80\x80\x80\x80\x00"):
        assert isinstance(outcome(repaired(blob[:4] + longer + blob[5:-4])), gw.Malformed)
    assert blob[4] == 40, "d is where this test thinks"
    assert isinstance(outcome(repaired(blob[:4] + b"\xff" * 11 + blob[5:-4])), gw.DecodeError)


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_parameters", "max_parts", "max_bytes", "max_expansion"])
@pytest.mark.parametrize("value", [0, -1, 1.5, None, True, "9"])
def test_limits_are_checked(name, value):
    with pytest.raises(gw.ConfigError, match=name):
        gw.Limits(**{name: value})


def test_each_limit_is_respected():
    blob = BLOBS["dense() flat normal"]
    gw.decode(blob, gw.Limits(max_parameters=40, max_bytes=len(blob), max_parts=1))
    with pytest.raises(gw.LimitExceeded, match="40"):
        gw.decode(blob, gw.Limits(max_parameters=39))
    with pytest.raises(gw.LimitExceeded, match=str(len(blob))):
        gw.decode(blob, gw.Limits(max_bytes=len(blob) - 1))
    several = BLOBS["topk(0.05, scope='tensor') model normal"]
    parts = gw.inspect(several)["num_parts"]
    assert parts > 2
    gw.decode(several, gw.Limits(max_parts=parts))
    with pytest.raises(gw.LimitExceeded, match=str(parts)):
        gw.decode(several, gw.Limits(max_parts=parts - 1))


def _peak(blob: bytes, limits: gw.Limits) -> int:
    tracemalloc.start()
    try:
        with contextlib.suppress(gw.DecodeError):
            gw.inspect(blob, limits)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param(gw.Limits(), id="default"),
        pytest.param(gw.Limits(max_parameters=2**63, max_parts=2**40), id="wide", marks=pytest.mark.slow),
    ],
)
def test_no_memory_is_spent_on_what_a_blob_only_claims(limits):
    """A huge integer in place of any field: the peak stays in proportion to the bytes there are."""
    worst = (0, "")
    for name in sorted(BLOBS)[:: 3 if limits == gw.Limits() else 5]:
        blob = BLOBS[name]
        for at in range(4, min(len(blob) - 4, 48)):
            for huge in (2**22, 2**33, 2**62):
                if limits == gw.Limits() and huge == 2**62 and at > 12:
                    continue
                changed = repaired(blob[:at] + varint(huge) + blob[at + 1 : -4])
                worst = max(worst, (_peak(changed, limits), f"{name} byte {at} := {huge}"))
    assert worst[0] < 400_000, worst


def test_a_long_blob_costs_memory_in_proportion():
    d = 200_000
    x = np.random.default_rng(0).standard_normal(d).astype(np.float32)
    for spec in ("dense()", "topk(0.01)", "topk(0.3)", "uniform(4)", "topk(0.1) | uniform(2)", "randk(0.1)"):
        blob = gw.Client(gw.parse(spec), gw.Layout.flat(d)).compress(x)
        peak = _peak(blob, gw.Limits())
        assert peak < 100 * len(blob) + 100_000, f"{spec}: {peak} bytes for {len(blob)}"


def test_an_empty_support_of_a_huge_range_costs_nothing():
    d = 2**34
    payload = gw.Payload(d, (gw.Part(Explicit(d, np.empty(0, np.int64)), Floats(np.empty(0, np.float32))),))
    blob = gw.encode(payload)
    assert len(blob) < 32
    assert _peak(blob, gw.Limits()) < 100_000
    with pytest.raises(gw.LimitExceeded):
        gw.decode(blob, gw.Limits(max_parameters=2**33))


def test_many_small_parts_before_a_large_one_decode_in_proportion():
    """Reading a small support must not cost work for all the bytes behind it."""
    big = 250_000
    values = np.random.default_rng(0).standard_normal(big).astype(np.float32)
    small = gw.Part(Explicit(1000, np.array([500, 700], np.int64)), Floats(np.ones(2, np.float32)))
    whole = gw.Part(Explicit(big + 1, np.arange(big)), Floats(values))
    blob = gw.encode(gw.Payload(100 * 1000 + big + 1, (small,) * 100 + (whole,)))
    start = time.process_time()
    gw.decode(blob)
    assert time.process_time() - start < 1.0, f"{len(blob)} bytes"


# --- symbols ----------------------------------------------------------------------------------------------------------


@settings(max_examples=up_to(200), deadline=None)
@given(
    symbols=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), min_size=1, max_size=60),
    num_symbols=st.sampled_from([31, 32, 33, 1000]),
)
def test_sizes_by_which_coders_are_chosen_are_exact(symbols, num_symbols):
    written = np.array([symbol for symbol, length in symbols for _ in range(length)], np.uint16)
    low, high = int(written.min()), int(written.max())
    stream = entropy._Stream(written, entropy.symbol_bits(num_symbols), low, np.bincount(written)[low : high + 1])
    sizes = []
    for coder, number in entropy.CODERS.items():
        size, write = entropy._ENCODERS[number](stream)
        assert size == len(write())
        assert entropy.encode_symbols(written, num_symbols, coder) == (number, write())
        sizes.append(size)
    assert len(entropy.encode_symbols(written, num_symbols, "auto")[1]) == min(sizes)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=300), st.integers(0, 3))
def test_the_bound_of_a_golomb_code_is_one(gaps, shift):
    gaps = np.array(gaps, np.int64) << shift
    _, num_bits = golomb.golomb_parameter(gaps)
    bound = golomb.least_bits(gaps.size, int(gaps.sum()))
    assert 0 < bound <= num_bits
    assert num_bits < bound + 3 * gaps.size  # and a useful one, less than three bits a gap below


@settings(max_examples=up_to(200), deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 200), st.integers(0, 2**20), st.integers(0, 2**63 - 1)), max_size=400),
    st.integers(0, 200),
)
def test_many_varints_are_written_as_one_by_one(values, more):
    values = [*values, *range(more)]
    assert varints(np.array(values, np.int64)) == b"".join(map(varint, values))
