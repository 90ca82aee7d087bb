"""TCS (arXiv 2101.08837): Table I and Figure 1, and what they leave open, in one or several settings."""

from __future__ import annotations

from typing import Any

from gradwire.reproduce.blocks import Block, Chart, Heading, Table, Text
from gradwire.reproduce.statistics import (
    accuracies,
    bits_after,
    compare,
    curve,
    difference,
    gain_at_the_end,
    show,
    unpaired_interval,
)
from gradwire.reproduce.units import Paper, Unit

__all__ = ["PAPER"]

Config = dict[str, Any]
Result = dict[str, Any]
Runs = dict[str, dict[int, Result]]
"""By method's name and seed; each method of a setting is there, perhaps without a run."""

Claim = tuple[float, float, float | None]

# Table I: final test accuracy in per cent (mean, standard deviation) and bit budget a parameter and local step
_BASELINE = "the paper's baseline"
_CLAIMED: dict[str, Claim] = {
    _BASELINE: (92.228, 0.232, None),
    "top-k": (92.194, 0.247, 0.41),
    "TCS": (92.44, 0.143, 0.363),
    "TCS-L2": (92.578, 0.189, 0.1815),
    "TCS-L4": (92.53, 0.22, 0.0907),
    "TCS-L4-Q5": (92.485, 0.22, 0.01675),
}
_TRIALS = 5  # of Table I
_CONVERGED = 0.5  # points: what gains more over the last fifth of its rounds has not converged
_PAPER_STEPS = 300 * 50_000 // (10 * 64)
# the pairs whose order the paper speaks about: its Table I and section III-C
_PAIRS = (
    ("TCS", "top-k"),
    ("TCS", _BASELINE),
    ("top-k", _BASELINE),
    ("TCS-L2", "TCS"),
    ("TCS-L4", "TCS"),
    ("TCS-L4-Q5", "TCS-L4"),
    ("TCS-L4-Q5", _BASELINE),
)
# of a method alone; its other keys change what its setting's methods share
_OWN = ("name", "spec", "local_steps", "beside", "seeds")


def units(config: Config) -> list[Unit]:
    """Return a training unit for each setting, seed and method, seed by seed; of variants when all methods are through.

    Args:
        config: of ``reproductions/tcs``. A method that names another as ``beside`` is a variant of it, with a table of
            its own; ``seeds`` are a method's, where they are not the setting's.
    """
    return [
        Unit(_unit_name(setting, method, seed), "train", _experiment(setting, method, seed))
        for beside in (False, True)
        for setting in config["settings"]
        for seed in sorted({seed for method in setting["methods"] for seed in _seeds(setting, method)})
        for method in setting["methods"]
        if seed in _seeds(setting, method) and ("beside" in method) == beside
    ]


def _unit_name(setting: Config, method: Config, seed: int) -> str:
    return f"{setting['name']}-{method['name']}-seed{seed}"


def _seeds(setting: Config, method: Config) -> list[int]:
    seeds: list[int] = method["seeds"] if "seeds" in method else setting["seeds"]
    return seeds


def _shared(setting: Config, method: Config) -> Config:
    return {**setting["shared"], **{key: value for key, value in method.items() if key not in _OWN}}


def _rounds(setting: Config, method: Config, epochs: float) -> int:
    shared = _shared(setting, method)
    rounds = epochs * setting["examples"] / (shared["clients"] * shared["batch_size"] * method["local_steps"])
    return max(1, round(float(rounds)))


def _experiment(setting: Config, method: Config, seed: int) -> Config:
    warmup = _rounds(setting, method, setting["warmup_epochs"])
    return {
        **_shared(setting, method),
        "methods": [method["spec"].replace("WARMUP", str(warmup))],
        "local_steps": method["local_steps"],
        "rounds": _rounds(setting, method, setting["epochs"]),
        "warmup_rounds": warmup,
        "evaluate_every": _rounds(setting, method, setting["epochs"] / setting["evaluations"]),
        "seeds": [seed],
    }


