"""Accuracy against bytes: what is read off curves, what is run next, and what is told of half of it."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from benchmarks import results
from benchmarks.__main__ import main
from benchmarks.pareto import page, plan
from benchmarks.pareto.curves import Point, bytes_for, needed, resamples
from benchmarks.pareto.methods import DENSE, PLAIN, SETTINGS, Entry, Family, Setting, entries
from benchmarks.pareto.plan import REPORT_SEEDS, SETUPS, TUNED, TUNING_SEEDS, Job, due, found_of, halving, report

import gradwire as gw
from gradwire.federated.algorithms import parse_algorithm

# --- curves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_bytes", "accuracy", "target", "expected"),
    [
        ([100, 10_000], [0.8, 0.9], 0.85, 1000),
        ([10_000, 100], [0.9, 0.8], 0.85, 1000),
        ([100, 10_000], [0.8, 0.9], 0.8, 100),
        ([100, 10_000], [0.8, 0.9], 0.7, 100),
        ([100, 10_000], [0.8, 0.9], 0.91, None),
        ([1, 10, 100, 1000], [0.5, 0.9, 0.6, 0.95], 0.9, 10),  # the first crossing, though it falls again
        ([1, 10, 100, 1000], [0.5, 0.8, 0.6, 0.9], 0.9, 1000),
        ([1, 10, 100], [0.5, 0.5, 0.7], 0.6, 10**1.5),
        ([7], [0.5], 0.5, 7),
    ],
)
def test_bytes_are_read_off_the_curve(num_bytes, accuracy, target, expected):
    found = needed(num_bytes, accuracy, target)
    assert found is None if expected is None else math.isclose(found, expected)


def test_resamples_are_all_there_are():
    counts, chances = resamples(4)
    drawn = [np.bincount(row, minlength=4).tolist() for row in itertools.product(range(4), repeat=4)]
    for row, chance in zip(counts.tolist(), chances, strict=True):
        assert chance == drawn.count(row) / 4**4
    assert math.isclose(chances.sum(), 1)


def test_intervals_are_those_of_a_bootstrap():
    """Against as many draws of seeds, paired, as make the quantiles certain to a few percent."""
    rng = np.random.default_rng(0)
    dense = 0.97 + 0.004 * rng.standard_normal(5)
    points = [
        Point(str(size), size * (1 + 0.1 * rng.random(5)), dense + gap + 0.003 * rng.standard_normal(5))
        for size, gap in ((100.0, -0.02), (1000.0, -0.004), (10_000.0, 0.002))
    ]
    found = bytes_for(points, dense, 0.005)
    drawn = []
    for row in rng.integers(0, 5, (20_000, 5)):
        curve = [(p.num_bytes[row].mean(), p.accuracy[row].mean()) for p in points]
        drawn.append(needed(*zip(*curve, strict=True), dense[row].mean() - 0.005) or math.inf)
    low, high = np.quantile(drawn, [0.05, 0.95], method="inverted_cdf")
    assert found.low == pytest.approx(low, rel=0.05)
    assert found.high == pytest.approx(high, rel=0.05)
    assert found.reached == pytest.approx(np.mean(np.isfinite(drawn)), abs=0.02)
    means = [(p.num_bytes.mean(), p.accuracy.mean()) for p in points]
    assert found.num_bytes == needed(*zip(*means, strict=True), dense.mean() - 0.005)
    assert not found.at_most


def test_seeds_are_paired():
    """A method that is always the same below dense needs the same bytes, however much the seeds differ."""
    dense = np.array([0.9, 0.92, 0.94, 0.96, 0.98])
    points = [Point("a", np.full(5, 100.0), dense - 0.02), Point("b", np.full(5, 10_000.0), dense)]
    found = bytes_for(points, dense, 0.01)
    assert found.low == pytest.approx(1000)
    assert found.high == pytest.approx(1000)
    assert found.reached == pytest.approx(1)


def test_what_does_not_reach_says_so():
    dense = np.full(5, 0.9)
    found = bytes_for([Point("a", np.full(5, 100.0), dense - 0.02)], dense, 0.01)
    assert (found.num_bytes, found.low, found.high, found.reached) == (None, None, None, 0.0)
    assert found.best == pytest.approx(-0.01)
    assert page._needed(found) == "not reached (-1.00)"
    easy = bytes_for([Point("a", np.full(5, 2000.0), dense)], dense, 0.01)
    assert easy.at_most
    assert page._needed(easy) == "<= 2.00 kB (2.00 kB to 2.00 kB)"


LAYOUT = gw.Layout.from_arrays({"w": np.zeros((8, 40), np.float32), "b": np.zeros(8, np.float32)})


# --- methods and settings ---------------------------------------------------------------------------


def test_every_method_is_one_and_tuned_over_the_same_settings():
    names = [entry.names for entry in entries()]
    assert len(set(names)) == len(names)
    for entry in entries():
        settings = entry.settings()
        mean = gw.parse(entry.level).needs_mean
        assert set(settings) >= {s for s in SETTINGS if s.kind in ("none", "client") and (s.step == 1 or not mean)}
        assert mean == (entry.family == "regtopk") == (len(settings) == 6)
        assert PLAIN in settings
        for setting in settings:
            compressor = gw.parse(entry.spec(setting))
            assert (type(compressor) is gw.momentum) == (setting.kind == "client")
            assert (type(compressor) is gw.momentum_correction) == (setting.kind == "correction")
            step = parse_algorithm(setting.algorithm).make_step(LAYOUT)
            assert (step is None) == (setting.step == 1 and setting.kind != "server")
            gw.Client(compressor, LAYOUT)
            gw.Server(compressor, LAYOUT, step=step, num_clients=2)


def test_a_family_is_tuned_at_its_first_level_before_any_at_its_second():
    rows = (
        Family("a", ("qsgd(1)", "qsgd(2)", "qsgd(4)")),
        Family("b", ("ternary()",)),
        Family("c", ("topk(0.1)", "topk(0.2)"), "ef"),
    )
    assert [e.level for e in entries(rows)] == ["qsgd(1)", "ternary()", "topk(0.1)", "qsgd(2)", "topk(0.2)", "qsgd(4)"]


# --- the plan ---------------------------------------------------------------------------------------


def fake(job: Job) -> plan.Run:
    """A run as its line of the result file: larger steps and less momentum are better, long runs more so."""
    accuracy = 0.9 + 0.01 * job.setting.step - 0.019 * job.setting.mu + 1e-4 * job.seed + 1e-4 * job.stop
    size = 1000 * (1 + [e.level for e in entries()].index(job.level))
    run = {
        **job._asdict(), "spec": job.level, "algorithm": job.setting.algorithm, "accuracy": accuracy,
        "accuracies": [accuracy], "uplink_bytes": size, "downlink_bytes": 7 * size, "other_bytes": 5,
        "rounds_done": job.stop, "num_sent": 100, "num_parameters": 1000, "local_steps": 5, "seconds": 36.0,
    }  # fmt: skip
    return json.loads(json.dumps(run))


def run_out(setups, methods, most=10**6):
    """Run what is due until nothing is, or so many."""
    found = {}
    for setup, entry in itertools.product(setups, methods):
        while jobs := due(found, setup, entry):
            for job in jobs:
                if len(found) == most:
                    return found
                found.update(found_of([fake(job)]))
                assert job in found
    return found


ENTRIES = [DENSE, Entry("topk", "topk(0.01) | fractional(16)", "ef"), Entry("qsgd", "qsgd(2)")]


def test_halving_keeps_the_best_and_one_of_each_kind():
    entry = ENTRIES[1]
    found = run_out([TUNED], [entry])
    (early, late, last), best = halving(found, TUNED, entry)
    assert [len(early), len(late), len(last)] == [len(entry.settings()), 6, 2]
    assert {job.stop for job in early} == {TUNED.rounds // 4}
    assert {job.stop for job in late + last} == {TUNED.rounds}
    assert {job.setting.kind for job in late} == {"none", "client", "server", "correction"}
    assert best[:3] == [Setting(2.0), Setting(2.0, "server", 0.5), Setting(2.0, "correction", 0.5)]
    assert {job.seed for job in early + late} == {TUNING_SEEDS[0]}
    assert {job.seed for job in last} == {TUNING_SEEDS[1]}
    assert {job.setting for job in report(found, TUNED, entry)} == {Setting(2.0)}


def test_nothing_is_chosen_by_the_test_set_or_by_its_seeds():
    found = run_out(SETUPS, ENTRIES)
    assert not set(TUNING_SEEDS) & set(REPORT_SEEDS)
    for job in found:
        assert (job.split == "test") == (job.seed in REPORT_SEEDS)
    for setup, entry in itertools.product(SETUPS, ENTRIES):
        assert all(job.split == "validation" for stage in halving(found, setup, entry)[0] for job in stage)


def test_what_is_planned_is_what_is_run():
    found = run_out(SETUPS, ENTRIES)
    assert sum(plan.num_runs({}, s, e)[1] for s in SETUPS for e in ENTRIES) == len(found)
    for setup, entry in itertools.product(SETUPS, ENTRIES):
        mine = [job for job in found if job.setup == setup.name and (job.family, job.level) == entry.names]
        assert plan.num_runs(found, setup, entry) == (len(mine), len(mine))


def test_other_tasks_wait_for_the_one_that_is_tuned_whole():
    other = SETUPS[1]
    assert due({}, other, ENTRIES[1]) == []
    assert {job.split for job in due({}, other, DENSE)} == {"test"}, "plain dense needs no tuning"
    found = run_out([TUNED], ENTRIES[1:2])
    jobs = due(found, other, ENTRIES[1])
    assert [job.setting for job in jobs] == halving(found, TUNED, ENTRIES[1])[1][: other.num_candidates]


def test_a_run_that_failed_is_never_chosen():
    found = run_out([TUNED], ENTRIES[2:])
    for job in found:
        if job.setting.step == 2.0:
            found[job]["accuracy"] = None
    assert plan.ranked(found, [job for job in found if job.seed == 0])[-1].step == 2.0


# --- the result file and the page -------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    return tmp_path / "benchmarks" / "results" / "pareto.jsonl"


def test_a_line_that_was_cut_off_is_not_there(empty, monkeypatch):
    runs = [fake(Job("mnist-iid", "test", "qsgd", "qsgd(2)", PLAIN, seed, 100)) for seed in range(3)]
    for run in runs[:2]:
        results.append("pareto", run)
    assert results.load("pareto")["runs"] == runs[:2]
    whole = empty.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for cut in range(1, len(last)):
        empty.write_bytes(whole[:-cut])
        assert results.load("pareto")["runs"] == runs[:1]
    monkeypatch.setattr(results, "commit", lambda: "abc")
    results.append("pareto", runs[2])
    assert json.loads(empty.read_bytes().splitlines()[-1])["commit"] == "abc"
    assert results.load("pareto")["runs"] == [runs[0], runs[2]]
    assert results.load("pareto")["machine"]["python"]


@pytest.mark.parametrize("most", [0, 1, 40, 60, 75, 200, 10**6])
def test_the_page_is_honest_about_what_is_not_there(most):
    pytest.importorskip("matplotlib")
    found = run_out(SETUPS, ENTRIES, most)
    text = page.document({"machine": results.machine(), "runs": list(found.values())})["docs/pareto.md#pareto"]
    planned = sum(plan.num_runs(found, s, e)[1] for s in SETUPS for e in entries())
    assert text.startswith(f"So far {len(found):,} of {planned:,} runs, in {len(found) / 100:.1f} hours")
    shown = [line for line in text.splitlines() if line.startswith("| `topk(0.01)") and "± " in line]
    through = sum(all(job in found for job in jobs) for s in SETUPS if (jobs := report(found, s, ENTRIES[1])))
    assert len(shown) == through
    assert ("there are no targets" in text) <= (most < 10**6)
    assert ("Uplink a method needs" in text) == (most >= 75)


DIGITS = plan.Setup("digits", "digits", {"data": "digits", "clients": 4, "rounds": 6, "partition": "iid"})


def test_a_run_trains_and_is_judged_on_what_it_says():
    """On digits, for a few rounds: the validation split is none of what is trained on."""
    pytest.importorskip("sklearn")
    from benchmarks.pareto import runs

    entry = ENTRIES[2]
    job = Job("digits", "validation", *entry.names, Setting(1.0, "client", 0.8), 0, 6)
    run = runs.run(job, DIGITS, entry)
    assert plan.job_of(json.loads(json.dumps(run))) == job
    assert len(run["accuracies"]) == 4
    assert 0.2 < run["accuracy"] < 1
    assert run["num_sent"] == 4 * 6
    assert run["rounds_done"] == 6
    short = runs.run(job._replace(stop=2), DIGITS, entry)
    assert short["rounds_done"] == 2
    assert short["uplink_bytes"] < run["uplink_bytes"]
    whole = runs._whole("digits", None)
    split = runs.validation_of(whole)
    assert len(split.train_inputs) + len(split.test_inputs) == len(whole.train_inputs)
    assert len(split.test_inputs) == len(whole.train_inputs) // 10
    rows = {row.numpy().tobytes() for row in split.train_inputs}
    assert sum(row.numpy().tobytes() in rows for row in split.test_inputs) < 10


SCRIPT = """
import sys
from pathlib import Path
from benchmarks import results
from benchmarks.pareto.methods import Entry
from benchmarks.pareto.plan import Setup, found_of
from benchmarks.pareto.runs import run_all

