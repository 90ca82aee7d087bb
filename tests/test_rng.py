"""Key: against a Philox4x64-10 and a sampler written here in plain Python from the docstrings."""

from __future__ import annotations

import hashlib
import itertools
import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradwire as gw
from examples import up_to

MASK = 2**64 - 1
M0, M1 = 0xD2E7470EE14C6C93, 0xCA5A826395121157
W0, W1 = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


def philox_block(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x64-10 of Salmon et al. 2011."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(M0 * c0, 2**64)
        high1, low1 = divmod(M1 * c2, 2**64)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3


def words(key: gw.Key):
    """The stream the docstring of Key describes."""
    purpose = int.from_bytes(hashlib.sha256(key.purpose.encode()).digest()[:8], "little")
    client = 0 if key.client is None else key.client + 1
    for i in itertools.count(1):
        yield from philox_block((i, 0, key.round, client), (key.seed, purpose))


def choice(key: gw.Key, d: int, k: int) -> list[int]:
    """The draw the docstring of choice describes."""

    def distinct(count: int) -> list[int]:
        out: dict[int, None] = {}
        stream = words(key)
        while len(out) < count:
            out.setdefault(next(stream) * d >> 64)
        return list(out)

    if 2 * k > d:
        left_out = set(distinct(d - k))
        return [i for i in range(d) if i not in left_out]
    return sorted(distinct(k))


def test_own_philox_matches_the_published_vectors():
    """Known-answer tests of Random123 (kat_vectors, philox4x64 10)."""
    assert philox_block((0, 0, 0, 0), (0, 0)) == (
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    )  # fmt: skip
    assert philox_block((MASK,) * 4, (MASK,) * 2) == (
        0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0,
    )  # fmt: skip


keys = st.builds(
    gw.Key,
    seed=st.one_of(st.integers(0, 10), st.integers(0, MASK)),
    round=st.one_of(st.integers(0, 10), st.integers(0, 2**63)),
    client=st.one_of(st.none(), st.integers(0, 10), st.integers(0, 2**63)),
    purpose=st.text(st.characters(codec="utf-8"), max_size=10),
)


@settings(max_examples=up_to(60), deadline=None)
@given(key=keys, num_words=st.integers(0, 23))
def test_words(key, num_words):
    got = key.words(num_words)
    assert got.dtype == np.uint64
    assert got.tolist() == list(itertools.islice(words(key), num_words))


def test_words_pinned():
    assert [hex(w) for w in gw.Key(0).words(2).tolist()] == [hex(w) for w in itertools.islice(words(gw.Key(0)), 2)]
    assert gw.Key(1, 2, 3, "x").words(5).tolist() == gw.Key(1, 2, 3, "x").words(9)[:5].tolist(), "a prefix"


@settings(max_examples=up_to(80), deadline=None)
@given(key=keys, d=st.integers(0, 60), data=st.data())
def test_choice_matches_the_docstring(key, d, data):
    k = data.draw(st.integers(0, d))
    got = key.choice(d, k)
    assert got.dtype == np.int64
    assert got.tolist() == choice(key, d, k)


@pytest.mark.parametrize(("d", "k"), [(1000, 500), (1001, 500), (1001, 501), (3000, 30), (5000, 4990), (700, 699)])
def test_choice_matches_the_docstring_when_larger(d, k):
    assert gw.Key(3, 4, 5).choice(d, k).tolist() == choice(gw.Key(3, 4, 5), d, k)


@pytest.mark.parametrize("d", [2**32 - 1, 2**32, 2**32 + 1, 2**33 + 12345, 2**40 + 7, 2**47 + 3, 2**48 - 1])
def test_choice_of_huge_ranges(d):
    key = gw.Key(2**64 - 1, 7, 1, "huge")
    got = key.choice(d, 40)
    assert got.tolist() == sorted(w * d >> 64 for w in itertools.islice(words(key), 40))
    assert got[-1] >= d // 2


@pytest.mark.parametrize("k", [1, 7, 10, 13, 19])
def test_choice_is_uniform(k):
    d, draws = 20, 3000
    counts = np.zeros(d)
    for i in range(draws):
        counts[gw.Key(5, i, 0).choice(d, k)] += 1
    expected = draws * k / d
    # each count is binomial(draws, k/d); the fixed total makes the statistic chi-square with d - 1 degrees
    chi2 = ((counts - expected) ** 2).sum() / (draws * (k / d) * (1 - k / d)) * (d - 1) / d
    assert chi2 < 50, f"chi-square {chi2} with 19 degrees of freedom"  # p = 1e-4 at 50.8
    assert chi2 > 3, "suspiciously even"


def test_every_set_is_equally_likely():
    counts: dict[tuple[int, ...], int] = {}
    draws = 6000
    for i in range(draws):
        chosen = tuple(gw.Key(9, i).choice(5, 2).tolist())
        counts[chosen] = counts.get(chosen, 0) + 1
    assert len(counts) == 10
    chi2 = sum((c - draws / 10) ** 2 / (draws / 10) for c in counts.values())
    assert chi2 < 33.7  # 9 degrees of freedom, p = 1e-4


def test_choice_takes_time_in_proportion_to_d():
    """Drawing half of the range must not fall into a loop of tiny steps."""
    start = time.process_time()
    assert gw.Key(0).choice(100_000, 50_000).size == 50_000
    assert time.process_time() - start < 0.7


@pytest.mark.parametrize(("d", "k"), [(10, 11), (10, -1), (2**48, 1), (-1, 0)])
def test_choice_refuses(d, k):
    with pytest.raises(gw.ConfigError, match="choice needs"):
        gw.Key(0).choice(d, k)


def test_uniform():
    key = gw.Key(3, 1, 4, "u")
    got = key.uniform(1000)
    assert got.dtype == np.float32
    assert got.tolist() == [(w >> 40) / 2**24 for w in itertools.islice(words(key), 1000)]
    assert got.min() >= 0
    assert got.max() < 1
    big = gw.Key(8).uniform(100_000).astype(np.float64)
    assert abs(big.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 100_000)
    counts = np.histogram(big, 50, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 100  # 49 degrees of freedom, p < 1e-4


def test_streams_are_different():
    many = [gw.Key(s, r, c, p) for s in (0, 1) for r in (0, 1) for c in (None, 0, 1) for p in ("", "a", "b")]
    assert len({tuple(k.words(2).tolist()) for k in many}) == len(many)


def test_derive():
    key = gw.Key(1, 2, 3, "a")
    assert key.derive(purpose="b") == gw.Key(1, 2, 3, "b")
    assert key.derive(shared=True) == gw.Key(1, 2, None, "a")
    assert key.derive() == key
    assert key == gw.Key(1, 2, 3, "a")
    assert hash(key) == hash(gw.Key(1, 2, 3, "a"))


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "0", None, True])
def test_seed_is_checked(seed):
    with pytest.raises(gw.ConfigError, match="seed must be an integer"):
        gw.Key(seed)
    with pytest.raises(gw.ConfigError, match="seed"):
        gw.Client(gw.topk(0.1), gw.Layout.flat(3), seed=seed)
    with pytest.raises(gw.ConfigError, match="seed"):
        gw.Server(gw.topk(0.1), gw.Layout.flat(3), seed=seed)


def test_global_generators_are_untouched():
    np.random.seed(4)  # noqa: NPY002
    random.seed(4)
    torch.manual_seed(4)

    def snapshot() -> tuple[object, ...]:
        state = np.random.get_state()  # noqa: NPY002
        return state[0], state[1].tobytes(), state[2:], random.getstate(), torch.get_rng_state().numpy().tobytes()

    before = snapshot()
    gw.Key(0).words(100)
    gw.Key(0).choice(100, 10)
    for spec in ("randk(0.1)", "uniform(4, stochastic=True)", "ef(topk(0.1))"):
        c = gw.parse(spec)
        client, server = gw.Client(c, gw.Layout.flat(100)), gw.Server(c, gw.Layout.flat(100))
        server.receive(client.compress(np.ones(100, np.float32)))
        client.end_round(server.close_round().blob)
    assert snapshot() == before
