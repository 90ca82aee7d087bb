"""Region: a server of some clients that is itself a client of the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradwire.aggregation.aggregator import LARGEST_WEIGHT, Aggregator
from gradwire.checks import check_integer
from gradwire.compressors.compressor import Compressor, Vector
from gradwire.compressors.feedback import ef
from gradwire.compressors.sparsify import dense
from gradwire.ends.client import Client, Delivered
from gradwire.ends.comparing import check_mean
from gradwire.ends.fields import check_field
from gradwire.ends.inbox import Clipped, Inbox
from gradwire.ends.locking import locked
from gradwire.ends.pieces import Pieces
from gradwire.errors import ConfigError, ProtocolError
from gradwire.layout import Layout
from gradwire.payload import Payload
from gradwire.rng import Key
from gradwire.saved import reading_state
from gradwire.wire import decode

__all__ = ["Forwarded", "Region"]


@dataclass(frozen=True)
class Forwarded:
    """What a region sends up in a round.

    Attributes:
        blob: its clients' weighted mean, as a client's blob.
        weight: their total weight: what ``Server.receive`` takes with it.
        accepted: (client_id, sequence) of each payload in it, in order of arrival.
        packets: of those that came in packets: (client_id, sequence) -> the packet numbers that arrived.
        clipped: what was longer than ``max_norm``, and how much of it was counted.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> region = gw.Region(gw.dense(), gw.Layout.flat(2))
        >>> region.receive(gw.Client(gw.dense(), gw.Layout.flat(2)).compress(np.ones(2, np.float32), 3.0), 0, 3.0)
        >>> up = region.forward()
        >>> up.weight, up.accepted
        (3.0, ((0, 0),))
    """

    blob: bytes
    weight: float
    accepted: tuple[tuple[int, int], ...]
    packets: dict[tuple[int, int], frozenset[int]]
    clipped: tuple[Clipped, ...]


class Region(Inbox):
    """Merges its clients' payloads, forwards their mean once a round, and hands the server's blob on.

    To its clients it is a server, to the server a client: only one blob a region crosses the wide area, and the blob
    the server answers with goes to the clients as it is, so that all ends hold the same reference. As with ``Server``,
    many threads may call its methods.

    Args:
        compressor: what the clients compress with.
        layout: the model's layout.
        region_id: this region's number at the server, 0 or more.
        seed: seed of the run, the same at all ends.
        forward: what compresses the way from here to the server. By default nothing is lost: the mean goes as it is,
            sparse where the clients' payloads are, and error feedback keeps it when it does not arrive.
        num_rounds: rounds of the whole run, for a ``forward`` with a schedule, or None.
        max_staleness: accept payloads of this many closed rounds.
        aggregator: as for ``Server``.
        max_norm: as for ``Server``.
        payloads_per_round: as for ``Server``.

    Raises:
        ConfigError: on an argument of another kind; with ``ef21``, whose mirrors cannot be merged; a lossy ``forward``
            or another aggregator than the mean with a compressor that ``needs_mean``.

    Attributes:
        round: the round that is open.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> layout, spec = gw.Layout.flat(2), gw.ef(gw.topk(0.5))
        >>> region, server = gw.Region(spec, layout), gw.Server(gw.dense(), layout)
        >>> clients = [gw.Client(spec, layout, client_id=i) for i in range(2)]
        >>> for client in clients:
        ...     region.receive(client.compress(np.array([1, 4], np.float32)), client.client_id)
        >>> up = region.forward()
        >>> server.receive(up.blob, client_id=0, weight=up.weight)
        >>> blob = server.close_round().blob
        >>> region.end_round(blob).tolist(), clients[0].end_round(blob).tolist()
        ([0.0, 4.0], [0.0, 4.0])
    """

    def __init__(
        self,
        compressor: Compressor,
        layout: Layout,
        region_id: int = 0,
        seed: int = 0,
        forward: Compressor | None = None,
        num_rounds: int | None = None,
        max_staleness: int = 0,
        aggregator: Callable[[Layout], Aggregator] | None = None,
        max_norm: float | None = None,
        payloads_per_round: int | None = 1,
    ) -> None:
        if isinstance(compressor, Compressor) and compressor.mirrored:
            raise ConfigError(f"a region cannot merge mirrors, which outlast a round: got {compressor}")
        super().__init__(compressor, layout, seed, None, max_staleness, aggregator, max_norm, payloads_per_round)
        forward = ef(dense()) if forward is None else forward
        if isinstance(forward, Compressor) and forward.mirrored:
            raise ConfigError(f"forward cannot keep a mirror: the weight of a region changes, got {forward}")
        own_seed = int(
            Key(self.seed, purpose="region").words(1)[0]
        )  # or it would draw what a client of its number does
        self._up = Client(forward, layout, region_id, own_seed, num_rounds)
        check_mean(compressor, layout.num_parameters, aggregator=self._aggregator, forward=forward)
        self._forwarded = False
        self._first = 0

    @property
    def region_id(self) -> int:
        """This region's number at the server."""
        return self._up.client_id

    def _check_number(self, payload: Payload, client_id: int, pieces: Pieces | None) -> None:
        super()._check_number(payload, client_id, pieces)
        if self._forwarded:  # what was counted before is still told so
            raise ProtocolError(f"round {self.round} was forwarded; expected nothing before it ends")

    @locked
    def forward(self, num_bytes: int | None = None) -> Forwarded | None:
        """Make the one blob of this round for the server.

        Args:
            num_bytes: the blob must take at most this many bytes.

        Returns:
            The blob and its weight; None when nothing arrived: the server then hears nothing of this region.

        Raises:
            ProtocolError: when it was called in this round before.
            UpdateError: when the mean cannot be compressed.
            ConfigError: on a budget that cannot be met. The round stays open in these cases.
        """
        if self._forwarded:
            raise ProtocolError(f"round {self.round} was forwarded before; expected end_round")
        aggregator = self._aggregator
        made = None
        if aggregator.num_received:
            told = tuple(self._accepted), self._packets(), tuple(self._clipped)
            if self._up.sequence == self._first:  # else a call that was interrupted had made it
                self._up.compress(aggregator.mean(), aggregator.sum_weights, self.round, num_bytes)
            made = Forwarded(self._up.pending[-1], aggregator.sum_weights, *told)
        self._forwarded = True
        return made

    @locked
    def end_round(self, blob: bytes, delivered: Delivered | Mapping[int, Delivered] = True) -> Vector:
        """Follow the server into the next round.

        Args:
            blob: ``result.blob`` of the server's round; goes to the clients as it is.
            delivered: whether what was forwarded was accepted, as for ``Client.end_round``.

        Returns:
            (d,) float32: what every end adds to the model.

        Raises:
            DecodeError: on a damaged blob.
            ProtocolError: before ``forward``, while payloads are held here, or on a blob that cannot follow.
                Nothing is changed in any of these cases.
        """
        if not self._forwarded and self._aggregator.num_received:
            raise ProtocolError(
                f"round {self.round} holds {self._aggregator.num_received} payloads: forward them first"
            )
        shipped = check_field(decode(blob).shipped_field, self.layout) if self.compressor.uses_field else None
        before, standing = dict(vars(self)), self._up._standing
        try:
            applied = self._up.end_round(blob, delivered)
            self._follow(bytes(blob), shipped)
            self.round, self._forwarded, self._first = self._up.round, False, self._up.sequence
        except BaseException:  # an interrupt or no memory, too
            vars(self).update(before)
            self._up._standing = standing
            raise
        return applied

    @locked
    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that must survive a restart: arrays and plain values only."""
        up = {"up": self._up.state_dict(), "forwarded": self._forwarded, "first": self._first}
        return super().state_dict() | up

    @locked
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            StateError: on a state of something else; nothing is changed then.
        """
        take_over = self._checked_state(state)
        with reading_state():
            up, forwarded = state["up"], bool(state["forwarded"])
            first = check_integer("first", state["first"], 0, 2**63 - 1)
        self._up.load_state_dict(up)
        take_over()
        self._forwarded, self._first = forwarded, first

    def _set_limits(self) -> None:
        self._aggregator.largest_mean = self._up.compressor.largest_update(self._up._standing.state)
        self._aggregator.largest_sum_weights = LARGEST_WEIGHT
