"""The benchmark of Flower: what is kept of runs that take long, the tables, and the hosts of the slow link."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from benchmarks import flower, results
from benchmarks.flower import adam, kept, link, mnist, slow_link
from benchmarks.flower.kept import run_left

import gradwire as gw
from gradwire.federated.algorithms import parse_algorithm


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository without any result."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(kept, "FOLDER", tmp_path / "runs")
    (tmp_path / "benchmarks").mkdir()
    return tmp_path


def test_a_finished_run_is_kept_and_only_the_rest_is_run(repository):
    """One that fails does not take the others with it."""
    ran: list[str] = []
    broken = True

    def make(name):
        def run():
            ran.append(name)
            if broken and name == "b":
                raise RuntimeError("no answer")
            return {"name": name}

        return run

    runs = {name: make(name) for name in "abc"}
    told: list[list[str]] = []
    note = lambda found: told.append([run["name"] for run in found])  # noqa: E731
    with pytest.raises(ExceptionGroup) as failed:
        run_left("part", runs, 1, note)
    assert [str(error) for error in failed.value.exceptions] == ["no answer"]
    assert told == [[], ["a"], ["a", "c"]]
    broken = False
    ran.clear()
    run_left("part", runs, 1, note)
    assert ran == ["b"]
    assert told[-1] == ["a", "b", "c"]


def some_run(spec, seed, accuracy, up, inbound):
    return {
        "spec": spec,
        "seed": seed,
        "accuracies": [0.1, accuracy],
        "uplink_bytes": up,
        "dense_uplink_bytes": 1000,
        "inbound_bytes": inbound,
        "outbound_bytes": 5000,
    }


def test_runs_are_merged_by_what_they_are(repository, monkeypatch):
    """A newer one takes the older one's place; the order is the benchmark's, and a part left out changes nothing."""
    old = {"machine": 1, "mnist": {"runs": [some_run("none", 1, 0.9, 1000, 2000), some_run("none", 2, 0.8, 1, 1)]}}
    new = {"mnist": {"runs": [some_run("none", 2, 0.7, 2, 2), some_run("none", 0, 0.6, 3, 3)]}}
    merged = flower.merge(old, new)
    assert [(run["seed"], run["accuracies"][-1]) for run in merged["mnist"]["runs"]] == [(0, 0.6), (1, 0.9), (2, 0.7)]
    assert flower.merge(merged, {"mnist": {"left_out": "no data"}}) == merged
    assert flower.merge({}, {"link": {"left_out": "no root"}}) == {"link": {"left_out": "no root"}}


def test_what_is_finished_is_in_the_result_file_at_once(repository, monkeypatch):
    """Though no whole was measured yet, and a later run fails."""

    def measure(data_dir, done):
        done([])
        done([some_run("none", 0, 0.5, 1, 1)])
        raise RuntimeError("the second run failed")

    monkeypatch.setattr(mnist, "measure", measure)
    monkeypatch.setattr(flower, "_why_not", lambda part, data_dir: None)
    with pytest.raises(RuntimeError, match="the second"):
        flower.measure(None, ["mnist"])
    assert [run["seed"] for run in results.load("flower")["mnist"]["runs"]] == [0]


def test_ratios_are_of_runs_with_the_same_seed():
    """Accuracy in points against plain Flower, and bytes of either count."""
    runs = [
        some_run("none", 0, 0.97, 1000, 3000),
        some_run("none", 1, 0.99, 1000, 3000),
        some_run(mnist.SPECS[1], 0, 0.96, 10, 50),
    ]
    dense, sparse = mnist.document(runs).splitlines()[2:]
    assert "| plain Flower | 2 | 98.00 ± 1.41 % | +0.00 | 1.00 kB |" in dense
    assert "| `ef(topk(0.01))` | 1 | 96.00 % | -1.00 | 10 B | 100.0x | 50 B | 60.0x | 5.00 kB |  |" in sparse


def test_the_first_round_of_the_slow_link_is_apart():
    first, later = {"seconds": 90, "up": 900, "down": 900}, {"seconds": 10, "up": 100, "down": 300}
    run = {"spec": "none", "rounds": [first, later, later]}
    fast = {"spec": link.SPECS[1], "rounds": [first, *[{"seconds": 5, "up": 2, "down": 3}] * 2]}
    assert link.document([run, fast]).splitlines()[2:] == [
        "| plain Flower | 100 B |  | 300 B |  | 10 s |  | 110 s |",
        f"| `{link.SPECS[1]}` | 2 B | 50.0x | 3 B | 100.0x | 5 s | 2.0x | 100 s |",
    ]


def test_adaptive_strategies_are_trained_with_the_example():
    """On digits: every row's strategy and specs are such, and one run learns."""
    for algorithm, methods in adam.ROWS.values():
        parse_algorithm(algorithm)
        assert [str(gw.parse(method)) for method in methods] == list(methods)
    run = adam.run("FedAvg", adam.SPARSE, 0, None, data="digits", num_clients=3, batch_size=32)
    assert run["final_accuracy"] > 0.7
    assert run["compression_ratio"] > 80


def test_hosts_of_the_slow_link_count_what_they_send():
    """Against the bytes that a program sends: no fewer, and not many more."""
    if (why := slow_link.why_not()) is not None:
        pytest.skip(why)
    size = 200_000
    listen = (
        "import socket; s = socket.create_server(('', 7000)); print('up', flush=True); c, _ = s.accept(); n = 0\n"
        "while data := c.recv(65536): n += len(data)\n"
        "print(n)"
    )
    with slow_link.slow_link(100) as made:
        first, second = made.hosts
        there = subprocess.Popen([*second.prefix, sys.executable, "-c", listen], stdout=subprocess.PIPE, text=True)
        with there:
            assert there.stdout.readline() == "up\n"
            send = f"import socket; socket.create_connection(('{second.address}', 7000)).sendall(bytes({size}))"
            subprocess.run([*first.prefix, sys.executable, "-c", send], check=True)
            assert int(there.stdout.read()) == size
        sent, answered = made.sent()
    assert size < sent < 1.2 * size
    assert answered < 0.2 * size
    assert not set(made.names) & set(subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout.split())


def test_results_are_json(repository):
    """What is kept can be read by anyone."""
    run_left("part", {"a": lambda: {"x": 1.5}}, 1, lambda runs: None)
    assert json.loads((repository / "runs" / "part" / "a.json").read_text()) == {"x": 1.5}
