"""powersgd against torch's own mathematics, the best approximation there is, and factors on the wire."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import _orthogonalize

import gradwire as gw
from gradwire.compressors.lowrank import _orthonormal, powersgd
from gradwire.payload import Every, Explicit, Factors, Floats
from gradwire.wire.packets import cut_packets
from gradwire.wire.reader import varint

F32_MAX = float(np.finfo(np.float32).max)
SHAPES = {
    "conv": (8, 6, 3, 3),
    "bias": (8,),
    "scalar": (),
    "empty": (0, 5),
    "fc": (40, 30),
    "small": (3, 3),
    "row": (1, 50),
    "tall": (200, 5),
    "bn.running_mean": (8,),
    "bn.running_var": (20, 20),
}


def layout_of(**shapes: tuple[int, ...]) -> gw.Layout:
    return gw.Layout.from_arrays({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


LAYOUT = gw.Layout.from_arrays({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})


def normal(d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(d).astype(np.float32)


def is_factored(shape: tuple[int, ...], rank: int) -> bool:
    m, n = (shape[0], int(np.prod(shape[1:]))) if len(shape) >= 2 else (0, 0)
    return (m + n) * rank < m * n


def torch_step(matrix: np.ndarray, q: np.ndarray) -> np.ndarray:
    """One step of torch's PowerSGD hook on one worker, in float64: P = MQ, orthogonalise, Q = M^T P, P Q^T."""
    tensor, q_before = (torch.from_numpy(x.astype(np.float64)).unsqueeze(0) for x in (matrix, q))
    p = torch.bmm(tensor, q_before)
    _orthogonalize(p)
    q_after = torch.bmm(tensor.transpose(1, 2), p)
    return torch.bmm(p, q_after.transpose(1, 2))[0].numpy()


def best_error(matrix: np.ndarray, rank: int) -> float:
    """Eckart and Young: the distance to the nearest matrix of this rank."""
    return float(np.linalg.norm(np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[rank:]))


def run_phases(compressor: gw.Compressor, updates: list[np.ndarray], states: list[gw.State]) -> list:
    """Run every worker's generator in step, as an all-reduce does; (result, state) of each."""
    workers = [
        compressor.phases(u, s, gw.Round(num_workers=len(updates))) for u, s in zip(updates, states, strict=True)
    ]
    sent = [next(w) for w in workers]
    while True:
        total = np.sum(sent, axis=0, dtype=np.float32)
        ended, sent = [], []
        for worker in workers:
            try:
                sent.append(worker.send(total.copy()))
            except StopIteration as stop:
                ended.append(stop.value)
        assert not (ended and sent), "workers take the same number of exchanges"
        if ended:
            return ended


# --- what it computes -----------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (16, 8, 3, 3), (200, 12)])
def test_same_as_torchs_hook(rank, shape):
    layout, compressor = layout_of(w=shape), powersgd(rank)
    state = compressor.init(layout)
    q = state.memory["q"].reshape(-1, rank).copy()
    assert q.min() >= -1
    assert q.max() < 1
    assert abs(q.mean()) < 0.3
    for step in range(4):
        update = normal(layout.d, step)
        expected = torch_step(update.reshape(shape[0], -1), q)
        payload, state = compressor.compress(update, state)
        got = gw.decompress(payload).reshape(shape[0], -1)
        assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)
        q = state.memory["q"].reshape(-1, rank).copy()


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_warm_start_finds_the_best_approximation(rank):
    rng = np.random.default_rng(rank)
    u, _, vt = np.linalg.svd(rng.standard_normal((60, 45)), full_matrices=False)
    matrix = ((u * 0.7 ** np.arange(45)) @ vt).astype(np.float32)
    layout, compressor = layout_of(w=matrix.shape), powersgd(rank)
    state, errors = compressor.init(layout), []
    for _ in range(12):
        payload, state = compressor.compress(matrix.reshape(-1), state)
        errors.append(float(np.linalg.norm(matrix.reshape(-1) - gw.decompress(payload).astype(np.float64))))
    best = best_error(matrix, rank)
    assert best * (1 - 1e-6) <= errors[-1] <= 1.01 * best
    assert errors[-1] <= errors[0]


