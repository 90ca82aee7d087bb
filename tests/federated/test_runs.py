"""A run's folder: stop anywhere, die anywhere, go on, and get what an undisturbed run gets; damage has a name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwire import cli
from gradwire.errors import ConfigError, GradwireError, StateError
from gradwire.federated.experiment import Experiment
from gradwire.federated.folder import RunFolder
from gradwire.federated.runs import run_experiment
from gradwire.files.store import read_state, write_state
from gradwire.report.load import parse_runs, read_metrics, read_summary

GRADWIRE = Path(sys.executable).with_name("gradwire")
METHODS = ["ef(topk(0.01) | uniform(4, stochastic=True), unchecked=True)", "ef(randk(0.02))", "dense()"]
ROUNDS = 5
SETTINGS = {"methods": METHODS, "seeds": [0, 3], "rounds": ROUNDS, "clients": 3, "local_steps": 2, "batch_size": 8}
NUM_STEPS = ROUNDS * len(METHODS) * 2
_TIMES = ("seconds", "compression_seconds", "client_rounds_per_second")
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """One torch thread: where other tests share the cores, two make every tiny step wait for the scheduler."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ignore(*_):
    pass


def go(folder, stop_after=None, stop=None):
    """Run until complete, or until stop() is asked for the stop_after-th time."""
    asked = 0

    def stop_then():
        nonlocal asked
        asked += 1
        return asked == stop_after

    return run_experiment(folder, ignore, ignore, stop or stop_then)


def metrics_of(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in _TIMES} for line in lines]


def metrics_text(path):
    return "\n".join(json.dumps(line) for line in metrics_of(path))


def runs_of(path):
    runs = json.loads((path / "summary.json").read_text())["runs"]
    return [{k: v for k, v in run.items() if k not in _TIMES} for run in runs]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = RunFolder.create(tmp_path_factory.mktemp("undisturbed") / "run", Experiment.build(SETTINGS))
    assert go(folder) is True
    return folder.path


def stopped_folder(path, after, **changes):
    folder = RunFolder.create(path, Experiment.build({**SETTINGS, **changes}))
    assert go(folder, stop_after=after) is False
    return path


# ---- what a run leaves behind


def test_a_complete_run_has_a_line_a_round_and_an_entry_a_run(undisturbed):
    assert sorted(os.listdir(undisturbed)) == ["experiment.toml", "metrics.jsonl", "summary.json"]
    expected = [(m, s, r) for m in METHODS for s in (0, 3) for r in range(ROUNDS)]
    metrics = metrics_of(undisturbed)
    assert [(m["method"], m["seed"], m["round"]) for m in metrics] == expected
    runs = runs_of(undisturbed)
    assert [(r["method"], r["seed"]) for r in runs] == [(m, s) for m in METHODS for s in (0, 3)]
    for run in runs:
        mine = [m for m in metrics if (m["method"], m["seed"]) == (run["method"], run["seed"])]
        for name in ("uplink_bytes", "downlink_bytes", "header_bytes", "support_bytes", "values_bytes"):
            assert run[name] == sum(m[name] for m in mine)
        assert run["final_accuracy"] == mine[-1]["accuracy"]
        assert (run["status"], run["rounds_done"]) == ("complete", ROUNDS)


def test_the_metrics_can_be_read_while_it_runs(tmp_path):
    folder = RunFolder.create(tmp_path / "run", Experiment.build(SETTINGS))
    go(folder, stop_after=ROUNDS + 2)
    assert len(read_metrics(folder.path)) == ROUNDS + 2
    assert [r.status for r in parse_runs(read_summary(folder.path))] == ["complete", "partial"]


