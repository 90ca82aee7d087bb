"""Installed: refuse to load without a torch that can talk to other processes, before anything of it is used."""

from __future__ import annotations

from importlib import util

from gradwire.errors import BackendUnavailable

__all__ = ["check_torch"]


def check_torch(found: bool, distributed: bool) -> None:
    """Check that torch is there and was built with torch.distributed.

    Args:
        found: whether there is a torch.
        distributed: whether its ``torch.distributed`` is available.

    Raises:
        BackendUnavailable: where one is not.

    Example:
        >>> from gradwire.ddp.installed import check_torch
        >>> check_torch(True, True)
    """
    if not found:
        raise BackendUnavailable("gradwire.ddp needs torch: pip install 'gradwire[torch]'")
    if not distributed:
        raise BackendUnavailable("gradwire.ddp needs a torch with torch.distributed, this one was built without it")


def _distributed() -> bool:
    import torch.distributed

    return torch.distributed.is_available()


check_torch(util.find_spec("torch") is not None, util.find_spec("torch") is not None and _distributed())
