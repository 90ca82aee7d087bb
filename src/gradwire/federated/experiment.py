"""Experiment: everything that decides a run, checked, and its TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gradwire.aggregation.text import parse_aggregation
from gradwire.compressors.compressor import Compressor
from gradwire.compressors.spec import parse
from gradwire.errors import BackendUnavailable, ConfigError, nearest
from gradwire.federated.algorithms import parse_algorithm
from gradwire.federated.data.partition import parse_partition
from gradwire.federated.data.tasks import find_row
from gradwire.federated.network.budgets import parse_budget
from gradwire.federated.network.links import parse_links
from gradwire.federated.paths import with_whole_paths
from gradwire.federated.settings import Settings
from gradwire.federated.together import check_needs, check_together
from gradwire.files.text import read_text

try:
    import tomli_w
    from pydantic import ValidationError
except ImportError as error:
    raise BackendUnavailable(
        f"experiments need pydantic and tomli_w, got {error}: pip install 'gradwire[sim]'"
    ) from error

__all__ = ["Experiment", "Variant", "read_settings"]

_SWEPT = ("methods", "algorithms", "links", "budgets")  # each a list; a run takes one of each
_SHARED = ("data", "data_dir", "device", "seeds", "runs")  # the same for all runs of a file


@dataclass(frozen=True)
class Variant:
    """One run of an experiment but for its seed.

    Attributes:
        label: what tells it from the others of its experiment; the method's text where that is enough.
        experiment: its settings: one method, algorithm, kind of links and budget.
    """

    label: str
    experiment: Experiment

    @property
    def compressor(self) -> Compressor:
        """The method."""
        return parse(self.experiment.methods[0])


class Experiment(Settings):
    """One comparison: methods, algorithms and links on the same task, clients, rounds and seeds.

    Its attributes are those of ``Settings``, and go together.
    """

    @classmethod
    def build(cls, values: dict[str, Any], source: str = "experiment") -> Experiment:
        """Check settings and make an experiment of them.

        Args:
            values: name -> value; names left out take their defaults.
            source: where they come from, for the error.

        Returns:
            The experiment; its methods are in the text ``str(compressor)`` gives.

        Raises:
            ConfigError: on the first setting that cannot be used, or that no run reads.
        """
        return cls._build(values, source, values)

    @classmethod
    def _build(cls, values: dict[str, Any], source: str, own: dict[str, Any]) -> Experiment:
        """``build``, where of all values some are a run's own: of those it reads every one."""
        unknown = next((k for k in values if k not in cls.model_fields), None)
        if unknown is not None:
            raise ConfigError(
                f"{source}: unknown setting {unknown!r}{nearest(unknown, cls.model_fields)} "
                f"(settings: {', '.join(cls.model_fields)})"
            )
        try:
            made = cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            reason = first["msg"][:1].lower() + first["msg"][1:]
            raise ConfigError(f"{source}: {name}: {reason}, got {first['input']!r}") from None
        try:
            made.toml().encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{source}: data_dir must be Unicode text, got {made.data_dir!r}") from None
        find_row(made.data)
        shares = made.milestones
        if not all(0 < share < 1 for share in shares) or sorted(set(shares)) != shares:
            raise ConfigError(f"{source}: milestones must be increasing shares in (0, 1), got {shares}")
        if made.warmup_rounds > made.rounds:
            raise ConfigError(f"{source}: warmup_rounds must be at most rounds {made.rounds}, got {made.warmup_rounds}")
        bad_seed = next((s for s in made.seeds if not 0 <= s < 2**63 or made.seeds.count(s) > 1), None)
        if bad_seed is not None:
            raise ConfigError(f"{source}: seeds must be integers in [0, 2^63), each given once; got {made.seeds}")
        made = made.model_copy(update=_canonical(made, source))
        if not made.runs:  # else each of them is checked; what is outside they only have in common
            check_together(made, source)
        variants = made.variants(source)
        check_needs(own, made, [variant.experiment for variant in variants], source)
        labels = [variant.label for variant in variants]
        repeated = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
        if repeated is not None:
            raise ConfigError(f"{source}: run {repeated!r} is there twice; name one of them")
        return made

    @classmethod
    def read(cls, path: Path) -> Experiment:
        """Read an experiment's TOML file.

        Args:
            path: the file: settings as ``name = value`` lines; paths in it begin at its folder.

        Returns:
            The experiment.

        Raises:
            ConfigError: when the file is missing, is no TOML or holds a setting that cannot be used.
        """
        return cls.build(read_settings(path), str(path))

    def variants(self, source: str = "experiment") -> list[Variant]:
        """Return every run the experiment asks for but for the seeds, in the order they are run.

        Raises:
            ConfigError: on a table of ``runs`` that cannot be used.
        """
        if not self.runs:
            return list(self._product(""))
        common = self.model_dump(exclude={"runs"}, exclude_unset=True)
        found: list[Variant] = []
        for number, table in enumerate(self.runs, start=1):
            where = f"{source}: run {number}"
            shared = next((name for name in table if name in _SHARED), None)
            if shared is not None:
                raise ConfigError(f"{where}: {shared} is the same for all runs, set it outside of them")
            run = Experiment._build(common | table, where, table)
            found += run._product(" · ".join(f"{k} {v}" for k, v in table.items() if k not in (*_SWEPT, "name")))
        return found

    def _product(self, changed: str) -> Iterator[Variant]:
        """One of each list of settings, in every combination."""
        for chosen in product(*(getattr(self, name) for name in _SWEPT)):
            one = dict(zip(_SWEPT, chosen, strict=True))
            told = [one["methods"]]
            told += [one[n] for n in _SWEPT[1:] if len(getattr(self, n)) > 1 or n in self._unusual()]
            if self.name is not None:
                several = [one[n] for n in _SWEPT if len(getattr(self, n)) > 1]
                told = [self.name, *several]
            elif changed:
                told.append(changed)
            settings = self.model_dump(exclude={"runs"}) | {name: [value] for name, value in one.items()}
            yield Variant(" · ".join(told), Experiment(**settings))

    def _unusual(self) -> list[str]:
        return [name for name in _SWEPT if getattr(self, name) != Experiment.model_fields[name].default]

    def toml(self) -> str:
        """Return the experiment as a TOML file that ``read`` takes; settings left at None are left out."""
        return tomli_w.dumps({k: v for k, v in self.model_dump().items() if v is not None and (k != "runs" or v)})


def _canonical(made: Experiment, source: str) -> dict[str, Any]:
    """Settings that are texts of their own, read and written in their one form."""
    readers = {
        "methods": parse,
        "algorithms": parse_algorithm,
        "links": parse_links,
        "budgets": parse_budget,
        "downlink": parse,
        "forward": parse,
        "region_link": parse_links,
        "aggregation": parse_aggregation,
        "partition": parse_partition,
    }
    found: dict[str, Any] = {}
    for name, read in readers.items():
        value = getattr(made, name)
        texts = [str(read(text)) for text in ([value] if isinstance(value, str) else value)]
        repeated = next((text for i, text in enumerate(texts) if text in texts[:i]), None)
        if repeated is not None:
            raise ConfigError(f"{source}: {name.removesuffix('s')} {repeated} is given twice")
        found[name] = texts[0] if isinstance(value, str) else texts
    return found


def read_settings(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings, with a byte order mark or without; paths in it begin at its folder.

    Raises:
        ConfigError: when it is missing or is no TOML.
    """
    try:
        return with_whole_paths(tomllib.loads(read_text(path).replace("\r\n", "\n")), path.parent)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # what tomllib raises on anything but TOML
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
