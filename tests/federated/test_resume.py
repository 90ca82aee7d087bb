"""Going on with changed settings: done where it is sound, else refused with the setting, what it was and is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from gradwire.errors import ConfigError
from gradwire.federated.experiment import Experiment
from gradwire.federated.folder import RunFolder
from gradwire.federated.runs import run_experiment
from gradwire.files.lock import locked

SETTINGS = {"methods": ["ef(topk(0.1))"], "rounds": 4, "clients": 2, "local_steps": 1, "batch_size": 4}
_TIMES = ("seconds", "compression_seconds", "client_rounds_per_second")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def go(folder, stop_after=None):
    asked = iter(range(1, 10_000))
    return run_experiment(folder, lambda *_: None, lambda *_: None, lambda: next(asked) == stop_after)


def made(path, stop_after=None, **changes):
    folder = RunFolder.create(path, Experiment.build({**SETTINGS, **changes}))
    assert go(folder, stop_after) is (stop_after is None)
    return path


def edited(path, **changes):
    """The run's folder, with other settings in its file."""
    before = Experiment.read(path / "experiment.toml").model_dump(exclude_none=True)
    (path / "experiment.toml").write_text(Experiment.build({**before, **changes}).toml())
    return RunFolder.open(path)


def contents(path):
    return {f: (path / f).read_bytes() for f in os.listdir(path)}


def runs_of(path):
    found = json.loads((path / "summary.json").read_text())["runs"]
    return [{k: v for k, v in run.items() if k not in _TIMES} for run in found]


def rounds_of(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in _TIMES} for line in lines]


def refuses(folder, *said):
    before = contents(folder.path)
    with pytest.raises(ConfigError) as caught:
        go(folder)
    for text in (str(folder.path / "experiment.toml"), *said):
        assert text in str(caught.value)
    assert contents(folder.path) == before


# ---- what is done


@pytest.mark.parametrize("rounds", [3, 7])
def test_a_run_under_way_may_end_earlier_or_later(tmp_path, rounds):
    settings = {"evaluate_every": 1, "algorithms": ["fedadam()"], "warmup_rounds": 2, "links": ["lte()"]}
    path = made(tmp_path / "run", stop_after=2, **settings)
    assert go(edited(path, rounds=rounds)) is True
    other = made(tmp_path / "other", **settings, rounds=rounds)
    assert runs_of(path) == runs_of(other)
    assert rounds_of(path) == rounds_of(other)
    assert len(rounds_of(path)) == rounds


def test_seeds_and_runs_may_be_added(tmp_path):
    path = made(tmp_path / "run", seeds=[1], methods=["dense()"])
    before = contents(path)
    folder = edited(path, seeds=[1, 2], methods=["dense()", "topk(0.1)"])
    assert go(folder) is True
    assert [(r["method"], r["seed"]) for r in runs_of(path)] == [
        ("dense()", 1), ("dense()", 2), ("topk(0.1)", 1), ("topk(0.1)", 2),
    ]  # fmt: skip
    assert (path / "metrics.jsonl").read_bytes().startswith(before["metrics.jsonl"])


def test_data_may_lie_elsewhere(tmp_path):
    path = made(tmp_path / "run", stop_after=2)
    assert go(edited(path, data_dir="/elsewhere")) is True


def test_without_anything_run_everything_may_change(tmp_path):
    RunFolder.create(tmp_path / "run", Experiment.build(SETTINGS))
    assert go(edited(tmp_path / "run", clients=3, rounds=2)) is True
    assert [r["rounds_done"] for r in runs_of(tmp_path / "run")] == [2]


def test_the_same_settings_change_nothing(tmp_path):
    path = made(tmp_path / "run")
    before = contents(path)
    assert go(edited(path)) is True
    assert contents(path) == before


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [
        ("clients", 3, "2"),
        ("learning_rate", 0.25, "None"),
        ("methods", ["dense()"], "['ef(topk(0.1))']"),
        ("algorithms", ["fedprox()"], "['fedavg()']"),
        ("partition", "shards:2", "'iid'"),
        ("seeds", [1], "[0]"),
        ("evaluate_every", 2, "None"),
        ("max_norm", 1.0, "None"),
        ("name", "mine", "None"),
    ],
)
@pytest.mark.parametrize("stop_after", [2, None], ids=["under way", "finished"])
def test_a_changed_setting_is_named_with_both_values(tmp_path, name, value, was, stop_after):
    path = made(tmp_path / "run", stop_after=stop_after)
    refuses(edited(path, **{name: value}), f"{name} was {was} and is {value!r}", "ef(topk(0.1)), seed 0")