if __name__ == "__main__":
    results.ROOT = Path(sys.argv[1])
    setup = Setup("digits", "digits", {"data": "digits", "clients": 4, "rounds": 8, "partition": "iid"})
    found = found_of(results.load("pareto")["runs"]) if results.is_there("pareto") else {}
    run_all(found, [setup], [Entry("qsgd", "qsgd(2)")], None, 2, lambda run: results.append("pareto", run))
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path):
    """Killed twice, without a chance to clean up: the same runs as in one go, each of them once."""
    pytest.importorskip("sklearn")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(results.ROOT), *sys.path])}

    def start(name):
        (tmp_path / name / "benchmarks").mkdir(parents=True, exist_ok=True)
        return subprocess.Popen([sys.executable, str(script), str(tmp_path / name)], env=environment)

    def lines(name):
        file = tmp_path / name / "benchmarks" / "results" / "pareto.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()[1:]] if file.exists() else []

    for count in (3, 21):
        process = start("killed")
        while len(lines("killed")) < count and process.poll() is None:
            time.sleep(0.05)
        process.kill()
        process.wait()
    assert 21 <= len(lines("killed")) < 31
    for name in ("killed", "whole"):
        assert start(name).wait() == 0
    killed, whole = (found_of(lines(name)) for name in ("killed", "whole"))
    assert len(killed) == len(lines("killed")) == sum(plan.num_runs({}, TUNED, ENTRIES[2])) == len(whole)
    for job, run in whole.items():
        assert {**killed[job], "seconds": 0} == {**run, "seconds": 0}


def test_workers_are_for_what_takes_long(capsys):
    for arguments in (["speed", "--workers", "2"], ["pareto", "--workers", "0"]):
        with pytest.raises(SystemExit):
            main(arguments)
        wanted = "--workers is 1 or more, of language, pareto, supports, tcs, adaptopk, regtopk alone"
        assert wanted in capsys.readouterr().err
