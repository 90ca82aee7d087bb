"""What a server gets to see, looked at with statistics: each test fails what is right with a chance below 1e-8."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from secure_rounds import Heard, play

import gradwire as gw
from gradwire.kernels import reference
from gradwire.secagg import Terms
from gradwire.secagg.numbers import NUM_COUNTS

D = 20_000
LAYOUT, SUPPORT = gw.Layout.flat(D), np.arange(D)
GRID = gw.fixed(8, 1.0)
TERMS = Terms(4, 3, GRID)
CHANCE = 1e-9
BODY = slice(21 + 8, None)  # numbers, then tags


def integers_in(message: bytes) -> np.ndarray:
    """The masked integers of a message, without weight and count."""
    count = NUM_COUNTS + D
    return reference.unpack(np.frombuffer(message[BODY], np.uint8), count, TERMS.width)[NUM_COUNTS:]


def blob_of(integers: np.ndarray) -> bytes:
    """A payload of these steps of the grid."""
    return gw.Client(GRID, LAYOUT).compress(integers.astype(np.float32) * np.float32(GRID.step))


def heard(per_client: list[np.ndarray], steps: dict[int, int] | None = None) -> tuple[Heard, np.ndarray]:
    record = Heard()
    total = play(TERMS, dict(enumerate(map(blob_of, per_client))), None, steps, record, LAYOUT, SUPPORT)
    return record, total.integers


def uniformity(integers: np.ndarray, width: int = TERMS.width) -> float:
    """The least chance of what a uniform draw would show at least: of all values together, and of every bit."""
    counts = np.bincount(integers >> max(0, width - 8), minlength=256)
    chances = [stats.chisquare(counts).pvalue, stats.chisquare(np.bincount(integers & 255, minlength=256)).pvalue]
    ones = [int((integers >> bit & 1).sum()) for bit in range(width)]
    return min(*chances, *(stats.binomtest(count, integers.size).pvalue for count in ones))


EXTREMES = [np.full(D, 127), np.full(D, -127), np.zeros(D, int), np.where(np.arange(D) % 2, 127, -127)]


def test_masked_numbers_alone_are_uniform():
    messages, total = heard(EXTREMES)
    assert total.tolist() == sum(EXTREMES).tolist()
    for i, message in messages.of(3).items():
        assert uniformity(integers_in(message)) > CHANCE, i


def test_the_statistic_notices_numbers_without_a_mask():
    """Meta: what is in the messages would be found if it were there."""
    for integers in EXTREMES:
        assert uniformity(integers & (2**TERMS.width - 1)) < 1e-30


def test_sums_of_some_are_uniform_too():
    """Without all of the clients in the sum, masks stay on; of one that dropped out its own mask does."""
    messages, _ = heard(EXTREMES, {3: 3})
    masked = {i: integers_in(m) for i, m in messages.of(3).items()}
    for some in ([0, 1], [0, 1, 2], [1, 3], [0, 1, 2, 3]):
        total = sum(masked[i] for i in some) & (2**TERMS.width - 1)
        assert uniformity(total) > CHANCE, some


def test_no_message_correlates_with_what_it_hides():
    rng = np.random.default_rng(0)
    hidden = [rng.integers(-127, 128, D) for _ in range(4)]
    messages, _ = heard(hidden)
    for i, message in messages.of(3).items():
        for integers in hidden:
            assert stats.pearsonr(integers_in(message), integers).pvalue > CHANCE, i


def test_other_updates_of_the_same_sum_look_the_same():
    """One client has it all, or each a part: message by message, and in what is alike between two clients."""
    spike = np.zeros(D, int)
    spike[: D // 2] = 120
    runs = [heard([spike, *[np.zeros(D, int)] * 3]), heard([spike // 4] * 4)]
    assert runs[0][1].tolist() == runs[1][1].tolist() == spike.tolist()
    one, other = (record for record, _ in runs)
    for step in range(1, 5):
        lengths = [[(i, len(m)) for i, m in record.of(step).items()] for record in (one, other)]
        assert lengths[0] == lengths[1], "lengths say nothing"
    masked = [{i: integers_in(m) for i, m in record.of(3).items()} for record in (one, other)]
    half = [slice(0, D // 2), slice(D // 2, D)]
    for i in range(4):
        for where in half:
            assert stats.ks_2samp(masked[0][i][where], masked[1][i][where]).pvalue > CHANCE
        j = (i + 1) % 4
        differences = [(m[i] - m[j]) & (2**TERMS.width - 1) for m in masked]
        assert stats.ks_2samp(*differences).pvalue > CHANCE
        assert all(uniformity(d) > CHANCE for d in differences)


def test_nothing_comes_twice():
    """The same updates in two sessions: no message of one is one of the other's, nor are their numbers alike."""
    first, second = (heard(EXTREMES)[0] for _ in range(2))
    for (step, i, a), (_, _, b) in zip(first.messages, second.messages, strict=True):
        assert a != b
        if step == 3:
            difference = (integers_in(a) - integers_in(b)) & (2**TERMS.width - 1)
            assert uniformity(difference) > CHANCE, i


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_keys_shares_confirmations_and_reveals_say_nothing_of_the_numbers(step):
    """Their bytes beside each other, over many sessions, are as often 0 as any other number."""
    body = b"".join(m[21:-4] for _ in range(8) for m in heard_small().of(step).values())
    if step == 5:
        body = np.delete(
            np.frombuffer(body, np.uint8).reshape(-1, 16 + 1 + 3 * 16), 16, axis=1
        ).tobytes()  # the list's own byte
    if step == 1:
        table = np.frombuffer(body, np.uint8).reshape(-1, 80)
        body = np.delete(table, [31, 63], axis=1).tobytes()  # an X25519 key has 255 bits
    assert stats.chisquare(np.bincount(np.frombuffer(body, np.uint8), minlength=256)).pvalue > CHANCE


def heard_small() -> Heard:
    record, grid = Heard(), gw.fixed(8, 1.0)
    blob = gw.Client(grid, gw.Layout.flat(2)).compress(np.ones(2, np.float32))
    play(Terms(4, 3, grid), dict.fromkeys(range(4), blob), None, None, record, gw.Layout.flat(2), np.arange(2))
    return record
