"""Asynchronous runs on a grid in this process: who is weighed how, who is waited for, and that nothing is lost."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from apps import Books, answer_of, audit, counting, flat, initial, logged, make_app, member_of, trained
from fake_grid import Clock, FakeGrid
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
)
from test_flower_identity import told

import gradwire as gw
import gradwire.flower.asynchronous
import gradwire.flower.post
from gradwire.federated.algorithms import fedbuff
from gradwire.flower import AsynchronousStrategy, CompressedStrategy, CompressionMod
from gradwire.flower.carrier import NAME, make_carrier
from gradwire.flower.conversation import Conversation
from gradwire.flower.header import Answer
from gradwire.flower.model import Model
from gradwire.flower.roster import Roster

SPEC = "ef(topk(0.05))"
SPEEDS = (1.0, 2.5, 7.0)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (gradwire.flower.asynchronous, gradwire.flower.post):
        monkeypatch.setattr(module, "time", clock)
    return clock


def timed_grid(clock, app, speeds=SPEEDS, fate=lambda message: "ok"):
    """Nodes that take so many seconds each."""
    grid = FakeGrid(fate, clock=clock)
    of_node = {grid.add(app, partition_id=i).node_id: seconds for i, seconds in enumerate(speeds)}
    grid.seconds = lambda message: of_node.get(message.metadata.dst_node_id, 1.0)
    return grid


def all_of(num):
    return FedAvg(min_train_nodes=num, min_available_nodes=num)


@pytest.fixture
def received(monkeypatch):
    """What the server counts: (open round, client, version it started from, update), in order."""
    rows = []
    receive = Conversation.receive

    def noting(self, client, incarnation, blob, weight):
        receive(self, client, incarnation, blob, weight)
        payload = gw.decode(blob)
        rows.append((self.version, client, payload.round, gw.decompress(payload), weight))

    monkeypatch.setattr(Conversation, "receive", noting)
    return rows


@pytest.mark.parametrize(
    ("algorithm", "scale", "size", "weigh"),
    [
        (fedbuff(2), 1 / 2, 2, lambda age: (1 + age) ** -0.5),
        (fedbuff(3, 0.5, exponent=1.0), 0.5 / 3, 3, lambda age: 1 / (1 + age)),
        ("fedasync(mixing=0.6)", 0.6, 1, lambda age: (1 + age) ** -0.5),
        (
            "fedasync(staleness='hinge', slope=2.0, threshold=1)",
            0.6,
            1,
            lambda age: 1.0 if age <= 1 else 1 / (2 * (age - 1) + 1),
        ),
    ],
)
def test_the_model_moves_by_the_papers_formulas(tmp_path, clock, received, algorithm, scale, size, weigh):
    """The oracle: x += scale * sum of s(age) u over each round, written out in float64."""
    books = Books()
    grid = timed_grid(clock, make_app(CompressionMod(state_dir=tmp_path), books=books))
    models = []
    strategy = AsynchronousStrategy(all_of(3), "dense()", algorithm)
    result = strategy.start(
        grid, initial(), 12, 60.0, evaluate_fn=lambda index, arrays: models.append((index, flat(arrays)))
    )
    assert [index for index, _ in models] == list(range(13))
    assert Counter(row[0] for row in received) == dict.fromkeys(range(12), size)
    ages = [open_round - version for open_round, _, version, _, _ in received]
    assert max(ages) >= 2
    x = flat(initial()).astype(np.float64)
    for index in range(12):
        x += scale * sum(
            weigh(index - version) * update.astype(np.float64)
            for open_round, _, version, update, _ in received
            if open_round == index
        )
        np.testing.assert_allclose(models[index + 1][1], x, rtol=0, atol=2e-5)
    assert flat(result.arrays).tobytes() == models[-1][1].tobytes()
    # and each client trained on the very model of the version it was sent
    known = {model.tobytes() for _, model in models}
    assert all(model.astype(np.float32).tobytes() in known for model in books.models)


def test_of_nodes_of_one_speed_it_is_the_synchronous_run_of_plain_ends(tmp_path, clock):
    """All are fresh, and a buffer holds one payload of each: law 2, bit for bit."""
    app = make_app(CompressionMod(state_dir=tmp_path), weight=lambda client: 1)
    strategy = AsynchronousStrategy(all_of(3), SPEC, fedbuff(3))
    result = strategy.start(timed_grid(clock, app, (1.0, 1.0, 1.0)), initial(), 6, 60.0)
    start = Model.from_record(initial())
    model, layout = start.vector, start.layout
    ends = [gw.Client(gw.parse(SPEC), layout, i) for i in range(3)]
    server = gw.Server(gw.parse(SPEC), layout)
    for index in range(6):
        for i, end in enumerate(ends):
            update = layout.flatten(trained(layout.unflatten(model), i, index + 1)) - model
            server.receive(end.compress(update, round=index), i)
        closed = server.close_round()
        for end in ends:
            end.end_round(closed.blob)
        model = model + closed.applied
    assert flat(result.arrays).tobytes() == model.tobytes()


def test_nobody_is_waited_for_and_no_node_gets_two_things_to_do(tmp_path, clock, received):
    grid = timed_grid(clock, make_app(CompressionMod(state_dir=tmp_path)))
    under_way: dict[int, float] = {}
    carry = grid._carry

    def watched(message, number):
        node = message.metadata.dst_node_id
        assert under_way.get(node, 0.0) <= clock.now, "it is at work"
        under_way[node] = clock.now + grid.seconds(message)
        carry(message, number)

    grid._carry = watched
    AsynchronousStrategy(all_of(3), SPEC, "fedasync()").start(grid, initial(), 40, 100.0)
    counts = Counter(client for _, client, *_ in received)
    busy = clock.now
    for client, seconds in enumerate(SPEEDS):  # each turn takes its time and at most two looks
        assert busy / (seconds + 0.7) - 2 <= counts[client] <= busy / seconds + 1
    assert max(told(m).version for m in grid.pushed) >= 30


def test_who_leaves_is_not_waited_for(tmp_path, clock, received):
    """Flower's strategies wait until enough nodes are there; here they do at the beginning alone."""
    grid = timed_grid(clock, make_app(CompressionMod(state_dir=tmp_path)), (1.0, 1.5, 2.0))
    gone = list(grid.nodes.values())[1]

    def fate(message):
        if clock.now > 4 and message.metadata.dst_node_id == gone.node_id:
            gone.online = False
        return "ok" if gone.online or message.metadata.dst_node_id != gone.node_id else "lost"

    grid.fate = fate
    AsynchronousStrategy(all_of(3), SPEC, fedbuff(2)).start(grid, initial(), 15, 10.0)
    assert Counter(row[0] for row in received) == dict.fromkeys(range(15), 2)
    late = Counter(client for index, client, *_ in received if index >= 10)
    assert set(late) == {0, 2}


