"""Messages that lie, come twice or not at all: a named error, and nothing changes."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import struct
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_rounds import LAYOUT, SUPPORT, blobs_of, plain_sum, sealed_again, terms_of

import gradwire as gw
from gradwire.secagg import SecureClient, SecureServer, Terms, messages

TERMS = terms_of(3, max_weight=4)
BLOBS = dict(enumerate(blobs_of(3).values()))
GOES_ON = (gw.DecodeError, gw.ProtocolError)


class Session:
    """A session that stops where a test wants to say something else."""

    def __init__(self, terms: Terms = TERMS, round: int = 0) -> None:
        self.server = SecureServer(terms, LAYOUT, round)
        self.clients = {i: SecureClient(terms, LAYOUT, i) for i in BLOBS}
        self.sent: dict[str, dict[int, bytes]] = {}
        self.asked: dict[str, dict[int, bytes]] = {"join": dict.fromkeys(BLOBS, self.server.invitation)}

    def answer(self, step: str, i: int) -> bytes:
        client, message = self.clients[i], self.asked[step][i]
        return client.mask(message, BLOBS[i], SUPPORT) if step == "mask" else getattr(client, step)(message)

    def until(self, step: str) -> Session:
        """Play until the server asks for this step."""
        for here, end in (
            ("join", lambda: ("share", self.server.rosters())),
            ("share", lambda: ("mask", self.server.deliveries(SUPPORT))),
            ("mask", lambda: ("confirm", self.server.survivors())),
            ("confirm", lambda: ("reveal", self.server.confirmed())),
        ):
            if step == here:
                return self
            if here in self.sent:
                continue
            self.sent[here] = {i: self.answer(here, i) for i in self.asked[here]}
            for i, message in self.sent[here].items():
                self.server.receive(message, i)
            name, asked = end()
            self.asked[name] = asked
        return self

    def confirmed(self) -> None:
        """Once all masked numbers are there: play until the server asks for what takes the masks off."""
        self.asked["confirm"] = self.server.survivors()
        for i in self.asked["confirm"]:
            self.server.receive(self.answer("confirm", i), i)
        self.asked["reveal"] = self.server.confirmed()

    def revealed(self) -> None:
        """As ``confirmed``, to the end of the last step."""
        self.confirmed()
        for i in self.asked["reveal"]:
            self.server.receive(self.answer("reveal", i), i)


STEPS = ("join", "share", "mask", "confirm", "reveal")


@pytest.mark.parametrize("step", STEPS)
def test_damaged_questions_are_refused_and_the_client_can_still_answer(step):
    session = Session().until(step)
    question = session.asked[step][1]
    others = [question[:n] for n in range(len(question))] + [question + b"\0", b"", bytes(500), b"GWS\3" + question[4:]]
    others += [question[:i] + bytes([question[i] ^ 1]) + question[i + 1 :] for i in range(len(question))]
    for other in others:
        session.asked[step][1] = other
        with pytest.raises(gw.DecodeError):
            session.answer(step, 1)
    session.asked[step][1] = question
    session.server.receive(session.answer(step, 1), 1)


@pytest.mark.parametrize("step", STEPS)
def test_damaged_answers_are_refused_and_the_right_one_is_taken(step):
    session = Session().until(step)
    answer = session.answer(step, 1)
    others = [answer[:n] for n in range(0, len(answer), 3)] + [answer + b"\0", b"", bytes(9)]
    others += [answer[:i] + bytes([answer[i] ^ 128]) + answer[i + 1 :] for i in range(len(answer))]
    for other in others:
        with pytest.raises(GOES_ON):
            session.server.receive(other, 1)
    session.server.receive(answer, 1)
    with pytest.raises(gw.Duplicate):
        session.server.receive(answer, 1)


@pytest.mark.parametrize("step", STEPS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_body_with_a_right_checksum_gives_an_answer_or_a_named_error(step, data):
    session = Session().until(step)
    kind = {"join": 1, "share": 3, "mask": 5, "confirm": 7, "reveal": 9}[step]
    head = session.server.invitation[:4] + bytes([kind]) + session.server.session
    body = data.draw(st.binary(max_size=300))
    message = sealed_again(head + body + bytes(4))
    session.asked[step][0] = message
    with contextlib.suppress(*GOES_ON):
        session.answer(step, 0)
    reply = sealed_again(head[:4] + bytes([kind + 1]) + session.server.session + body + bytes(4))
    with contextlib.suppress(*GOES_ON):
        session.server.receive(reply, 2)


def test_every_message_of_another_session_is_refused():
    old, new = Session().until("reveal"), Session()
    old.sent["reveal"] = {i: old.answer("reveal", i) for i in BLOBS}
    for step, following in zip(STEPS, (*STEPS[1:], None), strict=True):
        with pytest.raises(gw.ProtocolError, match="session"):
            new.server.receive(old.sent[step][1], 1)
        if step != "join":
            with pytest.raises(gw.ProtocolError, match="session"):
                new.clients[1].mask(old.asked[step][1], BLOBS[1], SUPPORT) if step == "mask" else getattr(
                    new.clients[1], step
                )(old.asked[step][1])
        if following:
            new.until(following)


def test_another_answer_of_the_same_client_is_refused():
    session = Session()
    session.server.receive(session.answer("join", 0), 0)
    other = SecureClient(TERMS, LAYOUT, 0).join(session.server.invitation)
    with pytest.raises(gw.ProtocolError, match="answered before"):
        session.server.receive(other, 0)


def test_who_was_not_asked_is_refused():
    session = Session()
    for i in (0, 1):
        session.server.receive(session.answer("join", i), i)
    with pytest.raises(gw.ProtocolError, match="waiting for keys"):
        session.server.close_round()
    rosters = session.server.rosters()
    late = session.answer("join", 2)
    with pytest.raises(gw.ProtocolError, match="not among those asked"):
        session.server.receive(late, 2)
    shares = session.clients[0].share(rosters[0])
    with pytest.raises(gw.ProtocolError, match="not among those asked"):
        session.server.receive(shares, 2)
    with pytest.raises(gw.ConfigError, match="client_id"):
        session.server.receive(shares, -1)


def test_a_step_cannot_be_ended_twice_or_out_of_turn():
    session = Session().until("share")
    server = session.server
    for end in (server.rosters, server.survivors, server.confirmed, server.close_round):
        with pytest.raises(gw.ProtocolError, match="waiting for shares"):
            end()


def test_below_the_threshold_all_is_over():
    session = Session().until("mask")
    session.server.receive(session.answer("mask", 0), 0)
    with pytest.raises(gw.TooFewClients, match="1 of the clients sent masked numbers, at least 2 must"):
        session.server.survivors()
    for attempt in (session.server.survivors, session.server.close_round):
        with pytest.raises(gw.ProtocolError, match="over"):
            attempt()
    with pytest.raises(gw.ProtocolError, match="over"):
        session.server.receive(session.answer("mask", 1), 1)


# --- servers that lie -------------------------------------------------------------------------------------------------


def chosen(session: Session, kind: int, there: list[bytes | None]) -> bytes:
    return messages.encode_chosen(kind, session.server.session, there)


def test_both_kinds_of_shares_of_one_client_are_refused():
    """First client 2 is in the sum, then it is not: one answer, and no second one."""
    session = Session(terms_of(3, 2)).until("confirm")
    tags = [session.asked["confirm"][0][at : at + 8] for at in (22, 30)]
    there, gone = (chosen(session, messages.SURVIVORS, [tags[0], second]) for second in (tags[1], None))
    session.clients[0].confirm(there)
    for question in (gone, there):
        with pytest.raises(gw.ProtocolError, match="confirmed, and answers each message once"):
            session.clients[0].confirm(question)
    for i in (1, 2):
        session.server.receive(session.answer("confirm", i), i)
    of_others = [session.server._tags[i][0] for i in (1, 2)]
    session.clients[0].reveal(chosen(session, messages.CONFIRMED, of_others))
    for again in (session.clients[0].confirm, session.clients[0].reveal):
        with pytest.raises(gw.ProtocolError, match="used up, and answers each message once"):
            again(there)


def test_a_sum_of_too_few_is_refused_by_the_clients():
    session = Session().until("confirm")
    said = "needs 2 clients that hold its shares and know of the same clients, itself among them, got 1"
    with pytest.raises(gw.TooFewClients, match=said):
        session.clients[0].confirm(chosen(session, messages.SURVIVORS, [None, None]))
    session.clients[0].confirm(session.asked["confirm"][0])
    with pytest.raises(gw.TooFewClients, match=said):
        session.clients[0].reveal(chosen(session, messages.CONFIRMED, [None, bytes(8)]))


def told_apart(num_clients: int, threshold: int, target: int) -> dict[int, set[int]]:
    """Whom each client is told is gone: never more than it may be, and each beyond the target by ``threshold``."""
    needed = dict.fromkeys(range(target, num_clients), threshold)
    gone = {}
    for i in range(num_clients):
        most = sorted((g for g in needed if g != i), key=lambda g: (-needed[g], (g - i) % num_clients))
        gone[i] = set(most[: num_clients - threshold])
        for g in gone[i]:
            needed[g] -= 1
    assert max(needed.values()) <= 0, "so the keys of all that are not wanted would come back"
    return gone


@pytest.mark.parametrize(("num_clients", "threshold", "target"), [(5, 3, 2), (7, 4, 2), (10, 6, 4), (10, 7, 6)])
def test_other_survivors_for_other_clients_give_nothing(num_clients, threshold, target):
    """A server that wants a sum of fewer: it may not have two sets of clients taken for those in the sum."""
    blobs, terms = dict(enumerate(blobs_of(num_clients).values())), terms_of(num_clients, threshold)
    server, clients = SecureServer(terms, LAYOUT), {i: SecureClient(terms, LAYOUT, i) for i in blobs}
    for i, client in clients.items():
        server.receive(client.join(server.invitation), i)
    for i, roster in server.rosters().items():
        server.receive(clients[i].share(roster), i)
    for i, message in server.deliveries(SUPPORT).items():
        server.receive(clients[i].mask(message, blobs[i], SUPPORT), i)
    masked_with, gone, confirmed = server._tags, told_apart(num_clients, threshold, target), {}
    for i, client in clients.items():
        others = [j for j in blobs if j != i]
        named = [None if j in gone[i] else masked_with[j][i] for j in others]
        answer = client.confirm(messages.encode_chosen(messages.SURVIVORS, server.session, named))
        there = [j for j in others if j not in gone[i]]
        confirmed[i] = dict(zip(there, (answer[21 + 8 * n :][:8] for n in range(len(there))), strict=True))
    revealed = set()
    for i, client in clients.items():
        there = [j for j in blobs if j != i and j not in gone[i]]
        tags = [confirmed[j].get(i) for j in there]
        with contextlib.suppress(gw.TooFewClients):
            client.reveal(messages.encode_chosen(messages.CONFIRMED, server.session, tags))
            revealed.add(frozenset([i, *there]))
    assert len(revealed) <= 1, "all that revealed anything were told the same"
    assert all(len(there) >= threshold for there in revealed)


def will_reveal(client: SecureClient) -> list[bool]:
    """Of which others a client has settled to reveal something."""
    return [share is not None for share in client._standing.shares]


def test_a_client_that_was_set_apart_is_not_unmasked():
    """The server tells client 0 that 2 is gone, and 2 that 0 is there: with 1's key it would have 0's numbers."""
    session = Session().until("mask")
    apart = session.asked["mask"][0][22:70]
    lie = chosen(session, messages.DELIVERIES, [apart, None])
    masked = {0: session.clients[0].mask(lie, BLOBS[0], SUPPORT)} | {i: session.answer("mask", i) for i in (1, 2)}
    tags = {i: [message[-4 - 8 * n :][:8] for n in (2, 1)] for i, message in masked.items() if i}
    of_0 = masked[0][-12:-4]
    with pytest.raises(gw.TooFewClients):  # 0 is there, 1 is not: 2 knows that 0 knew of others
        session.clients[2].confirm(chosen(session, messages.SURVIVORS, [of_0, None]))
    session.clients[2].confirm(chosen(session, messages.SURVIVORS, [of_0, tags[1][1]]))
    assert will_reveal(session.clients[2]) == [False, True], "nothing of 0, whatever it is called"
    session.clients[1].confirm(chosen(session, messages.SURVIVORS, [of_0, tags[2][1]]))
    assert will_reveal(session.clients[1]) == [False, True]


def test_deliveries_and_rosters_of_too_few_are_refused():
    session = Session()
    session.server.receive(session.answer("join", 0), 0)
    with pytest.raises(gw.TooFewClients):
        session.clients[0].share(messages.encode_roster(session.server.session, []))
    session = Session().until("mask")
    with pytest.raises(gw.TooFewClients):
        session.clients[0].mask(chosen(session, messages.DELIVERIES, [None, None]), BLOBS[0], SUPPORT)


def roster_of(session: Session, *neighbours: tuple[int, messages.Keys]) -> bytes:
    return messages.encode_roster(session.server.session, neighbours)


def test_rosters_that_lie_are_refused():
    session = Session()
    keys = {}
    for i in BLOBS:
        answer = session.answer("join", i)
        session.server.receive(answer, i)
        keys[i] = messages.Keys(answer[21:53], answer[53:85], answer[85:101])
    small = messages.Keys(bytes(32), keys[2].mask, bytes(16))
    swapped = messages.Keys(keys[1].mask, keys[1].cipher, bytes(16))
    for lie in (
        [(0, keys[1]), (2, keys[2])],  # itself
        [(1, keys[0]), (2, keys[2])],  # its own keys
        [(1, keys[1]), (2, keys[1])],  # one client twice
        [(1, keys[1]), (2, swapped)],  # a key for two things
        [(1, keys[1]), (2, small)],  # a key that agrees with everybody on the same secret
        [(1, keys[1]), (2, keys[2]), (5, messages.Keys(bytes([9]) * 32, bytes([8]) * 32, bytes(16)))],  # too many
    ):
        with pytest.raises(GOES_ON):
            session.clients[0].share(roster_of(session, *lie))
    session.clients[0].share(session.server.rosters()[0])


def test_other_terms_layout_or_round_are_refused():
    for other in (terms_of(3, 3), terms_of(3, max_weight=5), Terms(3, 2, gw.fixed(8, 2.0), max_weight=4)):
        with pytest.raises(gw.ProtocolError, match="server has terms"):
            SecureClient(TERMS, LAYOUT, 0).join(SecureServer(other, LAYOUT).invitation)
    with pytest.raises(gw.ProtocolError, match="layout"):
        SecureClient(TERMS, gw.Layout.flat(41), 0).join(SecureServer(TERMS, LAYOUT).invitation)
    client = SecureClient(TERMS, LAYOUT, 0)
    client.join(SecureServer(TERMS, LAYOUT).invitation)
    with pytest.raises(gw.ProtocolError, match="joined a session before"):
        client.join(SecureServer(TERMS, LAYOUT).invitation)


def test_other_coordinates_for_one_client_give_noise():
    """A server that asks client 2 for other coordinates, and forges the digest in its answer, cannot take masks off."""
    session = Session().until("mask")
    update = np.zeros(LAYOUT.d, np.float32)
    update[SUPPORT + 1] = 0.5
    blob = gw.Client(gw.fixed(8, 1.0), LAYOUT).compress(update)
    honest = [session.answer("mask", i) for i in (0, 1)]
    other = session.clients[2].mask(session.asked["mask"][2], blob, SUPPORT + 1)
    with pytest.raises(gw.ProtocolError, match="another support"):
        session.server.receive(other, 2)
    for i, answer in enumerate([*honest, sealed_again(honest[0][:29] + other[29:])]):
        session.server.receive(answer, i)
    session.revealed()
    with pytest.raises(gw.ProtocolError, match="nonsense"):
        session.server.close_round()


# --- clients that lie -------------------------------------------------------------------------------------------------


def test_tampered_shares_are_not_used_and_the_rest_is_enough():
    """Of client 2's shares for client 0 one bit is wrong: 0 cannot help with 2's secrets, 1 and 2 themselves can."""
    session = Session().until("share")
    for i in BLOBS:
        answer = session.answer("share", i)
        if i == 2:
            answer = sealed_again(answer[:30] + bytes([answer[30] ^ 1]) + answer[31:])
        session.server.receive(answer, i)
    session.asked["mask"] = session.server.deliveries(SUPPORT)
    for i in BLOBS:
        session.server.receive(session.answer("mask", i), i)
    session.revealed()
    total = session.server.close_round()
    assert total.integers.tolist() == plain_sum(BLOBS, dict.fromkeys(BLOBS, 1), BLOBS)


@pytest.mark.parametrize("lost", [None, 2])
def test_shares_that_do_not_fit_are_named_and_there_is_no_sum(lost):
    """Client 0 reveals something else: of client 2, in the sum or lost, and of the others."""
    session = Session().until("mask")
    for i in BLOBS:
        if i != lost:
            session.server.receive(session.answer("mask", i), i)
    session.confirmed()
    for i in session.asked["reveal"]:
        answer = session.answer("reveal", i)
        if i == 0:
            answer = sealed_again(answer[:-5] + bytes([answer[-5] ^ 1]) + answer[-4:])
        session.server.receive(answer, i)
    with pytest.raises(gw.ProtocolError, match=r"client 2's (mask|key): its shares do not fit what it published"):
        session.server.close_round()
    with pytest.raises(gw.ProtocolError, match="over"):
        session.server.close_round()


def test_nonsense_under_the_masks_is_noticed():
    """Masked numbers that nobody masked: what is left is no sum of clients that kept to the terms."""
    session = Session().until("mask")
    for i in (0, 1):
        session.server.receive(session.answer("mask", i), i)
    answer = session.answer("mask", 2)
    rng = np.random.default_rng(0)
    body = rng.integers(0, 256, len(answer) - 21 - 8 - 4 - 2 * 8, np.uint8).tobytes()
    rest = (2 + SUPPORT.size) * TERMS.width % 8
    body = body[:-1] + bytes([body[-1] & ((1 << rest) - 1 if rest else 255)])
    session.server.receive(sealed_again(answer[:29] + body + answer[-20:]), 2)
    session.revealed()
    with pytest.raises(gw.ProtocolError, match="nonsense"):
        session.server.close_round()


def test_more_clients_than_the_terms_allow_are_refused():
    session = Session()
    for i in BLOBS:
        session.server.receive(session.answer("join", i), i)
    with pytest.raises(gw.ProtocolError, match="3 clients already"):
        session.server.receive(SecureClient(TERMS, LAYOUT, 3).join(session.server.invitation), 3)


def test_keys_of_another_are_refused():
    session = Session()
    answer = session.answer("join", 0)
    session.server.receive(answer, 0)
    for lie in (answer, sealed_again(answer[:21] + bytes(32) + answer[53:])):
        with pytest.raises(gw.ProtocolError, match=r"there already|small order"):
            session.server.receive(lie, 1)


# --- the bytes, by docs/format.md alone -------------------------------------------------------------------------------


def derived(secret: bytes, context: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, context, info).derive(secret)


def test_masked_numbers_by_the_page():
    """Client 0's message, made anew of its secrets by what docs/format.md says."""
    session = Session().until("mask")
    secret = copy.copy(session.clients[0]._standing)
    message = session.answer("mask", 0)
    joined = secret.joined
    invitation = session.server.invitation
    context = hashlib.sha256(b"gradwire secagg 2" + invitation[5:21] + invitation[21:-4]).digest()
    support = hashlib.sha256(SUPPORT.astype("<i8").tobytes()).digest()
    count, modulus = 2 + SUPPORT.size, 2**TERMS.width

    def stream(key: bytes) -> list[int]:
        data = Cipher(ChaCha20(key, bytes(16)), None).encryptor().update(bytes(4 * count))
        return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]

    plain = plain_sum(BLOBS, dict.fromkeys(BLOBS, 1), [0])
    numbers = [1, sum(abs(x) == 127 for x in plain), *plain]
    masks = [stream(derived(joined.own_seed, context, b"self mask\0" + support))]
    own = X25519PrivateKey.from_private_bytes(derived(joined.mask_seed, context, b"mask key"))
    for other in (1, 2):
        public = session.sent["join"][other][53:85]
        agreed = own.exchange(X25519PublicKey.from_public_bytes(public))
        masks.append(stream(derived(agreed, context, b"pair mask\0" + bytes([other]) + support)))
    masked = [sum(column) % modulus for column in zip(numbers, *masks, strict=True)]
    bits = sum(x << i * TERMS.width for i, x in enumerate(masked))
    body = bits.to_bytes(-(-count * TERMS.width // 8), "little")
    view, tags = hashlib.sha256(np.arange(3, dtype="<i8").tobytes()).digest(), {b"masked with": b"", b"in the sum": b""}
    for what, other in itertools.product(tags, (1, 2)):
        agreed = joined.cipher.exchange(X25519PublicKey.from_public_bytes(session.sent["join"][other][21:53]))
        tags[what] += derived(agreed, context, what + b"\0" + bytes([other]) + view)[:8]
    numbers_and_tags = support[:8] + body + tags[b"masked with"]
    assert message == sealed_again(b"GWS\2\6" + invitation[5:21] + numbers_and_tags + bytes(4))
    for i, other in enumerate([message, *(session.answer("mask", i) for i in (1, 2))]):
        session.server.receive(other, i)
    session.asked["confirm"] = session.server.survivors()
    confirmed = sealed_again(b"GWS\2\10" + invitation[5:21] + tags[b"in the sum"] + bytes(4))
    assert session.answer("confirm", 0) == confirmed
    commitment = derived(joined.own_seed, context, b"commitment\0")[:16]
    assert session.sent["join"][0][85:101] == commitment


def test_digest_of_terms_by_the_page():
    terms = Terms(300, 200, gw.fixed(8, 1.0), max_weight=5, num_neighbours=20, share_threshold=15, beyond="refuse")
    for most, end in ((0, b"\0"), (300, b"\xac\2")):
        data = bytes([0xAC, 2, 0xC8, 1, 20, 15, 5, 8, 1]) + end + struct.pack("<f", np.float32(1.0) / np.float32(127))
        assert replace(terms, most_in_clear=most).digest == hashlib.sha256(data).digest()[:8]
