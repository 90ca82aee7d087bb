"""What went wrong at one worker, or between a save and a restart: nothing lost, the same error at all, no waiting."""

import ddp_fault_cases as cases
import numpy as np
import pytest
import torch


def test_steps_below_a_dtype_s_rounding_add_up(ranks):
    """bfloat16 holds 1 + 2^-7 and nothing between it and 1: a third of that, thirty times, is 10 of them."""
    for worker in ranks.run(cases.small_steps, torch.bfloat16, 30):
        np.testing.assert_array_equal(worker["model"], np.full((1, 3), 1 + 10 * 2.0**-7, np.float32))
        np.testing.assert_allclose(worker["all"], 1 + 10 * 2.0**-7, rtol=1e-5)
        assert not worker["residual"].any()


def test_what_is_not_trained_is_the_first_worker_s(ranks):
    workers = ranks.run(cases.frozen)
    for worker in workers[1:]:
        for name, value in workers[0].items():
            np.testing.assert_array_equal(worker[name], value, err_msg=name)


@pytest.mark.parametrize("when", ["before", "after"])
def test_local_steps_resume_between_exchanges(ranks, when):
    workers = ranks.run(cases.local_resumed, when)
    assert len({hash for worker in workers for hash in worker}) == 1


def test_local_states_that_are_none(ranks):
    for rank, said in enumerate(ranks.run(cases.local_refuses)):
        assert all(text.startswith("StateError") for text in said[:-1]), said
        assert said[-1] == "ProtocolError: all workers must load a state, or none: workers [0, 2] of 3 did not", rank


def test_a_model_that_is_not_finite_goes_back_to_where_all_were(ranks):
    for worker in ranks.run(cases.local_nan):
        assert [text.partition(":")[0] for text in worker["said"]] == ["fine"] * 3 + ["UpdateError"] + ["fine"] * 8
        assert worker["finite"]


def test_momentum_is_never_given_up_for_whole_gradients(ranks):
    """A gradient of 1, sixty times at momentum 0.9: nearly 10 a step, less what is still to be sent."""
    for worker in ranks.run(cases.momentum_where_whole_is_faster):
        assert worker["path"] == "gather"
        assert worker["total"].sum() > 1.5 * 60 * 20


def test_parameters_without_numbers(ranks):
    workers = ranks.run(cases.hollow)
    assert [worker[0] for worker in workers] == ["dense"] * 3
    assert len({worker[1] for worker in workers}) == 1


def test_warnings_that_are_errors_part_nobody(ranks):
    workers = ranks.run(cases.warnings_are_errors)
    assert workers == [["fine", workers[0][1]]] * 3


def test_sparse_gradients_are_refused_by_name(ranks):
    for said in ranks.run(cases.sparse_gradients):
        assert all(text.startswith("ConfigError: worker 0 of 3") and "sparse=False" in text for text in said), said


@pytest.mark.parametrize(
    ("spec", "seeds", "what"),
    [("ef(randk(0.05, shared=True))", (0, 1), "seed"), ("ef(tcs(0.05, 0.02))", (0, 0), "reference")],
)
def test_states_of_other_runs_are_named(ranks, spec, seeds, what):
    for said in ranks.run(cases.states_of_other_runs, spec, seeds):
        assert said[0].startswith(f"ProtocolError: all workers must go on from states of one run: '{what} ")


@pytest.mark.parametrize("num_steps", [0, 3])
@pytest.mark.parametrize("spec", ["ef(topk(0.05))", "ef(powersgd(1))"])
def test_a_state_that_one_worker_alone_loads(ranks, spec, num_steps):
    for said in ranks.run(cases.one_loads, spec, num_steps):
        if num_steps:
            assert said[0].startswith("ProtocolError: all workers must be at the same step: 3 at worker 0, 0 at")
        else:
            assert said == ["fine", "fine"]


@pytest.mark.parametrize("named", [True, False])
def test_a_bad_state_is_the_same_error_at_all(ranks, named):
    for said in ranks.run(cases.a_bad_state_before_the_first_step, named):
        assert said[0].startswith("StateError: worker 1 of 3, step 0: state has spec 'dense()'")
        assert said[1:] == ["fine", "2"]


def test_who_leaves_with_an_error_is_not_waited_for(ranks):
    found = ranks.run(cases.left_with_an_error)
    assert [name for name, _ in found] == ["ProtocolError", "ValueError", "ProtocolError"]
    assert all(soon for _, soon in found)


def test_float16_gradients_that_cannot_hold_their_mean(ranks):
    for worker in ranks.run(cases.half):
        assert worker["said"].startswith("UpdateError: gradient 'w' is float16 and cannot hold its mean")
        assert worker["steps"] > 20
        assert worker["finite"]
        assert worker["kept"]


def test_who_joined_early_stays_to_the_end(ranks):
    workers = ranks.run(cases.joined_early)
    for worker in workers[1:]:
        assert [text.partition(":")[0] for text in worker["said"]] == ["fine"] * 4 + ["UpdateError", "fine"]
    assert {worker["step"] for worker in workers} == {6}
    assert len({worker["hash"] for worker in workers[1:]}) == 1


def test_states_are_copied_as_they_were_made(ranks):
    assert ranks.run(cases.copied) == [["ef(topk(0.05)) 0 True"] * 2] * 3


def test_parameters_that_ddp_and_register_see_differently(ranks):
    for said in ranks.run(cases.frozen_later):
        assert said[0].startswith("ConfigError: worker 0 of 3")
        assert "wrap the module in DDP anew" in said[0]
        assert said[1].startswith("ConfigError: DDP(delay_all_reduce_named_params=...) sums some gradients by itself")


def test_plain_parts_of_a_model(ranks):
    """Tensor parallelism with plain tensors: a DDP group for each part."""
    workers = ranks.run(cases.parts_of_a_model)
    assert workers[0]["hash"] == workers[1]["hash"] != workers[2]["hash"]
