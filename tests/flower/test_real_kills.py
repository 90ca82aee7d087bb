"""SIGKILL of real processes: what was trained and told is neither lost nor counted twice."""

from __future__ import annotations

import time

import pytest
from net import REAL, Net
from trial import APP, missing, with_plain_ends

pytestmark = REAL


@pytest.mark.parametrize("instant", ["train-1-2", "closed-1"])
def test_a_supernode_without_authentication(tmp_path, instant):
    """Killed in the midst of training, or between rounds; it comes back under another id and finds its file."""
    with Net(tmp_path / "real") as net:
        net.hold(instant)
        run = net.start(APP, num_server_rounds=3)
        held = net.wait_held(instant)
        net.kill("node1", *([held] if instant.startswith("train") else []))
        net.supernode(1)
        net.wait(lambda: len(net.node_ids(1)) == 2, "the node is back", 200)
        net.release(instant)
        assert run.wait(timeout=500) == 0, net.log("run")
    first, second = net.node_ids(1)
    assert first != second
    assert f"node {first} answered with an error: Error: Node Unavailable" in net.log("run")
    assert len(list(net.books.glob("raw-1-*"))) == (3 if instant == "closed-1" else 2)
    assert net.summary()["rounds_done"] == 3
    counts = [line["num_received"] for line in net.rounds()]
    assert counts[0] == counts[-1] == 3
    for client in range(3):
        assert missing(net, client) <= 1e-6
    models = [line["clients"]["1"].get("other", 0) > 30_000 for line in net.rounds() if "1" in line["clients"]]
    assert sum(models) == 2, "the model goes to each id once"


def test_a_supernode_with_tls_and_authentication(tmp_path):
    """It is turned away until Flower holds it for gone; then it is the same node, and follows by blobs."""
    with Net(tmp_path / "real", secure=True) as net:
        net.hold("train-1-2")
        run = net.start(APP, num_server_rounds=3)
        net.kill("node1", net.wait_held("train-1-2"))
        net.release("train-1-2")
        tries = 0
        until = time.monotonic() + 240
        while len(net.node_ids(1)) < 2 and time.monotonic() < until:
            if net.processes["node1"].poll() is not None:
                net.supernode(1)
                tries += 1
            time.sleep(1)
        assert run.wait(timeout=500) == 0, net.log("run")
    first, second = net.node_ids(1)
    assert first == second
    assert tries > 1
    assert "2004" in net.log("node1")
    assert net.summary()["rounds_done"] == 3
    rounds = net.rounds()
    assert [line["num_received"] for line in rounds] == [3, 2, 3]
    assert all(line["other_bytes"] == 0 for line in rounds[1:]), "no model after the first"
    for client in range(3):
        assert missing(net, client) <= 1e-6


def test_a_superlink_whose_serverapp_outlives_it(tmp_path):
    """With a database and a SuperExec of its own: the run goes on as if nothing had happened."""
    with Net(tmp_path / "real", superexec=True) as net:
        net.hold("train-0-2")
        run = net.start(APP)
        net.wait_held("train-0-2")
        net.kill("superlink")
        run.wait(timeout=60)  # it streamed what is gone; the run is not
        net.superlink()
        net.release("train-0-2")
        net.wait(lambda: net.summary()["rounds_done"] == 4, "all rounds are done", 400)
        net.wait(lambda: net.runs()[0]["status"] == "finished:completed", "the run is over", 60)
        assert len(net.runs()) == 1
    assert net.summary()["model_sha256"][:12] == with_plain_ends(4)[-1]
    assert [line["num_received"] for line in net.rounds()] == [3, 3, 3, 3]
    assert [len(net.node_ids(number)) for number in range(3)] == [1, 1, 1]
    for client in range(3):
        assert missing(net, client) <= 1e-6


def test_a_superlink_that_takes_the_run_with_it(tmp_path):
    """In the default isolation: a new run goes on from the saved strategy, and what was in flight is not lost."""
    with Net(tmp_path / "real") as net:
        state_file = str(tmp_path / "server.state")
        net.hold("train-0-3")
        net.start(APP, state_file=state_file)
        net.wait_held("train-0-3")
        net.wait(lambda: len(list(net.books.glob("raw-*-3-*"))) == 2, "the others have trained", 60)
        net.kill("superlink")
        time.sleep(5)
        net.superlink()
        net.release("train-0-3")
        net.run(APP, state_file=state_file)

        def runs():
            return sorted(net.runs(), key=lambda listed: listed["pending-at"])

        net.wait(lambda: runs()[0]["status"] != "running", "Flower holds the first run for lost", 120)
        lost, resumed = runs()
    assert lost["status"] == "finished:failed"
    assert resumed["status"] == "finished:completed"
    assert "goes on after round 2 with the saved model" in net.log("run")
    assert net.summary()["rounds_done"] == 4
    assert [line["round"] for line in net.rounds()] == [0, 1, 2, 3]
    for client in range(3):
        assert missing(net, client) <= 1e-6
    assert [len(list(net.books.glob(f"counted-{client}-*"))) for client in range(3)] == [4, 4, 4]
