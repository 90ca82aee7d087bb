"""Every coder on both backends: the same bytes, an exact round trip, near the entropy, and total on any bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from examples import up_to
from gradwire.kernels import cpu, models, reference

BACKENDS = [reference, cpu]
SIZES = [0, 1, 3, 4, 1023, 1024, 1025, 1026, 1027, 4096, 100_000]
either = pytest.mark.parametrize("ops", BACKENDS, ids=["reference", "cpu"])
fast = settings(max_examples=up_to(150), deadline=None)
Bytes = NDArray[np.uint8]


def same(call: Callable[[ModuleType], Any]) -> Any:
    """Call on both backends, check that the results are equal bit for bit, give one of them."""
    results = [call(ops) for ops in BACKENDS]
    flat = [r if isinstance(r, tuple) else (r,) for r in results]
    for a, b in zip(*flat, strict=True):
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            assert a.tobytes() == b.tobytes()
        else:
            assert type(a) is type(b)
            assert a == b
    return results[0]


def as_bytes(data: bytes) -> Bytes:
    """Read-only, as decoders get it."""
    return np.frombuffer(data, np.uint8)


def draw(distribution: str, num_symbols: int, n: int, seed: int = 0) -> NDArray[np.uint16]:
    rng = np.random.default_rng(seed)
    if distribution == "uniform":
        return rng.integers(0, num_symbols, n).astype(np.uint16)
    if distribution == "normal":
        return np.clip(np.rint(rng.normal(num_symbols / 2, num_symbols / 10, n)), 0, num_symbols - 1).astype(np.uint16)
    return np.minimum(rng.geometric(0.7, n) - 1, num_symbols - 1).astype(np.uint16)


def counted(symbols: NDArray[np.uint16], num_symbols: int) -> NDArray[np.int64]:
    counts = np.bincount(symbols, minlength=num_symbols)
    if not symbols.size:
        counts[0] = 1
    return counts


# --- fixed width ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", range(33))
@pytest.mark.parametrize("n", [0, 1, 3, 63, 64, 65, 1025])
def test_pack(width: int, n: int) -> None:
    symbols = np.random.default_rng(width).integers(0, 1 << width, n, dtype=np.uint64).astype(np.uint32)
    packed = same(lambda ops: ops.pack(symbols, width))
    assert packed.size == -(-n * width // 8)
    wider = symbols.astype(np.int64) + (np.arange(n) << 32)
    assert (same(lambda ops: ops.pack(wider, width)) == packed).all()
    behind = np.concatenate([packed, as_bytes(b"\xff" * 20)])
    assert (same(lambda ops: ops.unpack(packed, n, width)) == symbols).all()
    assert (same(lambda ops: ops.unpack(behind, n, width)) == symbols).all()


@pytest.mark.parametrize("n", SIZES)
def test_pack_sizes(n: int) -> None:
    symbols = draw("uniform", 32, n)
    assert (same(lambda ops: ops.unpack(ops.pack(symbols, 5), n, 5)) == symbols).all()
    assert (same(lambda ops: ops.unpack(ops.pack(symbols[::2], 5), -(-n // 2), 5)) == symbols[::2]).all()


# --- supports ---------------------------------------------------------------------------------------------------------


@fast
@given(st.lists(st.integers(0, 2000), max_size=200), st.integers(1, 300))
def test_golomb(gap_list: list[int], m: int) -> None:
    gap = np.array(gap_list, np.int64)
    indices = np.cumsum(gap + 1) - 1
    assert (same(lambda ops: ops.gaps(indices)) == gap).all()
    code = same(lambda ops: ops.golomb_encode(gap, m))
    assert code.size == -(-same(lambda ops: ops.golomb_bits(gap, np.array([gap.size]), np.array([[m]])).item()) // 8)
    limit = int(indices[-1]) + 1 if gap.size else 0
    for data in (code, np.concatenate([code, as_bytes(b"\xff" * 9)])):
        found = same(lambda ops, data=data: ops.golomb_decode(data, gap.size, m, limit))
        assert (found[0] == indices).all()
        assert found[1] == code.size
        out = np.empty(gap.size, np.int64)
        assert same(lambda ops, data=data, out=out: ops.golomb_decode(data, gap.size, m, limit, 7, out))[1] == code.size
        assert (out == indices + 7).all()
    if gap.size:
        assert same(lambda ops: ops.golomb_decode(code, gap.size, m, limit - 1)) is None
        for cut in range(code.size):
            assert same(lambda ops, cut=cut: ops.golomb_decode(code[:cut], gap.size, m, limit)) is None


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("n", SIZES)
def test_golomb_sizes(n: int, density: float) -> None:
    gap = np.random.default_rng(n).geometric(density, n) - 1
    indices = np.cumsum(gap + 1) - 1
    limit = int(indices[-1]) + 1 if n else 0
    for m in (1, 2, 3, 64, 69, 1 << 20):
        if gap.sum() // m > 10**7:
            continue
        code = same(lambda ops, m=m: ops.golomb_encode(gap, m))
        found = same(lambda ops, m=m, code=code: ops.golomb_decode(code, n, m, limit))
        assert (found[0] == indices).all()
        assert found[1] == code.size


def test_golomb_is_as_written_down() -> None:
    # m = 5: b = 3, u = 3. Gaps 0 3 14: quotients 0 0 2, remainders 0 3 4, fields 00 11 11, extra bits 0 1.
    bits = np.packbits([0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1], bitorder="little")
    assert same(lambda ops: ops.golomb_encode(np.array([0, 3, 14]), 5)).tobytes() == bits.tobytes()


@pytest.mark.parametrize("m", [1 << 33, (1 << 40) + 12345, 1 << 48])
def test_golomb_large(m: int) -> None:
    gap = np.array([0, m, 3 * m + 5, m - 1, 1, 2 * m])
    indices = np.cumsum(gap + 1) - 1
    code = same(lambda ops: ops.golomb_encode(gap, m))
    found = same(lambda ops: ops.golomb_decode(code, gap.size, m, 1 << 56))
    assert (found[0] == indices).all()
    assert found[1] == code.size


@fast
@given(
    st.binary(max_size=60),
    st.integers(0, 40),
    st.one_of(st.integers(0, 20), st.integers(0, 2**64)),
    st.one_of(st.integers(0, 500), st.integers(0, 2**64)),
)
def test_golomb_total(data: bytes, num_gaps: int, m: int, limit: int) -> None:
    found = same(lambda ops: ops.golomb_decode(as_bytes(data), num_gaps, m, limit))
    if found is not None and num_gaps:
        assert found[0].size == num_gaps
        assert found[0][0] >= 0
        assert (np.diff(found[0]) > 0).all()
        assert found[0][-1] < limit
        assert found[1] <= len(data)


@fast
@given(st.integers(0, 2**32), st.integers(1, 3000), st.integers(1, 60), st.booleans())
def test_golomb_total_in_bulk(seed: int, num_gaps: int, m: int, sparse: bool) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, rng.integers(1, 4 * num_gaps)).astype(np.uint8)
    if sparse:
        data &= rng.integers(0, 256, data.size).astype(np.uint8) & rng.integers(0, 256, data.size).astype(np.uint8)
    for limit in (num_gaps, 20 * num_gaps, 1 << 40):
        same(lambda ops, limit=limit: ops.golomb_decode(data, num_gaps, m, limit))


def test_golomb_sums_do_not_wrap() -> None:
    num_gaps, m = 1 << 16, (1 << 48) - 3  # all fields and extra bits set: remainders alone sum to about 2^64
    data = np.full(num_gaps * 50 // 8, 255, np.uint8)
    assert same(lambda ops: ops.golomb_decode(data, num_gaps, m, 1 << 56)) is None


@either
def test_golomb_reads_no_more_than_it_needs(ops: ModuleType) -> None:
    code = reference.golomb_encode(np.arange(100), 64)
    # 2^40 bytes that nobody could unpack.
    endless = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (1 << 40,), (0,))
    assert ops.golomb_decode(endless, 100, 64, 10_000) is None
    data = np.concatenate([code, np.zeros(50_000_000, np.uint8)])
    found = ops.golomb_decode(data, 100, 64, 10_000)
    assert found is not None
    assert found[1] == code.size


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("m", SIZES)
def test_lists_of_coordinates(n: int, m: int) -> None:
    rng = np.random.default_rng(n + m)
    a, b = (np.sort(rng.permutation(2 * max(n, m))[:count]) for count in (n, m))
    at = {int(x): i for i, x in enumerate(a)}
    assert same(lambda ops: ops.find(a, b)).tolist() == [at.get(int(x), -1) for x in b]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("shift", "cap"), [(0, 1), (3, 7), (32, 255)])
def test_positions_of_gaps_in_two_parts(n: int, shift: int, cap: int) -> None:
    gaps = np.random.default_rng(n).geometric(0.5 ** (shift + 2), n).astype(np.int64) - 1
    expected = np.array(list(itertools.accumulate(int(gap) + 1 for gap in gaps)), np.int64) - 1
    quotients = same(lambda ops: ops.quotients(gaps, shift, cap))
    assert (quotients == np.minimum(gaps >> shift, cap)).all()
    assert same(lambda ops: ops.count_symbols(quotients, cap + 1)).tolist() == [
        int((quotients == symbol).sum()) for symbol in range(cap + 1)
    ]
    more = (gaps[quotients == cap] >> shift) - cap
    low = gaps & ((1 << shift) - 1)
    limit = int(expected[-1]) + 1 if n else 0
    found = same(lambda ops: ops.positions(quotients, more, cap, low, shift, limit))
    assert found.tolist() == expected.tolist()
    if n:
        assert same(lambda ops: ops.positions(quotients, more, cap, low, shift, limit - 1)) is None


@settings(max_examples=up_to(100), deadline=None)
@given(
    gaps=st.lists(st.lists(st.integers(0, 2**48), min_size=1, max_size=70), min_size=1, max_size=4),
    parameters=st.lists(st.integers(1, 2**48), min_size=3, max_size=3),
)
def test_golomb_bits_of_stretches(gaps: list[list[int]], parameters: list[int]) -> None:
    joined = np.array([gap for stretch in gaps for gap in stretch], np.int64)
    stops, tried = np.cumsum([len(stretch) for stretch in gaps]), np.array([parameters] * len(gaps))
    found = same(lambda ops: ops.golomb_bits(joined, stops, tried))
    for stretch, bits in zip(gaps, found.tolist(), strict=True):
        for m, num_bits in zip(parameters, bits, strict=True):
            width = (m - 1).bit_length()
            short = (1 << width) - m
            assert num_bits == sum(gap // m + 1 + (width - (gap % m < short) if m > 1 else 0) for gap in stretch)


# --- entropy coders ---------------------------------------------------------------------------------------------------

DISTRIBUTIONS = [
    ("uniform", 2),
    ("uniform", 256),
    ("normal", 16),
    ("normal", 256),
    ("skewed", 2),
    ("skewed", 3),
    ("skewed", 64),
    ("uniform", 1),
]


@pytest.mark.parametrize(("distribution", "num_symbols"), DISTRIBUTIONS)
@pytest.mark.parametrize("n", SIZES)
def test_ans_and_huffman(distribution: str, num_symbols: int, n: int) -> None:
    symbols = draw(distribution, num_symbols, n)
    counts = counted(symbols, num_symbols)
    frequencies, lengths = models.normalise_frequencies(counts), models.huffman_lengths(counts)
    ans = same(lambda ops: ops.ans_encode(symbols, frequencies))
    huffman = same(lambda ops: ops.huffman_encode(symbols, lengths))
    for data, behind in ((ans, b""), (ans, b"\x00\xff\x07")):
        data = np.concatenate([data, as_bytes(behind)])
        found = same(lambda ops, data=data: ops.ans_decode(data, n, frequencies))
        assert (found[0] == symbols).all()
        assert found[1] == ans.size
    for data, behind in ((huffman, b""), (huffman, b"\xff\xff\x07")):
        data = np.concatenate([data, as_bytes(behind)])
        found = same(lambda ops, data=data: ops.huffman_decode(data, n, lengths))
        assert (found[0] == symbols).all()
        assert found[1] == huffman.size
    if n:
        used = counts[counts > 0]
        entropy_bytes = float(-(used * np.log2(used / n)).sum()) / 8
        assert abs(ans.size - models.ans_bits(counts, frequencies) / 8) <= 0.001 * ans.size + 16
        if n >= 1024:
            assert ans.size <= 1.005 * entropy_bytes + 24
        assert 8 * huffman.size - int((counts * lengths).sum()) in range(8)


@pytest.mark.parametrize(("distribution", "num_symbols"), [d for d in DISTRIBUTIONS if d[1] > 1])
def test_ans_is_as_small_as_constrictions(distribution: str, num_symbols: int) -> None:
    n = 50_000
    symbols = draw(distribution, num_symbols, n)
    frequencies = models.normalise_frequencies(np.bincount(symbols, minlength=num_symbols))
    model = constriction.stream.model.Categorical(frequencies.astype(np.float32) / np.float32(4096), perfect=True)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols.astype(np.int32), model)
    theirs = 4 * coder.get_compressed().size
    assert cpu.ans_encode(symbols, frequencies).size <= 1.0005 * theirs + 16


def plain_huffman_decode(data: Bytes, num_symbols: int, lengths: list[int]) -> list[int]:
    """Bit by bit, from the canonical code's definition."""
    codes, code, last = {}, 0, 0
    for length, symbol in sorted((n, s) for s, n in enumerate(lengths) if n):
        code <<= length - last
        codes[length, code] = symbol
        code, last = code + 1, length
    bits = iter(np.unpackbits(data, bitorder="little").tolist())
    symbols = []
    for _ in range(num_symbols):
        code = length = 0
        while (length, code) not in codes:
            code, length = code << 1 | next(bits), length + 1
        symbols.append(codes[length, code])
    return symbols


