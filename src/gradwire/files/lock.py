"""A lock that processes hold on a folder while they write in it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradwire.errors import ConfigError

__all__ = ["locked"]

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)  # what is locked there nobody else can read
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error
else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_FAR = 1 << 30


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file, which is gone afterwards.

    The system lets go of it when the process ends, however it ends: a lock file that is left holds nobody up.

    Args:
        path: the lock file; its folder must exist.

    Yields:
        Whether it is held: False where the file system has no locks.

    Raises:
        ConfigError: when another process holds it, or the file cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder, ".lock")) as held:
        ...     try:
        ...         with locked(Path(folder, ".lock")):
        ...             pass
        ...     except ConfigError as error:
        ...         print(held, "is at work there" in str(error))
        True True
    """
    descriptor, held = _acquire(path)
    try:
        with contextlib.suppress(OSError):  # it is for people alone
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0) if hasattr(os, "pwrite") else None
        yield held
    finally:
        if sys.platform != "win32":  # while it is held: whoever waits for the name finds another file
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(descriptor)


def _acquire(path: Path) -> tuple[int, bool]:
    """Open and lock the file that has this name, and still has it then; and whether it is locked."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            _take(descriptor)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor, True
        except BlockingIOError:
            who = os.read(descriptor, 20).decode(errors="replace")
            os.close(descriptor)
            name = f"process {who}" if who.isdigit() else "another process"
            where = f"{path.parent}: {name} is at work there"
            raise ConfigError(f"{where}; wait for it, or choose another folder") from None
        except FileNotFoundError:  # its last holder has just unlinked it
            pass
        except OSError:
            return descriptor, False
        os.close(descriptor)
