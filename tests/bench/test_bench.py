"""The measurement itself: what it promises to print, and its arithmetic against closed forms. No speed is asserted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import speed

import gradwire as gw
from gradwire import cli
from gradwire.bench import flower, machine, ours, peers, scaling, small
from gradwire.bench.cost import LINKS, break_even, round_seconds
from gradwire.bench.measure import Operation, Samples, measure, peak_bytes
from gradwire.bench.ours import METHODS
from gradwire.bench.updates import RESNET50, adversarial, blocks, layout_of, log_normal_update, resnet50_shapes, windows
from gradwire.federated.data.models import build_model
from gradwire.federated.data.tasks import load_task
from gradwire.layout import Layout

D = 60_000
ABOUT = {"machine", "d", "threads", "rounds", "omp_wait_policy"}


def numbers(value):
    """Every number of nested plain values."""
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, (int, float)) else []


def bench(*options):
    """What the command prints, in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-m", "gradwire", "bench", "--json", "--size", str(D), "--rounds", "2", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found():
    return bench("--threads", "1")


@pytest.fixture(scope="module")
def scaled():
    return bench("--scaling", "--threads", "2")


def test_json_has_what_is_promised(found):
    promised = {"floor_seconds", "rows", "codec", "methods", "comparisons", "memory", "small", "scaling", "notes"}
    assert set(found) == ABOUT | promised
    assert (found["d"], found["threads"], found["rounds"], found["omp_wait_policy"]) == (D, 1, 2, "passive")
    assert set(found["machine"]) == {"processor", "cores", "python", "numpy", "numba", "torch", "gradwire"}
    assert all(set(row) == {"group", "name", "seconds", "ratio", "note"} for row in found["rows"])
    assert {row["group"] for row in found["rows"]} == set(speed.GROUPS)
    assert found["rows"][0]["ratio"] == 1.0
    assert found["rows"][0]["seconds"] == found["floor_seconds"]
    names = [row["name"] for row in found["rows"]]
    assert len(set(names)) == len(names)
    steps = [
        f"{step}, {spec}" for spec in METHODS for step in ("Client.compress", "Server.receive", "Client.end_round")
    ]
    assert set(steps) <= set(names)
    second = f"Server.receive, {METHODS[2]}, the second of a round"
    assert names.index(second) == 1 + names.index(f"Server.receive, {METHODS[2]}")
    assert f"Client.compress, {METHODS[1]}, blocks" in names
    memory = {"compress_extra_percent", "aggregate_clients", "aggregate_peak_vectors", "close_round_extra_vectors"}
    assert set(found["memory"]) == memory
    assert 1 <= found["memory"]["close_round_extra_vectors"] < 2  # the result's vector, and what is small


def test_every_number_is_positive_and_finite(found, scaled):
    dense = {**found["methods"][0]}
    assert dense.pop("compress_seconds") == 0.0
    assert dense.pop("pays_below_bits_per_second") == 0.0
    every = numbers([{**found, "methods": [dense, *found["methods"][1:]]}, scaled])
    assert len(every) > 150
    assert [n for n in every if not (math.isfinite(n) and n > 0)] == []


def test_methods_follow_from_the_rows(found):
    seconds = {row["name"]: row["seconds"] for row in found["rows"]}
    assert [m["method"] for m in found["methods"][2:]] == list(METHODS)
    for method in found["methods"][2:]:
        compress = seconds[f"Client.compress, {method['method']}"]
        spent = compress + seconds[f"Server.receive, {method['method']}"]
        expected = 8 * (4 * D - method["num_bytes"]) / (spent - found["floor_seconds"])
        assert method["pays_below_bits_per_second"] == pytest.approx(expected)
        assert method["round_seconds"]["100 Mbit/s"] == pytest.approx(method["num_bytes"] * 8e-8 + spent)
        assert list(method["round_seconds"]) == list(LINKS)


def test_scaling(scaled):
    assert set(scaled) == ABOUT | {"scaling"}
    result = scaled["scaling"]
    assert [row["d"] for row in result["sizes"]] == [D, 4 * D, 16 * D, 40 * D]
    assert set(result["second_core"]) == {"d", "threads", "add_gain", "compress_gain"}
    costs = [row["compress_nanoseconds"] for row in result["sizes"]]
    assert result["flatness"] == max(costs) / min(costs)


