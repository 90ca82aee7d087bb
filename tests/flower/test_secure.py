"""Secure sums over Flower, on a grid in this process: the mean, nothing else, and nothing lost by whoever drops out."""

from __future__ import annotations

import stat
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from apps import Books, config, flat, initial, logged, make_app, make_grid, member_of, trained
from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian

import gradwire as gw
from gradwire.compressors.papers.leader import leader_of
from gradwire.errors import ConfigError
from gradwire.flower import CompressedStrategy, CompressionMod
from gradwire.flower.carrier import find_carrier, make_carrier
from gradwire.flower.header import PROPOSAL, Step, StepAnswer, is_step, read_step, read_step_answer
from gradwire.flower.model import Model
from gradwire.flower.secure import SecureMod, SecureStrategy, Terms
from gradwire.flower.secure import strategy as module
from gradwire.secagg import SecureServer
from gradwire.secagg.support import pack_support

SPEC = "ef(randk(0.2, shared=True) | fixed(8, 1.0))"
LED = "ef(leader(0.2) | fixed(8, 1.0))"
TERMS = Terms(num_clients=4, threshold=3, grid=gw.fixed(8, 1.0), max_weight=10)


@pytest.fixture
def sums(monkeypatch):
    """Every sum that a server came to."""
    found, close = [], SecureServer.close_round

    def closing(server):
        found.append(close(server))
        return found[-1]

    monkeypatch.setattr(SecureServer, "close_round", closing)
    return found


def step_of(message) -> int:
    data = find_carrier(message.content).data
    return read_step(data).number if is_step(data) else 1


class Fate:
    """In one round, at one step, something becomes of the messages of some nodes."""

    def __init__(self, index: int, step: int, what: str, *clients: int) -> None:
        self.index, self.step, self.what, self.clients = index, step, what, clients
        self.seen: Counter[tuple[int, int]] = Counter()
        self.grid = None

    def __call__(self, message) -> str:
        if not message.metadata.message_type.startswith("train") or find_carrier(message.content) is None:
            return "ok"
        client, step = self.grid.nodes[message.metadata.dst_node_id].config["partition-id"], step_of(message)
        self.seen[client, step] += 1
        hit = client in self.clients and step == self.step and self.seen[client, step] == self.index
        return self.what if hit else "ok"


def federation(tmp_path, fate=None, books=None, num_clients=4, **options):
    mod = SecureMod(TERMS, state_dir=tmp_path, **options)
    grid = make_grid(make_app(mod, books=books), num_clients, fate or (lambda message: "ok"))
    if fate is not None:
        fate.grid = grid
    return grid


def strategy(spec=SPEC, **options) -> SecureStrategy:
    return SecureStrategy(FedAvg(fraction_evaluate=0.0), spec, TERMS, conversation="secure", step_timeout=5, **options)


def in_clear(num_rounds: int, num_clients: int = 4, spec: str = SPEC) -> np.ndarray:
    """The same rounds with plain clients, whose integers are added up here."""
    start = Model.from_record(initial())
    model, layout = start.vector, start.layout
    ends = {i: gw.Client(gw.parse(spec), layout, i) for i in range(num_clients)}
    for index in range(num_rounds):
        total, weights = np.zeros(layout.d, np.int64), 0
        updates = {i: layout.flatten(trained(layout.unflatten(model), i, index + 1)) - model for i in ends}
        first = leader_of(list(ends), 0, index)
        support = ends[first].propose(updates[first]) if spec == LED else None
        for i, end in ends.items():
            sent = gw.decompress(gw.decode(end.compress(updates[i], i + 1, round=index, support=support)))
            total += (i + 1) * np.rint(sent * 127).astype(np.int64)
            weights += i + 1
            end.settle(True)
        model = model + (total / 127 / weights).astype(np.float32)
    return model


