"""TCS: Algorithm 2 in NumPy against real conversations, lost and late references, packets, sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_oracles import (
    ACTIONS,
    Network,
    Talk,
    buffered_layout,
    check_errors,
    equation_11,
    equation_12,
    s_top,
    same,
    same_to_rounding,
    support_of,
    vectors,
)

import gradwire as gw
from gradwire.compressors.compressor import Round
from gradwire.payload import Explicit, Known

D, N = 60, 3
KG, KL = 6, 3
SPEC = "ef(tcs(0.1, 0.05))"


class Algorithm2:
    """The paper's Algorithm 2, float32 as at the clients and the server, without quantization."""

    def __init__(self, d: int, kg: int, kl: int, num_clients: int) -> None:
        self.kg, self.kl = kg, kl
        self.residuals = np.zeros((num_clients, d), np.float32)
        self.aggregate: np.ndarray | None = None

    def masks(self, u: np.ndarray) -> tuple[list[int], list[int]]:
        if self.aggregate is None:  # without a warm-up: plain top-K_g
            return [], s_top(u, self.kg)
        known = s_top(self.aggregate, self.kg)  # line 5
        outside = [i for i in range(u.size) if i not in known]
        return known, s_top(u, self.kl, outside)  # line 9

    def round(self, updates: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        sent = []
        total = np.zeros_like(updates[0])
        for n, update in enumerate(updates):
            u = self.residuals[n] + update  # line 8
            known, local = self.masks(u)
            out = np.zeros_like(u)
            out[known + local] = u[known + local]  # line 10
            self.residuals[n] = u - out  # line 12
            sent.append(out)
            total = total + out
        self.aggregate = total / np.float32(len(updates))  # line 14
        return sent, self.aggregate


# --- Algorithm 2 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_clients", [1, 2, 5])
@pytest.mark.parametrize(
    ("d", "phi_g", "phi_l"), [(60, 0.1, 0.05), (60, 0.5, 0.5), (7, 0.3, 0.1), (1, 1.0, 1.0), (60, 0.1, 0)]
)
def test_a_conversation_is_algorithm_2(num_clients: int, d: int, phi_g: float, phi_l: float) -> None:
    kg, kl = (min(d, max(1, round(phi * d))) if phi else 0 for phi in (phi_g, phi_l))
    talk = Talk(f"ef(tcs({phi_g}, {phi_l}), unchecked={not phi_l})", d, num_clients)
    paper = Algorithm2(d, kg, kl, num_clients)
    for r in range(8):
        updates = vectors(r, num_clients, d)
        reference = talk.applied
        blobs, result = talk.round(updates)
        sent, aggregate = paper.round(updates)
        for n, blob in enumerate(blobs):
            assert np.array_equal(gw.decompress(gw.decode(blob), reference), sent[n])
            assert np.array_equal(talk.residual(n), paper.residuals[n])
        assert np.array_equal(result.update, aggregate)
        assert np.array_equal(result.applied, aggregate)


def test_ties_equal_entries_and_zeros_follow_the_rule() -> None:
    rng = np.random.default_rng(5)
    talk, paper = Talk("ef(tcs(0.2, 0.1))", 20, 2), Algorithm2(20, 4, 2, 2)
    for r in range(40):
        kind = r % 4
        updates = rng.integers(-2, 3, (2, 20)).astype(np.float32)
        if kind == 1:
            updates[:] = 1
        elif kind == 2:
            updates[:] = 0
        elif kind == 3:
            updates[1] = -updates[0]  # the aggregate cancels wherever both send
        blobs, result = talk.round(updates)
        _, aggregate = paper.round(updates)
        assert all(len(blob) > 0 for blob in blobs)
        assert np.array_equal(result.update, aggregate), r
        assert all(np.array_equal(talk.residual(n), paper.residuals[n]) for n in range(2)), r


def test_an_aggregate_of_zeros_knows_nothing() -> None:
    talk = Talk("ef(tcs(0.25, 0.25))", 8, 2)
    x = np.float32([5, 0, 0, 0, 3, 0, 0, 0])
    _, result = talk.round([x, -x])
    assert not result.update.any()
    blobs, _ = talk.round([np.arange(8, dtype=np.float32)] * 2)
    assert [support_of(blob, np.zeros(8, np.float32)) for blob in blobs] == [[6, 7]] * 2
    # a silent round: the reference is all zeros again
    talk.close()
    blobs, _ = talk.round([np.float32([0, 9, 9, 9, 0, 0, 0, 0])] * 2)
    assert support_of(blobs[0], np.zeros(8, np.float32)) == [2, 3], "0 .. 5 had stayed behind"


@pytest.mark.parametrize("what", [np.zeros, np.ones])
def test_all_zero_and_all_equal_updates(what) -> None:
    talk = Talk(SPEC, D, N)
    expected = np.zeros(D)
    for _ in range(4):
        blobs, result = talk.round(what((N, D), np.float32))
        expected += result.update
    held = np.mean([talk.residual(n) for n in range(N)], axis=0)
    assert np.array_equal(expected + held, 4 * what(D))
    assert what is np.ones or gw.inspect(blobs[0])["num_kept"] == 0


@pytest.mark.parametrize("num_buffers", [0, 4])
def test_d_0(num_buffers: int) -> None:
    talk = Talk(SPEC, buffered_layout(0, num_buffers), 2)
    for r in range(3):
        updates = vectors(r, 2, num_buffers)
        _, result = talk.round(updates)
        assert result.update == pytest.approx(updates.mean(axis=0), rel=1e-6)


def test_a_mask_that_never_moves() -> None:
    """Without local coordinates the mask is that of the dense round before, for ever; a budget adds none."""
    talk = Talk("warmup(tcs(0.1, 0), 1)", D, 2)
    _, result = talk.round(vectors(0, 2, D))
    mask = sorted(s_top(result.update, KG))
    for r in range(1, 6):
        reference = talk.applied
        blobs, _ = talk.round(vectors(r, 2, D))
        assert [support_of(blob, reference) for blob in blobs] == [mask] * 2
    with pytest.raises(gw.ConfigError, match="contractive"):
        gw.parse("ef(tcs(0.1, 0))")
    few = np.zeros(D, np.float32)
    few[[4, 9]] = 1
    payload, _ = gw.tcs(0.1, 0).compress(
        vectors(9, 1, D)[0], gw.tcs(0.1, 0).init(gw.Layout.flat(D)), gw.Round(1, reference=few, num_bytes=400)
    )
    assert payload.parts[0].support.indices.tolist() == [4, 9], "a budget does not add coordinates of its own"


# --- facts of section 1 -----------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", ["", " | fractional(16)", " | fractional(1)", " | uniform(4)", " | sign()"])
def test_quick_checks(quantizer: str) -> None:
    talk = Talk(f"ef(tcs(0.1, 0.05){quantizer})", D, N)
    for r in range(10):
        updates = vectors(r, N, D) * np.float32(10.0) ** vectors(100 + r, N, D)
        before = [talk.residual(n) for n in range(N)]
        reference = talk.applied
        blobs, result = talk.round(updates)
        after = np.array([talk.residual(n) for n in range(N)], np.float64)
        u = np.array(before, np.float64) + updates
        # mean over clients of (u - e_new) is the aggregate
        assert (u - after).mean(axis=0) == pytest.approx(result.update, rel=1e-5, abs=1e-6 * np.abs(u).max())
        assert np.count_nonzero(result.update) <= (KG + N * KL if r else N * KG)
        assert [gw.inspect(blob)["round"] for blob in blobs] == [r] * N
        if reference is None:
            assert all(gw.inspect(blob)["num_kept"] <= KG for blob in blobs)
            assert all(gw.decode(blob).reference_digest is None for blob in blobs)
            continue
        known = s_top(reference, KG)
        for n, blob in enumerate(blobs):
            (part,) = gw.decode(blob).parts
            assert isinstance(part.support, Known)
            assert part.support.count == KG
            assert part.support.extra.size == KL
            assert not set(known) & set(part.support.extra.tolist())
            outside = [i for i in range(D) if i not in known]
            assert part.support.extra.tolist() == s_top((before[n] + updates[n]), KL, outside)
            if not quantizer:
                assert not after[n][known].any()
                assert not after[n][part.support.extra].any()


@pytest.mark.parametrize("intervals", [1, 2, 5, 16])
def test_the_quantization_error_is_in_the_residual(intervals: int) -> None:
    """One step at a time: Q of Eq. (12) in exact arithmetic on the union of both masks, e = u - Q(u)."""
    talk = Talk(f"ef(tcs(0.2, 0.1) | fractional({intervals}))", 40, 2)
    for r in range(5):
        updates = vectors(r, 2, 40) * np.float32(10.0) ** vectors(50 + r, 2, 40)
        before, reference = [talk.residual(n) for n in range(2)], talk.applied
        blobs, _ = talk.round(updates)
        for n, blob in enumerate(blobs):
            u = before[n] + updates[n]
            known = [] if reference is None else s_top(reference, 8)
            local = s_top(u, 8 if reference is None else 4, [i for i in range(40) if i not in known])
            mask = sorted(known + local)
            arrived = gw.decompress(gw.decode(blob), reference)
            assert arrived[mask] == pytest.approx(equation_12(u[mask], intervals), rel=3e-7)
            assert not np.delete(arrived, mask).any()
            assert np.array_equal(talk.residual(n), u - arrived)
            # sum |Q(u)| = sum |u|; one interval is the scaled sign of Eq. (11)
            assert np.abs(arrived).sum(dtype=float) == pytest.approx(np.abs(u[mask]).sum(dtype=float), rel=1e-6)
            if intervals == 1:
                assert arrived[mask] == pytest.approx(equation_11(u[mask]), rel=3e-7)
            order = np.argsort(np.abs(u[mask]), kind="stable")
            assert (np.diff(np.abs(arrived[mask][order])) >= 0).all(), "codes are monotone in |u|"


def test_zeros_on_the_known_support_are_sent_and_stay_zeros() -> None:
    compressor = gw.parse("tcs(0.4, 0.1) | fractional(4)")
    reference = np.float32([4, 3, 2, 1, 0, 0, 0, 0, 0, 0])
    u = np.float32([0, -2, 0, 7, 0, 0, 5, 0, 0, 1])
    payload, _ = compressor.compress(u, compressor.init(gw.Layout.flat(10)), Round(1, reference=reference))
    assert payload.num_kept == 5
    arrived = gw.decompress(gw.decode(gw.encode(payload)), reference)
    assert arrived.tolist() == [0, -2, 0, 7, 0, 0, 5, 0, 0, 0]


# --- bytes ------------------------------------------------------------------------------------------


def test_only_the_extra_indices_travel() -> None:
    d, kg, kl = 100_000, 1000, 100
    talk = Talk("ef(tcs(0.01, 0.001))", d, 2)
    talk.round(vectors(0, 2, d))
    blobs, _ = talk.round(vectors(1, 2, d))
    for blob in blobs:
        facts = gw.inspect(blob)
        assert facts["codec"]["support"] == "known"
        assert facts["num_kept"] == kg + kl
        # varints for two counts, a codec, a Golomb parameter; log2(1/phi) + 2 bits an extra index, none for the known
        assert facts["support_bytes"] <= 12 + kl * (math.log2(d / kl) + 2) / 8
        assert facts["support_bytes"] >= kl * math.log2(d / kl) / 8


@pytest.mark.parametrize(("spec", "value_bits", "table_bits"), [("", 32, 0), (" | fractional(16)", 5, 16 * 32)])
def test_sizes_of_equations_7_and_8(spec: str, value_bits: int, table_bits: int) -> None:
    """At phi = 1e-2, 1e-3 and the short position code log2(1/phi) + 2: whole blobs, headers included, are no larger."""
    d, phi_g, phi_l = 1_000_000, 1e-2, 1e-3
    compressor = gw.parse(f"tcs({phi_g}, {phi_l}){spec}")
    layout = gw.Layout.flat(d)
    reference = np.zeros(d, np.float32)
    reference[np.random.default_rng(1).choice(d, 13_000, replace=False)] = vectors(2, 13_000)
    blob = gw.encode(compressor.compress(vectors(3, d), compressor.init(layout), Round(9, reference=reference))[0])
    facts = gw.inspect(blob)
    assert facts["num_kept"] == 11_000
    bits = d * (value_bits * (phi_g + phi_l) + phi_l * (math.log2(1 / phi_l) + 2))
    assert 8 * facts["total_bytes"] <= bits + table_bits
    assert 8 * facts["total_bytes"] > 0.8 * bits
    # the first round: a plain top-K_g with all its positions
    first = gw.encode(compressor.compress(vectors(3, d), compressor.init(layout))[0])
    bits = d * phi_g * (value_bits + math.log2(1 / phi_g) + 2)
    assert 0.7 * bits < 8 * len(first) <= bits + table_bits


@pytest.mark.parametrize("spec", ["tcs(0.1, 0.05)", "tcs(0.05, 0.1) | fractional(4)", "tcs(1.0, 1.0) | uniform(4)"])
def test_byte_budgets(spec: str) -> None:
    d = 400
    compressor, layout = gw.parse(spec), gw.Layout.flat(d)
    client, server = gw.Client(gw.ef(compressor), layout), gw.Server(gw.ef(compressor), layout)
    for r, budget in enumerate([120, 60, 90, 200, 500, 1000, 10_000]):
        blob = client.compress(vectors(r, d), num_bytes=budget)
        assert len(blob) <= budget
        kept = gw.inspect(blob)["num_kept"]
        assert len(blob) > budget - 16 or kept == d, "an entry takes a few bytes, a varint may take one more"
        server.receive(blob)
        client.end_round(server.close_round().blob)
    before = client.state_dict()
    with pytest.raises(gw.ConfigError, match="num_bytes must be at least"):
        client.compress(vectors(0, d), num_bytes=20)
    assert same_to_rounding(client.state_dict(), before)


def test_a_budget_keeps_both_kinds_in_proportion() -> None:
    client, server = (end(gw.tcs(0.2, 0.05), gw.Layout.flat(1000)) for end in (gw.Client, gw.Server))
    server.receive(client.compress(vectors(0, 1000)))
    client.end_round(server.close_round().blob)
    (part,) = gw.decode(client.compress(vectors(1, 1000), num_bytes=300)).parts
    total = part.support.num_kept
    assert part.support.count == round(total * 0.8)
    assert 50 < total < 75


def test_a_budget_is_used_up_where_the_reference_has_few_entries() -> None:
    talk = Talk("ef(tcs(0.5, 0.01))", 400, 1)
    talk.round([np.eye(1, 400, 7, dtype=np.float32)[0]])
    blob = talk.clients[0].compress(vectors(1, 400), num_bytes=300)
    assert 290 < len(blob) <= 300
    assert gw.decode(blob).parts[0].support.count == 1


# --- rounds missed, references lost -------------------------------------------------------------------


def test_a_client_that_missed_a_round_sends_indices() -> None:
    talk = Talk(SPEC, D, 2)
    talk.round(vectors(0, 2, D))
    # client 1 neither sends nor hears round 1
    talk.server.receive(talk.clients[0].compress(vectors(1, D)), 0)
    talk.close(heard=[0])
    u = talk.residual(1) + vectors(2, D)
    blob = talk.clients[1].compress(vectors(2, D), round=2)
    payload = gw.decode(blob)
    assert payload.reference_digest is None
    assert isinstance(payload.parts[0].support, Explicit)
    assert support_of(blob) == s_top(u, KG)
    talk.server.receive(blob, 1)
    talk.server.receive(talk.clients[0].compress(vectors(3, D)), 0)
    result = talk.close()
    assert result.num_received == 2
    # it heard this round's blob, and follows again
    assert gw.decode(talk.clients[1].compress(vectors(4, D))).reference_digest is not None


def test_a_client_that_joins_late_or_was_replaced_sends_indices() -> None:
    talk = Talk(SPEC, D, 2)
    for r in range(3):
        talk.round(vectors(r, 2, D))
    newcomer = talk.new_client(7)
    blob = newcomer.compress(vectors(9, D), round=3)
    assert gw.decode(blob).reference_digest is None
    talk.server.receive(blob, 7)
    newcomer.end_round(talk.close().blob)
    assert gw.decode(newcomer.compress(vectors(9, D))).reference_digest is not None


def test_a_server_without_the_reference_refuses_and_changes_nothing() -> None:
    talk = Talk(SPEC, D, 2)
    talk.round(vectors(0, 2, D))
    blob = talk.clients[0].compress(vectors(1, D))
    other = gw.Server(talk.compressor, talk.layout, seed=1)
    other.close_round()  # in the same round, after another history
    before = other.state_dict()
    with pytest.raises(gw.StaleReference, match="not held here"):
        other.receive(blob, 0)
    assert same(other.state_dict(), before)
    # its own server takes it, and the other one's blob lets the client go on without loss
    put_in = vectors(0, 2, D)[0].astype(np.float64) + vectors(1, D)
    sent = gw.decompress(gw.decode(talk.clients[0].state_dict()["reference"].tobytes()))
    assert sent.size == D
    first = put_in - talk.residual(0) - gw.decompress(gw.decode(blob), talk.applied)
    talk.clients[0].end_round(other.close_round().blob, delivered=False)
    assert first + talk.residual(0) == pytest.approx(put_in, abs=1e-5)
    other.receive(talk.clients[0].compress(vectors(2, D)), 0)


def test_decoding_without_the_reference_or_with_another() -> None:
    talk = Talk(SPEC, D, 2)
    talk.round(vectors(0, 2, D))
    payload = gw.decode(talk.clients[0].compress(vectors(1, D)))
    with pytest.raises(gw.StaleReference, match="none given"):
        gw.decompress(payload)
    with pytest.raises(gw.StaleReference):
        _ = payload.parts[0].support.indices
    with pytest.raises(gw.ProtocolError, match=r"reference must have shape \(60,\), got \(59,\)"):
        gw.decompress(payload, np.ones(59, np.float32))
    with pytest.raises(gw.Malformed, match="leans on 6 entries of the reference, it has 0"):
        gw.decompress(payload, np.zeros(D, np.float32))
    clash = np.zeros(D, np.float32)
    clash[payload.parts[0].support.extra] = 1
    clash[[i for i in range(D) if not clash[i]][:KG]] = 0.5
    with pytest.raises(gw.Malformed, match="names a coordinate that the reference gives already"):
        gw.decompress(payload, clash)


@pytest.mark.parametrize("window", [0, 1, 3])
def test_late_payloads_within_the_window_are_read_with_their_own_reference(window: int) -> None:
    talk = Talk(SPEC, D, 1, max_staleness=window)
    talk.round(vectors(0, 1, D))
    reference = talk.applied
    late = talk.new_client(1)
    late.end_round(talk.blob)
    blob = late.compress(vectors(1, D))
    expected = gw.decompress(gw.decode(blob), reference)
    for r in range(window):
        talk.round(vectors(5 + r, 1, D))
    talk.server.receive(blob, 1)
    result = talk.server.close_round()
    assert np.array_equal(result.update, expected)

    talk = Talk(SPEC, D, 1, max_staleness=window)
    talk.round(vectors(0, 1, D))
    late = talk.new_client(1)
    late.end_round(talk.blob)
    blob = late.compress(vectors(1, D))
    for r in range(window + 1):
        talk.round(vectors(5 + r, 1, D))
    before = talk.server.state_dict()
    with pytest.raises(gw.ProtocolError, match="payload is of round 1"):
        talk.server.receive(blob, 1)
    assert same(talk.server.state_dict(), before)


@pytest.mark.parametrize("quantizer", ["", " | fractional(16)"])
def test_what_was_not_delivered_is_put_back(quantizer: str) -> None:
    talk = Talk(f"ef(tcs(0.1, 0.05){quantizer})", D, 2)
    talk.round(vectors(0, 2, D))
    before = talk.residual(0)
    update = vectors(1, D)
    talk.clients[0].compress(update)
    talk.close(delivered={0: False})
    assert talk.residual(0) == pytest.approx(before + update, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("shape", ["flat", "buffered"])
@pytest.mark.parametrize(
    "spec", ["ef(tcs(0.1, 0.1))", "ef(tcs(0.2, 0.05) | fractional(16))", "ef(warmup(tcs(0.1, 0.1), 2))"]
)
@settings(max_examples=12, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 2)), min_size=15, max_size=50))
def test_nothing_is_lost_whatever_the_network_does(spec, shape, staleness, steps) -> None:
    network = Network(spec, gw.Layout.flat(40) if shape == "flat" else buffered_layout(37), 3, staleness)
    for action, number in steps:
        network.step(action, number)
    network.finish()


