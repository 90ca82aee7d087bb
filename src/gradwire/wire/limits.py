"""Limits: what a reader is willing to believe before it allocates anything."""

from __future__ import annotations

from dataclasses import dataclass

from gradwire.errors import ConfigError

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Bounds checked while bytes are read, before any array is made.

    A payload's arrays are bounded by its own length: ``max_expansion`` entries to a byte at most.
    ``max_parameters`` bounds what ``decompress`` makes of it.

    Attributes:
        max_parameters: largest d.
        max_parts: most parts.
        max_bytes: longest blob.
        max_expansion: most coordinates or symbols to a byte of the blob, where a code can make many of few (runs,
            skewed frequencies, supports that both ends know); 512 times as many thresholds may be looked at, and 32
            times as many coordinates that are coded with contexts, sent or not. Writers pad to the default, or take
            another code: a reader that allows less refuses their densest blobs.

    Example:
        >>> import gradwire as gw
        >>> gw.Limits(max_parameters=1000).max_parameters
        1000
    """

    max_parameters: int = 2**34
    max_parts: int = 2**14
    max_bytes: int = 2**36
    max_expansion: int = 128

    @classmethod
    def of(cls, d: int) -> Limits:
        """Return what an end reads of a model of length d, where no payload of ours is longer.

        Args:
            d: length of the update.

        Returns:
            Limits of d parameters, and of 16 bytes a parameter and one MiB for headers: four times a dense float32
            update, and about twice what the costliest compressors make.

        Example:
            >>> import gradwire as gw
            >>> gw.Limits.of(1000).max_bytes
            1064576
        """
        return cls(max_parameters=max(1, d), max_bytes=16 * d + 2**20)

    def __post_init__(self) -> None:
        for name in ("max_parameters", "max_parts", "max_bytes", "max_expansion"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be an integer of 1 or more, got {value!r}")
