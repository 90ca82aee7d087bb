"""Standing: where a client is in a secure sum, what it knows by then, and how that is kept between two messages.

Everything here is secret. It is for one session, and each standing answers one message: whoever keeps it replaces it by
the next one before the answer leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from gradwire.checks import check_integer
from gradwire.errors import StateError
from gradwire.files.store import pack_state, unpack_state
from gradwire.saved import reading_state
from gradwire.secagg import messages

__all__ = ["Confirmed", "Joined", "Masked", "Sharing", "Standing", "pack_standing", "unpack_standing"]

_FORMAT = 2


@dataclass(frozen=True)
class Joined:
    """After the invitation: who this client is in the session."""

    session: bytes
    context: bytes
    round: int
    cipher: X25519PrivateKey
    mask_seed: bytes
    own_seed: bytes
    published: messages.Keys


@dataclass(frozen=True)
class Sharing:
    """After the roster: what it has in common with each neighbour, in order, and its share of its own secret."""

    joined: Joined
    neighbours: tuple[int, ...]
    sealing: tuple[bytes, ...]
    masking: tuple[bytes, ...]
    own_share: bytes


@dataclass(frozen=True)
class Masked:
    """After the deliveries: of each neighbour that is still there both shares, None where they were unreadable.

    And what it has in common with each, and the tag that it sends if it masked with the same clients.
    """

    joined: Joined
    neighbours: tuple[int, ...]
    sealing: tuple[bytes, ...]
    own_share: bytes
    held: tuple[bytes | None, ...]
    tags: tuple[bytes, ...]


@dataclass(frozen=True)
class Confirmed:
    """After the survivors: what it will reveal of each neighbour, and the tag of each that was told the same."""

    joined: Joined
    own_share: bytes
    shares: tuple[bytes | None, ...]
    tags: tuple[bytes, ...]


Standing = Joined | Sharing | Masked | Confirmed | None


def pack_standing(standing: Standing, client_id: int, terms: bytes) -> bytes:
    """Write where a client is.

    Args:
        standing: where; None where it is used up.
        client_id: whose.
        terms: the digest of the session's terms.

    Returns:
        The bytes ``unpack_standing`` reads: secrets, with a checksum.
    """
    kind = "used up" if standing is None else type(standing).__name__
    state: dict[str, Any] = {"format": _FORMAT, "kind": kind, "client_id": client_id, "terms": terms.hex()}
    if standing is not None:
        joined = standing if isinstance(standing, Joined) else standing.joined
        published = joined.published
        state["joined"] = {
            "session": joined.session.hex(),
            "context": joined.context.hex(),
            "round": joined.round,
            "cipher": joined.cipher.private_bytes_raw().hex(),
            "mask_seed": joined.mask_seed.hex(),
            "own_seed": joined.own_seed.hex(),
            "published": [published.cipher.hex(), published.mask.hex(), published.commitment.hex()],
        }
    if isinstance(standing, (Sharing, Masked)):
        state |= {"neighbours": list(standing.neighbours), "sealing": _texts(standing.sealing)}
    if isinstance(standing, Sharing):
        state |= {"masking": _texts(standing.masking), "own_share": standing.own_share.hex()}
    if isinstance(standing, (Masked, Confirmed)):
        held = standing.held if isinstance(standing, Masked) else standing.shares
        state["held"] = [None if each is None else each.hex() for each in held]
        state |= {"tags": _texts(standing.tags), "own_share": standing.own_share.hex()}
    return pack_state(state)


def unpack_standing(data: bytes, client_id: int, terms: bytes) -> Standing:
    """Read what ``pack_standing`` gave.

    Args:
        data: the bytes.
        client_id: whose they must be.
        terms: the digest of the terms they must be of.

    Raises:
        StateError: on a damaged one, one of another client or of other terms.
    """
    state = unpack_state(data, f"secrets of client {client_id}")
    with reading_state():
        if state["format"] != _FORMAT:
            raise StateError(f"secrets have format {state['format']!r}, expected {_FORMAT}")
        if state["client_id"] != client_id or state["terms"] != terms.hex():
            raise StateError(
                f"secrets are of client {state['client_id']} and terms {state['terms']}, expected client {client_id} "
                f"and {terms.hex()}"
            )
        if state["kind"] == "used up":
            return None
        joined = _read_joined(state["joined"])
        if state["kind"] == "Joined":
            return joined
        own_share = bytes.fromhex(state["own_share"])
        if state["kind"] not in ("Sharing", "Masked", "Confirmed"):
            raise StateError(f"secrets are of a client that is {state['kind']!r}")
        if state["kind"] == "Sharing":
            return Sharing(joined, *_neighbours(state), _bytes(state["masking"]), own_share)
        held = tuple(None if each is None else bytes.fromhex(each) for each in state["held"])
        if state["kind"] == "Masked":
            return Masked(joined, *_neighbours(state), own_share, held, _bytes(state["tags"]))
        return Confirmed(joined, own_share, held, _bytes(state["tags"]))


def _neighbours(state: dict[str, Any]) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
    numbers = tuple(check_integer("neighbour", number, 0, 2**63 - 1) for number in state["neighbours"])
    return numbers, _bytes(state["sealing"])


def _read_joined(saved: dict[str, Any]) -> Joined:
    return Joined(
        bytes.fromhex(saved["session"]),
        bytes.fromhex(saved["context"]),
        check_integer("round", saved["round"], 0, 2**63 - 1),
        X25519PrivateKey.from_private_bytes(bytes.fromhex(saved["cipher"])),
        bytes.fromhex(saved["mask_seed"]),
        bytes.fromhex(saved["own_seed"]),
        messages.Keys(*(bytes.fromhex(text) for text in saved["published"])),
    )


def _texts(pieces: tuple[bytes, ...]) -> list[str]:
    return [piece.hex() for piece in pieces]


def _bytes(texts: list[str]) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(text) for text in texts)
