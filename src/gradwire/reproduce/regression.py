"""RegTop-k's regressions: linear, many methods at once in float64, and the logistic one of two workers.

Linear: the model, the residuals and the aggregation are written here; how an entry is scored is the library's own
``distortion`` and ``LIKELIHOODS``. Arrays are (workers, methods, coordinates), so that one pass of NumPy advances every
method by a round. Logistic: real clients and a real server.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.papers.regtopk import LIKELIHOODS, distortion
from gradwire.compressors.sparsify import num_kept_of
from gradwire.compressors.spec import parse
from gradwire.ends.client import Client
from gradwire.ends.server import Server
from gradwire.errors import ConfigError
from gradwire.layout import Layout
from gradwire.payload import SUPPORT_PURPOSE
from gradwire.rng import Key

__all__ = [
    "CONTROLS", "CONVERGED", "CONVERGED_SHARE", "KINDS", "Found", "Method", "Problem", "draw_data", "overlap_of",
    "run_regression", "run_two_worker", "simulate",
]  # fmt: skip

CONTROLS = ("cyclic", "randk")
SCORED = ("topk", "regtopk", "passover")
KINDS = ("dense", *SCORED, *CONTROLS)
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Progress = Callable[[float], None]
Watch = Callable[[int, Mask], None]

_LAST = 2.0**-200  # of a score: behind all others, and in their order
CURVE_POINTS = 50
CONVERGED = -10.0  # log10 of the squared distance
CONVERGED_SHARE = 0.75


@dataclass(frozen=True)
class Method:
    """What decides which entries a worker sends; error feedback goes with every kind.

    Attributes:
        kind: one of ``KINDS``: ``cyclic`` sends k coordinates from t k mod J in round t, ``randk`` k drawn from the
            seed; both the same for all workers. ``passover`` is Top-k that takes what it sent in the round whose
            aggregate came last only after all else, whatever became of it.
        density: k / J.
        mu: of ``regtopk``, as are the others.
        denominator: ``previous`` or ``current``.
        exponent: y in (0, 1].
        likelihood: a key of ``LIKELIHOODS``.
    """

    kind: str
    density: float = 1.0
    mu: float = 4.0
    denominator: str = "previous"
    exponent: float = 1.0
    likelihood: str = "tanh"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")


@dataclass(frozen=True)
class Problem:
    """Least squares of N workers: worker n minimises |X_n theta - y_n|^2 / D.

    Attributes:
        hessians: X_n^T X_n / D, (N, J, J).
        targets: X_n^T y_n / D, (N, J).
        optimum: theta*, the least-squares solution of all rows together, (J,).
    """

    hessians: Array
    targets: Array
    optimum: Array

    @classmethod
    def build(cls, inputs: Array, outputs: Array) -> Problem:
        """Make a problem of its data.

        Args:
            inputs: X, (N, D, J).
            outputs: y, (N, D).

        Returns:
            The problem.
        """
        num_rows = inputs.shape[1]
        transposed = inputs.swapaxes(1, 2)
        hessians = transposed @ inputs / num_rows
        targets = (transposed @ outputs[..., None])[..., 0] / num_rows
        return cls(hessians, targets, np.linalg.solve(hessians.mean(axis=0), targets.mean(axis=0)))


def draw_data(
    seed: int,
    workers: int,
    rows: int,
    dimension: int,
    mean_variance: float = 5.0,
    noise_variance: float = 0.5,
    homogeneous: bool = False,
) -> tuple[Array, Array]:
    """Draw the data of the paper's regression.

    The truth of worker n is m_n (1, ..., 1) + z_n with m_n ~ N(0, mean_variance) and z_n ~ N(0, I); inputs are N(0, I).

    Args:
        seed: 0 or more.
        workers: N.
        rows: D, examples of each worker.
        dimension: J.
        mean_variance: of m_n.
        noise_variance: of what is added to the outputs.
        homogeneous: every worker has the truth of the first.

    Returns:
        Inputs (N, D, J) and outputs (N, D).
    """
    generator = np.random.Generator(Key(seed, purpose="regression").generator())
    means = np.sqrt(mean_variance) * generator.standard_normal((workers, 1))
    truths = means + generator.standard_normal((workers, dimension))
    if homogeneous:
        truths[:] = truths[0]
    inputs = generator.standard_normal((workers, rows, dimension))
    noise = np.sqrt(noise_variance) * generator.standard_normal((workers, rows))
    return inputs, (inputs @ truths[..., None])[..., 0] + noise


@dataclass(frozen=True)
class _Sent:
    """A round that closed: what each worker sent, (N, C, J), where, and the mean of it, (C, J)."""

    values: Array
    chosen: Mask
    aggregate: Array


@dataclass(frozen=True)
class _Group:
    """Methods that are scored in one go: all but mu is the same."""

    columns: NDArray[np.int64]
    like: Method
    mu: Array


def simulate(
    problem: Problem,
    methods: Sequence[Method],
    rounds: int,
    learning_rate: float,
    seed: int = 0,
    delay: int = 0,
    drift: float = 0.0,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Array:
    """Run gradient descent with sparsified gradients and error feedback, every method on the same data.

    With a delay, the aggregate of round t reaches the workers ``delay`` rounds late: the model of round t holds the
    aggregates of rounds 0 .. t - 1 - delay, and RegTop-k compares the last of them with what was sent in that round:
    the model keeps what was sent in all rounds under way, where the library's ``regtopk`` keeps the last one alone.
    With a drift, every worker's truth is moved by the same random walk: in each round by a N(0, I) vector scaled to an
    expected square of ``drift`` squared; the optimum moves with it.

    Args:
        problem: the data.
        methods: C methods.
        rounds: number of rounds; the model starts at 0.
        learning_rate: of each step along the mean of what was sent.
        seed: of ``randk`` and the drift.
        delay: rounds an aggregate takes to come back beyond the usual one.
        drift: root mean square length of the optimum's step in a round.
        progress: called with the share done.
        watch: called with each round's number and where each worker sends, (N, C, J).

    Returns:
        |theta - theta*|^2 after each round, (rounds, C): of the model the workers hold.
    """
    num_workers, d = problem.targets.shape
    theta = np.zeros((len(methods), d))
    residuals = np.zeros((num_workers, len(methods), d))
    shift = np.zeros(d)
    generator = np.random.Generator(Key(seed, purpose="drift").generator())
    under_way: deque[_Sent] = deque()
    known: _Sent | None = None
    groups = _groups(methods)
    kept = np.array([num_kept_of(method.density, d) for method in methods])
    gaps = np.empty((rounds, len(methods)))
    with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges says so by its gap
        for t in range(rounds):
            if drift:
                shift = shift + drift / np.sqrt(d) * generator.standard_normal(d)
            gradients = 2 * ((theta - shift) @ problem.hessians - problem.targets[:, None])
            residuals += gradients  # what is sent is taken off below
            chosen = np.empty(residuals.shape, bool)
            for column, method in enumerate(methods):
                if method.kind not in SCORED:
                    chosen[:, column] = _support(method, t, seed, d)
            for group in groups:
                chosen[:, group.columns] = _largest(_scores(residuals, known, group), kept[group.columns])
            if watch is not None:
                watch(t, chosen)
            values = np.where(chosen, residuals, 0.0)
            residuals -= values
            under_way.append(_Sent(values, chosen, values.mean(axis=0)))
            if len(under_way) > delay:
                known = under_way.popleft()
                theta -= learning_rate * known.aggregate
            gaps[t] = np.square(theta - problem.optimum - shift).sum(axis=1)
            if progress is not None and t % 100 == 0:
                progress(t / rounds)
    return gaps


def _groups(methods: Sequence[Method]) -> list[_Group]:
    """The methods that choose by score, those that differ in mu and density alone together."""
    members: dict[tuple[object, ...], list[int]] = {}
    for column, method in enumerate(methods):
        if method.kind in SCORED:
            shared = (method.kind, method.denominator, method.exponent, method.likelihood)
            members.setdefault(shared, []).append(column)
    return [
        _Group(np.array(columns), methods[columns[0]], np.array([methods[c].mu for c in columns])[:, None])
        for columns in members.values()
    ]


def _support(method: Method, t: int, seed: int, d: int) -> Mask:
    """What the methods that do not look at the gradient send: (J,)."""
    support = np.ones(d, bool)
    k = num_kept_of(method.density, d)
    if method.kind == "cyclic":
        support[(t * k + np.arange(k, d)) % d] = False
    if method.kind == "randk":
        support[:] = False
        support[Key(seed, t, None, SUPPORT_PURPOSE).choice(d, k)] = True
    return support


def overlap_of(chosen: Mask) -> Array:
    """Return which share of what a worker sends another one sends too, in the mean over all pairs.

    Args:
        chosen: where each of N workers sends, (N, C, J), N >= 2; each of a method sends as many entries.

    Returns:
        (C,) of [0, 1]: S where supports of k = S J entries are drawn independently, 1 where all are the same.
    """
    senders = chosen.sum(axis=0)
    pairs = len(chosen) * (len(chosen) - 1)
    shared: Array = (senders * (senders - 1)).sum(axis=-1) / pairs / np.maximum(1, chosen[0].sum(axis=-1))
    return shared


def _scores(accumulated: Array, known: _Sent | None, group: _Group) -> Array:
    """How much each entry asks to be sent: (N, members of the group, J)."""
    now = accumulated[:, group.columns]
    method = group.like
    if method.kind == "topk":
        return np.abs(now)
    scores = np.abs(now) if method.exponent == 1 else np.abs(now) ** method.exponent
    if known is None:
        return scores
    if method.kind == "passover":
        return np.where(known.chosen[:, group.columns], _LAST * scores, scores)
    sent = known.values[:, group.columns]
    divisor = sent if method.denominator == "previous" else now
    delta = distortion(known.aggregate[group.columns], sent, 1 / len(now), divisor)
    factors = LIKELIHOODS[method.likelihood](np.abs(1 + delta) / group.mu)
    return np.where(known.chosen[:, group.columns], scores * factors, scores)


def _largest(scores: Array, kept: NDArray[np.int64]) -> Mask:
    """Where the k largest scores of each row are: ties go to the lower index, zeros are never taken."""
    ascending = np.sort(scores, axis=-1)
    smallest = np.take_along_axis(ascending, scores.shape[-1] - kept[None, :, None], axis=-1)
    chosen: Mask = (scores >= smallest) & (scores > 0)
    for row, column in np.argwhere(chosen.sum(axis=-1) > kept):  # a tie for the last place, rare
        tied = np.flatnonzero(scores[row, column] == smallest[row, column])
        excess = int(chosen[row, column].sum() - kept[column])
        chosen[row, column, tied[-excess:]] = False
    return chosen


# --- what units run --------------------------------------------------------------------------------


def run_two_worker(settings: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Run RegTop-k's example of two workers with real clients and a real server, in float32.

    Workers with one example each, x = [100, 1] and [-100, 1], both of label 1, logistic loss, theta_0 = [0, 1],
    learning rate 0.9, one of the two entries sent: the first entries cancel, and Top-1 sends nothing else.

    Args:
        settings: ``rounds`` and ``methods``, spec texts.
        progress: called with the share done.

    Returns:
        ``runs``: by method the model and the mean loss after each round.
    """
    runs = {}
    for number, method in enumerate(settings["methods"]):
        progress(number / len(settings["methods"]))
        runs[method] = _two_worker_run(method, settings["rounds"])
    return {"runs": runs}


