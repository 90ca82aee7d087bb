"""Every setting: what it needs to be read, that it is refused without, and that with it the run is another one."""

from __future__ import annotations

import warnings
from dataclasses import asdict

import pytest
import torch

import gradwire as gw
from gradwire.errors import ConfigError
from gradwire.federated.algorithms import parse_algorithm
from gradwire.federated.data.tasks import load_task
from gradwire.federated.experiment import Experiment
from gradwire.federated.simulation import Simulation
from gradwire.federated.together import NEEDS, warn_of_noise

SMALL = {"clients": 4, "rounds": 3, "local_steps": 3, "batch_size": 8, "methods": ["ef(topk(0.1))"]}
PACKETS = {"mtu": 200, "links": ["lte()"]}
LATE = {"algorithms": ["fedasync()"]}

# name: a value, what the run must have besides, and where it has not, and the value is refused
NEEDING = {
    "packet_loss": (0.3, PACKETS, {}),
    "packet_duplication": (0.5, PACKETS, {}),
    "packet_reordering": (0.5, PACKETS, {}),
    "disconnection": (0.6, PACKETS, {}),
    "reorder_seconds": (2.0, {**PACKETS, "packet_reordering": 0.5}, {**PACKETS, "packet_duplication": 0.5}),
    "forward": ("topk(0.05)", {"regions": 2}, {}),
    "region_link": ("lte()", {"regions": 2}, {}),
    "warmup_from": (0.9, {"warmup_rounds": 2}, {}),
    "schedule": ("cosine", {"warmup_rounds": 1}, {"warmup_rounds": 3}),
    "weighting": ("equal", {"partition": "dirichlet:0.2"}, LATE),
    "examples_per_second": (1.0, LATE, {}),
    "max_staleness": (0, {**LATE, "links": ["mix(fibre=1, lora=1)"]}, {}),
    "deadline_seconds": (1.0, {"links": ["mix(lora=1, lte=1)"]}, {}),
    "stop_at_target": (True, {"target_accuracy": 0.01}, {}),
}

# read in every run: a value, and what makes the difference easy to see
ALWAYS = {
    "methods": (["topk(0.05)"], {}),
    "algorithms": (["fedavgm()"], {}),
    "links": (["lte()"], {}),
    "budgets": (["fit()"], {"links": ["lora()"], "deadline_seconds": 4.0}),
    "downlink": ("topk(0.05)", {}),
    "clients": (5, {}),
    "participation": (0.5, {}),
    "rounds": (4, {}),
    "local_steps": (2, {}),
    "batch_size": (4, {}),
    "learning_rate": (0.01, {}),
    "warmup_rounds": (2, {}),
    "milestones": ([0.5], {}),
    "weight_decay": (0.1, {}),
    "precision": ("bfloat16", {}),
    "partition": ("shards:2", {}),
    "mtu": (200, {}),
    "aggregation": ("median()", {"methods": ["dense()"]}),
    "max_norm": (0.01, {}),
    "regions": (2, {}),
    "audit": (True, {}),
    "target_accuracy": (0.01, {}),
    "evaluate_every": (2, {}),
}

# changes no round of a run on digits
ELSEWHERE = {
    "name": "what a run is called",
    "data": "needs files",
    "data_dir": "where data lies, not what is done with it",
    "model": "digits have one that fits",
    "augment": "moves images; other data is refused where it is loaded",
    "clients_on_disk": "where clients are kept",
    "seeds": "a run each",
    "device": "where a run is",
    "runs": "a run each",
}


def outcome(task, settings):
    """All that can be told of a run but how long it took."""
    (variant,) = Experiment.build({**SMALL, **settings}).variants()
    sim = Simulation(variant.experiment, variant.compressor, task, seed=1)
    rounds = [asdict(metrics) for metrics in sim.rounds()]
    summary = sim.summary()
    for entry in (*rounds, summary):
        for name in ("seconds", "compression_seconds", "client_rounds_per_second", "label"):
            entry.pop(name, None)
    return rounds, summary


@pytest.fixture(scope="module")
def digits():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_task("digits")
    torch.set_num_threads(before)


