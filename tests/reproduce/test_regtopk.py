"""RegTop-k's reproduction: closed forms, the simulation against real clients and servers, units and report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradwire as gw
from gradwire.federated.experiment import Experiment
from gradwire.reproduce.blocks import Chart, Heading, Table, Text
from gradwire.reproduce.regression import (
    Method,
    Problem,
    draw_data,
    overlap_of,
    run_regression,
    run_two_worker,
    simulate,
)
from gradwire.reproduce.regtopk import PAPER
from gradwire.reproduce.run import find_config

SIGMOID_MINUS_1 = 1 / (1 + np.e)
SMOKE = find_config("regtopk", "smoke")


def ignore(share: float) -> None:
    pass


# --- two workers ----------------------------------------------------------------------------------


def two_worker(method: str, rounds: int) -> dict[str, Any]:
    return run_two_worker({"rounds": rounds, "methods": [method]}, ignore)["runs"][method]


@pytest.mark.parametrize("denominator", ["previous", "current"])
@pytest.mark.parametrize("mu", [0.1, 4, 16])
def test_regtop1_sends_both_steps_in_the_second_round(mu: float, denominator: str) -> None:
    run = two_worker(f"ef(regtopk(0.5, mu={mu}, denominator='{denominator}'))", 100)
    assert run["theta"][0] == [0, 1]
    assert run["theta"][1] == pytest.approx([0, 1 + 2 * 0.9 * SIGMOID_MINUS_1], abs=1e-6)
    assert run["loss"][99] == pytest.approx(0.0108, abs=5e-5)


@pytest.mark.parametrize("denominator", ["previous", "current"])
def test_what_cancels_exactly_is_passed_over_for_every_mu(denominator: str) -> None:
    run = two_worker(f"ef(regtopk(0.5, mu=1e-9, denominator='{denominator}'))", 2)
    assert run["theta"][1] == pytest.approx([0, 1.4840945], abs=1e-6)


def test_top1_stays_until_its_residual_is_as_large_as_the_entry_that_cancels() -> None:
    run = two_worker("ef(topk(0.5))", 101)
    assert all(theta == [0, 1] for theta in run["theta"][:99])
    assert run["loss"][98] == pytest.approx(np.log1p(np.exp(-1)), abs=1e-6)
    assert run["theta"][100][1] > 20


def test_dense_follows_the_closed_form() -> None:
    theta = 1.0
    run = two_worker("dense()", 100)
    for model in run["theta"]:
        theta += 0.9 / (1 + np.exp(theta))
        assert model == pytest.approx([0, theta], abs=1e-4)
    assert run["loss"][99] == pytest.approx(0.0110, abs=5e-5)


# --- the linear regression ------------------------------------------------------------------------


def small_problem(seed: int = 3) -> Problem:
    return Problem.build(*draw_data(seed, workers=4, rows=60, dimension=20))


def real_gaps(problem: Problem, compressor: gw.Compressor, rounds: int, learning_rate: float, seed: int) -> np.ndarray:
    """The same regression by real clients and a real server."""
    num_workers, d = problem.targets.shape
    layout = gw.Layout.flat(d)
    clients = [gw.Client(compressor, layout, client_id=i, seed=seed) for i in range(num_workers)]
    server = gw.Server(compressor, layout, seed=seed)
    theta, gaps = np.zeros(d), []
    for _ in range(rounds):
        for client, hessian, target in zip(clients, problem.hessians, problem.targets, strict=True):
            server.receive(client.compress(2 * (hessian @ theta - target)), client.client_id)
        result = server.close_round()
        for client in clients:
            client.end_round(result.blob)
        theta = theta - learning_rate * result.applied
        gaps.append(np.square(theta - problem.optimum).sum())
    return np.array(gaps)


@pytest.mark.parametrize(
    ("spec", "method"),
    [
        ("dense()", Method("dense")),
        ("ef(topk(0.3))", Method("topk", 0.3)),
        ("ef(regtopk(0.3, mu=1))", Method("regtopk", 0.3, 1)),
        ("ef(regtopk(0.6))", Method("regtopk", 0.6)),
        ("ef(regtopk(0.6, denominator='current'))", Method("regtopk", 0.6, 4, "current")),
        (
            "ef(regtopk(0.6, mu=2, exponent=0.5, likelihood='gaussian'))",
            Method("regtopk", 0.6, 2, exponent=0.5, likelihood="gaussian"),
        ),
        ("ef(randk(0.3, shared=True))", Method("randk", 0.3)),
        ("ef(cyclic(0.3))", Method("cyclic", 0.3)),
    ],
)
def test_simulation_is_what_clients_and_server_do(spec: str, method: Method) -> None:
    problem = small_problem()
    others = [Method("topk", 0.1), Method("regtopk", 0.9, 7)]  # in the same batch: must not disturb
    gaps = simulate(problem, [others[0], method, others[1]], 25, 0.05, seed=7)[:, 1]
    assert gaps == pytest.approx(real_gaps(problem, gw.parse(spec), 25, 0.05, 7), rel=1e-4)


def test_passing_over_what_was_sent_last() -> None:
    """Beside a loop that sorts by (sent in the round before, magnitude), and supports counted pair by pair."""
    problem, k, rate = small_problem(), 12, 0.05  # of 20: the order of those sent last matters, too
    theta, residuals, sent, gaps, overlaps, watched = (
        np.zeros(20),
        np.zeros((4, 20)),
        np.zeros((4, 20), bool),
        [],
        [],
        [],
    )
    for _ in range(30):
        residuals += 2 * (problem.hessians @ theta - problem.targets)
        supports = [set(np.lexsort((-np.abs(r), s))[:k].tolist()) for r, s in zip(residuals, sent, strict=True)]
        overlaps.append(np.mean([len(a & b) / k for a, b in itertools.permutations(supports, 2)]))
        sent = np.array([[j in support for j in range(20)] for support in supports])
        theta = theta - rate * np.where(sent, residuals, 0).mean(axis=0)
        residuals = np.where(sent, 0, residuals)
        gaps.append(np.square(theta - problem.optimum).sum())
    methods = [Method("topk", 0.3), Method("passover", 0.6)]
    found = simulate(problem, methods, 30, rate, watch=lambda t, chosen: watched.append(overlap_of(chosen)[1]))
    assert found[:, 1] == pytest.approx(gaps, rel=1e-9)
    assert watched == pytest.approx(overlaps)


def test_a_large_mu_is_in_the_order_of_what_came_back() -> None:
    """mu = 1e4 tells entries sent last apart by |1 + Delta|, passover by magnitude: alike only up to S = 1 / 2."""
    methods = [Method(kind, density, 1e6) for density in (0.4, 0.8) for kind in ("regtopk", "passover")]
    few, few_passed, most, most_passed = simulate(small_problem(), methods, 40, 0.05).T
    assert few == pytest.approx(few_passed, rel=1e-9)
    assert most[-1] != pytest.approx(most_passed[-1], rel=0.01)


def test_optimum_is_the_pooled_least_squares_solution_and_dense_reaches_it() -> None:
    inputs, outputs = draw_data(0, workers=4, rows=60, dimension=20)
    problem = Problem.build(inputs, outputs)
    expected = np.linalg.lstsq(inputs.reshape(-1, 20), outputs.reshape(-1))[0]
    assert problem.optimum == pytest.approx(expected, rel=1e-9)
    assert simulate(problem, [Method("dense")], 800, 0.1)[-1, 0] < 1e-24


def test_data_have_the_variances_they_should() -> None:
    inputs, outputs = draw_data(0, workers=400, rows=200, dimension=4, mean_variance=5, noise_variance=0.5)
    truths = np.stack([np.linalg.lstsq(x, y)[0] for x, y in zip(inputs, outputs, strict=True)])
    residuals = outputs - (inputs @ truths[..., None])[..., 0]
    assert truths.mean(axis=1).var() == pytest.approx(5 + 1 / 4, rel=0.15)
    assert residuals.var() == pytest.approx(0.5 * (1 - 4 / 200), rel=0.02)
    inputs, outputs = draw_data(0, workers=5, rows=200, dimension=4, noise_variance=0, homogeneous=True)
    truths = np.stack([np.linalg.lstsq(x, y)[0] for x, y in zip(inputs, outputs, strict=True)])
    assert truths == pytest.approx(np.tile(truths[0], (5, 1)))


def test_shared_supports_converge_at_a_tenth_where_topk_does_not() -> None:
    methods = [Method(kind, 0.1) for kind in ("topk", "regtopk", "cyclic", "randk")]
    topk, regtopk, *controls = simulate(small_problem(), methods, 4000, 0.02).min(axis=0)
    assert max(controls) < 1e-20
    assert min(topk, regtopk) > 1e-8


def test_above_one_half_regtopk_converges_with_the_previous_denominator_alone() -> None:
    methods = [Method("topk", 0.7), Method("regtopk", 0.7), Method("regtopk", 0.7, denominator="current")]
    topk, previous, current = simulate(small_problem(), methods, 1500, 0.02).min(axis=0)
    assert previous < 1e-15
    assert min(topk, current) > 1e-8


def test_the_smallest_mu_is_topk_where_nothing_cancels_exactly() -> None:
    topk, regtopk = simulate(small_problem(), [Method("topk", 0.3), Method("regtopk", 0.3, 1e-12)], 30, 0.05).T
    assert (topk == regtopk).all()


@pytest.mark.parametrize("delay", [1, 3])
def test_delayed_aggregates_of_dense_follow_the_recursion(delay: int) -> None:
    problem = small_problem()
    hessian, target = problem.hessians.mean(axis=0), problem.targets.mean(axis=0)
    models = [np.zeros(20)] * (delay + 1)  # before rounds 0 .. delay
    for t in range(40):
        models.append(models[-1] - 0.05 * 2 * (hessian @ models[t] - target))
    expected = [np.square(model - problem.optimum).sum() for model in models[1:41]]
    assert simulate(problem, [Method("dense")], 40, 0.05, delay=delay)[:, 0] == pytest.approx(expected, rel=1e-9)


def supports_where_aggregates_are_late(spec: str, delay: int) -> list[list[int]]:
    """What real clients send that compress for round t with the aggregates of rounds up to t - 1 - delay."""
    problem, compressor, layout = small_problem(), gw.parse(spec), gw.Layout.flat(20)
    clients = [gw.Client(compressor, layout, client_id=i) for i in range(4)]
    server = gw.Server(compressor, layout, max_staleness=1)
    theta, under_way, supports = np.zeros(20), [], []
    for t in range(25):
        for client, hessian, target in zip(clients, problem.hessians, problem.targets, strict=True):
            blob = client.compress(2 * (hessian @ theta - target), round=t)
            supports.append(np.flatnonzero(gw.decompress(gw.decode(blob))).tolist())
            server.receive(blob, client.client_id)
        under_way.append(server.close_round())
        if len(under_way) > delay:
            result = under_way.pop(0)
            for client in clients:
                client.end_round(result.blob)
            theta = theta - 0.05 * result.applied
    return supports


@pytest.mark.parametrize("delay", [0, 1])
def test_real_clients_with_late_aggregates_send_what_topk_does(delay: int) -> None:
    ours, topk = (supports_where_aggregates_are_late(f"ef({name}(0.6))", delay) for name in ("regtopk", "topk"))
    assert (ours == topk) == bool(delay)


def test_a_moving_target_is_tracked_as_closely_as_theory_says() -> None:
    """With Hessian I the error e_t = (1 - 2 lr)(e_{t-1} - step) has the stationary square q^2 r^2 / (1 - q^2)."""
    identity = np.tile(np.eye(50), (2, 1, 1))
    problem = Problem(identity, np.zeros((2, 50)), np.zeros(50))
    gaps = simulate(problem, [Method("dense")], 6000, 0.05, drift=0.01)[1000:, 0]
    assert gaps.mean() == pytest.approx(0.9**2 * 0.01**2 / (1 - 0.9**2), rel=0.1)


def test_selection_takes_the_lower_of_equal_scores_and_no_zeros() -> None:
    """Three workers with equal entries: their gradients at 0 are -2 times the targets, Hessians are I."""
    targets = np.array([[1.0, 2, -1, 1, 0], [0, 0, 0, 3, 0], [0, -4, 4, 4, 4]])
    problem = Problem(np.tile(np.eye(5), (3, 1, 1)), targets, targets.mean(axis=0))
    expected = np.array([[1.0, 2, 0, 0, 0], [0, 0, 0, 3, 0], [0, -4, 4, 0, 0]])  # what Top-2 sends, halved
    gap = simulate(problem, [Method("topk", 0.4)], 1, 0.25)[0, 0]
    assert gap == pytest.approx(np.square(0.5 * expected.mean(axis=0) - problem.optimum).sum(), rel=1e-12)


def test_simulation_repeats_itself() -> None:
    methods = [Method("randk", 0.3), Method("regtopk", 0.3)]
    first, second = (simulate(small_problem(), methods, 20, 0.05, seed=1, drift=0.1) for _ in range(2))
    assert (first == second).all()


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(gw.ConfigError, match="kind"):
        Method("top")


# --- units and report -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke_results() -> dict[str, dict[str, Any]]:
    results = {}
    for unit in PAPER.units(SMOKE):
        if unit.function == "train":
            results[unit.name] = fabricated_training(unit.settings)
        else:
            function: Callable[..., dict[str, Any]] = PAPER.functions[unit.function]
            results[unit.name] = json.loads(json.dumps(function(unit.settings, ignore), allow_nan=False))
    return results


def fabricated_training(settings: dict[str, Any], accuracy: float = 0.5) -> dict[str, Any]:
    summary = {"final_accuracy": accuracy, "uplink_bytes": 2_000_000, "bits_per_parameter": 0.03}
    return {
        "summary": summary,
        "accuracy": [[9, 0.3], *([round, accuracy] for round in range(15, 20))],
        "loss": [[9, 1.0], [19, 0.5]],
    }


def text_of(blocks: list[Any]) -> str:
    lines = []
    for block in blocks:
        if isinstance(block, (Heading, Text)):
            lines.append(block.text)
        elif isinstance(block, Table):
            assert all(len(row) == len(block.headings) for row in block.rows)
            lines += [" | ".join(row) for row in (block.headings, *block.rows)]
        else:
            assert isinstance(block, Chart)
            assert block.series
            assert all(len(s.x) == len(s.y) and len(s.spread) in (0, len(s.x)) for s in block.series)
    return "\n".join(lines)


@pytest.mark.parametrize("scale", ["smoke", "cpu", "paper"])
def test_units_are_named_once_and_their_trainings_are_experiments(scale: str) -> None:
    units = PAPER.units(find_config("regtopk", scale))
    assert len({unit.name for unit in units}) == len(units)
    for unit in units:
        assert unit.function in {"train", *PAPER.functions}
        assert json.loads(json.dumps(unit.settings)) == unit.settings
        assert set(unit.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
        if unit.function == "train":
            assert Experiment.build(unit.settings).seeds == unit.settings["seeds"]


def test_report_of_all_results(smoke_results: dict[str, dict[str, Any]]) -> None:
    text = text_of(PAPER.report(SMOKE, smoke_results))
    assert "Reproduced. RegTop-1" in text
    assert "leaves theta_0 in round 100" in text
    assert "`ef(regtopk(0.01))`: -, too few seeds" in text
    assert "gw.regtopk` remembers the last round alone" in text
    assert "earlier NumPy computation of the same" not in text  # only the paper's own problem is compared
    assert "units are not done" not in text
    headings = [block.text for block in PAPER.report(SMOKE, smoke_results) if isinstance(block, Heading)]
    assert len(headings) == 8


def test_report_of_some_results(smoke_results: dict[str, dict[str, Any]]) -> None:
    names = sorted(smoke_results)
    for some in ([], names[:1], names[::2], names[1::2], names[:-3], names[3:]):
        text = text_of(PAPER.report(SMOKE, {name: smoke_results[name] for name in some}))
        assert f"{len(names) - len(some)} units are not done" in text
        assert "nan" not in text


@pytest.mark.parametrize("scale", ["smoke", "cpu", "paper"])
def test_sentences_of_an_empty_report_end(scale: str) -> None:
    assert_sentences_end(PAPER.report(find_config("regtopk", scale), {}))


def test_sentences_of_a_full_report_end(smoke_results: dict[str, dict[str, Any]]) -> None:
    assert_sentences_end(PAPER.report(SMOKE, smoke_results))


def assert_sentences_end(blocks: list[Any]) -> None:
    texts = [block.text for block in blocks if isinstance(block, Text)]
    assert texts
    assert [text for text in texts if not text.endswith((".", ":"))] == []


def test_trainings_are_compared_seed_by_seed_and_an_order_needs_an_interval_without_0() -> None:
    """Student's t with 2 degrees of freedom: t(0.975) = 4.3027; differences 1, 2, 3 have s = 1."""
    section = {
        "data": "mnist", "clients": 8, "rounds": 20, "partitions": ["iid", "dirichlet:0.3"], "seeds": [0, 1, 2, 3],
        "methods": ["dense()", "ef(topk(0.001))", "ef(regtopk(0.001, mu=1))", "ef(regtopk(0.001, mu=4))"],
    }  # fmt: skip
    config = {"classification": [section]}
    final = {  # seed 3 of Top-k is not done: nothing is compared there
        "dense()": [0.80, 0.70, 0.60, 0.5],
        "ef(topk(0.001))": [0.50, 0.52, 0.54],
        "ef(regtopk(0.001, mu=1))": [0.51, 0.54, 0.57, 0.9],
        "ef(regtopk(0.001, mu=4))": [0.602, 0.621, 0.639, 0.9],
    }
    results = {}
    for unit in PAPER.units(config):
        (method,), (seed,) = unit.settings["methods"], unit.settings["seeds"]
        if unit.settings["partition"] == "iid" and seed < len(final[method]):
            results[unit.name] = fabricated_training(unit.settings, final[method][seed])
    blocks = PAPER.report(config, results)
    table, other = (block for block in blocks if isinstance(block, Table))
    assert [list(row[1:4]) for row in table.rows] == [
        ["65.00 ± 12.91 (4)", "+18.00 ± 29.81 (3)", "no difference shown"],
        ["52.00 ± 2.00 (3)", "-", "-"],
        ["63.00 ± 18.17 (4)", "+2.00 ± 2.48 (3)", "no difference shown"],
        ["69.05 ± 14.05 (4)", "+10.07 ± 0.38 (3)", "better"],
    ]
    assert {cell for row in other.rows for cell in row[1:]} == {"-", "too few seeds"}
    assert "`ef(regtopk(0.001, mu=4))`: +10.07 ± 0.38 (3), better" in text_of(blocks)
    (chart,) = (block for block in blocks if isinstance(block, Chart))
    assert chart.name == "regtopk-mnist-iid"
    topk = next(series for series in chart.series if series.name == "ef(topk(0.001))")
    assert list(topk.x) == [10, 16, 17, 18, 19, 20]
    assert list(topk.y) == pytest.approx([30] + [52] * 5)
    assert list(topk.spread) == pytest.approx([0] + [2] * 5)


