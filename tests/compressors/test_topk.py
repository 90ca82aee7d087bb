"""Exact top-k against sorted() with the tie rule, the k rule, and byte budgets against trying every k."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gradwire as gw
from examples import up_to
from gradwire.kernels import reference as ops

TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-45, -1e-45, 3e38, -3e38])
NUMBERS = st.one_of(TIED, st.floats(width=32, allow_nan=False, allow_infinity=False))
VECTORS = st.lists(NUMBERS, min_size=1, max_size=60).map(lambda x: np.array(x, np.float32))
DENSITIES = st.floats(min_value=1e-6, max_value=1.0)


def oracle(x: np.ndarray, k: int) -> list[int]:
    """Largest magnitudes first, ties to the lower index, never a zero."""
    numbers = x.tolist()
    order = sorted(range(len(numbers)), key=lambda i: (-abs(numbers[i]), i))[:k]
    return sorted(i for i in order if numbers[i] != 0.0)


def rule(density: float, d: int) -> int:
    return min(d, max(1, round(density * d)))


def kept(payload: gw.Payload) -> list[int]:
    """Global indices of all entries sent."""
    out, start = [], 0
    for part in payload.parts:
        out += [start + int(i) for i in part.support.indices]
        start += part.length
    return out


def compress(spec: gw.Compressor, x: np.ndarray, layout: gw.Layout | None = None, **options: int) -> gw.Payload:
    layout = gw.Layout.flat(x.size) if layout is None else layout
    return spec.compress(x, spec.init(layout), gw.Round(**options))[0]


@settings(max_examples=up_to(300), deadline=None)
@given(x=VECTORS, data=st.data())
def test_kernel_matches_sorted(x, data):
    k = data.draw(st.integers(0, x.size))
    before = x.copy()
    chosen = ops.topk(x, k)
    assert chosen.dtype == np.int64
    assert chosen.tolist() == oracle(x, k)
    assert x.tobytes() == before.tobytes()


@settings(max_examples=up_to(200), deadline=None)
@given(x=VECTORS, density=DENSITIES)
@example(x=np.zeros(5, np.float32), density=0.5)
@example(x=np.array([1, -1, 1, -1, 1], np.float32), density=0.5)
@example(x=np.array([-0.0, 0.0, 5], np.float32), density=1.0)
def test_model_scope(x, density):
    payload = compress(gw.topk(density), x)
    expected = oracle(x, rule(density, x.size))
    dense = np.zeros_like(x)
    dense[expected] = x[expected]
    assert np.array_equal(gw.decompress(payload), dense)
    assert gw.decode(gw.encode(payload)) == payload
    assert payload.num_kept == len(expected)
    assert kept(payload) == expected


@settings(max_examples=up_to(150), deadline=None)
@given(x=VECTORS, density=DENSITIES, block=st.integers(1, 70))
def test_block_scope(x, density, block):
    payload = compress(gw.topk(density, scope=block), x)
    expected = []
    for start in range(0, x.size, block):
        piece = x[start : start + block]
        expected += [start + i for i in oracle(piece, rule(density, piece.size))]
    assert kept(payload) == expected
    assert np.array_equal(gw.decompress(payload)[expected], x[expected])


@settings(max_examples=up_to(150), deadline=None)
@given(pieces=st.lists(st.lists(NUMBERS, max_size=12), min_size=1, max_size=6), density=DENSITIES)
def test_tensor_scope(pieces, density):
    arrays = {f"t{i}": np.array(p, np.float32) for i, p in enumerate(pieces)}
    layout = gw.Layout.from_arrays(arrays)
    x = layout.flatten(arrays)
    payload = compress(gw.topk(density, scope="tensor"), x, layout)
    expected, start = [], 0
    for piece in arrays.values():
        if piece.size:
            expected += [start + i for i in oracle(piece, rule(density, piece.size))]
        start += piece.size
    assert kept(payload) == expected
    assert np.array_equal(gw.decompress(payload)[expected], x[expected])
    assert gw.decode(gw.encode(payload)) == payload


@pytest.mark.parametrize(
    ("d", "density", "k"),
    [
        (5, 0.5, 2),  # 2.5 rounds to even
        (7, 0.5, 4),  # 3.5 rounds to even
        (3, 0.5, 2),  # 1.5 rounds to even
        (1, 0.5, 1),  # 0.5 rounds to 0, at least 1
        (1, 1e-9, 1),
        (100, 0.001, 1),
        (100, 0.999, 100),
        (100, 0.994, 99),
        (1000, 0.0125, 12),  # 12.5 rounds to even
        (1000, 0.0135, 14),  # 13.5 rounds to even
        (1, 1.0, 1),
        (9, 1.0, 9),
    ],
)
@pytest.mark.parametrize("make", [gw.topk, gw.randk])
def test_k_rule(d, density, k, make):
    assert compress(make(density), np.arange(1, d + 1, dtype=np.float32)).num_kept == k


@settings(max_examples=up_to(100), deadline=None)
@given(d=st.integers(1, 400), density=DENSITIES)
def test_k_rule_is_python_round(d, density):
    x = np.arange(1, d + 1, dtype=np.float32)
    assert compress(gw.topk(density), x).num_kept == rule(density, d)
    assert compress(gw.randk(density), x).num_kept == rule(density, d)


def test_large_ties_and_heavy_tail():
    rng = np.random.default_rng(5)
    x = np.round(rng.standard_cauchy(200_000) * 4).clip(-1e6, 1e6).astype(np.float32)
    for density in (0.0001, 0.01, 0.2, 0.9):
        assert kept(compress(gw.topk(density), x)) == oracle(x, rule(density, x.size))


def test_dense_selection_of_what_is_not_zero():
    payload = compress(gw.topk(1.0), np.array([0, 1, 0, 2], np.float32))
    assert payload.num_kept == 2
    assert kept(payload) == [1, 3]


@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan"), float("inf"), True, "0.1", None, 1j, [0.1]])
def test_density_is_checked_when_built(density):
    for make in (gw.topk, gw.randk):
        with pytest.raises(gw.ConfigError, match="density"):
            make(density)


def test_density_message():
    with pytest.raises(gw.ConfigError, match=r"density must be in \(0, 1\], got 1.5"):
        gw.topk(1.5)


@pytest.mark.parametrize("scope", ["modell", "", 0, -1, 1.5, True, None])
def test_scope_is_checked_when_built(scope):
    with pytest.raises(gw.ConfigError, match="scope"):
        gw.topk(0.1, scope=scope)
    with pytest.raises(gw.ConfigError, match="scope"):
        gw.uniform(4, scope=scope)


@pytest.mark.parametrize("num_bytes", [0, -5, 1.5, True, "100", float("nan")])
def test_num_bytes_is_checked_when_built(num_bytes):
    with pytest.raises(gw.ConfigError, match="num_bytes"):
        gw.topk(num_bytes=num_bytes)
    with pytest.raises(gw.ConfigError, match="num_bytes"):
        gw.Client(gw.topk(0.5), gw.Layout.flat(4)).compress(np.ones(4, np.float32), num_bytes=num_bytes)


def test_numpy_integers_are_as_good_as_python_ones():
    assert gw.topk(num_bytes=np.int64(100)) == gw.topk(num_bytes=100)
    for c in (gw.topk(num_bytes=np.int64(100)), gw.topk(0.1, scope=np.int64(8)), gw.uniform(4, scope=np.int32(64))):
        assert gw.parse(str(c)) == c
    x = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    assert compress(gw.uniform(4, scope=np.int64(64)), x) == compress(gw.uniform(4, scope=64), x)


# --- byte budgets ---------------------------------------------------------------------------------

QUANTIZERS = [None, gw.fp16(), gw.bf16(), gw.uniform(1), gw.uniform(4), gw.uniform(8), gw.uniform(4, scope=16)]


def _every_k(x: np.ndarray, quantizer: gw.Compressor | None) -> list[gw.Payload]:
    """Payloads of k = 0 .. d, where k = 0 is what an update of zeros gives."""

    def with_k(k: int) -> gw.Payload:
        stage = gw.topk(k / x.size if k else 1.0)
        return compress(stage if quantizer is None else stage | quantizer, x if k else np.zeros_like(x))

    return [with_k(k) for k in range(x.size + 1)]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
@pytest.mark.parametrize("kind", ["normal", "sparse"])
def test_budget_against_every_k(quantizer, kind):
    d = 60
    rng = np.random.default_rng(d)
    x = rng.standard_normal(d).astype(np.float32)
    if kind == "sparse":
        x[rng.permutation(d)[:40]] = 0
    payloads = _every_k(x, quantizer)
    sizes = [len(gw.encode(p)) for p in payloads]
    not_everything = []
    for num_bytes in range(min(sizes), max(sizes) + 3):
        stage = gw.topk(num_bytes=num_bytes)
        payload = compress(stage if quantizer is None else stage | quantizer, x)
        assert len(gw.encode(payload)) <= num_bytes
        ks = [k for k, p in enumerate(payloads) if p == payload]
        assert ks, f"num_bytes={num_bytes}: not a top-k payload for any k"
        k = max(ks)
        assert k == d or sizes[k + 1] > num_bytes, f"num_bytes={num_bytes}: k = {k + 1} fits too"
        if sizes[d] <= num_bytes and k < d:
            not_everything.append((num_bytes, k))
        # sizes may fall a little where another coder starts to pay: a larger k can fit, but not with room to spare
        roomy = [m for m in range(k + 1, d) if sizes[m] <= num_bytes - 12]
        assert not roomy, f"num_bytes={num_bytes}: kept {k}, but k = {roomy[-1]} takes {sizes[roomy[-1]]} bytes"
    assert not not_everything, f"all {d} entries take {sizes[d]} bytes, yet (num_bytes, kept) = {not_everything[0]}"


@pytest.mark.parametrize("spec", ["topk(0.5)", "topk(0.5) | uniform(4)", "ef(topk(0.5) | fp16())", "randk(0.5)"])
@pytest.mark.parametrize("num_bytes", [40, 100, 333, 900])
def test_client_budget(spec, num_bytes):
    d = 1000
    x = np.random.default_rng(1).standard_normal(d).astype(np.float32)
    client = gw.Client(gw.parse(spec), gw.Layout.flat(d))
    blob = client.compress(x, num_bytes=num_bytes)
    assert len(blob) <= num_bytes
    everything = gw.Client(
        gw.parse(spec.replace("topk(0.5)", "topk(1.0)").replace("randk(0.5)", "randk(1.0)")), client.layout
    )
    assert len(blob) >= min(num_bytes, len(everything.compress(x))) - 8, "the budget is used"


def test_client_budget_equals_spec_budget():
    x = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    layout = gw.Layout.flat(1000)
    a = gw.Client(gw.topk(0.5) | gw.uniform(4), layout).compress(x, num_bytes=200)
    b = gw.Client(gw.topk(num_bytes=200) | gw.uniform(4), layout).compress(x)
    assert a == b
    c = gw.Client(gw.topk(num_bytes=500) | gw.uniform(4), layout).compress(x, num_bytes=200)
    assert c == a, "the round's budget goes first"


@pytest.mark.parametrize("scope", ["tensor", 100])
def test_scoped_budget_is_met(scope):
    arrays = {"a": np.zeros((20, 20), np.float32), "b": np.zeros(7, np.float32), "c": np.zeros((), np.float32)}
    layout = gw.Layout.from_arrays(arrays)
    x = np.random.default_rng(1).standard_normal(layout.d).astype(np.float32)
    for num_bytes in (80, 200, 1000, 1700, 10_000):
        payload = compress(gw.topk(num_bytes=num_bytes, scope=scope), x, layout)
        assert len(gw.encode(payload)) <= num_bytes
    assert np.array_equal(gw.decompress(payload), x), "everything fits in the last budget"


@pytest.mark.parametrize(
    "spec", ["topk(0.1)", "dense()", "dense() | uniform(8)", "randk(0.1)", "fp16()", "ef(topk(0.1))"]
)
def test_too_small_a_budget_is_a_config_error(spec):
    client = gw.Client(gw.parse(spec), gw.Layout.flat(100))
    before = client.state_dict()
    with pytest.raises(gw.ConfigError, match=r"num_bytes must be at least \d+"):
        client.compress(np.ones(100, np.float32), num_bytes=5)
    after = client.state_dict()
    assert after["sequence"] == before["sequence"]
    assert after["pending"] == []
    with pytest.raises(gw.ConfigError, match="num_bytes"):
        compress(gw.topk(num_bytes=5), np.ones(100, np.float32))


@pytest.mark.parametrize("spec", ["topk(0.1)", "dense()", "dense() | uniform(8)", "randk(0.1)"])
def test_least_budget_named_in_the_error_is_enough(spec):
    client = gw.Client(gw.parse(spec), gw.Layout.flat(100))
    x = np.linspace(1, 2, 100, dtype=np.float32)
    with pytest.raises(gw.ConfigError) as caught:
        client.compress(x, num_bytes=1)
    least = int(str(caught.value).split("at least ")[1].split(",")[0].split()[0])
    assert len(client.compress(x, num_bytes=least)) <= least
    with pytest.raises(gw.ConfigError):
        client.compress(x, num_bytes=least - 1)


def test_buffers_are_paid_from_the_budget_and_never_cut():
    arrays = {"w": np.zeros(200, np.float32), "bn.running_var": np.zeros(10, np.float32)}
    layout = gw.Layout.from_arrays(arrays)
    x = np.random.default_rng(1).standard_normal(layout.d).astype(np.float32)
    payload = compress(gw.topk(num_bytes=150) | gw.uniform(4), x, layout)
    assert len(gw.encode(payload)) <= 150
    assert np.array_equal(gw.decompress(payload)[200:], x[200:])
