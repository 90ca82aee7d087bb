"""Model: which of a module's tensors are exchanged."""

from __future__ import annotations

from torch import Tensor, nn

from gradwire.errors import ConfigError

__all__ = ["trained"]


def trained(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that are trained, by name and in order, those left out that DDP was told to ignore.

    Args:
        module: as it is before it is wrapped.

    Raises:
        ConfigError: on a parameter of which a worker holds a part only.
    """
    ignored = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    found: dict[str, Tensor] = {
        name: p for name, p in module.named_parameters() if p.requires_grad and name not in ignored
    }
    for name, parameter in found.items():
        if any(cls.__name__ == "DTensor" for x in (parameter, parameter.data) for cls in type(x).__mro__):
            raise ConfigError(
                f"parameter {name!r} is a DTensor, of which a worker holds a part: pass plain tensors, or do without a "
                "compressor"
            )
    return found
