"""What errors are made with: names that are near, and text that a terminal does not obey."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwire.errors import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("w.1 é 漢 🙂 [x]", "w.1 é 漢 🙂 [x]"),
        ("\x1b]0;t\x07", "\\x1b]0;t\\x07"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b\x00\x7f", "\\x9b\\x00\\x7f"),
        ("\u202e\u2066\u200b\ufeff", "\\u202e\\u2066\\u200b\\ufeff"),
        ("\udcff\U000e0001", "\\udcff\\U000e0001"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text, shown):
    assert visible(text) == shown


@given(st.text())
def test_nothing_that_is_shown_controls_formats_or_breaks_a_line(text):
    shown = visible(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]
    shown.encode()
