"""Whose update a file is, of which round: what random stages draw from.

A file is compressed tensor by tensor, so each tensor has a key of its own. Where a file has one float tensor its key is
that of ``Client``: the same client, round and seed draw the same. Of several tensors each has the key of a client
in a run whose seed is the first word of ``Key(seed, purpose="tensor NAME")``: by name, so that the order of tensors
does not matter.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gradwire.checks import check_integer
from gradwire.errors import ConfigError
from gradwire.rng import Key

__all__ = ["Identity"]

_PREFIX = "gradwire."
_UNNAMED_BITS = 48  # an unnamed client's number: two of a million alike with a chance of 0.2 %, and seven bytes


@dataclass(frozen=True)
class Identity:
    """Whose update a file is.

    Attributes:
        client: the client's number, or None: one that nobody has is drawn for each file, so that no two draw alike.
        round: the round it is of.
        seed: the run's seed.
    """

    client: int | None
    round: int
    seed: int

    @classmethod
    def settle(
        cls, client: int | None, round: int | None, seed: int | None, remembered: Mapping[str, str], source: str
    ) -> Identity:
        """Take what is given, else what a residual file remembers, else no client, round 0 and seed 0.

        Args:
            client: as for ``compress_file``.
            round: as for ``compress_file``.
            seed: as for ``compress_file``.
            remembered: metadata of the residual file; empty without one.
            source: the residual file, for the error.

        Returns:
            The identity.

        Raises:
            ConfigError: on a number out of range, or another client than the residual's.
        """
        before = {name: _number(remembered.get(_PREFIX + name), name, source) for name in ("client", "round", "seed")}
        client = before["client"] if client is None else check_integer("client", client, 0, 2**63)
        if before["client"] not in (None, client):
            raise ConfigError(f"{source}: is the residual of client {before['client']}, got client {client}")
        round = before["round"] or 0 if round is None else round
        seed = before["seed"] or 0 if seed is None else seed
        return cls(client, check_integer("round", round, 0, 2**63 - 1), Key(seed).seed)

    def remember(self) -> dict[str, str]:
        """Return metadata for the residual file: this client and seed, and the next round."""
        client = {} if self.client is None else {f"{_PREFIX}client": str(self.client)}
        return {**client, f"{_PREFIX}round": str(self.round + 1), f"{_PREFIX}seed": str(self.seed)}

    def keys(self, names: Sequence[str]) -> dict[str, Key]:
        """Return the key of each float tensor.

        Args:
            names: of all float tensors of the file.

        Returns:
            name -> key. Without a client's number they are others at each call.
        """
        client = secrets.randbits(_UNNAMED_BITS) if self.client is None else self.client
        key = Key(self.seed, self.round, client)
        if len(names) == 1:
            return {names[0]: key}
        return {name: replace(key, seed=_seed_of(self.seed, name)) for name in names}


def _seed_of(seed: int, name: str) -> int:
    return int(Key(seed, purpose=f"tensor {name}").words(1)[0])


def _number(text: str | None, name: str, source: str) -> int | None:
    if text is not None and not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise ConfigError(f"{source}: its {_PREFIX}{name} must be a number, got {text[:60]!r}")
    return None if text is None else int(text)
