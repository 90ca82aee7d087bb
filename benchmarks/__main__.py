"""Run the benchmarks: python -m benchmarks [NAME ...] [--only PART] [--workers N] [--data-dir DIR] [--document]."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks import (
    accuracy,
    budget,
    ddp_link,
    dither,
    documents,
    federated,
    field,
    flower,
    flower_simulation,
    language,
    methods,
    mnist,
    nnc,
    page,
    papers,
    pareto,
    results,
    secagg,
    speed,
    supports,
    wire,
)
from benchmarks.results import Found
from gradwire.reproduce.run import PAPERS


def _replace(old: Found, new: Found) -> Found:
    return {**old, **new}


@dataclass(frozen=True)
class Benchmark:
    """Something to measure.

    Attributes:
        measure: (folder of the data files, which parts) -> their figures, or None where data is missing; and
            ``workers``, how many processes, where it takes that.
        parts: what ``--only`` can name; none where all is measured at once.
        merge: (the whole as it was, some parts measured anew) -> the whole.
        goes_on: whether it writes each run to its result file itself, and goes on from what is there.
        workers: in how many processes it runs unless told; None: it does not take that.
    """

    measure: Callable[..., Found | None]
    parts: tuple[str, ...] = ()
    merge: Callable[[Found, Found], Found] = _replace
    goes_on: bool = False
    workers: int | None = None


BENCHMARKS = {
    "accuracy": Benchmark(accuracy.measure, accuracy.PARTS),
    "budget": Benchmark(budget.measure, budget.PARTS, budget.merge),
    "ddp": Benchmark(ddp_link.measure, tuple(ddp_link.PARTS), ddp_link.merge),
    "dither": Benchmark(dither.measure, dither.PARTS, dither.merge),
    "federated": Benchmark(federated.measure, federated.PARTS),
    "field": Benchmark(field.measure, field.PARTS, field.merge),
    "flower-simulation": Benchmark(flower_simulation.measure),
    "flower": Benchmark(flower.measure, flower.PARTS, flower.merge),
    "language": Benchmark(language.measure, language.PARTS, goes_on=True, workers=1),
    "methods": Benchmark(methods.measure, methods.PARTS, methods.merge),
    "mnist": Benchmark(mnist.measure, mnist.PARTS, mnist.merge),
    "nnc": Benchmark(nnc.measure),
    "page": Benchmark(page.measure),
    "pareto": Benchmark(pareto.measure, pareto.PARTS, goes_on=True, workers=1),
    "secagg": Benchmark(secagg.measure, secagg.PARTS, secagg.merge),
    "speed": Benchmark(speed.measure),
    "supports": Benchmark(supports.measure, supports.PARTS, goes_on=True, workers=1),
    "wire": Benchmark(wire.measure, wire.PARTS),
    **{paper: Benchmark(partial(papers.measure, paper), workers=os.cpu_count() or 1) for paper in PAPERS},
}


def main(arguments: Sequence[str] | None = None) -> None:
    known = ", ".join(BENCHMARKS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which: {known} (without, all that do not go on by themselves)"
    )
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="of one NAME; the rest stays")
    parser.add_argument("--workers", type=int, metavar="N", help="processes, of what takes long runs")
    parser.add_argument("--data-dir", default=os.environ.get("GRADWIRE_DATA"), help="folder of the data files")
    parser.add_argument("--document", action="store_true", help="only write the documents again from the results")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; known: {known}")
    if options.only and len(options.names) != 1:
        parser.error("--only takes parts of one benchmark: name it")
    going_on = [name for name, benchmark in BENCHMARKS.items() if benchmark.goes_on]
    taking = [name for name, benchmark in BENCHMARKS.items() if benchmark.workers is not None]
    if options.workers is not None and (options.workers < 1 or not set(options.names) <= set(taking)):
        parser.error(f"--workers is 1 or more, of {', '.join(taking)} alone")
    if options.document:
        documents.write_all(set(options.names) or None)
        return
    for name in options.names or (name for name in BENCHMARKS if name not in going_on):
        benchmark = BENCHMARKS[name]
        if unknown := set(options.only) - set(benchmark.parts):
            parts = ", ".join(benchmark.parts) or "none, it is measured at once"
            parser.error(f"{name} has no part {', '.join(sorted(unknown))}; known: {parts}")
        workers = [] if benchmark.workers is None else [options.workers or benchmark.workers]
        found = benchmark.measure(options.data_dir, options.only or benchmark.parts, *workers)
        if benchmark.goes_on:
            documents.write_all({name})
            continue
        if found is None:
            continue
        if options.only:
            found = benchmark.merge(results.load(name) if results.is_there(name) else {}, found)
        results.save(name, found, options.only or found.pop("measured", None))
        documents.write_all({name})


if __name__ == "__main__":
    main()
