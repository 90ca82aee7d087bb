"""Whole secure sums for the tests: who answers how long, and what the plain sum of the same payloads is."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

import numpy as np

import gradwire as gw
from gradwire.secagg import SecureClient, SecureServer, SecureSum, Terms

STEPS = 5
LAYOUT = gw.Layout.flat(40)
SPEC = gw.parse("ef(cyclic(0.8) | fixed(8, 1.0))")
SUPPORT = np.arange(32)


def terms_of(num_clients: int, threshold: int | None = None, **others) -> Terms:
    return Terms(num_clients, threshold or num_clients // 2 + 1, gw.fixed(8, 1.0), **others)


def blobs_of(num_clients: int, seed: int = 0, scale: float = 0.4) -> dict[int, bytes]:
    """A payload a client, with numbers on both sides of the clip."""
    rng = np.random.default_rng(seed)
    updates = (scale * rng.standard_normal((num_clients, LAYOUT.d))).astype(np.float32)
    return {3 * i + 1: gw.Client(SPEC, LAYOUT, client_id=3 * i + 1).compress(u) for i, u in enumerate(updates)}


def plain_sum(blobs: dict[int, bytes], weights: dict[int, int], clients) -> list[int]:
    """The sum in Python's integers, from the symbols that would travel in clear."""
    total = [0] * SUPPORT.size
    for i in clients:
        (part,) = gw.decode(blobs[i]).parts
        assert part.support.indices.tolist() == SUPPORT.tolist()
        for place, symbol in enumerate(part.values.symbols.tolist()):
            total[place] += weights[i] * (symbol - (part.values.num_symbols - 1) // 2)
    return total


def sealed_again(message: bytes) -> bytes:
    """A message with the checksum that its bytes ask for."""
    return message[:-4] + struct.pack("<I", zlib.crc32(message[:-4]))


@dataclass
class Heard:
    """What a server got, in order: (step, client, message)."""

    messages: list[tuple[int, int, bytes]] = field(default_factory=list)

    def of(self, step: int) -> dict[int, bytes]:
        return {i: message for at, i, message in self.messages if at == step}


def play(
    terms: Terms,
    blobs: dict[int, bytes],
    weights: dict[int, int] | None = None,
    steps: dict[int, int] | None = None,
    heard: Heard | None = None,
    layout: gw.Layout = LAYOUT,
    support: np.ndarray = SUPPORT,
    round: int = 0,
    reference: np.ndarray | None = None,
) -> SecureSum:
    """Play one session; client i answers ``steps[i]`` of the five steps, all where nothing is said."""
    steps = dict.fromkeys(blobs, STEPS) | (steps or {})
    server = SecureServer(terms, layout, round)
    clients = {i: SecureClient(terms, layout, i) for i in blobs}

    def answer(step: int, i: int, make) -> None:
        if steps[i] >= step:
            message = make()
            server.receive(message, i)
            if heard is not None:
                heard.messages.append((step, i, message))

    for i, client in clients.items():
        answer(1, i, lambda client=client: client.join(server.invitation))
    for i, roster in server.rosters().items():
        answer(2, i, lambda i=i, roster=roster: clients[i].share(roster))
    for i, deliveries in server.deliveries(support).items():
        weight = 1 if weights is None else weights[i]
        answer(3, i, lambda i=i, d=deliveries, w=weight: clients[i].mask(d, blobs[i], support, w, reference))
    for i, survivors in server.survivors().items():
        answer(4, i, lambda i=i, s=survivors: clients[i].confirm(s))
    for i, confirmed in server.confirmed().items():
        answer(5, i, lambda i=i, c=confirmed: clients[i].reveal(c))
    return server.close_round()
