from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
from importlib import resources
from pathlib import Path

import pytest
from fabricated_runs import PARAMETERS, ROUNDS, dense, lines_of, run, timed, write
from page_reader import Page, cells, sheet

from gradwire.report import build_report, charts, plots
from gradwire.report.bars import SHARED_LAYOUT, Figure
from gradwire.report.offline import PLOTLY

LOSSES = ["loss_test_by_bytes", "loss_test_by_round", "loss_training_by_round"]
EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"


def page(directory: Path) -> Page:
    path = build_report(directory)
    assert path == directory / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_table_holds_the_numbers_and_the_verdict_follows(tmp_path: Path) -> None:
    found = page(write(tmp_path, [dense(), run("ef(topk(0.01))")]))
    assert cells(found)["ef(topk(0.01))"] == [
        "90.0 %",
        "2.40 kB (best)",
        "96.0 kB",
        "16.0 kB",
        "40.0x (best)",
        "0.80",
        "25.0 %",
        "12.0",
        "2.0 s",
    ]
    assert cells(found)["dense()"][0] == "91.0 % (best)"
    assert "ef(topk(0.01)) reaches 90.0 % against 91.0 % dense with 40x fewer uplink bytes" in found.text
    titles = [attrs.get("title") for tag, attrs in found.tags if tag == "td"]
    assert "2,400 bytes" in titles
    assert "96,600 bytes" in titles


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    found = page(write(tmp_path, [dense(), run("topk(0.01)")], experiment={"data": "digits"}))
    for tag, attrs in found.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        assert "src" not in attrs
        assert not any("url(" in (value or "") for value in attrs.values())
        if "href" in attrs:
            assert attrs["href"] in ("summary.json", "metrics.jsonl")
    assert not re.search(r"url\(|@import|https?:", "".join(found.styles))
    own = found.scripts[-1]
    assert "http" not in found.scripts[0] + own
    outside = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|\burl\(|\bimport\b", outside)


def test_plotly_is_inlined_once_and_only_known_scripts_may_run(tmp_path: Path) -> None:
    library = (resources.files("gradwire.report") / PLOTLY).read_text(encoding="utf-8")
    assert library.startswith("/**\n* plotly.js (basic - minified) v")
    found = page(write(tmp_path, [dense()]))
    kinds = [(attrs.get("type"), attrs.get("id")) for tag, attrs in found.tags if tag == "script"]
    packed = "application/octet-stream"
    sheets = [(packed, "sheet-methods"), (packed, "sheet-rounds")]
    assert kinds == [("application/json", "figures"), (packed, "plotly"), *sheets, (None, None)]
    assert gzip.decompress(base64.b64decode(found.scripts[1])).decode() == library
    (policy,) = [attrs["content"] for _, attrs in found.tags if "http-equiv" in attrs]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for script in (library, found.scripts[-1]):
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert "unsafe-eval" not in policy
    assert "showSendToCloud: false" in found.scripts[-1]


@pytest.mark.parametrize("name", ["<script>", EVIL, "<!--<script>", "a & b \u2028 'q' \"q\"", "{{ 7 * 7 }}", "%{x}"])
def test_method_names_are_text_everywhere(tmp_path: Path, name: str) -> None:
    safe = page(write(tmp_path, [dense(), run("topk(0.01)")], experiment={"data": "digits"}))
    odd = run("topk(0.01)", label=name)
    found = page(write(tmp_path, [dense(), odd], experiment={"data": name, "seeds": [name]}))
    assert name.replace("\u2028", "") in found.text.replace("\u2028", "")
    found = page(write(tmp_path, [dense(), run(name)], experiment={"data": name, "seeds": [name]}))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in safe.tags]
    assert [sorted(attrs) for _, attrs in found.tags] == [sorted(attrs) for _, attrs in safe.tags]
    assert found.scripts[1] == safe.scripts[1]
    assert found.scripts[-1] == safe.scripts[-1]
    assert sheet(found, "methods")["method"] == ["dense()", name]
    assert name.replace("\u2028", "") in found.text.replace("\u2028", "")
    raw = found.scripts[0]
    assert not set("<>&\u2028") & set(raw)
    # Plotly reads tags in labels: apart from ours, none may be left in any string it is given.
    for text in re.findall(r'"((?:[^"\\]|\\.)*)"', raw):
        tags = re.sub(r"</?(?:b|br|extra)>", "", json.loads(f'"{text}"'))
        assert "<" not in tags


