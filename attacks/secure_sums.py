"""Lies in a secure sum: by a server that wants one client's numbers, by clients that want to spoil the sum.

Messages that are tampered with, replayed, missing, of another session or step; shares that are changed, swapped, do not
fit or never come; a server that asks for both kinds of shares of one client, tells clients of other survivors, names
too few neighbours, or hands out false keys; clients in two groups, and numbers in clear that the terms do not let be
sent so.

SecureClient and SecureServer must get a ProtocolError (Duplicate, TooFewClients) or DecodeError, and go on as before.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace

import forge
import numpy as np
from forge import escaped, refused

import gradwire as gw
from gradwire.secagg import SecureClient, SecureGroups, SecureServer, Terms, messages

LAYOUT = gw.Layout.flat(64)
SUPPORT = np.arange(64)
TERMS = Terms(num_clients=4, threshold=3, grid=gw.fixed(8, 1.0))
BLOB = gw.Client(gw.fixed(8, 1.0), LAYOUT).compress(np.linspace(-0.9, 0.9, 64, dtype=np.float32))
LIES = (gw.DecodeError, gw.ProtocolError)


class Play:
    """A session among four clients, played step by step."""

    def __init__(self, terms: Terms = TERMS, support: np.ndarray = SUPPORT) -> None:
        self.support = support
        self.server = SecureServer(terms, LAYOUT)
        self.clients = {i: SecureClient(terms, LAYOUT, i) for i in range(4)}
        self.asked = dict.fromkeys(range(4), self.server.invitation)
        self.step = 0

    def answer(self, i: int, question: bytes | None = None) -> bytes:
        """What client i says in this step."""
        client, asked = self.clients[i], self.asked[i] if question is None else question
        if self.step == 2:
            return client.mask(asked, BLOB, self.support)
        return (client.join, client.share, None, client.confirm, client.reveal)[self.step](asked)

    def end(self, answers: dict[int, bytes]) -> None:
        """Let these arrive, and go on."""
        for i, answer in answers.items():
            self.server.receive(answer, i)
        server = self.server
        ends = (server.rosters, lambda: server.deliveries(self.support), server.survivors, server.confirmed)
        if self.step < len(ends):
            self.asked = ends[self.step]()
        self.step += 1

    def until(self, step: int) -> "Play":
        """Play honestly up to a step."""
        while self.step < step:
            self.end({i: self.answer(i) for i in self.asked})
        return self


def forged(message: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A message whose body is changed, with a right checksum."""
    out = message[:21] + change(message[21:-4])
    return out + struct.pack("<I", zlib.crc32(out))


def flipped(at: int) -> Callable[[bytes], bytes]:
    """Change a byte."""
    return lambda body: body[:at] + bytes([body[at] ^ 0x55]) + body[at:][1:]


def still_right(what: str, play: Play) -> None:
    """After an attack all goes on, and the sum is right."""
    play.until(5)
    total = play.server.close_round()
    if total.integers.tolist() != [4 * round(127 * x) for x in np.linspace(-0.9, 0.9, 64, dtype=np.float32)]:
        escaped(f"{what}: the sum changed")


def by_messages() -> None:
    """Damage, replay and swap messages in every step."""
    other = [Play().until(step) for step in range(5)]
    for step in range(5):
        play = Play().until(step)
        question = play.asked[1]
        for what, lie in (
            ("cut off", question[:-1]),
            ("too long", question + b"\0"),
            ("a bit changed", flipped(25)(question)),
            ("nothing", b""),
            ("a megabyte", bytes(2**20)),
        ):
            refused(f"step {step}: a question, {what}", lambda p=play, q=lie: p.answer(1, q), gw.DecodeError)
        if step:
            stale = other[step].asked[1]
            refused(f"step {step}: another session's", lambda p=play, q=stale: p.answer(1, q), gw.ProtocolError)
            early = other[step - 1].asked[1]
            refused(f"step {step}: one of the step before", lambda p=play, q=early: p.answer(1, q), *LIES)
        answer, foreign = play.answer(1), other[step].answer(1)
        for what, lie in (
            ("cut off", answer[:-1]),
            ("too long", forged(answer, lambda body: body + b"\0")),
            ("a bit changed", flipped(30)(answer)),
            ("another session's", foreign),
        ):
            refused(f"step {step}: an answer, {what}", lambda p=play, a=lie: p.server.receive(a, 1), *LIES)
        if not step:
            refused("an answer of nobody", lambda p=play, a=answer: p.server.receive(a, -1), gw.ConfigError)
        play.server.receive(answer, 1)
        refused(f"step {step}: a replay", lambda p=play, a=answer: p.server.receive(a, 1), gw.Duplicate)
        again = forged(answer, flipped(3))
        refused(f"step {step}: a second answer", lambda p=play, a=again: p.server.receive(a, 1), *LIES)
        refused(f"step {step}: the question again", lambda p=play: p.answer(1), gw.ProtocolError)
        play.end({i: play.answer(i) for i in play.asked if i != 1})
        if step < 4:
            refused("an answer after its step", lambda p=play, a=again: p.server.receive(a, 1), *LIES)
        still_right(f"step {step}", play)


