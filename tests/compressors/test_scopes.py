"""What a scale covers, after every kind of support: by hand in NumPy, over tensors of very different sizes."""

from __future__ import annotations

import numpy as np
import pytest

import cases
import gradwire as gw
from gradwire.compressors.compressor import Compressor
from gradwire.compressors.pipeline import Quantizer
from gradwire.payload import Every, Explicit, Floats, Grouped, Known, Levels, Part, Symbols

RNG = np.random.default_rng(5)
ARRAYS = {
    "large": 1000 * RNG.standard_normal((20, 30)),
    "none": np.empty(0),
    "small": RNG.standard_normal(250),
    "one": np.full(1, 0.25),
    "tiny": 1e-6 * RNG.standard_normal((7, 7)),
}
LAYOUT = gw.Layout.from_arrays(ARRAYS)
UPDATE = LAYOUT.flatten({name: x.astype(np.float32) for name, x in ARRAYS.items()})
REFERENCE = RNG.standard_normal(LAYOUT.d).astype(np.float32)
SPARSIFIERS = {
    "dense()": "",
    "topk(0.9)": "",
    "topk(0.3, scope='tensor')": "",
    "topk(0.5, scope=100)": "",
    "randk(0.3)": "seeded",
    "randk(0.6, shared=True)": "seeded",
    "cyclic(0.4)": "cyclic",
    "cyclic(0.7)": "cyclic",
    "tcs(0.2, 0.1)": "known",
    "tcs(0.01, 0.2)": "known",
}
UNLISTED = [spec for spec, kind in SPARSIFIERS.items() if kind in ("seeded", "cyclic", "known")]


def sent(spec: str, round_index: int = 2) -> tuple[np.ndarray, np.ndarray, dict]:
    """The entries sent and what arrives of the update, through bytes, and what ``inspect`` says."""
    whole, quantized = gw.parse(spec.split(" | ")[0]), gw.parse(spec)
    agreed = gw.Round(index=round_index, key=gw.Key(1, round_index, 4), reference=REFERENCE)
    chosen, _ = whole.compress(UPDATE, whole.init(LAYOUT), agreed)
    payload, _ = quantized.compress(UPDATE, quantized.init(LAYOUT), agreed)
    blob = gw.encode(payload)
    decoded = gw.decode(blob)
    assert decoded == payload
    return gw.decompress(chosen, REFERENCE) != 0, gw.decompress(decoded, REFERENCE), gw.inspect(blob)


def stretches(scope: str | int) -> list[slice]:
    if scope == "model":
        return [slice(0, LAYOUT.d)]
    if scope == "tensor":
        return [slice(t.offset, t.stop) for t in LAYOUT.tensors]
    return [slice(start, start + scope) for start in range(0, LAYOUT.d, scope)]


def by_hand(numbers: np.ndarray, quantizer: str) -> np.ndarray:
    """What the numbers under one scale arrive as, in float64."""
    x = numbers.astype(np.float64)
    if quantizer == "sign":
        return np.where(x >= 0, 1, -1) * np.abs(x).mean()
    step = np.float64(np.float32(np.abs(x).max() / 127))
    return np.rint(x / step) * step


@pytest.mark.parametrize("scope", ["tensor", "model", 64, 300])
@pytest.mark.parametrize("quantizer", ["sign", "uniform"])
@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
def test_each_stretch_has_its_own_scale(sparsifier, quantizer, scope):
    named = "" if scope == "tensor" else f"scope={scope!r}"
    spec = f"{sparsifier} | " + (f"sign({named})" if quantizer == "sign" else f"uniform(8{', ' * bool(named)}{named})")
    if isinstance(scope, int) and (sparsifier.startswith("tcs") or "'tensor'" in sparsifier):
        return  # refused, see below; or blocks are counted in each tensor apart
    chosen, got, info = sent(spec)
    assert chosen.any()
    for stretch in stretches(scope):
        here = chosen[stretch]
        if here.any():
            expected = by_hand(UPDATE[stretch][here], quantizer)
            np.testing.assert_allclose(got[stretch][here], expected, rtol=2e-6, atol=np.abs(expected).max() / 1e5)
        assert not got[stretch][~here].any()
    if kind := SPARSIFIERS[sparsifier]:
        assert kind in info["codec"]["support"], "indices still do not travel"


@pytest.mark.parametrize("spec", UNLISTED)
def test_two_tensors_of_scale_1_and_1000(spec):
    arrays = {"a": np.ones(400, np.float32), "b": np.full(600, -1000, np.float32)}
    layout = gw.Layout.from_arrays(arrays)
    compressor = gw.parse(f"{spec} | sign()")
    agreed = gw.Round(index=1, key=gw.Key(3, 1, 0), reference=np.linspace(1, 2, 1000, dtype=np.float32))
    payload, _ = compressor.compress(layout.flatten(arrays), compressor.init(layout), agreed)
    got = gw.decompress(gw.decode(gw.encode(payload)), agreed.reference)
    assert set(got[:400].tolist()) <= {0.0, 1.0}
    assert set(got[400:].tolist()) <= {0.0, -1000.0}
    assert np.count_nonzero(got) == payload.num_kept


@pytest.mark.parametrize("spec", ["randk(0.5) | uniform(4, affine=True)", "cyclic(0.5) | uniform(3, stochastic=True)"])
def test_no_number_is_further_off_than_a_step_of_its_tensor(spec):
    chosen, got, _ = sent(spec)
    for t in LAYOUT.tensors:
        here = slice(t.offset, t.stop)
        x, y = UPDATE[here][chosen[here]], got[here][chosen[here]]
        if x.size:
            step = (max(x.max(), 0) - min(x.min(), 0)) / 14 if "affine" in spec else np.abs(x).max() / 3
            assert np.abs(x - y).max() <= step * (1 + 1e-5)


