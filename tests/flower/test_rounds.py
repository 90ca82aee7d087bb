"""Whole runs on a grid in this process: the laws, against plain ends and against Flower's own strategies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from apps import Books, audit, counting, flat, initial, logged, make_app, make_grid, plain_run
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)

from gradwire.flower import CompressedStrategy, CompressionMod


@pytest.mark.parametrize(
    ("spec", "downlink"),
    [
        ("ef(topk(0.05))", "dense()"),
        ("ef(topk(0.05) | fractional(16))", "dense()"),
        ("ef(tcs(0.05, 0.02))", "dense()"),
        ("ef(regtopk(0.05))", "dense()"),
        ("qsgd(7)", "dense()"),
        ("ef(topk(0.05))", "ef(topk(0.2))"),
    ],
)
def test_law_2_the_model_of_plain_ends(tmp_path, spec, downlink):
    books = Books()
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path), books=books))
    strategy = CompressedStrategy(FedAvg(), spec, downlink=downlink)
    result = strategy.start(grid, initial(), num_rounds=6, timeout=5)
    expected = plain_run(spec, 6, downlink=downlink)
    assert flat(result.arrays).tobytes() == expected.tobytes()
    assert books.runs == {0: 6, 1: 6, 2: 6}
    norms = [m["norm"] for m in result.evaluate_metrics_clientapp.values()]
    assert norms[-1] == pytest.approx(np.linalg.norm(expected))  # evaluation sees the same model, from blobs


def test_law_2_with_the_state_in_the_context():
    grid = make_grid(make_app(CompressionMod(state="context")))
    result = CompressedStrategy(FedAvg(), "ef(topk(0.05))").start(grid, initial(), num_rounds=6, timeout=5)
    assert flat(result.arrays).tobytes() == plain_run("ef(topk(0.05))", 6).tobytes()


STRATEGIES = {
    "FedAvg": FedAvg,
    "FedAvgM": lambda: FedAvgM(server_momentum=0.9, server_learning_rate=0.5),
    "FedProx": lambda: FedProx(proximal_mu=0.1),
    "FedAdam": lambda: FedAdam(eta=0.01),
    "FedYogi": lambda: FedYogi(eta=0.01),
    "FedAdagrad": lambda: FedAdagrad(eta=0.01),
    "FedMedian": FedMedian,
    "FedTrimmedAvg": lambda: FedTrimmedAvg(beta=0.25),
    "Krum": lambda: Krum(num_malicious_nodes=1),
    "MultiKrum": lambda: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3),
    "Bulyan": lambda: Bulyan(num_malicious_nodes=1),
    "QFedAvg": lambda: QFedAvg(client_learning_rate=0.1),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_without_loss_it_is_flower_s_own_run(tmp_path, name):
    """The oracle is Flower: the same app and strategy with no mod and no wrapper."""
    make = STRATEGIES[name]
    num_clients = 7 if name in ("Krum", "MultiKrum", "Bulyan") else 4
    ours = make_grid(make_app(CompressionMod(state_dir=tmp_path)), num_clients)
    theirs = make_grid(make_app(), num_clients)
    got = CompressedStrategy(make(), "dense()").start(ours, initial(), num_rounds=2, timeout=5)
    expected = make().start(theirs, initial(), num_rounds=2, timeout=5)
    assert list(got.arrays) == list(expected.arrays)
    np.testing.assert_allclose(flat(got.arrays), flat(expected.arrays), rtol=2e-5, atol=1e-5)
    for index, metrics in expected.train_metrics_clientapp.items():
        assert list(got.train_metrics_clientapp[index]) == list(metrics)
        for key, value in metrics.items():
            assert got.train_metrics_clientapp[index][key] == pytest.approx(value)
    assert got.evaluate_metrics_clientapp[2]["norm"] == pytest.approx(expected.evaluate_metrics_clientapp[2]["norm"])


@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM", "FedAdam", "FedMedian", "Krum"])
def test_compressed_clients_hold_the_server_s_model(tmp_path, name):
    books = Books()
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path), books=books))
    strategy = CompressedStrategy(STRATEGIES[name](), "ef(topk(0.1) | uniform(8))", downlink="ef(topk(0.3))")
    models = [flat(initial())]
    strategy.start(grid, initial(), 5, 5, evaluate_fn=lambda _, arrays: models.append(flat(arrays)))
    for index in range(5):
        for model in books.models[3 * index : 3 * index + 3]:
            np.testing.assert_array_equal(model, models[max(1, index + 1)])


def test_the_metrics_function_sees_every_client(tmp_path):
    seen = []

    def metrics(contents, weighted_by):
        seen.append(sorted(c["metrics"]["train_loss"] for c in contents))
        return contents[0]["metrics"].copy()

    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)))
    inner = FedAvg(train_metrics_aggr_fn=metrics)
    CompressedStrategy(inner, "ef(topk(0.05))").start(grid, initial(), 2, 5)
    assert seen == [[1.0, 2.0, 3.0]] * 2
    assert inner.train_metrics_aggr_fn is metrics


# --- law 1 ----------------------------------------------------------------------------------------


def random_fates(seed: int, weights: dict[str, float]):
    rng = np.random.default_rng(seed)
    names, p = list(weights), np.array(list(weights.values()))
    return lambda message: names[rng.choice(len(names), p=p / p.sum())]


FATES = {
    "lost down": {"ok": 3, "lost": 1},
    "lost up": {"ok": 3, "unanswered": 1},
    "late": {"ok": 3, "late": 1},
    "slow": {"ok": 2, "slow": 1},
    "gone": {"ok": 3, "dead": 1},
    "all": {"ok": 3, "lost": 1, "unanswered": 1, "late": 1, "slow": 1, "dead": 1},
}


@pytest.mark.parametrize(("max_staleness", "fraction_evaluate"), [(0, 1.0), (2, 0.0)])
@pytest.mark.parametrize("name", FATES)
def test_law_1_whatever_is_lost(tmp_path, name, max_staleness, fraction_evaluate):
    books = Books()
    seed = sum(map(ord, name)) + max_staleness
    app = make_app(CompressionMod(state_dir=tmp_path), books=books)
    grid = make_grid(app, 3, random_fates(seed, FATES[name]))
    strategy = CompressedStrategy(
        FedAvg(fraction_evaluate=fraction_evaluate), "ef(topk(0.05) | uniform(8))", max_staleness=max_staleness
    )
    with counting(strategy) as counted:
        strategy.start(grid, initial(), num_rounds=10, timeout=5)
        for client in range(3):
            assert audit(strategy, tmp_path, books, client, counted[client]) <= 1e-6
    assert sum(books.runs.values()) >= 12, "the network must not lose everything"


@pytest.mark.parametrize("seed", range(2))
def test_law_1_when_nodes_restart_under_other_ids(tmp_path, seed):
    """A SuperNode without authentication comes back as another node; its state is on disk."""
    books, rng = Books(), np.random.default_rng(seed)
    app = make_app(CompressionMod(state_dir=tmp_path), books=books)
    grid = make_grid(app, 3)
    fates = random_fates(seed, FATES["all"])
    count = itertools.count()

    def fate(message):
        if next(count) % 4 == 3:
            victim = grid.nodes[rng.choice([i for i, n in grid.nodes.items() if n.online])]
            victim.online = False
            grid.add(app, partition_id=victim.config["partition-id"])
        return fates(message)

    grid.fate = fate
    strategy = CompressedStrategy(FedAvg(min_available_nodes=3), "ef(topk(0.05))")
    with counting(strategy) as counted:
        strategy.start(grid, initial(), num_rounds=20, timeout=5)
        for client in range(3):
            assert audit(strategy, tmp_path, books, client, counted[client]) <= 1e-6


def test_law_1_with_references_and_losses(tmp_path):
    """What is taken back late must lean on the reference it was made with."""
    books = Books()
    app = make_app(CompressionMod(state_dir=tmp_path), books=books)
    grid = make_grid(app, 3, random_fates(5, FATES["all"]))
    strategy = CompressedStrategy(FedAvg(), "ef(tcs(0.05, 0.02))")
    from gradwire.flower.conversation import Conversation

    counted = {i: np.zeros(210) for i in range(3)}
    receive = Conversation.receive

    def booking(self, client, incarnation, blob, weight):
        import gradwire as gw

        receive(self, client, incarnation, blob, weight)
        payload = gw.decode(blob)
        counted[client] += gw.decompress(payload, self.server.reference_of(payload))

    Conversation.receive = booking
    try:
        strategy.start(grid, initial(), num_rounds=20, timeout=5)
    finally:
        Conversation.receive = receive
    for client in range(3):
        member_missing = _missing_with_references(strategy, tmp_path, books, client, counted[client])
        assert member_missing <= 1e-6


def _missing_with_references(strategy, folder, books, client, counted):
    """As ``audit``; what is pending is taken back first, against the references the client kept."""
    from apps import member_of

    conversation = strategy._conversation
    member = member_of(folder, conversation.name, client)
    told = conversation.counted(client)
    ours = told is not None and told.incarnation == member.incarnation
    member.client.settle({n: ours and told.holds(n) for n in member.client.pending_sequences})
    missing = books.raw[client] - counted - member.client.state_dict()["residual"]
    return float(np.linalg.norm(missing) / np.linalg.norm(books.raw[client]))


def test_a_slow_client_is_bounded_and_follows_by_blobs(tmp_path):
    """Slower than the timeout, round after round: no model each round, and few payloads pending."""
    books = Books()
    slow: set[int] = set()
    app = make_app(CompressionMod(state_dir=tmp_path), books=books)
    grid = make_grid(app, 3, lambda message: "slow" if message.metadata.dst_node_id in slow else "ok")
    slow.add(next(iter(grid.nodes)))
    strategy = CompressedStrategy(FedAvg(fraction_evaluate=0.0, min_train_nodes=3), "ef(topk(0.02))")
    from apps import member_of

    full = 0

    original = grid.push_messages

    def push(messages):
        nonlocal full
        full += sum(len(m.content["arrays"]) > 1 for m in messages if m.metadata.dst_node_id in slow)
        return original(messages)

    grid.push_messages = push
    # a queue of one: each message makes the node work on the one before
    node = grid.nodes[next(iter(slow))]
    carry = grid._carry

    def carry_on(message, number):
        if message.metadata.dst_node_id in slow and node.queue:
            waiting = node.queue.pop(0)
            reply = node.run(waiting)
            grid._stored[waiting.metadata.message_id] = reply
        carry(message, number)

    grid._carry = carry_on
    with counting(strategy) as counted:
        strategy.start(grid, initial(), num_rounds=12, timeout=5)
        assert audit(strategy, tmp_path, books, 0, counted[0]) <= 1e-6
    member = member_of(tmp_path, "run-1", 0)
    assert len(member.client.pending_sequences) <= 3
    assert books.runs[0] >= 10
    assert full <= 3


def test_nothing_lost_where_the_strategy_aggregates_nothing(tmp_path):
    """Bulyan wants seven replies: with three it makes nothing of them, and they stay with their clients."""
    books = Books()
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path), books=books), 3)
    strategy = CompressedStrategy(Bulyan(num_malicious_nodes=1), "ef(topk(0.05))")
    with logged() as lines:
        result = strategy.start(grid, initial(), num_rounds=3, timeout=5)
    assert any("nothing was aggregated" in line for line in lines)
    assert flat(result.arrays).tobytes() == flat(initial()).tobytes()
    for client in range(3):
        assert audit(strategy, tmp_path, books, client, np.zeros(210)) <= 1e-6
