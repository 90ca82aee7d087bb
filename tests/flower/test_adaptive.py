"""Why FedAdam and sparse updates do not go well together, in closed form; and that momentum does not mind them."""

from __future__ import annotations

import fake_grid  # noqa: F401  messages need what it sets
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvgM


def travelled(strategy, updates):
    """How far one coordinate goes, a reply a round."""
    x = np.zeros(1, np.float32)
    for index, update in enumerate(updates, 1):
        arrays = ArrayRecord({"x": Array(x)})
        strategy.current_arrays = {"x": x} if isinstance(strategy, FedAdam) else arrays
        content = RecordDict(
            {
                "arrays": ArrayRecord({"x": Array((x + np.float32(update)).astype(np.float32))}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        message = Message(content, dst_node_id=1, message_type="train")
        x = strategy.aggregate_train(index, [message])[0]["x"].numpy().astype(np.float32)
    return float(x[0])


EACH = [0.01] * 160
GATHERED = [0.01 * 20 * (index % 20 == 19) for index in range(160)]


def test_adam_divides_away_what_was_gathered():
    """Twenty rounds' worth at once moves a coordinate far less than twenty rounds do."""
    assert sum(EACH) == pytest.approx(sum(GATHERED))
    dense = travelled(FedAdam(eta=0.01, tau=1e-6), EACH)
    sparse = travelled(FedAdam(eta=0.01, tau=1e-6), GATHERED)
    assert dense == pytest.approx(160 * 0.01, rel=0.1)  # the size of updates does not matter to Adam
    assert sparse < dense / 3


def test_a_large_tau_does_not():
    make = lambda: FedAdam(eta=1.0, tau=1.0)  # noqa: E731
    assert travelled(make(), GATHERED) == pytest.approx(travelled(make(), EACH), rel=0.15)


def test_momentum_does_not():
    make = lambda: FedAvgM(server_momentum=0.9)  # noqa: E731
    assert travelled(make(), GATHERED) == pytest.approx(travelled(make(), EACH), rel=0.15)
