"""Memory: what Flower's own strategies remember between rounds, taken out and put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy

from gradwire.errors import StateError
from gradwire.flower.kinds import owner_of

__all__ = ["memory_of", "restore_memory"]

_OWNED_BY = {
    "m_t": "m_t",
    "v_t": "v_t",
    "momentum_vector": "momentum_vector",
    "clipping_norm": "target_clipped_quantile",  # one that adapts
    "accountant": "accountant",
}
"""Name of what is remembered -> an attribute of whoever remembers it."""


def memory_of(inner: Strategy) -> dict[str, Any]:
    """Copy what a strategy, and those that it wraps, remember.

    Args:
        inner: the strategy; not modified.

    Returns:
        Name -> a copy, as arrays and plain values; only of what there is already.
    """
    memory: dict[str, Any] = {}
    for name, attribute in _OWNED_BY.items():
        owner = owner_of(inner, attribute)
        value = None if owner is None else getattr(owner, name)
        if value is None:
            continue
        if name == "accountant":
            memory[name] = value.state_dict()
        elif isinstance(value, Mapping):
            memory[name] = {key: np.array(array) for key, array in value.items()}
        elif isinstance(value, list):
            memory[name] = [np.array(array) for array in value]
        else:
            memory[name] = float(value)
    return memory


def restore_memory(inner: Strategy, memory: Mapping[str, Any], rounds_done: int) -> None:
    """Put back what ``memory_of`` copied.

    Args:
        inner: the strategy.
        memory: from a strategy of the same kind.
        rounds_done: how many rounds it remembers.

    Raises:
        StateError: where the strategy has no place for something, or an accountant and nothing is known of what was
            spent; nothing is changed then.
    """
    owners = {name: owner_of(inner, attribute) for name, attribute in _OWNED_BY.items()}
    accountant = getattr(owners["accountant"], "accountant", None)
    kind = type(inner).__name__
    for name in memory:
        if owners.get(name) is None or (name == "accountant" and accountant is None):
            raise StateError(f"state holds the {name} of another strategy, {kind} has none")
    if accountant is not None:
        if "accountant" not in memory and rounds_done:
            raise StateError(
                f"{kind} accounts for its privacy, and state says nothing of what {rounds_done} rounds have spent"
            )
        if "accountant" in memory:
            accountant.load_state_dict(memory["accountant"])
    for name, value in memory.items():
        if name != "accountant":
            setattr(owners[name], name, value)
