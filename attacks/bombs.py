"""Decompression bombs: a few bytes that stand for very many entries, through every code that can do it for nothing.

A count above ``max_expansion`` entries to a byte must get LimitExceeded before an array is made; just below it, the
memory must stay in proportion to that limit.
"""

import forge
from forge import bounded, container, decoding, golomb, refused, skewed_centred, varint

import gradwire as gw

LIMITS = gw.Limits()
ENTRY_BYTES = 40  # what an entry may cost while it is read: indices, symbols and what they are made from


def supports(count: int) -> list[tuple[str, bytes, int]]:
    """Supports of count coordinates in a few bytes: name, bytes, flags."""
    return [
        ("every", bytes([forge.EVERY]), 0),
        ("seeded", bytes([forge.SEEDED]) + varint(count) + varint(1) + varint(0), 0),
        ("cyclic", bytes([forge.CYCLIC]) + varint(count), 0),
        ("known", bytes([forge.KNOWN]) + varint(count) + b"\0", forge.REFERENCE),
        ("runs", bytes([forge.RUNS]) + varint(1) + golomb([0], 1) + golomb([count - 1], count), 0),
        (
            "entropy",
            bytes([forge.ENTROPY]) + varint(count) + varint(0) + varint(1) + b"\0\1" + varint(4096) + b"\0\0\1\0" * 4,
            0,
        ),
    ]


def attacks() -> None:
    """Try each support with each symbol coder."""
    for count in (2**20, 2**26, 2**33):
        for name, support, flags in supports(count):
            for coder in ("rle", "ans"):
                blob = container(count, support + skewed_centred(coder, count), flags=flags, reference=bytes(8))
                refused(f"{count} entries of a {name} support in {coder}: {len(blob)} bytes", decoding(blob),
                        gw.LimitExceeded, max_bytes=200_000)  # fmt: skip
    for name, support, flags in supports(2**20):
        blob = container(2**20, support + skewed_centred("huffman", 8), flags=flags, reference=bytes(8))
        refused(f"a Huffman code of one symbol without its bits, {name}", decoding(blob), gw.DecodeError)
    exponents = bytes([forge.FLOAT32 | forge.RLE]) + varint(0) + b"\x7f" + bytes(3)
    refused("float32 exponents in one run, mantissas missing", decoding(container(2**30, b"\1" + exponents)),
            gw.DecodeError)  # fmt: skip
    for size, num_parts in ((2000, 2), (2000, 50), (20_000, 20)):
        refused(f"{num_parts} bombs in one container", decoding(crowd(size, num_parts)), gw.LimitExceeded,
                max_bytes=5 * LIMITS.max_expansion * size)  # fmt: skip
    for size in (200, 20_000):
        count = LIMITS.max_expansion * size
        part = bytes([forge.EVERY]) + skewed_centred("rle", count)
        short = len(container(count, part)) - 4
        blob = container(count, part, padding=bytes(size - short))
        bounded(f"{count} entries of an every support in rle, padded to {len(blob)} bytes, allowed", decoding(blob),
                ENTRY_BYTES * LIMITS.max_expansion * len(blob) + 200_000)  # fmt: skip
        blob = container(count, part, padding=bytes(size - short - 1))
        refused(f"{count} entries, padded to one byte less", decoding(blob), gw.LimitExceeded)
    for size in (200, 2000):
        count = LIMITS.max_expansion * (size - 60)
        for name, support, flags in supports(count):
            for coder in ("rle", "ans"):
                # the rest of the bytes the limit asks for: levels nobody uses
                values = skewed_levels(coder, count, size)
                blob = container(count, support + values, flags=flags, reference=bytes(8))
                bounded(f"{count} entries of a {name} support in {coder}: {len(blob)} bytes, allowed", decoding(blob),
                        ENTRY_BYTES * LIMITS.max_expansion * len(blob) + 200_000)  # fmt: skip


def crowd(size: int, num_parts: int) -> bytes:
    """Write a container of parts each of which alone holds nearly as many entries as its size allows."""
    count = 900 * size
    part = varint(count) + bytes([forge.EVERY]) + skewed_centred("rle", count)
    rest = size - num_parts * len(part)
    return container(num_parts * count + rest // 4, *[part] * num_parts,
                     varint(rest // 4) + bytes([1, 0]) + bytes(rest // 4 * 4))  # fmt: skip


def skewed_levels(coder: str, count: int, size: int) -> bytes:
    """Levels of which only the first is used, and as many of them as fill the size."""
    p = (size - 40) // 4
    head = varint(p) + forge.floats(*([1.0] * p))
    if coder == "rle":
        return bytes([forge.LEVELS | forge.RLE]) + head + varint(0) + bytes(2)
    return bytes([forge.LEVELS | forge.ANS]) + head + b"\0\1" + varint(4096) + b"\0\0\1\0" * 4


if __name__ == "__main__":
    forge.main(attacks)
