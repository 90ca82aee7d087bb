"""Which backend runs, and that Numba stays away until it is needed."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import numpy as np
import pytest

from gradwire.errors import ConfigError
from gradwire.kernels import (
    contexts,
    contexts_reference,
    cpu,
    fielded,
    fielded_reference,
    fires,
    fires_reference,
    frequencies,
    jit,
    models,
    ops,
    packages,
    range_coder,
    range_reference,
    reference,
    select_blocks,
)
from gradwire.kernels.__main__ import compile_all

BACKENDS = (
    reference,
    cpu,
    models,
    packages,
    frequencies,
    range_reference,
    range_coder,
    fires_reference,
    fires,
    fielded_reference,
    fielded,
    contexts_reference,
    contexts,
    select_blocks,
)

USE_ALL = """
import sys
import numpy as np
import gradwire
from gradwire.kernels import ops

def use(n):
    indices = 3 * np.arange(n)
    gaps = ops.gaps(indices)
    assert ops.golomb_bits(gaps, np.array([gaps.size]), np.array([[3]])).item() <= 8 * ops.golomb_encode(gaps, 3).size
    assert (ops.golomb_decode(ops.golomb_encode(gaps, 3), n, 3, 3 * n)[0] == indices).all()
    symbols = (indices % 5).astype(np.uint16)
    assert (ops.unpack(ops.pack(symbols, 3), n, 3) == symbols).all()
    counts = np.bincount(symbols)
    frequencies, lengths = ops.normalise_frequencies(counts), ops.huffman_lengths(counts)
    assert (ops.ans_decode(ops.ans_encode(symbols, frequencies), n, frequencies)[0] == symbols).all()
    assert (ops.huffman_decode(ops.huffman_encode(symbols, lengths), n, lengths)[0] == symbols).all()
    bits = np.arange(n, dtype=np.uint32)
    assert (ops.join_float32(*ops.split_float32(bits)) == bits).all()
    ops.accumulate_at(np.zeros(3 * n, np.float32), indices, np.ones(n, np.float32), 2.0)
"""


def run(code: str, **environment: str) -> None:
    command = [sys.executable, "-W", "error", "-c", USE_ALL + code]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout + done.stderr


def test_small_inputs_do_not_load_numba() -> None:
    run("use(1000)\nassert 'numba' not in sys.modules")


def test_large_inputs_load_numba() -> None:
    run("use(20_000)\nassert 'numba' in sys.modules", GRADWIRE_KERNELS="")


def test_reference_can_be_forced() -> None:
    run("use(20_000)\nassert 'numba' not in sys.modules", GRADWIRE_KERNELS="reference")


def test_no_place_for_the_cache() -> None:
    # Only the user's directory is tried, and it cannot be made.
    run(
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = [caching.UserProvidedCacheLocator]\n"
        "ops.gaps(np.arange(100))",
        GRADWIRE_KERNELS="cpu",
        NUMBA_CACHE_DIR="/dev/null/nowhere",
    )


def test_cache_directory_is_used(tmp_path: Path) -> None:
    run("ops.gaps(np.arange(100))", GRADWIRE_KERNELS="cpu", NUMBA_CACHE_DIR=str(tmp_path))
    assert list(tmp_path.rglob("*.nbc"))


def test_backends_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(reference, "gaps", lambda indices, out=None: used.append("reference"))
    monkeypatch.setattr(cpu, "gaps", lambda indices, out=None: used.append("cpu"))
    small, large = np.arange(ops.VECTOR_FROM - 1), np.arange(ops.VECTOR_FROM)
    for backend in ("", "cpu", "reference"):
        monkeypatch.setattr(ops, "BACKEND", backend)
        monkeypatch.setattr(ops, "_loaded", False)
        monkeypatch.setattr(ops, "_worked", 0.0)
        for indices in (small, large, small):
            ops.gaps(indices)
    assert used == ["reference", "cpu", "cpu"] + ["cpu"] * 3 + ["reference"] * 3


def test_many_small_inputs_are_worth_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(reference, "gaps", lambda indices, out=None: used.append("reference"))
    monkeypatch.setattr(cpu, "gaps", lambda indices, out=None: used.append("cpu"))
    for name, value in (("BACKEND", ""), ("_loaded", False), ("_worked", 0.0)):
        monkeypatch.setattr(ops, name, value)
    for _ in range(100):
        ops.gaps(np.arange(ops.VECTOR_FROM // 4))
    assert used == ["reference"] * int(4 * ops.BUDGET) + ["cpu"] * (100 - int(4 * ops.BUDGET))


def test_unknown_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "BACKEND", "fpga")
    with pytest.raises(ConfigError, match="'reference' or 'cpu', got 'fpga'"):
        ops.gaps(np.arange(3))


def _signature(module: object, name: str) -> inspect.Signature:
    """Without the field, which some backends need, others never take, and ``ops`` hands on where there is one."""
    signature = inspect.signature(getattr(module, name))
    return signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "field"])


def test_same_signatures_everywhere() -> None:
    for name in ops.__all__:
        backends = [module for module in BACKENDS if name in module.__all__]
        assert backends
        for module in backends:
            assert _signature(module, name) == _signature(ops, name), name
    assert set(cpu.__all__) <= set(reference.__all__)


def test_threads_share_kernels() -> None:
    gaps = np.arange(5000)
    expected = reference.golomb_encode(gaps, 100).tobytes()
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(cpu.golomb_encode(gaps, 100).tobytes())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


def test_slow_compilation_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(jit, "_SLOW_SECONDS", -1.0)
    monkeypatch.setattr(jit, "_told", False)
    with caplog.at_level("INFO", logger="gradwire.kernels"):
        for _ in range(2):
            twice = jit.kernel(numba.types.int64, numba.types.int64)(lambda x: 2 * x)
            assert twice(21) == twice(21) == 42
    assert [record.getMessage() for record in caplog.records] == [
        "compiling kernels; later processes load them from Numba's cache"
    ]


def test_all_kernels_are_compiled_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the sources mark; ``torch_ops`` has none."""
    compiled: list[object] = []
    monkeypatch.setattr(jit.Kernel, "compile", lambda kernel: compiled.append(kernel))
    folder = Path(jit.__file__).parent
    marked = sum(path.read_text().count("\n@kernel(") for path in folder.glob("*.py"))
    assert compile_all() == marked == len(set(map(id, compiled))) > 50
