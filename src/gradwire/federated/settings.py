"""Settings: everything that can be set of an experiment, each with its kind and bounds."""

from __future__ import annotations

import math
from typing import Any, Literal

from gradwire.compressors.compressor import Compressor
from gradwire.compressors.spec import parse
from gradwire.errors import BackendUnavailable
from gradwire.federated.algorithms import Algorithm, parse_algorithm
from gradwire.federated.data.tasks import find_row
from gradwire.federated.network.budgets import Budget, parse_budget
from gradwire.federated.network.channel import Loss

try:
    from pydantic import BaseModel, ConfigDict, Field
except ImportError as error:
    raise BackendUnavailable(f"experiments need pydantic, got {error}: pip install 'gradwire[sim]'") from error

__all__ = ["DEFAULT_METHODS", "Settings"]

DEFAULT_METHODS = (
    "dense()",
    "topk(0.01)",
    "ef(topk(0.01))",
    "ef(topk(0.01) | uniform(8))",
    "ef(randk(0.01))",
    "ef(uniform(4))",
)


class Settings(BaseModel):
    """One comparison: methods, algorithms and links on the same task, clients, rounds and seeds.

    Attributes:
        name: what a run is called in tables, or None for what tells it from the others.
        data: ``digits``, ``mnist``, ``cifar10`` or ``shakespeare``; or a task of your own, ``package.module:function``.
        data_dir: folder of the data files, or None for ``GRADWIRE_DATA``.
        model: a model's name, or None for the task's own.
        methods: spec texts.
        algorithms: texts such as ``fedavg()`` or ``scaffold()``; each method is run with each.
        links: what joins clients and server, ``ideal()``, ``mix(fibre=1, lte=2)`` ...; each method is run over each.
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
    rounds: int = Field(default=100, ge=1, le=10_000_000)
    local_steps: int = Field(default=5, ge=1, le=1_000_000)
    batch_size: int = Field(default=32, ge=1, le=1_000_000)
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

    @property
    def step_size(self) -> float:
        """The learning rate used: the one given, or the task's own."""
        return self.learning_rate if self.learning_rate is not None else find_row(self.data).learning_rate

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
        times = find_row(self.data).evaluations or self.rounds
        every = self.evaluate_every or max(1, self.rounds // times)
        return (round + 1) % every == 0 or round + 1 == self.rounds
