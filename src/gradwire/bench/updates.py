"""The updates that are compressed: a model's, and ones that make selection hard."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gradwire.kernels.sampling import sample_plan
from gradwire.layout import Layout

__all__ = ["RESNET50", "adversarial", "blocks", "layout_of", "log_normal_update", "resnet50_shapes", "windows"]

RESNET50 = 25_557_032
_NUM_MATRICES = 32
_NUM_BLOCKS = 64
_BLOCK_SIGMA = 1.5
_TILE = 1 << 20
_SHIFT = 3 << 18

Vector = NDArray[np.float32]


def resnet50_shapes() -> list[tuple[int, ...]]:
    """Return the shapes of ResNet-50's 161 parameter tensors."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    before = 64
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(count):
            shapes += [(width, before, 1, 1), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            shapes += [(4 * width, width, 1, 1), (4 * width,), (4 * width,)]
            if block == 0:
                shapes += [(4 * width, before, 1, 1), (4 * width,), (4 * width,)]
            before = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def layout_of(d: int) -> Layout:
    """Return ResNet-50's layout where d is its size; else 32 square matrices and a vector of what is left.

    Example:
        >>> len(layout_of(RESNET50).tensors), layout_of(RESNET50).d == RESNET50
        (161, True)
        >>> [t.shape for t in layout_of(3300).tensors[-2:]]
        [(10, 10), (100,)]
    """
    if d == RESNET50:
        shapes = resnet50_shapes()
    else:
        side = math.isqrt(d // _NUM_MATRICES)
        shapes = [*[(side, side)] * _NUM_MATRICES, (d - _NUM_MATRICES * side * side,)]
    return Layout.from_arrays({f"t{i}": np.broadcast_to(np.float32(0), shape) for i, shape in enumerate(shapes)})


def log_normal_update(seed: int = 0, d: int = RESNET50) -> tuple[Layout, Vector]:
    """Make an update whose tensors differ in scale: normal entries, log-normal scales (sigma 1).

    Args:
        seed: of the entries and the scales.
        d: number of entries; see ``layout_of``.

    Returns:
        The layout, and (d,) float32.
    """
    layout = layout_of(d)
    rng = np.random.default_rng(seed)
    update = rng.standard_normal(layout.d, dtype=np.float32)
    for t in layout.tensors:
        update[t.offset : t.stop] *= np.float32(rng.lognormal(0.0, 1.0))
    return layout, update


def blocks(seed: int, d: int) -> Vector:
    """Make an update of 64 equally long blocks: normal entries, log-normal scales (sigma 1.5).

    Args:
        seed: of the entries and the scales.
        d: number of entries.

    Returns:
        (d,) float32.
    """
    rng = np.random.default_rng(seed)
    update = rng.standard_normal(d, dtype=np.float32)
    for block in np.array_split(update, _NUM_BLOCKS):
        block *= np.float32(rng.lognormal(0.0, _BLOCK_SIGMA))
    return update


def adversarial(d: int, k: int) -> dict[str, tuple[Callable[[], Vector], str]]:
    """Return name -> (a function that makes the update, what it is): updates a selection by samples gets little from.

    Args:
        d: number of entries.
        k: how many are selected.
    """
    return {
        "uniform": (lambda: _rng().random(d, dtype=np.float32) * 2 - 1, "uniform on [-1, 1)"),
        "constant": (lambda: np.ones(d, np.float32), "all entries 1: ties everywhere"),
        "zero": (lambda: np.zeros(d, np.float32), "all entries 0: nothing to send"),
        "concentrated": (lambda: _concentrated(d, k), "the k largest side by side, a million times the others"),
        "sampled high": (lambda: _at_samples(d, k, 1e6), "large exactly where the sample looks: too few candidates"),
        "sampled low": (lambda: _at_samples(d, k, 1e-6), "small exactly where the sample looks: too many candidates"),
    }


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _concentrated(d: int, k: int) -> Vector:
    update = _rng().standard_normal(d, dtype=np.float32)
    update[d // 3 : d // 3 + k] *= np.float32(1e6)
    return update


def _at_samples(d: int, k: int, scale: float) -> Vector:
    update = _rng().standard_normal(d, dtype=np.float32)
    update[_sampled_places(d, k)] *= np.float32(scale)
    return update


def _sampled_places(d: int, k: int) -> NDArray[np.uint32]:
    """Where the top-k kernel looks first, by its own sampler; nowhere where it takes no sample."""
    from gradwire.kernels import select

    plan = sample_plan(d, k)
    places = np.empty(plan[0] if plan else 0, np.uint32)
    if plan:
        select.take_sample(np.arange(d, dtype=np.uint32), places)
    return places


def windows(d: int, count: int = 3) -> list[Vector]:
    """Make updates of any size cheaply: windows of one vector, each starting a little further on.

    The vector repeats a block of a million normal entries with a log-normal scale (sigma 1) each time.

    Args:
        d: number of entries.
        count: how many updates.

    Returns:
        ``count`` arrays (d,) float32 that share their memory: a vector and a little more in all.
    """
    rng = _rng()
    block = rng.standard_normal(_TILE, dtype=np.float32)
    whole = np.empty(d + (count - 1) * _SHIFT, np.float32)
    for start in range(0, whole.size, _TILE):
        piece = whole[start : start + _TILE]
        np.multiply(block[: piece.size], np.float32(rng.lognormal(0.0, 1.0)), out=piece)
    return [whole[i * _SHIFT : i * _SHIFT + d] for i in range(count)]