@pytest.mark.parametrize("true_rank", [1, 2, 3])
def test_exact_for_matrices_of_low_rank(true_rank):
    rng = np.random.default_rng(3)
    matrix = (rng.standard_normal((50, true_rank)) @ rng.standard_normal((true_rank, 40))).astype(np.float32)
    layout, compressor = layout_of(w=matrix.shape), powersgd(3)
    payload, _ = compressor.compress(matrix.reshape(-1), compressor.init(layout))
    error = np.linalg.norm(gw.decompress(payload) - matrix.reshape(-1)) / np.linalg.norm(matrix)
    assert error < 1e-6
    assert payload.parts[0].values.p.shape == (50, true_rank), "columns that depend on others are not sent"


def test_what_is_factored_and_what_is_not():
    compressor = powersgd(2)
    update = normal(LAYOUT.d)
    payload, state = compressor.compress(update, compressor.init(LAYOUT))
    arrays, sent = LAYOUT.unflatten(update), LAYOUT.unflatten(gw.decompress(gw.decode(gw.encode(payload))))
    factored = {t.name for t in LAYOUT.tensors if not t.buffer and is_factored(t.shape, 2)}
    assert factored == {"conv", "fc", "tall"}
    for name in SHAPES:
        assert np.array_equal(arrays[name], sent[name]) == (name not in factored), name
    found = [p.values for p in payload.parts if isinstance(p.values, Factors)]
    assert [(f.p.shape, f.q.shape) for f in found] == [((8, 2), (54, 2)), ((40, 2), (30, 2)), ((200, 2), (5, 2))]
    for f in found:
        assert np.allclose(f.p.T @ f.p, np.eye(2), atol=1e-6)
    assert state.memory["q"].shape == (2 * (54 + 30 + 5),)


@pytest.mark.parametrize("d", [0, 1, 1000])
def test_flat_layouts_are_sent_whole(d):
    compressor, layout, update = powersgd(1), gw.Layout.flat(d), normal(d)
    payload, state = compressor.compress(update, compressor.init(layout))
    assert state.memory["q"].size == 0
    assert np.array_equal(gw.decompress(gw.decode(gw.encode(payload))), update)


def test_parameters_and_text():
    assert str(powersgd(2)) == "powersgd(2)"
    assert gw.parse("ef(powersgd(2))") == gw.ef(powersgd(2))
    assert powersgd(1).guarantee(10) == gw.Contractive(0.0)
    assert powersgd(1).summable
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(gw.ConfigError, match="rank"):
            powersgd(wrong)
    with pytest.raises(gw.ConfigError):
        powersgd(1) | gw.fp16()


# --- every update ---------------------------------------------------------------------------------


