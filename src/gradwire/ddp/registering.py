"""Registering: one line puts a compressor between a DDP model's workers; what cannot work is refused."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gradwire.compressors.compressor import Compressor
from gradwire.ddp.hook import CommState, hook
from gradwire.errors import ConfigError

__all__ = ["register"]

# the name of a class that a model may be of -> what to do instead
_INSTEAD = {
    "FullyShardedDataParallel": "FSDP shards gradients before a compressor sees them; wrap the module in "
    "DistributedDataParallel, or keep FSDP without a compressor",
    "FSDPModule": "fully_shard shards gradients before a compressor sees them; wrap the module in "
    "DistributedDataParallel, or keep FSDP2 without a compressor",
    "DDPSequential": "replicate() makes another kind of model; wrap the module in DistributedDataParallel",
    "ReplicateModule": "replicate() makes another kind of model; wrap the module in DistributedDataParallel",
    "DataParallel": "DataParallel has one process; wrap the module in DistributedDataParallel, a process for each",
}


def register(
    ddp_model: DistributedDataParallel,
    compressor: Compressor | str,
    *,
    process_group: dist.ProcessGroup | None = None,
    seed: int = 0,
    fallback: bool = True,
    on_nonfinite: str = "raise",
    grad_scaler: Any = None,
    overlap: str = "auto",
) -> CommState:
    """Let a DDP model exchange compressed gradients from its next backward pass on; all workers call this.

    Args:
        ddp_model: the model, without a communication hook so far.
        compressor: a ``Compressor`` or its text, the same at all workers.
        process_group: the workers; those of the model's DDP when None.
        seed: of randomness, the same at all workers.
        fallback: whether to send whole gradients where that takes less time, as measured; nothing is lost.
        on_nonfinite: what to do where a gradient is not finite at a worker: ``"raise"`` UpdateError at all of them, or
            ``"propagate"``: all gradients become NaN at all of them. Nothing is lost of residuals in either case.
        grad_scaler: the ``torch.amp.GradScaler`` in use: residuals are kept in units without its scale, and gradients
            that are not finite propagate, as it expects.
        overlap: ``"auto"``; what is sent is chosen among all gradients, so the exchange begins with the last bucket.

    Returns:
        What the hook remembers, with ``state_dict`` and ``load_state_dict``.

    Raises:
        ConfigError: on a model that is no DDP model, has a hook, DTensors or ``mixed_precision``; at all workers where
            compressor, seed or layout differ.

    Example:
        >>> import torch, torch.distributed as dist
        >>> from gradwire.ddp import register
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
        >>> state = register(model, "ef(topk(0.5))")
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> state.step, int(sum((p.grad != 0).sum() for p in model.parameters()))
        (1, 5)
        >>> dist.destroy_process_group()
    """
    _check_model(ddp_model)
    state = CommState(
        compressor,
        ddp_model.module,
        process_group=ddp_model.process_group if process_group is None else process_group,
        seed=seed,
        fallback=fallback,
        on_nonfinite=on_nonfinite,
        grad_scaler=grad_scaler,
        overlap=overlap,
    )
    state.meet()
    ddp_model.register_comm_hook(state, hook)
    return state


def _check_model(model: Any) -> None:
    if not isinstance(model, DistributedDataParallel):
        names = [cls.__name__ for cls in type(model).__mro__]
        instead = next((_INSTEAD[name] for name in names if name in _INSTEAD), "wrap it in DistributedDataParallel")
        raise ConfigError(f"register takes a DistributedDataParallel, got {type(model).__name__}: {instead}")
    if model.mixed_precision is not None:
        raise ConfigError(
            "DDP(mixed_precision=...) has a hook of its own: leave it out, and use torch.autocast instead"
        )
    if model._delay_all_reduce_params:
        raise ConfigError(
            "DDP(delay_all_reduce_named_params=...) sums some gradients by itself: leave it out, or have DDP ignore "
            "those parameters"
        )
    if model._comm_hooks:
        name = getattr(model._comm_hooks[0][0], "__qualname__", "one")
        raise ConfigError(f"the model has the hook {name} already, and DDP takes one: wrap the module in DDP anew")
