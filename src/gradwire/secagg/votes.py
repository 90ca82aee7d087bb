"""Votes: a round's blocks chosen by a first secure sum, in which each client names its own, one number a block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.papers.sketch import sketch
from gradwire.compressors.quantize import fixed
from gradwire.layout import Layout
from gradwire.secagg.server import SecureSum
from gradwire.wire import encode

__all__ = ["VOTES", "cast_votes", "elected", "votes_layout"]

VOTES = fixed(2, 1.0)
"""The grid of the terms under which votes are summed: a block is named, or not."""


def votes_layout(spec: sketch, layout: Layout) -> Layout:
    """Return the layout of the sum of votes: a number for each block of the model."""
    return Layout.flat(-(-layout.num_parameters // spec.block))


def cast_votes(coordinates: NDArray[np.int64], spec: sketch, layout: Layout, round: int = 0) -> bytes:
    """Return one client's votes, as ``SecureClient.mask`` takes them under terms with the grid ``VOTES``.

    Args:
        coordinates: what ``gw.Client.propose`` gave with ``spec``: (k,) int64.
        spec: the sketch.
        layout: the model's.
        round: the round.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.secagg import cast_votes, votes_layout
        >>> spec, layout = gw.sketch(0.5, block=2), gw.Layout.flat(8)
        >>> named = gw.Client(spec, layout).propose(np.array([0, 1, 9, 9, 0, 0, 5, 0], np.float32))
        >>> gw.decompress(gw.decode(cast_votes(named, spec, layout))).tolist()
        [0.0, 1.0, 0.0, 1.0]

    Source: ARC-Top-K (arXiv 2510.26709): a support that follows from a sum over all clients.
    Deviations: each block of a client counts 1 or nothing, whatever its energy.
    """
    blocks = votes_layout(spec, layout)
    marks = np.zeros(blocks.d, np.float32)
    marks[coordinates // spec.block] = 1
    payload, _ = VOTES.compress(marks, VOTES.init(blocks))
    return encode(replace(payload, round=round, layout_digest=blocks.digest))


def elected(votes: SecureSum, spec: sketch, layout: Layout) -> NDArray[np.int64]:
    """Return the coordinates of the blocks that most clients named, for all to send.

    Args:
        votes: the sum, over all blocks.
        spec: the sketch: as many blocks as its density has; ties go to the lower one.
        layout: the model's.

    Returns:
        (k,) int64, increasing.
    """
    counts = np.zeros(votes_layout(spec, layout).d, np.float32)
    counts[votes.support] = votes.integers
    return spec.coordinates(counts, layout.num_parameters)