def test_the_model_is_that_of_integers_added_up_in_clear(tmp_path, sums):
    grid = federation(tmp_path)
    result = strategy().start(grid, initial(), num_rounds=3, timeout=5)
    np.testing.assert_allclose(flat(result.arrays), in_clear(3), rtol=0, atol=1e-6)
    assert [total.clients for total in sums] == [(0, 1, 2, 3)] * 3
    assert [total.sum_weights for total in sums] == [10] * 3


def lost(tmp_path, books, sums) -> float:
    """Law 1 of all clients together: what was computed, less what they keep, is what the sums came to."""
    counted = np.zeros(210)
    for total in sums:
        counted[total.support] += total.integers / 127
    computed = np.zeros(210)
    for client, raw in books.raw.items():
        member = member_of(tmp_path, "secure", client)
        kept = member.client.state_dict()["residual"].astype(np.float64)
        assert member.client.pending_sequences == ()
        computed += (client + 1) * (raw - kept)
    return float(np.linalg.norm(computed - counted) / np.linalg.norm(computed))


@pytest.mark.parametrize(
    ("step", "what"),
    [
        pytest.param(step, what, marks=[] if number == (step - 1) % 4 else pytest.mark.slow)
        for step in (1, 2, 3, 4, 5)
        for number, what in enumerate(("lost", "dead", "unanswered", "late"))
    ],
)
def test_who_drops_out_loses_nothing(tmp_path, sums, step, what):
    books = Books()
    fate = Fate(2, step, what, 2)
    grid = federation(tmp_path, fate, books)
    wrapped = strategy()
    result = wrapped.start(grid, initial(), num_rounds=3, timeout=5)
    there = (0, 1, 2, 3) if step > 3 else (0, 1, 3)
    assert [total.clients for total in sums] == [(0, 1, 2, 3), there, (0, 1, 2, 3)]
    assert [r.num_counted for r in wrapped.ledger.rounds] == [4, len(there), 4]
    assert np.isfinite(flat(result.arrays)).all()
    tell(grid, wrapped)
    assert lost(tmp_path, books, sums) < 1e-6


def tell(grid, wrapped) -> None:
    """Begin one more round, in which clients hear of the last one, and no further."""
    fate, grid.fate = grid.fate, lambda message: "ok" if step_of(message) == 1 else "lost"
    with logged():
        assert len(wrapped.configure_train(9, wrapped.arrays, config(9), grid)) in (0, 4)
    grid.fate = fate


def test_below_the_threshold_there_is_no_sum_and_nothing_is_lost(tmp_path, sums):
    books = Books()
    grid = federation(tmp_path, Fate(2, 3, "unanswered", 1, 2), books)
    wrapped, models = strategy(), []
    with logged() as lines:
        wrapped.start(grid, initial(), 4, 5, evaluate_fn=lambda _, arrays: models.append(flat(arrays)))
    assert len(sums) == 3
    assert models[1].tobytes() == models[2].tobytes() != models[3].tobytes()
    assert any("no sum in this round: 2 of the clients sent masked numbers" in line for line in lines)
    tell(grid, wrapped)
    assert lost(tmp_path, books, sums) < 1e-6


def test_nothing_but_masked_numbers_leaves_a_node(tmp_path):
    grid = federation(tmp_path)
    strategy().start(grid, initial(), num_rounds=2, timeout=5)
    trained = [reply for reply in grid.replies if reply.metadata.message_type.startswith("train")]
    assert len(trained) == 2 * 4 * 5
    for reply in trained:
        (record,) = reply.content.values()
        assert list(record) == ["gradwire"]


