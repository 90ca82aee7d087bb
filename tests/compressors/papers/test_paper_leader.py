"""leader: one worker's top k for all, in phases and by messages; and supports that are known before updates are."""

from __future__ import annotations

import numpy as np
import pytest

import gradwire as gw
from gradwire.compressors.papers.leader import leader_of

D = 50
LAYOUT = gw.Layout.flat(D)


def updates_of(num_workers: int, d: int = D, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_workers, d)).astype(np.float32)


def summed(compressor: gw.Compressor, updates: np.ndarray, states: list[gw.State], index: int, layout=LAYOUT) -> list:
    """One round of phases: (result, state) of every worker."""
    n = len(updates)
    agreed = [gw.Round(index=index, key=gw.Key(3, index, i), num_workers=n) for i in range(n)]
    runs = [compressor.phases(u, s, r) for u, s, r in zip(updates, states, agreed, strict=True)]
    arrays, ended = [next(run) for run in runs], []
    while not ended:
        total = np.sum(arrays, axis=0, dtype=np.float32)
        arrays = []
        for run in runs:
            try:
                arrays.append(run.send(total))
            except StopIteration as done:
                ended.append(done.value)
    return ended


def test_phases_against_numpy():
    """The mean of all at the leader's k largest, whoever leads; the residuals by hand."""
    compressor, n, k = gw.ef(gw.leader(0.1)), 3, 5
    states, residuals = [compressor.init(LAYOUT) for _ in range(n)], np.zeros((n, D), np.float32)
    leaders = set()
    for index in range(8):
        updates = updates_of(n, seed=index)
        corrected = residuals + updates
        first = leader_of(range(n), 3, index)
        leaders.add(first)
        chosen = np.sort(np.argsort(-np.abs(corrected[first]), kind="stable")[:k])
        wanted = np.zeros(D)
        wanted[chosen] = corrected[:, chosen].astype(np.float64).mean(axis=0)
        ended = summed(compressor, updates, states, index)
        for result, _ in ended:
            np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)
            assert result.tobytes() == ended[0][0].tobytes()
        states = [state for _, state in ended]
        residuals = np.stack([state.memory["residual"] for state in states])
        np.testing.assert_allclose(residuals, corrected - wanted.astype(np.float32), atol=1e-5)
    assert len(leaders) > 1


def test_coordinates_travel_exactly_in_large_models():
    d = 3 * 2**24
    update = np.zeros(d, np.float32)
    update[[0, 4095, 4096, 2**24 + 1, d - 1]] = 1.0
    layout = gw.Layout.flat(d)
    compressor = gw.leader(5 / d)
    ((result, _),) = summed(compressor, update[None], [compressor.init(layout)], 0, layout)
    assert np.flatnonzero(result).tolist() == [0, 4095, 4096, 2**24 + 1, d - 1]


def test_an_empty_model_zeros_and_running_statistics():
    layout = gw.Layout.from_arrays({"w": np.ones(4, np.float32), "running_mean": np.ones(2, np.float32)})
    for arrays in (layout, gw.Layout.flat(0)):
        compressor = gw.leader(0.5)
        updates = np.zeros((2, arrays.d), np.float32)
        updates[:, arrays.num_parameters :] = [[1.0], [3.0]]
        for result, _ in summed(compressor, updates, [compressor.init(arrays)] * 2, 0, arrays):
            assert not result[: arrays.num_parameters].any()
            assert (result[arrays.num_parameters :] == 2).all()


@pytest.mark.parametrize(
    "heard", [np.zeros(9, np.float32), np.full(10, np.nan, np.float32), np.full(10, 3.0, np.float32)]
)
def test_sums_that_are_none_are_refused(heard):
    run = gw.leader(0.1).phases(updates_of(1)[0], gw.leader(0.1).init(LAYOUT), gw.Round())
    next(run)
    with pytest.raises(gw.UpdateError, match=r"sum over the workers|leader's coordinates"):
        run.send(heard)


def test_leaders_are_drawn_alike_by_all_and_each_as_often():
    """Of 3,000 rounds each of 5 leads a fifth: the chance of so few or many is below 1e-9."""
    counts = np.bincount([leader_of([2, 0, 4, 1, 3], 7, index) for index in range(3000)], minlength=5)
    assert counts.sum() == 3000
    assert (np.abs(counts - 600) < 140).all()
    assert leader_of([4, 7, 9], 1, 2) == leader_of([9, 4, 7], 1, 2)
    with pytest.raises(gw.ConfigError, match="got none"):
        leader_of([], 0, 0)


# --- supports that were agreed on -------------------------------------------------------------------------------------

