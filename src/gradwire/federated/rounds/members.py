"""Members: every client's side of a simulation, made when first needed, kept in memory or on disk."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.ends.client import Client
from gradwire.errors import StateError
from gradwire.files.store import pack_state, unpack_state
from gradwire.saved import reading_state, saved_integer, saved_number, saved_vector

__all__ = ["Member", "Members", "MembersOnDisk"]

_SYSTEM_ERRORS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.ENOENT,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
}


@dataclass
class Member:
    """One client, and what the simulation has to know of it.

    Attributes:
        client: its end of the conversation.
        version: closed rounds its model includes; None before it has any model.
        owed_bytes: sent to it, but not downloaded on the virtual clock yet.
        busy_until: virtual second at which it is done with what it downloads, from an earlier round on.
        pending: sequence numbers of payloads it has not heard of since.
        examples_used: for continuous learning, how many of the examples that came in it has trained on.
        control: the road of its control variates, for SCAFFOLD.
        variate: (d,) float32, its control variate c_i.
    """

    client: Client
    version: int | None = None
    owed_bytes: int = 0
    busy_until: float = 0.0
    pending: list[int] = field(default_factory=list)
    examples_used: int = 0
    control: Client | None = None
    variate: NDArray[np.float32] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all of it."""
        return {
            "client": self.client.state_dict(),
            "version": self.version,
            "owed_bytes": self.owed_bytes,
            "busy_until": self.busy_until,
            "pending": list(self.pending),
            "examples_used": self.examples_used,
            "control": None if self.control is None else self.control.state_dict(),
            "variate": None if self.variate is None else self.variate.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            StateError: on a state that no run can have left.
        """
        with reading_state():
            self.client.load_state_dict(state["client"])
            self.version = None if state["version"] is None else saved_integer("version", state["version"])
            self.owed_bytes = saved_integer("owed_bytes", state["owed_bytes"])
            self.busy_until = saved_number("busy_until", state["busy_until"])
            self.pending = [saved_integer("pending", n) for n in state["pending"]]
            if self.pending != [payload["sequence"] for payload in state["client"]["pending"]]:
                raise StateError(f"state's pending must be the client's own, got {self.pending}")
            self.examples_used = saved_integer("examples_used", state["examples_used"])
            if self.control is not None:
                self.control.load_state_dict(state["control"])
                self.variate = saved_vector("variate", state["variate"], (self.client.layout.d,))


class Members:
    """Clients in memory.

    Args:
        make: client_id -> a client as it is before its first round.
    """

    def __init__(self, make: Callable[[int], Member]) -> None:
        self._make = make
        self._made: dict[int, Member] = {}

    @contextmanager
    def at_work(self, client_ids: Sequence[int], rounds_done: int) -> Iterator[dict[int, Member]]:
        """Hold some clients for a while; what becomes of them is kept at the end.

        Args:
            client_ids: which.
            rounds_done: how many rounds are complete, where they are saved by rounds.
        """
        for i in client_ids:
            if i not in self._made:
                self._made[i] = self._make(i)
        yield {i: self._made[i] for i in client_ids}

    def all(self) -> list[Member]:
        """Return every client made so far, by number."""
        return [self._made[i] for i in sorted(self._made)]

    def __len__(self) -> int:
        """How many clients were made so far."""
        return len(self._made)

    def state_dict(self, rounds_done: int) -> dict[str, Any]:
        """Return a copy of all clients made so far; see ``MembersOnDisk``."""
        members = [[i, member.state_dict()] for i, member in sorted(self._made.items())]
        return {"num_members": len(members), "members": members}

    def load_state_dict(self, state: dict[str, Any], rounds_done: int) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            StateError: on clients that are missing or there twice.
        """
        ids = [saved_integer("client", i) for i, _ in state["members"]]
        if len(ids) != state["num_members"] or ids != sorted(set(ids)):
            raise StateError(f"state must be of {state['num_members']} clients in order, got clients {ids}")
        made = {i: self._make(i) for i in ids}
        for i, saved in state["members"]:
            made[i].load_state_dict(saved)
        self._made = made

    def forget_after(self, rounds_done: int) -> None:
        """Drop what came after so many rounds, where more than one state of a client is kept."""

    def forget_before(self, rounds_done: int) -> None:
        """Drop what only an older state than that of so many rounds would need, where there is any."""

    def close(self) -> None:
        """Let go of files."""


class MembersOnDisk(Members):
    """Clients in a file; only those at work are in memory.

    A row holds a client as it was after a number of rounds. Rows that the last checkpoint leans on stay until there
    is a new one, so that a run that dies in between goes on from that checkpoint.

    Args:
        make: client_id -> a client as it is before its first round.
        path: the file, an SQLite database; made where it is missing.

    Raises:
        StateError: on a damaged file, here and in every method.
        OSError: when it cannot be read or written, on a full disk for instance, here and in every method.
    """

    def __init__(self, make: Callable[[int], Member], path: Path) -> None:
        super().__init__(make)
        self._path = path
        with self._naming_errors():
            self._base = sqlite3.connect(path)
        try:
            with self._naming_errors():
                self._base.execute("PRAGMA journal_mode = WAL")
                self._base.execute(
                    "CREATE TABLE IF NOT EXISTS members (client INTEGER, rounds INTEGER, state BLOB, "
                    "PRIMARY KEY (client, rounds)) WITHOUT ROWID"
                )
        except BaseException:
            self.close()
            raise

    @contextmanager
    def at_work(self, client_ids: Sequence[int], rounds_done: int) -> Iterator[dict[int, Member]]:
        """Read some clients, and write them back at the end; see ``Members.at_work``."""
        members = {i: self._read(i) for i in client_ids}
        yield members
        rows = ((i, rounds_done, pack_state(member.state_dict())) for i, member in members.items())
        with self._naming_errors():
            self._base.executemany("INSERT OR REPLACE INTO members VALUES (?, ?, ?)", rows)

    def all(self) -> list[Member]:
        """Return every client made so far, by number: all of them in memory."""
        return [self._read(i) for (i,) in self._rows("SELECT DISTINCT client FROM members ORDER BY client")]

    def __len__(self) -> int:
        """How many clients are in the file."""
        return self._count(2**62)

    def state_dict(self, rounds_done: int) -> dict[str, Any]:
        """Make what is in the file the state after so many rounds, and say nothing more."""
        with self._naming_errors():
            self._base.commit()
        return {"num_members": self._count(rounds_done)}

    def load_state_dict(self, state: dict[str, Any], rounds_done: int) -> None:
        """Forget what came after so many rounds.

        Raises:
            StateError: when the file lacks clients.
        """
        if self._count(rounds_done) != state["num_members"]:
            raise StateError(f"{self._path}: holds {self._count(rounds_done)} clients, expected {state['num_members']}")
        self.forget_after(rounds_done)

    def forget_after(self, rounds_done: int) -> None:
        """Drop what came after so many rounds."""
        self._delete("rounds > ?", rounds_done)

    def forget_before(self, rounds_done: int) -> None:
        """Drop what only an older state than that of so many rounds would need."""
        self._delete(
            "EXISTS (SELECT 1 FROM members AS later WHERE later.client = members.client "
            "AND later.rounds > members.rounds AND later.rounds <= ?)",
            rounds_done,
        )

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()

    def _count(self, rounds_done: int) -> int:
        [(count,)] = self._rows("SELECT COUNT(DISTINCT client) FROM members WHERE rounds <= ?", rounds_done)
        return int(count)

    def _read(self, client_id: int) -> Member:
        member = self._make(client_id)
        query = "SELECT state FROM members WHERE client = ? ORDER BY rounds DESC LIMIT 1"
        for (state,) in self._rows(query, client_id):
            try:
                member.load_state_dict(unpack_state(state, f"client {client_id}"))
            except StateError as error:
                raise StateError(f"{self._path}: client {client_id}: {error}") from error
        return member

    def _rows(self, query: str, *values: int) -> list[tuple[Any, ...]]:
        with self._naming_errors():
            return self._base.execute(query, values).fetchall()

    def _delete(self, condition: str, *values: int) -> None:
        with self._naming_errors():
            self._base.execute(f"DELETE FROM members WHERE {condition}", values)
            self._base.commit()

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """Tell damage from a disk that is full or cannot be used."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
            if code in _SYSTEM_ERRORS:
                raise OSError(_SYSTEM_ERRORS[code], str(error), str(self._path)) from error
            raise StateError(f"{self._path}: damaged: {error}") from error
