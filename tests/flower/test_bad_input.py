"""Whatever does not fit is one clear error, on the side that can mend it, and nothing is remembered of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from apps import SHAPES, Books, find_carrier, flat, initial, logged, make_app, make_grid, plain_run, trained
from fake_grid import FakeGrid
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedXgbBagging,
    FedXgbCyclic,
)

import gradwire as gw
from gradwire.flower import CompressedStrategy, CompressionMod
from gradwire.flower.carrier import NAME, make_carrier
from gradwire.flower.header import Answer, Instruction, read_answer, read_instruction
from gradwire.flower.installed import check_flower
from gradwire.flower.state import FolderStore, default_folder

SPEC = "ef(topk(0.05))"


def start(app, num_rounds=2, strategy=None, num_clients=2, arrays=None):
    grid = make_grid(app, num_clients)
    strategy = strategy or CompressedStrategy(FedAvg(), SPEC)
    with logged() as lines:
        result = strategy.start(grid, arrays or initial(), num_rounds=num_rounds, timeout=5)
    return result, lines, grid


def errors_of(grid: FakeGrid) -> list[str]:
    return [reply.error.reason for reply in grid.replies if reply.has_error()]


# --- versions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, "1.40.9", "1.30.0", "0.99", "none"])
def test_an_older_flower_is_refused_in_one_line(version):
    with pytest.raises(gw.BackendUnavailable, match=r"needs flwr 1.41 or 1.42") as caught:
        check_flower(version)
    assert "\n" not in str(caught.value)
    assert "gradwire[flower]" in str(caught.value)


@pytest.mark.parametrize("version", ["1.41.0", "1.42.0", "1.42.0.dev3", "2.0.0"])
def test_a_newer_one_is_not(version):
    check_flower(version)


def test_the_check_comes_before_anything_of_flower_s_is_imported():
    code = (
        "import importlib.metadata as m, sys\n"
        "real = m.version\n"
        "m.version = lambda name: '1.20.0' if name == 'flwr' else real(name)\n"
        "try:\n    import gradwire.flower\n"
        "except ImportError as error:\n    print(type(error).__name__, 'flwr' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["BackendUnavailable", "False"]


# --- at the start ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CompressedStrategy(FedAvg(), "ef(topk(2))"), "density must be in"),
        (lambda: CompressedStrategy(FedAvg(), 7), "spec must be a Compressor or its text"),
        (lambda: CompressedStrategy(FedAvg, SPEC), "inner must be a strategy"),
        (lambda: CompressedStrategy(FedXgbBagging(), SPEC), "trees"),
        (lambda: CompressedStrategy(FedXgbCyclic(), SPEC), "trees"),
        (lambda: CompressedStrategy(FedAvg(), "ef21(topk(0.1))"), "use ef"),
        (lambda: CompressedStrategy(FedAvg(), SPEC, downlink="ef21(topk(0.1))"), "downlink must send"),
        (lambda: CompressedStrategy(FedAdam(), "ef(regtopk(0.1))"), "FedAdam .* applies something else"),
        (lambda: CompressedStrategy(FedAvgM(), "ef(regtopk(0.1))"), "FedAvgM"),
        (lambda: CompressedStrategy(FedMedian(), "ef(regtopk(0.1))"), "FedMedian"),
        (lambda: CompressedStrategy(FedAvg(), "ef(regtopk(0.1))", downlink="topk(0.5)"), "no downlink"),
        (lambda: CompressedStrategy(FedMedian(), SPEC, max_staleness=1), "max_staleness must be 0"),
        (lambda: CompressedStrategy(FedAvg(), SPEC, max_staleness=-1), "max_staleness"),
        (lambda: CompressedStrategy(FedAvg(), SPEC, num_bytes=0), "num_bytes"),
        (lambda: CompressedStrategy(FedAvg(), SPEC, num_bytes={}), "num_bytes"),
        (lambda: CompressedStrategy(FedAvg(), SPEC, conversation="../x"), "conversation"),
        (lambda: CompressedStrategy(CompressedStrategy(FedAvg(), SPEC), SPEC), "wrap a strategy once"),
        (
            lambda: CompressedStrategy(DifferentialPrivacyClientSideFixedClipping(FedAvg(), 1.0, 1.0, 2), SPEC),
            "longer than its clipped update",
        ),
        (lambda: CompressionMod("nonsense(1)"), "nonsense"),
        (lambda: CompressionMod(7), "spec must be"),
        (lambda: CompressionMod(state="ram"), "state must be"),
        (lambda: CompressionMod(keep_days="x"), "keep_days"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(make, said):
    with pytest.raises(gw.ConfigError, match=said):
        make()


def test_nothing_is_logged_by_constructors():
    with logged() as lines:
        CompressedStrategy(FedAdam(), SPEC)
        CompressedStrategy(FedMedian(), SPEC)
        CompressionMod(SPEC)
    assert lines == []


@pytest.mark.parametrize(("inner", "said"), [(FedAdam(), "divides"), (FedMedian(), "memory a client")])
def test_what_works_poorly_is_said_once(tmp_path, inner, said):
    _, lines, _ = start(make_app(CompressionMod(state_dir=tmp_path)), 2, CompressedStrategy(inner, SPEC), 3)
    assert sum(said in line for line in lines) == 1


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        (ArrayRecord([np.array([1.0, np.nan], np.float32)]), gw.UpdateError),
        (ArrayRecord([np.array([1, 2])]), gw.ConfigError),
        (ArrayRecord({"gradwire": Array(np.ones(2, np.float32))}), gw.ConfigError),
        (ArrayRecord({"x": Array("float32", (2,), "other", b"12345678")}), gw.ConfigError),
        (ArrayRecord([np.ones(2, np.complex64)]), gw.ConfigError),
    ],
)
def test_models_that_cannot_be_compressed(tmp_path, arrays, error):
    with pytest.raises(error):
        start(make_app(CompressionMod(state_dir=tmp_path)), arrays=arrays)


# --- one end only ---------------------------------------------------------------------------------


def test_a_strategy_without_the_mod_fails_the_run():
    app = ClientApp()

    @app.train()
    def train(message, context):
        arrays = ArrayRecord({k: a for k, a in message.content["arrays"].items() if k != NAME})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    with pytest.raises(gw.ProtocolError, match=r"add CompressionMod\(\) to the mods"):
        start(app)


def app_that_reads(read):
    app = ClientApp()

    @app.train()
    def train(message, context):
        return read(message.content["arrays"])

    return app


@pytest.mark.parametrize(
    "read",
    [
        lambda record: record.to_numpy_ndarrays(),
        lambda record: record.to_torch_state_dict(),
        lambda record: torch.nn.Linear(10, 20).load_state_dict({key: torch.zeros(1) for key in record}),
    ],
)
def test_an_app_without_the_mod_that_trips_over_the_carrier_fails_the_run(read):
    """As most do: they read every array that comes."""
    with pytest.raises(gw.ProtocolError, match=r"add CompressionMod\(\) to the mods"):
        start(app_that_reads(read))


def test_another_error_of_the_app_fails_no_run():
    result, lines, _ = start(app_that_reads(lambda record: record["no such array"]))
    assert flat(result.arrays).tobytes() == flat(initial()).tobytes()
    assert sum("no such array" in line for line in lines) >= 4


def test_a_mod_without_the_strategy_says_so_in_every_reply(tmp_path):
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)))
    FedAvg().start(grid, initial(), num_rounds=1, timeout=5)
    assert all("wrap the ServerApp's strategy in CompressedStrategy" in said for said in errors_of(grid))
    assert len(errors_of(grid)) == 6


def test_other_messages_pass_through(tmp_path):
    seen = []
    message = Message(RecordDict({"config": ConfigRecord({"a": 1})}), dst_node_id=1, message_type="query")
    CompressionMod(state_dir=tmp_path)(message, None, lambda m, c: seen.append(m) or m)
    assert seen == [message]


def test_specs_that_differ(tmp_path):
    _, lines, grid = start(make_app(CompressionMod("topk(0.5)", state_dir=tmp_path)))
    assert all(
        "the ServerApp compresses with ef(topk(0.05)), this ClientApp with topk(0.5)" in e for e in errors_of(grid)
    )
    assert any("this ClientApp with topk(0.5)" in line for line in lines)


def test_a_spec_given_twice_and_alike(tmp_path):
    result, _, grid = start(make_app(CompressionMod(gw.ef(gw.topk(0.05)), state_dir=tmp_path)), num_clients=3)
    assert errors_of(grid) == []
    assert flat(result.arrays).tobytes() == plain_run(SPEC, 2).tobytes()


# --- what an app may do wrong -----------------------------------------------------------------------


def broken_app(tmp_path, break_reply):
    app = ClientApp(mods=[CompressionMod(state_dir=tmp_path)])

    @app.train()
    def train(message, context):
        client, index = context.node_config["partition-id"], message.content["config"]["server-round"]
        arrays = trained({k: a.numpy() for k, a in message.content["arrays"].items()}, client, index)
        content = RecordDict(
            {
                "arrays": ArrayRecord({k: Array(a) for k, a in arrays.items()}),
                "metrics": MetricRecord({"num-examples": client + 1}),
            }
        )
        if client == 2:
            break_reply(content)
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    return app


def _nan(content):
    content["arrays"]["w"] = Array(np.full(SHAPES["w"], np.nan, np.float32))


def _shape(content):
    content["arrays"]["w"] = Array(np.zeros((3, 3), np.float32))


BREAKS = {
    "NaN": (_nan, "tensor 'w'"),
    "shape": (_shape, "shape must be"),
    "missing": (lambda c: c["arrays"].pop("b"), "tensor 'b' is missing"),
    "unknown": (lambda c: c["arrays"].__setitem__("z", Array(np.ones(1))), "'z' is not in the layout"),
    "two records": (lambda c: c.__setitem__("more", ArrayRecord()), "one ArrayRecord and one MetricRecord, got 2"),
    "no metrics": (lambda c: c.pop("metrics"), "got 1 and 0"),
    "no weight": (lambda c: c["metrics"].pop("num-examples"), "is its weight"),
    "negative": (lambda c: c["metrics"].__setitem__("num-examples", -1.0), "is its weight"),
    "infinite": (lambda c: c["metrics"].__setitem__("num-examples", np.inf), "is its weight"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_client_whose_app_errs_is_left_out_and_named(tmp_path, name):
    break_reply, said = BREAKS[name]
    result, lines, grid = start(broken_app(tmp_path, break_reply), num_clients=3)
    assert len(errors_of(grid)) == 2
    assert all(said in error for error in errors_of(grid))
    node_id = list(grid.nodes)[2]
    assert any(f"node {node_id} answered with an error" in line and said in line for line in lines)
    assert flat(result.arrays).tobytes() == plain_run(SPEC, 2, range(2)).tobytes()


def test_weight_zero_sends_nothing_and_changes_nothing(tmp_path):
    app = make_app(CompressionMod(state_dir=tmp_path), weight=lambda client: client + 1 if client < 2 else 0)
    result, _, grid = start(app, num_clients=3)
    assert errors_of(grid) == []
    assert flat(result.arrays).tobytes() == plain_run(SPEC, 2, range(2)).tobytes()
    with FolderStore(tmp_path).open("run-1", 2) as place:
        assert place.read().client.sequence == 0


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is unwritable for root")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    _, _, grid = start(make_app(CompressionMod(state_dir=tmp_path)))
    assert all("cannot be written" in error for error in errors_of(grid))


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "f").write_bytes(b"")
    _, lines, grid = start(make_app(CompressionMod(state_dir=tmp_path / "f")), 1)
    assert len(errors_of(grid)) == 4
    assert all("StateError" in error and "cannot be written" in error for error in errors_of(grid))
    assert any("cannot be written" in line for line in lines)


def test_a_state_another_process_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("gradwire.flower.state._LOCK_SECONDS", 0.2)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom gradwire.flower.state import FolderStore\n"
        "with FolderStore(Path(sys.argv[1])).open('run-1', 0):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        _, _, grid = start(make_app(CompressionMod(state_dir=tmp_path)), 1)
        assert len(errors_of(grid)) == 2  # to train and to evaluate
        assert "is there a second SuperNode of client 0" in errors_of(grid)[0]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_damaged_state_is_named(tmp_path):
    app = make_app(CompressionMod(state_dir=tmp_path))
    strategy = CompressedStrategy(FedAvg(), SPEC)
    start(app, 1, strategy)
    file = tmp_path / "run-1" / "client-0.state"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with logged() as lines:
        strategy.start(make_grid(app, 2), initial(), num_rounds=2, timeout=5)
    assert any("client-0.state" in line and "damaged" in line for line in lines)


@pytest.mark.parametrize(
    ("spec", "seed", "arrays", "said"),
    [
        ("topk(0.05)", 0, None, "began with ef"),
        (SPEC, 1, None, "seed 0"),
        (SPEC, 0, ArrayRecord(dict(reversed(initial().items()))), "another order"),
        (SPEC, 0, ArrayRecord({"w": Array(np.ones((20, 11), np.float32)), "b": initial()["b"]}), "shape"),
        (SPEC, 0, initial(np.float64), "float64|<f8"),
    ],
)
def test_a_conversation_that_goes_on_as_another(tmp_path, spec, seed, arrays, said):
    """Only a server that was told to go on can do so: its birth is forged here."""
    app = make_app(CompressionMod(state_dir=tmp_path))
    first = CompressedStrategy(FedAvg(), SPEC)
    start(app, 1, first)
    second = CompressedStrategy(FedAvg(), spec, seed=seed)
    second._open(make_grid(app), arrays or initial())
    second._conversation.birth = first._conversation.birth
    grid = make_grid(app, 2)
    second.start(grid, initial(), num_rounds=1, timeout=5)
    assert len(errors_of(grid)) == 4
    assert all("name" in error and gw.StateError.__name__ in error for error in errors_of(grid))
    import re

    assert all(re.search(said, error) for error in errors_of(grid))


def test_where_states_are(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADWIRE_STATE", str(tmp_path / "a"))
    assert default_folder() == tmp_path / "a"
    monkeypatch.delenv("GRADWIRE_STATE")
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "b"))
    assert default_folder() == tmp_path / "b" / "gradwire"
    monkeypatch.delenv("FLWR_HOME")
    assert default_folder() == Path.home() / ".flwr" / "gradwire"


def test_conversations_of_long_ago_are_deleted_and_nothing_else(tmp_path):
    old, mine, young = tmp_path / "old", tmp_path / "mine", tmp_path / "young"
    for folder in (old, mine, young):
        folder.mkdir()
        (folder / "client-0.state").write_bytes(b"x")
        os.utime(folder / "client-0.state", (1, 1))
    (mine / "notes.txt").write_text("not ours")
    (young / "client-1.lock").write_bytes(b"")
    with FolderStore(tmp_path, keep_days=1.0).open("new", 0):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "new", "young"]


def test_ids_come_from_the_node_s_config(tmp_path):
    from apps import member_of

    app = make_app(CompressionMod(state_dir=tmp_path))
    grid = FakeGrid()
    grid.add(app, partition_id=0, client_id=70)
    grid.add(app, partition_id=1)
    CompressedStrategy(FedAvg(), SPEC).start(grid, initial(), num_rounds=1, timeout=5)
    assert [member_of(tmp_path, "run-1", i).client.client_id for i in (70, 1)] == [70, 1]

    def bare(message, context):
        context.node_config = {"partition-id": 0}
        return make_app()(message, context)

    for given, config in ((None, {}), (5, {}), (lambda context: 6, {}), (None, {"client_id": -3})):
        mod = CompressionMod(state_dir=tmp_path / "x", client_id=given)
        grid = FakeGrid()
        grid.add(lambda m, c, mod=mod: mod(m, c, bare), **config)
        inner = FedAvg(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1)
        with logged() as lines:
            CompressedStrategy(inner, SPEC).start(grid, initial(), num_rounds=1, timeout=5)
        if config:
            assert "client-id must be an integer" in errors_of(grid)[0]
            continue
        answer = read_answer(grid.replies[0].content["arrays"][NAME].data)
        node_id = next(iter(grid.nodes))
        assert answer.client == {None: node_id >> 1, 5: 5}.get(given if not callable(given) else 0, 6)
        assert any("goes by its node id" in line for line in lines) == (given is None)


# --- a hostile node -------------------------------------------------------------------------------


class Hostile:
    """A node of its own making: says what it likes, but for the conversation's birth, which it was told."""

    def __init__(self, kind: str) -> None:
        self.kind, self.sent, self.rng = kind, [], np.random.default_rng(0)

    def __call__(self, message, context):
        told = read_instruction(find_carrier(message.content).data)
        layout = gw.Layout.from_arrays({k: np.empty(s, np.float32) for k, s in SHAPES.items()})
        blob = gw.Client(gw.parse(SPEC), layout, 9).compress(np.ones(210, np.float32), round=told.version)
        self.sent.append(blob)
        answer = Answer(told.birth, 9, b"12345678", told.version, blob=blob)
        client = 0 if len(self.sent) > 1 else 9  # who comes first has a number: nothing else is known of it
        other = gw.Client(gw.topk(0.5), gw.Layout.flat(4)).compress(np.ones(4, np.float32))
        down = gw.Server(gw.topk(0.1), layout).close_round().blob
        metrics = MetricRecord({"num-examples": 5, "train_loss": 1.0, "list": [1.0, 1.0]})
        kinds = {
            "random": lambda: self.rng.bytes(100),
            "random blob": lambda: Answer(told.birth, 9, b"12345678", told.version, blob=self.rng.bytes(100)).encode(),
            "replayed": lambda: Answer(told.birth, 9, b"12345678", told.version, blob=self.sent[0]).encode(),
            "truncated": lambda: answer.encode()[:-5],
            "huge": lambda: answer.encode() + bytes(10**7),
            "another's": lambda: Answer(told.birth, client, b"12345678", told.version, blob=blob).encode(),
            "foreign": lambda: Answer(b"otherone", 9, b"12345678", told.version, blob=blob).encode(),
            "future": lambda: Answer(told.birth, 9, b"12345678", told.version + 5, blob=blob).encode(),
            "other model": lambda: Answer(told.birth, 9, b"12345678", told.version, blob=other).encode(),
            "downlink": lambda: Answer(told.birth, 9, b"12345678", told.version, blob=down).encode(),
            "always lost": lambda: Answer(told.birth, 9, b"12345678", 0, resync=True).encode(),
            "weight": lambda: metrics.update({"num-examples": -1e30}) or answer.encode(),
            "metrics": lambda: metrics.update({"list": 1.0, "nonsense": 2}) or answer.encode(),
        }  # fmt: skip
        carrier = make_carrier(kinds[self.kind]())
        return Message(RecordDict({"arrays": ArrayRecord({NAME: carrier}), "metrics": metrics}), reply_to=message)


