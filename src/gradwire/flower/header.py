"""Header: what the two ends tell each other beside the blobs, in a few bytes of their own.

Integers are varints as in the wire format, texts and blobs have their length before them. Reading is total: any bytes
give a header or a DecodeError, and every header has exactly one spelling.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gradwire.ends.counted import KEPT
from gradwire.errors import ConfigError, Malformed, UnsupportedVersion
from gradwire.wire.reader import Reader, varint

__all__ = [
    "NO_INCARNATION",
    "NUM_RUNS",
    "PROPOSAL",
    "Answer",
    "Counted",
    "Instruction",
    "Refusal",
    "Step",
    "StepAnswer",
    "check_conversation",
    "is_step",
    "read_answer",
    "read_instruction",
    "read_step",
    "read_step_answer",
]

NUM_RUNS = KEPT
"""Most runs that are told: as many as a server knows for certain, so that what is in none of them was not counted."""
NO_INCARNATION = bytes(8)
PROPOSAL = 6
"""Number of the step, between the second and the third, in which a leader proposes the round's coordinates."""

_MAGIC = b"GWF"
_VERSION = 2
_INSTRUCTION, _ANSWER, _REFUSAL, _STEP, _STEP_ANSWER = 1, 2, 3, 4, 5
_FULL, _NUM_ROUNDS, _NUM_BYTES, _COUNTED, _INVITATION, _CLIENT = 1, 2, 4, 8, 16, 32
_RESYNC, _BLOB = 1, 2
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Counted:
    """Which payloads of one client the server counted.

    Attributes:
        incarnation: 8 bytes, of whose payloads this tells; another incarnation learns nothing from it.
        runs: the newest closed runs of their numbers, increasing and apart, at most ``NUM_RUNS``.
    """

    incarnation: bytes
    runs: tuple[tuple[int, int], ...]

    @property
    def next(self) -> int:
        """The number after the last one counted."""
        return self.runs[-1][1] + 1 if self.runs else 0

    def holds(self, number: int) -> bool:
        """Tell whether a number was counted."""
        return any(low <= number <= high for low, high in self.runs)


@dataclass(frozen=True)
class Instruction:
    """What a server tells a client, in every message.

    Attributes:
        conversation: its name: under it a client keeps its state.
        birth: 8 bytes that tell it from another conversation of the same name.
        spec: the text of the compressor for the way up.
        layout: the layout's digest, 4 bytes.
        seed: seed of the run.
        version: how many rounds were closed: of that many the model is made, and that is the round payloads are for.
        full: whether the model itself comes beside this; else ``blobs`` lead to it.
        weighted_by: the metric that is a client's weight.
        num_rounds: rounds of the whole run, where known.
        num_bytes: a payload may take at most this many bytes.
        counted: what became of the payloads of the client; None where the server does not know yet who it is.
        blobs: the downlink blobs of the last rounds, in order, up to this version.
        invitation: to a secure sum of the round's payloads; None where these are counted one by one.
        client: the number of the client, where the server knows better than it does.

    Example:
        >>> from gradwire.flower.header import Instruction, read_instruction
        >>> told = Instruction("trial", bytes(8), "topk(0.1)", bytes(4), 0, 3, False, "weight", blobs=(b"abc",))
        >>> read_instruction(told.encode()) == told, told.first
        (True, 2)
    """

    conversation: str
    birth: bytes
    spec: str
    layout: bytes
    seed: int
    version: int
    full: bool
    weighted_by: str
    num_rounds: int | None = None
    num_bytes: int | None = None
    counted: Counted | None = None
    blobs: tuple[bytes, ...] = ()
    invitation: bytes | None = None
    client: int | None = None

    @property
    def first(self) -> int:
        """The version the first blob starts from."""
        return self.version - len(self.blobs)

    def encode(self) -> bytes:
        """Return the bytes ``read_instruction`` reads."""
        flags = (
            _FULL * self.full
            | _NUM_ROUNDS * (self.num_rounds is not None)
            | _NUM_BYTES * (self.num_bytes is not None)
            | _COUNTED * (self.counted is not None)
            | _INVITATION * (self.invitation is not None)
            | _CLIENT * (self.client is not None)
        )
        out = [_start(_INSTRUCTION), varint(flags), _text(self.conversation), self.birth, _text(self.spec), self.layout]
        out += [varint(self.seed), varint(self.version), _text(self.weighted_by)]
        out += [varint(number) for number in (self.num_rounds, self.num_bytes) if number is not None]
        if self.counted is not None:
            out += [self.counted.incarnation, varint(len(self.counted.runs))]
            after = 0
            for low, high in self.counted.runs:
                out += [varint(low - after), varint(high - low)]
                after = high + 2
        out.append(varint(len(self.blobs)))
        for blob in self.blobs:
            out += [varint(len(blob)), blob]
        if self.invitation is not None:
            out += [varint(len(self.invitation)), self.invitation]
        if self.client is not None:
            out.append(varint(self.client))
        return b"".join(out)


