"""docs/language.md and its picture, of all the runs there are, and of how many are to come."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.language.plan import DENSE, KINDS, METHODS, SEEDS, TUNING_SEED, Job, Kind, Run, found_of, report, tuning
from benchmarks.markdown import code, table
from benchmarks.results import Found, describe
from gradwire.report.tables import format_bytes

NEAR = 1.01  # what is near dense's loss


def bytes_to(points: Sequence[Sequence[float]], loss: float) -> int | None:
    """The bytes up at the first evaluation of such a loss or a lower one, or None."""
    return next((int(point[1]) for point in points if point[3] <= loss), None)


def shown(found: dict[Job, Run], kind: Kind) -> dict[str, dict[int, Run]]:
    """The runs that count of each method, by seed."""
    of_each = {m: {job.seed: found[job] for job in report(found, kind, m) if job in found} for m in METHODS}
    return {method: runs for method, runs in of_each.items() if runs}


def document(result: Found) -> dict[str, str]:
    """The tables and the picture."""
    found = found_of(result["runs"])
    char, *others = KINDS
    return {
        "docs/language.md#language-char": "\n\n".join([_progress(found, [char]), _char(found, char), describe(result)]),
        "docs/language.md#language-lora": "\n\n".join([_progress(found, others), *_lora(found, others)]),
        "docs/language.svg": _picture(found),
    }


def _progress(found: dict[Job, Run], kinds: Sequence[Kind]) -> str:
    jobs = [job for kind in kinds for job in tuning(kind)]
    jobs += [job for kind in kinds for method in METHODS for job in report(found, kind, method)]
    planned = sum(len(kind.rates) + len(METHODS) * len(SEEDS) for kind in kinds)
    done = sum(job in found for job in jobs)
    hours = sum(found[job]["seconds"] for job in jobs if job in found) / 3600
    so_far = f"All {planned} runs are done" if done == planned else f"So far {done} of {planned} runs"
    return f"{so_far}, those that choose a learning rate among them, in {hours:.1f} hours."


def _char(found: dict[Job, Run], kind: Kind) -> str:
    return f"{_settings_text(kind)}\n\n{_table(shown(found, kind))}"


def _lora(found: dict[Job, Run], kinds: Sequence[Kind]) -> list[str]:
    about = next((run for run in found.values() if run["kind"] == kinds[0].name), None)
    parts = []
    if about is not None:
        parts.append(
            f"{about['num_windows']:,} windows of {about['num_speakers']} speakers to train on, "
            f"{about['num_test_windows']} to test on; the loss before any tuning is {about['start_loss']:.4f}."
        )
    for kind in kinds:
        runs = shown(found, kind)
        first = next(iter(next(iter(runs.values())).values()), None) if runs else None
        told = "" if first is None else f": {first['num_trained']:,} of {first['num_parameters']:,} parameters travel"
        parts += [f"### {kind.title[0].upper()}{kind.title[1:]}{told}", _settings_text(kind), _table(runs)]
    return parts


def _settings_text(kind: Kind) -> str:
    s = kind.settings
    return (
        f"{s['clients']} clients, {kind.rounds} rounds of {s['local_steps']} local steps, batch {s['batch_size']}, "
        f"{s['warmup_rounds']} rounds of warm-up; "
        f"dense was tried with rates {' and '.join(f'{rate:g}' for rate in kind.rates)} for {kind.tuning_rounds} "
        f"rounds with seed {TUNING_SEED}; shown are seeds {', '.join(map(str, SEEDS))}."
    )


def _table(of_each: dict[str, dict[int, Run]]) -> str:
    if not of_each:
        return "No run is done yet."
    targets = {seed: run["loss"] * NEAR for seed, run in of_each.get(DENSE, {}).items() if run["loss"] is not None}
    of_dense = _reached(of_each.get(DENSE, {}), targets)
    rows = []
    for method, runs in of_each.items():
        reached = _reached(runs, targets)
        up, down, raw = (
            statistics.mean(run.get(name, 0) for run in runs.values())
            for name in ("uplink_bytes", "downlink_bytes", "dense_uplink_bytes")
        )
        rows.append(
            [
                code(method),
                f"{next(iter(runs.values()))['learning_rate']:g}",
                _losses([run["loss"] for run in runs.values()]),
                format_bytes(up),
                format_bytes(down),
                _times(raw / up) if up else "",
                _near(reached),
                _times_fewer(reached, of_dense),
            ]
        )
    headings = ["method", "rate", "test loss (seeds)", "uplink", "downlink", "fewer bytes up than raw float32"]
    return table([*headings, "uplink to dense's loss + 1 %", "fewer than dense to there"], rows)


def _reached(runs: dict[int, Run], targets: dict[int, float]) -> dict[int, int | None]:
    """By seed of which dense is done: the bytes to come near dense's loss of the same seed."""
    return {seed: bytes_to(run["points"], targets[seed]) for seed, run in runs.items() if seed in targets}


def _losses(losses: Sequence[float | None]) -> str:
    finite = [loss for loss in losses if loss is not None]
    failed = "" if len(finite) == len(losses) else f", {len(losses) - len(finite)} overflowed"
    if not finite:
        return f"overflowed ({len(losses)})"
    spread = f" ± {statistics.stdev(finite):.4f}" if len(finite) > 1 else ""
    return f"{statistics.mean(finite):.4f}{spread} ({len(finite)}{failed})"


def _near(reached: dict[int, int | None]) -> str:
    there = [num_bytes for num_bytes in reached.values() if num_bytes is not None]
    if not there:
        return "not reached" if reached else ""
    text = format_bytes(statistics.mean(there))
    return (
        text if len(there) == len(reached) else f"{text}; not reached in {len(reached) - len(there)} of {len(reached)}"
    )


def _times_fewer(reached: dict[int, int | None], of_dense: dict[int, int | None]) -> str:
    pairs = [(mine, of_dense[seed]) for seed, mine in reached.items() if mine is not None]
    ratios = [theirs / mine for mine, theirs in pairs if theirs is not None]
    return _times(statistics.geometric_mean(ratios)) if ratios else ""


def _times(ratio: float) -> str:
    return f"{ratio:,.1f}x" if ratio < 10 else f"{ratio:,.0f}x"


def _picture(found: dict[Job, Run]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "gradwire"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(KINDS), figsize=(6 * len(KINDS), 5))
    for axis, kind in zip(axes, KINDS, strict=True):
        _draw(axis, shown(found, kind))
        axis.set_title(kind.title)
    lines = [pyplot.Line2D([], [], color=f"C{number}") for number in range(len(METHODS))]
    figure.legend(lines, METHODS, loc="lower center", ncols=len(METHODS), fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    picture = io.StringIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return picture.getvalue()


def _draw(axis: Any, of_each: dict[str, dict[int, Run]]) -> None:
    for number, method in enumerate(METHODS):
        for run in of_each.get(method, {}).values():
            if run["points"]:
                _, up, _, losses, _ = zip(*run["points"], strict=True)
                axis.plot([b / 1e6 for b in up], losses, color=f"C{number}", linewidth=1)
    axis.set_xscale("log")
    axis.set_xlabel("uplink of all clients so far (MB, log scale)")
    axis.set_ylabel("test loss (nats a character)")
    axis.grid(alpha=0.3)
