"""Coders: how symbols, or the exponents of floats, are entropy-coded. Index coding is always chosen by cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradwire.compressors.pipeline import Coder

__all__ = ["ans", "auto", "context", "huffman", "rle"]


@dataclass(frozen=True, repr=False)
class huffman(Coder):
    """Code symbols with a static Huffman code of at most 12 bits, its lengths in the blob.

    Example:
        >>> import gradwire as gw
        >>> str(gw.topk(0.01) | gw.uniform(4) | gw.huffman())
        'topk(0.01) | uniform(4) | huffman()'

    Source: glossary "Gradient Compression", Huffman & entropy coding; Huffman 1952.
    Deviations: lengths are limited to 12 bits (package-merge); floats have their exponents coded, the rest is packed.
    """

    summary: ClassVar[str] = "static Huffman code of symbols or exponents"
    citation: ClassVar[str] = "Huffman 1952, doi:10.1109/JRPROC.1952.273898"
    typical: ClassVar[str] = "topk(0.01) | uniform(4) | huffman()"


@dataclass(frozen=True, repr=False)
class ans(Coder):
    """Code symbols with interleaved rANS, 12-bit frequencies in the blob: within about 0.1 % of their entropy.

    Example:
        >>> import gradwire as gw
        >>> str(gw.topk(0.01) | gw.uniform(4) | gw.ans())
        'topk(0.01) | uniform(4) | ans()'

    Source: glossary "Gradient Compression", arithmetic coding; Duda 2013 (arXiv 1311.2540).
    Deviations: an asymmetric numeral system instead of an arithmetic coder: the same rate, faster.
    """

    summary: ClassVar[str] = "asymmetric numeral system: arithmetic coding's rate"
    citation: ClassVar[str] = "Duda 2013, arXiv:1311.2540"
    typical: ClassVar[str] = "topk(0.01) | uniform(4) | ans()"


@dataclass(frozen=True, repr=False)
class rle(Coder):
    """Code runs of equal symbols: what each run holds, and where it starts.

    The longer the runs, the fewer the bytes, down to one for 128 symbols: readers refuse a blob that would grow more
    (``Limits.max_expansion``), so that it is padded with zeros to that size. A million equal signs take 7.8 kB.

    Example:
        >>> import gradwire as gw
        >>> str(gw.uniform(1) | gw.rle())
        'uniform(1) | rle()'

    Source: glossary "Gradient Compression", run-length encoding of sign sequences; Golomb 1966.
    Deviations: none.
    """

    summary: ClassVar[str] = "run lengths of equal symbols"
    citation: ClassVar[str] = "Golomb 1966, doi:10.1109/TIT.1966.1053907"
    typical: ClassVar[str] = "uniform(1) | rle()"


@dataclass(frozen=True, repr=False)
class auto(Coder):
    """Code symbols in the way that takes the fewest bytes, by exact cost: what happens without a coder too.

    Whatever the code, a blob takes a byte for 128 numbers at least, see ``rle``.

    Example:
        >>> import gradwire as gw
        >>> str(gw.topk(0.01) | gw.auto())
        'topk(0.01) | auto()'

    Source: none; the cheapest of packed, Huffman, rANS and run lengths, per section.
    Deviations: none.
    """

    summary: ClassVar[str] = "the cheapest coder, by exact cost (the default)"
    citation: ClassVar[str] = "gradwire"
    typical: ClassVar[str] = "topk(0.01) | uniform(4) | auto()"


@dataclass(frozen=True, repr=False)
class context(Coder):
    """Code coordinates and their symbols together, by contexts of row, column and neighbours, where that is shorter.

    Of each bit three contexts in the same payload say a chance: what the row and the column have held so far, the
    neighbours before it and above it, what was near. They are mixed by weights that learn as well. Signs have contexts
    too: in a row or column of a layer they tend to be alike. It takes symbols of one scale, none of them zero, that a
    sparsifier left of a model or of its tensors: ``uniform``, ``fractional`` and ``sign`` after ``topk``, for instance.
    All else, and what would be longer so, is coded as by ``auto``, which does not try it because it takes longer: every
    coordinate is looked at, sent or not.

    Example:
        >>> import gradwire as gw
        >>> str(gw.topk(0.01) | gw.fractional(16) | gw.context())
        'topk(0.01) | fractional(16) | context()'

    Source: Mahoney 2005, "Adaptive weighing of context models"; Weinberger, Rissanen and Arps 1996, for contexts of
        neighbours; Kirchhoffer et al. 2021 (doi:10.1109/TCSVT.2021.3095970) for those of weights in rows.
    Deviations: nothing of earlier rounds is leant on; a range coder with carries (Martin 1979) writes the bits.
    """

    summary: ClassVar[str] = "coordinates and symbols together, by contexts of row, column and neighbours"
    citation: ClassVar[str] = "Mahoney 2005, CS-2005-16"
    typical: ClassVar[str] = "topk(0.01) | fractional(16) | context()"
