"""Apps for the tests: clients whose updates depend on nothing but client and round, and books over them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fake_grid import FakeGrid
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import gradwire as gw
from gradwire.flower import CompressedStrategy
from gradwire.flower.carrier import find_carrier
from gradwire.flower.header import read_answer
from gradwire.flower.state import FolderStore, Member

SHAPES = {"w": (20, 10), "b": (10,)}


def initial(dtype: Any = np.float32) -> ArrayRecord:
    from flwr.app import Array

    rng = np.random.default_rng(7)
    return ArrayRecord({k: Array(rng.standard_normal(s).astype(dtype)) for k, s in SHAPES.items()})


def flat(record: ArrayRecord) -> np.ndarray:
    return np.concatenate([array.numpy().ravel() for array in record.values()])


def trained(model: dict[str, np.ndarray], client: int, index: int) -> dict[str, np.ndarray]:
    """What a client makes of a model in a round: a noisy step towards its own goal."""
    rng = np.random.default_rng([client, index])
    return {k: (a + 0.1 * (client - a) + 0.01 * rng.standard_normal(a.shape)).astype(a.dtype) for k, a in model.items()}


@dataclass
class Books:
    """What each client computed: sums of its updates, and how often its app ran."""

    raw: dict[int, np.ndarray] = field(default_factory=lambda: defaultdict(lambda: np.zeros(210)))
    runs: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    models: list[np.ndarray] = field(default_factory=list)


def make_app(*mods: Any, books: Books | None = None, key: str = "arrays", weight: Callable[[int], Any] | None = None):
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, index = context.node_config["partition-id"], message.content["config"]["server-round"]
        model = {k: a.numpy() for k, a in message.content[key].items()}
        new = trained(model, client, index)
        if books is not None:
            books.runs[client] += 1
            books.raw[client] += np.concatenate([(new[k] - model[k]).ravel() for k in model])
            books.models.append(np.concatenate([a.ravel() for a in model.values()]))
        from flwr.app import Array

        num = (client + 1) if weight is None else weight(client)
        metrics = MetricRecord({"num-examples": num, "train_loss": float(client + 1), "list": [1.0, float(client)]})
        return Message(
            RecordDict({key: ArrayRecord({k: Array(a) for k, a in new.items()}), "metrics": metrics}), reply_to=message
        )

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        norm = float(np.linalg.norm(flat(message.content[key])))
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 2, "norm": norm})}), reply_to=message)

    return app


def make_grid(app: ClientApp, num_clients: int = 3, fate: Any = lambda message: "ok") -> FakeGrid:
    grid = FakeGrid(fate)
    for i in range(num_clients):
        grid.add(app, partition_id=i)
    return grid


def plain_run(spec: str, num_rounds: int, clients: range = range(3), downlink: str = "dense()") -> np.ndarray:
    """The model after the same rounds with nothing but Client and Server: the oracle of law 2."""
    from gradwire.flower.model import Model

    start = Model.from_record(initial())
    model, layout = start.vector, start.layout
    compressor = gw.parse(spec)
    ends = {i: gw.Client(compressor, layout, i, num_rounds=num_rounds) for i in clients}
    server = gw.Server(compressor, layout, downlink=gw.parse(downlink))
    for index in range(num_rounds):
        for i, end in ends.items():
            arrays = layout.unflatten(model)
            update = layout.flatten(trained(arrays, i, index + 1)) - model
            server.receive(end.compress(update, i + 1, round=index), i, i + 1)
        result = server.close_round()
        for end in ends.values():
            end.end_round(result.blob)
        model = model + result.applied
    return model


def member_of(folder: Path, conversation: str, client: int) -> Member:
    with FolderStore(folder).open(conversation, client) as place:
        return place.read()


def audit(strategy: CompressedStrategy, folder: Path, books: Books, client: int, counted: np.ndarray) -> float:
    """Law 1 of one client: |raw - counted - pending - residual| / |raw|."""
    conversation = strategy._conversation
    member = member_of(folder, conversation.name, client)
    told = conversation.counted(client)
    missing = books.raw[client] - counted
    for number, blob in zip(member.client.pending_sequences, member.client.pending, strict=True):
        if told is None or told.incarnation != member.incarnation or not told.holds(number):
            missing -= gw.decompress(gw.decode(blob))
    missing -= member.client.state_dict()["residual"]
    return float(np.linalg.norm(missing) / np.linalg.norm(books.raw[client]))


@contextmanager
def counting(strategy: CompressedStrategy) -> Iterator[dict[int, np.ndarray]]:
    """Book what the server counts of each client."""
    from gradwire.flower.conversation import Conversation

    counted: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(210))
    receive = Conversation.receive

    def booking(self: Conversation, client: int, incarnation: bytes, blob: bytes, weight: float) -> None:
        receive(self, client, incarnation, blob, weight)
        counted[client] += gw.decompress(gw.decode(blob))

    Conversation.receive = booking
    try:
        yield counted
    finally:
        Conversation.receive = receive


@contextmanager
def logged() -> Iterator[list[str]]:
    """What is logged to Flower's logger, which does not propagate."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, logger = Handler(), logging.getLogger("flwr")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def answer_of(message: Message):
    return read_answer(find_carrier(message.content).data)


def config(index: int = 1) -> ConfigRecord:
    return ConfigRecord({"server-round": index})
