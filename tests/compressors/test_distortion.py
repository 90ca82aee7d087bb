"""rd and context(): what they cost at what error, against plain choices; budgets, promises, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gradwire as gw
from examples import up_to
from gradwire.kernels import ops

LARGEST = float(np.finfo(np.float32).max)
ROWS, COLUMNS = 40, 150
LAYOUT = gw.Layout.from_arrays({"w": np.empty((ROWS, COLUMNS)), "b": np.empty(40), "v": np.empty((10, 40))})


def like_a_layer(seed: int = 0) -> np.ndarray:
    """Entries of a heavy tail, of rows and columns of unequal size, signs of a row mostly alike."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(4, LAYOUT.d)
    size = rng.lognormal(0, 1.2, (ROWS, 1)) * rng.lognormal(0, 0.8, (1, COLUMNS))
    signs = np.where(rng.random((ROWS, COLUMNS)) < rng.random((ROWS, 1)), 1, -1)
    w = slice(ROWS * COLUMNS)
    x[w] = (np.abs(x[w].reshape(ROWS, COLUMNS)) * size * signs).reshape(-1)
    return x.astype(np.float32)


def blob_of(spec: str, x: np.ndarray, layout: gw.Layout = LAYOUT) -> bytes:
    return gw.Client(gw.parse(spec), layout).compress(x)


def lost(x: np.ndarray, blob: bytes) -> float:
    error = gw.decompress(gw.decode(blob)).astype(np.float64) - x
    return float(error @ error / (x.astype(np.float64) @ x))


def front(specs: list[str], x: np.ndarray) -> list[tuple[int, float]]:
    return [(len(blob), lost(x, blob)) for blob in (blob_of(spec, x) for spec in specs)]


def test_rd_needs_fewer_bytes_than_any_top_k_at_its_error():
    x = like_a_layer()
    densities = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
    plain = front([f"topk({p}) | uniform({b}, scope='model')" for p in densities for b in (2, 3, 4, 6, 8)], x)
    for num_bytes, error in front([f"rd({slope})" for slope in (0.1, 0.5, 2.0)], x):
        rivals = [size for size, other in plain if other <= error]
        assert rivals
        assert num_bytes < 0.8 * min(rivals)


def test_the_choice_is_worth_more_than_rounding_to_the_nearest():
    """D + slope |x|^2 / d * bits, by real bytes, against a grid of the same step."""
    x = like_a_layer(1)
    for slope in (0.1, 1.0, 4.0):
        blob = blob_of(f"rd({slope})", x)
        part = gw.decode(blob).parts[0]
        step = float(part.values.scales[0])
        levels = np.rint(x / step).astype(np.int64)
        kept = np.flatnonzero(levels)
        half = int(np.abs(levels).max())
        values = gw.payload.Symbols((levels[kept] + half).astype(np.uint16), 2 * half + 1, part.values.scales)
        support = gw.payload.Explicit(x.size, kept, LAYOUT.cuts, LAYOUT.columns)
        nearest = gw.encode(gw.Payload(x.size, (gw.Part(support, values),), coder="context"))
        cost = [lost(x, b) * x.size + slope * 8 * len(b) for b in (blob, nearest)]
        assert cost[0] < cost[1]


def test_contexts_are_lossless_and_shorter_where_rows_differ():
    x = like_a_layer(2)
    for spec in (
        "topk(0.05) | fractional(16)",
        "topk(0.1) | uniform(4, scope='model')",
        "topk(0.1) | sign(scope='model')",
    ):
        plain, coded = blob_of(spec, x), blob_of(f"{spec} | context()", x)
        assert gw.decode(plain) == gw.decode(coded)
        assert gw.inspect(coded)["codec"]["support"] == "context"
        assert len(coded) < 0.96 * len(plain)


def test_contexts_never_cost_anything():
    """Where other codes are shorter, or contexts do not apply, the blob is what auto makes."""
    x = np.random.default_rng(3).standard_normal(600).astype(np.float32)
    flat = gw.Layout.flat(600)
    for spec in (
        "topk(0.01)",
        "topk(0.5)",
        "uniform(3)",
        "randk(0.1) | uniform(4)",
        "topk(0.01) | uniform(8)",
        "fp16()",
    ):
        plain, coded = blob_of(spec, x, flat), blob_of(f"{spec} | context()", x, flat)
        assert len(coded) <= len(plain)
        assert gw.decode(plain) == gw.decode(coded)


@pytest.mark.parametrize("num_bytes", [60, 90, 200, 700, 2500, 100_000])
def test_budgets_are_met_and_used(num_bytes):
    x = like_a_layer(4)
    blob = blob_of(f"rd(num_bytes={num_bytes})", x)
    assert len(blob) <= num_bytes
    assert len(blob) > 0.9 * num_bytes - 12 or num_bytes == 100_000
    finer = blob_of(f"rd(num_bytes={num_bytes * 2})", x)
    assert lost(x, finer) <= lost(x, blob)
    again = gw.Client(gw.parse("rd(1.0)"), LAYOUT).compress(x, num_bytes=num_bytes)
    assert again == blob, "a budget for one round does the same"


def test_a_budget_below_an_empty_payload_is_refused():
    with pytest.raises(gw.ConfigError, match="num_bytes must be at least"):
        blob_of("rd(num_bytes=10)", like_a_layer())


