from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fabricated_runs import lines_of, run, write

from gradwire.errors import BackendUnavailable, ConfigError
from gradwire.report import build_report


@pytest.mark.parametrize("missing", ["summary.json", "metrics.jsonl"])
def test_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path, [run("topk(0.01)")])
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigError, match=rf"{re.escape(missing)} does not exist"):
        build_report(tmp_path)


def test_directory_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        build_report(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not a directory"):
        build_report(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"runs": [}', "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "must be a JSON object"),
        ("{}", "'runs' is missing"),
        ('{"runs": "x"}', "runs must be a list, got 'x'"),
        ('{"runs": [3]}', r"runs\[0\] must be a JSON object, got 3"),
        (json.dumps({"runs": [{"method": "a"}]}), r"runs\[0\]: key 'rounds' is missing"),
        (json.dumps({"runs": [run("a", uplink_bytes="9")]}), "uplink_bytes must be an integer >= 0, got '9'"),
        (json.dumps({"runs": [run("a", uplink_bytes=True)]}), "uplink_bytes must be an integer >= 0, got True"),
        (json.dumps({"runs": [run("a", uplink_bytes=-1)]}), "uplink_bytes must be an integer >= 0, got -1"),
        (json.dumps({"runs": [run("a", seconds="1")]}), "seconds must be a number or null, got '1'"),
        (json.dumps({"runs": [run("a", seconds=10**400)]}), "seconds must be a number or null"),
        (json.dumps({"runs": [run("a", final_accuracy=95)]}), r"final_accuracy must be in \[0, 1\] or null, got 95"),
        (json.dumps({"runs": [run("a", status="odd")]}), "status must be 'complete' or 'partial', got 'odd'"),
        (json.dumps({"runs": [run("a"), run("a")]}), r"runs\[1\] repeats run 'a' with seed 0"),
        (json.dumps({"runs": [run("a", label="c"), run("b", label="c")]}), r"runs\[1\] repeats run 'c' with seed 0"),
        (json.dumps({"runs": [run("a", label=3)]}), "label must be a string, got 3"),
        (json.dumps({"runs": [run("a", links=["4g"])]}), r"links must be a string, got \['4g'\]"),
        (json.dumps({"runs": [run("a", again_bytes=0.5)]}), "again_bytes must be an integer >= 0, got 0.5"),
        (json.dumps({"runs": [run("a", wan_uplink_bytes=-1)]}), "wan_uplink_bytes must be an integer >= 0, got -1"),
        (
            json.dumps({"runs": [run("a", virtual_seconds=-1)]}),
            r"virtual_seconds must be in \[0, 2\^63\) or null, got -1",
        ),
        (
            json.dumps({"runs": [run("a", target_virtual_seconds="1")]}),
            "target_virtual_seconds must be a number or null",
        ),
        (json.dumps({"runs": [run("a", target_accuracy=95)]}), r"target_accuracy must be in \[0, 1\] or null, got 95"),
        (
            json.dumps({"runs": [run("a", target_total_bytes=1.5)]}),
            "target_total_bytes must be an integer >= 0, got 1.5",
        ),
        (json.dumps({"runs": [], "experiment": 3}), "experiment must be a JSON object, got 3"),
        (json.dumps({"runs": [], "experiment": {"num_parameters": 0}}), "num_parameters must be an integer >= 1"),
        ('{"runs": [' + "9" * 5000 + "]}", "not valid JSON"),
    ],
)
def test_bad_summary_is_one_line_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, [])
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        build_report(tmp_path)
    assert str(tmp_path / "summary.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("3", "must be a JSON object, got 3"),
        ('{"method": "a"}', "key 'seed' is missing"),
        ('{"label": 1, "method": "a"}', "label must be a string, got 1"),
        (
            '{"method": "a", "seed": 0, "round": 1, "accuracy": 0, "uplink_bytes": 1, "virtual_seconds": -0.5}',
            "virtual_seconds must be in [0, 2^63) or null, got -0.5",
        ),
        ('{"method": "a", "seed": 0, "round": -1}', "round must be an integer >= 0, got -1"),
        ('{"method": "a", "seed": 0, "round": 1}', "key 'accuracy' is missing"),
    ],
)
def test_bad_metrics_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    good = json.dumps(lines_of(run("a"))[0])
    write(tmp_path, [run("a")], f"{good}\n{line}\n{good}\n")
    with pytest.raises(ConfigError, match=rf"metrics\.jsonl line 2.*{re.escape(message)}"):
        build_report(tmp_path)


def test_page_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    write(tmp_path, [run("a")])
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ConfigError, match=r"report\.html cannot be written"):
        build_report(tmp_path)
    assert not list(tmp_path.glob(".report*"))


@pytest.mark.parametrize("module", ["jinja2", "markupsafe"])
def test_missing_extra_is_named(tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'gradwire\[report\]'"):
        build_report(write(tmp_path, [run("a")]))


def test_import_does_not_load_jinja() -> None:
    code = "import sys, gradwire.report; print({'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
