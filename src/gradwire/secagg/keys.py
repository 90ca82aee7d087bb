"""Keys, secrets and masks: what is taken from ``cryptography`` and ``pycryptodome``, and how.

Every key is made for one session and one purpose: HKDF-SHA256 with the session's context as salt, and as info a label
with all that the key is bound to. docs/format.md, "Secure aggregation", is the law for every byte of it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from gradwire.errors import ProtocolError
from gradwire.wire.reader import varint

__all__ = [
    "KEY_BYTES",
    "SEALED_BYTES",
    "SEED_BYTES",
    "SESSION_BYTES",
    "TAG_BYTES",
    "agree",
    "attest",
    "combine",
    "commit",
    "context_of",
    "draw",
    "fresh_key",
    "key_of",
    "pair_mask",
    "public_of",
    "same",
    "seal",
    "self_mask",
    "split",
    "unseal",
]

SEED_BYTES = 16
"""Bytes of a secret that is shared, and of a share of it: elements of GF(2^128)."""
KEY_BYTES = 32
TAG_BYTES = 8
"""Bytes of a tag: whoever forges one has a single try, before the client it is for is used up."""
SESSION_BYTES = 16
SEALED_BYTES = 2 * SEED_BYTES + 16
"""Bytes of two shares, encrypted, with what shows that nobody changed them."""

Mask = NDArray[np.uint32]


def draw(num_bytes: int) -> bytes:
    """Return bytes of the operating system's generator."""
    return secrets.token_bytes(num_bytes)


def context_of(session: bytes, round: int, terms: bytes, layout: bytes) -> bytes:
    """Return 32 bytes that stand for all that one session is about: every key depends on them.

    Args:
        session: 16 random bytes of the server.
        round: the round.
        terms: digest of the terms.
        layout: digest of the layout.
    """
    return hashlib.sha256(b"gradwire secagg 2" + session + varint(round) + terms + layout).digest()


def fresh_key() -> X25519PrivateKey:
    """Return a new private key."""
    return X25519PrivateKey.generate()


def key_of(seed: bytes, context: bytes) -> X25519PrivateKey:
    """Return the private key that a shared secret stands for."""
    return X25519PrivateKey.from_private_bytes(_derive(seed, context, b"mask key"))


def public_of(key: X25519PrivateKey) -> bytes:
    """Return a key's public half, 32 bytes."""
    return key.public_key().public_bytes_raw()


def agree(own: X25519PrivateKey, other: bytes) -> bytes:
    """Return the secret that two ends have in common.

    Args:
        own: private key of one.
        other: public key of the other.

    Raises:
        ProtocolError: on a public key that gives the same secret to everybody.
    """
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise ProtocolError("a public key is of small order: no secret can be agreed on with it") from None


def attest(secret: bytes, context: bytes, what: bytes, sender: int, receiver: int, view: bytes) -> bytes:
    """Return 8 bytes that tell the receiver which clients the sender knows of, which nobody else could write.

    Args:
        secret: what ``agree`` gave the two clients.
        context: the session's.
        what: ``b"masked with"`` those clients, or told that they are ``b"in the sum"``.
        sender: who says so.
        receiver: one of those.
        view: digest of all of them, or nothing where each has neighbours of its own.
    """
    return _derive(secret, context, what + varint(sender) + varint(receiver) + view)[:TAG_BYTES]


def commit(seed: bytes, context: bytes, client: int) -> bytes:
    """Return 16 bytes by which a secret is known to be the right one once it is recovered."""
    return _derive(seed, context, b"commitment" + varint(client))[:SEED_BYTES]


def same(a: bytes, b: bytes) -> bool:
    """Compare, in a time that tells nothing."""
    return hmac.compare_digest(a, b)


def seal(secret: bytes, context: bytes, sender: int, receiver: int, shares: bytes) -> bytes:
    """Encrypt two shares on their way through the server.

    Args:
        secret: what ``agree`` gave the two clients.
        context: the session's.
        sender: whose shares they are.
        receiver: who may read them.
        shares: 32 bytes.

    Returns:
        ``SEALED_BYTES`` bytes.
    """
    return _box(secret, context, sender, receiver).encrypt(bytes(12), shares, None)  # a key for this one message


def unseal(secret: bytes, context: bytes, sender: int, receiver: int, sealed: bytes) -> bytes | None:
    """Read what ``seal`` wrote; None where it was written for another message, or changed on the way."""
    try:
        return _box(secret, context, sender, receiver).decrypt(bytes(12), sealed, None)
    except InvalidTag:
        return None


def pair_mask(secret: bytes, context: bytes, a: int, b: int, support: bytes, count: int) -> Mask:
    """Return the mask that two clients have in common: the one of the lower number adds it, the other takes it off.

    Args:
        secret: what ``agree`` gave them.
        context: the session's.
        a: number of one.
        b: number of the other.
        support: digest of the coordinates: over other coordinates it is another mask.
        count: how many numbers.

    Returns:
        (count,) uint32, uniform.
    """
    low, high = sorted((a, b))
    return _stream(_derive(secret, context, b"pair mask" + varint(low) + varint(high) + support), count)


def self_mask(seed: bytes, context: bytes, client: int, support: bytes, count: int) -> Mask:
    """Return the mask of one client alone; see ``pair_mask``."""
    return _stream(_derive(seed, context, b"self mask" + varint(client) + support), count)


def split(seed: bytes, threshold: int, num_shares: int) -> list[bytes]:
    """Share a secret: any ``threshold`` of the shares bring it back, fewer say nothing.

    Args:
        seed: ``SEED_BYTES`` bytes.
        threshold: 2 or more.
        num_shares: as many or more.

    Returns:
        The shares of holders 1, 2, 3, ...

    Source: Shamir 1979, over GF(2^128), of pycryptodome.
    """
    return [share for _, share in Shamir.split(threshold, num_shares, seed, ssss=False)]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Bring a secret back.

    Args:
        shares: holder -> share, exactly as many as the threshold.
    """
    return bytes(Shamir.combine(list(shares.items()), ssss=False))


def _box(secret: bytes, context: bytes, sender: int, receiver: int) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(_derive(secret, context, b"shares" + varint(sender) + varint(receiver)))


def _derive(secret: bytes, context: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, context, info).derive(secret)


def _stream(key: bytes, count: int) -> Mask:
    """The key's stream as integers: those modulo 2^w are uniform too, for every w up to 32."""
    zeros = bytes(4 * count)
    return np.frombuffer(Cipher(ChaCha20(key, bytes(16)), None).encryptor().update(zeros), "<u4").astype(np.uint32)
