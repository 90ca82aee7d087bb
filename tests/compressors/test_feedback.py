"""ef in phases, ef21 with its mirrors, momentum correction: against the papers' rules in NumPy, and under loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
import gradwire as gw
import test_laws
from gradwire.compressors.feedback import ef, ef21, has_feedback, momentum_correction
from gradwire.compressors.lowrank import powersgd
from gradwire.compressors.rules import warmup

D = 40
LAYOUTS = {"flat": gw.Layout.flat(D), "model": cases.model_layout(D)}


def vectors(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def numpy_topk(x: np.ndarray, k: int) -> np.ndarray:
    out = np.zeros_like(x)
    kept = np.argsort(-np.abs(x), kind="stable")[:k]
    out[kept] = x[kept]
    return out


# --- ef in phases -----------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class _shared(gw.Compressor):
    """Coordinates that all workers draw alike: their values add up."""

    k: int

    def init(self, layout):
        return gw.State(layout, {"count": 0})

    def compress(self, update, state, round=None):
        raise NotImplementedError

    @property
    def summable(self):
        return True

    def phases(self, update, state, round=None):
        chosen = np.random.default_rng(round.index).choice(update.size, self.k, replace=False)
        total = yield update[chosen]
        mean = np.zeros_like(update)
        mean[chosen] = total / np.float32(round.num_workers)
        return mean, gw.State(state.layout, {**state.memory, "count": state.memory["count"] + 1})

    def guarantee(self, d):
        return gw.Contractive(self.k / max(d, self.k))


def exchange(compressor, updates, states, index):
    """One round of phases: every worker's arrays are summed until all are done."""
    agreed = gw.Round(index=index, num_workers=len(updates))
    runs = [compressor.phases(u, s, agreed) for u, s in zip(updates, states, strict=True)]
    answer, done = None, []
    while not done:
        sent = []
        for run in runs:
            try:
                sent.append(run.send(answer))
            except StopIteration as end:
                done.append(end.value)
        assert not (sent and done), "all workers finish together"
        answer = np.sum(sent, axis=0, dtype=np.float32) if sent else None
    means, states = zip(*done, strict=True)
    assert all(np.array_equal(m, means[0]) for m in means)
    return means[0], list(states)


@pytest.mark.parametrize("decay", [1.0, 0.75])
def test_phases_against_numpy(decay):
    compressor = ef(_shared(7), decay=decay)
    assert compressor.summable
    layout = gw.Layout.flat(D)
    states = [compressor.init(layout) for _ in range(3)]
    residuals = np.zeros((3, D), np.float64)
    for index in range(20):
        updates = vectors(index, 3, D)
        mean, states = exchange(compressor, updates, states, index)
        corrected = decay * residuals + updates
        chosen = np.random.default_rng(index).choice(D, 7, replace=False)
        expected = np.zeros(D)
        expected[chosen] = corrected[:, chosen].mean(axis=0)
        residuals = corrected - expected
        assert np.allclose(mean, expected, atol=1e-5)
        for state, residual in zip(states, residuals, strict=True):
            assert np.allclose(state.memory["residual"], residual, atol=1e-5)
            assert state.memory["count"] == index + 1


@pytest.mark.parametrize("compressor", [ef(_shared(7)), ef(powersgd(1))], ids=["shared", "powersgd"])
def test_phases_conserve_in_the_mean_over_workers(compressor):
    layout = gw.Layout.from_arrays({"w": np.zeros((6, 5), np.float32), "b": np.zeros(10, np.float32)})
    states = [compressor.init(layout) for _ in range(4)]
    raw, delivered = np.zeros(D), np.zeros(D)
    for index in range(30):
        updates = vectors(index, 4, D) * np.float32(10.0 ** (index % 3))
        before = updates.copy()
        mean, states = exchange(compressor, updates, states, index)
        assert np.array_equal(updates, before)
        raw += updates.mean(axis=0, dtype=np.float64)
        delivered += mean
        held = np.mean([s.memory["residual"] for s in states], axis=0, dtype=np.float64)
        assert np.linalg.norm(delivered + held - raw) <= 1e-5 * 100 * (index + 1)
    assert np.linalg.norm(held) > 1, "something was held back"


