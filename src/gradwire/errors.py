"""Every error gradwire raises on purpose.

.. code-block:: text

    GradwireError
    +-- ConfigError (ValueError)          a parameter, spec, file or option that cannot be used
    +-- UpdateError (ValueError)          an update with NaN, Inf, a wrong length or a wrong dtype
    +-- StateError                        a saved state that belongs to something else
    +-- ProtocolError                     a payload that does not fit the conversation it arrived in
    |   +-- Duplicate                     already counted: the sender may forget it
    |   +-- Forgotten                     so old that it is not known any more whether it was counted
    |   +-- StaleReference                leans on a reference that is not held here any more
    |   +-- TooFewClients                 a secure sum of fewer clients than its threshold: there is none
    +-- BackendUnavailable (ImportError)  an optional dependency is missing
    +-- DecodeError (ValueError)          bytes that are not a payload
        +-- Truncated                     they end too early
        +-- BadChecksum                   the CRC-32 does not match
        +-- LimitExceeded                 they claim more than the reader's Limits allow
        +-- UnsupportedVersion            written by a later format version
        +-- UnknownCodec                  an index or value coding this reader does not know
        +-- Malformed                     anything else that breaks docs/format.md

Messages say what, which one, what was got and what was expected.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BackendUnavailable",
    "BadChecksum",
    "ConfigError",
    "DecodeError",
    "Duplicate",
    "Forgotten",
    "GradwireError",
    "LimitExceeded",
    "Malformed",
    "ProtocolError",
    "StaleReference",
    "StateError",
    "TooFewClients",
    "Truncated",
    "UnknownCodec",
    "UnsupportedVersion",
    "UpdateError",
]


class GradwireError(Exception):
    """The base of every error raised on purpose."""


class ConfigError(GradwireError, ValueError):
    """A parameter, spec, file or option that cannot be used."""


class UpdateError(GradwireError, ValueError):
    """An update with NaN, Inf, a wrong length or a wrong dtype."""


class StateError(GradwireError):
    """A saved state that belongs to another spec, layout or client."""


class ProtocolError(GradwireError):
    """A payload that does not fit the conversation it arrived in."""


class Duplicate(ProtocolError):
    """A payload that was counted already; its sender may forget it."""


class Forgotten(ProtocolError):
    """A payload so old that it is not known any more whether it was counted; it will not be counted now."""


class StaleReference(ProtocolError):
    """A payload that leans on a reference this end does not hold."""


class TooFewClients(ProtocolError):
    """Fewer clients than a secure sum's threshold are left: no sum is made known."""


class BackendUnavailable(GradwireError, ImportError):
    """An optional dependency is missing; the message names the extra to install."""


class DecodeError(GradwireError, ValueError):
    """Bytes that are not a payload."""


class Truncated(DecodeError):
    """The bytes end before the payload does."""


class BadChecksum(DecodeError):
    """The CRC-32 at the end does not match the bytes before it."""


class LimitExceeded(DecodeError):
    """The payload claims more than the reader's Limits allow."""


class UnsupportedVersion(DecodeError):
    """The payload was written in a format version this reader does not know."""


class UnknownCodec(DecodeError):
    """The payload uses an index or value coding this reader does not know."""


class Malformed(DecodeError):
    """The payload breaks the format in some other way."""


def nearest(got: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest choice, or ``""`` when nothing is close.

    Args:
        got: what the user wrote.
        choices: the valid names.

    Returns:
        Text to append to an error message.
    """
    close = difflib.get_close_matches(got, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def visible(text: str) -> str:
    r"""Return text with every character that a terminal would obey, hide or reorder written as an escape.

    Args:
        text: anything: a name from a stranger's file, a path, a message.

    Returns:
        One line: control and format characters, marks of direction and halves of pairs are ``\x1b`` or ``\u202e``.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