@pytest.mark.parametrize(("distribution", "num_symbols"), DISTRIBUTIONS)
def test_huffman_against_the_definition(distribution: str, num_symbols: int) -> None:
    symbols = draw(distribution, num_symbols, 2000)
    lengths = models.huffman_lengths(np.bincount(symbols, minlength=num_symbols))
    code = same(lambda ops: ops.huffman_encode(symbols, lengths))
    assert plain_huffman_decode(code, 2000, lengths.tolist()) == symbols.tolist()


def test_ans_is_as_written_down() -> None:
    # f = 1024, c = 3072: from x = 2^16, (65536 // 1024) * 4096 + 3072 = 265216 = 0x00040c00; no word leaves.
    frequencies = np.array([3072, 1024], np.uint32)
    assert same(lambda ops: ops.ans_encode(np.array([1], np.uint16), frequencies)).tobytes() == b"\x00\x0c\x04\x00"


@either
def test_single_symbol_is_free(ops: ModuleType) -> None:
    frequencies = np.array([0, 4096], np.uint32)
    assert ops.ans_encode(np.ones(100_000, np.uint16), frequencies).tobytes() == 4 * b"\x00\x00\x01\x00"
    found = ops.ans_decode(as_bytes(4 * b"\x00\x00\x01\x00"), 100_000, frequencies)
    assert found is not None
    assert (found[0] == 1).all()


