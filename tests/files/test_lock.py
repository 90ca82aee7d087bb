"""The lock of a folder: one at a time, among processes and threads, gone when its holder is."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from gradwire.errors import ConfigError
from gradwire.files import lock
from gradwire.files.lock import locked

_HOLDER = """
import sys, time
from pathlib import Path
from gradwire.files.lock import locked
with locked(Path(sys.argv[1])) as held:
    print(held, flush=True)
    sys.stdin.readline()
"""


def holder(path):
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True\n"
    return process


def test_a_second_process_is_told_who_is_there(tmp_path):
    process = holder(tmp_path / ".lock")
    try:
        with pytest.raises(ConfigError, match=rf"process {process.pid} is at work there"), locked(tmp_path / ".lock"):
            pytest.fail("two at once")
    finally:
        process.communicate("\n")
    assert process.returncode == 0
    assert os.listdir(tmp_path) == []
    with locked(tmp_path / ".lock") as held:
        assert held


def test_whoever_is_killed_holds_nobody_up(tmp_path):
    process = holder(tmp_path / ".lock")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert os.listdir(tmp_path) == [".lock"]
    with locked(tmp_path / ".lock") as held:
        assert held
    assert os.listdir(tmp_path) == []


def test_there_is_never_more_than_one(tmp_path):
    """Lock files that are unlinked and made again all the time: the race of the name and the lock."""
    inside, most, entered = 0, 0, 0

    def work(_):
        nonlocal inside, most, entered
        for _ in range(200):
            try:
                with locked(tmp_path / ".lock"):
                    inside += 1
                    most = max(most, inside)
                    entered += 1
                    inside -= 1
            except ConfigError:
                continue

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(before)
    assert most == 1
    assert entered > 0
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks_is_told_apart(tmp_path, monkeypatch):
    def take(descriptor):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_take", take)
    with locked(tmp_path / ".lock") as held:
        assert not held


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"), locked(tmp_path / "none" / ".lock"):
        pytest.fail("locked")


def test_an_exception_inside_lets_go(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / ".lock"):
        1 / 0  # noqa: B018
    with locked(tmp_path / ".lock") as held:
        assert held
