"""Quantizers against closed forms, torch, and direct readings of the equations they come from."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cases
import gradwire as gw
from examples import up_to
from gradwire.compressors.quantize import fixed, fractional, qsgd, sign, ternary, uniform
from gradwire.payload import Every, Floats, Levels, Part, Symbols

UNIT = 2.0**-149
LARGEST = float(np.finfo(np.float32).max)

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VECTORS = st.lists(NUMBERS, min_size=1, max_size=40).map(lambda x: np.array(x, np.float32))
MODERATE = st.one_of(st.just(0.0), st.floats(2**-20, 2**20, width=32), st.floats(-(2**20), -(2**-20), width=32))
MODERATE_VECTORS = st.lists(MODERATE, min_size=1, max_size=30).map(lambda x: np.array(x, np.float32))


def f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def compress(compressor: gw.Compressor, x: np.ndarray, layout: gw.Layout | None = None, index: int = 0) -> gw.Payload:
    """The payload, after a check that bytes carry all of it."""
    before = x.copy()
    layout = gw.Layout.flat(x.size) if layout is None else layout
    round = gw.Round(index=index, key=gw.Key(3, index, 1))
    payload, _ = compressor.compress(x, compressor.init(layout), round)
    assert x.tobytes() == before.tobytes()
    assert gw.decode(gw.encode(payload)) == payload
    return payload


def sent(compressor: gw.Compressor, x: np.ndarray, layout: gw.Layout | None = None, index: int = 0) -> np.ndarray:
    """What arrives, as float64."""
    return gw.decompress(compress(compressor, x, layout, index)).astype(np.float64)


def draws(compressor: gw.Compressor, x: np.ndarray, count: int) -> np.ndarray:
    """(count, d) float64: what becomes of as many parts of the same numbers, each with draws of its own."""
    parts = compressor.quantize([Part(Every(x.size), Floats(x))] * count, gw.Key(5))
    return np.array([part.numbers() for part in parts], np.float64)


def quantized(quantizer: gw.Compressor, x: np.ndarray) -> gw.payload.Values:
    """The values before pruning."""
    return quantizer.quantize([Part(Every(x.size), Floats(x))], gw.Key(0))[0].values


def squared(x: np.ndarray) -> float:
    return float((np.asarray(x, np.float64) ** 2).sum())


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: qsgd(0), r"levels must be an integer in \[1, 32767\], got 0"),
        (lambda: qsgd(32768), "levels must be"),
        (lambda: qsgd(2.0), "levels must be"),
        (lambda: uniform(8, affine=1), "affine must be True or False, got 1"),
        (lambda: uniform(1, stochastic=True, affine=True), "bits must be 2 or more for an affine grid .*, got 1"),
        (lambda: sign(scope="layer"), "scope must be 'model', 'tensor' or a block length, got 'layer'"),
        (lambda: sign(scope=0), "scope must be an integer of 1 or more, got 0"),
        (lambda: fixed(1, 1.0), r"bits must be an integer in \[2, 16\], got 1"),
        (lambda: fixed(17, 1.0), "bits must be"),
        (lambda: fixed(8, 0.0), "clip must be in .*, got 0.0"),
        (lambda: fixed(8, -1), "clip must be in .*, got -1.0"),
        (lambda: fixed(8, 1e39), "clip must be in .*, got 1e[+]39"),
        (lambda: fixed(8, 1e-40), "clip must be in .*, got 1e-40"),
        (lambda: fixed(8, math.inf), "clip must be finite, got inf"),
        (lambda: fixed(8, True), "clip must be a number, got True"),
        (lambda: fixed(8, 1.0, stochastic=1), "stochastic must be True or False, got 1"),
        (lambda: fractional(0), r"intervals must be an integer in \[1, 32768\], got 0"),
        (lambda: fractional(32769), "intervals must be"),
    ],
)
def test_parameters_are_checked(build, message):
    with pytest.raises(gw.ConfigError, match=message):
        build()


@pytest.mark.parametrize(
    "spec",
    [
        "qsgd(4)",
        "sign()",
        "sign(scope=64)",
        "ternary()",
        "fixed(8, 0.5)",
        "fixed(8, 0.5, stochastic=True)",
        "fractional(16)",
        "uniform(2)",
        "uniform(4, scope=64, affine=True)",
    ],
)
def test_text_and_texts(spec):
    compressor = gw.parse(spec)
    assert str(compressor) == spec
    assert compressor.summary
    assert compressor.citation


def test_ef_takes_the_contractive_ones_alone():
    for accepted in (sign(), fixed(8, 1.0), fractional(16), uniform(2), uniform(2, affine=True)):
        gw.ef(gw.topk(0.01) | accepted)
    for accepted in (qsgd(32), uniform(8, stochastic=True), uniform(8, stochastic=True, affine=True)):
        gw.ef(accepted)  # unbiased, and of so little variance that they contract
    others = (uniform(3, stochastic=True), uniform(2, stochastic=True, affine=True), fixed(8, 1.0, stochastic=True))
    for refused in (qsgd(4), ternary(), *others):
        with pytest.raises(gw.ConfigError, match="contractive"):
            gw.ef(refused)


# --- every input whatever ---------------------------------------------------------------------------------------------

ALL = [
    *(gw.parse(s) for s in ("fp16()", "bf16()", "sign()", "sign(scope='model')", "sign(scope=3)", "ternary()")),
    *(qsgd(s) for s in (1, 5, 127, 32767)),
    *(uniform(bits) for bits in range(1, 9)),
    *(uniform(bits, stochastic=True, scope=scope) for bits, scope in ((1, "tensor"), (2, 4), (3, "model"), (8, 5))),
    *(uniform(bits, scope=scope, affine=True) for bits, scope in ((1, 3), (2, "tensor"), (4, "model"), (8, 5))),
    *(uniform(bits, stochastic=True, affine=True) for bits in (2, 8)),
    *(fixed(bits, clip) for bits, clip in ((2, 1.0), (8, 1e-20), (16, LARGEST), (16, 32767 * 2.0**-126))),
    *(fractional(p) for p in (1, 2, 3, 16, 32767, 32768)),
]


@pytest.mark.parametrize("compressor", ALL, ids=str)
@settings(max_examples=up_to(60), deadline=None)
@given(x=VECTORS)
@example(x=f32(0, -0.0, 0))
@example(x=f32(UNIT))
@example(x=f32(UNIT, -2 * UNIT, 3 * UNIT, 0, 100 * UNIT))
@example(x=f32(178 * UNIT, -UNIT, 7 * UNIT))
@example(x=f32(LARGEST, -LARGEST))
@example(x=f32(LARGEST))
@example(x=f32(1e38, -1e38, 1e-38, 1e-45, 0, 3e38))
@example(x=f32(*[LARGEST] * 9, 1))
@example(x=f32(*[1.5] * 7))
@example(x=f32(1, np.nextafter(np.float32(1), np.float32(2))))
@example(x=f32(1.0579134e-37))
def test_any_input(compressor, x):
    """Travels exactly, arrives finite, and within what is promised."""
    arrived = sent(compressor, x)
    assert np.isfinite(arrived).all()
    guarantee = compressor.guarantee(x.size)
    # grids that end where float32 does, though they would go on
    cut = isinstance(compressor, sign) or getattr(compressor, "affine", False) or getattr(compressor, "bits", 0) == 1
    if isinstance(guarantee, gw.Contractive) and not (cut and np.abs(x).max() > LARGEST / 2):
        # a step among denormals is rounded up by less than a unit, which the end of the grid has up to 127 times
        allowed = cases.with_rounding((1 - guarantee.delta) * squared(x), squared(x)) + x.size * (130 * UNIT) ** 2
        assert squared(arrived - x) <= allowed
    elif isinstance(guarantee, gw.Unbiased) and np.abs(x).max() <= LARGEST / 2:
        # no point of the grid is above the norm, or above it by a step; among denormals each step is rounded up by less
        # than a unit
        beyond = 2 if getattr(compressor, "affine", False) else 1
        steps = max(260, getattr(compressor, "levels", 0))
        assert (np.abs(arrived) <= beyond * math.sqrt(squared(x)) * (1 + 1e-6) + steps * UNIT).all()


@pytest.mark.parametrize("compressor", ALL, ids=str)
def test_nothing_to_send(compressor):
    assert sent(compressor, np.empty(0, np.float32)).size == 0
    assert compress(gw.topk(0.5) | compressor, np.zeros(9, np.float32)).num_kept == 0


@pytest.mark.parametrize("support", [gw.randk(0.5), gw.topk(0.5), gw.topk(0.5, scope=4), gw.topk(0.5, scope="tensor")])
@pytest.mark.parametrize("compressor", ALL, ids=str)
def test_zeros_and_numbers_on_any_support(compressor, support):
    layout = gw.Layout.from_arrays({"a": np.zeros((3, 4)), "b": np.zeros(5)})
    for x in (np.zeros(17, np.float32), f32(*[0] * 5, 3, *[0] * 11), np.arange(-8, 9, dtype=np.float32)):
        arrived = sent(support | compressor, x, layout)
        assert np.isfinite(arrived).all()
        no_zero = isinstance(compressor, sign) or (
            isinstance(compressor, uniform) and compressor.bits <= 2 and not compressor.affine
        )
        assert no_zero or not arrived[x == 0].any()


# --- uniform ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-30, -3, 0, 9])
def test_uniform_8_is_torchs_symmetric_quantizer(exponent):
    torch = pytest.importorskip("torch")
    scale = 2.0**exponent
    rng = np.random.default_rng(1)
    ties = np.arange(-126.5, 127) * scale
    x = np.concatenate([rng.uniform(-127, 127, 3000) * scale, ties, [127 * scale, 0.0]]).astype(np.float32)
    values = quantized(uniform(8), x)
    assert isinstance(values, Symbols)
    assert values.scales == np.float32(scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # deprecated in torch, and still the definition
        tensor = torch.quantize_per_tensor(torch.from_numpy(x), scale, 0, torch.qint8)
    assert np.array_equal(values.symbols.astype(np.int64) - 127, tensor.int_repr().numpy())
    assert np.array_equal(values.numbers(Every(x.size)), tensor.dequantize().numpy())


@pytest.mark.parametrize("bits", [3, 5, 8])
def test_uniform_is_torchs_fake_quantizer(bits):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(bits).standard_normal(5000).astype(np.float32)
    half = 2 ** (bits - 1) - 1
    scale = float(np.float32(np.abs(x).max() / half))
    expected = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), scale, 0, -half, half).numpy()
    off = np.flatnonzero(sent(uniform(bits), x).astype(np.float32) != expected)
    # torch multiplies by 1 / scale where we divide: only what is next to a tie may differ
    assert off.size <= 3
    assert (np.abs(np.abs(x[off] / scale) % 1 - 0.5) < 1e-5).all()


@pytest.mark.parametrize("bits", range(3, 9))
@pytest.mark.parametrize("d", [1, 2, 10, 1000])
def test_uniform_contraction_is_attained(bits, d):
    """The largest exact and all others half a step: nothing is worse, so the constant cannot be better."""
    half = 2 ** (bits - 1) - 1
    x = np.full(d, 0.5, np.float32)  # ties to even: to zero
    x[0] = half
    delta = uniform(bits).guarantee(d).delta
    assert squared(sent(uniform(bits), x) - x) == pytest.approx((1 - delta) * squared(x), rel=1e-9)
    assert delta >= 1 / d * (1 - 1e-12)
    assert uniform(bits, scope=10).guarantee(1000) == uniform(bits).guarantee(10)


@settings(max_examples=up_to(100), deadline=None)
@given(x=MODERATE_VECTORS)
@example(x=f32(1, *[0] * 29))
def test_two_bits_lose_no_more_than_one(x):
    """Lloyd's alternation starts at the scaled sign."""
    one, two = (squared(sent(uniform(bits), x) - x) for bits in (1, 2))
    assert two <= one * (1 + 1e-6) + 1e-12 * squared(x)


