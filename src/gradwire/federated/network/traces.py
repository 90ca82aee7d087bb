"""What one client's line, processor and presence are like over virtual time, and the CSV file that says so.

Times are float seconds of a virtual clock that starts at 0. A trace is piecewise constant: each row holds from its
time until the client's next row.
"""

from __future__ import annotations

import csv
import io
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gradwire.checks import check_integer, check_number
from gradwire.errors import ConfigError
from gradwire.files.text import read_text

__all__ = ["ALWAYS", "UNLIMITED_BYTES", "Conditions", "Connection", "ListedSessions", "Sessions", "read_trace"]

UNLIMITED_BYTES = 2**63 - 1
_RATES = ("uplink_bits_per_second", "downlink_bits_per_second", "steps_per_second")
_COLUMNS = (
    "client",
    "seconds",
    "uplink_bits_per_second",
    "downlink_bits_per_second",
    "latency_seconds",
    "steps_per_second",
    "available",
)
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Conditions:
    """State what a client has from a time on, until its next conditions.

    Args:
        seconds: when they begin, >= 0.
        uplink_bits_per_second: >= 0; 0 is no transfer, inf takes no time.
        downlink_bits_per_second: the same, towards the client.
        latency_seconds: one way, >= 0.
        steps_per_second: local SGD steps, >= 0; inf takes no time.

    Raises:
        ConfigError: a number is none of these.

    Example:
        >>> Conditions(0, 5e6, 50e6, 0.02, 20).latency_seconds
        0.02

    Source: none.

    Deviations: none.
    """

    seconds: float
    uplink_bits_per_second: float
    downlink_bits_per_second: float
    latency_seconds: float
    steps_per_second: float

    def __post_init__(self) -> None:
        for name in ("seconds", "latency_seconds"):
            if check_number(name, getattr(self, name)) < 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)!r}")
        for name in _RATES:
            _check_time(name, getattr(self, name))


class Sessions(ABC):
    """Say when a client is reachable: a state at time 0 and the times at which it changes."""

    @abstractmethod
    def switches(self, past: float) -> tuple[bool, Sequence[float]]:
        """Return the state before the first switch, and the switches.

        Args:
            past: seconds; at least one later switch is among them, where there is one.

        Returns:
            Whether the client is reachable at first, and the ascending times at which that changes.
        """

    def available(self, at: float) -> bool:
        """Return whether the client is reachable at a time, in seconds."""
        return self._state(at)[0]

    def next_available(self, at: float) -> float:
        """Return the first time from ``at`` on at which the client is reachable; inf when never again."""
        here, change = self._state(at)
        return at if here else change

    def leaves(self, at: float) -> float:
        """Return when the session that holds ``at`` ends: ``at`` where the client is away, inf when it stays."""
        here, change = self._state(at)
        return change if here else at

    def _state(self, at: float) -> tuple[bool, float]:
        """Whether the client is there, and when that changes next."""
        first, times = self.switches(at)
        passed = bisect_right(times, at)
        return first != bool(passed % 2), times[passed] if passed < len(times) else math.inf


@dataclass(frozen=True)
class ListedSessions(Sessions):
    """Switch at the times listed, and never after them.

    Args:
        first: whether the client is reachable before the first switch.
        times: ascending seconds at which that changes.

    Example:
        >>> ListedSessions(True, (60.0, 90.0)).next_available(75.0)
        90.0
    """

    first: bool
    times: tuple[float, ...] = ()

    def switches(self, past: float) -> tuple[bool, Sequence[float]]:
        """Return what was listed."""
        return self.first, self.times


ALWAYS = ListedSessions(True)


