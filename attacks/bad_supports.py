"""Supports that lie: indices beyond d, unsorted or twice, overlapping or missing parts, bits that must be 0.

Indices travel as gaps, so that they cannot be unsorted or doubled by construction; what can be said wrongly must get
Malformed (or Truncated, UnknownCodec where it says so).
"""

import forge
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
    for inner in (forge.EVERY, forge.SEEDED, forge.KNOWN, forge.CYCLIC):
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
    for codec in (10, 31, 255):
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


if __name__ == "__main__":
    forge.main(attacks)