def test_two_bits_near_the_best_step():
    """On Gaussian numbers the best four-level uniform quantizer has step 0.9957 and error 0.1188 (Max 1960)."""
    x = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    values = quantized(uniform(2), x)
    assert values.scales[0] == pytest.approx(0.9957, rel=0.02)
    assert squared(sent(uniform(2), x) - x) / x.size == pytest.approx(0.1188, rel=0.01)


def test_denormal_grids_reach_the_largest():
    """A step of 1.43 units rounded to 1 would cut 10 units off at 7, and stochastic rounding would be biased."""
    x = f32(10, -9, 3, 1) * np.float32(UNIT)
    drawn = draws(uniform(4, stochastic=True), x, 2000) / UNIT
    off = np.abs(drawn.mean(axis=0) - x.astype(np.float64) / UNIT)
    assert (off <= 5 * drawn.std(axis=0) / math.sqrt(2000) + 1e-9).all()


# --- uniform, affine --------------------------------------------------------------------------------------------------


def step_and_zero(bits: int, x: np.ndarray) -> tuple[Fraction, int]:
    """The smallest step that reaches from min(x, 0) to max(x, 0), by trying every zero point in exact arithmetic."""
    low, high = (Fraction(float(f(x, 0))) for f in (lambda x, z: min(x.min(), z), lambda x, z: max(x.max(), z)))
    last = 2**bits - 1
    tried = [
        (max(-low / zero if zero else Fraction(0), high / (last - zero) if zero < last else Fraction(0)), zero)
        for zero in range(last + 1)
        if (zero or low == 0) and (zero < last or high == 0)
    ]
    return min(tried)


