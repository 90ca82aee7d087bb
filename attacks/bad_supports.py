"""Supports that lie: indices beyond d, unsorted or twice, overlapping or missing parts, bits that must be 0.

Indices travel as gaps, so that they cannot be unsorted or doubled by construction; what can be said wrongly must get
Malformed (or Truncated, UnknownCodec where it says so).
"""

import forge
import numpy as np
from forge import container, decoding, floats, golomb, refused, varint

import gradwire as gw


def attacks() -> None:
    """Try each."""
    one, two = bytes([forge.FLOAT32]) + floats(1.0), bytes([forge.FLOAT32]) + floats(1.0, 2.0)

    def support(what: str, codec: int, data: bytes, d: int = 10, values: bytes = one, error=gw.Malformed, flags=0):
        refused(what, decoding(container(d, bytes([codec]) + data + values, flags=flags, reference=bytes(8))), error)

    support("index d", forge.GOLOMB, varint(1) + golomb([10], 3))
    support("second index beyond d", forge.GOLOMB, varint(2) + golomb([5, 4], 3), values=two)
    support("gaps that leave 64 bits", forge.GOLOMB, varint(2) + golomb([3, 3], 10), d=2, values=two)
    support("count 0", forge.GOLOMB, varint(0) + golomb([1], 3))
    support("count above d", forge.GOLOMB, varint(11) + golomb([0] * 11, 1))
    support("m = 0", forge.GOLOMB, varint(1) + b"\0\1")
    support("m above d", forge.GOLOMB, varint(1) + golomb([1], 16))
    support("unused bits set", forge.GOLOMB, varint(1) + varint(4) + b"\x82")
    support("no end of a quotient", forge.GOLOMB, varint(1) + varint(1) + bytes(3), error=gw.Malformed)
    support("bitmap of nothing", forge.BITMAP, b"\0\0")
    support("bitmap beyond d", forge.BITMAP, b"\1\4")
    support("bitmap cut", forge.BITMAP, b"\1", d=100, values=b"", error=gw.Truncated)
    support("seeded count 0", forge.SEEDED, varint(0) + varint(0) + varint(0))
    support("seeded count above d", forge.SEEDED, varint(11) + varint(0) + varint(0))
    support("known without a reference", forge.KNOWN, varint(1) + b"\0")
    support("cyclic count 0", forge.CYCLIC, varint(0))
    support("cyclic count above d", forge.CYCLIC, varint(11))
    for inner in (forge.EVERY, forge.SEEDED, forge.KNOWN, forge.CYCLIC, forge.DITHERED):
        support(f"known with extra indices in code {inner}", forge.KNOWN, varint(1) + bytes([inner]) + b"\1\0\0",
                flags=forge.REFERENCE)  # fmt: skip
    support("known and an extra index beyond d", forge.KNOWN, varint(0) + bytes([forge.GOLOMB, 1]) + golomb([10], 3),
            flags=forge.REFERENCE)  # fmt: skip
    support("known count above d", forge.KNOWN, varint(11) + b"\0", flags=forge.REFERENCE)
    support("no runs", forge.RUNS, varint(0))
    support("a run beyond d", forge.RUNS, varint(1) + golomb([4], 3) + golomb([6], 3), values=two)
    support("runs that together leave d", forge.RUNS, varint(2) + golomb([1, 1], 1) + golomb([3, 3], 1), values=two)
    head = varint(0) + varint(1) + varint(4096) + b"\0\0\1\0"
    support("entropy: count 0", forge.ENTROPY, varint(0) + varint(0) + varint(1) + head)
    support("entropy: cap 0", forge.ENTROPY, varint(1) + varint(0) + varint(0) + head)
    support("entropy: 33 low bits", forge.ENTROPY, varint(1) + varint(33) + varint(1) + head)
    low = varint(0) + varint(2) + varint(0) + varint(4096) + b"\0\0\1\0"
    support("entropy: index beyond d", forge.ENTROPY, varint(1) + varint(0) + varint(1) + low + varint(9))
    support("entropy: quotient of 2^63", forge.ENTROPY, varint(1) + varint(0) + varint(1) + low + varint(2**63))
    wide = varint(2) + varint(32) + varint(1) + low + b"\xff" * 8 + varint(1) * 2
    support("entropy: sums that leave 64 bits", forge.ENTROPY, wide, d=2**34, values=two)
    support("one segment", forge.SEGMENTS, varint(1) + varint(1) + golomb([1], 1))
    support("an empty segment", forge.SEGMENTS, varint(2) + varint(0) + varint(0) + varint(1) + golomb([1], 1))
    support("a segment as long as the part", forge.SEGMENTS, varint(2) + varint(10) + varint(1) + golomb([1], 1))
    support("segments of nothing", forge.SEGMENTS, varint(2) + varint(5) + varint(0) + varint(0))
    support("an index in the next segment", forge.SEGMENTS, varint(2) + varint(5) + varint(1) + golomb([5], 3) + b"\0")
    dithered_supports()
    fields()
    fielded_supports()
    context_parts()
    for codec in (31, 255):
        support(f"support codec {codec}", codec, b"\0\0", error=gw.UnknownCodec)

    part = bytes([forge.GOLOMB]) + varint(1) + golomb([1], 2) + one
    refused("parts that overlap", decoding(container(10, varint(6) + part, varint(6) + part)), gw.Malformed)
    refused("parts that leave a gap", decoding(container(10, varint(4) + part, varint(4) + part)), gw.Malformed)
    refused("a part of 2^64 - 1", decoding(container(10, varint(2**64 - 1) + part, varint(1) + b"\0")), gw.Malformed)
    head = forge.header(10, forge.SEVERAL)
    for count in (0, 1):
        refused(f"{count} as several parts", decoding(forge.repaired(head + varint(count) + varint(10) + part)),
                gw.Malformed)  # fmt: skip
    refused("a part less than announced", decoding(forge.repaired(head + varint(3) + varint(5) + part)), gw.DecodeError)
    refused("a part more than announced",
            decoding(forge.repaired(head + varint(2) + (varint(5) + part) * 3)), gw.Malformed)  # fmt: skip
    refused("bytes after the last part", decoding(container(10, part + b"\0")), gw.Malformed)


