"""Local steps with compressed exchanges, against the formulas of local SGD and DiLoCo in NumPy."""

import ddp_cases
import numpy as np
import pytest

LR, MOMENTUM = 0.7, 0.9


def means(workers, number):
    return np.mean([w["pseudo"][number] for w in workers], axis=0, dtype=np.float64)


def test_without_loss_and_outer_optimizer_it_is_the_mean_of_models(ranks):
    workers = ranks.run(ddp_cases.local, "dense()", 9, None)
    for worker in workers:
        assert worker["hashes"] == workers[0]["hashes"]
        assert worker["syncs"] == 3
        np.testing.assert_array_equal(worker["vectors"][0], workers[0]["vectors"][0])  # the first one's model
        for number in range(3):
            expected = worker["vectors"][number] - means(workers, number)
            np.testing.assert_allclose(worker["vectors"][number + 1], expected, rtol=0, atol=1e-6)


def test_few_coordinates_of_the_mean(ranks):
    """The largest of each worker's pseudo-gradient move the model that all had; the others stay as they were."""
    workers = ranks.run(ddp_cases.local, "topk(0.01)", 9, None, 3, False, True)
    for number in range(3):
        sent = np.zeros_like(workers[0]["vectors"][0])
        for worker in workers:
            pseudo = worker["pseudo"][number]
            kept = np.argsort(-np.abs(pseudo), kind="stable")[: round(0.01 * pseudo.size)]
            sent[kept] += pseudo[kept]
        for worker in workers:
            assert worker["hashes"] == workers[0]["hashes"]
            expected = worker["vectors"][number] - sent / np.float32(3)
            np.testing.assert_allclose(worker["vectors"][number + 1], expected, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(worker["vectors"][number + 1][sent == 0], expected[sent == 0])


def test_outer_nesterov(ranks):
    """v = mu v + g, x = x - lr (g + mu v); running statistics take the mean itself."""
    workers = ranks.run(ddp_cases.local, "dense()", 9, "nesterov")
    d = workers[0]["vectors"][0].size
    statistics = np.arange(d) >= d - 10
    velocity = np.zeros(d)
    for number in range(3):
        gradient = means(workers, number)
        velocity = MOMENTUM * velocity + gradient
        step = np.where(statistics, gradient, LR * (gradient + MOMENTUM * velocity))
        for worker in workers:
            assert worker["hashes"] == workers[0]["hashes"]
            expected = worker["vectors"][number] - step
            np.testing.assert_allclose(worker["vectors"][number + 1], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("outer", [None, "nesterov"])
def test_compressed_pseudo_gradients(ranks, outer):
    """SparseLoCo's kind: the largest of chunks, quantized, with an outer optimizer or without; the same everywhere."""
    workers = ranks.run(ddp_cases.local, "ef(topk(0.2, scope=16) | uniform(4), decay=0.95)", 9, outer)
    assert len({tuple(w["hashes"]) for w in workers}) == 1
    assert len(set(workers[0]["hashes"])) == 3


def test_an_exchange_that_fails_is_the_same_error_everywhere(ranks):
    workers = ranks.run(ddp_cases.local, "ef(topk(0.2))", 9, None, 3, True)
    for worker in workers:
        assert worker["errors"] == workers[0]["errors"]
        assert worker["errors"][0].startswith("UpdateError: worker 1 of 3, step 0: update must be finite, got nan")
