"""AdapTop-K (arXiv 2210.13532): Figures 1 and 3 (MNIST), 2 and 4 (CIFAR-10), and the optimum in hindsight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from gradwire.compressors.compressor import Compressor, Round, State, Vector
from gradwire.compressors.feedback import ef
from gradwire.compressors.guarantee import Contractive, Guarantee
from gradwire.compressors.papers.adaptopk import adaptopk, hindsight_schedule
from gradwire.compressors.pipeline import Sparsifier
from gradwire.compressors.sparsify import num_kept_of, part_at, topk
from gradwire.kernels import ops
from gradwire.payload import Part
from gradwire.reproduce.adaptopk_norms import report_norms
from gradwire.reproduce.adaptopk_threshold import train_at_equal_bytes
from gradwire.reproduce.blocks import Block, Chart, Heading, Series, Table, Text
from gradwire.reproduce.statistics import accuracies, compare, curve, show
from gradwire.reproduce.units import Function, Paper, Unit, thinned

__all__ = ["PAPER"]

# section V: final accuracy in per cent of Top-K and AdapTop-K by (data, d / k, error compensation)
_CLAIMED = {
    ("mnist", 128, False): (96.64, 97.03),
    ("mnist", 256, False): (95.41, 96.21),
    ("mnist", 256, True): (96.71, 97.50),
    ("mnist", 512, True): (96.24, 97.10),
    ("cifar10", 128, False): (81.36, 82.11),
    ("cifar10", 256, False): (79.30, 80.31),
    ("cifar10", 256, True): (88.66, 89.18),
    ("cifar10", 512, True): (87.64, 88.68),
}
_CLAIMED_DENSE = {"mnist": 98.02, "cifar10": 90.92}
_LAST = 5  # without error feedback accuracy jumps by points from one evaluation to the next


@dataclass(frozen=True, repr=False)
class _Scheduled(Sparsifier):
    """Top-k with as many entries a round as a list says, which may be none or all."""

    counts: tuple[int, ...]

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Select the largest magnitudes, as many as the list says."""
        return [part_at(update, ops.topk(update, min(self.counts[round.index], update.size)))]

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(0): a round may send nothing."""
        return Contractive(0.0)

    def __str__(self) -> str:
        return "hindsight"


def units(config: dict[str, Any]) -> list[Unit]:
    """Return units, seed by seed: dense; of each setting Top-K, AdapTop-K, online, hindsight; what is swept."""
    made = []
    for seed in config["seeds"]:
        shared = {**config["shared"], "seeds": [seed]}
        made.append(Unit(f"dense-seed{seed}", "train", {**shared, "methods": ["dense()"]}))
        for case in _cases(config):
            for name in case["methods"]:
                density = 1 / case["ratio"]
                settings: dict[str, Any] = dict(shared)
                if name == "hindsight":
                    settings |= {"density": density, "feedback": case["feedback"]}
                else:
                    spec = {
                        "topk": f"topk({density!r})",
                        "adaptopk": f"adaptopk({density!r}, gamma={config['gamma']!r})",
                        "online": f"adaptopk_online({density!r}, gamma={config['gamma']!r})",
                    }[name]
                    settings["methods"] = [f"ef({spec})" if case["feedback"] else spec]
                function = "hindsight" if name == "hindsight" else "train"
                made.append(Unit(_name(name, case, seed), function, settings))
    for gamma, t_hat, seed in product(*(_sweep(config)[name] for name in ("gammas", "t_hats", "seeds"))):
        case = _sweep(config)
        spec = f"adaptopk({1 / case['ratio']!r}, gamma={gamma!r}, t_hat={t_hat!r})"
        settings = {**config["shared"], "seeds": [seed], "methods": [f"ef({spec})" if case["feedback"] else spec]}
        made.append(Unit(_name(_swept(gamma, t_hat), case, seed), "train", settings))
    beside = _threshold(config)
    for ratio, seed in product(beside["ratios"], beside["seeds"]):
        settings = {**config["shared"], "seeds": [seed], "density": 1 / ratio}
        made.append(Unit(_name("threshold", _with_feedback(ratio), seed), "threshold", settings))
    return sorted(made, key=lambda unit: unit.settings["seeds"])


def _sweep(config: dict[str, Any]) -> dict[str, Any]:
    """What gamma and t_hat are swept at; nothing where a configuration does not say."""
    sweep: dict[str, Any] = config.get("sweep", {"gammas": [], "t_hats": [], "seeds": []})
    return sweep


def _threshold(config: dict[str, Any]) -> dict[str, Any]:
    """Where one threshold is tried beside the schedules; nowhere where a configuration does not say."""
    beside: dict[str, Any] = config.get("threshold", {"ratios": [], "seeds": []})
    return beside


def _with_feedback(ratio: int) -> dict[str, Any]:
    return {"ratio": ratio, "feedback": True}


def _swept(gamma: float, t_hat: int) -> str:
    return f"gamma{gamma:g}-t{t_hat}"


def _cases(config: dict[str, Any]) -> list[dict[str, Any]]:
    return list(config["cases"])


def _name(method: str, case: dict[str, Any], seed: int) -> str:
    return f"{method}-{case['ratio']}{'-ef' if case['feedback'] else ''}-seed{seed}"


def hindsight(settings: dict[str, Any], progress: Callable[[float], None]) -> dict[str, Any]:
    """Train Top-K, note the norms, and train again with the schedule that Eq. (14) calls best for them.

    Args:
        settings: an experiment's with one seed, ``density`` and ``feedback``; and ``data_dir``.
        progress: called with the share done.

    Returns:
        What a training unit gives, and the number of rounds that sent everything.
    """
    from gradwire.federated.experiment import Experiment
    from gradwire.federated.runs import describe, prepare
    from gradwire.federated.simulation import Simulation

    density, feedback = settings.pop("density"), settings.pop("feedback")
    experiment = Experiment.build({**settings, "methods": [f"topk({density!r})"]}, "hindsight")
    task = prepare(experiment)
    seed, total = experiment.seeds[0], experiment.rounds

    def train(sparsifier: Sparsifier, first: float) -> tuple[Simulation, Iterator[Any]]:
        compressor: Compressor = ef(sparsifier) if feedback else sparsifier
        simulation = Simulation(experiment, compressor, task, seed)
        return simulation, _reported(simulation.rounds(), total, lambda share: progress(first + share / 2))

    simulation, rounds = train(topk(density), 0.0)
    norms = np.array([metrics.update_norm for metrics in rounds])
    d = simulation.layout.num_parameters
    schedule = hindsight_schedule(np.square(norms), d, num_kept_of(density, d), 0.0)
    simulation, rounds = train(_Scheduled(tuple(int(k) for k in schedule)), 0.5)
    metrics = list(rounds)
    return {
        "summary": simulation.summary(),
        "experiment": describe(experiment, task, simulation),
        "accuracy": [[m.round, m.accuracy] for m in metrics if m.accuracy is not None],
        "loss": thinned([[m.round, m.loss] for m in metrics]),
        "full_rounds": int(np.count_nonzero(schedule == d)),
    }


def _reported(rounds: Iterator[Any], total: int, progress: Callable[[float], None]) -> Iterator[Any]:
    for metrics in rounds:
        yield metrics
        if metrics.round % 50 == 0:
            progress((metrics.round + 1) / total)


def report(config: dict[str, Any], results: dict[str, dict[str, Any]]) -> list[Block]:
    """Return the figures' final accuracies beside ours, budgets, and the curves."""
    shared, data = config["shared"], config["shared"]["data"]
    dense = [results[n] for n in (f"dense-seed{s}" for s in config["seeds"]) if n in results]
    claimed = _CLAIMED_DENSE.get(data)
    blocks: list[Block] = [
        Text(
            f"{shared.get('model', 'the default model')} on {data}, {shared['clients']} workers, "
            f"{shared['partition']}, batch {shared['batch_size']}, learning rate {shared['learning_rate']}, "
            f"{shared['rounds']} iterations, gamma {config['gamma']}, t_hat half of them. Accuracy in per cent, the "
            f"mean of the last {_LAST} evaluations of a run: mean over seeds ± standard deviation (number of seeds). "
            "The paper's are final values, and of how many seeds it does not say."
        ),
        Text(f"Dense: {show(accuracies(dense, _LAST))}; the paper says {claimed or 'nothing of this data'}."),
        Heading("Accuracy at the end"),
        Text(
            "The gain is AdapTop-K's over Top-K on the same seeds, in points with its 95 % interval (Student's t); a "
            "gain is claimed only where the interval leaves out 0."
        ),
        Table(
            (
                "d / k", "error feedback", "Top-K claimed", "ours", "deviation", "AdapTop-K claimed", "ours",
                "deviation", "gain claimed", "ours", "verdict",
            ),
            rows := [_accuracy_row(config, case, results) for case in _cases(config)],
        ),
        Text(_verdict(rows)),
        Heading("Total bytes and entries"),
        Text(
            "The schedule's total of entries is k T exactly. The information in them, 32 bits a value and "
            "log2 C(d, k_t) bits for the positions, is a little less than Top-K's: an index costs less where more "
            "entries are kept. The measured bytes, of all uploads with their headers, where exponents of values are "
            "entropy-coded too, also follow the path that the training took."
        ),
        Table(
            (
                "d / k", "error feedback", "sum of k_t / (k T)", "information against Top-K", "bytes against Top-K",
                "online, bytes against Top-K",
            ),
            [_bytes_row(config, case, results) for case in _cases(config)],
        ),
        Heading("Beside them: deciding online, and the optimum in hindsight"),
        Text(
            "`adaptopk_online` chooses its rounds while it sees gradient norms. Hindsight is the exact optimum of "
            "Eq. (14)-(15) for the norms of the Top-K run, with B_t = 1 (eta mu k / d is unknown, and about 1e-6): "
            "since the bound is linear in n_t, a few rounds send everything and all others nothing. What is best for "
            "the bound ruins the training: the model stands still between those rounds, so that the norms are not "
            "those the schedule was made for, and with error feedback the updates of tens to hundreds of rounds at "
            "one and the same model then go out at once."
        ),
        Table(
            ("d / k", "error feedback", "Top-K", "online", "gain (95 %)", "hindsight", "rounds it sends in"),
            [_beside_row(config, case, results) for case in _cases(config) if len(case["methods"]) > 2],
        ),
    ]  # fmt: skip
    if "sweep" in config:
        blocks += _report_sweep(config, results)
    if "threshold" in config:
        blocks += _report_threshold(config, results)
    blocks += report_norms(_measured(config, results), config["shared"]["learning_rate"])
    for case in _cases(config):
        feedback = "with" if case["feedback"] else "without"
        name = f"adaptopk-{case['ratio']}{'-ef' if case['feedback'] else ''}"
        title = f"d / k = {case['ratio']}, {feedback} error feedback"
        for key, label in (("accuracy", "accuracy (%)"), ("loss", "training loss")):
            series = _curves(config, case, results, key)
            if series:
                blocks.append(Chart(f"{name}-{key}", title, "iteration", label, series, log_y=key == "loss"))
    return [*blocks, Heading("Compression level"), _level_chart(config)]