def test_scaling_leaves_out_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(scaling, "available_bytes", lambda: 5 * 10 * D)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = scaling.scaling(D, 1, lambda share: None)
    finally:
        torch.set_num_threads(before)
    assert [row["d"] for row in result["sizes"]] == [D, 4 * D]
    assert result["second_core"] == {}
    assert len(result["notes"]) == 3


def test_the_page_is_made_of_the_figures(found, scaled):
    body = speed.body_of({**found, "scaling": scaled["scaling"]})
    for row in found["rows"]:
        assert f"| {row['name'].replace('|', chr(92) + '|')} | {1000 * row['seconds']:.2f} |" in body
    assert all(f"a round at {link}" in body for link in LINKS)
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert page.count("<!-- speed -->") == page.count("<!-- end speed -->") == 1


@pytest.fixture
def command(monkeypatch, capfd):
    """The command's main() in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gradwire", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, *capfd.readouterr()

    return call


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        ("run_bench", [], ["torch.add_", "Client.compress, ef(regtopk(0.01))", "pays below", "microseconds"]),
        ("run_scaling", ["--scaling"], ["2,400,000", "x add_", "largest cost over smallest"]),
    ],
)
def test_the_table_is_printed(command, monkeypatch, found, scaled, function, options, said):
    asked = []
    measured = scaled if options else found
    monkeypatch.setattr(f"gradwire.bench.run.{function}", lambda *a: asked.append(a[:3]) or measured)
    code, out, err = command("bench", "--size", str(D), "--rounds", "2", "--threads", "1", *options)
    assert (code, err, asked) == (0, "", [(D, 1, 2)])
    assert all(text in out for text in said)
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("options", [["--size", "10"], ["--threads", "0"], ["--rounds", "0"]])
def test_options_out_of_range(command, options):
    code, out, err = command("bench", *options)
    assert (code, out) == (2, "")
    assert options[0] in err


def test_without_torch(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = command("bench", "--size", str(D))
    assert (code, out) == (2, "")
    assert err.startswith("gradwire: bench measures against torch.add_ and needs torch")
    assert err.count("\n") == 1


def test_without_zstandard(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    layout, update = log_normal_update(0, D)
    operations, notes = peers.peers([update], layout, 600)
    assert not any("zstd" in operation.name for operation in operations)
    assert notes == ["zstd was left out: zstandard is not installed"]


def test_break_even_against_a_closed_form():
    # 100 MB against 1 MB, 30 ms more at the ends: 99 MB take 30 ms at 26.4 Gbit/s
    assert break_even(100_000_000, 1_000_000, 0.040, 0.010) == pytest.approx(26.4e9)
    assert break_even(100, 10, 0.5, 0.5) == math.inf
    assert break_even(100, 100, 2.0, 1.0) == 0.0
    assert break_even(100, 120, 0.5, 1.0) == 0.0
    # at that bandwidth, and only there, both take as long
    for factor, faster in ((0.5, True), (2.0, False)):
        link = factor * 26.4e9
        dense, ours = round_seconds(100_000_000, 0.010, link), round_seconds(1_000_000, 0.040, link)
        assert (ours < dense) is faster
    assert round_seconds(100_000_000, 0.010, 26.4e9) == pytest.approx(round_seconds(1_000_000, 0.040, 26.4e9))


def test_samples():
    samples = Samples([1.0, 2.0, 4.0], {"a": [2.0, 8.0, 4.0], "b": [1.0, 1.0, 4.0], "c": [1.0, 3.0, 4.0]})
    assert samples.floor == 2.0
    assert samples.median("a") == 4.0
    assert samples.ratio("a") == 2.0  # of 2, 4 and 1, not 4 / 2
    assert samples.compare(("a",), ("b", "c")) == 1.0  # of 2 / 2, 8 / 4 and 4 / 8


def test_measure_runs_everything_once_a_round():
    seen, shares = [], []
    operations = [
        Operation("ours", "a", lambda number: seen.append(("a", number))),
        Operation("ours", "b", lambda number: seen.append(("b", number)), parts=1_000_000),
    ]
    samples = measure(lambda number: seen.append(("floor", number)), operations, 2, 1, shares.append)
    assert seen == [(name, number) for number in range(3) for name in ("floor", "a", "floor", "b")]
    assert [len(samples.seconds[name]) for name in "ab"] == [2, 2]
    assert len(samples.floors) == 2
    assert samples.median("b") < 1e-6
    assert shares[-1] == 1.0
    assert shares == sorted(shares)


def test_peak_bytes_counts_what_is_held_at_once():
    kept = np.ones(1_000_000, np.float32)
    assert peak_bytes(lambda: kept + 1) == pytest.approx(kept.nbytes, rel=0.01)
    assert peak_bytes(lambda: (kept + 1) + (kept + 2)) == pytest.approx(2 * kept.nbytes, rel=0.01)
    assert peak_bytes(lambda: np.add(kept, 1, out=kept)) < 10_000


def test_layouts():
    assert sum(math.prod(shape) for shape in resnet50_shapes()) == RESNET50
    assert layout_of(D).d == D
    mlp = build_model("mlp", load_task("digits"), seed=0)
    assert small.mlp_layout() == Layout.from_arrays(mlp.state_dict())


def test_windows_differ_from_round_to_round():
    updates = windows(D)
    assert all(update.shape == (D,) and update.flags.c_contiguous for update in updates)
    assert not any(np.array_equal(updates[i], updates[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_blocks_differ_in_scale():
    update = blocks(0, 640_000)
    scales = [float(np.std(block)) for block in np.array_split(update, 64)]
    rng = np.random.default_rng(0)
    rng.standard_normal(640_000, dtype=np.float32)
    np.testing.assert_allclose(scales, rng.lognormal(0.0, 1.5, 64), rtol=0.05)
    assert not np.array_equal(update, blocks(1, 640_000))


def test_the_second_payload_of_a_round_is_another_clients():
    layout, update = log_normal_update(0, D)
    trip = ours.Trip(METHODS[2], [update], layout, again=True)
    for number in range(3):
        for operation in trip.operations():
            operation.run(number)
        assert trip.result is not None
        assert [client for client, _ in trip.result.accepted] == [0, 1]
        assert (gw.decode(trip.blob).reference_digest is not None) == (number > 0)
    assert len(ours.Trip(METHODS[0], [update], layout).operations()) == len(trip.operations()) - 1


def test_adversarial_updates_mislead_a_sample():
    k = 6_000
    updates = {name: make() for name, (make, _) in adversarial(600_000, k).items()}
    assert not updates["zero"].any()
    large = np.abs(updates["concentrated"]) > 100
    assert np.flatnonzero(large).max() - np.flatnonzero(large).min() < k
    high, low = np.abs(updates["sampled high"]) > 100, np.abs(updates["sampled low"]) < 1e-4
    assert 500 < high.sum() < k / 2
    assert (high & ~low).sum() < 0.01 * k  # both lie where the sample looks


def test_flower_formulas_agree():
    layout, update = log_normal_update(0, D)
    updates = [update, 2 * update]
    weights = [(list(layout.unflatten(u).values()), n) for u, n in zip(updates, (1, 3), strict=True)]
    mean = np.concatenate([layer.reshape(-1) for layer in flower.weighted_mean(weights)])
    np.testing.assert_allclose(mean, 1.75 * update, rtol=1e-6)
    total = flower.serialized(updates, layout)(0)
    np.testing.assert_allclose(layout.flatten(total), 1.5 * update, rtol=1e-6)


def test_flower_itself_agrees():
    pytest.importorskip("flwr.serverapp", reason="flwr, a peer, is not installed")
    layout, update = log_normal_update(0, D)
    record = flower.messages([update, 2 * update], layout)(0)
    total = {name: array.numpy() for name, array in record.items()}
    np.testing.assert_allclose(layout.flatten(total), 1.5 * update, rtol=1e-6)
    first, second = flower.flower_operations([update], layout)
    assert "itself" in first.note
    assert "itself" in second.note


def test_without_flower_the_formulas_are_used(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(flower.importlib, "import_module", missing)
    layout, update = log_normal_update(0, D)
    operations = flower.flower_operations([update], layout)
    assert all("written out in NumPy" in operation.note for operation in operations)
    for operation in operations:
        operation.run(0)


def test_machine_knows_what_is_missing(monkeypatch):
    def missing(name):
        raise machine.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine.importlib.metadata, "version", missing)
    assert machine.machine()["torch"] is None
    monkeypatch.setattr(os, "sysconf", lambda name: (_ for _ in ()).throw(ValueError(name)))
    assert machine.available_bytes() is None
