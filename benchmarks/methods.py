"""What each stage costs and keeps, at a typical setting: docs/methods.md and what `gradwire methods` prints.

python -m benchmarks methods
"""

from __future__ import annotations

import json
import math
import statistics
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

import gradwire as gw
from benchmarks.machine import DOCS, describe, load, machine, save, table, write_section
from gradwire.progress import signature_of

PACKAGED = Path(gw.__file__).parent / "methods.json"


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


def run(data_dir: str | None) -> None:
    """Measure every stage, write benchmarks/results/methods.json and the package's own copy, then docs/methods.md."""
    layout = gw.Layout.from_arrays({f"t{i}": np.zeros(s, np.float32) for i, s in enumerate(resnet20_shapes())})
    found = [_measure(name, layout) for name in sorted(gw.Compressor.registry)]
    save("methods", {"d": layout.d, "methods": found})
    packaged = {"machine": machine(), "d": layout.d, "methods": found}
    PACKAGED.write_text(json.dumps(packaged, indent=1) + "\n")
    document()


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
    state_bytes = sum(v.nbytes for v in client._standing.state.memory.values() if isinstance(v, np.ndarray))
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


def document() -> None:
    """Write docs/methods.md's table from the results file."""
    found = load("methods")
    rows = [
        [
            f"`{m['signature']}`".replace("|", "\\|"),
            m["summary"],
            f"`{m['typical']}`".replace("|", "\\|"),
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
    write_section(DOCS / "methods.md", "methods", body)
