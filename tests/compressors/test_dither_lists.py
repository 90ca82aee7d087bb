"""Known dither where few numbers are sent: a plain list in its place, where that is shorter."""

from __future__ import annotations

import numpy as np
import pytest

import gradwire as gw
from gradwire.payload import Dithered, Explicit

D = 4_000_000


def sent(spec: str, update: np.ndarray, num_bytes: int | None = None):
    layout = gw.Layout.flat(update.size)
    blob = gw.Client(gw.parse(spec), layout).compress(update, num_bytes=num_bytes)
    gw.Server(gw.parse(spec), layout).receive(blob)
    return len(blob), gw.decode(blob)


@pytest.mark.parametrize(("spec", "num_bytes"), [("dither(num_bytes=60)", None), ("dither()", 60)])
def test_a_few_bytes_of_a_large_model_are_used(spec, num_bytes):
    """A dithered support of 4 million coordinates is filled up to 66 bytes."""
    update = np.random.default_rng(0).laplace(size=D).astype(np.float32)
    update[::1000] *= 100
    size, payload = sent(spec, update, num_bytes)
    assert 50 <= size <= 60
    assert payload.num_kept >= 5


def test_one_number_is_a_list():
    update = np.zeros(100_000, np.float32)
    update[777] = 3.0
    size, payload = sent("dither(density=0.1)", update)
    assert size < 45
    assert isinstance(payload.parts[0].support, Explicit)
    np.testing.assert_allclose(gw.decompress(payload), update, rtol=0.01)


def test_a_usual_update_is_dithered():
    update = np.random.default_rng(1).laplace(size=100_000).astype(np.float32)
    _, payload = sent("dither(density=0.01)", update)
    assert isinstance(payload.parts[0].support, Dithered)