# --- report ---------------------------------------------------------------------------------------


def report(config: Config, results: dict[str, Result]) -> list[Block]:
    """Return Table I, Figure 1 and paired differences beside ours, for each setting."""
    return [block for setting in config["settings"] for block in _report_setting(setting, results)]


def _report_setting(setting: Config, results: dict[str, Result]) -> list[Block]:
    runs: Runs = {}
    for method in setting["methods"]:
        names = {seed: _unit_name(setting, method, seed) for seed in _seeds(setting, method)}
        runs[method["name"]] = {seed: results[name] for seed, name in names.items() if name in results}
    shared, title = setting["shared"], f"{setting['shared']['model']} on {setting['shared']['data']}"
    if not any(runs.values()):
        return [Heading(title), Text("Not run yet.")]
    methods = [method for method in setting["methods"] if "beside" not in method]
    variants = [method for method in setting["methods"] if "beside" in method and runs[method["name"]]]
    return [
        Heading(title),
        Text(
            f"{shared['clients']} clients, {shared['partition']}, batch {shared['batch_size']}, learning rate "
            f"{shared['learning_rate']}, {setting['epochs']} epochs, the first {setting['warmup_epochs']} of them "
            "uncompressed while the learning rate rises; phi_global 1e-2, phi_local 1e-3; accuracy on "
            f"{_test_name(runs)}. The paper: ResNet-18, 300 epochs, accuracy on CIFAR-10's test set, and a baseline "
            f"trained in one place with batch 128, {_beside_baseline(runs)}"
        ),
        *_table_one(setting, methods, runs),
        *_way_down(setting, methods, runs),
        *_paired(runs),
        *_variants(setting, variants, runs),
        Chart(
            f"tcs-{setting['name']}-accuracy",
            f"Figure 1: accuracy against epochs, {title}",
            "epoch",
            "accuracy (%)",
            [
                curve(
                    method["name"],
                    list(runs[method["name"]].values()),
                    scale=setting["epochs"] / _rounds(setting, method, setting["epochs"]),
                )
                for method in methods
                if runs[method["name"]]
            ],
        ),
    ]


def _table_one(setting: Config, methods: list[Config], runs: Runs) -> list[Block]:
    claims = _claims(runs)
    headings = ("method", "spec", "rounds claimed", "ours", "accuracy claimed, %", "ours, %", "deviation")
    return [
        Text(
            "Table I, accuracy and bit budget. Bits per parameter are the bytes of all uploads after the warm-up, "
            "headers included, divided by the parameters, the uploads and the local steps. Values in brackets count "
            "seeds. Running statistics of BatchNorm, where a model has them, travel as well and are counted: for "
            "ResNet-18 0.027 bits more."
        ),
        Table(
            (*headings, "bits claimed", "ours", "deviation"),
            [_row(setting, each, claims.get(each["name"]), list(runs[each["name"]].values())) for each in methods],
        ),
        Text(
            "A run of few rounds cannot show what the paper shows: each round moves one coordinate in a hundred, so "
            "that H local steps, which divide the rounds by H, must leave enough of them."
        ),
    ]


def _way_down(setting: Config, methods: list[Config], runs: Runs) -> list[Block]:
    clients = setting["shared"]["clients"]
    headings = ("method", "bits up against top-k, claimed", "ours", "bits down", "against dense", "against 32 bits")
    return [
        Text(
            "Beside top-k, and on the way down. Bits as above, on the way up against top-k's and on the way down, each "
            "client's copy counted. The paper says that TCS takes 12 % fewer bits than top-k and that the way down is "
            "sparser by 50 at N = 10, in entries (section III-B): of N clients at most phi_global + N phi_local of all "
            f"change in a round, one in {1 / (0.01 + 0.001 * clients):.0f} here, where top-k can change N phi. The "
            "gain is what accuracy rises by over the last fifth of the rounds. A method that gains more than "
            f"{_CONVERGED:g} points there, or more than a difference in question, has not converged, and that order is "
            "not judged. It lies after the learning rate's last drop, where every curve is flat: a small gain does not "
            "say that longer training would add nothing."
        ),
        Table((*headings, "gain at the end, points"), [_down_row(setting, method, runs) for method in methods]),
    ]


