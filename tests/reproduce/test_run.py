"""Reproductions as units: done once, kept, gone on with; and their reports."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest

import gradwire as gw
from gradwire.reproduce import adaptopk, tcs
from gradwire.reproduce.blocks import Chart, Heading, Series, Table, Text
from gradwire.reproduce.page import render
from gradwire.reproduce.run import PAPERS, SCALES, find_config, load_paper, read_results, reproduce
from gradwire.reproduce.statistics import accuracies, bits_after, curve, gain_at_the_end, paired_interval


def quiet(*_):
    return None


class Words(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found += [tag, *(value for _, value in attrs)]

    def handle_data(self, data):
        self.found.append(data)


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("scale", SCALES)
def test_every_configuration_gives_units_that_can_be_built(paper, scale):
    from gradwire.federated.experiment import Experiment

    config = find_config(paper, scale)
    units = load_paper(paper).units(config)
    assert len({unit.name for unit in units}) == len(units)
    for unit in units:
        assert json.loads(json.dumps(unit.settings)) == unit.settings
        if unit.function == "train":
            experiment = Experiment.build(unit.settings)
            assert len(experiment.methods) == len(experiment.seeds) == 1
        else:
            assert unit.function in load_paper(paper).functions
    assert load_paper(paper).report(config, {})  # nothing done yet is no error


@pytest.mark.slow
def test_a_stopped_reproduction_goes_on_and_gives_the_same(tmp_path):
    def run(out, stop):
        shares = {}
        done = reproduce("tcs", "smoke", out, None, 1, quiet, shares.__setitem__, stop)
        return done, shares

    calls = []

    def soon():
        calls.append(1)
        return len(calls) > 12

    done, _ = run(tmp_path / "a", soon)
    assert not done
    assert (tmp_path / "a" / "report.html").is_file()
    units = tcs.units(find_config("tcs", "smoke"))
    finished = set(read_results(tmp_path / "a", units))
    assert len(finished) < len(units)
    done, shares = run(tmp_path / "a", lambda: False)
    assert done
    assert not finished & set(shares)
    assert run(tmp_path / "b", lambda: False)[0]
    for unit in units:
        a, b = (read_results(tmp_path / name, units)[unit.name] for name in "ab")
        assert a["summary"]["model_sha256"] == b["summary"]["model_sha256"]
        assert a["accuracy"] == b["accuracy"]
        assert a["summary"]["uplink_bytes"] == b["summary"]["uplink_bytes"]
    with pytest.raises(gw.ConfigError, match="other settings"):
        reproduce("adaptopk", "smoke", tmp_path / "a", None, 1, quiet, quiet, lambda: False)


def test_names_and_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(gw.ConfigError, match="paper must be one of tcs, adaptopk, regtopk, got 'tsc'"):
        load_paper("tsc")
    with pytest.raises(gw.ConfigError, match="scale must be one of smoke, cpu, paper, got 'gpu'"):
        find_config("tcs", "gpu")
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(gw.ConfigError, match="not an empty folder"):
        reproduce("tcs", "smoke", tmp_path, None, 1, quiet, quiet, lambda: False)
    assert (tmp_path / "mine").read_text() == "kept"


def test_the_command_says_what_is_wrong():
    command = [sys.executable, "-m", "gradwire", "reproduce", "tcs", "--scale", "huge"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "scale must be one of smoke, cpu, paper, got 'huge'" in done.stderr


@pytest.mark.slow
def test_adaptopk_smoke_has_equal_budgets_and_a_hindsight(tmp_path):
    assert reproduce("adaptopk", "smoke", tmp_path / "run", None, 1, quiet, quiet, lambda: False)
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    results, config = found["results"], found["config"]
    hindsight = results["hindsight-128-seed0"]
    kept = round(9610 / 128) * config["shared"]["rounds"]
    assert hindsight["full_rounds"] == kept // 9610
    tables = [block for block in adaptopk.report(config, results) if isinstance(block, Table)]
    assert all(row[2] == "1.000000" for row in tables[1].rows)
    swept = tables[3]
    assert swept.headings == ["gamma", "t_hat = 0", "t_hat = 40"]
    assert [[cell[-3:] for cell in row[1:]] for row in swept.rows] == [["(2)", "(2)"]]
    assert tables[4].rows[0][5] in ("-0.0 %", "+0.0 %")  # one threshold: bytes against Top-K
    assert [row[1] for row in tables[5].rows] == ["2", "2"]  # runs whose norms were noted


def test_sweeps_are_of_the_schedules_they_are_named_for():
    units = {unit.name: unit for unit in adaptopk.units(find_config("adaptopk", "cpu"))}
    assert units["gamma0.25-t750-128-seed2"].settings["methods"] == ["adaptopk(0.0078125, gamma=0.25, t_hat=750)"]
    assert len([name for name in units if name.startswith("gamma")]) == 3 * 5 * 3
    assert {name[-1] for name in units if name.startswith("adaptopk-512-ef")} == set("0123456789")


def test_pages_escape_and_draw():
    nasty = "</script><b onload=x>&`a<b`"
    blocks = [
        Heading(nasty),
        Text(nasty),
        Table([nasty, "y"], [[nasty, "1 < 2"]]),
        Chart("c", nasty, nasty, "y", [Series(nasty, [1, 2, 3], [1.0, 2.0, 3.0], [0.1, 0.1, 0.1])], log_x=True),
    ]
    page = render(nasty, ["one", nasty], blocks)
    words = Words(page).found
    assert "b" not in words
    assert words.count("</script><b onload=x>&`a<b`") >= 2
    assert "a<b" in words
    assert "http" not in page.split('<script type="application/json"')[0].replace("http-equiv", "")


def test_statistics_closed_forms():
    mean, half = paired_interval([3.0, 5.0, 4.0, 4.0], [1.0, 1.0, 1.0, 1.0])
    assert mean == 3.0
    assert half == pytest.approx(3.182446305284263 * (2 / 3) ** 0.5 / 2)
    assert paired_interval([1.0], [0.0])[1] == float("inf")
    result = {
        "experiment": {"num_parameters": 100},
        "summary": {"clients": 2},
        "uplink_bytes": [[4, 9999], [9, 50], [14, 150]],
        "accuracy": [[0, 0.5], [9, 0.75]],
    }
    assert bits_after(result, 5) == 8 * 100 / 200
    assert bits_after({**result, "downlink_bytes": [[9, 1], [19, 25]]}, 10, "downlink_bytes") == 8 * 25 / 200
    line = curve("x", [result, {**result, "accuracy": [[0, 0.7], [9, 0.75]]}], scale=0.1)
    assert line.x == pytest.approx([0.1, 1.0])
    assert line.y == pytest.approx([60, 75])
    assert line.spread == pytest.approx([200**0.5, 0])


def test_the_end_of_a_curve():
    """Rounds 1 to 10, evaluated every two: the last fifth are rounds 9 and 10."""
    curve = [[1, 0.2], [3, 0.5], [5, 0.6], [7, 0.65], [9, 0.67]]
    short = [[9, 0.4]]
    assert gain_at_the_end([{"accuracy": curve}]) == pytest.approx(2)
    assert gain_at_the_end([{"accuracy": curve}, {"accuracy": short}]) == pytest.approx(1)
    result = {"accuracy": curve, "summary": {"final_accuracy": 0.67}}
    assert accuracies([result]) == pytest.approx([67])
    assert accuracies([result], 3) == pytest.approx([64])


def test_missing_data_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("GRADWIRE_DATA", raising=False)
    with pytest.raises(gw.ConfigError, match="cifar10 needs a data folder"):
        reproduce("tcs", "cpu", tmp_path / "out", None, 1, quiet, quiet, lambda: False)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_report_can_be_built_again(tmp_path):
    out = tmp_path / "run"
    assert reproduce("adaptopk", "smoke", out, None, 2, quiet, quiet, lambda: bool(list(out.glob("units/*")))) is False
    (out / "report.html").unlink()
    command = [sys.executable, "-m", "gradwire", "report", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "report.html").is_file()
