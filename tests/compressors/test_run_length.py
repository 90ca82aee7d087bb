"""What depends on the length of a run says so, through every wrapper, and says how it spreads over the rounds."""

from __future__ import annotations

import numpy as np
import pytest

import cases
import gradwire as gw

LAYOUT = gw.Layout.from_arrays({"w": np.zeros((8, 6), np.float32), "b": np.zeros(5, np.float32)})
SCHEDULED = [
    "adaptopk(0.2)",
    "ef(adaptopk(0.2) | fp16())",
    "momentum_correction(adaptopk(0.2))",
    "ef(by_tensor(adaptopk(0.2), min_elements=4))",
    "ef(warmup(adaptopk(0.2), 1))",
    "ef(adaptopk_online(0.2))",
    "warmup(adaptopk_online(0.2), 1)",
]


def sent(compressor, num_rounds):
    """Four rounds' bytes, or what was said instead."""
    client = gw.Client(compressor, LAYOUT, num_rounds=num_rounds)
    rng = np.random.default_rng(0)
    found = []
    for index in range(4):
        try:
            found.append(client.compress(rng.standard_normal(LAYOUT.d).astype(np.float32), round=index))
        except gw.GradwireError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("spec", sorted({row.spec for row in cases.COMPRESSORS} | set(SCHEDULED)))
def test_a_compressor_says_whether_it_reads_the_length_of_a_run(spec):
    """Against the bytes: whoever says no sends the same in runs of any length."""
    compressor = gw.parse(spec)
    assert compressor.uses_num_rounds == (sent(compressor, 4) != sent(compressor, 40))


@pytest.mark.parametrize("spec", SCHEDULED[:5])
def test_a_schedule_is_found_through_wrappers(spec):
    assert gw.parse(spec).schedule(100, 6).tolist() == gw.adaptopk(0.2).schedule(100, 6).tolist()
    assert gw.parse(spec).uses_num_rounds


@pytest.mark.parametrize("spec", ["topk(0.2)", "ef(topk(0.2) | uniform(8))", "dense()", "ef(adaptopk_online(0.2))"])
def test_most_lay_nothing_down(spec):
    assert gw.parse(spec).schedule(100, 6) is None


def test_what_is_inside():
    assert gw.parse("ef(topk(0.1))").inside == (gw.topk(0.1),)
    assert gw.parse("topk(0.1) | fp16()").inside == (gw.topk(0.1), gw.fp16())
    assert gw.parse("ef(warmup(topk(0.1), 2))").inside[0].inside == (gw.topk(0.1), gw.dense())
    assert gw.topk(0.1).inside == ()
