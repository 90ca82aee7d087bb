"""The op table: the few array operations everything else is made of.

Each op is defined once by its plain NumPy form in ``reference.py``, which is the oracle; faster backends
provide functions of the same names and must agree with it bit for bit.
"""

from __future__ import annotations

from gradwire.kernels import reference as ops

__all__ = ["ops"]