def test_a_roster_keeps_the_places_of_who_left():
    grid = FakeGrid()
    nodes = [grid.add(lambda message, context: message) for _ in range(3)]
    roster = Roster(grid)
    ids = [node.node_id for node in nodes]
    assert roster.get_node_ids() == ids
    nodes[0].online = nodes[1].online = False
    assert sorted(roster.get_node_ids()) == ids
    assert roster.online == {ids[2]}
    new = grid.add(lambda message, context: message).node_id
    assert sorted(roster.get_node_ids()) == [ids[1], ids[2], new]
    nodes[1].online = True
    more = grid.add(lambda message, context: message).node_id
    assert sorted(roster.get_node_ids()) == [ids[1], ids[2], new, more]


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_as_many_are_at_work_as_the_inner_strategy_samples(tmp_path, clock, fraction):
    grid = timed_grid(clock, make_app(CompressionMod(state_dir=tmp_path)), (1.0, 2.0, 3.0, 1.5, 2.5, 4.0))
    most = 0
    open_at: dict[str, float] = {}
    carry = grid._carry

    def watched(message, number):
        nonlocal most
        open_at[number] = clock.now + grid.seconds(message)
        most = max(most, sum(until > clock.now for until in open_at.values()))
        carry(message, number)

    grid._carry = watched
    inner = FedAvg(fraction_train=fraction, min_available_nodes=6)
    AsynchronousStrategy(inner, SPEC, fedbuff(2)).start(grid, initial(), 20, 60.0)
    assert most == 6 * fraction
    assert len({m.metadata.dst_node_id for m in grid.pushed}) == 6


