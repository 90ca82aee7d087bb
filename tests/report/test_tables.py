from __future__ import annotations

from typing import Any

import pytest

from gradwire.report.tables import (
    COLUMNS,
    Row,
    Stat,
    best_rows,
    cell_text,
    cell_title,
    format_bytes,
    summary_rows,
    verdict,
)


def run(method: str, accuracy: float | None, uplink: int, **changes: Any) -> dict[str, Any]:
    return {
        "method": method,
        "seed": 0,
        "clients": 2,
        "rounds": 5,
        "final_accuracy": accuracy,
        "uplink_bytes": uplink,
        "downlink_bytes": 10,
        "other_bytes": 0,
        "dense_uplink_bytes": 1_000_000,
        "compression_ratio": 1_000_000 / uplink,
        "bits_per_parameter": 1.0,
        "model_sha256": "0",
        "seconds": 1.0,
        **changes,
    }


def rows(*runs: dict[str, Any]) -> list[Row]:
    return summary_rows({"runs": list(runs)})


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (1.5, "1.5 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (38_440, "38.4 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (11_532_000, "11.5 MB"),
        (2_500_000_000, "2.50 GB"),
        (10**22, "10000 EB"),
    ],
)
def test_format_bytes(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text


def test_rows_average_seeds_and_keep_order() -> None:
    got = rows(run("b", 0.8, 100), run("a", 0.5, 7), run("b", 0.9, 200, seed=1))
    assert [row.method for row in got] == ["b", "a"]
    assert got[0].seeds == (0, 1)
    assert got[0].accuracy == Stat((0.8, 0.9))
    assert got[0].uplink_bytes.mean == 150
    assert got[0].uplink_bytes.std == pytest.approx(70.7107, rel=1e-5)
    assert got[1].uplink_bytes.std is None
    assert cell_text(got[0], "uplink_bytes") == "150 B ± 71 B"
    assert cell_title(got[0], "uplink_bytes") == "mean 150.0 bytes of 2 seeds: 100; 200"
    assert cell_title(got[1], "uplink_bytes") == "7 bytes"
    assert cell_title(got[1], "compression_share") == "not measured"


def test_partial_seeds_are_left_out_where_complete_ones_exist() -> None:
    (row,) = rows(run("a", 0.8, 100), run("a", 0.1, 10, seed=1, status="partial", rounds_done=1))
    assert (row.seeds, row.num_partial, row.status, row.uplink_bytes.mean) == ((0,), 1, "complete", 100)
    (row,) = rows(run("a", 0.1, 10, rounds_done=1))
    assert (row.status, row.rounds_done) == ("partial", 1)


def test_best_ignores_ties_of_all_and_partial_runs() -> None:
    uplink = next(column for column in COLUMNS if column.key == "uplink_bytes")
    got = rows(run("a", 0.8, 100), run("b", 0.8, 100), run("c", 0.8, 200), run("d", 0.8, 1, status="partial"))
    assert best_rows(got, uplink) == {0, 1}
    assert best_rows(got[:2], uplink) == frozenset()


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([], "nothing to compare"),
        ([run("topk(0.01)", 0.9, 10)], "There is no dense() run"),
        ([run("dense()", 0.9, 1000, status="partial")], "only partial"),
        ([run("dense()", None, 1000), run("a", 0.9, 10)], "no final accuracy"),
        ([run("dense()", 0.9, 1000)], "Only dense() ran"),
        ([run("dense()", 0.9, 1000), run("a", 0.8799, 10)], "No method comes within 2 points of the 90.0 %"),
        ([run("dense()", 0.9, 1000), run("a", None, 10)], "No method comes within 2 points"),
        ([run("dense()", 0.9, 1000), run("a", 0.9, 1001)], "sends fewer uplink bytes"),
        ([run("dense()", 0.9, 1000), run("a", 0.88, 500)], "a reaches 88.0 % against 90.0 % dense with 2.0x fewer"),
        (
            [run("dense()", 0.961, 61_000), run("x", 0.5, 10), run("a", 0.953, 1000), run("b", 0.96, 2000)],
            "a reaches 95.3 % against 96.1 % dense with 61x fewer uplink bytes (1.00 kB instead of 61.0 kB).",
        ),
    ],
)
def test_verdict(runs: list[dict[str, Any]], said: str) -> None:
    assert said in verdict(rows(*runs))