def test_phases_of_powersgd_are_its_own_on_the_corrected_updates():
    layout = gw.Layout.from_arrays({"w": np.zeros((8, 5), np.float32)})
    inner, outer = powersgd(1), ef(powersgd(1))
    states, plain = [outer.init(layout) for _ in range(2)], [inner.init(layout) for _ in range(2)]
    residuals = np.zeros((2, D), np.float32)
    for index in range(4):
        updates = vectors(index, 2, D)
        corrected = residuals + updates
        expected, plain = exchange(inner, corrected, plain, index)
        mean, states = exchange(outer, updates, states, index)
        residuals = corrected - expected
        assert np.array_equal(mean, expected)
        assert np.array_equal([s.memory["residual"] for s in states], residuals)


def test_phases_refuse():
    compressor = ef(gw.topk(0.1))
    assert not compressor.summable
    with pytest.raises(gw.ConfigError, match="cannot be summed"):
        next(compressor.phases(vectors(0, D), compressor.init(LAYOUTS["flat"])))
    compressor = ef(_shared(3))
    state = compressor.init(LAYOUTS["flat"])
    state.memory["residual"][:] = 3e38
    with pytest.raises(gw.UpdateError, match="residual"):
        next(compressor.phases(np.full(D, 3e38, np.float32), state, gw.Round()))


# --- what wraps what --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "ef21(topk(0.1))",
        "ef21(topk(0.1) | uniform(4))",
        "ef21(warmup(topk(0.1), 3))",
        "momentum_correction(topk(0.1))",
        "momentum_correction(topk(0.1) | fp16(), momentum=0.5)",
        "momentum_correction(warmup(topk(0.1), 3), momentum=0.0)",
        "ef(powersgd(2))",
    ],
)
def test_spec_round_trip(text):
    compressor = gw.parse(text)
    assert str(compressor) == text
    assert gw.parse(str(compressor)) == compressor
    assert hash(gw.parse(text)) == hash(compressor)
    assert compressor.guarantee(100) == gw.Unknown()
    assert has_feedback(compressor)


def test_defaults_are_left_out():
    assert str(gw.parse("momentum_correction(topk(0.1), 0.9)")) == "momentum_correction(topk(0.1))"
    assert momentum_correction(gw.topk(0.1)) == gw.parse("momentum_correction(topk(0.1), momentum=0.9)")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ef21(3)", "ef21 wraps a compressor, got 3"),
        ("ef21(ef(topk(0.1)))", r"ef21 cannot wrap ef\(topk\(0.1\)\): one residual is enough"),
        ("ef21(ef21(topk(0.1)))", "ef21 cannot wrap ef21"),
        ("ef(ef21(topk(0.1)), unchecked=True)", "ef cannot wrap ef21"),
        ("ef(momentum_correction(topk(0.1)), unchecked=True)", "ef cannot wrap momentum_correction"),
        ("ef(warmup(ef(topk(0.1)), 3), unchecked=True)", "ef cannot wrap warmup"),
        ("momentum_correction(ef(topk(0.1)))", "momentum_correction cannot wrap ef"),
        ("momentum_correction(ef21(topk(0.1)))", "momentum_correction cannot wrap ef21"),
        ("momentum_correction(momentum_correction(topk(0.1)))", "momentum_correction cannot wrap momentum_correction"),
        ("momentum_correction(topk(0.1), momentum=1.0)", r"momentum must be in \[0, 1\), got 1.0"),
        ("momentum_correction(topk(0.1), momentum=-0.1)", r"momentum must be in \[0, 1\), got -0.1"),
        ("momentum_correction(topk(0.1), momentum='a')", "momentum must be a number, got 'a'"),
        ("momentum_correction(randk(0.1, unbiased=True))", "momentum_correction needs a contractive compressor"),
        ("ef21(randk(0.1, unbiased=True))", r"ef21 needs a contractive compressor.*Unbiased"),
        ("warmup(ef21(topk(0.1)), 3)", r"ef21\(warmup"),
        ("warmup(topk(0.1), 3, first=ef21(topk(0.1)))", r"ef21\(warmup"),
    ],
)
def test_refused(text, reason):
    with pytest.raises(gw.ConfigError, match=reason):
        gw.parse(text)


