"""The whole measurement: what ``gradwire bench`` prints."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from gradwire.bench.cost import LINKS, break_even, round_seconds
from gradwire.bench.flower import FLOWER, FLOWER_RECORDS
from gradwire.bench.machine import machine
from gradwire.bench.measure import Operation, Samples, measure
from gradwire.bench.memory import memory
from gradwire.bench.ours import (
    METHODS,
    TOPK,
    Codec,
    Payloads,
    Trip,
    aggregation,
    hard_inputs,
    make_blobs,
    on_blocks,
    step_name,
)
from gradwire.bench.peers import FP16, PLAIN_TORCH, add_floor, peers
from gradwire.bench.scaling import BASE, scaling
from gradwire.bench.small import small
from gradwire.bench.updates import RESNET50, log_normal_update
from gradwire.errors import BackendUnavailable

__all__ = ["run_bench", "run_scaling"]

_ROUNDS = 9
_SCALING_ROUNDS = 5
_NUM_UPDATES = 3
_NUM_CLIENTS = 100
_QUANTIZED = METHODS[1]
_KNOWN = METHODS[2]
_SPARSER = "ef(topk(0.001))"
_AGGREGATION = f"{_NUM_CLIENTS} clients into one round, a client"


def _nothing(share: float) -> None:
    """Show nothing."""


def run_bench(
    size: int | None = None,
    threads: int | None = None,
    rounds: int | None = None,
    progressed: Callable[[float], None] = _nothing,
) -> dict[str, Any]:
    """Measure everything but scaling, each operation beside the floor, in this process.

    Args:
        size: number of parameters; ResNet-50's when None.
        threads: threads that torch and the kernels use; torch's own setting when None.
        rounds: rounds that count; 9 when None.
        progressed: called with the share that is done.

    Returns:
        Plain values, ready for JSON; docs/performance.md says what each is.

    Raises:
        BackendUnavailable: without torch, whose addition is the floor.
    """
    with _torch_threads(threads) as num_threads:
        layout, first = log_normal_update(0, RESNET50 if size is None else size)
        updates = [first, *(log_normal_update(seed, layout.d)[1] for seed in range(1, _NUM_UPDATES))]
        k = max(1, round(0.01 * layout.d))
        theirs, notes = peers(updates, layout, k)
        blobs = make_blobs(TOPK, updates, layout)
        codec = Codec(Payloads(_QUANTIZED, updates, layout), _QUANTIZED)
        trips = {spec: Trip(spec, updates, layout, again=spec == _KNOWN) for spec in METHODS}
        together = Operation(
            "ours",
            _AGGREGATION,
            lambda number: aggregation(TOPK, blobs, layout, _NUM_CLIENTS),
            f"Server.receive of {TOPK}",
            _NUM_CLIENTS,
        )
        note = "an update to a payload, no bytes"
        groups: list[Callable[[], list[Operation]]] = [
            lambda: theirs,
            lambda: [Payloads(TOPK, updates, layout).operation("ours", f"{TOPK}, payload", note)],
            lambda: [Payloads(_SPARSER, updates, layout).operation("ours", f"{_SPARSER}, payload", note)],
            lambda: [codec.source.operation("ours", f"{_QUANTIZED}, payload", note), *codec.operations()],
            *(trip.operations for trip in trips.values()),
            lambda: on_blocks(_QUANTIZED, _NUM_UPDATES, layout.d),
            lambda: [together],
            *hard_inputs(TOPK, layout, k),
        ]
        samples, rows = _measure_all(add_floor(updates), groups, rounds or _ROUNDS, progressed)
        num_bytes = {spec: len(trip.blob) for spec, trip in trips.items()}
        found = {
            **_about(layout.d, num_threads, rounds or _ROUNDS),
            "floor_seconds": samples.floor,
            "rows": [_floor_row(samples), *rows],
            "codec": {
                "method": _QUANTIZED,
                "entries": codec.num_entries,
                "encode_entries_per_second": codec.num_entries / samples.median(codec.names[0]),
                "decode_entries_per_second": codec.num_entries / samples.median(codec.names[1]),
            },
            "methods": _methods(samples, num_bytes, layout.d),
            "comparisons": _comparisons(samples),
            "memory": memory((TOPK, _QUANTIZED), updates, layout, blobs, _NUM_CLIENTS),
            "small": small((TOPK, _QUANTIZED)),
            "scaling": {},
            "notes": notes,
        }
        progressed(1.0)
        return found


def run_scaling(
    size: int | None = None,
    threads: int | None = None,
    rounds: int | None = None,
    progressed: Callable[[float], None] = _nothing,
) -> dict[str, Any]:
    """Measure how cost grows with size and shrinks with threads.

    Args:
        size: the smallest size; 25 million when None.
        threads: as for ``run_bench``.
        rounds: rounds that count; 5 when None.
        progressed: called with the share that is done.

    Returns:
        Plain values, ready for JSON.

    Raises:
        BackendUnavailable: without torch.
    """
    with _torch_threads(threads) as num_threads:
        base = BASE if size is None else size
        about = _about(base, num_threads, rounds or _SCALING_ROUNDS)
        return {**about, "scaling": scaling(base, rounds or _SCALING_ROUNDS, progressed)}


@contextmanager
def _torch_threads(wanted: int | None) -> Generator[int]:
    """Set the number of threads for a while; gives the number in use."""
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailable(
            f"bench measures against torch.add_ and needs torch, got {error}: pip install 'gradwire[torch]'"
        ) from error
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _about(d: int, threads: int, rounds: int) -> dict[str, Any]:
    return {
        "machine": machine(),
        "d": d,
        "threads": threads,
        "rounds": rounds,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def _floor_row(samples: Samples) -> dict[str, Any]:
    note = "the floor: one addition of two vectors of this size, in place"
    return {"group": "floor", "name": "torch.add_", "seconds": samples.floor, "ratio": 1.0, "note": note}


def _measure_all(
    floor: Callable[[int], object],
    groups: list[Callable[[], list[Operation]]],
    rounds: int,
    progressed: Callable[[float], None],
) -> tuple[Samples, list[dict[str, Any]]]:
    """Measure groups one after the other, each made when its turn comes and freed after it: a small working set."""
    measured: list[Samples] = []
    rows: list[dict[str, Any]] = []
    for number, make in enumerate(groups):
        operations, done = make(), number / len(groups)

        def told(share: float, done: float = done) -> None:
            progressed(0.9 * (done + share / len(groups)))

        samples = measure(floor, operations, rounds, progressed=told)
        measured.append(samples)
        rows += map(samples.row, operations)
    return Samples.joined(measured), rows


def _comparisons(samples: Samples) -> list[dict[str, Any]]:
    """Times of one operation over another's, round by round."""
    to_bytes = step_name(TOPK, "compress")
    whole = {spec: (step_name(spec, "compress"), step_name(spec, "end_round")) for spec in METHODS}
    pairs: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
        ("plain torch ef + top-k over ours, 1 %", (PLAIN_TORCH,), (f"{TOPK}, payload",)),
        ("Flower aggregate over ours, a client", (FLOWER,), (_AGGREGATION,)),
        ("Flower aggregate_arrayrecords over ours, a client", (FLOWER_RECORDS,), (_AGGREGATION,)),
    ]
    for spec in METHODS[2:]:
        pairs.append((f"{spec} compress + end_round over that of {TOPK}", whole[spec], whole[TOPK]))
        pairs.append((f"{spec} compress + end_round over compress of {TOPK}", whole[spec], (to_bytes,)))
    return [{"name": name, "ratio": samples.compare(these, those)} for name, these, those in pairs]


def _methods(samples: Samples, num_bytes: dict[str, int], d: int) -> list[dict[str, Any]]:
    """What each method sends and takes, and when it pays; receiving a dense update is one addition."""
    dense_bytes, floor = 4 * d, samples.floor
    found = [
        _method("dense float32", dense_bytes, 0.0, floor, dense_bytes, floor),
        _method("fp16, as DDP's hook casts", 2 * d, samples.median(FP16), floor, dense_bytes, floor),
    ]
    for spec, size in num_bytes.items():
        compress, receive = (samples.median(step_name(spec, step)) for step in ("compress", "receive"))
        found.append(_method(spec, size, compress, receive, dense_bytes, floor))
    return found


def _method(
    name: str, num_bytes: int, compress: float, receive: float, dense_bytes: int, dense_seconds: float
) -> dict[str, Any]:
    pays_below = break_even(dense_bytes, num_bytes, compress + receive, dense_seconds)
    return {
        "method": name,
        "num_bytes": num_bytes,
        "compress_seconds": compress,
        "receive_seconds": receive,
        "pays_below_bits_per_second": pays_below if math.isfinite(pays_below) else None,
        "round_seconds": {link: round_seconds(num_bytes, compress + receive, bits) for link, bits in LINKS.items()},
    }
