"""Servers killed at their worst moment, nodes that lie, late replies: nothing told is lost, one node ends no run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from apps import Books, audit, config, counting, flat, initial, logged, make_app, make_grid, member_of, plain_run
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import SamplingMethod
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
)
from test_flower_identity import one_round, told

import gradwire as gw
from gradwire.flower import CompressedStrategy, CompressionMod

SPEC = "ef(topk(0.05))"


def node_of(grid, client):
    return next(node for node in grid.nodes.values() if node.config["partition-id"] == client)


def late_for(grid, client):
    """A fate: this client's replies come when the round is over."""
    node_id = node_of(grid, client).node_id
    return lambda m: "late" if m.metadata.dst_node_id == node_id else "ok"


# --- the server, killed ---------------------------------------------------------------------------


def test_what_clients_are_told_was_counted_outlives_the_server(tmp_path):
    """Killed right after it told them: the resumed server knows of it."""
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)), 2)

    def make():
        return CompressedStrategy(FedAvg(), SPEC, max_staleness=1, state_file=tmp_path / "s", conversation="x")

    strategy = make()
    one_round(strategy, grid, 1, initial())
    grid.fate = late_for(grid, 0)
    one_round(strategy, grid, 2)
    grid.fate = lambda m: "ok"
    messages = strategy.configure_train(3, strategy.arrays, config(3), grid)
    told_of_0 = next(told(m) for m in messages if m.metadata.dst_node_id == node_of(grid, 0).node_id)
    assert told_of_0.counted.holds(1)
    resumed = make()
    resumed._begin(grid, initial(), 5, 5.0)
    assert resumed._conversation.counted(0) == told_of_0.counted
    assert resumed._conversation.server.aggregator.num_received == 1
    result = resumed.start(grid, initial(), num_rounds=4, timeout=5)
    assert len(resumed.ledger.rounds) == resumed.rounds_done == 4
    assert np.isfinite(flat(result.arrays)).all()


def test_a_server_killed_in_its_first_round_is_the_same_conversation_afterwards(tmp_path):
    books = Books()
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path), books=books), 2)

    def make():
        return CompressedStrategy(FedAvg(), SPEC, state_file=tmp_path / "s", conversation="x")

    strategy = make()
    arrays = strategy._begin(grid, initial(), 3, 5.0)
    grid.send_and_receive(strategy.configure_train(1, arrays, config(1), grid))  # and nobody reads the replies
    assert books.runs == {0: 1, 1: 1}
    resumed = make()
    with counting(resumed) as counted:
        resumed.start(grid, initial(), num_rounds=4, timeout=5)
        for client in range(2):
            assert audit(resumed, tmp_path, books, client, counted[client]) <= 1e-6
    assert books.runs == {0: 5, 1: 5}


def test_a_state_file_that_cannot_be_written_is_named_before_anybody_trains(tmp_path):
    (tmp_path / "f").write_bytes(b"")
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)), 2)
    strategy = CompressedStrategy(FedAvg(), SPEC, state_file=tmp_path / "f" / "s")
    with pytest.raises(gw.ConfigError, match=r"state_file .*f/s: cannot be written"):
        strategy.start(grid, initial(), 1, 5)
    assert grid.pushed == []


OTHERS = {
    "seed": ({"seed": 3}, None, "seed 0, this one has seed 3"),
    "conversation": ({"conversation": "other"}, None, "conversation 'one', this run's is 'other'"),
    "spec": ({"spec": "topk(0.1)"}, None, "topk"),
    "model": ({}, ArrayRecord([np.zeros(3, np.float32)]), "initial_arrays"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_file_of_another_run_is_named(tmp_path, name):
    options, arrays, said = OTHERS[name]
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)), 2)
    given = {"spec": SPEC, "conversation": "one", "state_file": tmp_path / "s"}
    CompressedStrategy(FedAvg(), **given).start(grid, initial(), 1, 5)
    before, pushed = (tmp_path / "s").read_bytes(), len(grid.pushed)
    with pytest.raises(gw.StateError, match=said) as caught:
        CompressedStrategy(FedAvg(), **{**given, **options}).start(grid, arrays or initial(), 2, 5)
    assert str(tmp_path / "s") in str(caught.value)
    assert (tmp_path / "s").read_bytes() == before
    assert len(grid.pushed) == pushed