def test_secrets_are_the_user_s_alone_and_used_up_in_the_end(tmp_path):
    grid = federation(tmp_path)
    strategy().start(grid, initial(), num_rounds=1, timeout=5)
    for client in range(4):
        path = tmp_path / "secure" / f"client-{client}.secrets"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"used up" in path.read_bytes()
        assert b"own_seed" not in path.read_bytes()


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_no_step_is_answered_twice(tmp_path, step):
    """A server that asks again, with the same words or others, gets an error: no second answer to hold to the first."""
    grid = federation(tmp_path)
    strategy().start(grid, initial(), num_rounds=1, timeout=5)
    asked = [m for m in grid.pushed if m.metadata.message_type.startswith("train") and step_of(m) == step]
    assert len(asked) == 4
    reply = grid.nodes[asked[0].metadata.dst_node_id].run(asked[0])
    if step > 1:
        assert reply.has_error()
        assert "ProtocolError" in reply.error.reason
    else:  # a new session, of which nobody else has the keys
        assert not reply.has_error()


def test_the_state_goes_into_a_new_run(tmp_path, sums):
    books, file = Books(), tmp_path / "server.state"
    grid = federation(tmp_path, books=books)
    strategy(state_file=file).start(grid, initial(), num_rounds=1, timeout=5)
    resumed = strategy(state_file=file)
    result = resumed.start(grid, initial(), num_rounds=3, timeout=5)
    assert resumed.rounds_done == 3
    np.testing.assert_allclose(flat(result.arrays), in_clear(3), rtol=0, atol=1e-6)
    tell(grid, resumed)
    assert lost(tmp_path, books, sums) < 1e-6


def test_a_node_that_lost_its_disk_goes_on(tmp_path, sums):
    grid = federation(tmp_path)
    wrapped = strategy()
    wrapped.start(grid, initial(), num_rounds=2, timeout=5)
    (tmp_path / "secure" / "client-1.state").unlink()
    (tmp_path / "secure" / "client-1.secrets").unlink()
    wrapped.start(grid, wrapped.arrays, num_rounds=4, timeout=5)
    assert [total.clients for total in sums] == [(0, 1, 2, 3)] * len(sums)
    assert member_of(tmp_path, "secure", 1).client.sequence == 2


def test_it_trains_with_the_state_in_the_context(sums):
    grid = make_grid(make_app(SecureMod(TERMS, state="context")), 4)
    result = strategy().start(grid, initial(), num_rounds=2, timeout=5)
    np.testing.assert_allclose(flat(result.arrays), in_clear(2), rtol=0, atol=1e-6)


def test_adaptive_strategies_are_handed_the_mean(tmp_path):
    grid = federation(tmp_path)
    inner = FedAdam(fraction_evaluate=0.0, eta=0.01)
    result = SecureStrategy(inner, SPEC, TERMS, step_timeout=5).start(grid, initial(), num_rounds=2, timeout=5)
    assert 0 < np.abs(flat(result.arrays) - flat(initial())).max() < 0.1


# ---- groups


def test_a_round_of_more_than_a_sum_may_have_is_summed_in_groups(tmp_path, sums):
    """Seven in groups of three or four: the model is that of all of them."""
    wrapped = strategy()
    result = wrapped.start(federation(tmp_path, num_clients=7), initial(), num_rounds=2, timeout=5)
    np.testing.assert_allclose(flat(result.arrays), in_clear(2, 7), rtol=0, atol=1e-6)
    assert [sorted(a.clients + b.clients) for a, b in (sums[:2], sums[2:])] == [list(range(7))] * 2
    assert [len(total.clients) for total in sums] == [4, 3] * 2
    assert [r.num_counted for r in wrapped.ledger.rounds] == [7, 7]


@pytest.mark.parametrize("spec", [SPEC, LED])
def test_a_group_below_the_threshold_has_no_sum_and_loses_nothing(tmp_path, sums, monkeypatch, spec):
    monkeypatch.setattr(module, "deal", lambda nodes, terms: (sorted(nodes)[:4], sorted(nodes)[4:]))
    books = Books()
    grid = federation(tmp_path, Fate(2, 3, "unanswered", 5, 6), books, num_clients=7)
    wrapped = strategy(spec)
    with logged() as lines:
        wrapped.start(grid, initial(), num_rounds=2, timeout=5)
    assert [total.clients for total in sums] == [(0, 1, 2, 3), (4, 5, 6), (0, 1, 2, 3)]
    assert "no sum of group 1 in this round: 1 of the clients sent masked numbers" in "\n".join(lines)
    assert [r.num_counted for r in wrapped.ledger.rounds] == [7, 4]
    tell(grid, wrapped)
    assert lost(tmp_path, books, sums) < 1e-6


