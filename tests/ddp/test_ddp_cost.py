"""When whole gradients take less time: closed forms, and decisions that all workers come to alike."""

import pytest

from gradwire.ddp.cost import Choice, Link, dense_seconds, gather_seconds, link_of

MEGABIT_100 = 8e-8  # seconds a byte


@pytest.mark.parametrize("num_workers", [2, 3, 8])
def test_a_link_is_found_again_from_what_it_takes(num_workers):
    link = Link(0.002, MEGABIT_100)
    numbers = 250_000
    large = dense_seconds(link, numbers, num_workers)
    found = link_of(0.002, large, 4 * numbers, num_workers)
    assert found.latency == 0.002
    assert found.seconds_per_byte == pytest.approx(MEGABIT_100, rel=1e-9)


def test_seconds_of_both_ways():
    link = Link(0.001, MEGABIT_100)
    assert dense_seconds(link, 1_000_000, 2) == pytest.approx(0.001 + 4_000_000 * MEGABIT_100)
    assert gather_seconds(link, 10_000, 4, 0.005) == pytest.approx(0.001 + 30_000 * MEGABIT_100 + 0.005)
    assert link_of(0.002, 0.001, 1000, 2).seconds_per_byte == 0  # measured badly
    assert link_of(0.001, 0.002, 1000, 1).seconds_per_byte == 0  # alone


def decided(link, seconds, num_bytes=60_000, d=5_000_000, num_workers=2):
    choice = Choice(link, d, num_workers)
    for _ in range(4):
        choice.note(num_bytes, seconds)
    return choice


def test_what_pays_on_which_link():
    assert not decided(Link(0.001, MEGABIT_100), [0.01, 0.012]).dense
    assert decided(Link(0.0001, 1e-11), [0.01, 0.012]).dense
    assert not decided(None, [0.01, 0.012]).dense
    # the slowest worker counts, and only what is clearly faster is changed to
    dense = dense_seconds(Link(0.0, 1e-9), 5_000_000, 2)
    assert not decided(Link(0.0, 1e-9), [0.0, 1.2 * dense], 0).dense
    assert decided(Link(0.0, 1e-9), [0.0, 1.3 * dense], 0).dense


def test_the_best_of_three_steps_and_again_after_a_thousand():
    link = Link(0.0, 1e-9)
    dense = dense_seconds(link, 5_000_000, 2)
    choice = Choice(link, 5_000_000, 2)
    for seconds in (0.0, 100 * dense, dense):
        choice.note(0, [seconds])
    assert not choice.dense  # one more is to be measured
    choice.note(0, [100 * dense])
    assert not choice.dense
    for _ in range(999):
        choice.note(0, [2 * dense])
        assert not choice.dense
    choice.note(0, [2 * dense])
    assert choice.dense
    for _ in range(999):
        choice.note_dense()
        assert choice.dense
    choice.note_dense()
    assert not choice.dense