def test_figures_are_what_plotly_accepts_and_styles_agree(tmp_path: Path) -> None:
    import plotly.graph_objects as go

    runs = [dense(), *(run(f"topk(0.0{i})") for i in range(1, 10))]
    figures = page(write(tmp_path, runs, experiment={"num_parameters": PARAMETERS})).figures()
    expected = ["accuracy_bytes", "accuracy_final", "accuracy_rounds", "direction", *LOSSES, "time"]
    assert sorted(figures) == [*expected, "upload_bytes", "upload_shares"]
    for figure in figures.values():
        go.Figure(figure)  # raises on any attribute plotly does not know
    by_bytes = {trace["name"]: trace for trace in figures["accuracy_bytes"]["data"]}
    by_round = {trace["name"]: trace for trace in figures["accuracy_rounds"]["data"]}
    bar_colors = figures["upload_bytes"]["data"][0]["marker"]["color"]
    for position, record in enumerate(runs):
        line = by_bytes[record["method"]]["line"]
        assert {**line, "width": 0} == {**by_round[record["method"]]["line"], "width": 0, "shape": "hv"}
        assert line["color"] == bar_colors[position]
        assert (line["dash"] == "dash") == (record["method"] == "dense()")
    looks = {(trace["line"]["color"], trace["line"]["dash"]) for trace in by_bytes.values()}
    assert len(looks) == len(runs)
    assert figures["accuracy_bytes"]["layout"]["xaxis"]["type"] == "log"


def test_lines_accumulate_bytes_and_skip_rounds_not_evaluated(tmp_path: Path) -> None:
    figures = page(write(tmp_path, [run("topk(0.01)")], experiment={"num_parameters": PARAMETERS})).figures()
    line, best = figures["accuracy_bytes"]["data"]
    assert line["x"] == [800, 1600, 2400]
    assert (best["x"], best["y"]) == ([*line["x"], 2400], [*line["y"], line["y"][-1]])
    assert line["y"] == pytest.approx([10, 30, 50])
    assert figures["accuracy_rounds"]["data"][0]["x"] == [2, 4, 6]
    header, support, values = figures["upload_bytes"]["data"]
    assert [header["x"], support["x"], values["x"]] == [[25], [25], [50]]
    assert "50.0 % of 100 B" in values["customdata"][0]
    shares = [trace["x"][0] for trace in figures["upload_shares"]["data"]]
    assert shares == [25, 25, 50]


def test_losses_of_each_kind(tmp_path: Path) -> None:
    found = page(write(tmp_path, [dense(), run("topk(0.01)")]))
    figures = found.figures()
    for name, factor in zip(LOSSES, (1.5, 1.5, 1.0), strict=True):
        traces = [trace for trace in figures[name]["data"] if trace.get("meta") == "topk(0.01)"]
        assert traces[-1]["y"] == pytest.approx([factor / (index + 1) for index in range(ROUNDS)], rel=1e-3)
    assert figures[LOSSES[0]]["layout"]["yaxis"]["title"]["text"] == "test loss"
    assert sheet(found, "rounds")["test_loss"][:2] == [1.5, 0.75]


def test_seeds_are_averaged(tmp_path: Path) -> None:
    runs = [run("topk(0.01)", seed=seed, final_accuracy=0.8 + seed / 10) for seed in (0, 1)]
    metrics = ""
    for record in runs:
        for line in lines_of(record):
            line["accuracy"] = 0.2 + 0.2 * record["seed"]
            metrics += json.dumps(line) + "\n"
    found = page(write(tmp_path, runs, metrics))
    row = cells(found)["topk(0.01) seeds 0, 1"]
    assert row[0] == "85.0 % ± 7.1 %"
    assert row[1] == "2.40 kB"
    band, line = found.figures()["accuracy_rounds"]["data"]
    assert line["y"] == pytest.approx([30] * ROUNDS)
    assert (min(band["y"]), max(band["y"])) == pytest.approx((20, 40))
    assert band["legendgroup"] == line["legendgroup"]


def test_partial_run_has_a_badge_and_never_wins(tmp_path: Path) -> None:
    short = run("tcs(0.01, 0.001)", status="partial", rounds_done=2, uplink_bytes=4, final_accuracy=0.99)
    short |= {"header_bytes": 1, "support_bytes": 1, "values_bytes": 2}
    found = page(write(tmp_path, [dense(), run("topk(0.01)"), short], ""))
    row = cells(found)["tcs(0.01, 0.001) partial: 2 of 6 rounds"]
    assert row[:2] == ["99.0 %", "4 B"]
    assert "topk(0.01) reaches" in found.text
    assert "Interrupted before the end" in found.text