def test_who_fits_into_no_group_sits_the_round_out(tmp_path, sums):
    grid = federation(tmp_path, num_clients=5)
    assert "1 of 5 nodes fit into no group and sit this round out" in said_by(grid, strategy())
    assert [len(total.clients) for total in sums] == [4]


# ---- a leader


def test_a_leader_s_coordinates_are_those_of_all(tmp_path, sums):
    books = Books()
    grid = federation(tmp_path, books=books)
    wrapped = strategy(LED)
    result = wrapped.start(grid, initial(), num_rounds=3, timeout=5)
    np.testing.assert_allclose(flat(result.arrays), in_clear(3, spec=LED), rtol=0, atol=1e-6)
    assert [total.support.size for total in sums] == [42] * 3
    assert dict(books.runs) == dict.fromkeys(range(4), 3)
    asked = [m.metadata.dst_node_id for m in grid.pushed if find_carrier(m.content) and step_of(m) == PROPOSAL]
    leaders = [grid.nodes[node].config["partition-id"] for node in asked]
    assert leaders == [leader_of(range(4), 0, index) for index in range(3)]
    tell(grid, wrapped)
    assert lost(tmp_path, books, sums) < 1e-6


@pytest.mark.parametrize("what", ["lost", "dead", "unanswered", "late"])
def test_where_the_leader_proposes_nothing_another_is_drawn(tmp_path, sums, what):
    books, leader = Books(), leader_of(range(4), 0, 1)
    grid = federation(tmp_path, Fate(1, PROPOSAL, what, leader), books)
    wrapped = strategy(LED)
    with logged() as lines:
        wrapped.start(grid, initial(), num_rounds=2, timeout=5)
    assert leader != leader_of(range(4), 0, 0)
    assert f"client {leader} leads the round and proposed no coordinates" in "\n".join(lines)
    assert [total.clients for total in sums] == [(0, 1, 2, 3)] * 2
    assert dict(books.runs) == dict.fromkeys(range(4), 2)  # who proposed in vain does not train again
    tell(grid, wrapped)
    assert lost(tmp_path, books, sums) < 1e-6


@pytest.mark.parametrize("what", ["lost", "unanswered"])
def test_a_leader_that_is_gone_after_its_proposal_keeps_its_update(tmp_path, sums, what):
    books, leader = Books(), leader_of(range(4), 0, 1)
    others = tuple(i for i in range(4) if i != leader)
    grid = federation(tmp_path, Fate(2, 3, what, leader), books)
    wrapped = strategy(LED)
    wrapped.start(grid, initial(), num_rounds=2, timeout=5)
    assert [total.clients for total in sums] == [(0, 1, 2, 3), others]
    tell(grid, wrapped)
    assert lost(tmp_path, books, sums) < 1e-6


def test_nobody_who_proposes_is_no_sum(tmp_path, sums):
    books = Books()
    grid = federation(tmp_path, Fate(1, PROPOSAL, "lost", 0, 1, 2, 3), books)
    with logged() as lines:
        strategy(LED).start(grid, initial(), num_rounds=1, timeout=5)
    assert "4 clients could lead and 2 were asked in vain; the threshold is 3" in "\n".join(lines)
    assert sums == []
    assert not books.runs