class Accountant:
    """Spends 1 of its budget a release."""

    def __init__(self, population=3):
        method = SamplingMethod.NO_AMPLIFICATION
        self.config = SimpleNamespace(sampling_method=method, population_size=population, max_epsilon=None)
        self.num_releases = 0

    def compose(self, event, count=1):
        self.num_releases += count

    def get_privacy_spent(self, delta=None):
        return SimpleNamespace(epsilon=float(self.num_releases), delta=1e-5, num_releases=self.num_releases)

    def state_dict(self):
        return {"population": self.config.population_size, "releases": [{"count": self.num_releases}], "orders": None}

    def load_state_dict(self, state):
        if state["population"] != self.config.population_size:
            raise ValueError("another population")
        self.num_releases = state["releases"][0]["count"]


def private(accountant):
    inner = FedAvg(min_train_nodes=3, min_available_nodes=3)
    return DifferentialPrivacyServerSideFixedClipping(inner, 0.1, 1.0, 3, accountant=accountant)


def test_a_privacy_budget_goes_on_where_it_was(tmp_path):
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path), weight=lambda client: 1), 3)
    given = {"spec": SPEC, "conversation": "dp", "state_file": tmp_path / "s"}
    CompressedStrategy(private(Accountant()), **given).start(grid, initial(), 2, 5)
    resumed = Accountant()
    CompressedStrategy(private(resumed), **given).start(grid, initial(), 3, 5)
    assert resumed.num_releases == 3
    for other, said in ((private(None), "accountant"), (private(Accountant(9)), "another population")):
        with pytest.raises(gw.StateError, match=said):
            CompressedStrategy(other, **given).start(grid, initial(), 4, 5)


def test_a_privacy_budget_of_which_nothing_is_known_is_refused(tmp_path):
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path), weight=lambda client: 1), 3)
    given = {"spec": SPEC, "conversation": "dp", "state_file": tmp_path / "s"}
    CompressedStrategy(private(None), **given).start(grid, initial(), 2, 5)
    with pytest.raises(gw.StateError, match="says nothing of what 2 rounds have spent"):
        CompressedStrategy(private(Accountant()), **given).start(grid, initial(), 3, 5)


def test_moments_have_no_place_in_a_strategy_without(tmp_path):
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)), 2)
    given = {"spec": SPEC, "state_file": tmp_path / "s"}
    CompressedStrategy(FedAdam(), **given).start(grid, initial(), 1, 5)
    with pytest.raises(gw.StateError, match="m_t of another strategy, FedAvg has none"):
        CompressedStrategy(FedAvg(), **given).start(grid, initial(), 2, 5)


@pytest.mark.parametrize("killed", ["before the line was written", "in the middle of a line", "not at all"])
def test_metrics_of_a_resumed_run_are_whole(tmp_path, killed):
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)), 2)
    file, given = tmp_path / "out" / "metrics.jsonl", {"spec": SPEC, "state_file": tmp_path / "s"}

    def evaluate(index, arrays):
        return MetricRecord({"accuracy": index / 10})

    def run(num_rounds):
        strategy = CompressedStrategy(FedAvg(fraction_evaluate=0.0), **given, out=tmp_path / "out")
        strategy.start(grid, initial(), num_rounds, 5, evaluate_fn=evaluate)
        return strategy

    file.parent.mkdir()
    file.write_text(json.dumps({"method": "dense()", "seed": 0, "round": 9}) + "\n")  # of another run
    run(3)
    text = file.read_text()
    if killed == "before the line was written":
        file.write_text("\n".join(text.splitlines()[:-1]) + "\n")
    elif killed == "in the middle of a line":
        file.write_text(text[:-20])
    run(5)
    other, *lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert other == {"method": "dense()", "seed": 0, "round": 9}
    assert [line["round"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["accuracy"] for line in lines] == [0.1, 0.2, 0.3, 0.4, 0.5]
    [summary] = json.loads((tmp_path / "out" / "summary.json").read_text())["runs"]
    assert summary["final_accuracy"] == 0.5
    assert summary["uplink_bytes"] == sum(line["uplink_bytes"] for line in lines)


def test_a_round_that_is_run_again_has_one_line(tmp_path):
    """The file of a server killed before it saved a round that it had written."""
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)), 2)
    given = {"spec": SPEC, "state_file": tmp_path / "s", "out": tmp_path / "out"}
    CompressedStrategy(FedAvg(), **given).start(grid, initial(), 2, 5)
    state = (tmp_path / "s").read_bytes()
    CompressedStrategy(FedAvg(), **given).start(grid, initial(), 3, 5)
    (tmp_path / "s").write_bytes(state)
    CompressedStrategy(FedAvg(), **given).start(grid, initial(), 4, 5)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2, 3]


