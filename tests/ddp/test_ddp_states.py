"""What survives a restart, other numbers of workers, loss scales and workers that end early: all of it conserved."""

import ddp_cases
import numpy as np
import pytest

import gradwire as gw
from gradwire.ddp import CommState


@pytest.mark.parametrize(
    "spec",
    ["ef(topk(0.05) | fractional(8))", "ef(tcs(0.05, 0.02))", "ef(randk(0.05, shared=True))", "ef(powersgd(1))"],
)
def test_a_restart_changes_nothing(ranks, spec):
    workers = ranks.run(ddp_cases.resumed, spec, 6, 3)
    assert len({w["whole"] for w in workers} | {w["again"] for w in workers}) == 1
    states = [w["state"] for w in workers]
    assert [(s["rank"], s["world_size"], s["step"]) for s in states] == [(0, 3, 3), (1, 3, 3), (2, 3, 3)]


@pytest.mark.parametrize("spec", ["ef(topk(0.05))", "momentum_correction(topk(0.05))", "ef(powersgd(1))"])
def test_other_workers_go_on_with_the_mean(ranks, spec):
    """What the model is still owed is (1 / W) sum of the residuals, whatever W is."""
    states = [w["state"] for w in ranks.run(ddp_cases.resumed, spec, 3, 2)]
    new = [w for w in ranks.run(ddp_cases.with_other_workers, states, spec) if w is not None]
    owed = np.mean([s["residual"] for s in states], axis=0, dtype=np.float64)
    for worker in new:
        np.testing.assert_allclose(worker["residual"], owed, rtol=1e-6, atol=1e-8)
        assert worker["step"] == 2
    assert "of worker 0 of 3, expected worker 0 of 2" in new[0]["refused"]


def test_states_of_something_else(ranks):
    states = [w["state"] for w in ranks.run(ddp_cases.resumed, "ef(topk(0.05))", 3, 2)]
    said = ranks.run(ddp_cases.refused_states, states)
    assert said == ranks.run(ddp_cases.refused_states, states)
    for found in said:
        for text, match in zip(found, ("has spec", "in order, got those of", "same step", "is a dict"), strict=True):
            assert match in text


def test_nothing_to_save_before_the_first_step():
    with pytest.raises(gw.StateError, match="before the first backward pass"):
        CommState("ef(topk(0.05))").state_dict()


def test_a_loss_scale_that_changes(ranks):
    """Residuals are in units without it, and an Inf leaves them as they were."""
    scales = [1024.0, 1024.0, 1024.0, 512.0, 2.0]
    workers = ranks.run(ddp_cases.scaled, scales)
    for worker in workers:
        assert np.isnan(worker["given"][2]).all()
        np.testing.assert_array_equal(worker["given"][3], workers[0]["given"][3])
    good = [0, 1, 3, 4]
    raw = np.sum([[w["own"][i] for i in good] for w in workers], axis=(0, 1), dtype=np.float64)
    sent = 3 * np.sum([workers[0]["given"][i] for i in good], axis=0, dtype=np.float64)
    left = np.sum([w["residual"] for w in workers], axis=0, dtype=np.float64)
    np.testing.assert_allclose(sent + left, raw, rtol=0, atol=1e-5 * np.abs(raw).max())


def test_autocast_and_a_scaler(ranks):
    workers = ranks.run(ddp_cases.mixed, 5)
    for worker in workers:
        assert worker["hashes"] == workers[0]["hashes"]
        assert worker["scales"] == [1024.0, 1024.0, 512.0, 512.0, 512.0]
        assert worker["finite"]
    assert workers[0]["hashes"][1] == workers[0]["hashes"][2], "the step was skipped"
    assert len(set(workers[0]["hashes"])) == 4


@pytest.mark.slow
@pytest.mark.parametrize("optimize", [True, False])
def test_compiled_models(ranks, optimize):
    workers = ranks.run(ddp_cases.compiled, optimize)
    assert all(hashes == workers[0] for hashes in workers)
    assert len(set(workers[0])) == 3


@pytest.mark.parametrize("spec", ["ef(topk(0.05) | fractional(8))", "ef(powersgd(1))"])
def test_workers_that_end_early(ranks, spec):
    """Each goes on giving what it remembers, with zeros for gradients, until the last one ends."""
    workers = ranks.run(ddp_cases.uneven, spec)
    assert [w["step"] for w in workers] == [4, 4, 4]
    raw = np.sum([w["total"] for w in workers], axis=0)
    left = np.sum([w["residual"] for w in workers], axis=0, dtype=np.float64)
    sent = 3 * workers[2]["given"]  # it saw every step
    np.testing.assert_allclose(sent + left, raw, rtol=0, atol=1e-5 * np.abs(raw).max())


def test_two_models_at_once(ranks):
    first, *others = ranks.run(ddp_cases.two_models)
    assert all(other == first for other in others)
    assert first[0] != first[1]


@pytest.mark.parametrize("num_workers", [2, 3])
def test_what_an_exchange_holds_is_given_back(ranks, num_workers):
    """Threads and sockets; the next exchange over the same workers finds them anew, also in a group of some of them."""
    workers = [w for w in ranks.run(ddp_cases.given_back, num_workers) if w is not None]
    assert len(workers) == num_workers
    for worker in workers:
        assert worker["between"] == [worker["between"][0]] * 3
        for (threads, sockets), (left_threads, left_sockets) in zip(worker["within"], worker["between"], strict=True):
            assert threads > left_threads
            assert sockets > left_sockets
        assert worker["hashes"] == [workers[0]["hashes"][0]] * 3
        assert len(worker["said"]) == 9
        assert all("was closed: wrap the module in DDP anew" in said for said in worker["said"])
