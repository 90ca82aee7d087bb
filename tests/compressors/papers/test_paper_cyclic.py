"""Cyclic: the window's arithmetic, and what travels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_oracles import ACTIONS, Network, Talk, buffered_layout, check_errors, same, vectors

import gradwire as gw
from examples import up_to
from gradwire.compressors.compressor import Round
from gradwire.payload import Cyclic


def window(t: int, k: int, d: int) -> list[int]:
    return sorted((t * k + j) % d for j in range(k))


@settings(max_examples=up_to(300), deadline=None)
@given(data=st.data())
def test_the_window(data) -> None:
    d = data.draw(st.integers(1, 200))
    k = data.draw(st.integers(1, d))
    t = data.draw(st.one_of(st.integers(0, 500), st.integers(2**40, 2**63 - 2)))
    assert Cyclic(d, k, t).indices.tolist() == window(t, k, d)
    assert Cyclic(d, k, t).indices.dtype == np.int64
    u = np.arange(1, d + 1, dtype=np.float32)
    compressor = gw.cyclic(k / d)
    k = min(d, max(1, round(k / d * d)))
    blob = gw.encode(compressor.compress(u, compressor.init(gw.Layout.flat(d)), Round(t))[0])
    arrived = gw.decompress(gw.decode(blob))
    assert np.flatnonzero(arrived).tolist() == window(t, k, d)
    assert arrived[window(t, k, d)].tolist() == u[window(t, k, d)].tolist()


@pytest.mark.parametrize(("d", "k"), [(12, 1), (12, 3), (12, 12), (60, 6), (7, 7), (1, 1)])
@pytest.mark.parametrize("start", [0, 5, 2**60])
def test_every_coordinate_once_in_d_over_k_rounds(d: int, k: int, start: int) -> None:
    turns = np.zeros(d, int)
    for t in range(start, start + d // k):
        turns[Cyclic(d, k, t).indices] += 1
    assert (turns == 1).all()


@pytest.mark.parametrize(("d", "k"), [(10, 3), (7, 5), (100, 33)])
def test_every_coordinate_equally_often_where_k_does_not_divide_d(d: int, k: int) -> None:
    turns = np.zeros(d, int)
    for t in range(d):
        turns[Cyclic(d, k, t).indices] += 1
    assert (turns == k).all()


def test_no_index_travels() -> None:
    client = gw.Client(gw.cyclic(0.01), gw.Layout.flat(100_000))
    for t in (0, 1, 99, 100, 2**62):
        facts = gw.inspect(client.compress(vectors(0, 100_000), round=t))
        assert facts["codec"]["support"] == "cyclic"
        assert facts["num_kept"] == 1000
        assert facts["support_bytes"] == 3, "the codec and k as a varint"
        assert facts["round"] == t


@pytest.mark.parametrize("x", [[0, 0, 0, 0], [0, -0.0, 1e-45, -3e38], [0, 5, 0, 0]])
def test_zeros_in_the_window_are_sent(x: list[float]) -> None:
    u = np.float32([*x, 9, 9, 9, 9])
    blob = gw.Client(gw.cyclic(0.5), gw.Layout.flat(8)).compress(u)
    assert gw.inspect(blob)["num_kept"] == 4
    assert gw.decompress(gw.decode(blob)).tolist() == [*u[:4].tolist(), 0, 0, 0, 0]


@pytest.mark.parametrize(
    "quantizer", ["fp16()", "uniform(4)", "uniform(8, scope=5)", "sign(scope=3)", "fractional(4)", "qsgd(8)"]
)
def test_quantizers_after_it(quantizer: str) -> None:
    """The values are what the quantizer makes of a vector of the window alone, wrapped or not."""
    d, k = 40, 12
    layout = gw.Layout.from_arrays({"a": np.zeros(25, np.float32), "b": np.zeros(15, np.float32)})
    for scope_layout in (gw.Layout.flat(d), layout):
        talk = Talk(f"ef(cyclic(0.3) | {quantizer}, unchecked=True)", scope_layout, 2)
        for t in range(7):
            updates = vectors(t, 2, d)
            before = [talk.residual(n) for n in range(2)]
            blobs, _ = talk.round(updates)
            for n, blob in enumerate(blobs):
                u = before[n] + updates[n]
                arrived = gw.decompress(gw.decode(blob))
                kept = window(t, k, d)
                assert gw.inspect(blob)["codec"]["support"] == "cyclic"
                assert gw.inspect(blob)["support_bytes"] == 2
                assert not np.delete(arrived, kept).any()
                assert np.abs(arrived[kept] - u[kept]).max() <= 1.5 * np.abs(u[kept]).max()
                assert (arrived[kept] * u[kept] >= 0).all()
                assert np.array_equal(talk.residual(n), u - arrived)
    u = vectors(3, d)
    blob = gw.Client(gw.parse(f"cyclic(0.3) | {quantizer}"), gw.Layout.flat(d)).compress(u, round=1)
    if "scope" not in quantizer and quantizer != "qsgd(8)":
        alone = gw.Client(gw.parse(quantizer), gw.Layout.flat(k)).compress(u[k : 2 * k])
        assert gw.decompress(gw.decode(blob))[k : 2 * k].tolist() == gw.decompress(gw.decode(alone)).tolist()


def test_all_clients_send_the_same_coordinates() -> None:
    talk = Talk("ef(cyclic(0.25))", 40, 4)
    sums = np.zeros(40)
    for t in range(8):
        updates = vectors(t, 4, 40)
        _, result = talk.round(updates)
        assert np.flatnonzero(result.update).tolist() == window(t, 10, 40)
        sums += result.update
    held = np.mean([talk.residual(n) for n in range(4)], axis=0, dtype=float)
    assert sums + held == pytest.approx(sum(vectors(t, 4, 40).mean(axis=0) for t in range(8)), abs=1e-5)
    # nothing new for d / k rounds: everything has arrived
    for _ in range(4):
        talk.round(np.zeros((4, 40), np.float32))
    assert not any(talk.residual(n).any() for n in range(4))


@pytest.mark.parametrize("shape", ["flat", "buffered"])
@pytest.mark.parametrize("spec", ["ef(cyclic(0.3))", "ef(cyclic(0.2) | uniform(8))"])
@settings(max_examples=12, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 2)), min_size=15, max_size=50))
def test_nothing_is_lost_whatever_the_network_does(spec, shape, steps) -> None:
    network = Network(spec, gw.Layout.flat(40) if shape == "flat" else buffered_layout(37), 3)
    for action, number in steps:
        network.step(action, number)
    network.finish()


def test_running_statistics_and_empty_models() -> None:
    talk = Talk("ef(cyclic(0.25))", buffered_layout(8, 2), 1)
    for t in range(5):
        blobs, _ = talk.round(np.ones((1, 10), np.float32))
        assert np.flatnonzero(gw.decompress(gw.decode(blobs[0]))).tolist() == [*window(t, 2, 8), 8, 9]
    for layout in (gw.Layout.flat(0), buffered_layout(0, 2)):
        _, result = Talk("ef(cyclic(0.25))", layout, 1).round(np.ones((1, layout.d), np.float32))
        assert result.update.tolist() == [1] * layout.d


def test_packets_are_readable_alone() -> None:
    u = vectors(0, 200)
    blobs = gw.Client(gw.cyclic(0.5), gw.Layout.flat(200)).packets(u, 90, round=1)
    assert len(blobs) > 3
    total = np.sum([gw.decompress(gw.decode(blob)) for blob in blobs], axis=0)
    assert total.tolist() == [0] * 100 + u[100:].tolist()


def test_a_byte_budget_is_met_or_refused() -> None:
    client = gw.Client(gw.ef(gw.cyclic(0.1)), gw.Layout.flat(1000))
    before = client.state_dict()
    with pytest.raises(gw.ConfigError, match=r"num_bytes must be at least \d+ for cyclic\(0\.1\).*got 50"):
        client.compress(vectors(0, 1000), num_bytes=50)
    assert same(client.state_dict(), before)
    assert len(client.compress(vectors(0, 1000), num_bytes=600)) <= 600


def test_specs() -> None:
    for text in ("cyclic(0.1)", "cyclic(1.0)", "ef(cyclic(0.3) | uniform(4, scope=64))"):
        assert str(gw.parse(text)) == text
        assert gw.parse(text) == gw.parse(str(gw.parse(text)))
    check_errors(
        [
            ("cyclic(0)", r"density must be in \(0, 1\], got 0"),
            ("cyclic(1.01)", r"density must be in \(0, 1\], got 1\.01"),
            ("cyclic('x')", r"density must be in \(0, 1\], got 'x'"),
            ("cyclic()", "density"),
            ("cyclic(0.1, shift=1)", "cyclic has no parameter 'shift'.*it takes density"),
            ("cyclic(0.1) | topk(0.1)", "cannot stand there"),
        ]
    )
