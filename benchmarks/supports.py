"""Supports that all clients share, under secure aggregation, beside each client's own top k: MNIST, accuracy and bytes.

    python -m benchmarks supports --data-dir DIR [--only METHOD]

Each run is appended to its result file when it is done; the next call goes on from there.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gradwire as gw
from benchmarks import results
from benchmarks.markdown import code, table
from benchmarks.results import Found, describe
from gradwire.compressors.papers.leader import leader_of
from gradwire.errors import ConfigError
from gradwire.federated.data.models import build_model
from gradwire.federated.data.partition import parse_partition
from gradwire.federated.data.tasks import load_task
from gradwire.federated.data.train import Trainer, draw_batches
from gradwire.report.tables import format_bytes
from gradwire.secagg import SecureClient, SecureServer, Terms
from gradwire.secagg.support import pack_support

CLIENTS, ROUNDS, LOCAL_STEPS, BATCH, LEARNING_RATE = 10, 40, 5, 32, 0.1
PARTITIONS, SEEDS = ("iid", "dirichlet:0.3"), (0, 1, 2)
GRID, BLOCK, TCS = gw.fixed(8, 0.25), 16, gw.tcs(0.01, 0.001)
METHODS = {
    "topk": "ef(topk(0.01) | fixed(8, 0.25))",
    "topk-bytes": "ef(topk(0.02) | fixed(8, 0.25))",  # near the bytes of the leader under masks
    "randk": "ef(randk(0.01, shared=True) | fixed(8, 0.25))",
    "cyclic": "ef(cyclic(0.01) | fixed(8, 0.25))",
    "tcs": f"ef({TCS} | fixed(8, 0.25))",  # the known coordinates alone
    "tcs-own": f"ef({TCS} | fixed(8, 0.25))",  # and each client's own beside them, in clear
    "leader": "ef(leader(0.01) | fixed(8, 0.25))",
    "leader-clear": "ef(leader(0.01) | fixed(8, 0.25))",
    "sketch": f"ef(sketch(0.01, block={BLOCK}) | fixed(8, 0.25))",
}
PARTS = tuple(METHODS)
IN_CLEAR = ("topk", "topk-bytes", "leader-clear")
NUMBERS = dict.fromkeys(METHODS, "masked") | dict.fromkeys(IN_CLEAR, "in clear")
NUMBERS |= {"tcs": "masked, known ones alone", "tcs-own": "masked, its own in clear"}

Support = np.ndarray | None


def measure(data_dir: str | None, parts: Sequence[str], workers: int) -> None:
    """Make the runs that are missing, one after the other."""
    try:
        load_task("mnist", Path(data_dir) if data_dir else None)
    except ConfigError as error:
        print(f"supports is left out: {error}")
        return
    done = {_name(run) for run in results.load("supports")["runs"]} if results.is_there("supports") else set()
    for seed, partition, method in itertools.product(SEEDS, PARTITIONS, parts):
        if (method, partition, seed) not in done:
            results.append("supports", _run(method, partition, seed, data_dir))


def _name(run: Mapping[str, Any]) -> tuple[str, str, int]:
    return run["method"], run["partition"], run["seed"]


def _run(method: str, partition: str, seed: int, data_dir: str | None) -> dict[str, Any]:
    """Train once; bytes are those of all clients on the way up."""
    task = load_task("mnist", Path(data_dir) if data_dir else None)
    trainer = Trainer(task, build_model(task.default_model, task, seed))
    shards = parse_partition(partition).split(
        np.asarray(task.train_targets), CLIENTS, np.random.default_rng(seed), task.groups
    )
    layout, spec = trainer.layout, gw.parse(METHODS[method])
    clients = [gw.Client(spec, layout, client_id=i, seed=seed) for i in range(CLIENTS)]
    server, model = gw.Server(gw.dense(), layout, seed=seed), trainer.initial()
    uplink = at_clip = sent = 0
    reference: np.ndarray | None = None
    for index in range(ROUNDS):
        keys = [gw.Key(seed, index, i) for i in range(CLIENTS)]
        batches = [draw_batches(shard, key, LOCAL_STEPS, BATCH) for shard, key in zip(shards, keys, strict=True)]
        updates, _ = trainer.local_updates(model, batches, LEARNING_RATE)
        support, num_bytes = _support(method, clients, updates, index, reference)
        uplink += num_bytes
        given = None if method == "tcs-own" and index else support
        blobs = [client.compress(u, support=given) for client, u in zip(clients, updates, strict=True)]
        if method in IN_CLEAR:
            for i, blob in enumerate(blobs):
                server.receive(blob, i)
            uplink += sum(map(len, blobs))
        else:
            blob, num_bytes, clipped = _summed(method, blobs, layout, support, index, reference)
            server.receive(blob, 0, CLIENTS)
            uplink, at_clip, sent = uplink + num_bytes, at_clip + clipped, sent + CLIENTS * support.size
        result = server.close_round()
        for client in clients:
            client.end_round(result.blob)
        model += result.applied
        reference = result.applied
    return {
        "method": method,
        "partition": partition,
        "seed": seed,
        "accuracy": trainer.evaluate(model).accuracy,
        "uplink_bytes": uplink,
        "at_clip": at_clip / max(1, sent),
        "num_parameters": layout.d,
    }


def _support(
    method: str, clients: list[gw.Client], updates: np.ndarray, index: int, reference: np.ndarray | None
) -> tuple[Support, int]:
    """The round's support, None where each client has its own; and what it took to agree on it, on the way up."""
    layout, seed = clients[0].layout, clients[0].seed
    if method.startswith("topk"):
        return None, 0
    if method.startswith("leader") or (method.startswith("tcs") and reference is None):
        support = clients[leader := leader_of(range(CLIENTS), seed, index)].propose(updates[leader])
        return support, len(pack_support(support, layout.num_parameters))
    if method == "sketch":
        return _voted(clients, updates, index)
    round = gw.Round(index=index, key=gw.Key(seed, index), reference=reference)
    return clients[0].compressor.shared_support(layout, round), 0