@dataclass(frozen=True)
class Refusal:
    """What a server tells a node that it does not count.

    Attributes:
        reason: why, for whoever reads the node's log.
    """

    reason: str

    def encode(self) -> bytes:
        """Return the bytes ``read_instruction`` reads."""
        return _start(_REFUSAL) + _text(self.reason)


@dataclass(frozen=True)
class Answer:
    """What a client tells the server, in every reply.

    Attributes:
        birth: the conversation's.
        client: its number.
        incarnation: 8 bytes, made with a fresh state; ``NO_INCARNATION`` where it has no state yet.
        version: of the model it holds; 0 without one.
        resync: whether it could not follow and asks for the model, nothing having been done.
        blob: its payload, where there is one.

    Example:
        >>> from gradwire.flower.header import Answer, read_answer
        >>> told = Answer(bytes(8), 5, b"a state.", 3, blob=b"abc")
        >>> read_answer(told.encode()) == told
        True
    """

    birth: bytes
    client: int
    incarnation: bytes
    version: int
    resync: bool = False
    blob: bytes | None = None

    def encode(self) -> bytes:
        """Return the bytes ``read_answer`` reads."""
        flags = _RESYNC * self.resync | _BLOB * (self.blob is not None)
        out = [_start(_ANSWER), varint(flags), self.birth, varint(self.client), self.incarnation, varint(self.version)]
        return b"".join([*out, self.blob or b""])


@dataclass(frozen=True)
class Step:
    """What a server tells a client in a later step of a secure sum.

    Attributes:
        conversation: its name.
        birth: the conversation's.
        client: its number.
        number: 2 to 5, or ``PROPOSAL``, to a leader before the third; the first is an instruction with an
            invitation.
        message: of ``SecureServer``: the client's roster, deliveries, survivors or what others confirmed; nothing for
            a proposal.
        support: in the third step the coordinates to send, where a leader proposed them, as it did; else nothing.

    Example:
        >>> from gradwire.flower.header import Step, read_step
        >>> told = Step("trial", bytes(8), 7, 2, b"abc")
        >>> read_step(told.encode()) == told
        True
    """

    conversation: str
    birth: bytes
    client: int
    number: int
    message: bytes
    support: bytes = b""

    def encode(self) -> bytes:
        """Return the bytes ``read_step`` reads."""
        start = _start(_STEP) + _text(self.conversation) + self.birth + varint(self.client) + varint(self.number)
        return start + varint(len(self.support)) + self.support + self.message


@dataclass(frozen=True)
class StepAnswer:
    """What a client answers in a later step of a secure sum.

    Attributes:
        birth: the conversation's.
        client: its number.
        sequence: the number of the payload that a masked one hides; 0 in other steps.
        message: of ``SecureClient``; for a proposal the coordinates.
    """

    birth: bytes
    client: int
    sequence: int
    message: bytes

    def encode(self) -> bytes:
        """Return the bytes ``read_step_answer`` reads."""
        return _start(_STEP_ANSWER) + self.birth + varint(self.client) + varint(self.sequence) + self.message


def is_step(data: bytes) -> bool:
    """Tell whether a header is of a later step of a secure sum."""
    return len(data) > 4 and data[4] == _STEP


def read_step(data: bytes) -> Step:
    """Read what a server told in a later step of a secure sum, or raise DecodeError."""
    reader = Reader(memoryview(data))
    _kind(reader, (_STEP,))
    conversation, birth = _read_name(reader), bytes(reader.take(8, "birth"))
    client = reader.varint("client", below=2**63)
    number = reader.varint("step", below=PROPOSAL + 1)
    if number < 2:
        raise Malformed(f"step must be from 2 to {PROPOSAL}, got {number}")
    support = bytes(reader.take(reader.varint("length of the support"), "support"))
    return Step(conversation, birth, client, number, bytes(reader.take(reader.remaining, "message")), support)


def read_step_answer(data: bytes) -> StepAnswer:
    """Read what a client answered in a later step of a secure sum, or raise DecodeError."""
    reader = Reader(memoryview(data))
    _kind(reader, (_STEP_ANSWER,))
    birth, client = bytes(reader.take(8, "birth")), reader.varint("client", below=2**63)
    sequence = reader.varint("sequence", below=2**63 - 1)
    return StepAnswer(birth, client, sequence, bytes(reader.take(reader.remaining, "message")))


