"""Who is who: nodes, clients, incarnations; verdicts, resynchronisation, and runs that are resumed."""

from __future__ import annotations

import numpy as np
import pytest
from apps import Books, answer_of, audit, config, counting, flat, initial, logged, make_app, make_grid, member_of
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

import gradwire as gw
from gradwire.files.store import read_state, write_state
from gradwire.flower import CompressedStrategy, CompressionMod
from gradwire.flower.binding import Bindings
from gradwire.flower.carrier import find_carrier
from gradwire.flower.header import read_instruction

SPEC = "ef(topk(0.05))"


def told(message):
    return read_instruction(find_carrier(message.content).data)


def one_round(strategy, grid, index, arrays=None, train=True):
    """Configure, send and aggregate one round; what was sent."""
    arrays = strategy.arrays if arrays is None else arrays
    configure = strategy.configure_train if train else strategy.configure_evaluate
    messages = configure(index, arrays, config(index), grid)
    replies = grid.send_and_receive(messages, timeout=5)
    (strategy.aggregate_train if train else strategy.aggregate_evaluate)(index, replies)
    return messages


@pytest.fixture
def setup(tmp_path):
    books = Books()
    app = make_app(CompressionMod(state_dir=tmp_path), books=books)
    grid = make_grid(app, 2)
    return tmp_path, books, app, grid, CompressedStrategy(FedAvg(), SPEC)


def test_a_node_that_returns_gets_blobs_and_one_with_another_id_the_model(setup):
    _, _, app, grid, strategy = setup
    first = one_round(strategy, grid, 1, initial())
    assert [told(m).full for m in first] == [True, True]
    nodes = list(grid.nodes.values())
    grid.fate = lambda message: "dead" if message.metadata.dst_node_id == nodes[0].node_id else "ok"
    one_round(strategy, grid, 2)
    one_round(strategy, grid, 3)
    grid.fate = lambda message: "ok"
    back = {m.metadata.dst_node_id: told(m) for m in one_round(strategy, grid, 4)}
    assert not back[nodes[0].node_id].full
    assert len(back[nodes[0].node_id].blobs) == 3  # of the two rounds missed, and of the one before
    nodes[1].online = False
    new = grid.add(app, partition_id=1)
    again = {m.metadata.dst_node_id: told(m) for m in one_round(strategy, grid, 5)}
    assert again[new.node_id].full
    assert again[new.node_id].counted is None  # who that is, is not known yet
    later = {m.metadata.dst_node_id: told(m) for m in one_round(strategy, grid, 6)}
    assert not later[new.node_id].full
    assert later[new.node_id].counted.runs == ((0, 4),)


def test_blobs_are_sent_only_while_they_are_shorter_than_the_model(setup):
    _, _, _, grid, _ = setup
    strategy = CompressedStrategy(FedAvg(), "dense()")
    node_id = next(iter(grid.nodes))
    one_round(strategy, grid, 1, initial())
    grid.fate = lambda message: "dead" if message.metadata.dst_node_id == node_id else "ok"
    one_round(strategy, grid, 2)
    grid.fate = lambda message: "ok"
    sent = {m.metadata.dst_node_id: told(m) for m in one_round(strategy, grid, 3)}
    assert sent[node_id].full


def test_a_lost_disk_loses_its_residual_and_nothing_else(setup):
    """The new state numbers its payloads from 0: without its incarnation they would pass for counted ones."""
    folder, books, _, grid, strategy = setup
    with counting(strategy) as counted:
        for index in range(1, 4):
            one_round(strategy, grid, index, initial() if index == 1 else None)
        old = member_of(folder, "run-1", 0)
        (folder / "run-1" / "client-0.state").unlink()
        books.raw[0], counted[0] = np.zeros(210), np.zeros(210)
        for index in range(4, 8):
            one_round(strategy, grid, index)
        assert books.runs[0] == 7
        assert audit(strategy, folder, books, 0, counted[0]) <= 1e-6
    new = member_of(folder, "run-1", 0)
    assert new.incarnation != old.incarnation
    assert new.client.sequence == 4  # none of them was taken for one that was counted before
    assert strategy._conversation.counted(0).runs == ((0, 3),)


def test_who_cannot_follow_gets_the_model_within_the_round(setup):
    folder, books, _, grid, strategy = setup
    one_round(strategy, grid, 1, initial())
    (folder / "run-1" / "client-0.state").unlink()
    pushed = len(grid.pushed)
    messages = one_round(strategy, grid, 2)
    assert [told(m).full for m in messages] == [False, False]
    assert len(grid.pushed) == pushed + 3
    assert told(grid.pushed[-1]).full
    assert books.runs == {0: 2, 1: 2}
    assert strategy._conversation.server.round == 2
    assert strategy.ledger.rounds[-1].num_counted == 2


