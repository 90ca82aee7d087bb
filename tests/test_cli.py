"""The installed command in real processes: results, interruptions, and every refusal in one line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

import gradwire as gw
from gradwire import cli
from gradwire.compressors.compressor import Compressor
from gradwire.files import compress_file, inspect_file
from gradwire.files.store import write_state
from gradwire.progress import FileProgress

GRADWIRE = Path(sys.executable).with_name("gradwire")
FAST = ["--rounds", "2", "--clients", "2", "--local-steps", "1", "--batch-size", "4"]
TWO = ["--method", "dense()", "--method", "ef(topk(0.01))"]
RUN_KEYS = {  # fixed: programs outside read them
    "method": str,
    "seed": int,
    "clients": int,
    "rounds": int,
    "final_accuracy": float,
    "uplink_bytes": int,
    "downlink_bytes": int,
    "other_bytes": int,
    "dense_uplink_bytes": int,
    "compression_ratio": float,
    "bits_per_parameter": float,
    "model_sha256": str,
    "seconds": float,
}


def environment(**more):
    """Without a data folder, 80 columns wide, and one torch thread: several processes share few cores here."""
    kept = {k: v for k, v in os.environ.items() if k not in ("GRADWIRE_DATA", "FORCE_COLOR", "COLUMNS")}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **more}


def gradwire(*arguments, cwd=None, env=None):
    return subprocess.run(
        [str(GRADWIRE), *map(str, arguments)],
        cwd=cwd,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def hashes(folder):
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.rglob("*") if f.is_file()
    }


def everything(folder):
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*"))


def without_times(run):
    return {k: v for k, v in run.items() if k not in ("seconds", "compression_seconds", "client_rounds_per_second")}


@pytest.fixture
def here(tmp_path, monkeypatch, capfd):
    """The command's main() in this process, in the folder tmp_path: fast enough for every refusal there is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADWIRE_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gradwire", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, caught.value.code, out, err)

    return call


