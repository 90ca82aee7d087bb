"""The wire: bits per index, ratios, speed, a billion parameters, and what others would send.

python -m benchmarks wire
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

import gradwire as gw
from benchmarks.markdown import table
from benchmarks.results import Found, describe
from gradwire.bench.updates import RESNET50, log_normal_update
from gradwire.payload import Explicit, Floats, Part, Payload, Symbols
from gradwire.report.tables import format_bytes

D = RESNET50
DENSITIES = (0.1, 0.01, 0.001, 0.0001)
SIZES = (10_000, 100_000, 1_000_000, D)
BILLION = 1_000_000_000


def measure(data_dir: str | None, parts: Sequence[str]) -> Found:
    """Measure some of the parts."""
    return {part: _PARTS[part]() for part in parts}


def _log2_binomial(d: int, k: int) -> float:
    return (math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)) / math.log(2)


def _uniform() -> list[dict[str, Any]]:
    """Positions drawn uniformly, of vectors of several sizes; the mean of several draws where they are short."""
    found = []
    for d, density in itertools.product(SIZES, DENSITIES):
        k = round(density * d)
        draws = [_indices_of(d, k, seed) for seed in range(100 if d <= 100_000 else 1)]
        floor = _log2_binomial(d, k) / k
        bits = statistics.mean(facts["bits_per_index"] for facts in draws)
        found.append(
            {
                "d": d,
                "density": density,
                "num_kept": k,
                "bits_per_index": bits,
                "floor": floor,
                "above_floor_percent": 100 * (bits / floor - 1),
                "codec": statistics.mode(facts["codec"]["support"] for facts in draws),
                "header_bytes": draws[0]["header_bytes"],
            }
        )
    return found


def _indices_of(d: int, k: int, seed: int) -> dict[str, Any]:
    chosen = np.sort(np.random.default_rng(seed).choice(d, k, replace=False)).astype(np.int64)
    return gw.inspect(gw.encode(Payload(d, (Part(Explicit(d, chosen), Floats(np.ones(k, np.float32))),))))


def _log_normal() -> list[dict[str, Any]]:
    layout, update = log_normal_update()
    found = []
    for density in DENSITIES:
        facts = gw.inspect(gw.Client(gw.topk(density), layout).compress(update))
        k = facts["num_kept"]
        found.append(
            {
                "density": density,
                "bits_per_index": facts["bits_per_index"],
                "uniform_floor": _log2_binomial(D, k) / k,
                "codec": facts["codec"]["support"],
            }
        )
    return found


def _deployed() -> dict[str, Any]:
    _, update = log_normal_update()
    spec = gw.topk(0.015625, scope=4096) | gw.uniform(2)
    facts = gw.inspect(gw.Client(spec, gw.Layout.flat(D)).compress(update))
    kept = 64 * (D // 4096) + round(0.015625 * (D % 4096))
    every = _all_four_levels(update)
    return {
        "spec": str(spec),
        "ratio": 4 * D / facts["total_bytes"],
        "num_kept": facts["num_kept"],
        "num_selected": kept,
        "bits_per_index": facts["bits_per_index"],
        "codec": facts["codec"],
        "fixed_12_bit_ratio": 32 / (0.015625 * 14),
        "same_information_ratio": every["ratio"],
        "same_information_bits_per_index": every["bits_per_index"],
        "same_information_bits_per_value": every["bits_per_value"],
    }


def _all_four_levels(update: np.ndarray) -> dict[str, float]:
    """The same support with a two-bit symbol for every selected entry, all four values equally likely."""
    payload, _ = gw.topk(0.015625, scope=4096).compress(update, gw.State(gw.Layout.flat(D)))
    support = payload.parts[0].support
    symbols = np.random.default_rng(0).integers(0, 4, support.num_kept).astype(np.uint16)
    values = Symbols(symbols, 4, np.ones(1, np.float32))
    facts = gw.inspect(gw.encode(Payload(D, (Part(support, values),))))
    return {
        "ratio": 4 * D / facts["total_bytes"],
        "bits_per_index": facts["bits_per_index"],
        "bits_per_value": 8 * facts["values_bytes"] / facts["num_kept"],
    }


def _median_seconds(function: Callable[[], Any], repeats: int) -> float:
    function()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _speed() -> dict[str, Any]:
    """Support and 5-bit symbols at 1 %, one thread, against one pass of torch.add_ over the dense vector."""
    rng = np.random.default_rng(0)
    k = round(0.01 * D)
    chosen = np.sort(rng.choice(D, k, replace=False)).astype(np.int64)
    symbols = np.minimum(rng.geometric(0.2, k) - 1, 30).astype(np.uint16)
    payload = Payload(D, (Part(Explicit(D, chosen), Symbols(symbols, 31, np.ones(1, np.float32))),))
    blob = gw.encode(payload)
    threads = torch.get_num_threads()
    a, b = torch.zeros(D), torch.ones(D)
    rounds = []
    for _ in range(7):
        add = _median_seconds(lambda: a.add_(b), 5)
        encode = _median_seconds(lambda: gw.encode(payload), 5)
        decode = _median_seconds(lambda: gw.decode(blob), 5)
        rounds.append((add, encode, decode))
    add, encode, decode = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {
        "entries": k,
        "torch_threads": threads,
        "add_seconds": add,
        "encode_entries_per_second": k / encode,
        "decode_entries_per_second": k / decode,
        "encode_in_adds": statistics.median(e / f for f, e, _ in rounds),
        "decode_in_adds": statistics.median(d / f for f, _, d in rounds),
        "codec": gw.inspect(blob)["codec"],
    }


def _rivals() -> list[dict[str, Any]]:
    """The same update, 1 % of it kept, float32 values, in the ways others send it; the zlib and gzip defaults."""
    layout, update = log_normal_update()
    payload, _ = gw.topk(0.01).compress(update, gw.State(layout))
    support, numbers = payload.parts[0].support, payload.parts[0].numbers()
    indices = support.indices.astype(np.int32)
    raw = indices.tobytes() + numbers.tobytes()
    dense = np.zeros(D, np.float32)
    dense[indices] = numbers
    ternary = np.sign(dense).astype(np.int32)
    mean = np.float32(np.abs(numbers).mean())
    values = numbers.tobytes()
    ways: dict[str, Callable[[], int]] = {
        "raw int32 + float32": lambda: len(indices.tobytes() + numbers.tobytes()),
        "zlib of int32 + float32": lambda: len(zlib.compress(raw)),
        "zstd (level 3) of int32 + float32": lambda: len(zstandard.compress(raw, 3)),
        "zlib of gaps (uint16, 65535 and a uint32 from there on) + float32": lambda: (
            len(zlib.compress(_gap_words(support.indices))) + len(values)
        ),
        "fixed 12-bit index in blocks of 4096 + float32 (size only)": lambda: (
            math.ceil(indices.size * 12 / 8) + len(values)
        ),
        "gradwire": lambda: len(gw.encode(payload)),
        "gzip of the dense int32 signs + one scale": lambda: (
            len(gzip.compress(ternary.tobytes())) + len(mean.tobytes())
        ),
        "gradwire, signs and one scale": lambda: len(gw.encode(_signs(support, numbers))),
    }
    found = []
    for name, way in ways.items():
        began = time.perf_counter()
        num_bytes = way()
        first = time.perf_counter() - began
        seconds = min(first, _median_seconds(way, 3)) if first < 2 else first
        found.append({"way": name, "num_bytes": num_bytes, "seconds": seconds})
    return found


def _gap_words(indices: np.ndarray) -> bytes:
    """Zeros before each index as uint16; 65535 says that a uint32 follows with the number."""
    gaps = np.diff(indices, prepend=-1) - 1
    large = np.flatnonzero(gaps >= 65535)
    words = np.minimum(gaps, 65535).astype("<u2")
    return np.insert(words, np.repeat(large + 1, 2), gaps[large].astype("<u4").view("<u2")).tobytes()


def _signs(support: Any, numbers: np.ndarray) -> Payload:
    scale = np.array([2 * np.abs(numbers).mean()], np.float32)
    return Payload(D, (Part(support, Symbols((numbers > 0).astype(np.uint16), 2, scale)),))


def _billion() -> dict[str, Any]:
    """A safetensors update of a billion float32 at 0.1 %: `gradwire compress` as a process of its own."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        source, target = Path(name) / "update.safetensors", Path(name) / "update.gw"
        largest = _write_billion(source)
        command = [sys.executable, "-m", "gradwire", "compress", str(source), "-o", str(target)]
        spec = "topk(0.001) | uniform(8)"
        began = time.perf_counter()
        subprocess.run([*command, "--spec", spec], check=True, capture_output=True)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        facts = json.loads(
            subprocess.run(
                [sys.executable, "-m", "gradwire", "inspect", str(target), "--json"], check=True, capture_output=True
            ).stdout
        )
    total = facts["total_bytes"]
    return {
        "spec": spec,
        "parameters": BILLION,
        "largest_tensor_bytes": largest,
        "total_bytes": total,
        "num_kept": facts["num_kept"],
        "bits_per_parameter": 8 * total / BILLION,
        "bits_per_index": facts["bits_per_index"],
        "peak_memory_bytes": peak,
        "seconds": seconds,
        "seven_billion_bytes": 7 * total,
    }