def test_a_state_from_a_backup_goes_on_after_the_numbers_that_were_counted(setup):
    folder, _, _, grid, strategy = setup
    one_round(strategy, grid, 1, initial())
    backup = (folder / "run-1" / "client-0.state").read_bytes()
    one_round(strategy, grid, 2)
    one_round(strategy, grid, 3)
    (folder / "run-1" / "client-0.state").write_bytes(backup)
    one_round(strategy, grid, 4)
    assert strategy.ledger.rounds[-1].num_counted == 2
    assert member_of(folder, "run-1", 0).client.sequence == 4


def test_verdicts_are_final(setup):
    """A reply that comes after its client was told that it had not, is not counted any more."""
    folder, books, _, grid, _ = setup
    strategy = CompressedStrategy(FedAvg(), SPEC, max_staleness=3)
    node_id = next(iter(grid.nodes))
    with counting(strategy) as counted:
        one_round(strategy, grid, 1, initial())
        grid.fate = lambda m: "late" if m.metadata.dst_node_id == node_id else "ok"
        one_round(strategy, grid, 2)
        late = [name for name in grid._stored if not name.startswith("late")]
        assert len(late) == 1
        hidden = {late[0]: grid._stored.pop(late[0])}  # it is later still
        grid.fate = lambda m: "ok"
        one_round(strategy, grid, 3)
        grid._stored.update(hidden)
        with logged() as lines:
            one_round(strategy, grid, 4)
        assert any("answered late" in line for line in lines)
        assert audit(strategy, folder, books, 0, counted[0]) <= 1e-6


def test_a_late_payload_counts_where_it_may(setup):
    folder, books, _, grid, _ = setup
    strategy = CompressedStrategy(FedAvg(), SPEC, max_staleness=1)
    node_id = next(iter(grid.nodes))
    with counting(strategy) as counted:
        one_round(strategy, grid, 1, initial())
        grid.fate = lambda m: "late" if m.metadata.dst_node_id == node_id else "ok"
        one_round(strategy, grid, 2)
        grid.fate = lambda m: "ok"
        one_round(strategy, grid, 3)
        assert strategy.ledger.rounds[-1].num_counted == 3
        assert audit(strategy, folder, books, 0, counted[0]) <= 1e-6


def test_payloads_nobody_can_tell_of_are_not_piled_up(tmp_path):
    """First contacts say nothing of what was counted; after eight of them the node asks before it trains on."""
    books = Books()
    app = make_app(CompressionMod(state_dir=tmp_path), books=books)
    grid = make_grid(app, 2)
    strategy = CompressedStrategy(FedAvg(), SPEC)
    with counting(strategy) as counted:
        for index in range(1, 15):
            one_round(strategy, grid, index, initial() if index == 1 else None)
            victim = next(n for n in grid.nodes.values() if n.online and n.config["partition-id"] == 0)
            victim.online = False
            grid.add(app, partition_id=0)
            assert len(member_of(tmp_path, "run-1", 0).client.pending_sequences) <= 8
        assert books.runs[0] == 14
        assert audit(strategy, tmp_path, books, 0, counted[0]) <= 1e-6


# --- two nodes, one client ------------------------------------------------------------------------


def test_the_second_node_of_a_client_is_told_so(setup):
    _, books, app, grid, strategy = setup
    second = grid.add(app, partition_id=0)
    with logged() as lines:
        one_round(strategy, grid, 1, initial())
    assert strategy.ledger.rounds[-1].num_counted == 2
    message = f"node {second.node_id} says that it is client 0, which node"
    taken = [line for line in lines if "says that it is client 0" in line and "client-id" in line]
    assert taken
    runs = books.runs[0]
    with logged() as lines:
        one_round(strategy, grid, 2)
    assert books.runs[0] == runs + 1  # the second one does not train
    assert any("answered with an error" in line and "client-id" in line for line in lines)
    assert message or lines


def test_another_node_takes_a_client_over_only_from_one_that_is_gone():
    bindings = Bindings()
    bindings.claim(1, 5, {1, 2})
    with pytest.raises(gw.ProtocolError, match="node 2 says that it is client 5, which node 1 is"):
        bindings.claim(2, 5, {1, 2})
    with pytest.raises(gw.ProtocolError, match="it was client 5"):
        bindings.claim(1, 6, {1, 2})
    with pytest.raises(gw.ProtocolError, match="expected client 4"):
        bindings.claim(3, 6, {3}, expected=4)
    assert "which node 1 is" in bindings.refusal(2, {1, 2})
    bindings.of(1).reachable = False
    assert bindings.refusal(2, {1, 2}) is None
    bindings.claim(2, 5, {1, 2})
    assert (bindings.of(2).client, bindings.of(1).client) == (5, None)


def test_the_server_may_know_who_nodes_are(setup):
    _, _, _, grid, _ = setup
    strategy = CompressedStrategy(FedAvg(), SPEC, client_id_of=lambda info: {"node-0": 0, "node-1": 9}[info.name])
    assert sorted(told(m).client for m in one_round(strategy, grid, 1, initial())) == [0, 9]
    assert strategy.ledger.rounds[-1].num_counted == 2
    assert sorted(answer_of(reply).client for reply in grid.replies) == [0, 9]