def _of(config: dict[str, Any], method: str, case: dict[str, Any], results: dict[str, Any]) -> dict[int, Any]:
    names = {seed: _name(method, case, seed) for seed in config["seeds"]}
    return {seed: results[name] for seed, name in names.items() if name in results}


def _accuracy_row(config: dict[str, Any], case: dict[str, Any], results: dict[str, Any]) -> list[str]:
    top, adapted = _of(config, "topk", case, results), _of(config, "adaptopk", case, results)
    claimed = _CLAIMED.get((config["shared"]["data"], case["ratio"], case["feedback"]))
    gain, verdict = compare(adapted, top, _LAST)
    cells = [str(case["ratio"]), "yes" if case["feedback"] else "no"]
    for number, runs in enumerate((top, adapted)):
        ours = accuracies(list(runs.values()), _LAST)
        deviation = f"{sum(ours) / len(ours) - claimed[number]:+.2f}" if claimed and ours else "-"
        cells += [f"{claimed[number]:.2f}" if claimed else "-", show(ours), deviation]
    return [*cells, f"{claimed[1] - claimed[0]:+.2f}" if claimed else "-", gain, verdict]


def _verdict(rows: list[list[str]]) -> str:
    done = [row for row in rows if row[-1] != "too few seeds"]
    feedback = {"yes": "with error feedback", "no": "without"}

    def counted(verdict: str) -> str:
        found = [f"{row[0]} {feedback[row[1]]}" for row in done if row[-1] == verdict]
        return f"{len(found)} of {len(done)} cases" + (f" (d / k = {', '.join(found)})" if found else "")

    return (
        f"A gain of AdapTop-K is shown in {counted('better')}, a loss in {counted('worse')}; each case is judged by "
        f"itself. The paper reports a gain in each of its {sum(row[-3] != '-' for row in rows)}, without intervals."
    )


