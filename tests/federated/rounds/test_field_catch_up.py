"""Fields in the simulator: who pays for a blob has what it says."""

from __future__ import annotations

import numpy as np

import gradwire as gw
from gradwire.federated.data.tasks import load_task
from gradwire.federated.experiment import Experiment
from gradwire.federated.rounds.saving import load_federation, save_federation
from gradwire.federated.simulation import Simulation
from gradwire.payload import Fielded

SPEC = "dither(density=0.01, field=True)"


def simulation():
    values = {"data": "digits", "clients": 50, "participation": 0.2, "rounds": 60, "evaluate_every": 60}
    return Simulation(Experiment.build({**values, "methods": [SPEC]}), gw.parse(SPEC), load_task("digits"), 0)


def test_a_client_that_sat_out_gets_the_field_it_pays_for():
    sim = simulation()
    receive, since, plain = sim.federation.receive, [], []

    def receiving(opened, *more):
        if sim.federation.shipped is not None:
            since.append(more[0][0])
            if not any(isinstance(part.support, Fielded) for part in opened.payload.parts):
                plain.append(more[0][0])
        return receive(opened, *more)

    sim.federation.receive = receiving
    for _ in sim.rounds():
        pass
    assert sim.federation.shipped is not None, "no field was shipped, and nothing is tested"
    assert len(since) > 100
    assert len(plain) < 0.25 * len(since)


def test_a_field_shipped_is_saved():
    sim, again = simulation(), simulation()
    for metrics in sim.rounds():
        if sim.federation.shipped is not None and metrics.round > sim.federation.shipped[0] + 1:
            break
    load_federation(again.federation, save_federation(sim.federation))
    assert again.federation.shipped == sim.federation.shipped
    np.testing.assert_array_equal(again.model, sim.model)
