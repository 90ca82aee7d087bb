"""Guarantees: what a compressor promises, as values that tests check."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Absolute", "Contractive", "Guarantee", "Unbiased", "Unknown", "as_contraction", "compose"]


@dataclass(frozen=True)
class Guarantee:
    """What a compressor C promises for every input x: one of Unbiased, Contractive, Absolute, Unknown."""


@dataclass(frozen=True)
class Unbiased(Guarantee):
    """E[C(x)] = x and E|C(x) - x|^2 <= omega |x|^2.

    Attributes:
        omega: 0 or more.
    """

    omega: float


@dataclass(frozen=True)
class Contractive(Guarantee):
    """E|C(x) - x|^2 <= (1 - delta) |x|^2 (without E where C is deterministic).

    Attributes:
        delta: in [0, 1]; 0 says the error is never longer than the input, 1 that nothing is lost.
    """

    delta: float


@dataclass(frozen=True)
class Absolute(Guarantee):
    """|C(x) - x|_inf <= error.

    Attributes:
        error: in the update's units.
    """

    error: float


@dataclass(frozen=True)
class Unknown(Guarantee):
    """Nothing is promised."""


def as_contraction(guarantee: Guarantee) -> Guarantee:
    """Tell what is promised in terms of what is lost, where that is possible.

    Args:
        guarantee: of one compressor.

    Returns:
        Contractive(1 - omega) for Unbiased(omega), omega <= 1: E|C(x) - x|^2 <= omega |x|^2 says so; else the same.
    """
    match guarantee:
        case Unbiased(omega) if omega <= 1:
            return Contractive(1 - omega)
        case _:
            return guarantee


def compose(first: Guarantee, second: Guarantee) -> Guarantee:
    """Guarantee of quantizing what a sparsifier kept.

    Args:
        first: the sparsifier's. Its error and the kept entries are orthogonal where it is contractive.
        second: the quantizer's, on the kept entries.

    Returns:
        The composite's: with |x - S(x)|^2 <= (1 - a)|x|^2 and a quantizer of contraction b,
        |x - Q(S(x))|^2 = |x - S(x)|^2 + |S(x) - Q(S(x))|^2 <= (1 - ab)|x|^2. A threshold keeps entries whole too.
    """
    if first == Contractive(1.0):
        return second
    if second == Contractive(1.0):
        return first
    match first, second:
        case Unbiased(a), Unbiased(b):
            return Unbiased((1 + a) * (1 + b) - 1)
    match first, as_contraction(second):
        case Contractive(a), Contractive(b):
            return Contractive(a * b)
        case Absolute(_), Contractive(_):
            return Contractive(0.0)
        case _:
            return Unknown()