def test_report_compares_the_papers_problem_with_the_reference() -> None:
    config = {key: find_config("regtopk", "cpu")[key] for key in ("regression", "sparsity")}
    config["regression"]["seeds"] = [0, 1]
    config["sparsity"].update(densities=[0.1, 0.5, 0.6, 1.0], denominators=["previous"])
    rows = [
        {**settings, "at_mark": gap, "best": gap, "tracking": 1.0, "curve": [0.0, gap]}
        for settings in PAPER.units(config)[0].settings["methods"]
        for gap in [-2.5 if settings["kind"] in ("topk", "regtopk") and settings["density"] < 0.6 else -14.0]
    ]
    for row in rows:
        if row["kind"] == "topk" and row["density"] == 0.6:
            row.update(at_mark=-2.5, best=-2.5)
    results = {"sparsity-seed0": {"curve_rounds": [1, 2500], "methods": rows}}
    text = text_of(PAPER.report(config, results))
    assert "0.6 | regtopk, previous, mu 4 | -14.0 | -14.3 | +0.3 | 1/1 | 7/8" in text
    assert "Reproduced. This is of `previous`" in text
    assert "Both controls converge where no RegTop-k does: at S = 0.1, 0.5." in text


def test_regression_unit_survives_divergence() -> None:
    unit = next(unit for unit in PAPER.units(SMOKE) if unit.name == "sparsity-seed0")
    result = run_regression({**unit.settings, "learning_rate": 100.0}, ignore)
    json.dumps(result, allow_nan=False)
    assert result["methods"][0]["at_mark"] > 290
