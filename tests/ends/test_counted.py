"""What is known of a client's payload numbers: exact as far back as it goes, and it does not grow."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradwire as gw
from gradwire.ends.counted import KEPT, Counted, Run


@given(st.permutations(range(20)), st.integers(0, 20))
def test_runs_are_those_of_a_set(order, count):
    counted, found = Counted(), set()
    for number in order[:count]:
        counted = counted.added(number, round=number // 3)
        found.add(number)
        assert {n for run in counted.runs for n in range(run.low, run.high + 1)} == found
        assert all(a.high + 1 < b.low for a, b in pairwise(counted.runs))
        assert all(run.round == max(n // 3 for n in range(run.low, run.high + 1)) for run in counted.runs)
    for number in range(-1, 22):
        assert (counted.run_of(number) is not None) == (number in found)


def every_other(count):
    """One payload a round of which every other one is lost."""
    counted = Counted()
    for number in range(0, 2 * count, 2):
        counted = counted.added(number, round=number)
    return counted


def test_what_may_still_come_is_kept_and_the_newest_of_the_rest():
    counted = every_other(100).without(oldest=150)
    assert [run.low for run in counted.runs] == list(range(150 - 2 * KEPT, 200, 2))
    assert counted.forgotten == 150 - 2 * KEPT - 2
    assert counted.without(oldest=150) == counted
    assert counted.without(oldest=10**6).runs == tuple(Run(n, n, n) for n in range(200 - 2 * KEPT, 200, 2))


def test_numbers_that_fall_do_not_make_it_grow():
    """Whoever counts backwards makes the lowest run the newest one."""
    counted = Counted()
    for index in range(1000):
        counted = counted.added(2 * (1000 - index), round=index).without(oldest=index)
        assert len(counted.runs) <= KEPT + 1


def test_without_loss_nothing_is_forgotten():
    counted = Counted()
    for number in range(1000):
        counted = counted.added(number, round=number).without(oldest=number)
    assert (counted.runs, counted.forgotten) == ((Run(0, 999, 999),), -1)


def test_payloads_that_came_in_part():
    counted = Counted()
    for number in range(3 * KEPT):
        counted = counted.left_behind(number, 0b101).without(oldest=100)
    assert counted.unfinished == dict.fromkeys(range(2 * KEPT, 3 * KEPT), 0b101)
    assert counted.forgotten == 2 * KEPT - 1


def test_state():
    counted = every_other(5).left_behind(3, 1 << 70).without(oldest=4)
    assert Counted.from_state(counted.state()) == counted
    spoilt = [
        [[[0, 5, 0], [3, 9, 0]], [], -1],
        [[[4, 3, 0]], [], -1],
        [[[0, 1, 0], [2, 3, 0]], [], -1],
        [[], [[0, [1]]], -1],
        [[], [[-1, np.zeros(1, np.uint8)]], -1],
        [[], [], -2],
    ]
    for state in spoilt:
        with pytest.raises((gw.StateError, gw.ConfigError)):
            Counted.from_state(state)