def dithered_supports() -> None:
    """Counts that are not the range code's, lists of what is coded anyway, range codes of other bytes."""
    d, level, indices = 300, 52, [i for i, t in enumerate(forge.thresholds(300, 0, 0, 1, False)) if t < 2**28]
    values = forge.multiples([1] * len(indices), 1.0)
    honest = forge.dithered(d, indices, level)
    gw.decode(container(d, honest + values))
    size = varint(len(indices))

    def dithered(what: str, data: bytes, error=gw.Malformed, d: int = d, values: bytes = values) -> None:
        refused(what, decoding(container(d, data + values)), error)

    head, rest = honest[:1], honest[1 + len(size) :]
    dithered("dithered count 0", head + varint(0) + rest)
    dithered("dithered count above d", head + varint(d + 1) + rest)
    dithered("one more index than the range code has", head + varint(len(indices) + 1) + rest)
    dithered("one index less than the range code has", head + varint(len(indices) - 1) + rest)
    dithered("another level", honest.replace(bytes([level, 0, 1]), bytes([level + 40, 0, 1]), 1), gw.DecodeError)
    dithered("another seed", honest.replace(bytes([level, 0, 1]), bytes([level, 1, 1]), 1), gw.DecodeError)
    fields = head + size + bytes([level, 0, 1])
    code = rest[len(bytes([level, 0, 1])) + 1 :]
    dithered("more listed than there are", fields + varint(len(indices) + 1) + code)
    dithered("a candidate listed", fields + varint(1) + golomb([indices[0]], 5) + code)
    dithered("listed beyond d", fields + varint(1) + golomb([d], 5) + code)
    dithered("range code with a zero behind", fields + varint(0) + varint(code[0] + 1) + code[1:] + b"\0")
    dithered("range code with more behind", fields + varint(0) + varint(code[0] + 1) + code[1:] + b"\7")
    dithered("range code cut", fields + varint(0) + varint(code[0] - 1) + code[1:-1], gw.DecodeError)
    dithered("range code longer than the blob", fields + varint(0) + varint(2**40) + code[1:], gw.Truncated)
    few = head + varint(1) + bytes([level]) + varint(0) + varint(1) + varint(0) + varint(1) + b"\1"
    for huge in (2**26, 2**33, 2**34):
        dithered(f"{huge} thresholds for a few bytes", few, gw.LimitExceeded, huge, forge.multiples([1], 1.0))
    dithered(
        "many fires that never come", head + varint(300) + fields[1 + len(size) :] + varint(0) + varint(1) + b"\xff"
    )


