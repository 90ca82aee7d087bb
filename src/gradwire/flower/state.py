"""State: what a node remembers of a conversation, and where it keeps it: on disk, or in the context Flower keeps."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, Context

from gradwire.checks import check_integer
from gradwire.compressors.compressor import Vector
from gradwire.compressors.spec import parse
from gradwire.ends.client import Client
from gradwire.errors import StateError
from gradwire.files.atomic import write_atomically
from gradwire.files.store import pack_state, read_state, unpack_state, write_state
from gradwire.flower.carrier import NAME
from gradwire.flower.header import Instruction
from gradwire.flower.model import Model
from gradwire.saved import reading_state, saved_integer, saved_vector

__all__ = ["ContextStore", "FolderStore", "Member", "Place", "default_folder"]

_FORMAT = 2
_LOCK_SECONDS = 10.0
_DAY = 86_400.0
_SUFFIXES = (".state", ".secrets", ".lock")
_parse = lru_cache(maxsize=16)(parse)  # the same text comes with every message


@dataclass
class Member:
    """What a node remembers: its client, and the model it holds.

    Attributes:
        client: with its residual and what it sent and heard nothing of yet.
        birth: of the conversation.
        incarnation: 8 bytes, drawn when the state was fresh: a node that lost its disk is told from itself before.
        version: of the model.
        model: the model.
        proposed: the update of which this client, a secure sum's leader, proposed coordinates, and its weight, until it
            is sent.
    """

    client: Client
    birth: bytes
    incarnation: bytes
    version: int
    model: Model
    proposed: tuple[Vector, int] | None = None

    @classmethod
    def fresh(cls, told: Instruction, client_id: int, model: Model) -> Member:
        """Make the state of a node that hears of a conversation for the first time."""
        client = Client(_parse(told.spec), model.layout, client_id, told.seed, told.num_rounds)
        return cls(client, told.birth, secrets.token_bytes(8), told.version, model)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy, as arrays and plain values."""
        return {
            "format": _FORMAT,
            "spec": str(self.client.compressor),
            "birth": self.birth.hex(),
            "incarnation": self.incarnation.hex(),
            "version": self.version,
            "model": self.model.state_dict(),
            "client": self.client.state_dict(),
            "proposed": None if self.proposed is None else list(self.proposed),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Member:
        """Read what ``state_dict`` gave, or raise StateError."""
        with reading_state():
            if state["format"] != _FORMAT:
                raise StateError(f"state has format {state['format']!r}, expected {_FORMAT}")
            model = Model.from_state(state["model"])
            saved = state["client"]
            client = Client(_parse(state["spec"]), model.layout, check_integer("client_id", saved["client_id"], 0))
            client.load_state_dict(saved)
            birth, incarnation = bytes.fromhex(state["birth"]), bytes.fromhex(state["incarnation"])
            proposed = None
            if state["proposed"] is not None:
                update, weight = state["proposed"]
                proposed = saved_vector("update", update, (model.layout.d,)), saved_integer("weight", weight, 1)
            return cls(client, birth, incarnation, check_integer("version", state["version"], 0), model, proposed)

    def restart_at(self, blob: bytes | None, version: int) -> None:
        """Take up the conversation at a version, whatever was held before: the model came whole.

        Args:
            blob: the downlink blob that led there, where the compressor leans on it.
            version: the number of rounds closed.
        """
        state = self.client.state_dict()
        state["reference"] = None if blob is None else np.frombuffer(blob, np.uint8)
        state["round"] = version
        self.client.load_state_dict(state)
        self.version = version


class Place(Protocol):
    """Where one member's state is, while it is in nobody else's hands."""

    def __str__(self) -> str:
        """Name it, for people."""

    def read(self) -> Member | None:
        """Return what is there, None where nothing is."""

    def write(self, member: Member) -> None:
        """Replace it."""

    def read_secrets(self) -> bytes | None:
        """Return what is kept of a secure sum, None where nothing is."""

    def write_secrets(self, data: bytes) -> None:
        """Replace that."""


def default_folder() -> Path:
    """Return where states are kept unless told: ``$GRADWIRE_STATE``, or ``gradwire`` in Flower's home."""
    if "GRADWIRE_STATE" in os.environ:
        return Path(os.environ["GRADWIRE_STATE"])
    return Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr") / "gradwire"


@dataclass(frozen=True)
class FolderStore:
    """States on disk: ``<folder>/<conversation>/client-<id>.state``, whole or not at all, one process at a time.

    Attributes:
        folder: where; made if need be.
        keep_days: other conversations that nobody touched for so long are deleted when a new one begins.
        synced: whether a state is on the disk before it counts as written.
    """

    folder: Path
    keep_days: float = 30.0
    synced: bool = True

    @contextmanager
    def open(self, conversation: str, client_id: int) -> Iterator[Place]:
        """Hold a state, alone.

        Args:
            conversation: a name fit for files.
            client_id: whose.

        Yields:
            What reads and writes it.

        Raises:
            StateError: when the folder cannot be written, or another process holds the state.
        """
        folder = self.folder / conversation
        try:
            with suppress(FileExistsError):  # clients of one machine begin at the same time
                folder.mkdir(parents=True)
                self._forget_old(folder)
            lock = (folder / f"client-{client_id}.lock").open("ab")
        except OSError as error:
            raise StateError(f"state folder {folder} cannot be written: {error.strerror or error}") from None
        with lock:
            _wait_for(
                lambda: _lock(lock),
                f"{folder / f'client-{client_id}.state'} is held by another process: is there a second SuperNode "
                f"of client {client_id} on this machine? give each its own client-id in --node-config",
            )
            yield _FilePlace(folder / f"client-{client_id}.state", self.synced)

    def _forget_old(self, new: Path) -> None:
        """Delete conversations of long ago, as far as they are states of ours."""
        before = time.time() - self.keep_days * _DAY
        for folder in self.folder.iterdir():
            if folder == new or not folder.is_dir() or folder.is_symlink():
                continue
            with suppress(FileNotFoundError):  # another process forgets it just now
                files = list(folder.iterdir())
                ours = all(file.name.startswith("client-") and file.suffix in _SUFFIXES for file in files)
                if files and ours and all(file.stat().st_mtime < before for file in files):
                    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _FilePlace:
    path: Path
    synced: bool

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> Member | None:
        if not self.path.exists():
            return None
        state = read_state(self.path)
        try:
            return Member.from_state(state)
        except StateError as error:
            raise StateError(
                f"{self.path}: {error}; delete it to begin anew, without what it still had to send"
            ) from None

    def write(self, member: Member) -> None:
        try:
            write_state(self.path, member.state_dict(), self.synced)
        except OSError as error:
            raise StateError(f"state {self.path} cannot be written: {error.strerror or error}") from None

    def read_secrets(self) -> bytes | None:
        path = self.path.with_suffix(".secrets")
        return path.read_bytes() if path.exists() else None

    def write_secrets(self, data: bytes) -> None:
        path = self.path.with_suffix(".secrets")
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))  # whose mode the new file keeps
            write_atomically(path, data, self.synced)
        except OSError as error:
            raise StateError(f"secrets {path} cannot be written: {error.strerror or error}") from None