def test_many_lossy_rounds() -> None:
    rng = np.random.default_rng(3)
    network = Network("ef(tcs(0.1, 0.05) | fractional(16))", buffered_layout(60), 2, 1)
    for _ in range(60):
        for number in range(2):
            if rng.random() < 0.8:
                network.step("packets" if rng.random() < 0.3 else "compress", number)
            network.step("send", number)
        network.step("close", 0)
        for number in range(2):
            if rng.random() < 0.9:
                network.step("answer", number)
    network.finish()
    leaning = [blob for _, blob in network.history if gw.decode(blob).reference_digest]
    assert len(leaning) > 20, "the known support was used"


# --- packets, warm-up, layouts, states ------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", ["", " | fractional(4)", " | fp16()"])
def test_packets_carry_the_known_indices_themselves(quantizer: str) -> None:
    spec, d = f"ef(tcs(0.1, 0.05){quantizer})", 400
    whole, cut = Talk(spec, d, 1), Talk(spec, d, 1)
    for talk in (whole, cut):
        talk.round(vectors(0, 1, d))
    one = gw.decompress(gw.decode(whole.clients[0].compress(vectors(1, d))), whole.applied)
    blobs = cut.clients[0].packets(vectors(1, d), 60)
    assert len(blobs) > 1
    pieces = [gw.decompress(gw.decode(blob)) for blob in blobs]  # without a reference
    assert np.array_equal(np.sum(pieces, axis=0, dtype=np.float32), one)
    assert all(len(blob) <= 60 and gw.decode(blob).reference_digest is None for blob in blobs)
    least = [np.abs(p[p != 0]).min() for p in pieces]
    largest = [np.abs(p).max() for p in pieces]
    assert all(a >= b for a, b in zip(least, largest[1:], strict=False)), "largest magnitudes first"
    assert np.array_equal(whole.residual(0), cut.residual(0))
    # a server that never held the reference reads them; a lost one comes back
    server = gw.Server(cut.compressor, cut.layout)
    server.close_round()
    before = cut.residual(0)
    for blob in blobs[:-1]:
        server.receive(blob, 0)
    result = server.close_round()
    assert np.array_equal(result.update, one - pieces[-1])
    cut.clients[0].end_round(result.blob, delivered=set(range(len(blobs) - 1)))
    assert np.array_equal(cut.residual(0), before + pieces[-1])