def by_server() -> None:
    """Ask for what would show one client's numbers."""
    play = Play().until(3)
    session, tags = play.server.session, [play.asked[0][at : at + 8] for at in (22, 30, 38)]

    def survivors(*there: bool) -> bytes:
        named = [tag if x else None for tag, x in zip(tags, there, strict=True)]
        return messages.encode_chosen(messages.SURVIVORS, session, named)

    wrong = messages.encode_chosen(messages.SURVIVORS, session, [tags[0], tags[0], bytes(8)])
    refused("survivors that did not mask with it", lambda: play.answer(0, wrong), gw.TooFewClients)

    refused("a sum of one", lambda: play.answer(0, survivors(False, False, False)), gw.TooFewClients)
    refused("a sum of two", lambda: play.answer(0, survivors(True, False, False)), gw.TooFewClients)
    beyond = forged(survivors(True, True, True), lambda body: bytes([body[0] | 8]))
    refused("survivors beyond the list", lambda: play.answer(0, beyond), gw.Malformed)
    play.answer(0, survivors(True, True, False))
    refused("both kinds of shares of one client", lambda: play.answer(0, survivors(True, True, True)), gw.ProtocolError)
    play.end({i: play.answer(i) for i in (1, 2, 3)})  # 0 was told that 3 is gone, and they that it is there
    found = [messages.open_message(play.asked[i], messages.CONFIRMED, 99).chosen(3, 8)[1] for i in (1, 2)]
    told = messages.encode_chosen(messages.CONFIRMED, session, [found[0][1], found[1][1]])
    refused("shares of clients that others were told are there", lambda: play.answer(0, told), gw.TooFewClients)
    few = messages.encode_chosen(messages.CONFIRMED, session, [found[0][1], None, None])
    refused("shares for a sum that two confirmed", lambda: play.answer(1, few), gw.TooFewClients)
    right = messages.encode_chosen(messages.CONFIRMED, session, [None, *found[0][1:]])
    play.answer(1, right)
    refused("shares a second time", lambda: play.answer(1, right), gw.ProtocolError)
    play = Play().until(2)
    none = messages.encode_chosen(messages.DELIVERIES, play.server.session, [None] * 3)
    refused("deliveries of nobody", lambda: play.answer(0, none), gw.TooFewClients)
    play.answer(0)
    refused("numbers masked twice", lambda: play.answer(0), gw.ProtocolError)
    play = Play()
    published = {i: forge_keys(play.answer(i)) for i in range(4)}
    play.step = 1
    for what, lie in (
        ("nobody", []),
        ("too few", [(1, published[1])]),
        ("the client itself", [(0, published[1]), (2, published[2])]),
        ("its own keys", [(1, published[0]), (2, published[2])]),
        ("one client's keys for two", [(1, published[1]), (2, published[1])]),
        ("a key of small order", [(1, published[1]), (2, messages.Keys(bytes(32), published[2].mask, bytes(16)))]),
        (
            "more than the terms allow",
            [(n, messages.Keys(bytes([n]) * 32, bytes([n + 9]) * 32, b"")) for n in range(1, 9)],
        ),
    ):
        roster = messages.encode_roster(play.server.session, lie)
        refused(f"a roster of {what}", lambda r=roster: play.answer(0, r), *LIES)
    claims = forged(messages.encode_roster(play.server.session, []), lambda body: forge.varint(2**20))
    refused("a roster that claims a million", lambda: play.answer(0, claims), gw.Truncated)
    other = SecureServer(Terms(4, 4, gw.fixed(8, 1.0)), LAYOUT)
    refused("other terms", lambda: SecureClient(TERMS, LAYOUT, 0).join(other.invitation), gw.ProtocolError)


def forge_keys(answer: bytes) -> messages.Keys:
    """The keys in an answer."""
    return messages.Keys(answer[21:53], answer[53:85], answer[85:101])


