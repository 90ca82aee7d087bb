"""Traffic: what travelled in one round, counted as it does."""

from __future__ import annotations

from dataclasses import dataclass, field

from gradwire.wire import Opened

__all__ = ["RoundTraffic", "Traffic"]

_TOTALS = {
    "uplink": "uplink_bytes",
    "downlink": "downlink_bytes",
    "other": "other_bytes",
    "late": "num_late",
    "lost": "num_lost",
    "idle": "num_idle",
}


@dataclass
class Traffic:
    """Bytes and counts of a round; byte counts are sums of ``len(blob)``.

    Attributes:
        uplink_bytes: client to server, or to its region: every transmission, the sum of the next four.
        header_bytes: of the uplink: containers.
        support_bytes: of the uplink: which coordinates.
        values_bytes: of the uplink: the numbers.
        again_bytes: of the uplink: packets sent again.
        downlink_bytes: server, or region, to clients, each client's copy counted.
        other_bytes: initial models, resynchronisation, control variates.
        wan_uplink_bytes: regions to server.
        wan_downlink_bytes: server to regions.
        num_sent: payloads that clients made.
        num_received: payloads accepted, in part or whole.
        num_late: payloads that came after the deadline, and those refused for their age.
        num_lost: payloads of which nothing came, or was heard: the link or the session ended before.
        num_idle: turns not begun, since training would not have ended in time.
        num_duplicates: payloads, or packets, that came once more.
        num_clipped: payloads, or packets, that were clipped.
        num_kept: coordinates that clients sent.
    """

    uplink_bytes: int = 0
    header_bytes: int = 0
    support_bytes: int = 0
    values_bytes: int = 0
    again_bytes: int = 0
    downlink_bytes: int = 0
    other_bytes: int = 0
    wan_uplink_bytes: int = 0
    wan_downlink_bytes: int = 0
    num_sent: int = 0
    num_received: int = 0
    num_late: int = 0
    num_lost: int = 0
    num_idle: int = 0
    num_duplicates: int = 0
    num_clipped: int = 0
    num_kept: int = 0


@dataclass
class RoundTraffic(Traffic):
    """The traffic of a round, and each client's part in it.

    Attributes:
        clients: client -> "uplink", "downlink", "other" (bytes), "late", "lost", "idle" (payloads or turns) -> how
            many; what is 0 is left out.
    """

    clients: dict[int, dict[str, int]] = field(default_factory=dict)

    def add(self, client_id: int, kind: str, amount: int = 1) -> None:
        """Count something of a client's, one of the kinds of ``clients``."""
        if amount:
            total = _TOTALS[kind]
            setattr(self, total, getattr(self, total) + amount)
            part = self.clients.setdefault(client_id, {})
            part[kind] = part.get(kind, 0) + amount

    def sent(self, client_id: int, opened: Opened) -> None:
        """Count a blob that a client sent."""
        self.add(client_id, "uplink", len(opened.blob))
        self.num_kept += opened.payload.num_kept
        self.header_bytes += opened.header_bytes
        self.support_bytes += opened.support_bytes
        self.values_bytes += opened.values_bytes

    def sent_again(self, client_id: int, num_bytes: int) -> None:
        """Count what a client sent more than once."""
        self.add(client_id, "uplink", num_bytes)
        self.again_bytes += num_bytes
