"""Why FedAdam, momentum and sparse updates do not go well together, on one coordinate; and what is said of it."""

from __future__ import annotations

import fake_grid  # noqa: F401  messages need what it sets
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
)

import gradwire as gw
from gradwire.flower.kinds import warnings_of


class Coordinate:
    """A model of one coordinate, which a strategy moves by one reply a round."""

    def __init__(self, strategy):
        self.strategy, self.x, self.rounds = strategy, np.zeros(1, np.float32), 0

    def move(self, update):
        arrays = ArrayRecord({"x": Array(self.x)})
        self.strategy.current_arrays = {"x": self.x} if isinstance(self.strategy, FedAdam) else arrays
        trained = ArrayRecord({"x": Array((self.x + np.float32(update)).astype(np.float32))})
        content = RecordDict({"arrays": trained, "metrics": MetricRecord({"num-examples": 1})})
        message = Message(content, dst_node_id=1, message_type="train")
        self.rounds += 1
        self.x = self.strategy.aggregate_train(self.rounds, [message])[0]["x"].numpy().astype(np.float32)
        return float(self.x[0])


def travelled(strategy, updates):
    """How far the coordinate goes."""
    coordinate = Coordinate(strategy)
    return [coordinate.move(update) for update in updates][-1]


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


def distance(strategy, every, rounds=50, rate=0.05):
    """How far it is in the end from where its clients pull it, who send every so many rounds what they gathered."""
    coordinate, residual, x = Coordinate(strategy), 0.0, 0.0
    for index in range(1, rounds + 1):
        residual += rate * (1 - x)
        update, residual = (0.0, residual) if index % every else (residual, 0.0)
        x = coordinate.move(update)
    return abs(1 - x)


def test_momentum_helps_what_is_sent_each_round_and_harms_what_was_gathered():
    """At the same rate, with what clients send answering to where the model is."""
    momentum = lambda: FedAvgM(server_momentum=0.9, server_learning_rate=0.1)  # noqa: E731
    assert distance(momentum(), 1) < distance(FedAvg(), 1) / 3
    assert distance(momentum(), 10) > 3 * distance(FedAvg(), 10)


def test_what_is_gathered_wants_a_tau_of_its_own_size():
    """With a tau far below it a coordinate has hardly moved when one that is sent each round has arrived."""
    assert distance(FedAdam(eta=0.03, tau=0.001), 1) < 0.05
    assert distance(FedAdam(eta=0.03, tau=0.001), 10) > 0.5
    assert distance(FedAdam(eta=0.1, tau=0.01), 10) < 0.1


@pytest.mark.parametrize(
    ("inner", "spec", "said"),
    [
        (FedAdam(), "ef(topk(0.01))", ["take a tau of about", "a momentum of 0.9"]),
        (FedAdam(beta_1=0.0), "ef(topk(0.01))", ["take a tau of about"]),
        (FedAdam(), "ef(uniform(4))", []),
        (FedAdagrad(), "ef(topk(0.01) | uniform(8))", ["take a tau of about"]),
        (FedAvgM(server_momentum=0.9), "ef(topk(0.01))", ["a momentum of 0.9"]),
        (FedAvgM(server_momentum=0.9), "dense()", []),
        (FedAvgM(), "ef(topk(0.01))", []),
        (FedAvg(), "ef(topk(0.01))", []),
        (FedAvg(), "dither(density=0.001)", []),
        (FedAvgM(server_momentum=0.5), "dither(density=0.001)", ["rounding noise of dither(density=0.001)"]),
        (FedAvgM(server_momentum=0.5), "momentum(dither(num_bytes=20), 0.8)", ["noise of dither(num_bytes=20)"]),
        (FedAvgM(server_momentum=0.5), "dither(density=0.004)", []),
        (FedAvgM(server_momentum=0.5), "dither(num_bytes=30)", []),
        (FedAdam(), "dither(density=0.001)", []),
        (
            DifferentialPrivacyServerSideFixedClipping(FedAdam(), 1.0, 1.0, 2),
            "topk(0.01)",
            ["looks at each reply", "take a tau of about", "a momentum of 0.9"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_said_of_it(inner, spec, said):
    """Of strategies that others wrap, too."""
    warnings = warnings_of(inner, gw.parse(spec), 10_000)
    assert len(warnings) == len(said)
    assert all(part in warning for part, warning in zip(said, warnings, strict=True))
