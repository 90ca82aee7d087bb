"""Lies in a conversation, and poison for the mean.

Wrong layouts and references, replays, rounds that are over or not begun, uplinks that pose as downlinks, weights and
values that would make the mean infinite.

Server.receive and Client.end_round must get a ProtocolError (Duplicate, StaleReference), ConfigError or DecodeError and
leave every bit of state as it was; the mean stays finite whatever arrives.
"""

import math
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace

import forge
import numpy as np
from forge import container, escaped, floats, golomb, refused, varint

import gradwire as gw
from gradwire.ends.client import reference_digest

LAYOUT = gw.Layout.flat(4)
X = np.array([3.0, 0.0, -1.0, 0.0], np.float32)


def unchanged(what: str, end: gw.Server | gw.Client, attempt: Callable[[], object], *errors: type[Exception]) -> None:
    """Run an attempt that must be refused and change nothing."""
    before = pickle.dumps(end.state_dict())
    refused(what, attempt, *errors)
    if pickle.dumps(end.state_dict()) != before:
        escaped(f"{what}: the state changed")


def fresh(max_staleness: int = 0) -> tuple[gw.Server, bytes]:
    """A server in round 2 whose clients lean on what they hold of round 1, and the blob that closed that."""
    server = gw.Server(gw.tcs(0.5, 0.25), LAYOUT, max_staleness=max_staleness)
    for round_ in range(2):
        server.receive(gw.Client(gw.dense(), LAYOUT, client_id=9).compress(X, round=round_), 10 + round_)
        blob = server.close_round().blob
    return server, blob


def uplinks() -> None:
    """Attack a server."""
    server, last = fresh()
    good = gw.decode(gw.Client(gw.topk(0.5), LAYOUT).compress(X, round=2))
    server.receive(gw.encode(good), 5)
    again = gw.encode(replace(good, sequence=1))
    unchanged("a replay", server, lambda: server.receive(gw.encode(good), 5), gw.Duplicate)
    unchanged("a second payload in a round", server, lambda: server.receive(again, 5), gw.ProtocolError)
    tries: list[tuple[str, gw.Payload, type[Exception]]] = [
        ("another layout's hash", replace(good, sequence=1, layout_digest=b"abcd"), gw.ProtocolError),
        ("a closed round", replace(good, sequence=1, round=1), gw.ProtocolError),
        ("a round to come", replace(good, sequence=1, round=3), gw.ProtocolError),
        ("the last round of all", replace(good, sequence=1, round=2**64 - 1), gw.ProtocolError),
        ("a downlink", replace(good, sequence=1, sum_weights=1.0), gw.ProtocolError),
        ("an unknown reference", replace(good, sequence=1, reference_digest=b"unknown!"), gw.StaleReference),
    ]
    for what, payload, error in tries:
        unchanged(what, server, lambda p=payload: server.receive(gw.encode(p), 0), error)
    unchanged("the server's own blob", server, lambda: server.receive(last, 0), gw.ProtocolError)
    other = gw.Client(gw.dense(), gw.Layout.flat(5)).compress(np.ones(5, np.float32), round=2)
    unchanged("another d", server, lambda: server.receive(other, 0), gw.ProtocolError, gw.DecodeError)
    unchanged("nonsense", server, lambda: server.receive(b"GW\1nonsense", 0), gw.DecodeError)
    for weight in (math.nan, math.inf, -1.0, 0.0, 1e-50, 1e39, 10**400, "1", None, True):
        blob = gw.encode(replace(good, sequence=5))
        unchanged(f"weight {str(weight)[:9]}", server, lambda b=blob, w=weight: server.receive(b, 0, w), gw.ConfigError)
    digest = reference_digest(last)
    fields = {"round": 2, "sequence": 7, "layout": LAYOUT.digest, "flags": forge.REFERENCE, "reference": digest}
    for what, known, extra, count in (
        ("more known entries than the reference has", 3, b"\0", 3),
        ("an extra index that is known already", 1, bytes([forge.GOLOMB, 1]) + golomb([0], 1), 2),
    ):
        part = bytes([forge.KNOWN]) + varint(known) + extra + bytes([forge.FLOAT32]) + floats(*([1.0] * count))
        unchanged(what, server, lambda p=part: server.receive(container(4, p, **fields), 0), gw.Malformed)


