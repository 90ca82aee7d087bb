"""What others do with the same update: plain torch, NumPy, torch's hooks, Flower's aggregation, zstd."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradwire.bench.measure import Operation
from gradwire.layout import Layout

if TYPE_CHECKING:
    import torch

__all__ = ["FLOWER", "FLOWER_RECORDS", "FP16", "PLAIN_TORCH", "add_floor", "peers"]

FLOWER = "Flower aggregate, a client"
FLOWER_RECORDS = "Flower aggregate_arrayrecords, a client"
FP16 = "torch fp16 round trip"
PLAIN_TORCH = "plain torch ef + topk(0.01)"
_RANK = 4
_MIN_COMPRESSION_RATE = 2  # torch's hook sends what does not shrink by this factor as it is
_NUM_FLOWER_CLIENTS = 4

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
    aggregate, origin = _flower_aggregate()
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
        Operation("peer", FLOWER, _flower(updates, layout, aggregate), origin, _NUM_FLOWER_CLIENTS),
        Operation(
            "peer",
            FLOWER_RECORDS,
            _flower_records(updates, layout),
            "flwr.serverapp's, from bytes: np.load of each array, times its weight, added; written out in NumPy",
            _NUM_FLOWER_CLIENTS,
        ),
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


def _flower_aggregate() -> tuple[Callable[[Any], Any], str]:
    """Flower's own function where it is installed, else the same formulas; and which."""
    try:
        module = importlib.import_module("flwr.server.strategy.aggregate")
    except ImportError:
        return _weighted_mean, "flwr.server's, from arrays: times examples, summed; written out in NumPy, without flwr"
    return module.aggregate, "flwr.server.strategy.aggregate itself, from arrays"


def _weighted_mean(results: list[tuple[list[Vector], int]]) -> list[Vector]:
    """Average arrays by the number of examples, as ``flwr.server.strategy.aggregate.aggregate`` does."""
    total = sum(num_examples for _, num_examples in results)
    weighted = [[layer * num_examples for layer in weights] for weights, num_examples in results]
    return [reduce(np.add, layers) / total for layers in zip(*weighted, strict=True)]


def _flower(updates: Sequence[Vector], layout: Layout, aggregate: Callable[[Any], Any]) -> Run:
    models = [list(layout.unflatten(update).values()) for update in updates]
    clients = [(models[i % len(models)], 10 + i) for i in range(_NUM_FLOWER_CLIENTS)]
    return lambda number: aggregate(clients)


def _flower_records(updates: Sequence[Vector], layout: Layout) -> Run:
    """Average serialized arrays as ``flwr.serverapp``'s strategies do: what its server does with what arrives."""
    records = [{name: _npy(array) for name, array in layout.unflatten(update).items()} for update in updates]
    weight = 1 / _NUM_FLOWER_CLIENTS

    def run(number: int) -> dict[str, Vector]:
        total: dict[str, Vector] = {}
        for client in range(_NUM_FLOWER_CLIENTS):
            for name, data in records[client % len(records)].items():
                weighted = np.load(io.BytesIO(data), allow_pickle=False) * weight
                if name in total:
                    total[name] += weighted
                else:
                    total[name] = weighted
        return total

    return run


def _npy(array: Vector) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _zstd(updates: Sequence[Vector], zstandard: Any) -> Operation:
    compressor = zstandard.ZstdCompressor(level=3)
    num_bytes = len(compressor.compress(updates[0].data))
    return Operation(
        "peer",
        "zstd level 3",
        lambda number: compressor.compress(updates[number % len(updates)].data),
        f"of the dense float32: {num_bytes:,} of {updates[0].nbytes:,} bytes",
    )
