"""Device: error feedback whose residual and selection stay on the device that gradients are on."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn, TypeGuard

import numpy as np
import torch
from torch import Tensor

from gradwire.compressors.compressor import Compressor, Round, State, Vector, resolve
from gradwire.compressors.feedback import ef
from gradwire.compressors.pipeline import Stage
from gradwire.compressors.sparsify import topk
from gradwire.compressors.summing import listed
from gradwire.errors import UpdateError
from gradwire.kernels import torch_ops
from gradwire.layout import check_finite
from gradwire.payload import Payload

__all__ = ["compress_there", "place_residual", "selects_there", "send_whole"]


def selects_there(compressor: Compressor) -> TypeGuard[ef]:
    """Tell whether all a compressor asks of a whole update is its largest entries, with error feedback round it.

    Args:
        compressor: any.

    Example:
        >>> import gradwire as gw
        >>> from gradwire.ddp.device import selects_there
        >>> [selects_there(gw.parse(spec)) for spec in ("ef(topk(0.01) | fractional(16))", "ef(tcs(0.01, 0.001))")]
        [True, False]
    """
    inner = compressor.compressor if isinstance(compressor, ef) else None
    first = inner.stages[0] if isinstance(inner, Stage) else None
    return isinstance(first, topk) and first.scope == "model" and first.num_bytes is None


def place_residual(memory: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return memory whose residual is a tensor on a device."""
    return {**memory, "residual": torch.from_numpy(np.array(memory["residual"])).to(device)}


def compress_there(compressor: ef, update: Tensor, state: State, round: Round) -> tuple[Payload, State]:
    """Compress as ``ef.compress`` does, bit for bit; indices and numbers that are sent alone come to the host.

    Args:
        compressor: one that ``selects_there``.
        update: (d,) float32, on the residual's device; unchanged until it is known that the payload stands.
        state: its state, the residual a tensor; changed in place, which its journal can take back.
        round: what both ends agree on.

    Returns:
        The payload, and the next state.

    Raises:
        UpdateError: on an update that is not finite, or where residual and update add up to more than float32 holds.
    """
    residual = state.memory["residual"]
    added = _Added(residual, update, compressor.decay)
    state.journal.note(added.take_out)
    most = compressor.compressor.num_largest(state, round)
    largest = torch_ops.add_topk(residual, update, compressor.decay, most or 0)
    if largest is None:
        _say_where(update, state, compressor.decay)
    added.done = True
    known = round.knowing((largest[0].cpu().numpy(), largest[1].cpu().numpy()))
    unread = np.broadcast_to(np.float32(0), (state.layout.d,))  # what is asked of an update is known already
    payload, after = compressor.compressor.compress(unread, state, known)
    indices, numbers = (torch.from_numpy(x).to(residual.device) for x in listed(resolve(payload, None)))
    state.journal.note(partial(residual.index_copy_, 0, indices, residual[indices]))
    torch_ops.accumulate_at(residual, indices, numbers, -1.0)
    after.memory["residual"] = residual
    return payload, after


def send_whole(compressor: ef, update: Tensor, state: State) -> Vector:
    """Return residual and update, and leave no residual: what ``ef(dense())`` sends.

    Args:
        compressor: one that ``selects_there``.
        update: as for ``compress_there``.
        state: as for ``compress_there``.

    Returns:
        (d,) float32, on the host.

    Raises:
        UpdateError: as ``compress_there`` does.
    """
    residual = state.memory["residual"]
    added = _Added(residual, update, compressor.decay)
    state.journal.note(added.take_out)
    if not torch_ops.add_finite(residual, update, compressor.decay):
        _say_where(update, state, compressor.decay)
    added.done = True
    whole: Vector = residual.to("cpu", copy=True).numpy()
    state.journal.note(partial(residual.copy_, torch.from_numpy(whole)))
    residual.zero_()
    return whole


class _Added:
    """An update that was added to a residual, and how to take it out again, to float32 rounding."""

    def __init__(self, residual: Tensor, update: Tensor, decay: float) -> None:
        self._residual, self._update, self._decay = residual, update, decay
        self.done = False

    def take_out(self) -> None:
        if self.done:
            self._residual.sub_(self._update).div_(self._decay)
        self.done = False


def _say_where(update: Tensor, state: State, decay: float) -> NoReturn:
    """Raise what is wrong with an update that could not be added."""
    check_finite(update.cpu().numpy(), "update", state.layout)
    total = state.memory["residual"] * float(np.float32(decay)) + update
    check_finite(total.cpu().numpy(), "residual + update", state.layout)
    raise UpdateError("residual + update must be finite")
