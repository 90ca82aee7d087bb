"""Traffic: what travelled in one round, counted as it does."""

from __future__ import annotations

from dataclasses import dataclass

from gradwire.wire import Opened

__all__ = ["Traffic"]


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
        num_late: payloads, or packets, refused for their age.
        num_duplicates: payloads, or packets, that came once more.
        num_clipped: payloads, or packets, that were clipped.
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
    num_duplicates: int = 0
    num_clipped: int = 0

    def sent(self, opened: Opened) -> None:
        """Count a blob that a client sent."""
        self.uplink_bytes += len(opened.blob)
        self.header_bytes += opened.header_bytes
        self.support_bytes += opened.support_bytes
        self.values_bytes += opened.values_bytes

    def sent_again(self, num_bytes: int) -> None:
        """Count what was sent more than once."""
        self.uplink_bytes += num_bytes
        self.again_bytes += num_bytes
