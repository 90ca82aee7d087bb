"""Apps of all kinds: torch, running statistics, integers, other keys and dtypes, and the mods and wrappers around."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from apps import Books, flat, initial, logged, make_app, make_grid, plain_run, trained
from fake_grid import FakeGrid
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, arrays_size_mod, fixedclipping_mod, message_size_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
)

import gradwire as gw
from gradwire.flower import CompressedStrategy, CompressionMod
from gradwire.flower.carrier import count_bytes
from gradwire.flower.model import Model
from gradwire.report.load import parse_runs, read_metrics, read_summary

SPEC = "ef(topk(0.05))"


def make_net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


def torch_app(mod: CompressionMod, seen: list) -> ClientApp:
    app = ClientApp(mods=[mod])

    @app.train()
    def train(message, context):
        state = message.content["arrays"].to_torch_state_dict()
        seen.append((list(state), [t.dtype for t in state.values()], state["1.num_batches_tracked"].item()))
        net = make_net()
        net.load_state_dict(state)
        net.train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(context.node_config["partition-id"])
        x = torch.randn(32, 4, generator=generator)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), (x[:, 0] > 0).long()).backward()
            optimizer.step()
        metrics = MetricRecord({"num-examples": 32})
        return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        net = make_net()
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        net.eval()
        x = torch.randn(256, 4, generator=torch.Generator().manual_seed(99))
        accuracy = (net(x).argmax(1) == (x[:, 0] > 0)).float().mean().item()
        return Message(
            RecordDict({"metrics": MetricRecord({"num-examples": 256, "accuracy": accuracy})}), reply_to=message
        )

    return app


@pytest.mark.parametrize("make", [FedAvg, lambda: FedAdam(eta=0.01)])
def test_torch_models_with_running_statistics_and_integers(tmp_path, make):
    net, seen = make_net(), []
    net[1].num_batches_tracked += 7
    strategy = CompressedStrategy(make(), "ef(topk(0.2))", out=tmp_path / "out")
    grid = make_grid(torch_app(CompressionMod(state_dir=tmp_path), seen), 3)
    result = strategy.start(grid, ArrayRecord(net.state_dict()), num_rounds=4, timeout=5)
    expected = net.state_dict()
    for keys, dtypes, count in seen:
        assert keys == list(expected)
        assert dtypes == [t.dtype for t in expected.values()]
        assert count == 7  # integers stay the server's
    state = result.arrays.to_torch_state_dict()
    net.load_state_dict(state)
    assert not torch.equal(state["1.running_mean"], torch.zeros(8))  # statistics were averaged, and travelled whole
    if make is FedAvg:
        assert result.evaluate_metrics_clientapp[4]["accuracy"] > 0.6
    assert strategy.ledger.rounds[-1].accuracy == result.evaluate_metrics_clientapp[4]["accuracy"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_dtypes_come_back_as_they_were(tmp_path, dtype):
    books = Books()
    app = make_app(CompressionMod(state_dir=tmp_path), books=books)
    grid = make_grid(app, 3)
    strategy = CompressedStrategy(FedAvg(), SPEC)
    models = []
    strategy.start(grid, initial(dtype), 4, 5, evaluate_fn=lambda i, arrays: models.append(arrays))
    assert {array.numpy().dtype for array in models[-1].values()} == {np.dtype(dtype)}
    for index in range(1, 4):
        for got in books.models[3 * index : 3 * index + 3]:  # blobs lead to the very same numbers
            np.testing.assert_array_equal(got, flat(models[index]))


@pytest.mark.parametrize("key", ["arrays", "model", "weights of it"])
def test_whatever_the_record_is_called(tmp_path, key):
    app = make_app(CompressionMod(state_dir=tmp_path), key=key)
    result = CompressedStrategy(FedAvg(arrayrecord_key=key), SPEC).start(make_grid(app), initial(), 3, 5)
    assert flat(result.arrays).tobytes() == plain_run(SPEC, 3).tobytes()


def test_an_evaluation_that_sends_arrays_too(tmp_path):
    app = make_app(CompressionMod(state_dir=tmp_path))
    seen = []

    def answering(message, context):
        return Message(
            RecordDict({"arrays": initial(), "metrics": MetricRecord({"num-examples": 1})}), reply_to=message
        )

    app._registered_funcs.pop("evaluate.default", None)
    app.evaluate()(answering)

    def metrics(contents, weighted_by):
        seen.extend(contents)
        return MetricRecord()

    inner = FedAvg(evaluate_metrics_aggr_fn=metrics)
    CompressedStrategy(inner, SPEC).start(make_grid(app), initial(), 1, 5)
    assert [list(c["arrays"]) for c in seen] == [["w", "b"]] * 3


# --- mods and wrappers ------------------------------------------------------------------------------


def test_size_mods_around_and_inside(tmp_path):
    app = make_app(message_size_mod, arrays_size_mod, CompressionMod(state_dir=tmp_path), arrays_size_mod)
    with logged() as lines:
        result = CompressedStrategy(FedAvg(), SPEC).start(make_grid(app), initial(), 3, 5)
    assert flat(result.arrays).tobytes() == plain_run(SPEC, 3).tobytes()
    assert sum("Outgoing message size" in line for line in lines) == 18
    assert any("'elements': 210" in line for line in lines)  # the one inside sees the model


def test_clients_that_clip_and_a_server_that_adds_noise(tmp_path):
    books = Books()
    app = make_app(CompressionMod(state_dir=tmp_path), fixedclipping_mod, books=books)
    inner = DifferentialPrivacyClientSideFixedClipping(FedAvg(), 1e-9, 0.5, 3)
    strategy = CompressedStrategy(inner, "topk(0.5)")
    result = strategy.start(make_grid(app), initial(), 1, 5)
    moved = flat(result.arrays) - flat(initial())
    assert 0.1 < np.linalg.norm(moved) <= 0.5 * (1 + 1e-5)
    # the oracle: each client's update, clipped, its larger half, averaged by weight
    updates = []
    for client in range(3):
        raw = np.concatenate(
            [
                (new - old).ravel()
                for new, old in zip(trained(as_dict(), client, 1).values(), as_dict().values(), strict=True)
            ]
        )
        clipped = raw * min(1, 0.5 / np.linalg.norm(raw))
        kept = np.zeros_like(clipped)
        largest = np.argsort(-np.abs(clipped))[:105]
        kept[largest] = clipped[largest]
        updates.append((client + 1) * kept)
    np.testing.assert_allclose(moved, sum(updates) / 6, atol=1e-6)


def as_dict():
    return {k: a.numpy() for k, a in initial().items()}


def test_a_server_that_clips_sees_every_reply(tmp_path):
    app = make_app(CompressionMod(state_dir=tmp_path))
    inner = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1e-9, 0.01, 3)
    result = CompressedStrategy(inner, SPEC).start(make_grid(app), initial(), 1, 5)
    assert np.linalg.norm(flat(result.arrays) - flat(initial())) <= 0.01 * (1 + 1e-4)


ADAPTIVE = {
    "server": (DifferentialPrivacyServerSideAdaptiveClipping, ()),
    "client": (DifferentialPrivacyClientSideAdaptiveClipping, (adaptiveclipping_mod,)),
}


@pytest.mark.parametrize("side", ADAPTIVE)
def test_clipping_that_adapts_is_flower_s_own(tmp_path, side):
    """The oracle is Flower: the same wrapper, app and mods without ours; the noise is too small to see."""
    wrapper, mods = ADAPTIVE[side]
    make = lambda: wrapper(FedAvg(), 1e-10, 3, initial_clipping_norm=0.6, clipped_count_stddev=1e-9)  # noqa: E731
    ours, theirs = make(), make()
    strategy = CompressedStrategy(ours, "dense()")
    got = strategy.start(make_grid(make_app(CompressionMod(state_dir=tmp_path), *mods)), initial(), 4, 5)
    expected = theirs.start(make_grid(make_app(*mods)), initial(), 4, 5)
    np.testing.assert_allclose(flat(got.arrays), flat(expected.arrays), rtol=2e-5, atol=1e-5)
    assert ours.clipping_norm == pytest.approx(theirs.clipping_norm)
    assert ours.clipping_norm != 0.6
    twin = CompressedStrategy(make(), "dense()")
    twin.load_state_dict(strategy.state_dict())
    assert twin.inner.clipping_norm == ours.clipping_norm


@pytest.mark.parametrize("side", ADAPTIVE)
def test_clipping_that_adapts_and_sparse_updates(tmp_path, side):
    wrapper, mods = ADAPTIVE[side]
    inner = wrapper(FedAvg(), 1e-10, 3, initial_clipping_norm=0.5, clipped_count_stddev=1e-9)
    spec = SPEC if side == "server" else "topk(0.3)"
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path), *mods))
    before, norm = flat(initial()), 0.5
    strategy = CompressedStrategy(inner, spec)
    for index in range(1, 4):
        strategy.start(grid, initial() if index == 1 else strategy.arrays, index, 5)
        after = flat(strategy.arrays)
        assert 0 < np.linalg.norm(after - before) <= norm * (1 + 1e-4)
        before, norm = after, inner.clipping_norm


def test_local_privacy_inside_the_mod(tmp_path):
    app = make_app(CompressionMod(state_dir=tmp_path), LocalDpMod(0.5, 1e-6, 1.0, 0.1))
    result = CompressedStrategy(FedAvg(), "dense()").start(make_grid(app), initial(), 1, 5)
    assert np.linalg.norm(flat(result.arrays) - flat(initial())) <= 0.5 * (1 + 1e-3)


# --- budgets and books ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_bytes", "most"),
    [
        (80, {0: 80, 1: 80, 2: 80}),
        ({0: 70, 1: 90}, {0: 70, 1: 90}),
        (lambda client: 60 if client is None else 60 + 10 * client, {0: 60, 1: 70, 2: 80}),
    ],
)
def test_budgets_of_each_client(tmp_path, num_bytes, most):
    from apps import answer_of

    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)))
    CompressedStrategy(FedAvg(fraction_evaluate=0.0), "ef(topk(0.5))", num_bytes=num_bytes).start(grid, initial(), 3, 5)
    sizes = {}
    for reply in grid.replies:
        answer = answer_of(reply)
        sizes.setdefault(answer.client, []).append(len(answer.blob))
    assert all(max(sizes[client]) <= limit for client, limit in most.items())
    assert max(sizes[1][1:]) > 45  # and they are made use of


def test_the_books_are_flower_s_sizes_and_the_report_reads_them(tmp_path):
    out = tmp_path / "out"
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)))
    strategy = CompressedStrategy(FedAvg(), SPEC, out=out)
    accuracies = iter([0.1, 0.25, 0.5, 0.75])
    result = strategy.start(
        grid, initial(), 3, 5, evaluate_fn=lambda i, arrays: MetricRecord({"accuracy": next(accuracies)})
    )
    train = [r for r in grid.replies if r.metadata.message_type == "train"]
    other = [r for r in grid.replies if r.metadata.message_type == "evaluate"]
    size = lambda messages: sum(sum(r.count_bytes() for r in m.content.values()) for m in messages)  # noqa: E731
    full = [m for m in grid.pushed if len(m.content["arrays"]) > 1]
    blobs = [m for m in grid.pushed if len(m.content["arrays"]) == 1]
    rounds = strategy.ledger.rounds
    assert sum(r.uplink for r in rounds) == size(train)
    assert sum(r.downlink for r in rounds) == size(blobs)
    assert sum(r.other for r in rounds) == size(full) + size(other)
    assert len(full) == 3
    (run,) = parse_runs(read_summary(out))
    assert (run.method, run.clients, run.rounds, run.status) == (SPEC, 3, 3, "complete")
    assert (run.uplink_bytes, run.downlink_bytes) == (size(train), size(blobs))
    assert run.dense_uplink_bytes == 9 * 840
    assert run.final_accuracy == 0.75
    points = read_metrics(out)
    assert [(p.index, p.accuracy) for p in points] == [(0, 0.25), (1, 0.5), (2, 0.75)]
    assert sum(p.uplink_bytes for p in points) == size(train)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert set(lines[0]["clients"]) == {"0", "1", "2"}
    assert sum(c["uplink"] for line in lines for c in line["clients"].values()) == size(train)
    assert json.loads((out / "summary.json").read_text())["runs"][0]["model_sha256"]
    assert len(result.evaluate_metrics_serverapp) == 4


def test_bytes_of_what_flower_cannot_count():
    content = RecordDict({"config": ConfigRecord({"a": "", "b": [], "c": b"", "d": "xy"}), "x": initial()})
    assert count_bytes(content) == 3 + content["x"].count_bytes()


def test_a_training_that_is_not_for_everyone(tmp_path):
    """Three of six sampled each round: who sat out catches up."""
    books = Books()
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path), books=books), 6)
    strategy = CompressedStrategy(FedAvg(fraction_train=0.5, fraction_evaluate=0.0), "ef(topk(0.02))")
    models = []
    strategy.start(grid, initial(), 10, 5, evaluate_fn=lambda i, arrays: models.append(flat(arrays)))
    for index in range(10):
        for got in books.models[3 * index : 3 * index + 3]:
            np.testing.assert_array_equal(got, models[index])
    full = [m for m in grid.pushed if len(m.content["arrays"]) > 1]
    assert len(full) <= 12  # the first contacts, and a few that were cheaper with the model


def test_messages_that_are_shared_stay_as_they_were(tmp_path):
    """Flower puts one content into all messages; the strategy's own must not change under it."""
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)))
    inner = FedAvg()
    made = []
    configure = inner.configure_train

    def remember(*args):
        made.extend(configure(*args))
        return list(made)

    inner.configure_train = remember
    strategy = CompressedStrategy(inner, SPEC)
    messages = strategy.configure_train(1, initial(), ConfigRecord(), grid)
    assert all(list(m.content["arrays"]) == ["w", "b"] for m in made)
    assert all(list(m.content["arrays"]) == ["w", "b", "gradwire"] for m in messages)


