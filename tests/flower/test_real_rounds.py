"""Law 2 over real processes: deployment, simulation engine, one process and plain ends come to the same models."""

from __future__ import annotations

import json

import pytest
from net import REAL, ROOT, Net
from trial import APP, in_one_process, missing, models, with_plain_ends

pytestmark = REAL


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """The models of six rounds, of three clients that know nothing of Flower."""
    return with_plain_ends(6)


def test_a_deployment_comes_to_the_models_of_plain_ends(tmp_path, monkeypatch, expected):
    """After every round; and the books of bytes are those of one process, and within Flower's own."""
    fake = in_one_process(monkeypatch, tmp_path / "fake", num_server_rounds=6)
    assert fake == expected
    with Net(tmp_path / "real") as net:
        said = net.run(APP, num_server_rounds=6)
        (listed,) = net.runs()
    assert models(said) == expected
    assert said.count("gradwire: 3 counted") == 6
    run = net.summary()
    one = json.loads((tmp_path / "fake" / "out" / "summary.json").read_text())["runs"][0]
    for key in ("model_sha256", "uplink_bytes", "downlink_bytes", "other_bytes", "rounds_done", "clients"):
        assert run[key] == one[key], key
    assert run["compression_ratio"] > 40
    traffic = listed["network-traffic"]
    inbound = sum(v for k, v in traffic.items() if "inbound" in k and isinstance(v, int))
    assert run["uplink_bytes"] < inbound < run["dense_uplink_bytes"]
    for client in range(3):
        assert missing(net, client) <= 1e-6


def test_the_simulation_engine_comes_to_the_same_models(tmp_path, expected):
    pytest.importorskip("ray")
    with Net(tmp_path / "real", num_nodes=0, simulation=True) as net:
        said = net.run(
            APP, "--federation-config", "num-supernodes=3 client-resources-num-cpus=1",
            num_server_rounds=6, num_clients=3,
        )  # fmt: skip
    assert models(said) == expected
    for client in range(3):
        assert missing(net, client, net.folder / "home" / "gradwire") <= 1e-6


def test_the_example_runs_as_it_is(tmp_path):
    example = ROOT / "examples" / "flower-mnist"
    with Net(tmp_path) as net:
        said = net.run(
            example, num_server_rounds=2, data="digits", timeout=300.0, state_file=str(tmp_path / "server.state")
        )
    run = net.summary()
    assert said.count("gradwire: 3 counted") == run["rounds_done"] == 2
    assert models(said)[-1] == run["model_sha256"][:12]
    assert run["compression_ratio"] > 40
    assert (tmp_path / "server.state").exists()
