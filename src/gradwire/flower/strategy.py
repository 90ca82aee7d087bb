"""Strategy: the server's side, round any strategy of Flower's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvgM, Result, Strategy

from gradwire.checks import check_bytes, check_integer
from gradwire.compressors.compressor import Compressor, Vector, decompress
from gradwire.compressors.sparsify import dense
from gradwire.compressors.spec import parse
from gradwire.ends.client import Client
from gradwire.errors import ConfigError, DecodeError, Duplicate, ProtocolError, StateError, visible
from gradwire.files.store import read_state, write_state
from gradwire.flower.conversation import Conversation
from gradwire.flower.header import check_conversation
from gradwire.flower.kinds import check_strategy, owner_of, takes_mean, warnings_of
from gradwire.flower.ledger import Ledger
from gradwire.flower.memory import memory_of, restore_memory
from gradwire.flower.model import Model
from gradwire.flower.post import Budget, Post
from gradwire.flower.replies import Reply, as_dense, as_mean, common_form, form_of, metrics_over, weight_of
from gradwire.rng import Key
from gradwire.saved import from_saved, reading_state
from gradwire.wire import decode

__all__ = ["TIMEOUT", "WITHOUT_MOD", "CompressedStrategy"]

_log = logging.getLogger("flwr")
_FORMAT = 1
TIMEOUT = 3600.0
"""Seconds that Flower waits for replies unless told."""
WITHOUT_MOD = (
    "the clients answer with models, not with what gradwire sends: add CompressionMod() to the mods of ClientApp"
)


class _NothingAggregated(Exception):
    """The inner strategy made no model of what came."""


class CompressedStrategy(Strategy):
    """Let any strategy of Flower's train with compressed updates.

    Strategies that take the weighted mean (FedAvg, FedAvgM, FedProx, FedAdam, FedYogi, FedAdagrad) are handed it as one
    reply. All others see every client's, made dense. Each ClientApp has ``CompressionMod`` among its mods.

    Args:
        inner: the strategy: it chooses nodes, configures them and aggregates.
        spec: what compresses the way up, a ``Compressor`` or its text.
        downlink: what compresses the way down; lossless by default.
        client_id_of: Flower's ``NodeInfo`` -> the client's number, where nodes are authenticated and the server knows
            them; by default a node's first answer says which client it is.
        num_bytes: what a payload may take: one number for all, a dict from client, or a function of the client, which
            is None where it is not known yet.
        max_staleness: how many rounds late a payload may come and still be counted; its weight is that of any other.
        seed: seed of what is drawn at random.
        conversation: under this name the clients keep what they did not send yet; ``run-<run id>`` by default.
        out: a folder for metrics.jsonl and summary.json, which ``gradwire report`` draws.
        state_file: written at the start, after each round, and before clients are told of what came late; where it
            exists at the start, the run goes on from there.

    Raises:
        ConfigError: on what cannot work together, before the run starts.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> from gradwire.flower import CompressedStrategy
        >>> strategy = CompressedStrategy(FedAvg(), "ef(topk(0.01))")
    """

    payloads_per_round: int | None = 1
    conversation_type: type[Conversation] = Conversation

    def __init__(
        self,
        inner: Strategy,
        spec: Compressor | str,
        *,
        downlink: Compressor | str | None = None,
        client_id_of: Callable[[Any], int] | None = None,
        num_bytes: int | Mapping[int, int] | Budget | None = None,
        max_staleness: int = 0,
        seed: int = 0,
        conversation: str | None = None,
        out: Path | str | None = None,
        state_file: Path | str | None = None,
    ) -> None:
        self.spec = _as_compressor("spec", spec)
        self.downlink = dense() if downlink is None else _as_compressor("downlink", downlink)
        if self.downlink.mirrored:
            raise ConfigError(f"downlink must send what is applied, {self.downlink} sends steps of a mirror; use ef")
        self.max_staleness = check_integer("max_staleness", max_staleness, 0)
        if isinstance(inner, CompressedStrategy):
            raise ConfigError("inner compresses already: wrap a strategy once")
        self._check(inner)
        self.inner = inner
        self.weighted_by_key: str = owner_of(inner, "weighted_by_key").weighted_by_key
        self.seed = Key(seed).seed
        self.rounds_done = 0
        self._name = None if conversation is None else check_conversation(conversation)
        self._budget = _as_budget(num_bytes)
        self._client_id_of = client_id_of
        self._state_file = None if state_file is None else Path(state_file)
        self._conversation: Conversation | None = None
        self._post: Post | None = None
        self._ledger = Ledger(str(self.spec), self.seed, None if out is None else Path(out))
        self._record: ArrayRecord | None = None
        self._num_rounds: int | None = None
        self._timeout = TIMEOUT
        self._before = 0
        self._late: list[Reply] = []

    @property
    def ledger(self) -> Ledger:
        """Bytes by round, node and way."""
        return self._ledger

    @property
    def arrays(self) -> ArrayRecord | None:
        """The model as of now; None before the first round."""
        return self._record

    def summary(self) -> None:
        """Log what the inner strategy does, and what travels."""
        self.inner.summary()
        _log.info("\t└──> gradwire: %s up, %s down", self.spec, self.downlink)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = TIMEOUT,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds, as ``Strategy.start`` does.

        Args:
            grid: to the nodes.
            initial_arrays: the model; of a run that is resumed, the saved one is taken in its place.
            num_rounds: rounds in all: a run that is resumed has done some of them.
            timeout: seconds to wait for replies; Flower's default of an hour is long where nodes may vanish.
            train_config: goes to clients that train.
            evaluate_config: goes to clients that evaluate.
            evaluate_fn: evaluates the model here: round, arrays -> metrics.

        Returns:
            What ``Strategy.start`` returns; rounds are counted from where the run was resumed.
        """
        initial_arrays = self._begin(grid, initial_arrays, num_rounds, timeout)
        result = super().start(
            grid,
            initial_arrays,
            max(0, num_rounds - self._before),
            timeout,
            train_config,
            evaluate_config,
            self._evaluating(evaluate_fn),
        )
        self._end_round()
        self._save()
        return result if result.arrays else Result(arrays=initial_arrays)

    def _check(self, inner: Strategy) -> None:
        """Refuse what cannot work together."""
        check_strategy(inner, self.spec, self.downlink, self.max_staleness)

    def _begin(self, grid: Grid, arrays: ArrayRecord, num_rounds: int, timeout: float) -> ArrayRecord:
        """Begin a run, or go on with the one that was saved; the model it starts from."""
        if self._conversation is None and self._state_file is not None and self._state_file.exists():
            self._resume(self._state_file, arrays)
        self._before, self._num_rounds, self._timeout = self.rounds_done, num_rounds, timeout
        if self._conversation is not None and self._record is not None:
            _log.info("gradwire: goes on after round %d with the saved model", self.rounds_done)
            arrays = self._record
            self._ledger.resume(self.rounds_done)
        self._open(grid, arrays)
        self._save()
        return arrays

    def _resume(self, path: Path, arrays: ArrayRecord) -> None:
        """Load the state of a run that is this one."""
        state = read_state(path)
        try:
            with reading_state():
                saved = Model.from_state(from_saved(state)["conversation"]["model"])
            if (said := Model.from_record(arrays).difference(saved)) is not None:
                raise StateError(f"initial_arrays (here) are another model than the run's (there): {said}")
            self.load_state_dict(state)
        except StateError as error:
            raise StateError(f"state_file {path}: {error}; move it away to begin anew") from None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Configure a round of training: the inner strategy's messages, with blobs in place of models."""
        self._end_round()
        _, post = self._open(grid, arrays)
        self._begin_round()
        late = post.drain(grid)
        self._late = [reply for reply in late if self.max_staleness and self._receive(reply, None)]
        if self._late:  # what a client is told to be counted must be, whatever happens to this process
            self._save()
        messages = self.inner.configure_train(server_round + self._before, self._current(), config, grid)
        return post.send(messages, grid, self._timeout)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Count what came and close the round."""
        conversation, post = self._opened()
        answers, errors = post.collect(replies)
        if post.without_mod and not conversation.heard:
            raise ProtocolError(WITHOUT_MOD)
        usable = [reply for reply in answers if reply.answer.blob is not None and self._has_metrics(reply)]
        form = common_form(usable)
        counted = [reply for reply in usable if self._receive(reply, form)]
        if not counted:  # what came late is all there is, if anything
            form = common_form(self._late)
            counted = [reply for reply in self._late if form_of(reply) == form]
        metrics = self._close(server_round + self._before, counted, errors)
        self._save()
        return self._record, metrics

    def _close(self, server_round: int, counted: list[Reply], errors: list[Message]) -> MetricRecord | None:
        """Close the round: what the inner strategy makes of the mean moves the model."""
        conversation, _ = self._opened()
        metrics: list[MetricRecord | None] = []

        def step(mean: Vector) -> Vector:
            delta, found = self._aggregated(server_round, counted, errors, self._scaled(mean))
            metrics.append(found)
            return delta

        try:
            self._ledger.rounds[-1].num_counted = self._num_counted(conversation.close(step).num_received)
        except _NothingAggregated:
            conversation.server.drop_round()
            _log.warning("gradwire: nothing was aggregated: the round stays open, its updates stay with the clients")
            metrics = [None]
        self._keep_model()
        self._log_round()
        self.rounds_done += 1
        return metrics[0]

    def _num_counted(self, num_received: int) -> int:
        """Tell how many clients' payloads are in what the server received."""
        return num_received

    def _scaled(self, mean: Vector) -> Vector:
        """Make of the round's mean what the inner strategy is handed."""
        return mean

    def _save(self) -> None:
        """Write the state, where it has a file."""
        if self._state_file is not None:
            try:
                write_state(self._state_file, self.state_dict())
            except OSError as error:
                said = f"state_file {self._state_file}: cannot be written: {error.strerror or error}"
                raise ConfigError(said) from None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Configure a round of evaluation, on models that travel as blobs, too."""
        _, post = self._open(grid, arrays)
        if not self._ledger.rounds:
            self._begin_round()
        messages = list(self.inner.configure_evaluate(server_round + self._before, self._current(), config, grid))
        return post.send(messages, grid, self._timeout)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Let the inner strategy aggregate the metrics."""
        _, post = self._opened()
        answers, errors = post.collect(replies)
        contents = [reply.message for reply in answers]
        metrics = self.inner.aggregate_evaluate(server_round + self._before, [*contents, *errors])
        self._ledger.measured(metrics)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that a later run needs to go on: arrays and plain values only.

        Of the inner strategy what Flower's own remember is kept: moments, momentum, an adaptive clipping norm, and what
        of a privacy budget is spent.

        Raises:
            StateError: before the first round.
        """
        if self._conversation is None:
            raise StateError("there is no state before the first round")
        return {
            "format": _FORMAT,
            "rounds_done": self.rounds_done,
            "conversation": self._conversation.state_dict(),
            "inner": memory_of(self.inner),
            "ledger": self._ledger.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, in a new run: the clients find what they had under the same name.

        Args:
            state: from ``state_dict`` of a strategy with the same spec, downlink, seed and kind of inner strategy, and
                the same conversation where this one names one.

        Raises:
            StateError: on a state of something else; nothing is changed then.
        """
        state = from_saved(state)
        with reading_state():
            if state["format"] != _FORMAT:
                raise StateError(f"state has format {state['format']!r}, expected {_FORMAT}")
            conversation = self.conversation_type.from_state(
                state["conversation"], self.spec, self.downlink, self.max_staleness, self.payloads_per_round
            )
            rounds_done = check_integer("rounds_done", state["rounds_done"], 0)
            if conversation.server.seed != self.seed:
                raise StateError(f"it is of a run with seed {conversation.server.seed}, this one has seed {self.seed}")
            if self._name is not None and conversation.name != self._name:
                raise StateError(f"it is of conversation {conversation.name!r}, this run's is {self._name!r}")
            restore_memory(self.inner, state["inner"], rounds_done)
            self._ledger.load_state_dict(state["ledger"])
        self._conversation, self._post = conversation, None
        self._name, self.rounds_done = conversation.name, rounds_done
        self._keep_model()

    def _open(self, grid: Grid, arrays: ArrayRecord) -> tuple[Conversation, Post]:
        """Begin the conversation where there is none, and see whether the model is still ours."""
        if self._conversation is None:
            name = self._name or f"run-{grid.run.run_id}"
            model = Model.from_record(arrays)
            self._conversation = self.conversation_type(
                name, self.spec, self.downlink, model, self.seed, self.max_staleness, self.payloads_per_round
            )
            self._keep_model()
        elif arrays is not self._record and arrays != self._record:
            model = Model.from_record(arrays)
            if (said := model.difference(self._conversation.model)) is not None:
                raise ConfigError(
                    f"the model changed in the middle of conversation {self._conversation.name!r}: {said}"
                )
            _log.warning("gradwire: the model was changed between rounds: it goes to all clients whole")
            self._conversation.replace_model(model)
            self._keep_model()
            if self._post is not None:
                self._post.void()
        self._conversation.num_rounds = self._num_rounds
        if self._post is None:
            self._ledger.ran(grid.run.run_id)
            self._post = Post(
                self._conversation,
                self._ledger,
                self.weighted_by_key,
                self._budget,
                self._client_id_of,
                self._patience,
            )
            self._log_start()
        return self._conversation, self._post

    @property
    def _patience(self) -> int:
        """For how many rounds a client is told nothing of what it sent, since a payload may still come."""
        return self.max_staleness

    def _opened(self) -> tuple[Conversation, Post]:
        if self._conversation is None or self._post is None:
            raise ProtocolError("replies come after configure_train or configure_evaluate, not before")
        return self._conversation, self._post

    def _current(self) -> ArrayRecord:
        return ArrayRecord() if self._record is None else self._record.copy()

    def _has_metrics(self, reply: Reply) -> bool:
        try:
            weight_of(reply, self.weighted_by_key)
        except ProtocolError as error:
            self._log_refused(reply, error)
            return False
        return True

    def _receive(self, reply: Reply, form: tuple[Any, ...] | None) -> bool:
        """Count a reply's payload; False, and a line in the log, where it cannot be."""
        conversation, _ = self._opened()
        answer = reply.answer
        try:
            if form is not None and form_of(reply) != form:
                raise ProtocolError(f"its records are {form_of(reply)}, most replies' are {form}")
            conversation.receive(answer.client, answer.incarnation, answer.blob or b"", self._weight(reply))
        except Duplicate as error:
            _log.info("gradwire: node %d sent it before: %s", reply.node_id, error)
            return False
        except (ProtocolError, DecodeError, ConfigError) as error:
            self._log_refused(reply, error)
            return False
        return True

    def _weight(self, reply: Reply) -> float:
        """Weigh a reply in the round's mean."""
        return weight_of(reply, self.weighted_by_key)

    def _aggregated(
        self, server_round: int, counted: list[Reply], errors: list[Message], mean: Vector
    ) -> tuple[Vector, MetricRecord | None]:
        """Run the inner strategy: the mean, or every reply -> what moves the model."""
        conversation, _ = self._opened()
        model = conversation.model
        weights = [weight_of(reply, self.weighted_by_key) for reply in counted]
        as_means = takes_mean(self.inner)
        if not counted:
            messages = []
        elif as_means:
            messages = [as_mean(counted, weights, self.weighted_by_key, model, mean)]
        else:
            messages = [as_dense(reply, model, self._update_of(reply)) for reply in counted]
        with metrics_over(owner_of(self.inner, "train_metrics_aggr_fn"), counted, merged=as_means):
            arrays, metrics = self.inner.aggregate_train(server_round, [*messages, *errors])
        if arrays is None:
            if self._late or (as_means and not counted) or not conversation.server.aggregator.num_received:
                return mean, metrics  # what was counted late, if anything, stays counted
            raise _NothingAggregated
        new = model.flatten(arrays)
        delta = new - model.vector
        return (np.where(new == model.rounded(model.vector + mean), mean, delta) if as_means else delta), metrics

    def _update_of(self, reply: Reply) -> Vector:
        conversation, _ = self._opened()
        payload = decode(reply.answer.blob or b"")
        return decompress(payload, conversation.server.reference_of(payload))

    def _keep_model(self) -> None:
        """Make the record of the model; strategies that keep one of their own get this one."""
        if self._conversation is not None:
            self._record = self._conversation.model.record()
            momentum, moments = owner_of(self.inner, "momentum_vector"), owner_of(self.inner, "m_t")
            if isinstance(momentum, FedAvgM) and momentum.current_arrays is not None:
                momentum.current_arrays = self._record.copy()
            if moments is not None and moments.current_arrays is not None:
                moments.current_arrays = {key: array.numpy() for key, array in self._record.items()}

    def _evaluating(
        self, evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None
    ) -> Callable[[int, ArrayRecord], MetricRecord | None] | None:
        if evaluate_fn is None:
            return None

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = evaluate_fn(server_round + self._before, arrays)
            if server_round and self._ledger.rounds:
                self._ledger.measured(metrics)
            return metrics

        return evaluate

    def _begin_round(self) -> None:
        """Begin the ledger of a round; one that was begun before this process was killed goes on."""
        if len(self._ledger.rounds) == self.rounds_done:
            self._ledger.begin()

    def _end_round(self) -> None:
        """Write what is known of the round before, evaluation included."""
        if self._post is None or self._conversation is None or not self.rounds_done:
            return
        self._ledger.write_rounds(self.rounds_done, self._post.names)
        self._ledger.write_summary(self._conversation.model, self._num_rounds, self._post.names)

    def _log_start(self) -> None:
        conversation, _ = self._opened()
        model = conversation.model
        sample = (Key(self.seed, purpose="sample").words(model.layout.d) / 2**63 - 1).astype(np.float32)
        blob = Client(self.spec, model.layout, seed=self.seed, num_rounds=self._num_rounds).compress(sample)
        for warning in warnings_of(self.inner, self.spec, model.layout.num_parameters):
            _log.warning("gradwire: %s", warning)
        _log.info(
            "gradwire: conversation %r: %s up, some %d bytes a client and round in place of %d; %s down; %d parameters",
            conversation.name,
            self.spec,
            len(blob),
            4 * model.layout.d,
            self.downlink,
            model.layout.d,
        )
        _log.info(
            "gradwire: the server keeps its state in %s; each client logs where it keeps what it did not send yet",
            self._state_file or "memory alone: state_file= lets a run that was killed go on",
        )

    def _log_round(self) -> None:
        now, said = self._ledger.rounds[-1], "gradwire: %d counted; %d bytes up, %d down, %d other"
        _log.info(said, now.num_counted, now.uplink, now.downlink, now.other)

    def _log_refused(self, reply: Reply, error: Exception) -> None:
        _log.warning(
            "gradwire: refused the payload of client %d, node %d: %s: %s",
            reply.answer.client,
            reply.node_id,
            type(error).__name__,
            visible(str(error)),
        )


def _as_compressor(name: str, value: Compressor | str) -> Compressor:
    if isinstance(value, str):
        return parse(value)
    if not isinstance(value, Compressor):
        raise ConfigError(f"{name} must be a Compressor or its text, got {value!r}")
    return value


def _as_budget(num_bytes: int | Mapping[int, int] | Budget | None) -> Budget:
    if callable(num_bytes):
        return lambda client: check_bytes(num_bytes(client))
    if isinstance(num_bytes, Mapping):
        budgets = {check_integer("client", client, 0): check_bytes(value) for client, value in num_bytes.items()}
        if not budgets:
            raise ConfigError("num_bytes must name a client, got an empty dict")
        least = min((value for value in budgets.values() if value is not None), default=None)
        return lambda client: least if client is None else budgets.get(client)
    value = check_bytes(num_bytes)
    return lambda client: value
