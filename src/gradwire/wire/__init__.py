"""The wire: payload <-> bytes. docs/format.md is the law."""

from gradwire.wire.container import decode, encode, inspect
from gradwire.wire.limits import Limits

__all__ = ["Limits", "decode", "encode", "inspect"]
