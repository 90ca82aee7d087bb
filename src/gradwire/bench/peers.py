"""What others do with the same update: plain torch, NumPy, torch's hooks, Flower's aggregation, zstd."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradwire.bench.flower import flower_operations
from gradwire.bench.measure import Operation
from gradwire.layout import Layout

if TYPE_CHECKING:
    import torch

__all__ = ["FP16", "PLAIN_TORCH", "add_floor", "peers"]

FP16 = "torch fp16 round trip"
PLAIN_TORCH = "plain torch ef + topk(0.01)"
_RANK = 4
_MIN_COMPRESSION_RATE = 2  # torch's hook sends what does not shrink by this factor as it is

Vector = NDArray[np.float32]
Run = Callable[[int], object]


def add_floor(updates: Sequence[Vector]) -> Run:
    """Return the floor: one ``torch.add_`` of a vector of the updates' length."""
    import torch

    tensors = [torch.from_numpy(update) for update in updates]
    total = torch.zeros(updates[0].size)
    return lambda number: total.add_(tensors[number % len(tensors)])


def peers(updates: Sequence[Vector], layout: Layout, k: int) -> tuple[list[Operation], list[str]]:
    """Make the operations of others.

    Args:
        updates: (d,) float32 each, used in turn.
        layout: theirs.
        k: how many entries are selected.

    Returns:
        The operations, and a note on each that had to be left out.
    """
    operations = [
        Operation("peer", "np.add", _np_add(updates), "one addition by NumPy, one thread"),
        Operation(
            "peer",
            PLAIN_TORCH,
            _torch_ef_topk(updates, k),
            "residual.add_, topk of its magnitudes, indices sorted, values gathered, zeroed",
        ),
        Operation("peer", "torch.topk", _torch_topk(updates, k), "the selection alone, of 1 % of the raw values"),
        Operation("peer", "np.argpartition", _argpartition(updates, k), "of the magnitudes, 1 %; indices unsorted"),
        Operation("peer", FP16, _fp16(updates), "what DDP's fp16_compress_hook computes: cast, divide, cast back"),
        Operation(
            "peer",
            f"torch PowerSGD rank {_RANK}",
            _powersgd(updates, layout),
            "P = M Q, QR, Q = M' P of each matrix as torch's hook does, without its error feedback",
        ),
        *flower_operations(updates, layout),
    ]
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError:
        return operations, ["zstd was left out: zstandard is not installed"]
    return [*operations, _zstd(updates, zstandard)], []


def _np_add(updates: Sequence[Vector]) -> Run:
    total = np.zeros(updates[0].size, np.float32)
    return lambda number: np.add(total, updates[number % len(updates)], out=total)


def _torch_ef_topk(updates: Sequence[Vector], k: int) -> Run:
    import torch

    tensors = [torch.from_numpy(update) for update in updates]
    residual = torch.zeros(updates[0].size)

    def run(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        residual.add_(tensors[number % len(tensors)])
        indices = torch.topk(residual.abs(), k, sorted=False).indices.sort().values
        values = residual[indices]
        residual[indices] = 0
        return indices, values

    return run


def _torch_topk(updates: Sequence[Vector], k: int) -> Run:
    import torch

    tensors = [torch.from_numpy(update) for update in updates]
    return lambda number: torch.topk(tensors[number % len(tensors)], k)


def _argpartition(updates: Sequence[Vector], k: int) -> Run:
    def run(number: int) -> NDArray[np.int64]:
        magnitudes = np.abs(updates[number % len(updates)])
        return np.argpartition(magnitudes, magnitudes.size - k)[magnitudes.size - k :]

    return run


def _fp16(updates: Sequence[Vector]) -> Run:
    import torch

    tensors = [torch.from_numpy(update) for update in updates]
    received = torch.empty(updates[0].size)
    num_workers = 2
    return lambda number: received.copy_(tensors[number % len(tensors)].to(torch.float16).div_(num_workers))


def _powersgd(updates: Sequence[Vector], layout: Layout) -> Run:
    import torch

    generator = torch.Generator().manual_seed(0)
    matrices: list[list[torch.Tensor]] = [[] for _ in updates]
    factors: list[torch.Tensor] = []
    for t in layout.tensors:
        rows = t.shape[0]
        columns = t.num_elements // max(1, rows)
        if (rows + columns) * _RANK * _MIN_COMPRESSION_RATE >= rows * columns:
            continue
        factors.append(torch.randn(columns, _RANK, generator=generator))
        for list_, update in zip(matrices, updates, strict=True):
            list_.append(torch.from_numpy(update[t.offset : t.stop]).view(rows, columns))

    def run(number: int) -> None:
        for matrix, q in zip(matrices[number % len(matrices)], factors, strict=True):
            p = torch.linalg.qr(matrix @ q).Q
            torch.matmul(matrix.t(), p, out=q)

    return run


def _zstd(updates: Sequence[Vector], zstandard: Any) -> Operation:
    compressor = zstandard.ZstdCompressor(level=3)
    num_bytes = len(compressor.compress(updates[0].data))
    return Operation(
        "peer",
        "zstd level 3",
        lambda number: compressor.compress(updates[number % len(updates)].data),
        f"of the dense float32: {num_bytes:,} of {updates[0].nbytes:,} bytes",
    )
