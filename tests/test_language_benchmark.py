"""Language models: what is run next, what is read off a run, what the page says, and a tiny run of each kind."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from benchmarks import language, results
from benchmarks.language import page, plan
from benchmarks.language.plan import (
    DENSE,
    KINDS,
    METHODS,
    SEEDS,
    TUNING_SEED,
    Job,
    chosen,
    due,
    found_of,
    report,
    tuning,
)

import gradwire as gw

CHAR = KINDS[0]
TOPK = METHODS[1]


def fake(job: Job, loss: float | None = None, **other) -> plan.Run:
    """A run as its line of the result file: the last rate is best, a later evaluation is better."""
    of_rate = job.seed == TUNING_SEED and any(job.learning_rate == kind.rates[0] for kind in KINDS)
    loss = 2.0 + 0.1 * of_rate + 0.001 * job.seed if loss is None else loss
    size = 1000 * (1 + METHODS.index(job.method))
    run = {
        **job._asdict(), "loss": loss, "uplink_bytes": 4 * size, "downlink_bytes": 7, "other_bytes": 5,
        "dense_uplink_bytes": 80_000, "seconds": 36.0, "num_parameters": 1000, "num_trained": 10, "num_windows": 9,
        "num_test_windows": 3, "num_speakers": 2, "start_loss": 2.5,
        "points": [[i + 1, (i + 1) * size, i, loss + 0.015 * (3 - i), 0.5] for i in range(4)], **other,
    }  # fmt: skip
    return json.loads(json.dumps(run))


def run_out(kinds=KINDS, most=10**6, made=fake):
    found, order = {}, []
    while len(order) < most and (job := due(found, kinds)) is not None:
        assert job not in found
        found[job] = made(job)
        order.append(job)
    return found, order


# ---- what is run


def test_every_method_is_one():
    for method in METHODS:
        gw.Client(gw.parse(method), gw.Layout.flat(100))
        assert str(gw.parse(method)) == method


def test_every_row_has_something_before_any_has_a_second_seed():
    found, order = run_out()
    shown = [job for job in order if job.seed != TUNING_SEED]
    assert [(j.seed, j.kind, j.method) for j in shown] == [
        (s, k.name, m) for s in SEEDS for k in KINDS for m in METHODS
    ]
    assert len(order) == len(found) == len(KINDS) * (len(CHAR.rates) + len(METHODS) * len(SEEDS))
    for kind in KINDS:
        for method in METHODS:
            assert all(order.index(job) < order.index(report(found, kind, method)[0]) for job in tuning(kind))
        assert chosen(found, kind) == kind.rates[-1]


def test_momentum_goes_as_far_as_dense():
    """In the end, for a constant update: by the rate, and by the compressor itself."""
    for method in METHODS:
        expected = 2.5 if method.startswith("momentum") else 1.0
        assert plan.reach(method) == pytest.approx(expected)
    client, update = gw.Client(gw.parse(METHODS[-1]), gw.Layout.flat(4)), np.ones(4, np.float32)
    for _ in range(60):
        blob = client.compress(update)
    np.testing.assert_allclose(gw.decompress(gw.decode(blob)), plan.reach(METHODS[-1]), rtol=1e-4)
    found, _ = run_out([CHAR])
    rates = [report(found, CHAR, method)[0].learning_rate for method in METHODS]
    assert rates == [1.0, 1.0, 1.0, 0.4, 0.4]


def test_a_rate_that_overflows_is_not_chosen():
    jobs = tuning(CHAR)
    found = {job: fake(job) for job in jobs[:-1]}
    assert chosen(found, CHAR) is None
    assert report(found, CHAR, DENSE) == []
    found |= {job: {**fake(job), "loss": None} for job in jobs[1:]}
    assert chosen(found, CHAR) == CHAR.rates[0]


def test_what_is_killed_goes_on_with_the_next_run(tmp_path, monkeypatch, capsys):
    """Also where the last line was cut short, and a part at a time."""
    from benchmarks.language import runs

    made: list[Job] = []

    def one(job, data_dir):
        if len(made) == 7:
            raise KeyboardInterrupt
        made.append(job)
        return fake(job)

    monkeypatch.setattr(results, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(language, "check_data", lambda *_: None)
    monkeypatch.setattr(runs, "run", one)
    with pytest.raises(KeyboardInterrupt):
        language.measure(None, ["char"])
    lines = tmp_path / "benchmarks" / "results" / "language.jsonl"
    lines.write_bytes(lines.read_bytes()[:-9])
    made.clear()
    monkeypatch.setattr(runs, "run", lambda job, data_dir: (made.append(job), fake(job))[1])
    found = language.measure(None, ["char"])
    whole, order = run_out([CHAR])
    assert made == order[6:]
    assert found_of(found["runs"]) == whole
    assert language.measure(None, ["char"]) == found
    assert f"seed 2, rate 0.4, {CHAR.rounds} rounds: loss 2.0020, " in capsys.readouterr().out


def test_what_lacks_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert language.measure(str(tmp_path), ["char"]) is None
    assert "language is left out: " in capsys.readouterr().out
    monkeypatch.setattr(language, "check_data", lambda *_: None)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert language.measure(None, ["lora"]) is None
    assert "pip install 'gradwire[language]'" in capsys.readouterr().out


# ---- what is read off a run


@pytest.mark.parametrize(
    ("loss", "expected"), [(3.0, 10), (2.5, 10), (2.4, 40), (2.0, 40), (1.95, 90), (1.9, 90), (1.89, None)]
)
def test_bytes_to_a_loss_are_those_of_the_first_evaluation_there(loss, expected):
    points = [[1, 10, 0, 2.5, 0.1], [2, 40, 0, 2.0, 0.1], [3, 60, 0, 2.3, 0.1], [4, 90, 0, 1.9, 0.1]]
    assert page.bytes_to(points, loss) == expected


def test_a_run_keeps_what_was_evaluated():
    from benchmarks.language.runs import told

    rounds = [
        {"round": i, "uplink_bytes": 10, "downlink_bytes": 3, "test_loss": loss, "accuracy": loss and 0.5}
        for i, loss in enumerate([None, 2.0, None, 1.5])
    ]
    run = told(rounds, {"other_bytes": 7, "dense_uplink_bytes": 400, "label": "x"})
    assert run == {
        "loss": 1.5, "uplink_bytes": 40, "downlink_bytes": 12, "other_bytes": 7, "dense_uplink_bytes": 400,
        "points": [[2, 20, 6, 2.0, 0.5], [4, 40, 12, 1.5, 0.5]],
    }  # fmt: skip
    assert told([], {"failed": "why"}) == {
        "loss": None, "uplink_bytes": 0, "downlink_bytes": 0, "failed": "why", "points": [],
    }  # fmt: skip


def test_nobody_tunes_on_what_others_are_tested_on():
    """Speakers with few windows are left out; each one's last tenth is held out."""
    from benchmarks.language.tuned import FEWEST, split

    sizes = [40, FEWEST - 1, 25, 60]
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(4), sizes))
    train, test, clients = split(groups, 3)
    assert [len(rows) for rows in clients] == [36, 23]
    assert not set(train) & set(test)
    for rows, speaker in zip(clients, (0, 2), strict=True):
        mine = np.flatnonzero(groups == speaker)
        assert train[rows].tolist() == mine[: len(rows)].tolist()
        assert set(mine[len(rows) :]) >= {row for row in test if groups[row] == speaker}
    assert len(test) == 3


