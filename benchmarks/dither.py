"""Known dither of large models: time in additions, memory, and bytes.

    python -m benchmarks dither [--only SIZE]

An update of so many Laplacian numbers, in rows of 4,096, is compressed and encoded, then decoded and added to a vector,
by one thread; without a field, and beside one whose rows and columns differ by a factor of two or so. An *addition* is
``x += y`` of two such vectors by the same thread. Memory is what the process holds at most beyond what it held before,
as a share of the update. Each size runs in a process of its own; the largest needs 13 GB.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gradwire as gw
from benchmarks.markdown import code, table
from benchmarks.results import Found, describe
from gradwire.compressors.compressor import Round
from gradwire.fields import Field

SIZES = (25_600_000, 256_000_000, 1_000_000_000)
PARTS = tuple(map(str, SIZES))
DENSITIES = (0.001, 0.005)
COLUMNS = 4096
REPEATS = 5
WHOLE = 7_000_000_000


def measure(data_dir: str | None, parts: Sequence[str]) -> Found:
    """Measure some of the sizes, one after the other."""
    context = multiprocessing.get_context("spawn")
    runs: list[dict[str, Any]] = []
    for size in parts:
        with context.Pool(1, _one_thread) as pool:
            runs += pool.apply(_measure, (int(size),))
    return {"runs": runs}


def merge(old: Found, new: Found) -> Found:
    """Put newly measured sizes in the place of older figures of the same."""
    runs = {(run["d"], run["spec"]): run for run in [*old.get("runs", []), *new["runs"]]}
    return {**new, "runs": sorted(runs.values(), key=lambda run: (run["d"], run["spec"]))}


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def _measure(d: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = -(-d // COLUMNS)
    levels = np.rint(rng.normal(0, 1, rows + COLUMNS)).astype(np.int8)
    field = Field((d,), (COLUMNS,), levels)
    update = np.empty(d, np.float32)
    of_columns = np.float32(2) ** (levels[rows:] / np.float32(2))
    for row in range(0, rows, 256):
        whole = rng.laplace(size=(min(256, rows - row), COLUMNS)) * of_columns
        whole *= np.float32(2) ** (levels[row : row + len(whole), None] / np.float32(2))
        update[row * COLUMNS : (row + 256) * COLUMNS] = whole.reshape(-1)[: d - row * COLUMNS]
    layout, out = gw.Layout.flat(d), np.zeros(d, np.float32)
    addition = _shortest(lambda: np.add(out, update, out=out))
    small = gw.Layout.flat(300_000)
    runs = []
    for density in DENSITIES:
        for held in (None, field):
            compressor = gw.dither(density=density, field=held is not None)
            few = None if held is None else Field((small.d,), (small.d,), np.zeros(1, np.int8))
            _coded(compressor, small, update[: small.d], few, np.zeros(small.d, np.float32))  # loads what is compiled
            before = _peak()
            encoding, decoding, blob = _coded(compressor, layout, update, held, out)
            facts = gw.inspect(blob)
            runs.append(
                {
                    "d": d,
                    "spec": str(compressor),
                    "codec": facts["codec"]["support"],
                    "bytes": facts["total_bytes"],
                    "fires": facts["num_kept"],
                    "addition_seconds": addition,
                    "encode_additions": encoding / addition,
                    "decode_additions": decoding / addition,
                    "extra_memory": (_peak() - before) / (4 * d),
                }
            )
    return runs


def _coded(
    compressor: gw.Compressor, layout: gw.Layout, update: np.ndarray, held: Field | None, out: np.ndarray
) -> tuple[float, float, bytes]:
    """Seconds to compress and encode, and to decode and add; and the blob."""
    agreed = Round(index=1, key=gw.Key(1, 1, 0), held_field=held)
    reference, state = gw.Reference.beside(held, None, layout.d), compressor.init(layout)
    blob = gw.encode(compressor.compress(update, state, agreed)[0])
    encoding = _shortest(lambda: gw.encode(compressor.compress(update, state, agreed)[0]))
    decoding = _shortest(lambda: gw.accumulate(out, gw.decode(blob), 1.0, reference))
    return encoding, decoding, blob


def _shortest(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def document(found: Found) -> dict[str, str]:
    """The table."""
    rows = [
        [
            f"{run['d']:,}",
            code(run["spec"]),
            f"{8 * run['bytes'] / run['d']:.4f}",
            f"{8 * run['bytes'] / run['fires']:.2f}",
            f"{run['encode_additions']:.1f}",
            f"{run['decode_additions']:.1f}",
            f"{100 * run['extra_memory']:.1f} %",
            f"{run['bytes'] / run['d'] * WHOLE / 1e6:.1f} MB",
        ]
        for run in found["runs"]
    ]
    headings = ["parameters", "method", "bits a parameter", "bits a fire", "encode, additions", "decode, additions"]
    headings += ["more memory", "of 7 billion parameters"]
    addition = statistics.mean(run["addition_seconds"] / run["d"] for run in found["runs"])
    text = f"An addition takes {1e9 * addition:.2f} ns a parameter here. {describe(found)}"
    return {"docs/performance.md#dither": f"{table(headings, rows)}\n\n{text}"}
