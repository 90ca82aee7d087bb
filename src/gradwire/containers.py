"""Containers: whatever users hold a model's arrays in <-> one dict of named arrays."""

from __future__ import annotations

from collections.abc import Hashable, ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwire.errors import GradwireError

__all__ = ["Container", "describe", "name_of", "named_arrays"]

_NUMBERS = (bool, int, float, complex)


@dataclass(frozen=True)
class Container:
    """How named arrays were held, so that others can be handed back alike.

    Attributes:
        kind: ``dict``, ``list``, ``tuple`` or a class of named tuples.
        entries: (key, name of the array there, or what is nested there), in order.

    Example:
        >>> from gradwire.containers import Container
        >>> Container(list, ((0, "0"), (1, "1"))).hold({"0": "first", "1": "second"})
        ['first', 'second']
    """

    kind: type
    entries: tuple[tuple[Hashable, str | Container], ...]

    @property
    def is_plain(self) -> bool:
        """Whether it is nothing but a dict from name to array."""
        return self.kind is dict and all(key == entry for key, entry in self.entries)

    def hold(self, arrays: Mapping[str, Any]) -> Any:
        """Put named arrays where such arrays were.

        Args:
            arrays: name -> array; what is missing there is left out of dicts, and None in lists and tuples.

        Returns:
            A container of this kind.
        """
        entries = [(k, e.hold(arrays) if isinstance(e, Container) else arrays.get(e)) for k, e in self.entries]
        if self.kind is dict:
            return {key: value for key, value in entries if value is not None}
        values = [value for _, value in entries]
        return self.kind(*values) if hasattr(self.kind, "_fields") else self.kind(values)


def named_arrays(arrays: Any, error: type[GradwireError]) -> tuple[dict[str, Any], Container]:
    """Name everything in a container.

    Keys of nested containers are joined by ``/``, as Flax and TensorFlow do; entries of lists are numbered.

    Args:
        arrays: a module (what has a ``state_dict()``), a mapping with text, integer or tuple keys, a list or tuple, an
            iterator of arrays or of (name, array) pairs; any of them in one another.
        error: what to raise.

    Returns:
        Name -> entry, which need not be an array, in order; and how they were held.

    Raises:
        GradwireError: of the class given, on anything else, on keys that give no name, and on two of one name.

    Example:
        >>> from gradwire import ConfigError
        >>> from gradwire.containers import named_arrays
        >>> list(named_arrays({"params": [{"w": "an array"}], 7: "another"}, ConfigError)[0])
        ['params/0/w', '7']
    """
    named: dict[str, Any] = {}
    opened = _opened(arrays)
    if opened is None:
        raise error(
            "a layout is made of a module, a dict name -> array, named_parameters(), or a list of arrays, "
            f"got {describe(arrays)}; {_instead(arrays)}"
        )
    return named, _walk(opened, None, named, error)


def name_of(key: Any) -> str | None:
    """Return the name a key gives: text as it is, integers in digits, members of a tuple joined; else None."""
    if isinstance(key, str):
        return str(key)
    if isinstance(key, (int, np.integer)):
        return str(int(key))
    if isinstance(key, tuple) and key:
        names = [name_of(member) for member in key]
        return None if None in names else "/".join(map(str, names))
    return None


def describe(value: Any) -> str:
    """Say what a value is, in a few words for an error."""
    if isinstance(value, (list, tuple)) and value:
        return f"a {type(value).__name__} of {type(value[0]).__name__}"
    if isinstance(value, _NUMBERS):
        return f"the {type(value).__name__} {value!r}"
    return "None" if value is None else type(value).__name__


def _walk(
    opened: tuple[type, list[tuple[Any, Any]]], prefix: str | None, named: dict[str, Any], error: type[GradwireError]
) -> Container:
    """Put what is in a container into ``named``, each name after the prefix."""
    kind, pairs = opened
    entries: list[tuple[Hashable, str | Container]] = []
    for key, value in pairs:
        own = name_of(key)
        if own is None:
            where = "" if prefix is None else f" in {prefix!r}"
            raise error(f"keys must be text, integers or tuples of them, got {key!r}{where}")
        name = own if prefix is None else f"{prefix}/{own}"
        inner = _opened(value)
        if inner is not None:
            entries.append((key, _walk(inner, name, named, error)))
            continue
        if name in named:
            raise error(f"two entries are named {name!r}: integer keys and joined ones must differ from the others")
        named[name] = value
        entries.append((key, name))
    return Container(kind, tuple(entries))


def _opened(value: Any) -> tuple[type, list[tuple[Any, Any]]] | None:
    """A container's kind and its (key, value) pairs; None for what is none, as a list of plain numbers."""
    if callable(getattr(value, "state_dict", None)) and not isinstance(value, type):
        value = value.state_dict()
    if isinstance(value, Mapping):
        return dict, list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value), list(zip(value._fields, value, strict=True))
    if isinstance(value, (Iterator, ItemsView, ValuesView)) and not hasattr(value, "read"):
        value = list(value)
    if not isinstance(value, (list, tuple)) or (value and all(isinstance(v, _NUMBERS) for v in value)):
        return None
    if value and all(isinstance(v, tuple) and len(v) == 2 and name_of(v[0]) is not None for v in value):
        return dict, list(value)
    return (list if isinstance(value, list) else tuple), list(enumerate(value))


def _instead(value: Any) -> str:
    """What to pass in place of what is no container."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return "give the array a name, as in {'weight': array}, or use Layout.flat(d) for a flat vector"
    if isinstance(value, (str, bytes)) or hasattr(value, "read") or hasattr(value, "__fspath__"):
        return "read the file first, with torch.load, numpy.load or safetensors"
    if hasattr(value, "variables"):
        return "pass {v.path: v for v in model.variables}"
    return "pass a dict name -> array"
