"""Groups: dealt as the terms allow, and together the plain sum of whoever is in a group that came to one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_rounds import LAYOUT, STEPS, SUPPORT, blobs_of, plain_sum, sealed_again, terms_of

import gradwire as gw
from gradwire.secagg import SecureClient, SecureGroups, SecureSum, Terms, deal

TERMS = terms_of(3, 2, max_weight=5)
GROUPS = ((1, 7, 13), (4, 10, 16))  # the six clients of blobs_of
BLOBS = blobs_of(6)
WEIGHTS = {i: 1 + 7 * i % 5 for i in BLOBS}


@settings(deadline=None, max_examples=60)
@given(num_members=st.integers(0, 400), num_clients=st.integers(3, 40), data=st.data())
def test_all_are_dealt_where_that_can_be_and_no_group_is_too_large_or_too_small(num_members, num_clients, data):
    threshold = data.draw(st.integers(num_clients // 2 + 1, num_clients))
    members = [f"client {i}" for i in range(num_members)]
    groups = deal(members, terms_of(num_clients, threshold))
    dealt = [member for group in groups for member in group]
    assert len(dealt) == len(set(dealt))
    assert set(dealt) <= set(members)
    sizes = sorted(map(len, groups))
    assert sizes[-1] - sizes[0] <= 1
    assert sizes[-1] <= num_clients
    if len(groups) > 1:
        assert sizes[0] >= threshold
    can_be = any(count * threshold <= num_members <= count * num_clients for count in range(1, num_members + 1))
    if can_be or num_members < threshold:
        assert len(dealt) == num_members
    else:
        assert 0 < num_members - len(dealt) < threshold
        assert sizes[0] == num_clients, "nobody sits out for a group that is not full"


def test_groups_are_dealt_anew():
    """Of 40! orders, two alike would be the same one."""
    assert deal(range(40), terms_of(10, 6)) != deal(range(40), terms_of(10, 6))


def answers(clients: dict[int, SecureClient], groups: SecureGroups, dealt=GROUPS):
    """The steps: what ends one, and how a client answers what that gives."""
    invited = {i: groups.invitations[number] for number, members in enumerate(dealt) for i in members}
    return (
        (lambda: invited, lambda i, m: clients[i].join(m)),
        (groups.rosters, lambda i, m: clients[i].share(m)),
        (lambda: groups.deliveries(SUPPORT), lambda i, m: clients[i].mask(m, BLOBS[i], SUPPORT, WEIGHTS[i])),
        (groups.survivors, lambda i, m: clients[i].confirm(m)),
        (groups.confirmed, lambda i, m: clients[i].reveal(m)),
    )


def play(steps: dict[int, int], change=lambda step, i, message: message) -> tuple[SecureGroups, SecureSum]:
    """Play a round; client i answers ``steps[i]`` of the five steps."""
    groups = SecureGroups(TERMS, LAYOUT, len(GROUPS))
    clients = {i: SecureClient(TERMS, LAYOUT, i) for i in BLOBS}
    for step, (ask, answer) in enumerate(answers(clients, groups), 1):
        for i, message in ask().items():
            if steps[i] >= step:
                number = next(n for n, members in enumerate(GROUPS) if i in members) if step == 1 else None
                groups.receive(change(step, i, answer(i, message)), i, number)
    return groups, groups.close_round()


def of_clients(there) -> tuple[list[int], int]:
    return plain_sum(BLOBS, WEIGHTS, there), sum(WEIGHTS[i] for i in there)


@pytest.mark.parametrize("step", range(STEPS))
def test_the_sum_is_that_of_the_groups_in_which_enough_are_left(step):
    """So many of one group and so many of the other drop out at this step: both groups are left, one, or none."""
    for one, other in itertools.product(range(4), repeat=2):
        gone = GROUPS[0][:one] + GROUPS[1][3 - other :]
        steps = {i: step if i in gone else STEPS for i in BLOBS}
        left = [n for n, members in enumerate(GROUPS) if len(set(members) - set(gone)) >= TERMS.threshold]
        if not left:
            with pytest.raises(gw.TooFewClients, match=r"none of 2 groups has a sum: group 0: .*; group 1: "):
                play(steps)
            continue
        groups, total = play(steps)
        there = tuple(sorted(i for n in left for i in GROUPS[n] if steps[i] >= 3))
        assert total.clients == there
        assert (total.integers.tolist(), total.sum_weights) == of_clients(there)
        assert set(groups.lost) == {0, 1} - set(left)
        assert all(isinstance(error, gw.TooFewClients) for error in groups.lost.values())


def test_the_mean_of_all_goes_on_to_a_server_as_one_payload():
    _, total = play(dict.fromkeys(BLOBS, STEPS))
    assert total.support.tolist() == SUPPORT.tolist()
    at_clip = sum((np.abs(plain_sum(BLOBS, dict.fromkeys(BLOBS, 1), [i])) == 127).sum() for i in BLOBS)
    assert total.num_at_clip == at_clip > 0
    server = gw.Server(gw.dense(), LAYOUT)
    server.receive(total.blob, 0, total.sum_weights)
    integers, sum_weights = of_clients(BLOBS)
    wanted = np.zeros(LAYOUT.d)
    wanted[SUPPORT] = np.array(integers) / 127 / sum_weights
    np.testing.assert_allclose(server.close_round().update, wanted, atol=1e-7)


def test_a_group_whose_shares_do_not_fit_has_no_sum_and_the_other_does():
    def changed(step, i, message):
        return sealed_again(message[:-5] + bytes([message[-5] ^ 1]) + message[-4:]) if (step, i) == (5, 1) else message

    groups, total = play(dict.fromkeys(BLOBS, STEPS), changed)
    assert "its shares do not fit what it published" in str(groups.lost[0])
    assert total.clients == GROUPS[1]
    assert (total.integers.tolist(), total.sum_weights) == of_clients(GROUPS[1])


def test_a_client_is_in_one_group():
    groups = SecureGroups(TERMS, LAYOUT, 2)
    clients = {i: SecureClient(TERMS, LAYOUT, i) for i in BLOBS}
    keys = clients[1].join(groups.invitations[0])
    with pytest.raises(gw.ProtocolError, match="client 1 is in no group"):
        groups.receive(keys, 1)
    with pytest.raises(gw.ProtocolError, match="session"):
        groups.receive(keys, 1, 1)
    for number in (-1, 2, 0.5):
        with pytest.raises(gw.ConfigError, match="group must be"):
            groups.receive(keys, 1, number)
    groups.receive(keys, 1, 0)
    again = SecureClient(TERMS, LAYOUT, 1).join(groups.invitations[1])
    with pytest.raises(gw.ProtocolError, match="client 1 is in group 0, it cannot be in group 1 as well"):
        groups.receive(again, 1, 1)
    with pytest.raises(gw.Duplicate):
        groups.receive(keys, 1, 0)
    with pytest.raises(gw.ProtocolError, match="joined a session before"):
        clients[1].join(groups.invitations[1])


def test_a_step_cannot_be_ended_out_of_turn_and_nothing_changes():
    groups = SecureGroups(TERMS, LAYOUT, 2)
    clients = {i: SecureClient(TERMS, LAYOUT, i) for i in BLOBS}
    for number, (ask, answer) in enumerate(answers(clients, groups)):
        ends = (
            groups.rosters,
            lambda: groups.deliveries(SUPPORT),
            groups.survivors,
            groups.confirmed,
            groups.close_round,
        )
        asked = ask()
        for place, end in enumerate(ends):
            if place != number:
                with pytest.raises(gw.ProtocolError, match="cannot be ended"):
                    end()
        for i, message in asked.items():
            assert i not in groups.ready
            groups.receive(answer(i, message), i, None if number else int(i in GROUPS[1]))
            assert (i in groups.ready) == (i not in GROUPS[0][:1] + GROUPS[1][:1]), "the first of a group is alone"
        assert groups.ready == tuple(sorted(BLOBS))
    assert groups.close_round().clients == tuple(sorted(BLOBS))
    for end in (groups.rosters, groups.close_round):
        with pytest.raises(gw.ProtocolError, match="over: each round takes new SecureGroups"):
            end()
    with pytest.raises(gw.ProtocolError, match="over"):
        groups.receive(bytes(40), 1)


def test_one_group_is_one_sum():
    """And what it says where there is none is what a SecureServer says."""
    groups = SecureGroups(terms_of(3), LAYOUT, 1)
    groups.receive(SecureClient(terms_of(3), LAYOUT, 5).join(groups.invitations[0]), 5, 0)
    with pytest.raises(gw.TooFewClients, match=r"^1 of the clients sent keys, at least 2 must: there is no sum"):
        groups.rosters()
    assert groups.ready == ()


@pytest.mark.parametrize("number", [0, -1, 1.0, "2"])
def test_a_number_of_groups_that_is_none_is_refused(number):
    with pytest.raises(gw.ConfigError, match="num_groups must be"):
        SecureGroups(TERMS, LAYOUT, number)


@pytest.mark.parametrize("num_clients", [10, 100, 1000])
def test_in_groups_of_64_numbers_take_less_than_twice_what_they_take_in_clear(num_clients):
    """1 % of a million in 8 bits, beside the payload as it would travel: 33 bytes of frame and digest are masked's."""
    spec, layout = gw.parse("randk(0.01, shared=True) | fixed(8, 4.0)"), gw.Layout.flat(10**6)
    update = np.random.default_rng(0).standard_normal(layout.d).astype(np.float32)
    clear = len(gw.Client(spec, layout).compress(update))
    most = max(map(len, deal(range(num_clients), Terms(64, 43, gw.fixed(8, 4.0)))))
    width = Terms(most, most // 2 + 1, gw.fixed(8, 4.0)).width
    assert 33 + -(-(10_000 + 2) * width // 8) < 2 * clear
