"""Damaged and random containers by the million: only a Payload or a DecodeError, in bounded memory and time.

``python attacks/fuzz.py --cases 1000000 --seed 0 --out FILE.json``. Each case is honest blobs damaged (bits flipped,
fields and lengths edited, two blobs spliced, pieces cut, moved or repeated) or random bytes behind an honest header;
most have their checksum repaired, so that the parser is reached. What decodes is decompressed, beside a reference or
field where it leans on one, and encoded again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import forge
import numpy as np
from forge import repaired, varint

import gradwire as gw
from gradwire.payload import Fielded

LIMITS = gw.Limits(max_parameters=2**20, max_parts=256)
GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "v1"
NUMBERS = (0, 1, 2, 127, 128, 255, 4095, 4096, 4097, 2**14, 2**16, 2**20, 2**32 - 1, 2**34, 2**48, 2**63, 2**64 - 1)
FACTOR = 50
REFERENCE = np.random.default_rng(1).integers(-50, 51, 2**20).astype(np.float32)  # with ties, and zeros
HELD = gw.decode((GOLDEN / "field.blob").read_bytes()).shipped_field
ENTRY_BYTES = 64  # what an entry of a payload may cost while it is read and decompressed
SPECS = (
    "dense()", "fp16()", "bf16() | ans()", "uniform(1) | rle()", "uniform(3, scope=64)", "uniform(4) | huffman()",
    "topk(0.01)", "topk(0.1) | uniform(2)", "topk(0.3) | fp16()", "topk(0.1, scope='tensor') | uniform(8) | ans()",
    "topk(0.05, scope=100) | bf16()", "randk(0.1)", "dither(density=0.1)",
    "rd(0.2)", "topk(0.2) | fractional(4) | context()",
    "randk(0.6, shared=True) | uniform(1)", "topk(0.5) | huffman()",
)  # fmt: skip


def honest_blobs() -> list[bytes]:
    """Blobs of every code: what the library writes at several lengths, and the golden files."""
    blobs = [p.read_bytes() for p in sorted(GOLDEN.glob("*.blob"))]
    rng = np.random.default_rng(0)
    for d in (1, 40, 300, 3000):
        layouts = [gw.Layout.flat(d), gw.Layout.from_arrays({"a": np.empty(d // 3), "b": np.empty(d - d // 3)})]
        for number, spec in enumerate(SPECS):
            x = (rng.standard_normal(d) * rng.random(d) ** 4).astype(np.float32)
            x[: d // 2] *= 1 if number % 2 else 0.001
            blobs.append(gw.Client(gw.parse(spec), layouts[number % 2], client_id=number).compress(x, round=number))
    return [blob for blob in blobs if gw.decode(blob).d <= LIMITS.max_parameters]


def mutate(blobs: list[bytes], rng: random.Random) -> bytes:
    """Make one case."""
    body = bytearray(rng.choice(blobs)[:-4])
    kind = rng.random()
    if kind < 0.06:
        head = rng.choice((b"", b"GW\1", bytes(body[:4]), forge.header(rng.choice((1, 40, 300, 5000)))))
        return repaired(head + rng.randbytes(rng.choice((1, 8, 30, 100, 500))))
    if kind < 0.5:
        body = bytearray(forged(rng)[:-4])
        if kind < 0.35:
            return repaired(bytes(body))
    elif kind < 0.6:
        other = rng.choice(blobs)[:-4]
        body = body[: rng.randrange(len(body) + 1)] + other[rng.randrange(len(other)) :]
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):
        at = rng.randrange(min(4, len(body)) if rng.random() < 0.97 else 0, len(body) + 1)
        if rng.random() < 0.4:
            at = min(at, 4 + rng.randrange(28))  # fields are at the beginning
        edit = rng.randrange(9)
        if edit == 0 and at < len(body):
            body[at] ^= 1 << rng.randrange(8)
        elif edit == 1 and at < len(body):
            body[at] = rng.choice((0, 1, 2, 127, 128, 254, 255, rng.randrange(256)))
        elif edit == 2:
            body[at : at + 1] = varint(rng.choice(NUMBERS))
        elif edit == 3 and at < len(body):
            body[at : at + 1] = varint(max(0, body[at] + rng.choice((-2, -1, 1, 2, 256))))
        elif edit == 4:
            body[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
        elif edit == 5:
            del body[at : at + rng.choice((1, 2, 4, 16))]
        elif edit == 6:
            del body[max(at, 4) :]
        elif edit == 7:
            source = rng.randrange(len(body) + 1)
            body[at:at] = body[source : source + rng.randrange(40)]
        elif len(body) > 4:
            body += bytes([rng.choice((0, 255, body[-1]))]) * rng.choice((1, 8, 100, 1000))
    if rng.random() < 0.05:
        return bytes(body) + rng.randbytes(4)
    return repaired(bytes(body))


def forged(rng: random.Random) -> bytes:
    """Make a container whose fields fit each other, mostly, but which no writer would write."""
    parts, total = [], 0
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        length = rng.choice((0, 1, 2, 7, 64, 300, HELD.length, 5000, 200_000, rng.randrange(1, 2**18)))
        total += length
        parts.append((length, forged_part(length, rng)))
    flags = rng.choice((0, 0, 0, 1, 2, 3, 8, 10, 33, 35))
    fields = {"round": rng.choice(NUMBERS), "sequence": rng.choice(NUMBERS), "flags": flags, "reference": bytes(8)}
    several = len(parts) > 1
    pieces = [(varint(length) if several else b"") + part for length, part in parts]
    if flags & forge.FIELD:
        pieces[-1] += forged_field(total, rng)
    return forge.container(total + (rng.random() < 0.02), *pieces, **fields)


def forged_field(d: int, rng: random.Random) -> bytes:
    """Make a field of at most d coordinates, or of what claims to be many."""
    shapes, left = [], d
    for _ in range(rng.choice((1, 1, 2, 5))):
        length = rng.randrange(1, max(1, min(left, 3000)) + 1)
        shapes.append((length, rng.choice((1, max(1, length // 30), length))))
        left -= length
    if rng.random() < 0.1:
        return varint(1) + varint(max(1, d)) + varint(1) + varint(1) * 2 + varint(1) + b"\1"
    sizes = [-(-n // c) + c if n > c else 1 for n, c in shapes]
    levels = [rng.choice((0, 0, 1, -1, 3, -5, 31)) for _ in range(sum(sizes))]
    return forge.field_of(shapes, levels, rng.randrange(1, len(levels) + 1))[0]


def forged_part(length: int, rng: random.Random) -> bytes:
    """Make a support and values."""
    few = sorted(rng.sample(range(max(1, length)), min(max(1, length), rng.choice((1, 2, 3, 20, 60)))))
    gaps, m = forge.gaps_of(few), rng.choice((1, 2, 3, 8, 100, max(1, length), rng.randrange(1, 500)))
    codec = rng.randrange(13)
    count = len(few)
    if max(gaps) > 2000 * m:
        m = max(1, length)
    if codec == forge.EVERY:
        count, data = length, b""
        if length and rng.random() < 0.3:
            rows = rng.choice([m for m in (1, 2, 4, 7, 8, 10, 50, 100, length) if length % m == 0])
            r = rng.choice((1, 1, 1, 2, min(rows, length // rows)))
            sizes = (0.0, 1.0, -1e10, rng.choice((1e18, 3e38)))
            numbers = forge.floats(*(rng.choice(sizes) for _ in range(r * (rows + length // rows))))
            return bytes([codec, forge.LOW_RANK]) + varint(rows) + varint(r) + numbers
    elif codec == forge.NONE:
        return b"\0"
    elif codec == forge.SEEDED:
        count = rng.choice((count, length, length // 2, min(length, 3000)))
        data = varint(count) + varint(rng.choice(NUMBERS)) + varint(rng.choice(NUMBERS))
    elif codec == forge.DITHERED and length < 5000:
        where = (
            rng.choice((0, 30, 50, 62, 127)),
            rng.choice((0, 7, 2**63)),
            0,
            rng.choice((0, 1, 9)),
            rng.random() < 0.5,
        )
        data = forge.dithered(length, few, *where)[1:]
    elif codec == forge.FIELDED and length == HELD.length:
        field = rng.choice((HELD.digest, HELD.digest, HELD.digest, bytes(4))), HELD.at(np.arange(length)).tolist()
        data = forge.dithered(length, few, rng.choice((0, 30, 50, 62, 127)), field=field)[1:]
    elif codec == forge.CONTEXT and 0 < length < 6000:
        most, cut, columns = rng.choice((1, 2, 3, 20)), rng.randrange(length), rng.choice((1, 5, 40, length))
        integers = [rng.choice((0, 0, 0, 1, -1, most)) * (i % 7 < 3) for i in range(length)]
        sizes = [n for n in (cut, length - cut) if n]
        shapes = [(n, max(1, min(n, columns))) for n in sizes]
        values = rng.choice(
            (bytes([67]) + varint(2 * most + 1), bytes([67]) + varint(2 * most), bytes([68]) + varint(most))
        )
        scales = most if values[0] == 68 else 1
        return forge.contexts(integers, shapes, most, values + forge.floats(*[rng.choice((1.0, 0.5, 1e-45))] * scales))
    elif codec == forge.CYCLIC:
        count = rng.choice((count, length // 3, length))
        data = varint(count)
    elif codec == forge.KNOWN:
        extra = rng.choice((b"\0", bytes([forge.GOLOMB]) + varint(len(few)) + forge.golomb(gaps, m)))
        known = rng.choice((0, 1, min(length, 40), length))
        count, data = known + (len(few) if len(extra) > 1 else 0), varint(known) + extra
    elif codec == forge.RUNS:
        kept = [rng.choice((0, 0, 3, length // 7)) for _ in range(rng.choice((1, 2, 5)))]
        skipped = [rng.choice((0, 1, length // 30)) for _ in kept]
        k = max(1, max(kept) // 40)
        count = sum(kept) + len(kept)
        data = varint(len(kept)) + forge.golomb(skipped, k) + forge.golomb(kept, k)
    elif codec == forge.ENTROPY:
        data = forge.entropy(gaps, rng.choice((0, 1, 4, 12)), rng.choice((1, 2, 5)))
    elif codec == forge.BITMAP and length < 20_000:
        chosen = set(few)
        data = forge.bits_to_bytes([int(i in chosen) for i in range(length)])
    elif codec == forge.SEGMENTS and length > 2:
        cut = rng.randrange(1, length)
        data = varint(2) + varint(cut)
        for inside in ([i for i in few if i < cut], [i - cut for i in few if i >= cut]):
            data += varint(len(inside)) + (forge.golomb(forge.gaps_of(inside), max(1, cut // 9)) if inside else b"")
    else:
        codec, data = forge.GOLOMB, varint(count) + forge.golomb(gaps, m)
    return bytes([codec]) + data + forged_values(count, length, rng)


def forged_values(count: int, length: int, rng: random.Random) -> bytes:
    """Make values: of count symbols, or few bytes that claim so many."""
    if count == 0:
        return b""
    if count > 1 and rng.random() < 0.1:
        cut = rng.randrange(1, count)
        inside = (forged_values(cut, length, rng), forged_values(count - cut, length, rng))
        return forge.grouped((cut, inside[0]), (count - cut, inside[1]))
    if count > 2000 or rng.random() < 0.2:
        return forge.skewed_centred(rng.choice(("rle", "ans", "huffman")), count, rng.choice((1.0, 1e38, 1e-45, 0.0)))
    if count < 300 and rng.random() < 0.2:
        return forge.multiples([rng.choice((1, -1, 1, -2, 9)) for _ in range(count)], rng.choice((1.0, 1e-45, 3e38)))
    if rng.random() < 0.2:
        return bytes([rng.choice((forge.FLOAT16, forge.BFLOAT16))]) + rng.randbytes(2 * count)
    n = rng.choice((2, 3, 4, 16, 255))
    symbols = [min(n - 1, int(rng.expovariate(0.5))) for _ in range(count)]
    coder = rng.randrange(4)
    width = (n - 1).bit_length()
    if coder == 1:
        size = max(2, max(symbols) + 1)
        lengths = [min(i + 1, size - 1) for i in range(size)] if size < 12 else None
        stream = forge.huffman(symbols, lengths) if lengths else b"\0\1\1"
    else:
        stream = forge.ans(symbols) if coder == 2 else forge.rle(symbols, width)
        stream = forge.pack(symbols, width) if coder == 0 else stream
    if rng.random() < 0.3 and n % 2 == 0:
        levels = forge.floats(*(rng.choice((0.0, 1.0, 3e38, 1e-40)) for _ in range(n // 2)))
        return bytes([forge.LEVELS | coder << 4]) + varint(n // 2) + levels + stream
    block = rng.choice((0, 0, 0, 1, 64, length))
    scales = forge.floats(*([0.5] * (rng.choice((1, count, -(-length // block) % 5000)) if block else 1)))
    if rng.random() < 0.3:
        zeros = [rng.randrange(n + (rng.random() < 0.01)) for _ in range(len(scales) // 4)]
        return (
            bytes([forge.AFFINE | coder << 4]) + varint(n) + varint(block) + scales + forge.pack(zeros, width) + stream
        )
    return bytes([forge.CENTRED | coder << 4]) + varint(n) + varint(block) + scales + stream


def use(blob: bytes) -> str:
    """Decode, and use what comes out; the class of the outcome."""
    try:
        payload = gw.decode(blob, LIMITS)
    except gw.DecodeError as error:
        return type(error).__name__ if str(error) else "FAILED an error says what is wrong"
    assert isinstance(payload, gw.Payload)
    named = {part.support.field_digest for part in payload.parts if isinstance(part.support, Fielded)}
    leans = payload.reference_digest is not None
    held = gw.Reference(payload.d, REFERENCE[: payload.d]) if leans else None
    leans = leans or bool(named)
    try:
        dense = gw.decompress(payload, gw.Reference.beside(HELD if named else None, held, payload.d))
    except gw.StaleReference:
        if named <= {HELD.digest}:
            raise
        return "StaleReference beside a field"
    except gw.DecodeError as error:
        assert leans, "what decodes decompresses"
        return f"{type(error).__name__} beside the reference"
    assert dense.shape == (payload.d,)
    assert dense.dtype == np.float32
    assert np.isfinite(dense).all(), "decoded numbers are finite"
    if payload.num_kept < 20_000:
        assert gw.decode(gw.encode(payload), LIMITS) == payload, "what decodes can be sent on"
    return "Payload beside the reference" if leans else "Payload"


def honest_times(blobs: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of honest blobs, and the shortest of several times of each."""
    times = []
    for blob in blobs:
        best = float("inf")
        for _ in range(7):
            start = time.process_time()
            use(blob)
            best = min(best, time.process_time() - start)
        times.append(best)
    return np.array([len(b) for b in blobs], float), np.array(times)