VECTORS = st.lists(
    st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, LARGEST, -LARGEST]),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        st.floats(-10, 10, width=32),
    ),
    max_size=60,
).map(lambda x: np.array(x, np.float32))


@settings(max_examples=up_to(120), deadline=None)
@example(np.full(50, 1e-45, np.float32), 0.2)
@example(np.array([LARGEST, -LARGEST, 1.0], np.float32), 1e-3)
@example(np.array([LARGEST], np.float32), 1e30)
@example(np.array([1.0, 0.9, -0.8], np.float32), 1e30)
@given(VECTORS, st.sampled_from([1e-30, 1e-3, 0.1, 1.0, 30.0, 1e30]))
def test_what_is_promised_holds(x, slope):
    compressor = gw.rd(slope)
    payload, _ = compressor.compress(x, compressor.init(gw.Layout.flat(x.size)))
    assert gw.decode(gw.encode(payload)) == payload
    error = gw.decompress(payload).astype(np.float64) - x
    norm = float(np.sum(x.astype(np.float64) ** 2))
    promised = compressor.guarantee(x.size)
    assert promised == (gw.Contractive(1 / (50 * x.size)) if x.size else gw.Contractive(0.0))
    slack = x.size * (4096 * 2.0**-149) ** 2  # denormals: a step is rounded by half of the last one
    assert float(error @ error) <= (1 - promised.delta) * norm * (1 + 1e-6) + slack
    assert bool(payload.num_kept) == bool(x.any())


def test_the_step_fits_in_least_squares():
    x = like_a_layer(5)
    part = gw.decode(blob_of("rd(0.3)", x)).parts[0]
    integers = part.values.symbols.astype(np.float64) - (part.values.num_symbols - 1) / 2
    best = float(integers @ x[part.support.chosen]) / float(integers @ integers)
    assert float(part.values.scales[0]) == pytest.approx(best, rel=1e-3)


def test_the_dearer_a_bit_the_fewer():
    x = like_a_layer(6)
    sizes = [len(blob_of(f"rd({slope})", x)) for slope in (0.01, 0.1, 1.0, 10.0, 100.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 100 < 1000 < sizes[0]


def test_scale_changes_nothing():
    """Twice the update, twice the numbers, and the same choice."""
    x = like_a_layer(7)
    one, two = (gw.decompress(gw.decode(blob_of("rd(0.5)", y))) for y in (x, 2 * x))
    assert (2 * one).tobytes() == two.tobytes()


@pytest.mark.parametrize("spec", ["rd(0.5)", "rd(num_bytes=300)", "topk(0.1) | fractional(8) | context()"])
def test_plain_python_and_compiled_kernels_write_the_same(spec, monkeypatch):
    x = like_a_layer(8)
    blobs = []
    for backend in ("cpu", "reference"):
        monkeypatch.setattr(ops, "BACKEND", backend)
        blobs.append(blob_of(spec, x))
    assert blobs[0] == blobs[1]


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("rd()", "got neither"),
        ("rd(1.0, num_bytes=100)", "got both"),
        ("rd(0.0)", r"slope must be in \(0, "),
        ("rd(-1.0)", r"slope must be in \(0, "),
        ("rd(1.0) | uniform(4)", "rounds numbers itself"),
        ("rd(1.0) | fp16()", "rounds numbers itself"),
    ],
)
def test_what_is_refused(spec, match):
    with pytest.raises(gw.ConfigError, match=match):
        gw.parse(spec)


def test_another_coder_may_be_named():
    x = like_a_layer(9)
    named, own = blob_of("rd(0.5) | ans()", x), blob_of("rd(0.5)", x)
    assert "context" not in gw.inspect(named)["codec"]["support"]
    assert gw.decode(named) == gw.decode(own)
    assert len(own) < len(named)


def test_packets_need_no_contexts():
    x = like_a_layer(10)
    blobs = gw.Client(gw.rd(0.2), LAYOUT).packets(x, 150)
    assert len(blobs) > 3
    total = sum(gw.decompress(gw.decode(blob)) for blob in blobs)
    assert total.tobytes() == gw.decompress(gw.decode(blob_of("rd(0.2)", x))).tobytes()


@pytest.mark.parametrize("inner", ["rd(1.0)", "rd(num_bytes=300)"])
def test_behind_momentum_correction_nothing_is_lost(inner):
    """u = m u + g, v = v + u, and u = 0 where something is sent: what arrived plus v is the sum of all u."""
    client = gw.Client(gw.parse(f"momentum_correction({inner}, momentum=0.9)"), LAYOUT)
    u, total, arrived = (np.zeros(LAYOUT.d) for _ in range(3))
    for index in range(6):
        gradient = like_a_layer(index)
        u = np.float32(0.9) * u + gradient
        total += u
        blob = client.compress(gradient)
        assert len(blob) <= 300 or inner == "rd(1.0)"
        sent = gw.decompress(gw.decode(blob)).astype(np.float64)
        assert np.any(sent)
        u[sent != 0] = 0
        delivered = index != 2
        arrived += sent * delivered
        client.settle(delivered)
        left = client.state_dict()["residual"]
        assert np.allclose(arrived + left, total, rtol=1e-5, atol=1e-4)
