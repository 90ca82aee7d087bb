"""A blob and what it says, made together: as good as reading the blob, for any method, for as long as it is kept."""

from __future__ import annotations

import pytest

import gradwire as gw
from gradwire import wire
from test_faults import LAYOUT, SPECS, same, updates

OTHERS = [
    "dither(density=0.02)",
    "topk(0.05) | qsgd(7)",
    "sign()",
    "ternary()",
    "randk(0.05)",
    "rd(slope=0.5)",
    "dense()",
]


@pytest.mark.parametrize("spec", [*SPECS, *OTHERS])
def test_what_a_client_opens_is_what_reading_gives(spec):
    """Two clients in turns, so that whatever they share is written over; then a server fed one way and the other."""
    compressor = gw.parse(spec)
    ends = {way: [gw.Client(compressor, LAYOUT, i) for i in range(2)] for way in ("opened", "blobs")}
    servers = {way: gw.Server(compressor, LAYOUT, num_clients=2) for way in ends}
    for index in range(3):
        given = updates(index)
        made = [client.compress_opened(given[i], 1.0 + i) for i, client in enumerate(ends["opened"])]
        blobs = [client.compress(given[i], 1.0 + i) for i, client in enumerate(ends["blobs"])]
        assert [one.blob for one in made] == blobs
        for one in made:
            read = wire.read(one.blob)
            assert one.payload == read.payload
            assert (one.header_bytes, one.support_bytes, one.values_bytes) == (
                read.header_bytes,
                read.support_bytes,
                read.values_bytes,
            )
        for i in range(2):
            servers["opened"].receive(made[i], i, 1.0 + i)
            servers["blobs"].receive(blobs[i], i, 1.0 + i)
        results = {way: server.close_round() for way, server in servers.items()}
        assert results["opened"].update.tobytes() == results["blobs"].update.tobytes()
        for way, clients in ends.items():
            for client in clients:
                client.end_round(results[way].blob)
    for one, other in zip(*ends.values(), strict=True):
        assert same(one.state_dict(), other.state_dict())