def honest_time(num_bytes: int, lengths: np.ndarray, times: np.ndarray) -> float:
    """Time of the honest blobs of about a length: their median, of the sixteen nearest in length."""
    nearest = np.argsort(np.abs(np.log(lengths / num_bytes)))[:16]
    return float(np.median(times[nearest]))


def fuzz(cases: int, seed: int = 0, seconds: float = 1e9, memory_every: int = 10) -> dict[str, Any]:
    """Try cases.

    Args:
        cases: how many.
        seed: of the random generator; the same cases in the same order for the same seed.
        seconds: stop after about this time.
        memory_every: measure memory on every so manieth case.

    Returns:
        What happened: ``cases``, ``outcomes``, ``slowest_factor``, ``peak_memory_factor`` (of what Limits allow),
        ``failures`` (hex and what was wrong).
    """
    forge.warm_up()
    blobs, rng = honest_blobs(), random.Random(seed)
    lengths, times = honest_times(blobs)
    by_length: dict[int, float] = {}
    outcomes: Counter[str] = Counter()
    failures: list[dict[str, str]] = []
    slowest: tuple[float, str] = (0.0, "")
    fattest: tuple[float, str] = (0.0, "")
    begin = time.perf_counter()
    done = 0
    for number in range(cases):
        blob = mutate(blobs, rng)
        if number % 1000 == 0 and time.perf_counter() - begin > seconds:
            break
        done += 1
        size = len(blob).bit_length() * 8 + (len(blob) << 3 >> len(blob).bit_length())
        if size not in by_length:
            by_length[size] = honest_time(max(1, len(blob)), lengths, times)
        start = time.process_time()
        try:
            outcome = use(blob)
        except Exception as error:
            outcome = f"FAILED {type(error).__name__}"
            failures.append({"blob": blob.hex(), "error": f"{type(error).__name__}: {error}"})
        took = time.process_time() - start
        outcomes[outcome] += 1
        if took / by_length[size] > max(slowest[0], 5.0):
            took = min(took, *(seconds_of(blob) for _ in range(3)))  # other programs must not decide
            if took / by_length[size] > slowest[0]:
                slowest = (took / by_length[size], blob.hex())
                if slowest[0] > FACTOR:
                    failures.append({"blob": blob.hex(), "error": f"slow: {slowest[0]:.0f} times the honest time"})
        if number % memory_every == 0:
            factor = peak_of(blob) / allowed_bytes(blob)
            if factor > 1:
                factor = peak_of(blob) / allowed_bytes(blob)  # a kernel that was loaded is here now
            if factor > fattest[0]:
                fattest = (factor, blob.hex())
                if factor > 1:
                    failures.append({"blob": blob.hex(), "error": f"memory: {factor:.1f} times what is allowed"})
    return {
        "cases": done,
        "seed": seed,
        "seconds": round(time.perf_counter() - begin, 1),
        "outcomes": dict(outcomes.most_common()),
        "slowest_factor": round(slowest[0], 1),
        "slowest_blob": slowest[1],
        "peak_memory_factor": round(fattest[0], 3),
        "peak_memory_blob": fattest[1],
        "failures": failures[:100],
        "num_failures": len(failures),
    }