def _bytes_row(config: dict[str, Any], case: dict[str, Any], results: dict[str, Any]) -> list[str]:
    top, *others = (_of(config, method, case, results) for method in ("topk", "adaptopk", "online"))
    told = [_more_bytes(runs, top) for runs in others]
    return [str(case["ratio"]), "yes" if case["feedback"] else "no", *_budget(config, case, others[0]), *told]


def _more_bytes(runs: dict[int, Any], top: dict[int, Any]) -> str:
    """How many more bytes some runs took than Top-K's of the same seeds."""
    ours, its = (sum(of[seed]["summary"]["uplink_bytes"] for seed in runs.keys() & top.keys()) for of in (runs, top))
    return f"{100 * (ours / its - 1):+.2f} %" if its else "-"


def _budget(config: dict[str, Any], case: dict[str, Any], runs: dict[int, Any]) -> tuple[str, str]:
    """What the schedule sends against k in every round: entries, and bits of 32-bit values and best-coded positions."""
    if not runs:
        return "-", "-"
    d, total = next(iter(runs.values()))["experiment"]["num_parameters"], config["shared"]["rounds"]
    schedule = adaptopk(1 / case["ratio"], gamma=config["gamma"]).schedule(d, total)
    k = num_kept_of(1 / case["ratio"], d)
    bits = sum(_bits(d, int(k_t)) for k_t in schedule) / (total * _bits(d, k))
    return f"{schedule.sum() / (k * total):.6f}", f"{100 * (bits - 1):+.2f} %"


