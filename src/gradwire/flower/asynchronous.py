"""Asynchronous: the server waits for nobody; it steps whenever enough has come, and weighs each payload by its age."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from gradwire.compressors.compressor import Compressor, Vector
from gradwire.errors import ConfigError, ProtocolError
from gradwire.federated.algorithms import Algorithm, parse_algorithm
from gradwire.flower.kinds import check_asynchronous, check_strategy
from gradwire.flower.post import Budget
from gradwire.flower.replies import Reply, common_form, form_of
from gradwire.flower.roster import Roster
from gradwire.flower.strategy import TIMEOUT, WITHOUT_MOD, CompressedStrategy

__all__ = ["AsynchronousStrategy"]

_log = logging.getLogger("flwr")
_LOOK_SECONDS = 0.3

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


class AsynchronousStrategy(CompressedStrategy):
    """Let every client train at its own pace, with compressed updates: FedBuff and FedAsync.

    A node is sent the model as soon as it is idle, and nobody is waited for. A payload weighs the less the more rounds
    were closed since its client got the model; a round closes when the algorithm's ``buffer_size`` of them were
    counted, and moves the model by their weighed sum as the algorithm scales it, and as the inner strategy makes a step
    of it: FedAvg takes it as it is, FedAvgM and FedAdam add their memory. How many examples a client has changes its
    metrics' weight, not its payload's.

    The inner strategy's ``min_available_nodes`` are waited for at the beginning, and never again. Clients evaluate
    nothing: ``start(evaluate_fn=...)`` does, after each round. ``timeout`` is how long one node is waited for; after it
    the node is sent the newest model, and what it still answers is counted where nothing was said about it yet. A round
    that nothing came in for as long is closed with what there is.

    Args:
        inner: takes the mean; as many nodes are at work at a time as it samples.
        spec: as for ``CompressedStrategy``.
        algorithm: ``fedbuff(...)`` or ``fedasync(...)`` of ``gradwire.federated.algorithms``, or its text.
        downlink: as for ``CompressedStrategy``.
        client_id_of: as for ``CompressedStrategy``.
        num_bytes: as for ``CompressedStrategy``.
        max_staleness: how many rounds late a payload may come and still be counted; an older one goes back into its
            client's residual.
        seed: as for ``CompressedStrategy``.
        conversation: as for ``CompressedStrategy``.
        out: as for ``CompressedStrategy``.
        state_file: written whenever clients are about to be told what was counted; where it exists at the start, the
            run goes on from there.

    Raises:
        ConfigError: on what cannot work together, before the run starts.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> from gradwire.flower import AsynchronousStrategy
        >>> strategy = AsynchronousStrategy(FedAvg(), "ef(topk(0.01))", "fedbuff(buffer_size=10)")
        >>> strategy.algorithm.weight(3)
        0.5

    Source: FedBuff, Nguyen et al. 2021 (arXiv 2106.06639), Algorithm 1; FedAsync, Xie et al. 2019 (arXiv 1903.03934),
        Algorithm 1.
    Deviations: see ``fedbuff`` and ``fedasync``.
    """

    payloads_per_round = None

    def __init__(
        self,
        inner: Strategy,
        spec: Compressor | str,
        algorithm: Algorithm | str = "fedbuff()",
        *,
        downlink: Compressor | str | None = None,
        client_id_of: Callable[[Any], int] | None = None,
        num_bytes: int | Mapping[int, int] | Budget | None = None,
        max_staleness: int = 100,
        seed: int = 0,
        conversation: str | None = None,
        out: Path | str | None = None,
        state_file: Path | str | None = None,
    ) -> None:
        self.algorithm = _as_algorithm(algorithm)
        super().__init__(
            inner,
            spec,
            downlink=downlink,
            client_id_of=client_id_of,
            num_bytes=num_bytes,
            max_staleness=max_staleness,
            seed=seed,
            conversation=conversation,
            out=out,
            state_file=state_file,
        )
        self._buffer: list[Reply] = []
        self._errors: list[Message] = []
        self._at_work = 0
        self._unsaved = False

    def summary(self) -> None:
        """Log what the inner strategy does, what travels, and when the server steps."""
        super().summary()
        _log.info(
            "\t└──> gradwire: %s, %d rounds late at most; clients do not evaluate", self.algorithm, self.max_staleness
        )

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = TIMEOUT,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
    ) -> Result:
        """Run until the server has made so many steps.

        Args:
            grid: to the nodes.
            initial_arrays: the model; of a run that is resumed, the saved one is taken in its place.
            num_rounds: steps in all: a run that is resumed has made some of them.
            timeout: seconds that one node is waited for.
            train_config: goes to clients that train.
            evaluate_config: not read: clients do not evaluate.
            evaluate_fn: evaluates the model here: round, arrays -> metrics, or None for a round that is not evaluated.

        Returns:
            What ``Strategy.start`` returns; rounds are counted from where the run was resumed.
        """
        result = Result(arrays=self._begin(grid, initial_arrays, num_rounds, timeout))
        conversation, post = self._opened()
        config = ConfigRecord() if train_config is None else train_config
        evaluate = self._evaluating(evaluate_fn)
        self.summary()
        if evaluate is not None:
            _note(result.evaluate_metrics_serverapp, 0, evaluate(0, result.arrays))
        if self.rounds_done < num_rounds:
            self._begin_round()
        heard, roster = time.monotonic(), Roster(grid)
        while self.rounds_done < num_rounds:
            if self._unsaved:  # what a client is told to be counted must be, whatever happens to this process
                self._save()
                self._unsaved = False
            self._send(roster, config)
            replies, errors = post.poll(grid)
            self._errors += errors
            for reply in replies:
                if self.rounds_done < num_rounds and self._count(reply):
                    heard = time.monotonic()
                    if conversation.server.aggregator.num_received >= self.algorithm.buffer_size:
                        self._step(result, evaluate)
            if self.rounds_done < num_rounds and self._is_stuck(time.monotonic() - heard):
                heard = time.monotonic()
                self._step(result, evaluate)
            elif not replies:
                time.sleep(_LOOK_SECONDS)
        self._save()
        return result

    def _send(self, grid: Roster, config: ConfigRecord) -> None:
        """Give idle nodes work, as far as the inner strategy wants so many at work at a time."""
        _, post = self._opened()
        busy = post.busy
        if busy and len(busy) >= self._at_work:
            return
        made = self.inner.configure_train(self.rounds_done + 1, self._current(), ConfigRecord(dict(config)), grid)
        online = grid.online
        wanted = [message for message in made if message.metadata.dst_node_id in online]
        self._at_work = len(wanted)
        idle = [message for message in wanted if message.metadata.dst_node_id not in busy]
        idle = idle[: max(0, self._at_work - len(busy))]
        if idle:
            grid.push_messages(post.send(idle, grid, self._timeout))

    def _is_stuck(self, seconds: float) -> bool:
        """Whether the open round must be closed with what there is: nothing comes, or nothing but errors."""
        conversation, post = self._opened()
        failing = bool(post.online) and post.online <= post.failing
        if failing and post.without_mod and not conversation.heard:
            raise ProtocolError(WITHOUT_MOD)
        if failing:
            _log.warning("gradwire: all nodes answered with errors: the round is closed with what there is")
            post.failing.clear()
        elif seconds > self._timeout:
            _log.warning("gradwire: nothing came for %g seconds: the round is closed with what there is", seconds)
        else:
            return False
        return True

    def _count(self, reply: Reply) -> bool:
        """Count a payload into the open round."""
        conversation, _ = self._opened()
        staleness = conversation.version - reply.answer.version
        if staleness > self.max_staleness:
            _log.info("gradwire: client %d is %d rounds late: not counted", reply.answer.client, staleness)
            return False
        if not self._has_metrics(reply) or not self._receive(reply, None):
            return False
        self._buffer.append(reply)
        self._unsaved = True
        return True

    def _weight(self, reply: Reply) -> float:
        """Weigh a payload by its age."""
        conversation, _ = self._opened()
        return self.algorithm.weight(conversation.version - reply.answer.version)

    def _scaled(self, mean: Vector) -> Vector:
        """Make the algorithm's step of the round's mean."""
        conversation, _ = self._opened()
        aggregator, step = conversation.server.aggregator, self.algorithm.make_step(conversation.model.layout)
        if step is None or not aggregator.num_received:
            return mean
        step.count(aggregator.sum_weights)
        return step(mean)

    def _step(self, result: Result, evaluate: Evaluate | None) -> None:
        """Close the round, evaluate, and write what came of it."""
        form = common_form(self._buffer)  # of metrics: who has others is in the sum, but not in their mean
        alike = [reply for reply in self._buffer if form_of(reply) == form]
        metrics = self._close(self.rounds_done + 1, alike, self._errors)
        self._buffer, self._errors, self._unsaved = [], [], True
        result.arrays, index = self._current(), self.rounds_done - self._before
        _note(result.train_metrics_clientapp, index, metrics)
        if evaluate is not None:
            _note(result.evaluate_metrics_serverapp, index, evaluate(index, result.arrays))
        self._end_round()
        if self.rounds_done != self._num_rounds:
            self._begin_round()

    @property
    def _patience(self) -> int:
        """None: whoever was given up and is sent a newer model is told what was counted."""
        return 0

    def _check(self, inner: Strategy) -> None:
        check_strategy(inner, self.spec, self.downlink, max_staleness=0)
        check_asynchronous(inner, self.spec)


def _as_algorithm(value: Algorithm | str) -> Algorithm:
    algorithm = parse_algorithm(value) if isinstance(value, str) else value
    if not isinstance(algorithm, Algorithm):
        raise ConfigError(f"algorithm must be fedbuff(...) or fedasync(...), or its text, got {value!r}")
    if not algorithm.asynchronous:
        raise ConfigError(f"{algorithm} waits for all: CompressedStrategy with Flower's own strategy does that")
    return algorithm


def _note(metrics: dict[int, MetricRecord], index: int, found: MetricRecord | None) -> None:
    """Keep a round's metrics, where there are any."""
    if found is not None:
        metrics[index] = found