def test_an_interrupted_summary_tells_the_truth_so_far(undisturbed, tmp_path):
    path = stopped_folder(tmp_path / "run", 3)
    (run,) = runs_of(path)
    assert (run["status"], run["rounds_done"], run["rounds"]) == ("partial", 3, ROUNDS)
    lines = metrics_of(undisturbed)[:3]
    assert metrics_of(path) == lines
    assert run["uplink_bytes"] == sum(line["uplink_bytes"] for line in lines)
    assert run["downlink_bytes"] == sum(line["downlink_bytes"] for line in lines)
    d = json.loads((path / "summary.json").read_text())["experiment"]["num_parameters"]
    assert run["dense_uplink_bytes"] == 4 * d * 3 * 3
    assert run["compression_ratio"] == pytest.approx(run["dense_uplink_bytes"] / run["uplink_bytes"])
    assert run["bits_per_parameter"] == pytest.approx(32 / run["compression_ratio"])


# ---- stop and go on


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stops=st.lists(st.integers(1, NUM_STEPS), min_size=1, max_size=4))
def test_stopping_anywhere_and_going_on_changes_nothing(undisturbed, tmp_path_factory, stops):
    path = tmp_path_factory.mktemp("stops") / "run"
    RunFolder.create(path, Experiment.build(SETTINGS))
    for stop_after in stops:
        go(RunFolder.open(path), stop_after)
    assert go(RunFolder.open(path)) is True
    assert metrics_text(path) == metrics_text(undisturbed)
    assert runs_of(path) == runs_of(undisturbed)
    assert sorted(os.listdir(path)) == sorted(os.listdir(undisturbed))


def test_stopping_after_every_single_round_changes_nothing(undisturbed, tmp_path):
    path = tmp_path / "run"
    RunFolder.create(path, Experiment.build(SETTINGS))
    num_stops = 0
    while not go(RunFolder.open(path), stop=lambda: True):
        num_stops += 1
        assert len(metrics_of(path)) == len(read_metrics(path))
        assert num_stops <= NUM_STEPS
    assert num_stops == NUM_STEPS - len(METHODS) * 2  # a request in a run's last round waits for the next run's first
    assert metrics_text(path) == metrics_text(undisturbed)
    assert runs_of(path) == runs_of(undisturbed)


def test_going_on_with_a_finished_run_does_not_even_load_the_data(undisturbed, monkeypatch):
    before = {f: (undisturbed / f).read_bytes() for f in os.listdir(undisturbed)}
    monkeypatch.setattr("gradwire.federated.runs.load_task", lambda *_: pytest.fail("loaded"))
    assert go(RunFolder.open(undisturbed)) is True
    assert {f: (undisturbed / f).read_bytes() for f in os.listdir(undisturbed)} == before


def test_seconds_go_on_too(tmp_path):
    path = stopped_folder(tmp_path / "run", 3)
    so_far = json.loads((path / "summary.json").read_text())["runs"][0]["seconds"]
    assert go(RunFolder.open(path)) is True
    after = json.loads((path / "summary.json").read_text())["runs"][0]
    assert after["seconds"] > so_far > 0
    assert after["compression_seconds"] < after["seconds"]


def test_an_exception_in_mid_run_keeps_what_is_done(undisturbed, tmp_path):
    folder = RunFolder.create(tmp_path / "run", Experiment.build(SETTINGS))
    seen = 0

    def fail(*_):
        nonlocal seen
        seen += 1
        if seen == 2 * ROUNDS + 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(folder, ignore, fail, lambda: False)
    assert len(runs_of(folder.path)) == 3  # two complete ones, and what was done of the third
    assert go(RunFolder.open(folder.path)) is True
    assert metrics_text(folder.path) == metrics_text(undisturbed)
    assert runs_of(folder.path) == runs_of(undisturbed)