def test_what_is_too_old_goes_back_into_the_residual(tmp_path, clock, received):
    books = Books()
    app = make_app(CompressionMod(state_dir=tmp_path), books=books)
    strategy = AsynchronousStrategy(all_of(3), SPEC, "fedasync()", max_staleness=2)
    with logged() as lines, counting(strategy) as counted:
        strategy.start(timed_grid(clock, app, (1.0, 1.0, 9.0)), initial(), 40, 100.0)
        for client in range(3):
            assert audit(strategy, tmp_path, books, client, counted[client]) <= 1e-6
    assert any("client 2 is" in line and "rounds late: not counted" in line for line in lines)
    assert books.runs[2] >= 2
    assert not any(client == 2 for _, client, *_ in received)


def test_clients_follow_by_blobs(tmp_path, clock):
    grid = timed_grid(clock, make_app(CompressionMod(state_dir=tmp_path)))
    AsynchronousStrategy(all_of(3), "ef(topk(0.02))", "fedasync()").start(grid, initial(), 30, 60.0)
    full = [m for m in grid.pushed if told(m).full]
    assert len(full) <= 6  # the first contacts, and where many rounds' blobs are longer than the model
    assert {len(told(m).blobs) for m in grid.pushed if not told(m).full} >= {1, 2}


@pytest.mark.parametrize("make", [lambda: FedAvgM(server_momentum=0.9, server_learning_rate=0.5), FedAdam])
def test_inner_strategies_step_on_what_the_algorithm_gives(tmp_path, clock, received, make):
    """The oracle: Flower's own strategy, handed the model moved by the weighed sum."""
    grid = timed_grid(clock, make_app(CompressionMod(state_dir=tmp_path)))
    inner, twin = make(), make()
    inner.min_available_nodes = inner.min_train_nodes = 3
    result = AsynchronousStrategy(inner, "dense()", fedbuff(2)).start(grid, initial(), 8, 60.0)
    model = initial()
    layout = Model.from_record(model).layout
    for index in range(8):
        twin.configure_train(index + 1, model, ConfigRecord(), grid)
        vector = layout.flatten({k: a.numpy() for k, a in model.items()})
        vector = vector + sum(w * u for r, _, _, u, w in received if r == index) / 2
        moved = Model.from_record(model).record(vector.astype(np.float32))
        reply = Message(
            RecordDict({"arrays": moved, "metrics": MetricRecord({"num-examples": 1})}),
            dst_node_id=1,
            message_type="train",
        )
        model, _ = twin.aggregate_train(index + 1, [reply])
    np.testing.assert_allclose(flat(result.arrays), flat(model), rtol=0, atol=2e-4)


# --- loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["fedasync()", "fedbuff(buffer_size=3)"])
@pytest.mark.parametrize("seed", range(2))
def test_law_1_whatever_is_lost_and_however_slow(tmp_path, clock, algorithm, seed):
    """Messages lost either way, nodes that vanish, one far slower than the timeout."""
    books, rng = Books(), np.random.default_rng(seed)
    app = make_app(CompressionMod(state_dir=tmp_path), books=books)
    strategy = AsynchronousStrategy(all_of(4), "ef(topk(0.05) | uniform(8))", algorithm, max_staleness=6)
    names = ["ok"] * 6 + ["lost", "unanswered", "dead"]
    grid = timed_grid(clock, app, (1.0, 2.0, 4.0, 25.0), lambda message: names[rng.integers(len(names))])
    num_rounds = 36 // strategy.algorithm.buffer_size
    with counting(strategy) as counted:
        strategy.start(grid, initial(), num_rounds, timeout=8.0)
        for client in range(4):
            assert audit(strategy, tmp_path, books, client, counted[client]) <= 1e-6
    assert sum(books.runs.values()) >= 36


