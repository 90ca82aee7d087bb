"""The bit budgets of TCS's Table I, with real bytes on generated updates: nothing is trained here.

python -m benchmarks budget

Two clients and a server, ``gw.Client`` and ``gw.Server``, exchange ROUNDS rounds; the layout is that of the parameters
of the CIFAR variant of ResNet-18, 11,173,962 without BatchNorm's running statistics, as in the paper. Two recipes:

- ``gradient-like``: entry i of tensor l in client n's update of round t is s_l a_i (c_ti + e_tni) / sqrt(2). s_l, one
  scale a tensor, and a_i, one an entry, are log-normal (sigma 1 both) and stay the same; c_t, common to the clients, is
  c_t = 0.9 c_(t-1) + sqrt(1 - 0.81) w_t; w and e, the client's own, are standard normal and new each round.
- ``independent``: every entry of every update is standard normal and new: nothing tells one tensor, client or round
  from another. No code can gain from scales, and TCS's known coordinates hold nothing but noise.

Round 0, in which TCS has no aggregate to follow, is left out; of the others the costliest upload counts.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

import gradwire as gw
from benchmarks.markdown import code, table
from benchmarks.results import Found, describe
from gradwire.federated.data.models import build_model
from gradwire.federated.data.task import Task

D = 11_173_962
ROUNDS = 51
NUM_CLIENTS = 2
LOCAL_STEPS = 4
GLOBAL, LOCAL = 0.01, 0.001
DOWNLINK_GOAL = 0.8
CORRELATION = 0.9
_SHORT = 2 + math.log2(1 / GLOBAL), 2 + math.log2(1 / LOCAL)  # the short position code of the text after Eq. (7)

# name, spec, budget in bits per parameter and step (Table I; the two with 5 bits at H = 1: the formula, rounded), Eq.
# (7) or (8) with the short code, local steps, the goal that entropy-coded exponents put below the budget
METHODS: tuple[tuple[str, str, float, float, int, float | None], ...] = (
    ("top-k 1 %", "ef(topk(0.01))", 0.41, GLOBAL * (32 + _SHORT[0]), 1, 0.345),
    ("top-k 1 %, 5 bits", "ef(topk(0.01) | fractional(16))", 0.14, GLOBAL * (5 + _SHORT[0]), 1, None),
    ("TCS", "ef(tcs(0.01, 0.001))", 0.363, GLOBAL * 32 + LOCAL * (32 + _SHORT[1]), 1, 0.33),
    (
        "TCS, 5 bits",
        "ef(tcs(0.01, 0.001) | fractional(16))",
        0.067,
        GLOBAL * 5 + LOCAL * (5 + _SHORT[1]),
        1,
        None,
    ),
    (
        "TCS, 5 bits, H = 4, a step",
        "ef(tcs(0.01, 0.001) | fractional(16))",
        0.01675,
        (GLOBAL * 5 + LOCAL * (5 + _SHORT[1])) / LOCAL_STEPS,
        LOCAL_STEPS,
        None,
    ),
)
RECIPES = ("gradient-like", "independent")


PARTS = tuple(dict.fromkeys(spec for _, spec, *_ in METHODS))


def measure(data_dir: str | None, parts: Sequence[str]) -> Found:
    """Exchange updates of either recipe by some of the specs."""
    layout = resnet18_layout()
    measured = [_converse(recipe, spec, layout) for recipe in RECIPES for spec in parts]
    about = {"d": layout.d, "tensors": len(layout.tensors), "rounds": ROUNDS, "clients": NUM_CLIENTS}
    return {**about, "measured": measured}


def merge(old: Found, new: Found) -> Found:
    """Put newly measured specs in the place of older figures of the same."""
    rows = {(m["recipe"], m["spec"]): m for m in [*old["measured"], *new["measured"]]}
    return {**new, "measured": list(rows.values())}


def resnet18_layout() -> gw.Layout:
    """The parameters of the CIFAR variant of ResNet-18, tensor by tensor, without running statistics."""
    images, labels = torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64)
    task = Task("cifar10", images, labels, images, labels, "none", 10, None, "resnet18")
    layout = gw.Layout.from_arrays({n: p.detach() for n, p in build_model("resnet18", task, 0).named_parameters()})
    if layout.d != D:
        raise SystemExit(f"ResNet-18 has {layout.d:,} parameters, expected {D:,}")
    return layout


def updates(recipe: str, layout: gw.Layout, seed: int = 0) -> Iterator[list[np.ndarray]]:
    """Each round's updates, one a client, by a recipe of the module's docstring."""
    rng = np.random.default_rng(seed)

    def normal() -> np.ndarray:
        return rng.standard_normal(layout.d, dtype=np.float32)

    if recipe == "independent":
        while True:
            yield [normal() for _ in range(NUM_CLIENTS)]
    scales = np.exp(normal()) / np.float32(math.sqrt(2))
    for t in layout.tensors:
        scales[t.offset : t.stop] *= np.float32(rng.lognormal(0.0, 1.0))
    common = normal()
    while True:
        yield [scales * (common + normal()) for _ in range(NUM_CLIENTS)]
        common = np.float32(CORRELATION) * common + np.float32(math.sqrt(1 - CORRELATION**2)) * normal()


def _converse(recipe: str, spec: str, layout: gw.Layout) -> dict[str, Any]:
    """What every upload and downlink of a few rounds took."""
    compressor = gw.parse(spec)
    clients = [gw.Client(compressor, layout, client_id=n) for n in range(NUM_CLIENTS)]
    server = gw.Server(compressor, layout, num_clients=NUM_CLIENTS)
    uploads, downlinks = [], []
    for index, vectors in zip(range(ROUNDS), updates(recipe, layout), strict=False):
        for n, (client, vector) in enumerate(zip(clients, vectors, strict=True)):
            began = time.perf_counter()
            blob = client.compress(vector)
            compressed = time.perf_counter()
            server.receive(blob, client_id=n)
            received = time.perf_counter()
            seconds = {"compress_seconds": compressed - began, "receive_seconds": received - compressed}
            uploads.append({"round": index, "client": n, **_facts(blob), **seconds})
        result = server.close_round()
        for client in clients:
            if not np.array_equal(client.end_round(result.blob), result.update):
                raise SystemExit(f"{spec}: the downlink must bring the mean itself")
        downlinks.append({"round": index, **_facts(result.blob)})
    later = [u for u in uploads if u["round"]]
    return {
        "recipe": recipe,
        "spec": str(compressor),
        "first_upload": _costliest(u for u in uploads if not u["round"]),
        "costliest_upload": _costliest(later),
        "costliest_downlink": _costliest(b for b in downlinks if b["round"]),
        "upload_bytes": [
            _costliest(u for u in uploads if u["round"] == index)["total_bytes"] for index in range(ROUNDS)
        ],
        "compress_seconds": statistics.median(u["compress_seconds"] for u in later),
        "receive_seconds": statistics.median(u["receive_seconds"] for u in later),
    }


def _costliest(blobs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return max(blobs, key=lambda blob: int(blob["total_bytes"]))


def _facts(blob: bytes) -> dict[str, Any]:
    facts = gw.inspect(blob)
    if facts["total_bytes"] != len(blob):
        raise SystemExit(f"inspect tells {facts['total_bytes']} bytes of {len(blob)}")
    names = ("num_kept", "codec", "header_bytes", "support_bytes", "values_bytes", "total_bytes")
    return {name: facts[name] for name in names}


def document(found: Found) -> dict[str, str]:
    """The tables."""
    d = found["d"]
    measured = {(m["recipe"], m["spec"]): m for m in found["measured"]}
    parts = [
        f"{d:,} parameters in the {found['tensors']} tensors of ResNet-18 for CIFAR (running statistics left out, as "
        f"in the paper), {found['clients']} clients, {found['rounds']} rounds through `gw.Client` and `gw.Server`. "
        "Bits per parameter and upload are whole blobs, headers and checksum included; of all uploads after round 0 "
        "the costliest counts. The updates are generated and nothing is trained, so this says what the "
        "bytes are and nothing about accuracy. *Budget*: the paper's Table I; the two rows with 5 bits at H = 1 are "
        "from its section III-C. *Formula*: Eq. (7) and (8) with the position code "
        "log2(1/phi) + 2 bits, exact. *Saved* is against the budget.",
    ]
    for recipe, text in (
        (
            "gradient-like",
            "Updates like gradients: entry i of tensor l is s_l a_i (c_i + e_i) / sqrt(2). s_l, one scale a tensor, "
            "and a_i, one an entry, are log-normal (sigma 1 both) and stay the same; c is common to the clients and "
            f"keeps {CORRELATION:g} of itself from round to round; e is the client's own and new each round; c and e "
            "are standard normal.",
        ),
        (
            "independent",
            "The same with nothing to gain from: every entry of every update is standard normal and new, without "
            "scales and without correlation between rounds or clients.",
        ),
    ):
        rows, downs = [], []
        for name, spec, paper, formula, steps, goal in METHODS:
            m = measured[recipe, str(gw.parse(spec))]
            worst = m["costliest_upload"]
            ours = 8 * worst["total_bytes"] / d / steps
            pieces = [8 * worst[f"{piece}_bytes"] / d / steps for piece in ("header", "support", "values")]
            rows.append(
                [
                    name,
                    code(spec),
                    f"{paper:g}",
                    f"{formula:.5f}",
                    f"**{ours:.5f}**" + (" (not beaten)" if ours >= paper else ""),
                    f"{100 * (1 - ours / paper):.1f} %",
                    f"{pieces[0]:.5f}",
                    f"{pieces[1]:.5f}",
                    f"{pieces[2]:.5f}",
                    f"{8 * worst['values_bytes'] / worst['num_kept']:.2f}",
                    "-" if goal is None else f"{goal:g}" + (" missed" if ours > goal else " met"),
                ]
            )
            if steps > 1:
                continue
            down = m["costliest_downlink"]
            bits = 8 * down["total_bytes"] / d
            downs.append(
                [
                    name,
                    f"{bits:.3f}" + (f" (above {DOWNLINK_GOAL:g})" if bits > DOWNLINK_GOAL else ""),
                    f"{100 * down['num_kept'] / d:.2f} %",
                    f"{_codec(worst)} / {_codec(down)}",
                    str(worst["round"]),
                    f"{8 * m['first_upload']['total_bytes'] / d:.5f}",
                    f"{m['compress_seconds']:.2f}",
                    f"{m['receive_seconds']:.2f}",
                ]
            )
        parts += [f"### {recipe.capitalize()} updates", text]
        headings = ["method", "spec", "budget", "formula", "bits per parameter", "saved", "header", "support", "values"]
        parts.append(table([*headings, "bits a value", "goal"], rows))
        parts.append(
            f"The way down, the lossless `dense()` of the mean of {found['clients']} clients (goal: at most "
            f"{DOWNLINK_GOAL:g} bits per parameter), and, as information, the codes chosen up and down, the "
            "round of the costliest upload, round 0's upload and the median seconds of one call."
        )
        headings = [
            "method",
            "downlink",
            "entries sent down",
            "codes",
            "costliest round",
            "round 0",
            "compress, s",
            "receive, s",
        ]
        parts.append(table(headings, downs))
    parts.append(describe(found))
    return {
        "docs/results.md#budget": "\n\n".join(parts),
        "docs/papers/tcs.md#tcs-generated": _against_topk(measured, d),
    }


def _against_topk(measured: dict[tuple[str, str], dict[str, Any]], d: int) -> str:
    """TCS beside top-k, for TCS's page."""
    rows = []
    for name, tcs, topk in (("as they are", "TCS", "top-k 1 %"), ("of 5 bits", "TCS, 5 bits", "top-k 1 %, 5 bits")):
        budgets = {method: paper for method, _, paper, *_ in METHODS}
        cells = [name, f"{budgets[tcs]:g} / {budgets[topk]:g}, {budgets[topk] / budgets[tcs]:.2f}x"]
        for recipe in RECIPES:
            ours, others = (
                8 * measured[recipe, str(gw.parse(spec))]["costliest_upload"]["total_bytes"] / d
                for method in (tcs, topk)
                for name, spec, *_ in METHODS
                if name == method
            )
            cells.append(f"{ours:.5f} / {others:.5f}, {others / ours:.2f}x")
        rows.append(cells)
    return table(["values", "claimed: TCS / top-k", *(f"{recipe} updates" for recipe in RECIPES)], rows)


def _codec(blob: dict[str, Any]) -> str:
    return f"{blob['codec']['support']}, {blob['codec']['values']}"
