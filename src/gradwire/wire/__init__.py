"""The wire: payload <-> bytes. docs/format.md is the law."""

from gradwire.wire.container import Opened, decode, encode, inspect, read, write
from gradwire.wire.limits import Limits

__all__ = ["Limits", "Opened", "decode", "encode", "inspect", "read", "write"]