@dataclass(frozen=True)
class ContextStore:
    """States in the context: in the memory of the SuperNode, or of the simulation engine; gone when it ends.

    Attributes:
        context: what Flower hands to the app.
    """

    context: Context

    @contextmanager
    def open(self, conversation: str, client_id: int) -> Iterator[Place]:
        """Hold a state; arguments as for ``FolderStore.open``. Flower lets one message at a time have the context."""
        yield _ContextPlace(self.context, f"gradwire.{conversation}.client-{client_id}")


@dataclass(frozen=True)
class _ContextPlace:
    context: Context
    key: str

    def __str__(self) -> str:
        return "Flower's context, in memory"

    def read(self) -> Member | None:
        if self.key not in self.context.state:
            return None
        record = self.context.state[self.key]
        if not isinstance(record, ArrayRecord) or NAME not in record:
            raise StateError(f"context's {self.key!r} is no state of gradwire's")
        return Member.from_state(unpack_state(record[NAME].data, f"context's {self.key!r}"))

    def write(self, member: Member) -> None:
        self._put(self.key, pack_state(member.state_dict()))

    def read_secrets(self) -> bytes | None:
        record = self.context.state.get(f"{self.key}.secrets")
        return record[NAME].data if isinstance(record, ArrayRecord) and NAME in record else None

    def write_secrets(self, data: bytes) -> None:
        self._put(f"{self.key}.secrets", data)

    def _put(self, key: str, data: bytes) -> None:
        self.context.state[key] = ArrayRecord({NAME: Array("uint8", (len(data),), NAME, data)})


def _wait_for(done: Callable[[], bool], otherwise: str) -> None:
    """Wait a few seconds until something is done, or raise StateError."""
    until = time.monotonic() + _LOCK_SECONDS
    while not done():
        if time.monotonic() > until:
            raise StateError(otherwise)
        time.sleep(0.05)


def _lock(file: IO[bytes]) -> bool:
    """Try to lock an open file until it is closed, by whatever the system has; False where another has it."""
    try:
        if os.name == "nt":  # pragma: no cover
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
