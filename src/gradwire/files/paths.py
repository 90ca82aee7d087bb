"""Paths that a command is given: what may be read, what may be written, and that no two of them are one file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from gradwire.errors import ConfigError

__all__ = ["check_paths", "naming_file", "open_input", "stat_output"]


def check_paths(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise ConfigError where an output is no place for a file, or is an input or another output.

    Links are followed, so that two names of one file are noticed. Nothing is opened.

    Args:
        outputs: files that will be written.
        inputs: files that will be read.
    """
    for number, output in enumerate(outputs):
        try:
            stat_output(output)
        except OSError as error:
            raise ConfigError(f"{output}: cannot be written: {error.strerror}") from None
        for role, others in (("written", outputs[:number]), ("read", inputs)):
            other = next((path for path in others if _are_one(output, path)), None)
            if other is not None:
                raise ConfigError(f"{output}: cannot be written: it is the same file as {other}, which is {role}")


def _are_one(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there yet
        return os.path.realpath(one) == os.path.realpath(other)


def stat_output(path: Path) -> os.stat_result | None:
    """Look at what stands where a file will be written.

    Args:
        path: the file; links are followed.

    Returns:
        What the system says of the file that is there, or None where there is none.

    Raises:
        ConfigError: where something else than a file is there, which a rename would destroy.
        OSError: where the system does not tell.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: cannot be written: it is {_kind_of(found.st_mode)}, expected a regular file")
    return found


def open_input(path: Path) -> BufferedReader:
    """Open a file for reading.

    Args:
        path: the file.

    Returns:
        The file, open.

    Raises:
        ConfigError: when it cannot be read; at once also for a pipe, which would have to be waited for and cannot be
            read out of order.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ConfigError(f"{path}: cannot be read: it is {_kind_of(mode)}, expected a regular file")
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Put a file's name into what the system says of it, in place of a temporary one or none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