@either
@pytest.mark.parametrize("n", [1, 1024, 2001])
def test_symbols_without_a_code(ops: ModuleType, n: int) -> None:
    for bad, place in ((1, 0), (1, n - 1), (2, 0), (60_000, n - 1)):
        symbols = np.zeros(n, np.uint16)
        symbols[place] = bad
        with pytest.raises(ValueError, match="frequency"):
            ops.ans_encode(symbols, np.array([4096, 0], np.uint32))
        with pytest.raises(ValueError, match="code length"):
            ops.huffman_encode(symbols, np.array([1, 0], np.uint8))
    with pytest.raises(ValueError, match="4096"):
        ops.ans_encode(np.zeros(n, np.uint16), np.array([4000, 95], np.uint32))
    with pytest.raises(ValueError, match="complete"):
        ops.huffman_encode(np.zeros(n, np.uint16), np.array([1, 2], np.uint8))


@pytest.mark.parametrize("n", [1, 40, 1023, 1024, 1030])
def test_every_truncation_is_noticed(n: int) -> None:
    symbols = draw("normal", 16, n)
    counts = np.bincount(symbols, minlength=16)
    frequencies, lengths = models.normalise_frequencies(counts), models.huffman_lengths(counts)
    ans, huffman = cpu.ans_encode(symbols, frequencies), cpu.huffman_encode(symbols, lengths)
    for cut in range(ans.size):
        assert cpu.ans_decode(ans[:cut], n, frequencies) is None
    for cut in range(huffman.size):
        assert cpu.huffman_decode(huffman[:cut], n, lengths) is None
    for cut in {0, 1, ans.size // 2, ans.size - 2, ans.size - 1} & set(range(ans.size)):
        assert reference.ans_decode(ans[:cut], n, frequencies) is None
    for cut in {0, huffman.size // 2, huffman.size - 1}:
        assert reference.huffman_decode(huffman[:cut], n, lengths) is None


def test_unused_bits_must_be_zero() -> None:
    lengths = np.array([1, 2, 2], np.uint8)
    assert same(lambda ops: ops.huffman_decode(as_bytes(b"\x00"), 7, lengths))[1] == 1
    assert same(lambda ops: ops.huffman_decode(as_bytes(b"\x80"), 7, lengths)) is None
    single = np.array([0, 1], np.uint8)
    assert same(lambda ops: ops.huffman_decode(as_bytes(b"\x00"), 7, single))[0].tolist() == [1] * 7
    for wrong in (b"\x01", b"\x40", b"\x80"):
        assert same(lambda ops, wrong=wrong: ops.huffman_decode(as_bytes(wrong), 7, single)) is None


@fast
@given(
    st.integers(0, 2**32),
    st.sampled_from([0, 1, 2, 5, 60, 1023, 1024, 1500, 3000]),
    st.sampled_from(DISTRIBUTIONS),
    st.sampled_from([0, 3, 16, 200, 5000]),
    st.booleans(),
)
def test_entropy_decoders_total(
    seed: int, n: int, distribution: tuple[str, int], num_bytes: int, real_start: bool
) -> None:
    rng = np.random.default_rng(seed)
    symbols = draw(*distribution, max(n, 1), seed)
    counts = np.bincount(symbols, minlength=distribution[1])
    frequencies, lengths = models.normalise_frequencies(counts), models.huffman_lengths(counts)
    data = rng.integers(0, 256, num_bytes).astype(np.uint8)
    for decode, encode, model in (
        ("ans_decode", "ans_encode", frequencies),
        ("huffman_decode", "huffman_encode", lengths),
    ):
        if real_start:  # a real code with one bit turned
            data = getattr(cpu, encode)(symbols, model)
            if data.size:
                data[rng.integers(data.size)] ^= np.uint8(1 << rng.integers(8))
        found = same(lambda ops, name=decode, data=data, model=model: getattr(ops, name)(data, n, model))
        if found is not None:
            assert found[0].size == n
            assert 0 <= found[1] <= data.size


@fast
@given(
    st.binary(max_size=100),
    st.sampled_from([0, 1, 7, 1024]),
    st.lists(st.integers(0, 2**32 - 1), max_size=20),
    st.lists(st.integers(0, 255), max_size=20),
)
def test_models_may_be_anything(data: bytes, n: int, frequencies: list[int], lengths: list[int]) -> None:
    same(lambda ops: ops.ans_decode(as_bytes(data), n, np.array(frequencies, np.uint32)))
    same(lambda ops: ops.huffman_decode(as_bytes(data), n, np.array(lengths, np.uint8)))


def test_unaligned_and_read_only_inputs() -> None:
    raw = np.frombuffer(b"\x00" + draw("uniform", 7, 5000).tobytes(), np.uint8)[1:]
    symbols = raw.view(np.uint16)
    frequencies = models.normalise_frequencies(np.bincount(symbols))
    code = same(lambda ops: ops.ans_encode(symbols, frequencies))
    shifted = np.frombuffer(b"\x00" + code.tobytes(), np.uint8)[1:]
    assert (same(lambda ops: ops.ans_decode(shifted, 5000, frequencies))[0] == symbols).all()
    same(lambda ops: ops.pack(symbols, 3))
    same(lambda ops: ops.huffman_encode(symbols, models.huffman_lengths(np.bincount(symbols))))


# --- float32 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
def test_split_float32(n: int) -> None:
    bits = np.random.default_rng(n).integers(0, 1 << 32, n, dtype=np.uint64).astype(np.uint32)
    exponents, rest = same(lambda ops: ops.split_float32(bits))
    assert (exponents.size, rest.size) == (n, 3 * n)
    assert (same(lambda ops: ops.join_float32(exponents, rest)) == bits).all()


def test_split_float32_is_as_written_down() -> None:
    bits = np.array([-1.5], np.float32).view(np.uint32)  # sign 1, exponent 127, mantissa 0x400000
    exponents, rest = same(lambda ops: ops.split_float32(bits))
    assert (exponents.tolist(), rest.tolist()) == ([127], [0x00, 0x00, 0xC0])
