"""Experiment: everything that decides a run, checked, and its TOML file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from gradwire.aggregation.text import parse_aggregation
from gradwire.compressors.compressor import Compressor
from gradwire.compressors.spec import parse
from gradwire.errors import BackendUnavailable, ConfigError, nearest
from gradwire.federated.algorithms import Algorithm, parse_algorithm
from gradwire.federated.data.partition import parse_partition
from gradwire.federated.network.budgets import Budget, parse_budget
from gradwire.federated.network.channel import Loss
from gradwire.federated.network.links import parse_links

try:
    import tomli_w
    from pydantic import BaseModel, ConfigDict, Field, ValidationError
except ImportError as error:
    raise BackendUnavailable(
        f"experiments need pydantic and tomli_w, got {error}: pip install 'gradwire[sim]'"
    ) from error

__all__ = ["DEFAULT_METHODS", "Experiment", "Variant"]

DEFAULT_METHODS = (
    "dense()",
    "topk(0.01)",
    "ef(topk(0.01))",
    "ef(topk(0.01) | uniform(8))",
    "ef(randk(0.01))",
    "ef(uniform(4))",
)
_SWEPT = ("methods", "algorithms", "links", "budgets")  # each a list; a run takes one of each
_SHARED = ("data", "data_dir", "device", "seeds", "runs")  # the same for all runs of a file
_LEARNING_RATES = {"digits": 0.2, "mnist": 0.1, "cifar10": 0.1, "shakespeare": 0.3}


@dataclass(frozen=True)
class Variant:
    """One run of an experiment but for its seed.

    Attributes:
        label: what tells it from the others of its experiment; the method's text where that is enough.
        experiment: its settings: one method, algorithm, kind of links and budget.
    """

    label: str
    experiment: Experiment

    @property
    def compressor(self) -> Compressor:
        """The method."""
        return parse(self.experiment.methods[0])


class Experiment(BaseModel):
    """One comparison: methods, algorithms and links on the same task, clients, rounds and seeds.

    Attributes:
        name: what a run is called in tables, or None for what tells it from the others.
        data: ``digits``, ``mnist``, ``cifar10`` or ``shakespeare``.
        data_dir: folder of the data files, or None for ``GRADWIRE_DATA``.
        model: a model's name, or None for the task's own.
        methods: spec texts.
        algorithms: texts such as ``fedavg()`` or ``scaffold()``; each method is run with each.
        links: what joins clients and server: ``ideal()``, ``mix(fibre=1, lte=2)`` ...; each method is run over each.
        budgets: how much a client may send a round, such as ``none()`` or ``fit()``; each method is run with each.
        downlink: spec text of the way down.
        clients: number of clients.
        participation: share of them drawn for a round; for an asynchronous algorithm, share that is at work at a time.
        rounds: number of rounds; for an asynchronous algorithm, of the server's steps.
        local_steps: local SGD steps in a round (H).
        batch_size: examples to a local step.
        learning_rate: of local SGD, or None for the task's own.
        schedule: ``constant``, or ``cosine`` down to zero at the end, after the warm-up.
        warmup_rounds: rounds in which the learning rate rises in a straight line to that.
        warmup_from: what it rises from, as a share of it.
        milestones: shares of the rounds, each of which divides the learning rate by 10 when it is over.
        weight_decay: of local SGD.
        weighting: ``examples``: clients weigh as many as they have; ``equal``: all the same. Asynchronous algorithms
            weigh payloads by their age alone.
        augment: whether images are shifted and mirrored at random.
        precision: ``float32`` or ``bfloat16``, of training alone.
        partition: ``iid``, ``dirichlet:A``, ``shards:S``, ``bootstrap:N`` or ``natural``.
        examples_per_second: how fast a client's examples come in, for continuous learning, or None: all are there.
        deadline_seconds: a round is closed after so long whoever is missing, or None: all are waited for.
        mtu: most bytes of a packet, or None: payloads travel whole. Needed for any loss.
        packet_loss: share of packets lost.
        packet_duplication: share of packets that arrive twice.
        packet_reordering: share of packets held back behind later ones.
        reorder_seconds: the most those are held back.
        disconnection: share of uploads in the middle of which the client vanishes.
        max_staleness: how old a payload may be, in rounds, or None: any age for an asynchronous algorithm, else 0.
        aggregation: ``mean()``, ``median()``, ``trimmed_mean(0.1)`` or ``over_the_air()``.
        max_norm: the longest payload that counts in full, or None.
        regions: number of regional servers between clients and server; 0: none.
        forward: spec text of the way from a region to the server.
        region_link: what joins regions and server, as for ``links``.
        clients_on_disk: keep clients that are not at work in a file instead of in memory.
        audit: check after each round that nothing was lost (law 1), for ``ef`` alone.
        target_accuracy: note when it is reached, or None.
        stop_at_target: end a run there.
        seeds: each method is run once with each.
        device: a torch device.
        evaluate_every: rounds between evaluations, or None to choose; the last round is always evaluated.
        runs: a table of settings each; where there are any, they are what is run, and the settings outside are
            what they have in common.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    name: str | None = Field(default=None, min_length=1)
    data: str = "digits"
    data_dir: str | None = None
    model: str | None = None
    methods: list[str] = Field(default=list(DEFAULT_METHODS), min_length=1)
    algorithms: list[str] = Field(default=["fedavg()"], min_length=1)
    links: list[str] = Field(default=["ideal()"], min_length=1)
    budgets: list[str] = Field(default=["none()"], min_length=1)
    downlink: str = "dense()"
    clients: int = Field(default=10, ge=1, le=100_000)
    participation: float = Field(default=1.0, gt=0, le=1)
    rounds: int = Field(default=100, ge=1)
    local_steps: int = Field(default=5, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_rounds: int = Field(default=0, ge=0)
    warmup_from: float = Field(default=0.2, gt=0, le=1)
    milestones: list[float] = Field(default=[])
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    weighting: Literal["examples", "equal"] = "examples"
    augment: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    partition: str = "iid"
    examples_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    deadline_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    mtu: int | None = Field(default=None, ge=1)
    packet_loss: float = Field(default=0.0, ge=0, lt=1)
    packet_duplication: float = Field(default=0.0, ge=0, lt=1)
    packet_reordering: float = Field(default=0.0, ge=0, lt=1)
    reorder_seconds: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    disconnection: float = Field(default=0.0, ge=0, lt=1)
    max_staleness: int | None = Field(default=None, ge=0)
    aggregation: str = "mean()"
    max_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    regions: int = Field(default=0, ge=0)
    forward: str = "ef(dense())"
    region_link: str = "ideal()"
    clients_on_disk: bool = False
    audit: bool = False
    target_accuracy: float | None = Field(default=None, gt=0, le=1)
    stop_at_target: bool = False
    seeds: list[int] = Field(default=[0], min_length=1)
    device: str = "cpu"
    evaluate_every: int | None = Field(default=None, ge=1)
    runs: list[dict[str, Any]] = Field(default=[])

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
        shares = made.milestones
        if not all(0 < share < 1 for share in shares) or sorted(set(shares)) != shares:
            raise ConfigError(f"{source}: milestones must be increasing shares in (0, 1), got {shares}")
        if made.warmup_rounds > made.rounds:
            raise ConfigError(f"{source}: warmup_rounds must be at most rounds {made.rounds}, got {made.warmup_rounds}")
        bad_seed = next((s for s in made.seeds if not 0 <= s < 2**63 or made.seeds.count(s) > 1), None)
        if bad_seed is not None:
            raise ConfigError(f"{source}: seeds must be integers in [0, 2^63), each given once; got {made.seeds}")
        made = made.model_copy(update=_canonical(made, source))
        _check_together(made, source)
        labels = [variant.label for variant in made.variants(source)]
        repeated = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
        if repeated is not None:
            raise ConfigError(f"{source}: run {repeated!r} is there twice; name one of them")
        return made

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

    @property
    def algorithm(self) -> Algorithm:
        """The first algorithm: a variant's only one."""
        return parse_algorithm(self.algorithms[0])

    @property
    def budget(self) -> Budget:
        """The first budget: a variant's only one."""
        return parse_budget(self.budgets[0])

    @property
    def loss(self) -> Loss:
        """What becomes of packets on the way."""
        return Loss(
            self.packet_loss,
            self.packet_duplication,
            self.packet_reordering,
            self.reorder_seconds,
            self.disconnection,
        )

    def variants(self, source: str = "experiment") -> list[Variant]:
        """Return every run the experiment asks for but for the seeds, in the order they are run.

        Raises:
            ConfigError: on a table of ``runs`` that cannot be used.
        """
        if not self.runs:
            return list(self._product(""))
        common = self.model_dump(exclude={"runs"}, exclude_unset=True)
        found: list[Variant] = []
        for number, table in enumerate(self.runs, start=1):
            where = f"{source}: run {number}"
            shared = next((name for name in table if name in _SHARED), None)
            if shared is not None:
                raise ConfigError(f"{where}: {shared} is the same for all runs, set it outside of them")
            run = Experiment.build(common | table, where)
            found += run._product(" · ".join(f"{k} {v}" for k, v in table.items() if k not in (*_SWEPT, "name")))
        return found

    def _product(self, changed: str) -> Iterator[Variant]:
        """One of each list of settings, in every combination."""
        for chosen in product(*(getattr(self, name) for name in _SWEPT)):
            one = dict(zip(_SWEPT, chosen, strict=True))
            told = [one["methods"]]
            told += [one[n] for n in _SWEPT[1:] if len(getattr(self, n)) > 1 or n in self._unusual()]
            if self.name is not None:
                several = [one[n] for n in _SWEPT if len(getattr(self, n)) > 1]
                told = [self.name, *several]
            elif changed:
                told.append(changed)
            settings = self.model_dump(exclude={"runs"}) | {name: [value] for name, value in one.items()}
            yield Variant(" · ".join(told), Experiment(**settings))

    def _unusual(self) -> list[str]:
        return [name for name in _SWEPT if getattr(self, name) != Experiment.model_fields[name].default]

    def toml(self) -> str:
        """Return the experiment as a TOML file that ``read`` takes; settings left at None are left out."""
        return tomli_w.dumps({k: v for k, v in self.model_dump().items() if v is not None and (k != "runs" or v)})

    @property
    def step_size(self) -> float:
        """The learning rate used: the one given, or the task's own."""
        return self.learning_rate if self.learning_rate is not None else _LEARNING_RATES.get(self.data, 0.1)

    def step_size_at(self, round: int) -> float:
        """The learning rate of a round (0-based): warm-up and milestones included."""
        factor = 1.0
        if round < self.warmup_rounds:
            factor = self.warmup_from + (1 - self.warmup_from) * round / self.warmup_rounds
        elif self.schedule == "cosine":
            done = (round - self.warmup_rounds) / max(1, self.rounds - self.warmup_rounds)
            factor = (1 + math.cos(math.pi * min(1.0, done))) / 2
        passed = sum(round >= share * self.rounds for share in self.milestones)
        return self.step_size * factor / 10.0**passed

    def evaluates(self, round: int) -> bool:
        """Whether the model is evaluated after a round (0-based)."""
        every = self.evaluate_every or (1 if self.data == "digits" else max(1, self.rounds // 20))
        return (round + 1) % every == 0 or round + 1 == self.rounds


def _canonical(made: Experiment, source: str) -> dict[str, Any]:
    """Settings that are texts of their own, read and written in their one form."""
    readers = {
        "methods": parse,
        "algorithms": parse_algorithm,
        "links": parse_links,
        "budgets": parse_budget,
        "downlink": parse,
        "forward": parse,
        "region_link": parse_links,
        "aggregation": parse_aggregation,
        "partition": parse_partition,
    }
    found: dict[str, Any] = {}
    for name, read in readers.items():
        value = getattr(made, name)
        texts = [str(read(text)) for text in ([value] if isinstance(value, str) else value)]
        repeated = next((text for i, text in enumerate(texts) if text in texts[:i]), None)
        if repeated is not None:
            raise ConfigError(f"{source}: {name.removesuffix('s')} {repeated} is given twice")
        found[name] = texts[0] if isinstance(value, str) else texts
    return found


def _check_together(made: Experiment, source: str) -> None:
    """Settings that do not go together."""
    algorithms = [parse_algorithm(text) for text in made.algorithms]
    late = [str(a) for a in algorithms if a.asynchronous]
    controls = [str(a) for a in algorithms if a.uses_controls]
    budgets = [text for text in made.budgets if text != "none()"]
    lossy = [n for n in ("packet_loss", "packet_duplication", "packet_reordering", "disconnection") if getattr(made, n)]
    refused = [
        (lossy and made.mtu is None, f"{', '.join(lossy)} is about packets: set mtu, for instance 1200"),
        (
            budgets and made.mtu is not None,
            f"{', '.join(budgets)} and mtu: packets send what fits the deadline as it is",
        ),
        (budgets and made.deadline_seconds is None, f"{', '.join(budgets)} needs deadline_seconds"),
        (controls and made.mtu is not None, f"{', '.join(controls)} sends control variates whole: no mtu"),
        (late and made.regions, f"{', '.join(late)} has no rounds for regions to forward in"),
        (controls and made.regions, f"{', '.join(controls)} keeps its control variates at one server: no regions"),
        (made.examples_per_second and not late, "examples_per_second is for asynchronous algorithms such as fedbuff()"),
        (late and made.mtu is not None, f"{', '.join(late)} sends payloads whole: no mtu"),
        (
            made.aggregation != "mean()" and (late or made.mtu is not None or budgets),
            f"{made.aggregation} needs whole payloads of one round over the same coordinates: "
            "no asynchronous algorithm, mtu or budgets",
        ),
        (
            made.max_staleness is not None and len(late) < len(algorithms),
            "max_staleness is for asynchronous algorithms",
        ),
        (
            made.deadline_seconds is not None and late and len(budgets) < len(made.budgets),
            f"deadline_seconds means nothing to {', '.join(late)} without budgets",
        ),
        (made.regions > made.clients, f"regions must be at most clients {made.clients}, got {made.regions}"),
        (made.stop_at_target and made.target_accuracy is None, "stop_at_target needs target_accuracy"),
    ]
    reason = next((text for wrong, text in refused if wrong), None)
    if reason is not None:
        raise ConfigError(f"{source}: {reason}")


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
