"""RegTop-k's experiments: the two-worker example, linear regression with its controls, and classification at 0.1 %."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gradwire.reproduce.blocks import Block, Text
from gradwire.reproduce.regression import CONTROLS, Method, run_regression, run_two_worker
from gradwire.reproduce.regtopk_overlap import overlap_cases
from gradwire.reproduce.regtopk_report import sections
from gradwire.reproduce.regtopk_training import training_name
from gradwire.reproduce.units import Paper, Unit

__all__ = ["PAPER", "report", "units"]

Config = dict[str, Any]
Results = dict[str, dict[str, Any]]


# --- units ----------------------------------------------------------------------------------------


def units(config: Config) -> list[Unit]:
    """Return the pieces of work of a configuration.

    Args:
        config: of ``reproductions/regtopk``; sections left out are not run.

    Returns:
        The units: trainings on a GPU, then the example, the regressions a seed at a time, and the other trainings.
    """
    made = [_two_worker_unit(config["two_worker"])] if "two_worker" in config else []
    for section, methods_of in (("sparsity", _sparsity), ("mu", _mu), ("score", _score)):
        if section in config:
            truths = config[section].get("truths", ["heterogeneous"])
            for truth in truths:
                name = section if len(truths) == 1 else f"{section}-{truth}"
                made += _regression(config, name, methods_of(config[section]), homogeneous=truth == "homogeneous")
    for section, setting, values in (("drift", "drift", "steps"), ("delay", "delay", "delays")):
        if section in config:
            methods = _few(config[section])
            for value in config[section][values]:
                made += _regression(config, f"{section}-{value}", methods, **{setting: value})
    for name, changed, methods in overlap_cases(config):
        made += _regression(config, name, methods, overlap=True, **changed)
    for training in config.get("classification", []):
        made += _trainings(training)
    return sorted(made, key=lambda unit: unit.settings.get("device", "cpu") == "cpu")


def _two_worker_unit(section: Config) -> Unit:
    regtopk = [f"ef(regtopk(0.5, mu={mu}, denominator='{d}'))" for d in section["denominators"] for mu in section["mu"]]
    methods = ["dense()", "ef(topk(0.5))", *regtopk]
    return Unit("two-worker", "two_worker", {"rounds": section["rounds"], "methods": methods})


def _sparsity(section: Config) -> list[Method]:
    return [Method("dense")] + [
        method
        for density in section["densities"]
        for method in (
            *(Method(kind, density) for kind in ("topk", *CONTROLS)),
            *(Method("regtopk", density, mu, d) for d in section["denominators"] for mu in section["mu"]),
        )
    ]


def _mu(section: Config) -> list[Method]:
    density = section["density"]
    regtopk = [Method("regtopk", density, mu, d) for d in section["denominators"] for mu in section["mu"]]
    return [Method("dense"), *(Method(kind, density) for kind in ("topk", *CONTROLS)), *regtopk]


def _score(section: Config) -> list[Method]:
    return [Method("topk", section["density"])] + [
        Method("regtopk", section["density"], mu, exponent=exponent, likelihood=likelihood)
        for likelihood in section["likelihoods"]
        for exponent in section["exponents"]
        for mu in section["mu"]
    ]


def _few(section: Config) -> list[Method]:
    return [Method("dense")] + [
        method
        for density in section["densities"]
        for method in (
            *(Method(kind, density) for kind in ("topk", *CONTROLS)),
            *(Method("regtopk", density, mu) for mu in section["mu"]),
            Method("regtopk", density, denominator="current"),
        )
    ]


def _regression(config: Config, name: str, methods: list[Method], **changed: Any) -> list[Unit]:
    """A unit for each seed."""
    shared = {key: value for key, value in config["regression"].items() if key != "seeds"}
    rows = [asdict(method) for method in methods]
    return [
        Unit(f"{name}-seed{seed}", "regression", {**shared, **changed, "seed": seed, "methods": rows})
        for seed in config["regression"]["seeds"]
    ]


def _trainings(section: Config) -> list[Unit]:
    shared = {k: v for k, v in section.items() if k not in ("methods", "partitions", "seeds")}
    return [
        Unit(
            f"{training_name(section, partition, method)}-seed{seed}",
            "train",
            {**shared, "partition": partition, "methods": [method], "seeds": [seed]},
        )
        for partition in section["partitions"]
        for seed in section["seeds"]
        for method in section["methods"]
    ]


# --- report ---------------------------------------------------------------------------------------


def report(config: Config, results: Results) -> list[Block]:
    """Set the paper's claims beside what was measured.

    Args:
        config: as for ``units``.
        results: by unit's name; some may be missing.

    Returns:
        Blocks; every measured figure in them comes from the results.
    """
    missing = sum(unit.name not in results for unit in units(config))
    told = f"{missing} units are not done: what follows is of the others, and - stands for nothing."
    return [*([Text(told)] if missing else []), *sections(config, results)]


PAPER = Paper(
    name="regtopk",
    title="Regularized Top-k: A Bayesian Framework for Gradient Sparsification (arXiv 2501.05633)",
    units=units,
    functions={"two_worker": run_two_worker, "regression": run_regression},
    report=report,
)
