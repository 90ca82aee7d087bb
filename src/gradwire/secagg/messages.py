"""Messages: what the ends of a secure sum tell each other, in a few bytes of their own.

Integers are varints as in the wire format. Reading is total: any bytes give a message or a DecodeError, nothing is made
that the bytes do not pay for, and every message has exactly one spelling. docs/format.md, "Secure aggregation", is the
law.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradwire.errors import BadChecksum, LimitExceeded, Malformed, ProtocolError, UnsupportedVersion
from gradwire.secagg.keys import KEY_BYTES, SEED_BYTES, SESSION_BYTES, TAG_BYTES
from gradwire.wire.reader import Reader, varint

__all__ = [
    "CONFIRMATIONS",
    "CONFIRMED",
    "DELIVERIES",
    "DIGEST_BYTES",
    "INVITATION",
    "KEYS",
    "MASKED",
    "REVEALS",
    "ROSTER",
    "SHARES",
    "SURVIVORS",
    "Keys",
    "Opened",
    "encode_chosen",
    "encode_confirmations",
    "encode_invitation",
    "encode_keys",
    "encode_masked",
    "encode_roster",
    "encode_shares",
    "kind_of",
    "open_message",
]

INVITATION, KEYS, ROSTER, SHARES, DELIVERIES, MASKED, SURVIVORS, CONFIRMATIONS, CONFIRMED, REVEALS = range(1, 11)
NAMES = (
    "invitation",
    "keys",
    "roster",
    "shares",
    "deliveries",
    "masked numbers",
    "survivors",
    "confirmations",
    "confirmed",
    "reveals",
)
DIGEST_BYTES = 8

_MAGIC, _VERSION = b"GWS", 2
_HEAD = len(_MAGIC) + 2 + SESSION_BYTES
_CHECKSUM = 4


@dataclass(frozen=True)
class Keys:
    """What a client publishes for one session.

    Attributes:
        cipher: public key that shares for this client are encrypted with.
        mask: public key that masks are agreed on with.
        commitment: by which its other secret is known, once recovered.
    """

    cipher: bytes
    mask: bytes
    commitment: bytes


def encode_invitation(session: bytes, round: int, terms: bytes, layout: bytes) -> bytes:
    """Write what opens a session; ``Opened.invitation`` reads it."""
    return _write(INVITATION, session, varint(round) + terms + layout)


def encode_keys(session: bytes, keys: Keys) -> bytes:
    """Write a client's keys; ``Opened.keys`` reads them."""
    return _write(KEYS, session, keys.cipher + keys.mask + keys.commitment)


def encode_roster(session: bytes, neighbours: Sequence[tuple[int, Keys]]) -> bytes:
    """Write who a client's neighbours are, in order of their numbers; ``Opened.roster`` reads it."""
    body = bytearray(varint(len(neighbours)))
    after = 0
    for number, _ in neighbours:
        body += varint(number - after)
        after = number + 1
    for _, keys in neighbours:
        body += keys.cipher + keys.mask
    return _write(ROSTER, session, bytes(body))


def encode_shares(session: bytes, sealed: Iterable[bytes]) -> bytes:
    """Write a client's shares for its neighbours, in the roster's order; ``Opened.all_of`` reads them."""
    return _write(SHARES, session, b"".join(sealed))


