"""docs/format.md against the library: its tables, its examples and its errors."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import independent_reader as other
import numpy as np
import pytest

import gradwire as gw
from gradwire.files.dtypes import DTYPES
from gradwire.wire import container, entropy, index, values
from gradwire.wire.reader import Reader

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()


def test_python_in_the_format_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 2
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/format.md, block {number + 1}", "exec"), {})


def test_worked_example_is_explained_whole():
    shown = re.search(r'shown = "([0-9a-f ]+)"', PAGE).group(1)
    rows = re.findall(r"^\| `([0-9a-f ]+)` \|", PAGE, re.MULTILINE)
    assert " ".join(rows) == shown
    blob = bytes.fromhex(shown)
    assert struct.unpack("<I", blob[-4:])[0] == 0xE5EEF09D
    assert gw.inspect(blob)["codec"] == {"support": "golomb", "values": "centred"}


def test_tables_of_the_format_page_are_those_of_the_source():
    for number, name in index.NAMES.items():
        assert re.search(rf"^\| {number} \| {name} \|", PAGE, re.MULTILINE)
    for name, number in entropy.CODERS.items():
        assert re.search(rf"^\| {number} \| {name} \|", PAGE, re.MULTILINE)
    kinds = ", ".join(f"{number} {name}" for number, name in values._KINDS.items())
    assert kinds in " ".join(PAGE.split())
    dtypes = ", ".join(f"{code} {name}" for code, name in enumerate(DTYPES))
    assert dtypes in " ".join(PAGE.split())
    limits = gw.Limits()
    for name, shown in re.findall(r"^\| `(max_\w+)` \| ([0-9^]+) \|", PAGE, re.MULTILINE):
        base, _, power = shown.partition("^")
        assert getattr(limits, name) == int(base) ** int(power or 1), name
    assert f"ceil(n / {limits.max_expansion}) + 4 bytes" in PAGE
    assert f"version | 1 | always | {container.VERSION} |" in PAGE


def section(title: str) -> str:
    """The text from a heading on to the next one."""
    return re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL).group(1)


def rows(text: str) -> list[list[str]]:
    """The cells of a section's tables whose first cell is a word."""
    found = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    return [
        cells
        for cells in found
        if re.fullmatch(r"`?\w+`?", cells[0]) and cells[0] not in ("codec", "coder", "error", "limit")
    ]


def bytes_in(cell: str) -> bytes:
    return bytes.fromhex(re.fullmatch(r"`([0-9a-f ]+)`", cell).group(1))


LISTED = [2, 3, 4, 5, 9, 10, 30]
SYMBOLS = [1, 1, 1, 0, 0, 2, 2, 2]
SUPPORT_ROWS, SYMBOL_ROWS = rows(section("3.9 Examples")), rows(section("6.5 Examples"))


def test_every_code_that_lists_has_an_example():
    assert [name for name, _ in SUPPORT_ROWS] == ["golomb", "bitmap", "runs", "entropy", "segments"]
    assert [name for name, _ in SYMBOL_ROWS] == list(entropy.CODERS)
    assert "2, 3, 4, 5, 9, 10 and 30 of a part of length 40" in section("3.9 Examples")
    assert f"The 8 symbols {', '.join(map(str, SYMBOLS))} with n = 3" in section("6.5 Examples")


@pytest.mark.parametrize(("name", "cell"), SUPPORT_ROWS)
def test_examples_of_supports(name, cell):
    codec = {word: number for number, word in index.NAMES.items()}[name]
    reader = Reader(memoryview(bytes_in(cell)))
    assert index.decode_support(codec, 40, 0, reader, gw.Limits()).indices.tolist() == LISTED
    assert not reader.remaining
    source = other.Reader(bytes_in(cell))
    assert source.support(codec, 40, 0, None) == LISTED
    assert source.at == 8 * len(source.data)


@pytest.mark.parametrize(("name", "cell"), SYMBOL_ROWS)
def test_examples_of_symbol_streams(name, cell):
    reader = Reader(memoryview(bytes_in(cell)))
    found = entropy.decode_symbols(entropy.CODERS[name], len(SYMBOLS), 3, reader, gw.Limits())
    assert found.tolist() == SYMBOLS
    assert not reader.remaining
    assert other.Reader(bytes_in(cell)).symbols(entropy.CODERS[name], len(SYMBOLS), 3) == SYMBOLS