SPECS = [
    "topk(0.1)",
    "leader(0.1)",
    "ef(leader(0.1) | fixed(8, 4.0))",
    "ef(topk(0.1) | uniform(4))",
    "momentum(ef(leader(0.1)), 0.5)",
    "tcs(0.1, 0.1)",
    "ef(tcs(0.1, 0.1) | fixed(8, 4.0))",
    "randk(0.1)",
    "fixed(8, 4.0)",
    "warmup(leader(0.1), 2)",
    "adaptopk(0.1, rounds=9)",
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_support_is_sent_whatever_the_compressor_would_choose(spec):
    """And what was not sent stays in the residual."""
    support = np.array([3, 4, 17, 49])
    client = gw.Client(gw.parse(spec), LAYOUT)
    update = updates_of(1)[0]
    payload = gw.decode(client.compress(update, support=support))
    sent = gw.decompress(payload)
    assert set(np.flatnonzero(sent)) <= set(support.tolist())
    assert sent.any()
    residual = client.state_dict()["residual"]
    if residual is not None:
        np.testing.assert_allclose(residual + sent, update, atol=1e-6)
    elif "|" not in spec and spec != "fixed(8, 4.0)":
        assert sent[support].tolist() == update[support].tolist()


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_proposed_is_what_would_be_sent_and_changes_nothing(spec):
    client, update = gw.Client(gw.parse(spec), LAYOUT), updates_of(1)[0]
    client.compress(update)
    before = client.state_dict()
    proposed = client.propose(update)
    after = client.state_dict()
    assert before.keys() == after.keys()
    if before["residual"] is not None:
        np.testing.assert_allclose(before["residual"], after["residual"], atol=1e-6)
    sent = gw.decode(client.compress(update))
    assert proposed.tolist() == np.sort(sent.parts[0].support.indices).tolist()


@pytest.mark.parametrize("spec", ["powersgd(1)", "by_tensor(topk(0.1))"])
def test_what_takes_no_support_says_so(spec):
    layout = gw.Layout.from_arrays({"w": np.ones((10, 10), np.float32)})
    client = gw.Client(gw.parse(spec), layout)
    with pytest.raises(gw.ConfigError, match="cannot be given a support"):
        client.compress(updates_of(1, 100)[0], support=[1])
    assert client.sequence == 0


@pytest.mark.parametrize("support", [[], [3, 2], [1, 1], [-1], [D], [0.5], np.zeros((1, 1), int)])
def test_supports_that_cannot_be_are_refused(support):
    with pytest.raises(gw.ConfigError, match="support must be"):
        gw.Client(gw.topk(0.1), LAYOUT).compress(updates_of(1)[0], support=support)


@pytest.mark.parametrize(
    ("spec", "most"),
    [
        ("topk(0.1)", 5),
        ("randk(0.1)", 5),
        ("ef(leader(0.1) | fixed(8, 4.0))", 5),
        ("momentum(ef(leader(0.1)), 0.5)", 5),
        ("momentum_correction(leader(0.1))", 5),
        ("ef(sketch(0.3, block=8))", 16),  # 2 of 7 blocks
        ("ef(tcs(0.1, 0.06))", 8),
        ("ef(cyclic(0.2))", 10),
        ("ef(warmup(leader(0.1), 0))", 5),
        ("ef(warmup(leader(0.1), 1))", D),
        ("fixed(8, 4.0)", D),
    ],
)
def test_no_support_makes_a_client_send_more_than_its_spec_implies(spec, most):
    client, update = gw.Client(gw.parse(spec), LAYOUT), updates_of(1)[0]
    if most < D:
        with pytest.raises(gw.ConfigError, match=f"support may have {most} coordinates at most, as .*, got {most + 1}"):
            client.compress(update, support=np.arange(most + 1))
        assert (client.sequence, client.pending) == (0, ())
        assert client.residual is None or not client.residual.any()
    client.compress(update, support=np.arange(most))
    assert client.sequence == 1


def test_how_much_a_warm_up_lets_be_asked_for_depends_on_the_round():
    client, update = gw.Client(gw.parse("warmup(leader(0.1), 2)"), LAYOUT), updates_of(1)[0]
    client.compress(update, round=1, support=np.arange(D))
    with pytest.raises(gw.ConfigError, match="support may have 5 coordinates at most"):
        client.compress(update, round=2, support=np.arange(6))
    client.compress(update, round=2, support=np.arange(5))


def test_a_support_and_a_budget_are_refused():
    with pytest.raises(gw.ConfigError, match="leave num_bytes out"):
        gw.Client(gw.topk(0.1), LAYOUT).compress(updates_of(1)[0], num_bytes=99, support=[1])


@pytest.mark.parametrize(
    "spec",
    [
        "randk(0.2, shared=True)",
        "ef(randk(0.2, shared=True) | fixed(8, 1.0))",
        "cyclic(0.3)",
        "momentum(ef(cyclic(0.3)), 0.5)",
        "dense()",
        "fixed(8, 4.0)",
        "warmup(randk(0.2, shared=True), 2)",
    ],
)
@pytest.mark.parametrize("index", [0, 1, 5])
def test_shared_supports_are_what_clients_send(spec, index):
    compressor = gw.parse(spec)
    support = compressor.shared_support(LAYOUT, gw.Round(index=index, key=gw.Key(4, index)))
    for i in range(2):
        client = gw.Client(compressor, LAYOUT, client_id=i, seed=4)
        update = np.sign(updates_of(1, seed=i)[0])
        assert gw.decode(client.compress(update, round=index)).parts[0].support.indices.tolist() == support.tolist()


@pytest.mark.parametrize(
    "spec", ["topk(0.1)", "leader(0.1)", "randk(0.1)", "ef(topk(0.1))", "tcs(0.1, 0.1)", "powersgd(1)"]
)
def test_supports_that_follow_from_updates_are_not_known_before(spec):
    assert gw.parse(spec).shared_support(LAYOUT, gw.Round()) is None


def test_known_coordinates_of_tcs_are_shared_where_the_reference_is_given():
    reference = updates_of(1)[0]
    support = gw.parse("ef(tcs(0.1, 0.1))").shared_support(LAYOUT, gw.Round(index=1, reference=reference))
    assert support.tolist() == np.sort(np.argsort(-np.abs(reference))[:5]).tolist()