@dataclass(frozen=True)
class Connection:
    """Tell when a client's transfers and computations end, and when it is reachable.

    Conditions are constant from one entry to the next. A line is first in, first out: where the latency falls, no
    byte overtakes an earlier one. A transfer does not stop when a session ends: see ``leaves``.

    Args:
        conditions: the first at 0 seconds, in ascending order; the last holds for ever.
        sessions: when the client is reachable.

    Raises:
        ConfigError: the conditions do not start at 0 or do not ascend; in every method, on a time, a number of bytes
            or of steps that is negative or not a number.

    Example:
        >>> connection = Connection((Conditions(0, 8000, 80000, 0.5, 10),))
        >>> connection.uploaded(2000, start=1.0), connection.upload_budget(2.5), connection.computed(5, start=0.0)
        (3.5, 2000, 0.5)

    Source: none.

    Deviations: none.
    """

    conditions: tuple[Conditions, ...]
    sessions: Sessions = ALWAYS

    def __post_init__(self) -> None:
        if not self.conditions or self.conditions[0].seconds != 0:
            raise ConfigError("conditions must start at 0 seconds")
        for before, after in pairwise(self.conditions):
            if after.seconds <= before.seconds:
                raise ConfigError(f"conditions must ascend, got {after.seconds} after {before.seconds} seconds")

    def at(self, seconds: float) -> Conditions:
        """Return the conditions that hold at a time, in seconds."""
        return self.conditions[self._index(_check_time("seconds", seconds))]

    def sent(self, num_bytes: int, start: float = 0.0) -> float:
        """Return when the last byte of an upload has left the client.

        Args:
            num_bytes: 0 or more.
            start: seconds.

        Returns:
            Seconds; ``start`` for no bytes, inf where the rate stays 0.
        """
        return self._transfer(_RATES[0], num_bytes, start)[0]

    def uploaded(self, num_bytes: int, start: float = 0.0) -> float:
        """Return when the last byte of an upload has arrived: the rate integrated, then one latency.

        Args:
            num_bytes: 0 or more.
            start: seconds.

        Returns:
            Seconds; ``start`` for no bytes, which nobody waits for; inf where the last byte never leaves.
        """
        return self._transfer(_RATES[0], num_bytes, start)[1]

    def downloaded(self, num_bytes: int, start: float = 0.0) -> float:
        """Return when the last byte of a download has arrived; as ``uploaded``, at the downlink rate."""
        return self._transfer(_RATES[1], num_bytes, start)[1]

    def computed(self, num_steps: int, start: float = 0.0) -> float:
        """Return when a number of local steps that begin at ``start`` seconds are done; inf when never."""
        steps = check_integer("num_steps", num_steps, 0)
        return self._integrate(_RATES[2], steps, _check_time("start", start))[0]

    def upload_budget(self, seconds: float, start: float = 0.0) -> int:
        """Return the most bytes whose upload, latency included, ends within a time: the inverse of ``uploaded``.

        Args:
            seconds: time there is, 0 or more; inf asks how much ever arrives.
            start: seconds.

        Returns:
            ``budget`` with ``uploaded(budget, start) <= start + seconds < uploaded(budget + 1, start)``; 2^63 - 1
            (``UNLIMITED_BYTES``) where there is no limit.
        """
        end = _check_time("start", start) + _check_time("seconds", seconds)

        def fits(num_bytes: int) -> bool:
            arrived = self.uploaded(num_bytes, start)
            return arrived <= end and arrived < math.inf

        low, high = 0, 1
        while fits(high):
            if high == UNLIMITED_BYTES:
                return high
            low, high = high, min(2 * high, UNLIMITED_BYTES)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def available(self, at: float) -> bool:
        """Return whether the client is reachable at a finite time, in seconds."""
        return self.sessions.available(_check_moment(at))

    def next_available(self, at: float) -> float:
        """Return the first time from ``at`` on, finite seconds, at which the client is reachable; inf when never."""
        return self.sessions.next_available(_check_moment(at))

    def leaves(self, at: float) -> float:
        """Return when the session that holds ``at`` ends: ``at`` where the client is away, inf when it stays."""
        return self.sessions.leaves(_check_moment(at))

    def _index(self, at: float) -> int:
        return bisect_right(self.conditions, at, key=lambda conditions: conditions.seconds) - 1

    def _transfer(self, rate: str, num_bytes: int, start: float) -> tuple[float, float]:
        return self._integrate(rate, 8 * check_integer("num_bytes", num_bytes, 0), _check_time("start", start))

    def _integrate(self, rate_name: str, amount: float, start: float) -> tuple[float, float]:
        """When an amount has left at a rate, and when all of it is a latency further."""
        if amount == 0 or start == math.inf:
            return start, start
        left = arrived = start
        for index in range(self._index(start), len(self.conditions)):
            conditions = self.conditions[index]
            end = self.conditions[index + 1].seconds if index + 1 < len(self.conditions) else math.inf
            rate = getattr(conditions, rate_name)
            if rate > 0:
                room = rate * (end - left)
                done = min(left + amount / rate, end) if amount <= room else end
                arrived = max(arrived, done + conditions.latency_seconds)
                if amount <= room:
                    return done, arrived
                amount -= room
            left = end
        return math.inf, math.inf


