"""What is sent in clear on request: tcs's own coordinates, beside its known ones under masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from secure_rounds import Heard, play, sealed_again

import gradwire as gw
from gradwire.secagg import SecureClient, SecureGroups, SecureServer, Terms

LAYOUT, GRID = gw.Layout.flat(60), gw.fixed(8, 2.0)
SPEC = gw.parse("ef(tcs(0.2, 0.1) | fixed(8, 2.0))")  # 12 known, 6 of its own
TERMS = Terms(4, 3, GRID, max_weight=9, most_in_clear=6)
WEIGHTS = {0: 1, 1: 4, 2: 2, 3: 9}


def steps_of(blob: bytes, reference: np.ndarray | None = None) -> np.ndarray:
    """What a payload would send in clear, in steps of the grid."""
    return np.rint(gw.decompress(gw.decode(blob), reference).astype(np.float64) * 127 / 2).astype(int)


def dense(total) -> np.ndarray:
    integers = np.zeros(LAYOUT.d, int)
    integers[total.support] = total.integers
    return integers


class Rounds:
    """Clients of tcs, and what they agree on: in round 0 the coordinates are those of client 0, for all."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.clients = {i: gw.Client(SPEC, LAYOUT, client_id=i) for i in WEIGHTS}
        self.reference: np.ndarray | None = None
        self.index = 0
        self.updates = np.zeros((4, LAYOUT.d), np.float32)

    def compressed(self) -> tuple[dict[int, bytes], np.ndarray]:
        """The payloads of a round, and the coordinates that all share."""
        self.updates = self.rng.standard_normal((4, LAYOUT.d)).astype(np.float32)
        if self.reference is None:
            given = support = self.clients[0].propose(self.updates[0])
        else:
            agreed = gw.Round(index=self.index, key=gw.Key(0, self.index), reference=self.reference)
            given, support = None, SPEC.shared_support(LAYOUT, agreed)
        return {i: c.compress(self.updates[i], WEIGHTS[i], support=given) for i, c in self.clients.items()}, support

    def end(self, result, delivered=lambda i: True) -> None:
        for i, client in self.clients.items():
            client.end_round(result.blob, delivered=delivered(i))
        self.reference, self.index = result.applied, self.index + 1


def test_a_round_with_own_coordinates_is_tcs_in_clear():
    """The same clients, once through a server that sees all payloads: the same integers, the same mean."""
    rounds = Rounds()
    plain, secure = gw.Server(SPEC, LAYOUT), gw.Server(gw.dense(), LAYOUT)
    for index in range(4):
        blobs, support = rounds.compressed()
        total = play(TERMS, blobs, WEIGHTS, None, None, LAYOUT, support, index, rounds.reference)
        wanted = sum(WEIGHTS[i] * steps_of(blob, rounds.reference) for i, blob in blobs.items())
        assert dense(total).tolist() == wanted.tolist()
        assert set(support.tolist()) <= set(total.support.tolist())
        assert (total.support.size > support.size) == (index > 0), "in round 0 all is shared, later each has its own"
        for i, blob in blobs.items():
            plain.receive(blob, i, WEIGHTS[i])
        secure.receive(total.blob, 0, total.sum_weights)
        ended = plain.close_round()
        np.testing.assert_allclose(secure.close_round().update, ended.update, atol=1e-6)
        rounds.end(ended)


@pytest.mark.parametrize("last", [0, 2, 3])
def test_who_drops_out_keeps_both_kinds(last):
    """Law 1: what came, by the sums, and what clients keep is what they had; client 2 answers so many steps once."""
    rounds, server = Rounds(1), gw.Server(gw.dense(), LAYOUT)
    had, came = np.zeros(LAYOUT.d), np.zeros(LAYOUT.d)
    for index in range(4):
        blobs, support = rounds.compressed()
        steps = {2: last} if index == 2 else None
        total = play(TERMS, blobs, WEIGHTS, steps, None, LAYOUT, support, index, rounds.reference)
        assert (2 in total.clients) == (index != 2 or last == 3)
        server.receive(total.blob, 0, total.sum_weights)
        rounds.end(server.close_round(), lambda i, there=total.clients: i in there)
        came += dense(total) * (2 / 127)
        had += np.array([WEIGHTS[i] for i in rounds.clients]) @ rounds.updates.astype(np.float64)
    kept = sum(WEIGHTS[i] * client.residual.astype(np.float64) for i, client in rounds.clients.items())
    assert np.linalg.norm(had - kept - came) < 1e-5 * np.linalg.norm(had)


def second_round() -> tuple[Rounds, dict[int, bytes], np.ndarray]:
    rounds, server = Rounds(2), gw.Server(gw.dense(), LAYOUT)
    blobs, support = rounds.compressed()
    total = play(TERMS, blobs, WEIGHTS, None, None, LAYOUT, support, 0)
    server.receive(total.blob, 0, total.sum_weights)
    rounds.end(server.close_round())
    return rounds, *rounds.compressed()


NUMBERS = slice(21 + 8 + 25 + 3 * 8, -4)  # what comes after digest, 14 numbers of 14 bits, and tags


def test_only_what_is_outside_of_the_support_is_in_clear():
    """The end of a masked message is the weight and a payload of a client's own coordinates."""
    assert TERMS.width == 14
    rounds, blobs, support = second_round()
    assert support.size == 12
    heard = Heard()
    play(TERMS, blobs, WEIGHTS, None, heard, LAYOUT, support, 1, rounds.reference)
    for i, message in heard.of(3).items():
        weight, payload = message[NUMBERS][0], gw.decode(message[NUMBERS][1:])
        assert weight == WEIGHTS[i]
        (part,) = payload.parts
        assert part.support.indices.size == 6
        sent = gw.decompress(gw.decode(blobs[i]), rounds.reference)
        sent[support] = 0
        np.testing.assert_array_equal(gw.decompress(payload), sent)