def test_accuracy_that_is_nan_or_null_is_a_gap(tmp_path: Path) -> None:
    metrics = ""
    for record in (run("topk(0.01)"), run("sign()")):
        for line in lines_of(record):
            line["accuracy"] = math.nan if record["method"] == "sign()" else line["accuracy"]
            metrics += json.dumps(line) + "\n"
    runs = [run("topk(0.01)", final_accuracy=None), run("sign()", final_accuracy=math.nan)]
    found = page(write(tmp_path, runs, metrics))
    assert cells(found)["topk(0.01)"][0] == cells(found)["sign()"][0] == "–"  # noqa: RUF001
    assert [trace["name"] for trace in found.figures()["accuracy_rounds"]["data"]] == ["topk(0.01)"]


def test_additions_may_be_missing(tmp_path: Path) -> None:
    keys = ("status", "rounds_done", "header_bytes", "support_bytes", "values_bytes")
    record = run("topk(0.01)")
    for key in (*keys, "compression_seconds", "client_rounds_per_second"):
        del record[key]
    found = page(write(tmp_path, [record]))
    assert cells(found)["topk(0.01)"][6:8] == ["–", "–"]  # noqa: RUF001
    assert sorted(found.figures()) == ["accuracy_bytes", "accuracy_rounds", "direction", *LOSSES]
    assert "does not say how the uplink bytes split" in found.text


def test_empty_run_gives_an_honest_page(tmp_path: Path) -> None:
    found = page(write(tmp_path, []))
    assert "nothing to compare" in found.text
    assert found.figures() == {}
    assert len(found.scripts) == 1


def test_figures_that_do_not_add_up_are_pointed_at(tmp_path: Path) -> None:
    found = page(write(tmp_path, [run("topk(0.01)", uplink_bytes=3000)]))
    assert "header, support and values add up to 2,400 bytes, uplink_bytes says 3,000" in found.text
    found = page(write(tmp_path, [run("topk(0.01)")], json.dumps(lines_of(run("topk(0.01)"))[1]) + "\n"))
    assert "metrics.jsonl add up to 400 uplink bytes, summary.json says 2,400" in found.text


def test_what_was_sent_again_counts(tmp_path: Path) -> None:
    for again in (600, 0):
        record = run("topk(0.01)", uplink_bytes=2400 + again, again_bytes=again)
        assert "add up" not in page(write(tmp_path, [record])).text
    found = page(write(tmp_path, [run("topk(0.01)", again_bytes=600)]))
    assert "header, support and values and what was sent again add up to 3,000 bytes, uplink_bytes says" in found.text


def test_runs_of_one_method_are_told_apart_by_label(tmp_path: Path) -> None:
    labels = ["1,000 clients", "10,000 clients"]
    runs = [run("topk(0.01)", label=label, uplink_bytes=600 * n) for n, label in enumerate(labels, start=1)]
    found = page(write(tmp_path, runs))
    assert list(cells(found)) == [f"{label} topk(0.01)" for label in labels]
    traces = {trace["name"]: trace["x"][-1] for trace in found.figures()["accuracy_bytes"]["data"]}
    assert traces == {"1,000 clients": 600, "10,000 clients": 1200}


def test_dense_runs_are_dashed_whatever_they_are_called(tmp_path: Path) -> None:
    runs = [run("dense()", label="all"), run("dense()", label="all, 4g"), run("topk(0.01)", label="dense()")]
    lines = {trace["name"]: trace["line"] for trace in page(write(tmp_path, runs)).figures()["accuracy_rounds"]["data"]}
    assert [lines[name]["dash"] for name in ("all", "all, 4g", "dense()")] == ["dash", "dash", "solid"]
    assert len({line["color"] for line in lines.values()}) == 3


def test_run_stopped_at_its_target_is_complete_and_its_totals_are_shorter(tmp_path: Path) -> None:
    note = "compare ratios, not totals"
    stopped = timed("TCS", "tcs(0.01, 0.001)", 60.0, 60.0, rounds_done=3)
    found = page(write(tmp_path, [stopped, timed("dense FedAvg", "dense()", 600.0, 600.0)], ""))
    assert "partial" not in found.text
    assert note in found.text
    assert cells(found)["TCS tcs(0.01, 0.001)"][1:3] == ["60.0 s (best)", "5.00 kB"]
    assert "TCS is the first to reach 95 %, after 60.0 s of virtual time, 10x sooner than dense FedAvg" in found.text
    assert note not in page(write(tmp_path, [dense(), run("topk(0.01)", status="partial", rounds_done=3)], "")).text


def test_accuracy_over_virtual_time(tmp_path: Path) -> None:
    import plotly.graph_objects as go

    # evaluated after rounds 2, 4 and 6
    runs = [timed("a", "a", 60.0, None), run("ideal")]
    found = page(write(tmp_path, runs))
    figure = found.figures()["accuracy_time"]
    go.Figure(figure)
    line, _ = figure["data"]
    assert (line["name"], line["x"]) == ("a", [20, 40, 60])
    assert line["y"] == pytest.approx([10, 30, 50])
    assert line["customdata"][0] == [2, 800, 20]
    assert "virtual time %{customdata[2]:,.4g} s" in line["hovertemplate"]
    assert "type" not in figure["layout"]["xaxis"]
    assert any(attrs.get("data-figure") == "accuracy_time" for _, attrs in found.tags)
    of_ideal = found.figures()["accuracy_bytes"]["data"][2]
    assert of_ideal["name"] == "ideal"
    assert "virtual time" not in of_ideal["hovertemplate"]


