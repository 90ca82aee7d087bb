"""AdapTop-K: schedules against the paper's rule in exact arithmetic, t_hat by search, online decisions, hindsight."""

from __future__ import annotations

import itertools
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from paper_oracles import ACTIONS, Network, Talk, buffered_layout, check_errors, s_top, same, support_of, vectors

import gradwire as gw
from examples import up_to
from gradwire.compressors.papers.adaptopk import hindsight_schedule, turning_point


def amounts(density: float, gamma: float, d: int) -> tuple[int, int]:
    """k, and g kept within what makes k - g and k + g possible."""
    k = min(d, max(1, round(density * d)))
    g = round(gamma * k)
    while g and (k - g < 1 or k + g > d):
        g -= 1
    return k, g


def paper_rule(total: int, t_hat: int, k: int, g: int) -> list[int]:
    """Eq. (20), with fractions."""
    inside = [Fraction(t_hat, 2) <= t < Fraction(t_hat + total, 2) for t in range(total)]
    return [k - g if x else k + g for x in inside]


def check_schedule(density: float, gamma: float, d: int, total: int, t_hat: float | None) -> None:
    schedule = gw.adaptopk(density, gamma, t_hat=t_hat).schedule(d, total).tolist()
    k, g = amounts(density, gamma, d)
    turn = total // 2 if t_hat is None else min(total, round(t_hat))
    paper = paper_rule(total, turn, k, g)
    assert sum(schedule) == k * total
    assert all(1 <= count <= d for count in schedule)
    changed = [t for t in range(total) if schedule[t] != paper[t]]
    if total % 2 == 0 or g == 0:
        assert changed == []
    else:
        middle = (turn + total) // 2
        assert changed == [middle if middle < total else turn // 2]
        assert schedule[changed[0]] == k


# --- the schedule -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("density", "gamma", "d"), [(0.1, 0.5, 100), (0.5, 1.0, 9), (0.01, 0.3, 1000)])
def test_schedules_sum_to_k_t_for_all_short_runs(density: float, gamma: float, d: int) -> None:
    for total in range(1, 61):
        for t_hat in {None, 0, 1, 2, 3, 7, 2.5, total // 2, total - 1, total, total + 1, 3 * total, 1e9}:
            check_schedule(density, gamma, d, total, t_hat)


@settings(max_examples=up_to(300), deadline=None)
@given(
    density=st.floats(1e-3, 1),
    gamma=st.floats(0, 1),
    d=st.integers(1, 2000),
    total=st.integers(1, 200),
    t_hat=st.one_of(st.none(), st.integers(0, 400), st.floats(0, 1e12)),
)
@example(density=1.0, gamma=1.0, d=1, total=1, t_hat=1)
@example(density=1.0, gamma=1.0, d=7, total=5, t_hat=3)
def test_schedules_sum_to_k_t(density, gamma, d, total, t_hat) -> None:
    check_schedule(density, gamma, d, total, t_hat)


def test_odd_k_loses_nothing_to_rounding() -> None:
    assert gw.adaptopk(0.07, 0.5, t_hat=2).schedule(100, 4).tolist() == [11, 3, 3, 11], "g = round(3.5) = 4, once"


@pytest.mark.parametrize(("total", "t_hat"), [(8, 4), (8, 0), (7, 3), (7, 4), (5, 5), (1, 0), (2, 9)])
@pytest.mark.parametrize("wrapped", ["{}", "ef({})", "ef({} | uniform(8))"])
def test_a_run_keeps_what_the_schedule_says(total: int, t_hat: int, wrapped: str) -> None:
    d = 50
    talk = Talk(wrapped.format(f"adaptopk(0.2, t_hat={t_hat})"), d, 1, num_rounds=total)
    k, g = amounts(0.2, 0.5, d)
    schedule = gw.adaptopk(0.2, t_hat=t_hat).schedule(d, total).tolist()
    for t in range(total + 3):
        update = vectors(t, d)
        u = update + (talk.residual(0) if "ef" in wrapped else 0)
        blobs, _ = talk.round([update])
        expected = schedule[t] if t < total else k
        if "uniform" not in wrapped:
            assert support_of(blobs[0]) == s_top(u, expected)
        assert gw.inspect(blobs[0])["num_kept"] <= expected
    assert g == 5


def test_its_own_rounds_come_before_the_runs() -> None:
    client = gw.Client(gw.adaptopk(0.2, rounds=4, t_hat=0), gw.Layout.flat(50), num_rounds=100)
    kept = [gw.inspect(client.compress(vectors(t, 50), round=t))["num_kept"] for t in range(6)]
    assert kept == [5, 5, 15, 15, 10, 10]


@pytest.mark.parametrize("spec", ["adaptopk(0.2)", "ef(adaptopk_online(0.2))"])
def test_without_a_number_of_rounds_it_says_so(spec: str) -> None:
    client = gw.Client(gw.parse(spec), gw.Layout.flat(50))
    before = client.state_dict()
    with pytest.raises(gw.ConfigError, match=r"adaptopk.*must know how long the run is: give it rounds=.*num_rounds="):
        client.compress(vectors(0, 50))
    assert same(client.state_dict(), before)


# --- t_hat ----------------------------------------------------------------------------------------------


def bound(t: int, alpha: Decimal, beta: Decimal, log_b: Decimal) -> Decimal:
    """ln(A_t B_t) but for what is the same in all rounds: A_t = alpha / t + beta, B_t = B^(T - 1 - t)."""
    return (alpha / t + beta).ln() - t * log_b if t else Decimal("Infinity")


def test_worked_values() -> None:
    assert [turning_point(5888, 256, 0.1, mu, 1 / 128) for mu in (0.01, 0.1, 1.0)] == [1704, 531, 160]


@settings(max_examples=up_to(150), deadline=None)
@given(
    alpha=st.floats(1e-3, 1e6),
    beta=st.floats(1e-3, 1e6),
    learning_rate=st.floats(1e-4, 1),
    mu=st.floats(1e-4, 10),
    density=st.floats(1e-4, 1),
)
@example(alpha=5888.0, beta=256.0, learning_rate=0.1, mu=0.01, density=1 / 128)
@example(alpha=1e-3, beta=1e6, learning_rate=0.9, mu=1.0, density=1.0)
def test_t_hat_is_where_the_bound_is_smallest(alpha, beta, learning_rate, mu, density) -> None:
    assume(learning_rate * mu * density < 0.999)
    t_hat = turning_point(alpha, beta, learning_rate, mu, density)
    with localcontext() as context:
        context.prec = 60
        a, b = Decimal(alpha), Decimal(beta)
        log_b = (1 - Decimal(learning_rate * mu * density)).ln()
        exact = (-a + (a * a - 4 * a * b / log_b).sqrt()) / (2 * b)  # Eq. (19) as printed
        if abs(exact - round(exact)) > Decimal("1e-9") * (1 + exact):
            assert t_hat == int(exact)
        # the integers beside the minimum: it falls up to t_hat and rises from t_hat + 1 on (Lemma 3 is off by one)
        around = {t: bound(t, a, b, log_b) for t in range(max(0, t_hat - 3), t_hat + 5)}
        lowest = min(around, key=around.__getitem__)
        assert lowest in (t_hat, t_hat + 1) or abs(exact - round(exact)) < Decimal("1e-6")
        for far in (2 * t_hat + 10, 10 * t_hat + 100, t_hat // 2):
            assert bound(far, a, b, log_b) >= around[lowest]


def test_t_hat_by_looking_at_all_rounds() -> None:
    for alpha, beta, c in itertools.product((1.0, 50.0, 5888.0), (0.5, 256.0), (1e-3, 0.02, 0.6)):
        with localcontext() as context:
            context.prec = 50
            log_b = (1 - Decimal(c)).ln()
            values = [bound(t, Decimal(alpha), Decimal(beta), log_b) for t in range(400)]
        t_hat = turning_point(alpha, beta, c, 1.0, 1.0)
        if t_hat < 398:
            assert values.index(min(values)) in (t_hat, t_hat + 1)


def test_t_hat_far_from_ordinary_numbers() -> None:
    # 2 beta / alpha is far below -ln B: t_hat = sqrt(alpha / (beta rate)) or 1 / rate
    assert turning_point(1e300, 1e-300, 1e-9, 1.0, 1.0) == pytest.approx(1e9, rel=1e-6)
    assert turning_point(1e200, 1e200, 1e-6, 1.0, 1.0) == 999
    assert turning_point(1e-200, 1e-200, 1e-6, 1.0, 1.0) == 999
    with pytest.raises(gw.ConfigError, match=r"learning_rate \* mu \* density must be in \(0, 1\), got 0\.0"):
        turning_point(1.0, 1.0, 1e-200, 1e-200, 1.0)
    with pytest.raises(gw.ConfigError, match="t_hat must be finite, got inf"):
        turning_point(1e300, 1e-300, 1e-200, 1e-120, 1.0)


@pytest.mark.parametrize("number", range(5))
def test_turning_point_checks_its_numbers(number: int) -> None:
    name = ("alpha", "beta", "learning_rate", "mu", "density")[number]
    numbers = [1.0, 1.0, 0.1, 0.1, 0.1]
    for bad in (0.0, -1.0):
        numbers[number] = bad
        with pytest.raises(gw.ConfigError, match=f"{name} must be above 0, got {bad}"):
            turning_point(*numbers)
    for bad in (float("nan"), float("inf"), "1", None, True):
        numbers[number] = bad
        with pytest.raises(gw.ConfigError, match=name):
            turning_point(*numbers)
    with pytest.raises(gw.ConfigError, match=r"must be in \(0, 1\), got 1\.0"):
        turning_point(1.0, 1.0, 1.0, 1.0, 1.0)


# --- online ---------------------------------------------------------------------------------------------


def online_run(squares: list[float], contraction: float = 0.0, density: float = 0.5, gamma: float = 0.5) -> list[int]:
    """What a real client keeps when the update of round t has |u|^2 = squares[t]; of d = 16 equal entries."""
    spec = gw.adaptopk_online(density, gamma, contraction=contraction)
    client = gw.Client(spec, gw.Layout.flat(16), num_rounds=len(squares))
    updates = (np.full(16, np.sqrt(x / 16), np.float32) for x in squares)
    return [gw.inspect(client.compress(u, round=t))["num_kept"] for t, u in enumerate(updates)]


def decide(norms: list[Fraction], t: int, total: int, left: dict[int, int], c: Fraction) -> tuple[int, bool]:
    """The turn of round t, in exact arithmetic, and whether it hung by a hair."""
    norms = norms[: t + 1]
    xs = [Fraction(1, max(1, i)) for i in range(t + 1)]
    n, sx, sy = len(xs), sum(xs), sum(norms)
    spread = n * sum(x * x for x in xs) - sx * sx
    alpha = Fraction(0)
    if spread:
        alpha = max(alpha, (n * sum(x * y for x, y in zip(xs, norms, strict=False)) - sx * sy) / spread)
    beta = (sy - alpha * sx) / n
    here = norms[t] * (1 - c) ** (total - 1 - t)
    ahead = [max(Fraction(0), alpha / i + beta) * (1 - c) ** (total - 1 - i) for i in range(t + 1, total)]
    hair = any(abs(x - here) <= Fraction(1, 10**9) * max(x, here) for x in ahead)
    rank = sum(x > here for x in ahead)
    turns = [1] * left[1] + [0] * left[0] + [-1] * left[-1]  # the largest rounds first
    return turns[rank], hair


@settings(max_examples=up_to(150), deadline=None)
@given(
    squares=st.lists(st.integers(0, 60).map(lambda i: 16.0 * i * i), min_size=1, max_size=14),
    contraction=st.sampled_from([0.0, 0.0625, 0.5]),
)
def test_online_decisions(squares, contraction) -> None:
    total = len(squares)
    kept = online_run([max(x, 16.0) for x in squares], contraction)
    norms = [Fraction(max(x, 16.0)) for x in squares]
    left = {1: total // 2, 0: total % 2, -1: total // 2}
    for t in range(total):
        turn, hair = decide(norms, t, total, left, Fraction(contraction))
        got = (kept[t] > 8) - (kept[t] < 8)
        assert got == turn or hair
        assert kept[t] == 8 + 4 * got
        left[got] -= 1
    assert set(left.values()) == {0}


@settings(max_examples=up_to(200), deadline=None)
@given(
    squares=st.lists(st.floats(1e-20, 1e20), min_size=1, max_size=40),
    contraction=st.floats(0, 0.99),
    gamma=st.floats(0, 1),
    density=st.floats(0.01, 1),
)
@example(squares=[1.0] * 9, contraction=0.0, gamma=1.0, density=0.5)
@example(squares=[1e20, 1e-20] * 8, contraction=0.9, gamma=0.5, density=0.5)
def test_the_online_budget_is_exact_for_any_norms(squares, contraction, gamma, density) -> None:
    kept = online_run(squares, contraction, density, gamma)
    k, g = amounts(density, gamma, 16)
    assert sum(kept) == k * len(squares)
    assert set(kept) <= {k - g, k, k + g}
    assert kept.count(k + g) >= len(squares) // 2


@pytest.mark.parametrize("total", [2, 20, 60, 101])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (1.0, 0.05), (10.0, 1.0)])
def test_norms_that_fall_as_lemma_2_has_it_give_more_to_early_rounds(total: int, alpha: float, beta: float) -> None:
    kept = online_run([16 * (alpha / max(1, t) + beta) for t in range(total)])
    assert sum(kept) == 8 * total
    assert sum(kept[: total // 2]) > sum(kept[total - total // 2 :])


def test_running_statistics_do_not_count_as_gradient() -> None:
    def kept(scale: float) -> list[int]:
        client = gw.Client(gw.adaptopk_online(0.5), buffered_layout(16, 3), num_rounds=6)
        updates = np.hstack([vectors(1, 6, 16), scale * vectors(2, 6, 3)])
        return [gw.inspect(client.compress(u, round=t))["num_kept"] for t, u in enumerate(updates)]

    assert kept(1.0) == kept(1e6)


def test_huge_norms_do_not_overflow() -> None:
    client = gw.Client(gw.adaptopk_online(0.5), gw.Layout.flat(16), num_rounds=8)
    kept = []
    for t in range(8):
        update = np.full(16, 3e38 if t % 2 else 1e-45, np.float32)
        kept.append(gw.inspect(client.compress(update, round=t))["num_kept"])
    assert sum(kept) == 64


def test_an_online_restart_gives_the_same_bytes() -> None:
    talk = Talk("ef(adaptopk_online(0.2))", 50, 1, num_rounds=9)
    for t in range(4):
        talk.round(vectors(t, 1, 50))
    twin = talk.new_client(0)
    twin.load_state_dict(talk.clients[0].state_dict())
    for t in range(4, 9):
        blob = talk.clients[0].compress(vectors(t, 50))
        assert twin.compress(vectors(t, 50)) == blob
        down = talk.server.close_round().blob
        for client in (talk.clients[0], twin):
            client.end_round(down, delivered=t % 2 == 0)
    assert same(twin.state_dict(), talk.clients[0].state_dict())
    for name, bad in (("num_more", 1.5), ("sum_x", float("nan")), ("sum_y", "1"), ("num_same", True)):
        state = talk.clients[0].state_dict()
        state["scheme"][name] = bad
        before = twin.state_dict()
        with pytest.raises(gw.StateError, match=name):
            twin.load_state_dict(state)
        assert same(twin.state_dict(), before)


def test_an_mtu_too_small_takes_no_turn() -> None:
    client = gw.Client(gw.adaptopk_online(0.5), gw.Layout.flat(50), num_rounds=4)
    before = client.state_dict()
    with pytest.raises(gw.ConfigError, match="mtu must be at least"):
        client.packets(vectors(0, 50), 12)
    assert same(client.state_dict(), before)


# --- hindsight ------------------------------------------------------------------------------------------


def objective(schedule: np.ndarray, squares: np.ndarray, d: int, c: float) -> float:
    """The part of Theorem 1's bound that a schedule decides: what is not sent, discounted."""
    rounds = np.arange(squares.size)
    return float(np.sum((1 - schedule / d) * squares * (1 - c) ** (squares.size - 1 - rounds)))


@settings(max_examples=up_to(60), deadline=None)
@given(
    squares=st.lists(st.floats(0, 100), min_size=1, max_size=4),
    d=st.integers(1, 4),
    c=st.sampled_from([0.0, 0.01, 0.5]),
    data=st.data(),
)
def test_hindsight_is_the_best_of_all_schedules(squares, d, c, data) -> None:
    k = data.draw(st.integers(1, d))
    squares = np.array(squares)
    schedule = hindsight_schedule(squares, d, k, c)
    assert schedule.dtype == np.int64
    assert schedule.sum() == k * squares.size
    assert ((schedule >= 0) & (schedule <= d)).all()
    tried = itertools.product(range(d + 1), repeat=squares.size)
    best = min(objective(np.array(s), squares, d, c) for s in tried if sum(s) == k * squares.size)
    assert objective(schedule, squares, d, c) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_hindsight_is_the_linear_program() -> None:
    linprog = pytest.importorskip("scipy.optimize").linprog
    rng = np.random.default_rng(0)
    for total, d, k, c in ((30, 100, 7, 0.01), (50, 10, 10, 0.0), (12, 1000, 333, 0.2), (9, 5, 1, 0.001)):
        squares = rng.exponential(size=total)
        cost = -squares * (1 - c) ** np.arange(total - 1, -1, -1) / d
        found = linprog(cost, A_eq=np.ones((1, total)), b_eq=[k * total], bounds=[(0, d)] * total)
        schedule = hindsight_schedule(squares, d, k, c)
        assert float(cost @ schedule) == pytest.approx(found.fun, rel=1e-9)
        assert schedule.tolist() == pytest.approx(found.x, abs=1e-6)


# --- laws, budgets, specs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["flat", "buffered"])
@pytest.mark.parametrize("spec", ["ef(adaptopk(0.2))", "ef(adaptopk_online(0.2) | uniform(8))"])
@settings(max_examples=12, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 2)), min_size=15, max_size=50))
def test_nothing_is_lost_whatever_the_network_does(spec, shape, steps) -> None:
    network = Network(spec, gw.Layout.flat(40) if shape == "flat" else buffered_layout(37), 3)
    for action, number in steps:
        network.step(action, number)
    network.finish()


def test_byte_budgets() -> None:
    client = gw.Client(gw.adaptopk(0.2), gw.Layout.flat(400), num_rounds=5)
    for t, budget in enumerate((80, 200, 500)):
        blob = client.compress(vectors(t, 400), round=t, num_bytes=budget)
        assert budget - 12 < len(blob) <= budget


@pytest.mark.parametrize("spec", ["adaptopk(0.2)", "adaptopk_online(0.2)"])
def test_small_models(spec: str) -> None:
    for d in (0, 1, 7):
        for layout in (gw.Layout.flat(d), buffered_layout(d, 2)):
            client = gw.Client(gw.parse(spec), layout, num_rounds=3)
            for t in range(4):
                u = vectors(t, layout.d)
                arrived = gw.decompress(gw.decode(client.compress(u, round=t)))
                assert set(np.flatnonzero(arrived != u)) <= set(range(d))
                assert d > 1 or np.array_equal(arrived, u)


@pytest.mark.parametrize("name", ["adaptopk", "adaptopk_online"])
def test_specs(name: str) -> None:
    last = {"adaptopk": "t_hat=4.0", "adaptopk_online": "contraction=0.25"}[name]
    for text in (
        f"{name}(0.1)",
        f"{name}(0.1, gamma=0.9, rounds=8)",
        f"ef({name}(0.1, {last}) | uniform(4))",
        f"{name}(1.0, gamma=0.0, rounds=1, {last})",
    ):
        assert str(gw.parse(text)) == text
        assert gw.parse(text) == gw.parse(str(gw.parse(text)))
    check_errors(
        [
            (f"{name}(0)", r"density must be in \(0, 1\], got 0"),
            (f"{name}(0.1, gamma=1.5)", r"gamma must be in \[0, 1\], got 1\.5"),
            (f"{name}(0.1, gamma=-0.5)", r"gamma must be in \[0, 1\], got -0\.5"),
            (f"{name}(0.1, gamma='a')", "gamma must be a number, got 'a'"),
            (f"{name}(0.1, rounds=0)", "rounds must be an integer of 1 or more, got 0"),
            (f"{name}(0.1, rounds=2.5)", r"rounds must be an integer of 1 or more, got 2\.5"),
            (f"{name}(0.1, round=3)", f"{name} has no parameter 'round'.*rounds.*it takes density, gamma"),
        ]
    )
    check_errors(
        [
            ("adaptopk(0.1, t_hat=-1)", r"t_hat must be 0 or more, got -1\.0"),
            ("adaptopk(0.1, t_hat=1e999)", "t_hat must be finite, got inf"),
            ("adaptopk_online(0.1, contraction=1)", r"contraction must be in \[0, 1\), got 1\.0"),
            ("adaptopk_online(0.1, contraction=-0.1)", r"contraction must be in \[0, 1\), got -0\.1"),
        ]
    )
