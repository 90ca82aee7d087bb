"""NNCodec, ISO/IEC 15938-17, beside gradwire: bytes at equal distortion of nine client updates.

python -m benchmarks nnc --data-dir DIR

DIR, or the folder ``nnc`` in it, holds ``updates.npz``: client updates of MNIST's CNN, arrays named
ROUND/CLIENT/TENSOR. They are not in the repository. What NNCodec makes of them stands in
``benchmarks/nnc_points.json``, with how it was measured: it is no dependency.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gradwire as gw
from benchmarks.markdown import code, table
from benchmarks.results import ROOT, Found, describe

TARGETS = (0.9, 0.7, 0.5, 0.3, 0.1, 0.03)
SLOPES = tuple(2.0 ** (n / 3) for n in range(-15, 22))
PLAIN = tuple(
    f"topk({density:.4g}) | uniform({bits}, scope='model')"
    for density in (10 ** (-n / 6) for n in range(2, 25))
    for bits in (2, 3, 4, 5)
)
FAMILIES = {
    "rd": tuple(f"rd({slope:.4g})" for slope in SLOPES),
    "topk | uniform": PLAIN,
    "topk | uniform | context": tuple(f"{spec} | context()" for spec in PLAIN),
}
POINTS = ROOT / "benchmarks" / "nnc_points.json"
REPEATS = 5

Point = tuple[float, float]  # bytes, and squared error over squared norm


def measure(data_dir: str | None, parts: Sequence[str]) -> Found | None:
    """Compress every update with every spec; None where the updates are missing."""
    updates = _updates(data_dir)
    if updates is None:
        return None
    theirs = json.loads(POINTS.read_text())
    if missing := set(updates) - set(theirs["points"]):
        raise SystemExit(f"no figures of NNCodec for the updates {', '.join(sorted(missing))}")
    found: Found = {"targets": list(TARGETS), "updates": {}}
    for name, arrays in updates.items():
        layout = gw.Layout.from_arrays(arrays)
        update = layout.flatten(arrays)
        nnc = bytes_at(theirs["points"][name])
        found["updates"][name] = {
            "parameters": layout.d,
            "nnc_bytes": nnc,
            **{family: _family(specs, layout, update) for family, specs in FAMILIES.items()},
        }
    return found


def _updates(data_dir: str | None) -> dict[str, dict[str, np.ndarray]] | None:
    places = [Path(data_dir or ".") / "updates.npz", Path(data_dir or ".") / "nnc" / "updates.npz"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        print(f"nnc is left out: the updates are in none of {', '.join(map(str, places))}; see --data-dir")
        return None
    updates: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            update, client, tensor = key.split("/", 2)
            updates.setdefault(f"{update}/{client}", {})[tensor] = arrays[key]
    return updates


def _family(specs: Iterable[str], layout: gw.Layout, update: np.ndarray) -> dict[str, Any]:
    """The bytes at each target along a family's front, and what the front's nearest spec takes in time."""
    tried = [(spec, *_point(spec, layout, update)) for spec in specs]
    points = [(num_bytes, nmse) for _, num_bytes, nmse in tried]
    nearest = []
    for target in TARGETS:
        front = _front((b, n, spec) for spec, b, n in tried)
        spec = min(front, key=lambda p: abs(p[1] - target))[2]
        nearest.append({"spec": spec, **_times(spec, layout, update)})
    return {"bytes": bytes_at(points), "nearest": nearest}


def _point(spec: str, layout: gw.Layout, update: np.ndarray) -> Point:
    blob = gw.Client(gw.parse(spec), layout).compress(update)
    error = gw.decompress(gw.decode(blob)).astype(np.float64) - update
    return len(blob), float(error @ error / (update.astype(np.float64) @ update))


def _times(spec: str, layout: gw.Layout, update: np.ndarray) -> dict[str, float]:
    client, blob = gw.Client(gw.parse(spec), layout), b""
    encode, decode = [], []
    for _ in range(REPEATS):
        began = time.thread_time()
        blob = client.compress(update)
        encode.append(time.thread_time() - began)
        began = time.thread_time()
        gw.decompress(gw.decode(blob))
        decode.append(time.thread_time() - began)
    return {"encode_seconds": statistics.median(encode), "decode_seconds": statistics.median(decode)}


def _front(points: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Those that no other beats in bytes and error at once, shortest first."""
    front: list[tuple[Any, ...]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def bytes_at(points: Iterable[Sequence[float]]) -> list[float | None]:
    """Bytes at each target: their logarithm, interpolated on the front; None where it does not reach so far."""
    front = _front(map(tuple, points))
    sizes, errors = [math.log(p[0]) for p in front], [p[1] for p in front]
    return [
        math.exp(float(np.interp(target, errors[::-1], sizes[::-1]))) if errors[-1] <= target <= errors[0] else None
        for target in TARGETS
    ]


def _mean(numbers: Iterable[float]) -> float:
    return math.exp(statistics.mean(map(math.log, numbers)))


def document(found: Found) -> dict[str, str]:
    """The table."""
    theirs = json.loads(POINTS.read_text())
    updates = list(found["updates"].values())
    rows = []
    for i, target in enumerate(found["targets"]):
        nnc = [u["nnc_bytes"][i] for u in updates]
        row = [f"{target:g}", f"{_mean(nnc):,.0f}"]
        for family in FAMILIES:
            ours = [u[family]["bytes"][i] for u in updates]
            if any(size is None for size in ours):
                row.append("-")
                continue
            ratios = [a / b for a, b in zip(ours, nnc, strict=True)]
            text = f"{_mean(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
            row.append(f"**{text}**" if family == "rd" else text)
        encode, decode = (
            1000 * statistics.median(u["rd"]["nearest"][i][f"{what}_seconds"] for u in updates)
            for what in ("encode", "decode")
        )
        times = theirs["milliseconds"][f"{target:g}"]
        row += [f"{encode:.1f}", f"{times['encode'] / encode:.0f}x", f"{decode:.1f}", f"{times['decode']:g}"]
        rows.append(row)
    families = [code(family) for family in FAMILIES]
    headings = ["squared error", "NNCodec, bytes", *families, "encode, ms", "faster", "decode, ms", "NNCodec's"]
    body = [
        f"{len(updates)} client updates of {updates[0]['parameters']:,} parameters. Bytes are whole blobs, at an equal "
        "squared error over the squared norm: their logarithm, interpolated on each front, as a ratio to NNCodec's "
        "best (geometric mean, smallest and largest). Milliseconds are of the CPU and of one thread: of `rd`, "
        "median of the updates, and how many times faster that is than NNCodec's setting that wins there.",
        table(headings, rows),
        theirs["source"] + " " + describe(found),
    ]
    return {"docs/results.md#nnc": "\n\n".join(body)}
