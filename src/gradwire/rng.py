"""Key: randomness that depends only on (seed, round, client, purpose).

Everything is built from the raw 64-bit words of Philox4x64-10 and the few distributions written here and in
docs/format.md, so the same key gives the same bytes on every NumPy version, process and machine. NumPy's
and torch's global generators are never touched.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import ConfigError

__all__ = ["Key"]

_WORD = 2**64
_SPARSE = 64  # up to a 64th of the range the indices drawn are kept as a list, above as a bitmap
_BATCH = 16384  # small batches are sorted inside the cache


@dataclass(frozen=True)
class Key:
    """A named point in the space of random streams.

    The stream is Philox4x64-10 with key ``(seed, P)``, where P is the first eight bytes of SHA-256 of the
    purpose as a little-endian integer, and counter ``(i, 0, round, client + 1)`` for blocks i = 1, 2, ...;
    each block gives four words. A key shared by all clients has client part 0.

    Attributes:
        seed: 0 <= seed < 2^64.
        round: round index, 0 or more.
        client: client id, or None for a key that all clients share.
        purpose: what the words are for; streams of different purposes are independent.

    Example:
        >>> from gradwire.rng import Key
        >>> bool((Key(0, round=1).words(4) == Key(0, round=1).words(4)).all())
        True
        >>> Key(0).choice(10, 3).size
        3

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
    """

    seed: int
    round: int = 0
    client: int | None = None
    purpose: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)) or not 0 <= self.seed < _WORD:
            raise ConfigError(f"seed must be an integer in [0, 2^64), got {self.seed!r}")

    def derive(self, *, purpose: str | None = None, shared: bool = False) -> Key:
        """Return this key for another purpose, or with the client left out.

        Args:
            purpose: the new purpose, or None to keep it.
            shared: True leaves the client out: the same words for every client.

        Returns:
            The new key.
        """
        return replace(
            self,
            purpose=self.purpose if purpose is None else purpose,
            client=None if shared else self.client,
        )

    def generator(self) -> np.random.Philox:
        """Return NumPy's Philox at the start of this stream."""
        purpose = int.from_bytes(hashlib.sha256(self.purpose.encode()).digest()[:8], "little")
        client = 0 if self.client is None else self.client + 1
        return np.random.Philox(
            key=np.array([self.seed, purpose], np.uint64),
            counter=np.array([0, 0, self.round, client], np.uint64),
        )

    def words(self, num_words: int) -> NDArray[np.uint64]:
        """Return the first words of the stream.

        Args:
            num_words: how many, 0 or more.

        Returns:
            (num_words,) uint64.
        """
        return np.asarray(self.generator().random_raw(num_words), np.uint64).reshape(num_words)

    def uniform(self, num_values: int) -> NDArray[np.float32]:
        """Return numbers of [0, 1): the top 24 bits of each word times 2^-24.

        Args:
            num_values: how many.

        Returns:
            (num_values,) float32.
        """
        return (self.words(num_values) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)

    def choice(self, d: int, k: int) -> NDArray[np.int64]:
        """Draw k distinct indices of [0, d), every set equally likely.

        Word w stands for index floor(w * d / 2^64); indices drawn before are skipped until k are found.
        Where k > d / 2 the d - k indices to leave out are drawn instead.

        Args:
            d: size of the range, below 2^48.
            k: how many, at most d.

        Returns:
            (k,) int64, increasing.
        """
        if not 0 <= k <= d < 2**48:
            raise ConfigError(f"choice needs 0 <= k <= d < 2^48, got k = {k}, d = {d}")
        if k > d // 2:
            keep = np.ones(d, bool)
            keep[self._distinct(d, d - k)] = False
            return np.flatnonzero(keep)
        return self._distinct(d, k)

    def _distinct(self, d: int, k: int) -> NDArray[np.int64]:
        """The first k different indices drawn, increasing; the batches they are drawn in do not matter."""
        generator = self.generator()
        if k <= d // _SPARSE:  # few are drawn twice: remember a list
            found = np.empty(0, np.int64)
            while found.size < k:
                values, first = self._batch(generator, d, k - found.size + k // 4)
                new = ~np.isin(values, found, assume_unique=True)
                found = np.concatenate([found, _earliest(values[new], first[new], k - found.size)])
            return np.sort(found)
        seen = np.zeros(d, bool)
        missing = k
        while missing:
            values, first = self._batch(generator, d, min(missing + missing // 4, _BATCH))
            new = ~seen[values]
            values = _earliest(values[new], first[new], missing)
            seen[values] = True
            missing -= values.size
        return np.flatnonzero(seen)

    def _batch(self, generator: np.random.Philox, d: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Different indices among the next draws, increasing, and when each was drawn first."""
        words = np.asarray(generator.random_raw(max(16, count)), np.uint64)
        return np.unique(_scale(words, d), return_index=True)


def _earliest(values: NDArray[np.int64], first: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The ``count`` values that were drawn first, or all where there are fewer."""
    return values if values.size <= count else values[np.argsort(first, kind="stable")[:count]]


def _scale(words: NDArray[np.uint64], d: int) -> NDArray[np.int64]:
    """floor(word * d / 2^64) for d < 2^48, by 32-bit halves: no step reaches 2^64."""
    half = np.uint64(32)
    low_mask = np.uint64(2**32 - 1)
    d_low, d_high = np.uint64(d & (2**32 - 1)), np.uint64(d >> 32)
    high, low = words >> half, words & low_mask
    low_low, low_high, high_low, high_high = low * d_low, low * d_high, high * d_low, high * d_high
    carry = (low_low >> half) + (low_high & low_mask) + (high_low & low_mask)
    scaled: NDArray[np.uint64] = high_high + (low_high >> half) + (high_low >> half) + (carry >> half)
    return scaled.astype(np.int64)
