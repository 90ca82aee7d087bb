"""The op table: the few array operations everything else is made of.

``ops`` is what callers use. Each op is defined once by its plain form in ``reference.py``, which is the oracle;
``cpu.py`` has functions of the same names, compiled by Numba, that agree with it bit for bit. ``models.py`` makes the
entropy coders' models and ``jit.py`` compiles.
"""

from __future__ import annotations

from gradwire.kernels import ops

__all__ = ["ops"]
