"""Carrier: the one Array in which header and blobs travel, in the app's own ArrayRecord."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from gradwire.errors import Malformed

__all__ = [
    "NAME",
    "Found",
    "count_bytes",
    "find_carrier",
    "instruction_of",
    "kind_of",
    "make_carrier",
    "with_content",
    "without_carrier",
]

NAME = "gradwire"


@dataclass(frozen=True)
class Found:
    """A carrier that was found.

    Attributes:
        key: of the ArrayRecord it is in.
        data: header and blobs.
    """

    key: str
    data: bytes


def make_carrier(data: bytes) -> Array:
    """Return the Array that carries these bytes."""
    return Array(dtype="uint8", shape=(len(data),), stype=NAME, data=data)


def find_carrier(content: RecordDict) -> Found | None:
    """Find the carrier in a message.

    Args:
        content: of the message; not modified.

    Returns:
        The carrier, None where there is none.

    Raises:
        Malformed: where there are several.
    """
    found = [
        Found(key, record[NAME].data)
        for key, record in content.array_records.items()
        if NAME in record and record[NAME].stype == NAME
    ]
    if len(found) > 1:
        raise Malformed(f"a message has one array of gradwire's, got {len(found)}")
    return found[0] if found else None


def without_carrier(content: RecordDict) -> RecordDict:
    """Return a message's records without the carrier; a record that held nothing else is gone, too."""
    out: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {}
    for key, record in content.items():
        if isinstance(record, ArrayRecord) and NAME in record and record[NAME].stype == NAME:
            record = record.copy()
            del record[NAME]
            if not record:
                continue
        out[key] = record
    return RecordDict(out)


def with_content(message: Message, content: RecordDict) -> Message:
    """Return a message of the same metadata and other content; records may be shared between messages."""
    changed = copy.copy(message)
    changed.content = content
    return changed


def instruction_of(message: Message, content: RecordDict) -> Message:
    """Make an instruction of its own, to the node and of the type, time to live and group of another."""
    about = message.metadata
    return Message(content, about.dst_node_id, about.message_type, ttl=about.ttl, group_id=about.group_id)


def kind_of(message: Message) -> str:
    """Return a message's type without what it may have behind a dot: ``train``, ``evaluate`` or ``query``."""
    return message.metadata.message_type.partition(".")[0]


def count_bytes(content: RecordDict) -> int:
    """Count the bytes of a message's records as Flower does; empty texts and lists, which it cannot count, are 0."""
    total = 0
    for record in content.values():
        if isinstance(record, ConfigRecord):
            record = ConfigRecord({k: v for k, v in record.items() if v not in ("", b"", [])})
        total += record.count_bytes()
    return total
