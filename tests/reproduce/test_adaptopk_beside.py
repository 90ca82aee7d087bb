import numpy as np
import pytest

from gradwire.reproduce import adaptopk
from gradwire.reproduce.adaptopk_norms import report_norms
from gradwire.reproduce.adaptopk_threshold import _next, train_at_equal_bytes
from gradwire.reproduce.blocks import Table
from gradwire.reproduce.units import thinned

SETTINGS = {
    "data": "digits",
    "model": "mlp",
    "clients": 4,
    "batch_size": 16,
    "learning_rate": 0.2,
    "rounds": 40,
    "evaluate_every": 10,
    "seeds": [0],
}


def test_the_next_threshold_is_on_the_line_through_the_last_two():
    def taken(value):
        return round(1e9 * value**-1.5)

    assert _next([(1.0, 300)], 100) == pytest.approx(3.0)  # one try: bytes fall as 1 / threshold
    assert _next([(1.0, taken(1.0)), (2.0, taken(2.0))], taken(3.0)) == pytest.approx(3.0, rel=1e-6)
    assert _next([(2.0, 100), (2.0, 100)], 50) == pytest.approx(4.0)


def test_one_threshold_takes_the_bytes_of_topk_and_spends_them_otherwise():
    shares = []
    found = train_at_equal_bytes({**SETTINGS, "density": 1 / 64}, shares.append)
    assert found["summary"]["uplink_bytes"] == pytest.approx(found["topk_uplink_bytes"], rel=0.02)
    assert [found["threshold"], found["summary"]["uplink_bytes"]] in [list(tried) for tried in found["tries"]]
    means = np.array(found["uplink_bytes"])[:, 1]
    assert means.max() > 2 * means.min()  # Top-K takes the same in every round
    assert max(shares) <= 1
    assert found["experiment"]["seeds"] == [0]


def test_norms_that_fall_as_the_lemma_says_are_told_as_such():
    learning_rate, density, initial_loss, rounds = 0.1, 1 / 128, 2.0, 4000
    alpha = 2 * initial_loss / (density * learning_rate)  # Eq. (16)
    squares = thinned([[t, learning_rate**2 * 0.25 * alpha / (t + 1)] for t in range(rounds)])
    run = {"square_norm": squares, "loss": [[0, initial_loss], [1, 0.1]]}
    (table,) = (b for b in report_norms([("these", density, [run, run])], learning_rate) if isinstance(b, Table))
    (row,) = table.rows
    assert row[:2] == ["these", "2"]
    assert float(row[-2]) == pytest.approx(-1, abs=0.001)
    assert float(row[-1]) == 0.25
    assert float(row[-3]) == pytest.approx(0.25 * alpha / rounds, rel=0.02)
    assert report_norms([], learning_rate) == []


def test_the_share_of_the_first_rounds_is_of_bytes_not_of_stretches():
    taken = thinned([[t, 1000.0 if t < 50 else 100.0] for t in range(450)], 45)
    assert adaptopk._share_before({"uplink_bytes": taken}, 0.1) == pytest.approx(40 / (50 + 40))