@pytest.mark.parametrize("message", [b"", b"\x00" * 40, "all", "none"])
def test_a_proposal_that_is_none_is_refused_and_another_is_drawn(tmp_path, sums, message):
    """Among them coordinates that would have all clients send their whole update."""
    if isinstance(message, str):
        message = pack_support(np.arange(210 if message == "all" else 0), 210)
    grid = federation(tmp_path)
    node = list(grid.nodes.values())[leader := leader_of(range(4), 0, 0)]
    app = node.app

    def lying(given, context):
        reply = app(given, context)
        if find_carrier(given.content) and step_of(given) == PROPOSAL:
            found = find_carrier(reply.content)
            answer = read_step_answer(found.data)
            carrier = make_carrier(StepAnswer(answer.birth, answer.client, 0, message).encode())
            reply.content = RecordDict({found.key: ArrayRecord({"gradwire": carrier})})
        return reply

    node.app = lying
    with logged() as lines:
        strategy(LED).start(grid, initial(), num_rounds=1, timeout=5)
    assert f"refused what client {leader}" in "\n".join(lines)
    assert [(total.clients, total.support.size) for total in sums] == [((0, 1, 2, 3), 42)]


def test_a_client_is_not_told_to_send_more_than_its_spec_implies(tmp_path, sums):
    """A server that asks one for 43 coordinates, where the spec says 42, gets an error, and its update stays there."""
    books = Books()
    grid = federation(tmp_path, books=books)
    node = next(node for node in grid.nodes.values() if node.config["partition-id"] != leader_of(range(4), 0, 0))
    app = node.app

    def lied_to(given, context):
        found = find_carrier(given.content)
        if found is not None and is_step(found.data) and (told := read_step(found.data)).number == 3:
            lie = Step(told.conversation, told.birth, told.client, 3, told.message, pack_support(np.arange(43), 210))
            given.content[found.key] = ArrayRecord({"gradwire": make_carrier(lie.encode())})
        return app(given, context)

    node.app = lied_to
    wrapped = strategy(LED)
    assert "support may have 42 coordinates at most" in said_by(grid, wrapped)
    there = tuple(i for i in range(4) if i != node.config["partition-id"])
    assert [total.clients for total in sums] == [there]
    member = member_of(tmp_path, "secure", node.config["partition-id"])
    assert member.client.sequence == 0
    assert not member.client.residual.any()


@pytest.mark.parametrize(
    ("spec", "step", "what", "said"),
    [
        (LED, 2, "lost", "once, before it masks"),  # nobody shared its secrets yet
        (LED, PROPOSAL, "unanswered", "once, before it masks"),  # it was asked already
        (LED, 9, "ok", "once, before it masks"),  # everybody masked
        (SPEC, 3, "lost", "asks no client which coordinates"),
    ],
)
def test_a_client_proposes_once_and_when_it_is_time(tmp_path, spec, step, what, said):
    """A server that asks a client at another time, or again, learns nothing more of its update."""
    grid = federation(tmp_path, Fate(1, step, what, *range(4)))
    with logged():
        strategy(spec).start(grid, initial(), num_rounds=1, timeout=5)
    for node in grid.nodes.values():
        of_node = [m for m in grid.pushed if m.metadata.dst_node_id == node.node_id]
        if (step, what) == (PROPOSAL, "unanswered") and step_of(of_node[-1]) != PROPOSAL:
            continue  # its turn did not come
        asked = next(m for m in of_node if m.metadata.message_type == "train" and step_of(m) > 1)
        found = find_carrier(asked.content)
        told = read_step(found.data)
        carrier = make_carrier(Step(told.conversation, told.birth, told.client, PROPOSAL, b"").encode())
        asked.content[found.key] = ArrayRecord({"gradwire": carrier})
        asked.content["config"] = config(1)
        reply = node.run(asked)
        assert reply.has_error()
        assert said in reply.error.reason


# ---- what cannot be


