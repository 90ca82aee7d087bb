"""Named: values that text names, such as stages, algorithms and budgets. One way to print and to read them.

The text of a value is the Python call that builds an equal one. It is read with ``ast``, never run.
"""

from __future__ import annotations

import ast
import inspect
import math
import warnings
from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar, TypeVar

from gradwire.errors import ConfigError, nearest

__all__ = ["Named", "read"]

_MAX_LENGTH = 10_000
_MAX_DEPTH = 50

Kind = TypeVar("Kind", bound="Named")


class Named(ABC):
    """A frozen value whose ``str`` is the text that builds an equal one.

    A kind of values is a direct subclass that says its word and an example; all below it whose names are lower-case
    can be used in text. Those are frozen dataclasses whose fields are their parameters: fields without a default are
    printed by position, others by name where they differ from it. A field whose metadata says ``keywords`` holds pairs
    of a name and a value, which are printed as keywords of their own: what ``**`` of its ``__init__`` was given.

    Attributes:
        kind: the word for one of these, for instance ``"stage"``.
        example: a call, for messages about text that is none.
        must_say: names of class attributes that no class in text leaves empty.
        joins: whether ``a | b`` builds one.
        registry: name -> class of every one of this kind.
        summary: what it does, in a few words.
        citation: where it is from.

    Raises:
        ConfigError: when a class is made that lacks something, or whose name another has.

    Example:
        >>> from dataclasses import dataclass
        >>> from gradwire.named import Named, read
        >>> class Shape(Named, kind="shape", example="disc(1.0)", must_say=()):
        ...     pass
        >>> @dataclass(frozen=True, repr=False)
        ... class disc(Shape):
        ...     radius: float
        ...     filled: bool = True
        >>> disc(2.0, filled=False)
        disc(2.0, filled=False)
        >>> read("disc(radius=2.0, filled=False)", Shape) == disc(2.0, False)
        True
    """

    kind: ClassVar[str]
    example: ClassVar[str]
    must_say: ClassVar[tuple[str, ...]]
    joins: ClassVar[bool] = False
    registry: ClassVar[dict[str, type[Any]]]
    summary: ClassVar[str] = ""
    citation: ClassVar[str] = ""

    def __init_subclass__(
        cls,
        kind: str | None = None,
        example: str = "",
        must_say: tuple[str, ...] = ("summary", "citation"),
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if kind is not None:
            cls.kind, cls.example, cls.must_say, cls.registry = kind, example, must_say, {}
        elif cls.__name__.islower() and not cls.__name__.startswith("_"):
            _register(cls)

    def __str__(self) -> str:
        parts: list[str] = []
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if f.metadata.get("keywords", False):
                parts += [f"{name}={_text(each)}" for name, each in value]
                continue
            if f.default is not MISSING and value == f.default:
                continue
            positional = f.default is MISSING or f.metadata.get("positional", False)
            parts.append(_text(value) if positional else f"{f.name}={_text(value)}")
        return f"{type(self).__name__}({', '.join(parts)})"

    __repr__ = __str__


def _register(cls: type[Named]) -> None:
    """Take a class into its kind's registry, or refuse it with what it lacks."""
    name = cls.__name__
    there = cls.registry.get(name)
    if there is not None and (there.__module__, there.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ConfigError(f"{cls.kind} {name!r} is there already, in {there.__module__}: choose another name")
    missing = [f"{method}()" for method in _abstract_methods(cls)]
    missing += [attribute for attribute in cls.must_say if not getattr(cls, attribute)]
    if missing:
        raise ConfigError(
            f"{cls.kind} {name!r} lacks {', '.join(missing)}; a class that is to stay a base has a capital letter"
        )
    cls.registry[name] = cls


def _abstract_methods(cls: type) -> list[str]:
    """Names of the methods that are still to be written; ``ABCMeta`` itself knows them only after the class is made."""
    names = {name for base in cls.__mro__ for name in vars(base).get("__abstractmethods__", ())} | set(vars(cls))
    return sorted(name for name in names if getattr(getattr(cls, name, None), "__isabstractmethod__", False))


def _text(value: object) -> str:
    if isinstance(value, Named):
        return str(value)
    if isinstance(value, float) and math.isinf(value):
        return "1e309" if value > 0 else "-1e309"  # no literal is infinity
    return repr(value)


def read(text: str, kind: type[Kind]) -> Kind:
    """Build the value that a text names.

    Args:
        text: the Python expression that builds it.
        kind: the class that stands for its kind: what has the registry.

    Returns:
        The value; ``read(str(value), kind) == value``.

    Raises:
        ConfigError: on a text that cannot be read, a name that is not there or a parameter out of range; the message
            points at the character.

    Example:
        >>> import gradwire as gw
        >>> from gradwire.named import read
        >>> read("topk(density=0.01)", gw.Compressor)
        topk(0.01)
    """
    if not isinstance(text, str):
        raise ConfigError(f"a spec is text, got {type(text).__name__}")
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"a spec has at most {_MAX_LENGTH} characters, got {len(text)}")
    source = _Source(text, kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python would say of a literal is not about the spec
            tree = ast.parse(source.code, mode="eval")
    except SyntaxError as error:
        raise source.error(error.lineno or 1, None, error.msg or "cannot be read", error.offset) from None
    except (ValueError, RecursionError, MemoryError):
        raise ConfigError(f"spec {text[:60]!r}: cannot be read") from None
    built = _build(tree.body, source, 0)
    if not isinstance(built, kind):
        raise source.at(tree.body, f"a spec is a call such as {kind.example}, got {_short(built)}")
    return built


class _Source:
    """A spec's text, what may be called in it, and errors that point into it."""

    def __init__(self, text: str, kind: type[Named]) -> None:
        self.base = kind
        self.kind = kind.kind
        self.registry: Mapping[str, type] = kind.registry
        self.a_kind = f"{'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind}"
        self.text = text
        self.code = text.strip()
        self._skipped = len(text) - len(text.lstrip())

    def hint(self, name: str) -> str:
        """What to do about a name that is not there."""
        if any(cls.__name__ == name for cls in _below(self.base)):
            return f": names in text are lower-case, class {name} is not"
        return nearest(name, self.registry)

    def at(self, node: ast.expr | ast.keyword, reason: str) -> ConfigError:
        """An error that points at where a node starts."""
        return self.error(node.lineno, node.col_offset, reason)

    def error(self, line: int, num_bytes: int | None, reason: str, column: int | None = None) -> ConfigError:
        """An error at a line (1-based) and a byte offset (0-based), or a column in characters (1-based)."""
        lines = self.code.splitlines(keepends=True)
        before = sum(map(len, lines[: line - 1]))
        if num_bytes is not None:
            inside = len(lines[line - 1].encode()[:num_bytes].decode(errors="ignore")) if line <= len(lines) else 0
        else:
            inside = max(0, (column or 1) - 1)
        shown = self.text if len(self.text) <= 120 else f"{self.text[:117]}..."
        return ConfigError(f"{reason} (character {self._skipped + before + inside + 1} of {shown!r})")


def _below(base: type) -> Iterator[type]:
    below: list[type] = base.__subclasses__()
    for cls in below:
        yield cls
        yield from _below(cls)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _build(node: ast.expr, source: _Source, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise source.at(node, f"nested more than {_MAX_DEPTH} deep")
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _build(node.left, source, depth + 1), _build(node.right, source, depth + 1)
        for side, value in ((node.left, left), (node.right, right)):
            if not isinstance(value, source.base) or not source.base.joins:
                raise source.at(side, f"'|' joins stages, got {_short(value)}")
        try:
            return left | right
        except ConfigError as error:
            raise source.at(node.right, str(error)) from None
    if isinstance(node, ast.Call):
        return _call(node, source, depth)
    if isinstance(node, ast.Name):
        hint = f"; write {node.id}(...)" if node.id in source.registry else source.hint(node.id)
        raise source.at(node, f"{node.id!r} is not {source.a_kind} call{hint}")
    try:
        value = ast.literal_eval(node)
        if isinstance(value, int) and abs(value) >= 2**64:
            raise source.at(node, "integers must be below 2^64")
        return value
    except ConfigError:
        raise
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise source.at(node, f"expected {source.a_kind} call, a number, a text, None, True or False") from None


def _call(node: ast.Call, source: _Source, depth: int) -> Any:
    if not isinstance(node.func, ast.Name):
        raise source.at(node, f"expected the name of {source.a_kind}")
    name = node.func.id
    called = source.registry.get(name)
    if called is None:
        raise source.at(node, f"unknown {source.kind} {name!r}{source.hint(name)}")
    if not getattr(getattr(called, "__dataclass_params__", None), "frozen", False):
        raise source.at(node, f"{name} must be a frozen dataclass: write @dataclass(frozen=True, repr=False) above it")
    parameters = inspect.signature(called).parameters
    variadic = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for argument in node.args:
        if isinstance(argument, ast.Starred):
            raise source.at(argument, "'*' is not allowed in a spec")
    given = [keyword.arg for keyword in node.keywords]
    for number, keyword in enumerate(node.keywords):
        if keyword.arg in given[:number]:
            raise source.at(keyword, f"{name} is given {keyword.arg!r} twice")
        if keyword.arg is None:
            raise source.at(keyword.value, "'**' is not allowed in a spec")
        if keyword.arg not in parameters and not variadic:
            raise source.at(
                keyword,
                f"{name} has no parameter {keyword.arg!r}{nearest(keyword.arg, parameters)}; "
                f"it takes {', '.join(parameters)}",
            )
    args = [_build(a, source, depth + 1) for a in node.args]
    kwargs = {str(k.arg): _build(k.value, source, depth + 1) for k in node.keywords}
    try:
        inspect.signature(called).bind(*args, **kwargs)
    except TypeError as error:
        raise source.at(node, f"{name}: {error}; it takes {', '.join(parameters)}") from None
    try:
        return called(*args, **kwargs)
    except ConfigError as error:
        raise source.at(node, str(error)) from None
