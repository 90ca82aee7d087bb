"""Speed and memory beside one addition and beside others, and when compression pays: docs/performance.md.

python -m benchmarks speed
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.markdown import cell, code, table
from benchmarks.results import Found, describe
from gradwire.progress import format_bandwidth
from gradwire.report.tables import format_bytes

GROUPS = {
    "floor": "the floor",
    "peer": "what others do",
    "ours": "gradwire",
    "adversarial": "gradwire, updates that are hard to select from",
}


def measure(data_dir: str | None, parts: Sequence[str]) -> Found:
    """Measure in two processes."""
    return measured()


def measured(*options: str) -> Found:
    """What ``gradwire bench`` prints, the scaling of a second process included."""
    return {**_bench(*options), "scaling": _bench("--scaling", *options)["scaling"]}


def _bench(*options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "gradwire", "bench", "--json", *options]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def document(found: Found) -> dict[str, str]:
    """The tables."""
    return {"docs/performance.md#speed": body_of(found)}


def body_of(found: dict[str, Any]) -> str:
    """The generated part of the page."""
    parts = [
        f"{found['d']:,} parameters, {found['threads']} threads, medians of {found['rounds']} rounds. "
        f"{describe(found)} OMP_WAIT_POLICY was `{found['omp_wait_policy']}`.",
        "### Time",
        "*x add_* is the time in additions: the median over rounds of an operation's time over that of `torch.add_` "
        "in the same round.",
        _times(found["rows"]),
        _codec(found["codec"]),
        "### One over the other",
        "Times of one operation over another's in the same round.",
        table(["", "ratio"], [[cell(c["name"]), f"{c['ratio']:.2f}"] for c in found["comparisons"]]),
        "### Memory",
        _memory(found["memory"]),
        "### Small models",
        _small(found["small"]),
        "### Scaling",
        _scaling(found["scaling"]),
        "### When it pays",
        _pays(found["methods"], 4 * found["d"]),
    ]
    notes = [*found["notes"], *found["scaling"]["notes"]]
    if notes:
        parts += ["### Left out", "\n".join(f"- {note}." for note in notes)]
    return "\n\n".join(parts)


def _times(rows: list[dict[str, Any]]) -> str:
    lines = []
    for group, title in GROUPS.items():
        lines.append([f"**{title}**", "", "", ""])
        lines += [
            [cell(r["name"]), f"{1000 * r['seconds']:.2f}", f"{r['ratio']:.2f}", cell(r["note"])]
            for r in rows
            if r["group"] == group
        ]
    return table(["operation", "ms", "x add_", "what it is"], lines)


def _codec(codec: dict[str, Any]) -> str:
    return (
        f"The codec alone, `{codec['method']}`, {codec['entries']:,} entries: "
        f"{codec['encode_entries_per_second'] / 1e6:.0f} million entries a second to bytes, "
        f"{codec['decode_entries_per_second'] / 1e6:.0f} million back."
    )


def _memory(memory: dict[str, Any]) -> str:
    rows = [
        [code(spec), f"{extra['compress']:.1f} %", f"{extra['client']:.1f} %"]
        for spec, extra in memory["compress_extra_percent"].items()
    ]
    return (
        "Peak over update and residual, in per cent of the update's bytes:\n\n"
        + table(["method", "to a payload", "to bytes (`Client.compress`)"], rows)
        + f"\n\n{memory['aggregate_clients']} clients aggregated in one round took "
        f"{memory['aggregate_peak_vectors']:.2f} dense vectors at peak, the sum itself included. `Server.close_round`, "
        f"after one client, took {memory['close_round_extra_vectors']:.2f} more, the result's own vector included."
    )


def _small(small: dict[str, Any]) -> str:
    rows = [[code(spec), f"{microseconds:.0f}"] for spec, microseconds in small["microseconds"].items()]
    return (
        f"`Client.compress` of the digits perceptron, {small['d']:,} parameters, median of {small['calls']} calls:\n\n"
        + table(["method", "microseconds"], rows)
    )


def _scaling(scaling: dict[str, Any]) -> str:
    rows = [
        [
            f"{r['d']:,}",
            f"{r['add_nanoseconds']:.3f}",
            f"{r['compress_nanoseconds']:.3f}",
            f"{r['ratio']:.2f}",
        ]
        for r in scaling["sizes"]
    ]
    text = (
        f"`{scaling['method']}` to a payload, nanoseconds a parameter; the largest cost is "
        f"{scaling['flatness']:.2f} times the smallest.\n\n"
        + table(["parameters", "`torch.add_`", "compress", "x add_"], rows)
    )
    if gain := scaling["second_core"]:
        text += (
            f"\n\n{gain['threads']} threads instead of one gain {gain['compress_gain']:.2f}x at {gain['d']:,} "
            f"parameters, {100 * gain['compress_gain'] / gain['add_gain']:.0f} % of what they gain `torch.add_` "
            f"({gain['add_gain']:.2f}x)."
        )
    return text


def _pays(methods: list[dict[str, Any]], dense_bytes: int) -> str:
    links = list(methods[0]["round_seconds"])
    rows = []
    for m in methods:
        seconds = m["compress_seconds"] + m["receive_seconds"]
        pays = "-" if m["num_bytes"] == dense_bytes else format_bandwidth(m["pays_below_bits_per_second"])
        times = [_seconds(m["round_seconds"][link]) for link in links]
        rows.append([code(m["method"]), format_bytes(m["num_bytes"]), f"{1000 * seconds:.1f} ms", pays, *times])
    headings = ["method", "upload", "compress + receive", "pays below", *(f"a round at {link}" for link in links)]
    return table(headings, rows)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