def hard_updates(d: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    spike = np.zeros(d, np.float32)
    spike[d // 2] = -3.0
    mixed = (rng.standard_normal(d) * 10.0 ** rng.integers(-40, 31, d)).astype(np.float32)
    mixed[::3] = 0
    return {
        "zeros": np.zeros(d, np.float32),
        "minus zeros": np.full(d, -0.0, np.float32),
        "equal": np.full(d, 0.7, np.float32),
        "spike": spike,
        "cauchy": np.clip(rng.standard_cauchy(d), -1e30, 1e30).astype(np.float32),
        "denormals": (rng.integers(-2000, 2001, d) * 2.0**-149).astype(np.float32),
        "one denormal": (rng.integers(-1, 2, d) * 2.0**-149).astype(np.float32),
        "tiny": (rng.standard_normal(d) * 1e-30).astype(np.float32),
        "huge": (normal(d).clip(-3, 3) * np.float32(1e38)).astype(np.float32),
        "largest": np.full(d, F32_MAX, np.float32),
        "largest of both signs": np.where(normal(d) > 0, F32_MAX, -F32_MAX).astype(np.float32),
        "mixed": mixed,
        "ties": np.where(np.arange(d) % 2, 1.0, -1.0).astype(np.float32),
    }


@pytest.mark.parametrize("name", hard_updates(10))
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_never_longer_than_the_update(name, rank):
    """Contractive(0), and the laws of the wire, on every kind of update, twice over with the warm start."""
    compressor = powersgd(rank)
    state = compressor.init(LAYOUT)
    update = hard_updates(LAYOUT.d)[name]
    update.setflags(write=False)
    squared = float(np.sum(update.astype(np.float64) ** 2))
    for _ in range(3):
        payload, state = compressor.compress(update, state)
        blob = gw.encode(payload)
        decoded = gw.decode(blob)
        assert decoded == payload
        assert gw.encode(decoded) == blob
        dense = gw.decompress(decoded)
        assert np.isfinite(dense).all()
        error = float(np.sum((update.astype(np.float64) - dense) ** 2))
        assert error <= squared * (1 + 1e-12)
        assert np.isfinite(state.memory["q"]).all()
        statistics = slice(LAYOUT.num_parameters, LAYOUT.d)
        assert np.array_equal(dense[statistics], update[statistics])
        out = normal(LAYOUT.d, 9)
        expected = out + dense * np.float32(0.37)
        gw.accumulate(out, decoded, 0.37)
        assert np.array_equal(out, expected)


def test_denormals_are_not_rounded_up():
    """A projection of halves of the least denormal would be rounded to a longer error than the matrix itself."""
    ones = np.float32([1, 0, -1, 1, 0, -1, 0, 1, 0])
    layout, compressor = layout_of(w=(3, 3)), powersgd(1)
    for update in (ones * np.float32(2.0**-149), ones * np.float32(2.0**-120)):
        state = compressor.init(layout)
        for _ in range(3):
            payload, state = compressor.compress(update, state)
            assert np.array_equal(gw.decompress(payload), update)
    assert isinstance(compressor.compress(ones, state)[0].parts[0].values, Factors)


def test_nearly_dependent_columns_come_out_orthonormal():
    rng = np.random.default_rng(0)
    steps = 1e-3 * 1e-3 ** (np.arange(6) / 3)
    columns = (rng.standard_normal((200, 1)) + steps * rng.standard_normal((200, 6))).astype(np.float32)
    p = _orthonormal(columns)
    used = p.any(axis=0)
    assert used.tolist() == [True] * 5 + [False], "the last one is not told from the others by float32"
    assert np.abs(p[:, used].T.astype(np.float64) @ p[:, used] - np.eye(5)).max() < 3e-7
    assert np.array_equal(_orthonormal(columns * np.float32(2.0**60)), p)
    assert not _orthonormal(np.zeros((5, 2), np.float32)).any()


def test_huge_numbers_are_still_factored_where_float32_holds_them():
    layout, compressor = layout_of(w=(40, 30)), powersgd(2)
    update = normal(1200).clip(-3, 3) * np.float32(1e35)
    payload, _ = compressor.compress(update, compressor.init(layout))
    assert isinstance(payload.parts[0].values, Factors)
    small, _ = compressor.compress(update * np.float32(1e-35), compressor.init(layout))
    ratio = gw.decompress(payload) / np.float32(1e35)
    assert np.allclose(ratio, gw.decompress(small), rtol=1e-4, atol=1e-6)


def test_columns_that_vanish_come_back():
    """A round without gradients, or with fewer directions, must not switch columns off for good."""
    layout, compressor, matrix = layout_of(w=(40, 30)), powersgd(2), normal(1200)
    rank_one = np.outer(normal(40), normal(30, 1)).reshape(-1).astype(np.float32)
    for before in (np.zeros(1200, np.float32), rank_one):
        _, state = compressor.compress(before, compressor.init(layout))
        payload, _ = compressor.compress(matrix, state)
        factors = payload.parts[0].values
        assert isinstance(factors, Factors)
        assert factors.p.shape == (40, 2)


def test_the_mean_of_clients_is_the_mean_of_their_projections():
    compressor = powersgd(2)
    clients = [gw.Client(compressor, LAYOUT, client_id=i) for i in range(3)]
    server, aggregator = gw.Server(compressor, LAYOUT), gw.Aggregator(LAYOUT)
    total = np.zeros(LAYOUT.d)
    for i, client in enumerate(clients):
        blob = client.compress(normal(LAYOUT.d, i), weight=i + 1.0)
        server.receive(blob, i, weight=i + 1.0)
        aggregator.add(gw.decode(blob), i + 1.0)
        total += gw.decompress(gw.decode(blob)).astype(np.float64) * (i + 1)
    result = server.close_round()
    assert np.allclose(result.update, total / 6, rtol=1e-5, atol=1e-6)
    assert np.array_equal(result.update, aggregator.mean())
    for client in clients:
        assert np.array_equal(client.end_round(result.blob), result.applied)


def test_powersgd_on_the_way_down():
    server = gw.Server(gw.dense(), LAYOUT, downlink=powersgd(2))
    client = gw.Client(gw.dense(), LAYOUT)
    for i in range(2):
        server.receive(client.compress(normal(LAYOUT.d, i)))
        result = server.close_round()
        assert np.array_equal(client.end_round(result.blob), result.applied)


def test_budget_is_met_or_refused():
    compressor = powersgd(1)
    state = compressor.init(LAYOUT)
    before = state.memory["q"].copy()
    with pytest.raises(gw.ConfigError, match="num_bytes must be at least"):
        compressor.compress(normal(LAYOUT.d), state, gw.Round(num_bytes=100))
    assert np.array_equal(state.memory["q"], before)
    payload, _ = compressor.compress(normal(LAYOUT.d), state, gw.Round(num_bytes=10_000))
    assert len(gw.encode(payload)) <= 10_000


# --- memory ---------------------------------------------------------------------------------------


def test_saved_client_goes_on_with_the_same_bytes():
    for compressor in (powersgd(2), gw.ef(powersgd(2))):
        client = gw.Client(compressor, LAYOUT, client_id=4)
        client.compress(normal(LAYOUT.d, 1))
        saved = client.state_dict()
        again = gw.Client(compressor, LAYOUT, client_id=4)
        again.load_state_dict(saved)
        fresh = gw.Client(compressor, LAYOUT, client_id=4)
        expected = client.compress(normal(LAYOUT.d, 2), round=1)
        assert again.compress(normal(LAYOUT.d, 2), round=1) == expected
        assert fresh.compress(normal(LAYOUT.d, 2), round=1) != expected, "the warm start is part of the state"
        spoilt = client.state_dict()
        spoilt["scheme"] = {name: array[:-1] for name, array in spoilt["scheme"].items()}
        with pytest.raises(gw.StateError):
            again.load_state_dict(spoilt)


def test_payload_and_state_share_nothing():
    compressor, update = powersgd(2), normal(LAYOUT.d)
    payload, state = compressor.compress(update, compressor.init(LAYOUT))
    blob = gw.encode(payload)
    update += 1
    state.memory["q"] += 1
    assert gw.encode(payload) == blob


def test_error_feedback_conserves():
    compressor = gw.ef(powersgd(2))
    client, server = gw.Client(compressor, LAYOUT), gw.Server(compressor, LAYOUT)
    raw, sent = np.zeros(LAYOUT.d), np.zeros(LAYOUT.d)
    for i in range(12):
        update = normal(LAYOUT.d, i)
        raw += update
        blob = client.compress(update)
        delivered = i % 3 != 1
        if delivered:
            server.receive(blob)
            sent += gw.decompress(gw.decode(blob))
        client.end_round(server.close_round().blob, delivered=delivered)
    left = client.state_dict()["residual"].astype(np.float64)
    assert np.linalg.norm(sent + left - raw) <= 1e-5 * np.linalg.norm(raw)


def test_error_feedback_sends_a_fixed_update_in_the_end():
    """The residual stays bounded: the mean of what is sent tends to the update."""
    layout = layout_of(w=(30, 20))
    compressor, update = gw.ef(powersgd(1)), normal(600)
    state, sent = compressor.init(layout), np.zeros(600)
    for _ in range(200):
        payload, state = compressor.compress(update, state)
        sent += gw.decompress(payload)
    assert np.linalg.norm(sent / 200 - update) < 0.15 * np.linalg.norm(update)


# --- phases ---------------------------------------------------------------------------------------


def test_phases_project_the_mean_on_a_shared_basis():
    compressor = powersgd(2)
    states = [compressor.init(LAYOUT) for _ in range(3)]
    for step in range(3):
        updates = [normal(LAYOUT.d, 10 * step + i) for i in range(3)]
        mean = np.mean([u.astype(np.float64) for u in updates], axis=0)
        before = states[0].memory["q"]
        ended = run_phases(compressor, updates, states)
        results, states = [r for r, _ in ended], [s for _, s in ended]
        for result, state in ended[1:]:
            assert result.tobytes() == results[0].tobytes(), "workers differ"
            assert state.memory["q"].tobytes() == states[0].memory["q"].tobytes()
        at = 0
        for tensor in LAYOUT.tensors:
            piece, got = mean[tensor.offset : tensor.stop], results[0][tensor.offset : tensor.stop]
            if not tensor.buffer and is_factored(tensor.shape, 2):
                matrix = piece.reshape(tensor.shape[0], -1)
                n = matrix.shape[1]
                basis, _ = np.linalg.qr(matrix @ before[at : at + 2 * n].reshape(n, 2).astype(np.float64))
                at += 2 * n
                expected = (basis @ (basis.T @ matrix)).reshape(-1)
                assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)
                ours = torch_step(matrix, before[at - 2 * n : at].reshape(n, 2)).reshape(-1)
                assert np.linalg.norm(got - ours) <= 1e-5 * np.linalg.norm(expected)
            else:
                assert np.allclose(got, piece, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
def test_equal_workers_get_what_one_client_sends(num_workers):
    compressor = powersgd(2)
    single, states = compressor.init(LAYOUT), [compressor.init(LAYOUT) for _ in range(num_workers)]
    for step in range(3):
        update = normal(LAYOUT.d, step)
        payload, single = compressor.compress(update, single)
        expected = gw.decompress(payload)
        ended = run_phases(compressor, [update] * num_workers, states)
        states = [state for _, state in ended]
        for result, state in ended:
            assert np.array_equal(result, ended[0][0])
            assert np.array_equal(state.memory["q"], ended[0][1].memory["q"])
            assert np.linalg.norm(result - expected) <= 1e-5 * np.linalg.norm(expected)


def test_phases_keep_the_residuals_in_the_mean():
    """Law 1 in phases, by hand: e = corrected - result at each worker is conserved in the mean over workers."""
    compressor = powersgd(1)
    states = [compressor.init(LAYOUT) for _ in range(3)]
    residuals = [np.zeros(LAYOUT.d, np.float32) for _ in range(3)]
    raw, sent = np.zeros(LAYOUT.d), np.zeros(LAYOUT.d)
    for step in range(5):
        updates = [normal(LAYOUT.d, 10 * step + i) for i in range(3)]
        raw += np.mean([u.astype(np.float64) for u in updates], axis=0)
        corrected = [u + e for u, e in zip(updates, residuals, strict=True)]
        ended = run_phases(compressor, corrected, states)
        states = [state for _, state in ended]
        residuals = [c - result for c, (result, _) in zip(corrected, ended, strict=True)]
        sent += ended[0][0]
    left = np.mean([e.astype(np.float64) for e in residuals], axis=0)
    assert np.linalg.norm(sent + left - raw) <= 1e-5 * np.linalg.norm(raw)


def test_phases_of_layouts_without_matrices_take_one_exchange():
    for d in (0, 5):
        layout = gw.Layout.flat(d)
        worker = powersgd(1).phases(normal(d), powersgd(1).init(layout), gw.Round(num_workers=2))
        assert np.array_equal(next(worker), normal(d))
        with pytest.raises(StopIteration) as stop:
            worker.send(normal(d) * 4)
        assert np.array_equal(stop.value.value[0], normal(d) * 2)


def test_phases_take_a_sum_that_is_overwritten_later():
    """The host may use one buffer for all exchanges."""
    compressor, layout = powersgd(2), layout_of(b=(5,), w=(20, 20))
    update = normal(layout.d)
    buffer = np.empty(layout.d, np.float32)
    worker = compressor.phases(update, compressor.init(layout), gw.Round())
    expected, _ = run_phases(compressor, [update], [compressor.init(layout)])[0]
    sent = next(worker)
    buffer[: sent.size] = sent
    sent[:] = np.nan
    sent = worker.send(buffer[: sent.size])
    buffer[:] = 7
    with pytest.raises(StopIteration) as stop:
        worker.send(sent)
    sent[:] = 7
    assert np.array_equal(stop.value.value[0], expected)


@pytest.mark.parametrize("wrong", ["nan", "short", "overflow"])
def test_phases_refuse_broken_sums(wrong):
    compressor = powersgd(2)
    state = compressor.init(LAYOUT)
    before = state.memory["q"].copy()
    worker = compressor.phases(normal(LAYOUT.d), state, gw.Round(num_workers=2))
    sent = next(worker)
    bad = {"nan": sent * np.nan, "short": sent[:-1], "overflow": np.full_like(sent, np.inf)}[wrong]
    with pytest.raises(gw.UpdateError, match="sum over the workers"):
        worker.send(bad)
    assert np.array_equal(state.memory["q"], before)
    with pytest.raises(gw.UpdateError):
        next(compressor.phases(np.full(LAYOUT.d, F32_MAX, np.float32), state, gw.Round()))


@pytest.mark.parametrize("name", ["zeros", "spike", "denormals", "one denormal", "tiny", "mixed", "equal"])
def test_phases_of_hard_updates(name):
    compressor, update = powersgd(2), hard_updates(LAYOUT.d)[name]
    states = [compressor.init(LAYOUT) for _ in range(2)]
    for _ in range(3):
        ended = run_phases(compressor, [update, update], states)
        states = [state for _, state in ended]
        error = np.sum((update.astype(np.float64) - ended[0][0]) ** 2)
        assert error <= np.sum(update.astype(np.float64) ** 2) * (1 + 1e-6) + LAYOUT.d * (16 * 2.0**-149) ** 2
        assert np.isfinite(states[0].memory["q"]).all()


# --- the same bytes everywhere --------------------------------------------------------------------

SCRIPT = """
import hashlib, numpy as np, gradwire as gw
from gradwire.compressors.lowrank import _orthonormal, _product, _transposed_product, powersgd
layout = gw.Layout.from_arrays({"a": np.zeros((700, 900), np.float32), "b": np.zeros((3000, 40), np.float32)})
client = gw.Client(gw.ef(powersgd(3)), layout)
digest = hashlib.sha256()
for i in range(3):
    blob = client.compress(np.random.default_rng(i).standard_normal(layout.d).astype(np.float32))
    digest.update(blob + gw.decompress(gw.decode(blob)).tobytes())
matrix, thin = (np.random.default_rng(9).standard_cauchy(s).astype(np.float32) for s in ((900, 700), (900, 3)))
for exact in (_product(matrix.T, thin), _transposed_product(matrix, thin), _orthonormal(thin)):
    digest.update(np.ascontiguousarray(exact).tobytes())  # in float64: any other order shows
print(digest.hexdigest())
"""


def test_bytes_do_not_depend_on_the_number_of_threads():
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    found = set()
    for threads, core in (("1", ""), ("2", "Prescott")):
        env = os.environ | dict.fromkeys(names, threads)
        if core:
            env |= {"OPENBLAS_CORETYPE": core, "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, env=env, check=False
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_start_is_pinned():
    """What every end starts from is part of what they agree on."""
    q = powersgd(1).init(layout_of(w=(64, 64))).memory["q"]
    words = gw.Key(0, purpose="powersgd").words(64)
    assert np.array_equal(q, [2.0 * (int(w) >> 40) / 2**24 - 1 for w in words])
    assert hashlib.sha256(q.astype("<f4").tobytes()).hexdigest()[:16] == "8ac19ac7032c4999"


# --- on the wire ----------------------------------------------------------------------------------


def payload_of(p: np.ndarray, q: np.ndarray) -> gw.Payload:
    factors = Factors(np.float32(p), np.float32(q))
    return gw.Payload(factors.num_values, (gw.Part(Every(factors.num_values), factors),))


def container(values: bytes, d: int, support: bytes = b"\1") -> bytes:
    """A container of one part, written by hand."""
    body = b"GW\1\0" + varint(d) + varint(0) + varint(0) + bytes(4) + support + values
    return body + struct.pack("<I", zlib.crc32(body))


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def test_bytes_by_hand():
    blob = container(b"\5" + varint(2) + varint(1) + floats(1, 2, 3, 4, 5), 6)
    payload = gw.decode(blob)
    assert gw.decompress(payload).tolist() == [3, 4, 5, 6, 8, 10]
    assert gw.encode(payload) == blob
    assert payload == payload_of([[1], [2]], [[3], [4], [5]])
    info = gw.inspect(blob)
    assert info["codec"] == {"support": "every", "values": "low_rank"}
    assert (info["num_kept"], info["values_bytes"], info["support_bytes"]) == (6, 23, 1)
    assert info["total_bytes"] == len(blob) == info["header_bytes"] + 24


def test_numbers_are_the_products_added_in_order_in_float64():
    rng = np.random.default_rng(0)
    p = (rng.standard_normal((5, 3)) * 10.0 ** rng.integers(-10, 10, (5, 3))).astype(np.float32)
    q = (rng.standard_normal((7, 3)) * 10.0 ** rng.integers(-10, 10, (7, 3))).astype(np.float32)
    expected = []
    for i in range(5):
        for j in range(7):
            total = 0.0
            for k in range(3):
                total += float(p[i, k]) * float(q[j, k])
            expected.append(np.float32(total))
    payload = payload_of(p, q)
    assert gw.decompress(payload).tolist() == [float(x) for x in expected]
    factors = payload.parts[0].values
    assert np.abs(expected).max() <= factors.bound
    assert factors.take(np.array([3, 30]), Every(35)) == Floats(np.array(expected)[[3, 30]])
    assert (factors.num_values, factors.num_coded, factors.num_bytes) == (35, 36, 144)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 1), (9, 1, 1), (300, 200, 3), (2, 70_000, 1), (70_000, 2, 2)])
