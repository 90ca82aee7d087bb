"""The table behind the conformance tests: compressors x updates x layouts.

Adding an algorithm to the library means adding ONE row to ``COMPRESSORS``; every law is then checked on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

import gradwire as gw


@dataclass(frozen=True)
class Row:
    """One compressor under test.

    Attributes:
        spec: the text that builds it; it must be the canonical text, i.e. ``str(gw.parse(spec)) == spec``.
        keyed: what its randomness depends on: ``None`` (deterministic), ``"client"`` (seed, round and client)
            or ``"round"`` (seed and round; the same for all clients).
        scheduled: whether the round alone decides something, whatever the seed.
        density: where k = min(d, max(1, round(density * d))) bounds num_kept, per piece of ``scope``.
        scope: pieces the k rule is applied to: ``"model"``, ``"tensor"`` or a block length.
    """

    spec: str
    keyed: str | None = None
    scheduled: bool = False
    density: float | None = None
    scope: str | int = "model"

    def build(self) -> gw.Compressor:
        return gw.parse(self.spec)


COMPRESSORS = [
    Row("dense()"),
    Row("fp16()"),
    Row("bf16()"),
    Row("uniform(1)"),
    Row("uniform(2, scope='model')"),
    Row("uniform(8)"),
    Row("uniform(5, scope=64)"),
    Row("uniform(1, stochastic=True)", keyed="client"),
    Row("uniform(4, stochastic=True)", keyed="client"),
    Row("uniform(3, stochastic=True, scope=64)", keyed="client"),
    Row("uniform(8, affine=True)"),
    Row("uniform(1, affine=True)"),
    Row("uniform(2, scope='model', affine=True)"),
    Row("uniform(3, scope=64, affine=True)"),
    Row("uniform(4, stochastic=True, affine=True)", keyed="client"),
    Row("topk(0.01)", density=0.01),
    Row("topk(0.3)", density=0.3),
    Row("topk(1.0)", density=1.0),
    Row("topk(0.05, scope='tensor')", density=0.05, scope="tensor"),
    Row("topk(0.05, scope=100)", density=0.05, scope=100),
    Row("topk(num_bytes=120)"),
    Row("randk(0.05)", keyed="client", density=0.05),
    Row("randk(0.9)", keyed="client", density=0.9),
    Row("randk(0.1, shared=True)", keyed="round", density=0.1),
    Row("randk(0.1, unbiased=True)", keyed="client", density=0.1),
    Row("topk(0.1) | fp16()", density=0.1),
    Row("topk(0.1) | bf16()", density=0.1),
    Row("topk(0.1) | uniform(1)", density=0.1),
    Row("topk(0.1) | uniform(4)", density=0.1),
    Row("topk(0.1, scope=50) | uniform(4, scope=64)", density=0.1, scope=50),
    Row("topk(0.2, scope='tensor') | uniform(8, scope='model')", density=0.2, scope="tensor"),
    Row("topk(0.1) | uniform(8, stochastic=True)", keyed="client", density=0.1),
    Row("randk(0.2) | fp16()", keyed="client", density=0.2),
    Row("randk(0.2) | uniform(4, scope=64)", keyed="client", density=0.2),
    Row("topk(0.1) | uniform(4, affine=True)", density=0.1),
    Row("randk(0.2) | uniform(3, stochastic=True, scope=64, affine=True)", keyed="client", density=0.2),
    Row("randk(0.2, unbiased=True) | uniform(8, stochastic=True)", keyed="client", density=0.2),
    Row("dense() | uniform(6)"),
    Row("topk(num_bytes=150) | uniform(8)"),
    Row("topk(0.1) | huffman()", density=0.1),
    Row("topk(0.1) | uniform(4) | ans()", density=0.1),
    Row("uniform(1) | rle()"),
    Row("topk(0.3, scope='tensor') | uniform(3) | auto()", density=0.3, scope="tensor"),
    Row("ef(topk(0.1) | fp16() | ans())", density=0.1),
    Row("topk(0.1) | fractional(16) | context()", density=0.1),
    Row("topk(0.1) | uniform(4) | context()", density=0.1),
    Row("topk(0.1) | uniform(2, scope='model') | context()", density=0.1),
    Row("uniform(3) | context()"),
    Row("rd(0.1)"),
    Row("rd(2.0)"),
    Row("rd(num_bytes=150)"),
    Row("by_tensor(rd(1.0), others=fp16())"),
    Row("ef(rd(1.0))"),
    Row("momentum_correction(rd(1.0))"),
    Row("sign()"),
    Row("sign(scope=64)"),
    Row("qsgd(4)", keyed="client"),
    Row("qsgd(1)", keyed="client"),
    Row("ternary()", keyed="client"),
    Row("natural()", keyed="client"),
    Row("dither(density=0.05)", keyed="client"),
    Row("dither(density=0.5, golden=True)", keyed="client"),
    Row("dither(density=1.0)", keyed="client"),
    Row("dither(num_bytes=120)", keyed="client"),
    Row("dither(0.5)", keyed="client"),
    Row("fixed(2, 0.5)"),
    Row("fixed(16, 10.0)"),
    Row("fixed(8, 1.0, stochastic=True)", keyed="client"),
    Row("fractional(1)"),
    Row("fractional(5)"),
    Row("fractional(16)"),
    Row("threshold(0.5)"),
    Row("threshold(density=0.05)", keyed="client"),
    Row("topk(0.1) | qsgd(8)", keyed="client", density=0.1),
    Row("randk(0.2, unbiased=True) | ternary()", keyed="client", density=0.2),
    Row("topk(0.1) | sign(scope='model')", density=0.1),
    Row("topk(0.1) | fractional(16) | ans()", density=0.1),
    Row("randk(0.2, shared=True) | fixed(8, 1.0)", keyed="round", density=0.2),
    Row("randk(0.2) | fractional(4)", keyed="client", density=0.2),
    Row("threshold(density=0.05) | uniform(8)", keyed="client"),
    Row("threshold(0.5) | fp16()"),
    Row("powersgd(1)"),
    Row("powersgd(4)"),
    Row("warmup(topk(0.1), 2)", density=0.1),
    Row("warmup(randk(0.1), 9, first=uniform(4, stochastic=True))", keyed="client"),
    Row("warmup(ef(topk(0.1)), 2)", density=0.1),
    Row("by_tensor(topk(0.05))"),
    Row("by_tensor(topk(0.1) | uniform(4), min_elements=1)"),
    Row("by_tensor(uniform(4, scope=7), others=topk(0.5) | uniform(3, scope=5), min_elements=2)"),
    Row("tcs(0.1, 0.05)"),
    Row("tcs(0.1, 0.02) | fractional(16)"),
    Row("tcs(0.3, 0.3) | uniform(4)"),
    Row("adaptopk(0.1, rounds=5)", scheduled=True),
    Row("adaptopk(0.1, gamma=0.9, rounds=8, t_hat=2.0) | uniform(4)"),
    Row("adaptopk_online(0.1, rounds=5)"),
    Row("regtopk(0.1)", density=0.1),
    Row("regtopk(0.1, mu=0.5, denominator='current', exponent=0.5, likelihood='gaussian') | uniform(8)", density=0.1),
    Row("cyclic(0.1)", scheduled=True, density=0.1),
    Row("leader(0.1)", density=0.1),
    Row("leader(0.1) | uniform(4)", density=0.1),
    Row("sketch(0.1, block=7)"),
    Row("ef(sketch(0.3) | uniform(4))"),
    Row("cyclic(0.3) | uniform(4, scope=64)", scheduled=True, density=0.3),
    Row("ef21(topk(0.1))", density=0.1),
    Row("ef21(randk(0.2) | fp16())", keyed="client", density=0.2),
    Row("momentum_correction(topk(0.1) | uniform(4))", density=0.1),
    Row("momentum_correction(randk(0.2), momentum=0.5)", keyed="client", density=0.2),
    Row("momentum(qsgd(4), 0.8)", keyed="client"),
    Row("momentum(topk(0.1) | uniform(4), 0.5, gain=0.5)", density=0.1),
    Row("momentum(ef(topk(0.1) | fractional(16)), 0.9)", density=0.1),
    Row("momentum(ef21(topk(0.1)), 0.9)", density=0.1),
    Row("momentum(tcs(0.1, 0.05), 0.5, gain=1.0)"),
    Row("momentum(ternary(), 0.0)", keyed="client"),
    Row("warmup(momentum(topk(0.1), 0.8), 2)", density=0.1),
    Row("ef(threshold(0.5))"),
    Row("ef(topk(0.1) | fractional(16))", density=0.1),
    Row("ef(topk(0.1) | sign())", density=0.1),
    Row("ef(tcs(0.1, 0.05) | fractional(16))"),
    Row("ef(adaptopk(0.1, rounds=5))", scheduled=True),
    Row("ef(regtopk(0.1) | uniform(4))", density=0.1),
    Row("ef(cyclic(0.1))", scheduled=True, density=0.1),
    Row("ef(fixed(8, 1.0))"),
    Row("ef(powersgd(2))"),
    Row("ef(warmup(topk(0.1), 9))"),
    Row("ef(by_tensor(topk(0.1), others=fp16(), min_elements=1))"),
    Row("ef(dense())"),
    Row("ef(topk(0.01))", density=0.01),
    Row("ef(topk(1.0))", density=1.0),
    Row("ef(topk(0.05, scope='tensor'), decay=0.9)", density=0.05, scope="tensor"),
    Row("ef(topk(0.1) | uniform(4))", density=0.1),
    Row("ef(topk(0.1) | uniform(4, affine=True))", density=0.1),
    Row("ef(randk(0.2) | fp16())", keyed="client", density=0.2),
    Row("ef(randk(0.2, unbiased=True), unchecked=True)", keyed="client", density=0.2),
]


def _normal(d: int) -> np.ndarray:
    return np.random.default_rng(d + 1).standard_normal(d).astype(np.float32)


def _cauchy(d: int) -> np.ndarray:
    return np.clip(np.random.default_rng(d + 2).standard_cauchy(d), -1e30, 1e30).astype(np.float32)


def _spike(d: int) -> np.ndarray:
    x = np.zeros(d, np.float32)
    x[d // 2 : d // 2 + 1] = -3.0
    return x


def _denormals(d: int) -> np.ndarray:
    steps = np.random.default_rng(d + 3).integers(-2000, 2001, d)
    return (steps * 2.0**-149).astype(np.float32)


def _huge(d: int) -> np.ndarray:
    return (_normal(d).clip(-3, 3) * np.float32(1e38)).astype(np.float32)


def _mixed(d: int) -> np.ndarray:
    """Magnitudes from 1e-40 to 1e30 side by side, a third of them zeros of either sign."""
    rng = np.random.default_rng(d + 4)
    x = (rng.standard_normal(d) * 10.0 ** rng.integers(-40, 31, d)).astype(np.float32)
    x[::3] = 0.0
    x[1::6] = -0.0
    return x


def _skewed(d: int) -> np.ndarray:
    """All but a few above zero."""
    return (np.random.default_rng(d + 5).exponential(size=d) - 0.05).astype(np.float32)


def _ties(d: int) -> np.ndarray:
    return np.where(np.arange(d) % 2, 1.0, -1.0).astype(np.float32)


UPDATES: dict[str, Callable[[int], np.ndarray]] = {
    "zeros": lambda d: np.zeros(d, np.float32),
    "equal": lambda d: np.full(d, 0.7, np.float32),
    "spike": _spike,
    "cauchy": _cauchy,
    "denormals": _denormals,
    "huge": _huge,
    "mixed": _mixed,
    "normal": _normal,
    "skewed": _skewed,
    "ties": _ties,
}

SIZES = (0, 1, 7, 4096)
LARGE = 1_000_000


@cache
def update_of(name: str, d: int) -> np.ndarray:
    """(d,) float32, read-only: made once, for making a million takes as long as compressing them."""
    update = UPDATES[name](d)
    update.setflags(write=False)
    return update


def model_layout(d: int) -> gw.Layout:
    """A layout of exactly d elements cut like a model: matrices, a scalar, an empty tensor, and running statistics."""
    arrays: dict[str, Any] = {}
    left = d
    for name, wanted in (
        ("conv.weight", d // 2),
        ("empty", 0),
        ("conv.bias", 3),
        ("scalar", 1),
        ("bn.running_mean", 2),
    ):
        take = min(wanted, left)
        arrays[name] = np.zeros((), np.float32) if name == "scalar" and take else np.zeros(take, np.float32)
        left -= take
    arrays["head.weight"] = np.zeros((1, left), np.float32)
    layout = gw.Layout.from_arrays(arrays)
    assert layout.d == d
    return layout


def matrices_layout(d: int) -> gw.Layout:
    """A layout of exactly d elements that is mostly matrices, wide and square, with a bias between them."""
    rows = 8 if d >= 300 else 2
    wide = d // 2 // rows
    bias = min(5, d - rows * wide)
    left = d - rows * wide - bias
    side = int(left**0.5)
    square = (side, left // side, 1) if side else (0, 0, 1)
    arrays = {"wide": np.zeros((rows, wide)), "bias": np.zeros(bias), "square": np.zeros(square)}
    layout = gw.Layout.from_arrays({**arrays, "rest": np.zeros(left - square[0] * square[1])})
    assert layout.d == d
    return layout


LAYOUTS: dict[str, Callable[[int], gw.Layout]] = {
    "flat": gw.Layout.flat,
    "model": model_layout,
    "matrices": matrices_layout,
}


def layout_pieces(layout: gw.Layout, scope: str | int) -> list[int]:
    """Lengths of the pieces that a scope applies the k rule to; running statistics excluded."""
    d = layout.num_parameters
    if scope == "model":
        return [d] if d else []
    if scope == "tensor":
        return [t.num_elements for t in layout.tensors if not t.buffer and t.num_elements]
    return [min(int(scope), d - start) for start in range(0, d, int(scope))]


def largest_k(row: Row, layout: gw.Layout) -> int:
    """What the k rule allows, running statistics included."""
    assert row.density is not None
    kept = sum(min(n, max(1, round(row.density * n))) for n in layout_pieces(layout, row.scope))
    return kept + layout.d - layout.num_parameters


def with_rounding(error: float, norm: float) -> float:
    """What ``error``, a bound on |x - C(x)|^2 in real numbers, becomes in float32; ``norm`` is |x|^2.

    A quotient that is rounded may choose the farther of two neighbours by 2^-23 of the number, the step is rounded by
    2^-24 of it, and the level, at most twice the number, by 2^-23: 2^-21 |x| is more than all of them, and lengths add.
    """
    return (math.sqrt(error) + 2.0**-21 * math.sqrt(norm)) ** 2
