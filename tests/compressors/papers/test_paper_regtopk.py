"""RegTop-k: the selection in float64 NumPy against real conversations, what counts as not sent, the history."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_oracles import (
    ACTIONS,
    Network,
    Talk,
    buffered_layout,
    check_errors,
    s_top,
    same,
    same_to_rounding,
    support_of,
    vectors,
)

import gradwire as gw
from gradwire.compressors.compressor import Round
from gradwire.compressors.papers.regtopk import distortion

D, N, K = 50, 3, 10
WEIGHTS = (1.0, 2.5, 0.25)
SIGMOID_MINUS_1 = 1 / (1 + np.e)


def likelihood(name: str, x: float) -> float:
    return {"tanh": np.tanh(x), "gaussian": 1 - np.exp(-x * x), "rational": x / (1 + x) if x < np.inf else 1.0}[name]


def selection(
    a: np.ndarray,
    k: int,
    sent: dict[int, float] | None,
    aggregate: np.ndarray | None,
    omega: float,
    *,
    mu: float = 4.0,
    denominator: str = "previous",
    exponent: float = 1.0,
    name: str = "tanh",
) -> list[int]:
    """The paper's rule, entry by entry: ``sent`` is what the client's support of t - 1 was and what arrived of it."""
    scores = []
    for j, value in enumerate(map(float, a)):
        factor = 1.0
        if sent and aggregate is not None and j in sent:
            others = float(aggregate[j]) - omega * sent[j]
            den = omega * (sent[j] if denominator == "previous" else value)
            delta = 0.0 if others == 0 else np.inf if den == 0 else others / den
            factor = 1.0 if delta == np.inf else likelihood(name, abs(1 + delta) / mu)
        scores.append(abs(value) ** exponent * factor)
    return s_top(scores, k)


class Books:
    """A conversation with the history that the paper's rule needs, kept apart from the clients' own."""

    def __init__(self, spec: str, layout: gw.Layout | int = D, num_clients: int = N, **rule: Any) -> None:
        self.talk, self.rule = Talk(spec, layout, num_clients), rule
        self.d = self.talk.layout.num_parameters
        self.k = min(self.d, max(1, round(0.2 * self.d)))
        self.sent: dict[int, tuple[int, float, dict[int, float]]] = {}  # client -> round, weight, what arrived
        self.heard: dict[int, int] = {}
        self.sum_weights = 0.0
        self.differed = 0

    def round(
        self, updates: np.ndarray, weights: Any = WEIGHTS, absent: Any = (), lost: Any = (), deaf: Any = ()
    ) -> None:
        """Some are absent, the payloads of some are lost, some do not hear the answer."""
        talk, t = self.talk, self.talk.server.round
        taking = [n for n in range(len(talk.clients)) if n not in absent]
        total, arrived = 0.0, {}
        for n in taking:
            a = talk.residual(n) + updates[n]
            blob = talk.clients[n].compress(updates[n], weights[n], round=t)
            arrived[n] = gw.decompress(gw.decode(blob))
            assert np.array_equal(talk.residual(n), a - arrived[n])
            current = self.heard.get(n) == t - 1
            when, weight, what = self.sent.get(n, (-9, 1.0, {}))
            known = what if current and when == t - 1 else None
            omega = weight / self.sum_weights if self.sum_weights else 1.0
            chosen = selection(a[: self.d], self.k, known, talk.applied, omega, **self.rule)
            got = np.flatnonzero(arrived[n][: self.d]).tolist()
            assert got == chosen if not self.quantized else set(got) <= set(chosen), (t, n)
            self.differed += chosen != s_top(a[: self.d], self.k)
            self.sent[n] = (t, weights[n], {j: float(arrived[n][j]) for j in got} if n not in lost else {})
            if n not in lost:
                talk.server.receive(blob, n, weights[n])
                total += weights[n]
        self.sum_weights = total
        heard = [n for n in range(len(talk.clients)) if n not in deaf]
        talk.close({n: n not in lost for n in taking}, heard)
        self.heard.update(dict.fromkeys(heard, t))
        for n in deaf:
            if n in taking:
                self.late = n

    @property
    def quantized(self) -> bool:
        return "|" in str(self.talk.compressor)


def gradients(t: int, num_clients: int = N, d: int = D) -> np.ndarray:
    """Heterogeneous: large parts that cancel in the weighted mean at some coordinates, a drift, and noise."""
    own = vectors(1000, num_clients, d) * np.where(np.arange(d) % 4, 0.5, 20).astype(np.float32)
    own -= np.average(own, axis=0, weights=WEIGHTS[:num_clients]).astype(np.float32)
    return own + 0.3 * vectors(1001, d) + 0.2 * vectors(t, num_clients, d)


RULES = [
    {"mu": mu, "denominator": denominator, "exponent": exponent, "name": name}
    for mu in (0.5, 4.0)
    for denominator in ("previous", "current")
    for exponent, name in ((1.0, "tanh"), (0.5, "gaussian"), (1.0, "rational"), (0.25, "tanh"))
]


def spec_of(rule: dict[str, Any], quantizer: str = "") -> str:
    return (
        f"ef(regtopk(0.2, mu={rule['mu']}, denominator='{rule['denominator']}', exponent={rule['exponent']}, "
        f"likelihood='{rule['name']}'){quantizer})"
    )


# --- the rule -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda r: "-".join(map(str, r.values())))
def test_a_conversation_follows_the_rule(rule: dict[str, Any]) -> None:
    books = Books(spec_of(rule), **rule)
    rng = np.random.default_rng(3)
    for t in range(12):
        books.round(gradients(t), rng.permutation(WEIGHTS) if t % 2 else WEIGHTS)
    assert books.differed > 3, "the rule mattered"


@pytest.mark.parametrize("quantizer", [" | uniform(6)", " | fp16()", " | fractional(16)", " | uniform(1)"])
def test_with_a_quantizer_what_arrived_counts(quantizer: str) -> None:
    books = Books(spec_of(RULES[0], quantizer), **RULES[0])
    for t in range(12):
        books.round(gradients(t))
    assert books.differed > 3


def test_running_statistics_are_left_alone() -> None:
    books = Books("ef(regtopk(0.2))", buffered_layout(D, 4))
    for t in range(6):
        books.round(np.hstack([gradients(t), 100 * vectors(t, N, 4)]))
        for client in books.talk.clients:
            assert client.state_dict()["scheme"]["sent_indices"].max() < D
    assert books.differed


def test_rounds_missed_and_payloads_lost() -> None:
    rng = np.random.default_rng(8)
    books = Books("ef(regtopk(0.2, mu=1.0))", mu=1.0)
    for t in range(60):
        pick = rng.random((3, N))
        absent = [n for n in range(N) if pick[0, n] < 0.2]
        lost = [n for n in range(N) if pick[1, n] < 0.3]
        # one that took part hears the answer, else its payload would be pending; an absent one may miss it
        deaf = [n for n in absent if pick[2, n] < 0.5]
        books.round(gradients(t), absent=absent, lost=lost, deaf=deaf)
    assert books.differed > 10


def test_a_lost_payload_counts_as_not_sent() -> None:
    for delivered in (True, False):
        talk = Talk("ef(regtopk(0.5))", 2, 2)
        for sign, client in zip((1, -1), talk.clients, strict=True):
            blob = client.compress(np.float32([9 * sign, 1]))
            if delivered:
                talk.server.receive(blob, client.client_id)
        talk.close({0: delivered, 1: delivered})
        blob = talk.clients[0].compress(np.float32([9, 1]))
        assert support_of(blob) == ([1] if delivered else [0])
        assert talk.clients[0].state_dict()["scheme"]["sent_indices"].size == 1


def test_lost_packets_count_as_not_sent() -> None:
    layout, d = gw.Layout.flat(200), 200
    compressor = gw.parse("ef(regtopk(0.2))")
    client, server = gw.Client(compressor, layout), gw.Server(compressor, layout)
    blobs = client.packets(vectors(0, d), 60)
    assert len(blobs) > 3
    numbers = [gw.decompress(gw.decode(blob)) for blob in blobs]
    arrived = {0, 2}
    for i in arrived:
        server.receive(blobs[i])
    client.end_round(server.close_round().blob, arrived)
    scheme = client.state_dict()["scheme"]
    expected = numbers[0] + numbers[2]
    assert scheme["sent_indices"].tolist() == np.flatnonzero(expected).tolist()
    assert scheme["sent_numbers"].tolist() == expected[expected != 0].tolist()
    # this client alone: A = what arrived, w = 1, Delta = 0 where it arrived; the others count in full
    a = client.state_dict()["residual"] + vectors(1, d)
    blob = client.compress(vectors(1, d))
    sent = {j: float(expected[j]) for j in np.flatnonzero(expected)}
    assert support_of(blob) == selection(a, 40, sent, expected, 1.0)


# --- zeros and extremes ---------------------------------------------------------------------------------


def test_distortion_of_zeros() -> None:
    f = np.float64
    got = distortion(f([0, 2, 3, 0, 1]), f([0, 4, 0, 6, 2]), 0.5, f([0, 0, 0, 6, 2]))
    assert got.tolist() == [0, 0, np.inf, -1, 0]
    got = distortion(f([-3, 1]), f([0, 2]), 0.5, f([0, 0]))
    assert abs(got[0]) == np.inf
    assert got[1] == 0


@pytest.mark.parametrize("name", ["tanh", "gaussian", "rational"])
def test_a_zero_sent_before_is_safe(name: str) -> None:
    """x / 0 is factor 1, 0 / 0 is Delta = 0: u(1 / mu)."""
    compressor = gw.regtopk(0.5, mu=2.0, likelihood=name)
    state = compressor.init(gw.Layout.flat(4))
    state.memory |= {
        "sent_indices": np.array([0, 1, 2]),
        "sent_numbers": np.float32([0, 0, 5]),
        "next_round": 1,
        "sent_weight": 1.0,
    }
    agreed = Round(1, reference=np.float32([7, 0, 0, 0]), reference_weights=2.0)
    # factors: 1, u(1 / 2), 0, 1
    u = likelihood(name, 0.5)
    payload, _ = compressor.compress(np.float32([1, 1.01 / u, 99, 0.9]), copy.deepcopy(state), agreed)
    assert np.flatnonzero(gw.decompress(payload)).tolist() == [0, 1]
    payload, _ = compressor.compress(np.float32([1, 0.89 / u, 99, 0.9]), copy.deepcopy(state), agreed)
    assert np.flatnonzero(gw.decompress(payload)).tolist() == [0, 3]
    # an entry of score 0 is not sent, even where there is room
    payload, _ = compressor.compress(np.float32([0, 0, 99, 0.9]), copy.deepcopy(state), agreed)
    assert np.flatnonzero(gw.decompress(payload)).tolist() == [3]


@pytest.mark.parametrize("mu", [1e-3, 1e-200, 1e-310, 5e-324])
@pytest.mark.parametrize("name", ["tanh", "gaussian", "rational"])
def test_a_tiny_mu_is_topk(mu: float, name: str) -> None:
    reg = Talk(f"ef(regtopk(0.2, mu={mu}, likelihood='{name}'))", D, N)
    top = Talk("ef(topk(0.2))", D, N)
    for t in range(6):
        a, b = reg.round(gradients(t)), top.round(gradients(t))
        if (mu, name) != (1e-3, "rational"):  # it rises to 1 slowly
            assert [support_of(x) for x in a[0]] == [support_of(x) for x in b[0]]
            assert np.array_equal(a[1].update, b[1].update)


@pytest.mark.parametrize("scale", [1e-42, 1e30])
@pytest.mark.parametrize("denominator", ["previous", "current"])
def test_tiny_and_huge_updates(scale: float, denominator: str) -> None:
    talk = Talk(f"ef(regtopk(0.2, denominator='{denominator}', exponent=0.5))", D, N)
    put_in = np.zeros(D)
    for t in range(5):
        updates = (gradients(t) * scale).astype(np.float32)
        put_in += updates.mean(axis=0, dtype=float)
        _, result = talk.round(updates)
        put_in -= result.update
    held = np.mean([talk.residual(n) for n in range(N)], axis=0, dtype=float)
    assert held == pytest.approx(put_in, abs=1e-4 * scale + 1e-44)


@pytest.mark.parametrize("layout", [gw.Layout.flat(0), gw.Layout.flat(1), buffered_layout(0, 2)])
def test_small_models(layout: gw.Layout) -> None:
    talk = Talk("ef(regtopk(0.2))", layout, 2)
    for t in range(3):
        updates = vectors(t, 2, layout.d)
        _, result = talk.round(updates)
        assert result.update == pytest.approx(updates.mean(axis=0), abs=1e-6)


def test_ties_go_to_the_lower_index() -> None:
    client = gw.Client(gw.regtopk(0.5), gw.Layout.flat(6))
    assert support_of(client.compress(np.float32([1, -1, 1, 1, -1, 1]))) == [0, 1, 2]


# --- two workers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("denominator", ["previous", "current"])
@pytest.mark.parametrize("mu", [0.1, 1.0, 4.0, 16.0])
def test_two_workers_closed_form(mu: float, denominator: str) -> None:
    """x1 = [100, 1], x2 = [-100, 1], theta_0 = [0, 1], lr .9, k = 1."""
    x = np.array([[100.0, 1.0], [-100.0, 1.0]])
    talk = Talk(f"ef(regtopk(0.5, mu={mu}, denominator='{denominator}'))", 2, 2)
    theta = np.array([0.0, 1.0])
    for t in range(100):
        margins = x @ theta
        steps = 0.9 * x / (1 + np.exp(margins))[:, None]
        _, result = talk.round(steps.astype(np.float32))
        theta = theta + result.update
        if t == 0:
            assert theta.tolist() == [0, 1]
        if t == 1:
            assert theta == pytest.approx([0, 1.4840945585], abs=1e-6)
            assert theta[1] == pytest.approx(1 + 1.8 * SIGMOID_MINUS_1, abs=1e-6)
    assert np.mean(np.log1p(np.exp(-x @ theta))) == pytest.approx(0.0108, abs=2e-4)


# --- the history ----------------------------------------------------------------------------------------


def test_the_history_is_sparse() -> None:
    talk = Talk("ef(regtopk(0.01))", 10_000, 1)
    talk.round(vectors(0, 1, 10_000))
    scheme = talk.clients[0].state_dict()["scheme"]
    assert sum(v.nbytes for v in scheme.values() if isinstance(v, np.ndarray)) == 100 * (8 + 4)


@pytest.mark.parametrize("quantizer", ["", " | uniform(4)"])
@pytest.mark.parametrize("pending", [False, True])
def test_a_restart_gives_the_same_bytes(quantizer: str, pending: bool) -> None:
    talk = Talk(f"ef(regtopk(0.2){quantizer})", buffered_layout(D), 2)
    for t in range(3):
        talk.round(vectors(t, 2, D + 3), WEIGHTS[:2])
    client = talk.clients[0]
    if pending:
        client.compress(vectors(7, D + 3), 2.0)
    twin = talk.new_client(0)
    twin.load_state_dict(client.state_dict())
    for t in range(3):
        if not (pending and t == 0):
            assert twin.compress(vectors(9 + t, D + 3)) == client.compress(vectors(9 + t, D + 3))
        blob = talk.server.close_round().blob
        for end in (client, twin):
            end.end_round(blob, delivered=t != 0)
    assert same(twin.state_dict(), client.state_dict())


def test_a_failed_compress_changes_nothing() -> None:
    talk = Talk("ef(regtopk(0.2))", D, 1)
    talk.round(vectors(0, 1, D))
    before = talk.clients[0].state_dict()
    for kwargs in ({"num_bytes": 5}, {"weight": -1.0}):
        with pytest.raises(gw.ConfigError):
            talk.clients[0].compress(vectors(1, D), **kwargs)
    with pytest.raises(gw.UpdateError):
        talk.clients[0].compress(np.full(D, np.nan, np.float32))
    assert same_to_rounding(talk.clients[0].state_dict(), before)


DAMAGES = {
    "unsorted": ("sent_indices", lambda x: x[::-1].copy()),
    "twice the same": ("sent_indices", lambda x: np.repeat(x[:1], x.size)),
    "one too few indices": ("sent_indices", lambda x: x[1:]),
    "one too few numbers": ("sent_numbers", lambda x: x[1:]),
    "no numbers": ("sent_numbers", lambda x: x[:0]),
    "beyond d": ("sent_indices", lambda x: np.append(x[:-1], D)),
    "far beyond d": ("sent_indices", lambda x: np.append(x[:-1], 2**62)),
    "below 0": ("sent_indices", lambda x: np.append(-1, x[1:])),
    "NaN": ("sent_numbers", lambda x: np.append(x[:-1], np.float32(np.nan))),
    "Inf": ("sent_numbers", lambda x: np.append(x[:-1], np.float32(np.inf))),
    "int32 indices": ("sent_indices", lambda x: x.astype(np.int32)),
    "float64 numbers": ("sent_numbers", lambda x: x.astype(np.float64)),
    "two dimensions": ("sent_indices", lambda x: x[None]),
    "a list": ("sent_indices", lambda x: x.tolist()),
    "nothing": ("sent_numbers", lambda x: None),
    "weight NaN": ("sent_weight", lambda x: float("nan")),
    "weight text": ("sent_weight", lambda x: "1"),
    "round 1.5": ("next_round", lambda x: 1.5),
    "round of 400 digits": ("next_round", lambda x: 10**400),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("spec", ["ef(regtopk(0.2))", "ef(warmup(topk(0.1), 9, first=regtopk(0.2)))"])
def test_damaged_states_are_refused(damage: str, spec: str) -> None:
    talk = Talk(spec, D, 1)
    talk.round(vectors(0, 1, D))
    state = talk.clients[0].state_dict()
    name, break_it = DAMAGES[damage]
    name = next(known for known in state["scheme"] if known.endswith(name))
    state["scheme"][name] = break_it(state["scheme"][name])
    target = talk.new_client(0)
    before = target.state_dict()
    with pytest.raises(gw.StateError):
        target.load_state_dict(state)
    assert same(target.state_dict(), before)


def test_a_coordinate_of_running_statistics_is_refused() -> None:
    talk = Talk("ef(regtopk(0.2))", buffered_layout(D, 4), 1)
    talk.round(vectors(0, 1, D + 4))
    state = talk.clients[0].state_dict()
    state["scheme"]["sent_indices"][-1] = D + 1
    with pytest.raises(gw.StateError):
        talk.new_client(0).load_state_dict(state)


def test_an_mtu_too_small_changes_nothing() -> None:
    talk = Talk("ef(regtopk(0.2))", D, 1)
    talk.round(vectors(0, 1, D))
    before = talk.clients[0].state_dict()
    with pytest.raises(gw.ConfigError, match="mtu must be at least"):
        talk.clients[0].packets(vectors(1, D), 12)
    assert same(talk.clients[0].state_dict()["scheme"], before["scheme"])


# --- laws, budgets, specs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["flat", "buffered"])
@pytest.mark.parametrize("spec", ["ef(regtopk(0.2))", "ef(regtopk(0.3, denominator='current') | uniform(4))"])
@settings(max_examples=12, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 2)), min_size=15, max_size=50))
def test_nothing_is_lost_whatever_the_network_does(spec, shape, steps) -> None:
    network = Network(spec, gw.Layout.flat(40) if shape == "flat" else buffered_layout(37), 3, 1)
    for action, number in steps:
        network.step(action, number)
    network.finish()


def test_byte_budgets() -> None:
    talk = Talk("ef(regtopk(0.2))", 400, 1)
    for t, budget in enumerate((80, 200, 500, 3000)):
        blob = talk.clients[0].compress(vectors(t, 400), num_bytes=budget)
        assert len(blob) <= budget
        assert len(blob) > budget - 12 or gw.inspect(blob)["num_kept"] >= 399
        talk.server.receive(blob, 0)
        talk.close()


def test_specs() -> None:
    for text in (
        "regtopk(0.01)",
        "regtopk(0.01, mu=0.5)",
        "ef(regtopk(0.1, mu=1.0, denominator='current', exponent=0.5, likelihood='gaussian') | uniform(4))",
        "regtopk(0.1, likelihood='rational')",
    ):
        assert str(gw.parse(text)) == text
        assert gw.parse(text) == gw.parse(str(gw.parse(text)))
    assert gw.parse("regtopk(0.1, mu=4, exponent=1)") == gw.regtopk(0.1)
    check_errors(
        [
            ("regtopk(0)", r"density must be in \(0, 1\], got 0"),
            ("regtopk(0.1, mu=0)", r"mu must be above 0, got 0\.0"),
            ("regtopk(0.1, mu=-1)", r"mu must be above 0, got -1\.0"),
            ("regtopk(0.1, mu='a')", "mu must be a number, got 'a'"),
            ("regtopk(0.1, mu=1e999)", "mu must be finite, got inf"),
            ("regtopk(0.1, exponent=0)", r"exponent must be in \(0, 1\], got 0\.0"),
            ("regtopk(0.1, exponent=1.5)", r"exponent must be in \(0, 1\], got 1\.5"),
            ("regtopk(0.1, denominator='curent')", "denominator must be one of previous, current, got 'curent'.*curr"),
            ("regtopk(0.1, denominator=3)", "denominator must be one of previous, current, got 3"),
            ("regtopk(0.1, likelihood='tan')", "likelihood must be one of tanh, gaussian, rational, got 'tan'.*tanh"),
            ("regtopk(0.1, nu=3)", "regtopk has no parameter 'nu'.*it takes density, mu, denominator"),
            ("by_tensor(regtopk(0.1))", "cannot lean on the whole model's reference"),
        ]
    )
