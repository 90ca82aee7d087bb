"""A federation's state between rounds: what a checkpoint holds of it, and the checks before one is believed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.compressor import decompress
from gradwire.errors import StateError
from gradwire.saved import reading_state, saved_integer, saved_number, saved_vector, to_bytes
from gradwire.wire import decode

if TYPE_CHECKING:
    from gradwire.federated.rounds.federation import Federation

__all__ = ["load_federation", "save_federation"]


def save_federation(f: Federation) -> dict[str, Any]:
    """Return a copy of all of it, between rounds."""
    return {
        "model": f.model.copy(),
        "virtual_seconds": f.seconds,
        "server": f.server.state_dict(),
        "step": None if f.step is None else f.step.state_dict(),
        "controls": None if f.controls is None else f.controls.state_dict(),
        "regions": [region.state_dict() for region in f.regions],
        "fates": [
            [client, sequence, fate if isinstance(fate, bool) else sorted(fate)]
            for client, fates in f.fates.items()
            for sequence, fate in fates.items()
        ],
        "control_fates": [
            [client, sequence, change.copy()]
            for client, fates in f.control_fates.items()
            for sequence, change in fates.items()
        ],
        "ledger": None if f.ledger is None else f.ledger.state_dict(),
        "conservation_error": f.conservation_error,
        "lengths": [list(lengths) for lengths in f.lengths],
        "last_blobs": [np.frombuffer(blob, np.uint8).copy() for blob in f.last_blobs],
        "shipped": None if f.shipped is None else [f.shipped[0], np.frombuffer(f.shipped[1], np.uint8).copy()],
        "moved": None if f.moved is None else np.packbits(f.moved),
        "frozen": f.trainer.frozen_digest,
        **f.members.state_dict(f.server.round),
    }


def load_federation(f: Federation, state: dict[str, Any]) -> None:
    """Go on where ``save_federation`` left off.

    Raises:
        StateError: on a state of something else, or one that no run can have left.
    """
    with reading_state():
        if state["frozen"] != f.trainer.frozen_digest:
            raise StateError("state's frozen parameters, which do not travel, are not those of the model given now")
        model = saved_vector("model", state["model"], f.model.shape)
        seconds = saved_number("virtual_seconds", state["virtual_seconds"])
        f.server.load_state_dict(state["server"])
        if f.step is not None:
            f.step.load_state_dict(state["step"])
        if f.controls is not None:
            f.controls.load_state_dict(state["controls"])
        for region, saved in zip(f.regions, state["regions"], strict=True):
            region.load_state_dict(saved)
        _load_downlinks(f, state)
        _load_fates(f, state)
        f.members.load_state_dict(state, f.server.round)
        if f.ledger is not None:
            f.ledger.load_state_dict(state["ledger"])
        f.conservation_error = saved_number("conservation_error", state["conservation_error"])
        f.moved = _load_moved(state["moved"], f.layout.d)
        f.set_model(model, seconds)


def _load_downlinks(f: Federation, state: dict[str, Any]) -> None:
    rounds, num_roads = f.server.round, 1 if f.controls is None else 2
    f.lengths = [[saved_integer("lengths", n) for n in lengths] for lengths in state["lengths"]]
    f.last_blobs = [to_bytes(blob) for blob in state["last_blobs"]]
    f.shipped = None
    if state["shipped"] is not None:
        f.shipped = saved_integer("shipped", state["shipped"][0]), to_bytes(state["shipped"][1])
        if f.shipped[0] >= rounds or decode(f.shipped[1]).shipped_field is None:
            raise StateError("state's shipped must be a round before the open one, and a blob with a field")
    if [len(lengths) for lengths in f.lengths] != [num_roads] * rounds:
        raise StateError(f"state's lengths must be of {rounds} rounds and {num_roads} roads, got {len(f.lengths)}")
    if len(f.last_blobs) != (num_roads if rounds else 0):
        raise StateError(f"state's last_blobs must be of {num_roads} roads, got {len(f.last_blobs)}")
    for blob in f.last_blobs:
        if decompress(decode(blob)).size != f.layout.d:
            raise StateError(f"state's last_blobs must be of {f.layout.d} parameters")


def _load_moved(saved: Any, d: int) -> NDArray[np.bool_] | None:
    if saved is None:
        return None
    bits = to_bytes(saved)
    if len(bits) != -(-d // 8):
        raise StateError(f"state's moved must be {d} bits, got {len(bits)} bytes")
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=d).astype(np.bool_)


def _load_fates(f: Federation, state: dict[str, Any]) -> None:
    most = f.experiment.clients - 1
    f.fates, f.control_fates = {}, {}
    for client, sequence, fate in state["fates"]:
        told = fate if isinstance(fate, bool) else frozenset(saved_integer("packet number", n) for n in fate)
        mine = f.fates.setdefault(saved_integer("client", client, high=most), {})
        mine[saved_integer("sequence", sequence)] = told
    for client, sequence, change in state["control_fates"]:
        of_client = f.control_fates.setdefault(saved_integer("client", client, high=most), {})
        of_client[saved_integer("sequence", sequence)] = saved_vector("control_fates", change, (f.layout.d,))