@pytest.mark.parametrize("seed", range(2))
def test_law_1_when_nodes_restart_under_other_ids(tmp_path, clock, seed):
    books, rng = Books(), np.random.default_rng(seed)
    app = make_app(CompressionMod(state_dir=tmp_path), books=books)
    count = itertools.count()
    grid = timed_grid(clock, app)

    def fate(message):
        if next(count) % 5 == 4:
            victim = grid.nodes[rng.choice([i for i, n in grid.nodes.items() if n.online])]
            victim.online = False
            grid.add(app, partition_id=victim.config["partition-id"])
        return "ok" if rng.random() < 0.8 else "unanswered"

    grid.fate = fate
    strategy = AsynchronousStrategy(all_of(3), SPEC, fedbuff(2))
    with counting(strategy) as counted:
        strategy.start(grid, initial(), num_rounds=40, timeout=9.0)
        for client in range(3):
            assert audit(strategy, tmp_path, books, client, counted[client]) <= 1e-6
    assert len(grid.nodes) > 6


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [3, 8, 17, 30])
def test_a_server_killed_anywhere_goes_on_from_its_file(tmp_path, clock, monkeypatch, at):
    """What a client was told to be counted is in the file: nothing is lost, nothing counted twice."""
    books, file = Books(), tmp_path / "server.state"
    app = make_app(CompressionMod(state_dir=tmp_path), books=books)
    settings = {"conversation": "trial", "state_file": file}
    saved: dict[int, np.ndarray] = {}
    first = AsynchronousStrategy(all_of(3), SPEC, fedbuff(4), **settings)
    with counting(first) as counted:
        save = AsynchronousStrategy._save

        def noting(self):
            save(self)
            saved.clear()
            saved.update({client: total.copy() for client, total in counted.items()})

        monkeypatch.setattr(AsynchronousStrategy, "_save", noting)
        grid = timed_grid(clock, app)
        looks = itertools.count()
        pull = grid.pull_messages

        def killed(ids):
            found = pull(ids)
            if found and next(looks) == at:
                raise Killed
            return found

        grid.pull_messages = killed
        with pytest.raises(Killed):
            first.start(grid, initial(), 20, 60.0)
        done = first.rounds_done
        counted.clear()
        counted.update({client: total.copy() for client, total in saved.items()})
        second = AsynchronousStrategy(all_of(3), SPEC, fedbuff(4), **settings)
        second.start(timed_grid(clock, app), initial(), 20, 60.0)
        for client in range(3):
            assert audit(second, tmp_path, books, client, counted[client]) <= 1e-6
    assert done < 20 == second.rounds_done == len(second.ledger.rounds)


def test_a_run_that_is_over_is_not_begun_again(tmp_path, clock):
    app = make_app(CompressionMod(state_dir=tmp_path))
    settings = {"conversation": "trial", "state_file": tmp_path / "server.state"}
    first = AsynchronousStrategy(all_of(3), SPEC, fedbuff(2), **settings).start(
        timed_grid(clock, app), initial(), 5, 60.0
    )
    grid = timed_grid(clock, app)
    again = AsynchronousStrategy(all_of(3), SPEC, fedbuff(2), **settings).start(grid, initial(), 5, 60.0)
    assert grid.pushed == []
    assert flat(again.arrays).tobytes() == flat(first.arrays).tobytes()


def test_who_cannot_follow_gets_the_model_at_once(tmp_path, clock):
    grid = timed_grid(clock, make_app(CompressionMod(state_dir=tmp_path)))
    strategy = AsynchronousStrategy(all_of(3), SPEC, fedbuff(2))
    strategy.start(grid, initial(), 3, 60.0)
    (tmp_path / "run-1" / "client-0.state").unlink()
    before = len(grid.pushed)
    strategy.start(grid, strategy.arrays, 6, 60.0)
    of_first = [told(m) for m in grid.pushed[before:] if m.metadata.dst_node_id == next(iter(grid.nodes))]
    assert [t.full for t in of_first[:2]] == [False, True]
    assert strategy.rounds_done == 6


