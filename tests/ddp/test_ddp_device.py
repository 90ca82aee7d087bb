"""Error feedback on tensors, which may lie on any device, against the arrays' own: the same bits."""

from functools import partial

import numpy as np
import pytest
import torch

import gradwire as gw
from gradwire.ddp.device import compress_there, place_residual, selects_there, send_whole

SPECS = ["ef(topk(0.05))", "ef(topk(0.05) | fractional(8), decay=0.9)", "ef(topk(0.02) | sign(scope='tensor') | ans())"]
CPU = torch.device("cpu")


def updates(number, d):
    return np.random.default_rng(number).laplace(size=d).astype(np.float32)


def both(spec, d=3000):
    compressor = gw.parse(spec)
    layout = gw.Layout.from_arrays({"a": np.ones((50, 40)), "b": np.ones(d - 2000)})
    state = compressor.init(layout)
    return compressor, state, gw.State(layout, place_residual(state.memory, CPU))


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_bits_as_from_arrays(spec):
    compressor, state, near = both(spec)
    for step in range(5):
        update, agreed = updates(step, 3000), gw.Round(index=step, key=gw.Key(0, step, 1))
        payload, state = compressor.compress(update, state, agreed)
        found, near = compress_there(compressor, torch.from_numpy(update), near.attempt(), agreed)
        assert gw.encode(found) == gw.encode(payload)
        np.testing.assert_array_equal(near.memory["residual"].numpy(), state.memory["residual"])


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_taken_back_and_what_is_refused(spec):
    """An exchange that failed leaves the residual as it was, to rounding; so does an update that is not finite."""
    compressor, _, near = both(spec)
    _, near = compress_there(compressor, torch.from_numpy(updates(0, 3000)), near.attempt(), gw.Round())
    before = near.memory["residual"].numpy().copy()
    acts = [partial(compress_there, compressor, round=gw.Round(index=1)), partial(send_whole, compressor)]
    for act in acts:
        attempt = near.attempt()
        act(update=torch.from_numpy(updates(1, 3000)), state=attempt)
        assert not np.array_equal(near.memory["residual"].numpy(), before)
        attempt.journal.undo()
        np.testing.assert_allclose(near.memory["residual"].numpy(), before, rtol=0, atol=1e-5)
        bad = updates(2, 3000)
        bad[7] = np.nan
        attempt = near.attempt()
        with pytest.raises(gw.UpdateError, match="update must be finite, got nan"):
            act(update=torch.from_numpy(bad), state=attempt)
        attempt.journal.undo()
        np.testing.assert_allclose(near.memory["residual"].numpy(), before, rtol=0, atol=1e-5)


def test_whole_updates_take_the_residual_along():
    compressor, _, near = both("ef(topk(0.05), decay=0.5)")
    _, near = compress_there(compressor, torch.from_numpy(updates(0, 3000)), near, gw.Round())
    expected = near.memory["residual"].numpy() * np.float32(0.5) + updates(1, 3000)
    np.testing.assert_array_equal(send_whole(compressor, torch.from_numpy(updates(1, 3000)), near), expected)
    assert not near.memory["residual"].any()


def test_what_selects_on_a_device():
    others = ["topk(0.1)", "ef(topk(0.1, scope=64))", "ef(topk(num_bytes=99))", "ef(regtopk(0.1))", "ef(powersgd(1))"]
    others += ["momentum_correction(topk(0.1))", "ef(warmup(topk(0.1), 2))", "uniform(8)"]
    assert all(selects_there(gw.parse(spec)) for spec in SPECS)
    assert not any(selects_there(gw.parse(spec)) for spec in others)
