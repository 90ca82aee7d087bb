"""Flower's own count of bytes, taken from what ``flwr list`` prints into a run's summary.json."""

from __future__ import annotations

import io
import json
import sys

import pytest
from apps import initial, make_app, make_grid
from flwr.serverapp.strategy import FedAvg

import gradwire as gw
from gradwire.flower import CompressedStrategy, CompressionMod
from gradwire.flower.__main__ import main
from gradwire.flower.traffic import add_traffic
from gradwire.report.load import parse_runs, read_summary


def listed(**runs: tuple[int, int]) -> str:
    """As Flower 1.42 prints it."""
    rows = [
        {
            "run-id": name.removeprefix("run"),
            "status": "finished:completed",
            "network-traffic": {"inbound-bytes": i, "outbound-bytes": o, "total-bytes": i + o},
        }
        for name, (i, o) in runs.items()
    ]
    return json.dumps({"success": True, "runs": rows})


@pytest.fixture
def out(tmp_path):
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)))
    CompressedStrategy(FedAvg(), "ef(topk(0.05))", out=tmp_path / "out").start(grid, initial(), 2, 5)
    return tmp_path / "out"


def test_the_run_s_own_row_is_taken(out):
    before = read_summary(out)
    assert before["runs"][0]["flower_runs"] == ["1"]  # the grid's run
    assert add_traffic(out, listed(run2=(7, 8), run1=(1000, 3000))) == {"inbound_bytes": 1000, "outbound_bytes": 3000}
    after = read_summary(out)
    assert after["runs"][0].pop("network_traffic") == {"inbound_bytes": 1000, "outbound_bytes": 3000}
    assert after == before
    assert parse_runs(read_summary(out))[0].rounds_done == 2


def test_of_a_run_that_was_resumed_all_parts_count(tmp_path):
    settings = {"conversation": "trial", "state_file": tmp_path / "state", "out": tmp_path / "out"}
    for run_id, num_rounds in ((1, 2), (2**63 + 5, 4)):
        grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)))
        grid.run_id = run_id
        CompressedStrategy(FedAvg(), "ef(topk(0.05))", **settings).start(grid, initial(), num_rounds, 5)
    text = listed(run1=(10, 20), run3=(1, 1), **{f"run{2**63 + 5}": (100, 200)})
    assert add_traffic(tmp_path / "out", text) == {"inbound_bytes": 110, "outbound_bytes": 220}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "not what flwr list"),
        ("[]", "not what flwr list"),
        ('{"runs": [{"run-id": "1"}]}', "not what flwr list"),
        (listed(run2=(1, 2)), "names the runs 2, not 1"),
        (listed(), "names the runs none, not 1"),
    ],
)
def test_what_is_no_list_of_it_changes_nothing(out, text, said):
    before = (out / "summary.json").read_bytes()
    with pytest.raises(gw.ConfigError, match=said):
        add_traffic(out, text)
    assert (out / "summary.json").read_bytes() == before


@pytest.mark.parametrize("text", [None, "{}", "[1]", '{"runs": [{}]}', '{"runs": [{}, {}]}', "\x00"])
def test_folders_of_something_else(tmp_path, text):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(gw.ConfigError, match="is no summary"):
        add_traffic(tmp_path, listed(run1=(1, 2)))


def test_the_command(out, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(listed(run1=(5, 6))))
    main([str(out)])
    assert capsys.readouterr().out == "5 bytes in, 6 out\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("{}"))
    with pytest.raises(SystemExit, match="not what flwr list"):
        main([str(out)])
    with pytest.raises(SystemExit, match="usage"):
        main([])