@pytest.mark.parametrize(("longest", "kind"), [(2000.0, None), (2001.0, "log")])
def test_virtual_time_over_more_than_two_decades_is_logarithmic(
    tmp_path: Path, longest: float, kind: str | None
) -> None:
    runs = [timed("a", "a", 60.0, None), timed("b", "b", longest, None)]
    assert page(write(tmp_path, runs)).figures()["accuracy_time"]["layout"]["xaxis"].get("type") == kind


def test_runs_without_a_clock_have_no_virtual_time(tmp_path: Path) -> None:
    found = page(write(tmp_path, [dense(virtual_seconds=0.0), run("topk(0.01)", virtual_seconds=0.0)]))
    assert "accuracy_time" not in found.figures()
    assert "irtual time" not in found.text


def test_settings_that_runs_change_are_not_those_of_all(tmp_path: Path) -> None:
    runs = [run("a", label="few", clients=10), run("a", label="many", clients=1000)]
    tables = [{"clients": 10}, {"clients": 1000, "local_steps": 9}]
    experiment = {"data": "digits", "clients": 4, "local_steps": 5, "batch_size": 32, "runs": tables}
    text = page(write(tmp_path, runs, experiment=experiment)).text
    assert "10 to 1000 clients" in text
    assert "batch size 32" in text
    assert "local steps" not in text
    assert "5 local steps" in page(write(tmp_path, runs, experiment={**experiment, "runs": "odd"})).text


def test_same_input_gives_same_bytes_and_no_leftovers(tmp_path: Path) -> None:
    write(tmp_path, [dense(), run("topk(0.01)")])
    first = build_report(tmp_path).read_bytes()
    assert build_report(tmp_path).read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "report.html", "summary.json"]


def test_last_line_cut_off_is_ignored_also_inside_a_character(tmp_path: Path) -> None:
    write(tmp_path, [run("topk(0.01)")])
    whole = page(tmp_path).figures()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"method": "caf\xc3')
    assert page(tmp_path).figures() == whole


def test_lone_surrogate_in_a_name_still_gives_a_page(tmp_path: Path) -> None:
    assert "\\ud800" in page(write(tmp_path, [run("\ud800")])).text


def test_table_is_readable_by_a_screen_reader(tmp_path: Path) -> None:
    found = page(write(tmp_path, [dense(), run("topk(0.01)")]))
    scopes = [attrs.get("scope") for tag, attrs in found.tags if tag == "th"]
    assert scopes == ["col"] * 10 + ["row"] * 2
    assert any(tag == "caption" for tag, _ in found.tags)
    assert any(attrs.get("tabindex") == "0" and attrs.get("role") == "region" for _, attrs in found.tags)


def test_a_chart_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dots(runs: plots.Runs) -> Figure | None:
        data = [{"type": "scatter", "x": [row.uplink_bytes.mean], "y": [row.clients]} for row in runs.rows]
        return {"data": data, "layout": {"xaxis": {}, "yaxis": {}, **SHARED_LAYOUT}} if data else None

    added = charts.Chart("dots", "Dots & more", "a dot a method", dots, caption="Look.", empty="No dots.")
    silent = charts.Chart("silent", "Silent", "nothing", lambda runs: None)
    monkeypatch.setattr(charts, "CHARTS", (added, silent))
    found = page(write(tmp_path, [dense(), run("topk(0.01)")]))
    assert list(found.figures()) == ["dots"]
    assert len(found.figures()["dots"]["data"]) == 2
    (box,) = [attrs for _, attrs in found.tags if "data-figure" in attrs]
    assert (box["data-figure"], box["aria-label"]) == ("dots", "a dot a method")
    assert "Dots & more" in found.text
    assert "Look." in found.text
    assert "Silent" not in found.text
    assert "Methods: press one" not in str(found.tags), "no lines, so no legend that hides them"
    assert "No dots." in page(write(tmp_path, [])).text


def test_views_of_one_chart_have_a_button_each(tmp_path: Path) -> None:
    found = page(write(tmp_path, [dense(), run("topk(0.01)")]))
    shown = [attrs["data-show"] for _, attrs in found.tags if "data-show" in attrs]
    assert shown == [*LOSSES, "upload_bytes", "upload_shares"]
    assert set(shown) <= set(found.figures())
