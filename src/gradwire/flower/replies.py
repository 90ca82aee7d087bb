"""Replies: what an inner strategy is handed in place of the replies that came."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, MetricRecord, RecordDict

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
    """Return what must be alike in all replies of a round: keys, names of metrics, lengths of those that are lists."""
    (key, metrics), *_ = reply.message.content.metric_records.items()
    lengths = sorted((name, len(v) if isinstance(v, list) else -1) for name, v in metrics.items())
    return reply.key, key, tuple(lengths)


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
        The reply; its metrics are their weighted means.
    """
    first = replies[0]
    metric_key = next(iter(first.message.content.metric_records))
    merged = _mean_metrics([reply.metrics for reply in replies], weights)
    merged[weighted_by] = float(sum(weights))
    arrays = model.record(model.vector + mean)
    return with_content(first.message, RecordDict({first.key: arrays, metric_key: merged}))


def as_dense(reply: Reply, model: Model, update: Vector) -> Message:
    """Make a reply as the app gave it to the mod: the model moved by what was counted of its update."""
    records: dict[str, Any] = {reply.key: model.record(model.vector + update), **reply.message.content}
    return with_content(reply.message, RecordDict(records))


@contextmanager
def metrics_over(owner: Any, replies: Sequence[Reply]) -> Iterator[None]:
    """Let a strategy's function for train metrics see every client's, while the strategy sees one merged reply."""
    function = getattr(owner, "train_metrics_aggr_fn", None)
    if function is None or not replies:
        yield
        return
    contents = [reply.message.content for reply in replies]
    owner.train_metrics_aggr_fn = lambda _, weighted_by: function(contents, weighted_by)
    try:
        yield
    finally:
        owner.train_metrics_aggr_fn = function


def _mean_metrics(records: Sequence[MetricRecord], weights: Sequence[float]) -> MetricRecord:
    total = sum(weights)
    out = MetricRecord()
    for name, first in records[0].items():
        values: list[Any] = [record[name] for record in records]
        if isinstance(first, list):
            columns = zip(*values, strict=True)
            out[name] = [sum(w * v for w, v in zip(weights, column, strict=True)) / total for column in columns]
        else:
            out[name] = sum(w * v for w, v in zip(weights, values, strict=True)) / total
    return out