# --- late replies ---------------------------------------------------------------------------------


def test_late_payloads_count_where_clients_evaluate_too(tmp_path):
    """An evaluation between two rounds tells a client nothing of what may still come."""
    books = Books()
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path), books=books), 3)
    grid.fate = lambda m: "late" if m.metadata.message_type == "train" else "ok"
    strategy = CompressedStrategy(FedAvg(), SPEC, max_staleness=1)
    with counting(strategy) as counted:
        result = strategy.start(grid, initial(), num_rounds=6, timeout=5)
        for client in range(3):
            assert audit(strategy, tmp_path, books, client, counted[client]) <= 1e-6
    assert len(result.evaluate_metrics_clientapp) == 6
    assert [r.num_counted for r in strategy.ledger.rounds] == [0, 3, 3, 3, 3, 3]


@pytest.mark.parametrize(("max_staleness", "counts"), [(1, 2), (2, 3), (3, 3)])
def test_a_payload_counts_for_as_many_rounds_as_it_may(tmp_path, max_staleness, counts):
    """Two rounds late, and its client was instructed meanwhile."""
    books = Books()
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path), books=books), 2)
    strategy = CompressedStrategy(FedAvg(), SPEC, max_staleness=max_staleness)
    with counting(strategy) as counted:
        one_round(strategy, grid, 1, initial())
        grid.fate = late_for(grid, 0)
        one_round(strategy, grid, 2)
        [name] = [name for name in grid._stored if not name.startswith("late")]
        hidden = {name: grid._stored.pop(name)}
        grid.fate = lambda m: "ok"
        one_round(strategy, grid, 2, train=False)
        one_round(strategy, grid, 3)
        one_round(strategy, grid, 3, train=False)
        grid._stored.update(hidden)
        one_round(strategy, grid, 4)
        assert strategy.ledger.rounds[-1].num_counted == counts
        one_round(strategy, grid, 5)
        assert audit(strategy, tmp_path, books, 0, counted[0]) <= 1e-6
    assert len(member_of(tmp_path, "run-1", 0).client.pending_sequences) == 1


def test_who_never_answers_in_time_is_settled_in_the_end(tmp_path):
    """Replies that never come hold the verdict up for ``max_staleness`` rounds, not for ever."""
    books = Books()
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path), books=books), 2)
    strategy = CompressedStrategy(FedAvg(), SPEC, max_staleness=20)
    with counting(strategy) as counted:
        for index in range(1, 25):
            one_round(strategy, grid, index, initial() if index == 1 else None)
            lost = node_of(grid, 0).node_id
            grid.fate = lambda m, lost=lost, index=index: (
                "unanswered" if m.metadata.dst_node_id == lost and index % 2 else "ok"
            )
            assert len(member_of(tmp_path, "run-1", 0).client.pending_sequences) <= 9
        assert audit(strategy, tmp_path, books, 0, counted[0]) <= 1e-6


