"""The ops on torch tensors against the reference, on every device at hand, and what they may not do on the way."""

import json
import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from examples import up_to
from gradwire.compressors.quantize import _inner_edges
from gradwire.journal import Journal
from gradwire.kernels import reference, torch_ops
from gradwire.kernels.sampling import sample_plan

no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
on_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=no_cuda)])

LARGEST = float(np.finfo(np.float32).max)
TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-45, -1e-45, 3e-45, 1e-39, 3e38, -3e38, LARGEST])
NUMBERS = st.one_of(TIED, st.floats(width=32, allow_nan=False, allow_infinity=False))
VECTORS = st.lists(NUMBERS, min_size=1, max_size=80).map(lambda x: np.array(x, np.float32))
MAGNITUDES = VECTORS.map(np.abs)

KINDS = {
    "normal": lambda rng, d: rng.standard_normal(d),
    "constant": lambda rng, d: np.ones(d),
    "zeros": lambda rng, d: np.where(np.arange(d) % 2, 0.0, -0.0),
    "few values": lambda rng, d: rng.integers(-2, 3, d),
    "cauchy": lambda rng, d: np.clip(rng.standard_cauchy(d), -1e30, 1e30),
    "nearly all zero": lambda rng, d: np.where(rng.random(d) < 0.001, rng.standard_normal(d), 0),
    "all at the end": lambda rng, d: np.arange(d) * (np.arange(d) >= d - d // 50),
    "one spike": lambda rng, d: (np.arange(d) == d // 3) * -1e30,
    "denormals": lambda rng, d: np.arange(d) * 1e-45,
    "wide": lambda rng, d: -np.exp(np.clip(rng.standard_normal(d) * 20, -80, 80)),
}


def on(device, *arrays):
    return [torch.from_numpy(a.copy()).to(device) for a in arrays]


def back(tensor):
    return tensor.cpu().numpy()


def ks(d):
    return sorted({0, 1, min(d, 3), max(1, d // 1000), max(1, d // 100), max(1, d // 3), d})


@on_devices
@pytest.mark.parametrize("ties", [2, 2**31 - 1, 2**31, 2**33])
def test_more_ties_may_be_left_than_32_bits_hold(device, ties):
    (bits,) = on(device, np.array([5, 1, 5, 7, 5], np.int32))
    expected = [True, False, True, True, ties > 2]
    for given_ties in (ties, torch.tensor(ties, device=device)):
        assert back(torch_ops._reaching(bits, 5, given_ties)).tolist() == expected


def check_topk(device, values, k):
    (tensor,) = on(device, values)
    found = torch_ops.topk(tensor, k)
    assert found.dtype == torch.int64
    assert found.device == tensor.device
    np.testing.assert_array_equal(back(found), reference.topk(values, k))
    assert back(tensor).tobytes() == values.tobytes()


def in_small_chunks():
    return mock.patch.multiple(torch_ops, _CHUNK=7, _MAX_NONZERO=11)


# --- top-k ------------------------------------------------------------------------------------------------------------


@on_devices
@pytest.mark.parametrize("d", [1, 2, 511, 512, 513, 5000, 300_000])
@pytest.mark.parametrize("kind", KINDS)
def test_topk_is_exact(device, kind, d):
    values = KINDS[kind](np.random.default_rng(d), d).astype(np.float32)
    for k in ks(d):
        check_topk(device, values, k)


@on_devices
@pytest.mark.parametrize("kind", ["normal", "few values", "wide"])
def test_topk_is_exact_of_millions(device, kind):
    values = KINDS[kind](np.random.default_rng(3), 3_000_000).astype(np.float32)
    for k in (300, 30_000, 1_000_000):
        check_topk(device, values, k)


@on_devices
def test_topk_is_exact_across_chunks(device):
    values = np.random.default_rng(4).standard_normal(3 * 4096 + 1).astype(np.float32).round(1)
    with mock.patch.multiple(torch_ops, _CHUNK=4096, _MAX_NONZERO=5000):
        for k in ks(values.size):
            check_topk(device, values, k)


@on_devices
@settings(max_examples=up_to(150), deadline=None)
@given(values=VECTORS, data=st.data())
@example(values=np.array([-0.0, 0.0, 1e-45, -1e-45], np.float32), data=None)
def test_topk_of_few(device, values, data):
    for k in range(values.size + 1) if data is None else [data.draw(st.integers(0, values.size))]:
        check_topk(device, values, k)
        with in_small_chunks():
            check_topk(device, values, k)


@on_devices
@settings(max_examples=up_to(60), deadline=None)
@given(
    pool=st.lists(NUMBERS, min_size=1, max_size=12),
    d=st.integers(512, 4000),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1),
)
def test_topk_where_most_are_ties(device, pool, d, seed, share):
    values = np.random.default_rng(seed).choice(np.array(pool, np.float32), d)
    for k in {round(share * d), round(share * d / 50)}:
        check_topk(device, values, k)


@on_devices
@pytest.mark.parametrize("k", [1, 200, 3000])
@pytest.mark.parametrize("sampled", [0.0, 1e-45, 1e20])
def test_topk_is_exact_where_the_sample_misleads(device, k, sampled):
    d = 300_000
    size, _ = sample_plan(d, k)
    places = torch_ops._sample_places(d, size, torch.device("cpu")).numpy()
    values = np.random.default_rng(k).standard_normal(d).astype(np.float32)
    values[places] = sampled
    if sampled < 1 or k > size:
        assert torch_ops._by_sample(torch.from_numpy(values).view(torch.int32), k) is None
    check_topk(device, values, k)
    values[places] *= np.random.default_rng(k).random(size, np.float32)
    check_topk(device, values, k)


@pytest.mark.parametrize("k", [1, 30, 300, 3000, 30_000])
@pytest.mark.parametrize("kind", ["normal", "cauchy", "wide", "nearly all zero"])
def test_samples_lead_to_candidates(kind, k):
    values = KINDS[kind](np.random.default_rng(k), 300_000).astype(np.float32)
    assert torch_ops._by_sample(torch.from_numpy(values).view(torch.int32), k) is not None


@pytest.mark.parametrize(("d", "size"), [(1, 1), (512, 512), (5000, 512), (300_000, 585), (10**9, 10**6)])
def test_each_stretch_is_sampled_once(d, size):
    places = torch_ops._sample_places(d, size, torch.device("cpu")).numpy()
    starts = np.arange(size + 1) * d // size
    assert (starts[:-1] <= places).all()
    assert (places < starts[1:]).all()
    if d >= 100 * size:
        inside = (places - starts[:-1]) / np.diff(starts)
        assert abs(inside.mean() - 0.5) < 2 / math.sqrt(size)
        assert abs(np.corrcoef(inside[1:], inside[:-1])[0, 1]) < 5 / math.sqrt(size)


@on_devices
def test_topk_of_views(device):
    values = np.random.default_rng(0).standard_normal(40_000).astype(np.float32)
    (tensor,) = on(device, values)
    for part in (slice(1, None), slice(None, None, 2)):
        np.testing.assert_array_equal(back(torch_ops.topk(tensor[part], 400)), reference.topk(values[part], 400))


# --- adding -----------------------------------------------------------------------------------------------------------


def check_add(device, total, addend, decay, k):
    before, (tensor, more) = total.copy(), on(device, total, addend)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = reference.add_topk(total, addend, decay, k, Journal())
    found = torch_ops.add_topk(tensor, more, decay, k)
    assert (found is None) == (expected is None)
    if expected is not None:
        np.testing.assert_array_equal(back(found[0]), expected[0])
        assert back(found[1]).tobytes() == expected[1].tobytes()
    assert back(tensor).tobytes() == (before if expected is None else total).tobytes()
    assert back(more).tobytes() == addend.tobytes()


@on_devices
@pytest.mark.parametrize("d", [0, 1, 4097, 300_000])
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_sums_are_the_references(device, d, decay):
    total, addend = np.random.default_rng(d).standard_normal((2, d)).astype(np.float32)
    check_add(device, total, addend, decay, d // 100)


@on_devices
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -3e38])
@pytest.mark.parametrize("at", [0, 4095, 4096, 9999])
@pytest.mark.parametrize("decay", [1.0, 0.5, 0.1])
def test_what_is_not_finite_changes_nothing(device, bad, at, decay):
    total, addend = np.random.default_rng(at).standard_normal((2, 10_000)).astype(np.float32)
    total[at], addend[at] = 3e38, bad
    with mock.patch.object(torch_ops, "_CHUNK", 4096):
        check_add(device, total, addend, decay, 100)


@on_devices
def test_large_numbers_that_do_not_meet_are_finite(device):
    total, addend = np.zeros((2, 10_000), np.float32)
    total[5], addend[6], total[7], addend[7] = LARGEST, -LARGEST, LARGEST, -LARGEST
    with mock.patch.object(torch_ops, "_CHUNK", 4096):
        check_add(device, total, addend, 1.0, 2)


@on_devices
@settings(max_examples=up_to(150), deadline=None)
@given(
    pairs=st.lists(st.tuples(NUMBERS, st.one_of(NUMBERS, st.floats(width=32))), min_size=1, max_size=60),
    decay=st.sampled_from([1.0, 0.9, 0.1, 1e-30, 1.5]),
    data=st.data(),
)
def test_sums_of_anything(device, pairs, decay, data):
    total, addend = np.array(pairs, np.float32).T.copy()
    with in_small_chunks():
        check_add(device, total, addend, decay, data.draw(st.integers(0, total.size)))


@on_devices
@settings(max_examples=up_to(100), deadline=None)
@given(out=VECTORS, weight=st.sampled_from([1.0, 0.1, 3.0, 1e-3]), data=st.data())
def test_accumulation_is_the_references(device, out, weight, data):
    indices = np.array(data.draw(st.lists(st.integers(0, out.size - 1), unique=True)), np.int64)
    numbers = np.array(data.draw(st.lists(NUMBERS, min_size=indices.size, max_size=indices.size)), np.float32)
    tensor, *others = on(device, out, indices, numbers)
    torch_ops.accumulate_at(tensor, *others, weight)
    with np.errstate(over="ignore"):
        reference.accumulate_at(out, indices, numbers, weight)
    assert back(tensor).tobytes() == out.tobytes()


@on_devices
@given(indices=st.sets(st.integers(0, 2**40)).map(lambda x: np.array(sorted(x), np.int64)))
def test_gaps_are_the_references(device, indices):
    (tensor,) = on(device, indices)
    np.testing.assert_array_equal(back(torch_ops.gaps(tensor)), reference.gaps(indices))
    np.testing.assert_array_equal(back(tensor), indices)


# --- quantizing -------------------------------------------------------------------------------------------------------


def check_intervals(device, magnitudes, edges, zero):
    found, counts, sums = torch_ops.find_intervals(*on(device, magnitudes, edges), zero)
    expected, expected_counts, _ = reference.find_intervals(magnitudes, edges, zero)
    assert (found.dtype, counts.dtype, sums.dtype) == (torch.uint16, torch.int64, torch.float64)
    np.testing.assert_array_equal(back(found), expected)
    np.testing.assert_array_equal(back(counts), expected_counts)
    exact = [math.fsum(magnitudes[expected == i].tolist()) for i in range(expected_counts.size)]
    np.testing.assert_allclose(back(sums), exact, rtol=1e-13, atol=0)
    return back(sums)


@on_devices
@pytest.mark.parametrize("num_edges", [0, 1, 15, 64, 65, 300])
@pytest.mark.parametrize("more", [0, 1])
def test_intervals_are_the_references(device, num_edges, more):
    rng = np.random.default_rng(num_edges)
    edges = np.unique(rng.lognormal(0, 2, num_edges).astype(np.float32)).astype(np.float64)
    magnitudes = np.concatenate([rng.lognormal(0, 2, 20_000), edges, [0, 0, 2, 4]]).astype(np.float32)
    zero = edges.size + more
    sums = check_intervals(device, magnitudes, edges, zero)
    with mock.patch.object(torch_ops, "_CHUNK", 4096):
        np.testing.assert_array_equal(check_intervals(device, rng.permutation(magnitudes), edges, zero), sums)


@on_devices
@settings(max_examples=up_to(200), deadline=None)
@given(magnitudes=MAGNITUDES, intervals=st.sampled_from([1, 2, 3, 16, 1000, 32_768]), seed=st.integers(0, 1000))
@example(magnitudes=np.array([LARGEST, 1e-45, 0, 2.0**-126, 2.0**127], np.float32), intervals=16, seed=0)
@example(magnitudes=np.array([1e-45, 3e-45, 3e-45], np.float32), intervals=16, seed=0)
@example(magnitudes=np.zeros(3, np.float32), intervals=16, seed=0)
def test_intervals_of_anything(device, magnitudes, intervals, seed):
    """Also the same bits in any order and in any chunks."""
    smallest = magnitudes.min(where=magnitudes > 0, initial=magnitudes.max())
    edges = _inner_edges(float(magnitudes.max()), float(smallest), intervals)
    zero = min(intervals, 32_767)
    sums = check_intervals(device, magnitudes, edges, zero)
    with in_small_chunks():
        again = check_intervals(device, np.random.default_rng(seed).permutation(magnitudes), edges, zero)
    np.testing.assert_array_equal(again, sums)


@on_devices
@settings(max_examples=up_to(200), deadline=None)
@given(
    values=VECTORS,
    num_symbols=st.sampled_from([2, 3, 4, 5, 255, 256, 65_535, 65_536]),
    scale=st.one_of(st.sampled_from([2.0**-149, 2.0**-126, 0.5, 1.0, 3.0]), st.floats(1e-30, 1e30)),
    each=st.booleans(),
    dithered=st.booleans(),
    affine=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_symbols_are_the_references(device, values, num_symbols, scale, each, dithered, affine, seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([values, (np.arange(-5, 6) / 2 * scale).astype(np.float32)])
    num_scales = values.size if each else 1
    scales = (scale * (1 + rng.integers(0, 3, num_scales))).astype(np.float32)
    dither = rng.random(values.size, np.float32) if dithered else None
    zeros = rng.integers(0, num_symbols, num_scales).astype(np.uint16) if affine else None
    with np.errstate(over="ignore"):
        expected = reference.quantize_grid(values, scales, num_symbols, dither, zeros)
    tensors = [None if a is None else on(device, a)[0] for a in (values, scales, dither, zeros)]
    for chunk in (7, 1 << 22):
        with mock.patch.object(torch_ops, "_CHUNK", chunk):
            found = torch_ops.quantize_grid(*tensors[:2], num_symbols, *tensors[2:])
        assert found.dtype == torch.uint16
        np.testing.assert_array_equal(back(found), expected)
    np.testing.assert_array_equal(back(tensors[0]), values)


# --- what the ops may not do ------------------------------------------------------------------------------------------


def tensors_for_all(device, d):
    rng = np.random.default_rng(d)
    vectors = rng.standard_normal((3, d)).astype(np.float32)
    return on(device, *vectors, np.sort(rng.lognormal(0, 2, 15)), np.flatnonzero(rng.random(d) < 0.01))


def run_all(total, addend, values, edges, indices):
    """Every op once, and those that have two ways in both."""
    d = values.numel()
    yield from (torch_ops.topk(values, k) for k in (d // 100, d))
    for decay in (1.0, 0.5):
        yield from torch_ops.add_topk(total, addend, decay, d // 100)
    yield torch_ops.gaps(indices)
    torch_ops.accumulate_at(total, indices, addend[: indices.numel()], 0.5)
    yield from torch_ops.find_intervals(values.abs(), edges, 16)
    yield torch_ops.quantize_grid(values, values[:1].abs(), 16, addend.abs().clamp(max=0.9))
    yield total
    addend[0] = math.inf
    assert torch_ops.add_topk(total, addend, 1.0, 3) is None


@on_devices
def test_nothing_leaves_the_device(device, monkeypatch):
    tensors = tensors_for_all(device, 100_000)

    def refuse(*args, **kwargs):
        raise AssertionError("copied to the host")

    for name in ("cpu", "numpy", "__array__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    with torch.device("meta"):  # where a tensor is made if no device is named
        made = list(run_all(*tensors))
    assert {t.device.type for t in made} == {device}


class Seen(TorchDispatchMode):
    """Writes down what torch is asked to do: names, numbers of elements put in, and the tensors that come out."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [(t.dtype, t.numel()) for t in (out if isinstance(out, tuple) else [out]) if isinstance(t, torch.Tensor)]
        put_in = max([t.numel() for t in args if isinstance(t, torch.Tensor)], default=0)
        self.calls.append((func.overloadpacket.__name__, put_in, made))
        return out


WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "bincount"}  # the host waits for these


@on_devices
def test_the_host_waits_a_few_times_however_many_chunks(device):
    values, addend = tensors_for_all(device, 100_000)[:2]
    with mock.patch.object(torch_ops, "_CHUNK", 4096), Seen() as seen:
        torch_ops.add_topk(values, addend, 0.9, 1000)
    assert sum(name in WAITING for name, _, _ in seen.calls) <= 5


@on_devices
@pytest.mark.parametrize("kind", ["normal", "few values", "wide"])
@pytest.mark.parametrize("k", [1000, 50_000])
def test_whole_vectors_are_neither_sorted_nor_widened(device, kind, k):
    d = 200_000
    (values,) = on(device, KINDS[kind](np.random.default_rng(1), d).astype(np.float32))
    with mock.patch.object(torch_ops, "_CHUNK", 1 << 14), Seen() as seen:
        torch_ops.topk(values, k)
    assert not [name for name, put_in, _ in seen.calls if name in ("sort", "topk", "kthvalue") and put_in > d // 2]
    wide = [n for _, _, made in seen.calls for dtype, n in made if dtype in (torch.int64, torch.float64)]
    assert max(wide) < max(2 * k, 1 << 16) + 1


def peak_bytes(run, path):
    """Most bytes that were allocated on the CPU at once while something ran, as torch's profiler counts them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    changes = [(e["args"]["Ev Idx"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    del kept
    return int(np.cumsum([change for _, change in sorted(changes)]).max())


@pytest.mark.parametrize(
    ("run", "per_element"),
    [
        (lambda x, e: torch_ops.topk(x, x.numel() // 100), 1 + 0.5),
        (lambda x, e: torch_ops.topk(x, 3), 1),
        (lambda x, e: torch_ops.topk(x, x.numel()), 1 + 8),
        (lambda x, e: torch_ops.add_finite(x, x.flip(0), 0.9), 4),
        (lambda x, e: torch_ops.find_intervals(x.abs_(), e, 16), 2),
        (lambda x, e: torch_ops.quantize_grid(x, x[:1].abs(), 16, None), 2),
    ],
    ids=["topk, 1%", "topk, 3", "topk, all", "add_finite", "find_intervals", "quantize_grid"],
)
def test_memory_is_bounded(run, per_element, tmp_path):
    """A byte an element for a mask, the result, and chunks; x.flip(0), which the test itself makes, counts too."""
    d, chunk = 2_000_000, 1 << 14
    values, edges = tensors_for_all("cpu", d)[2:4]
    with mock.patch.object(torch_ops, "_CHUNK", chunk):
        peak = peak_bytes(lambda: run(values, edges), tmp_path / "trace.json")
    assert d / 8 < peak <= per_element * d + 32 * chunk + (2 << 20)