def test_a_single_packet_stands_alone_too() -> None:
    talk = Talk(SPEC, D, 1)
    talk.round(vectors(0, 1, D))
    (blob,) = talk.clients[0].packets(vectors(1, D), 10_000)
    payload = gw.decode(blob)
    assert payload.reference_digest is None
    assert payload.packet == (0, 1)
    assert isinstance(payload.parts[0].support, Explicit)
    talk.server.receive(blob, 0)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_warmup(rounds: int) -> None:
    """Dense rounds first; the round after leans on the last dense aggregate."""
    talk, paper = Talk(f"ef(warmup(tcs(0.1, 0.05), {rounds}))", D, N), Algorithm2(D, KG, KL, N)
    for r in range(rounds + 3):
        updates = vectors(r, N, D)
        blobs, result = talk.round(updates)
        if r < rounds:
            assert all(gw.inspect(blob)["num_kept"] == D for blob in blobs)
            total = updates[0]
            for update in updates[1:]:
                total = total + update
            paper.aggregate = total / np.float32(N)
        else:
            paper.round(updates)
            assert all((gw.decode(blob).reference_digest is None) == (r == 0) for blob in blobs)
        assert np.array_equal(result.update, paper.aggregate)


def test_running_statistics_travel_whole_beside_it() -> None:
    layout = buffered_layout(D, 5)
    talk, paper = Talk(SPEC, layout, 2), Algorithm2(D, KG, KL, 2)
    for r in range(5):
        updates = vectors(r, 2, D + 5)
        updates[:, D:] *= 100  # larger than all parameters: they must not take the known places
        blobs, result = talk.round(updates)
        paper.round(updates[:, :D])
        assert np.array_equal(result.update[:D], paper.aggregate)
        assert np.array_equal(result.update[D:], (updates[0, D:] + updates[1, D:]) / np.float32(2))
        if r:
            assert isinstance(gw.decode(blobs[0]).parts[0].support, Known)
            assert gw.inspect(blobs[0])["num_kept"] == KG + KL + 5


