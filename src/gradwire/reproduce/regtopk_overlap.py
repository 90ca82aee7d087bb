"""RegTop-k: whether workers' choices become alike, and the control that passes over whatever was sent last."""

from __future__ import annotations

from typing import Any

from gradwire.reproduce.blocks import Block, Heading, Table, Text
from gradwire.reproduce.regression import Found, Method

__all__ = ["overlap_cases", "report_overlap"]

_ALIKE = 0.05

Config = dict[str, Any]


def overlap_cases(config: Config) -> list[tuple[str, dict[str, Any], list[Method]]]:
    """Return the regressions of the section: a name, the settings that are changed, the methods.

    Args:
        config: of ``reproductions/regtopk``; without the section there are none.

    Returns:
        One a sparsity sweep, one a delay, one a variance of the workers' means.
    """
    section = config.get("overlap")
    if section is None:
        return []
    varied = _methods(section, section["varied"])
    return [
        ("overlap", {}, _methods(section, section["densities"])),
        *((f"overlap-delay-{delay}", {"delay": delay}, varied) for delay in section["delays"]),
        *((f"overlap-spread-{spread}", {"mean_variance": spread}, varied) for spread in section["spreads"]),
    ]


def _methods(section: Config, densities: list[float]) -> list[Method]:
    return [
        method
        for density in densities
        for method in (
            Method("topk", density),
            *(Method("regtopk", density, mu) for mu in section["mu"]),
            Method("passover", density),
        )
    ]


def report_overlap(config: Config, results: dict[str, dict[str, Any]]) -> list[Block]:
    """Write the section.

    Args:
        config: of ``reproductions/regtopk``.
        results: by unit's name; some may be missing.

    Returns:
        Blocks.
    """
    section, mark = config["overlap"], config["regression"]["mark"]
    found = Found.of(results, "overlap")
    columns = [
        ("topk", {"kind": "topk"}),
        *((f"regtopk, mu {mu:g}", {"kind": "regtopk", "mu": mu}) for mu in section["mu"]),
        ("passover", {"kind": "passover"}),
    ]
    names = [name for name, _ in columns]

    def rows(of: Found, densities: list[float], *first: str) -> list[list[str]]:
        return [[*first, f"{s:g}", *(_cell(of, density=s, **match) for _, match in columns)] for s in densities]

    delays = [(f"{n}", Found.of(results, f"overlap-delay-{n}")) for n in section["delays"]]
    spreads = [(f"{v:g}", Found.of(results, f"overlap-spread-{v}")) for v in section["spreads"]]
    return [
        Heading("Whether choices become alike"),
        Text(
            "Cells: which share of what one worker sends another one sends too, in the mean over all pairs and over "
            f"rounds {mark // 2} to {mark}, median over seeds; in brackets how many seeds came below 1e-10 at their "
            "best. Supports drawn independently share S of their entries; `cyclic` and `randk` share all. `passover` "
            "is a control that the paper lacks: Top-k that takes what it sent in the round before, or whose aggregate "
            "came last, only after all else, whatever the others sent. `previous` throughout."
        ),
        Table(["S", *names], rows(found, section["densities"])),
        Text(_verdict(found, section)),
        Text("With aggregates that come back late, as under Stale aggregates:"),
        Table(["delay", "S", *names], [row for n, of in delays for row in rows(of, section["varied"], n)]),
        Text(_beyond_chance("delay", delays, section["varied"])),
        Text("With means m_n of the workers' truths of another variance, 0 for truths that differ by N(0, I) alone:"),
        Table(["variance", "S", *names], [row for v, of in spreads for row in rows(of, section["varied"], v)]),
        Text(_beyond_chance("variance", spreads, section["varied"])),
    ]


def _beyond_chance(what: str, varied: list[tuple[str, Found]], densities: list[float]) -> str:
    """Where RegTop-k's supports are more alike than chance, and where it converges."""
    match: dict[str, Any] = {"kind": "regtopk", "mu": 4}
    cells = [(f"{what} {value}, S = {s:g}", of, s) for value, of in varied for s in densities]
    alike = [name for name, of, s in cells if (of.median("overlap", density=s, **match) or 0.0) > s + _ALIKE]
    works = [name for name, of, s in cells if of.converged(density=s, **match)]
    return (
        f"RegTop-k's at mu 4 are more alike than chance by .05 or more at {'; '.join(alike) or 'none of these'}. It "
        f"converges at {'; '.join(works) or 'none of these'}."
    )


def _cell(found: Found, **match: Any) -> str:
    overlap = found.median("overlap", **match)
    return "-" if overlap is None else f"{overlap:.2f} ({found.seeds(**match)})"


def _verdict(found: Found, section: Config) -> str:
    """From which S on supports are more alike than chance, and whether the likelihood has a part in it."""
    if not found.results:
        return "Not run yet."

    def alike(kind: str, **match: Any) -> str:
        above = [
            s
            for s in section["densities"]
            if (found.median("overlap", kind=kind, density=s, **match) or 0.0) > s + _ALIKE
        ]
        return f"from S = {min(above):g} on" if above else "nowhere"

    largest = max(section["mu"])
    works = [s for s in section["densities"] if found.converged(kind="regtopk", mu=4, density=s)]
    both = [s for s in works if found.converged(kind="passover", density=s)]
    reason = (
        ""
        if both or not works
        else " That an entry was sent last is not what helps, then, but the order that the aggregate, the same for "
        "all, gives to entries that were."
    )
    return (
        f"Supports are more alike than chance by .05 or more {alike('regtopk', mu=4)} with RegTop-k at mu 4, "
        f"{alike('regtopk', mu=largest)} at mu {largest:g}, {alike('passover')} with `passover`, {alike('topk')} with "
        f"Top-k. RegTop-k at mu 4 converges at S = {_listed(works)}, `passover` at {_listed(both)} of these.{reason}"
    )


def _listed(densities: list[float]) -> str:
    return ", ".join(f"{s:g}" for s in densities) or "none"