# --- ef21: the server -------------------------------------------------------------------------------


def run_ef21(spec, gradients, rounds, layout, weights=(1.0,), **server):
    """Gradient descent with what the server returns: the model after each round."""
    compressor = gw.parse(spec)
    clients = [gw.Client(compressor, layout, client_id=i, seed=2) for i in range(len(gradients))]
    end = gw.Server(compressor, layout, seed=2, **server)
    x = np.zeros(layout.d, np.float32)
    path = []
    for _ in range(rounds):
        for i, (client, gradient) in enumerate(zip(clients, gradients, strict=True)):
            weight = weights[i % len(weights)]
            end.receive(client.compress(gradient(x).astype(np.float32), weight), i, weight)
        result = end.close_round()
        applied = {client.end_round(result.blob).tobytes() for client in clients}
        assert applied == {result.applied.tobytes()}
        x = x - np.float32(0.05) * result.applied
        path.append(x.copy())
    return np.array(path), end, clients


def quadratics(num_clients, d):
    """f_i(x) = 1/2 (x - b_i)^T A_i (x - b_i): gradients that do not vanish at the common minimum."""
    rng = np.random.default_rng(5)
    curved = [rng.uniform(0.5, 3, d) for _ in range(num_clients)]
    centres = [4 * rng.standard_normal(d) for _ in range(num_clients)]
    best = sum(a * b for a, b in zip(curved, centres, strict=True)) / sum(curved)
    return [lambda x, a=a, b=b: a * (x - b) for a, b in zip(curved, centres, strict=True)], best


def test_ef21_is_algorithm_2_in_numpy():
    """Weights differ on purpose: they must not enter."""
    gradients, _ = quadratics(5, D)
    path, _, clients = run_ef21(
        "ef21(topk(0.1))", gradients, 60, LAYOUTS["flat"], weights=(1.0, 7.0, 0.1), num_clients=5
    )
    x, g = np.zeros(D), np.array([numpy_topk(f(np.zeros(D)), 4) for f in gradients])  # g_i^0 = C(grad f_i(x^0))
    for t in range(60):
        x = x - 0.05 * g.mean(axis=0)  # x^{t+1} = x^t - gamma g^t
        assert np.allclose(path[t], x, atol=1e-4), t
        before = g
        g = np.array([g_i + numpy_topk(f(x) - g_i, 4) for g_i, f in zip(g, gradients, strict=True)])
    assert np.allclose([c.state_dict()["scheme"]["mirror"] for c in clients], before, atol=1e-4)


def test_ef21_converges_where_topk_does_not():
    gradients, best = quadratics(5, D)
    path, _, _ = run_ef21("ef21(topk(0.1))", gradients, 300, LAYOUTS["flat"], num_clients=5)
    plain, _, _ = run_ef21("topk(0.1)", gradients, 300, LAYOUTS["flat"])
    distance = [np.linalg.norm(p[-1] - best) / np.linalg.norm(best) for p in (path, plain)]
    assert distance[0] < 1e-3
    assert distance[1] > 0.05


def test_ef21_needs_num_clients():
    compressor = ef21(gw.topk(0.1))
    assert compressor.mirrored
    assert not ef(gw.topk(0.1)).mirrored
    with pytest.raises(gw.ConfigError, match=r"ef21\(topk\(0.1\)\) keeps a mirror of each client: Server needs num_cl"):
        gw.Server(compressor, LAYOUTS["flat"])
    with pytest.raises(gw.ConfigError, match="downlink must send what is applied"):
        gw.Server(gw.dense(), LAYOUTS["flat"], downlink=compressor)


def test_silent_clients_keep_their_mirror():
    layout, compressor = LAYOUTS["flat"], ef21(gw.topk(0.5))
    server = gw.Server(compressor, layout, num_clients=4)
    assert not server.close_round().update.any()
    client = gw.Client(compressor, layout, client_id=3)
    update = vectors(1, D)
    server.receive(client.compress(update, weight=5.0, round=1), 3, 5.0)
    first = server.close_round()
    assert np.allclose(first.update, numpy_topk(update, 20) / 4)
    assert (first.sum_weights, first.num_received) == (5.0, 1)
    empty = server.close_round()
    assert np.array_equal(empty.update, first.update)
    assert (empty.sum_weights, empty.num_received, empty.accepted) == (0.0, 0, ())
    with pytest.raises(gw.ProtocolError, match="client_id must be below 4"):
        server.receive(client.compress(update, round=3), 4)