def seconds_of(blob: bytes) -> float:
    """Time of one use, whatever comes of it."""
    start = time.process_time()
    try:
        use(blob)
    except Exception:
        return time.process_time() - start
    return time.process_time() - start


def peak_of(blob: bytes) -> int:
    """Peak of what Python allocates while a blob is decoded and decompressed."""
    tracemalloc.start()
    try:
        with contextlib.suppress(Exception):
            payload = gw.decode(blob, LIMITS)
            gw.decompress(payload, REFERENCE[: payload.d])
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def allowed_bytes(blob: bytes) -> int:
    """What a blob may cost: its entries and its vector, both as Limits bound them, and a constant.

    Beside a reference as much again as the vector: the reference's magnitudes are searched.
    """
    try:
        payload = gw.decode(blob, LIMITS)
        entries, d = payload.num_kept, payload.d if payload.reference_digest is None else 2 * payload.d
    except gw.DecodeError:
        entries, d = LIMITS.max_expansion * len(blob), 0
    return ENTRY_BYTES * (entries + len(blob)) + 8 * d + 400_000


def main() -> None:
    """Run it and write what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after about so long")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = fuzz(arguments.cases, arguments.seed, arguments.seconds)
    text = json.dumps(found, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    shown = {k: v for k, v in found.items() if "blob" not in k and k != "failures"}
    print(json.dumps(shown, indent=1))
    for failure in found["failures"][:10]:
        print(f"{failure['error'][:300]}: {failure['blob'][:300]}")
    sys.exit(1 if found["num_failures"] else 0)


if __name__ == "__main__":
    main()