@pytest.mark.parametrize(
    ("spec", "terms", "said"),
    [
        ("ef(topk(0.1) | fixed(8, 1.0))", TERMS, "no coordinates that all clients know of"),
        ("ef(tcs(0.1, 0.1) | fixed(8, 1.0))", TERMS, "no coordinates that all clients know of"),
        ("ef(randk(0.1, shared=True))", TERMS, "on the grid"),
        ("ef(randk(0.1, shared=True) | fixed(4, 1.0))", TERMS, "on the grid"),
    ],
)
def test_specs_that_cannot_be_summed_are_refused_before_anything_is_sent(tmp_path, spec, terms, said):
    grid = federation(tmp_path)
    with pytest.raises(ConfigError, match=said):
        SecureStrategy(FedAvg(), spec, terms).start(grid, initial(), num_rounds=1, timeout=5)
    assert grid.pushed == []


def test_strategies_that_look_at_each_update_are_refused():
    with pytest.raises(ConfigError, match="FedMedian looks at each client's update"):
        SecureStrategy(FedMedian(), SPEC, TERMS)
    with pytest.raises(ConfigError, match="terms must be Terms, got int"):
        SecureStrategy(FedAvg(), SPEC, 3)
    with pytest.raises(ConfigError, match="terms must be Terms, got str"):
        SecureMod("terms")
    in_clear = replace(TERMS, most_in_clear=5)
    for make in (lambda: SecureStrategy(FedAvg(), SPEC, in_clear), lambda: SecureMod(in_clear)):
        with pytest.raises(ConfigError, match="over Flower nothing is sent in clear: most_in_clear must be 0, got 5"):
            make()


def said_by(grid, wrapped) -> str:
    with logged() as lines:
        wrapped.start(grid, initial(), num_rounds=1, timeout=5)
    return "\n".join(lines)


def test_a_client_does_not_send_in_clear(tmp_path):
    books = Books()
    said = said_by(federation(tmp_path, books=books), CompressedStrategy(FedAvg(), SPEC))
    assert "asks for updates in clear, and this ClientApp has SecureMod" in said
    assert not books.runs


def test_a_client_without_the_mod_is_told_which(tmp_path):
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)), 4)
    assert "give the ClientApp gradwire.flower.secure.SecureMod" in said_by(grid, strategy())


def test_other_terms_are_refused(tmp_path):
    other = Terms(num_clients=4, threshold=4, grid=gw.fixed(8, 1.0), max_weight=10)
    grid = make_grid(make_app(SecureMod(other, state_dir=tmp_path)), 4)
    assert "server has terms" in said_by(grid, strategy())


@pytest.mark.parametrize("weight", [11, 0, 1.5])
def test_a_weight_that_is_none_of_the_terms_drops_out(tmp_path, sums, weight):
    app = make_app(SecureMod(TERMS, state_dir=tmp_path), weight=lambda client: weight if client == 3 else 2)
    grid = make_grid(app, 4)
    said = said_by(grid, strategy())
    assert f"must be an integer from 1 to max_weight, 10, got {weight:g}" in said, "in the node's own log"
    (reason,) = (reply.error.reason for reply in grid.replies if reply.has_error())
    assert "its own log says why" in reason
    assert f"{weight:g}" not in reason, "what the server hears"
    assert [(total.clients, total.sum_weights) for total in sums] == [((0, 1, 2), 6)]


def test_a_client_that_talks_nonsense_drops_out(tmp_path, sums):
    grid = federation(tmp_path)
    node = list(grid.nodes.values())[1]
    app = node.app

    def lying(message, context):
        reply = app(message, context)
        found = find_carrier(reply.content)
        if found is not None and find_carrier(message.content) and step_of(message) == 3:
            reply.content = RecordDict({found.key: ArrayRecord({"gradwire": make_carrier(found.data[:-3])})})
        return reply

    node.app = lying
    said = said_by(grid, strategy())
    assert "refused what client 1" in said
    assert [total.clients for total in sums] == [(0, 2, 3)]