def test_ef21_weights_as_small_as_allowed():
    server = gw.Server(ef21(gw.dense()), LAYOUTS["flat"], num_clients=1)
    client = gw.Client(ef21(gw.dense()), LAYOUTS["flat"])
    server.receive(client.compress(vectors(1, D), 2.0**-64), 0, 2.0**-64)
    other = gw.Server(ef21(gw.dense()), LAYOUTS["flat"], num_clients=1)
    other.load_state_dict(server.state_dict())
    assert other.close_round().sum_weights == 2.0**-64


def test_late_payloads_and_duplicates():
    layout, compressor = LAYOUTS["flat"], ef21(gw.topk(0.25))
    server = gw.Server(compressor, layout, num_clients=2, max_staleness=1)
    client = gw.Client(compressor, layout)
    blob = client.compress(vectors(1, D))
    server.close_round()
    server.receive(blob)
    with pytest.raises(gw.Duplicate):
        server.receive(blob)
    result = server.close_round()
    client.end_round(result.blob, delivered=True)
    assert np.allclose(2 * result.update, client.state_dict()["scheme"]["mirror"])


def test_packets_that_arrive_in_part():
    layout, compressor = LAYOUTS["model"], ef21(gw.topk(0.5))
    server = gw.Server(compressor, layout, num_clients=1)
    client = gw.Client(compressor, layout)
    for index in range(6):
        blobs = client.packets(vectors(index, D), mtu=60)
        assert len(blobs) > 1
        arrived = {n for n in range(len(blobs)) if (n + index) % 2}
        for n in arrived:
            server.receive(blobs[n])
        result = server.close_round()
        client.end_round(result.blob, delivered=arrived)
        assert np.allclose(result.update, client.state_dict()["scheme"]["mirror"], atol=1e-5)
        assert result.num_received == bool(arrived)


def test_server_state_holds_the_mirrors():
    layout, compressor = LAYOUTS["flat"], ef21(gw.topk(0.25))
    server = gw.Server(compressor, layout, num_clients=3)
    for index in range(3):
        server.receive(gw.Client(compressor, layout, client_id=index).compress(vectors(index, D)), index)
    server.close_round()
    saved = server.state_dict()
    again = gw.Server(compressor, layout, num_clients=3)
    again.load_state_dict(saved)
    assert np.array_equal(again.close_round().update, server.close_round().update)
    for wrong in (4, None):
        other = gw.Server(compressor, layout, num_clients=4)
        before = other.state_dict()["sum"]
        with pytest.raises(gw.StateError, match="num_clients"):
            other.load_state_dict({**saved, "num_clients": 3 if wrong else None})
        assert np.array_equal(other.state_dict()["sum"], before)


def test_a_huge_step_does_not_close_the_server_for_ever():
    """What could overflow is refused; the bound follows the sum down again."""
    layout, compressor = LAYOUTS["flat"], ef21(gw.dense())
    server = gw.Server(compressor, layout, num_clients=2)
    client = gw.Client(compressor, layout)
    for value in (8e37, 0.0, 8e37, 0.0):
        server.receive(client.compress(np.full(D, value, np.float32)))
        client.end_round(server.close_round().blob)
    assert not server.close_round().update.any()
    server.receive(client.compress(np.full(D, 8e37, np.float32), round=5))
    with pytest.raises(gw.ProtocolError, match="overflow"):
        server.receive(gw.Client(compressor, layout, client_id=1).compress(np.full(D, 1.5e38, np.float32), round=5), 1)


def test_ef21_update_too_far_from_the_mirror():
    client = gw.Client(ef21(gw.dense()), LAYOUTS["flat"])
    client.compress(np.full(D, 3e38, np.float32))
    before = client.state_dict()
    with pytest.raises(gw.UpdateError, match="update - mirror"):
        client.compress(np.full(D, -3e38, np.float32))
    assert np.array_equal(client.state_dict()["scheme"]["mirror"], before["scheme"]["mirror"])
    assert before["residual"] is None