def test_by_tensor_refuses_it() -> None:
    for spec in ("by_tensor(tcs(0.1, 0.1))", "by_tensor(topk(0.1), others=tcs(0.1, 0.1))"):
        with pytest.raises(gw.ConfigError, match=r"cannot lean on the whole model's reference, got tcs\(0\.1, 0\.1\)"):
            gw.parse(spec)


@pytest.mark.parametrize("spec", [SPEC, "ef(tcs(0.1, 0.05) | fractional(16))", "ef(warmup(tcs(0.1, 0.1), 1))"])
@pytest.mark.parametrize("pending", [False, True])
def test_a_restart_gives_the_same_bytes(spec: str, pending: bool) -> None:
    talk = Talk(spec, buffered_layout(D), 2)
    for r in range(2):
        talk.round(vectors(r, 2, D + 3))
    if pending:
        talk.clients[0].compress(vectors(7, D + 3))
    twin = talk.new_client(0)
    twin.load_state_dict(talk.clients[0].state_dict())
    assert twin.pending == talk.clients[0].pending
    server = gw.Server(talk.compressor, talk.layout, seed=1)
    server.load_state_dict(talk.server.state_dict())
    for r in range(3):
        if not (pending and r == 0):
            blob = talk.clients[0].compress(vectors(9 + r, D + 3))
            assert twin.compress(vectors(9 + r, D + 3)) == blob
            assert gw.decode(blob).reference_digest is not None
            talk.server.receive(blob, 0)
            server.receive(blob, 0)
        result, other = talk.server.close_round(), server.close_round()
        assert result.blob == other.blob
        for client in (talk.clients[0], twin):
            client.end_round(result.blob, delivered=not (pending and r == 0))
    assert same(twin.state_dict(), talk.clients[0].state_dict())