def test_a_round_of_late_payloads_alone_is_a_step_of_the_inner_strategy(tmp_path):
    """The oracle is FedAdam, handed the same payloads in time."""
    runs = {}
    for name in ("late", "in time"):
        grid = make_grid(make_app(CompressionMod(state_dir=tmp_path / name)), 2)
        strategy = CompressedStrategy(FedAdam(eta=0.1, tau=0.1), "dense()", max_staleness=1)
        if name == "late":
            grid.fate = lambda m: "late"
            one_round(strategy, grid, 1, initial())
            assert flat(strategy.arrays).tobytes() == flat(initial()).tobytes()
            grid.fate = lambda m: "lost"
            one_round(strategy, grid, 2)
        else:  # in the second round, too: FedAdam's rate goes by its number
            replies = grid.send_and_receive(strategy.configure_train(1, initial(), config(1), grid))
            strategy.aggregate_train(2, replies)
        runs[name] = flat(strategy.arrays)
    np.testing.assert_allclose(runs["late"], runs["in time"], rtol=1e-6, atol=1e-7)


# --- nodes that lie, or are another -----------------------------------------------------------------


@pytest.mark.parametrize("make", [FedMedian, FedAvg])
@pytest.mark.parametrize("key", ["arrays", "more"])
def test_arrays_beside_an_update_are_refused(tmp_path, make, key):
    """They would take its place, or join it, without having been checked as it is."""
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)), 3)
    liar = node_of(grid, 2)
    honest = liar.app

    def lying(message, context):
        reply = honest(message, context)
        if message.metadata.message_type == "train":
            record = reply.content.array_records.get(key, ArrayRecord())
            record["w"] = Array(np.full((20, 10), 1e30, np.float32))
            reply.content[key] = record
        return reply

    liar.app = lying
    strategy = CompressedStrategy(make(), "dense()")
    with logged() as lines:
        result = strategy.start(grid, initial(), 1, 5)
    assert any(f"refused what node {liar.node_id} sent" in s and "holds arrays beside" in s for s in lines)
    assert strategy.ledger.rounds[0].num_counted == 2
    np.testing.assert_allclose(flat(result.arrays), plain_run("dense()", 1, range(2)), atol=0.1)


def test_the_server_s_number_is_the_client_s(tmp_path):
    """Nodes that know no number of their own, or another by their partition, take the one they are told."""
    books = Books()
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path), books=books), 2)
    numbers = {"node-0": 0, "node-1": 9}
    strategy = CompressedStrategy(FedAvg(), SPEC, client_id_of=lambda info: numbers[info.name])
    strategy.start(grid, initial(), 3, 5)
    assert [r.num_counted for r in strategy.ledger.rounds] == [2, 2, 2]
    assert (tmp_path / "run-1" / "client-9.state").exists()
    assert not (tmp_path / "run-1" / "client-1.state").exists()


def test_a_number_that_was_given_to_the_node_must_be_the_server_s(tmp_path):
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)), 2)
    given = grid.add(make_app(CompressionMod(state_dir=tmp_path)), partition_id=2, client_id=5)
    strategy = CompressedStrategy(FedAvg(), SPEC, client_id_of=lambda info: int(info.name[-1]))
    with logged() as lines:
        strategy.start(grid, initial(), 1, 5)
    assert strategy.ledger.rounds[0].num_counted == 2
    said = "client_id_of says that this node is client 2, here it is client 5"
    assert any(f"node {given.node_id}" in line and said in line for line in lines)


@pytest.mark.parametrize("answer", [None, "seven", -1, KeyError("node-1")])
def test_a_node_the_server_does_not_know_is_refused_alone(tmp_path, answer):
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)), 3)

    def client_id_of(info):
        if info.name != "node-1":
            return int(info.name[-1])
        if isinstance(answer, Exception):
            raise answer
        return answer

    strategy = CompressedStrategy(FedAvg(), SPEC, client_id_of=client_id_of)
    with logged() as lines:
        strategy.start(grid, initial(), 2, 5)
    assert [r.num_counted for r in strategy.ledger.rounds] == [2, 2]
    stranger = node_of(grid, 1).node_id
    named = [line for line in lines if line.startswith(f"gradwire: node {stranger} is none that client_id_of knows")]
    assert len(named) == 1