class MirrorWorld(test_laws.World):
    """Clients with mirrors: what the server's sum holds is what they hold, less what is under way."""

    def __init__(self, spec, layout, num_clients):
        compressor = gw.parse(spec)
        self.layout = layout
        self.make_server = lambda: gw.Server(compressor, layout, seed=1, num_clients=num_clients, max_staleness=1)
        self.server = self.make_server()
        self.hosts = [test_laws.Host(compressor, layout, i) for i in range(num_clients)]
        self.accepted = [np.zeros(layout.d) for _ in range(num_clients)]
        self.counted = [set() for _ in range(num_clients)]
        self.history, self.last = [], None
        self.rng = np.random.default_rng(0)

    def check(self):
        held = np.zeros(self.layout.d)
        for number, host in enumerate(self.hosts):
            mirror = host.client.state_dict()["scheme"]["mirror"].astype(np.float64)
            for blob in host.client.pending:
                if gw.inspect(blob)["sequence"] not in self.counted[number]:
                    mirror -= gw.decompress(gw.decode(blob))
            assert np.linalg.norm(mirror - self.accepted[number]) <= 1e-5 * host.norms + 1e-30
            held += mirror
        error = np.linalg.norm(self.server.state_dict()["sum"] - held)
        assert error <= 1e-5 * sum(host.norms for host in self.hosts) + 1e-30


@pytest.mark.parametrize("spec", ["ef21(topk(0.1))", "ef21(topk(0.2) | uniform(4))", "ef21(warmup(randk(0.3), 2))"])
@pytest.mark.parametrize("shape", LAYOUTS)
@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(test_laws.ACTIONS), st.integers(0, 2)), min_size=10, max_size=60))
def test_mirrors_agree_under_any_pattern(spec, shape, steps):
    world = MirrorWorld(spec, LAYOUTS[shape], 3)
    world.play(steps)


def test_the_mirror_check_notices_a_loss():
    world = MirrorWorld("ef21(topk(0.1))", LAYOUTS["flat"], 1)
    world.step("compress", 0)
    world.step("send", 0)
    world.server.close_round()
    world.server = world.make_server()
    with pytest.raises(AssertionError):
        world.check()


# --- momentum correction ----------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum_correction_is_dgc_in_numpy(momentum):
    compressor = momentum_correction(gw.topk(0.1), momentum=momentum)
    state = compressor.init(LAYOUTS["flat"])
    u, v = np.zeros(D), np.zeros(D)
    for index in range(40):
        gradient = vectors(index, D)
        payload, state = compressor.compress(gradient, state, gw.Round(index=index))
        u = momentum * u + gradient  # u_t = m u_{t-1} + grad
        v = v + u  # v_t = v_{t-1} + u_t
        mask = np.abs(v) >= np.sort(np.abs(v))[-4]  # the 4 largest
        assert np.allclose(gw.decompress(payload), np.where(mask, v, 0), atol=1e-4)
        v, u = np.where(mask, 0, v), np.where(mask, 0, u)
        assert np.allclose(state.memory["residual"], v, atol=1e-4)
        assert np.allclose(state.memory["momentum"], u, atol=1e-4)


def test_without_momentum_it_is_ef():
    plain, corrected = (
        gw.parse("ef(topk(0.1) | uniform(4))"),
        gw.parse("momentum_correction(topk(0.1) | uniform(4), momentum=0.0)"),
    )
    clients = [gw.Client(c, LAYOUTS["model"], seed=1) for c in (plain, corrected)]
    server = gw.Server(plain, LAYOUTS["model"], seed=1)
    for index in range(8):
        blobs = [client.compress(vectors(index, D)) for client in clients]
        assert blobs[0] == blobs[1]
        blob = server.close_round().blob
        for client in clients:
            client.end_round(blob, delivered=index % 3 > 0)


