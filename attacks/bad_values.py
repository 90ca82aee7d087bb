"""Values that poison.

NaN and infinity through every float coding, scales and levels that are NaN, infinite, zero or negative, scales
whose grid leaves float32, and zero points beyond the alphabet.

Must get Malformed; nothing that decodes may hold a number that is not finite.
"""

import struct

import forge
from forge import container, decoding, floats, pack, refused, varint

import gradwire as gw

INF, NAN = float("inf"), float("nan")
WIDTHS = {forge.FLOAT32: (8, 23, 4), forge.FLOAT16: (5, 10, 2), forge.BFLOAT16: (8, 7, 2)}


def spoilt_floats(kind: int, coder: int, sign: int, mantissa: int) -> bytes:
    """Write three numbers: 0, one with an exponent of all ones, 0."""
    w, t, size = WIDTHS[kind]
    ones = (1 << w) - 1
    if coder == forge.PACKED:
        bits = [0, sign << w + t | ones << t | mantissa, 0]
        return bytes([kind]) + b"".join(b.to_bytes(size, "little") for b in bits)
    exponents = [0, ones, 0]
    if coder == forge.HUFFMAN:
        stream = forge.huffman(exponents, [1] + [0] * (ones - 1) + [1])
    else:
        stream = forge.ans(exponents) if coder == forge.ANS else forge.rle(exponents, w)
    return bytes([kind | coder]) + stream + pack([0, sign << t | mantissa, 0], t + 1)


def multiples_of_a_step() -> None:
    """Steps that are none, magnitudes that are not those announced."""
    part = bytes([forge.EVERY])
    gw.decode(container(3, part + forge.multiples([1, -2, 1], 1.0)))
    for step in (NAN, INF, -INF, 0.0, -0.0, -1.0):
        refused(f"a step of {step}", decoding(container(1, part + forge.multiples([1], step))), gw.Malformed)
    refused("a step beyond float32", decoding(container(1, part + forge.multiples([-2], 3e38))), gw.Malformed)
    head, honest = part + bytes([forge.MULTIPLES]) + floats(1.0), forge.multiples([1, -2, 1], 1.0)[6:]
    for largest in (0, 2**24 + 1, 2**64 - 1):
        refused(f"multiples of at most {largest}", decoding(container(1, head + varint(largest) + b"\0")), gw.Malformed)
    for what, tail in (
        ("unused bits after signs", varint(1) + b"\x08"),
        ("magnitudes above the largest", varint(3) + forge.multiples([1, -4, 1], 1.0)[6:]),
        ("magnitudes that do not reach the largest", varint(3) + honest),
        ("a range code with a zero behind", varint(2) + honest[:1] + varint(honest[1] + 1) + honest[2:] + b"\0"),
        ("a range code with more behind", varint(2) + honest[:1] + varint(honest[1] + 1) + honest[2:] + b"\1"),
    ):
        refused(f"multiples: {what}", decoding(container(3, head + tail)), gw.Malformed)
    refused("multiples: no magnitudes", decoding(container(3, head + varint(2) + b"\0" + varint(9))), gw.Truncated)
    for coder in (forge.HUFFMAN, forge.ANS, forge.RLE):
        codec = bytes([forge.MULTIPLES | coder])
        refused("multiples with a coder", decoding(container(1, part + codec + floats(1.0) + b"\1\0")), gw.UnknownCodec)