def read_trace(path: str | Path) -> tuple[Connection, ...]:
    r"""Read the connections of a CSV file.

    The columns are ``client``, ``seconds``, ``uplink_bits_per_second``, ``downlink_bits_per_second``,
    ``latency_seconds``, ``steps_per_second`` and ``available``, named in the first line, in any order. A row holds from
    its ``seconds`` until the client's next row; rows of several clients may alternate.

    Args:
        path: UTF-8, or UTF-16 with a mark; cells between commas, semicolons or tabs, blanks around them left out.
            ``client`` is an integer of 0 or more; a client's first row is at 0 seconds and each later one after the
            one before; rates are finite and 0 (nothing moves) or more; ``available`` is 0 or 1, True or False. Rows
            without anything in them, and columns without a name, as an index is written, are passed over.

    Returns:
        One connection a client, by ascending client number.

    Raises:
        ConfigError: the file cannot be read or breaks these rules; the message names file, line and column.

    Example:
        >>> import tempfile
        >>> header = "client,seconds,uplink_bits_per_second,downlink_bits_per_second,latency_seconds"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "trace.csv")
        ...     rows = "0,0,8000,8000,0.1,5,1", "0,60,4000,8000,0.1,5,0"
        ...     _ = path.write_text("\n".join([f"{header},steps_per_second,available", *rows]))
        ...     [connection] = read_trace(path)
        >>> connection.leaves(0), connection.at(60).uplink_bits_per_second
        (60.0, 4000.0)

    Source: none.

    Deviations: none.
    """
    clients: dict[int, list[tuple[Conditions, bool]]] = {}
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        number = _number(row["client"])
        whole = 0 <= number < 2**53 and number.is_integer()  # pandas writes 0.0 where a column had gaps
        _expect(whole, where, "client", "an integer of 0 or more", row["client"])
        client = int(number)
        numbers = {column: _number(row[column]) for column in _COLUMNS[1:-1]}
        for column, number in numbers.items():
            _expect(0 <= number < math.inf, where, column, "a finite number of 0 or more", row[column])
        available = _flag(row["available"])
        _expect(available in (0.0, 1.0), where, "available", "0 or 1, True or False", row["available"])
        rows = clients.setdefault(client, [])
        seconds = numbers["seconds"]
        if rows:
            before = rows[-1][0].seconds
            _expect(seconds > before, where, "seconds", f"more than client {client}'s last {before}", row["seconds"])
        else:
            _expect(seconds == 0, where, "seconds", f"0 in the first row of client {client}", row["seconds"])
        rows.append((Conditions(**numbers), available == 1.0))
    if not clients:
        raise ConfigError(f"{path}: expected one row or more after the header, got none")
    return tuple(_connection(clients[client]) for client in sorted(clients))


def _rows(path: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and columns of each row that is not empty."""
    try:
        text = read_text(path)
        first = text.strip().partition("\n")[0]
        delimiter = max(_DELIMITERS, key=first.count)
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter, skipinitialspace=True)
        names: list[str] | None = None
        for cells in reader:
            row, where = [cell.strip() for cell in cells], f"{path}, line {reader.line_num}"
            if not any(row):
                continue
            if names is None:
                names = _names(row, where)
            elif len(row) != len(names):
                raise ConfigError(f"{where}: expected {len(names)} columns, got {len(row)}")
            else:
                yield reader.line_num, dict(zip(names, row, strict=True))
        if names is None:
            _names([], f"{path}, line 1")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"trace must be a readable CSV file, got {str(path)!r}: {error}") from error


def _names(header: list[str], where: str) -> list[str]:
    """Names of the columns, each of ours once; the others are without a name."""
    named = [name for name in header if name and not name.startswith("Unnamed: ")]
    missing = [name for name in _COLUMNS if name not in named]
    if missing or len(named) != len(_COLUMNS):
        expected = f"expected the columns {','.join(_COLUMNS)} in any order"
        lacking = f"; missing: {', '.join(missing)}" if 0 < len(missing) < len(_COLUMNS) else ""
        raise ConfigError(f"{where}: {expected}, got {','.join(header)}{lacking}")
    return header


def _expect(fine: bool, where: str, column: str, expected: str, got: str) -> None:
    if not fine:
        raise ConfigError(f"{where}, column {column}: expected {expected}, got {got!r}")


def _number(text: str) -> float:
    """The number a field holds; nan where it holds none."""
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def _flag(text: str) -> float:
    """1 and 0, also where they are written as words; nan, or another number, where it is neither."""
    return {"true": 1.0, "false": 0.0}.get(text.lower(), _number(text))


def _connection(rows: list[tuple[Conditions, bool]]) -> Connection:
    changes = (after[0].seconds for before, after in pairwise(rows) if before[1] != after[1])
    return Connection(tuple(conditions for conditions, _ in rows), ListedSessions(rows[0][1], tuple(changes)))


def _check_time(name: str, value: Any) -> float:
    """A number of 0 or more, inf included."""
    if value == math.inf and not isinstance(value, bool):
        return math.inf
    if check_number(name, value) < 0:
        raise ConfigError(f"{name} must be >= 0, got {value!r}")
    return float(value)


def _check_moment(at: Any) -> float:
    """A finite time of 0 or more."""
    return _check_time("at", check_number("at", at))
