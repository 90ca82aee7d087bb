"""Traffic: Flower's own count of a run's bytes, which the SuperLink keeps, beside the ledger's in summary.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gradwire.errors import ConfigError
from gradwire.files.atomic import write_atomically

__all__ = ["add_traffic"]


def add_traffic(out: Path | str, listed: str) -> dict[str, int]:
    """Put Flower's count of a run's bytes into its summary.json, as ``network_traffic``.

    Flower counts at the SuperLink, all that SuperNodes ask and are answered for the run: its framing and evaluation
    too. A ServerApp cannot ask for it, ``flwr list`` can.

    Args:
        out: the folder of the run, as ``CompressedStrategy(out=...)`` wrote it.
        listed: what ``flwr list --format json`` printed.

    Returns:
        ``inbound_bytes`` and ``outbound_bytes``, as the SuperLink sees them; of a run that was resumed, of all its
        parts.

    Raises:
        ConfigError: where either is something else, or the run is not in the list; nothing is changed then.

    Example:
        >>> import json, tempfile
        >>> from gradwire.flower.traffic import add_traffic
        >>> listed = {"runs": [{"run-id": "7", "network-traffic": {"inbound-bytes": 10, "outbound-bytes": 20}}]}
        >>> with tempfile.TemporaryDirectory() as out:
        ...     _ = Path(out, "summary.json").write_text('{"runs": [{"flower_runs": ["7"]}]}')
        ...     add_traffic(out, json.dumps(listed))
        {'inbound_bytes': 10, 'outbound_bytes': 20}
    """
    path = Path(out) / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        (run,) = summary["runs"]
        names = [str(name) for name in run["flower_runs"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} is no summary that CompressedStrategy(out=...) wrote: {error}") from None
    counted = _counted(listed)
    if missing := [name for name in names if name not in counted]:
        raise ConfigError(f"flwr list names the runs {', '.join(counted) or 'none'}, not {', '.join(missing)}")
    ways = ("inbound_bytes", "outbound_bytes")
    traffic = {way: sum(counted[name][way] for name in names) for way in ways}
    run["network_traffic"] = traffic
    write_atomically(path, (json.dumps(summary, indent=1) + "\n").encode())
    return traffic


def _counted(listed: str) -> dict[str, dict[str, int]]:
    """Read run -> its bytes, from what ``flwr list`` printed."""
    try:
        runs: list[dict[str, Any]] = json.loads(listed)["runs"]
        found = {str(run["run-id"]): run["network-traffic"] for run in runs}
        return {
            name: {"inbound_bytes": int(t["inbound-bytes"]), "outbound_bytes": int(t["outbound-bytes"])}
            for name, t in found.items()
        }
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"that is not what flwr list --format json prints: {error!r}") from None
