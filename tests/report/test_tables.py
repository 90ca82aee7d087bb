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
    columns_of,
    format_bytes,
    format_seconds,
    summary_rows,
)
from gradwire.report.verdict import verdict


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.051, "0.051 s"),
        (2.04, "2.0 s"),
        (119.9, "119.9 s"),
        (748, "12.5 min"),
        (7076.6, "118 min"),
        (7200, "2.00 h"),
        (172_799, "48.0 h"),
        (864_000, "10.0 d"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def timed(label: str, method: str, reached: float | None, seed: int = 0, **changes: Any) -> dict[str, Any]:
    target = {"target_accuracy": 0.95, "target_virtual_seconds": reached}
    target["target_total_bytes"] = None if reached is None else 1000
    return run(method, 0.9, 100, **{"label": label, "seed": seed, "virtual_seconds": 900.0, **target, **changes})


def test_runs_are_told_apart_by_their_labels() -> None:
    got = rows(run("dense()", 0.9, 100, label="all"), run("dense()", 0.9, 50, label="few"), run("a", 0.9, 1))
    assert [(row.method, row.spec, row.is_dense) for row in got] == [
        ("all", "dense()", True),
        ("few", "dense()", True),
        ("a", "a", False),
    ]


def titles(got: list[Row]) -> list[str]:
    return [column.title for column in columns_of(got) if not column.always]


def test_columns_of_links_regions_and_targets_are_shown_where_a_run_has_them() -> None:
    still = {"virtual_seconds": 0.0, "wan_uplink_bytes": 0, "target_accuracy": None, "target_virtual_seconds": None}
    assert titles(rows(run("a", 0.9, 1), run("b", 0.9, 1, **still))) == []
    assert titles(rows(run("a", 0.9, 1), run("b", 0.9, 1, virtual_seconds=3.0))) == ["Virtual time"]
    assert titles(rows(run("a", 0.9, 1, wan_uplink_bytes=7))) == ["WAN uplink"]
    assert titles(rows(run("a", 0.9, 1), timed("b", "b", None))) == ["Time to 95 %", "Bytes to 95 %", "Virtual time"]
    # without a clock, nobody took any time
    got = rows(timed("a", "a", 0.0, virtual_seconds=0.0), timed("b", "b", 0.0, virtual_seconds=0.0))
    assert titles(got) == ["Bytes to 95 %"]


def test_different_targets_are_neither_named_nor_ranked() -> None:
    got = rows(timed("a", "dense()", 3.0), timed("b", "b", 2.0, target_accuracy=0.9))
    assert titles(got)[:2] == ["Time to target", "Bytes to target"]
    assert [best_rows(got, column) for column in columns_of(got)[1:3]] == [frozenset(), frozenset()]
    assert "fewer uplink bytes" in verdict(got)


def test_seeds_that_missed_the_target_are_counted_and_never_win() -> None:
    key = "target_virtual_seconds"
    got = rows(
        timed("a", "a", 100.0),
        timed("a", "a", 300.0, seed=1),
        timed("b", "b", 10.0),
        timed("b", "b", None, seed=1),
        timed("c", "c", None),
        timed("d", "d", 400.0),
        run("e", 0.9, 1),
    )
    assert [cell_text(row, key) for row in got] == [
        "3.33 min ± 2.36 min",
        "10.0 s (1 of 2 seeds)",
        "not reached",
        "6.67 min",
        "–",  # noqa: RUF001
    ]
    assert [cell_title(row, key) for row in got] == [
        "mean 200 seconds of 2 seeds: 100; 300",
        "10 seconds; not reached by 1 of 2 seeds",
        "not reached",
        "400 seconds",
        "not measured",
    ]
    assert cell_text(got[1], "target_total_bytes") == "1.00 kB (1 of 2 seeds)"
    assert best_rows(got, next(column for column in columns_of(got) if column.key == key)) == {0}


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


def swept(
    method: str, algorithm: str, links: str, uplink: int, accuracy: float = 0.9, **changes: Any
) -> dict[str, Any]:
    label = " · ".join([method, algorithm, links, *changes.values()])
    return run(method, accuracy, uplink, label=label, algorithm=algorithm, links=links, **changes)


def test_verdict_compares_with_the_dense_run_beside() -> None:
    dense = [swept("dense()", "fedavg()", "4g", 1000), swept("dense()", "scaffold()", "4g", 8000, accuracy=0.8)]
    compressed = [swept("a", "fedavg()", "4g", 500), swept("a", "scaffold()", "4g", 800, accuracy=0.79)]
    assert verdict(rows(*dense, *compressed)) == (
        "a · scaffold() · 4g reaches 79.0 % against 80.0 % of dense() · scaffold() · 4g with 10x fewer uplink bytes "
        "(800 B instead of 8.00 kB)."
    )
    assert "a · fedavg() · 4g reaches 90.0 % against 90.0 % of dense() · fedavg()" in verdict(
        rows(*dense, compressed[0])
    )
    assert "No compressed run has one dense() run" in verdict(rows(*dense, swept("a", "fedavg()", "lora", 1)))
    assert "No compressed run has one dense() run" in verdict(rows(*dense))
    far = swept("a", "scaffold()", "4g", 1, accuracy=0.7)
    assert "comes within 2 points of what the dense() run beside it reaches." in verdict(rows(*dense, far))


def test_of_dense_runs_with_equal_links_the_one_with_the_same_budget_counts() -> None:
    dense = [
        swept("dense()", "fedavg()", "4g", size, budget=budget) for size, budget in ((1000, "none()"), (90, "fit()"))
    ]
    said = verdict(rows(*dense, swept("a", "fedavg()", "4g", 30, budget="fit()")))
    assert "of dense() · fedavg() · 4g · fit() with 3.0x fewer" in said
    assert "No compressed run has one" in verdict(rows(*dense, swept("a", "fedavg()", "4g", 30, budget="bytes(9)")))


DENSE = timed("dense FedAvg", "dense()", 600.0)


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (
            [DENSE, timed("TCS", "tcs(0.01, 0.001)", 120.0), timed("slow", "a", 700.0)],
            "TCS is the first to reach 95 %, after 2.00 min of virtual time, 5.0x sooner than dense FedAvg (10.0 min).",
        ),
        (
            [timed("b", "b", 120.0), timed("a", "a", 30.0), timed("c", "c", 60.0)],
            "a is the first to reach 95 %, after 30.0 s of virtual time, 4.0x sooner than the slowest, b (2.00 min).",
        ),
        (
            [DENSE, timed("a", "a", 1200.0)],
            "dense FedAvg is the first to reach 95 %, after 10.0 min of virtual time, 2.0x",
        ),
        (
            [timed("dense FedAvg", "dense()", None), timed("a", "a", 30.0)],
            "virtual time; dense FedAvg does not reach it.",
        ),
        (
            [
                DENSE,
                timed("dense FedAvg", "dense()", None, seed=1),
                timed("a", "a", 30.0),
                timed("a", "a", 30.0, seed=1),
            ],
            "of virtual time; dense FedAvg does not with every seed.",
        ),
        (
            [timed("a", "a", 30.0), run("dense()", 0.9, 9)],
            "a is the first to reach 95 %, after 30.0 s of virtual time.",
        ),
        ([timed("a", "a", 600.0), DENSE], "after 10.0 min of virtual time (dense FedAvg: 10.0 min)."),
        ([timed("a", "a", 0.0), DENSE], "after 0.0 s of virtual time (dense FedAvg: 10.0 min)."),
        ([DENSE, timed("a", "a", 1.0, status="partial")], "dense FedAvg is the first to reach 95 %, after 10.0 min"),
        ([timed("a", "a", None)], "No complete run reached 95 % with every seed"),
        (
            [timed("dense FedAvg", "dense()", 0.0, virtual_seconds=0.0), timed("a", "a", 0.0, virtual_seconds=0.0)],
            "No method within 2 points of the 90.0 % that dense() reaches sends fewer uplink bytes.",
        ),
    ],
)
def test_verdict_on_a_target(runs: list[dict[str, Any]], said: str) -> None:
    assert said in verdict(rows(*runs))
