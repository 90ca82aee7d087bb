"""Which connection each client has: a profile, a profile of one's own, a mix of profiles, or a trace file.

A profile is a class of clients with constant rates. Steps per second are of a model that takes a computer 20 ms a step
(50); a phone or a terminal does 20, a microcontroller 1. None of the figures is measured: they are round, and right to
an order of magnitude.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from fractions import Fraction
from itertools import accumulate, cycle
from pathlib import Path
from typing import ClassVar

import numpy as np

from gradwire.checks import check_density, check_integer, check_number
from gradwire.errors import ConfigError, nearest
from gradwire.federated.network.traces import ALWAYS, Conditions, Connection, Sessions, read_trace
from gradwire.named import Named, read
from gradwire.rng import Key

__all__ = [
    "Connection",
    "Links",
    "Profile",
    "cable",
    "fibre",
    "ideal",
    "link",
    "lora",
    "lte",
    "mix",
    "parse_links",
    "satellite",
    "trace",
    "wifi",
]

_FIRST_DRAW = 64


class Links(Named, kind="link", example="lora()", must_say=("summary",)):
    """Say which connection each client has.

    Example:
        >>> str(mix(lte=1, lora=3))
        'mix(lte=1, lora=3)'
    """

    @abstractmethod
    def assign(self, num_clients: int, seed: int) -> list[Connection]:
        """Give each client a connection.

        Args:
            num_clients: 1 or more.
            seed: of the run, 0 <= seed < 2^64; the only source of chance.

        Returns:
            (num_clients,) connections, by client number.

        Raises:
            ConfigError: ``num_clients`` or ``seed`` is out of range, or a trace is damaged or has too few clients.

        Example:
            >>> [c.at(0).latency_seconds for c in mix(lte=1, lora=1).assign(4, seed=3)]
            [1.0, 0.04, 0.04, 1.0]
        """

    def rooted(self, folder: Path) -> Links:
        """Return these links with the paths in them beginning at a folder, so that they mean the same anywhere."""
        return self


@dataclass(frozen=True, repr=False)
class Profile(Links):
    """Describe a class of clients by constant rates and by how much of the time they are reachable.

    A profile is a subclass that says its numbers, each of which may be given another value: ``lora(availability=0.1)``.

    Args:
        uplink_bits_per_second: > 0; inf takes no time.
        downlink_bits_per_second: > 0; inf takes no time.
        latency_seconds: one way, >= 0.
        steps_per_second: local SGD steps of the model trained, > 0; inf takes no time.
        availability: share of the time the client is reachable, in (0, 1]; 1 is always.
        mean_session_seconds: how long it stays reachable on average, > 0; not read where it always is.

    Raises:
        ConfigError: a number is none of these.

    Example:
        >>> link(33.6e3, 56e3, 0.1, 5, 0.25, 1800).connection(Key(0, client=0)).uploaded(4200)
        1.1
    """

    uplink_bits_per_second: float
    downlink_bits_per_second: float
    latency_seconds: float
    steps_per_second: float
    availability: float = 1.0
    mean_session_seconds: float = math.inf

    def __post_init__(self) -> None:
        self._conditions()
        for name in ("uplink_bits_per_second", "downlink_bits_per_second", "steps_per_second"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be > 0, got {getattr(self, name)!r}")
        check_density(self.availability, "availability")
        if self.availability < 1 and check_number("mean_session_seconds", self.mean_session_seconds) <= 0:
            raise ConfigError(f"mean_session_seconds must be > 0, got {self.mean_session_seconds!r}")
        for f in fields(self):
            object.__setattr__(self, f.name, float(getattr(self, f.name)))

    def connection(self, key: Key) -> Connection:
        """Return one client's connection.

        Args:
            key: names the client; its sessions are drawn from it.

        Returns:
            Constant conditions with sessions of exponential length.
        """
        always = self.availability == 1
        sessions = ALWAYS if always else _DrawnSessions(key, self.availability, self.mean_session_seconds)
        return Connection((self._conditions(),), sessions)

    def assign(self, num_clients: int, seed: int) -> list[Connection]:
        """Give every client the same rates, and sessions of its own."""
        return _connections([self] * check_integer("num_clients", num_clients, 1), seed)

    def _conditions(self) -> Conditions:
        return Conditions(
            0.0,
            self.uplink_bits_per_second,
            self.downlink_bits_per_second,
            self.latency_seconds,
            self.steps_per_second,
        )


def _connections(profiles: list[Profile], seed: int) -> list[Connection]:
    """The connection of each client, in order."""
    return [p.connection(Key(seed, client=client, purpose="sessions")) for client, p in enumerate(profiles)]


@dataclass(frozen=True, repr=False)
class link(Profile):
    """A profile of one's own: any numbers."""

    summary: ClassVar[str] = "rates and availability of one's own"


