"""Every compressor of tests/cases.py keeps every law, on every update and layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

import cases
import gradwire as gw

ROWS = pytest.mark.parametrize("row", cases.COMPRESSORS, ids=lambda row: row.spec)
F32_MAX = float(np.finfo(np.float32).max)


def _round(compressor: gw.Compressor, index: int = 3, client: int = 5, seed: int = 11) -> gw.Round:
    return gw.Round(index=index, key=gw.Key(seed, index, client), sequence=index)


def _compress(row: cases.Row, update: np.ndarray, layout: gw.Layout, **key: int) -> gw.Payload | None:
    """The payload, or None where the update is refused, which only numbers near float32's end may be."""
    compressor = row.build()
    try:
        return compressor.compress(update, compressor.init(layout), _round(compressor, **key))[0]
    except gw.UpdateError:
        assert np.abs(update).max() > 1e36, f"{row.spec} refused an ordinary update"
        return None


def _dense_of(payload: gw.Payload) -> np.ndarray:
    """Decompress without the library: put each part's numbers where its indices say."""
    out = np.zeros(payload.d, np.float32)
    start = 0
    for part in payload.parts:
        out[start + part.support.indices] = part.numbers() + np.float32(0.0)
        start += part.length
    return out


@ROWS
def test_text_round_trip(row):
    compressor = row.build()
    assert str(compressor) == row.spec
    again = gw.parse(str(compressor))
    assert again == compressor
    assert hash(again) == hash(compressor)
    assert repr(compressor) == str(compressor)
    assert len({compressor, again}) == 1


def test_rows_are_distinct():
    built = [row.build() for row in cases.COMPRESSORS]
    assert len(set(built)) == len(built) == len({str(c) for c in built})


def _check_laws(row: cases.Row, name: str, d: int, layout: gw.Layout) -> None:
    what = f"{row.spec} on {name}[{d}]"
    update = cases.update_of(name, d)
    before = update.tobytes()
    payload = _compress(row, update, layout)
    assert update.tobytes() == before, f"{what}: update modified"
    if payload is None:
        return
    # the wire is exact
    blob = gw.encode(payload)
    assert isinstance(blob, bytes)
    decoded = gw.decode(blob)
    assert decoded == payload, f"{what}: decode(encode(p)) != p"
    if any(coder in row.spec for coder in ("huffman()", "ans()", "rle()")):
        # which coder was asked for does not travel: written again, the cheapest one is taken
        assert len(gw.encode(decoded)) <= len(blob), f"{what}: the cheapest coder is dearer than the one asked for"
        assert gw.decode(gw.encode(decoded)) == payload
    else:
        assert gw.encode(decoded) == blob, f"{what}: encode(decode(b)) != b"
    assert gw.encode(payload) == blob
    # what the payload stands for
    dense = gw.decompress(payload)
    assert dense.dtype == np.float32
    assert dense.shape == (d,)
    assert np.isfinite(dense).all(), what
    assert dense.tobytes() == gw.decompress(decoded).tobytes()
    assert np.array_equal(dense, _dense_of(decoded)), what
    # law 3
    rng = np.random.default_rng(d)
    for weight in (1.0, 0.37, -1.0):
        out = rng.standard_normal(d).astype(np.float32)
        expected = out + dense * np.float32(weight)
        gw.accumulate(out, decoded, weight)
        assert np.array_equal(out, expected), f"{what}: accumulate != accumulate(decompress), weight {weight}"
    # counts and cost
    info = gw.inspect(blob)
    assert info["total_bytes"] == len(blob) == info["header_bytes"] + info["support_bytes"] + info["values_bytes"]
    assert info["d"] == d
    assert info["round"] == 3
    assert info["num_kept"] == payload.num_kept <= d
    if row.density is not None:
        assert payload.num_kept <= cases.largest_k(row, layout), f"{what}: num_kept > k"
    allowed = 32 if info["num_parts"] == 1 else 32 + 6 * info["num_parts"]
    assert info["header_bytes"] <= allowed, (
        f"{what}: header {info['header_bytes']} bytes over {info['num_parts']} parts"
    )
    # running statistics travel whole
    statistics = slice(layout.num_parameters, d)
    assert np.array_equal(dense[statistics], update[statistics]), f"{what}: running statistics changed"