def _bits(d: int, k: int) -> float:
    return 32 * k + (math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)) / math.log(2)


def _beside_row(config: dict[str, Any], case: dict[str, Any], results: dict[str, Any]) -> list[str]:
    top, online = _of(config, "topk", case, results), _of(config, "online", case, results)
    best = _of(config, "hindsight", case, results)
    return [
        str(case["ratio"]),
        "yes" if case["feedback"] else "no",
        show(accuracies(list(top.values()), _LAST)),
        show(accuracies(list(online.values()), _LAST)),
        compare(online, top, _LAST)[0],
        show(accuracies(list(best.values()), _LAST)),
        ", ".join(str(run["full_rounds"]) for run in best.values()) or "-",
    ]


def _report_sweep(config: dict[str, Any], results: dict[str, Any]) -> list[Block]:
    """Gamma and t_hat, which the paper leaves to the user, beside Top-K on the same seeds."""
    sweep = _sweep(config)
    seeds = {**config, "seeds": sweep["seeds"]}
    top = _of(seeds, "topk", sweep, results)
    rows = [
        [f"{gamma:g}", *(compare(_of(seeds, _swept(gamma, t), sweep, results), top, _LAST)[0] for t in sweep["t_hats"])]
        for gamma in sweep["gammas"]
    ]
    feedback = "with" if sweep["feedback"] else "without"
    return [
        Heading("Gamma and t_hat"),
        Text(
            f"Gains over Top-K on the same seeds, in points with their 95 % intervals, d / k = {sweep['ratio']}, "
            f"{feedback} error feedback. The rounds that send less are half of the run in a row, from t_hat / 2 on: "
            "its first half at t_hat = 0, its second at t_hat = T."
        ),
        Table(["gamma", *(f"t_hat = {t}" for t in sweep["t_hats"])], rows),
        Text(_apart(rows)),
    ]


def _apart(rows: list[list[str]]) -> str:
    """How many of many differences leave out 0, and how many would by chance."""
    found = [[float(x) for x in cell.split(" (")[0].split(" ± ")] for row in rows for cell in row[1:] if cell != "-"]
    better, worse = (sum(sign * mean > half for mean, half in found) for sign in (1, -1))
    return (
        f"Of {len(found)} intervals {better} are above 0 and {worse} below it; of so many where nothing differs "
        f"{0.05 * len(found):.2g} would leave out 0. The largest gain of so many is one by chance, too."
    )


