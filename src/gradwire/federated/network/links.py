"""Which connection each client has: a named profile, a mix of them, an ideal one, or a trace file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, cycle

import numpy as np

from gradwire.checks import check_density, check_integer, check_number
from gradwire.errors import ConfigError, nearest
from gradwire.federated.network.traces import ALWAYS, Conditions, Connection, Sessions, read_trace
from gradwire.rng import Key

__all__ = ["PROFILES", "Connection", "Links", "Mix", "Profile", "Trace", "parse_links"]

_FIRST_DRAW = 64


@dataclass(frozen=True)
class Profile:
    """Describe a class of clients by constant rates and by how much of the time they are reachable.

    Args:
        name: what ``parse_links`` calls it.
        uplink_bits_per_second: > 0; inf takes no time.
        downlink_bits_per_second: > 0; inf takes no time.
        latency_seconds: one way, >= 0.
        steps_per_second: local SGD steps of the model trained, > 0; inf takes no time.
        availability: share of the time the client is reachable, in (0, 1]; 1 is always.
        mean_session_seconds: how long it stays reachable on average, > 0; not read where it always is.

    Raises:
        ConfigError: a number is none of these.

    Example:
        >>> Profile("modem", 33.6e3, 56e3, 0.1, 5, 0.25, 1800).connection(Key(0, client=0)).uploaded(4200)
        1.1

    Source: none.

    Deviations: none.
    """

    name: str
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

    def _conditions(self) -> Conditions:
        return Conditions(
            0.0,
            self.uplink_bits_per_second,
            self.downlink_bits_per_second,
            self.latency_seconds,
            self.steps_per_second,
        )


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("ideal", math.inf, math.inf, 0.0, math.inf),
        Profile("fibre", 100e6, 500e6, 0.005, 50.0, 0.95, 43_200.0),
        Profile("wifi", 20e6, 50e6, 0.01, 50.0, 0.9, 7_200.0),
        Profile("5mbit", 5e6, 50e6, 0.02, 50.0, 0.9, 7_200.0),
        Profile("4g", 10e6, 30e6, 0.04, 20.0, 0.8, 1_800.0),
        Profile("satellite", 3e6, 25e6, 0.3, 20.0, 0.95, 21_600.0),
        Profile("lora", 5e3, 5e3, 1.0, 1.0, 0.5, 3_600.0),
    )
}
"""Profiles by name.

Steps per second are of a model that takes a computer 20 ms a step (50); a phone or a terminal does 20, a
microcontroller 1.

- ``ideal``: takes no time and is always there: the virtual clock stands still.
- ``fibre``: a home computer on fibre to the house, a few milliseconds from the server; on all day.
- ``wifi``: a laptop on shared wireless in front of a middling home line; on for an evening's two hours.
- ``5mbit``: the same laptop behind a cable or VDSL line that gives 5 Mbit/s up and ten times that down.
- ``4g``: a phone, a fifth of the time without coverage or switched over, for half an hour's stretch of use.
- ``satellite``: a geostationary terminal. Light takes 0.24 s to the satellite, 36 000 km up, and down again; the rest
  is the terminal and the network. Rain cuts it off about every six hours.
- ``lora``: a microcontroller on battery. LoRa at spreading factor 7 and 125 kHz carries 5.5 kbit/s; a receive
  window opens 1 s after a transmission. Awake every other hour. Duty-cycle limits of the band are left out.

Source: none.

Deviations: none is measured. They are round figures, right to an order of magnitude.
"""


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


@dataclass(frozen=True)
class Links(ABC):
    """Say which connection each client has; ``str`` gives the text ``parse_links`` reads."""

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
            >>> [c.at(0).latency_seconds for c in parse_links("4g:1,lora:1").assign(4, seed=3)]
            [1.0, 0.04, 0.04, 1.0]
        """


@dataclass(frozen=True)
class Mix(Links):
    """Deal profiles by largest remainder (ties: the first named), then shuffle.

    Args:
        profiles: one or more, of different names.
        shares: of each, finite and > 0; only their ratios matter.
    """

    profiles: tuple[Profile, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        names = [profile.name for profile in self.profiles]
        if not names or len(names) != len(self.shares) or len(set(names)) != len(names):
            raise ConfigError(f"links need one share for each of one or more different profiles, got {names}")
        for name, share in zip(names, self.shares, strict=True):
            if not (math.isfinite(share) and share > 0):
                raise ConfigError(f"share of {name!r} must be a finite number > 0, got {share}")

    def __str__(self) -> str:
        if len(self.profiles) == 1:
            return self.profiles[0].name
        pairs = zip(self.profiles, self.shares, strict=True)
        return ",".join(f"{profile.name}:{float(share)!r}".removesuffix(".0") for profile, share in pairs)

    def assign(self, num_clients: int, seed: int) -> list[Connection]:
        """Deal the profiles' connections; as ``Links.assign``."""
        num_clients = check_integer("num_clients", num_clients, 1)
        total = sum(map(Fraction, self.shares))
        quotas = [Fraction(share) * num_clients / total for share in self.shares]
        counts = [math.floor(quota) for quota in quotas]
        by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
        for i in by_remainder[: num_clients - sum(counts)]:
            counts[i] += 1
        hand = [profile for profile, count in zip(self.profiles, counts, strict=True) for _ in range(count)]
        order = np.argsort(Key(seed, purpose="links").words(num_clients), kind="stable").tolist()
        return [hand[i].connection(Key(seed, client=client, purpose="sessions")) for client, i in enumerate(order)]


@dataclass(frozen=True)
class Trace(Links):
    """Read the connections of a trace file (see ``read_trace``) when they are assigned: its first clients' ones.

    Args:
        path: of the CSV file.
    """

    path: str

    def __str__(self) -> str:
        return f"trace:{self.path}"

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
        text: a name of ``PROFILES`` (``fibre``), several with their relative shares (``fibre:0.2,4g:0.8``), or
            ``trace:PATH``, a file that is read when connections are assigned.

    Returns:
        The links; ``parse_links(str(links)) == links``.

    Raises:
        ConfigError: the text is none of these.

    Example:
        >>> print(parse_links("fibre:1.0,lora:3"))
        fibre:1,lora:3

    Source: none.

    Deviations: none.
    """
    name, _, path = text.partition(":")
    if name == "trace" and path:
        return Trace(path)
    items = [item.partition(":") for item in text.split(",")]
    for name, _, _ in items:
        if name not in PROFILES:
            raise ConfigError(
                f"links must be NAME, NAME:SHARE,NAME:SHARE,... or trace:PATH, with a NAME of {', '.join(PROFILES)}, "
                f"got {name!r}{nearest(name, [*PROFILES, 'trace'])}"
            )
    if text in PROFILES:
        return Mix((PROFILES[text],), (1.0,))
    mix = Mix(tuple(PROFILES[name] for name, _, _ in items), tuple(_share(name, share) for name, _, share in items))
    return mix if len(items) > 1 else Mix(mix.profiles, (1.0,))


def _share(name: str, text: str) -> float:
    try:
        if text.isascii() and not set(text) & set("_ \t\r\n"):
            return float(text)
    except ValueError:
        pass
    raise ConfigError(f"share of {name!r} must be a finite number > 0, got {text!r}")
