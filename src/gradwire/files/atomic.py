"""Files that appear only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from pathlib import Path
from types import TracebackType

from gradwire.files.paths import naming_file, stat_output

__all__ = ["AtomicFile", "write_atomically"]

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)


def write_atomically(path: Path, data: bytes, synced: bool = True) -> None:
    """Write a file so that at any moment it is either as before or complete.

    Args:
        path: the file; its folder must exist.
        data: the whole content.
        synced: as for ``AtomicFile``.

    Raises:
        ConfigError: when a folder, device or pipe is there.
        OSError: when it cannot be written.
    """
    with AtomicFile(path, synced) as file:
        file.write(data)
        file.commit()


class AtomicFile:
    """A file that appears, or replaces the old one, only when ``commit`` is called; use as a context manager.

    It is written beside its place and renamed. A link is followed: the file it points to is replaced. An old file's
    mode and owner are kept, where the system lets us; a new one's mode is what the umask leaves. Nothing can be
    renamed over a file that is a mount of its own (as containers have them), so that one is written in place.

    Args:
        path: the file.
        synced: whether it is on the disk before it is in its place; False is for what only has to survive the process.

    Attributes:
        num_bytes: how many were written so far.
        folder: where it will be.

    Raises:
        ConfigError: when a folder, device or pipe is there.
        OSError: when its folder cannot be written. Every OSError of this class names the file.
    """

    def __init__(self, path: Path, synced: bool = True) -> None:
        self._path = path
        self._synced = synced
        self.num_bytes = 0
        with naming_file(path):
            self._old = stat_output(path)
            self._place = Path(os.path.realpath(path))
            self.folder = self._place.parent
            self._name = self.folder / f".{self._place.name[:40]}.{secrets.token_hex(8)}"
            mode = 0o666 if self._old is None else stat.S_IMODE(self._old.st_mode) & 0o777
            self._file = os.fdopen(os.open(self._name, _NEW, mode), "wb")
        self._done = False

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        with naming_file(self._path):
            self._file.write(data)
        self.num_bytes += len(data)

    def finish(self) -> None:
        """Bring what was written to the disk, so that hardly anything can fail in ``commit``."""
        with naming_file(self._path):
            self._file.flush()
            if self._synced:
                os.fsync(self._file.fileno())
            self._file.close()
            if self._old is not None:
                if hasattr(os, "chown"):
                    with contextlib.suppress(OSError):
                        os.chown(self._name, self._old.st_uid, self._old.st_gid)
                os.chmod(self._name, stat.S_IMODE(self._old.st_mode) & 0o777)

    def commit(self) -> None:
        """Put the file in its place."""
        if not self._file.closed:
            self.finish()
        with naming_file(self._path):
            try:
                os.replace(self._name, self._place)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                self._write_in_place()
        self._done = True

    def _write_in_place(self) -> None:
        with self._name.open("rb") as source, self._place.open("r+b") as target:
            shutil.copyfileobj(source, target)
            target.truncate()
            target.flush()
            if self._synced:
                os.fsync(target.fileno())
        self._name.unlink()

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget everything written, unless it was put in its place."""
        if not self._done:
            # on a full disk closing fails once more, on what is still buffered
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._name.unlink()
