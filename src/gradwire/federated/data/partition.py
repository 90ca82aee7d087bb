"""How one data set's examples are dealt to clients: evenly, by skewed or sharded labels, or as they came.

Every split but the bootstrap is disjoint and covers every example; each leaves no client empty and depends only on
its arguments and the generator's state, of which only ``random`` and ``permutation`` are called.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.errors import ConfigError, nearest

__all__ = ["Bootstrap", "Dirichlet", "Iid", "Natural", "Partition", "Shards", "parse_partition"]

Indices = npt.NDArray[np.int64]

_NAMES = ("iid", "dirichlet", "shards", "natural", "bootstrap")
_EXPECTED = "iid, dirichlet:A with A > 0, shards:S with S >= 1, bootstrap:N with N >= 1, or natural"


@dataclass(frozen=True)
class Partition(ABC):
    """Say how examples are dealt to clients; ``str`` gives the text ``parse_partition`` reads.

    Source: arXiv:1602.05629 section 3 (iid, shards); arXiv:1909.06335 (dirichlet).

    Deviations: dirichlet draws each label's shares over the clients, as most code does, not each client's
    over labels.
    """

    @property
    def overlapping(self) -> bool:
        """Whether an example may go to several clients."""
        return False

    def split(
        self,
        targets: npt.NDArray[Any],
        num_clients: int,
        rng: np.random.Generator,
        groups: npt.NDArray[Any] | None = None,
    ) -> list[Indices]:
        """Deal the examples to clients.

        Args:
            targets: (n,) integer labels, or (n, length) integers whose first column is taken as the label;
                not modified.
            num_clients: 1 <= num_clients <= n; more for ``bootstrap``.
            rng: drawn from; the only source of chance.
            groups: (n,) integers, the natural client of each example; only ``natural`` reads it. Not
                modified.

        Returns:
            For each client the (num_examples,) int64 indices of its examples, ascending and never empty.

        Raises:
            ConfigError: there are too few examples or groups for so many clients, or the arrays do not fit.

        Example:
            >>> parts = Iid().split(np.zeros(5, np.int64), 2, np.random.default_rng(0))
            >>> [len(part) for part in parts]
            [3, 2]
        """
        labels = np.asarray(targets)
        if labels.ndim not in (1, 2) or labels.dtype.kind not in "iu" or (labels.ndim == 2 and not labels.shape[1]):
            raise ConfigError(f"targets must be (n,) or (n, length) integers, got {labels.shape} {labels.dtype}")
        if not 1 <= num_clients <= len(labels) and not (self.overlapping and len(labels) and num_clients >= 1):
            raise ConfigError(f"clients must be in [1, {len(labels)}], the number of examples, got {num_clients}")
        if labels.ndim == 2:
            labels = labels[:, 0]
        parts = self._deal(labels, num_clients, rng, groups)
        return [np.sort(part).astype(np.int64, copy=False) for part in parts]

    @abstractmethod
    def _deal(
        self,
        labels: npt.NDArray[Any],
        num_clients: int,
        rng: np.random.Generator,
        groups: npt.NDArray[Any] | None,
    ) -> list[Indices]: ...


@dataclass(frozen=True)
class Iid(Partition):
    """Deal shuffled examples evenly."""

    def __str__(self) -> str:
        return "iid"

    def _deal(
        self,
        labels: npt.NDArray[Any],
        num_clients: int,
        rng: np.random.Generator,
        groups: npt.NDArray[Any] | None,
    ) -> list[Indices]:
        return list(np.array_split(rng.permutation(len(labels)), num_clients))


@dataclass(frozen=True)
class Dirichlet(Partition):
    """Give each client a Dirichlet(alpha, ..., alpha) share of each label: small alpha is heavy skew.

    A client left empty gets one example of the client that has most.

    Args:
        alpha: finite and > 0. Below 1e-9 and above 1e9 it is taken as that bound, where the draw is its limit
            already.
    """

    alpha: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"dirichlet's A must be a finite number > 0, got {self.alpha}")

    def __str__(self) -> str:
        return f"dirichlet:{float(self.alpha)!r}".removesuffix(".0")

    def _deal(
        self,
        labels: npt.NDArray[Any],
        num_clients: int,
        rng: np.random.Generator,
        groups: npt.NDArray[Any] | None,
    ) -> list[Indices]:
        dealt: list[list[Indices]] = [[] for _ in range(num_clients)]
        for label in np.unique(labels):
            examples = rng.permutation(np.flatnonzero(labels == label))
            shares = _dirichlet_shares(self.alpha, num_clients, rng)
            cuts = np.rint(np.cumsum(shares)[:-1] * len(examples)).astype(np.int64)
            for client, part in enumerate(np.split(examples, np.minimum(cuts, len(examples)))):
                dealt[client].append(part)
        parts = [np.concatenate(pieces) for pieces in dealt]
        sizes = np.array([len(part) for part in parts])
        for client in np.flatnonzero(sizes == 0).tolist():
            donor = int(np.argmax(sizes))
            parts[client], parts[donor] = parts[donor][-1:], parts[donor][:-1]
            sizes[client] += 1
            sizes[donor] -= 1
        return parts


@dataclass(frozen=True)
class Shards(Partition):
    """Sort by label, cut into clients * per_client even shards and deal each client per_client of them.

    Args:
        per_client: shards a client, >= 1; about the number of labels it sees.
    """

    per_client: int

    def __post_init__(self) -> None:
        if not isinstance(self.per_client, int) or self.per_client < 1:
            raise ConfigError(f"shards' S must be an integer >= 1, got {self.per_client}")

    def __str__(self) -> str:
        return f"shards:{self.per_client}"

    def _deal(
        self,
        labels: npt.NDArray[Any],
        num_clients: int,
        rng: np.random.Generator,
        groups: npt.NDArray[Any] | None,
    ) -> list[Indices]:
        num_shards = num_clients * self.per_client
        if num_shards > len(labels):
            raise ConfigError(
                f"{self} over {num_clients} clients needs {num_shards} examples or more, got {len(labels)}"
            )
        shards = np.array_split(np.argsort(labels, kind="stable"), num_shards)
        hands = rng.permutation(num_shards).reshape(num_clients, self.per_client)
        return [np.concatenate([shards[shard] for shard in hand]) for hand in hands]


@dataclass(frozen=True)
class Natural(Partition):
    """Keep each group whole: groups by falling size (ties: lower id first) go round the clients."""

    def __str__(self) -> str:
        return "natural"

    def _deal(
        self,
        labels: npt.NDArray[Any],
        num_clients: int,
        rng: np.random.Generator,
        groups: npt.NDArray[Any] | None,
    ) -> list[Indices]:
        if groups is None:
            raise ConfigError(
                "natural needs the data's own clients, got none, expected shakespeare or another partition"
            )
        owners = np.asarray(groups)
        if owners.shape != (len(labels),):
            raise ConfigError(f"groups must have the shape ({len(labels)},) of the labels, got {owners.shape}")
        _, numbers, sizes = np.unique(owners, return_inverse=True, return_counts=True)
        if len(sizes) < num_clients:
            raise ConfigError(
                f"natural has {len(sizes)} groups, got {num_clients} clients, expected {len(sizes)} or fewer"
            )
        client_of_group = np.empty(len(sizes), np.int64)
        client_of_group[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes)) % num_clients
        client_of_example = client_of_group[numbers]
        order = np.argsort(client_of_example, kind="stable")
        return list(np.split(order, np.cumsum(np.bincount(client_of_example))[:-1]))


@dataclass(frozen=True)
class Bootstrap(Partition):
    """Draw each client's examples from all of them with replacement: for more clients than the data has examples.

    Args:
        num_examples: of each client, >= 1.
    """

    num_examples: int

    def __post_init__(self) -> None:
        if not isinstance(self.num_examples, int) or self.num_examples < 1:
            raise ConfigError(f"bootstrap's N must be an integer >= 1, got {self.num_examples}")

    def __str__(self) -> str:
        return f"bootstrap:{self.num_examples}"

    @property
    def overlapping(self) -> bool:
        """Whether an example may go to several clients: yes."""
        return True

    def _deal(
        self,
        labels: npt.NDArray[Any],
        num_clients: int,
        rng: np.random.Generator,
        groups: npt.NDArray[Any] | None,
    ) -> list[Indices]:
        drawn = rng.random((num_clients, self.num_examples)) * len(labels)
        return list(np.minimum(drawn.astype(np.int64), len(labels) - 1))


def parse_partition(text: str) -> Partition:
    """Read a partition's text.

    Args:
        text: ``iid``, ``dirichlet:A``, ``shards:S``, ``bootstrap:N`` or ``natural``.

    Returns:
        The partition; ``parse_partition(str(partition)) == partition``.

    Raises:
        ConfigError: the text is none of these.

    Example:
        >>> parse_partition("dirichlet:0.5")
        Dirichlet(alpha=0.5)

    Source: none.

    Deviations: none.
    """
    name, colon, value = text.partition(":")
    plain: dict[str, Partition] = {"iid": Iid(), "natural": Natural()}
    if name in plain and not colon:
        return plain[name]
    if name == "dirichlet" and value.isascii() and not set(value) & set("_ \t\r\n"):
        try:
            return Dirichlet(float(value))
        except ConfigError:
            raise
        except ValueError:
            pass
    if name in ("shards", "bootstrap") and value.isascii() and value.isdigit() and len(value) < 19:
        return Shards(int(value)) if name == "shards" else Bootstrap(int(value))
    hint = "" if name in _NAMES else nearest(name, _NAMES)
    raise ConfigError(f"partition must be {_EXPECTED}, got {text!r}{hint}")


def _dirichlet_shares(alpha: float, num_shares: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return one symmetric Dirichlet draw, computed in logarithms so that no alpha under- or overflows.

    Gamma draws by Marsaglia and Tsang (doi:10.1145/358407.358414) for shape alpha + 1, brought to alpha by
    log G(alpha) = log G(alpha + 1) + log(U) / alpha; normals by Box and Muller.
    """
    alpha = min(max(alpha, 1e-9), 1e9)
    offset = alpha + 1 - 1 / 3
    spread = 1 / math.sqrt(9 * offset)
    logs = np.empty(num_shares)
    waiting = np.arange(num_shares)
    while waiting.size:
        uniform = 1 - rng.random((3, waiting.size))
        normal = np.sqrt(-2 * np.log(uniform[0])) * np.cos(2 * math.pi * uniform[1])
        cube = np.maximum(1 + spread * normal, 1e-30) ** 3
        bound = 0.5 * normal**2 + offset * (1 - cube + np.log(cube))
        accepted = (spread * normal > -1) & (np.log(uniform[2]) < bound)
        logs[waiting[accepted]] = np.log(offset * cube[accepted])
        waiting = waiting[~accepted]
    logs += np.log(1 - rng.random(num_shares)) / alpha
    shares = np.exp(np.maximum(logs - logs.max(), -745.0))
    result: npt.NDArray[np.float64] = shares / shares.sum()
    return result
