"""warmup and by_tensor: what each compresses with what, and that nothing else differs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
import gradwire as gw
import test_laws
from examples import up_to
from gradwire.compressors.feedback import ef, momentum_correction
from gradwire.compressors.lowrank import powersgd
from gradwire.compressors.rules import by_tensor, warmup, weaker
from gradwire.payload import Every, Explicit

D = 40


def vector(seed: int, d: int = D) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(d).astype(np.float32)


def layout_of(**shapes: tuple[int, ...]) -> gw.Layout:
    return gw.Layout.from_arrays({name.replace("__", "."): np.zeros(s, np.float32) for name, s in shapes.items()})


def compress(compressor: gw.Compressor, update: np.ndarray, layout: gw.Layout, **round) -> gw.Payload:
    agreed = gw.Round(**{"index": 3, "key": gw.Key(11, 3, 5), "sequence": 3} | round)
    return compressor.compress(update, compressor.init(layout), agreed)[0]


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ("warmup(ef(topk(0.01)), 5)", None),
        ("ef(warmup(topk(0.01), 5, first=topk(0.25)))", None),
        ("warmup(topk(0.1), 3, dense())", "warmup(topk(0.1), 3)"),
        ("warmup(warmup(topk(0.01), 8, first=topk(0.1)), 4)", None),
        ("by_tensor(topk(0.01))", None),
        ("by_tensor(topk(0.01), dense(), 1024, '*')", "by_tensor(topk(0.01))"),
        ("ef(by_tensor(topk(0.01) | uniform(4), others=bf16(), min_elements=16, match='*.weight'))", None),
        ("by_tensor(topk(0.01), others=by_tensor(uniform(8), others=fp16(), min_elements=64))", None),
    ],
)
def test_spec_round_trip(given, printed):
    compressor = gw.parse(given)
    assert str(compressor) == (printed or given)
    assert gw.parse(str(compressor)) == compressor
    assert hash(gw.parse(given)) == hash(compressor)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("warmup(3, 3)", "warmup's compressor must be a compressor, got 3"),
        ("warmup(topk(0.1), 3, first=3)", "warmup's first must be a compressor, got 3"),
        ("warmup(topk(0.1), -1)", "rounds must be an integer of 0 or more, got -1"),
        ("warmup(topk(0.1), 2.5)", "rounds must be an integer of 0 or more, got 2.5"),
        ("warmup(topk(0.1), 3, first=ef(topk(0.3)))", r"first must have no feedback.*write ef\(warmup"),
        ("warmup(topk(0.1), 3) | fp16()", "wrap the whole pipeline"),
        ("ef(warmup(randk(0.1, unbiased=True), 3))", "ef needs a contractive compressor"),
        ("by_tensor(3)", "by_tensor's compressor must be a stage or pipeline, got 3"),
        ("by_tensor(ef(topk(0.1)))", r"must be a stage or pipeline, got ef\(topk\(0.1\)\): put by_tensor inside"),
        ("by_tensor(powersgd(2))", "by_tensor's compressor must be a stage or pipeline"),
        ("by_tensor(by_tensor(topk(0.1)))", "by_tensor's compressor must be a stage or pipeline"),
        ("by_tensor(topk(0.1), others=ef(topk(0.1)))", "by_tensor's others must be a stage or pipeline"),
        ("by_tensor(topk(0.1), others=warmup(topk(0.1), 3))", "by_tensor's others must be a stage or pipeline"),
        ("by_tensor(topk(num_bytes=100))", "by_tensor's compressor cannot have num_bytes of its own"),
        ("by_tensor(topk(0.1), others=topk(num_bytes=9))", "by_tensor's others cannot have num_bytes"),
        ("by_tensor(topk(0.1), min_elements=-1)", "min_elements must be an integer of 0 or more, got -1"),
        ("by_tensor(topk(0.1), match=3)", "match must be a pattern of tensor names"),
        ("by_tensor(topk(0.1), match='')", "match must be a pattern of tensor names"),
        ("by_tensor(topk(0.1) | ans(), others=fp16() | huffman())", "one coder, got ans and huffman"),
        ("by_tensor(topk(0.1)) | fp16()", "wrap the whole pipeline"),
    ],
)
def test_refused(text, reason):
    with pytest.raises(gw.ConfigError, match=reason):
        gw.parse(text)


C, U, A, N = gw.Contractive, gw.Unbiased, gw.Absolute, gw.Unknown()


@pytest.mark.parametrize(
    ("a", "b", "both"),
    [
        (C(0.5), C(0.1), C(0.1)),
        (C(1.0), C(0.1), C(0.1)),
        (C(1.0), U(3.0), U(3.0)),
        (C(1.0), A(0.5), A(0.5)),
        (C(1.0), N, N),
        (U(1.0), U(2.0), U(2.0)),
        (A(1.0), A(2.0), A(2.0)),
        (C(0.5), U(0.25), C(0.5)),
        (C(0.5), U(0.75), C(0.25)),
        (C(0.5), U(1.5), N),
        (C(0.5), A(1.0), N),
        (U(0.5), A(1.0), N),
        (N, C(0.5), N),
    ],
)
def test_weaker(a, b, both):
    assert weaker(a, b) == weaker(b, a) == both


# --- warmup -----------------------------------------------------------------------------------------


def test_each_round_is_the_one_compressors_or_the_others():
    layout, update = cases.model_layout(D), vector(1)
    first, later = gw.parse("topk(0.5) | fp16()"), gw.parse("randk(0.2)")
    compressor = warmup(later, 3, first)
    for index in range(6):
        round = {"index": index, "key": gw.Key(1, index, 2)}
        expected = compress(first if index < 3 else later, update, layout, **round)
        assert gw.encode(compress(compressor, update, layout, **round)) == gw.encode(expected)
    assert gw.encode(compress(warmup(later, 0, first), update, layout)) == gw.encode(compress(later, update, layout))
    payload, _ = compressor.compress(update, compressor.init(layout))
    assert gw.decompress(payload).tobytes() == gw.decompress(compress(first, update, layout)).tobytes()


def test_both_keep_their_memory():
    """Nested warm-ups of schemes that all remember Q: each goes on from its own."""
    layout = layout_of(w=(8, 6))
    compressor = warmup(warmup(powersgd(3), 4, powersgd(2)), 2, warmup(powersgd(1), 1, powersgd(2)))
    state = compressor.init(layout)
    names = {"q": 18, "first.q": 12, "first.first.q": 6, "first.first.first.q": 12}
    assert {name: array.size for name, array in state.memory.items()} == names
    turns = ["first.first.first.q", "first.first.q", "first.q", "first.q", "q", "q"]
    for index, turn in enumerate(turns):
        before = {name: array.copy() for name, array in state.memory.items()}
        _, state = compressor.compress(vector(index, 48), state, gw.Round(index=index))
        assert [n for n in names if not np.array_equal(before[n], state.memory[n])] == [turn]
    client, again = (gw.Client(compressor, layout) for _ in range(2))
    for index in range(5):
        client.compress(vector(index, 48), round=index)
    again.load_state_dict(client.state_dict())
    assert again.compress(vector(9, 48), round=5) == client.compress(vector(9, 48), round=5)


def test_memory_of_a_warm_up_alone_is_the_later_ones():
    layout = gw.Layout.flat(D)
    assert set(warmup(ef(gw.topk(0.1)), 3).init(layout).memory) == {"residual"}
    assert set(warmup(momentum_correction(gw.topk(0.1)), 3).init(layout).memory) == {"residual", "momentum"}
    assert gw.Client(warmup(gw.topk(0.1), 3), layout).state_dict()["residual"] is None


WARM = ["warmup(ef(topk(0.1)), 3)", "ef(warmup(topk(0.1), 3))", "ef(warmup(topk(0.1), 3, fp16()))",
        "ef(warmup(topk(0.1), 2, first=randk(0.3)))"]  # fmt: skip


@pytest.mark.parametrize("spec", WARM)
@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(test_laws.ACTIONS), st.integers(0, 2)), min_size=10, max_size=60))
def test_warm_up_conserves(spec, steps):
    world = test_laws.World(spec, cases.model_layout(D), 3)
    world.play(steps)


def test_warm_up_in_phases():
    class Summed(gw.Compressor):
        def __init__(self, factor):
            self.factor = factor

        def init(self, layout):
            return gw.State(layout, {"rounds": 0})

        def compress(self, update, state, round=None):
            raise NotImplementedError

        def guarantee(self, d):
            return gw.Unknown()

        @property
        def summable(self):
            return True

        def phases(self, update, state, round=None):
            total = yield update * self.factor
            return total, gw.State(state.layout, {"rounds": state.memory["rounds"] + 1})

    compressor = warmup(Summed(2), 2, Summed(3))
    assert compressor.summable
    assert not warmup(Summed(2), 2, gw.topk(0.1)).summable
    state = compressor.init(gw.Layout.flat(2))
    for index in range(5):
        run = compressor.phases(np.ones(2, np.float32), state, gw.Round(index=index))
        assert next(run).tolist() == ([3, 3] if index < 2 else [2, 2])
        with pytest.raises(StopIteration) as end:
            run.send(np.ones(2, np.float32))
        state = end.value.value[1]
    assert state.memory == {"rounds": 3, "first.rounds": 2}


# --- by_tensor --------------------------------------------------------------------------------------

MODEL = layout_of(
    conv__weight=(6, 2, 3, 3), conv__bias=(6,), norm__weight=(6,), empty__weight=(0, 4), scalar=(),
    bn__running_mean=(6,), mid__weight=(10, 12), head__weight=(3, 12), head__bias=(3,), bn__running_var=(6,),
)  # fmt: skip


def indices_of(layout: gw.Layout, names: list[str]) -> np.ndarray:
    return np.concatenate([np.arange(t.offset, t.stop) for t in layout.tensors if t.name in names])


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ({"min_elements": 100}, ["conv.weight", "mid.weight"]),
        ({"min_elements": 0}, ["conv.weight", "mid.weight", "head.weight"]),
        ({"min_elements": 0, "match": "[hm]*.weight"}, ["mid.weight", "head.weight"]),
        ({"min_elements": 0, "match": "CONV*"}, []),
        ({}, []),
    ],
)
def test_against_numpy(rule, names):
    """The k largest of all matrices together, everything else as it is."""
    update = vector(2, MODEL.d)
    got = gw.decompress(compress(by_tensor(gw.topk(0.2), **rule), update, MODEL))
    expected = update.copy()
    if names:
        at = indices_of(MODEL, names)
        order = np.argsort(-np.abs(update[at]), kind="stable")
        expected[at[order[round(0.2 * at.size) :]]] = 0
    assert np.array_equal(got, expected)


INNER = ["topk(0.2)", "dense()", "topk(0.3, scope='tensor')", "topk(0.3, scope=7)", "topk(0.2) | uniform(4)",
         "uniform(3, scope=5)", "topk(0.4) | uniform(5, scope=6)", "uniform(1, scope='model')", "bf16() | ans()",
         "topk(0.3) | fp16()"]  # fmt: skip
shapes = st.lists(st.sampled_from([(3, 4), (5,), (2, 2), (), (0, 3), (4, 5), (1, 1), (7,)]), max_size=9)


def _is_matrix(shape: tuple[int, ...], min_elements: int) -> bool:
    return len(shape) >= 2 and int(np.prod(shape)) >= min_elements


@settings(max_examples=up_to(150), deadline=None)
@given(shapes, st.sampled_from(INNER), st.sampled_from(INNER), st.integers(0, 13), st.booleans(), st.integers(0, 99))
def test_is_both_side_by_side(shapes, chosen, others, min_elements, statistics, seed):
    """What arrives is, bit for bit, what each compressor makes of its own tensors alone."""
    named = {f"t{i}": s for i, s in enumerate(shapes)} | ({"bn.running_mean": (3,)} if statistics else {})
    layout = layout_of(**named)
    update = vector(seed, layout.d)
    update[np.random.default_rng(seed).random(layout.d) < 0.2] = 0
    compressor = by_tensor(
        gw.parse(chosen), gw.parse("uniform(2) | ans()" if "ans" in chosen else others), min_elements
    )
    before = update.copy()
    payload = compress(compressor, update, layout)
    assert np.array_equal(update, before)
    expected = update.copy()
    for inner, kind in ((compressor.compressor, True), (compressor.others, False)):
        mine = {n: s for n, s in named.items() if _is_matrix(s, min_elements) == kind and "." not in n}
        if sum(int(np.prod(s)) for s in mine.values()):
            at = indices_of(layout, list(mine))
            mine = {n: s for n, s in mine.items() if 0 not in s}
            expected[at] = gw.decompress(compress(inner, update[at], layout_of(**mine)))
    assert np.array_equal(gw.decompress(payload), expected)
    blob = gw.encode(payload)
    assert gw.decode(blob) == payload
    assert (payload.round, payload.sequence, payload.layout_digest) == (3, 3, layout.digest)
    assert ("ans" in chosen or "ans" in others) >= (payload.coder == "ans")
    empty = [part.support.num_kept == 0 for part in payload.parts]
    assert not any(a and b for a, b in itertools.pairwise(empty)), "neighbouring empty parts"
    update[:] = 7
    assert gw.encode(payload) == blob, "the payload shares memory with the update"


def test_as_few_parts_as_can_be():
    layout = layout_of(a=(8, 8), b=(8, 8), c=(4,), d=(4,), e=(8, 8), f=(4,))
    update = vector(1, layout.d)
    parts = compress(by_tensor(gw.topk(0.25), min_elements=64), update, layout).parts
    assert [p.length for p in parts] == [128, 8, 64, 4]
    assert [type(p.support) for p in parts] == [Explicit, Every, Explicit, Every]
    assert parts[0].support.cuts == (64,)
    update[:] = 0
    assert [p.length for p in compress(by_tensor(gw.topk(0.25), min_elements=64), update, layout).parts] == [layout.d]


@pytest.mark.parametrize("spec", ["randk(0.2)", "randk(0.2, shared=True) | fp16()"])
def test_seeded_supports_cannot_be_cut(spec):
    rule = by_tensor(gw.parse(spec), min_elements=4)
    apart = layout_of(a=(4, 4), b=(4,), c=(4, 4))
    client = gw.Client(rule, apart)
    with pytest.raises(gw.ConfigError, match=r"by_tensor cannot use randk\(0.2.*kind Seeded"):
        client.compress(vector(1, apart.d))
    together = layout_of(a=(4, 4), c=(4, 4), b=(4,))
    update = vector(1, together.d)
    blob = gw.Client(rule, together).compress(update)
    assert gw.inspect(blob)["num_kept"] == 6 + 4
    assert np.array_equal(gw.decompress(gw.decode(blob))[-4:], update[-4:])


def test_budget_is_met_with_fewer_entries_of_the_matrices():
    layout = layout_of(a=(40, 40), b=(20,), c=(30, 40))
    update = vector(1, layout.d)
    client = gw.Client(ef(by_tensor(gw.parse("topk(0.9) | uniform(4)"))), layout)
    kept = []
    for num_bytes in (200, 400, 800):
        blob = client.compress(update, num_bytes=num_bytes)
        assert num_bytes - 12 <= len(blob) <= num_bytes
        kept.append(gw.inspect(blob)["num_kept"])
        assert gw.decode(blob).num_kept >= 20
    assert kept == sorted(kept)
    with pytest.raises(gw.ConfigError, match="num_bytes must be at least"):
        client.compress(update, num_bytes=80)
    with pytest.raises(gw.ConfigError, match=r"num_bytes must be at least \d+ for by_tensor\(fp16"):
        gw.Client(by_tensor(gw.fp16()), layout).compress(update, num_bytes=80)


def test_the_two_round_independently():
    """Stochastic rounding of equal numbers by the same stage must not come out alike in both."""
    layout = layout_of(a=(40, 40), b=(1600,))
    update = np.tile(np.linspace(-1, 1, 1600, dtype=np.float32), 2)
    stage = gw.parse("uniform(3, stochastic=True)")
    arrived = gw.decompress(compress(by_tensor(stage, stage), update, layout)).reshape(2, 1600)
    errors = arrived - update.reshape(2, 1600)
    assert abs(np.corrcoef(errors)[0, 1]) < 0.15


STAGES = ["topk(0.01)", "topk(0.3)", "randk(0.07)", "randk(0.07, unbiased=True)", "topk(0.05) | uniform(4)",
          "uniform(1)", "uniform(2)", "uniform(4, stochastic=True)", "fp16()", "topk(1.0)", "randk(0.2) | bf16()",
          "topk(0.05, scope='tensor') | uniform(1)"]  # fmt: skip


@pytest.mark.parametrize("spec", STAGES)
def test_guarantee_holds_for_groups_of_any_size(spec):
    stage = gw.parse(spec)
    for d in (1, 2, 49, 50, 99, 149, 151, 400, 1001):
        promised = by_tensor(stage).guarantee(d)
        for n in range(1, d + 1):
            mine = stage.guarantee(n)
            assert type(mine) is type(promised)
            if isinstance(mine, gw.Contractive):
                assert promised.delta <= mine.delta * (1 + 1e-12), (d, n)
            else:
                assert promised.omega >= mine.omega * (1 - 1e-12), (d, n)


@pytest.mark.parametrize(
    ("spec", "guarantee"),
    [
        ("by_tensor(dense())", C(1.0)),
        ("by_tensor(topk(0.1))", C(0.05)),
        ("by_tensor(randk(0.1, unbiased=True))", U(19.0)),
        ("by_tensor(topk(0.1), others=by_tensor(topk(0.5)))", C(0.05)),
        ("by_tensor(fp16(), others=randk(0.1, unbiased=True))", N),
    ],
)
def test_guarantee(spec, guarantee):
    assert gw.parse(spec).guarantee(1000) == guarantee


def test_rules_inside_rules():
    """Matrices sparse, large vectors in half precision, the rest whole."""
    update = vector(4, MODEL.d)
    rule = gw.parse("by_tensor(topk(0.1), others=by_tensor(fp16(), min_elements=30), min_elements=100)")
    got = gw.decompress(compress(rule, update, MODEL))
    half = indices_of(MODEL, ["head.weight"])
    assert np.array_equal(got[half], update[half].astype(np.float16).astype(np.float32))
    whole = indices_of(MODEL, ["conv.bias", "norm.weight", "scalar", "head.bias", "bn.running_mean", "bn.running_var"])
    assert np.array_equal(got[whole], update[whole])
    sparse = indices_of(MODEL, ["conv.weight", "mid.weight"])
    assert np.count_nonzero(got[sparse]) == round(0.1 * sparse.size)


RULES = ["ef(by_tensor(topk(0.1), min_elements=2))",
         "ef(by_tensor(topk(0.2) | uniform(4, scope=3), others=bf16(), min_elements=2))"]  # fmt: skip


@pytest.mark.parametrize("spec", RULES)
@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(test_laws.ACTIONS), st.integers(0, 2)), min_size=10, max_size=60))
def test_by_tensor_conserves(spec, steps):
    world = test_laws.World(spec, layout_of(a=(4, 4), b=(3,), c=(2, 4), d=(5,), bn__running_var=(4,)), 3)
    world.play(steps)


def test_packets_of_by_tensor():
    update = vector(5, MODEL.d)
    client, server = (make(by_tensor(gw.topk(0.2), min_elements=0), MODEL) for make in (gw.Client, gw.Server))
    for blob in client.packets(update, mtu=100):
        server.receive(blob)
    whole = gw.decompress(compress(by_tensor(gw.topk(0.2), min_elements=0), update, MODEL))
    assert np.array_equal(server.close_round().update, whole)


def test_what_a_schedule_promises_of_any_length():
    compressor = gw.parse("by_tensor(adaptopk(0.05, rounds=4, t_hat=2), min_elements=1)")
    layout = gw.Layout.from_arrays({"matrix": np.zeros((69, 1), np.float32), "bias": np.zeros(22, np.float32)})
    update = np.concatenate([np.ones(69), np.zeros(22)]).astype(np.float32)
    payload, _ = compressor.compress(update, compressor.init(layout), gw.Round(index=1))
    share = np.sum((update - gw.decompress(payload)) ** 2) / np.sum(update**2)
    assert share <= 1 - compressor.guarantee(layout.d).delta