# --- the model, changed; a run, resumed -----------------------------------------------------------


def test_a_model_changed_between_rounds_goes_to_all(setup):
    _, books, _, grid, strategy = setup
    one_round(strategy, grid, 1, initial())
    changed = ArrayRecord({k: type(a)(a.numpy() * 2) for k, a in strategy.arrays.items()})
    messages = one_round(strategy, grid, 2, changed)
    assert [told(m).full for m in messages] == [True, True]
    for model in books.models[-2:]:
        np.testing.assert_array_equal(model, flat(changed))


def test_a_model_of_other_arrays_is_refused(setup):
    _, _, _, grid, strategy = setup
    one_round(strategy, grid, 1, initial())
    other = ArrayRecord(dict(reversed(initial().items())))
    with pytest.raises(gw.ConfigError, match="another order"):
        one_round(strategy, grid, 2, other)


@pytest.mark.parametrize(
    "make", [FedAvg, lambda: FedAvgM(server_momentum=0.9, server_learning_rate=0.7), lambda: FedAdam(eta=0.02)]
)
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path, make):
    def run(folder, stops):
        app = make_app(CompressionMod(state_dir=folder), books=Books())
        grid = make_grid(app, 3)
        for stop in stops:
            strategy = CompressedStrategy(make(), SPEC, conversation="trial", state_file=folder / "server.state")
            result = strategy.start(grid, initial(), num_rounds=stop, timeout=5)
            grid = make_grid(app, 3)  # other nodes, the same disks
        return strategy, result

    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, expected = run(tmp_path / "whole", [6])
    parts, got = run(tmp_path / "parts", [2, 3, 6, 6])
    assert flat(got.arrays).tobytes() == flat(expected.arrays).tobytes()
    assert parts.rounds_done == whole.rounds_done == 6
    assert len(parts.ledger.rounds) == 6


def test_states_survive_the_disk_and_are_refused_elsewhere(setup, tmp_path):
    _, _, _, grid, strategy = setup
    with pytest.raises(gw.StateError, match="before the first round"):
        strategy.state_dict()
    one_round(strategy, grid, 1, initial())
    write_state(tmp_path / "s", strategy.state_dict())
    state = read_state(tmp_path / "s")
    twin = CompressedStrategy(FedAvg(), SPEC)
    twin.load_state_dict(state)
    assert flat(twin.arrays).tobytes() == flat(strategy.arrays).tobytes()
    for other in (CompressedStrategy(FedAvg(), "topk(0.1)"), CompressedStrategy(FedAvg(), SPEC, downlink="topk(0.5)")):
        with pytest.raises(gw.StateError):
            other.load_state_dict(state)
        assert other.arrays is None
    wrong = ({"format": 9}, {"conversation": {}}, {"rounds_done": -1}, {"ledger": {"rounds": [[1]]}})
    for broken in ({}, *({**state, **one} for one in wrong)):
        with pytest.raises(gw.StateError):
            twin.load_state_dict(broken)


def test_a_name_used_again_without_its_state_begins_anew(setup):
    """Else what an earlier run counted would be sent once more."""
    folder, books, _, grid, _ = setup
    for _ in range(2):
        books.raw.clear()
        strategy = CompressedStrategy(FedAvg(), SPEC, conversation="again")
        with counting(strategy) as counted:
            strategy.start(grid, initial(), num_rounds=2, timeout=5)
            assert audit(strategy, folder, books, 0, counted[0]) <= 1e-6


def test_answers_name_the_version(setup):
    _, _, _, grid, strategy = setup
    one_round(strategy, grid, 1, initial())
    one_round(strategy, grid, 2)
    assert [answer_of(reply).version for reply in grid.replies[:4]] == [0, 0, 1, 1]


def test_what_is_told_of_an_earlier_incarnation_is_about_none_of_ours(setup):
    """The new state's first payload is lost, and its number is one that was counted of the old state."""
    folder, books, _, grid, strategy = setup
    with counting(strategy) as counted:
        for index in range(1, 4):
            one_round(strategy, grid, index, initial() if index == 1 else None)
        (folder / "run-1" / "client-0.state").unlink()
        books.raw[0], counted[0] = np.zeros(210), np.zeros(210)
        grid.fate = lambda m: "unanswered" if told(m).full else "ok"
        one_round(strategy, grid, 4)
        grid.fate = lambda m: "ok"
        assert strategy._conversation.counted(0).holds(0)
        assert member_of(folder, "run-1", 0).client.pending_sequences == (0,)
        one_round(strategy, grid, 5)
        assert member_of(folder, "run-1", 0).client.pending_sequences == (0, 1)  # the server hears of it only now
        one_round(strategy, grid, 6)
        assert member_of(folder, "run-1", 0).client.pending_sequences == (2,)
        assert audit(strategy, folder, books, 0, counted[0]) <= 1e-6
