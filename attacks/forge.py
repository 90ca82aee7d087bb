"""Make containers and .gw files by hand: what docs/format.md describes, written in plain Python, honest or not.

Nothing here checks anything: that is the point. ``tests/golden/make_golden.py`` uses the same functions honestly.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

import gradwire as gw
from gradwire.kernels.contexts_reference import encode_levels

DOWNLINK, REFERENCE, SEVERAL, PACKET, PADDED, FIELD = 1, 2, 4, 8, 16, 32
NONE, EVERY, GOLOMB, BITMAP, SEEDED, KNOWN, RUNS, ENTROPY, SEGMENTS, CYCLIC, DITHERED, CONTEXT, FIELDED = range(13)
FLOAT32, FLOAT16, BFLOAT16, CENTRED, LEVELS, LOW_RANK, AFFINE, GROUPED, MULTIPLES = range(9)
PACKED, HUFFMAN, ANS, RLE = (16 * i for i in range(4))


# bytes and bits


def varint(value: int) -> bytes:
    """Write an integer in groups of seven bits."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def floats(*numbers: float) -> bytes:
    """Write float32 numbers."""
    return struct.pack(f"<{len(numbers)}f", *numbers)


def bits_to_bytes(bits: Sequence[int]) -> bytes:
    """Write a bit stream."""
    out = bytearray(-(-len(bits) // 8))
    for i, bit in enumerate(bits):
        out[i // 8] |= bit << i % 8
    return bytes(out)


def field_bits(numbers: Iterable[int], width: int) -> list[int]:
    """List the bits of fields."""
    return [number >> i & 1 for number in numbers for i in range(width)]


def pack(numbers: Iterable[int], width: int) -> bytes:
    """Write fields as a bit stream of their own."""
    return bits_to_bytes(field_bits(numbers, width))


# codes


def gaps_of(positions: Sequence[int]) -> list[int]:
    """Count what is skipped before each position."""
    return [b - a - 1 for a, b in zip([-1, *positions], positions, strict=False)]


def golomb(gaps: Sequence[int], m: int) -> bytes:
    """Write m and gaps in Golomb code."""
    b = (m - 1).bit_length()
    u = 2**b - m
    heads: list[int] = []
    extra: list[int] = []
    unary: list[int] = []
    for gap in gaps:
        q, r = divmod(gap, m)
        if m > 1:
            heads += field_bits([r if r < u else (r + u) >> 1], b - 1)
            extra += [(r + u) & 1] if r >= u else []
        unary += [0] * q + [1]
    return varint(m) + bits_to_bytes(heads + extra + unary)


def rans(symbols: Sequence[int], frequencies: Sequence[int]) -> bytes:
    """Write symbols with frequencies of 0, 1, 2, ... in rANS code, without the table."""
    starts = [sum(frequencies[:i]) for i in range(len(frequencies))]
    lanes = 4 if len(symbols) >= 1024 else 1
    states, words = [65536] * lanes, []
    for i in reversed(range(len(symbols))):
        x, f, c = states[i % lanes], frequencies[symbols[i]], starts[symbols[i]]
        if x >= f << 20:
            words.append(x & 65535)
            x >>= 16
        states[i % lanes] = (x // f) * 4096 + x % f + c
    return struct.pack(f"<{lanes}I", *states) + struct.pack(f"<{len(words)}H", *reversed(words))


def ans(symbols: Sequence[int], frequencies: Sequence[int] | None = None) -> bytes:
    """Write an ans symbol stream; frequencies of all symbols from 0 on, or fitting ones."""
    if frequencies is None:
        n, size = len(symbols), max(symbols) + 1
        counts = [symbols.count(s) for s in range(size)]
        frequencies = [max(1, 4096 * c // n) if c else 0 for c in counts]
        frequencies[frequencies.index(max(frequencies))] += 4096 - sum(frequencies)
    table = b"".join(varint(f) for f in frequencies)
    return varint(0) + varint(len(frequencies)) + table + rans(symbols, frequencies)


def huffman(symbols: Sequence[int], lengths: Sequence[int]) -> bytes:
    """Write a huffman symbol stream; code lengths of all symbols from 0 on."""
    codes: dict[int, str] = {}
    code, before = 0, 0
    for size, symbol in sorted((size, symbol) for symbol, size in enumerate(lengths) if size):
        code <<= size - before
        codes[symbol] = f"{code:0{size}b}"
        code, before = code + 1, size
    stream = [int(bit) for symbol in symbols for bit in codes[symbol]]
    return varint(0) + varint(len(lengths)) + pack(lengths, 4) + bits_to_bytes(stream)


def rle(symbols: Sequence[int], width: int) -> bytes:
    """Write an rle symbol stream."""
    ends = [i for i in range(len(symbols) - 1) if symbols[i] != symbols[i + 1]]
    heads = [symbols[0], *(symbols[i + 1] for i in ends)]
    return varint(len(ends)) + pack(heads, width) + (golomb(gaps_of(ends), 3) if ends else b"")


class RangeCode:
    """Write bits with their probabilities as one number of any length."""

    def __init__(self) -> None:
        self.low, self.span, self.num_bytes = 0, 2**32 - 1, 4

    def bit(self, bit: int, counts: list[int]) -> None:
        """Write a bit; counts of zeros and ones say how probable it is, and learn from it."""
        bound = (self.span >> 16) * min(max(65536 * counts[1] // sum(counts), 1), 65535)
        self.low, self.span = (self.low, bound) if bit else (self.low + bound, self.span - bound)
        while self.span < 2**24:
            self.low, self.span, self.num_bytes = self.low << 8, self.span << 8, self.num_bytes + 1
        counts[bit] += 1024

    def end(self) -> bytes:
        """Return the bytes behind their number."""
        multiples = (-(-self.low >> n) << n for n in (32, 24, 16, 8, 0))
        code = next(x for x in multiples if x < self.low + self.span).to_bytes(self.num_bytes, "big").rstrip(b"\0")
        return varint(len(code)) + code


FIRES = [23593, 22938, 22282, 21627, 20644, 19333, 18022, 16712, 15401, 13435, 11633, 9994]
FIRES += [7209, 5472, 3670, 2556, 1573, 885, 469, 229, 111, 46, 15]
FIELDED_FIRES = [31800, 31600, 31400, 31000, 30600, 30000, 29300, 28200, 25500, 23000, 19500, 14500]
FIELDED_FIRES += [9900, 6050, 2950, 1050, 240, 50, 14]


def thresholds(d: int, seed: int, round: int, client: int, golden: bool) -> list[int]:
    """Make the thresholds of fewer than 2^32 coordinates; client 0 is the shared key, else the id and 1."""
    word = int(gw.Key(seed, 0 if golden else round, client - 1 if client else None, "thresholds").words(1)[0])
    out = []
    for i in range(d):
        x = (i * 0x9E3779B1 + word) % 2**32
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32 ^ word >> 32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        out.append(((x ^ x >> 16) + golden * round * 0x9E3779B9) % 2**32)
    return out


def dithered(
    d: int,
    indices: Sequence[int],
    level: int,
    seed: int = 0,
    round: int = 0,
    client: int = 1,
    golden: bool = False,
    field: tuple[bytes, Sequence[int]] | None = None,
) -> bytes:
    """Write a dithered support, with its codec; a fielded one beside (hash, what a field says of each coordinate)."""
    fires = FIRES if field is None else FIELDED_FIRES
    digest, said = (b"", [0] * d) if field is None else field
    code, counts, apart = RangeCode(), [[32768 - n, n] for n in fires], []
    for i, t in enumerate(thresholds(d, seed, round, client, golden)):
        e = t.bit_length()
        octave = 2 * e + (t << 32 - e >= 3037000500) - min(max(level + said[i], 0), 127)
        if octave <= len(fires) - 13:
            code.bit(int(i in indices), counts[max(0, octave + 12)])
        elif i in indices:
            apart.append(i)
    listed = golomb(gaps_of(apart), max(1, d // 20)) if apart else b""
    head = bytes([DITHERED if field is None else FIELDED]) + varint(len(indices)) + bytes([level + 128 * golden])
    return head + varint(seed) + varint(client) + digest + varint(len(apart)) + listed + code.end()


def field_of(
    shapes: Sequence[tuple[int, int]], levels: Sequence[int], width: int = 3
) -> tuple[bytes, bytes, list[int]]:
    """Write a field of (length, columns) of each stretch: its bytes, its hash, and what it says of each coordinate."""
    data = varint(len(shapes)) + b"".join(varint(n) + varint(c) for n, c in shapes)
    stream = encode_levels(np.array(levels, np.int32), np.array([len(levels)]), np.array([width]), 31).tobytes()
    data += varint(1) + varint(width) + varint(len(stream)) + stream
    text = b"".join(struct.pack("<QQ", n, c) for n, c in shapes) + bytes(x % 256 for x in levels)
    said, at = [], 0
    for n, c in shapes:
        rows = -(-n // c)
        said += [levels[at + i // c] + (levels[at + rows + i % c] if rows > 1 else 0) for i in range(n)]
        at += rows + c if rows > 1 else 1
    return data, hashlib.sha256(text).digest()[:4], said


def multiples(counts: Sequence[int], step: float) -> bytes:
    """Write integers times a step, with their codec."""
    largest = max(map(abs, counts))
    out = bytes([MULTIPLES]) + floats(step) + varint(largest) + pack([int(n < 0) for n in counts], 1)
    if largest == 1:
        return out
    code, contexts = RangeCode(), [[512, 512] for _ in range(64)]
    contexts[0] = [3892, 204]
    for n in map(abs, counts):
        e = n.bit_length() - 1
        for j in range(min(e + 1, largest.bit_length() - 1)):
            code.bit(int(j < e), contexts[j])
        for j in range(e):
            code.bit(n >> (e - 1 - j) & 1, [1, 1] if j else contexts[32 + e])
    return out + code.end()


def runs(indices: Sequence[int]) -> bytes:
    """Write a support's run lengths."""
    firsts = [i for i in indices if i - 1 not in set(indices)]
    lasts = [i for i in indices if i + 1 not in set(indices)]
    skipped = [a - b - 2 for a, b in zip(firsts, [-2, *lasts], strict=False)]
    skipped[0] = firsts[0]
    kept = [b - a for a, b in zip(firsts, lasts, strict=True)]
    return varint(len(firsts)) + golomb(skipped, 3) + golomb(kept, 2)


def entropy(gaps: Sequence[int], b: int, cap: int) -> bytes:
    """Write gaps with b low bits and entropy-coded quotients."""
    quotients = [gap >> b for gap in gaps]
    stream = ans([min(q, cap) for q in quotients])
    low = pack([gap & (1 << b) - 1 for gap in gaps], b)
    large = b"".join(varint(q - cap) for q in quotients if q >= cap)
    return varint(len(gaps)) + varint(b) + varint(cap) + stream + low + large


def contexts(
    integers: Sequence[int], stretches: Sequence[tuple[int, int]], most: int, values: bytes,
    coded: Sequence[tuple[int, int]] | None = None,
) -> bytes:  # fmt: skip
    """Write a part of integers with contexts, in stretches of some length and columns; ``values`` up to the stream.

    ``coded`` are the stretches that the stream is written for, where these are others.
    """
    lengths, columns = (np.array(x, np.int64) for x in zip(*(coded or stretches), strict=True))
    stream = encode_levels(np.array(integers, np.int32), lengths, columns, most).tobytes()
    cuts = b"".join(varint(length) + varint(width) for length, width in stretches[:-1]) + varint(stretches[-1][1])
    return bytes([CONTEXT]) + varint(len(stretches)) + cuts + values + varint(len(stream)) + stream


def skewed_centred(coder: str, count: int, scale: float = 1.0) -> bytes:
    """Write values of which all are the same symbol, in as few bytes as the coder can."""
    head = varint(2) + varint(0) + floats(scale)
    if coder == "rle":
        return bytes([CENTRED | RLE]) + head + varint(0) + b"\0"
    if coder == "ans":
        lanes = 4 if count >= 1024 else 1
        return bytes([CENTRED | ANS]) + head + varint(0) + varint(1) + varint(4096) + struct.pack("<I", 65536) * lanes
    if coder == "huffman":
        return bytes([CENTRED | HUFFMAN]) + head + varint(0) + varint(1) + b"\x01" + bytes(-(-count // 8))
    return bytes([CENTRED | PACKED]) + head + bytes(-(-count // 8))


def grouped(*members: tuple[int, bytes]) -> bytes:
    """Write values in groups: (how many, codec and values) of each."""
    counts = [varint(count) for count, _ in members[:-1]] + [b""]
    return bytes([GROUPED]) + varint(len(members)) + b"".join(c + v for c, (_, v) in zip(counts, members, strict=True))


# containers and files


def repaired(body: bytes) -> bytes:
    """Put the right checksum behind bytes."""
    return body + struct.pack("<I", zlib.crc32(body))


def header(
    d: int,
    flags: int = 0,
    round: int = 0,
    sequence: int = 0,
    layout: bytes = bytes(4),
    reference: bytes = b"",
    sum_weights: float = 1.0,
    packet: tuple[int, int] = (0, 1),
    version: int = 1,
) -> bytes:
    """Write what comes before the parts; the fields that flags announce are there."""
    out = b"GW" + bytes([version, flags]) + varint(d) + varint(round) + varint(sequence) + layout
    if flags & REFERENCE:
        out += reference
    if flags & DOWNLINK:
        out += struct.pack("<d", sum_weights)
    if flags & PACKET:
        out += varint(packet[0]) + varint(packet[1])
    return out


def container(d: int, *parts: bytes, padding: bytes = b"", **fields: object) -> bytes:
    """Write a container of one part, or of parts that begin with their lengths."""
    several = len(parts) > 1
    flags = int(fields.pop("flags", 0)) | (SEVERAL if several else 0)  # type: ignore[call-overload]
    head = header(d, flags | (PADDED if padding else 0), **fields)  # type: ignore[arg-type]
    return repaired(head + (varint(len(parts)) if several else b"") + b"".join(parts) + padding)


def file_header(
    tensors: Iterable[tuple[bytes, int | tuple[bytes, int], Sequence[int]]],
    spec: bytes = b"topk(0.5)",
    metadata: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """Write a .gw file's header: (name, dtype code, or name and bytes where it has no code, shape) of each tensor."""
    tensors, metadata = list(tensors), list(metadata)
    body = text(spec) + varint(len(metadata)) + b"".join(text(name) + text(value) for name, value in metadata)
    body += varint(len(tensors))
    for name, dtype, shape in tensors:
        code = bytes([dtype]) if isinstance(dtype, int) else b"\xff" + text(dtype[0]) + varint(dtype[1])
        body += text(name) + code + varint(len(shape)) + b"".join(varint(n) for n in shape)
    return repaired(b"GWFILE\x01" + varint(len(body)) + body)


def text(data: bytes) -> bytes:
    """Write a text of a .gw file's header."""
    return varint(len(data)) + data


def file(
    tensors: Iterable[tuple[bytes, int | tuple[bytes, int], Sequence[int], bytes]],
    spec: bytes = b"topk(0.5)",
    metadata: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """Write a .gw file: (name, dtype as for ``file_header``, shape, data) of each tensor."""
    tensors = list(tensors)
    data = b"".join(varint(len(blob)) + blob for _, _, _, blob in tensors)
    return file_header([t[:3] for t in tensors], spec, metadata) + data


# trying


@functools.cache
def warm_up() -> None:
    """Load the compiled kernels, which takes time and memory once and is no input's fault."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(200_000).astype(np.float32)
    for spec in (
        "dense()",
        "topk(0.2)",
        "uniform(4) | huffman()",
        "uniform(4) | ans()",
        "topk(0.3) | uniform(1)",
        "dither(density=0.01)",
        "rd(1.0)",
    ):
        gw.decompress(gw.decode(gw.Client(gw.parse(spec), gw.Layout.flat(x.size)).compress(x)))


class Escaped(AssertionError):
    """Attacks that got through, or were refused in another way than they must be."""


ESCAPES: list[str] = []


def escaped(what: str) -> None:
    """Note an attack that got through; the script goes on to the next."""
    ESCAPES.append(what)
    print(f"ESCAPED {what}")


def refused(
    what: str,
    attempt: Callable[[], object],
    *errors: type[Exception],
    max_bytes: int = 3_000_000,
    max_seconds: float = 2.0,
) -> None:
    """Run an attempt that must end in one of these errors, with little memory and in little time.

    Args:
        what: said of it.
        attempt: the attack.
        errors: what it may raise; an exact class or a subclass.
        max_bytes: most bytes that Python may allocate meanwhile.
        max_seconds: most time.
    """
    warm_up()
    tracemalloc.start()
    start = time.process_time()
    try:
        attempt()
    except errors as error:
        outcome = error
    except BaseException as error:
        expected = ", ".join(e.__name__ for e in errors)
        return escaped(f"{what}: must raise {expected}, got {type(error).__name__}: {error}")
    else:
        return escaped(f"{what}: must raise {', '.join(e.__name__ for e in errors)}, was accepted")
    finally:
        seconds = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    if peak > max_bytes or seconds > max_seconds:
        return escaped(f"{what}: took {peak} bytes and {seconds:.2f} s, allowed {max_bytes} and {max_seconds}")
    return print(f"{what}\n    {type(outcome).__name__}: {outcome}")


def bounded(what: str, attempt: Callable[[], object], max_bytes: int, max_seconds: float = 2.0) -> object:
    """Run an attempt that may succeed, within these bounds; a GradwireError is fine as well.

    Args:
        what: said of it.
        attempt: the attack.
        max_bytes: most bytes that Python may allocate meanwhile.
        max_seconds: most time.

    Returns:
        What it gave, or the error.
    """
    warm_up()
    tracemalloc.start()
    start = time.process_time()
    try:
        outcome = attempt()
    except gw.GradwireError as error:
        outcome = error
    except BaseException as error:
        escaped(f"{what}: {type(error).__name__}: {error}")
        return error
    finally:
        seconds = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    if peak > max_bytes or seconds > max_seconds:
        escaped(f"{what}: took {peak} bytes and {seconds:.2f} s, allowed {max_bytes} and {max_seconds}")
    print(f"{what}\n    {peak} bytes, {seconds * 1000:.1f} ms: {str(outcome)[:90]}")
    return outcome


def decoding(blob: bytes, limits: gw.Limits | None = None) -> Callable[[], gw.Payload]:
    """Return the attempt to decode a blob."""
    return lambda: gw.decode(blob, limits)


def run(attacks: Callable[[], None]) -> None:
    """Run a script's attacks.

    Raises:
        Escaped: when one got through or more, after all were tried.
    """
    ESCAPES.clear()
    attacks()
    if ESCAPES:
        raise Escaped("\n".join(ESCAPES))


def main(attacks: Callable[[], None]) -> None:
    """Run a script's attacks; exit with 1 when one gets through."""
    try:
        run(attacks)
    except Escaped as error:
        print(f"{len(ESCAPES)} ESCAPED:\n{error}", file=sys.stderr)
        sys.exit(1)