def fields() -> None:
    """Stretches that do not fit, levels that are none, and many for a few bytes."""
    shapes, levels = [(60, 12), (40, 40)], [1, -2, 0, 5, 3, *range(-6, 6), 31]
    honest, _, said = forge.field_of(shapes, levels)
    down = forge.DOWNLINK | forge.FIELD
    payload = gw.decode(container(100, b"\0" + honest, flags=down))
    assert payload.shipped_field is not None
    assert payload.shipped_field.at(np.arange(100)).tolist() == said
    stream = honest[7:]

    def field(what: str, data: bytes, error=gw.Malformed, d: int = 100, flags: int = down) -> None:
        refused(what, decoding(container(d, b"\0" + data, flags=flags)), error)

    field("a client's field", honest, flags=forge.FIELD)
    field("no stretches", varint(0) + stream)
    field("an empty stretch", varint(1) + varint(0) + varint(1) + stream)
    field("no columns", varint(1) + varint(100) + varint(0) + stream)
    field("more columns than coordinates", varint(1) + varint(20) + varint(21) + stream)
    field("more coordinates than there are", honest, d=99)
    field("2^64 - 1 coordinates", varint(1) + varint(2**64 - 1) + varint(1) + stream)
    field("more stretches than are allowed", varint(2**14 + 1) + stream, gw.LimitExceeded)
    field("stretches that never come", varint(2**14) + stream, gw.Truncated)
    for unit, width in ((0, 3), (32, 3), (1, 0), (1, 19)):
        field(f"unit {unit}, width {width}", honest[:5] + varint(unit) + varint(width) + stream)
    field("levels beyond 31 by their unit", honest[:5] + varint(2) + honest[6:])
    field("levels of another width", honest[:6] + varint(4) + honest[7:], gw.DecodeError)
    field("levels cut", honest[:-1], gw.Truncated)
    field("a byte behind the levels", honest + b"\7")
    field("levels with more behind", honest[:7] + varint(stream[0] + 1) + stream[1:] + b"\7")
    for columns in (1, 2**29):
        field(f"levels of 2^30 in rows of {columns}", varint(1) + varint(2**30) + varint(columns) + varint(1) * 2
              + varint(1) + b"\1", gw.LimitExceeded, 2**30)  # fmt: skip


def fielded_supports() -> None:
    """What can be seen without the field, and what beside it alone: then it is refused when decompressing."""
    d, level = 300, 52
    data, digest, said = forge.field_of([(300, 20)], [*range(-7, 8), *range(-10, 10)])
    held = gw.decode(container(d, b"\0" + data, flags=forge.DOWNLINK | forge.FIELD)).shipped_field
    beside = gw.Reference.beside(held, None, d)
    drawn = forge.thresholds(d, 0, 0, 1, False)
    indices = [i for i, t in enumerate(drawn) if t < 2**28 * 2 ** (said[i] / 2)]
    values = forge.multiples([1] * len(indices), 1.0)
    honest = forge.dithered(d, indices, level, field=(digest, said))
    assert np.flatnonzero(gw.decompress(gw.decode(container(d, honest + values)), beside)).tolist() == indices
    size = varint(len(indices))
    head, rest = honest[: 1 + len(size)], honest[1 + len(size) + 3 + 4 :]
    fields, code = head + bytes([level, 0, 1]) + digest, rest[1:]

    def read(data: bytes, reference: object = beside):
        return lambda: gw.decompress(gw.decode(container(d, data + values)), reference)

    refused("a field that is not held", read(honest, None), gw.StaleReference)
    refused("a vector in place of a field", read(honest, np.zeros(d, np.float32)), gw.StaleReference)
    for wrong in (bytes(4), digest[::-1]):
        refused("another field", read(head + bytes([level, 0, 1]) + wrong + rest), gw.StaleReference)
    refused("count 0 beside a field", decoding(container(d, honest[:1] + varint(0) + honest[2:])), gw.DecodeError)
    refused("the hash of a field cut", decoding(container(d, head + bytes([level, 0, 1]) + digest[:3])), gw.Truncated)
    for count in (len(indices) - 1, len(indices) + 1):
        numbers = forge.multiples([1] * count, 1.0)
        what = honest[:1] + varint(count) + honest[1 + len(size) :] + numbers
        refused(f"{count} fires where there are {len(indices)}",
                lambda what=what: gw.decompress(gw.decode(container(d, what)), beside), gw.Malformed)  # fmt: skip
    refused("a candidate listed", read(fields + varint(1) + golomb([indices[0]], 5) + code), gw.Malformed)
    refused("range code with a zero behind", read(fields + varint(0) + varint(code[0] + 1) + code[1:] + b"\0"),
            gw.Malformed)  # fmt: skip
    refused("range code cut", read(fields + varint(0) + varint(code[0] - 1) + code[1:-1]), gw.DecodeError)
    longer = gw.Reference.beside(held, None, d + 1)
    refused("a part longer than its field", lambda: gw.decompress(gw.decode(container(d + 1, honest + values)), longer),
            gw.Malformed)  # fmt: skip
    scaled = bytes([forge.CENTRED]) + varint(3) + varint(7) + floats(1.0)
    refused("block scales beside a field", decoding(container(d, honest + scaled)), gw.Malformed)
    few = honest[:1] + varint(1) + bytes([level]) + varint(0) + varint(1) + digest + varint(0) + varint(1) + b"\1"
    for huge in (2**26, 2**34):
        refused(f"{huge} thresholds beside a field",
                decoding(container(huge, few + forge.multiples([1], 1.0))), gw.LimitExceeded)  # fmt: skip