def refused(done, *said, code=2):
    """One line on stderr, the right code, and no sign of Python."""
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("gradwire: ")
    assert "Traceback" not in done.stderr + done.stdout
    for text in said:
        assert text in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two methods and two seeds, with what it printed."""
    folder = tmp_path_factory.mktemp("cli")
    done = gradwire("run", *FAST, *TWO, "--seed", "1", "--seed", "2", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "run", done.stdout


@pytest.fixture(scope="module")
def blob(tmp_path_factory):
    layout = gw.Layout.flat(1000)
    update = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    path = tmp_path_factory.mktemp("blob") / "update.blob"
    path.write_bytes(gw.Client(gw.parse("topk(0.05) | uniform(8)"), layout).compress(update))
    return path


# ---- run


def test_a_run_prints_the_table_and_the_report_s_path_and_writes_its_files(finished):
    folder, printed = finished
    assert {"experiment.toml", "metrics.jsonl", "summary.json", "report.html"} == set(everything(folder))
    lines = printed.splitlines()
    assert lines[-1] == f"Report: {folder / 'report.html'}"
    assert any("accuracy" in line and "uplink" in line and "ratio" in line for line in lines)
    table = lines[max(i for i, line in enumerate(lines) if "accuracy" in line) :]
    assert any("dense()" in line for line in table)
    assert any("ef(topk(0.01))" in line for line in table)
    assert all(len(line) <= 80 for line in lines[:-1])


def test_summary_has_every_fixed_key(finished):
    folder, _ = finished
    summary = json.loads((folder / "summary.json").read_text())
    runs = summary["runs"]
    assert [(r["method"], r["seed"]) for r in runs] == [
        ("dense()", 1),
        ("dense()", 2),
        ("ef(topk(0.01))", 1),
        ("ef(topk(0.01))", 2),
    ]
    for r in runs:
        assert {name: type(r[name]) for name in RUN_KEYS} == RUN_KEYS
        assert (r["clients"], r["rounds"]) == (2, 2)
        assert r["dense_uplink_bytes"] == 4 * summary["experiment"]["num_parameters"] * 4
        assert r["compression_ratio"] == pytest.approx(r["dense_uplink_bytes"] / r["uplink_bytes"])
        assert r["header_bytes"] + r["support_bytes"] + r["values_bytes"] == r["uplink_bytes"]
        assert len(bytes.fromhex(r["model_sha256"])) == 32
        assert 0 <= r["final_accuracy"] <= 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    for name in ("uplink_bytes", "downlink_bytes"):
        assert sum(line[name] for line in lines) == sum(r[name] for r in runs)


def test_the_report_opens_offline(finished):
    page = (finished[0] / "report.html").read_text()
    for loads in ('src="http', "src='http", 'href="http://', "@import"):
        assert loads not in page
    assert "ef(topk(0.01))" in page


def test_resuming_a_finished_run_changes_nothing(finished, here):
    folder, _ = finished
    before = hashes(folder)
    done = here("run", "--resume", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert hashes(folder) == before
    assert str(folder / "report.html") in done.stdout


def test_report_rebuilds_the_same_page(finished, here):
    folder, _ = finished
    before = hashes(folder)
    (folder / "report.html").unlink()
    done = here("report", folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{folder / 'report.html'}\n", "")
    assert hashes(folder) == before


def test_a_toml_file_and_options_over_it(tmp_path, here):
    toml = tmp_path / "mine.toml"
    toml.write_text('rounds = 9\nclients = 2\nlocal_steps = 1\nbatch_size = 4\nmethods = ["topk(0.1)"]\nseeds = [4]\n')
    done = here("run", toml, "--rounds", "1", "--partition", "shards:2", "--out", tmp_path / "run")
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (r,) = summary["runs"]
    assert (r["method"], r["seed"], r["rounds"], r["clients"]) == ("topk(0.1)", 4, 1, 2)
    assert summary["experiment"]["partition"] == "shards:2"


def test_the_default_folder_is_runs_and_the_time(tmp_path, here):
    done = here("run", *FAST, "--method", "dense()")
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("20")
    assert (folder / "report.html").is_file()
    assert everything(tmp_path)[0] == "runs"


def test_out_may_be_an_empty_folder(tmp_path, here):
    done = here("run", *FAST, "--method", "dense()", "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


# ---- interruption


def started(folder, *options):
    """Start a long run and wait until it is well under way."""
    process = subprocess.Popen(
        [
            str(GRADWIRE),
            "run",
            "--rounds",
            "2000",
            "--clients",
            "2",
            "--local-steps",
            "1",
            *options,
            "--out",
            str(folder),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        file = folder / "metrics.jsonl"
        if file.is_file() and file.stat().st_size:  # the first buffer is on disk: some twenty rounds
            return process
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"did not start: {process.communicate()}")


def test_ctrl_c_leaves_a_valid_result_that_resume_goes_on_with(tmp_path, here):
    folder = tmp_path / "run"
    process = started(folder, "--method", "ef(topk(0.01))")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert f"gradwire run --resume {folder}" in " ".join(out.split())
    (r,) = json.loads((folder / "summary.json").read_text())["runs"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert r["status"] == "partial"
    assert 0 < r["rounds_done"] == len(lines) < 2000
    assert r["uplink_bytes"] == sum(line["uplink_bytes"] for line in lines)
    assert r["final_accuracy"] == lines[-1]["accuracy"]
    assert "partial" in (folder / "report.html").read_text()

    # the file decides what is left to do; fewer rounds end the test sooner
    rounds = len(lines) + 3
    toml = folder / "experiment.toml"
    toml.write_text(toml.read_text().replace("rounds = 2000", f"rounds = {rounds}"))
    done = here("run", "--resume", folder)
    assert (done.returncode, done.stderr) == (0, "")
    straight = here("run", "--rounds", rounds, *FAST[2:6], "--method", "ef(topk(0.01))", "--out", tmp_path / "straight")
    assert straight.returncode == 0
    resumed, uninterrupted = (
        json.loads((f / "summary.json").read_text())["runs"] for f in (folder, tmp_path / "straight")
    )
    assert list(map(without_times, resumed)) == list(map(without_times, uninterrupted))
    assert everything(folder) == everything(tmp_path / "straight")


@pytest.mark.slow
def test_ctrl_c_twice_stops_at_once_and_what_is_left_can_be_resumed(tmp_path):
    folder = tmp_path / "run"
    process = started(folder, "--method", "dense()")
    process.send_signal(signal.SIGINT)
    time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("\n") <= 1
    assert "Traceback" not in err
    if folder.exists():
        assert "experiment.toml" in everything(folder)
        assert not [f for f in everything(folder) if f.startswith(".")]


@pytest.mark.slow
def test_ctrl_c_just_after_the_folder_was_made_leaves_nothing_half_made(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [str(GRADWIRE), "run", "--rounds", "2000", "--clients", "3", "--method", "dense()", "--out", str(folder)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (folder / "experiment.toml").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.count("\n") <= 1
    if folder.exists():
        assert {"experiment.toml", "summary.json", "report.html"} <= set(everything(folder))


# ---- outputs of any encoding


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp932", "ascii"])
def test_no_encoding_of_the_output_ends_a_training(tmp_path, encoding):
    """The label of a run with an algorithm has a middle dot, which neither of these can write."""
    options = ["--method", "dense()", "--algorithm", "fedavgm()", "--out", "run"]
    done = gradwire("run", *FAST, *options, cwd=tmp_path, env=environment(PYTHONIOENCODING=encoding))
    assert (done.returncode, done.stderr) == (0, "")
    assert "dense() ? fedavgm()" in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("arguments", [["methods"], ["run", "--method", "é·\udcff(1)"], ["--help"]], ids=lambda a: a[0])
@pytest.mark.parametrize("encoding", ["ascii", "cp932", "latin-1", "utf-8", "utf-16"])
def test_odd_characters_are_replaced_in_every_command(tmp_path, monkeypatch, arguments, encoding):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "argv", ["gradwire", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out.flush(), err.flush()
    assert caught.value.code == (2 if arguments[0] == "run" else 0)
    assert len(out.buffer.getvalue() + err.buffer.getvalue()) > 20


# ---- what ends a run


def limited(folder, num_bytes, *arguments):
    """The command where no file may become longer: what a full disk does, with another number."""
    program = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({num_bytes}, {num_bytes}))\n"
    program += "from gradwire.cli import main\nmain()\n"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("num_bytes", "settings", "named"),
    [
        (8_000, 'methods = ["topk(0.1)"]\nrounds = 30\nclients = 2\nevaluate_every = 15\n', "run"),
        (
            200_000,
            'methods = ["ef(topk(0.1))"]\nrounds = 2\nclients = 30\nclients_on_disk = true\n',
            "members.sqlite",
        ),
    ],
    ids=["metrics", "clients"],
)
@pytest.mark.slow
def test_a_full_disk_is_one_line_and_exit_code_1(tmp_path, here, num_bytes, settings, named):
    (tmp_path / "mine.toml").write_text(settings + "local_steps = 1\nbatch_size = 4\n")
    done = limited(tmp_path, num_bytes, "run", "mine.toml", "--out", "run")
    refused(done, named, code=1)
    assert "experiment.toml" in everything(tmp_path / "run")
    assert not [f for f in everything(tmp_path / "run") if f.startswith(".")]
    again = here("run", "--resume", "run")
    assert (again.returncode, again.stderr) == (0, "")


def test_settings_that_no_memory_holds_are_one_line_and_exit_code_1(tmp_path, here):
    huge = ["--local-steps", "1000000", "--batch-size", "1000000", "--clients", "1", "--method", "dense()"]
    refused(here("run", *huge, "--out", "run"), "not enough memory", "dense(), seed 0", code=1)
    refused(here("run", "--rounds", "100000000"), "rounds", "got 100000000")
    refused(here("run", "--batch-size", "10000000000000000000000"), "batch_size")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGHUP", None)])
def test_a_request_to_end_leaves_no_temporary_file(tmp_path, number):
    """Sent in the moment in which a file is whole, but not in its place yet."""
    write_state(tmp_path / "in.safetensors", {"w": np.zeros(1000, np.float32)})
    program = (
        "import os, signal, gradwire.cli\n"
        f"signal.signal({int(number)}, signal.SIG_DFL)\n"  # whatever whoever started the tests ignores
        f"os.fsync = lambda descriptor: os.kill(os.getpid(), {int(number)})\n"
        "gradwire.cli.main()\n"
    )
    arguments = ["compress", "in.safetensors", "-o", "out.gw", "--spec", "topk(0.1)"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "")
    assert everything(tmp_path) == ["in.safetensors"]


# ---- refusals

BAD_RUNS = {
    "unknown-stage": (["--method", "topq(0.1)"], ["'topq'", "did you mean 'topk'?", "character 1"]),
    "bad-density": (["--method", "topk(1.5)"], ["density must be in (0, 1], got 1.5"]),
    "spec-syntax": (["--method", "topk(0.1"], ["character"]),
    "spec-empty": (["--method", ""], ["character"]),
    "one-method-of-two": (["--method", "dense()", "--method", "topk(0)"], ["density", "got 0"]),
    "unchecked-ef": (["--method", "ef(randk(0.1, unbiased=True))"], ["unchecked=True"]),
    "unknown-data": (["--data", "digit"], ["'digit'", "did you mean 'digits'?"]),
    "no-data-folder-given": (["--data", "mnist"], ["mnist", "--data-dir", "GRADWIRE_DATA"]),
    "missing-data-folder": (["--data", "mnist", "--data-dir", "away"], ["away'", "--data-dir"]),
    "empty-data-folder": (["--data", "shakespeare", "--data-dir", "."], ["shakespeare", "input.txt"]),
    "unknown-model": (["--model", "mpl"], ["'mpl'", "did you mean 'mlp'?"]),
    "wrong-model": (["--model", "cnn"], ["cnn", "digits"]),
    "bad-partition": (["--partition", "iidd"], ["'iidd'", "did you mean 'iid'?"]),
    "bad-alpha": (["--partition", "dirichlet:-1"], ["dirichlet", "-1"]),
    "natural-digits": (["--partition", "natural"], ["natural"]),
    "unknown-device": (["--device", "gpu"], ["'gpu'"]),
    "missing-device": (["--device", "cuda:99"], ["'cuda:99'"]),
    "meta-device": (["--device", "meta"], ["meta"]),
    "rounds-zero": (["--rounds", "0"], ["rounds", "got 0"]),
    "rounds-text": (["--rounds", "many"], ["--rounds"]),
    "too-many-clients": (["--clients", "2000"], ["clients", "1442", "got 2000"]),
    "negative-seed": (["--seed", "-1"], ["seed", "-1"]),
    "seed-twice": (["--seed", "1", "--seed", "1"], ["seed"]),
    "rate-nan": (["--learning-rate", "nan"], ["learning", "nan"]),
    "unknown-option": (["--rond", "3"], ["--rond", "--rounds"]),
    "two-files": (["a.toml", "b.toml"], ["b.toml"]),
    "no-value": (["--method"], ["--method"]),
    "missing-toml": (["none.toml"], ["none.toml", "No such file"]),
    "toml-is-a-folder": (["."], ["directory"]),
    "resume-nothing": (["--resume", "none"], ["none", "experiment.toml"]),
    "resume-other-folder": (["--resume", "."], ["experiment.toml"]),
}
BAD_TOML = {
    "typo": (b"roundz = 3\n", ["'roundz'", "did you mean 'rounds'?"]),
    "syntax": (b"rounds = = 3\n", ["not a TOML file", "line 1"]),
    "type": (b'rounds = "3"\n', ["rounds", "'3'"]),
    "list-expected": (b'methods = "dense()"\n', ["methods", "'dense()'"]),
    "stage": (b'methods = ["dens()"]\n', ["'dens'", "did you mean 'dense'?"]),
    "bytes": (b"\xff\xfe\x00", ["not a TOML file"]),
    "too-deep": (b"a = " + b"[" * 100_000, ["not a TOML file"]),
    "table": (b"[run]\nrounds = 3\n", ["'run'"]),
}


@pytest.mark.parametrize("name", BAD_RUNS)
def test_nothing_is_left_of_a_run_that_was_refused(tmp_path, here, name):
    """One line, exit code 2, and a folder as empty as before."""
    options, said = BAD_RUNS[name]
    refused(here("run", *options), *said)
    assert everything(tmp_path) == []
    if "--resume" not in options:
        refused(here("run", "--out", "new/run", *options), *said)
        assert everything(tmp_path) == []


@pytest.mark.parametrize("name", ["unknown-stage", "missing-toml"])
def test_the_installed_command_refuses_the_same_way(tmp_path, name):
    options, said = BAD_RUNS[name]
    refused(gradwire("run", *options, cwd=tmp_path), *said)
    assert everything(tmp_path) == []


@pytest.mark.parametrize("name", BAD_TOML)
def test_a_bad_toml_file_is_named(tmp_path, here, name):
    content, said = BAD_TOML[name]
    (tmp_path / "mine.toml").write_bytes(content)
    if name != "stage":  # a spec is shown itself
        said = ["mine.toml", *said]
    refused(here("run", "mine.toml"), *said)
    assert everything(tmp_path) == ["mine.toml"]


def test_out_never_overwrites(finished, tmp_path, here):
    folder, _ = finished
    before = hashes(folder)
    refused(here("run", *FAST, "--out", folder), str(folder), "not an empty folder", "--resume")
    assert hashes(folder) == before
    (tmp_path / "file").write_text("mine")
    refused(here("run", *FAST, "--out", tmp_path / "file"), str(tmp_path / "file"))
    refused(here("run", *FAST, "--out", tmp_path / "file" / "below"), "cannot be written")
    assert hashes(tmp_path) == {"file": hashlib.sha256(b"mine").hexdigest()}


def test_a_failed_run_keeps_an_empty_folder_that_was_there_before(tmp_path, here):
    (tmp_path / "mine").mkdir()
    refused(here("run", "--data", "mnist", "--out", tmp_path / "mine"))
    assert everything(tmp_path) == ["mine"]


def test_an_out_that_cannot_be_written(tmp_path, here):
    refused(here("run", *FAST, "--out", "/proc/gradwire/run"), "--out /proc/gradwire/run", "cannot be written")
    if os.geteuid():  # root may write anywhere
        tmp_path.chmod(0o500)
        refused(here("run", *FAST, "--out", tmp_path / "run"), "cannot be written", "Permission denied")


@pytest.mark.parametrize(
    "extra",
    [["--rounds", "3"], ["--method", "dense()"], ["--out", "x"], ["mine.toml"], ["--seed", "1"], ["--data-dir", "x"]],
    ids=["rounds", "method", "out", "toml", "seed", "data-dir"],
)
def test_resume_takes_no_other_option(finished, tmp_path, here, extra):
    before = hashes(finished[0])
    named = extra[0] if extra[0].startswith("--") else "experiment file"
    refused(here("run", "--resume", finished[0], *extra), "--resume", named)
    assert hashes(finished[0]) == before
    assert everything(tmp_path) == []


def interrupted_copy(tmp_path):
    from gradwire.federated.experiment import Experiment
    from gradwire.federated.folder import RunFolder
    from gradwire.federated.runs import run_experiment

    e = Experiment.build({"rounds": 3, "clients": 2, "local_steps": 1, "batch_size": 4, "methods": ["ef(topk(0.01))"]})
    folder = RunFolder.create(tmp_path / "run", e)
    assert not run_experiment(folder, lambda *_: None, lambda *_: None, lambda: True)
    return folder.path


def test_damaged_files_of_a_run_are_named_and_kept(tmp_path, here):
    folder = interrupted_copy(tmp_path)
    good = {f: (folder / f).read_bytes() for f in everything(folder)}
    assert set(good) == {"checkpoint.safetensors", "experiment.toml", "metrics.jsonl", "summary.json"}
    damage = [
        ("checkpoint.safetensors", good["checkpoint.safetensors"][:-7]),
        ("checkpoint.safetensors", b""),
        ("summary.json", b"{"),
        ("summary.json", b""),
        ("experiment.toml", b"rounds = "),
    ]
    for name, content in damage:
        (folder / name).write_bytes(content)
        before = hashes(folder)
        refused(here("run", "--resume", folder), name)
        assert hashes(folder) == before
        (folder / name).write_bytes(good[name])
    assert here("run", "--resume", folder).returncode == 0


def test_a_checkpoint_of_something_else_is_refused(tmp_path, here):
    folder = interrupted_copy(tmp_path)
    write_state(folder / "checkpoint.safetensors", {"of": "something else"})
    before = hashes(folder)
    refused(here("run", "--resume", folder), "checkpoint.safetensors")
    assert hashes(folder) == before


def test_training_that_diverges_is_exit_code_1_and_leaves_nothing_half_made(tmp_path, here):
    done = here("run", *FAST, "--learning-rate", "1e30", "--method", "dense()", "--out", "run")
    refused(done, "finite", code=1)
    if (tmp_path / "run").exists():
        assert {"summary.json", "report.html"} <= set(everything(tmp_path / "run"))


# ---- inspect


def test_inspect_tells_what_a_blob_holds(blob):
    text = gradwire("inspect", blob)
    assert (text.returncode, text.stderr) == (0, "")
    as_json = gradwire("inspect", blob, "--json")
    assert (as_json.returncode, as_json.stderr) == (0, "")
    facts = json.loads(as_json.stdout)
    assert facts == json.loads(json.dumps(gw.inspect(blob.read_bytes())))
    assert (facts["d"], facts["num_kept"], facts["round"]) == (1000, 50, 0)
    assert facts["total_bytes"] == blob.stat().st_size
    assert facts["header_bytes"] + facts["support_bytes"] + facts["values_bytes"] == facts["total_bytes"]
    for name in ("d", "num_kept", "round", "codec", "total_bytes", "bits_per_parameter", "bits_per_index"):
        assert name in facts
        assert name in text.stdout


def test_inspect_refuses_what_is_no_blob(blob, tmp_path, here):
    data = blob.read_bytes()
    files = {
        "truncated": data[:-1],
        "half": data[: len(data) // 2],
        "start": data[:3],
        "longer": data + b"\0",
        "flipped": data[:40] + bytes([data[40] ^ 1]) + data[41:],
        "empty": b"",
        "foreign": b"PK\x03\x04 and so on, long enough to be read",
        "text": b"hello\n",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        refused(here("inspect", path), str(path))
        refused(here("inspect", path, "--json"))
    refused(here("inspect", tmp_path), str(tmp_path), "directory")
    refused(here("inspect", tmp_path / "none"), str(tmp_path / "none"), "No such file")
    refused(here("inspect"), "IN.gw")
    assert sorted(os.listdir(tmp_path)) == sorted(files)


# ---- files

EVIL = "\x1b]0;owned\x1b\\x\x1b[2J\x9b31m\u202e\u2066\r\u200b"


@pytest.fixture
def update(tmp_path):
    """An update in tmp_path."""
    rng = np.random.default_rng(1)
    arrays = {"w": rng.standard_normal((50, 20)).astype(np.float32), "b": rng.standard_normal(20)}
    save_file({**arrays, "steps": np.array(3)}, tmp_path / "u.st", {"format": "pt"})
    return arrays


def test_files_are_compressed_averaged_and_brought_back(tmp_path, here, update):
    for client in range(2):
        named = ["--client", client, "--round", 4, "--seed", 9, "--residual", f"r{client}.st"]
        done = here("compress", "u.st", "-o", f"{client}.gw", "--spec", "ef(randk(0.1))", *named)
        assert (done.returncode, done.stderr) == (0, "")
        size = (tmp_path / f"{client}.gw").stat().st_size
        assert done.stdout == f"{client}.gw: {size} B instead of 4.17 kB, {4168 / size:.1f}x smaller\n"
    compress_file(tmp_path / "u.st", tmp_path / "same.gw", gw.randk(0.1), client=1, round=4, seed=9)
    assert here("decompress", "1.gw", "-o", "1.st").returncode == 0
    assert here("decompress", "same.gw", "-o", "same.st").returncode == 0
    assert hashes(tmp_path)["1.st"] == hashes(tmp_path)["same.st"]
    done = here("aggregate", "0.gw", "1.gw", "--weight", 1, "--weight", 3, "-o", "mean.st")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found, clients = load_file(tmp_path / "mean.st"), [load_file(tmp_path / "1.st")]
    here("decompress", "0.gw", "-o", "0.st")
    clients.insert(0, load_file(tmp_path / "0.st"))
    for name, array in update.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], (clients[0][name] + 3 * clients[1][name]) / 4, atol=1e-6)
    facts = json.loads(here("inspect", "0.gw", "--json").stdout)
    assert facts == json.loads(json.dumps(inspect_file(tmp_path / "0.gw")))
    assert (facts["metadata"], {t.get("round") for t in facts["tensors"]}) == ({"format": "pt"}, {4, None})


def test_integers_that_differ_are_told_on_stderr(tmp_path, here):
    for number in range(2):
        save_file({"w": np.ones(3), f"steps{EVIL}": np.array(number)}, tmp_path / "u.st")
        assert here("compress", "u.st", "-o", f"{number}.gw", "--spec", "dense()").returncode == 0
    done = here("aggregate", "0.gw", "1.gw", "-o", "mean.st")
    assert (done.returncode, done.stdout) == (0, "")
    assert "integers are not averaged: steps\\x1b" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr[:-1].isprintable()


def test_what_a_file_says_cannot_move_the_terminal(tmp_path, here):
    save_file({EVIL: np.ones(4, np.float32), "n" + EVIL: np.array([np.nan])}, tmp_path / "nan.st")
    save_file({EVIL: np.ones(4, np.float32)}, tmp_path / "fine.st", {EVIL: EVIL})
    assert here("compress", "fine.st", "-o", "x.gw", "--spec", "dense()").returncode == 0
    text = here("inspect", "x.gw").stdout
    assert "\\x1b]0;owned" in text
    assert all(line.isprintable() for line in text.split("\n"))
    facts = here("inspect", "x.gw", "--json").stdout
    assert all(line.isprintable() for line in facts.split("\n"))
    assert json.loads(facts)["tensors"][0]["name"] == EVIL
    assert json.loads(facts)["metadata"] == {EVIL: EVIL}
    said = refused(here("compress", "nan.st", "-o", "y.gw", "--spec", "dense()"), "owned", code=1)
    assert said[:-1].isprintable()
    (tmp_path / "bad\x1b[2J.gw").write_bytes(b"x")
    assert refused(here("inspect", "bad\x1b[2J.gw"), "bad\\x1b[2J.gw")[:-1].isprintable()


def test_progress_of_a_stranger_s_file_is_shown_escaped(tmp_path, monkeypatch):
    save_file({EVIL: np.ones(4, np.float32)}, tmp_path / "x.st")
    monkeypatch.setattr("gradwire.progress.Console", lambda **_: Console(file=io.StringIO(), force_terminal=True))
    with FileProgress(tmp_path / "x.st") as bar:
        bar.advance(EVIL, 16)
        (task,) = bar._progress.tasks
        shown = task.description
    assert (task.total, task.completed, bar.num_bytes) == (16, 16, 16)
    assert shown.isprintable()


BAD_FILES = {
    "same-file": (["compress", "u.st", "-o", "u.st"], ["u.st: cannot be written", "is the same file as"]),
    "same-link": (["compress", "u.st", "-o", "link"], ["link: cannot be written", "is the same file as u.st"]),
    "residual-is-output": (["compress", "u.st", "-o", "x", "--residual", "./x"], ["is the same file as x"]),
    "residual-is-input": (["compress", "u.st", "-o", "x", "--residual", "link"], ["is the same file as u.st"]),
    "decompress-onto": (["decompress", "good.gw", "-o", "good.gw"], ["is the same file as"]),
    "aggregate-onto": (["aggregate", "u.gw", "good.gw", "-o", "good.gw"], ["is the same file as"]),
    "folder": (["compress", "u.st", "-o", "."], ["it is a folder"]),
    "device": (["compress", "u.st", "-o", "/dev/null"], ["/dev/null", "it is a device"]),
    "pipe": (["compress", "u.st", "-o", "pipe"], ["it is a pipe"]),
    "from-a-pipe": (["compress", "pipe", "-o", "x"], ["pipe: cannot be read: it is a pipe"]),
    "inspect-a-pipe": (["inspect", "pipe"], ["pipe: cannot be read: it is a pipe"]),
    "missing-folder": (["compress", "u.st", "-o", "none/x"], ["none/x: cannot be written: No such file"]),
    "missing": (["decompress", "none", "-o", "x"], ["none: cannot be read: No such file"]),
    "gw-for-safetensors": (["compress", "good.gw", "-o", "x"], ["good.gw: not a safetensors file: a .gw file"]),
    "safetensors-for-gw": (["inspect", "u.st"], ["u.st: not a .gw file: a safetensors file"]),
    "client": (["compress", "u.st", "-o", "x", "--client", "-1"], ["client must be an integer", "got -1"]),
    "round": (["compress", "u.st", "-o", "x", "--round", "-1"], ["round must be an integer", "got -1"]),
    "seed": (["compress", "u.st", "-o", "x", "--seed", str(2**64)], ["seed must be an integer"]),
    "client-text": (["compress", "u.st", "-o", "x", "--client", "me"], ["--client"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_cannot_be_used_are_refused_in_one_line_and_nothing_changes(tmp_path, here, update, name):
    arguments, said = BAD_FILES[name]
    compress_file(tmp_path / "u.st", tmp_path / "good.gw", gw.dense())
    compress_file(tmp_path / "u.st", tmp_path / "u.gw", gw.dense())
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("u.st")
    before = hashes(tmp_path)
    spec = ["--spec", "ef(topk(0.1))" if "--residual" in arguments else "topk(0.1)"]
    refused(here(*arguments, *(spec if arguments[0] == "compress" else [])), *said)
    assert hashes(tmp_path) == before
    assert everything(tmp_path) == ["good.gw", "link", "pipe", "u.gw", "u.st"]


@pytest.mark.parametrize("command", ["compress", "decompress", "aggregate"])
def test_a_full_disk_is_one_line_that_names_the_file_and_leaves_nothing(tmp_path, command):
    resource = pytest.importorskip("resource")
    save_file({f"t{i}": np.ones(16, np.float32) for i in range(2000)}, tmp_path / "u.st")
    compress_file(tmp_path / "u.st", tmp_path / "u.gw", gw.dense())
    before = hashes(tmp_path)
    source, more = ("u.st", ["--spec", "dense()"]) if command == "compress" else ("u.gw", [])
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (16384, {resource.RLIM_INFINITY}));"
    done = subprocess.run(
        [sys.executable, "-c", f"{limit} from gradwire.cli import main; main()", command, source, "-o", "out", *more],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    refused(done, "out: File too large", code=1)
    assert hashes(tmp_path) == before


def test_too_little_memory_is_one_line(tmp_path, here, update, monkeypatch):
    def too_large(self, info):
        raise MemoryError

    monkeypatch.setattr("gradwire.files.safetensors_io.SafetensorsReader.raw", too_large)
    refused(here("compress", "u.st", "-o", "x", "--spec", "dense()"), "memory", code=1)
    monkeypatch.undo()
    with (tmp_path / "huge.st").open("wb") as file:  # four terabytes that are not there
        header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + 2**42)
        except OSError:
            pytest.skip("no files of that size here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(np, "empty", lambda *_: (_ for _ in ()).throw(MemoryError()))
    done = here("compress", "huge.st", "-o", "x", "--spec", "dense()")
    refused(done, "huge.st: tensor 'w' is too large for this machine's memory", code=1)
    assert everything(tmp_path) == ["huge.st", "u.st"]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda s: s.name)
def test_a_command_that_is_stopped_leaves_nothing_behind(tmp_path, update, sent):
    before = hashes(tmp_path)
    # SIGHUP may be ignored by whoever started the tests, as nohup does, and SIGINT by a shell's background
    slow = (
        "import signal, time, gradwire.files.archive as a; a._compress_tensor = lambda *_: time.sleep(60);"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); signal.signal(signal.SIGINT, signal.default_int_handler);"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{slow} from gradwire.cli import main; main()", "compress", "u.st", "-o", "out.gw",
         "--spec", "ef(topk(0.1))", "--residual", "r.st"],
        cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(everything(tmp_path)) < 3:  # both outputs are begun
        time.sleep(0.02)
    assert len(everything(tmp_path)) == 3
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert hashes(tmp_path) == before


# ---- the other commands


def test_methods_lists_every_stage():
    done = gradwire("methods", env=environment(COLUMNS="200"))
    assert (done.returncode, done.stderr) == (0, "")
    for name, stage in Compressor.registry.items():
        assert f"{name}(" in done.stdout
        assert stage.citation in done.stdout
        assert stage.summary in done.stdout


def test_report_refuses_what_is_no_run(tmp_path, here):
    refused(here("report", tmp_path / "none"), str(tmp_path / "none"))
    refused(here("report", tmp_path), "summary.json")
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")
    refused(here("report", tmp_path), "summary.json", "runs")
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "summary.json"]


def test_report_compares_folders(finished, tmp_path, here):
    folder, again = finished[0], tmp_path / "again"
    again.mkdir()
    for name in ("summary.json", "metrics.jsonl"):
        (again / name).write_bytes((folder / name).read_bytes())
    done = here("report", folder, again)
    assert (done.returncode, done.stdout, done.stderr) == (0, "comparison.html\n", "")
    done = here("report", folder, again, "--out", tmp_path / "both.html")
    assert done.stdout == f"{tmp_path / 'both.html'}\n"
    assert "again: dense()" in (tmp_path / "both.html").read_text()
    (again / "reproduction.json").write_text("{}")
    refused(here("report", folder, again), "stands alone")
    refused(here("report", folder, folder), "is there twice")


def test_version():
    done = gradwire("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"gradwire {gw.__version__}\n", "")


@pytest.mark.parametrize("command", ["", "run", "methods", "inspect", "compress", "aggregate", "report"])
def test_help(command):
    done = gradwire(*command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: gradwire" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    if command == "run":
        for option in ("data", "data-dir", "method", "clients", "rounds", "local-steps", "partition", "seed", "device"):
            assert f"--{option}" in done.stdout
        assert "--out" in done.stdout
        assert "--resume" in done.stdout


def test_without_a_command_the_help_is_printed_as_it_is_meant_to_be_read():
    done = gradwire()
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    assert "Usage: gradwire" in text
    assert "\n  run " in text


@pytest.mark.parametrize("command", ["runn", "inspct", "metods"])
def test_an_unknown_command_gets_the_nearest_name(command, here):
    nearest = {"runn": "run", "inspct": "inspect", "metods": "methods"}[command]
    refused(here(command), f"'{command}'", f"'{nearest}'")


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen(
        f"'{GRADWIRE}' methods | head -n 1",
        shell=True,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _, err = process.communicate(timeout=60)
    assert err == b""


def test_a_sweep_over_algorithms_and_a_trace_goes_on_from_anywhere(tmp_path, here, monkeypatch):
    header = "client,seconds,uplink_bits_per_second,downlink_bits_per_second,latency_seconds,steps_per_second,available"
    rows = [f"{i},0,{8000 * (i + 1)},80000,0.1,10,1" for i in range(3)]
    (tmp_path / "links.csv").write_text("\n".join([header, *rows]) + "\n")
    (tmp_path / "sweep.toml").write_text(
        """rounds = 2\n[[runs]]\nname = "a"\nlinks = ["trace('links.csv')"]\n[[runs]]\n"""
    )
    small = ["--clients", 3, "--local-steps", 1, "--batch-size", 4, "--method", "ef(topk(0.01))"]
    options = ["--rounds", 2, "--algorithm", "fedavg()", "--algorithm", "fedasync()", "--links", "trace('links.csv')"]
    for name, more in (("swept", options), ("file", ["sweep.toml"])):
        monkeypatch.chdir(tmp_path)
        done = here("run", *more, *small, "--out", name)
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads((tmp_path / name / "summary.json").read_text())["runs"]
        assert len(found) == 2
        assert found[0]["virtual_seconds"] > 0
        assert (tmp_path / name / "report.html").is_file()
        (tmp_path / name / "summary.json").unlink()
        monkeypatch.chdir("/")
        again = here("run", "--resume", tmp_path / name)
        assert again.returncode == 0, again.stderr
        once_more = json.loads((tmp_path / name / "summary.json").read_text())["runs"]
        assert [r["model_sha256"] for r in once_more] == [r["model_sha256"] for r in found]
