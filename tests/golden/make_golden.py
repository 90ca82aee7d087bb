"""Make the golden files of tests/golden/v1 that are not there yet: ``python tests/golden/make_golden.py [--force]``.

A file NAME.blob is a container and NAME.gw a .gw file; expected.json says what each holds: indices as ``0-3 7``, and
the bits of the values as ``3f800000 bf800000*2``. Most are written by attacks/forge.py, a writer of its own, so that
every code is there whatever the library would choose; those that begin with ``made-`` are the library's.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import tempfile
from itertools import groupby
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "attacks"))

import forge  # noqa: E402

import gradwire as gw  # noqa: E402
from gradwire.ends.downlink import reference_digest  # noqa: E402
from gradwire.files import archive as files  # noqa: E402
from gradwire.files.dtypes import DTYPES  # noqa: E402
from gradwire.files.safetensors_io import SafetensorsReader  # noqa: E402

V1 = HERE / "v1"
SUPPORTS = ["none", "every", "golomb", "bitmap", "seeded", "known", "runs", "entropy", "segments", "cyclic", "dithered"]
SUPPORTS += ["context", "fielded"]
KINDS = ["float32", "float16", "bfloat16", "centred", "levels", "low_rank", "affine", "grouped", "multiples"]
CODERS = ["packed", "huffman", "ans", "rle", "context"]

contents: dict[str, bytes] = {}
facts: dict[str, dict] = {}


def bits_of(numbers):
    return [int(b) for b in np.asarray(numbers, np.float32).view(np.uint32)]


def index_text(indices):
    """Runs of neighbours as a-b, in the order given."""
    runs: list[list[int]] = []
    for i in indices:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return " ".join(f"{a}-{b}" if b > a else str(a) for a, b in runs)


def value_text(bits):
    groups = [(b, len(list(same))) for b, same in groupby(bits)]
    return " ".join(f"{b:08x}*{n}" if n > 1 else f"{b:08x}" for b, n in groups)


def add(name, blob, codecs, d, indices, numbers, reference_file=None, **fields):
    contents[f"{name}.blob"] = blob
    reference, layout = fields.get("reference"), fields.get("layout", bytes(4))
    facts[f"{name}.blob"] = {
        "d": d,
        "round": fields.get("round", 0),
        "sequence": fields.get("sequence", 0),
        "layout": layout.hex(),
        "reference": reference.hex() if reference else None,
        "sum_weights": fields.get("sum_weights"),
        "packet": list(fields["packet"]) if "packet" in fields else None,
        "parts": [
            [SUPPORTS[s], None if v is None else KINDS[v % 16] + (f"+{CODERS[v // 16]}" if v > 15 else "")]
            for s, v in codecs
        ],
        "reference_file": reference_file,
        "indices": index_text(indices),
        "values": value_text(bits_of(numbers)),
    }


def plain(numbers):
    return b"\0" + forge.floats(*numbers)


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


# every support, with plain float32 values


def supports():
    rng = random.Random(1)
    five = [3, 4, 60, 61, 99]
    dense = sorted(rng.sample(range(300), 150))
    spread = [0, 1, 5, 40, 41, 700, 701, 4000]
    entries = {
        "golomb-m1": (10, 2, [0, 1, 4, 9], lambda x: forge.varint(len(x)) + forge.golomb(forge.gaps_of(x), 1)),
        "golomb-m5": (100, 2, five, lambda x: forge.varint(len(x)) + forge.golomb(forge.gaps_of(x), 5)),
        "golomb-m16": (100, 2, five, lambda x: forge.varint(len(x)) + forge.golomb(forge.gaps_of(x), 16)),
        "golomb-wide": (2**33, 2, [2**32, 2**33 - 1],
                        lambda x: forge.varint(len(x)) + forge.golomb(forge.gaps_of(x), 2**31 + 3)),
        "bitmap": (300, 3, dense, lambda x: forge.bits_to_bytes([int(i in x) for i in range(300)])),
        "runs": (5000, 6, [*range(7, 30), *range(100, 103), 4999], forge.runs),
        "runs-whole": (40, 6, [*range(40)], forge.runs),
        "entropy": (5000, 7, spread, lambda x: forge.entropy(forge.gaps_of(x), 3, 4)),
        "entropy-b0": (400, 7, dense, lambda x: forge.entropy(forge.gaps_of(x), 0, 5)),
        "segments": (1000, 8, [1, 2, 3, 900, 950, 999], segments),
    }  # fmt: skip
    for name, (d, codec, indices, write) in entries.items():
        numbers = [f32(rng.gauss(0, 1)) for _ in indices]
        blob = forge.container(d, bytes([codec]) + write(indices) + plain(numbers), round=3, sequence=9)
        add(f"support-{name}", blob, [(codec, 0)], d, indices, numbers, round=3, sequence=9)
    add("support-none", forge.container(77, b"\0"), [(0, None)], 77, [], [])
    add("support-every", forge.container(3, b"\1" + plain([1.5, -0.0, 2.0])), [(1, 0)], 3, [0, 1, 2], [1.5, -0.0, 2.0])
    for name, d, k, seed, client in (
        ("client", 1000, 4, 5, 7),
        ("shared", 1000, 3, 2**63 + 1, 0),
        ("complement", 20, 15, 0, 1),
        ("half", 40, 20, 1, 2),
    ):
        key = gw.Key(seed, 2**40, client - 1 if client else None, "support")
        indices, numbers = key.choice(d, k).tolist(), [f32(rng.gauss(0, 1)) for _ in range(k)]
        part = bytes([4]) + forge.varint(k) + forge.varint(seed) + forge.varint(client) + plain(numbers)
        add(f"support-seeded-{name}", forge.container(d, part, round=2**40), [(4, 0)], d, indices, numbers, round=2**40)

    for name, d, k, round_ in (
        ("start", 50, 7, 0),
        ("inside", 50, 7, 3),
        ("wrapped", 50, 7, 2**40 + 1),
        ("whole", 5, 5, 8),
    ):
        indices = sorted((round_ * k + j) % d for j in range(k))
        numbers = [f32(rng.gauss(0, 1)) for _ in range(k)]
        blob = forge.container(d, bytes([9]) + forge.varint(k) + plain(numbers), round=round_)
        add(f"support-cyclic-{name}", blob, [(9, 0)], d, indices, numbers, round=round_)


def segments(indices):
    out = forge.varint(4)
    for start, stop in ((0, 10), (10, 600), (600, 990), (990, 1000)):
        inside = [i - start for i in indices if start <= i < stop]
        out += (forge.varint(stop - start) if stop < 1000 else b"") + forge.varint(len(inside))
        out += forge.golomb(forge.gaps_of(inside), max(1, (stop - start) // 8)) if inside else b""
    return out


def known():
    """A downlink blob, and payloads that lean on the vector it gives."""
    reference = [0.0, -3.0, 3.0, 1.0, 0.0, 0.5, -2.0, 0.0, 0.25, 8.0]
    blob = forge.container(10, b"\1" + plain(reference), flags=1, round=4, sequence=4, sum_weights=2.5)
    add("downlink", blob, [(1, 0)], 10, range(10), reference, round=4, sequence=4, sum_weights=2.5)
    digest = reference_digest(blob)
    fields = {"round": 5, "reference": digest}
    numbers = [1.0, 2.0, 3.0, 4.0, 5.0]
    extra = bytes([2]) + forge.varint(2) + forge.golomb([0, 3], 2)
    part = bytes([5]) + forge.varint(3) + extra + plain(numbers)
    blob = forge.container(10, part, flags=2, **fields)
    add("known-and-extra", blob, [(5, 0)], 10, [1, 2, 9, 0, 4], numbers, "downlink.blob", **fields)
    parts = [
        forge.varint(4) + bytes([5]) + forge.varint(1) + b"\0" + plain([7.0]),
        forge.varint(6) + bytes([5]) + forge.varint(2) + b"\0" + plain([-1.0, -2.0]),
    ]
    blob = forge.container(10, *parts, flags=2, **fields)
    add("known-parts", blob, [(5, 0), (5, 0)], 10, [1, 6, 9], [7.0, -1.0, -2.0], "downlink.blob", **fields)
    blob = forge.container(10, bytes([5]) + b"\0\0", flags=2, **fields)
    add("known-nothing", blob, [(5, None)], 10, [], [], "downlink.blob", **fields)


# every value kind in every coder


def symbol_stream(coder, symbols, n):
    if coder == 0:
        return forge.pack(symbols, (n - 1).bit_length())
    if coder == 1:
        sizes = gw.kernels.ops.huffman_lengths(np.bincount(symbols)).tolist()
        return forge.huffman(symbols, sizes)
    return forge.ans(symbols) if coder == 2 else forge.rle(symbols, (n - 1).bit_length())


def float_bits(kind, number):
    if kind == 1:
        return struct.unpack("<H", struct.pack("<e", number))[0]
    bits = struct.unpack("<I", struct.pack("<f", number))[0]
    return bits if kind == 0 else bits >> 16


def coded_floats(kind, coder, bits):
    w, t = ((8, 23), (5, 10), (8, 7))[kind]
    if coder == 0:
        return b"".join(b.to_bytes(4 if kind == 0 else 2, "little") for b in bits)
    exponents = [b >> t & (1 << w) - 1 for b in bits]
    rest = [b >> w + t << t | b & (1 << t) - 1 for b in bits]
    return symbol_stream(coder, exponents, 1 << w) + forge.pack(rest, t + 1)


def values():
    rng = random.Random(2)
    count = 21
    for kind in range(3):
        numbers = [0.0, -0.0, 1.0, -1.0, 2.0**-14, -(2.0**-24), 0.5, *(rng.gauss(0, 1) for _ in range(count - 7))]
        bits = [float_bits(kind, x) for x in numbers]
        if kind == 1:
            numbers = [struct.unpack("<e", struct.pack("<H", b))[0] for b in bits]
        else:
            numbers = [struct.unpack("<f", struct.pack("<I", b << 8 * kind))[0] for b in bits]
        for coder in range(4):
            part = b"\1" + bytes([kind + 16 * coder]) + coded_floats(kind, coder, bits)
            name = f"values-{KINDS[kind]}-{CODERS[coder]}"
            add(name, forge.container(count, part), [(1, kind + 16 * coder)], count, range(count), numbers)
    scale = f32(0.3)
    for n, coder in ((2, 0), (3, 1), (16, 2), (15, 3), (2, 3), (255, 0), (255, 2), (65536, 0), (5, 2), (4, 1)):
        symbols = [min(n - 1, max(0, int(rng.gauss(n / 2, n / 6)))) for _ in range(40)]
        part = b"\1" + bytes([3 + 16 * coder]) + forge.varint(n) + b"\0" + forge.floats(scale)
        blob = forge.container(40, part + symbol_stream(coder, symbols, n))
        numbers = [f32(scale * (s - (n - 1) / 2)) for s in symbols]
        add(f"values-centred-{n}-{CODERS[coder]}", blob, [(1, 3 + 16 * coder)], 40, range(40), numbers)
    symbols = [int(i % 90 == 0) for i in range(1100)]
    for coder in (1, 2, 3):
        part = b"\1" + bytes([3 + 16 * coder]) + forge.varint(2) + b"\0" + forge.floats(2.0)
        blob = forge.container(1100, part + symbol_stream(coder, symbols, 2))
        numbers = [2.0 * s - 1 for s in symbols]
        add(f"values-long-{CODERS[coder]}", blob, [(1, 3 + 16 * coder)], 1100, range(1100), numbers)
        one = symbol_stream(coder, [1] * 30, 2)
        part = b"\1" + bytes([3 + 16 * coder]) + forge.varint(2) + b"\0" + forge.floats(2.0)
        blob = forge.container(30, part + one)
        add(f"values-one-symbol-{CODERS[coder]}", blob, [(1, 3 + 16 * coder)], 30, range(30), [1.0] * 30)
    table = [0.0, f32(0.1), 0.5, f32(3e38)]
    for coder in range(4):
        symbols = [min(7, int(rng.expovariate(0.6))) for _ in range(40)]
        part = b"\1" + bytes([4 + 16 * coder]) + forge.varint(4) + forge.floats(*table)
        blob = forge.container(40, part + symbol_stream(coder, symbols, 8))
        numbers = [table[s >> 1] * (-1) ** s for s in symbols]
        add(f"values-levels-{CODERS[coder]}", blob, [(1, 4 + 16 * coder)], 40, range(40), numbers)
    p = [f32(rng.gauss(0, 1)) for _ in range(10)] + [-0.0, f32(1e-40)]
    q = [f32(rng.gauss(0, 1)) for _ in range(6)]
    numbers = []
    for i in range(6):
        for j in range(3):
            numbers.append(f32(p[2 * i] * q[2 * j] + p[2 * i + 1] * q[2 * j + 1]))
    for coder in range(4):
        factors = coded_floats(0, coder, [float_bits(0, x) for x in p + q])
        part = bytes([1, 5 + 16 * coder]) + forge.varint(6) + forge.varint(2) + factors
        blob = forge.container(18, part)
        add(f"values-low-rank-{CODERS[coder]}", blob, [(1, 5 + 16 * coder)], 18, range(18), numbers)
    part = bytes([1, 5]) + forge.varint(1) + forge.varint(1) + forge.floats(2.0, *[0.5, -1.0] * 50)
    blob = forge.container(100, part)
    add("values-low-rank-row", blob, [(1, 5)], 100, range(100), [1.0, -2.0] * 50)
    indices = [0, 7, 8, 9, 31, 70]
    scales, ranks, symbols = [1.0, 0.5, f32(1e-40), 4.0], [0, 0, 1, 1, 2, 3], [0, 1, 2, 0, 2, 1]
    part = bytes([2]) + forge.varint(6) + forge.golomb(forge.gaps_of(indices), 8) + bytes([3]) + forge.varint(3)
    part += forge.varint(8) + forge.floats(*scales) + forge.pack(symbols, 2)
    numbers = [f32(scales[r] * (s - 1)) for r, s in zip(ranks, symbols, strict=True)]
    add("values-block-scales", forge.container(72, part), [(2, 3)], 72, indices, numbers)


def affine():
    rng = random.Random(3)
    scale = f32(0.3)
    for n, zero, coder in ((16, 3, 0), (16, 15, 1), (256, 40, 2), (3, 0, 3), (2, 1, 0), (65536, 60000, 0)):
        symbols = [min(n - 1, int(rng.expovariate(5 / n))) for _ in range(40)]
        part = bytes([1, 6 + 16 * coder]) + forge.varint(n) + b"\0" + forge.floats(scale)
        part += forge.pack([zero], (n - 1).bit_length()) + symbol_stream(coder, symbols, n)
        numbers = [f32(scale * (s - zero)) for s in symbols]
        name = f"values-affine-{n}-{CODERS[coder]}"
        add(name, forge.container(40, part), [(1, 6 + 16 * coder)], 40, range(40), numbers)
    indices = [0, 7, 8, 9, 31, 70]
    scales, zeros = [1.0, 0.5, f32(1e-40), f32(1e38)], [0, 4, 2, 1]
    ranks, symbols = [0, 0, 1, 1, 2, 3], [0, 4, 2, 4, 3, 4]
    part = bytes([2]) + forge.varint(6) + forge.golomb(forge.gaps_of(indices), 8) + bytes([6]) + forge.varint(5)
    part += forge.varint(8) + forge.floats(*scales) + forge.pack(zeros, 3) + forge.pack(symbols, 3)
    numbers = [f32(scales[r] * (s - zeros[r])) for r, s in zip(ranks, symbols, strict=True)]
    add("values-affine-blocks", forge.container(72, part), [(2, 6)], 72, indices, numbers)


def grouped():
    scales, sizes = [0.5, f32(1e-3), f32(1e30)], [3, 1, 5]
    symbols = [[0, 1, 2], [2], [2, 2, 2, 2, 0]]
    coders = [0, 0, 3]
    centred = [
        bytes([3 + 16 * c]) + forge.varint(3) + b"\0" + forge.floats(scale) + symbol_stream(c, some, 3)
        for scale, some, c in zip(scales, symbols, coders, strict=True)
    ]
    numbers = [f32(scale * (s - 1)) for scale, some in zip(scales, symbols, strict=True) for s in some]
    values = forge.grouped(*zip(sizes, centred, strict=True))
    indices = gw.Key(5, 2**40, 6, "support").choice(100, 9).tolist()
    seeded = bytes([4]) + forge.varint(9) + forge.varint(5) + forge.varint(7) + values
    add("values-grouped", forge.container(100, seeded, round=2**40), [(4, 7)], 100, indices, numbers, round=2**40)
    mixed = forge.grouped(
        (2, bytes([2]) + (0x3F80).to_bytes(2, "little") * 2),
        (30, bytes([4 + 16 * 2]) + forge.varint(1) + forge.floats(2.0) + forge.ans([1] * 30)),
        (2, bytes([6]) + forge.varint(4) + b"\0" + forge.floats(0.25) + forge.pack([3], 2) + forge.pack([3, 0], 2)),
    )
    numbers = [1.0] * 2 + [-2.0] * 30 + [0.0, -0.75]
    add("values-grouped-kinds", forge.container(34, b"\1" + mixed), [(1, 7)], 34, range(34), numbers)


def dithered():
    rng = random.Random(4)
    # d, level, seed, round, client (0: shared), golden, share of steps
    for name, d, level, seed, round_, client, golden, mean in (
        ("client", 500, 52, 5, 2, 7, False, 0.03),
        ("shared", 300, 56, 2**63 + 1, 2**40, 0, False, 0.1),
        ("golden", 500, 52, 5, 3, 7, True, 0.03),
        ("listed", 200, 30, 1, 0, 1, False, 0.1),
        ("dense", 100, 68, 2, 1, 1, False, 3.0),
        ("all", 40, 127, 3, 2**50, 2, True, 40.0),
        ("none-coded", 50, 0, 3, 1, 2, False, 0.2),
    ):
        drawn = forge.thresholds(d, seed, round_, client, golden)
        scaled = [rng.expovariate(1 / mean) for _ in range(d)]
        counts = [int(a) + (t < (a - int(a)) * 2**32) for a, t in zip(scaled, drawn, strict=True)]
        found = [(i, n if rng.random() < 0.5 else -n) for i, n in enumerate(counts) if n]
        indices, counts = [i for i, _ in found], [n for _, n in found]
        step = f32(rng.expovariate(1))
        part = forge.dithered(d, indices, level, seed, round_, client, golden) + forge.multiples(counts, step)
        numbers = [f32(n * step) for n in counts]
        add(f"support-dithered-{name}", forge.container(d, part, round=round_), [(10, 8)], d, indices, numbers,
            round=round_)  # fmt: skip
    fielded(rng)
    counts = [1, -(2**24), 7, -1, 300, 1, 1]
    part = b"\1" + forge.multiples(counts, f32(2.0**-149))
    numbers = [f32(n * 2.0**-149) for n in counts]
    add("values-multiples", forge.container(7, part), [(1, 8)], 7, range(7), numbers)
    part = b"\1" + forge.multiples([1, -1, -1], 0.75)
    add("values-multiples-signs", forge.container(3, part), [(1, 8)], 3, range(3), [0.75, -0.75, -0.75])


def fielded(rng):
    """A downlink blob with a field, and payloads that lean on it."""
    shapes = [(60, 12), (7, 7), (200, 31), (1, 1), (132, 1)]
    levels = [rng.randint(-6, 6) for n, c in shapes for _ in range(-(-n // c) + c if n > c else 1)]
    levels[0], levels[5], levels[-1] = 31, -31, 20
    data, digest, said = forge.field_of(shapes, levels)
    zeros = forge.container(400, b"\0" + data, flags=forge.DOWNLINK | forge.FIELD, round=8, sum_weights=2.5)
    add("field", zeros, [(0, None)], 400, [], [], round=8, sum_weights=2.5)
    two = forge.varint(390) + b"\0", forge.varint(10) + b"\1" + plain([float(i) for i in range(10)]) + data
    blob = forge.container(400, *two, flags=forge.DOWNLINK | forge.FIELD, sum_weights=1.0)
    add("field-behind-parts", blob, [(0, None), (1, 0)], 400, range(390, 400), [float(i) for i in range(10)],
        sum_weights=1.0)  # fmt: skip
    for name, level, round_, client, golden, mean in (
        ("client", 52, 9, 7, False, 0.03),
        ("golden", 56, 10, 0, True, 0.1),
        ("listed", 30, 2**40, 1, False, 0.1),
        ("high", 127, 9, 2, False, 40.0),
    ):
        drawn = forge.thresholds(400, 5, round_, client, golden)
        scaled = [rng.expovariate(1 / mean) * 2 ** ((min(max(level + x, 0), 127) - level) / 2) for x in said]
        counts = [int(a) + (t < (a - int(a)) * 2**32) for a, t in zip(scaled, drawn, strict=True)]
        found = [(i, n if rng.random() < 0.5 else -n) for i, n in enumerate(counts) if n]
        indices, counts = [i for i, _ in found], [n for _, n in found]
        step = f32(rng.expovariate(1))
        part = forge.dithered(400, indices, level, 5, round_, client, golden, (digest, said))
        add(f"support-fielded-{name}", forge.container(400, part + forge.multiples(counts, step), round=round_),
            [(12, 8)], 400, indices, [f32(n * step) for n in counts], "field.blob", round=round_)  # fmt: skip


def contexts():
    rng = random.Random(7)
    rows = [rng.random() ** 4 for _ in range(40)]
    signs = [rng.random() for _ in range(40)]
    stretches = [(300, 30), (5, 5), (203, 20)]
    scale, table = f32(0.7), [0.5, f32(1.1), 3.0]
    for name, n, largest in (("odd", 7, 3), ("even", 2, 1), ("large", 4001, 2000), ("levels", 0, 3)):
        integers, rate = [0] * 508, 0.5 if largest < 9 else 0.02
        for i in range(508):
            if rng.random() < rows[i // 20]:
                integers[i] = min(largest, int(rng.expovariate(rate)) + 1) * (-1) ** (rng.random() < signs[i // 20])
        indices = [i for i, x in enumerate(integers) if x]
        if n:
            values, codec = bytes([67]) + forge.varint(n) + forge.floats(scale), 67
            numbers = [f32(scale * (x - (0 if n % 2 else (x > 0) - 0.5))) for x in integers if x]
        else:
            values, codec = bytes([68]) + forge.varint(3) + forge.floats(*table), 68
            numbers = [table[abs(x) - 1] * (1 if x > 0 else -1) for x in integers if x]
        part = forge.contexts(integers, stretches, largest, values)
        add(f"support-context-{name}", forge.container(508, part), [(11, codec)], 508, indices, numbers)
    one = forge.contexts([0] * 40 + [-1], [(41, 41)], 1, bytes([67]) + forge.varint(3) + forge.floats(scale))
    add("support-context-one", forge.container(41, one), [(11, 67)], 41, [40], [-scale])


# the container's other fields


def structure():
    add("empty-d0", forge.container(0, b"\0"), [(0, None)], 0, [], [])
    add("empty-d0-every", forge.container(0, b"\1"), [(1, None)], 0, [], [])
    high = {"round": 2**64 - 1, "sequence": 2**63, "layout": b"\xff\0\x80\7"}
    add("fields-large", forge.container(1, b"\1" + plain([1.0]), **high), [(1, 0)], 1, [0], [1.0], **high)
    parts = [
        forge.varint(5) + b"\0",
        forge.varint(0) + b"\1",
        forge.varint(4) + bytes([2]) + forge.varint(1) + forge.golomb([3], 3) + plain([2.0]),
        forge.varint(300) + bytes([1, 3]) + forge.varint(3) + b"\0" + forge.floats(0.5) + forge.pack([2] * 300, 2),
    ]
    codecs = [(0, None), (1, None), (2, 0), (1, 3)]
    add("parts", forge.container(309, *parts), codecs, 309, [8, *range(9, 309)], [2.0] + [0.5] * 300)
    fields = {"round": 1, "sequence": 1, "sum_weights": 0.0}
    parts = [forge.varint(5) + b"\0", forge.varint(2) + b"\1" + plain([1.0, -1.0])]
    blob = forge.container(7, *parts, flags=1, **fields)
    add("downlink-parts", blob, [(0, None), (1, 0)], 7, [5, 6], [1.0, -1.0], **fields)
    packet = {"packet": (2, 3), "sequence": 4}
    blob = forge.container(9, bytes([2, 1]) + forge.golomb([8], 4) + plain([0.125]), flags=8, **packet)
    add("packet", blob, [(2, 0)], 9, [8], [0.125], **packet)
    part = b"\1" + forge.skewed_centred("rle", 9000)
    add("padded", forge.container(9000, part, padding=bytes(60)), [(1, 3 + 48)], 9000, range(9000), [-0.5] * 9000)
    packet = {"packet": (0, 2**30), "sum_weights": 3.0}
    blob = forge.container(9, b"\0", flags=9, **packet)
    add("packet-downlink-empty", blob, [(0, None)], 9, [], [], **packet)


# the library's own


def record(name, blob):
    payload, info = gw.decode(blob), gw.inspect(blob)
    assert info["total_bytes"] == len(blob)
    indices, numbers, codecs, start = [], [], [], 0
    for part in payload.parts:
        indices += (start + part.support.indices).tolist()
        numbers += part.numbers().tolist()
        start += part.length
    contents[f"{name}.blob"] = blob
    facts[f"{name}.blob"] = {
        "d": payload.d,
        "round": payload.round,
        "sequence": payload.sequence,
        "layout": payload.layout_digest.hex(),
        "reference": None,
        "sum_weights": payload.sum_weights,
        "packet": list(payload.packet) if payload.packet else None,
        "parts": codecs or None,
        "reference_file": None,
        "indices": index_text(indices),
        "values": value_text(bits_of(numbers)),
    }


def made():
    x = np.random.default_rng(5).standard_normal(400).astype(np.float32)
    layout = gw.Layout.from_arrays({"a": np.empty((20, 10)), "b": np.empty(0), "c": np.empty(195), "é": np.empty(5)})
    for name, spec in (
        ("topk", "topk(0.1)"),
        ("tensors", "topk(0.1, scope='tensor') | uniform(4)"),
        ("blocks", "topk(0.2, scope=50) | uniform(3, scope=100)"),
        ("randk", "randk(0.1) | bf16()"),
        ("randk-tensors", "randk(0.2) | uniform(4)"),
        ("cyclic-tensors", "cyclic(0.6) | sign()"),
        ("dense", "dense()"),
        ("signs", "uniform(1) | rle()"),
        ("half", "topk(0.3) | fp16() | ans()"),
    ):
        record(f"made-{name}", gw.Client(gw.parse(spec), layout, client_id=3, seed=4).compress(x, round=6))
    noise = np.random.default_rng(6).laplace(size=400).astype(np.float32)
    for name, spec in (("dither", "dither(density=0.05)"), ("dither-golden", "dither(num_bytes=70, golden=True)")):
        record(f"made-{name}", gw.Client(gw.parse(spec), layout, client_id=3, seed=4).compress(noise, round=6))
    rows = (x * np.repeat(np.random.default_rng(7).random(20) ** 4, 20)).astype(np.float32)
    record("made-rd", gw.Client(gw.rd(0.1), layout, client_id=3, seed=4).compress(rows, round=6))
    record("made-padded", gw.Client(gw.sign(), gw.Layout.flat(30_000)).compress(np.ones(30_000, np.float32)))
    for number, blob in enumerate(gw.Client(gw.topk(0.1), layout).packets(x, 80)[:2]):
        record(f"made-packet-{number}", blob)
    for name, spec in (("affine", "uniform(4, affine=True)"), ("affine-blocks", "uniform(3, scope=64, affine=True)")):
        record(f"made-{name}", gw.Client(gw.parse(spec), layout, client_id=3, seed=4).compress(abs(x) - 0.5, round=6))
    server = gw.Server(gw.dense(), layout, downlink=gw.topk(0.05))
    for client_id in range(2):
        client = gw.Client(gw.topk(0.1), layout, client_id=client_id)
        server.receive(client.compress(x * (1 + client_id), 2.0), client_id, 2.0)
    record("made-downlink", server.close_round().blob)


# .gw files


def gw_file(name, data, spec, tensors, metadata=()):
    keys = ("name", "dtype", "shape", "data")
    contents[f"{name}.gw"] = data
    facts[f"{name}.gw"] = {
        "spec": spec,
        "metadata": dict(metadata),
        "tensors": [dict(zip(keys, t, strict=True)) for t in tensors],
    }


def gw_files():
    one = forge.container(6, b"\1" + plain([1.0, f32(0.1), -65520.0, f32(1e-8), f32(3.4e38), -0.5]))
    halves = ["003c", "662e", "fffb", "0000", "ff7b", "00b8"]
    brains = ["803f", "cd3d", "80c7", "2c32", "803f", "00bf"]
    brains[4] = "7f7f"
    raw = bytes(range(48))
    tensors = [
        (b"w", 0, (2, 3), one),
        (b"w16", 1, (6,), one),
        ("wé.b".encode(), 2, (1, 6, 1), one),
        (b"scalar", 0, (), forge.container(1, b"\1" + plain([-2.0]))),
        (b"empty", 0, (0, 4), forge.container(0, b"\0")),
        (b"zeros", 2, (70,), forge.container(70, b"\0")),
        (b"F64", 3, (6,), one),
    ]
    f64 = [1.0, f32(0.1), -65520.0, f32(1e-8), f32(3.4e38), -0.5]
    found = [
        ("w", "F32", [2, 3], forge.floats(*f64).hex()),
        ("w16", "F16", [6], "".join(halves)),
        ("wé.b", "BF16", [1, 6, 1], "".join(brains)),
        ("scalar", "F32", [], forge.floats(-2.0).hex()),
        ("empty", "F32", [0, 4], ""),
        ("zeros", "BF16", [70], "0" * 280),
        ("F64", "F64", [6], struct.pack("<6d", *f64).hex()),
    ]
    for code, (dtype, width) in enumerate(DTYPES.items()):
        if code > 3:
            size = 2 * width
            tensors.append((dtype.encode(), code, (2, 1), forge.repaired(raw[:size])))
            found.append((dtype, dtype, [2, 1], raw[:size].hex()))
    gw_file("every-dtype", forge.file(tensors, b"dense()"), "dense()", found)
    others = [("q", "F8_E4M3", [2, 3], 6), ("é", "C64", [], 8), ("f4", "F4", [3, 2], 3), ("new", "F3_ODD", [5], 2)]
    gw_file(
        "other-dtypes",
        forge.file(
            [(n.encode(), (d.encode(), size), shape, forge.repaired(raw[:size])) for n, d, shape, size in others],
            b"dense()",
            [(b"format", b"pt"), (b"", "naïve\n".encode())],
        ),
        "dense()",
        [(n, d, shape, raw[:size].hex()) for n, d, shape, size in others],
        {"format": "pt", "": "naïve\n"},
    )
    gw_file("no-tensors", forge.file([], b""), "", [])
    spec = "topk(0.5) | uniform(8)"
    with tempfile.TemporaryDirectory() as folder:
        source, target, back = (Path(folder) / n for n in ("a.safetensors", "a.gw", "b.safetensors"))
        from safetensors.numpy import save_file

        rng = np.random.default_rng(6)
        arrays = {"a": rng.standard_normal((5, 8)).astype(np.float32), "b": rng.standard_normal(9).astype(np.float16)}
        save_file({**arrays, "steps": np.array(3, np.int64)}, source, {"format": "np"})
        files.compress_file(source, target, gw.parse(spec))
        files.decompress_file(target, back)
        with SafetensorsReader(back) as reader:
            made = [(i.name, i.dtype, list(i.shape), reader.raw(i).tobytes().hex()) for i in reader.tensors]
        gw_file("made-file", target.read_bytes(), spec, made, {"format": "np"})


def main():
    for make in (supports, known, values, affine, grouped, dithered, contexts, structure, made, gw_files):
        make()
    V1.mkdir(exist_ok=True)
    before = {path.name: path.read_bytes() for path in V1.iterdir() if path.suffix in (".blob", ".gw")}
    changed = sorted(name for name, data in before.items() if contents.get(name) != data)
    if changed and "--force" not in sys.argv[1:]:
        sys.exit(f"golden files are made once, these would change: {', '.join(changed)}; --force replaces them")
    for name in before:
        (V1 / name).unlink()
    for name, data in contents.items():
        assert len(data) < 4096, (name, len(data))
        (V1 / name).write_bytes(data)
    (V1 / "expected.json").write_text(
        "{\n" + ",\n".join(f"{json.dumps(n)}: {json.dumps(f)}" for n, f in sorted(facts.items())) + "\n}\n"
    )
    print(f"{len(contents)} files, {sum(map(len, contents.values()))} bytes, {len(contents) - len(before)} new")


if __name__ == "__main__":
    main()
