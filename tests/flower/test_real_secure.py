"""Secure sums over real processes: a round in which a SuperNode is killed goes on, and loses nothing."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from net import REAL, Net
from trial import copy_app, import_app, models

import gradwire as gw
from gradwire.compressors.papers.leader import leader_of

pytestmark = REAL

SPECS = ("ef(randk(0.1, shared=True) | fixed(8, 1.0))", "ef(leader(0.1) | fixed(8, 1.0))")
TERMS = "Terms(num_clients=4, threshold=3, grid=gw.fixed(8, 1.0), max_weight=1000)"
HELD = """
    def held(given: Message, context: Context) -> Message:
        wait_while_held(f"train-{context.node_config['partition-id']}-{given.content['config']['server-round']}")
        return call_next(given, context)

    return SecureMod(TERMS)(message, context, held)
""".replace("TERMS", TERMS)
SECURE = "CompressionMod\nfrom gradwire.flower.secure import SecureMod, SecureStrategy, Terms"
BOOKED = '    return booked(CompressionMod(None if spec == "-" else spec))(message, context, call_next)\n'
CHANGES = [
    ("client_app.py", "\nfrom flwr.app", "\nimport gradwire as gw\nfrom flwr.app"),
    ("client_app.py", "import CompressionMod", f"import {SECURE}"),
    ("client_app.py", "import booked", "import wait_while_held"),
    ("client_app.py", BOOKED, HELD),
    ("server_app.py", "import hashlib\n", "import hashlib\n\nimport gradwire as gw\n"),
    ("server_app.py", "import CompressedStrategy", f"import {SECURE}"),
    (
        "server_app.py",
        "CompressedStrategy(strategy,",
        f"SecureStrategy(strategy, step_timeout=90.0, terms={TERMS}, spec=",
    ),
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_client_killed_in_mid_round(tmp_path, spec):
    """Killed while it trains, when others hold shares of its secrets: the sum is that of the three, to the last bit."""
    app = copy_app(tmp_path, *CHANGES)
    with Net(tmp_path / "real", 4) as net:
        net.hold("train-1-1")
        run = net.start(app, num_server_rounds=2, spec=spec, timeout=150.0)
        net.kill("node1", net.wait_held("train-1-1"))
        net.release("train-1-1")
        net.wait(lambda: (net.out / "summary.json").exists(), "the round goes on without it", 400)
        net.supernode(1)
        assert run.wait(timeout=900) == 0, net.log("run")
        said = net.log("run")
    first, second = (line["num_received"] for line in net.rounds())
    assert first == 3
    assert second in (3, 4)  # it may be back for the last round, or not yet
    others, everybody = (0, 2, 3), (0, 1, 2, 3)
    assert models(said) == added_in_clear(spec, [others, everybody if second == 4 else others])


def added_in_clear(text: str, present: list[tuple[int, ...]]) -> list[str]:
    """The same rounds with plain clients, whose integers are added up here: the model after each."""
    _, _, task = import_app()
    layout, spec = gw.Layout.from_arrays(task.make_model()), gw.parse(text)
    model, ends = layout.flatten(task.make_model()), {i: gw.Client(spec, layout, i) for i in range(4)}
    step, whole, server = float(gw.fixed(8, 1.0).step), gw.Client(gw.dense(), layout), gw.Server(gw.dense(), layout)
    digests = [hashlib.sha256(model.tobytes()).hexdigest()[:12]]
    for index, there in enumerate(present):
        total, weights = np.zeros(layout.d, np.int64), 0
        trained = {i: task.train(layout.unflatten(model), i, len(ends), index + 1) for i in there}
        updates = {i: layout.flatten(arrays) - model for i, (arrays, _) in trained.items()}
        leader = leader_of(there if index else range(4), 0, index)  # in the first round all share, then one is killed
        support = ends[leader].propose(updates[leader], trained[leader][1], index) if spec.led else None
        for i in there:
            weight = trained[i][1]
            blob = ends[i].compress(updates[i], weight, index, support=support)
            ends[i].settle(True)
            total += weight * np.rint(gw.decompress(gw.decode(blob)) / step).astype(np.int64)
            weights += weight
        mean = (total * (step / weights)).astype(np.float32)
        server.receive(whole.compress(mean, weights, round=index), 0, weights)
        model = model + server.close_round().applied
        digests.append(hashlib.sha256(model.tobytes()).hexdigest()[:12])
    return digests