def test_a_late_payload_is_not_counted_once_its_client_was_told_so(tmp_path, clock):
    """It comes in the same look as a call for the model, whose answer tells the client to take it back."""
    books, calls = Books(), Counter()
    app = make_app(CompressionMod(state_dir=tmp_path), books=books)

    def calling(message, context):
        client = context.node_config["partition-id"]
        calls[client] += 1
        if (client, calls[client]) != (0, 2):
            return app(message, context)
        member = member_of(tmp_path, "run-1", 0)
        answer = Answer(told(message).birth, 0, member.incarnation, member.version, resync=True)
        content = RecordDict({"arrays": ArrayRecord({NAME: make_carrier(answer.encode())})})
        return Message(content, reply_to=message)

    grid = timed_grid(clock, calling, (1.0, 1.0, 1.0))
    first = next(iter(grid.nodes))
    grid.seconds = lambda message: 12.0 - clock.now if message.metadata.dst_node_id == first and clock.now < 12 else 1.0
    strategy = AsynchronousStrategy(all_of(3), SPEC, fedbuff(2))
    with counting(strategy) as counted, logged() as lines:
        strategy.start(grid, initial(), 20, 8.0)
        assert audit(strategy, tmp_path, books, 0, counted[0]) <= 1e-6
    assert calls[0] >= 4
    assert any("client 0 answered late, of round 0" in line for line in lines)
    assert any("1 of" in line and "need the whole model" in line for line in lines)


# --- what cannot go on ----------------------------------------------------------------------------


def test_a_round_that_nothing_comes_in_is_closed(tmp_path, clock):
    grid = timed_grid(clock, make_app(CompressionMod(state_dir=tmp_path)), fate=lambda message: "lost")
    with logged() as lines:
        result = AsynchronousStrategy(all_of(3), SPEC, fedbuff(2)).start(grid, initial(), 3, 10.0)
    assert 30.0 <= clock.now <= 40.0
    assert sum("nothing came for" in line for line in lines) == 3
    assert flat(result.arrays).tobytes() == flat(initial()).tobytes()


def test_a_buffer_that_does_not_fill_is_scaled_as_if_it_had(tmp_path, clock, received):
    grid = timed_grid(clock, make_app(CompressionMod(state_dir=tmp_path)), (1.0, 1.0, 1.0))
    node_ids = list(grid.nodes)
    seen = Counter()

    def fate(message):
        seen[message.metadata.dst_node_id] += 1
        return "ok" if message.metadata.dst_node_id == node_ids[0] and seen[node_ids[0]] == 1 else "lost"

    grid.fate = fate
    result = AsynchronousStrategy(all_of(3), "dense()", fedbuff(4)).start(grid, initial(), 1, 10.0)
    ((_, _, _, update, _),) = received
    np.testing.assert_allclose(flat(result.arrays) - flat(initial()), update / 4, rtol=0, atol=1e-6)


def test_apps_that_all_fail_end_the_run_soon(clock):
    app = ClientApp()

    @app.train()
    def train(message, context):
        raise RuntimeError("no")

    with logged() as lines:
        AsynchronousStrategy(all_of(3), SPEC, fedbuff(2)).start(timed_grid(clock, app), initial(), 3, 3600.0)
    assert clock.now < 60
    assert any("all nodes answered with errors" in line for line in lines)


def test_one_at_work_that_fails_closes_no_round_early(tmp_path, clock):
    """All nodes at work failed, which is one: there are others."""
    grid = timed_grid(clock, make_app(CompressionMod(state_dir=tmp_path)), (1.0, 1.0))
    bad = ClientApp()

    @bad.train()
    def train(message, context):
        raise RuntimeError("no")

    grid.add(bad, partition_id=2)
    inner = FedAvg(fraction_train=0.34, min_train_nodes=1, min_available_nodes=3)
    strategy = AsynchronousStrategy(inner, SPEC, fedbuff(4))
    with logged() as lines:
        strategy.start(grid, initial(), 4, 3600.0)
    assert not any("all nodes answered with errors" in line for line in lines)
    assert [r.num_counted for r in strategy.ledger.rounds] == [4] * 4


def test_one_node_that_fails_holds_nobody_up(tmp_path, clock, received):
    good = make_app(CompressionMod(state_dir=tmp_path))
    grid = timed_grid(clock, good, (1.0, 2.0))
    bad = ClientApp()

    @bad.train()
    def train(message, context):
        raise RuntimeError("no")

    grid.add(bad, partition_id=2)
    AsynchronousStrategy(all_of(3), SPEC, fedbuff(2)).start(grid, initial(), 10, 3600.0)
    assert Counter(row[0] for row in received) == dict.fromkeys(range(10), 2)