def test_steps_of_the_rans_example():
    """Each line of the table, by the rules of 6.3."""
    cell = next(cell for name, cell in SYMBOL_ROWS if name == "ans")
    frequencies, starts = [1, 4094, 1], [0, 1, 4095]
    code = bytes_in(cell)[6:]
    x, at, lines = struct.unpack("<I", code[:4])[0], 4, []
    for i in range(len(SYMBOLS)):
        slot = x % 4096
        symbol = max(s for s in range(3) if starts[s] <= slot)
        inner, word = frequencies[symbol] * (x // 4096) + slot - starts[symbol], ""
        lines.append([i, x, slot, symbol, inner, word])
        x = inner
        if x < 2**16:
            number = struct.unpack("<H", code[at : at + 2])[0]
            x, at, lines[-1][5] = x * 2**16 + number, at + 2, f"{number:04x}"
    assert (x, at) == (2**16, len(code))
    assert [line[3] for line in lines] == SYMBOLS
    for line in lines:
        assert "  | " + " | ".join(map(str, line)).rstrip() + " |" in section("6.5 Examples")


ERRORS = rows(section("11. What a reader must refuse, and when"))
ERRORS = [(cells[0].strip("`"), cells[2]) for cells in ERRORS if not cells[0].startswith("`max_")]


def test_every_error_is_on_the_page():
    names = {
        name
        for name in gw.__all__
        if isinstance(getattr(gw, name), type) and issubclass(getattr(gw, name), gw.DecodeError)
    }
    assert {name for name, _ in ERRORS} == names - {"DecodeError"} | {"StaleReference", "ProtocolError"}


@pytest.mark.parametrize(("name", "cell"), ERRORS)
def test_errors_are_called_as_the_page_says(name, cell):
    error = getattr(gw, name)
    if issubclass(error, gw.DecodeError):
        with pytest.raises(error) as caught:
            gw.decode(bytes_in(cell))
    else:
        payload = gw.decode(bytes_in(cell))
        reference = None if name == "StaleReference" else np.zeros(payload.d + 1, np.float32)
        with pytest.raises(error) as caught:
            gw.decompress(payload, reference)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (b"", gw.Truncated),
        (b"G", gw.Truncated),
        (b"XY", gw.Malformed),
        (b"XY\1\0\0\0\0", gw.Malformed),
        (b"GW\2\0\0\0\0", gw.Truncated),
        (b"GW\2\0\0\0\0\0\0", gw.UnsupportedVersion),
        (b"GW\1\xff\0\0\0\0\0", gw.BadChecksum),
    ],
)
def test_the_order_of_the_first_looks(what, error):
    with pytest.raises(gw.DecodeError) as caught:
        gw.decode(what)
    assert type(caught.value) is error
    if len(what) > 1:
        with pytest.raises(gw.LimitExceeded):
            gw.decode(what, gw.Limits(max_bytes=len(what) - 1))


def test_layout_hash_by_hand():
    """Parameters first, integers left out, names escaped as the page says."""
    names = {
        'q"\\/': '"q\\"\\\\/"',
        "\b\t\n\f\r": '"\\b\\t\\n\\f\\r"',
        "\x00\x1f \x7e\x7f": '"\\u0000\\u001f ~\\u007f"',
        "é€\U0001d11e": '"\\u00e9\\u20ac\\ud834\\udd1e"',
    }
    arrays = {"bn.running_mean": np.empty(3), "count": np.empty(2, np.int64)}
    arrays |= {name: np.empty((i, 2)) for i, name in enumerate(names)}
    text = ",".join(f"[{escaped},[{i},2],false]" for i, escaped in enumerate(names.values()))
    text = f'[{text},["bn.running_mean",[3],true]]'
    assert json.loads(text)
    assert gw.Layout.from_arrays(arrays).digest == hashlib.sha256(text.encode("ascii")).digest()[:4]