def _in_turn(row: cases.Row, d: int) -> Iterator[tuple[str, gw.Layout]]:
    """Every update, each on one of the layouts: which one goes round from row to row and from update to update."""
    layouts = [make(d) for make in cases.LAYOUTS.values()]
    first = cases.COMPRESSORS.index(row) + d
    for number, name in enumerate(cases.UPDATES):
        yield name, layouts[(first + number) % len(layouts)]


@ROWS
@pytest.mark.parametrize("d", cases.SIZES)
def test_laws(row, d):
    """Every update, on one layout each, in turn: the slow test below has all of them."""
    for name, layout in _in_turn(row, d):
        _check_laws(row, name, d, layout)


@pytest.mark.slow
@ROWS
@pytest.mark.parametrize("d", cases.SIZES)
@pytest.mark.parametrize("shape", cases.LAYOUTS)
def test_laws_on_every_layout(row, d, shape):
    layout = cases.LAYOUTS[shape](d)
    for name in cases.UPDATES:
        _check_laws(row, name, d, layout)


@ROWS
def test_laws_of_a_million(row):
    """On one layout with one update, in turn: together with the slow test below every case of them all."""
    names, layouts = list(cases.UPDATES), list(cases.LAYOUTS.values())
    number = cases.COMPRESSORS.index(row)
    _check_laws(row, names[number % len(names)], cases.LARGE, layouts[number % len(layouts)](cases.LARGE))


@pytest.mark.slow
@ROWS
@pytest.mark.parametrize("shape", cases.LAYOUTS)
def test_laws_of_a_million_on_every_update(row, shape):
    layout = cases.LAYOUTS[shape](cases.LARGE)
    for name in cases.UPDATES:
        _check_laws(row, name, cases.LARGE, layout)


@pytest.mark.parametrize("d", [1, 100, 10_000_000])
def test_header_is_at_most_32_bytes_for_one_part(d):
    client = gw.Client(gw.topk(1e-5 if d > 100 else 0.5), gw.Layout.flat(d), client_id=2**40, seed=2**60)
    blob = client.compress(np.linspace(1, 2, d, dtype=np.float32), round=1_000_000)
    info = gw.inspect(blob)
    assert info["num_parts"] == 1
    assert info["header_bytes"] <= 32
    server = gw.Server(gw.dense(), gw.Layout.flat(d), downlink=gw.topk(1e-5 if d > 100 else 0.5))
    assert gw.inspect(server.close_round().blob)["header_bytes"] <= 32


# --- guarantees -----------------------------------------------------------------------------------


def _squared(x: np.ndarray) -> float:
    return float(np.sum(x.astype(np.float64) ** 2))