def attacks() -> None:
    """Try each."""
    for kind, (_, t, _) in WIDTHS.items():
        for coder in (forge.PACKED, forge.HUFFMAN, forge.ANS, forge.RLE):
            for name, sign, mantissa in (("inf", 0, 0), ("-inf", 1, 0), ("NaN", 0, 1 << t - 1), ("sNaN", 1, 1)):
                blob = container(3, b"\1" + spoilt_floats(kind, coder, sign, mantissa))
                refused(f"{name} as float kind {kind}, coder {coder >> 4}", decoding(blob), gw.Malformed)
    for scale in (NAN, INF, -INF, 0.0, -0.0, -1.0, -1e-45):
        for n, symbols in ((2, b"\0"), (255, b"\0")):
            values = bytes([forge.CENTRED]) + varint(n) + b"\0" + floats(scale) + symbols
            refused(f"scale {scale} of {n} symbols", decoding(container(1, b"\1" + values)), gw.Malformed)
        values = bytes([forge.CENTRED]) + varint(2) + varint(1) + floats(1.0, scale) + b"\0"
        refused(f"scale {scale} of the second block", decoding(container(2, b"\1" + values)), gw.Malformed)
    for n, scale in ((255, 3e38), (65536, 1.1e34), (4, 3e38)):
        values = bytes([forge.CENTRED]) + varint(n) + b"\0" + floats(scale) + pack([n - 1], (n - 1).bit_length())
        refused(f"scale {scale} of {n} symbols: beyond float32", decoding(container(1, b"\1" + values)), gw.Malformed)
    for n in (0, 1, 65537, 2**64 - 1):
        values = bytes([forge.CENTRED]) + varint(n) + b"\0" + floats(1.0) + b"\0"
        refused(f"an alphabet of {n}", decoding(container(1, b"\1" + values)), gw.Malformed)
    values = bytes([forge.CENTRED]) + varint(2) + varint(2**48) + floats(1.0) + b"\0"
    refused("a block of 2^48", decoding(container(1, b"\1" + values)), gw.Malformed)
    multiples_of_a_step()
    zero = bytes([forge.AFFINE]) + varint(5) + b"\0" + floats(1.0)
    for z in (5, 7):
        refused(f"zero point {z} of 5 symbols", decoding(container(1, b"\1" + zero + bytes([z, 0]))), gw.Malformed)
    for z in (0x0A, 0x82):
        refused(f"zero point's unused bits: {z:#x}", decoding(container(1, b"\1" + zero + bytes([z, 0]))), gw.Malformed)
    refused("no zero point", decoding(container(1, b"\1" + zero)), gw.Truncated)
    refused("no symbols", decoding(container(1, b"\1" + zero + b"\2")), gw.Truncated)
    refused("a symbol beyond", decoding(container(1, b"\1" + zero + b"\2\5")), gw.Malformed)
    for n, scale, z in ((256, 2e36, 0), (256, 2e36, 255), (2, INF, 0), (2, NAN, 1), (3, 0.0, 1), (2, -1.0, 0)):
        values = bytes([forge.AFFINE]) + varint(n) + b"\0" + floats(scale) + pack([z], (n - 1).bit_length()) + b"\0"
        refused(f"scale {scale} of {n} symbols about {z}", decoding(container(1, b"\1" + values)), gw.Malformed)
    values = bytes([forge.AFFINE]) + varint(256) + varint(1) + floats(1.0, 2e36) + bytes([0, 0, 1, 1])
    refused("scale 2e36 about 0 in the second block", decoding(container(2, b"\1" + values)), gw.Malformed)
    values = bytes([forge.AFFINE]) + varint(256) + varint(1) + floats(*[1.0] * 100) + bytes(99)
    refused("a zero point too few", decoding(container(100, b"\1" + values)), gw.Truncated)
    for n in (0, 1, 65537):
        values = bytes([forge.AFFINE]) + varint(n) + b"\0" + floats(1.0) + bytes(4)
        refused(f"an affine alphabet of {n}", decoding(container(1, b"\1" + values)), gw.Malformed)
    for level in (NAN, INF, -INF, -1.0):
        values = bytes([forge.LEVELS]) + varint(2) + floats(1.0, level) + b"\0"
        refused(f"level {level}", decoding(container(1, b"\1" + values)), gw.Malformed)
    for p in (0, 2**15 + 1, 2**64 - 1):
        values = bytes([forge.LEVELS]) + varint(p) + floats(1.0) + b"\0"
        refused(f"{p} levels", decoding(container(1, b"\1" + values)), gw.Malformed)
    for what, d, rows, rank, numbers in (
        ("rows that do not divide", 6, 4, 1, (1.0,) * 6),
        ("no rows", 6, 0, 1, (1.0,) * 6),
        ("more rows than coordinates", 6, 12, 1, (1.0,) * 13),
        ("rank 0", 6, 2, 0, ()),
        ("a rank above both sides", 6, 2, 3, (1.0,) * 15),
        ("NaN", 4, 2, 1, (1.0, NAN, 1.0, 1.0)),
        ("infinity", 4, 2, 1, (1.0, 1.0, INF, 0.0)),
        ("products beyond float32", 4, 2, 1, (1e30, 0.0, 1e30, 0.0)),
        ("sums beyond float32", 4, 2, 2, (1.5e19, 1.5e19, 1.0, 1.0, 1.5e19, 1.5e19, 1.0, 1.0)),
    ):
        values = bytes([forge.LOW_RANK]) + varint(rows) + varint(rank) + floats(*numbers)
        refused(f"factors with {what}", decoding(container(d, b"\1" + values)), gw.Malformed)
    values = bytes([forge.LOW_RANK]) + varint(2**16) + varint(2**16) + floats(1.0)
    refused("factors of 2^32 numbers", decoding(container(2**32, b"\1" + values)), gw.Truncated)
    bitmap = bytes([forge.BITMAP, 15, forge.LOW_RANK]) + varint(2) + varint(1) + floats(1, 1, 1, 1)
    refused("factors on another support", decoding(container(4, bitmap)), gw.Malformed)
    for kind in (forge.CENTRED, forge.AFFINE):
        known = bytes([forge.KNOWN]) + varint(1) + b"\0" + bytes([kind]) + varint(2) + varint(1) + floats(1.0)
        blob = container(1, known + b"\0\0", flags=forge.REFERENCE, reference=bytes(8))
        refused(f"block scales of kind {kind} on a known support", decoding(blob), gw.Malformed)
    one, two = bytes([forge.FLOAT32]) + floats(1.0), bytes([forge.FLOAT32]) + floats(1.0, 2.0)
    blocks = bytes([forge.CENTRED]) + varint(2) + varint(1) + floats(1.0) + b"\0"
    factors = bytes([forge.LOW_RANK]) + varint(1) + varint(1) + floats(1.0, 1.0)
    for what, members in (
        ("one group", [(3, two)]),
        ("more groups than values", [(1, one)] * 4),
        ("an empty group", [(0, b""), (3, two)]),
        ("a last group without values", [(2, two), (1, one), (0, b"")]),
        ("a group of more than there are", [(4, two), (1, one)]),
        ("groups in a group", [(2, forge.grouped((1, one), (1, one))), (1, one)]),
        ("factors in a group", [(1, factors), (2, two)]),
        ("block scales in a group", [(1, blocks), (2, two)]),
        ("a NaN in a group", [(1, bytes([forge.FLOAT32]) + floats(NAN)), (2, two)]),
    ):
        refused(what, decoding(container(3, b"\1" + forge.grouped(*members))), gw.Malformed)
    refused("no groups", decoding(container(3, bytes([forge.EVERY, forge.GROUPED, 0]))), gw.Malformed)
    refused("a group cut short", decoding(container(3, b"\1" + forge.grouped((1, one), (2, one)))), gw.Truncated)
    for coder in (forge.HUFFMAN, forge.ANS, forge.RLE):
        values = bytes([forge.GROUPED | coder]) + forge.grouped((1, one), (2, two))[1:]
        refused(f"groups in coder {coder >> 4}", decoding(container(3, b"\1" + values)), gw.UnknownCodec)
    known = bytes([forge.KNOWN]) + varint(3) + b"\0" + forge.grouped((1, one), (2, two))
    blob = container(3, known, flags=forge.REFERENCE, reference=bytes(8))
    refused("groups on a known support", decoding(blob), gw.Malformed)
    many = container(20_000, b"\1" + forge.grouped(*[(1, one)] * 20_000))
    refused("20,000 groups", decoding(many), gw.LimitExceeded)
    for weights in (NAN, INF, -INF, -1.0, struct.unpack("<d", b"\1" + bytes(5) + b"\xf8\x7f")[0]):
        blob = container(1, b"\0", flags=forge.DOWNLINK, sum_weights=weights)
        refused(f"sum of weights {weights}", decoding(blob), gw.Malformed)


if __name__ == "__main__":
    forge.main(attacks)