def test_the_model_is_what_its_arrays_hold():
    record = ArrayRecord({"h": Array(np.float16([1, 2])), "n": Array(np.int32([5])), "d": Array(np.float64([0.1]))})
    model = Model.from_record(record)
    moved = model.moved(np.float32([2**-12, 1, 0]))
    assert moved.vector.tolist() == [1.0, 3.0, float(np.float32(0.1))]
    again = Model.from_record(moved.record())
    assert again.vector.tobytes() == moved.vector.tobytes()
    assert again.difference(model) is None
    twin = Model.from_state(copy.deepcopy(model.state_dict()))
    assert (twin.forms, twin.vector.tobytes(), twin.fixed["n"].tolist()) == (model.forms, model.vector.tobytes(), [5])
    with pytest.raises(gw.StateError):
        Model.from_state({**model.state_dict(), "vector": np.zeros(9)})


def test_one_node_is_enough_for_a_grid_of_one(tmp_path):
    grid = FakeGrid()
    grid.add(make_app(CompressionMod(state_dir=tmp_path)), partition_id=0)
    inner = FedAvg(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1)
    result = CompressedStrategy(inner, SPEC).start(grid, initial(), 3, 5)
    assert flat(result.arrays).tobytes() == plain_run(SPEC, 3, range(1)).tobytes()