def test_wire_round_trip(shape):
    m, n, r = shape
    payload = payload_of(normal(m * r).reshape(m, r), normal(n * r, 1).reshape(n, r))
    blob = gw.encode(payload)
    assert gw.decode(blob) == payload
    assert len(blob) <= 4 * r * (m + n) + 40
    reference = payload.parts[0].values.p.astype(np.float64) @ payload.parts[0].values.q.T.astype(np.float64)
    assert np.allclose(gw.decompress(payload).reshape(m, n), reference, rtol=1e-6, atol=1e-6)


def test_few_bytes_for_a_large_matrix_are_honest():
    """Rank 1 of 8192 x 8192: 4 bytes for 4096 entries; neither packed by the writer nor refused by the reader."""
    payload = payload_of(normal(8192).reshape(-1, 1), normal(8192, 1).reshape(-1, 1))
    blob = gw.encode(payload)
    assert payload.num_kept > 1024 * len(blob)
    assert len(blob) < 0.95 * 4 * 2 * 8192, "exponents are coded"
    assert "+" in gw.inspect(blob)["codec"]["values"]
    tracemalloc.start()
    decoded = gw.decode(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert decoded == payload
    assert peak < 20 * len(blob), "the matrix is not made"


def test_factors_of_nothing_but_zeros_cost_little():
    payload = payload_of(np.zeros((4096, 1)), np.zeros((4096, 1)))
    blob = gw.encode(payload)
    assert gw.decode(blob) == payload


D = 6
GOOD = varint(2) + varint(1) + floats(1, 2, 3, 4, 5)
HOSTILE = {
    "rows do not divide": (b"\5" + varint(4) + varint(1) + floats(*range(5)), gw.Malformed),
    "no rows": (b"\5" + varint(0) + varint(1) + floats(*range(9)), gw.Malformed),
    "more rows than coordinates": (b"\5" + varint(7) + varint(1) + floats(*range(9)), gw.Malformed),
    "huge rows": (b"\5" + varint(2**63) + varint(1) + floats(*range(9)), gw.Malformed),
    "rank 0": (b"\5" + varint(2) + varint(0) + floats(1, 2, 3, 4, 5), gw.Malformed),
    "rank above the smaller side": (b"\5" + varint(2) + varint(3) + floats(*range(15)), gw.Malformed),
    "huge rank": (b"\5" + varint(2) + varint(2**63) + floats(*range(15)), gw.Malformed),
    "truncated": (b"\5" + GOOD[:-1], gw.Truncated),
    "no floats": (b"\5" + GOOD[:2], gw.Truncated),
    "nothing": (b"\5", gw.Truncated),
    "left over": (b"\5" + GOOD + b"\0", gw.Malformed),
    "NaN": (b"\5" + varint(2) + varint(1) + floats(1, np.nan, 3, 4, 5), gw.Malformed),
    "infinity": (b"\5" + varint(2) + varint(1) + floats(1, 2, 3, -np.inf, 5), gw.Malformed),
    "overflow": (b"\5" + varint(2) + varint(1) + floats(1e20, 2, 3, 4, -1e20), gw.Malformed),
    "overflow of the sum": (b"\5" + varint(2) + varint(2) + floats(*[1.5e19] * 10), gw.Malformed),
    "unknown coder": (b"\x45" + GOOD, gw.UnknownCodec),
    "unknown kind": (b"\x0f" + GOOD, gw.UnknownCodec),
    "broken stream": (b"\x25" + varint(2) + varint(1) + b"\xff" * 40, gw.DecodeError),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes(name):
    values, error = HOSTILE[name]
    assert gw.decode(container(b"\5" + GOOD, D)).d == D
    with pytest.raises(error):
        gw.decode(container(values, D))


def test_largest_product_is_accepted():
    payload = payload_of([[1.0]], [[F32_MAX]])
    assert gw.decompress(gw.decode(gw.encode(payload))).tolist() == [F32_MAX]


@pytest.mark.parametrize("support", [b"\3\x3f", b"\2\6\1\x3f", b"\6\1\1\1\7\0"])
def test_factors_stand_for_every_coordinate(support):
    with pytest.raises(gw.DecodeError):
        gw.decode(container(b"\5" + GOOD, D, support))
    with pytest.raises(gw.ConfigError, match="every coordinate"):
        gw.Payload(6, (gw.Part(Explicit(6, np.arange(6)), Factors(np.ones((2, 1), "f4"), np.ones((3, 1), "f4"))),))


def test_huge_claims_allocate_nothing():
    for d, rows, rank in ((2**33, 2**16, 2**16), (2**33, 2**32, 1), (2**33, 1, 1)):
        for kind in (b"\x05", b"\x25", b"\x15", b"\x35"):
            blob = container(kind + varint(rows) + varint(rank) + bytes(64), d)
            tracemalloc.start()
            with pytest.raises(gw.DecodeError):
                gw.decode(blob)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 2**20


def test_single_bytes_changed():
    """Whatever a byte becomes, with a checksum that fits: a payload of finite numbers or a DecodeError."""
    blob = gw.encode(payload_of(normal(12).reshape(6, 2), normal(10, 1).reshape(5, 2)))
    for at in range(4, len(blob) - 4):
        for value in (0, 1, 5, 0x7F, 0x80, 0xFF, blob[at] ^ 1, blob[at] ^ 0x80):
            body = blob[:at] + bytes([value]) + blob[at + 1 : -4]
            try:
                payload = gw.decode(body + struct.pack("<I", zlib.crc32(body)), gw.Limits(max_parameters=10_000))
            except gw.DecodeError:
                continue
            assert np.isfinite(gw.decompress(payload)).all()


def test_packets_hold_the_same_numbers():
    compressor, update = powersgd(1), normal(LAYOUT.d)
    payload, _ = compressor.compress(update, compressor.init(LAYOUT))
    packets = [gw.decode(gw.encode(packet)) for packet in cut_packets(payload, 600)]
    total = np.zeros(LAYOUT.d, np.float32)
    for packet in packets:
        gw.accumulate(total, packet)
    assert np.array_equal(total, gw.decompress(payload))
