"""What feedback asks of a compressor: what is promised holds in the mean, and then the residual stays small."""

from __future__ import annotations

import numpy as np
import pytest

import gradwire as gw
from gradwire.compressors.guarantee import as_contraction, compose

SPECS = [
    "uniform(8, stochastic=True)",
    "qsgd(32)",
    "topk(0.999) | uniform(8, stochastic=True)",
    "topk(0.999) | qsgd(32)",
    "topk(0.005) | ternary()",
    "randk(0.6, unbiased=True)",
    "cyclic(0.5) | qsgd(32)",
    "randk(0.005) | uniform(2, stochastic=True, affine=True)",
]
D = 1024
RNG = np.random.default_rng(0)
WORST = np.append(1.0, np.full(D - 1, 0.9 / 127))  # most numbers half a step or so from a point
INPUTS = {
    "normal": RNG.standard_normal(D),
    "equal": np.where(np.arange(D) % 2, 1.0, -1.0),
    "spike": np.append(1.0, np.full(D - 1, 1e-3)),
    "worst": WORST,
    "heavy": RNG.standard_cauchy(D),
}


def test_unbiased_with_little_variance_is_a_contraction():
    assert as_contraction(gw.Unbiased(0.25)) == gw.Contractive(0.75)
    assert as_contraction(gw.Unbiased(1.0)) == gw.Contractive(0.0)
    for other in (gw.Unbiased(1.01), gw.Contractive(0.3), gw.Absolute(2.0), gw.Unknown()):
        assert as_contraction(other) == other
    assert compose(gw.Contractive(0.5), gw.Unbiased(0.5)) == gw.Contractive(0.25)
    assert compose(gw.Contractive(1.0), gw.Unbiased(0.5)) == gw.Unbiased(0.5)
    assert compose(gw.Absolute(1.0), gw.Unbiased(0.5)) == gw.Contractive(0.0)
    assert compose(gw.Contractive(0.5), gw.Unbiased(1.5)) == gw.Unknown()


def test_a_quantizer_promises_for_what_the_sparsifier_sends():
    """k numbers, not d: in closed form."""
    for spec, d, delta in (
        ("topk(0.01) | sign()", 1000, 0.01 / 10),
        ("randk(0.01) | ternary()", 400, 0.01 * (1 - (4**0.5 - 1) / 2)),
        ("cyclic(0.5) | sign()", 10, 0.0),
        ("tcs(0.1, 0.1) | sign()", 100, 0.1 / 20),
        ("regtopk(0.1) | sign()", 100, 0.0),
    ):
        assert gw.parse(spec).guarantee(d).delta == pytest.approx(delta)
    for spec in ("topk(0.01, scope='tensor') | sign()", "topk(0.01, scope=10) | sign()"):
        assert gw.parse(spec).guarantee(1000).delta == pytest.approx(0.01 * 2 / 3 / 1000)
    assert gw.parse("topk(num_bytes=90) | sign()").guarantee(1000) == gw.Contractive(0.0)


@pytest.mark.parametrize("spec", SPECS)
def test_feedback_takes_what_contracts(spec):
    compressor = gw.parse(f"ef({spec})")
    assert gw.parse(str(compressor)) == compressor
    assert isinstance(as_contraction(compressor.compressor.guarantee(D)), gw.Contractive)
    compressor.init(gw.Layout.flat(D))


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("spec", SPECS)
def test_what_is_lost_in_the_mean(spec, name):
    compressor, x = gw.parse(spec), INPUTS[name].astype(np.float32)
    state = compressor.init(gw.Layout.flat(D))
    lost = []
    for index in range(300):
        payload, _ = compressor.compress(x, state, gw.Round(index=index, key=gw.Key(1, index, 0)))
        lost.append(np.square(gw.decompress(payload).astype(np.float64) - x).sum())
    delta = as_contraction(compressor.guarantee(D)).delta
    norm = np.square(x, dtype=np.float64).sum()
    error = np.std(lost) / len(lost) ** 0.5
    if "cyclic" in spec:  # for each round, not in the mean over them
        assert max(lost) <= (1 - delta) * norm * (1 + 1e-6) + 20 * error
    assert np.mean(lost) <= (1 - delta) * norm * (1 + 1e-6) + 4 * error


