"""Momentum in front of a compressor: against its definition in float64, and what loss, gaps and faults make of it."""

from __future__ import annotations

import numpy as np
import pytest
import test_conformance
import test_feedback
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
import gradwire as gw
import test_laws
from gradwire.compressors.feedback import has_feedback, has_momentum
from gradwire.federated.algorithms.controls import Controls

D = 40
LAYOUTS = {"flat": gw.Layout.flat(D), "model": cases.model_layout(D)}
MU = 0.8


def vectors(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sent(blob: bytes) -> np.ndarray:
    return gw.decompress(gw.decode(blob))


class Followed:
    """gain v of the definition, in float64: each update weighs mu to the power of its age."""

    def __init__(self, mu: float, gain: float | None, layout: gw.Layout) -> None:
        self.mu, self.gain, self.layout = mu, gain, layout
        self.updates: list[tuple[int, np.ndarray]] = []

    def __call__(self, update: np.ndarray, index: int) -> np.ndarray:
        self.updates.append((index, update.astype(np.float64)))
        weights = np.array([self.mu ** (index - then) for then, _ in self.updates])
        total = weights @ np.array([u for _, u in self.updates])
        total = total / weights.sum() if self.gain is None else total * self.gain
        total[self.layout.num_parameters :] = update[self.layout.num_parameters :]
        return total


# --- the definition ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [None, 0.5, 3.0])
@pytest.mark.parametrize("mu", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("shape", LAYOUTS)
def test_what_is_compressed_is_the_fading_sum(shape, mu, gain):
    """Rounds are missed on the way, and the first one too."""
    layout = LAYOUTS[shape]
    client = gw.Client(gw.momentum(gw.dense(), mu, gain), layout)
    follow = Followed(mu, gain, layout)
    for index in (3, 4, 5, 9, 10, 40, 41):
        update = vectors(index, D)
        np.testing.assert_allclose(sent(client.compress(update, round=index)), follow(update, index), atol=1e-5)


@pytest.mark.parametrize("mu", [0.3, 0.9])
def test_without_gaps_the_gain_is_in_closed_form(mu):
    client, velocity = gw.Client(gw.momentum(gw.dense(), mu), LAYOUTS["flat"]), np.zeros(D)
    for index in range(12):
        update = vectors(index, D)
        velocity = mu * velocity + update
        gain = (1 - mu) / (1 - mu ** (index + 1))  # index rounds taken part in before
        np.testing.assert_allclose(sent(client.compress(update, round=index)), gain * velocity, atol=1e-5)
    assert gain < 2 * (1 - mu)


@settings(max_examples=30, deadline=None)
@given(mu=st.floats(0, 0.999), gaps=st.lists(st.integers(1, 1000), min_size=1, max_size=12))
def test_a_constant_update_is_sent_as_it_is_whoever_sat_out(mu, gaps):
    client, update = gw.Client(gw.momentum(gw.dense(), mu), LAYOUTS["model"]), vectors(0, D)
    for index in np.cumsum(gaps).tolist():
        np.testing.assert_allclose(sent(client.compress(update, round=index)), update, rtol=1e-5)


def test_who_was_away_for_long_is_as_if_new():
    client, fresh = (gw.Client(gw.momentum(gw.topk(0.5), MU, gain=0.5), LAYOUTS["flat"]) for _ in range(2))
    for index in range(5):
        client.compress(100 * vectors(index, D), round=index)
    away, new = (sent(c.compress(vectors(9, D), round=2000)) for c in (client, fresh))
    np.testing.assert_array_equal(away, new)


def test_several_payloads_of_a_round_fade_once_each():
    """So that v is bounded by 1 / (1 - mu) updates whatever a host does."""
    client = gw.Client(gw.momentum(gw.dense(), 0.5, gain=1.0), gw.Layout.flat(1))
    found = [float(sent(client.compress(np.ones(1, np.float32), round=7))[0]) for _ in range(4)]
    assert found == [1.0, 1.5, 1.75, 1.875]


def test_of_a_single_update_it_is_the_inner_compressor():
    for text in ("qsgd(4)", "topk(0.1) | uniform(4)", "ef(topk(0.1))"):
        inner, outer = gw.parse(text), gw.momentum(gw.parse(text), MU)
        for index in range(3):
            make = [gw.Client(c, LAYOUTS["model"], seed=3) for c in (inner, outer)]
            blobs = [client.compress(vectors(1, D), round=index) for client in make]
            assert blobs[0] == blobs[1]
        without = gw.Client(gw.momentum(inner, 0.0), LAYOUTS["model"], seed=3)
        plain = gw.Client(inner, LAYOUTS["model"], seed=3)
        for index in range(3):
            assert without.compress(vectors(index, D), round=index) == plain.compress(vectors(index, D), round=index)


# --- promises ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["qsgd(4)", "ternary()", "natural()", "randk(0.2, unbiased=True)"])
def test_what_is_unbiased_stays_so_of_what_is_compressed(inner):
    """Given the past: the same state, and many keys."""
    compressor, layout = gw.momentum(gw.parse(inner), MU, gain=0.7), gw.Layout.flat(100)
    state, follow = compressor.init(layout), Followed(MU, 0.7, layout)
    for index in range(4):
        _, state = compressor.compress(vectors(index, 100), state, gw.Round(index=index))
        follow(vectors(index, 100), index)
    expected = follow(vectors(9, 100), 6).astype(np.float32)
    drawn = []
    for seed in range(600):
        again = gw.State(layout, dict(state.memory))
        payload, _ = compressor.compress(vectors(9, 100), again, gw.Round(index=6, key=gw.Key(seed, 6, 0)))
        drawn.append(gw.decompress(payload))
    omega = compressor.compressor.guarantee(100).omega
    test_conformance._check_unbiased(np.array(drawn, np.float64), expected, omega)


def test_guarantees():
    assert gw.momentum(gw.qsgd(4), MU).guarantee(100) == gw.Unknown()
    assert gw.momentum(gw.qsgd(4), 0.0).guarantee(100) == gw.qsgd(4).guarantee(100)
    assert gw.momentum(gw.qsgd(4), 0.0, gain=1.0).guarantee(100) == gw.qsgd(4).guarantee(100)
    assert gw.momentum(gw.qsgd(4), 0.0, gain=2.0).guarantee(100) == gw.Unknown()


@pytest.mark.parametrize("text", ["momentum(topk(0.3), 0.9)", "momentum(qsgd(2), 0.9, gain=4.0)"])
def test_updates_as_large_as_told_are_taken_for_ever(text):
    compressor, layout, rng = gw.parse(text), LAYOUTS["flat"], np.random.default_rng(0)
    state, index = compressor.init(layout), 0
    for _ in range(40):
        largest = compressor.largest_update(state)
        assert largest > 1e35
        index += int(rng.integers(1, 3))
        update = (largest * rng.choice([-1, 1, 1, 1], D)).astype(np.float32)
        payload, state = compressor.compress(update, state, gw.Round(index=index))
        assert np.isfinite(gw.decompress(payload)).all()


# --- loss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["qsgd(4)", "topk(0.1)", "ef(topk(0.1))", "ef21(topk(0.1))"])
def test_a_lost_payload_leaves_the_momentum_as_it_is(inner):
    compressor, layout = gw.momentum(gw.parse(inner), MU), LAYOUTS["model"]
    clients = [gw.Client(compressor, layout) for _ in range(2)]
    server = gw.Server(compressor, layout, num_clients=2)
    for index in range(6):
        for client in clients:
            client.compress(vectors(index, D))
        blob = server.close_round().blob
        clients[0].end_round(blob, delivered=True)
        clients[1].end_round(blob, delivered=False)
    found = [client.state_dict()["scheme"] for client in clients]
    for name in ("momentum", "momentum_weight", "momentum_round"):
        np.testing.assert_array_equal(found[0][name], found[1][name])
    if not has_feedback(compressor):
        assert clients[0].compress(vectors(7, D)) == clients[1].compress(vectors(7, D)), "nothing is given back"


class MomentumHost(test_laws.Host):
    """A host whose raw updates are gain v, followed in float64."""

    def __init__(self, compressor, layout, number):
        super().__init__(compressor, layout, number)
        self.velocity, self.weight, self.before = np.zeros(layout.d), 0.0, 0

    def compress(self, update, round):
        self.client.compress(update, round=round)
        decay = MU ** max(1, round - self.before)
        self.velocity, self.weight, self.before = decay * self.velocity + update, decay * self.weight + 1, round
        moved = self.velocity / self.weight
        moved[self.layout.num_parameters :] = update[self.layout.num_parameters :]
        self.raw += moved
        self.norms += float(np.linalg.norm(moved))
        self.saved = self.client.state_dict()


STEPS = st.lists(st.tuples(st.sampled_from(test_laws.ACTIONS), st.integers(0, 2)), min_size=10, max_size=60)


@pytest.mark.parametrize("inner", ["ef(topk(0.2) | uniform(4))", "ef(warmup(randk(0.2), 2))"])
@pytest.mark.parametrize("shape", LAYOUTS)
@settings(max_examples=10, deadline=None)
@given(steps=STEPS)
def test_what_feedback_inside_compresses_is_conserved(inner, shape, steps):
    spec = f"momentum({inner}, {MU})"
    world = test_laws.World(spec, LAYOUTS[shape], 3)
    world.hosts = [MomentumHost(gw.parse(spec), LAYOUTS[shape], i) for i in range(3)]
    world.play(steps)


@settings(max_examples=20, deadline=None)
@given(steps=STEPS)
def test_mirrors_inside_agree_under_any_pattern(steps):
    world = test_feedback.MirrorWorld(f"momentum(ef21(topk(0.1)), {MU})", LAYOUTS["model"], 3)
    world.play(steps)


def test_round_a_mirror_it_is_ef21_sgdm_in_numpy():
    """v <- (1 - eta) v + eta grad; c = C(v - g), g <- g + c; the mean of the g_i is the step."""
    eta, layout = 0.2, LAYOUTS["flat"]
    compressor = gw.momentum(gw.parse("ef21(topk(0.1))"), 1 - eta, gain=eta)
    clients = [gw.Client(compressor, layout, client_id=i) for i in range(3)]
    server = gw.Server(compressor, layout, num_clients=3)
    v, g = np.zeros((3, D)), np.zeros((3, D))
    for index in range(30):
        gradients = [vectors(10 * index + i, D) for i in range(3)]
        for i, client in enumerate(clients):
            server.receive(client.compress(gradients[i]), i)
        result = server.close_round()
        for client in clients:
            client.end_round(result.blob)
        v = (1 - eta) * v + eta * np.array(gradients, np.float64)
        g += [test_feedback.numpy_topk(row, 4) for row in v - g]
        np.testing.assert_allclose(result.update, g.mean(axis=0), atol=1e-5)


# --- state ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["qsgd(4)", "ef(topk(0.1) | uniform(4))", "tcs(0.1, 0.05)"])
def test_a_restored_client_goes_on_with_the_same_bytes(inner):
    compressor, layout = gw.momentum(gw.parse(inner), MU), LAYOUTS["model"]
    client, server = gw.Client(compressor, layout, seed=4), gw.Server(compressor, layout, seed=4)
    for index in (0, 1, 5):
        server.receive(client.compress(vectors(index, D)))
        client.end_round(server.close_round().blob)
    again = gw.Client(compressor, layout, seed=4)
    again.load_state_dict(client.state_dict())
    assert again.compress(vectors(9, D), round=9) == client.compress(vectors(9, D), round=9)


@pytest.mark.parametrize(
    ("name", "value"),
    [("momentum", np.zeros(D - 1, np.float32)), ("momentum", np.full(D, np.inf, np.float32)), ("momentum_weight", -1.0),
     ("momentum_weight", 1), ("momentum_round", -1), ("momentum_round", 0.5)],
)  # fmt: skip
def test_states_that_none_can_have_are_refused(name, value):
    client = gw.Client(gw.momentum(gw.topk(0.1), MU), LAYOUTS["flat"])
    state = client.state_dict()
    state["scheme"] = {**state["scheme"], name: value}
    with pytest.raises(gw.StateError, match=name):
        client.load_state_dict(state)


def test_what_is_refused_changes_nothing():
    client = gw.Client(gw.momentum(gw.topk(0.1), MU, gain=2.0), LAYOUTS["model"])
    client.compress(np.full(D, 1e38, np.float32))
    before = client.state_dict()
    for update, reason in ((2.9e38, "momentum must be finite"), (1.7e38, r"gain \* momentum must be finite")):
        with pytest.raises(gw.UpdateError, match=reason):
            client.compress(np.full(D, update, np.float32))
    with pytest.raises(gw.ConfigError, match="num_bytes"):
        client.compress(vectors(0, D), num_bytes=1)
    after = client.state_dict()
    for name, value in before["scheme"].items():
        np.testing.assert_array_equal(after["scheme"][name], value)


# --- what wraps what --------------------------------------------------------------------------------


def test_phases_exchange_the_mean_of_what_is_compressed():
    layout = gw.Layout.from_arrays({"w": np.zeros((8, 5), np.float32)})
    inner = gw.powersgd(1)
    outer = gw.momentum(inner, MU)
    assert outer.summable
    assert not gw.momentum(gw.topk(0.1), MU).summable
    states, plain = [outer.init(layout) for _ in range(2)], [inner.init(layout) for _ in range(2)]
    follow = [Followed(MU, None, layout) for _ in range(2)]
    for index in range(4):
        updates = vectors(index, 2, D)
        moved = np.array([f(u, index) for f, u in zip(follow, updates, strict=True)], np.float32)
        expected, plain = test_feedback.exchange(inner, moved, plain, index)
        mean, states = test_feedback.exchange(outer, updates, states, index)
        np.testing.assert_allclose(mean, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("momentum(3, 0.8)", "momentum wraps a compressor, got 3"),
        ("momentum(topk(0.1), 1.0)", r"mu must be in \[0, 1\), got 1.0"),
        ("momentum(topk(0.1), -0.1)", r"mu must be in \[0, 1\), got -0.1"),
        ("momentum(topk(0.1), 'a')", "mu must be a number, got 'a'"),
        ("momentum(topk(0.1), 0.8, gain=0)", "gain must be above 0, got 0.0"),
        ("momentum(topk(0.1), 0.8, gain=1e309)", "gain must be finite"),
        ("momentum(momentum(topk(0.1), 0.8), 0.5)", "one momentum is enough"),
        ("momentum(momentum_correction(topk(0.1)), 0.5)", "one momentum is enough"),
        ("momentum(warmup(ef(momentum(topk(0.1), 0.8)), 3), 0.5)", "ef cannot wrap momentum"),
        ("ef(momentum(topk(0.1), 0.8))", r"ef cannot wrap momentum\(topk\(0.1\), 0.8\).*put momentum outside"),
        ("ef(momentum(topk(0.1), 0.8), unchecked=True)", "put momentum outside"),
        ("ef(warmup(momentum(topk(0.1), 0.8), 3), unchecked=True)", "put momentum outside"),
        ("ef21(momentum(topk(0.1), 0.8))", "put momentum outside"),
        ("momentum_correction(momentum(topk(0.1), 0.8))", "put momentum outside"),
        ("warmup(topk(0.1), 3, first=momentum(topk(0.5), 0.8))", r"write momentum\(warmup"),
        ("warmup(momentum(ef21(topk(0.1)), 0.8), 3)", "warmup cannot switch to or from momentum"),
        ("by_tensor(momentum(topk(0.1), 0.8))", "put by_tensor inside"),
        ("momentum(topk(0.1), 0.8) | fp16()", "wrap the whole pipeline"),
    ],
)
def test_refused(text, reason):
    with pytest.raises(gw.ConfigError, match=reason):
        gw.parse(text)


def test_feedback_outside_would_take_momentum_back():
    """Why it is refused: with a residual round momentum what is sent of an update that stays is that update again."""
    inner, update = gw.momentum(gw.dense(), 0.9, gain=1.0), vectors(0, D)
    for feedback, expected in ((0, update / (1 - 0.9)), (1, update)):
        state, residual = inner.init(gw.Layout.flat(D)), np.zeros(D, np.float32)
        for index in range(300):
            corrected = feedback * residual + update
            payload, state = inner.compress(corrected, state, gw.Round(index=index))
            residual = corrected - gw.decompress(payload)
        np.testing.assert_allclose(gw.decompress(payload), expected, rtol=1e-3)


def test_what_is_told_of_it():
    for text in ("momentum(qsgd(4), 0.8)", "momentum(ef(topk(0.1)), 0.8, gain=0.5)", "momentum(ef21(topk(0.1)), 0.9)"):
        compressor = gw.parse(text)
        assert str(compressor) == text
        assert has_momentum(compressor)
        assert has_feedback(compressor) == has_feedback(compressor.compressor)
        assert compressor.mirrored == compressor.compressor.mirrored
    assert gw.momentum(gw.parse("tcs(0.1, 0.1)"), 0.5).uses_reference
    assert gw.momentum(gw.parse("regtopk(0.1)"), 0.5).needs_mean
    assert gw.momentum(gw.parse("cyclic(0.1)"), 0.5).shares == "whole"
    assert gw.momentum(gw.parse("adaptopk(0.1)"), 0.5).uses_num_rounds


@pytest.mark.parametrize("text", ["momentum(qsgd(4), 0.8)", "momentum_correction(topk(0.1))"])
def test_control_variates_do_not_travel_with_momentum(text):
    with pytest.raises(gw.ConfigError, match="control variates cannot travel with momentum"):
        Controls(gw.parse(text), gw.dense(), LAYOUTS["flat"], 0, 3, 10)
