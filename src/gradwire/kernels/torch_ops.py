"""Ops on torch tensors, on the device they are on: nothing but single numbers, such as counts, comes to the host.

What each op computes is said in ``reference.py``, whose arguments and results are the same with tensors in the place of
arrays. Whole vectors are worked through in chunks, so that what is laid aside on the way stays small beside them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gradwire.kernels.sampling import sample_plan

__all__ = ["accumulate_at", "add_finite", "add_topk", "find_intervals", "gaps", "quantize_grid", "topk"]

_CHUNK = 1 << 22  # elements worked on at once
_MAX_NONZERO = 1 << 30  # elements that torch.nonzero takes at once on every device
_SPARE = 8  # added to the rank in the sample where candidates are bounded: small ranks are far off at times
_LOW_BITS = 15
_SIGNLESS = 0x7FFFFFFF


@torch.no_grad()
def accumulate_at(out: Tensor, indices: Tensor, numbers: Tensor, weight: float) -> None:
    """Add ``weight * numbers`` at distinct indices, in place; see ``reference.accumulate_at``."""
    # not index_add_: CUDA's atomic float32 addition takes denormals for zeros
    out[indices] += numbers if weight == 1.0 else numbers * _single(weight)


@torch.no_grad()
def add_finite(total: Tensor, addend: Tensor, decay: float) -> bool:
    """Add in place where all sums are finite, and change nothing where not; see ``reference.add_finite``."""
    factor = _single(decay)
    if not total.numel():
        return True
    bound = _largest(total) * factor + _largest(addend)  # rounded like each sum, and no sum goes beyond it
    if not math.isfinite(bound.item()) and not _sums_are_finite(total, addend, factor):
        return False
    if decay != 1.0:
        total.mul_(factor)
    total.add_(addend)
    return True


def add_topk(total: Tensor, addend: Tensor, decay: float, k: int) -> tuple[Tensor, Tensor] | None:
    """Add and select; see ``reference.add_topk``."""
    if not add_finite(total, addend, decay):
        return None
    chosen = topk(total, k)
    return chosen, total[chosen]


@torch.no_grad()
def find_intervals(magnitudes: Tensor, edges: Tensor, zero: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find intervals and add up what is in each; see ``reference.find_intervals``.

    Sums are float64 like the reference's, but not added in order, so that their last bits may differ. They are the
    same every time: intervals are cut at powers of two, what is between two cuts adds up exactly in any order, and
    these sums are added in order.
    """
    num_edges, device = edges.numel(), magnitudes.device
    powers = (torch.arange(1, 255, dtype=torch.int32, device=device) << 23).view(torch.float32)  # 2^-126 .. 2^127
    cuts = torch.cat([edges, powers.double()]).sort().values
    num_classes = cuts.numel() + 1  # class c is (cuts[c - 1], cuts[c]]; exact zeros are one more
    intervals = num_edges - torch.searchsorted(edges, torch.cat([cuts, cuts.new_full((1,), math.inf)]))
    owners = torch.cat([intervals, intervals.new_full((1,), zero)])
    counts = owners.new_zeros(num_classes + 1)
    sums = cuts.new_zeros(num_classes)
    found = torch.empty(magnitudes.shape, dtype=torch.uint16, device=device)
    for r in _chunks(magnitudes.numel()):
        wide = magnitudes[r].double()
        classes = torch.searchsorted(cuts, wide, out_int32=True)
        sums += torch.zeros_like(sums).index_add_(0, classes, wide)
        classes.masked_fill_(wide == 0, num_classes)
        counts += torch.bincount(classes, minlength=num_classes + 1)
        found[r] = owners.index_select(0, classes)
    by_interval = counts.new_zeros(max(zero, num_edges) + 1).index_add_(0, owners, counts)
    lengths = torch.bincount(intervals, minlength=by_interval.numel())
    totals = torch.segment_reduce(sums.flip(0), "sum", lengths=lengths, unsafe=True)
    num_used = int(by_interval.nonzero()[-1]) + 1
    return found, by_interval[:num_used], totals[:num_used]


def gaps(indices: Tensor) -> Tensor:
    """Count the skipped coordinates before each index; see ``reference.gaps``."""
    out = indices.clone()
    out[1:] -= indices[:-1]
    out[1:] -= 1
    return out


