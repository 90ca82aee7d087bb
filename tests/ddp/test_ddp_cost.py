"""When whole gradients take less time: closed forms, and decisions that all workers come to alike."""

import pytest

from gradwire.ddp.cost import AGAIN, Choice, Link, compressed_seconds, dense_seconds, link_of

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
    assert compressed_seconds(link, 30_000, 0.005) == pytest.approx(0.001 + 30_000 * MEGABIT_100 + 0.005)
    assert link_of(0.002, 0.001, 1000, 2).seconds_per_byte == 0  # measured badly
    assert link_of(0.001, 0.002, 1000, 1).seconds_per_byte == 0  # alone


def decided(link, seconds, num_bytes=60_000, d=5_000_000, num_workers=2):
    choice = Choice(link, d, num_workers)
    for _ in range(4):
        choice.note_gathered(num_bytes)
        choice.note(seconds)
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
        choice.note([seconds])
    assert not choice.dense  # one more is to be measured
    choice.note([100 * dense])
    assert not choice.dense
    for _ in range(AGAIN - 1):
        choice.note([2 * dense])
        assert not choice.dense
    choice.note([2 * dense])
    assert choice.dense
    for _ in range(AGAIN - 1):
        choice.note_dense()
        assert choice.dense
    choice.note_dense()
    assert not choice.dense


def test_what_is_shared_is_summed_where_gathering_takes_no_fewer_bytes():
    """Floats over a ring: 8 (W - 1) / W bytes each; a blob goes to W - 1 workers; clearly fewer is by a quarter."""
    for num_workers, bytes_each, summed in [
        (2, 4.0, True),  # float32: 4 against 4
        (2, 3.3, True),
        (2, 3.1, False),
        (2, 2.0, False),
        (3, 2.0, False),  # float16: 5.33 against 4
        (4, 2.0, True),  # 6 against 6
        (8, 1.0, True),
        (8, 0.7, False),
    ]:
        choice = Choice(None, 1_000_000, num_workers)
        choice.note_gathered(round(bytes_each * 10_000), 10_000)
        assert choice.summed == summed, (num_workers, bytes_each)
    # of the reference's coordinates 10,000 are summed, the others are told all the same
    choice = Choice(None, 1_000_000, 8)
    choice.note_gathered(14_000, 10_000, 4_000)
    assert choice.summed
    choice.note_gathered(14_000, 10_000, 8_000)
    assert not choice.summed
    choice.note_gathered(14_000)
    assert not choice.summed


def test_sums_that_take_less_time_than_their_coding():
    """What the slowest worker computed counts in either way to send what is compressed."""
    choice = Choice(Link(0.0, 1e-9), 5_000_000, 2)
    choice.note_gathered(400_000, 100_000)
    assert choice.summed
    dense = dense_seconds(Link(0.0, 1e-9), 5_000_000, 2)
    for _ in range(3):
        choice.note([dense, 1.3 * dense])
    assert choice.dense
