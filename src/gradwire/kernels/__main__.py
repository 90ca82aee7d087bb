"""Compile all kernels beforehand, ``python -m gradwire.kernels``, so that no first round has to."""

from __future__ import annotations

import importlib
import pkgutil

from gradwire import kernels
from gradwire.kernels.jit import Kernel

__all__ = ["compile_all"]

_WITHOUT = ("__main__", "torch_ops")


def compile_all() -> int:
    """Compile every kernel, or load it from Numba's cache; say how many there are."""
    names = [module.name for module in pkgutil.iter_modules(kernels.__path__) if module.name not in _WITHOUT]
    modules = [importlib.import_module(f"{kernels.__name__}.{name}") for name in names]
    found = {id(value): value for module in modules for value in vars(module).values() if isinstance(value, Kernel)}
    for each in found.values():
        each.compile()
    return len(found)


if __name__ == "__main__":
    compile_all()
