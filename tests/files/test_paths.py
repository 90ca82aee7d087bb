"""Paths: no output is an input or another output, whatever it is called; nothing but files is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_atomic import special_files

from gradwire.errors import ConfigError
from gradwire.files.paths import check_paths, naming_file, open_input

NAMES = {  # other names of x
    "itself": lambda x: x,
    "by-a-detour": lambda x: x.parent / "folder" / ".." / "x",
    "link": lambda x: x.parent / "link",
    "link-to-link": lambda x: x.parent / "second",
    "hard-link": lambda x: x.parent / "hard",
    "relative": lambda x: Path(os.path.relpath(x)),
}


@pytest.fixture
def x(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "second").symlink_to("link")
    os.link(path, tmp_path / "hard")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_one_file_under_two_names_is_noticed(x, name):
    other = NAMES[name](x)
    with pytest.raises(ConfigError, match=r"is the same file as .*, which is read"):
        check_paths([other], [x.parent / "more", x])
    with pytest.raises(ConfigError, match=r"is the same file as .*, which is written"):
        check_paths([x, other], [])


@pytest.mark.parametrize("name", ["itself", "by-a-detour", "link", "link-to-link", "relative"])
def test_a_file_that_is_not_there_yet_too(x, name):
    x.unlink()
    with pytest.raises(ConfigError, match="same file"):
        check_paths([x, NAMES[name](x)], [])


def test_files_apart_are_let_through(x):
    (x.parent / "y").write_bytes(b"x")
    check_paths([x, x.parent / "new"], [x.parent / "y", x.parent / "missing"])
    check_paths([x.parent / "new"], [x, x])


def test_an_output_is_no_folder_and_no_device(tmp_path):
    for path, kind in special_files(tmp_path):
        with pytest.raises(ConfigError, match=f"it is {kind}"):
            check_paths([path], [])


def test_only_files_are_read_and_nothing_is_waited_for(tmp_path):
    for path, kind in special_files(tmp_path):
        with pytest.raises(ConfigError, match="Is a directory" if kind == "a folder" else f"it is {kind}"):
            open_input(path)
    with pytest.raises(ConfigError, match="No such file"):
        open_input(tmp_path / "none")


def test_what_the_system_says_names_the_file_that_was_meant():
    with pytest.raises(FileNotFoundError, match="No such file") as caught, naming_file(Path("meant")):
        raise OSError(2, "No such file", "temporary")
    assert caught.value.filename == "meant"