def _paired(runs: Runs) -> list[Block]:
    return [
        Text(
            "Paired differences of final accuracy over the same seeds in points, with 95 % intervals (Student's t), "
            f"each by itself. The paper's are of Table I, {_TRIALS} trials (Welch's t). An order is claimed only "
            "where the interval leaves out 0."
        ),
        Table(
            ("difference", "the paper's", "ours", "the first is", "beside the paper"),
            [_pair(runs, *(_baseline(runs) if name == _BASELINE else name for name in pair)) for pair in _PAIRS],
        ),
        *_undertrained(runs),
    ]


def _claims(runs: Runs) -> dict[str, Claim]:
    """What the paper says of each method here."""
    return {_baseline(runs) if name == _BASELINE else name: claim for name, claim in _CLAIMED.items()}


def _baseline(runs: Runs) -> str:
    """What the paper's baseline is compared with: training in one place, where a setting has it."""
    return "centralised" if "centralised" in runs else "dense"


def _beside_baseline(runs: Runs) -> str:
    if _baseline(runs) == "centralised":
        return "which is `centralised` here; `dense` is the mean of all clients' steps."
    return "where `dense` here is the mean of all clients' steps."


def _is_the_papers(setting: Config) -> bool:
    """Whether accuracies are of the paper's data."""
    return bool(setting["shared"]["data"] == "cifar10")


def _is_alone(setting: Config, method: Config) -> bool:
    """Whether nothing travels."""
    return bool(_shared(setting, method)["clients"] == 1)


def _test_name(runs: Runs) -> str:
    found = {run["experiment"]["test_name"] for mine in runs.values() for run in mine.values()} or {"test"}
    return ", ".join("the test set" if name == "test" else name for name in sorted(found))


def _row(setting: Config, method: Config, claimed: Claim | None, runs: list[Result]) -> list[str]:
    steps, ours = method["local_steps"], accuracies(runs)
    mean, spread, bits = claimed or (None, None, None)
    measured = _bits(setting, method, runs)
    return [
        method["name"],
        f"`{method['spec']}`",
        "-" if claimed is None or _is_alone(setting, method) else f"{_PAPER_STEPS // steps:,}",
        f"{_rounds(setting, method, setting['epochs']):,}",
        "-" if mean is None else f"{mean:.2f} ± {spread:.2f}",
        show(ours),
        f"{sum(ours) / len(ours) - mean:+.2f}" if ours and mean is not None and _is_the_papers(setting) else "-",
        "-" if bits is None else f"{bits:g}",
        "-" if measured is None else f"{measured:.5f}",
        "-" if measured is None or bits is None else f"{100 * (measured / bits - 1):+.1f} %",
    ]


def _bits(setting: Config, method: Config, runs: list[Result], key: str = "uplink_bytes") -> float | None:
    """Bits per parameter and local step after the warm-up, in the mean over runs; none where nothing travels."""
    if not runs or _is_alone(setting, method):
        return None
    warmup = _rounds(setting, method, setting["warmup_epochs"])
    return sum(bits_after(run, warmup, key) for run in runs) / len(runs) / float(method["local_steps"])


def _undertrained(runs: Runs) -> list[Block]:
    """What a top-k that is well above dense says of dense."""
    if not _dense_lags(runs):
        return []
    return [
        Text(
            "Plain top-k is above `dense` too, where the paper shows no order: `dense` is undertrained in these rounds "
            "at this learning rate, and to be better than it here is no sign of what a method does where training "
            "converges."
        )
    ]


def _dense_lags(runs: Runs) -> bool:
    return compare(runs.get("top-k", {}), runs.get("dense", {}))[1] == "better"