def test_a_failure_while_the_checkpoint_is_written_keeps_the_one_before(undisturbed, tmp_path, monkeypatch):
    path = stopped_folder(tmp_path / "run", 2)
    real = os.replace

    def full(source, target):
        if str(target).endswith("checkpoint.safetensors"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        go(RunFolder.open(path), stop_after=2)
    monkeypatch.undo()
    assert not [f for f in os.listdir(path) if f.startswith(".")]
    assert go(RunFolder.open(path)) is True
    assert metrics_text(path) == metrics_text(undisturbed)
    assert runs_of(path) == runs_of(undisturbed)


def test_a_hard_kill_then_resume_gives_the_same_model(tmp_path):
    """A real process, killed with SIGKILL in mid-run; checkpoints are due every 20 ms."""
    program = (
        "import sys, gradwire.federated.runs as runs\n"
        "runs._CHECKPOINT_SECONDS = 0.02\n"
        "from gradwire.cli import main\n"
        "main()\n"
    )
    path = tmp_path / "run"
    experiment = Experiment.build(
        {"methods": ["ef(topk(0.01))"], "rounds": 120, "clients": 2, "local_steps": 1, "seeds": [5]}
    )
    (tmp_path / "mine.toml").write_text(experiment.toml())
    process = subprocess.Popen(
        [sys.executable, "-c", program, "run", str(tmp_path / "mine.toml"), "--out", str(path)],
        env=_ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    file = path / "checkpoint.safetensors"
    while time.monotonic() < deadline and process.poll() is None:
        # a reader never meets a half-written checkpoint
        if file.exists() and read_state(file)["totals"]["rounds_done"] > 20:
            break
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 20 < read_state(file)["totals"]["rounds_done"] < 120
    assert go(RunFolder.open(path)) is True
    other = RunFolder.create(tmp_path / "other", experiment)
    assert go(other) is True
    assert runs_of(path) == runs_of(other.path)
    assert metrics_text(path) == metrics_text(other.path)
    expected = ["experiment.toml", "metrics.jsonl", "summary.json"]
    left = [f for f in os.listdir(path) if not f.startswith(".checkpoint")]  # a write that was cut off in the middle
    assert sorted(left) == expected


def test_a_hard_kill_before_the_first_checkpoint_starts_again(undisturbed, tmp_path):
    path = stopped_folder(tmp_path / "run", 4)
    for name in ("checkpoint.safetensors", "summary.json"):
        (path / name).unlink()
    assert go(RunFolder.open(path)) is True
    assert metrics_text(path) == metrics_text(undisturbed)
    assert runs_of(path) == runs_of(undisturbed)


def test_a_hard_kill_between_summary_and_the_checkpoint_s_removal(undisturbed, tmp_path, monkeypatch):
    path = stopped_folder(tmp_path / "run", ROUNDS - 1)
    kept = (path / "checkpoint.safetensors").read_bytes()
    go(RunFolder.open(path), stop_after=2)
    (path / "checkpoint.safetensors").write_bytes(kept)  # of a run the summary calls complete
    summary = json.loads((path / "summary.json").read_text())
    summary["runs"] = summary["runs"][:1]
    (path / "summary.json").write_text(json.dumps(summary))
    assert go(RunFolder.open(path)) is True
    assert metrics_text(path) == metrics_text(undisturbed)
    assert runs_of(path) == runs_of(undisturbed)


# ---- damage


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_last_line_cut_short_is_dropped(undisturbed, tmp_path, cut):
    path = stopped_folder(tmp_path / "run", 3)
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**metrics_of(undisturbed)[3], "seconds": 0.1})[:cut])
    assert len(read_metrics(path)) == 3
    assert go(RunFolder.open(path)) is True
    assert metrics_text(path) == metrics_text(undisturbed)


def test_lines_beyond_the_checkpoint_are_done_again(undisturbed, tmp_path):
    path = stopped_folder(tmp_path / "run", 2)
    lines = (undisturbed / "metrics.jsonl").read_text().splitlines(keepends=True)
    with (path / "metrics.jsonl").open("a") as file:
        file.write("".join(lines[2:4]))
    assert go(RunFolder.open(path)) is True
    assert metrics_text(path) == metrics_text(undisturbed)


def change_state(path, **changes):
    state = read_state(path)
    write_state(path, {k: v for k, v in {**state, **changes}.items() if v is not ...})


def swapped(members):
    """The same clients' states under each other's numbers."""
    return [[i, state] for (i, _), (_, state) in zip(members, members[::-1], strict=True)]


