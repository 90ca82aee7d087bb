"""Who is compared: families of methods, each from few bytes to many, and the settings that all are tuned over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import gradwire as gw
from gradwire.federated.algorithms import fedavg, fedavgm


class Setting(NamedTuple):
    """What is tuned of a method.

    Attributes:
        step: the server's learning rate.
        kind: where momentum is: ``none``, ``client`` (in front of the compressor), ``server`` or ``correction``.
        mu: the momentum.
        gain: of client momentum, or None for the mean.
    """

    step: float
    kind: str = "none"
    mu: float = 0.0
    gain: float | None = None

    @property
    def algorithm(self) -> str:
        """The server's side of it, as experiments write it."""
        if self.kind == "server":
            return str(fedavgm(self.mu, self.step))
        return str(fedavg(self.step))

    def __str__(self) -> str:
        momentum = "no momentum" if self.kind == "none" else f"{self.kind} {self.mu:g}"
        gain = "" if self.gain is None else f", gain {self.gain:g}"
        return f"{momentum}{gain}, step {self.step:g}"


PLAIN = Setting(1.0)
STEPS = (0.5, 1.0, 2.0)
MOMENTA = (
    ("none", 0.0, None),
    ("client", 0.8, None),
    ("client", 0.9, None),
    ("client", 0.8, 0.5),
    ("server", 0.5, None),
    ("server", 0.8, None),
    ("correction", 0.5, None),
    ("correction", 0.9, None),
)
SETTINGS = tuple(Setting(step, *momentum) for momentum in MOMENTA for step in STEPS)


@dataclass(frozen=True)
class Entry:
    """A method at one level of bytes.

    Attributes:
        family: what it is called.
        level: the spec without feedback and momentum.
        feedback: the wrapper it is used with, ``ef`` or ``ef21``, or none.
    """

    family: str
    level: str
    feedback: str = ""

    @property
    def names(self) -> tuple[str, str]:
        """What results call it."""
        return self.family, self.level

    def settings(self) -> tuple[Setting, ...]:
        """What it can be tuned over.

        Momentum correction has a residual of its own, in the place of ``ef``'s. What needs the clients' mean as it is
        takes neither another step nor momentum at the server.
        """
        mean = gw.parse(self.level).needs_mean
        return tuple(
            s
            for s in SETTINGS
            if (s.kind != "correction" or self.feedback == "ef") and (not mean or s.algorithm == PLAIN.algorithm)
        )

    def spec(self, setting: Setting) -> str:
        """The compressor, as experiments write it."""
        if setting.kind == "correction":
            return str(gw.parse(f"momentum_correction({self.level}, {setting.mu!r})"))
        inner = f"{self.feedback}({self.level})" if self.feedback else self.level
        if setting.kind == "client":
            return str(gw.parse(f"momentum({inner}, {setting.mu!r}, gain={setting.gain!r})"))
        return str(gw.parse(inner))


@dataclass(frozen=True)
class Family:
    """Methods that differ in nothing but how much they send.

    Attributes:
        name: what it is called.
        levels: specs, from few bytes to many, the most usual one first.
        feedback: as ``Entry``'s.
    """

    name: str
    levels: tuple[str, ...]
    feedback: str = ""

    def entries(self) -> tuple[Entry, ...]:
        """Its methods."""
        return tuple(Entry(self.name, level, self.feedback) for level in self.levels)


DENSE = Entry("dense", "dense()")

# a new family is a row: its first level is tuned before the second of any
FAMILIES = (
    Family(DENSE.family, (DENSE.level,)),
    Family("qsgd", ("qsgd(2)", "qsgd(1)", "qsgd(4)", "qsgd(8)")),
    Family("dither", tuple(f"dither(density={p}, golden=True)" for p in (0.002, 0.001, 0.004, 0.008))),
    Family("topk", tuple(f"topk({p}) | fractional(16)" for p in (0.01, 0.003, 0.001)), "ef"),
    Family("tcs", ("tcs(0.01, 0.001) | fractional(16)", "tcs(0.003, 0.0003) | fractional(16)"), "ef"),
    Family("rd", ("rd(10.0)", "rd(30.0)", "rd(3.0)"), "ef"),
    Family("ternary", ("ternary()",)),
    Family("ef21", ("topk(0.01) | fractional(16)", "topk(0.003) | fractional(16)"), "ef21"),
    Family("topk, signs", ("topk(0.01) | sign()", "topk(0.003) | sign()"), "ef"),
    Family("adaptopk", ("adaptopk(0.01) | fractional(16)", "adaptopk(0.003) | fractional(16)"), "ef"),
    Family("regtopk", ("regtopk(0.01) | fractional(16)", "regtopk(0.003) | fractional(16)"), "ef"),
    Family("powersgd", ("powersgd(1)", "powersgd(2)"), "ef"),
)


def entries(families: tuple[Family, ...] = FAMILIES) -> tuple[Entry, ...]:
    """All methods, in the order they are tuned in: the first of every family, then the second ones."""
    rows = [family.entries() for family in families]
    return tuple(row[i] for i in range(max(map(len, rows))) for row in rows if i < len(row))
