"""The sum of what clients hid is the plain sum of the same payloads, whoever drops out when, or there is none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_rounds import LAYOUT, STEPS, SUPPORT, Heard, blobs_of, plain_sum, play, terms_of

import gradwire as gw
from gradwire.compressors.papers.leader import leader_of
from gradwire.secagg import VOTES, SecureClient, SecureServer, Terms, cast_votes, elected, votes_layout


def check(terms: Terms, blobs: dict[int, bytes], weights: dict[int, int], steps: dict[int, int]) -> None:
    """Enough are left at every step: the sum; else the error that says so."""
    left = [sum(last >= step for last in steps.values()) for step in range(1, STEPS + 1)]
    if min(left) < terms.threshold:
        with pytest.raises(gw.TooFewClients):
            play(terms, blobs, weights, steps)
        return
    total = play(terms, blobs, weights, steps)
    there = tuple(i for i, last in sorted(steps.items()) if last >= 3)
    assert total.clients == there
    assert total.integers.tolist() == plain_sum(blobs, weights, there)
    assert total.sum_weights == sum(weights[i] for i in there)
    assert total.support.tolist() == SUPPORT.tolist()


def weights_of(blobs: dict[int, bytes]) -> dict[int, int]:
    return {i: 1 + 7 * i % 5 for i in blobs}


def dropping_at_one_step(num_clients: int) -> None:
    """Every subset, at every step, down to the threshold and one below."""
    terms, blobs = terms_of(num_clients, max_weight=5), blobs_of(num_clients)
    for step in range(STEPS):
        for gone in range(num_clients - terms.threshold + 2):
            for lost in itertools.combinations(blobs, gone):
                check(terms, blobs, weights_of(blobs), {i: step if i in lost else STEPS for i in blobs})


@pytest.mark.parametrize("num_clients", [3, 4])
def test_every_subset_at_every_step(num_clients):
    dropping_at_one_step(num_clients)


@pytest.mark.slow
@pytest.mark.parametrize("num_clients", [5, 6, 7, 8, 9, 10])
def test_every_subset_at_every_step_of_more(num_clients):
    dropping_at_one_step(num_clients)


@pytest.mark.parametrize("num_clients", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_every_pattern_of_steps(num_clients):
    terms, blobs = terms_of(num_clients, max_weight=5), blobs_of(num_clients)
    for last in itertools.product(range(STEPS + 1), repeat=num_clients):
        check(terms, blobs, weights_of(blobs), dict(zip(blobs, last, strict=True)))


@settings(max_examples=12, deadline=None)
@given(data=st.data(), num_clients=st.integers(6, 10), bits=st.integers(2, 16), seed=st.integers(0, 9))
def test_any_pattern_bits_and_weights(data, num_clients, bits, seed):
    threshold = data.draw(st.integers(num_clients // 2 + 1, num_clients))
    grid = gw.fixed(bits, 0.5)
    largest = 2 ** (bits - 1) - 1
    most = data.draw(st.integers(1, (2**31 - 1) // (num_clients * largest)))
    rng = np.random.default_rng(seed)
    client = gw.Client(gw.cyclic(0.8) | grid, LAYOUT)
    blobs = {i: client.compress(rng.standard_normal(LAYOUT.d).astype(np.float32), round=0) for i in range(num_clients)}
    weights = {i: data.draw(st.integers(1, most)) for i in blobs}
    steps = {i: data.draw(st.sampled_from([*range(STEPS), *[STEPS] * 8])) for i in blobs}
    check(Terms(num_clients, threshold, grid, max_weight=most), blobs, weights, steps)


def test_numbers_rounded_at_random_add_up_to_what_was_sent():
    grid = gw.fixed(6, 0.5, stochastic=True)
    rng = np.random.default_rng(3)
    blobs = {
        i: gw.Client(gw.cyclic(0.8) | grid, LAYOUT, client_id=i).compress(
            (0.2 * rng.standard_normal(LAYOUT.d)).astype(np.float32)
        )
        for i in range(5)
    }
    weights = weights_of(blobs)
    check(Terms(5, 3, grid, max_weight=5), blobs, weights, {0: STEPS, 1: STEPS, 2: STEPS, 3: 3, 4: 2})


def test_the_largest_sum_there_can_be():
    """Everything at the clip with the largest weight: one more bit is not needed, one fewer would overflow."""
    terms = Terms(3, 2, gw.fixed(8, 1.0), max_weight=3)
    for sign in (1, -1):
        client = gw.Client(gw.cyclic(0.8) | gw.fixed(8, 1.0), LAYOUT)
        blob = client.compress(np.full(LAYOUT.d, 9.0 * sign, np.float32))
        total = play(terms, dict.fromkeys(range(3), blob), dict.fromkeys(range(3), 3))
        assert set(total.integers.tolist()) == {sign * 3 * 3 * 127}
        assert 2 ** (terms.width - 2) <= abs(total.integers[0]) < 2 ** (terms.width - 1)
        assert total.num_at_clip == 3 * SUPPORT.size


@pytest.mark.parametrize("lost", [0, 2])
def test_neighbours_in_a_ring(lost):
    """Of 24 clients each shares with 8: the sum is that of all the same."""
    terms = terms_of(24, 16, num_neighbours=8, share_threshold=6)
    blobs, weights = blobs_of(24), dict.fromkeys(blobs_of(24), 1)
    steps = {i: (2 if place % 2 else 1) if place < lost else STEPS for place, i in enumerate(blobs)}
    heard = Heard()
    total = play(terms, blobs, weights, steps, heard)
    assert len(total.clients) == 24 - lost
    assert total.integers.tolist() == plain_sum(blobs, weights, total.clients)
    assert {len(message) for message in heard.of(2).values()} == {25 + 8 * 48}, "shares for eight, not for all"


def test_mean_goes_on_to_a_server_as_one_payload():
    terms, blobs = terms_of(4, max_weight=9), blobs_of(4)
    weights = weights_of(blobs)
    total = play(terms, blobs, weights)
    server = gw.Server(gw.dense(), LAYOUT)
    server.receive(total.blob, 0, total.sum_weights)
    got = server.close_round().update
    wanted = sum(weights[i] * gw.decompress(gw.decode(b)).astype(np.float64) for i, b in blobs.items())
    np.testing.assert_allclose(got, wanted / sum(weights.values()), atol=1e-7)


def test_error_feedback_keeps_what_was_not_sent():
    """What arrived and what is kept add up to all updates, for clients in the sum and for one that was lost."""
    layout, rng = gw.Layout.flat(60), np.random.default_rng(0)
    spec, terms = gw.parse("ef(randk(0.3, shared=True) | fixed(6, 0.5))"), Terms(3, 2, gw.fixed(6, 0.5))
    clients = {i: gw.Client(spec, layout, client_id=i, seed=7) for i in range(3)}
    server, raw, arrived = gw.Server(gw.dense(), layout, seed=7), np.zeros(60), np.zeros(60)
    for index in range(5):
        updates = {i: rng.standard_normal(60).astype(np.float32) for i in clients}
        blobs = {i: clients[i].compress(updates[i]) for i in clients}
        support = spec.shared_support(layout, gw.Round(index=index, key=gw.Key(7, index)))
        aggregate = SecureServer(terms, layout, round=index)
        secure = {i: SecureClient(terms, layout, i) for i in clients}
        for i, each in secure.items():
            aggregate.receive(each.join(aggregate.invitation), i)
        for i, message in aggregate.rosters().items():
            aggregate.receive(secure[i].share(message), i)
        for i, message in aggregate.deliveries(support).items():
            if i != index % 3:  # a message that is lost
                aggregate.receive(secure[i].mask(message, blobs[i], support), i)
        for i, message in aggregate.survivors().items():
            aggregate.receive(secure[i].confirm(message), i)
        for i, message in aggregate.confirmed().items():
            aggregate.receive(secure[i].reveal(message), i)
        total = aggregate.close_round()
        assert total.clients == tuple(i for i in range(3) if i != index % 3)
        server.receive(total.blob, 0, total.sum_weights)
        result = server.close_round()
        for i, client in clients.items():
            client.end_round(result.blob, delivered=i in total.clients)
        raw += sum(updates.values())
        arrived += total.sum_weights * result.update.astype(np.float64)
    kept = sum(client.state_dict()["residual"].astype(np.float64) for client in clients.values())
    np.testing.assert_allclose(arrived + kept, raw, atol=1e-4)


def test_numbers_at_the_clip_are_counted_or_refused():
    layout, support = gw.Layout.flat(4), np.arange(4)
    update = np.array([5, 0.5, -1, -8], np.float32)
    blob = gw.Client(gw.fixed(8, 1.0), layout).compress(update)
    clip, refuse = (terms_of(3, beyond=beyond, max_weight=1000) for beyond in ("clip", "refuse"))
    total = play(clip, dict.fromkeys(range(3), blob), dict.fromkeys(range(3), 1), layout=layout, support=support)
    assert total.num_at_clip == 9
    assert (total.integers * clip.grid.step / 3).round(1).tolist() == [1.0, 0.5, -1.0, -1.0]
    with pytest.raises(gw.UpdateError, match="3 numbers are at the clip of fixed"):
        play(refuse, dict.fromkeys(range(3), blob), layout=layout, support=support)
    mild = gw.Client(gw.fixed(8, 1.0), layout).compress(update / 9)
    assert play(refuse, dict.fromkeys(range(3), mild), layout=layout, support=support).num_at_clip == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("topk(0.2) | fixed(8, 1.0)", "outside of the support that all clients share"),
        ("cyclic(0.8)", "must be on the grid"),
        ("cyclic(0.8) | fixed(7, 1.0)", "must be on the grid"),
        ("cyclic(0.9) | fixed(8, 1.0)", "outside of the support"),
    ],
)
def test_what_cannot_be_summed_is_refused_and_the_client_goes_on(spec, message):
    terms, update = terms_of(3), np.linspace(-1, 1, LAYOUT.d, dtype=np.float32)
    server = SecureServer(terms, LAYOUT)
    clients = {i: SecureClient(terms, LAYOUT, i) for i in range(3)}
    for i, client in clients.items():
        server.receive(client.join(server.invitation), i)
    for i, roster in server.rosters().items():
        server.receive(clients[i].share(roster), i)
    deliveries = server.deliveries(SUPPORT)
    good = gw.Client(gw.cyclic(0.8) | gw.fixed(8, 1.0), LAYOUT).compress(update)
    with pytest.raises(gw.ConfigError, match=message):
        clients[0].mask(deliveries[0], gw.Client(gw.parse(spec), LAYOUT).compress(update), SUPPORT)
    for weight in (0, 2, 1.5, True):
        with pytest.raises(gw.ConfigError, match="weight"):
            clients[0].mask(deliveries[0], good, SUPPORT, weight)
    late = gw.Client(gw.cyclic(0.8) | gw.fixed(8, 1.0), LAYOUT).compress(update, round=5)
    with pytest.raises(gw.ConfigError, match="round 0, got round 5"):
        clients[0].mask(deliveries[0], late, SUPPORT)
    other = gw.Client(gw.fixed(8, 1.0), gw.Layout.flat(39)).compress(update[:39])
    with pytest.raises(gw.ConfigError, match=r"layout|d = "):
        clients[0].mask(deliveries[0], other, SUPPORT)
    for support in ([], [3, 2], [-1, 4], [0, 40], [0.5], np.zeros((2, 2), int)):
        with pytest.raises(gw.ConfigError, match="support must be"):
            clients[0].mask(deliveries[0], good, support)
    for i in clients:
        server.receive(clients[i].mask(deliveries[i], good, SUPPORT), i)


def test_a_layout_with_running_statistics_is_refused():
    layout = gw.Layout.from_arrays({"w": np.ones(3, np.float32), "bn.running_mean": np.ones(2, np.float32)})
    if layout.num_parameters == layout.d:
        pytest.skip("these names are parameters here")
    for make in (lambda: SecureServer(terms_of(3), layout), lambda: SecureClient(terms_of(3), layout, 0)):
        with pytest.raises(gw.ConfigError, match="running statistics"):
            make()


@pytest.mark.parametrize("chosen", ["leader", "votes", "randk"])
def test_a_round_under_masks_is_that_in_clear(chosen):
    """The same clients, once through a server that sees their payloads and once through a secure sum: the same mean.

    The support comes from the round's leader, from the blocks that most clients would send, or from the key.
    """
    layout, rng, grid = gw.Layout.flat(60), np.random.default_rng(1), gw.fixed(8, 2.0)
    spec = {"leader": gw.leader(0.2), "votes": gw.sketch(0.2, block=4), "randk": gw.randk(0.2, shared=True)}[chosen]
    sides = [[gw.Client(gw.ef(spec | grid), layout, client_id=i) for i in range(4)] for _ in range(2)]
    servers = [gw.Server(gw.dense(), layout) for _ in sides]
    for index in range(3):
        updates = rng.standard_normal((4, 60)).astype(np.float32)
        if chosen == "leader":
            first = leader_of(range(4), 0, index)
            support = sides[0][first].propose(updates[first])
            assert support.tolist() == sides[1][first].propose(updates[first]).tolist()
        elif chosen == "votes":
            named = [client.propose(u) for client, u in zip(sides[0], updates, strict=True)]
            cast = {i: cast_votes(own, spec, layout, index) for i, own in enumerate(named)}
            blocks = votes_layout(spec, layout)
            votes = play(Terms(4, 3, VOTES), cast, layout=blocks, support=np.arange(blocks.d), round=index)
            counts = np.bincount(np.concatenate([np.unique(own // 4) for own in named]), minlength=15)
            assert votes.integers.tolist() == counts.tolist()
            support = elected(votes, spec, layout)
            most = np.argsort(-counts, kind="stable")[:3]
            assert support.tolist() == np.flatnonzero(np.isin(np.arange(60) // 4, most)).tolist()
        else:
            support = spec.shared_support(layout, gw.Round(index=index, key=gw.Key(0, index)))
        blobs = [[c.compress(u, support=support) for c, u in zip(side, updates, strict=True)] for side in sides]
        assert blobs[0] == blobs[1]
        terms = Terms(4, 3, grid)
        total = play(terms, dict(enumerate(blobs[1])), layout=layout, support=support, round=index)
        servers[1].receive(total.blob, 0, total.sum_weights)
        for i, blob in enumerate(blobs[0]):
            servers[0].receive(blob, i)
        ended = [server.close_round() for server in servers]
        np.testing.assert_allclose(ended[0].update, ended[1].update, atol=1e-6)
        for side in sides:
            for client in side:
                client.end_round(ended[0].blob)