def test_the_lossy_downlink_is_the_reference_all_hold() -> None:
    """What both ends hold is what the blob says, not the mean."""
    talk = Talk("ef(tcs(0.1, 0.05))", D, 2, downlink=gw.parse("ef(topk(0.05) | fp16())"), step=lambda x: 3 * x)
    for r in range(4):
        reference = talk.applied
        blobs, _ = talk.round(vectors(r, 2, D))
        if r:
            (part,) = gw.decode(blobs[0]).parts
            assert part.support.count == np.count_nonzero(reference) == 3
            assert gw.decompress(gw.decode(blobs[0]), reference)[s_top(reference, KG)].all()


@pytest.mark.parametrize("quantizer", ["uniform(4, scope=8)", "sign(scope=8)", "uniform(4, scope=8, affine=True)"])
def test_block_scales_are_refused(quantizer: str) -> None:
    with pytest.raises(gw.ConfigError):
        gw.parse(f"tcs(0.1, 0.1) | {quantizer}")


# --- specs -------------------------------------------------------------------------------------------


def test_specs() -> None:
    for text in ("tcs(0.01, 0.001)", "tcs(1.0, 1.0)", "ef(tcs(0.01, 0.001) | fractional(16) | ans())"):
        assert str(gw.parse(text)) == text
        assert gw.parse(text) == gw.parse(str(gw.parse(text)))
    assert gw.parse("tcs(local_density=1, global_density=0.5)") == gw.tcs(0.5, 1.0)
    check_errors(
        [
            ("tcs(0.0, 0.1)", r"global_density must be in \(0, 1\], got 0\.0"),
            ("tcs(0.1, 1.5)", r"local_density must be in \[0, 1\], got 1\.5"),
            ("tcs(0.1, -0.1)", r"local_density must be in \[0, 1\], got -0\.1"),
            ("tcs(0.1, 'a')", r"local_density must be in \[0, 1\], got 'a'"),
            ("tcs(True, 0.1)", r"global_density must be in \(0, 1\], got True"),
            ("tcs(0.1)", "local_density"),
            ("tcs(0.1, 0.1, density=1)", "tcs has no parameter 'density'.*it takes global_density, local_density"),
            ("fp16() | tcs(0.1, 0.1)", "cannot stand there"),
            ("topk(0.1) | tcs(0.1, 0.1)", "cannot stand there"),
        ]
    )
