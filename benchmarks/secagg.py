"""Secure aggregation of 1 % of an update: bytes a client, beside the same in clear and Flower's SecAgg+, and time.

python -m benchmarks secagg [--only CLIENTS | --only CLIENTS-groups]
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import gradwire as gw
from benchmarks.markdown import table
from benchmarks.results import Found, describe
from gradwire.report.tables import format_bytes
from gradwire.secagg import SecureClient, SecureGroups, Terms, least_neighbours
from gradwire.secagg.keys import TAG_BYTES

D, DENSITY, BITS, CLIP = 1_000_000, 0.01, 8, 4.0
MOST = 64
"""Clients of a group."""
GROUPED = "-groups"
PARTS = ("10", "100", f"100{GROUPED}", "1000", f"1000{GROUPED}")
SPEC = gw.parse(f"randk({DENSITY}, shared=True) | fixed({BITS}, {CLIP})")
COLLUDING, DROPPING = 0.05, 0.1
LAYOUT = gw.Layout.flat(D)
LARGEST = 2 ** (BITS - 1) - 1


def measure(data_dir: str | None, parts: Sequence[str]) -> Found:
    """Play a round of as many clients as each part says, after a small one that compiles the kernels."""
    _round("3")
    return {
        "d": D,
        "spec": str(SPEC),
        "colluding": COLLUDING,
        "dropping": DROPPING,
        "rounds": {part: _round(part) for part in parts},
    }


def merge(old: Found, new: Found) -> Found:
    """Put newly measured sizes in their places."""
    rounds = {**old.get("rounds", {}), **new["rounds"]}
    return {**old, **new, "rounds": {part: rounds[part] for part in PARTS if part in rounds}}


def clients_of(part: str) -> int:
    """How many clients a part has."""
    return int(part.removesuffix(GROUPED))


def groups_of(part: str) -> int:
    """How many groups a part has: one, or as few as can be of ``MOST`` clients."""
    return -(-clients_of(part) // MOST) if part.endswith(GROUPED) else 1


def terms_of(part: str) -> Terms:
    """Terms of a part's groups: all are neighbours below 100 clients; of more, as few as are enough."""
    most = -(-clients_of(part) // groups_of(part))
    threshold = 2 * most // 3 + 1
    if most < 100:
        return Terms(most, threshold, gw.fixed(BITS, CLIP))
    neighbours, shares = least_neighbours(most, round(COLLUDING * most), round(DROPPING * most))
    return Terms(most, threshold, gw.fixed(BITS, CLIP), 1, neighbours, shares)


@dataclass
class _Counted:
    """Bytes and seconds of one end."""

    sent: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, step: str, make: Callable[[], Any]) -> Any:
        """Make something, and count the time of this process."""
        start = time.process_time()
        made = make()
        self.seconds[step] = self.seconds.get(step, 0.0) + time.process_time() - start
        return made

    def send(self, step: str, messages: Iterable[bytes]) -> None:
        """Count what was sent."""
        self.sent[step] = self.sent.get(step, 0) + sum(map(len, messages))


def _round(part: str) -> dict[str, Any]:
    """One round: everybody's bytes and time, a tenth of the clients lost after their shares."""
    num_clients, terms = clients_of(part), terms_of(part)
    support = SPEC.shared_support(LAYOUT, gw.Round(key=gw.Key(0)))
    update = np.random.default_rng(0).standard_normal(D).astype(np.float32)
    blob = gw.Client(SPEC, LAYOUT).compress(update)  # what is masked does not change how long it takes, nor its length
    groups = SecureGroups(terms, LAYOUT, groups_of(part))
    clients = [SecureClient(terms, LAYOUT, i) for i in range(num_clients)]
    dealt = np.array_split(np.arange(num_clients), groups_of(part))  # as `deal` would, but for who is where
    group_of = {int(i): group for group, members in enumerate(dealt) for i in members}
    up, down = _Counted(), _Counted()
    lost = set(range(0, num_clients, 10)) if num_clients >= 10 else set()
    steps: tuple[tuple[str, Callable[[], dict[int, bytes]], Callable[[int, bytes], bytes]], ...] = (
        ("keys", lambda: {i: groups.invitations[g] for i, g in group_of.items()}, lambda i, m: clients[i].join(m)),
        ("shares", groups.rosters, lambda i, m: clients[i].share(m)),
        ("masked", lambda: groups.deliveries(support), lambda i, m: clients[i].mask(m, blob, support)),
        ("confirmations", groups.survivors, lambda i, m: clients[i].confirm(m)),
        ("reveals", groups.confirmed, lambda i, m: clients[i].reveal(m)),
    )
    for step, ask, answer in steps:
        asked = down.timed(step, ask)
        down.send(step, asked.values())
        for i, message in asked.items():
            if step == "masked" and i in lost:
                continue
            told = up.timed(step, lambda a=answer, i=i, m=message: a(i, m))
            up.send(step, [told])
            down.timed(step, lambda told=told, i=i: groups.receive(told, i, group_of[i]))
    total = down.timed("sum", groups.close_round)
    assert len(total.clients) == num_clients - len(lost), "no group is lost"
    assert (total.integers % len(total.clients) == 0).all(), "all sent the same"
    return {
        "num_neighbours": terms.num_neighbours or num_clients / groups_of(part) - 1,
        "share_threshold": terms.num_shares,
        "width": terms.width,
        "lost": len(lost),
        "up_bytes": {step: sent / num_clients for step, sent in up.sent.items()},
        "down_bytes": {step: sent / num_clients for step, sent in down.sent.items()},
        "masked_bytes": up.sent["masked"] / (num_clients - len(lost)),
        "clear_bytes": len(blob),
        "client_seconds": {step: seconds / num_clients for step, seconds in up.seconds.items()},
        "server_seconds": dict(down.seconds),
        "flower": _flower(update, terms),
    }