def _down_row(setting: Config, method: Config, runs: Runs) -> list[str]:
    of = {each["name"]: each for each in setting["methods"]}

    def bits(name: str, key: str) -> float | None:
        return _bits(setting, of[name], list(runs[name].values()), key) if name in of else None

    name = method["name"]
    claimed, claimed_topk = (_CLAIMED[each][2] if each in _CLAIMED else None for each in (name, "top-k"))
    up, topk = bits(name, "uplink_bytes"), bits("top-k", "uplink_bytes")
    down, dense = bits(name, "downlink_bytes"), bits("dense", "downlink_bytes")
    return [
        name,
        "-" if claimed is None or claimed_topk is None else f"{100 * (claimed / claimed_topk - 1):+.1f} %",
        "-" if up is None or not topk or method["spec"] == "dense()" else f"{100 * (up / topk - 1):+.1f} %",
        "-" if down is None else f"{down:.4f}",
        "-" if not down or dense is None else f"{dense / down:.1f}x fewer",
        "-" if not down else f"{32 / down:.1f}x fewer",
        f"{gain_at_the_end(list(runs[name].values())):+.2f}" if runs[name] else "-",
    ]


def _pair(runs: Runs, a: str, b: str) -> list[str]:
    (mean_a, spread_a, _), (mean_b, spread_b, _) = _claims(runs)[a], _claims(runs)[b]
    claimed, around = unpaired_interval((mean_a, spread_a), (mean_b, spread_b), _TRIALS)
    ours, verdict = compare(runs.get(a, {}), runs.get(b, {}))
    if verdict == "too few seeds":
        claim = "not run"
    elif "dense" in (a, b) and _dense_lags(runs):
        claim = "not judged: dense undertrained"
    elif moving := _rising(runs, a, b):
        claim = f"not judged: {moving}"
    elif abs(claimed) <= around:
        claim = "the paper shows no order" + (" either" if verdict == "no difference shown" else "")
    else:
        claim = "reproduced" if verdict == ("better" if claimed > 0 else "worse") else "not reproduced"
    return [f"{a} - {b}", f"{claimed:+.2f} ± {around:.2f}", ours, verdict, claim]


def _rising(runs: Runs, a: str, b: str) -> str:
    """Which of two methods have not converged, as far as their difference asks, in words."""
    if compare(runs[a], runs[b])[1] not in ("better", "worse"):
        return ""
    least = min(_CONVERGED, abs(difference(runs[a], runs[b])[0]))
    rising = [name for name in (a, b) if gain_at_the_end(list(runs[name].values())) > least]
    return f"{' and '.join(rising)} still rising" if rising else ""


def _variants(setting: Config, variants: list[Config], runs: Runs) -> list[Block]:
    """What was changed in a method, beside it."""
    of = {method["name"]: method for method in setting["methods"]}
    rows = []
    for method in variants:
        name, beside = method["name"], method["beside"]
        bits, base = (_bits(setting, of[each], list(runs[each].values())) for each in (name, beside))
        ours, verdict = compare(runs[name], runs[beside])
        rows.append(
            (
                name,
                f"`{method['spec']}`",
                show(accuracies(list(runs[name].values()))),
                f"{beside}: {ours}",
                "; ".join(filter(None, (verdict, _rising(runs, name, beside)))),
                "-" if bits is None else f"{bits:.5f}",
                "-" if bits is None or not base else f"{100 * (bits / base - 1):+.1f} %",
            )
        )
    if not rows:
        return []
    return [
        Text(
            "Variants, each against the method that it changes, over the seeds of both: other numbers of intervals "
            "than the 16 of 5 bits; Eq. (11), with one mean for all and with one a tensor, which section II-C calls "
            "blocks; the mask that the warm-up left, for ever, without new coordinates; other learning rates."
        ),
        Table(("method", "spec", "accuracy, %", "points against", "it is", "bits", "against it"), rows),
    ]


PAPER = Paper("tcs", "Time-Correlated Sparsification, arXiv:2101.08837", units, {}, report)
