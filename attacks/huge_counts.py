"""Claims without bytes: counts, lengths and sizes of up to 2^64 - 1 in every field that holds one.

Must get: Truncated, Malformed or LimitExceeded at once, without an array being made.
"""

import forge
from forge import container, decoding, floats, golomb, refused, varint

import gradwire as gw

D = 2**34  # as large as readers allow by default
HUGE = (2**20, 2**31, 2**33, 2**34 - 1)


def attacks() -> None:
    """Try each."""
    some = golomb([5], 4)
    for huge in HUGE:
        tail = bytes([forge.FLOAT32]) + floats(1.0)
        for codec, support in (
            (forge.GOLOMB, varint(huge) + some),
            (forge.RUNS, varint(huge) + some + some),
            (forge.ENTROPY, varint(huge) + varint(3) + varint(4) + varint(0) + varint(1) + varint(4096) + b"\0" * 99),
            (forge.SEGMENTS, varint(3) + varint(huge - 1) + varint(huge - 1) + some),
            (forge.BITMAP, b"\xff" * 50),
            (forge.SEEDED, varint(huge) + varint(0) + varint(0)),
            (forge.CYCLIC, varint(huge)),
            (forge.DITHERED, varint(huge) + b"\x34" + varint(0) + varint(1) + varint(huge) + some),
            (forge.KNOWN, varint(huge) + b"\0"),
        ):
            flags = forge.REFERENCE if codec == forge.KNOWN else 0
            blob = container(D, bytes([codec]) + support + tail, flags=flags, reference=bytes(8))
            refused(f"support codec {codec} of {huge} indices", decoding(blob), gw.DecodeError)
        every = bytes([forge.EVERY])
        for name, values in (
            ("float32 of every coordinate", bytes([forge.FLOAT32]) + floats(1.0)),
            ("float32 with exponents in rANS", bytes([forge.FLOAT32 | forge.ANS]) + bytes([0, 1]) + varint(4096)),
            ("packed symbols", bytes([forge.CENTRED]) + varint(2) + varint(0) + floats(1.0) + b"\0"),
            ("scales of every block", bytes([forge.CENTRED]) + varint(2) + varint(1) + floats(1.0) + b"\0"),
            ("multiples", bytes([forge.MULTIPLES]) + floats(1.0) + varint(1) + b"\0"),
            ("levels", bytes([forge.LEVELS]) + varint(2**15) + floats(1.0)),
            ("runs of symbols", bytes([forge.LEVELS | forge.RLE]) + varint(1) + floats(1.0) + varint(huge - 1)),
        ):
            refused(f"{name}, {huge} of them", decoding(container(huge, every + values)), gw.DecodeError)
    limit = gw.Limits(max_parameters=2**63, max_parts=2**62)
    for huge in (2**20, 2**40, 2**62):
        head = forge.header(2**60, forge.SEVERAL) + varint(huge)
        refused(f"{huge} parts", decoding(forge.repaired(head + b"\0\0" * 9)), gw.DecodeError)
        refused(f"{huge} parts, allowed", decoding(forge.repaired(head + b"\0\0" * 9), limit), gw.Truncated)
        segments = bytes([forge.SEGMENTS]) + varint(huge) + varint(5) + b"\0"
        refused(f"{huge} segments", decoding(container(2**33, segments)), gw.DecodeError)
        blob = container(2**60, bytes([forge.GOLOMB]) + varint(huge) + golomb([1], 2**40))
        refused(f"{huge} indices, allowed", decoding(blob, limit), gw.DecodeError)
    for d in (2**34 + 1, 2**40, 2**63, 2**64 - 1):
        refused(f"d = {d}", decoding(container(d, b"\0")), gw.LimitExceeded)


if __name__ == "__main__":
    forge.main(attacks)
