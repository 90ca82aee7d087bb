"""Text files that people write: UTF-8, or what their mark says."""

from __future__ import annotations

import codecs
from pathlib import Path

__all__ = ["read_text"]

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_text(path: str | Path) -> str:
    r"""Read a text file, whichever editor wrote it.

    Args:
        path: the file. Without a mark it is UTF-8; a byte order mark, as Notepad and PowerShell write it, says that
            it is UTF-8 or UTF-16.

    Returns:
        Its text, without the mark; line ends as they are.

    Raises:
        OSError: when it cannot be read.
        UnicodeDecodeError: when it is no such text.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "mine.toml")
        ...     _ = path.write_bytes("rounds = 3\r\n".encode("utf-16"))
        ...     read_text(path)
        'rounds = 3\r\n'
    """
    data = Path(path).read_bytes()
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding)
