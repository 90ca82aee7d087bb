"""Broken symbol streams.

Frequencies that do not add up, incomplete and overfull Huffman codes, states out of range, symbols beyond the alphabet,
runs that are one run.

Must get Malformed (Truncated, UnknownCodec where it says so).
"""

import forge
from forge import container, decoding, floats, golomb, pack, refused, varint

import gradwire as gw

STATE = b"\0\0\1\0"


def stream(what: str, coder: int, data: bytes, count: int = 3, n: int = 4, error: type[Exception] = gw.Malformed):
    """Try a symbol stream as centred symbols, and with four symbols as levels too."""
    kinds = [bytes([forge.CENTRED | coder]) + varint(n) + b"\0" + floats(1.0)]
    if n == 4:
        kinds.append(bytes([forge.LEVELS | coder]) + varint(2) + floats(1.0, 2.0))
    for head in kinds:
        refused(f"{what}: kind {head[0] & 15}", decoding(container(count, b"\1" + head + data)), error)


def attacks() -> None:
    """Try each."""
    stream("packed symbol beyond the alphabet", forge.PACKED, pack([3, 1, 1], 2), n=3)
    stream("packed symbols with unused bits", forge.PACKED, b"\xff")
    stream("packed symbols cut", forge.PACKED, b"", count=5, error=gw.Truncated)

    def ans(what: str, low: int, *frequencies: int, states: bytes = STATE, count: int = 3, error=gw.Malformed):
        table = varint(low) + varint(len(frequencies)) + b"".join(varint(f) for f in frequencies)
        stream(f"rANS: {what}", forge.ANS, table + states, count, error=error)

    ans("no frequencies", 0)
    ans("frequencies of 0", 0, 0, 0)
    ans("sum 4095", 0, 2048, 2047)
    ans("sum 4097", 0, 2048, 2049)
    ans("a frequency of 4097", 0, 4097)
    ans("a frequency of 2^32 + 4096", 0, 2**32 + 4096)
    ans("smallest symbol beyond the alphabet", 4, 4096)
    ans("more symbols than the alphabet", 2, 1024, 1024, 2048)
    ans("state below 2^16", 0, 4096, states=b"\xff\xff\0\0")
    ans("state 0", 0, 4096, states=bytes(4))
    ans("a final state that is not 2^16", 0, 4096, states=b"\1\0\1\0")
    ans("no state", 0, 4096, states=b"")
    ans("words missing", 0, 1, 4095, states=b"\0\0\1\0")
    ans("three of four lanes", 0, 4096, states=STATE * 3, count=1024)
    table = varint(0) + varint(5000) + b"\0" * 4999 + varint(4096)
    values = bytes([forge.CENTRED | forge.ANS]) + varint(65536) + b"\0" + floats(1.0) + table + STATE
    refused("rANS: 5000 frequencies", decoding(container(1, b"\1" + values)), gw.Malformed)
    stream("rANS: a word too many", forge.ANS, varint(0) + varint(1) + varint(4096) + STATE + b"\0\0")

    def huffman(what: str, low: int, *lengths: int, codes: bytes = b"\0", error=gw.Malformed):
        stream(f"Huffman: {what}", forge.HUFFMAN, varint(low) + varint(len(lengths)) + pack(lengths, 4) + codes,
               error=error)  # fmt: skip

    huffman("no symbols", 0)
    huffman("no lengths", 0, 0, 0)
    huffman("incomplete code", 0, 2, 2, 2)
    huffman("overfull code", 0, 1, 1, 1)
    huffman("one symbol of length 2", 0, 2)
    huffman("a length of 13", 0, 1, 13, 13)
    huffman("a length of 15", 0, 15)
    huffman("one symbol, its bit 1", 0, 1, codes=b"\1")
    huffman("unused bits", 0, 1, 1, codes=b"\x08")
    huffman("codes cut", 0, 1, 2, 2, codes=b"")
    huffman("more lengths than the alphabet", 1, 2, 2, 2, 2)
    stream("Huffman: unused half byte", forge.HUFFMAN, varint(0) + varint(1) + b"\x11" + b"\0")

    stream("rle: as many ends as symbols", forge.RLE, varint(3) + pack([0, 1, 0, 1], 2) + golomb([0, 0, 0], 1))
    stream("rle: neighbours alike", forge.RLE, varint(1) + pack([2, 2], 2) + golomb([0], 1))
    stream("rle: an end beyond the last symbol", forge.RLE, varint(1) + pack([2, 1], 2) + golomb([2], 1))
    stream("rle: a run's symbol beyond the alphabet", forge.RLE, varint(0) + b"\3", n=3)
    stream("rle: m = 0", forge.RLE, varint(1) + pack([2, 1], 2) + b"\0\1")
    stream("rle: runs missing", forge.RLE, varint(2), error=gw.Truncated)
    for codec in (14, 7 + 16, 8 + 16, 15, 4 << 4, 15 << 4 | 3, 255):
        values = bytes([codec]) + floats(1.0)
        refused(f"value codec {codec:#04x}", decoding(container(1, b"\1" + values)), gw.UnknownCodec)


if __name__ == "__main__":
    forge.main(attacks)
