"""The federated system: tasks, partitions, local training, simulation.

``own_task`` and ``simulate`` train your own model and data from a script: docs/tutorial.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradwire.federated.data.own import own_task
    from gradwire.federated.start import Results, simulate

__all__ = ["Results", "own_task", "simulate"]


def __getattr__(name: str) -> Any:
    """Import what a script needs when it asks for it: torch and the report, which settings can be read without."""
    if name == "own_task":
        from gradwire.federated.data.own import own_task

        return own_task
    if name in ("Results", "simulate"):
        from gradwire.federated import start

        return getattr(start, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
