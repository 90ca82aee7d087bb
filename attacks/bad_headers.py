"""Headers that lie: versions from the future, unknown flags, integers that are too long, nonsense under a right CRC.

Must get UnsupportedVersion, Malformed, Truncated or BadChecksum as each line says; foreign bytes any DecodeError.
"""

import random

import forge
from forge import bounded, container, decoding, floats, header, refused, repaired, varint

import gradwire as gw

VALUES = bytes([forge.EVERY, forge.FLOAT32]) + floats(1.0)


def attacks() -> None:
    """Try each."""
    for version in (0, 2, 3, 255):
        refused(f"version {version}", decoding(container(1, VALUES, version=version)), gw.UnsupportedVersion)
    for bit in (32, 64, 128, 255):
        refused(f"flags {bit}", decoding(repaired(header(1, bit, reference=bytes(8)) + VALUES)), gw.Malformed)
    for what, blob in (
        ("padding that is not there", repaired(header(1, forge.PADDED) + VALUES)),
        ("padding that is not 0", container(1, VALUES, padding=b"\0\1\0")),
        ("padding without its flag", repaired(header(1) + VALUES + b"\0")),
    ):
        refused(what, decoding(blob), gw.Malformed)
    refused("other magic", decoding(repaired(b"GZ" + header(1)[2:] + VALUES)), gw.Malformed)
    honest = container(1, VALUES)
    refused("wrong checksum", decoding(honest[:-1] + bytes([honest[-1] ^ 1])), gw.BadChecksum)
    refused("checksum of 0", decoding(honest[:-4] + bytes(4)), gw.BadChecksum)
    for size in range(len(honest)):
        refused(f"the first {size} bytes", decoding(honest[:size]), gw.DecodeError)
    for size in range(4, len(honest) - 4):
        refused(f"the first {size} bytes, checksum repaired", decoding(repaired(honest[:size])), gw.DecodeError)
    start, rest = b"GW\1\0", b"\0\0" + bytes(4) + VALUES
    for what, written in (
        ("a varint of two bytes for 1", b"\x81\0"),
        ("a varint of ten bytes for 1", b"\x81" + b"\x80" * 8 + b"\0"),
        ("a varint of 2^64", b"\x80" * 9 + b"\2"),
        ("a varint of 2^70 - 1", b"\xff" * 9 + b"\x7f"),
        ("a varint of eleven bytes", b"\x80" * 10 + b"\1"),
        ("a varint without an end", b"\xff" * 400),
    ):
        for name, blob in (("d", start + written + rest), ("round", start + b"\1" + written + b"\0" + rest[2:])):
            refused(f"{what} as {name}", decoding(repaired(blob)), gw.Malformed)
    refused("packet 3 of 3", decoding(container(1, VALUES, flags=forge.PACKET, packet=(3, 3))), gw.Malformed)
    refused("packet 0 of 0", decoding(container(1, VALUES, flags=forge.PACKET, packet=(0, 0))), gw.Malformed)
    refused("no parts", decoding(repaired(header(1))), gw.Truncated)
    refused("no values", decoding(repaired(header(1) + b"\1")), gw.Truncated)
    rng = random.Random(0)
    for number in range(200):
        body = rng.randbytes(rng.choice((4, 12, 40, 300)))
        for head in (b"", b"GW\1", b"GW\1" + bytes([rng.randrange(32)]), header(50), header(50, rng.randrange(32))):
            outcome = bounded(f"nonsense {number}", decoding(repaired(head + body)), 2_000_000)
            assert isinstance(outcome, (gw.Payload, gw.DecodeError))
    for foreign in (b"", b"G", b"PK\3\4" + bytes(60), b"\x80\4\x95" + bytes(40), b"{}" * 30, bytes(10**6)):
        refused(f"{foreign[:4]!r}... of {len(foreign)} bytes", decoding(foreign), gw.DecodeError)
    refused("more bytes than allowed", decoding(honest, gw.Limits(max_bytes=len(honest) - 1)), gw.LimitExceeded)
    refused("d above the limit", decoding(container(11, b"\0"), gw.Limits(max_parameters=10)), gw.LimitExceeded)
    assert varint(2**64 - 1) == b"\xff" * 9 + b"\1"


if __name__ == "__main__":
    forge.main(attacks)
