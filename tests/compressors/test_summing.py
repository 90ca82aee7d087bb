"""Phases of what all workers share: the mean is that of their payloads, and each keeps what it did not send itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
import gradwire as gw
from examples import up_to
from gradwire.aggregation.mean import mean_of
from gradwire.compressors.references import as_reference
from gradwire.compressors.summing import num_summed
from gradwire.payload import Known

LAYOUT = gw.Layout.from_arrays({"a": np.ones((20, 30)), "b": np.ones(400)})
WITH_STATISTICS = gw.Layout.from_arrays(
    {"a": np.ones((20, 30)), "running_mean": np.ones(30), "b": np.ones(400)}, statistics=lambda name: "running" in name
)
WHOLE = [
    "dense()",
    "fp16()",
    "uniform(4, scope='tensor')",
    "sign()",
    "randk(0.1, shared=True)",
    "randk(0.1, unbiased=True, shared=True)",
    "randk(0.1, shared=True) | uniform(4, scope='tensor')",
    "cyclic(0.3)",
    "by_tensor(uniform(4), others=fp16())",
    "warmup(randk(0.1, shared=True), 1)",
    "ef(dense())",
    "ef(fp16())",
    "ef(randk(0.1, shared=True) | uniform(4))",
    "ef(cyclic(0.3), decay=0.5)",
    "ef(warmup(cyclic(0.1), 2, first=fp16()))",
    "momentum(ef(cyclic(0.3)), 0.5)",
    "momentum_correction(cyclic(0.3))",
]
PARTLY = ["ef(tcs(0.1, 0.05))", "ef(tcs(0.1, 0.05) | fractional(8))", "ef(warmup(tcs(0.1, 0.05), 2))", "tcs(0.3, 0.01)"]


def updates_of(index: int, num_workers: int, d: int) -> list[np.ndarray]:
    return list(np.random.default_rng(index).standard_normal((num_workers, d)).astype(np.float32))


def exchanged(compressor, updates, states, rounds):
    """One step of all workers in this process: what each gives in the end, and how many numbers were summed."""
    running = [compressor.phases(u, s, r) for u, s, r in zip(updates, states, rounds, strict=True)]
    answer, ended, sizes = None, [], []
    while not ended:
        said = []
        for phases in running:
            try:
                said.append(phases.send(answer))
            except StopIteration as done:
                ended.append(done.value)
        assert len(said) + len(ended) == len(updates), "all workers finish together"
        if said and isinstance(said[0], gw.Payload):
            answer = [gw.decode(gw.encode(payload)) for payload in said]
        elif said:
            assert len({vector.shape for vector in said}) == 1, "what is summed has one length"
            sizes.append(said[0].size)
            answer = np.sum(said, axis=0, dtype=np.float32)
    return ended, sizes


def rounds_of(index, num_workers, reference=None):
    return [
        gw.Round(index=index, key=gw.Key(3, index, rank), reference=reference, num_workers=num_workers)
        for rank in range(num_workers)
    ]


@pytest.mark.parametrize("layout", [LAYOUT, WITH_STATISTICS], ids=["parameters", "statistics"])
@pytest.mark.parametrize("spec", WHOLE + PARTLY)
def test_the_mean_of_the_payloads_and_the_states_of_workers_alone(spec, layout):
    """Two workers, whose sum has one order: the same bits as if payloads were gathered, over several rounds."""
    compressor, num_workers = gw.parse(spec), 2
    assert compressor.summable
    together = [compressor.init(layout) for _ in range(num_workers)]
    alone = [compressor.init(layout) for _ in range(num_workers)]
    reference = None
    for index in range(4):
        assert compressor.adds_up(index)
        updates, rounds = updates_of(index, num_workers, layout.d), rounds_of(index, num_workers, reference)
        before = [u.copy() for u in updates]
        ended, sizes = exchanged(compressor, updates, together, rounds)
        made = [compressor.compress(u, s, r) for u, s, r in zip(updates, alone, rounds, strict=True)]
        payloads, alone = [p for p, _ in made], [s for _, s in made]
        expected = mean_of(payloads, layout, reference).vector
        together = [s for _, s in ended]
        for (mean, state), other, update, was in zip(ended, alone, updates, before, strict=True):
            np.testing.assert_array_equal(as_reference(mean).vector, expected)
            assert np.array_equal(update, was)
            assert state.memory.keys() == other.memory.keys()
            for name, value in state.memory.items():
                np.testing.assert_array_equal(value, other.memory[name], err_msg=name)
        assert sizes == [n for n in [num_summed(payloads[0], layout, compressor.shares == "whole")] if n]
        reference = gw.Reference(layout.d, expected)
    if spec in PARTLY and spec != PARTLY[2]:
        assert isinstance(payloads[0].parts[0].support, Known)
        assert sizes[0] < layout.d // 2


@settings(max_examples=up_to(60), deadline=None)
@given(
    spec=st.sampled_from(WHOLE + PARTLY),
    index=st.integers(0, 3),
    kinds=st.lists(st.sampled_from(["zeros", "normal", "spike", "ties"]), min_size=3, max_size=3),
    lean=st.sampled_from([None, "zeros", "spike", "normal"]),
)
def test_what_is_summed_does_not_depend_on_the_updates(spec, index, kinds, lean):
    """Where sizes differed between workers a sum would end their processes."""
    compressor = gw.parse(spec)
    layout = cases.model_layout(700)
    reference = None if lean is None else cases.update_of(lean, layout.d)
    updates = [cases.update_of(kind, layout.d) for kind in kinds]
    rounds = rounds_of(index, 3, reference)
    payloads = [compressor.compress(u, compressor.init(layout), r)[0] for u, r in zip(updates, rounds, strict=True)]
    ended, sizes = exchanged(compressor, updates, [compressor.init(layout) for _ in updates], rounds)
    whole = compressor.shares == "whole"
    assert {num_summed(payload, layout, whole) for payload in payloads} == {sum(sizes)}
    expected = np.mean([gw.decompress(p, reference) for p in payloads], axis=0, dtype=np.float64)
    for mean, _ in ended:
        np.testing.assert_allclose(as_reference(mean).vector, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", ["topk(0.1)", "ef(topk(0.1))", "ef21(dense())", "regtopk(0.1)", "randk(0.1)"])
def test_what_each_chooses_alone_is_not_summed(spec):
    compressor = gw.parse(spec)
    assert not compressor.summable
    assert not compressor.adds_up(0)
    with pytest.raises(gw.ConfigError, match="cannot be summed"):
        next(compressor.phases(np.ones(LAYOUT.d, np.float32), compressor.init(LAYOUT)))


@pytest.mark.parametrize("spec", ["powersgd(1)", "ef(powersgd(1))"])
def test_a_basis_is_made_by_all_together(spec):
    assert gw.parse(spec).summable
    assert not gw.parse(spec).adds_up(3)
    warmed = gw.parse("ef(warmup(powersgd(1), 2))")
    assert [warmed.adds_up(index) for index in (1, 2)] == [True, False]


def test_a_sum_that_cannot_be():
    compressor = gw.parse("ef(cyclic(0.3))")
    for answer, match in [(np.ones(2, np.float32), "must have shape"), (np.full(300, np.inf, np.float32), "finite")]:
        state = compressor.init(LAYOUT)
        attempt = state.attempt()
        phases = compressor.phases(np.ones(LAYOUT.d, np.float32), attempt)
        assert next(phases).size == 300
        with pytest.raises(gw.UpdateError, match=match):
            phases.send(answer)
        attempt.journal.undo()
        assert not state.memory["residual"].any()


@pytest.mark.parametrize(
    "spec", ["ef(topk(0.05) | fractional(8))", "ef(topk(0.05, scope='tensor'), decay=0.5)", "fp16()"]
)
@pytest.mark.parametrize("cuts", [[], [600], [1, 333, 334, 999]])
def test_an_update_in_pieces_gives_the_same_payload(spec, cuts):
    compressor = gw.parse(spec)
    states = [compressor.init(LAYOUT) for _ in range(2)]
    for index in range(3):
        update = updates_of(index, 1, LAYOUT.d)[0]
        made = compressor.compress(update, states[0], gw.Round(index=index))
        other = compressor.compress_pieces(np.split(update, cuts), states[1], gw.Round(index=index))
        assert gw.encode(made[0]) == gw.encode(other[0])
        states = [made[1], other[1]]
    for name, value in states[0].memory.items():
        np.testing.assert_array_equal(value, states[1].memory[name])


def test_a_piece_that_is_not_finite_changes_nothing():
    compressor = gw.parse("ef(topk(0.05))")
    state = compressor.init(LAYOUT)
    _, state = compressor.compress(updates_of(0, 1, LAYOUT.d)[0], state)
    before, update = state.memory["residual"].copy(), updates_of(1, 1, LAYOUT.d)[0]
    update[700] = np.nan
    with pytest.raises(gw.UpdateError, match="update must be finite, got nan at index 700, in tensor 'b'"):
        compressor.compress_pieces(np.split(update, [100, 600]), state)
    np.testing.assert_allclose(state.memory["residual"], before, rtol=1e-6, atol=1e-6)