def test_undelivered_goes_into_the_residual_not_the_momentum():
    client = gw.Client(momentum_correction(gw.topk(0.1)), LAYOUTS["flat"])
    update = vectors(3, D)
    client.compress(update)
    sent = numpy_topk(update, 4)
    client.end_round(gw.Server(gw.dense(), LAYOUTS["flat"]).close_round().blob, delivered=False)
    state = client.state_dict()
    assert np.allclose(state["residual"], update)
    assert np.array_equal(state["scheme"]["momentum"], np.where(sent != 0, 0, update))


def test_running_statistics_have_no_momentum():
    layout = LAYOUTS["model"]
    statistics = slice(layout.num_parameters, D)
    assert statistics.start < D
    client, server = (make(momentum_correction(gw.topk(0.1)), layout) for make in (gw.Client, gw.Server))
    total = np.zeros(D)
    for index in range(6):
        update = vectors(index, D)
        if index == 2:  # as much back as is held: a zero, which may not be sent
            update[statistics] = -client.state_dict()["residual"][statistics]
        total += update
        blob = client.compress(update)
        if index != 1:
            server.receive(blob)
        client.end_round(server.close_round().blob, delivered=index != 1)
        assert not client.state_dict()["scheme"]["momentum"][statistics].any()


def test_momentum_correction_refuses_what_overflows_and_keeps_its_state():
    client = gw.Client(momentum_correction(gw.topk(0.1)), LAYOUTS["flat"])
    client.compress(np.full(D, 2e38, np.float32))
    before = client.state_dict()
    with pytest.raises(gw.UpdateError, match=r"residual \+ momentum"):
        client.compress(np.full(D, 2e38, np.float32))
    with pytest.raises(gw.ConfigError, match="num_bytes"):
        client.compress(np.full(D, -1.8e38, np.float32), num_bytes=1)
    after = client.state_dict()
    assert np.array_equal(after["residual"], before["residual"])
    assert np.array_equal(after["scheme"]["momentum"], before["scheme"]["momentum"])


class MomentumHost(test_laws.Host):
    """A host whose raw updates are the momentum-corrected ones, followed in float64."""

    momentum = 0.9

    def compress(self, update, round):
        if not hasattr(self, "u"):
            self.u = np.zeros(self.layout.d)
        blob = self.client.compress(update, round=round)
        self.u = self.momentum * self.u + update
        self.raw += self.u
        self.norms += float(np.linalg.norm(self.u))
        self.u[gw.decompress(gw.decode(blob)) != 0] = 0
        self.u[self.layout.num_parameters :] = 0
        self.saved = self.client.state_dict()


CORRECTED = ["momentum_correction(topk(0.1))", "momentum_correction(topk(0.2) | uniform(4))",
             "momentum_correction(warmup(randk(0.2) | fp16(), 2))"]  # fmt: skip


@pytest.mark.parametrize("spec", CORRECTED)
@pytest.mark.parametrize("shape", LAYOUTS)
@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(test_laws.ACTIONS), st.integers(0, 2)), min_size=10, max_size=60))
def test_momentum_corrected_updates_are_conserved(spec, shape, steps):
    world = test_laws.World(spec, LAYOUTS[shape], 3)
    world.hosts = [MomentumHost(gw.parse(spec), LAYOUTS[shape], i) for i in range(3)]
    world.play(steps)


def test_momentum_helps_as_the_paper_says():
    """On an ill-conditioned quadratic, momentum at the client gets further than ef in as many rounds."""
    scale = np.geomspace(0.01, 1, D)
    layout = LAYOUTS["flat"]
    left = {}
    for spec in ("ef(topk(0.1))", "momentum_correction(topk(0.1))"):
        client, server = (make(gw.parse(spec), layout) for make in (gw.Client, gw.Server))
        x = np.ones(D)
        for _ in range(150):
            server.receive(client.compress((scale * x).astype(np.float32)))
            x = x - 0.05 * client.end_round(server.close_round().blob)
        left[spec] = float(scale @ x**2)
    assert left["momentum_correction(topk(0.1))"] < 0.6 * left["ef(topk(0.1))"], left


def test_warmup_shows_the_residual_of_what_it_wraps():
    client = gw.Client(warmup(ef(gw.topk(0.1)), 2), LAYOUTS["flat"])
    assert client.state_dict()["residual"].shape == (D,)