def downlinks() -> None:
    """Attack a client."""
    _, last = fresh()
    client = gw.Client(gw.ef(gw.topk(0.25)), LAYOUT)
    client.end_round(last)
    client.compress(X)
    payload = gw.decode(last)
    later = replace(payload, round=2)
    for what, blob, error in (
        ("a blob of a round that ended", gw.encode(replace(payload, round=0)), gw.ProtocolError),
        ("the last blob once more", last, gw.ProtocolError),
        ("a client's blob", gw.Client(gw.dense(), LAYOUT).compress(X), gw.ProtocolError),
        ("another layout's blob", gw.encode(replace(later, layout_digest=b"abcd")), gw.ProtocolError),
        ("a blob that leans on a reference", gw.encode(replace(later, reference_digest=bytes(8))), gw.ProtocolError),
        ("a cut blob", last[:-1], gw.DecodeError),
        ("the last round there can be", gw.encode(replace(payload, round=2**64 - 1)), gw.ProtocolError),
    ):
        unchanged(what, client, lambda b=blob: client.end_round(b, delivered=False), error)


def poison() -> None:
    """Make the mean infinite or let one client weigh more than it may."""
    top, half = np.array([3e38, 0, 0, 0], np.float32), np.array([1e38, 0, 0, 0], np.float32)
    server = gw.Server(gw.dense(), LAYOUT)
    server.receive(gw.Client(gw.dense(), LAYOUT).compress(half), 0)
    over, more = (gw.Client(gw.dense(), LAYOUT).compress(x) for x in (top, half))
    unchanged("a sum beyond float32", server, lambda: server.receive(over, 1), gw.ProtocolError)
    unchanged("a weight that makes it so", server, lambda: server.receive(more, 1, 1e10), gw.ProtocolError)
    tiny = gw.Server(gw.dense(), LAYOUT)
    tiny.receive(gw.Client(gw.dense(), LAYOUT).compress(top), 0, 2.0**-64)
    finite("a tiny weight", tiny)
    heavy, empty = gw.Server(gw.dense(), LAYOUT), np.zeros(4, np.float32)
    sent = 0
    for client_id in range(40):
        try:
            heavy.receive(gw.Client(gw.dense(), LAYOUT).compress(empty), client_id, 1.8e19)
            sent += 1
        except gw.ProtocolError:
            break
    finite(f"{sent} clients of the largest weight there is", heavy)
    packets = gw.Server(gw.dense(), LAYOUT)
    whole = gw.decode(gw.Client(gw.topk(0.25), LAYOUT).compress(top))
    for number in range(3):
        try:
            packets.receive(gw.encode(replace(whole, packet=(number, 4))), 0, 0.25)
        except gw.ProtocolError as error:
            print(f"overlapping packets\n    {type(error).__name__}: {error}")
    finite("packets that repeat a coordinate until it overflows", packets)
    one = gw.decode(gw.Client(gw.topk(0.25), LAYOUT).compress(np.array([1, 0, 0, 0], np.float32)))
    for what, max_staleness, tries in (
        ("in more packets than there are entries", 0, [replace(one, packet=(n, 2**63)) for n in range(100)]),
        ("in four packets", 0, [replace(one, packet=(n, 4)) for n in range(4)]),
        ("in four packets, one a round", 3, [replace(one, packet=(n, 4)) for n in range(4)]),
        ("in a hundred payloads", 0, [replace(one, sequence=n) for n in range(100)]),
    ):
        server = gw.Server(gw.dense(), LAYOUT, max_staleness=max_staleness)
        server.receive(gw.Client(gw.dense(), LAYOUT, client_id=1).compress(empty), 1)
        total = 0.0
        for payload in tries:
            try:
                server.receive(gw.encode(payload), 0)
            except gw.ProtocolError as error:
                refusal = error
            if max_staleness:
                total += float(server.close_round().update[0])
        total += float(server.close_round().update[0])
        if total > 1:
            escaped(f"the same entry {what} of weight 1: the means add up to {total}")
        print(f"the same entry {what}\n    {type(refusal).__name__}: {refusal}")


def finite(what: str, server: gw.Server) -> None:
    """Close the round; mean and downlink must be finite and readable."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            result = server.close_round()
            gw.decode(result.blob)
        except (gw.GradwireError, RuntimeWarning) as error:
            return escaped(f"{what}: closing the round gave {type(error).__name__}: {error}")
    if not np.isfinite(result.update).all():
        return escaped(f"{what}: the mean is {result.update}")
    return print(f"{what}\n    mean {result.update}")


def attacks() -> None:
    """Try each."""
    uplinks()
    downlinks()
    poison()


if __name__ == "__main__":
    forge.main(attacks)
