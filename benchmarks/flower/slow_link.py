"""Two hosts on this machine, joined by a link of a chosen speed: network namespaces of Linux, which need root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.flower.net import Host

_BURST = "16kb"  # passes at once: small against what a round sends, and about a hundredth of a second at 10 Mbit/s
_DEVICE = "link0"
_ADDRESSES = ("10.77.0.1", "10.77.0.2")


def why_not() -> str | None:
    """Say what is missing for such hosts; None for nothing."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} of iproute2 are not installed"
    try:
        with slow_link(10):
            return None
    except RuntimeError as error:
        return f"no network namespaces here: {error}"


@dataclass(frozen=True)
class Link:
    """Two hosts and what joins them.

    Attributes:
        hosts: the two.
        names: of their namespaces.
    """

    hosts: tuple[Host, Host]
    names: tuple[str, str]

    def sent(self) -> tuple[int, int]:
        """Count the bytes that each host sent so far, headers of TCP, IP and Ethernet included."""
        first, second = (json.loads(_do("ip", "-n", n, "-s", "-j", "link", "show", "dev", _DEVICE)) for n in self.names)
        return first[0]["stats64"]["tx"]["bytes"], second[0]["stats64"]["tx"]["bytes"]


@contextmanager
def slow_link(megabits: int) -> Iterator[Link]:
    """Make the hosts, each sending at most so many megabits a second, and remove them."""
    names = (f"gradwire-{os.getpid()}-a", f"gradwire-{os.getpid()}-b")
    try:
        for name in names:
            _do("ip", "netns", "add", name)
        first, second = names
        _do("ip", "link", "add", _DEVICE, "netns", first, "type", "veth", "peer", "name", _DEVICE, "netns", second)
        for name, address in zip(names, _ADDRESSES, strict=True):
            _do("ip", "-n", name, "addr", "add", f"{address}/24", "dev", _DEVICE)
            for device in ("lo", _DEVICE):
                _do("ip", "-n", name, "link", "set", device, "up")
            limit = ("rate", f"{megabits}mbit", "burst", _BURST, "latency", "50ms")
            _do("tc", "-n", name, "qdisc", "replace", "dev", _DEVICE, "root", "tbf", *limit)
        prefixes = [("ip", "netns", "exec", name) for name in names]
        a, b = (Host(address, prefix) for address, prefix in zip(_ADDRESSES, prefixes, strict=True))
        yield Link((a, b), names)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _do(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
