"""Budgets: what fits the time is used, what does not is not, and the text gives the same policy back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradwire as gw
from gradwire.errors import ConfigError
from gradwire.federated.network.budgets import Plan, fit, none, parse_budget, round_shares
from gradwire.federated.network.links import ideal, link
from gradwire.rng import Key


def connection(up=8e3, steps=2.0, latency=0.5):
    return link(up, 1e6, latency, steps).connection(Key(0, client=0))


def test_by_hand():
    # 10 s: half of it for training at 2 steps a second, then 5 s less 0.5 s of latency at 1,000 bytes a second
    plan = fit(margin=0.0).plan(connection(), 0.0, 10.0, 100)
    assert plan == Plan(10, 4500)
    assert fit(margin=0.0).plan(connection(), 0.0, 10.0, 4) == Plan(4, 7500)
    assert fit(margin=0.2).plan(connection(), 0.0, 10.0, 4) == Plan(4, 5900)
    assert fit(margin=0.0, most_bytes=600).plan(connection(), 0.0, 10.0, 4) == Plan(4, 600)


@given(
    up=st.floats(1e2, 1e9),
    steps=st.floats(0.1, 1e3),
    seconds=st.floats(0, 1e4),
    start=st.floats(0, 1e4),
    local_steps=st.integers(1, 50),
    share=st.floats(0.01, 0.99),
    margin=st.floats(0, 0.9),
)
def test_a_plan_fits_or_is_the_least(up, steps, seconds, start, local_steps, share, margin):
    c = connection(up, steps)
    plan = fit(share, margin, least_bytes=100).plan(c, start, seconds, local_steps)
    trained = c.computed(plan.local_steps, start)
    assert 1 <= plan.local_steps <= local_steps
    assert plan.local_steps == 1 or trained - start <= share * seconds * (1 + 1e-9)
    more = c.computed(plan.local_steps + 1, start) - start
    assert plan.local_steps == local_steps or more > share * seconds * (1 - 1e-9)
    assert plan.num_bytes >= 100
    if plan.num_bytes > 100:
        assert c.uploaded(plan.num_bytes, trained) <= (start + seconds) * (1 + 1e-9)


def test_no_deadline_and_no_time():
    assert fit().plan(connection(), 0.0, math.inf, 7).local_steps == 7
    assert fit().plan(connection(), 5.0, 0.0, 7) == Plan(1, 128)
    assert none().plan(connection(), 0.0, 1.0, 7) == Plan(7, None)


def test_a_link_that_takes_no_time_has_no_bound():
    plan = fit().plan(ideal().connection(Key(0, client=0)), 0.0, 1.0, 5)
    layout = gw.Layout.flat(50)
    update = np.arange(1, 51, dtype=np.float32)
    blob = gw.Client(gw.ef(gw.topk(0.1)), layout).compress(update, num_bytes=plan.num_bytes)
    np.testing.assert_array_equal(gw.decompress(gw.decode(blob)), update)


@pytest.mark.parametrize("budget", [none(), fit(), fit(0.25), fit(0.3, 0.0, 64, 4096), fit(most_bytes=10**9)])
def test_text_both_ways(budget):
    assert parse_budget(str(budget)) == budget
    assert parse_budget(f" {budget!r} ") == budget


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fitt()", "unknown budget 'fitt'; did you mean 'fit'"),
        ("fit(compute_share=0)", r"compute_share must be in \(0, 1\), got 0"),
        ("fit(compute_share=1.0)", "compute_share"),
        ("fit(margin=1)", r"margin must be in \[0, 1\), got 1"),
        ("fit(margin=-0.1)", "margin"),
        ("fit(least_bytes=0)", "least_bytes must be"),
        ("fit(least_bytes=10, most_bytes=9)", "most_bytes must be"),
        ("3", "a spec is a call such as fit"),
    ],
)
def test_bad_texts(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_budget(text)


@pytest.mark.parametrize("text", ["adaptopk(0.1, t_hat=4)", "ef(adaptopk(0.1, t_hat=4) | uniform(8))"])
def test_shares_are_adaptopks(text):
    kept = gw.adaptopk(0.1, t_hat=4).schedule(1000, 8)
    shares = round_shares(gw.parse(text), fit(), 1000, 8)
    np.testing.assert_allclose(shares * kept.mean(), kept)
    assert shares.mean() == pytest.approx(1)
    np.testing.assert_array_equal(round_shares(gw.parse(text), none(), 1000, 8), np.ones(8))


def test_rounds_after_a_schedule_s_end_take_a_mean_round_s_time():
    shares = round_shares(gw.parse("ef(adaptopk(0.1, rounds=4))"), fit(), 1000, 7)
    np.testing.assert_allclose(shares, [1.5, 0.5, 0.5, 1.5, 1, 1, 1])