@pytest.mark.parametrize("quantizer", ["uniform(8, scope=64)", "sign(scope=7)"])
def test_blocks_on_a_known_support_are_refused(quantizer):
    with pytest.raises(gw.ConfigError, match=r"which block a number is in; use scope='tensor'"):
        gw.parse(f"tcs(0.1, 0.1) | {quantizer}")


def test_a_known_support_is_cut_as_its_reader_finds_it():
    """Also where magnitudes of the reference are equal, and where a tensor has none of its largest."""
    layout = gw.Layout.from_arrays({"a": np.empty(6), "b": np.empty(5), "c": np.empty(4)})
    reference = np.float32([2, 1, -2, 2, 0, 2, 0.5, 2, -2, 0, 2, 0, 0, 0, 0])
    update = np.arange(1, 16, dtype=np.float32)
    compressor = gw.parse("tcs(0.34, 0.14) | sign()")  # 5 known, and 2 more: all of equal magnitude in the reference
    agreed = gw.Round(index=3, reference=reference)
    payload, _ = compressor.compress(update, compressor.init(layout), agreed)
    kinds = [(p.support.count, p.support.extra.tolist()) for p in payload.parts if isinstance(p.support, Known)]
    assert kinds == [(4, []), (1, []), (0, [2, 3])]
    got = gw.decompress(gw.decode(gw.encode(payload)), reference)
    expected = np.zeros(15)
    expected[[0, 2, 3, 5]] = (1 + 3 + 4 + 6) / 4
    expected[7] = 8
    expected[[13, 14]] = 14.5
    assert got.tolist() == expected.tolist()


@pytest.mark.parametrize("spec", UNLISTED)
def test_conversation_and_packets(spec):
    compressor = gw.parse(f"ef({spec} | sign())")
    server = gw.Server(compressor, LAYOUT)
    clients = [gw.Client(compressor, LAYOUT, client_id=i) for i in range(2)]
    total = np.zeros(LAYOUT.d)
    for _ in range(3):
        for client in clients:
            for blob in client.packets(UPDATE, 300) if client.client_id else [client.compress(UPDATE)]:
                server.receive(blob, client.client_id)
        result = server.close_round()
        total += 2.0 * result.update
        for client in clients:
            client.end_round(result.blob)
    kept = sum(client.state_dict()["residual"].astype(np.float64) for client in clients)
    np.testing.assert_allclose(total + kept, 6.0 * UPDATE, rtol=1e-4, atol=1e-2)


def test_a_scope_is_declared():
    classes = [c for c in Compressor.registry.values() if issubclass(c, Quantizer)]
    assert len(classes) > 5
    for row in cases.COMPRESSORS:
        for stage in getattr(row.build(), "stages", ()):
            if isinstance(stage, Quantizer):
                assert stage.scope in ("part", "tensor", "model") or isinstance(stage.scope, int)
    assert gw.qsgd(4).scope == "part"
    assert gw.sign().scope == "tensor"


# groups


def grouped(*sizes: int) -> Grouped:
    rng = np.random.default_rng(sum(sizes))
    kinds = [
        lambda n: Symbols(rng.integers(0, 5, n).astype(np.uint16), 5, np.float32([rng.random() + 0.1])),
        lambda n: Floats(rng.standard_normal(n).astype(np.float32)),
        lambda n: Levels(rng.integers(0, 4, n).astype(np.uint16), np.float32([0.0, 2.0])),
        lambda n: Symbols(rng.integers(0, 3, n).astype(np.uint16), 3, np.float32([0.5]), 0, np.uint16([1])),
    ]
    return Grouped(tuple(kinds[i % 4](n) for i, n in enumerate(sizes)))


def test_groups_can_be_taken_apart():
    values, support = grouped(3, 1, 5, 2), Every(11)
    numbers = values.numbers(support)
    assert values.num_values == values.num_coded == 11
    for chosen in ([0], [3], [2, 3], [0, 2, 4, 8, 9, 10], range(11), []):
        some = values.take(np.array(chosen, np.int64), support)
        assert some.numbers(Every(len(chosen))).tolist() == numbers[list(chosen)].tolist()
        assert isinstance(some, Grouped) == (
            len({0 if c < 3 else 1 if c < 4 else 2 if c < 9 else 3 for c in chosen}) > 1
        )


@pytest.mark.parametrize("coder", ["auto", "packed", "huffman", "ans", "rle"])
def test_groups_travel(coder):
    for support in (Every(11), Explicit(50, np.arange(11) * 4)):
        payload = gw.Payload(support.length, (Part(support, grouped(3, 1, 5, 2)),), coder=coder)
        assert gw.decode(gw.encode(payload)) == payload


def test_what_cannot_be_a_group():
    one, none = Floats(np.ones(1, np.float32)), Floats(np.empty(0, np.float32))
    blocks = Symbols(np.zeros(2, np.uint16), 2, np.ones(2, np.float32), 1)
    for members in ((), (one,), (one, none), (one, blocks), (one, Grouped((one, one)))):
        with pytest.raises(gw.ConfigError, match="groups"):
            Grouped(members)
    with pytest.raises(gw.ConfigError, match="known support has no groups"):
        gw.Payload(4, (Part(Known(4, 2, np.empty(0, np.int64)), Grouped((one, one))),))