@pytest.mark.parametrize("make", [FedAvg, FedMedian])
def test_metrics_of_other_lengths_are_no_reason_to_refuse(tmp_path, make):
    """A loss for each batch: clients have as many as they have batches."""
    inner = make_app()
    app = ClientApp(mods=[CompressionMod(state_dir=tmp_path)])

    @app.train()
    def train(message, context):
        reply = inner(message, context)
        client = context.node_config["partition-id"]
        reply.content["metrics"]["list"] = [float(client)] * (2 if client < 2 else 5)
        return reply

    grid = make_grid(app, 3)
    strategy = CompressedStrategy(make(fraction_evaluate=0.0), "dense()")
    result = strategy.start(grid, initial(), 2, 5)
    assert [r.num_counted for r in strategy.ledger.rounds] == [3, 3]
    metrics = result.train_metrics_clientapp[2]
    assert metrics["list"] == pytest.approx([2 / 3, 2 / 3])  # of clients 0 and 1, of weights 1 and 2
    assert metrics["train_loss"] == pytest.approx((1 + 2 * 2 + 3 * 3) / 6)


def test_apps_without_the_mod_are_named_although_a_node_is_away(tmp_path):
    grid = make_grid(make_app(), 3)
    gone = node_of(grid, 2).node_id
    grid.fate = lambda m: "dead" if m.metadata.dst_node_id == gone else "ok"
    with pytest.raises(gw.ProtocolError, match=r"add CompressionMod\(\) to the mods"):
        CompressedStrategy(FedAvg(), SPEC).start(grid, initial(), 2, 5)


def test_one_node_without_the_mod_ends_nothing(tmp_path):
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)), 2)
    grid.add(make_app(), partition_id=2)
    strategy = CompressedStrategy(FedAvg(), SPEC)
    strategy.start(grid, initial(), 2, 5)
    only = node_of(grid, 2).node_id
    grid.fate = lambda m: "ok" if m.metadata.dst_node_id == only else "dead"
    strategy.start(grid, strategy.arrays, 4, 5)
    assert [r.num_counted for r in strategy.ledger.rounds] == [2, 2, 0, 0]


def test_one_client_on_two_machines_loses_nothing(tmp_path):
    """Each of its two states is told of its own payloads alone."""
    books = Books()
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path / "a"), books=books), 2)
    grid.add(make_app(CompressionMod(state_dir=tmp_path / "b"), books=books), partition_id=0)
    first, other, second = grid.nodes.values()
    numbers = {first.node_id: 0, second.node_id: 0, other.node_id: 1}
    strategy = CompressedStrategy(FedAvg(), SPEC, client_id_of=lambda info: numbers[info.node_id])
    with counting(strategy) as counted:
        for index in range(1, 13):
            first.online, second.online = bool(index // 2 % 2), not index // 2 % 2
            one_round(strategy, grid, index, initial() if index == 1 else None)
        missing = books.raw[0] - counted[0]
        slots, server = strategy._conversation._slots[0], strategy._conversation.server
        for name in "ab":
            member = member_of(tmp_path / name, "run-1", 0)
            missing -= member.client.state_dict()["residual"]
            held = server.counted(slots[member.incarnation])
            for number, blob in zip(member.client.pending_sequences, member.client.pending, strict=True):
                if not any(low <= number <= high for low, high in held):
                    missing -= gw.decompress(gw.decode(blob))
    assert np.linalg.norm(missing) <= 1e-6 * np.linalg.norm(books.raw[0])


# --- what would fail only after training ------------------------------------------------------------


def test_a_downlink_with_a_schedule_knows_the_rounds(tmp_path):
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)), 2)
    strategy = CompressedStrategy(FedAvg(), SPEC, downlink="ef(adaptopk(0.1))")
    strategy.start(grid, initial(), 3, 5)
    assert strategy._conversation.version == 3


def test_budgets_may_name_nobody(tmp_path):
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)), 2)
    strategy = CompressedStrategy(FedAvg(), SPEC, num_bytes={0: None})
    result = strategy.start(grid, initial(), 2, 5)
    assert flat(result.arrays).tobytes() == plain_run(SPEC, 2, range(2)).tobytes()