@pytest.mark.parametrize(
    "kind",
    [
        "random", "random blob", "truncated", "huge", "another's", "foreign", "future", "other model", "downlink",
        "always lost", "weight", "metrics",
    ],
)  # fmt: skip
def test_a_hostile_node_is_refused_and_named_and_the_others_go_on(tmp_path, kind):
    books = Books()
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path), books=books), 3)
    hostile = grid.add(Hostile(kind))
    strategy = CompressedStrategy(FedAvg(fraction_evaluate=0.0), SPEC)
    with logged() as lines:
        result = strategy.start(grid, initial(), num_rounds=3, timeout=5)
    if kind != "another's":  # that one was a client like any other for a round
        assert flat(result.arrays).tobytes() == plain_run(SPEC, 3).tobytes()
    if kind != "always lost":
        assert any("refused" in line and f"node {hostile.node_id}" in line for line in lines)
    assert books.runs == {0: 3, 1: 3, 2: 3}


def test_a_replayed_payload_counts_once(tmp_path):
    grid = make_grid(make_app(CompressionMod(state_dir=tmp_path)), 3)
    grid.add(Hostile("replayed"))
    strategy = CompressedStrategy(FedAvg(fraction_evaluate=0.0), SPEC)
    strategy.start(grid, initial(), num_rounds=3, timeout=5)
    assert [r.num_counted for r in strategy.ledger.rounds] == [4, 3, 3]


def test_what_a_hostile_server_says_is_refused(tmp_path):
    """Names that climb out of the folder, and bytes that are no blobs."""
    mod = CompressionMod(state_dir=tmp_path / "states")
    from flwr.app import Context

    context = Context(1, 5, {"partition-id": 0}, RecordDict(), {})
    for told in (
        Instruction("../../etc", bytes(8), SPEC, bytes(4), 0, 0, True, "num-examples").encode(),
        Instruction("a", bytes(8), "x" * 20_000, bytes(4), 0, 0, True, "num-examples").encode(),
        Instruction("a", bytes(8), "__import__('os')", bytes(4), 0, 0, True, "num-examples").encode(),
        Instruction("a", bytes(8), SPEC, bytes(4), 0, 0, True, "num-examples").encode(),
        b"nonsense",
    ):
        record = initial()
        record[NAME] = make_carrier(told)
        message = Message(RecordDict({"arrays": record}), dst_node_id=5, message_type="train")
        with pytest.raises(gw.GradwireError):
            mod(message, context, lambda m, c: pytest.fail("the app must not run"))
    assert not list(tmp_path.glob("**/*.state"))