def encode_chosen(kind: int, session: bytes, items: Sequence[bytes | None], first: bytes = b"") -> bytes:
    """Write which of a list are there, and what each of them is; ``Opened.chosen`` reads it.

    Args:
        kind: DELIVERIES, SURVIVORS, CONFIRMED or REVEALS.
        session: the session.
        items: None for each that is not there; all of one length.
        first: what comes before the list.
    """
    bits = sum(1 << i for i, item in enumerate(items) if item is not None)
    there = b"".join(item for item in items if item is not None)
    return _write(kind, session, first + bits.to_bytes(-(-len(items) // 8), "little") + there)


def encode_masked(
    session: bytes, support: bytes, packed: bytes, tags: Iterable[bytes], clear: tuple[int, bytes] | None = None
) -> bytes:
    """Write a client's masked numbers, and a tag for each neighbour it masked with; ``Opened.masked`` reads them.

    Args:
        session: the session.
        support: digest of the coordinates, of which the first ``DIGEST_BYTES`` go.
        packed: the numbers.
        tags: of each neighbour.
        clear: where the terms have numbers sent in clear, the client's weight and a payload of those.
    """
    rest = b"" if clear is None else varint(clear[0]) + clear[1]
    return _write(MASKED, session, support[:DIGEST_BYTES] + packed + b"".join(tags) + rest)


def encode_confirmations(session: bytes, tags: Iterable[bytes]) -> bytes:
    """Write a client's tags for its neighbours in the sum, in order; ``Opened.all_of`` reads them."""
    return _write(CONFIRMATIONS, session, b"".join(tags))


def kind_of(data: bytes) -> int:
    """Tell a message's kind by its fifth byte, before it is read; 0 where it is too short to have one."""
    return data[len(_MAGIC) + 1] if len(data) > len(_MAGIC) + 1 else 0


def open_message(data: bytes, kind: int, most: int, session: bytes | None = None) -> Opened:
    """Check the frame of a message.

    Args:
        data: anything.
        kind: what it must be.
        most: bytes that its body may take.
        session: which it must be of, or None for any.

    Returns:
        The message; its fields are still to be read.

    Raises:
        DecodeError: on anything that is none, or is longer.
        ProtocolError: on a message of another kind or session.
    """
    if len(data) > _HEAD + most + _CHECKSUM:
        raise LimitExceeded(f"{NAMES[kind - 1]}: at most {_HEAD + most + _CHECKSUM} bytes, got {len(data)}")
    data = bytes(data)
    reader = Reader(memoryview(data))
    if bytes(reader.take(len(_MAGIC), "magic")) != _MAGIC:
        raise Malformed("these bytes are no message of gradwire.secagg")
    if (version := reader.byte("version")) != _VERSION:
        raise UnsupportedVersion(f"message is of version {version}, this reader knows {_VERSION}")
    found, of = reader.byte("kind"), bytes(reader.take(SESSION_BYTES, "session"))
    reader.need(_CHECKSUM, "checksum")
    body, checksum = data[_HEAD:-_CHECKSUM], data[-_CHECKSUM:]
    if struct.pack("<I", zlib.crc32(data[:-_CHECKSUM])) != checksum:
        raise BadChecksum(f"checksum: expected {zlib.crc32(data[:-_CHECKSUM]):08x}, got {checksum[::-1].hex()}")
    if found != kind:
        got = NAMES[found - 1] if 0 < found <= len(NAMES) else f"kind {found}"
        raise ProtocolError(f"expected {NAMES[kind - 1]}, got {got}")
    if session is not None and of != session:
        raise ProtocolError(f"message is of session {of.hex()}, expected {session.hex()}")
    return Opened(NAMES[kind - 1], of, body)


class Opened:
    """A message whose frame is right; each of its readers reads one kind of body, to its very end.

    Attributes:
        session: which it is of.
    """

    def __init__(self, name: str, session: bytes, body: bytes) -> None:
        self.session = session
        self._name = name
        self._reader = Reader(memoryview(body))

    def invitation(self) -> tuple[int, bytes, bytes]:
        """Read the round and the digests of terms and layout."""
        round_ = self._reader.varint("round", below=2**63 - 1)
        terms, layout = self._take(DIGEST_BYTES, "terms"), self._take(4, "layout")
        self._end()
        return round_, terms, layout

    def keys(self) -> Keys:
        """Read a client's keys."""
        keys = Keys(self._take(KEY_BYTES, "key"), self._take(KEY_BYTES, "key"), self._take(SEED_BYTES, "commitment"))
        self._end()
        return keys

    def roster(self) -> list[tuple[int, bytes, bytes]]:
        """Read numbers of neighbours, increasing, with their keys for shares and for masks."""
        count = self._reader.varint("number of neighbours", below=2**20 + 1)
        self._reader.need(count * (2 * KEY_BYTES + 1), "neighbours")
        numbers, after = [], 0
        for _ in range(count):
            number = after + self._reader.varint("gap between neighbours", below=2**63)
            if number >= 2**63:
                raise Malformed(f"a neighbour's number must be below 2^63, got {number}")
            numbers.append(number)
            after = number + 1
        found = [(n, self._take(KEY_BYTES, "key"), self._take(KEY_BYTES, "key")) for n in numbers]
        self._end()
        return found

    def all_of(self, count: int, num_bytes: int) -> list[bytes]:
        """Read what is for each of so many neighbours."""
        found = [self._take(num_bytes, "entry") for _ in range(count)]
        self._end()
        return found

    def chosen(self, count: int, num_bytes: int, first: int = 0) -> tuple[bytes, list[bytes | None]]:
        """Read which of so many are there, and what they are.

        Args:
            count: how many there could be.
            num_bytes: of each that is there.
            first: bytes before the list.

        Returns:
            What is before the list, and the list, None for each that is not there.
        """
        before = self._take(first, "what comes first")
        bits = int.from_bytes(self._take(-(-count // 8), "list"), "little")
        if bits >> count:
            raise Malformed(f"{self._name}: bits beyond the list of {count} are set")
        found = [self._take(num_bytes, "entry") if bits >> i & 1 else None for i in range(count)]
        self._end()
        return before, found

    def masked(
        self, num_bytes: int, num_tags: int, in_clear: bool
    ) -> tuple[bytes, bytes, list[bytes], tuple[int, bytes] | None]:
        """Read the digest of the support, the packed numbers, the tags, and the weight and payload in clear, if any."""
        support, packed = self._take(DIGEST_BYTES, "support"), self._take(num_bytes, "numbers")
        tags = [self._take(TAG_BYTES, "tag") for _ in range(num_tags)]
        clear = None
        if in_clear:
            weight = self._reader.varint("weight", below=2**32)
            clear = weight, self._take(self._reader.remaining, "payload in clear")
        self._end()
        return support, packed, tags, clear

    def _take(self, num_bytes: int, what: str) -> bytes:
        return bytes(self._reader.take(num_bytes, f"{self._name}: {what}"))

    def _end(self) -> None:
        if self._reader.remaining:
            raise Malformed(f"{self._name}: goes on after its end, with {self._reader.remaining} bytes")


def _write(kind: int, session: bytes, body: bytes) -> bytes:
    data = _MAGIC + bytes((_VERSION, kind)) + session + body
    return data + struct.pack("<I", zlib.crc32(data))