def test_a_finished_run_cannot_go_on(tmp_path):
    refuses(edited(made(tmp_path / "run"), rounds=6), "rounds was 4 and is 6", "is finished", "--out")


def test_a_run_cannot_end_before_where_it_is(tmp_path):
    path = made(tmp_path / "run", stop_after=3)
    refuses(edited(path, rounds=3), "rounds was 4 and is 3", "has 3 rounds behind it")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"schedule": "cosine"}, "schedule cosine"),
        ({"milestones": [0.5]}, "milestones [0.5]"),
        ({"methods": ["ef(adaptopk(0.1) | uniform(8))"]}, "ef(adaptopk(0.1) | uniform(8))"),
        ({"downlink": "ef(adaptopk(0.1))"}, "ef(adaptopk(0.1))"),
        ({"regions": 2, "forward": "ef(adaptopk_online(0.1))"}, "ef(adaptopk_online(0.1))"),
        ({"algorithms": ["scaffold(control='adaptopk(0.1)')"]}, "adaptopk(0.1)"),
    ],
)
def test_rounds_that_depend_on_their_number_cannot_be_added(tmp_path, settings, said):
    path = made(tmp_path / "run", stop_after=2, **settings)
    refuses(edited(path, rounds=6), "rounds was 4 and is 6", "depends on it from its first round on", said)


def test_a_schedule_of_its_own_length_does_not_depend_on_the_run_s(tmp_path):
    settings = {"methods": ["ef(adaptopk(0.1, rounds=4))"], "evaluate_every": 1}
    path = made(tmp_path / "run", stop_after=2, **settings)
    assert go(edited(path, rounds=6)) is True
    assert rounds_of(path) == rounds_of(made(tmp_path / "other", **settings, rounds=6))


# ---- lines that are gone


@pytest.mark.parametrize("stop_after", [3, None], ids=["under way", "finished"])
@pytest.mark.parametrize("keep", [[], [0], [0, 2], [1, 2], [0, 0, 1, 2], [1, 0, 2]], ids=str)
def test_lines_that_are_gone_are_missed(tmp_path, stop_after, keep):
    path = made(tmp_path / "run", stop_after=stop_after)
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[i] for i in keep))
    before = contents(path)
    with pytest.raises(ConfigError, match=rf"metrics.jsonl: ef\(topk\(0.1\)\), seed 0: {stop_after or 4} rounds were"):
        go(RunFolder.open(path))
    assert contents(path) == before


def test_no_metrics_at_all_are_missed(tmp_path):
    path = made(tmp_path / "run")
    (path / "metrics.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"look at round 0"):
        go(RunFolder.open(path))


# ---- one process at a time


def test_a_second_process_is_refused_and_changes_nothing(tmp_path):
    path = made(tmp_path / "run", stop_after=2)
    with locked(path / ".lock"):
        before = contents(path)
        with pytest.raises(ConfigError, match=rf"{path}: process {os.getpid()} is at work there"):
            go(RunFolder.open(path))
        code = "from pathlib import Path\nfrom gradwire.federated.folder import RunFolder\n"
        code += f"with RunFolder.open(Path({str(path)!r})).lock():\n    print('in')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"process {os.getpid()} is at work there" in done.stderr
        assert contents(path) == before
    assert go(RunFolder.open(path)) is True
    assert ".lock" not in os.listdir(path)


def test_a_folder_is_locked_while_it_is_run(tmp_path):
    folder = RunFolder.create(tmp_path / "run", Experiment.build(SETTINGS))
    seen = []

    def look(*_):
        with pytest.raises(ConfigError, match="is at work there"), locked(folder.lock_file):
            pytest.fail("two at once")
        seen.append(1)

    run_experiment(folder, look, look, lambda: False)
    assert len(seen) == 5


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    path = made(tmp_path / "run", stop_after=2)
    for name in (".checkpoint.safetensors.abc", ".summary.json.x1", ".metrics.jsonl.tmp", ".report.html.77.tmp"):
        (path / name).write_bytes(b"half")
    (path / ".mine").write_text("mine")
    assert go(RunFolder.open(path)) is True
    assert sorted(os.listdir(path)) == [".mine", "experiment.toml", "metrics.jsonl", "summary.json"]