@pytest.mark.parametrize("spec", SPECS)
def test_the_residual_stays_small(spec):
    """Karimireddy et al. 2019, Lemma 3: E|e|^2 <= 4 (1 - delta) / delta^2 |u|^2."""
    compressor = gw.parse(f"ef({spec})")
    delta = as_contraction(compressor.compressor.guarantee(D)).delta
    state, rng = compressor.init(gw.Layout.flat(D)), np.random.default_rng(1)
    largest = 0.0
    for index in range(60):
        update = rng.standard_normal(D).astype(np.float32)
        update *= np.float32(1 / np.linalg.norm(update))
        _, state = compressor.compress(update, state, gw.Round(index=index, key=gw.Key(2, index, 0)))
        largest = max(largest, float(np.square(state.memory["residual"], dtype=np.float64).sum()))
    if delta:
        assert largest <= 4 * (1 - delta) / delta**2
    assert largest <= 60**2, "an error is never longer than what it is of"


@pytest.mark.parametrize(
    ("inner", "d"),
    [
        ("qsgd(32)", 100_000),
        ("topk(0.999) | qsgd(32)", 100_000),
        ("uniform(8, stochastic=True)", 1_000_000),
        ("topk(0.005) | ternary()", 10_000),
    ],
)
def test_a_promise_that_does_not_hold_for_the_model_is_refused(inner, d):
    compressor = gw.parse(f"ef({inner})")
    with pytest.raises(gw.ConfigError, match=rf"needs a contractive compressor.* for {d} numbers.*unchecked=True"):
        gw.Client(compressor, gw.Layout.flat(d))
    gw.Client(gw.parse(f"ef({inner}, unchecked=True)"), gw.Layout.flat(d))
    for wrapper in ("ef21", "momentum_correction"):
        with pytest.raises(gw.ConfigError, match=rf"{wrapper} needs a contractive compressor.* for {d} numbers"):
            gw.parse(f"{wrapper}({inner})").init(gw.Layout.flat(d))


@pytest.mark.parametrize("inner", ["ternary()", "qsgd(4)", "topk(0.999) | qsgd(4)", "randk(0.4, unbiased=True)"])
def test_what_does_not_contract_is_refused_at_once(inner):
    with pytest.raises(gw.ConfigError, match=r"needs a contractive compressor.*without bound"):
        gw.parse(f"ef({inner})")


def test_without_the_promise_the_residual_grows():
    d = 4096
    compressor = gw.parse("ef(topk(0.999) | qsgd(4), unchecked=True)")
    state, rng = compressor.init(gw.Layout.flat(d)), np.random.default_rng(1)
    lengths = []
    for index in range(12):
        update = rng.standard_normal(d).astype(np.float32)
        _, state = compressor.compress(update, state, gw.Round(index=index, key=gw.Key(2, index, 0)))
        lengths.append(float(np.linalg.norm(state.memory["residual"])))
    assert lengths == sorted(lengths)
    assert lengths[-1] > 5 * 12 * d**0.5, "longer than all that ever came in"


def test_feedback_round_what_loses_nothing():
    assert gw.ef(gw.dense()).guarantee(10) == gw.Contractive(1.0)
    assert gw.ef(gw.topk(1.0), decay=0.5).guarantee(10) == gw.Contractive(1.0)
    assert gw.ef(gw.topk(0.5)).guarantee(10) == gw.Unknown()
    x = RNG.standard_normal(10).astype(np.float32)
    payload, state = gw.ef(gw.dense()).compress(x, gw.ef(gw.dense()).init(gw.Layout.flat(10)))
    assert gw.decompress(payload).tobytes() == x.tobytes()
    assert not state.memory["residual"].any()