@pytest.mark.parametrize("bits", range(2, 9))
@settings(max_examples=up_to(60), deadline=None)
@given(x=MODERATE_VECTORS)
@example(x=f32(1, -1))
@example(x=f32(3, 2.5, 1))
@example(x=f32(-3, -2.5, -1))
@example(x=f32(1, -(2.0**-20)))
@example(x=f32(-(2.0**20), 2.0**-20))
@example(x=f32(1046033, -404731.875))
def test_affine_grid_is_the_finest_that_reaches(bits, x):
    values = quantized(uniform(bits, affine=True), x)
    assert isinstance(values, Symbols)
    assert values.num_symbols == 2**bits
    zero, scale = int(values.zero_points[0]), float(values.scales[0])
    step = float(step_and_zero(bits, x)[0])
    assert scale == pytest.approx(step, rel=1e-6, abs=UNIT)
    numbers = values.numbers(Every(x.size)).astype(np.float64)
    # x / scale and symbol * scale are each rounded to float32, by 2^-24 of at most 2^bits - 1 steps: the first may
    # choose the farther of two neighbours, by twice that
    rounding = 3 * (2**bits - 1) * 2.0**-24 * scale
    assert (np.abs(numbers - x) <= scale / 2 + rounding).all(), "half a step"
    assert not numbers[x == 0].any()
    points = scale * (np.arange(2**bits) - zero)
    assert 0.0 in points
    nearest = np.abs(points[None, :] - x.astype(np.float64)[:, None]).min(axis=1)
    assert (np.abs(numbers - x) <= nearest + rounding).all()


