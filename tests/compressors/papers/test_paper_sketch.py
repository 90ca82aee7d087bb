"""sketch: the blocks in which all workers have most, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from test_paper_leader import summed, updates_of

import gradwire as gw


def largest_blocks(lengths: np.ndarray, count: int, block: int, d: int) -> np.ndarray:
    chosen = np.argsort(-lengths, kind="stable")[:count]
    return np.isin(np.arange(d) // block, chosen[lengths[chosen] > 0])


@pytest.mark.parametrize(("d", "block", "density"), [(50, 7, 0.3), (50, 1, 0.1), (10, 64, 0.5), (64, 8, 1.0)])
def test_own_blocks_are_the_longest(d, block, density):
    update = updates_of(1, d)[0]
    lengths = np.array([np.linalg.norm(update[i : i + block].astype(np.float64)) for i in range(0, d, block)])
    count = max(1, round(density * lengths.size))
    sent = gw.decompress(gw.decode(gw.Client(gw.sketch(density, block), gw.Layout.flat(d)).compress(update)))
    assert sent.tolist() == np.where(largest_blocks(lengths, count, block, d), update, 0).tolist()


def test_phases_against_numpy():
    """The mean of all in the blocks whose lengths add up to most; the residuals by hand."""
    d, block, compressor, layout = 53, 5, gw.ef(gw.sketch(0.3, block=5)), gw.Layout.flat(53)
    states, residuals = [compressor.init(layout) for _ in range(3)], np.zeros((3, d), np.float32)
    for index in range(5):
        updates = updates_of(3, d, seed=index)
        corrected = residuals + updates
        padded = np.pad(corrected.astype(np.float64), ((0, 0), (0, 2))).reshape(3, -1, block)
        kept = largest_blocks(np.linalg.norm(padded, axis=2).sum(axis=0), round(0.3 * 11), block, d)
        wanted = np.where(kept, corrected.astype(np.float64).mean(axis=0), 0)
        ended = summed(compressor, updates, states, index, layout)
        for result, _ in ended:
            np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)
        states = [state for _, state in ended]
        residuals = np.stack([state.memory["residual"] for state in states])
        np.testing.assert_allclose(residuals, corrected - wanted.astype(np.float32), atol=1e-5)


def test_a_short_last_block_zeros_large_numbers_and_running_statistics():
    layout = gw.Layout.from_arrays({"w": np.ones(5, np.float32), "running_mean": np.ones(2, np.float32)})
    compressor = gw.sketch(0.1, block=3)
    for update, wanted in (
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
        ([0, 0, 0, 2, 4], [0, 0, 0, 2, 4]),
        ([3e38, 3e38, 3e38, 1, 1], [3e38, 3e38, 3e38, 0, 0]),
    ):
        whole = np.array([*update, 6, 8], np.float32)
        arrays = [whole, whole] if update[0] < 1 else [whole, 0 * whole]
        scale = 1 if update[0] < 1 else 2
        for result, _ in summed(compressor, np.stack(arrays), [compressor.init(layout)] * 2, 0, layout):
            np.testing.assert_allclose(result * scale, [*wanted, 6, 8], rtol=1e-6)


def test_sums_that_are_none_are_refused():
    layout = gw.Layout.flat(10)
    for heard in (np.zeros(3, np.float32), np.full(5, np.inf, np.float32)):
        run = gw.sketch(0.2, block=2).phases(np.ones(10, np.float32), gw.State(layout), gw.Round())
        next(run)
        with pytest.raises(gw.UpdateError, match="sum over the workers"):
            run.send(heard)


@pytest.mark.parametrize("block", [0, 1.5, True])
def test_blocks_are_checked(block):
    with pytest.raises(gw.ConfigError, match="block must be"):
        gw.sketch(0.1, block=block)
