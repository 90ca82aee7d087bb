"""RegTop-k's report: the paper's claims beside what was measured, a section for each experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from gradwire.reproduce.blocks import Block, Chart, Heading, Series, Table, Text
from gradwire.reproduce.regression import CONTROLS, CONVERGED, CONVERGED_SHARE, Found
from gradwire.reproduce.regtopk_overlap import report_overlap
from gradwire.reproduce.regtopk_training import report_classification

__all__ = ["sections"]

Config = dict[str, Any]
Result = dict[str, Any]
Results = dict[str, dict[str, Any]]

# expected values: the paper's own claims, and an earlier NumPy computation of the same experiment
THETA_2 = 1.4840945585
LOSSES_100 = {"dense": 0.0110, "regtopk": 0.0108}
CLAIMED_DENSITY = 0.55
_HALF = 0.5  # where the curve was to be drawn that converges
PAPERS_PROBLEM = {
    "workers": 20, "rows": 500, "dimension": 100, "mean_variance": 5.0, "noise_variance": 0.5,
    "learning_rate": 0.01, "mark": 1000,
}  # fmt: skip
REFERENCE_DENSE = -14.3
REFERENCE = {  # density -> medians of 8 seeds at round 1000: topk; regtopk current mu 4, previous mu 1, previous mu 4
    0.5: (-2.6, -2.6, -3.0, -4.1),
    0.55: (-2.7, -2.5, -3.4, -14.3),
    0.6: (-2.8, -2.5, -14.2, -14.3),
    0.8: (-3.6, -2.8, -14.3, -14.3),
}
REFERENCE_SEEDS = {0.5: "0/8", 0.55: "7/8", 0.6: "7/8", 0.8: "8/8"}

PREVIOUS: dict[str, Any] = {"kind": "regtopk", "denominator": "previous"}


def sections(config: Config, results: Results) -> list[Block]:
    """Return the sections of what a configuration runs.

    Args:
        config: of ``reproductions/regtopk``.
        results: by unit's name; some may be missing.

    Returns:
        Blocks.
    """
    blocks: list[Block] = []
    for section, write in (
        ("two_worker", _report_two_worker),
        ("sparsity", _report_sparsity),
        ("mu", _report_mu),
        ("score", _report_score),
        ("drift", _report_drift),
        ("delay", _report_delay),
        ("overlap", report_overlap),
        ("classification", report_classification),
    ):
        if section in config:
            blocks += write(config, results)
    return blocks


def _report_two_worker(config: Config, results: Results) -> list[Block]:
    blocks: list[Block] = [
        Heading("Two workers"),
        Text(
            "x = [100, 1] and [-100, 1], logistic loss, theta_0 = [0, 1], learning rate 0.9, one entry sent, float32, "
            "real clients and server. The paper: Top-1 sends the entry that cancels, for ever, and stays at theta_0; "
            "RegTop-1 does as well as sending both. Expected from the closed form and an earlier NumPy computation: "
            f"theta_2 = [0, {THETA_2}]; loss after 100 rounds {LOSSES_100['regtopk']:.4f}, dense "
            f"{LOSSES_100['dense']:.4f}."
        ),
    ]
    if "two-worker" not in results:
        return [*blocks, Text("Not run yet.")]
    runs: dict[str, Result] = results["two-worker"]["runs"]
    rounds = min(100, *(len(run["loss"]) for run in runs.values()))
    left = {method: _left_at(run) for method, run in runs.items()}
    rows = [
        (
            f"`{method}`",
            f"{run['theta'][1][1]:.7f}",
            str(left[method] or "-"),
            *(f"{loss:.4f}" for loss in run["loss"][rounds - 2 : rounds]),
        )
        for method, run in runs.items()
    ]
    regtopk = [method for method in runs if "regtopk" in method]
    off = max(abs(runs[method]["theta"][1][1] - THETA_2) for method in regtopk)
    loss_off = max(abs(runs[method]["loss"][rounds - 1] - LOSSES_100["regtopk"]) for method in regtopk)
    stays = left["ef(topk(0.5))"]
    right = off < 1e-5 and (stays is None or stays >= 100) and (rounds < 100 or loss_off < 1e-4)
    topk = (
        f"never leaves theta_0 in {len(runs['ef(topk(0.5))']['loss'])} rounds"
        if stays is None
        else f"leaves theta_0 in round {stays}: not for ever, since error feedback adds up what is not sent until it "
        "outweighs the entry that cancels"
    )
    shown = {method: run["loss"] for method, run in runs.items() if method not in regtopk[1:]}
    lines = [Series(method, list(range(1, len(loss) + 1)), loss) for method, loss in shown.items()]
    losses = (f"loss after {rounds - 1} rounds", f"after {rounds}")
    return [
        *blocks,
        Table(["method", "theta_2[1]", "leaves theta_0 in round", *losses], rows),
        Text(
            f"{_verdict(right)} RegTop-1's theta_2 is off by {off:.1e} at most, over every mu and denominator here, "
            f"its loss by {loss_off:.1e} from a reference of four digits; Top-1 {topk}."
        ),
        Chart("regtopk-two-worker", "Two workers: loss", "round", "mean logistic loss", lines, log_y=True),
    ]


def _left_at(run: Result) -> int | None:
    """The first round, from 1, after which the model is no longer theta_0."""
    return next((t for t, theta in enumerate(run["theta"], 1) if theta != [0.0, 1.0]), None)


def _report_sparsity(config: Config, results: Results) -> list[Block]:
    section, setup = config["sparsity"], config["regression"]
    found = Found.of(results, "sparsity")
    densities = section["densities"]
    columns = _columns(*((d, mu) for d in section["denominators"] for mu in section["mu"]))
    blocks: list[Block] = [
        Heading("Linear regression over sparsity"),
        Text(
            f"{setup['workers']} workers with {setup['rows']} rows each, {setup['dimension']} coordinates, learning "
            f"rate {setup['learning_rate']}, full gradients, float64, {len(setup['seeds'])} seeds planned. A cell is "
            f"the median over seeds of log10 |theta - theta*|^2 after {setup['mark']} rounds / the best of "
            f"{setup['rounds']} rounds, and in brackets how many seeds came below 1e{CONVERGED:.0f} at their best. The "
            "last value would say little: after convergence single entries fall out of step and the distance bursts "
            "back for a while. `cyclic` and `randk` are controls that the paper lacks: all workers send the same "
            "entries, whatever the gradient, so that no index needs to travel; error feedback goes with all."
        ),
        Text(
            f"The paper: RegTop-k reaches the optimum above S = {CLAIMED_DENSITY}, Top-k at S = 1 alone. Its text "
            "divides by what would be sent now (`current`), its code by what was sent before (`previous`)."
        ),
        Table(
            ["S", *(name for name, _ in columns)],
            [[f"{s:g}", *(found.cell(density=s, **match) for _, match in columns)] for s in densities],
        ),
    ]
    starts = {name: found.converges_from(densities, **match) for name, match in columns}
    told = "; ".join(f"{name}: {'none' if s is None else f'{s:g}'}" for name, s in starts.items())
    blocks.append(
        Text(
            f"Smallest S from which on {CONVERGED_SHARE:.0%} of the seeds or more come below 1e{CONVERGED:.0f}: "
            f"{told}. Dense: {found.cell(kind='dense')}."
        )
    )
    if found.results and _is_papers(setup):
        blocks += _beside_reference(found, densities)
        ours, topk = starts.get("regtopk, previous, mu 4"), starts["topk"]
        right = ours is not None and abs(ours - CLAIMED_DENSITY) < 0.051 and topk == 1
        alone = [
            f"{s:g}"
            for s in densities
            if all(found.converged(kind=kind, density=s) for kind in CONTROLS)
            and not any(found.converged(**match, density=s) for name, match in columns if "regtopk" in name)
        ]
        current = starts.get("regtopk, current, mu 4")
        beyond = f" Both controls converge where no RegTop-k does: at S = {', '.join(alone)}." if alone else ""
        blocks.append(
            Text(
                f"{_verdict(right)} This is of `previous`; `current`, the formula in the text, converges "
                f"{'nowhere' if current is None else f'from S = {current:g} on'}.{beyond}"
            )
        )
    for name, wanted in (("regtopk-rounds-half", _HALF), ("regtopk-rounds", 0.6)):
        shown = min(densities, key=lambda s: abs(s - wanted))
        chosen = [("dense", {"kind": "dense"}), *((name, {**match, "density": shown}) for name, match in columns)]
        if found.results and shown == wanted == _HALF and _is_papers(setup):
            mine = dict(columns)["regtopk, previous, mu 4"]
            seeds, right = found.seeds(**mine, density=shown), found.converged(**mine, density=shown)
            blocks.append(
                Text(
                    f"At S = {_HALF:g}, below what the paper names, RegTop-k at mu 4 was to converge: {seeds} do. "
                    f"{_verdict(right)}"
                )
            )
        blocks += _curves(found, name, f"Linear regression, S = {shown:g}, median over seeds", chosen)
    if found.results:
        lines = [Series(name, densities, found.medians("best", densities, **match)) for name, match in columns]
        title = "Best distance over sparsity, median over seeds"
        blocks.append(Chart("regtopk-sparsity", title, "S = k / J", "log10 |theta - theta*|^2", lines))
    return blocks


def _beside_reference(found: Found, densities: Sequence[float]) -> list[Block]:
    columns = _columns(("current", 4), ("previous", 1), ("previous", 4))[:4]
    rows = [("1", "dense", *_deviation(found.median("at_mark", kind="dense"), REFERENCE_DENSE), "", "")]
    for s in (s for s in REFERENCE if s in densities):
        for (name, match), expected in zip(columns, REFERENCE[s], strict=True):
            last = name == columns[-1][0]
            seeds = (found.seeds(density=s, **match), REFERENCE_SEEDS[s]) if last else ("", "")
            rows.append((f"{s:g}", name, *_deviation(found.median("at_mark", density=s, **match), expected), *seeds))
    return [
        Text("Beside an earlier NumPy computation of the same experiment, with other random numbers:"),
        Table(["S", "method", "ours", "reference", "deviation", "seeds, ours", "seeds, reference"], rows),
    ]


def _report_mu(config: Config, results: Results) -> list[Block]:
    section = config["mu"]
    truths = section.get("truths", ["heterogeneous"])
    found = {truth: Found.of(results, "mu" if len(truths) == 1 else f"mu-{truth}") for truth in truths}
    columns = [(truth, d) for truth in truths for d in section["denominators"]]
    rows = [
        [f"mu = {mu:g}", *(found[truth].cell(kind="regtopk", mu=mu, denominator=d) for truth, d in columns)]
        for mu in section["mu"]
    ]
    rows += [[kind, *(found[truth].cell(kind=kind) for truth, _ in columns)] for kind in ("topk", *CONTROLS, "dense")]
    told = []
    for truth in truths:
        works = [mu for mu in section["mu"] if found[truth].converged(**PREVIOUS, mu=mu)]
        least = found[truth].median("best", **PREVIOUS, mu=min(section["mu"]))
        most = found[truth].median("best", **PREVIOUS, mu=max(section["mu"]))
        told.append(
            f"{truth} data, `previous`: converges at mu in {{{', '.join(f'{mu:g}' for mu in works)}}}; best at mu = "
            f"{min(section['mu']):g}: {_figure(least)}, at mu = {max(section['mu']):g}: {_figure(most)}, Top-k: "
            f"{_figure(found[truth].median('best', kind='topk'))}."
        )
    return [
        Heading("Sensitivity of mu"),
        Text(
            "The paper gives no range of mu. Failure modes to look for: mu towards 0 undoes the regularisation, but "
            "for entries that were cancelled exactly (Delta = -1, where u(0) = 0 for every mu); a mu too large dampens "
            "what should be sent; and with homogeneous data (all workers share one truth; their rows and noise still "
            f"differ) there is no cancellation to find. S = {section['density']:g}; cells as above."
        ),
        Table(["method", *(f"{truth}, {d}" for truth, d in columns)], rows),
        Text(" ".join(told)),
    ]


def _report_score(config: Config, results: Results) -> list[Block]:
    section = config["score"]
    found = Found.of(results, "score")
    cases = [(u, y) for u in section["likelihoods"] for y in section["exponents"]]
    rows = [
        [u, f"{y:g}", *(found.cell(kind="regtopk", mu=mu, likelihood=u, exponent=y) for mu in section["mu"])]
        for u, y in cases
    ]
    rows.append(["(topk)", "", *([found.cell(kind="topk")] * len(section["mu"]))])
    blocks: list[Block] = [
        Heading("Open questions: the exponent y and the likelihood u"),
        Text(
            "Scores are |a|^y u(|1 + Delta| / mu). The paper leaves open whether y below 1 helps and which u is best, "
            f"and reports neither. S = {section['density']:g}, `previous`; cells as above."
        ),
        Table(["u", "y", *(f"mu {mu:g}" for mu in section["mu"])], rows),
    ]
    settings = [(u, y, mu) for u, y in cases for mu in section["mu"]]
    works = [
        f"u = {u}, y = {y:g}, mu = {mu:g}"
        for u, y, mu in settings
        if found.converged(kind="regtopk", likelihood=u, exponent=y, mu=mu)
    ]
    if found.results:
        blocks.append(
            Text(
                f"{len(works)} of {len(settings)} settings converge (in the sense above): {'; '.join(works) or 'none'}."
            )
        )
    return blocks


def _report_drift(config: Config, results: Results) -> list[Block]:
    section = config["drift"]
    columns = _columns(*(("previous", mu) for mu in section["mu"]), ("current", 4))
    rows = []
    for step in section["steps"]:
        found = Found.of(results, f"drift-{step}")
        for s in section["densities"]:
            values = [found.median("tracking", density=s, **match) for _, match in columns]
            dense = found.median("tracking", kind="dense")
            rows.append([f"{step:g}", f"{s:g}", *("-" if v is None else f"{v:.2g}" for v in (dense, *values))])
    return [
        Heading("A moving target"),
        Text(
            "Every worker's truth, and so the optimum, takes the same random step each round, of root mean square "
            "length r: theta*_t = theta*_0 + the sum of t vectors N(0, r^2 / J I). Cells: median over seeds of the "
            "mean of |theta - theta*_t|^2 over the last half of the rounds; lower is better. The paper does not look "
            "at this."
        ),
        Table(["r", "S", "dense", *(name for name, _ in columns)], rows),
        Text(_beats(config, results, "drift", "steps", "tracking", "a step of")),
    ]


def _report_delay(config: Config, results: Results) -> list[Block]:
    section = config["delay"]
    columns = _columns(*(("previous", mu) for mu in section["mu"]), ("current", 4))
    rows = []
    for delay in section["delays"]:
        found = Found.of(results, f"delay-{delay}")
        for s in section["densities"]:
            cells = [found.cell(kind="dense"), *(found.cell(density=s, **match) for _, match in columns)]
            rows.append([str(delay), f"{s:g}", *cells])
    return [
        Heading("Stale aggregates"),
        Text(
            "The aggregate of round t reaches the workers `delay` rounds late: in round t they hold the model with the "
            "aggregates of rounds up to t - 1 - delay, take its gradient, and compare the last of these aggregates "
            "with what they sent in that same round. Cells as above. The paper does not look at this."
        ),
        Text(
            "This is a NumPy model in which each worker keeps what it sent in every round that is still under way. The "
            "library's `gw.regtopk` remembers the last round alone and needs the reference of the round before: a real "
            "client that compresses for round t while it holds the aggregate of round t - 2 has no current reference "
            "and sends what Top-k sends (`tcs` then sends no known support). Only delay 0 below is what it does."
        ),
        Table(["delay", "S", "dense", *(name for name, _ in columns)], rows),
        Text(_beats(config, results, "delay", "delays", "best", "a delay of")),
    ]


def _beats(config: Config, results: Results, section: str, values: str, key: str, what: str) -> str:
    """Where RegTop-k is clearly ahead of Top-k, and of both controls."""
    ahead: dict[str, list[str]] = {"Top-k": [], "both controls": []}
    compared = 0
    for value, s in product(config[section][values], config[section]["densities"]):
        found = Found.of(results, f"{section}-{value}")
        ours = [found.median(key, density=s, **PREVIOUS, mu=mu) for mu in config[section]["mu"]]
        topk, *controls = (found.median(key, density=s, kind=kind) for kind in ("topk", *CONTROLS))
        if not found.results:
            continue
        compared += 1
        for name, theirs in (("Top-k", [topk]), ("both controls", controls)):
            if _is_clearly_less(_least(ours), _least(theirs), is_log=key == "best"):
                ahead[name].append(f"{what} {value:g} at S = {s:g}")
    if not compared:
        return "Not run yet."
    told = (
        f"{name} in {len(cases)} of {compared} cases ({'; '.join(cases) or 'none'})" for name, cases in ahead.items()
    )
    return f"RegTop-k (`previous`, the better mu) is clearly ahead of {', and of '.join(told)}."


def _least(values: Sequence[float | None]) -> float:
    return min((value for value in values if value is not None), default=math.inf)


def _is_clearly_less(ours: float, theirs: float, is_log: bool) -> bool:
    """By 10 % or more; of two that converged neither is."""
    return ours < theirs + math.log10(0.9) and theirs >= CONVERGED if is_log else ours < 0.9 * theirs


# --- shared by the sections -----------------------------------------------------------------------


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _deviation(ours: float | None, expected: float) -> tuple[str, str, str]:
    return _figure(ours), f"{expected:.1f}", "-" if ours is None else f"{ours - expected:+.1f}"


def _verdict(right: bool) -> str:
    return "Reproduced." if right else "Not reproduced."


def _is_papers(setup: Config) -> bool:
    return all(setup.get(key) == value for key, value in PAPERS_PROBLEM.items())


def _columns(*settings: tuple[str, float]) -> list[tuple[str, dict[str, Any]]]:
    """Name and ``match`` of Top-k, of RegTop-k with each (denominator, mu), and of the controls."""
    return [
        ("topk", {"kind": "topk"}),
        *((f"regtopk, {d}, mu {mu:g}", {"kind": "regtopk", "denominator": d, "mu": mu}) for d, mu in settings),
        *((kind, {"kind": kind}) for kind in CONTROLS),
    ]


def _curves(found: Found, name: str, title: str, columns: Sequence[tuple[str, dict[str, Any]]]) -> list[Block]:
    lines = [Series(label, *found.curve(**match)) for label, match in columns if found.values("best", **match)]
    return [Chart(name, title, "round", "log10 |theta - theta*|^2", lines)] if lines else []