def test_without_the_mod_the_run_fails(clock):
    app = ClientApp()

    @app.train()
    def train(message, context):
        arrays = ArrayRecord({k: a for k, a in message.content["arrays"].items() if k != "gradwire"})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    with pytest.raises(gw.ProtocolError, match=r"add CompressionMod\(\) to the mods"):
        AsynchronousStrategy(all_of(3), SPEC).start(timed_grid(clock, app), initial(), 3, 60.0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AsynchronousStrategy(FedMedian(), SPEC), "FedMedian looks at each reply"),
        (
            lambda: AsynchronousStrategy(DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 2), SPEC),
            "looks at each reply",
        ),
        (lambda: AsynchronousStrategy(FedAvg(), "ef(regtopk(0.1))"), "late payloads are not averaged"),
        (lambda: AsynchronousStrategy(FedAvg(), "ef21(topk(0.1))"), "use ef"),
        (lambda: AsynchronousStrategy(FedAvg(), SPEC, "fedavg()"), "waits for all"),
        (lambda: AsynchronousStrategy(FedAvg(), SPEC, 10), "algorithm must be"),
        (lambda: AsynchronousStrategy(FedAvg(), SPEC, "fedbuff(0)"), "buffer_size must be"),
        (lambda: AsynchronousStrategy(FedAvg(), SPEC, "fedbuf()"), "fedbuff"),
        (lambda: AsynchronousStrategy(FedAvg(), SPEC, max_staleness=-1), "max_staleness"),
        (lambda: AsynchronousStrategy(FedAvg, SPEC), "inner must be a strategy"),
        (lambda: AsynchronousStrategy(CompressedStrategy(FedAvg(), SPEC), SPEC), "wrap a strategy once"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(make, said):
    with pytest.raises(gw.ConfigError, match=said):
        make()


# --- books ----------------------------------------------------------------------------------------


def test_the_books_of_an_asynchronous_run(tmp_path, clock):
    out = tmp_path / "out"
    grid = timed_grid(clock, make_app(CompressionMod(state_dir=tmp_path)))
    strategy = AsynchronousStrategy(all_of(3), SPEC, fedbuff(2), out=out)
    result = strategy.start(
        grid, initial(), 9, 60.0, evaluate_fn=lambda index, arrays: MetricRecord({"accuracy": index / 10})
    )
    size = lambda messages: sum(sum(r.count_bytes() for r in m.content.values()) for m in messages)  # noqa: E731
    rounds = strategy.ledger.rounds
    assert len(rounds) == 9
    assert sum(r.downlink + r.other for r in rounds) == size(grid.pushed)
    assert sum(r.num_counted for r in rounds) == 18
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["round"], line["num_received"], line["accuracy"]) for line in lines] == [
        (index, 2, (index + 1) / 10) for index in range(9)
    ]
    run = json.loads((out / "summary.json").read_text())["runs"][0]
    assert (run["rounds_done"], run["final_accuracy"]) == (9, 0.9)
    assert list(result.evaluate_metrics_serverapp) == list(range(10))
    assert list(result.train_metrics_clientapp) == list(range(1, 10))
    assert all(answer_of(reply).blob for reply in grid.replies)


def test_metrics_of_another_form_are_left_out_of_the_mean_alone(tmp_path, clock, received):
    app = make_app(CompressionMod(state_dir=tmp_path))
    grid = timed_grid(clock, app, (1.0, 1.0, 1.0))

    def other(message, context):
        reply = app(message, context)
        reply.content["metrics"]["more"] = 1.0
        return reply

    next(iter(grid.nodes.values())).app = other
    result = AsynchronousStrategy(all_of(3), SPEC, fedbuff(3)).start(grid, initial(), 2, 60.0)
    assert len(received) == 6
    assert result.train_metrics_clientapp[1]["train_loss"] == pytest.approx((2 * 2 + 3 * 3) / 5)
