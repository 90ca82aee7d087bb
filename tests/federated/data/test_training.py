import numpy as np
import pytest

from gradwire.federated.data.training import Trained


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e30])  # of the last one squares are beyond float32
def test_norms_are_those_of_float64(scale):
    updates = (scale * np.random.default_rng(0).standard_normal((5, 20_000))).astype(np.float32)
    weights = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    trained = Trained(updates, np.zeros(5, np.float32), weights)
    wide = updates.astype(np.float64)
    apart = wide - np.average(wide, axis=0, weights=weights)
    assert trained.update_norm == pytest.approx(np.sqrt(np.square(wide).sum(axis=1).mean()), rel=1e-5)
    assert trained.drift_norm == pytest.approx(np.sqrt(np.square(apart).sum(axis=1).mean()), rel=1e-5)


def test_updates_that_are_lost_have_norms_that_say_so():
    updates = np.array([[np.inf, 0.0], [1.0, 2.0]], np.float32)
    assert Trained(updates, np.zeros(2, np.float32), np.ones(2)).update_norm == np.inf
    assert Trained(updates[:0], np.zeros(0, np.float32), np.ones(0)).update_norm == 0.0