def read_instruction(data: bytes) -> Instruction | Refusal:
    """Read what a server told.

    Args:
        data: anything.

    Returns:
        The instruction, or the refusal.

    Raises:
        DecodeError: on anything that is neither.
    """
    reader = Reader(memoryview(data))
    kind = _kind(reader, (_INSTRUCTION, _REFUSAL))
    if kind == _REFUSAL:
        refusal = Refusal(_read_text(reader, "reason"))
        _end(reader)
        return refusal
    flags = reader.varint("flags", below=64)
    conversation = _read_name(reader)
    birth, spec = bytes(reader.take(8, "birth")), _read_text(reader, "spec")
    layout = bytes(reader.take(4, "layout"))
    seed, version = reader.varint("seed"), reader.varint("version", below=2**63 - 1)
    weighted_by = _read_text(reader, "weighted_by")
    num_rounds = reader.varint("num_rounds", below=2**63) if flags & _NUM_ROUNDS else None
    num_bytes = reader.varint("num_bytes", below=2**63) if flags & _NUM_BYTES else None
    if num_rounds == 0 or num_bytes == 0:
        raise Malformed("num_rounds and num_bytes must be 1 or more")
    counted = _read_counted(reader) if flags & _COUNTED else None
    count = reader.varint("number of blobs", below=version + 1)
    blobs = [bytes(reader.take(reader.varint("length of a blob"), "blob")) for _ in range(count)]
    if flags & _FULL and count > 1:
        raise Malformed(f"beside the model there may be one blob, got {count}")
    invitation = None
    if flags & _INVITATION:
        invitation = bytes(reader.take(reader.varint("length of the invitation"), "invitation"))
    client = reader.varint("client", below=2**63) if flags & _CLIENT else None
    _end(reader)
    return Instruction(
        conversation,
        birth,
        spec,
        layout,
        seed,
        version,
        bool(flags & _FULL),
        weighted_by,
        num_rounds,
        num_bytes,
        counted,
        tuple(blobs),
        invitation,
        client,
    )


def read_answer(data: bytes) -> Answer:
    """Read what a client told.

    Args:
        data: anything.

    Returns:
        The answer; its blob is not looked into.

    Raises:
        DecodeError: on anything that is none.
    """
    reader = Reader(memoryview(data))
    _kind(reader, (_ANSWER,))
    flags = reader.varint("flags", below=4)
    birth, client = bytes(reader.take(8, "birth")), reader.varint("client", below=2**63)
    incarnation, version = bytes(reader.take(8, "incarnation")), reader.varint("version", below=2**63 - 1)
    blob = bytes(reader.take(reader.remaining, "blob")) if flags & _BLOB else None
    _end(reader)
    if incarnation == NO_INCARNATION and not flags & _RESYNC:
        raise Malformed("only who asks for the model may have no incarnation")
    if blob is not None and flags & _RESYNC:
        raise Malformed("who asks for the model sends no payload")
    return Answer(birth, client, incarnation, version, bool(flags & _RESYNC), blob)


def check_conversation(name: str) -> str:
    """Return a conversation's name, which is part of file names, or raise ConfigError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"conversation must be 1 to 100 letters, digits, '.', '_' and '-', got {name!r}")
    return name


def _start(kind: int) -> bytes:
    return _MAGIC + bytes((_VERSION, kind))


def _kind(reader: Reader, kinds: tuple[int, ...]) -> int:
    if bytes(reader.take(3, "magic")) != _MAGIC:
        raise Malformed("these bytes are no header of gradwire.flower")
    version = reader.byte("version")
    if version != _VERSION:
        raise UnsupportedVersion(
            f"the other end speaks version {version} of gradwire.flower's protocol, this one {_VERSION}: "
            "install the same gradwire at both ends"
        )
    kind = reader.byte("kind")
    if kind not in kinds:
        raise Malformed(f"header must be of kind {' or '.join(map(str, kinds))}, got {kind}")
    return kind


def _end(reader: Reader) -> None:
    if reader.remaining:
        raise Malformed(f"header goes on after its end, with {reader.remaining} bytes")


def _text(text: str) -> bytes:
    data = text.encode()
    return varint(len(data)) + data


def _read_text(reader: Reader, what: str) -> str:
    data = bytes(reader.take(reader.varint(f"length of {what}", below=2**16), what))
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"{what} is not UTF-8 at byte {error.start}") from None


def _read_name(reader: Reader) -> str:
    conversation = _read_text(reader, "conversation")
    if not _NAME.fullmatch(conversation):
        raise Malformed(f"conversation must be letters, digits, '.', '_' and '-', got {conversation[:100]!r}")
    return conversation


def _read_counted(reader: Reader) -> Counted:
    incarnation = bytes(reader.take(8, "incarnation"))
    runs: list[tuple[int, int]] = []
    after = 0
    for _ in range(reader.varint("number of runs", below=NUM_RUNS + 1)):
        low = after + reader.varint("start of a run")
        high = low + reader.varint("length of a run")
        if high >= 2**63 - 1:
            raise Malformed(f"counted numbers must be below 2^63 - 1, got {high}")
        runs.append((low, high))
        after = high + 2
    return Counted(incarnation, tuple(runs))
