"""The ledger: where every client's updates went, entry by entry, and that none of it is missing (law 1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.compressor import Compressor, Vector
from gradwire.compressors.feedback import ef
from gradwire.ends.inbox import Clipped
from gradwire.errors import ConfigError, StateError
from gradwire.saved import reading_state, saved_integer, saved_vector

__all__ = ["Ledger"]

Sum = NDArray[np.float64]
Name = tuple[int, int, int | None]


@dataclass
class _Account:
    """What one client computed, what was counted of it and what was cut, each a sum of (d,) float64."""

    raw: Sum
    counted: Sum
    cut: Sum


@dataclass
class Ledger:
    """Keep books over what clients compute, what servers count and what clipping cuts.

    Sums are float64 and of the size of the model for each client: this is for audits, not for every run.

    Args:
        compressor: what the clients compress with: ``ef`` with no decay, whose residual keeps what was not sent.
        d: length of the updates.

    Raises:
        ConfigError: on another compressor: what it leaves out is not kept anywhere.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> ledger = Ledger(gw.ef(gw.topk(0.5)), 2)
        >>> ledger.computed(0, np.array([1, 4], np.float32))
        >>> ledger.counted((0, 0, None), np.array([0, 4], np.float32))
        >>> ledger.close(())
        >>> ledger.error(0, np.array([1, 0], np.float32)), ledger.error(0, np.array([0, 0], np.float32)) > 0.1
        (0.0, True)
    """

    compressor: Compressor
    d: int
    _accounts: dict[int, _Account] = field(default_factory=dict, repr=False)
    _open: dict[Name, Vector] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.compressor, ef) or self.compressor.decay != 1:
            raise ConfigError(
                f"an audit needs ef(...) with no decay, which keeps what is not sent; got {self.compressor}"
            )

    def computed(self, client_id: int, update: Vector) -> None:
        """Book an update a client computed: (d,) float32."""
        if client_id not in self._accounts:
            self._accounts[client_id] = _Account(*(np.zeros(self.d) for _ in range(3)))
        self._accounts[client_id].raw += update

    def counted(self, name: Name, update: Vector) -> None:
        """Book what a server accepted: (client, sequence, packet), and what it stands for before clipping."""
        self._open[name] = update

    def close(self, clipped: Iterable[Clipped]) -> None:
        """End a round: of what was accepted in it, this was clipped."""
        factors = {(c.client_id, c.sequence, c.packet): c.factor for c in clipped}
        for name, update in self._open.items():
            account, factor = self._accounts[name[0]], factors.get(name, 1.0)
            account.counted += factor * update.astype(np.float64)
            account.cut += (1 - factor) * update.astype(np.float64)
        self._open.clear()

    def error(self, client_id: int, residual: Vector) -> float:
        """Return how much is missing: |raw - counted - cut - residual| / |raw|, for a client that heard of everything.

        Args:
            client_id: which.
            residual: (d,) float32, its residual now.

        Returns:
            0 or more; law 1 asks for at most 1e-5.
        """
        account = self._accounts.get(client_id)
        if account is None:
            return 0.0
        missing = account.raw - account.counted - account.cut - residual
        for name, update in self._open.items():
            if name[0] == client_id:
                missing -= update
        length = float(np.linalg.norm(account.raw))
        return float(np.linalg.norm(missing)) / length if length else float(np.linalg.norm(missing))

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the books."""
        accounts = [[i, a.raw.copy(), a.counted.copy(), a.cut.copy()] for i, a in self._accounts.items()]
        return {"accounts": accounts, "open": [[*name, update.copy()] for name, update in self._open.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            StateError: on books of another shape.
        """
        with reading_state():
            accounts = {saved_integer("client", i): _Account(*map(self._sum, sums)) for i, *sums in state["accounts"]}
            self._open = {
                (
                    saved_integer("client", client, high=max(accounts, default=0)),
                    saved_integer("sequence", sequence),
                    None if packet is None else saved_integer("packet", packet),
                ): saved_vector("open", update, (self.d,))
                for client, sequence, packet, update in state["open"]
            }
            self._accounts = accounts

    def _sum(self, saved: Any) -> Sum:
        if not isinstance(saved, np.ndarray) or saved.dtype != np.float64 or saved.shape != (self.d,):
            raise StateError(f"state's accounts must be ({self.d},) float64, got {np.shape(saved)}")
        return saved.copy()

    def cut_norm(self) -> float:
        """Return the root of the sum over clients of |cut|^2."""
        return float(np.sqrt(sum(np.dot(account.cut, account.cut) for account in self._accounts.values())))
