"""Books of what is trained and counted, instants that a test holds, and bad behaviour.

In the folder ``$TRIAL``: ``raw-CLIENT-ROUND-*.npy``, each an update that was trained and remembered;
``counted-CLIENT-SEQUENCE.npy``, each one that the server counted into a round that it closed. While ``hold-NAME`` lies
there an instant is held, and the process that waits then writes its id to ``held-NAME``: ``train-CLIENT-ROUND`` in the
midst of training, ``closed-ROUND`` between two rounds. ``$SLOW``: seconds that each training of a node takes longer.
``$HOSTILE``: how a node lies, a word a round.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

import gradwire as gw
from gradwire.flower.carrier import find_carrier
from gradwire.flower.conversation import Conversation
from gradwire.flower.header import Answer, read_answer, read_instruction

Handler = Callable[[Message, Context], Message]


def place(name: str) -> Path:
    """A file of the trial's."""
    return Path(os.environ["TRIAL"]) / name


def wait_while_held(name: str) -> None:
    """Stop here for as long as a test wants."""
    hold = place(f"hold-{name}")
    if hold.exists():
        part = place(f"part-{name}")
        part.write_text(str(os.getpid()))
        part.replace(place(f"held-{name}"))
        while hold.exists():
            time.sleep(0.1)


def write(name: str, vector: np.ndarray) -> None:
    """Write an array, whole or not at all."""
    part = place(f"part-{name}")
    with part.open("wb") as file:
        np.save(file, vector)
    part.replace(place(f"{name}.npy"))


def flat(content: RecordDict) -> np.ndarray:
    """The model of a message, as one vector."""
    return np.concatenate([array.numpy().ravel() for array in content["arrays"].values()])


def booked(compress: Callable[[Message, Context, Handler], Message]) -> Callable[[Message, Context, Handler], Message]:
    """Keep the client's books round its mod."""

    def handle(message: Message, context: Context, call_next: Handler) -> Message:
        client, index = context.node_config["partition-id"], message.content["config"]["server-round"]
        trained = []

        def train(given: Message, context: Context) -> Message:
            wait_while_held(f"train-{client}-{index}")
            time.sleep(float(os.environ.get("SLOW", "0")))
            reply = call_next(given, context)
            trained.append(flat(reply.content) - flat(given.content))
            return reply

        reply = compress(message, context, train)
        for raw in trained:
            write(f"raw-{client}-{index}-{time.time_ns()}", raw)
        lies = os.environ.get("HOSTILE", "").split()
        return lie(lies[index - 1], message, reply, index) if lies else reply

    return handle


@contextmanager
def books() -> Iterator[None]:
    """Keep the server's books."""
    received = []
    receive, close = Conversation.receive, Conversation.close

    def receiving(self, client, incarnation, blob, weight):
        receive(self, client, incarnation, blob, weight)
        received.append((client, gw.decode(blob)))

    def closing(self, step):
        result = close(self, step)
        for client, payload in received:
            write(f"counted-{client}-{payload.sequence}", gw.decompress(payload))
        received.clear()
        wait_while_held(f"closed-{self.version}")
        return result

    Conversation.receive, Conversation.close = receiving, closing
    try:
        yield
    finally:
        Conversation.receive, Conversation.close = receive, close


def lie(kind: str, message: Message, reply: Message, index: int) -> Message:
    """Send something else than what is right; ``honest`` is right, and kept for a replay."""
    found = find_carrier(reply.content)
    told, answer = read_instruction(find_carrier(message.content).data), read_answer(found.data)
    kept, rng = place(f"kept-{answer.client}"), np.random.default_rng(index)
    if kind == "honest":
        kept.write_bytes(answer.blob)
        return reply

    def said(blob: bytes, client: int = answer.client) -> bytes:
        return Answer(told.birth, client, answer.incarnation, told.version, blob=blob).encode()

    def of_another_model() -> bytes:
        return gw.Client(gw.topk(0.5), gw.Layout.flat(4)).compress(np.ones(4, np.float32), round=told.version)

    data = {
        "replayed": lambda: said(kept.read_bytes()),
        "oversized": lambda: found.data + bytes(10**7),
        "another": lambda: said(answer.blob, client=0),
        "random": lambda: rng.bytes(1000),
        "noise": lambda: said(rng.bytes(1000)),
        "truncated": lambda: found.data[:-5],
        "foreign": lambda: said(of_another_model()),
    }[kind]()
    carrier = Array(dtype="uint8", shape=(len(data),), stype="gradwire", data=data)
    content = {**reply.content, found.key: ArrayRecord({"gradwire": carrier})}
    return Message(RecordDict(content), reply_to=message)
