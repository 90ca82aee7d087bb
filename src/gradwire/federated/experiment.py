"""Experiment: everything that decides a run, checked, and its TOML file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from gradwire.compressor import Compressor
from gradwire.errors import BackendUnavailable, ConfigError, nearest
from gradwire.federated.partition import parse_partition
from gradwire.spec import parse

try:
    from pydantic import BaseModel, ConfigDict, Field, ValidationError
except ImportError as error:
    raise BackendUnavailable(f"experiments need pydantic, got {error}: pip install 'gradwire[sim]'") from error

__all__ = ["DEFAULT_METHODS", "Experiment"]

DEFAULT_METHODS = (
    "dense()",
    "topk(0.01)",
    "ef(topk(0.01))",
    "ef(topk(0.01) | uniform(8))",
    "ef(randk(0.01))",
    "ef(uniform(4))",
)
_LEARNING_RATES = {"digits": 0.2, "mnist": 0.1, "cifar10": 0.1, "shakespeare": 0.3}


class Experiment(BaseModel):
    """One comparison: methods on the same task, clients, rounds and seeds.

    Attributes:
        data: ``digits``, ``mnist``, ``cifar10`` or ``shakespeare``.
        data_dir: folder of the data files, or None for ``GRADWIRE_DATA``.
        model: a model's name, or None for the task's own.
        methods: spec texts.
        clients: number of clients, all of which take part in every round.
        rounds: number of rounds.
        local_steps: local SGD steps in a round (H).
        batch_size: examples to a local step.
        learning_rate: of local SGD, or None for the task's own.
        warmup_rounds: rounds in which the learning rate rises in a straight line to that.
        warmup_from: what it rises from, as a share of it.
        milestones: shares of the rounds, each of which divides the learning rate by 10 when it is over.
        weight_decay: of local SGD.
        augment: whether images are shifted and mirrored at random.
        precision: ``float32`` or ``bfloat16``, of training alone.
        partition: ``iid``, ``dirichlet:A``, ``shards:S`` or ``natural``.
        seeds: each method is run once with each.
        device: a torch device.
        evaluate_every: rounds between evaluations, or None to choose; the last round is always evaluated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    data: str = "digits"
    data_dir: str | None = None
    model: str | None = None
    methods: list[str] = Field(default=list(DEFAULT_METHODS), min_length=1)
    clients: int = Field(default=10, ge=1, le=100_000)
    rounds: int = Field(default=100, ge=1)
    local_steps: int = Field(default=5, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    warmup_rounds: int = Field(default=0, ge=0)
    warmup_from: float = Field(default=0.2, gt=0, le=1)
    milestones: list[float] = Field(default=[])
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    augment: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    partition: str = "iid"
    seeds: list[int] = Field(default=[0], min_length=1)
    device: str = "cpu"
    evaluate_every: int | None = Field(default=None, ge=1)

    @classmethod
    def build(cls, values: dict[str, Any], source: str = "experiment") -> Experiment:
        """Check settings and make an experiment of them.

        Args:
            values: name -> value; names left out take their defaults.
            source: where they come from, for the error.

        Returns:
            The experiment; its methods are in the text ``str(compressor)`` gives.

        Raises:
            ConfigError: on the first setting that cannot be used.
        """
        unknown = next((k for k in values if k not in cls.model_fields), None)
        if unknown is not None:
            raise ConfigError(
                f"{source}: unknown setting {unknown!r}{nearest(unknown, cls.model_fields)} "
                f"(settings: {', '.join(cls.model_fields)})"
            )
        try:
            made = cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            reason = first["msg"][:1].lower() + first["msg"][1:]
            raise ConfigError(f"{source}: {name}: {reason}, got {first['input']!r}") from None
        try:
            made.toml().encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{source}: data_dir must be Unicode text, got {made.data_dir!r}") from None
        parse_partition(made.partition)
        shares = made.milestones
        if not all(0 < share < 1 for share in shares) or sorted(set(shares)) != shares:
            raise ConfigError(f"{source}: milestones must be increasing shares in (0, 1), got {shares}")
        if made.warmup_rounds > made.rounds:
            raise ConfigError(f"{source}: warmup_rounds must be at most rounds {made.rounds}, got {made.warmup_rounds}")
        methods = [str(compressor) for compressor in made.compressors()]
        repeated = next((m for i, m in enumerate(methods) if m in methods[:i]), None)
        if repeated is not None:
            raise ConfigError(f"{source}: method {repeated} is given twice")
        bad_seed = next((s for s in made.seeds if not 0 <= s < 2**63 or made.seeds.count(s) > 1), None)
        if bad_seed is not None:
            raise ConfigError(f"{source}: seeds must be integers in [0, 2^63), each given once; got {made.seeds}")
        return made.model_copy(update={"methods": methods})

    @classmethod
    def read(cls, path: Path) -> Experiment:
        """Read an experiment's TOML file.

        Args:
            path: the file: the attributes above as ``name = value`` lines.

        Returns:
            The experiment.

        Raises:
            ConfigError: when the file is missing, is no TOML or holds a setting that cannot be used.
        """
        return cls.build(read_toml(path), str(path))

    def compressors(self) -> list[Compressor]:
        """Return the methods as compressors."""
        return [parse(method) for method in self.methods]

    def toml(self) -> str:
        """Return the experiment as a TOML file that ``read`` takes; settings left at None are left out."""
        dumped = ((k, json.dumps(v, ensure_ascii=False)) for k, v in self.model_dump().items() if v is not None)
        lines = (f"{k} = {text}".replace("\x7f", "\\u007f") for k, text in dumped)  # JSON lets DEL stand, TOML does not
        return "\n".join(lines) + "\n"

    @property
    def step_size(self) -> float:
        """The learning rate used: the one given, or the task's own."""
        return self.learning_rate if self.learning_rate is not None else _LEARNING_RATES.get(self.data, 0.1)

    def step_size_at(self, round: int) -> float:
        """The learning rate of a round (0-based): warm-up and milestones included."""
        factor = 1.0
        if round < self.warmup_rounds:
            factor = self.warmup_from + (1 - self.warmup_from) * round / self.warmup_rounds
        passed = sum(round >= share * self.rounds for share in self.milestones)
        return self.step_size * factor / 10.0**passed

    def evaluates(self, round: int) -> bool:
        """Whether the model is evaluated after a round (0-based)."""
        every = self.evaluate_every or (1 if self.data == "digits" else max(1, self.rounds // 20))
        return (round + 1) % every == 0 or round + 1 == self.rounds


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: when it is missing or is no TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # what tomllib raises on anything but TOML
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
