"""What each stage costs and keeps, at a typical setting: docs/methods.md and what `gradwire methods` prints.

python -m benchmarks methods [--only STAGE]

A new stage says its setting itself, in ``typical``; ``--only`` with its name leaves what was measured of the others.
"""

from __future__ import annotations

import math
import statistics
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np

import gradwire as gw
from benchmarks.markdown import code, table
from benchmarks.results import Found, describe, text_of
from gradwire.progress import signature_of

PARTS = tuple(sorted(gw.Compressor.registry))


def resnet20_shapes() -> list[tuple[int, ...]]:
    """Shapes of a small residual network: matrices, biases and norms of many sizes, 1.1 million parameters."""
    shapes: list[tuple[int, ...]] = [(32, 3, 3, 3), (32,), (32,)]
    before = 32
    for width in (32, 64, 128):
        for _ in range(3):
            shapes += [(width, before, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            before = width
    return [*shapes, (10, 128), (10,)]


def update_of(layout: gw.Layout, rng: np.random.Generator) -> np.ndarray:
    """Heavy-tailed entries (Student t, 3 degrees of freedom) with a log-normal scale a tensor."""
    update = rng.standard_t(3, layout.d).astype(np.float32)
    for t in layout.tensors:
        update[t.offset : t.stop] *= np.float32(0.01 * rng.lognormal(0.0, 1.0))
    return update


def measure(data_dir: str | None, parts: Sequence[str]) -> Found:
    """Measure some of the stages."""
    layout = gw.Layout.from_arrays({f"t{i}": np.zeros(s, np.float32) for i, s in enumerate(resnet20_shapes())})
    return {"d": layout.d, "methods": [_measure(name, layout) for name in parts]}


def merge(old: Found, new: Found) -> Found:
    """Put newly measured stages in their places; stages that are no more fall out."""
    rows = {m["name"]: m for m in [*old["methods"], *new["methods"]]}
    return {**old, "methods": [rows[name] for name in PARTS if name in rows]}


def _measure(name: str, layout: gw.Layout) -> dict[str, Any]:
    stage = gw.Compressor.registry[name]
    spec = stage.typical or f"{name}()"
    compressor = gw.parse(spec)
    rng = np.random.default_rng(0)
    first = 5 if name == "warmup" else 0
    client = gw.Client(compressor, layout)
    target = np.zeros(layout.d, np.float32)
    server = gw.Server(compressor, layout, num_clients=1)
    sizes, ratios, receipts = [], [], []
    cosine = math.nan
    for _ in range(first):
        client.end_round(server.close_round().blob)
    for _ in range(5):
        update = update_of(layout, rng)
        adds = []
        for _ in range(5):
            began = time.perf_counter()
            np.add(target, update, out=target)
            adds.append(time.perf_counter() - began)
        began = time.perf_counter()
        blob = client.compress(update)
        ratios.append((time.perf_counter() - began) / statistics.median(adds))
        began = time.perf_counter()
        server.receive(blob)
        receipts.append((time.perf_counter() - began) / statistics.median(adds))
        result = server.close_round()
        client.end_round(result.blob)
        if not sizes:  # of the first round, before anything was held back; later ones may lean on a reference
            cosine = _cosine(update, gw.decompress(gw.decode(blob)))
        sizes.append(len(blob))
    remembered = client.state_dict()
    kept = [remembered["residual"], *remembered["scheme"].values()]
    state_bytes = sum(v.nbytes for v in kept if isinstance(v, np.ndarray))
    state = compressor.init(layout)
    tracemalloc.start()
    compressor.compress(update, state, gw.Round(index=first))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "name": name,
        "signature": signature_of(stage),
        "summary": stage.summary,
        "citation": stage.citation,
        "typical": spec,
        "guarantee": str(compressor.guarantee(layout.d)),
        "bits_per_parameter": 8 * statistics.median(sizes) / layout.d,
        "first_cosine": cosine,
        "state_vectors": state_bytes / (4 * layout.d),
        "peak_vectors": peak / (4 * layout.d),
        "time_in_adds": statistics.median(ratios),
        "receive_in_adds": statistics.median(receipts),
    }


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = float(np.linalg.norm(a.astype(np.float64)) * np.linalg.norm(b.astype(np.float64)))
    return float(a.astype(np.float64) @ b.astype(np.float64)) / norms if norms else 0.0


def document(found: Found) -> dict[str, str]:
    """The table, and the package's own copy of the result."""
    rows = [
        [
            code(m["signature"]),
            m["summary"],
            code(m["typical"]),
            m["guarantee"],
            f"{m['bits_per_parameter']:.3f}",
            f"{m['first_cosine']:.3f}",
            f"{m['state_vectors']:.2f}",
            f"{m['peak_vectors']:.2f}",
            f"{m['time_in_adds']:.0f}",
            f"{m['receive_in_adds']:.1f}",
            m["citation"],
        ]
        for m in found["methods"]
    ]
    headings = [
        "stage",
        "what it does",
        "typical setting",
        "guarantee",
        "bits per parameter",
        "cosine",
        "state",
        "peak",
        "time",
        "receive",
        "source",
    ]
    body = table(headings, rows) + f"\n\n{found['d']:,} parameters. {describe(found)}"
    return {"docs/methods.md#methods": body, "src/gradwire/methods.json": text_of(found)}