DAMAGE = {
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_bytes(b"not a checkpoint at all"),
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-10]),
    "other-state": lambda p: write_state(p, {"round": 3}),
    "no-model": lambda p: change_state(p, model=...),
    "no-totals": lambda p: change_state(p, totals=...),
    "totals-empty": lambda p: change_state(p, totals={}),
    "totals-unknown": lambda p: change_state(p, totals={**read_state(p)["totals"], "more": 1}),
    "rounds-text": lambda p: change_state(p, totals={**read_state(p)["totals"], "rounds_done": "2"}),
    "no-server": lambda p: change_state(p, server=...),
    "server-none": lambda p: change_state(p, server=None),
    "clients-none": lambda p: change_state(p, members=None),
    "client-missing": lambda p: change_state(p, members=read_state(p)["members"][:-1]),
    "client-too-many": lambda p: change_state(p, members=read_state(p)["members"] * 2),
    "clients-reversed": lambda p: change_state(p, members=read_state(p)["members"][::-1]),
    "clients-swapped": lambda p: change_state(p, members=swapped(read_state(p)["members"])),
    "model-wrong-length": lambda p: change_state(p, model=np.zeros(3, np.float32)),
    "model-none": lambda p: change_state(p, model=None),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_a_state_error_that_names_the_file_and_destroys_nothing(tmp_path, name):
    path = stopped_folder(tmp_path / "run", 3)
    DAMAGE[name](path / "checkpoint.safetensors")
    before = {f: (path / f).read_bytes() for f in os.listdir(path)}
    with pytest.raises(StateError) as caught:
        go(RunFolder.open(path))
    assert str(path / "checkpoint.safetensors") in str(caught.value)
    assert {f: (path / f).read_bytes() for f in os.listdir(path)} == before


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"{}", b'{"runs": 3}', b'{"runs": [3]}', b'{"runs": [{}]}', b"\xff", b"[" * 100_000, b"null"],
    ids=["empty", "open", "list", "no-runs", "runs-int", "runs-of-int", "run-empty", "no-utf8", "deep", "null"],
)
def test_a_damaged_summary_is_a_config_error_that_names_the_file(tmp_path, text):
    path = stopped_folder(tmp_path / "run", ROUNDS + 1)
    (path / "summary.json").write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        go(RunFolder.open(path))
    assert str(path / "summary.json") in str(caught.value)
    assert (path / "checkpoint.safetensors").is_file()
    assert (path / "summary.json").read_bytes() == text


@pytest.mark.parametrize("line", [b"5", b"[]", b"{}", b"null", b"\xff\xfe", b'{"method": 3}'])
def test_a_foreign_line_in_the_metrics_is_a_named_error(tmp_path, line):
    path = stopped_folder(tmp_path / "run", 3)
    file = path / "metrics.jsonl"
    file.write_bytes(line + b"\n" + file.read_bytes())
    with pytest.raises(GradwireError) as caught:
        go(RunFolder.open(path))
    assert str(file) in str(caught.value)


# ---- folders


def test_create_never_overwrites(tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for path in (full, tmp_path / "file"):
        with pytest.raises(ConfigError, match="not an empty folder"):
            RunFolder.create(path, Experiment.build(SETTINGS))
    assert os.listdir(full) == ["x"]
    with pytest.raises(ConfigError, match="cannot be written"):
        RunFolder.create(tmp_path / "file" / "below", Experiment.build(SETTINGS))
    RunFolder.create(tmp_path / "new" / "er", Experiment.build(SETTINGS))
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", Experiment.build(SETTINGS))


def test_open_takes_only_a_run_s_folder(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"experiment\.toml"):
            RunFolder.open(path)
    (tmp_path / "experiment.toml").write_text("rounds = 'x'\n")
    with pytest.raises(ConfigError, match="rounds"):
        RunFolder.open(tmp_path)


def test_a_failing_resume_keeps_the_folder(tmp_path, monkeypatch):
    """Killed before its first checkpoint, resumed while the data is away: the settings must survive."""
    RunFolder.create(tmp_path / "run", Experiment.build({"data": "mnist", "data_dir": str(tmp_path / "away")}))
    monkeypatch.setattr(sys, "argv", ["gradwire", "run", "--resume", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert (tmp_path / "run" / "experiment.toml").is_file()
