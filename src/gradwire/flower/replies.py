"""Replies: what an inner strategy is handed in place of the replies that came."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from gradwire.aggregation.aggregator import LARGEST_WEIGHT
from gradwire.compressors.compressor import Vector
from gradwire.errors import ProtocolError
from gradwire.flower.carrier import NAME, with_content
from gradwire.flower.header import Answer
from gradwire.flower.model import Model

__all__ = ["Reply", "as_dense", "as_mean", "common_form", "form_of", "lacks_mod", "metrics_over", "weight_of"]


@dataclass(frozen=True)
class Reply:
    """A reply, read.

    Attributes:
        node_id: who sent it.
        message: as it came, but for the carrier.
        key: of the ArrayRecord that the carrier was in.
        answer: what the carrier held.
    """

    node_id: int
    message: Message
    key: str
    answer: Answer

    @property
    def metrics(self) -> MetricRecord:
        """The one MetricRecord, or ProtocolError."""
        records = list(self.message.content.metric_records.values())
        if len(records) != 1:
            raise ProtocolError(f"a train reply must hold one MetricRecord, got {len(records)}")
        return records[0]


def lacks_mod(error: Message) -> bool:
    """Tell whether an error is that of an app that took the carrier for one of its arrays, having no mod before it."""
    reason = error.error.reason or ""
    return re.search(rf"['\"]{NAME}['\"]", reason) is not None and "gradwire.errors" not in reason


def weight_of(reply: Reply, weighted_by: str) -> float:
    """Return a reply's weight, or raise ProtocolError."""
    value: Any = reply.metrics.get(weighted_by)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= LARGEST_WEIGHT:
        raise ProtocolError(f"the metric {weighted_by!r} is a reply's weight and must be positive, got {value!r}")
    return float(value)


def form_of(reply: Reply) -> tuple[Any, ...]:
    """Return what must be alike in all replies of a round: keys, names of metrics, and which of them are lists."""
    (key, metrics), *_ = reply.message.content.metric_records.items()
    return reply.key, key, tuple(sorted((name, isinstance(value, list)) for name, value in metrics.items()))


def common_form(replies: Iterable[Reply]) -> tuple[Any, ...] | None:
    """Return the form that most replies have, the first of several; None without replies."""
    forms = Counter(form_of(reply) for reply in replies)
    return forms.most_common(1)[0][0] if forms else None


def as_mean(
    replies: Sequence[Reply], weights: Sequence[float], weighted_by: str, model: Model, mean: Vector
) -> Message:
    """Make one reply of many: a client that has all their weight, and moved the model by their mean.

    Args:
        replies: one or more, of one form.
        weights: of each.
        weighted_by: the metric that is the weight.
        model: where they started.
        mean: (d,) float32.

    Returns:
        The reply; its metrics are their weighted means, of lists the mean of those of the commonest length.
    """
    first = replies[0]
    metric_key = next(iter(first.message.content.metric_records))
    merged = _mean_metrics([reply.metrics for reply in replies], weights)
    merged[weighted_by] = float(sum(weights))
    arrays = model.record(model.vector + mean)
    return with_content(first.message, RecordDict({first.key: arrays, metric_key: merged}))


def as_dense(reply: Reply, model: Model, update: Vector) -> Message:
    """Make a reply as the app gave it to the mod: the model moved by what was counted of its update."""
    records: dict[str, Any] = {reply.key: model.record(model.vector + update)}
    beside = reply.message.content.items()
    records |= {key: record for key, record in beside if key != reply.key and not isinstance(record, ArrayRecord)}
    return with_content(reply.message, RecordDict(records))


@contextmanager
def metrics_over(owner: Any, replies: Sequence[Reply], merged: bool) -> Iterator[None]:
    """Let a strategy's function for train metrics see every client's, though the strategy sees one merged reply.

    Flower's own raises where two clients have lists of other lengths, which would let one end the run: its mean is
    taken as ``as_mean`` takes it.
    """
    function: Any = getattr(owner, "train_metrics_aggr_fn", None)
    flower_s = (getattr(function, "__module__", None) or "").startswith("flwr.")
    if not replies or not (flower_s or (function is not None and merged)):
        yield
        return
    contents = [reply.message.content for reply in replies]
    owner.train_metrics_aggr_fn = _mean_over if flower_s else lambda _, weighted_by: function(contents, weighted_by)
    try:
        yield
    finally:
        owner.train_metrics_aggr_fn = function


def _mean_over(contents: Sequence[RecordDict], weighted_by: str) -> MetricRecord:
    """The mean of metrics as Flower takes it, without the weight."""
    records = [next(iter(content.metric_records.values())) for content in contents]
    mean = _mean_metrics(records, [float(record[weighted_by]) for record in records])  # type: ignore[arg-type]
    del mean[weighted_by]
    return mean


def _mean_metrics(records: Sequence[MetricRecord], weights: Sequence[float]) -> MetricRecord:
    out = MetricRecord()
    for name, first in records[0].items():
        pairs: list[tuple[float, Any]] = [(w, record[name]) for w, record in zip(weights, records, strict=True)]
        if isinstance(first, list):
            length = Counter(len(value) for _, value in pairs).most_common(1)[0][0]
            alike = [(w, value) for w, value in pairs if len(value) == length]
            out[name] = [_mean([(w, value[i]) for w, value in alike]) for i in range(length)]
        else:
            out[name] = _mean(pairs)
    return out


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(w * value for w, value in pairs) / sum(w for w, _ in pairs)