def test_every_setting_has_a_row():
    assert set(NEEDING) == set(NEEDS)
    assert set(Experiment.model_fields) == {*NEEDING, *ALWAYS, *ELSEWHERE}
    assert len(Experiment.model_fields) == len(NEEDING) + len(ALWAYS) + len(ELSEWHERE)


@pytest.mark.parametrize("name", NEEDING)
def test_a_setting_that_no_run_reads_is_refused(name):
    value, needs, without = NEEDING[name]
    with pytest.raises(ConfigError, match=f"^mine: {name} "):
        Experiment.build({**SMALL, **without, name: value}, "mine")
    assert getattr(Experiment.build({**SMALL, **needs, name: value}), name) == value
    default = Experiment.model_fields[name].default
    assert getattr(Experiment.build({**SMALL, **without, name: default}), name) == default


@pytest.mark.parametrize("name", [*NEEDING, *ALWAYS])
def test_a_setting_that_is_taken_makes_another_run(digits, name):
    value, needs = (NEEDING | ALWAYS)[name][:2]
    assert outcome(digits, {**needs, name: value}) != outcome(digits, needs)


def test_the_same_settings_make_the_same_run(digits):
    """What the test above compares does not differ by chance."""
    assert outcome(digits, {"links": ["lte()"]}) == outcome(digits, {"links": ["lte()"]})


def test_of_several_runs_one_that_reads_a_setting_is_enough():
    shared = {**SMALL, "forward": "topk(0.05)"}
    assert Experiment.build({**shared, "runs": [{"name": "a"}, {"name": "b", "regions": 2}]}).forward == "topk(0.05)"
    with pytest.raises(ConfigError, match=r"^mine: forward does nothing without regions$"):
        Experiment.build({**shared, "runs": [{"name": "a"}, {"name": "b"}]}, "mine")
    with pytest.raises(ConfigError, match=r"^mine: run 1: forward does nothing"):
        Experiment.build({**SMALL, "runs": [{"forward": "topk(0.05)"}, {"name": "b", "regions": 2}]}, "mine")
    Experiment.build({**SMALL, "weighting": "equal", "algorithms": ["fedavg()", "fedasync()"]})


def test_what_runs_have_in_common_is_checked_in_each_of_them():
    Experiment.build({**SMALL, "packet_loss": 0.1, "runs": [{"mtu": 300}, {"mtu": 500}]})
    with pytest.raises(ConfigError, match=r"run 2: fedbuff\(\) sends payloads whole: no mtu"):
        Experiment.build({**SMALL, "mtu": 300, "runs": [{"name": "a"}, {"algorithms": ["fedbuff()"]}]})


@pytest.mark.parametrize("text", ["fedasync(staleness='constant', exponent=2.0)", "fedasync(slope=3.0)"])
def test_parameters_that_do_nothing_are_refused_too(text):
    with pytest.raises(ConfigError, match="does nothing where staleness is"):
        Experiment.build({"algorithms": [text]})


@pytest.mark.parametrize(
    ("algorithm", "spec", "said"),
    [
        ("fedavgm(0.5)", "dither(density=0.001)", "by 2"),
        ("fedavgm(0.8, 0.5)", "momentum(dither(density=0.003, golden=True), 0.8)", "by 2.5"),
        ("fedavgm(0.5)", "dither(num_bytes=60)", "by 2"),
        ("fedavgm(0.5, 0.5)", "dither(density=0.001)", None),
        ("fedavgm(0.5)", "dither(density=0.004)", None),
        ("fedavgm(0.5)", "dither(num_bytes=100)", None),
        ("fedavgm(0.5)", "dither(0.01)", None),
        ("fedavgm(0.5)", "qsgd(2)", None),
        ("fedavgm(0.0)", "dither(density=0.001)", None),
        ("fedavg(2.0)", "dither(density=0.001)", None),
    ],
)
def test_momentum_beside_large_noise_is_warned_of(algorithm, spec, said):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_of_noise(parse_algorithm(algorithm), gw.parse(spec), 30_000)
    assert [said in str(w.message) for w in found] == ([True] if said else [])
