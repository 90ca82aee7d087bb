"""The field between a server and its clients: when it is shipped, what leans on it, and what happens without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradwire as gw
from gradwire.ends.fields import HELD, Estimate, read_field, saved_field
from gradwire.fields import Field
from gradwire.payload import Dithered, Explicit, Fielded, Floats, Part, Payload

SHAPES = {"conv": (12, 1, 5, 5), "bias": (12,), "fc": (60, 150), "head": (10, 60)}
LAYOUT = gw.Layout.from_arrays({name: np.empty(shape, np.float32) for name, shape in SHAPES.items()})
SPEC = gw.dither(density=0.01, field=True)
PLAIN = gw.dither(density=0.01)
RNG = np.random.default_rng(5)
SCALES = LAYOUT.flatten(
    {
        name: np.exp(1.5 * RNG.standard_normal((shape[0], *(1,) * (len(shape) - 1))))
        * np.exp(1.5 * RNG.standard_normal((1, *shape[1:]) if len(shape) > 1 else shape))
        * np.ones(shape)
        for name, shape in SHAPES.items()
    }
)


def update_of(index: int, client: int) -> np.ndarray:
    rng = np.random.default_rng([index, client])
    return (SCALES * rng.laplace(size=LAYOUT.d)).astype(np.float32)


def play(
    spec: gw.Compressor, last: int, told: Any = lambda index, client: True, **more: Any
) -> tuple[gw.Server, list[gw.Client], list[list[bytes]], list[gw.Result]]:
    """Rounds of some clients, those told so hearing of each; what was sent up and down."""
    server = gw.Server(spec, LAYOUT, seed=3, **more)
    clients = [gw.Client(spec, LAYOUT, client_id=n, seed=3) for n in range(6)]
    sent, results = [], []
    for index in range(last):
        blobs = [client.compress(update_of(index, client.client_id), round=index) for client in clients]
        for client, blob in zip(clients, blobs, strict=True):
            server.receive(blob, client.client_id)
        results.append(server.close_round())
        sent.append(blobs)
        for client in clients:
            if told(index, client.client_id):
                assert client.end_round(results[-1].blob).tobytes() == results[-1].applied.tobytes()
    return server, clients, sent, results


def codec_of(blob: bytes) -> str:
    return gw.inspect(blob)["codec"]["support"]


def fields_in(results: list[gw.Result]) -> list[Field | None]:
    return [gw.decode(result.blob).shipped_field for result in results]


def test_the_same_numbers_in_fewer_bytes():
    server, _, sent, results = play(SPEC, 40)
    _, _, plain, same = play(PLAIN, 40)
    for result, other in zip(results, same, strict=True):
        assert result.update.tobytes() == other.update.tobytes()
        assert result.applied.tobytes() == other.applied.tobytes()
    assert all(codec_of(blob) == "dithered" for blobs in plain for blob in blobs)
    shipped = [index for index, field in enumerate(fields_in(results)) if field is not None]
    assert shipped
    assert {codec_of(blob) for blobs in sent[: shipped[0] + 1] for blob in blobs} == {"dithered"}
    later, before = (sum(len(b) for blobs in x[shipped[-1] + 1 :] for b in blobs) for x in (sent, plain))
    assert later < 0.9 * before
    up, down = (sum(len(b) for blobs in x for b in blobs) for x in (sent, plain))
    extra = 6 * (sum(len(r.blob) for r in results) - sum(len(r.blob) for r in same))
    assert up + extra < down  # what was shipped has paid
    assert server.round == 40


def test_it_is_shipped_once_its_lack_costs_as_much():
    _, _, sent, results = play(SPEC, 30)
    _, _, plain, _ = play(PLAIN, 30)
    first = _first(results)
    assert first is not None
    field = gw.decode(results[first].blob).shipped_field
    cost = len(results[first].blob) - len(gw.encode(_without_field(gw.decode(results[first].blob))))
    assert sent[: first + 1] == plain[: first + 1]
    # beside this very field the payloads so far would have taken less by no more than a round beyond what it takes
    saved = [sum(len(b) - _beside(b, field) for b in blobs) for blobs in plain[: first + 1]]
    assert cost * 6 * 0.5 < sum(saved) < cost * 6 * 3
    assert first > 0  # nothing is known before the first round


def _without_field(payload: Payload) -> Payload:
    return Payload(payload.d, payload.parts, payload.round, payload.sequence, payload.layout_digest, None, 6.0)


def _beside(blob: bytes, field: Field | None) -> int:
    from gradwire.wire.dithering import beside_field

    payload = gw.decode(blob)
    (part,) = payload.parts
    leaning = Part(beside_field(part.support, field), part.values)
    return len(gw.encode(Payload(payload.d, (leaning,), payload.round, payload.sequence, payload.layout_digest)))


def test_nothing_is_shipped_where_the_run_ends_too_soon():
    first = _first(play(SPEC, 12, num_rounds=60)[3])
    assert first is not None
    assert _first(play(SPEC, 12, num_rounds=first + 2)[3]) is None
    assert _first(play(PLAIN, 12)[3]) is None


def _first(results: list[gw.Result]) -> int | None:
    return next((index for index, field in enumerate(fields_in(results)) if field is not None), None)


def test_updates_without_rows_and_columns_never_get_one():
    layout = gw.Layout.from_arrays({"a": np.empty((40, 50), np.float32), "b": np.empty(9, np.float32)})
    server, client = (end(SPEC, layout) for end in (gw.Server, gw.Client))
    for index in range(25):
        server.receive(client.compress(np.random.default_rng(index).laplace(size=layout.d)))
        blob = server.close_round().blob
        assert gw.decode(blob).shipped_field is None
        client.end_round(blob)


def test_who_missed_it_sends_the_same_without():
    """A client that hears of no round, and one that heard of the field and of nothing since."""
    _, clients, sent, results = play(SPEC, 40, told=lambda index, client: client != 2)
    plain = play(PLAIN, 40)[3]
    assert all(r.update.tobytes() == p.update.tobytes() for r, p in zip(results, plain, strict=True))
    assert {codec_of(blobs[2]) for blobs in sent} == {"dithered"}
    assert codec_of(sent[-1][0]) == "fielded"
    assert clients[2].round == 39


def test_older_fields_are_held_for_whoever_has_no_newer_one():
    server, clients, _, results = play(SPEC, 25)
    old = [field for field in fields_in(results) if field is not None][-1]
    assert server.reference_of(gw.decode(clients[0].compress(update_of(25, 0)))).held_field == old
    newer = [_another(old, n) for n in range(HELD)]
    for number, field in enumerate(newer):
        fresh, blob = clients[1], clients[0].compress(update_of(26 + number, 0), round=server.round)
        assert codec_of(blob) == "fielded"
        server.receive(blob, 0)
        server._follow(fresh.compress(update_of(0, 1)), field)
        server.round += 1
        assert len(server._fields) <= HELD
    blob = clients[0].compress(update_of(99, 0), round=server.round)
    before = server.state_dict()
    with pytest.raises(gw.StaleReference, match=old.digest.hex()):
        server.receive(blob, 0)
    _same(server.state_dict(), before)


def _another(field: Field, number: int) -> Field:
    levels = field.levels.copy()
    levels[number % levels.size] = (int(levels[number % levels.size]) + 32) % 63 - 31
    return Field(field.lengths, field.columns, levels)


def _same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.tobytes() == b.tobytes()
    else:
        assert a == b


def test_a_payload_needs_exactly_its_field():
    _, clients, _, results = play(SPEC, 25)
    payload = gw.decode(clients[0].compress(update_of(25, 0)))
    right = [field for field in fields_in(results) if field is not None][-1]
    with pytest.raises(gw.StaleReference, match="none"):
        gw.decompress(payload)
    for number in range(5):
        with pytest.raises(gw.StaleReference, match=right.digest.hex()):
            gw.decompress(payload, gw.Reference.beside(_another(right, number), None, LAYOUT.d))
    with pytest.raises(gw.StaleReference):
        gw.decompress(payload, np.zeros(LAYOUT.d, np.float32))
    found = gw.decompress(payload, gw.Reference.beside(right, None, LAYOUT.d))
    expected, _ = PLAIN.compress(update_of(25, 0), PLAIN.init(LAYOUT), gw.Round(index=25, key=gw.Key(3, 25, 0)))
    assert found.tobytes() == gw.decompress(expected).tobytes()
    other = gw.Server(SPEC, LAYOUT, seed=3)  # one that begins anew
    with pytest.raises(gw.ProtocolError):
        other.receive(gw.encode(Payload(**{**vars(payload), "round": 0})), 0)
    assert other.close_round().num_received == 0


def test_states_hold_the_field():
    """All ends stop and go on in the middle: bytes are those of ends that did not stop."""
    told = play(SPEC, 30)
    server, clients = gw.Server(SPEC, LAYOUT, seed=3), [gw.Client(SPEC, LAYOUT, n, seed=3) for n in range(6)]
    for index in range(30):
        for n, client in enumerate(clients):
            blob = client.compress(update_of(index, n), round=index)
            assert blob == told[2][index][n]
            server.receive(blob, n)
            again = gw.Client(SPEC, LAYOUT, n, seed=3)
            again.load_state_dict(client.state_dict())
            clients[n] = again
        saved = server.state_dict()
        server = gw.Server(SPEC, LAYOUT, seed=3)
        server.load_state_dict(saved)
        result = server.close_round()
        assert result.blob == told[3][index].blob
        for client in clients:
            client.end_round(result.blob)


def test_states_that_hold_another_field_are_refused():
    field = Field((7,), (7,), np.zeros(1, np.int8))
    client = gw.Client(SPEC, LAYOUT)
    with pytest.raises(gw.StateError, match="parameters"):
        client.load_state_dict(client.state_dict() | {"field": saved_field(field)})
    assert read_field(saved_field(field), gw.Layout.flat(7)) == field
    server = gw.Server(SPEC, LAYOUT)
    bad = server.state_dict()
    bad["estimate"]["sums"] = bad["estimate"]["sums"][1:]
    with pytest.raises(gw.StateError, match="sums"):
        server.load_state_dict(bad)


def test_a_field_of_another_model_is_refused():
    nothing = Part(Explicit(LAYOUT.d, np.empty(0, np.int64)), Floats(np.empty(0, np.float32)))
    field = Field((LAYOUT.d - 1,), (LAYOUT.d - 1,), np.zeros(1, np.int8))
    payload = Payload(LAYOUT.d, (nothing,), layout_digest=LAYOUT.digest, sum_weights=1.0, shipped_field=field)
    client = gw.Client(SPEC, LAYOUT)
    with pytest.raises(gw.ProtocolError, match="parameters"):
        client.end_round(gw.encode(payload))
    assert client.round == 0


def test_what_is_lost_comes_back_into_a_residual():
    """Feedback takes back a payload that leant on a field, also when the client holds a newer one by then."""
    spec = gw.ef(gw.dither(density=0.5, field=True), unchecked=True)
    _, clients, _, results = play(spec, 12)
    client, other = clients[0], clients[1]
    assert any(fields_in(results))
    residual = client.state_dict()["residual"].astype(np.float64)
    update = update_of(12, 0)
    blob = client.compress(update)
    held = client._standing.field
    assert codec_of(blob) in ("fielded", "dithered")
    if codec_of(blob) == "dithered":
        pytest.skip("the field did not pay at this density")
    assert other._standing.field == held
    client.settle(False)
    assert np.allclose(client.state_dict()["residual"], residual + update, rtol=1e-5, atol=1e-4)


def test_momentum_in_front_and_packets():
    server, clients, sent, _ = play(gw.momentum(SPEC, 0.8), 25)
    assert codec_of(sent[-1][0]) == "fielded"
    packets = clients[0].packets(update_of(25, 0), 80)
    assert len(packets) > 1
    for packet in packets:  # each readable alone
        gw.decompress(gw.decode(packet))
        server.receive(packet, 0)
    one = clients[1].packets(update_of(25, 1), 100_000)
    assert (len(one), codec_of(one[0])) == (1, "dithered")


def test_regions_hold_the_field_of_a_server_that_ships_one():
    """A region reads what its clients code beside a field that came down through it."""
    _, _, _, results = play(SPEC, 25)
    index = max(i for i, field in enumerate(fields_in(results)) if field is not None)
    region = gw.Region(SPEC, LAYOUT, seed=3)
    client = gw.Client(SPEC, LAYOUT, client_id=0, seed=3)
    for end in (region, client):
        end.end_round(results[index].blob)
    blob = client.compress(update_of(index + 1, 0))
    assert codec_of(blob) == "fielded"
    region.receive(blob, 0)
    up = region.forward()
    expected = gw.decompress(gw.decode(blob), region.reference_of(gw.decode(blob)))
    assert gw.decompress(gw.decode(up.blob)).tobytes() == (expected + 0.0).tobytes()


def test_late_payloads_lean_on_older_fields():
    server, clients, _, _ = play(SPEC, 25, max_staleness=3)
    blob = clients[0].compress(update_of(25, 0))
    assert codec_of(blob) == "fielded"
    server.close_round()
    server.receive(blob, 0)
    assert server.close_round().num_received == 1


def test_levels_are_half_octaves_of_what_was_seen():
    layout = gw.Layout.from_arrays({"a": np.empty((3, 4), np.float32), "b": np.empty(2, np.float32)})
    estimate = Estimate.of(layout)
    a = np.outer([1, 4, 16], [1, 1, 1, 1]) * np.array([8, 1, 1, 2])
    for _ in range(200):
        estimate, field = estimate.after(np.append(a * 1e3, [0, 2e3]).astype(np.float32), None, None, 1, None)
        assert field is None
    found = estimate.field(unit=1)
    assert found.columns == (4, 2)
    assert np.diff(found.levels[:3].astype(int)).tolist() == [4, 4]  # a factor of 4 each
    assert np.diff(found.levels[3:7].astype(int)).tolist() == [-6, 0, 2]
    mean, total = 254 / 13, 254 / 0.05  # of what is not zero, in 13 places; of all rounds, fading
    ratio = (2 / 0.05 + mean) / (total * 2 / 14 + mean)  # one number of mean size more than there was
    assert found.levels[7] == round(2 * np.log2(ratio)) == -7


def test_supports_beside_a_field_are_what_they_were():
    field = Field((LAYOUT.d,), (150,), np.zeros(-(-LAYOUT.d // 150) + 150, np.int8))
    from gradwire.wire.dithering import beside_field, read_beside

    payload, _ = PLAIN.compress(update_of(0, 0), PLAIN.init(LAYOUT), gw.Round(key=gw.Key(1, 0, 2)))
    (part,) = payload.parts
    assert isinstance(part.support, Dithered)
    leaning = Payload(LAYOUT.d, (Part(beside_field(part.support, field), part.values),))
    read = gw.decode(gw.encode(leaning))
    assert read == leaning
    assert isinstance(read.parts[0].support, Fielded)
    assert read_beside(read.parts[0].support, field) == part.support
    assert gw.inspect(gw.encode(leaning))["num_kept"] == payload.num_kept