@dataclass(frozen=True, repr=False)
class ideal(Profile):
    """Takes no time and is always there: the virtual clock stands still."""

    uplink_bits_per_second: float = math.inf
    downlink_bits_per_second: float = math.inf
    latency_seconds: float = 0.0
    steps_per_second: float = math.inf

    summary: ClassVar[str] = "no time at all"


@dataclass(frozen=True, repr=False)
class fibre(Profile):
    """A home computer on fibre to the house, a few milliseconds from the server; on all day."""

    uplink_bits_per_second: float = 100e6
    downlink_bits_per_second: float = 500e6
    latency_seconds: float = 0.005
    steps_per_second: float = 50.0
    availability: float = 0.95
    mean_session_seconds: float = 43_200.0

    summary: ClassVar[str] = "fibre to the house"


@dataclass(frozen=True, repr=False)
class wifi(Profile):
    """A laptop on shared wireless in front of a middling home line; on for an evening's two hours."""

    uplink_bits_per_second: float = 20e6
    downlink_bits_per_second: float = 50e6
    latency_seconds: float = 0.01
    steps_per_second: float = 50.0
    availability: float = 0.9
    mean_session_seconds: float = 7_200.0

    summary: ClassVar[str] = "shared wireless"


@dataclass(frozen=True, repr=False)
class cable(Profile):
    """The same laptop behind a cable or VDSL line that gives 5 Mbit/s up and ten times that down."""

    uplink_bits_per_second: float = 5e6
    downlink_bits_per_second: float = 50e6
    latency_seconds: float = 0.02
    steps_per_second: float = 50.0
    availability: float = 0.9
    mean_session_seconds: float = 7_200.0

    summary: ClassVar[str] = "a home line, 5 Mbit/s up"


@dataclass(frozen=True, repr=False)
class lte(Profile):
    """A phone, a fifth of the time without coverage or switched over, for half an hour's stretch of use."""

    uplink_bits_per_second: float = 10e6
    downlink_bits_per_second: float = 30e6
    latency_seconds: float = 0.04
    steps_per_second: float = 20.0
    availability: float = 0.8
    mean_session_seconds: float = 1_800.0

    summary: ClassVar[str] = "a phone on 4G"


@dataclass(frozen=True, repr=False)
class satellite(Profile):
    """A geostationary terminal, which rain cuts off about every six hours.

    Light takes 0.24 s to the satellite, 36 000 km up, and down again; the rest is the terminal and the network.
    """

    uplink_bits_per_second: float = 3e6
    downlink_bits_per_second: float = 25e6
    latency_seconds: float = 0.3
    steps_per_second: float = 20.0
    availability: float = 0.95
    mean_session_seconds: float = 21_600.0

    summary: ClassVar[str] = "a geostationary terminal"


@dataclass(frozen=True, repr=False)
class lora(Profile):
    """A microcontroller on battery, awake every other hour.

    LoRa at spreading factor 7 and 125 kHz carries 5.5 kbit/s; a receive window opens 1 s after a transmission.
    Duty-cycle limits of the band are left out.
    """

    uplink_bits_per_second: float = 5e3
    downlink_bits_per_second: float = 5e3
    latency_seconds: float = 1.0
    steps_per_second: float = 1.0
    availability: float = 0.5
    mean_session_seconds: float = 3_600.0

    summary: ClassVar[str] = "a microcontroller on battery"


@dataclass(frozen=True)
class _DrawnSessions(Sessions):
    """Draw a client's sessions and absences with exponential lengths.

    The k-th stretch lasts ``-mean * log(1 - u_k)``, where u_k is the top 53 bits of word k of the key's stream times
    2^-53 and the mean is that of a session or of an absence, in turn; u_0 < availability says that the client is
    there at 0 seconds. So the share of time it is there is the availability at every time. What was drawn is kept and
    drawn on when later times are asked for; it follows from the arguments alone.

    Args:
        key: names the client.
        availability: share of the time the client is reachable, in (0, 1).
        mean_session_seconds: mean of a session, finite and > 0; that of an absence is
            ``(1 - availability) / availability`` times it.

    """

    key: Key
    availability: float
    mean_session_seconds: float
    _drawn: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def switches(self, past: float) -> tuple[bool, Sequence[float]]:
        """Return the state at 0 seconds, and the ends of the stretches up to one later than ``past``."""
        if not self._drawn:
            self._drawn[:] = self._draw(_FIRST_DRAW)
        while self._drawn[-1] <= past:
            self._drawn[:] = self._draw(2 * len(self._drawn))
        return self._starts_there(self._uniform(1)[0]), self._drawn

    def _draw(self, num_stretches: int) -> list[float]:
        """The ends of the first stretches, in seconds."""
        first, *rest = self._uniform(num_stretches + 1)
        absence = self.mean_session_seconds * (1 - self.availability) / self.availability
        there, away = self.mean_session_seconds, absence
        means = cycle((there, away) if self._starts_there(first) else (away, there))
        return list(accumulate(-mean * math.log1p(-u) for u, mean in zip(rest, means, strict=False)))

    def _starts_there(self, u: float) -> bool:
        return u < self.availability

    def _uniform(self, num_values: int) -> list[float]:
        values: list[float] = ((self.key.words(num_values) >> np.uint64(11)) * 2.0**-53).tolist()
        return values


