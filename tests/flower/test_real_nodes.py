"""Nodes as they are met: slow, hostile, or set up wrongly; each a real process among others."""

from __future__ import annotations

from apps import member_of
from net import REAL, Net
from trial import APP, NAME, missing, models, with_plain_ends

pytestmark = REAL


def test_a_client_slower_than_the_timeout_round_after_round(tmp_path):
    """It gets the model once, then blobs; few payloads of it wait for a verdict, and none is lost."""
    with Net(tmp_path / "real", traits={2: {"SLOW": "30"}}) as net:
        net.run(APP, num_server_rounds=6, timeout=25.0)
    rounds = net.rounds()
    assert len(rounds) == 6
    assert "client 2 answered late" in net.log("run")
    slow = [line["clients"].get("2", {}) for line in rounds]
    assert sum(line.get("other", 0) for line in slow[1:]) == 0, "no model after the first"
    member = member_of(net.state_dir(2), NAME, 2)
    assert member.client.sequence >= 2
    assert len(member.client.pending_sequences) <= 3
    for client in range(3):
        assert missing(net, client) <= 1e-6


def test_hostile_nodes_are_refused_and_named_and_the_others_go_on(tmp_path):
    """One sends what it once rightly sent, too much, and another's; one what is no payload at all."""
    traits = {2: {"HOSTILE": "honest replayed oversized another"}, 3: {"HOSTILE": "random noise truncated foreign"}}
    with Net(tmp_path / "real", num_nodes=4, traits=traits) as net:
        said = net.run(APP, num_server_rounds=4)
    assert [line["num_received"] for line in net.rounds()] == [3, 2, 2, 2]
    assert models(said) == with_plain_ends(4, num_clients=4, absent={2: 2, 3: 1})
    (second,), (third,) = net.node_ids(2), net.node_ids(3)
    for line in (
        f"node {second} sent it before",
        f"refused what node {second} sent: LimitExceeded",
        f"refused what node {second} sent: ProtocolError: node {second} says that it is client 0",
        f"refused what node {third} sent: Malformed",
    ):
        assert said.count(line) == 1, line
    assert said.count(f"refused the payload of client 3, node {third}: ") == 3
    for client in (0, 1):
        assert missing(net, client) <= 1e-6


def test_one_end_alone_and_other_specs_are_named_at_both_ends(tmp_path):
    """What each end logs, and that the run fails where nobody can answer."""
    with Net(tmp_path / "real", num_nodes=2) as net:
        net.run(APP, num_server_rounds=1, wrapped=False)
        net.run(APP, num_server_rounds=1, mod="topk(0.5)")
        net.start(APP, num_server_rounds=1, mod="none").wait(timeout=300)
        runs = sorted(net.runs(), key=lambda listed: listed["pending-at"])
    for log in (net.log("run"), net.log("node0"), net.log("node1")):
        assert "wrap the ServerApp's strategy in CompressedStrategy" in log
        assert "the ServerApp compresses with ef(topk(0.01)), this ClientApp with topk(0.5)" in log
    assert "add CompressionMod() to the mods of ClientApp" in net.log("run")
    assert all("Unsupported serialization type" in net.log(f"node{number}") for number in range(2))
    assert runs[-1]["status"] == "finished:failed"