def _report_threshold(config: dict[str, Any], results: dict[str, Any]) -> list[Block]:
    """One threshold for the whole run, as theory prefers it to any k, at Top-K's bytes."""
    beside = {**config, "seeds": _threshold(config)["seeds"]}
    rows = []
    for case in map(_with_feedback, _threshold(config)["ratios"]):
        top, adapted, ours = (_of(beside, name, case, results) for name in ("topk", "adaptopk", "threshold"))
        bytes_taken = [r["summary"]["uplink_bytes"] / r["topk_uplink_bytes"] for r in ours.values()]
        rows.append(
            [
                str(case["ratio"]),
                show(accuracies(list(top.values()), _LAST)),
                show(accuracies(list(adapted.values()), _LAST)),
                show(accuracies(list(ours.values()), _LAST)),
                compare(ours, top, _LAST)[0],
                compare(adapted, ours, _LAST)[0],
                ", ".join(f"{100 * (taken - 1):+.1f} %" for taken in bytes_taken) or "-",
                ", ".join(f"{r['threshold']:.2g}" for r in ours.values()) or "-",
                ", ".join(f"{100 * _share_before(r, 0.1):.0f} %" for r in ours.values()) or "-",
            ]
        )
    return [
        Heading("One threshold for the whole run"),
        Text(
            "Sahu et al. (NeurIPS 2021, arXiv 2108.00951) find that with error feedback the total error is least, for "
            "a number of entries in all, where everything above one threshold is sent, whichever round it is in: "
            "neither Top-K nor a schedule does that. Here `ef(threshold(value))`, its value changed until a run takes "
            "Top-K's bytes, or five tries have come as near as they can. The last column is what it spends "
            "in the first tenth of the rounds."
        ),
        Table(
            (
                "d / k", "Top-K", "AdapTop-K", "one threshold", "its gain over Top-K", "AdapTop-K's over it",
                "bytes against Top-K", "threshold", "bytes in the first tenth",
            ),
            rows,
        ),
        Text(_apart([row[3:6] for row in rows])),
    ]  # fmt: skip


def _share_before(result: dict[str, Any], share: float) -> float:
    """The share of the uplink's bytes that so large a share of the rounds, the first ones, took."""
    ends, means = np.array(result["uplink_bytes"]).T
    taken = np.diff(ends, prepend=-1) * means
    return float(taken[ends < share * (ends[-1] + 1)].sum() / taken.sum())


def _measured(config: dict[str, Any], results: dict[str, Any]) -> list[tuple[str, float, list[dict[str, Any]]]]:
    """Runs whose norms were noted: what they are, k / d, and the runs."""
    found = []
    for case in _cases(config):
        runs = [r for r in _of(config, "topk", case, results).values() if "square_norm" in r]
        if runs:
            title = f"d / k = {case['ratio']}, {'with' if case['feedback'] else 'without'} error feedback"
            found.append((title, 1 / case["ratio"], runs))
    return found


def _curves(config: dict[str, Any], case: dict[str, Any], results: dict[str, Any], key: str) -> list[Series]:
    named = [("dense", {s: results[f"dense-seed{s}"] for s in config["seeds"] if f"dense-seed{s}" in results})]
    labels = {
        "topk": "Top-K", "adaptopk": "AdapTop-K", "online": "online", "hindsight": "hindsight",
        "threshold": "one threshold",
    }  # fmt: skip
    methods = [*case["methods"], *(["threshold"] if case["feedback"] else [])]
    named += [(labels[method], _of(config, method, case, results)) for method in methods]
    return [curve(name, list(runs.values()), key) for name, runs in named if runs]


def _level_chart(config: dict[str, Any]) -> Chart:
    """Figures 1c and 2c: k_t / k over the run."""
    total, k = config["shared"]["rounds"], 1000
    schedule = adaptopk(0.01, gamma=config["gamma"]).schedule(100 * k, total) / k
    steps = [
        t
        for t in range(total)
        if t in (0, total - 1) or schedule[t] != schedule[t - 1] or schedule[t] != schedule[t + 1]
    ]
    ours = Series("AdapTop-K", steps, [float(schedule[t]) for t in steps])
    flat = Series("Top-K", [0, total - 1], [1.0, 1.0])
    return Chart("adaptopk-level", "Entries kept, relative to k", "iteration", "k_t / k", [flat, ours])


_FUNCTIONS: dict[str, Function] = {"hindsight": hindsight, "threshold": train_at_equal_bytes}

PAPER = Paper("adaptopk", "AdapTop-K, arXiv:2210.13532", units, _FUNCTIONS, report)
