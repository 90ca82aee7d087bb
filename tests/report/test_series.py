"""What charts are drawn from: averages over seeds, fronts, what is thinned out, sums of clients, and the sheets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated_runs import CLIENTS, PARAMETERS, ROUNDS, dense, full_lines_of, run, timed, write
from hypothesis import given
from hypothesis import strategies as st
from page_reader import Page, sheet

from gradwire.errors import ConfigError
from gradwire.report import build_report, page, plots
from gradwire.report.clients import KINDS, ClientCounts, add_up, read_clients
from gradwire.report.series import front, thinned

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300)


def built(folder: Path, *runs: dict[str, Any], metrics: str | None = None) -> Page:
    lines = (json.dumps(line) + "\n" for record in runs for line in full_lines_of(record))
    metrics = "".join(lines) if metrics is None else metrics
    path = build_report(write(folder, list(runs), metrics, experiment={"num_parameters": PARAMETERS}))
    return Page(path.read_text(encoding="utf-8"))


@given(VALUES)
def test_front_is_what_no_cheaper_point_beats(values: list[float]) -> None:
    expected = [i for i, value in enumerate(values) if all(value > earlier for earlier in values[:i])]
    assert front(values) == expected


@given(VALUES, st.integers(4, 60))
def test_thinned_keeps_ends_and_extremes_and_no_more_than_asked_for(values: list[float], most: int) -> None:
    kept = thinned(values, most)
    assert kept == sorted(set(kept))
    assert len(kept) <= max(most, 0)
    assert {kept[0], kept[-1]} == {0, len(values) - 1}
    chosen = [values[i] for i in kept]
    assert (min(chosen), max(chosen)) == (min(values), max(values))
    if len(values) <= most:
        assert len(kept) == len(values)


def test_a_spike_of_one_round_among_many_is_drawn() -> None:
    values = np.zeros(100_000)
    values[54_321] = 1.0
    assert 54_321 in thinned(values.tolist(), 100)


def test_counts_of_clients_add_up_by_name() -> None:
    rounds = [
        {"clients": {"2": {"uplink": 5}, "10": {"uplink": 1, "late": 1}}},
        {"clients": {"10": {"uplink": 2, "other": 7}, "1": {"downlink": 3}}},
    ]
    read = [read_clients(record, "here") for record in rounds]
    found = add_up(counts for counts in read if counts is not None)
    assert found.names == ("1", "2", "10")
    expected = {"uplink": [0, 5, 3], "downlink": [3, 0, 0], "other": [0, 0, 7], "late": [0, 0, 1]}
    for number, kind in enumerate(KINDS):
        assert found.counts[:, number].tolist() == expected.get(kind, [0, 0, 0])
    named = add_up([ClientCounts(("node 9", "node 10"), np.ones((2, len(KINDS)), np.int64))])
    assert named.names == ("node 9", "node 10")
    assert add_up([]).names == ()


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([], r"clients must be a JSON object, got \[\]"),
        ({"0": 5}, "each of clients must be a JSON object, got 5"),
        ({"0": {"uplink": 1.5}}, "counts of clients must be integers"),
        ({"0": {"uplink": -1}}, "counts of clients must be integers"),
        ({"0": {"uplink": True}}, "counts of clients must be integers"),
        ({"0": {"uplink": 10**30}}, "counts of clients must be integers"),
    ],
)
def test_counts_that_are_none_are_refused(clients: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_clients({"clients": clients}, "here")


def test_charts_of_clients_supports_and_residuals_hold_the_numbers(tmp_path: Path) -> None:
    found = built(tmp_path, dense(), run("ef(topk(0.01))", uplink_bytes=2400)).figures()
    uplink = {trace["name"]: trace for trace in found["clients_uplink"]["data"]}
    assert uplink["ef(topk(0.01))"]["x"] == list(range(CLIENTS))
    assert uplink["ef(topk(0.01))"]["y"] == [100 * ROUNDS] * CLIENTS
    (late,) = [trace for trace in found["missing_late"]["data"] if trace["name"] == "dense()"]
    assert (late["x"], late["y"]) == ([0], [ROUNDS])
    assert "missing_lost" not in found
    density = {trace["name"]: trace["y"] for trace in found["density_of_an_upload"]["data"]}
    assert density == {
        "dense()": [100] * ROUNDS,
        "ef(topk(0.01))": pytest.approx([0.1 * (i + 1) for i in range(ROUNDS)]),
    }
    assert found["density_of_the_aggregate"]["data"][1]["y"] == [2] * ROUNDS
    assert found["overlap"]["data"][0]["x"] == [2, 3, 4, 5, 6]
    assert found["overlap"]["data"][0]["y"] == [50] * 5
    (residual,) = found["residual_residual"]["data"]
    assert residual["y"] == [1, 2, 3, 4, 5, 6]
    assert [trace["x"] for trace in found["direction"]["data"]] == [
        [96_600, 2400],
        [96_000, 96_000],
        [16_000, 16_000],
        [0, 0],
    ]


def test_a_method_s_front_never_falls_and_is_drawn_over_its_line(tmp_path: Path) -> None:
    accuracies = [0.2, 0.5, 0.4, 0.6, 0.3, 0.1]
    lines = [{**line, "accuracy": a} for line, a in zip(full_lines_of(run("a")), accuracies, strict=True)]
    found = built(tmp_path, run("a"), metrics="".join(json.dumps(line) + "\n" for line in lines)).figures()
    line, best = found["accuracy_bytes"]["data"]
    assert line["y"] == pytest.approx([20, 50, 40, 60, 30, 10])
    assert (best["x"], best["y"]) == ([400, 800, 1600, 2400], pytest.approx([20, 50, 60, 60]))
    assert best["line"]["shape"] == "hv"
    assert len(found["accuracy_rounds"]["data"]) == 1


def test_final_points_join_the_front_of_methods_that_differ_in_numbers(tmp_path: Path) -> None:
    places = {"topk(0.1)": (3000, 0.9), "topk(0.05)": (2000, 0.7), "topk(0.01)": (1000, 0.8), "sign()": (2500, 0.95)}
    runs = [
        run(name, uplink_bytes=size, final_accuracy=accuracy, header_bytes=size, support_bytes=0, values_bytes=0)
        for name, (size, accuracy) in places.items()
    ]
    joined, *points = built(tmp_path, *runs).figures()["accuracy_final"]["data"]
    assert (joined["x"], joined["y"]) == ([1000, 3000], [80, 90])
    large = {trace["name"] for trace in points if trace["marker"]["size"] > 10}
    assert large == {"topk(0.01)", "sign()"}


def test_sheets_hold_every_round_client_and_method(tmp_path: Path) -> None:
    found = built(tmp_path, timed("a, b", "topk(0.01)", 60.0, None), dense())
    rounds = sheet(found, "rounds")
    assert rounds["method"] == ["a, b"] * ROUNDS + ["dense()"] * ROUNDS
    assert rounds["uplink_bytes_so_far"][:3] == [400, 800, 1200]
    assert rounds["accuracy"][:3] == [None, 0.1, None]
    assert rounds["virtual_seconds"][:ROUNDS] == [10, 20, 30, 40, 50, 60]
    clients = sheet(found, "clients")
    assert clients["client"] == [str(i) for i in range(CLIENTS)] * 2
    assert clients["num_late"] == ([ROUNDS] + [0] * (CLIENTS - 1)) * 2
    methods = sheet(found, "methods")
    assert methods["uplink_bytes"] == [2400, 96_600]
    assert "wan_uplink_bytes" not in methods


def test_a_page_that_would_grow_too_large_holds_fewer_rounds_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run("topk(0.01)", rounds=3000, uplink_bytes=300_000)
    lines = [
        {"method": "topk(0.01)", "seed": 0, "round": i, "accuracy": (i * 7919 % 3000) / 3000, "uplink_bytes": 100}
        for i in range(3000)
    ]
    metrics = "".join(json.dumps(line) + "\n" for line in lines)
    whole = built(tmp_path, record, metrics=metrics)
    assert len(sheet(whole, "rounds")["round"]) == 3000
    assert "hold some of the rounds" not in whole.text
    figures, _, *sheets, _ = map(len, whole.scripts)
    monkeypatch.setattr(page, "_MOST_SHEET_BYTES", figures + sum(sheets) // 2)
    fewer = built(tmp_path, record, metrics=metrics)
    assert "hold some of the rounds" in fewer.text
    kept = sheet(fewer, "rounds")
    assert 100 < len(kept["round"]) < 2000
    assert sum(map(len, fewer.scripts[2:-1])) <= sum(sheets) // 2
    assert (min(kept["accuracy"]), max(kept["accuracy"])) == (0, pytest.approx(2999 / 3000, abs=1e-6))
    assert (kept["round"][0], kept["round"][-1]) == (1, 3000)


def test_no_more_points_are_drawn_than_can_be_seen(tmp_path: Path) -> None:
    record = run("topk(0.01)", rounds=9000, uplink_bytes=900_000)
    lines = ({"method": "topk(0.01)", "seed": 0, "round": i, "accuracy": 0.5, "uplink_bytes": 100} for i in range(9000))
    found = built(tmp_path, record, metrics="".join(json.dumps(line) + "\n" for line in lines)).figures()
    line, *_ = found["accuracy_bytes"]["data"]
    assert len(line["x"]) <= plots._MOST_POINTS
    assert (line["x"][0], line["x"][-1]) == (100, 900_000)
