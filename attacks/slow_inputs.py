"""Inputs made to take long: much work for each byte, or work for all bytes again and again.

They may be accepted or refused, but not take more than 50 times as long as an honest blob of their length.
"""

import contextlib
import gc
import time

import forge
import numpy as np
from forge import container, escaped, floats, golomb, skewed_centred, varint

import gradwire as gw

FACTOR = 50


def honest_seconds(num_bytes: int) -> float:
    """Time of an honest blob of about this length: the slowest of a few kinds."""
    worst = 0.0
    for spec, per_byte in (("topk(0.05)", 4.2), ("topk(0.1) | uniform(4)", 8.0), ("topk(0.2, scope='tensor')", 1.1)):
        d = int(num_bytes * per_byte)
        arrays = {str(i): np.empty(size) for i, size in enumerate([d // 64] * 64)}
        layout = gw.Layout.from_arrays(arrays)
        x = np.random.default_rng(0).standard_normal(layout.d).astype(np.float32)
        blob = gw.Client(gw.parse(spec), layout).compress(x)
        worst = max(worst, seconds_of(blob) * num_bytes / len(blob))
    return worst


def seconds_of(blob: bytes) -> float:
    """Shortest time of decoding, and of decompressing where that works, in up to three tries.

    As in ``timeit`` no garbage is collected meanwhile: what that takes is up to all that the process holds.
    """
    best = float("inf")
    collects = gc.isenabled()
    gc.disable()
    try:
        for _ in range(3):
            start = time.process_time()
            with contextlib.suppress(gw.GradwireError):
                payload = gw.decode(blob)
                if payload.d <= 2**24:  # more takes its time for the vector that was asked for, whatever the blob
                    gw.decompress(payload)
            best = min(best, time.process_time() - start)
            if best > 10:
                break
    finally:
        if collects:
            gc.enable()
    return best


def slow_blobs() -> list[tuple[str, bytes]]:
    """Blobs that need much work."""
    one = bytes([forge.FLOAT32]) + floats(1.0)
    noise = np.random.default_rng(1).standard_normal(150_000).astype(np.float32)
    long = varint(2**20)
    tail = varint(noise.size) + b"\1\0" + noise.tobytes()
    small = [long + bytes([forge.GOLOMB, 1]) + golomb([0], 1) + one for _ in range(1000)]
    out = [("many long parts with one index each", container(1000 * 2**20 + noise.size, *small, tail))]
    pieces = b"".join(long + b"\1" + golomb([0], 1) for _ in range(2000))
    segments = bytes([forge.SEGMENTS]) + varint(2001) + pieces + b"\1" + golomb([0], 1)
    out.append(("many long segments with one index each",
                container(2001 * 2**20, segments + b"\0" + floats(*([1.0] * 2001)))))  # fmt: skip
    count = 60_000
    stream = varint(1) + varint(1) + varint(4096) + b"\0\0\1\0" * 4
    entropy = varint(count) + varint(0) + varint(1) + stream + bytes(count)
    out.append(("every quotient written apart",
                container(2 * count, bytes([forge.ENTROPY]) + entropy + skewed_centred("rle", count))))  # fmt: skip
    frequencies = varint(0) + varint(4096) + b"\1" * 4096 + b"\0\0\1\0"
    values = bytes([forge.CENTRED | forge.ANS]) + varint(4096) + varint(0) + floats(1.0) + frequencies
    out.append(("a table of 4096 frequencies for each entry", container(20, *[b"\1\1" + values] * 20)))
    values = bytes([forge.CENTRED | forge.HUFFMAN]) + varint(2) + varint(0) + floats(1.0) + b"\0\1\1\0"
    out.append(("a Huffman table for each entry", container(2000, *[b"\1\1" + values] * 2000)))
    values = bytes([forge.CENTRED | forge.ANS]) + varint(2) + varint(0) + floats(1.0)
    values += b"\0\1" + varint(4096) + b"\0\0\1\0"
    out.append(("a frequency table for each entry", container(2000, *[b"\1\1" + values] * 2000)))
    for d in (100_000, 200_000):
        half = varint(d // 2) + varint(1) + varint(0)
        values = np.ones(d // 2, np.float16).tobytes()
        out.append((f"half of {d} drawn from a seed", container(d, bytes([forge.SEEDED]) + half + b"\1" + values)))
    return out


def bombs() -> list[tuple[str, bytes]]:
    """Blobs that hold as many entries as the default limits allow."""
    out = []
    for size in (1000, 20_000):
        count = gw.Limits().max_expansion * (size - 60)
        p = (size - 40) // 4
        head = varint(p) + floats(*([1.0] * p))
        runs = bytes([forge.RUNS]) + varint(1) + golomb([0], 1) + golomb([count - 1], count)
        seeded = bytes([forge.SEEDED]) + varint(count) + varint(1) + varint(0)
        rle = bytes([forge.LEVELS | forge.RLE]) + head + varint(0) + bytes(2)
        ans = bytes([forge.LEVELS | forge.ANS]) + head + b"\0\1" + varint(4096) + b"\0\0\1\0" * 4
        out.append((f"{count} entries in runs and rle", container(count, runs + rle)))
        out.append((f"{count} entries in runs and rANS", container(count, runs + ans)))
        out.append((f"{count} entries of every coordinate in rle", container(count, b"\1" + rle)))
        if size == 1000:
            blocks = bytes([forge.CENTRED | forge.RLE]) + varint(2) + varint(10**6) + floats(*([1.0] * p)) + bytes(2)
            out.append((f"{count} entries drawn from a seed, with block scales", container(2 * count, seeded + blocks)))
            out.append((f"{count} entries drawn from a seed, in rle", container(2 * count, seeded + rle)))
    return out


def compressible_seconds(num_bytes: int) -> float:
    """Time of the slower of two honest blobs of this length that hold much.

    Long runs, as many entries as writers allow; and one bit each for coordinates drawn from a seed.
    """
    spec = gw.randk(0.25) | gw.uniform(1)
    drawn = gw.Client(spec, gw.Layout.flat(32 * num_bytes)).compress(_signs(num_bytes))
    count = max(1, num_bytes * 64)
    p = max(1, (num_bytes - 40) // 4)
    runs = bytes([forge.RUNS]) + varint(1) + golomb([0], 1) + golomb([count - 1], count)
    rle = bytes([forge.LEVELS | forge.RLE]) + varint(p) + floats(*([1.0] * p)) + varint(0) + bytes(2)
    return max(seconds_of(container(count, runs + rle)), seconds_of(drawn) * num_bytes / len(drawn))


def _signs(num_bytes: int) -> np.ndarray:
    return np.random.default_rng(0).choice(np.array([-1, 1], np.float32), 32 * num_bytes)


def attacks() -> None:
    """Time each against an honest blob of its length."""
    forge.warm_up()
    for what, blob in slow_blobs():
        took, honest = seconds_of(blob), honest_seconds(len(blob))
        print(f"{what}\n    {len(blob)} bytes: {took * 1000:.1f} ms, honest {honest * 1000:.2f}: {took / honest:.1f}x")
        if took > FACTOR * honest and took > 0.01:
            escaped(f"{what}: {len(blob)} bytes take {took:.3f} s, honest ones {honest:.4f} s")
    for what, blob in bombs():
        took, honest = seconds_of(blob), compressible_seconds(len(blob))
        print(f"{what}\n    {len(blob)} bytes: {took * 1000:.1f} ms, honest {honest * 1000:.2f}: {took / honest:.1f}x")
        if took > FACTOR * honest and took > 0.01:
            escaped(f"{what}: {len(blob)} bytes take {took:.3f} s, compressible honest ones {honest:.4f} s")


if __name__ == "__main__":
    forge.main(attacks)