@pytest.mark.parametrize("most", [0, 5])
def test_more_than_was_agreed_on_is_refused_and_the_client_goes_on(most):
    rounds, blobs, support = second_round()
    terms, said = (
        replace(TERMS, most_in_clear=most),
        rf"6 of 1\d numbers are outside of .*, where .* have {most}",
    )
    with pytest.raises(gw.ConfigError, match=said):
        play(terms, blobs, WEIGHTS, None, None, LAYOUT, support, 1, rounds.reference)
    total = play(TERMS, blobs, WEIGHTS, None, None, LAYOUT, support, 1, rounds.reference)
    assert total.clients == (0, 1, 2, 3)


def test_numbers_at_the_clip_are_counted_in_clear_too():
    update, layout = np.array([9, 0, 0, -9], np.float32), gw.Layout.flat(4)
    blob = gw.Client(GRID, layout).compress(update)
    total = play(TERMS, dict.fromkeys(range(4), blob), WEIGHTS, layout=layout, support=np.array([0, 1]))
    assert total.num_at_clip == 8
    assert total.support.tolist() == [0, 1, 3]
    assert total.integers.tolist() == [127 * 16, 0, -127 * 16]


def lies(support: np.ndarray) -> dict[str, bytes]:
    """What may stand at the end of a masked message in the place of weight and payload."""
    rng, outside = np.random.default_rng(0), np.setdiff1d(np.arange(LAYOUT.d), support)

    def blob(chosen, compressor=GRID, layout=LAYOUT, **options) -> bytes:
        update = np.zeros(layout.d, np.float32)
        update[chosen] = rng.choice([-1, 1], len(chosen)) * np.float32(0.7)
        return gw.Client(compressor, layout).compress(update, **{"round": 1} | options)

    right = blob(outside[:6])
    return {
        "no weight": b"",
        "no payload": b"\1",
        "weight 0": b"\0" + right,
        "a weight beyond max_weight": b"\x0a" + right,
        "half a payload": b"\1" + right[:-9],
        "more than a payload": b"\1" + right + b"\0",
        "numbers on the shared support": b"\1" + blob(support[:1]),
        "one number too many": b"\1" + blob(outside[:7]),
        "numbers off the grid": b"\1" + blob(outside[:6], gw.topk(0.1)),
        "another grid": b"\1" + blob(outside[:6], gw.fixed(8, 2.3)),
        "a huge number": b"\1"
        + gw.Client(gw.topk(0.1), LAYOUT).compress(
            np.where(np.arange(LAYOUT.d) == outside[0], np.float32(3e38), np.float32(0)), round=1
        ),
        "another round": b"\1" + blob(outside[:6], round=0),
        "another layout": b"\1" + blob(range(6), layout=gw.Layout.flat(59)),
        "a server's blob": b"\1" + gw.Server(gw.dense(), LAYOUT).close_round().blob,
    }


def is_taken(server: SecureServer, message: bytes, i: int) -> bool:
    try:
        server.receive(message, i)
    except (gw.DecodeError, gw.ProtocolError):
        return False
    return True


def test_lies_in_clear_are_refused_and_the_truth_is_taken():
    rounds, blobs, support = second_round()
    server = SecureServer(TERMS, LAYOUT, 1)
    clients = {i: SecureClient(TERMS, LAYOUT, i) for i in blobs}
    for i, client in clients.items():
        server.receive(client.join(server.invitation), i)
    for i, message in server.rosters().items():
        server.receive(clients[i].share(message), i)
    for i, message in server.deliveries(support).items():
        truth = clients[i].mask(message, blobs[i], support, WEIGHTS[i], rounds.reference)
        if i == 2:
            false = {what: sealed_again(truth[: NUMBERS.start] + lie + bytes(4)) for what, lie in lies(support).items()}
            assert [what for what, lie in false.items() if is_taken(server, lie, i)] == []
        server.receive(truth, i)
    for i, message in server.survivors().items():
        server.receive(clients[i].confirm(message), i)
    for i, message in server.confirmed().items():
        server.receive(clients[i].reveal(message), i)
    wanted = sum(WEIGHTS[i] * steps_of(blob, rounds.reference) for i, blob in blobs.items())
    assert dense(server.close_round()).tolist() == wanted.tolist()


def test_groups_add_up_what_each_of_their_clients_sent_in_clear():
    """Whatever a compressor chooses may be sent so: here each client's top k, a part of which is on the support."""
    terms, support = Terms(3, 2, GRID, most_in_clear=6), np.arange(0, 60, 2)
    updates = np.random.default_rng(5).standard_normal((6, 60)).astype(np.float32)
    blobs = {i: gw.Client(gw.topk(0.1) | GRID, LAYOUT).compress(u) for i, u in enumerate(updates)}
    groups = SecureGroups(terms, LAYOUT, 2)
    clients = {i: SecureClient(terms, LAYOUT, i) for i in blobs}
    for i, client in clients.items():
        groups.receive(client.join(groups.invitations[i % 2]), i, i % 2)
    for i, message in groups.rosters().items():
        groups.receive(clients[i].share(message), i)
    for i, message in groups.deliveries(support).items():
        if i != 5:
            groups.receive(clients[i].mask(message, blobs[i], support), i)
    for i, message in groups.survivors().items():
        groups.receive(clients[i].confirm(message), i)
    for i, message in groups.confirmed().items():
        groups.receive(clients[i].reveal(message), i)
    total = groups.close_round()
    assert total.clients == (0, 1, 2, 3, 4)
    assert dense(total).tolist() == sum(steps_of(blobs[i]) for i in total.clients).tolist()