def _errors(row: cases.Row, update: np.ndarray, layout: gw.Layout, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """C(x) for many keys: (draws, d) float64, and |C(x) - x|^2 of each."""
    compressor = row.build()
    state = compressor.init(layout)
    out = np.empty((draws, update.size))
    for i in range(draws):
        payload, state = compressor.compress(update, state, gw.Round(index=i, key=gw.Key(7, i, 2)))
        out[i] = gw.decompress(payload)
    return out, ((out - update.astype(np.float64)) ** 2).sum(axis=1)


PROMISING = [r for r in cases.COMPRESSORS if not isinstance(r.build().guarantee(100), gw.Unknown)]
DETERMINISTIC = [r for r in PROMISING if r.keyed is None]
KEYED = [r for r in PROMISING if r.keyed is not None]


@pytest.mark.parametrize("row", DETERMINISTIC, ids=lambda row: row.spec)
@pytest.mark.parametrize("d", [1, 7, 300, 4096])
def test_deterministic_guarantee_holds_for_every_draw(row, d):
    """Every update, on one layout each, in turn: the slow test below has all of them."""
    _check_guarantee(row, d, _in_turn(row, d))


@pytest.mark.slow
@pytest.mark.parametrize("row", DETERMINISTIC, ids=lambda row: row.spec)
@pytest.mark.parametrize("shape", cases.LAYOUTS)
@pytest.mark.parametrize("d", [1, 7, 300, 4096, cases.LARGE])
def test_deterministic_guarantee_holds_on_every_layout(row, shape, d):
    layout = cases.LAYOUTS[shape](d)
    _check_guarantee(row, d, ((name, layout) for name in cases.UPDATES))


def _check_guarantee(row: cases.Row, d: int, on: Iterable[tuple[str, gw.Layout]]) -> None:
    guarantee = row.build().guarantee(d)
    assert isinstance(guarantee, (gw.Contractive, gw.Absolute)), f"{row.spec}: {guarantee}"
    for name, layout in on:
        update = cases.update_of(name, d)
        payload = _compress(row, update, layout)
        error = gw.decompress(payload).astype(np.float64) - update
        if isinstance(guarantee, gw.Absolute):
            assert np.abs(error).max() <= guarantee.error
            continue
        assert 0 <= guarantee.delta <= 1
        if row.spec in ("dense()", "topk(1.0)"):
            assert guarantee == gw.Contractive(1.0)
            assert not error.any(), f"{row.spec} is lossless, lost {np.abs(error).max()} on {name}[{d}]"
        # a step among denormals is rounded by half of the last one, times the grid's half width
        norm = _squared(update)
        allowed = cases.with_rounding((1 - guarantee.delta) * norm, norm) + d * (128 * 2.0**-149) ** 2
        assert _squared(error) <= allowed, f"{row.spec} on {name}[{d}]: {guarantee} broken"


# The checks of random stages fail a right one with a chance below 1e-7 each, by Bernstein's inequality, which unlike a
# number of standard errors holds for any distribution: with N draws of variance V, none farther than R from the mean,
#   P(mean off by more than sqrt(2 V L / N) + R L / 3 N) <= 2 exp(-L),
# for vectors too, with V = E|X - EX|^2 (Pinelis 1994, Theorem 3.3). Where V is that of the draws themselves the second
# term is 7 R L / 3 (N - 1) (Maurer and Pontil 2009, Theorem 4). R is the farthest draw, and N is such that the rarest
# outcome is among them: where x becomes x / p with chance p, omega is at least 1 / p - 1.
CHANCE = 1e-7


def _check_mean_at_most(drawn: np.ndarray, bound: float) -> None:
    """The mean of N numbers >= 0 is at most a bound, but for chance."""
    num, log = drawn.size, math.log(2 / CHANCE)
    slack = math.sqrt(2 * drawn.var(ddof=1) * log / num) + 7 * drawn.max() * log / (3 * (num - 1))
    assert drawn.mean() <= bound * (1 + 1e-6) + slack, f"{drawn.mean()} is above {bound}"


def _check_unbiased(drawn: np.ndarray, update: np.ndarray, omega: float) -> None:
    """The mean of (N, d) draws is the update: all coordinates together, and each for itself, but for chance."""
    num, d = drawn.shape
    errors = drawn - update.astype(np.float64)
    off, largest = errors.mean(axis=0), np.abs(update).max()
    log, variance = math.log(2 / CHANCE), omega * _squared(update)
    farthest = math.sqrt((errors**2).sum(axis=1).max())
    allowed = math.sqrt(2 * variance * log / num) + farthest * log / (3 * num)
    length = math.sqrt((off**2).sum())
    assert length <= allowed + 1e-6 * largest * math.sqrt(d), f"biased by {length}"
    log = math.log(4 * d / CHANCE)
    slack = np.sqrt(2 * drawn.var(axis=0, ddof=1) * log / num) + 7 * np.abs(errors).max() * log / (3 * (num - 1))
    assert (np.abs(off) <= slack + 1e-6 * largest).all(), f"biased by {np.abs(off).max()} at {np.abs(off).argmax()}"


@pytest.mark.parametrize("row", KEYED, ids=lambda row: row.spec)
@pytest.mark.parametrize(
    "name", ["equal", "spike", *(pytest.param(n, marks=pytest.mark.slow) for n in ("normal", "ties"))]
)
def test_random_guarantee_holds_in_the_mean(row, name):
    d = 100
    update = cases.UPDATES[name](d)
    guarantee = row.build().guarantee(d)
    rarest = 1 / (1 + getattr(guarantee, "omega", 0))
    draws = 300 if rarest == 1 else max(300, math.ceil(math.log(CHANCE) / math.log1p(-rarest)))
    drawn, squared_errors = _errors(row, update, gw.Layout.flat(d), draws)
    norm = _squared(update)
    if isinstance(guarantee, gw.Contractive):
        assert 0 <= guarantee.delta <= 1
        _check_mean_at_most(squared_errors, (1 - guarantee.delta) * norm)
        return
    assert isinstance(guarantee, gw.Unbiased), guarantee
    _check_mean_at_most(squared_errors, guarantee.omega * norm)
    _check_unbiased(drawn, update, guarantee.omega)


def test_the_mean_checker_notices_bias():
    """Meta: a biased compressor fails the test above, and so does a promise of half the variance."""
    update, layout = cases.UPDATES["equal"](100), gw.Layout.flat(100)
    drawn, _ = _errors(cases.Row("randk(0.1)", keyed="client"), update, layout, 1200)
    with pytest.raises(AssertionError, match="biased by"):
        _check_unbiased(drawn, update, omega=9.0)
    drawn, squared_errors = _errors(cases.Row("uniform(4, stochastic=True)", keyed="client"), update / 3, layout, 1200)
    with pytest.raises(AssertionError, match="is above"):
        _check_mean_at_most(squared_errors, squared_errors.mean() / 2)
    with pytest.raises(AssertionError, match="biased by"):
        _check_unbiased(drawn, update / 3 * np.float32(1.05), omega=1.0)


def test_the_mean_checker_lets_a_right_one_pass():
    """Meta: natural compression (arXiv 1905.10988) of one -3 is -2 or -4, half and half, with omega = 1/8."""
    spike = np.float32([-3])
    rng = np.random.default_rng(0)
    for _ in range(1000):
        drawn = rng.choice([-2.0, -4.0], (1200, 1))
        _check_unbiased(drawn, spike, omega=1 / 8)
        _check_mean_at_most(((drawn - spike) ** 2).sum(axis=1), 9 / 8)


def test_exact_guarantees_in_closed_form():
    assert gw.dense().guarantee(10) == gw.Contractive(1.0)
    assert gw.topk(0.25).guarantee(8) == gw.Contractive(0.25)
    assert gw.topk(0.01).guarantee(10) == gw.Contractive(0.1), "k is at least 1"
    assert gw.randk(0.25).guarantee(8) == gw.Contractive(0.25)
    assert gw.randk(0.25, unbiased=True).guarantee(8) == gw.Unbiased(3.0)
    assert isinstance(gw.ef(gw.topk(0.1)).guarantee(8), gw.Guarantee)
    for refused in (gw.randk(0.1, unbiased=True), gw.uniform(4, stochastic=True)):
        with pytest.raises(gw.ConfigError, match="contractive"):
            gw.ef(refused)
        gw.ef(refused, unchecked=True)


# --- keys -----------------------------------------------------------------------------------------


@ROWS
def test_randomness_comes_from_the_key_alone(row):
    d = 4096
    layout, update = gw.Layout.flat(d), cases.UPDATES["normal"](d)

    def dense(**key: int) -> bytes:
        return gw.decompress(_compress(row, update, layout, **key)).tobytes()

    assert gw.encode(_compress(row, update, layout)) == gw.encode(_compress(row, update, layout))
    base = dense()
    assert (dense(client=6) != base) == (row.keyed == "client"), "client id"
    assert (dense(index=4) != base) == (row.keyed is not None or row.scheduled), "round"
    assert (dense(seed=12) != base) == (row.keyed is not None), "seed"


@ROWS
def test_payload_does_not_change_behind_its_back(row):
    """A payload is frozen: neither the update nor the next compression may reach into it."""
    d = 64
    layout, update = cases.model_layout(d), cases.UPDATES["normal"](d)
    compressor = row.build()
    payload, state = compressor.compress(update, compressor.init(layout), _round(compressor))
    blob = gw.encode(payload)
    compressor.compress(np.ones(d, np.float32), state, _round(compressor))
    assert gw.encode(payload) == blob, "changed by the next compress"


@pytest.mark.parametrize("row", [r for r in cases.COMPRESSORS if r.spec.startswith("ef(")], ids=lambda row: row.spec)
def test_first_round_of_error_feedback_sends_what_the_inner_compressor_sends(row):
    d = 300
    compressor = row.build()
    layout, update = cases.model_layout(d), cases.UPDATES["normal"](d)
    inner = compressor.compressor
    expected, _ = inner.compress(update, inner.init(layout), _round(inner))
    expected_blob = gw.encode(expected)
    got, state = compressor.compress(update, compressor.init(layout), _round(compressor))
    assert gw.encode(got) == expected_blob
    assert np.array_equal(state.memory["residual"], update - gw.decompress(gw.decode(expected_blob)))


@ROWS
def test_smaller_budget_sends_fewer_bytes_or_is_refused(row):
    """num_bytes= on a Round is met by every compressor, or refused with ConfigError."""
    d = 2000
    layout, update = gw.Layout.flat(d), cases.UPDATES["normal"](d)
    compressor = row.build()
    for num_bytes in (10, 100, 500, 10_000):
        round = gw.Round(index=1, key=gw.Key(1, 1, 1), num_bytes=num_bytes)
        try:
            payload, _ = compressor.compress(update, compressor.init(layout), round)
        except gw.ConfigError as error:
            assert "num_bytes" in str(error)  # noqa: PT017
            assert num_bytes < 10_000, "everything fits in 10000 bytes"
            continue
        assert len(gw.encode(payload)) <= num_bytes


# --- taking back ------------------------------------------------------------------------------------


@ROWS
@pytest.mark.parametrize("d", [7, 4096])
def test_an_attempt_can_be_taken_back(row, d):
    """Law 6, after ``compress`` returned: the state before is as it was to float32 rounding, and goes on from there."""
    compressor, layout = row.build(), cases.model_layout(d)
    state = compressor.init(layout)
    rng = np.random.default_rng(d)
    updates = [rng.standard_normal(d).astype(np.float32) for _ in range(3)]
    for index in range(2):
        _, state = compressor.compress(updates[index], state.attempt(), _round(compressor, index))
    before = {name: np.copy(value) for name, value in state.memory.items()}
    attempt = state.attempt()
    first, _ = compressor.compress(updates[2], attempt, _round(compressor, 2))
    sent = gw.encode(first)
    attempt.journal.undo()
    assert state.memory.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_allclose(state.memory[name], value, rtol=0, atol=1e-5, err_msg=f"{row.spec}: {name}")
    again, _ = compressor.compress(updates[2], state, _round(compressor, 2))
    assert len(gw.encode(again)) == pytest.approx(len(sent), rel=0.2, abs=32)