def _two_worker_run(method: str, rounds: int) -> dict[str, Any]:
    examples = np.array([[100, 1], [-100, 1]], np.float32)
    layout, compressor = Layout.flat(2), parse(method)
    clients = [Client(compressor, layout, client_id=i) for i in range(2)]
    server = Server(compressor, layout)
    theta = np.array([0, 1], np.float32)
    models, losses = [], []
    for _ in range(rounds):
        for client, x in zip(clients, examples, strict=True):
            gradient = -x * np.exp(-np.logaddexp(np.float32(0), x @ theta))
            server.receive(client.compress(gradient), client.client_id)
        result = server.close_round()
        for client in clients:
            client.end_round(result.blob)
        theta = theta - np.float32(0.9) * result.applied
        models.append([float(entry) for entry in theta])
        losses.append(float(np.logaddexp(np.float32(0), -(examples @ theta)).mean()))
    return {"theta": models, "loss": losses}


def run_regression(settings: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Run the linear regression of one seed with several methods.

    Args:
        settings: ``seed``, ``methods``, ``rounds``, ``learning_rate``, ``mark``, what ``draw_data`` takes, and perhaps
            ``delay`` and ``drift``.
        progress: called with the share done.

    Returns:
        ``curve_rounds`` and for each of ``methods`` its settings and log10 |theta - theta*|^2: ``at_mark`` after that
        many rounds, ``best`` of all rounds, ``curve`` now and then; ``tracking`` is the mean of |theta - theta*|^2
        itself over the last half. Where the settings have ``overlap`` true it stands in the place of the curve:
        ``overlap_of`` in the mean over the second half of the rounds up to the mark.
    """
    data = ("workers", "rows", "dimension", "mean_variance", "noise_variance", "homogeneous")
    problem = Problem.build(*draw_data(settings["seed"], **{k: settings[k] for k in data if k in settings}))
    methods = [Method(**row) for row in settings["methods"]]
    rounds, mark = settings["rounds"], settings["mark"]
    overlaps: list[Array] | None = [] if settings.get("overlap") else None

    def watch(t: int, chosen: Mask) -> None:
        if overlaps is not None and mark // 2 <= t < mark:
            overlaps.append(overlap_of(chosen))

    gaps = simulate(
        problem,
        methods,
        rounds,
        settings["learning_rate"],
        settings["seed"],
        settings.get("delay", 0),
        settings.get("drift", 0.0),
        progress,
        watch,
    )
    gaps = np.clip(np.nan_to_num(gaps, nan=1e300), 1e-300, 1e300)
    logs = np.log10(gaps)
    at = np.unique(np.linspace(1, rounds, min(rounds, CURVE_POINTS)).astype(int))
    rows = [
        {
            **asdict(method),
            "at_mark": round(float(logs[mark - 1, column]), 3),
            "best": round(float(logs[:, column].min()), 3),
            "tracking": float(gaps[rounds // 2 :, column].mean()),
            **(
                {"curve": logs[at - 1, column].round(2).tolist()}
                if overlaps is None
                else {"overlap": round(float(np.mean([o[column] for o in overlaps])), 4)}
            ),
        }
        for column, method in enumerate(methods)
    ]
    return {"curve_rounds": at.tolist(), "methods": rows}


# --- reading the results ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What ``run_regression`` returned for some seeds; ``match`` picks methods by their settings.

    Attributes:
        results: one a seed.
    """

    results: list[dict[str, Any]]

    @classmethod
    def of(cls, results: dict[str, dict[str, Any]], name: str) -> Found:
        """Pick the results of the units called ``name-seed...``."""
        return cls(
            [found for unit, found in sorted(results.items()) if re.fullmatch(re.escape(name) + r"-seed\d+", unit)]
        )

    def values(self, key: str, **match: Any) -> list[Any]:
        """Return an entry of each row that matches."""
        rows = (row for result in self.results for row in result["methods"])
        return [row[key] for row in rows if all(row[name] == value for name, value in match.items())]

    def median(self, key: str, **match: Any) -> float | None:
        """Return the median over seeds, or None where there is nothing."""
        values = self.values(key, **match)
        return float(np.median(values)) if values else None

    def medians(self, key: str, densities: Sequence[float], **match: Any) -> list[float]:
        """Return the median over seeds at each density; all were run."""
        return [float(np.median(self.values(key, density=density, **match))) for density in densities]

    def curve(self, **match: Any) -> tuple[list[int], list[float]]:
        """Return rounds, and the median over seeds of the distance after them."""
        return self.results[0]["curve_rounds"], np.median(self.values("curve", **match), axis=0).tolist()

    def seeds(self, **match: Any) -> str:
        """Return how many seeds came below CONVERGED, of how many."""
        values = self.values("best", **match)
        return f"{sum(value < CONVERGED for value in values)}/{len(values)}"

    def converged(self, **match: Any) -> bool:
        """Return whether the share of seeds below CONVERGED is CONVERGED_SHARE or more."""
        values = self.values("best", **match)
        return bool(values) and sum(value < CONVERGED for value in values) >= CONVERGED_SHARE * len(values)

    def converges_from(self, densities: Sequence[float], **match: Any) -> float | None:
        """Return the smallest density from which on all converge."""
        start = None
        for density in sorted(densities, reverse=True):
            if not self.converged(**match, density=density):
                break
            start = density
        return start

    def cell(self, **match: Any) -> str:
        """Return the median at the mark / of the best (seeds that converged)."""
        at_mark, best = self.median("at_mark", **match), self.median("best", **match)
        return "-" if at_mark is None or best is None else f"{at_mark:.1f} / {best:.1f} ({self.seeds(**match)})"