@pytest.mark.parametrize("exponent", [-30, 0, 9])
@pytest.mark.parametrize("zero", [0, 1, 100, 127, 128, 255])
def test_affine_is_torchs_affine_quantizer(exponent, zero):
    torch = pytest.importorskip("torch")
    scale = 2.0**exponent
    rng = np.random.default_rng(1)
    ends = np.array([-zero, 255 - zero, 0.0])
    # no ties: torch adds the zero point before it rounds them to even
    x = (np.concatenate([rng.uniform(-zero, 255 - zero, 3000), ends]) * scale).astype(np.float32)
    values = quantized(uniform(8, affine=True), x)
    assert values.scales.tolist() == [scale]
    assert values.zero_points.tolist() == [zero]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # deprecated in torch, and still the definition
        tensor = torch.quantize_per_tensor(torch.from_numpy(x), scale, zero, torch.quint8)
    assert np.array_equal(values.symbols, tensor.int_repr().numpy())
    assert np.array_equal(values.numbers(Every(x.size)), tensor.dequantize().numpy())


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("stochastic", [False, True])
def test_affine_loses_less_of_skewed_numbers(bits, stochastic):
    """Half the step or less: about a quarter of the squared error."""
    rng = np.random.default_rng(bits)
    symmetric, affine = (uniform(bits, stochastic=stochastic, affine=affine) for affine in (False, True))
    for x in (rng.exponential(size=5000), -rng.random(5000), rng.exponential(size=5000) - 0.1):
        x = x.astype(np.float32)
        errors = [squared(sent(compressor, x) - x) for compressor in (symmetric, affine)]
        assert errors[1] < 0.4 * errors[0]
    x = np.abs(x)
    assert quantized(affine, x).scales[0] == pytest.approx(x.max() / (2**bits - 1), rel=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_affine_takes_its_bits(bits):
    x = np.random.default_rng(0).random(8000).astype(np.float32) + 1
    for scope, num_scales in (("tensor", 1), (100, 80)):
        info = gw.inspect(gw.encode(compress(uniform(bits, scope=scope, affine=True), x)))
        assert info["values_bytes"] <= 1000 * bits + 4 * num_scales + -(-bits * num_scales // 8) + 5


@pytest.mark.parametrize("bits", range(2, 9))
def test_affine_contraction_is_nearly_attained(bits):
    """Both ends exact and all others half a step: d - 2 numbers of d - 1."""
    half, d = 2 ** (bits - 1) - 1, 100_000
    x = np.full(d, 0.5, np.float32)
    x[:2] = half, -half
    delta = uniform(bits, affine=True).guarantee(d).delta
    assert delta == pytest.approx(1 / (1 + (d - 1) / (8 * half**2)))
    assert squared(sent(uniform(bits, affine=True), x) - x) == pytest.approx((1 - delta) * squared(x), rel=2e-5)
    assert uniform(bits, scope=10, affine=True).guarantee(1000) == uniform(bits, affine=True).guarantee(10)
    assert delta > uniform(bits).guarantee(d).delta


def test_one_affine_bit_keeps_the_farther_side():
    assert sent(uniform(1, affine=True), f32(4, 1, 3, -3, 2.5, 0)).tolist() == [4, 0, 4, 0, 4, 0]
    assert sent(uniform(1, affine=True), f32(-4, 1, -3, 3)).tolist() == [-4, 0, -4, 0]
    x = f32(1, *[-1] * 7)
    assert uniform(1, affine=True).guarantee(8) == gw.Contractive(1 / 8)
    assert squared(sent(uniform(1, affine=True), x) - x) == 7


def test_affine_scopes():
    layout = gw.Layout.from_arrays({"a": np.zeros(4), "b": np.zeros(2)})
    x = f32(3, 2.9, 0, 1.2, -20, -30)
    assert sent(uniform(2, affine=True), x, layout).tolist() == [3, 3, 0, 1, -20, -30]
    assert sent(uniform(2, scope="model", affine=True), x, layout).tolist() == [0, 0, 0, 0, -15, -30]
    assert sent(uniform(2, scope=2, affine=True), x, layout) == pytest.approx([3, 3, 0, 1.2, -20, -30], rel=1e-6)
    values = quantized(uniform(2, scope=2, affine=True), x)
    assert values.zero_points.tolist() == [0, 0, 3]
    some = values.take(np.array([0, 5]), Every(6))
    assert some.scales.tolist() == values.scales[[0, 2]].tolist()
    assert some.zero_points.tolist() == [0, 3]
    assert values != Symbols(values.symbols, values.num_symbols, values.scales, values.block)


def test_affine_at_the_ends_of_float32():
    """max - min beyond float32, a grid that may not end where it would, and denormals."""
    for bits in (2, 4, 8):
        x = f32(LARGEST, -0.9 * LARGEST, 0, 1)
        values = quantized(uniform(bits, affine=True), x)
        numbers = values.numbers(Every(4)).astype(np.float64)
        assert (np.abs(numbers - x) <= values.scales[0]).all()
        x = f32(1e38, -0.9e38, 0, 1)
        numbers = quantized(uniform(bits, affine=True), x).numbers(Every(4)).astype(np.float64)
        assert (np.abs(numbers - x) <= 1e38 / (2**bits - 2) * (1 + 1e-6)).all()
    x = f32(10, -9, 3, 1) * np.float32(UNIT)
    assert sent(uniform(8, affine=True), x).tolist() == x.tolist()


# --- sign -------------------------------------------------------------------------------------------------------------


@settings(max_examples=up_to(100), deadline=None)
@given(x=MODERATE_VECTORS)
def test_sign_is_equation_11(x):
    expected = np.abs(x.astype(np.float64)).sum() / x.size * np.where(x < 0, -1, 1)
    assert sent(sign(), x) == pytest.approx(expected, rel=1e-6)
    blob = gw.encode(compress(sign(), x))
    assert blob == gw.encode(compress(uniform(1), x))


def test_sign_scopes():
    layout = gw.Layout.from_arrays({"a": np.zeros(4), "b": np.zeros(2)})
    x = f32(1, -2, 3, -6, 10, -20)
    assert sent(sign(), x, layout).tolist() == [3, -3, 3, -3, 15, -15]
    assert sent(sign(scope="model"), x, layout).tolist() == [7, -7, 7, -7, 7, -7]
    assert sent(sign(scope=3), x, layout).tolist() == [2, -2, 2, -12, 12, -12]


def test_sign_takes_one_bit_a_number():
    x = np.random.default_rng(0).standard_normal(80_000).astype(np.float32)
    assert gw.inspect(gw.encode(compress(sign(), x)))["values_bytes"] <= 10_000 + 8


def test_sign_contraction_is_attained():
    x = f32(1, *[0] * 7)
    error = sent(sign(), x) - x
    assert squared(error) == pytest.approx((1 - sign().guarantee(8).delta) * 1.0)
    assert sign().guarantee(8) == gw.Contractive(1 / 8)
    assert sign(scope=4).guarantee(8) == gw.Contractive(1 / 4)


# --- qsgd, ternary: random rounding -----------------------------------------------------------------------------------


def grid_scale(compressor: gw.Compressor, x: np.ndarray) -> float:
    """Step of the grid, from the definition."""
    if isinstance(compressor, qsgd):
        return math.sqrt(squared(x)) / compressor.levels
    if isinstance(compressor, uniform) and compressor.affine:
        return float(step_and_zero(compressor.bits, x)[0])
    largest = float(np.abs(x).max())
    return largest if isinstance(compressor, ternary) else largest / ((compressor.num_symbols - 1) / 2)


def variance(compressor: gw.Compressor, x: np.ndarray) -> float:
    """E|Q(x) - x|^2 in closed form."""
    return float(variances(compressor, x).sum())


def variances(compressor: gw.Compressor, x: np.ndarray) -> np.ndarray:
    """Of each number, in closed form: step^2 f (1 - f)."""
    scale = grid_scale(compressor, x)
    if scale == 0:
        return np.zeros(x.size)
    centred = not getattr(compressor, "affine", False)
    shift = 0.5 if isinstance(compressor, uniform) and compressor.num_symbols % 2 == 0 and centred else 0.0
    position = x.astype(np.float64) / scale + shift
    fraction = position - np.floor(position)
    return scale**2 * fraction * (1 - fraction)


RANDOM = [
    ternary(),
    *(qsgd(s) for s in (1, 2, 3, 7, 100, 32767)),
    *(uniform(bits, stochastic=True) for bits in (1, 2, 3, 4, 8)),
    *(uniform(bits, stochastic=True, affine=True) for bits in (2, 3, 8)),
]


@pytest.mark.parametrize("compressor", RANDOM, ids=str)
@settings(max_examples=up_to(100), deadline=None)
@given(x=MODERATE_VECTORS)
@example(x=f32(1))
@example(x=np.ones(30, np.float32))
@example(x=f32(1, *[0] * 29))
def test_variance_is_within_omega(compressor, x):
    assert variance(compressor, x) <= compressor.guarantee(x.size).omega * squared(x) * (1 + 1e-9) + 1e-9 * squared(x)


@pytest.mark.parametrize("d", [2, 9, 400])
def test_omega_is_attained(d):
    """So that no smaller omega would be true."""
    spread = f32(1, *[1 / (1 + math.sqrt(d))] * (d - 1))
    assert variance(ternary(), spread) == pytest.approx(ternary().guarantee(d).omega * squared(spread), rel=1e-5)
    assert ternary().guarantee(d).omega == pytest.approx((math.sqrt(d) - 1) / 2)
    for bits in (3, 5):
        compressor = uniform(bits, stochastic=True)
        q = math.sqrt(1 + (d - 1) / ((compressor.num_symbols - 1) / 2) ** 2)
        spread = f32((compressor.num_symbols - 1) / 2, *[1 / (1 + q)] * (d - 1))
        assert variance(compressor, spread) == pytest.approx(compressor.guarantee(d).omega * squared(spread), rel=1e-5)
    for bits in (1, 2):
        compressor, spike = uniform(bits, stochastic=True), f32(1, *[0] * (d - 1))
        assert variance(compressor, spike) == pytest.approx(compressor.guarantee(d).omega, rel=1e-9)
    equal = np.ones(d, np.float32)
    if math.sqrt(d) > 2 * 3:
        assert variance(qsgd(3), equal) == pytest.approx(qsgd(3).guarantee(d).omega * d, rel=1e-6)
    halves = f32(2.5, *[0.5] * 11)  # every one halfway between two points of a grid of step |x| / 3 = 1
    assert variance(qsgd(3), halves) == pytest.approx(qsgd(3).guarantee(12).omega * squared(halves))


@pytest.mark.parametrize("levels", [1, 4, 127, 32767])
def test_qsgd_is_within_lemma_3_1(levels):
    for d in (1, 2, 15, 16, 17, 1000, 10**7):
        assert qsgd(levels).guarantee(d).omega <= min(d / levels**2, math.sqrt(d) / levels)


@pytest.mark.parametrize("compressor", RANDOM, ids=str)
@pytest.mark.parametrize("name", ["normal", "heavy", "denormal", "huge"])
def test_mean_and_variance_of_many_draws(compressor, name):
    rng = np.random.default_rng(4)
    count = 1000
    x = {
        "normal": rng.standard_normal(30),
        "heavy": rng.standard_cauchy(30),
        "denormal": rng.integers(-5000, 5000, 30) * UNIT,
        "huge": rng.uniform(-1e38, 1e38, 30),
    }[name].astype(np.float32)
    drawn, exact = draws(compressor, x, count), x.astype(np.float64)
    largest = np.abs(exact).max()
    off = np.abs(drawn.mean(axis=0) - exact)
    spread = np.maximum(drawn.std(axis=0), np.sqrt(variances(compressor, x)))  # the rarest may not be among the drawn
    assert (off <= 5 * spread / math.sqrt(count) + 2e-7 * largest).all()
    errors = ((drawn - exact) ** 2).sum(axis=1) / squared(x)
    standard_error = errors.std() / math.sqrt(count)
    assert errors.mean() <= compressor.guarantee(30).omega * (1 + 1e-6) + 5 * standard_error + 1e-12
    if name in ("normal", "heavy"):
        assert errors.mean() == pytest.approx(variance(compressor, x) / squared(x), abs=5 * standard_error + 1e-7)


@pytest.mark.parametrize("compressor", RANDOM, ids=str)
def test_every_draw_is_a_neighbour_on_the_grid(compressor):
    x = np.random.default_rng(2).standard_normal(300).astype(np.float32)
    scale = grid_scale(compressor, x)
    for index in range(3):
        assert (np.abs(sent(compressor, x, index=index) - x) <= scale * (1 + 1e-5)).all()
    values = quantized(compressor, x)
    assert values.scales[0] == pytest.approx(scale, rel=1e-6)
    if isinstance(compressor, (qsgd, ternary)):
        assert values.num_symbols == 2 * getattr(compressor, "levels", 1) + 1


def test_ternary_probabilities():
    x = f32(4, -3, 2, -1, 0, 0.01)
    drawn = draws(ternary(), x, 4000)
    assert set(np.unique(drawn)) <= {-4.0, 0.0, 4.0}
    assert (drawn * np.sign(x) >= 0).all()
    chance = np.abs(x.astype(np.float64)) / 4
    spread = np.sqrt(chance * (1 - chance) / 4000)
    assert (np.abs((drawn != 0).mean(axis=0) - chance) <= 5 * spread).all()
    assert (drawn[:, 0] == 4).all()


def test_norm_beyond_float32():
    """|x|_2 overflows float32: the grid then ends at its largest number, and rounding stays unbiased."""
    x = np.full(400, 3e38, np.float32)
    drawn = draws(qsgd(1), x, 300)
    assert set(np.unique(drawn)) == {0.0, LARGEST}
    assert drawn.mean() == pytest.approx(3e38, rel=0.005)


# --- fixed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
@pytest.mark.parametrize("clip", [1.0, 0.37, 1e-20, 3e38])
def test_fixed_is_rounding_to_a_public_grid(bits, clip):
    half = 2 ** (bits - 1) - 1
    x = (np.random.default_rng(bits).uniform(-1, 1, 2000) * min(2 * clip, LARGEST)).astype(np.float32)
    compressor = fixed(bits, clip)
    values = quantized(compressor, x)
    assert values.num_symbols == 2 * half + 1
    assert values.scales.tolist() == [compressor.step]
    assert compressor.step == pytest.approx(clip / half, rel=1e-6)
    integers = values.symbols.astype(np.int64) - half
    exact = np.clip(x.astype(np.float64) / compressor.step, -half, half)
    assert np.abs(integers - exact).max() <= 0.5 * (1 + 1e-4)
    assert (integers * np.sign(x) >= 0).all()


def test_integers_of_different_clients_add_up():
    compressor, half = fixed(8, 0.5), 127
    rng = np.random.default_rng(0)
    updates = [(rng.standard_normal(1000) * scale).astype(np.float32) for scale in (0.001, 0.1, 1)]
    values = [quantized(compressor, x) for x in updates]
    assert len({v.scales.tobytes() for v in values}) == 1, "the scale is public"
    total = sum(v.symbols.astype(np.int64) - half for v in values) * compressor.step
    arrived = sum(sent(compressor, x) for x in updates)
    assert arrived == pytest.approx(total, rel=1e-6)


def test_what_is_clipped_stays_with_error_feedback():
    compressor = gw.ef(fixed(8, 1.0))
    state = compressor.init(gw.Layout.flat(2))
    x, zeros = f32(5, -2.5), np.zeros(2, np.float32)
    arrived = np.zeros(2)
    for index in range(6):
        payload, state = compressor.compress(zeros if index else x, state, gw.Round(index=index))
        arrived += gw.decompress(payload)
    assert arrived == pytest.approx(x, abs=1 / 127)


# --- fractional -------------------------------------------------------------------------------------------------------


def equation_12(x: np.ndarray, intervals: int) -> tuple[list[float], list[int]]:
    """Q_f(x) and the interval p of each number (0: none), read off Eq. (12) in exact arithmetic.

    u is above e_p = u_max (u_min / u_max)^(p / P) where u^P > u_max^(P - p) u_min^p.
    """
    u = [abs(Fraction(float(v))) for v in x]
    nonzero = [v for v in u if v]
    top, bottom = max(nonzero), min(nonzero)
    edges = [top ** (intervals - p) * bottom**p for p in range(intervals + 1)]
    found = []
    for v in u:
        inside = [p for p in range(1, intervals + 1) if edges[p] < v**intervals <= edges[p - 1]]
        if v == bottom:
            inside = [intervals]  # the last one is closed
        assert len(inside) == (1 if v else 0)
        found.append(inside[0] if v else 0)
    means = {p: sum(v for v, q in zip(u, found, strict=True) if q == p) / found.count(p) for p in set(found)}
    return [float(means[p]) * (-1 if v < 0 else 1) if p else 0.0 for v, p in zip(x, found, strict=True)], found


@settings(max_examples=up_to(150), deadline=None)
@given(
    x=st.lists(st.integers(-40, 40), min_size=1, max_size=25).filter(any).map(lambda x: np.array(x, np.float32)),
    intervals=st.integers(1, 9),
    shift=st.integers(-149, 120),
)
@example(x=f32(8, 4, 2, 1), intervals=3, shift=0)
@example(x=f32(27, 9, -3, 1), intervals=3, shift=-148)
@example(x=f32(5, 5, -5), intervals=4, shift=0)
@example(x=f32(7, 0, 0), intervals=2, shift=0)
def test_fractional_is_equation_12(x, intervals, shift):
    x = np.ldexp(x, shift)
    expected, found = equation_12(x, intervals)
    assert sent(fractional(intervals), x) == pytest.approx(expected, rel=2e-7, abs=UNIT)
    # codes are monotone in |u|, and intervals with nothing in them are left out
    values = quantized(fractional(intervals), x)
    assert isinstance(values, Levels)
    codes = values.symbols >> 1
    used = sorted(set(found) - {0}) + [0] * (0 in found)
    assert [used[code] for code in codes] == found
    assert values.levels.size == len(used)
    assert (np.diff(values.levels) <= 0).all()
    assert (np.diff(codes[np.argsort(np.abs(x))].astype(int)) <= 0).all()


@settings(max_examples=up_to(200), deadline=None)
@given(x=VECTORS, intervals=st.sampled_from([1, 2, 5, 16, 1000]))
@example(x=f32(LARGEST, UNIT, -UNIT, 1, -1e-20), intervals=16)
@example(x=f32(LARGEST, np.nextafter(np.float32(LARGEST), np.float32(0))), intervals=16)
def test_fractional_keeps_sums_signs_and_order(x, intervals):
    arrived, exact = sent(fractional(intervals), x), x.astype(np.float64)
    assert np.abs(arrived).sum() == pytest.approx(np.abs(exact).sum(), rel=1e-6, abs=x.size * UNIT)
    assert (np.sign(arrived) == np.sign(exact)).all()
    order = np.argsort(np.abs(exact))
    assert (np.diff(np.abs(arrived)[order]) >= 0).all()


def test_fractional_edge_cases():
    assert sent(fractional(16), f32(3)).tolist() == [3]
    assert sent(fractional(16), f32(-2, 2, 2)).tolist() == [-2, 2, 2]
    assert sent(fractional(16), f32(0, 0)).tolist() == [0, 0]
    assert sent(fractional(2), f32(-3, 5)).tolist() == [-3, 5], "the ends are in different intervals"
    assert sent(fractional(2), f32(0, -3, 5, 0)).tolist() == [0, -3, 5, 0]
    known = quantized(fractional(4), f32(0, -0.0, 4, -1))  # as on a seeded or known support, where nothing is pruned
    assert known.numbers(Every(4)).tolist() == [0, 0, 4, -1]
    assert known.symbols.tolist() == [4, 4, 0, 3]
    nearly = f32(1, np.nextafter(np.float32(1), np.float32(2)))
    assert sent(fractional(3), nearly).tolist() == nearly.tolist()


def test_fractional_with_as_many_levels_as_there_are():
    """65,536 distinct numbers on 32,768 intervals: every symbol of uint16; zeros then have no level of their own."""
    x = np.exp2(np.linspace(-20, 20, 65_536)).astype(np.float32)
    values = quantized(fractional(32_768), x)
    assert values.levels.size == 32_768
    assert (np.abs(values.numbers(Every(x.size)) / x - 1) < 0.001).all()
    with_zeros = np.concatenate([x, np.zeros(3, np.float32)])
    values = quantized(fractional(32_768), with_zeros)
    assert values.levels.size == 32_768
    assert values.numbers(Every(with_zeros.size))[-1] == values.levels[-1] > 0
    total = squared(sent(fractional(32_767), with_zeros) - with_zeros)
    assert total <= 1e-6 * squared(x)


def test_one_interval_is_the_scaled_sign():
    x = np.random.default_rng(0).standard_cauchy(999).astype(np.float32)
    assert sent(fractional(1), x) == pytest.approx(sent(sign(), x), rel=1e-6)


def relative_error(x: np.ndarray, intervals: int) -> float:
    return squared(sent(fractional(intervals), x) - x) / squared(x)


def test_fractional_error_on_heavy_tails_and_on_what_topk_keeps():
    """The measured table of errors: values that span about 2^16, as TCS's global mask has them, and about 2^2."""
    rng = np.random.default_rng(0)
    wide = rng.laplace(size=4000).astype(np.float32)
    narrow = rng.laplace(size=400_000).astype(np.float32)
    narrow = narrow[np.argsort(-np.abs(narrow))[:4000]]
    for x, span, errors in (
        (wide, 16, (0.52, 0.50, 0.31, 0.10, 0.029, 0.008)),
        (narrow, 2, (0.042, 0.022, 0.008, 0.002, 0.0006, 0.0001)),
    ):
        assert math.log2(np.abs(x).max() / np.abs(x).min()) == pytest.approx(span, abs=1.5)
        measured = [relative_error(x, p) for p in (1, 2, 4, 8, 16, 32)]
        assert sorted(measured, reverse=True) == measured
        for got, expected in zip(measured, errors, strict=True):
            assert expected / 2 <= got <= 2 * expected


def test_fractional_contraction():
    assert fractional(1).guarantee(10) == gw.Contractive(1 / 10)
    assert fractional(2).guarantee(10) == gw.Contractive(1 / 9)
    assert fractional(16).guarantee(2) == fractional(16).guarantee(1) == gw.Contractive(1.0)
    x = f32(1e6, *[1.01] * 8, 1e-6)  # one interval holds all but the smallest: nearly the worst there is
    assert relative_error(x, 2) == pytest.approx(1 - 1 / 9, rel=1e-4)


def test_bytes_are_within_the_formula_of_tcs():
    """Eq. (8) with q = log2 P + 1 bits a value and the short position code of log2(1 / phi) + 2 bits, after Eq. (7)."""
    d, density, intervals = 11_173_962, 1e-2, 16
    x = np.random.default_rng(0).standard_normal(d, dtype=np.float32)
    blob = gw.encode(compress(gw.topk(density) | fractional(intervals), x))
    q = math.log2(intervals) + 1
    short = d * density * (q + math.log2(1 / density) + 2) / 8
    printed = d * density * (q + math.log2(d)) / 8
    means = 32 * intervals / 8
    assert len(blob) <= short + means < printed
    info = gw.inspect(blob)
    assert info["values_bytes"] <= d * density * q / 8 + means + 8
    assert info["bits_per_index"] <= math.log2(1 / density) + 2


def test_fixed_with_random_rounding_keeps_the_mean():
    """Of 4,000 draws each number's mean is off by less than 7 of its standard deviations: a chance below 1e-11."""
    compressor, step = fixed(4, 7.0, stochastic=True), 1.0
    x = f32(0, 0.25, -0.5, 3.9, -6.75, 7, -9, 20)
    found = draws(compressor, x, 4000)
    part = np.clip(x.astype(np.float64), -7, 7) % step
    deviation = np.sqrt(part * (step - part) / 4000)
    assert (np.abs(found.mean(axis=0) - np.clip(x, -7, 7)) <= 7 * deviation).all()
    assert (np.abs(found - np.clip(x, -7, 7)) < step).all()
