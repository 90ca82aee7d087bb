"""Terms, neighbours, and what has to be installed."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

import gradwire as gw
from gradwire.secagg import Terms, chances, least_neighbours
from gradwire.secagg.graph import draw_neighbours
from gradwire.secagg.installed import check_installed

GRID = gw.fixed(8, 1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_clients": 2}, r"num_clients must be an integer in \[3, 1048576\], got 2"),
        ({"threshold": 5}, r"threshold must be an integer in \[6, 10\], got 5"),
        ({"threshold": 11}, "threshold must be"),
        ({"grid": gw.uniform(8)}, r"grid must be a fixed quantizer .*, got uniform\(8\)"),
        ({"max_weight": 0}, "max_weight must be"),
        ({"max_weight": 1.0}, "max_weight must be"),
        ({"max_weight": 2**24}, "takes 36 bits, at most 32 are possible"),
        ({"most_in_clear": -1}, "most_in_clear must be"),
        ({"most_in_clear": True}, "most_in_clear must be"),
        ({"beyond": "wrap"}, "beyond must be 'clip' or 'refuse', got 'wrap'"),
        ({"num_neighbours": 5}, "num_neighbours must be even, got 5"),
        ({"num_neighbours": 10}, r"num_neighbours must be an integer in \[2, 9\]"),
        ({"share_threshold": 8}, "share_threshold is the threshold where all are neighbours, got 8"),
        ({"num_neighbours": 6, "share_threshold": 3}, r"share_threshold must be an integer in \[4, 7\], got 3"),
        ({"num_neighbours": 6, "share_threshold": 8}, "share_threshold must be"),
    ],
)
def test_terms_are_checked(fields, message):
    with pytest.raises(gw.ConfigError, match=message):
        Terms(**({"num_clients": 10, "threshold": 7, "grid": GRID} | fields))


@given(
    num_clients=st.integers(3, 5000),
    max_weight=st.integers(1, 50),
    bits=st.integers(2, 13),
)
def test_no_sum_overflows_and_no_bit_is_wasted(num_clients, max_weight, bits):
    terms = Terms(num_clients, num_clients // 2 + 1, gw.fixed(bits, 1.0), max_weight)
    largest = num_clients * max_weight * (2 ** (bits - 1) - 1)
    assert 2 ** (terms.width - 2) <= largest < 2 ** (terms.width - 1)


def test_digests_differ_where_terms_do():
    """How a client rounds is its own choice; everything else counts."""
    base = {"num_clients": 10, "threshold": 7, "grid": GRID, "num_neighbours": 4}
    others = [
        {},
        {"num_clients": 11},
        {"threshold": 6},
        {"grid": gw.fixed(7, 1.0)},
        {"grid": gw.fixed(8, 2.0)},
        {"max_weight": 2},
        {"num_neighbours": 6, "share_threshold": 4},
        {"num_neighbours": None},
        {"share_threshold": 5},
        {"beyond": "refuse"},
        {"most_in_clear": 1},
    ]
    digests = [Terms(**(base | other)).digest for other in others]
    assert len(set(digests)) == len(others)
    assert Terms(**(base | {"grid": gw.fixed(8, 1.0, stochastic=True)})).digest == digests[0]


@pytest.mark.parametrize(("num_clients", "num_neighbours"), [(3, None), (9, 2), (10, 4), (11, 10), (40, 12)])
def test_every_client_has_as_many_neighbours_both_ways(num_clients, num_neighbours):
    clients = random.Random(0).sample(range(1000), num_clients)
    graph = draw_neighbours(clients, num_neighbours)
    assert sorted(graph) == sorted(clients)
    for client, neighbours in graph.items():
        assert len(set(neighbours)) == len(neighbours) == (num_neighbours or num_clients - 1)
        assert list(neighbours) == sorted(neighbours)
        assert client not in neighbours
        assert all(client in graph[other] for other in neighbours)


def test_graphs_are_drawn_anew():
    """Of 40! rings, two alike would be the same one."""
    assert draw_neighbours(range(40), 4) != draw_neighbours(range(40), 4)


def test_a_ring_holds_together_without_any_few():
    """Fewer than half of the neighbours can be taken away, whichever they are."""
    graph = draw_neighbours(range(10), 6)
    for gone in itertools.chain.from_iterable(itertools.combinations(range(10), n) for n in range(6)):
        left = [i for i in range(10) if i not in gone]
        table = csr_matrix([[int(j in graph[i]) for j in left] for i in left])
        assert connected_components(table, directed=False)[0] == 1


@pytest.mark.parametrize(
    ("num_clients", "num_neighbours", "share_threshold", "colluding", "dropping"),
    [(50, 10, 7, 5, 5), (1000, 60, 40, 50, 100), (1000, 100, 68, 100, 100), (20, 6, 4, 0, 2)],
)
def test_chances_are_those_of_scipy(num_clients, num_neighbours, share_threshold, colluding, dropping):
    got = chances(num_clients, num_neighbours, share_threshold, colluding, dropping)
    caught = stats.hypergeom.sf(share_threshold - 1, num_clients - 1, colluding, num_neighbours)
    run = np.prod([(colluding + dropping - i) / (num_clients - i) for i in range(num_neighbours // 2)])
    lost = stats.hypergeom.sf(num_neighbours - share_threshold, num_clients - 1, dropping, num_neighbours)
    assert got.exposed == pytest.approx(min(1, num_clients * (caught + max(0, run))), rel=1e-6, abs=1e-30)
    assert got.lost == pytest.approx(min(1, num_clients * lost), rel=1e-6, abs=1e-30)


def test_least_neighbours_are_enough_and_fewer_are_not():
    k, t = least_neighbours(500, 25, 50)
    got = chances(500, k, t, 25, 50)
    assert got.exposed <= 2**-40
    assert got.lost <= 2**-20
    Terms(500, 400, GRID, num_neighbours=k, share_threshold=t)
    fewer = [chances(500, k - 2, s, 25, 50) for s in range((k - 1) // 2 + 1, k - 1)]
    assert not any(c.exposed <= 2**-40 and c.lost <= 2**-20 for c in fewer)
    with pytest.raises(gw.ConfigError, match="leave num_neighbours out"):
        least_neighbours(20, 5, 5)
    with pytest.raises(gw.ConfigError, match="colluding must be"):
        least_neighbours(20, 21, 5)


@pytest.mark.parametrize(
    ("name", "version"), [("cryptography", None), ("cryptography", "41.0.7"), ("pycryptodome", "3.19.1")]
)
def test_missing_libraries_are_named(name, version):
    with pytest.raises(gw.BackendUnavailable, match=rf"needs {name} .* or newer, got .*gradwire\[secagg\]"):
        check_installed(name, version)


@pytest.mark.parametrize(("name", "version"), [("cryptography", "42.0.0"), ("pycryptodome", "3.20")])
def test_libraries_that_are_new_enough(name, version):
    check_installed(name, version)