# ---- what the page says


def cells(text: str, method: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"| `{method.replace('|', chr(92) + '|')}` |")]
    return [cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")][1:]


def test_the_table_is_of_what_was_run():
    """Two seeds: dense is near its end at its third evaluation; one run never gets there, one overflows."""
    found, _ = run_out([CHAR])
    for method, seed, loss in [(TOPK, 0, 1.9), (TOPK, 1, 2.5), (METHODS[2], 0, None)]:
        job = next(job for job in report(found, CHAR, method) if job.seed == seed)
        found[job] = fake(job, loss) if loss else {**fake(job), "loss": None, "points": []}
    found = {job: run for job, run in found.items() if job.seed != 2}
    text = page.document({"machine": results.load("methods")["machine"], "runs": list(found.values())})
    char = text["docs/language.md#language-char"]
    assert char.startswith("So far 12 of 17 runs")
    dense, sparse, lost = (cells(char, method) for method in METHODS[:3])
    assert dense == ["1", "2.0005 ± 0.0007 (2)", "4.00 kB", "7 B", "20x", "3.00 kB", "1.0x"]
    assert sparse == ["1", "2.2000 ± 0.4243 (2)", "8.00 kB", "7 B", "10x", "2.00 kB; not reached in 1 of 2", "1.5x"]
    assert lost[1] == "2.0010 (1, 1 overflowed)"
    assert "No run is done yet." in text["docs/language.md#language-lora"]
    assert text["docs/language.svg"].count("<svg") == 1


def test_the_page_of_nothing_and_of_everything():
    machine = results.load("methods")["machine"]
    nothing = page.document({"machine": machine, "runs": []})
    assert nothing["docs/language.md#language-char"].startswith("So far 0 of 17 runs")
    found, _ = run_out()
    lora = page.document({"machine": machine, "runs": list(found.values())})["docs/language.md#language-lora"]
    assert lora.startswith("All 34 runs are done, those that choose a learning rate among them, in 0.3 hours.")
    assert "9 windows of 2 speakers to train on, 3 to test on; the loss before any tuning is 2.5000." in lora
    assert "### Adapters alone: 10 of 1,000 parameters travel" in lora


# ---- real runs


@pytest.mark.slow
@pytest.mark.parametrize("name", [kind.name for kind in KINDS])
def test_a_tiny_run_of_each_kind(name, tmp_path, monkeypatch):
    """Adapters alone travel; both begin from the base, which is made once; a step of nothing changes nothing."""
    from benchmarks.language import runs, tuned

    if name != "char":
        pytest.importorskip("peft")
    letters = np.random.default_rng(0).choice(list("abcdefgh "), (8, 2000))
    text = "\n\n".join(f"S{speaker}:\n{''.join(row)}" for speaker, row in enumerate(letters))
    (tmp_path / "input.txt").write_text(text)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    for setting, value in (("STEPS", 2), ("BATCH", 2), ("LAYERS", 1)):
        monkeypatch.setattr(tuned, setting, value)
    kinds = [
        replace(kind, settings={**kind.settings, "clients": 2, "local_steps": 1, "warmup_rounds": 1}) for kind in KINDS
    ]
    monkeypatch.setattr(runs, "KINDS", kinds)
    runs._task.cache_clear()
    job = Job(name, TOPK, 0, 1e-6, 2)
    run = runs.run(job, str(tmp_path))
    assert len(run["points"]) == 2
    assert 1.8 < run["loss"] < 4  # log 9 and more
    if name != "char":
        assert run["loss"] == pytest.approx(run["start_loss"], abs=1e-3)
        assert (run["num_trained"] == run["num_parameters"]) == (name == "full")
        assert run["dense_uplink_bytes"] == 4 * run["num_trained"] * 2 * 2
        [base] = (tmp_path / "runs" / "language").iterdir()
        before = base.stat().st_mtime_ns
        runs._task.cache_clear()
        again = runs.run(job, str(tmp_path))
        assert {**again, "seconds": 0} == {**run, "seconds": 0}
        assert base.stat().st_mtime_ns == before
    runs._task.cache_clear()
