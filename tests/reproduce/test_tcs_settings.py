"""TCS's experiments: several settings, variants beside what they change, a baseline trained in one place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_ind_from_stats

import gradwire as gw
from gradwire.reproduce import tcs
from gradwire.reproduce.blocks import Table, Text
from gradwire.reproduce.run import find_config, reproduce
from gradwire.reproduce.statistics import unpaired_interval

SHARED = {"data": "digits", "model": "mlp", "clients": 10, "batch_size": 10, "learning_rate": 0.2, "partition": "iid"}
METHODS = [
    {"name": "centralised", "spec": "dense()", "local_steps": 5, "clients": 1, "batch_size": 20, "learning_rate": 0.1},
    {"name": "dense", "spec": "dense()", "local_steps": 1},
    {"name": "top-k", "spec": "ef(warmup(topk(0.01), WARMUP))", "local_steps": 1},
    {"name": "TCS", "spec": "ef(warmup(tcs(0.01, 0.001), WARMUP))", "local_steps": 2},
    {"name": "TCS-own", "beside": "TCS", "spec": "ef(tcs(0.02, 0.001))", "local_steps": 2, "seeds": [1]},
]
SETTING = {
    "name": "small",
    "examples": 1000,
    "epochs": 10,
    "warmup_epochs": 1,
    "evaluations": 5,
    "seeds": [0, 1],
    "shared": SHARED,
    "methods": METHODS,
}
CONFIG = {"settings": [SETTING, {**SETTING, "name": "other"}]}


def result(unit, accuracy: float, up: float, down: float) -> dict:
    """What a training leaves: 100 parameters, the same bytes in every round, no gain at the end."""
    rounds = unit.settings["rounds"]
    return {
        "summary": {"final_accuracy": accuracy, "clients": unit.settings["clients"]},
        "experiment": {"num_parameters": 100, "test_name": "the last fifth"},
        "accuracy": [[round, accuracy] for round in range(rounds)],
        "uplink_bytes": [[round, up] for round in range(rounds)],
        "downlink_bytes": [[round, down] for round in range(rounds)],
    }


def results(**of: tuple[float, float, float]) -> dict[str, dict]:
    return {
        unit.name: result(unit, *of[method])
        for unit in tcs.units(CONFIG)
        if unit.name.startswith("small") and (method := unit.name.split("-")[1]) in of
    }


def test_units_of_each_setting_method_and_seed():
    units = {unit.name: unit.settings for unit in tcs.units(CONFIG)}
    assert len(units) == 2 * (4 * 2 + 1)
    assert "small-TCS-own-seed1" in units
    assert "small-TCS-own-seed0" not in units
    # 10 epochs of 1,000 examples: steps of 20 in one place, five a round; of 10 times 10; the same, two a round
    assert [units[f"other-{name}-seed0"]["rounds"] for name in ("centralised", "dense", "TCS")] == [100, 100, 50]
    alone = units["small-centralised-seed1"]
    assert (alone["clients"], alone["batch_size"], alone["learning_rate"], alone["seeds"]) == (1, 20, 0.1, [1])
    assert units["small-TCS-seed0"]["methods"] == ["ef(warmup(tcs(0.01, 0.001), 5))"]
    assert "beside" not in units["small-TCS-own-seed1"]
    assert units["small-dense-seed0"]["clients"] == 10


def test_the_cpu_scale_has_what_the_paper_leaves_open():
    mnist, cifar = find_config("tcs", "cpu")["settings"]
    named = [method["name"] for method in mnist["methods"]]
    assert named[:7] == ["centralised", "dense", "top-k", "TCS", "TCS-L2", "TCS-L4", "TCS-L4-Q5"]
    assert mnist["methods"][0]["batch_size"] == 128
    assert cifar["shared"]["data"] == "cifar10"
    for method in mnist["methods"]:
        assert method.get("beside", "dense") in named


def test_figures_by_hand():
    """Bytes of ten clients and 100 parameters: 8 bits of them are 100 * 10 bytes a round."""
    found = results(
        centralised=(0.9, 400, 400), dense=(0.8, 4000, 4000), **{"top": (0.7, 500, 2000)}, TCS=(0.6, 100, 400)
    )
    blocks = tcs.report(CONFIG, found)
    table, down, pairs, variants = [block.rows for block in blocks if isinstance(block, Table)]
    assert table[0][:4] == ["centralised", "`dense()`", "-", "100"]
    assert table[0][4] == "92.23 ± 0.23"
    assert table[0][5] == "90.00 ± 0.00 (2)"
    assert table[0][8] == "-", "nothing travels in one place"
    assert (table[1][4], table[1][8]) == ("-", "32.00000"), "the paper's baseline is not the clients' mean"
    assert (table[3][0], table[3][8]) == ("TCS", "0.40000"), "0.8 bits an upload, for two steps"
    by_name = {row[0]: row for row in down}
    assert by_name["TCS"][2] == "-90.0 %"
    assert by_name["TCS"][4] == "20.0x fewer"
    assert by_name["TCS"][5] == "20.0x fewer", "dense sends 32 bits here"
    assert by_name["centralised"][2:] == ["-", "-", "-", "-", "+0.00"]
    assert [row[0] for row in pairs[:3]] == ["TCS - top-k", "TCS - centralised", "top-k - centralised"]
    assert pairs[1][2] == "-30.00 ± 0.00 (2)"
    assert pairs[1][3:] == ["worse", "the paper shows no order"]
    assert [row[0] for row in variants] == ["TCS-own"]
    assert variants[0][3] == "TCS: -"
    texts = [block.text for block in blocks if isinstance(block, Text)]
    assert any("one in 50 here" in text for text in texts)
    assert texts[-1] == "Not run yet.", "of the other setting"


@pytest.mark.parametrize(
    ("claimed", "gain", "said"),
    [
        (93.0, 0, "reproduced"),
        (91.0, 0, "not reproduced"),
        (93.0, 20, "not judged: TCS still rising"),
        (92.0, 0, "the paper shows no order"),
    ],
)
def test_an_order_is_judged_where_both_show_one_and_training_is_through(monkeypatch, claimed, gain, said):
    monkeypatch.setitem(tcs._CLAIMED, "top-k", (92.0, 0.1, 0.41))
    monkeypatch.setitem(tcs._CLAIMED, "TCS", (claimed, 0.1, 0.363))
    found = results(**{"top": (0.7, 500, 2000)}, TCS=(0.8, 100, 400))
    for name in (name for name in found if "TCS" in name):
        last = 0.8 * len(found[name]["accuracy"])
        found[name]["accuracy"] = [[r, a - gain / 100 * (r < last)] for r, a in found[name]["accuracy"]]
    _, _, pairs, *_ = [block.rows for block in tcs.report(CONFIG, found) if isinstance(block, Table)]
    assert pairs[0][4] == said


def test_where_topk_is_above_dense_dense_is_undertrained():
    setting = {**SETTING, "methods": [method for method in METHODS if method["name"] != "centralised"]}
    found = results(**{"top": (0.7, 500, 2000)}, TCS=(0.8, 100, 400), dense=(0.6, 4000, 4000))
    _, _, pairs, *_ = [block.rows for block in tcs.report({"settings": [setting]}, found) if isinstance(block, Table)]
    assert [row[4] for row in pairs[1:3]] == ["not judged: dense undertrained"] * 2


@given(
    st.tuples(st.floats(50, 99), st.floats(0.01, 5)),
    st.tuples(st.floats(50, 99), st.floats(0.01, 5)),
    st.integers(2, 9),
)
def test_published_means_are_compared_by_welch(a, b, count):
    mean, half = unpaired_interval(a, b, count)
    assert mean == a[0] - b[0]
    at_the_edge = ttest_ind_from_stats(half, a[1], count, 0.0, b[1], count, equal_var=False)
    assert at_the_edge.pvalue == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("missing", ["dense", "top"])
def test_what_is_missing_is_a_dash(missing):
    of = {"dense": (0.8, 4000, 4000), "top": (0.7, 500, 2000)}
    del of[missing]
    table, *_ = [block.rows for block in tcs.report(CONFIG, results(**of)) if isinstance(block, Table)]
    assert [row[5] for row in table if row[0].startswith(missing)] == ["-"]


def test_the_paper_s_scale_asks_for_the_test_batch(tmp_path):
    """Without it a tenth of the paper's examples would be held out of training."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for number in range(1, 6):
        (folder / f"data_batch_{number}.bin").write_bytes(bytes(3073))
    with pytest.raises(gw.ConfigError, match="this scale needs test_batch, which is not beside data_batch_1"):
        reproduce("tcs", "paper", tmp_path / "out", tmp_path, 1, print, print, lambda: True)
    assert not (tmp_path / "out").exists()
