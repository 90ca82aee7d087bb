"""Properties every split has, and what each kind promises beyond them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import up_to
from gradwire.errors import ConfigError
from gradwire.federated.data.partition import Dirichlet, Iid, Natural, Shards, parse_partition
from gradwire.federated.data.partition import _dirichlet_shares as dirichlet_shares

alphas = st.floats(min_value=5e-324, max_value=1.7e308, allow_nan=False)
texts = st.one_of(
    st.just("iid"),
    st.just("natural"),
    alphas.map(lambda alpha: f"dirichlet:{alpha!r}"),
    st.integers(1, 4).map(lambda shards: f"shards:{shards}"),
)


def rng(seed=0):
    return np.random.default_rng(seed)


@settings(deadline=None, max_examples=up_to(150))
@given(
    text=texts,
    num_clients=st.integers(1, 12),
    extra=st.integers(0, 60),
    num_labels=st.integers(1, 12),
    seed=st.integers(0, 2**32),
    sequences=st.booleans(),
)
def test_every_split_is_a_partition_without_empty_clients(text, num_clients, extra, num_labels, seed, sequences):
    num_examples = 4 * num_clients + extra
    targets = rng(seed).integers(0, num_labels, (num_examples, 3) if sequences else num_examples)
    groups = rng(seed + 1).permutation(np.arange(num_examples) % (num_clients + extra))
    kept = targets.copy(), groups.copy()
    partition = parse_partition(text)
    parts = partition.split(targets, num_clients, rng(seed), groups)
    assert len(parts) == num_clients
    assert all(part.dtype == np.int64 and len(part) and (np.diff(part) > 0).all() for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(num_examples))
    again = partition.split(targets, num_clients, rng(seed), groups)
    assert all(np.array_equal(one, two) for one, two in zip(parts, again, strict=True))
    assert np.array_equal(targets, kept[0])
    assert np.array_equal(groups, kept[1])
    if sequences:
        by_label = partition.split(targets[:, 0], num_clients, rng(seed), groups)
        assert all(np.array_equal(one, two) for one, two in zip(parts, by_label, strict=True))


@given(text=texts)
def test_text_both_ways(text):
    partition = parse_partition(text)
    assert parse_partition(str(partition)) == partition
    assert str(parse_partition(str(partition))) == str(partition)
    assert hash(partition) == hash(parse_partition(text))


@pytest.mark.parametrize(
    ("text", "partition"),
    [
        ("iid", Iid()),
        ("natural", Natural()),
        ("dirichlet:0.1", Dirichlet(0.1)),
        ("dirichlet:1", Dirichlet(1.0)),
        ("dirichlet:1e-05", Dirichlet(1e-5)),
        ("dirichlet:10", Dirichlet(10)),
        ("shards:2", Shards(2)),
    ],
)
def test_canonical_text(text, partition):
    assert parse_partition(text) == partition
    assert str(partition) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "IID", "iid:", "iid:1", "natural:2", "dirichlet", "dirichlet:", "dirichlet:x", "dirichlet: 1"),
        *("dirichlet:1_0", "dirichlet:0.5:1", "shards", "shards:", "shards:1.5", "shards:-1", "shards:+1"),
        *("shards:\u0663", "shards:" + "9" * 5000),
    ],
)
def test_bad_text(text):
    with pytest.raises(ConfigError, match=r"partition must be iid, dirichlet:A with A > 0.*, got "):
        parse_partition(text)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "-inf", "1e999"])
def test_bad_alpha(value):
    with pytest.raises(ConfigError, match="dirichlet's A must be a finite number > 0, got"):
        parse_partition(f"dirichlet:{value}")


def test_other_refusals():
    with pytest.raises(ConfigError, match=r"got 'dirichlett:1'; did you mean 'dirichlet'\?"):
        parse_partition("dirichlett:1")
    with pytest.raises(ConfigError, match=r"S must be an integer >= 1, got 0"):
        parse_partition("shards:0")
    labels = np.arange(10) % 3
    for num_clients in (0, -1, 11):
        with pytest.raises(ConfigError, match=rf"clients must be in \[1, 10\].*got {num_clients}"):
            Iid().split(labels, num_clients, rng())
    with pytest.raises(ConfigError, match="clients must be in"):
        Iid().split(labels[:0], 1, rng())
    with pytest.raises(ConfigError, match="targets must be"):
        Iid().split(labels.astype(np.float32), 2, rng())
    with pytest.raises(ConfigError, match="needs 12 examples or more, got 10"):
        Shards(4).split(labels, 3, rng())
    with pytest.raises(ConfigError, match="natural needs the data's own clients, got none"):
        Natural().split(labels, 2, rng())
    with pytest.raises(ConfigError, match="natural has 3 groups, got 4 clients"):
        Natural().split(labels, 4, rng(), groups=labels)
    with pytest.raises(ConfigError, match=r"shape \(10,\) of the labels, got \(9,\)"):
        Natural().split(labels, 2, rng(), groups=labels[:9])


def test_iid_is_even_and_unskewed():
    labels = np.repeat(np.arange(10), 600)
    parts = Iid().split(labels, 7, rng())
    assert {len(part) for part in parts} == {857, 858}
    for part in parts:
        counts = np.bincount(labels[part], minlength=10)
        # a hypergeometric count: mean 85.7, standard deviation below 8.2
        assert np.all(np.abs(counts - 85.7) < 5 * 8.2)


def label_skew(partition, seed):
    """Mean total-variation distance between a client's labels and all labels."""
    labels = np.repeat(np.arange(10), 500)
    distances = []
    for part in partition.split(labels, 10, rng(seed)):
        share = np.bincount(labels[part], minlength=10) / len(part)
        distances.append(0.5 * np.abs(share - 0.1).sum())
    return np.mean(distances)