def by_clients() -> None:
    """Deal shares that nobody can read or that do not fit, and reveal others."""
    play = Play().until(1)
    answers = {i: play.answer(i) for i in play.asked}
    for at in (0, 50, 100):
        answers[2] = forged(answers[2], flipped(at))
    play.end(answers)  # nobody can read what client 2 dealt
    play.until(5)
    refused("shares that nobody can read", play.server.close_round, gw.TooFewClients)
    refused("after the end", lambda: play.server.receive(b"", 0), gw.ProtocolError)
    play = Play().until(1)
    answers = {i: play.answer(i) for i in play.asked}
    answers[2] = forged(answers[2], lambda body: body[48:96] + body[:48] + body[96:])  # swapped between two clients
    play.end(answers)
    play.until(5)
    refused("shares swapped between clients", play.server.close_round, gw.TooFewClients)
    play = Play().until(4)
    answers = {i: play.answer(i) for i in play.asked}
    answers[1] = forged(answers[1], flipped(0))
    play.end(answers)
    refused("a share of its own mask that does not fit", play.server.close_round, gw.ProtocolError)
    play = Play().until(2)
    play.end({i: play.answer(i) for i in (0, 1, 2)})
    play.until(4)
    answers = {i: play.answer(i) for i in play.asked}
    answers[0] = forged(answers[0], flipped(-1))
    play.end(answers)
    refused("a share of a lost client's key that does not fit", play.server.close_round, gw.ProtocolError)
    for step, what in ((1, "shares"), (2, "masked numbers"), (3, "confirmations"), (4, "shares that take masks off")):
        play = Play().until(step)
        answers = {i: play.answer(i) for i in (0, 1)}  # of four, where three must

        def missing(p: Play = play, a: dict[int, bytes] = answers) -> None:
            p.end(a)
            p.server.close_round()

        refused(f"{what} that do not come", missing, gw.TooFewClients)
    play = Play().until(2)
    late = play.answer(3)
    play.end({i: play.answer(i) for i in (0, 1, 2)})
    refused("masked numbers after all", lambda: play.server.receive(late, 3), gw.ProtocolError)
    for key in (bytes(32), forge_keys(Play().answer(0)).cipher):
        play = Play()
        lie = forged(play.answer(0), lambda body, k=key: k + k + body[64:])
        refused("a key that is no key, or two times the same", lambda p=play, a=lie: p.server.receive(a, 0), *LIES)


def by_groups() -> None:
    """Be in two groups, in none, or in one that one was not invited to."""
    groups, client = SecureGroups(TERMS, LAYOUT, 2), SecureClient(TERMS, LAYOUT, 0)
    answer = client.join(groups.invitations[0])
    refused("keys of no group", lambda: groups.receive(answer, 0), gw.ProtocolError)
    refused("keys for another group", lambda: groups.receive(answer, 0, 1), gw.ProtocolError)
    refused("a group that is none", lambda: groups.receive(answer, 0, 2), gw.ConfigError)
    groups.receive(answer, 0, 0)
    refused("an invitation to a second group", lambda: client.join(groups.invitations[1]), gw.ProtocolError)
    other = SecureClient(TERMS, LAYOUT, 0).join(groups.invitations[1])
    refused("a client in two groups", lambda: groups.receive(other, 0, 1), gw.ProtocolError)


def in_clear() -> None:
    """Send in clear what the terms do not let be sent so, and claim weights."""
    terms, support = replace(TERMS, most_in_clear=2), np.arange(62)
    few = Play(replace(TERMS, most_in_clear=1), support).until(2)
    refused("more in clear than agreed on", lambda: few.answer(1), gw.ConfigError)
    play = Play(terms, support).until(2)
    answer = play.answer(1)
    start = 21 + 8 + 64 * terms.width // 8 + 3 * 8
    clear = answer[start:-4]
    first = gw.Client(gw.fixed(8, 1.0), LAYOUT).compress((np.arange(64) == 0).astype(np.float32))
    for what, lie in (
        ("nothing", b""),
        ("a weight of 0", b"\0" + clear[1:]),
        ("a weight beyond the largest", b"\2" + clear[1:]),
        ("a weight without an end", b"\xff" * 12),
        ("half a payload", clear[:-7]),
        ("more than a payload", clear + b"\0"),
        ("everything", b"\1" + BLOB),
        ("a number on the shared support", b"\1" + first),
    ):
        message = forged(answer, lambda body, lie=lie: body[: start - 21] + lie)
        refused(f"in clear: {what}", lambda m=message: play.server.receive(m, 1), *LIES)
    play.end({1: answer} | {i: play.answer(i) for i in play.asked if i != 1})
    still_right("in clear", play)


def attacks() -> None:
    """Try each."""
    by_messages()
    by_server()
    by_clients()
    by_groups()
    in_clear()


if __name__ == "__main__":
    forge.main(attacks)
