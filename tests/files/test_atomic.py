"""Files that appear whole: what happens to modes, links, mounts and the old file, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from gradwire.errors import ConfigError
from gradwire.files.atomic import AtomicFile, write_atomically

resource = pytest.importorskip("resource")


@contextlib.contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o022, 0o002])
def test_a_new_file_has_the_mode_the_umask_leaves(tmp_path, mask):
    with umask(mask):
        write_atomically(tmp_path / "file", b"x")
        (tmp_path / "plain").touch()
    assert mode_of(tmp_path / "file") == mode_of(tmp_path / "plain") == 0o666 & ~mask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
def test_an_old_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    with umask(0o077), AtomicFile(path) as file:
        (temporary,) = [p for p in tmp_path.iterdir() if p != path]
        assert mode_of(temporary) & ~mode == 0, "never more than what the file has"
        file.write(b"new")
        file.commit()
    assert (path.read_bytes(), mode_of(path)) == (b"new", mode)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_an_old_file_keeps_its_owner(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 4321, 1234)
    write_atomically(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (4321, 1234)


@pytest.mark.parametrize("synced", [True, False])
def test_the_disk_is_waited_for_unless_told_not_to(tmp_path, monkeypatch, synced):
    calls = []
    monkeypatch.setattr(os, "fsync", calls.append)
    for data in (b"old", b"new"):
        write_atomically(tmp_path / "file", data, synced)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]
    assert len(calls) == 2 * synced


def test_a_link_is_followed(tmp_path):
    (tmp_path / "far").mkdir()
    for name in ("there", "not-there-yet"):
        target = tmp_path / "far" / name
        if name == "there":
            target.write_bytes(b"old")
        link = tmp_path / f"link-{name}"
        link.symlink_to(Path("far") / name)
        (tmp_path / f"second-{name}").symlink_to(link)
        write_atomically(tmp_path / f"second-{name}", b"new")
        assert target.read_bytes() == b"new"
        assert link.is_symlink()
        assert (tmp_path / f"second-{name}").is_symlink()
    assert sorted(os.listdir(tmp_path / "far")) == ["not-there-yet", "there"]


def test_links_in_a_circle_are_an_error_that_names_the_file(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links") as caught:
        write_atomically(tmp_path / "a", b"x")
    assert caught.value.filename == str(tmp_path / "a")


def special_files(folder):
    """(path, what it is called) of everything that is no regular file and can be made here."""
    (folder / "folder").mkdir()
    yield folder / "folder", "a folder"
    os.mkfifo(folder / "pipe")
    yield folder / "pipe", "a pipe"
    (folder / "link").symlink_to("pipe")
    yield folder / "link", "a pipe"
    with socket.socket(socket.AF_UNIX) as end, contextlib.chdir(folder):
        end.bind("socket")
    yield folder / "socket", "a socket"
    with contextlib.suppress(PermissionError):
        os.mknod(folder / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        yield folder / "device", "a device"
    yield Path("/dev/null"), "a device"


def test_what_is_no_regular_file_is_refused_and_kept(tmp_path):
    for path, kind in special_files(tmp_path):
        before = path.lstat()
        with pytest.raises(ConfigError, match=f"it is {kind}, expected a regular file"):
            write_atomically(path, b"x")
        assert path.lstat().st_ino == before.st_ino
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_file_that_nothing_can_be_renamed_over_is_written_in_place(tmp_path, monkeypatch):
    path = tmp_path / "mounted"
    path.write_bytes(b"old and longer than the new one")
    inode = path.stat().st_ino

    def busy(source, target):
        raise OSError(errno.EBUSY, "Device or resource busy", str(source))

    monkeypatch.setattr(os, "replace", busy)
    write_atomically(path, b"new")
    assert (path.read_bytes(), path.stat().st_ino) == (b"new", inode)
    assert os.listdir(tmp_path) == ["mounted"]


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "a\nb", ".", "hidden"])
def test_every_name_that_a_file_can_have(tmp_path, name):
    if name == ".":
        with pytest.raises(ConfigError, match="it is a folder"):
            write_atomically(tmp_path / name, b"x")
        return
    write_atomically(tmp_path / name, b"x")
    assert os.listdir(tmp_path) == [name]


def write_all(path, pieces):
    with AtomicFile(path) as file:
        for piece in pieces:
            file.write(piece)
        file.commit()


@pytest.mark.parametrize("pieces", [[b"x" * 5000], [b"x" * 10] * 1000, [b"x" * 100_000]], ids=["one", "many", "large"])
def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(tmp_path, pieces):
    """What is still buffered fails once more when the file is closed."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_all(path, pieces)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new and longer")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupt_in_mid_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_readers_see_the_old_or_the_new_file_never_a_part(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    seen = []
    real = os.fsync

    def look(descriptor):
        seen.append(path.read_bytes())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_atomically(path, b"new" * 100_000)
    assert seen[0] == b"old"
    assert path.read_bytes() == b"new" * 100_000


def test_writing_into_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        write_atomically(tmp_path / "none" / "file", b"x")
