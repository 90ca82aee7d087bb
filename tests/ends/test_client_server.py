"""The two ends: weights, step, reference, rounds, delivery, state, and bad input that changes nothing."""

from __future__ import annotations

import contextlib
import copy
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gradwire as gw

D = 60
LAYOUT = gw.Layout.flat(D)
SPECS = ["topk(0.1)", "dense()", "ef(topk(0.1))", "ef(topk(0.1) | uniform(4))", "ef(topk(0.1), decay=0.9)",
         "ef(randk(0.2) | fp16())", "uniform(4, stochastic=True)"]  # fmt: skip


def vector(seed: int, d: int = D) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(d).astype(np.float32)


def same(a: Any, b: Any) -> bool:
    """Deep equality of states, arrays bit for bit."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return (
            isinstance(a, np.ndarray)
            and isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.tobytes() == b.tobytes()
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) for k in value) and all(map(is_plain, value.values()))
    if isinstance(value, list):
        return all(map(is_plain, value))
    is_numbers = isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
    return value is None or type(value) in (str, int, float, bool) or is_numbers


def pair(spec: str = "topk(0.1)", **server: Any) -> tuple[gw.Client, gw.Server]:
    c = gw.parse(spec)
    return gw.Client(c, LAYOUT, client_id=0, seed=3), gw.Server(c, LAYOUT, seed=3, **server)


def repaired(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


# --- weights --------------------------------------------------------------------------------------


def test_weighted_mean():
    server = gw.Server(gw.dense(), LAYOUT)
    u1, u2 = vector(1), vector(2)
    for i, (u, w) in enumerate(((u1, 1), (u2, 3.0))):
        server.receive(gw.Client(gw.dense(), LAYOUT, client_id=i).compress(u, weight=w), client_id=i, weight=w)
    result = server.close_round()
    exact = (u1.astype(np.float64) + 3 * u2.astype(np.float64)) / 4
    assert np.abs(result.update - exact).max() <= 2e-7 * np.abs(exact).max() * 4
    assert result.update.dtype == np.float32
    assert (result.sum_weights, result.num_received) == (4.0, 2)
    assert result.accepted == ((0, 0), (1, 0))
    assert result.round == 0
    assert gw.decode(result.blob).sum_weights == 4.0


def test_mean_of_sparse_updates_divides_by_all_weights():
    server = gw.Server(gw.topk(0.1), LAYOUT)
    updates = [vector(i) for i in range(5)]
    exact = np.zeros(D)
    for i, u in enumerate(updates):
        blob = gw.Client(gw.topk(0.1), LAYOUT, client_id=i).compress(u, weight=i + 0.5)
        server.receive(blob, i, i + 0.5)
        largest = sorted(range(D), key=lambda j: (-abs(u[j]), j))[:6]
        exact[largest] += (i + 0.5) * u[largest].astype(np.float64)
    assert np.allclose(server.close_round().update, exact / 12.5, rtol=1e-6, atol=1e-7)


def test_aggregators_merge():
    a, b, whole = gw.Aggregator(LAYOUT), gw.Aggregator(LAYOUT), gw.Aggregator(LAYOUT)
    for i in range(6):
        payload = gw.decode(gw.Client(gw.topk(0.2), LAYOUT, client_id=i).compress(vector(i)))
        (a if i % 2 else b).add(payload, i + 1)
        whole.add(payload, i + 1)
    before = b.mean()
    a.merge(b)
    assert np.allclose(a.mean(), whole.mean(), atol=1e-6)
    assert (a.sum_weights, a.num_received) == (21.0, 6)
    assert np.array_equal(b.mean(), before)
    with pytest.raises(gw.ConfigError, match="layout"):
        a.merge(gw.Aggregator(gw.Layout.flat(D + 1)))
    with pytest.raises(gw.ProtocolError, match="d = 60"):
        a.add(gw.decode(gw.Client(gw.dense(), gw.Layout.flat(3)).compress(np.ones(3, np.float32))))
    assert gw.Aggregator(LAYOUT).mean().tolist() == [0] * D


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), True, "1", None, 1e-60, 1e60, 1j])
def test_weights_are_checked_at_both_ends(weight):
    client, server = pair()
    blob = client.compress(vector(0))
    before = client.state_dict(), server.state_dict()
    with pytest.raises(gw.ConfigError, match="weight"):
        client.compress(vector(0), weight=weight)
    with pytest.raises(gw.ConfigError, match="weight"):
        server.receive(blob, 0, weight)
    assert same(before, (client.state_dict(), server.state_dict()))


def test_empty_round_gives_zeros_and_a_valid_blob():
    client, server = pair("ef(topk(0.1))")
    result = server.close_round()
    assert not result.update.any()
    assert not result.applied.any()
    assert (result.sum_weights, result.num_received, result.accepted) == (0.0, 0, ())
    assert gw.decode(result.blob).sum_weights == 0.0
    assert not client.end_round(result.blob).any()
    assert client.round == server.round == 1


def test_large_weights_of_small_updates():
    """Weights are allowed up to 2^127 each: many of them must still give a mean."""
    server = gw.Server(gw.dense(), LAYOUT)
    for i in range(4):
        server.receive(gw.Client(gw.dense(), LAYOUT, client_id=i).compress(np.full(D, 1e-3, np.float32)), i, 1.5e19)
    assert np.allclose(server.close_round().update, 1e-3)


def test_tiny_weights_give_the_same_mean():
    """A common factor of the weights does not matter."""
    u = vector(0) * np.float32(1e-4)
    for scale in (1.0, 1e-10, 1e-18, 1e18):
        server = gw.Server(gw.dense(), LAYOUT)
        for i, w in enumerate((1.0, 3.0)):
            server.receive(gw.Client(gw.dense(), LAYOUT, client_id=i).compress(u * np.float32(i + 1)), i, w * scale)
        error = np.abs(server.close_round().update - u * np.float32(7 / 4)).max()
        assert error <= 1e-5 * np.abs(u).max(), f"weights times {scale}: off by {error / np.abs(u).max()}"


@pytest.mark.parametrize("weight", [2.0**-64, 1e-10, 1.0])
def test_how_small_an_entry_may_be(weight):
    """What is added is weight * entry in float32: each loses at most half of 2^-149, and half an ulp from 2^-126 up."""
    entries = np.float32(10.0) ** np.arange(-38, 1, dtype=np.float32)
    layout = gw.Layout.flat(entries.size)
    server = gw.Server(gw.dense(), layout)
    for i in range(2):
        server.receive(gw.Client(gw.dense(), layout, client_id=i).compress(entries), i, weight)
    error = np.abs(server.close_round().update.astype(np.float64) - entries)
    assert (error <= 2.0**-149 / weight + 2.0**-22 * entries).all()
    exact = weight * entries >= 2.0**-126
    assert exact[-18:].all()
    assert (error[exact] <= 2.0**-22 * entries[exact]).all()


# --- step, downlink and reference -----------------------------------------------------------------


def test_step_runs_on_the_mean():
    seen = []

    def step(update: np.ndarray) -> np.ndarray:
        seen.append(update.copy())
        update *= 0  # a step may scribble on what it is given
        return -0.5 * seen[-1]

    client, server = pair("dense()", step=step)
    u = vector(0)
    server.receive(client.compress(u))
    result = server.close_round()
    assert np.array_equal(seen[0], u)
    assert np.array_equal(result.update, u)
    assert np.array_equal(result.applied, np.float32(-0.5) * u)
    assert np.array_equal(client.end_round(result.blob), result.applied)


def test_step_may_return_other_floats():
    for convert in (lambda x: x.astype(np.float64), lambda x: torch.from_numpy(x), lambda x: x[::-1]):
        _, server = pair("dense()", step=convert)
        assert server.close_round().applied.shape == (D,)


@pytest.mark.parametrize(
    "bad",
    [lambda x: None, lambda x: x[:-1], lambda x: x * np.nan, lambda x: x.astype(int), lambda x: 3.0],
    ids=["None", "short", "nan", "ints", "number"],
)
def test_a_bad_step_leaves_the_round_open(bad):
    client, server = pair("ef(topk(0.1))", step=bad)
    server.receive(client.compress(vector(0)))
    before = server.state_dict()
    with pytest.raises(gw.UpdateError):
        server.close_round()
    assert same(server.state_dict(), before)
    server.step = None
    assert server.close_round().num_received == 1


def test_a_step_that_raises_leaves_the_round_open():
    def step(update: np.ndarray) -> np.ndarray:
        raise KeyError("optimiser")

    client, server = pair(step=step)
    server.receive(client.compress(vector(0)))
    before = server.state_dict()
    with pytest.raises(KeyError):
        server.close_round()
    assert same(server.state_dict(), before)


@pytest.mark.parametrize("downlink", ["dense()", "topk(0.2)", "fp16()", "uniform(4)", "ef(topk(0.1))", "randk(0.3)"])
def test_applied_is_what_the_blob_gives(downlink):
    client, server = pair("dense()", downlink=gw.parse(downlink))
    model_client, model_server = np.zeros(D, np.float32), np.zeros(D, np.float32)
    for r in range(5):
        server.receive(client.compress(vector(r)))
        result = server.close_round()
        assert np.array_equal(gw.decompress(gw.decode(result.blob)), result.applied)
        applied = client.end_round(result.blob)
        assert applied.tobytes() == result.applied.tobytes()
        model_client += applied
        model_server += result.applied
    assert model_client.tobytes() == model_server.tobytes()
    assert np.array_equal(result.update, vector(4)), "the mean itself is not what the downlink made of it"


def test_result_arrays_are_their_own():
    client, server = pair("dense()")
    server.receive(client.compress(vector(0)))
    first = server.close_round()
    update, applied = first.update.copy(), first.applied.copy()
    first.update[:] = 7
    assert np.array_equal(first.applied, applied)
    first.update[:] = update
    server.receive(client.compress(vector(1), round=1))
    server.close_round()
    assert np.array_equal(first.update, update)
    assert np.array_equal(first.applied, applied)


def test_dense_downlink_is_lossless_and_skips_zeros():
    layout = gw.Layout.flat(100_000)
    u = np.zeros(100_000, np.float32)
    u[[5, 99_999]] = [1.5, -2e-42]
    u[7] = -0.0
    server = gw.Server(gw.topk(0.01), layout)
    server.receive(gw.Client(gw.topk(0.01), layout).compress(u))
    result = server.close_round()
    assert np.array_equal(result.applied, u)
    assert len(result.blob) < 60, "zeros are not sent where a sparse support is cheaper"
    assert not np.signbit(result.applied[7])


# --- rounds and delivery --------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_a_conversation(spec):
    client, server = pair(spec)
    for r in range(6):
        assert client.round == server.round == r
        assert client.sequence == r
        blob = client.compress(vector(r))
        assert client.pending == (blob,)
        assert gw.inspect(blob)["round"] == r
        assert gw.inspect(blob)["sequence"] == r
        server.receive(blob)
        result = server.close_round()
        assert result.accepted == ((0, r),)
        client.end_round(result.blob)
        assert client.pending == ()


def test_round_argument_joins_a_later_round():
    client, server = pair("ef(topk(0.1))")
    late = gw.Client(server.compressor, LAYOUT, client_id=9, seed=3)
    for r in range(3):
        server.receive(client.compress(vector(r)))
        client.end_round(server.close_round().blob)
    with pytest.raises(gw.ProtocolError, match="round 0"):
        server.receive(late.compress(vector(9)), 9)
    late = gw.Client(server.compressor, LAYOUT, client_id=9, seed=3)
    blob = late.compress(vector(9), round=server.round)
    server.receive(blob, 9)
    result = server.close_round()
    assert result.accepted == ((9, 0),)
    assert np.array_equal(late.end_round(result.blob), result.applied)
    assert late.round == 4


def test_the_last_blob_alone_restores_sync():
    client, server = pair("randk(0.2)")
    always = gw.Client(server.compressor, LAYOUT, client_id=1, seed=3)
    for r in range(4):
        server.receive(always.compress(vector(r)), 1)
        last = server.close_round().blob
        always.end_round(last)
    client.end_round(last)
    assert client.round == server.round == 4
    server.receive(client.compress(vector(7)), 0)
    assert server.close_round().accepted == ((0, 0),)


@pytest.mark.parametrize("bad", [-1, 1.5, "0", True, float("nan"), 2**64, 2**70])
@pytest.mark.parametrize("spec", ["topk(0.1)", "ef(randk(0.2))"])
def test_round_is_checked(bad, spec):
    client, _ = pair(spec)
    before = client.state_dict()
    with pytest.raises(gw.ConfigError, match="round"):
        client.compress(vector(0), round=bad)
    assert same(client.state_dict(), before)


def test_not_delivered_goes_back_into_the_residual():
    client, server = pair("ef(topk(0.1) | uniform(4))")
    u = vector(0)
    blob = client.compress(u)
    residual = client.state_dict()["residual"]
    assert np.array_equal(residual, u - gw.decompress(gw.decode(blob)))
    client.end_round(server.close_round().blob, delivered=False)
    assert np.allclose(client.state_dict()["residual"], u, atol=1e-6)
    assert client.pending == ()


def test_without_error_feedback_what_is_lost_is_lost():
    client, server = pair("topk(0.1)")
    client.compress(vector(0))
    client.end_round(server.close_round().blob, delivered=False)
    assert client.state_dict()["residual"] is None


def test_duplicates_and_replays():
    client, server = pair("ef(topk(0.1))", max_staleness=0)
    blobs = []
    for r in range(3):
        blobs.append(client.compress(vector(r)))
        server.receive(blobs[-1])
        before = server.state_dict()
        for old in blobs:
            with pytest.raises(gw.Duplicate):
                server.receive(old)
        assert same(server.state_dict(), before)
        client.end_round(server.close_round().blob)
    for old in blobs:  # also after the round closed: the sender may forget it
        with pytest.raises(gw.Duplicate, match="payload"):
            server.receive(old)
    server.close_round()
    for old in blobs:
        with pytest.raises(gw.Duplicate):
            server.receive(old)
    with pytest.raises(gw.ProtocolError) as caught:
        server.receive(blobs[0], client_id=5)
    assert not isinstance(caught.value, gw.Duplicate), "of another client it is not known, but its round is closed"


def test_same_sequence_of_two_clients_is_no_duplicate():
    _, server = pair("dense()")
    for i in range(3):
        server.receive(gw.Client(gw.dense(), LAYOUT, client_id=i).compress(vector(i)), i)
    assert server.close_round().num_received == 3


def test_max_staleness():
    client, server = pair("topk(0.1)", max_staleness=2)
    old = [client.compress(vector(r), round=r) for r in range(3)]
    for _ in range(3):
        server.close_round()
    assert server.round == 3
    with pytest.raises(gw.ProtocolError, match=r"round 0, expected 3"):
        server.receive(old[0])
    server.receive(old[2])
    server.receive(old[1])
    result = server.close_round()
    assert result.accepted == ((0, 2), (0, 1))
    with pytest.raises(gw.Duplicate):
        server.receive(old[1])


def test_num_clients_bounds_client_ids():
    client, server = pair("topk(0.1)", num_clients=2)
    blob = client.compress(vector(0))
    with pytest.raises(gw.ProtocolError, match="client_id"):
        server.receive(blob, 2)
    server.receive(blob, 1)


def test_many_sequences_in_any_order():
    """The memory of what was counted must be right however the numbers arrive."""
    client, server = pair("topk(0.1)", max_staleness=0, payloads_per_round=None)
    blobs = [client.compress(vector(i)) for i in range(40)]
    order = np.random.default_rng(0).permutation(40)
    for n, i in enumerate(order):
        server.receive(blobs[i])
        for j in order[: n + 1]:
            with pytest.raises(gw.Duplicate):
                server.receive(blobs[j])
    assert sorted(s for _, s in server.close_round().accepted) == list(range(40))
    assert len(server.state_dict()["counted"][0][1]) == 1, "runs are merged"


# --- bad input: a named error and no state changed (law 6) ----------------------------------------


def _history(spec: str) -> tuple[gw.Client, gw.Server, bytes, bytes]:
    """A client and a server in the middle of round 2, with a blob of round 1 and the last downlink blob."""
    client, server = pair(spec)
    for r in range(2):
        old = client.compress(vector(r))
        server.receive(old)
        last = server.close_round().blob
        client.end_round(last)
    return client, server, old, last


BAD_UPDATES: dict[str, Callable[[], Any]] = {
    "nan": lambda: np.where(np.arange(D) == 3, np.nan, vector(0)).astype(np.float32),
    "inf": lambda: np.where(np.arange(D) == 3, np.inf, vector(0)).astype(np.float32),
    "-inf": lambda: np.where(np.arange(D) == 3, -np.inf, vector(0)).astype(np.float32),
    "torch nan": lambda: torch.full((D,), float("nan")),
    "short": lambda: vector(0, D - 1),
    "long": lambda: vector(0, D + 1),
    "matrix": lambda: vector(0).reshape(6, 10),
    "ints": lambda: np.ones(D, np.int64),
    "bools": lambda: np.ones(D, bool),
    "complex": lambda: np.ones(D, complex),
    "objects": lambda: np.array([None] * D),
    "float64 beyond float32": lambda: np.full(D, 1e300),
    "None": lambda: None,
    "text": lambda: "update",
    "torch ints": lambda: torch.ones(D, dtype=torch.int32),
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("bad", BAD_UPDATES)
def test_bad_update(spec, bad):
    client, *_ = _history(spec)
    before = client.state_dict()
    with pytest.raises(gw.UpdateError):
        client.compress(BAD_UPDATES[bad]())
    assert same(client.state_dict(), before)
    twin = gw.Client(client.compressor, LAYOUT, client_id=0, seed=3)
    twin.load_state_dict(before)
    assert client.compress(vector(5)) == twin.compress(vector(5)), "as if nothing had happened"


def test_bad_options_of_compress_change_nothing():
    client, *_ = _history("ef(topk(0.1))")
    before = client.state_dict()
    for options in ({"weight": 0}, {"num_bytes": 0}, {"num_bytes": 2.5}, {"round": -1}):
        with pytest.raises(gw.ConfigError):
            client.compress(vector(0), **options)
        assert same(client.state_dict(), before)


@pytest.mark.parametrize("spec", [s for s in SPECS if s.startswith("ef(")])
def test_a_refused_budget_gives_the_residual_back_to_float32_rounding(spec):
    client, *_ = _history(spec)
    before = client.state_dict()
    update = vector(0)
    with pytest.raises(gw.ConfigError, match="num_bytes"):
        client.compress(update, num_bytes=3)
    after = client.state_dict()
    scale = np.abs(before["residual"]).max() + np.abs(update).max()
    assert np.abs(after.pop("residual") - before.pop("residual")).max() <= 1e-6 * scale
    assert same(after, before)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_a_residual_that_would_overflow(decay):
    """Each update is finite, residual + update is not: an UpdateError, and the residual as it was."""
    client = gw.Client(gw.ef(gw.topk(0.25), decay=decay), gw.Layout.flat(4))
    client.compress(np.array([3.3e38, 3e38, 1e-3, 1], np.float32))
    before = client.state_dict()
    assert before["residual"][1] == np.float32(3e38)
    with pytest.raises(gw.UpdateError, match="index 1"):
        client.compress(np.array([0, 3.3e38, 0, 0], np.float32))
    after = client.state_dict()
    assert np.allclose(after.pop("residual"), before.pop("residual"), rtol=1e-6)
    assert same(after, before)


def test_taking_back_what_overflows_is_not_infinite():
    client = gw.Client(gw.ef(gw.topk(0.25)), gw.Layout.flat(4))
    server = gw.Server(gw.ef(gw.topk(0.25)), gw.Layout.flat(4))
    for _ in range(2):
        client.compress(np.array([0, 3e38, 0, 0], np.float32))
    with contextlib.suppress(gw.GradwireError):
        client.end_round(server.close_round().blob, delivered=False)
    assert np.isfinite(client.state_dict()["residual"]).all()


def test_client_keeps_working_with_a_huge_unbiased_value():
    """randk(unbiased) multiplies by d/k: a finite update must never become a blob that nobody can read."""
    client, _ = pair("randk(0.1, unbiased=True)")
    try:
        blob = client.compress(np.full(D, 1e38, np.float32))
    except gw.UpdateError:
        return
    gw.decode(blob)


def _other_layout_blob(spec: str) -> bytes:
    layout = gw.Layout.from_arrays({"w": np.zeros((6, 10), np.float32)})
    return gw.Client(gw.parse(spec), layout, seed=3).compress(vector(0), round=2)


BAD_BLOBS: dict[str, tuple[type[Exception], Callable[[gw.Client, gw.Server, bytes, bytes], Any]]] = {
    "truncated": (gw.DecodeError, lambda c, s, old, last: c.compress(vector(2))[:-1]),
    "truncated with the right checksum": (gw.DecodeError, lambda c, s, old, last: repaired(c.compress(vector(2))[:-9])),
    "empty": (gw.Truncated, lambda c, s, old, last: b""),
    "damaged": (gw.BadChecksum, lambda c, s, old, last: c.compress(vector(2))[:-1] + b"\0"),
    "foreign": (gw.DecodeError, lambda c, s, old, last: b"PK\x03\x04" * 9),
    "replayed": (gw.Duplicate, lambda c, s, old, last: old),
    "downlink": (gw.ProtocolError, lambda c, s, old, last: last),
    "closed round": (gw.ProtocolError, lambda c, s, old, last: c.compress(vector(2), round=1)),
    "round to come": (gw.ProtocolError, lambda c, s, old, last: c.compress(vector(2), round=3)),
    "wrong layout": (gw.ProtocolError, lambda c, s, old, last: _other_layout_blob(str(c.compressor))),
    "wrong d": (
        gw.GradwireError,
        lambda c, s, old, last: gw.Client(gw.dense(), gw.Layout.flat(3)).compress(np.ones(3, np.float32), round=2),
    ),
    "larger d": (
        gw.GradwireError,
        lambda c, s, old, last: gw.Client(gw.dense(), gw.Layout.flat(99)).compress(vector(0, 99), round=2),
    ),
    "not bytes": (gw.GradwireError, lambda c, s, old, last: "blob"),
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("bad", BAD_BLOBS)
def test_bad_blob_at_the_server(spec, bad):
    client, server, old, last = _history(spec)
    error, make = BAD_BLOBS[bad]
    other = gw.Client(client.compressor, LAYOUT, client_id=1, seed=3)
    server.receive(other.compress(vector(9), round=2), 1)
    blob = make(client, server, old, last)
    before = server.state_dict()
    with pytest.raises(error):
        server.receive(blob, 0)
    assert same(server.state_dict(), before)


@pytest.mark.parametrize("client_id", [-1, 1.5, "0", None, True])
def test_bad_client_id(client_id):
    client, server = pair()
    blob = client.compress(vector(0))
    before = server.state_dict()
    with pytest.raises(gw.GradwireError, match="client_id"):
        server.receive(blob, client_id)
    assert same(server.state_dict(), before)
    with pytest.raises(gw.ConfigError, match="client_id"):
        gw.Client(gw.topk(0.1), LAYOUT, client_id=client_id)


BAD_DOWNLINKS: dict[str, tuple[type[Exception], Callable[[bytes, bytes, bytes], Any]]] = {
    "uplink": (gw.ProtocolError, lambda up, first, last: up),
    "truncated": (gw.DecodeError, lambda up, first, last: last[:-2]),
    "truncated with the right checksum": (gw.DecodeError, lambda up, first, last: repaired(last[:-7])),
    "damaged": (gw.BadChecksum, lambda up, first, last: last[:-1] + bytes([last[-1] ^ 1])),
    "empty": (gw.Truncated, lambda up, first, last: b""),
    "of a round ended before": (gw.ProtocolError, lambda up, first, last: first),
    "again the last one": (gw.ProtocolError, lambda up, first, last: last),
    "wrong layout": (
        gw.ProtocolError,
        lambda up, first, last: (
            gw.Server(gw.dense(), gw.Layout.from_arrays({"w": np.zeros((6, 10), np.float32)})).close_round().blob
        ),
    ),
    "wrong d": (gw.GradwireError, lambda up, first, last: gw.Server(gw.dense(), gw.Layout.flat(3)).close_round().blob),
    "larger d": (
        gw.GradwireError,
        lambda up, first, last: gw.Server(gw.dense(), gw.Layout.flat(99)).close_round().blob,
    ),
    "not bytes": (gw.GradwireError, lambda up, first, last: None),
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("delivered", [True, False])
@pytest.mark.parametrize("bad", BAD_DOWNLINKS)
def test_bad_blob_at_the_client(spec, delivered, bad):
    client, server = pair(spec)
    downlinks = []
    for r in range(2):
        server.receive(client.compress(vector(r)))
        downlinks.append(server.close_round().blob)
        client.end_round(downlinks[-1])
    blob = client.compress(vector(2))
    before = client.state_dict()
    error, make = BAD_DOWNLINKS[bad]
    with pytest.raises(error):
        client.end_round(make(blob, *downlinks), delivered=delivered)
    assert same(client.state_dict(), before)


@pytest.mark.parametrize("delivered", [None, 1, "yes", 0.0])
def test_delivered_is_checked(delivered):
    client, server = pair("ef(topk(0.1))")
    client.compress(vector(0))
    before = client.state_dict()
    with pytest.raises(gw.ConfigError, match="delivered"):
        client.end_round(server.close_round().blob, delivered=delivered)
    assert same(client.state_dict(), before)


def test_sum_that_would_overflow_is_refused():
    _, server = pair("dense()")
    refused = 0
    for i in range(8):
        blob = gw.Client(gw.dense(), LAYOUT, client_id=i).compress(np.full(D, 1e38, np.float32))
        before = server.state_dict()
        try:
            server.receive(blob, i)
        except gw.ProtocolError as error:
            assert "overflow" in str(error)  # noqa: PT017
            assert same(server.state_dict(), before)
            refused += 1
    assert refused >= 5
    result = server.close_round()
    assert np.isfinite(result.update).all()
    assert np.allclose(result.update, 1e38)
    big = gw.Client(gw.dense(), LAYOUT, client_id=9).compress(np.full(D, 1e30, np.float32), round=1)
    with pytest.raises(gw.ProtocolError, match="overflow"):
        server.receive(big, 9, weight=1e19)
    a, b = gw.Aggregator(LAYOUT), gw.Aggregator(LAYOUT)
    for aggregator in (a, b):
        aggregator.add(gw.decode(gw.Client(gw.dense(), LAYOUT).compress(np.full(D, 1e38, np.float32))))
    before_merge = a.mean()
    with pytest.raises(gw.ProtocolError):
        a.merge(b)
    assert np.array_equal(a.mean(), before_merge)


@pytest.mark.parametrize("make", [gw.Client, gw.Server])
def test_constructors_check(make):
    with pytest.raises(gw.ConfigError, match=r"gw\.parse"):
        make("topk(0.1)", LAYOUT)
    with pytest.raises(gw.ConfigError, match="layout"):
        make(gw.topk(0.1), 60)
    with pytest.raises(gw.ConfigError, match="num_clients"):
        gw.Server(gw.topk(0.1), LAYOUT, num_clients=0)
    with pytest.raises(gw.ConfigError, match="max_staleness"):
        gw.Server(gw.topk(0.1), LAYOUT, max_staleness=-1)
    with pytest.raises(gw.ConfigError, match="step"):
        gw.Server(gw.topk(0.1), LAYOUT, step=3)
    with pytest.raises(gw.ConfigError, match="downlink"):
        gw.Server(gw.topk(0.1), LAYOUT, downlink="topk(0.1)")


def test_inputs_of_every_kind_give_the_same_bytes():
    u = vector(0).astype(np.float16).astype(np.float32)
    u = torch.from_numpy(u).to(torch.bfloat16).to(torch.float32).numpy()
    blobs = set()
    kinds = [u, u.astype(np.float64), u.astype(np.float16), u.astype(">f4"), torch.from_numpy(u.copy()),
             torch.from_numpy(u.copy()).to(torch.bfloat16), torch.from_numpy(u.copy()).double(),
             torch.from_numpy(u.copy()).requires_grad_(), np.repeat(u, 2)[::2]]  # fmt: skip
    for kind in kinds:
        blobs.add(gw.Client(gw.ef(gw.topk(0.2)), LAYOUT).compress(kind))
    assert len(blobs) == 1


def test_updates_of_the_caller_are_never_modified():
    for spec in SPECS:
        client, server = pair(spec, payloads_per_round=None)
        u = vector(0)
        t = torch.from_numpy(u.copy())
        server.receive(client.compress(u))
        server.receive(client.compress(t))
        client.end_round(server.close_round().blob, delivered=False)
        client.compress(vector(1))
        assert np.array_equal(u, vector(0))
        assert np.array_equal(t.numpy(), u)


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_client_state(spec):
    client, server, *_ = _history(spec)
    client.compress(vector(2))
    state = client.state_dict()
    named = {"format", "spec", "client_id", "seed", "round", "sequence", "residual", "pending", "layout"}
    assert named <= set(state)
    assert is_plain(state)
    assert state["spec"] == spec
    assert (state["client_id"], state["seed"], state["round"], state["sequence"]) == (0, 3, 2, 3)
    if spec.startswith("ef("):
        assert state["residual"].shape == (D,)
        assert state["residual"].dtype == np.float32
    frozen = copy.deepcopy(state)
    restored = gw.Client(gw.parse(spec), LAYOUT, client_id=0, seed=3)
    restored.load_state_dict(state)
    assert same(restored.state_dict(), state)
    assert restored.pending == client.pending
    for r in range(2, 5):
        a, b = client.compress(vector(10 + r)), restored.compress(vector(10 + r))
        assert a == b, "same next bytes"
        server.receive(a)
        result = server.close_round()
        assert np.array_equal(client.end_round(result.blob, r != 3), restored.end_round(result.blob, r != 3))
    assert same(state, frozen), "neither reading nor loading a state changes it afterwards"
    assert same(client.state_dict(), restored.state_dict())


def test_client_state_is_a_copy():
    client, *_ = _history("ef(topk(0.1))")
    blob = client.compress(vector(2))
    state = client.state_dict()
    untouched = client.state_dict()

    def scribble(value: Any) -> int:
        """Overwrite every array and empty every list and dict; the number of arrays."""
        if isinstance(value, np.ndarray):
            value[...] = 7
            return 1
        if not isinstance(value, (dict, list)):
            return 0
        count = sum(map(scribble, value.values() if isinstance(value, dict) else value))
        value.clear()
        return count

    assert scribble(state) >= 3, "the residual, what is pending, the reference"
    assert same(client.state_dict(), untouched)
    assert client.pending == (blob,)


@pytest.mark.parametrize("spec", SPECS)
def test_server_state(spec):
    options = {"downlink": gw.ef(gw.topk(0.2)), "max_staleness": 1}
    client, server = pair(spec, **options)
    other = gw.Client(client.compressor, LAYOUT, client_id=4, seed=3)
    for r in range(2):
        server.receive(client.compress(vector(r)), 0, 2.0)
        client.end_round(server.close_round().blob)
    first = client.compress(vector(2))
    server.receive(first, 0, 2.0)
    state = server.state_dict()
    assert is_plain(state)
    frozen = copy.deepcopy(state)
    restored = gw.Server(gw.parse(spec), LAYOUT, seed=3, **options)
    restored.load_state_dict(state)
    assert same(restored.state_dict(), state)
    late = other.compress(vector(7), round=2)
    for s in (server, restored):
        with pytest.raises(gw.Duplicate):
            s.receive(first, 0, 2.0)
        s.receive(late, 4, 0.5)
    a, b = server.close_round(), restored.close_round()
    assert a.blob == b.blob
    assert a.accepted == b.accepted == ((0, 2), (4, 0))
    assert a.sum_weights == b.sum_weights == 2.5
    assert np.array_equal(a.update, b.update)
    assert server.close_round().blob == restored.close_round().blob
    assert same(state, frozen)
    state["sum"][:] = 7
    assert same(server.state_dict(), restored.state_dict())


def test_states_of_something_else_are_refused():
    client, server, *_ = _history("ef(topk(0.1))")
    state, server_state = client.state_dict(), server.state_dict()
    others = {
        "spec": gw.Client(gw.ef(gw.topk(0.2)), LAYOUT),
        "layout": gw.Client(gw.ef(gw.topk(0.1)), gw.Layout.flat(D + 1)),
        "client": gw.Client(gw.ef(gw.topk(0.1)), LAYOUT, client_id=1),
    }
    for what, other in others.items():
        before = other.state_dict()
        with pytest.raises(gw.StateError, match=what):
            other.load_state_dict(state)
        assert same(other.state_dict(), before)
    servers = {
        "spec": gw.Server(gw.topk(0.1), LAYOUT),
        "layout": gw.Server(gw.ef(gw.topk(0.1)), gw.Layout.flat(D + 1)),
        "downlink": gw.Server(gw.ef(gw.topk(0.1)), LAYOUT, downlink=gw.fp16()),
    }
    for what, other_server in servers.items():
        before = other_server.state_dict()
        with pytest.raises(gw.StateError, match=what):
            other_server.load_state_dict(server_state)
        assert same(other_server.state_dict(), before)
    with pytest.raises(gw.StateError):
        client.load_state_dict(server_state)
    with pytest.raises(gw.StateError):
        server.load_state_dict(state)


SPOILT = [None, "x", -1, 1.5, float("nan"), float("inf"), [], {}, [[]], [{}], [300], np.zeros(3, np.float32), 2**70]


@pytest.mark.parametrize("end", ["client", "server"])
def test_damaged_states_are_refused_or_harmless(end):
    """Every entry replaced by nonsense: a StateError that changes nothing, or a state that works."""
    reports = []
    client, server, *_ = _history("ef(topk(0.1))")
    client.compress(vector(2))
    good = client.state_dict() if end == "client" else server.state_dict()
    for name in good:
        for value in [*SPOILT, "missing"]:
            state = copy.deepcopy(good)
            if isinstance(value, str) and value == "missing":
                del state[name]
            else:
                state[name] = value
            c = gw.parse("ef(topk(0.1))")
            target: Any = gw.Client(c, LAYOUT, seed=3) if end == "client" else gw.Server(c, LAYOUT, seed=3)
            before = target.state_dict()
            try:
                target.load_state_dict(state)
                target.state_dict()
                if end == "client":
                    gw.decode(target.compress(vector(0)))
                else:
                    gw.decode(target.close_round().blob)
            except gw.StateError:
                if not same(target.state_dict(), before):
                    reports.append(f"{name}={value!r}: changed")
            except Exception as error:
                reports.append(f"{name}={value!r}: {type(error).__name__}: {error}")
    assert not reports, "\n".join(reports)


@pytest.mark.parametrize("bad", [None, [], "state", 7, {}])
def test_what_is_no_state(bad):
    client, server = pair()
    for end in (client, server):
        with pytest.raises(gw.StateError):
            end.load_state_dict(bad)


def test_aggregator_state():
    a, b = gw.Aggregator(LAYOUT), gw.Aggregator(LAYOUT)
    a.add(gw.decode(gw.Client(gw.dense(), LAYOUT).compress(vector(0))), 2.0)
    state = a.state_dict()
    b.load_state_dict(state)
    assert same(b.state_dict(), state)
    assert np.array_equal(a.mean(), b.mean())
    for bad in ({}, state | {"sum": np.zeros(3, np.float32)}, state | {"sum_weights": None}):
        with pytest.raises(gw.StateError):
            b.load_state_dict(bad)
        assert same(b.state_dict(), state)


def test_a_residual_that_is_not_finite_is_refused():
    client, *_ = _history("ef(topk(0.1))")
    state = client.state_dict()
    state["residual"][3] = np.nan
    with pytest.raises(gw.StateError):
        client.load_state_dict(state)