def context_parts() -> None:
    """Stretches that do not fit, streams of other stretches, of other bytes, of nothing, and beyond the most."""
    integers = [0, 3, 0, -1, 0, 0, 2, 0, 0, -2] * 10
    whole, grid = [(60, 10), (40, 20)], bytes([67]) + varint(7) + floats(0.5)
    honest = forge.contexts(integers, whole, 3, grid)
    gw.decode(container(100, honest))

    def contexts(what: str, data: bytes, error=gw.Malformed, d: int = 100) -> None:
        refused(what, decoding(container(d, data)), error)

    body = honest[5:]  # from the value codec on
    contexts("no stretches", honest[:1] + varint(0) + body)
    contexts("more stretches than bytes", honest[:1] + varint(2**13) + body, gw.Truncated)
    contexts("2^40 stretches", honest[:1] + varint(2**40) + body, gw.LimitExceeded)
    for length, width in ((0, 1), (100, 10), (101, 10), (60, 0), (60, 61), (2**40, 1)):
        cuts = varint(2) + varint(length) + varint(width) + varint(20)
        contexts(f"a stretch of {length} in {width} columns", honest[:1] + cuts + body)
    contexts("more columns than coordinates left", honest[:1] + varint(2) + varint(60) + varint(10) + varint(41) + body)
    contexts("columns above 2^16", honest[:1] + varint(1) + varint(2**16 + 1) + body, d=2**17)
    contexts("another shape", forge.contexts(integers, [(60, 12), (40, 20)], 3, grid, whole))
    for codec in (3, 4, 64, 65, 69, 70, 71, 72, 83, 255):
        contexts(f"value codec {codec}", honest.replace(grid, bytes([codec]) + grid[1:]), gw.UnknownCodec)
    contexts("one symbol", honest.replace(grid, bytes([67]) + varint(1) + floats(0.5)))
    contexts("65,537 symbols", honest.replace(grid, bytes([67]) + varint(65537) + floats(0.5)))
    for scale in (0.0, -1.0, float("nan"), float("inf"), 2e38):
        contexts(f"a scale of {scale}", honest.replace(grid, bytes([67]) + varint(7) + floats(scale)))
    contexts("no levels", honest.replace(grid, bytes([68]) + varint(0)))
    contexts("a level that is not finite", honest.replace(grid, bytes([68]) + varint(1) + floats(float("nan"))))
    stream = body[len(grid) + 1 :]
    start = honest[:5] + grid
    contexts("a stream with a zero behind", start + varint(len(stream) + 1) + stream + b"\0")
    contexts("a stream with more behind", start + varint(len(stream) + 1) + stream + b"\7")
    contexts("a stream longer than the blob", start + varint(2**40) + stream, gw.Truncated)
    contexts("nothing", forge.contexts([0] * 100, whole, 3, grid))
    contexts(
        "beyond the most", forge.contexts([0] * 99 + [40], [(100, 10)], 100, bytes([67]) + varint(41) + floats(1.0))
    )
    for huge in (2**20, 2**34):
        cuts = honest[:1] + varint(1) + varint(2**16)
        contexts(f"{huge} coordinates for a few bytes", cuts + grid + varint(1) + b"\1", gw.LimitExceeded, huge)
    many = b"".join(varint(100_000) + cuts + grid + varint(1) + b"\1" for _ in range(900)) + varint(1) + b"\0"
    body = forge.header(900 * 100_000 + 1, forge.SEVERAL) + varint(901) + many
    refused("many parts of coordinates that nobody paid for", decoding(forge.repaired(body)), gw.DecodeError)
    known = bytes([forge.KNOWN]) + varint(1) + honest
    refused(
        "known with extra indices in contexts",
        decoding(container(100, known, flags=2, reference=bytes(8))),
        gw.Malformed,
    )


if __name__ == "__main__":
    forge.main(attacks)