@dataclass(frozen=True, repr=False, init=False)
class mix(Links):
    """Deal profiles to clients by largest remainder (ties: the first named), then shuffle.

    Args:
        shares: of each profile by its name, finite and > 0; only their ratios matter.

    Raises:
        ConfigError: a name is no profile's, a share no such number, or there are none.

    Example:
        >>> mix(fibre=1.0, lora=3)
        mix(fibre=1, lora=3)
    """

    shares: tuple[tuple[str, float], ...] = field(metadata={"keywords": True})

    summary: ClassVar[str] = "several profiles, by shares"

    def __init__(self, **shares: float) -> None:
        profiles = _profiles()
        for name, share in shares.items():
            if name not in profiles:
                raise ConfigError(
                    f"a mix is of profiles, one of {', '.join(profiles)}, got {name!r}{nearest(name, profiles)}"
                )
            if not check_number(f"share of {name}", share) > 0:
                raise ConfigError(f"share of {name} must be > 0, got {share!r}")
        if not shares:
            raise ConfigError("a mix needs shares of profiles, such as mix(fibre=1, lora=3), got none")
        object.__setattr__(self, "shares", tuple((name, _whole(share)) for name, share in shares.items()))

    def assign(self, num_clients: int, seed: int) -> list[Connection]:
        """Deal the profiles' connections; as ``Links.assign``."""
        num_clients = check_integer("num_clients", num_clients, 1)
        shares = [Fraction(share) for _, share in self.shares]
        quotas = [share * num_clients / sum(shares) for share in shares]
        counts = [math.floor(quota) for quota in quotas]
        by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
        for i in by_remainder[: num_clients - sum(counts)]:
            counts[i] += 1
        profiles = _profiles()
        hand = [profiles[name]() for (name, _), count in zip(self.shares, counts, strict=True) for _ in range(count)]
        order = np.argsort(Key(seed, purpose="links").words(num_clients), kind="stable").tolist()
        return _connections([hand[i] for i in order], seed)


def _profiles() -> dict[str, Callable[[], Profile]]:
    """Profiles by name: those that need no numbers given."""
    return {
        name: cls
        for name, cls in Links.registry.items()
        if issubclass(cls, Profile) and all(f.default is not MISSING for f in fields(cls))
    }


def _whole(share: float) -> float:
    return int(share) if share == int(share) and share < 2**53 else float(share)


@dataclass(frozen=True, repr=False)
class trace(Links):
    """Read the connections of a trace file (see ``read_trace``) when they are assigned: its first clients' ones.

    Args:
        path: of the CSV file.

    Raises:
        ConfigError: the path is no text, or empty.

    Example:
        >>> trace("measured.csv").rooted(Path("/data"))
        trace('/data/measured.csv')
    """

    path: str

    summary: ClassVar[str] = "a file of measured connections"

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise ConfigError(f"a trace needs the path of a CSV file, got {self.path!r}")

    def rooted(self, folder: Path) -> Links:
        """Return the trace with its path written out."""
        return replace(self, path=str(folder / Path(self.path).expanduser()))

    def assign(self, num_clients: int, seed: int) -> list[Connection]:
        """Read the file; as ``Links.assign``, without chance."""
        num_clients = check_integer("num_clients", num_clients, 1)
        connections = read_trace(self.path)
        if len(connections) < num_clients:
            raise ConfigError(
                f"trace {self.path!r} has {len(connections)} clients, got {num_clients} clients, "
                f"expected {len(connections)} or fewer"
            )
        return list(connections[:num_clients])


def parse_links(text: str) -> Links:
    """Read the text that says which connection each client has.

    Args:
        text: for instance ``lora()``, ``lora(availability=0.1)``, ``mix(fibre=0.2, lte=0.8)`` or
            ``trace('measured.csv')``, a file that is read when connections are assigned.

    Returns:
        The links; ``parse_links(str(links)) == links``.

    Raises:
        ConfigError: on a text that cannot be read, a name that is not there or a number out of range.

    Example:
        >>> parse_links("mix(fibre=1.0, lora=3)")
        mix(fibre=1, lora=3)
    """
    return read(text, Links)  # type: ignore[type-abstract]
