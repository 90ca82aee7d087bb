"""Going on with other settings: which changes what was run already allows, and which it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradwire.compressors.spec import parse
from gradwire.errors import ConfigError
from gradwire.federated.experiment import Experiment

__all__ = ["Begun", "check_unchanged"]

_MAX_SHOWN = 200


@dataclass(frozen=True)
class Begun:
    """A run of which there is something already.

    Attributes:
        label: what tells it from the others of its experiment.
        seed: its seed.
        rounds_done: how many.
        complete: whether it reached its end; the state of such a run is not kept.
    """

    label: str
    seed: int
    rounds_done: int
    complete: bool


def check_unchanged(before: Experiment, now: Experiment, begun: Sequence[Begun], source: str) -> None:
    """Check that what was run is what these settings ask for, as far as it goes.

    Seeds and whole runs may be added, and the data may lie elsewhere. The number of rounds of a run under way may be
    changed, where nothing in its rounds so far depends on it.

    Args:
        before: the settings it was run with.
        now: the settings it is to go on with.
        begun: what was run of it.
        source: where the latter are from, for the error.

    Raises:
        ConfigError: on any other change, naming the setting, and what it was and is.
    """
    earlier = {variant.label: variant.experiment for variant in before.variants()}
    later = {variant.label: variant.experiment for variant in now.variants()}
    for run in begun:
        old, new = earlier.get(run.label, before), later.get(run.label, now)
        if run.label not in later or run.seed not in now.seeds:
            old, new = before, now
        for name in Experiment.model_fields:
            was, is_now = getattr(old, name), getattr(new, name)
            if was == is_now or name == "data_dir" or (name == "seeds" and run.seed in now.seeds):
                continue
            reason = _why_not(name, run, new)
            if reason is not None:
                raise ConfigError(
                    f"{source}: {name} was {_shown(was)} and is {_shown(is_now)}, but {run.label}, seed {run.seed}, "
                    f"{reason}; put it back, or start a new run with --out"
                )


def _why_not(name: str, run: Begun, new: Experiment) -> str | None:
    """Why a setting of a run cannot be changed any more; None where it can."""
    if run.complete:
        return "is finished, and the state of finished runs is not kept"
    if name != "rounds":
        return f"is under way after {run.rounds_done} rounds"
    if new.rounds <= run.rounds_done:
        return f"has {run.rounds_done} rounds behind it already"
    scheduled = _scheduled_by_length(new)
    return None if scheduled is None else f"depends on it from its first round on: {scheduled}"


def _scheduled_by_length(e: Experiment) -> str | None:
    """What makes early rounds depend on how many there are; None where nothing does."""
    if e.schedule != "constant":
        return f"schedule {e.schedule}"
    if e.milestones:
        return f"milestones {e.milestones}"
    roads = [e.methods[0], e.downlink, e.forward if e.regions else None, e.algorithm.road]
    return next((text for text in roads if text is not None and parse(text).uses_num_rounds), None)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
