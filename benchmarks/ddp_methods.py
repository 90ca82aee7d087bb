"""Ways to exchange gradients in a step of data-parallel training: torch's own, ours, and parts of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SPEC, DENSER = "ef(topk(0.001) | fractional(16))", "ef(topk(0.01) | fractional(16))"
# no more bytes than SPEC's; the second, of the large model, no more than a fifth of PowerSGD's either
DITHERED, THINNER = "dither(density=0.0025)", "dither(density=0.001)"
LOCAL_STEPS = 8


@dataclass(frozen=True)
class Method:
    """A way to exchange gradients.

    Attributes:
        title: what it is called in tables.
        start: a module -> the model that is trained, and its optimizer.
    """

    title: str
    start: Callable[[Any], tuple[Any, Any]]


def _ddp(register: Callable[[Any], object], **options: Any) -> Callable[[Any], tuple[Any, Any]]:
    def start(module: Any) -> tuple[Any, Any]:
        from torch.nn.parallel import DistributedDataParallel

        model = DistributedDataParallel(module, gradient_as_bucket_view=True, **options)
        register(model)
        return model, _sgd(module)

    return start


def _sgd(module: Any) -> Any:
    import torch

    return torch.optim.SGD(module.parameters(), lr=0.05)


def _noop(model: Any) -> None:
    import torch

    def noop(state, bucket):  # type: ignore[no-untyped-def]
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model.register_comm_hook(None, noop)


def _passes(model: Any) -> None:
    """What no residual can do without: gradients are added to memory, and zeros put in their place."""
    import torch

    residuals: dict[int, Any] = {}

    def passes(state, bucket):  # type: ignore[no-untyped-def]
        buffer = bucket.buffer()
        if (residual := residuals.get(bucket.index())) is None or residual.numel() != buffer.numel():
            residual = residuals[bucket.index()] = torch.zeros_like(buffer)
        residual.add_(buffer)
        buffer.zero_()
        future = torch.futures.Future()
        future.set_result(buffer)
        return future

    model.register_comm_hook(None, passes)


def _kernels(spec: str) -> Callable[[Any], None]:
    """A compressor's kernels where gradients lie, as for two workers, the other sending what this one sent last."""

    def register(model: Any) -> None:
        import numpy as np
        import torch

        import gradwire as gw
        from gradwire.aggregation.mean import mean_of
        from gradwire.kernels import ops
        from gradwire.wire import Limits

        named = dict(model.module.named_parameters())
        layout, compressor = gw.Layout.from_arrays(named, statistics=lambda name: False), gw.parse(spec)
        limits, kept, found = Limits.of(layout.d), [compressor.init(layout)], {}
        blobs: list[bytes] = []
        places = {id(p): t.offset for p, t in zip(named.values(), layout.tensors, strict=True)}

        def kernels(state, bucket):  # type: ignore[no-untyped-def]
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
                found[places[id(parameter)]] = gradient.view(-1).numpy()
            if bucket.is_last():
                ordered = sorted(found)
                payload, kept[0] = compressor.compress_pieces([found[at] for at in ordered], kept[0], gw.Round())
                blobs.append(gw.encode(payload))
                mean = mean_of([payload, gw.decode(blobs[0], limits)], layout)
                del blobs[:-1]
                for at in ordered:
                    gradient = found[at]
                    gradient.fill(0)
                    low, high = np.searchsorted(mean.indices, [at, at + gradient.size])
                    ops.accumulate_at(gradient, mean.indices[low:high] - at, mean.numbers[low:high], 1.0)
                found.clear()
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model.register_comm_hook(None, kernels)

    return register


def _fp16(model: Any) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    model.register_comm_hook(None, fp16_compress_hook)


def _powersgd(rank: int) -> Callable[[Any], None]:
    def register(model: Any) -> None:
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=2)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)

    return register


def _ours(spec: str, fallback: bool = False) -> Callable[[Any], None]:
    def register(model: Any) -> None:
        import gradwire.ddp

        gradwire.ddp.register(model, spec, fallback=fallback)

    return register


def _local(module: Any) -> tuple[Any, Any]:
    import gradwire.ddp

    optimizer = _sgd(module)
    gradwire.ddp.LocalSGD(module, optimizer, DENSER, LOCAL_STEPS, fallback=False).__enter__()
    return module, optimizer


METHODS = {
    "noop": Method("nothing exchanged", _ddp(_noop)),
    "none": Method("no hook", _ddp(lambda model: None)),
    "fp16": Method("torch's fp16 hook", _ddp(_fp16)),
    "powersgd 1": Method("torch's PowerSGD, rank 1", _ddp(_powersgd(1), bucket_cap_mb=100)),
    "powersgd 4": Method("torch's PowerSGD, rank 4", _ddp(_powersgd(4), bucket_cap_mb=100)),
    "sparse": Method(f"`{SPEC}`", _ddp(_ours(SPEC), bucket_cap_mb=100)),
    "denser": Method(f"`{DENSER}`", _ddp(_ours(DENSER), bucket_cap_mb=100)),
    "dithered": Method(f"`{DITHERED}`", _ddp(_ours(DITHERED), bucket_cap_mb=100)),
    "thinner": Method(f"`{THINNER}`", _ddp(_ours(THINNER), bucket_cap_mb=100)),
    "passes": Method("one addition to memory, zeros written, nothing exchanged", _ddp(_passes, bucket_cap_mb=100)),
    "sparse kernels": Method(f"the kernels of `{SPEC}` alone", _ddp(_kernels(SPEC), bucket_cap_mb=100)),
    "denser kernels": Method(f"the kernels of `{DENSER}` alone", _ddp(_kernels(DENSER), bucket_cap_mb=100)),
    "chosen": Method(f"`{DENSER}`, whole where faster", _ddp(_ours(DENSER, True))),
    "local": Method(f"`LocalSGD(sync_every={LOCAL_STEPS})` with `{DENSER}`", _local),
}