def _flower(update: np.ndarray, terms: Terms) -> dict[str, Any]:
    """What a client of Flower's SecAgg+ sends for the dense update, made by its own functions at its defaults."""
    from flwr.common import ndarray_to_bytes
    from flwr.common.secure_aggregation.crypto import shamir, symmetric_encryption
    from flwr.common.secure_aggregation.ndarrays_arithmetic import factor_combine, parameters_addition, parameters_mod
    from flwr.common.secure_aggregation.quantization import quantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
    from flwr.supercore.primitives.asymmetric import generate_key_pairs, private_key_to_bytes, public_key_to_bytes

    quantized = factor_combine(2**22, quantize([update], 8.0, 2**22))
    shapes = [array.shape for array in quantized]
    masked = parameters_mod(parameters_addition(quantized, pseudo_rand_gen(bytes(32), 2**32, shapes)), 2**32)
    neighbours = terms.num_neighbours or terms.num_clients - 1
    (own, public), (_, other) = generate_key_pairs(), generate_key_pairs()
    mask_share, key_share = (shamir.create_shares(x, 2, 2)[0] for x in (bytes(32), private_key_to_bytes(own)))
    key = symmetric_encryption.generate_shared_key(own, other)
    sealed = symmetric_encryption.encrypt(key, share_keys_plaintext_concat(0, 1, mask_share, key_share))
    keys = 2 * len(public_key_to_bytes(public)) + neighbours * len(sealed) + (1 + neighbours) * len(mask_share)
    return {
        "as_32_bit_bytes": len(ndarray_to_bytes(masked[1].astype(np.int32))),
        "as_sent_bytes": sum(len(ndarray_to_bytes(array)) for array in masked),
        "keys_bytes": keys,
    }


def document(found: Found) -> dict[str, str]:
    """The tables."""
    rows, times, least = [], [], []
    for part, r in found["rounds"].items():
        tags = TAG_BYTES * r["num_neighbours"]
        keys = tags + sum(r["up_bytes"][step] for step in ("keys", "shares", "confirmations", "reveals"))
        numbers, clear = r["masked_bytes"] - tags, r["clear_bytes"]
        flower = r["flower"]["as_32_bit_bytes"] + r["flower"]["keys_bytes"]
        name = [f"{clients_of(part):,}", f"{groups_of(part)}"]
        rows.append(
            [
                *name,
                f"{r['num_neighbours']:g}",
                f"{r['width']}",
                format_bytes(numbers),
                f"{numbers / clear:.2f}x",
                format_bytes(keys),
                f"{(numbers + keys) / clear:.2f}x",
                format_bytes(sum(r["down_bytes"].values())),
                format_bytes(flower),
                f"{flower / (numbers + keys):.0f}x",
            ]
        )
        times.append(
            [
                *name,
                f"{1000 * sum(r['client_seconds'].values()):.0f} ms",
                f"{sum(r['server_seconds'].values()):.2f} s",
                f"{r['server_seconds']['sum']:.2f} s",
                f"{r['lost']:,}",
            ]
        )
        bits = math.log2(2 * terms_of(part).num_clients * LARGEST + 1)
        least.append(f"{numbers / clear * bits / r['width']:.2f}x")
    first = next(iter(found["rounds"].values()))
    text = [
        f"`{found['spec']}` of {found['d']:,} parameters, simulated clients in one process, a tenth of them lost with "
        f"their shares dealt; in one sum, or in groups of at most {MOST}. Below 100 clients of a sum all are "
        f"neighbours, from there on as few as `least_neighbours` finds for {found['colluding']:.0%} colluding and "
        f"{found['dropping']:.0%} lost. *In clear*: the same payload, entropy-coded "
        f"({format_bytes(first['clear_bytes'])}). Flower: SecAgg+ of the dense update, by its own quantization and "
        "arithmetic at its defaults and as many neighbours, numbers counted as 32-bit integers (its mod sends 64-bit "
        f"ones: {format_bytes(first['flower']['as_sent_bytes'])}), its keys and shares, too.",
        table(
            [
                "clients",
                "sums",
                "neighbours",
                "bits a number",
                "masked numbers",
                "/ in clear",
                "keys, shares, tags up",
                "all up / in clear",
                "down",
                "Flower's SecAgg+, up",
                "fewer up",
            ],
            rows,
        ),
        f"A masked number looks like any of the values that the sum it is in may have, {2 * LARGEST:,} times as many "
        f"as that sum has clients, and one: no code takes fewer than their logarithm, which is {', '.join(least)} of "
        "the payload in clear. In whole bits, numbers that take at most twice what they take in clear need sums of at "
        f"most {MOST} clients. Keys, shares and tags are so many bytes for each neighbour, however many numbers there "
        "are.",
        "Time of the process, a client and round, and the server's for the whole round:",
        table(["clients", "sums", "a client", "the server", "of it unmasking", "clients lost"], times),
        describe(found),
    ]
    return {"docs/results.md#secagg": "\n\n".join(text)}
