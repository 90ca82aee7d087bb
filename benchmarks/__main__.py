"""Run the benchmarks: python -m benchmarks [NAME ...] [--data-dir DIR] [--document]."""

from __future__ import annotations

import argparse
import importlib
import os

NAMES = ("accuracy", "budget", "federated", "methods", "mnist", "papers", "speed", "wire")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)} (all without)")
    parser.add_argument("--data-dir", default=os.environ.get("GRADWIRE_DATA"), help="folder of the data files")
    parser.add_argument("--document", action="store_true", help="only write the tables again from the results files")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    for name in options.names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        if options.document:
            module.document()
        else:
            module.run(options.data_dir)


if __name__ == "__main__":
    main()