def _write_billion(path: Path) -> int:
    """Write 4 GB of normal entries with log-normal scales a tensor, as a transformer's layers; the largest's bytes."""
    sizes = [64_000_000] * 2 + [16_000_000] * 54 + [8_000_000]
    header: dict[str, Any] = {}
    offset = 0
    for number, size in enumerate(sizes):
        stop = offset + 4 * size
        header[f"layer.{number}"] = {"dtype": "F32", "shape": [size // 4000, 4000], "data_offsets": [offset, stop]}
        offset = stop
    assert sum(sizes) == BILLION
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for size in sizes:
            scale = np.float32(rng.lognormal(0.0, 1.0))
            for start in range(0, size, 4_000_000):
                file.write(rng.standard_normal(min(4_000_000, size - start), dtype=np.float32) * scale)
    return 4 * max(sizes)


_PARTS: dict[str, Callable[[], Any]] = {
    "uniform": _uniform,
    "log_normal": _log_normal,
    "deployed": _deployed,
    "speed": _speed,
    "rivals": _rivals,
    "billion": _billion,
}
PARTS = tuple(_PARTS)


def document(found: Found, fuzz: Found) -> dict[str, str]:
    """The tables."""
    deployed, speed, billion = found["deployed"], found["speed"], found["billion"]
    parts = [
        "### Bits per index\n\nUniform positions, header apart; the floor is log2 C(d, k) / k. A code's own few bytes "
        "(its kind, its parameter, its length) count for more the fewer entries there are; up to 100,000 parameters "
        "the mean of 100 draws.",
        table(
            ["parameters", "density", "entries", "bits per index", "floor", "above it", "code"],
            [
                [
                    f"{r['d']:,}",
                    f"{100 * r['density']:g} %",
                    f"{r['num_kept']:,}",
                    f"{r['bits_per_index']:.3f}",
                    f"{r['floor']:.3f}",
                    f"{r['above_floor_percent']:.2f} %",
                    r["codec"],
                ]
                for r in found["uniform"]
            ],
        ),
        f"Top-k of an update with ResNet-50's layout ({D:,} parameters) and log-normal scales (sigma 1) per tensor: "
        "below the floor.",
        table(
            ["density", "bits per index", "uniform floor", "code"],
            [
                [
                    f"{100 * r['density']:g} %",
                    f"{r['bits_per_index']:.3f}",
                    f"{r['uniform_floor']:.3f}",
                    r["codec"],
                ]
                for r in found["log_normal"]
            ],
        ),
        "### The setting of the largest deployed run",
        f"`{deployed['spec']}`: {deployed['ratio']:.1f}x against float32, with {deployed['num_kept']:,} of "
        f"{deployed['num_selected']:,} selected entries sent. With all four symbols equally likely: "
        f"{deployed['same_information_ratio']:.1f}x "
        f"({deployed['same_information_bits_per_index']:.2f} bits an index, "
        f"{deployed['same_information_bits_per_value']:.2f} a value). A fixed 12-bit index and 2-bit value give "
        f"{deployed['fixed_12_bit_ratio']:.1f}x.",
        "### Speed",
        f"Support and 5-bit symbols of {speed['entries']:,} entries (1 %), one thread: encode "
        f"{speed['encode_entries_per_second'] / 1e6:.0f} million entries a second "
        f"({speed['encode_in_adds']:.2f} times one `torch.add_` over the dense vector), decode "
        f"{speed['decode_entries_per_second'] / 1e6:.0f} million ({speed['decode_in_adds']:.2f} times); "
        f"`torch.add_` with {speed['torch_threads']} threads, {1000 * speed['add_seconds']:.1f} ms, in the same run.",
        "### The same update, sent in other ways",
        "1 % of the log-normal update; lossless on the kept float32 values, but for the two rows of signs.",
        table(
            ["way", "bytes", "milliseconds"],
            [[r["way"], f"{r['num_bytes']:,}", f"{1000 * r['seconds']:.1f}"] for r in found["rivals"]],
        ),
        "### A billion parameters",
        f"`gradwire compress` of a {format_bytes(4 * billion['parameters'])} safetensors file with "
        f"`{billion['spec']}`: "
        f"{format_bytes(billion['total_bytes'])}, {billion['seconds']:.0f} s, peak memory "
        f"{format_bytes(billion['peak_memory_bytes'])} "
        f"(largest tensor {format_bytes(billion['largest_tensor_bytes'])}). "
        f"At the same bits per parameter 7 billion parameters take {format_bytes(billion['seven_billion_bytes'])}.",
        describe(found),
        "### Damaged containers",
        f"`attacks/fuzz.py`: {fuzz['cases']:,} damaged or forged containers, {fuzz['num_failures']:,} failures; a "
        "failure is anything but a payload or a `DecodeError`. The slowest took "
        f"{fuzz['slowest_factor']:.1f} times as long as honest ones of its length (bound: 50), and memory came to "
        f"{100 * fuzz['peak_memory_factor']:.0f} % of what `Limits` allow at most.",
    ]
    return {"docs/results.md#wire": "\n\n".join(parts)}