def _ones(support: np.ndarray, d: int) -> np.ndarray:
    vector = np.zeros(d, np.float32)
    vector[support] = 1
    return vector


def _voted(clients: list[gw.Client], updates: np.ndarray, index: int) -> tuple[np.ndarray, int]:
    """The blocks that most clients would send: each names its own, one bit a block, summed under masks."""
    d = clients[0].layout.d
    blocks = gw.Layout.flat(-(-d // BLOCK))
    own = [np.unique(client.propose(u) // BLOCK) for client, u in zip(clients, updates, strict=True)]
    votes = [gw.Client(gw.fixed(2, 1.0), blocks).compress(_ones(named, blocks.d), round=index) for named in own]
    terms = Terms(CLIENTS, CLIENTS, gw.fixed(2, 1.0))
    total, num_bytes = _session(votes, blocks, np.arange(blocks.d), index, terms)
    chosen = np.sort(np.argsort(-total.integers, kind="stable")[: max(1, round(0.01 * blocks.d))])
    support = (chosen[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
    return support[support < d], num_bytes


def _summed(
    method: str,
    blobs: list[bytes],
    layout: gw.Layout,
    support: np.ndarray,
    index: int,
    reference: np.ndarray | None,
) -> tuple[bytes, int, int]:
    """The mean of all payloads, by a secure sum."""
    own = TCS.most_kept(layout.d) - support.size if method == "tcs-own" else 0
    terms = Terms(CLIENTS, 7, GRID, most_in_clear=own)
    total, num_bytes = _session(blobs, layout, support, index, terms, reference)
    return total.blob, num_bytes, total.num_at_clip


def _session(
    blobs: list[bytes],
    layout: gw.Layout,
    support: np.ndarray,
    index: int,
    terms: Terms,
    reference: np.ndarray | None = None,
) -> tuple[Any, int]:
    """One secure sum of all clients, and their bytes on the way up."""
    server, clients = SecureServer(terms, layout, index), [SecureClient(terms, layout, i) for i in range(CLIENTS)]
    steps: tuple[tuple[Callable[[], dict[int, bytes]], Callable[[int, bytes], bytes]], ...] = (
        (lambda: dict.fromkeys(range(CLIENTS), server.invitation), lambda i, m: clients[i].join(m)),
        (server.rosters, lambda i, m: clients[i].share(m)),
        (lambda: server.deliveries(support), lambda i, m: clients[i].mask(m, blobs[i], support, reference=reference)),
        (server.survivors, lambda i, m: clients[i].reveal(m)),
    )
    num_bytes = 0
    for ask, answer in steps:
        for i, message in ask().items():
            told = answer(i, message)
            num_bytes += len(told)
            server.receive(told, i)
    return server.close_round(), num_bytes


def document(found: Found) -> dict[str, str]:
    """The table."""
    rows = []
    for method, spec in METHODS.items():
        of_each = [[r for r in found["runs"] if (r["method"], r["partition"]) == (method, p)] for p in PARTITIONS]
        if not any(of_each):
            continue
        both = [r for runs in of_each for r in runs]
        rows.append(
            [
                code(spec),
                NUMBERS[method],
                *(_accuracy(runs) for runs in of_each),
                format_bytes(statistics.mean(r["uplink_bytes"] for r in both) / CLIENTS / ROUNDS),
                "" if method in IN_CLEAR else f"{100 * statistics.mean(r['at_clip'] for r in both):.2f} %",
            ]
        )
    text = [
        f"MNIST's cnn of {found['runs'][0]['num_parameters']:,} parameters, {CLIENTS} clients, {ROUNDS} rounds of "
        f"{LOCAL_STEPS} local steps, batch {BATCH}, learning rate {LEARNING_RATE}; accuracy on the test set, mean and "
        "standard deviation of the number of seeds in brackets; bytes of a client and round on the way up, keys, "
        "shares and what it takes to agree on the support counted. "
        f"{len(found['runs'])} of {len(METHODS) * len(PARTITIONS) * len(SEEDS)} runs are done.",
        table(["method", "numbers", "accuracy, iid", "accuracy, dirichlet:0.3", "up", "at the clip"], rows),
        describe(found),
    ]
    return {"docs/results.md#supports": "\n\n".join(text)}


def _accuracy(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return "-"
    accuracies = [100 * r["accuracy"] for r in runs]
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(runs) > 1 else ""
    return f"{statistics.mean(accuracies):.2f}{spread} % ({len(runs)})"
