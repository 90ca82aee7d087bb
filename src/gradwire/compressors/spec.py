"""Specs: text <-> compressor. A spec is the Python expression, read, never run."""

from __future__ import annotations

from gradwire.compressors.compressor import Compressor
from gradwire.named import read

__all__ = ["parse"]


def parse(text: str) -> Compressor:
    """Build the compressor a spec describes.

    Args:
        text: for instance ``"ef(topk(0.01) | fp16())"``; ``str(compressor)`` of any compressor is one.

    Returns:
        The compressor; ``parse(str(c)) == c``.

    Raises:
        ConfigError: on a spec that cannot be read or a parameter out of range; the message points at the character.

    Example:
        >>> import gradwire as gw
        >>> gw.parse("ef(topk(0.01))") == gw.ef(gw.topk(0.01))
        True
    """
    return read(text, Compressor)  # type: ignore[type-abstract]
