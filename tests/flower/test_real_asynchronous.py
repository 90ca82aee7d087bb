"""FedBuff over real processes: nobody is waited for, and no client's books have a gap."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from apps import member_of
from net import REAL, Net
from trial import NAME, copy_app, missing

from gradwire.errors import StateError
from gradwire.flower.traffic import add_traffic

pytestmark = REAL

FEDBUFF = '''from functools import partial

import gradwire as gw
from trial_app.hooks import write
from gradwire.flower import AsynchronousStrategy
from gradwire.flower.conversation import Conversation

CompressedStrategy = partial(AsynchronousStrategy, algorithm="fedbuff(buffer_size=2)")
_receive = Conversation.receive


def receive(self, client, incarnation, blob, weight):
    """Book a payload as it is counted: clients are told before the round closes."""
    _receive(self, client, incarnation, blob, weight)
    payload = gw.decode(blob)
    write(f"counted-{client}-{payload.sequence}", gw.decompress(payload))


Conversation.receive = receive
'''


def is_idle(net: Net, client: int) -> bool:
    """Whether a node's books tell of all that its state does, which it holds while it trains."""
    with suppress(StateError):
        trained = len(list(net.books.glob(f"raw-{client}-*.npy")))
        return trained == member_of(net.state_dir(client), NAME, client).client.sequence
    return False


def test_fedbuff_with_a_slow_client(tmp_path):
    import_line = "from gradwire.flower import CompressedStrategy\n"
    app = copy_app(tmp_path, ("server_app.py", import_line, FEDBUFF))
    with Net(tmp_path / "net", traits={2: {"SLOW": "40"}}) as net:
        said = net.run(app, num_server_rounds=6, timeout=120.0, conversation=NAME)
        listed = net.flwr("list", "net", "--format", "json")
        for client in range(3):  # nodes may still be at work on what nobody will read
            net.wait(partial(is_idle, net, client), f"client {client} is done", 90)
    assert "fedbuff(buffer_size=2)" in said
    assert [line["num_received"] for line in net.rounds()] == [2] * 6
    counted = [len(list(net.books.glob(f"counted-{client}-*.npy"))) for client in range(3)]
    assert sum(counted) >= 12
    assert counted[2] < max(counted[:2])  # the others did not wait for it
    for client in range(3):
        assert missing(net, client) <= 1e-6
    run = net.summary()
    assert run["rounds_done"] == 6
    traffic = add_traffic(net.out, listed)
    assert run["uplink_bytes"] < traffic["inbound_bytes"] < run["dense_uplink_bytes"]
    assert net.summary()["network_traffic"] == traffic