def test_label_skew_grows_as_alpha_falls():
    skews = [np.mean([label_skew(Dirichlet(alpha), seed) for seed in range(3)]) for alpha in (1e4, 10, 1, 0.1)]
    assert skews[0] < 0.02
    assert skews == sorted(skews)
    assert skews[3] > 0.5


@pytest.mark.parametrize("alpha", [0.05, 0.5, 1.0, 7.0, 300.0])
def test_dirichlet_moments(alpha):
    # a symmetric Dirichlet over k has mean 1/k and variance (1/k)(1 - 1/k) / (k alpha + 1)
    k, generator = 5, rng(11)
    draws = np.array([dirichlet_shares(alpha, k, generator) for _ in range(6000)])
    np.testing.assert_allclose(draws.sum(1), 1, rtol=1e-12)
    variance = (1 / k) * (1 - 1 / k) / (k * alpha + 1)
    np.testing.assert_allclose(draws.mean(0), 1 / k, atol=5 * np.sqrt(variance / 6000))
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.12)


def test_dirichlet_agrees_with_numpy_in_distribution():
    from scipy.stats import ks_2samp

    ours, generator = rng(1), rng(2)
    for alpha in (0.3, 2.0):
        mine = [dirichlet_shares(alpha, 4, ours)[0] for _ in range(3000)]
        theirs = generator.dirichlet([alpha] * 4, 3000)[:, 0]
        assert ks_2samp(mine, theirs).pvalue > 1e-3


def test_dirichlet_limits():
    assert dirichlet_shares(5e-324, 6, rng()).max() == 1.0
    np.testing.assert_allclose(dirichlet_shares(1.7e308, 6, rng()), 1 / 6, rtol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_two_shards_show_two_to_four_labels(seed):
    labels = rng(seed).permutation(np.repeat(np.arange(10), 600))
    parts = Shards(2).split(labels, 100, rng(seed))
    assert {len(part) for part in parts} == {60}
    assert max(len(np.unique(labels[part])) for part in parts) <= 2  # 600 is a whole number of shards
    uneven = labels[:5873]
    assert max(len(np.unique(uneven[part])) for part in Shards(2).split(uneven, 100, rng(seed))) <= 4


def test_natural_keeps_groups_whole_and_deals_the_largest_first():
    groups = np.repeat([50, 7, 9, 3], [2, 5, 4, 4])
    parts = Natural().split(np.zeros(15, np.int64), 2, rng(), rng(1).permutation(groups))
    assert sorted(map(len, parts)) == [6, 9]
    shuffled = rng(1).permutation(groups)
    # by falling size, ties by id: 7 (5), 3 (4), 9 (4), 50 (2)
    assert [sorted(set(shuffled[part].tolist())) for part in parts] == [[7, 9], [3, 50]]
    state = rng(5)
    Natural().split(np.zeros(15, np.int64), 4, state, shuffled)
    assert state.random() == rng(5).random()  # no chance is used


def test_only_the_generator_decides():
    labels = np.arange(200) % 10
    for partition in (Iid(), Dirichlet(0.5), Shards(2)):
        one = partition.split(labels, 5, rng(1))
        two = partition.split(labels, 5, rng(2))
        assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_bootstrap_draws_from_all_with_replacement():
    parts = parse_partition("bootstrap:30").split(np.zeros(50, np.int64), 400, np.random.default_rng(0))
    assert [len(part) for part in parts] == [30] * 400
    counts = np.bincount(np.concatenate(parts), minlength=50)
    assert counts.size == 50
    assert abs(counts - 240).max() < 5 * np.sqrt(240)  # Poisson, near enough
    different = np.mean([len(set(part)) for part in parts])
    assert different == pytest.approx(50 * (1 - (1 - 1 / 50) ** 30), rel=0.02)
    with pytest.raises(ConfigError, match="N must be an integer >= 1, got 0"):
        parse_partition("bootstrap:0")
    with pytest.raises(ConfigError, match="clients must be in"):
        parse_partition("bootstrap:3").split(np.zeros(0, np.int64), 2, np.random.default_rng(0))