@torch.no_grad()
def quantize_grid(
    values: Tensor, scales: Tensor, num_symbols: int, dither: Tensor | None, zero_points: Tensor | None = None
) -> Tensor:
    """Round values to a grid; see ``reference.quantize_grid``."""
    symbols = torch.empty(values.shape, dtype=torch.uint16, device=values.device)
    for r in _chunks(values.numel()):
        position = values[r] / _of(scales, r)
        if num_symbols % 2 == 0 and zero_points is None:
            rounded = position.floor_() if dither is None else position.sub_(0.5).add_(dither[r]).floor_()
        else:
            rounded = position.round_() if dither is None else position.add_(dither[r]).floor_()
        zero = float(num_symbols // 2) if zero_points is None else _of(zero_points, r).float()
        symbols[r] = (rounded + zero).clamp_(0, num_symbols - 1)
    return symbols


def topk(values: Tensor, k: int) -> Tensor:
    """Select the k entries of largest magnitude; see ``reference.topk``.

    Magnitudes are compared as the integers their bits are, sign cleared. A threshold from a sample leaves few
    candidates; where the sample misleads, the k-th magnitude is found by counting.
    """
    bits = values.view(torch.int32)
    if k == 0 or not bits.numel():
        return torch.empty(0, dtype=torch.int64, device=values.device)
    found = _by_sample(bits, k)
    return _by_counting(bits, k) if found is None else found


def _by_sample(bits: Tensor, k: int) -> Tensor | None:
    """Select among the candidates a sample leads to; None where these are not enough or too many."""
    d = bits.numel()
    plan = sample_plan(d, k)
    if plan is None:
        return None
    size, rank = plan
    sample = bits[_sample_places(d, size, bits.device)] & _SIGNLESS
    threshold = torch.topk(sample, rank, sorted=False).values.amin().clamp_(min=1)
    reaches = torch.empty(d, dtype=torch.bool, device=bits.device)
    count = torch.zeros((), dtype=torch.int64, device=bits.device)
    for r in _chunks(d):
        torch.ge(bits[r] & _SIGNLESS, threshold, out=reaches[r])
        count += reaches[r].sum(dtype=torch.int32)
    num_candidates, least = torch.stack([count, threshold.long()]).tolist()
    if least == 1 and num_candidates <= k:  # all that is not zero
        return _places(reaches)
    if not k <= num_candidates <= min(2 * (rank + _SPARE) * d // size, d // 2):
        return None
    places = _places(reaches)
    candidates = bits[places] & _SIGNLESS
    kth = torch.topk(candidates, k, sorted=False).values.amin()
    num_above = (candidates > kth).sum()
    return places.masked_select(_reaching(candidates, kth, k - num_above))


def _sample_places(d: int, size: int, device: torch.device) -> Tensor:
    """Pseudo-random places, one in each of equally long stretches."""
    i = torch.arange(size + 1, device=device)
    starts = i * d // size
    word = i[:size] * 0x9E3779B9 & 0xFFFFFFFF  # multipliers that keep products of 32 bits in int64
    word = (word ^ word >> 16) * 0x7FEB352D & 0xFFFFFFFF
    word = (word ^ word >> 15) * 0x2C1B3C6D & 0xFFFFFFFF
    return starts[:size] + (word * starts.diff() >> 32)


def _by_counting(bits: Tensor, k: int) -> Tensor:
    """Select by the exact k-th magnitude, whatever the values are: by its upper 16 bits, then by its lower 15."""
    uppers = torch.zeros(1 << 16, dtype=torch.int64, device=bits.device)
    for r in _chunks(bits.numel()):
        uppers += torch.bincount((bits[r] & _SIGNLESS) >> _LOW_BITS, minlength=uppers.numel())
    upper, above = _border(uppers, k)
    lowers = torch.zeros(1 << _LOW_BITS, dtype=torch.int64, device=bits.device)
    for r in _chunks(bits.numel()):
        magnitudes = bits[r] & _SIGNLESS
        inside = magnitudes.masked_select(magnitudes >> _LOW_BITS == upper)
        lowers += torch.bincount(inside & (1 << _LOW_BITS) - 1, minlength=lowers.numel())
    lower, more = _border(lowers, k - above)
    kth = upper << _LOW_BITS | lower
    return _places(_reaching(bits, kth, k - above - more if kth else 0))


def _border(counts: Tensor, k: int) -> tuple[int, int]:
    """The class that the k-th largest is in, and how many are in classes above."""
    from_above = counts.flip(0).cumsum(0)
    at = int(torch.searchsorted(from_above, k))
    return counts.numel() - 1 - at, int(from_above[at - 1]) if at else 0


def _reaching(bits: Tensor, kth: Tensor | int, ties: Tensor | int) -> Tensor:
    """Mark all magnitudes above the k-th and the first of those that equal it: (n,) bool."""
    out = torch.empty(bits.shape, dtype=torch.bool, device=bits.device)
    left = torch.as_tensor(ties, dtype=torch.int64, device=bits.device)
    for r in _chunks(bits.numel()):
        magnitudes = bits[r] & _SIGNLESS
        equal = magnitudes == kth
        seen = equal.cumsum(0, dtype=torch.int32)
        # what is left may be beyond int32, which it is compared in
        torch.logical_or(magnitudes > kth, equal.logical_and_(seen <= left.clamp(max=_CHUNK)), out=out[r])
        left = left - seen[-1]
    return out


def _places(mask: Tensor) -> Tensor:
    """Where a mask is set: int64, increasing."""
    starts = range(0, mask.numel(), _MAX_NONZERO)
    pieces = [mask[start : start + _MAX_NONZERO].nonzero().squeeze(1).add_(start) for start in starts]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _largest(values: Tensor) -> Tensor:
    """The largest magnitude, or NaN where there is one."""
    low, high = torch.aminmax(values)
    return torch.maximum(-low, high)


def _sums_are_finite(total: Tensor, addend: Tensor, factor: float) -> bool:
    """Whether ``factor * total + addend`` is finite everywhere."""
    finite = torch.ones((), dtype=torch.bool, device=total.device)
    for r in _chunks(total.numel()):
        finite &= (total[r] * factor).add_(addend[r]).isfinite().all()
    return bool(finite)


def _chunks(size: int) -> list[slice]:
    """Cut a vector into chunks."""
    return [slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK)]


def _of(numbers: Tensor, r: slice) -> Tensor:
    """The numbers of a chunk, or the one number of all chunks."""
    return numbers if numbers.numel() == 1 else numbers[r]


def _single(number: float) -> float:
    """Round to float32."""
    return float(np.float32(number))
