"""Put Flower's own count of bytes into summary.json: flwr list --format json | python -m gradwire.flower OUT."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gradwire.errors import GradwireError
from gradwire.flower.traffic import add_traffic

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Args:
        arguments: the folder of the run.

    Raises:
        SystemExit: with a line that says why, where it cannot be done.
    """
    if len(arguments) != 1:
        raise SystemExit("usage: flwr list --format json | python -m gradwire.flower OUT")
    try:
        traffic = add_traffic(arguments[0], sys.stdin.read())
    except GradwireError as error:
        raise SystemExit(str(error)) from None
    sys.stdout.write(f"{traffic['inbound_bytes']} bytes in, {traffic['outbound_bytes']} out\n")


if __name__ == "__main__":
    main(sys.argv[1:])
