"""Specs: text <-> compressor, or what else is built by calls. A spec is the Python expression, read, never run."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from gradwire.compressors.compressor import Compressor
from gradwire.errors import ConfigError, nearest

__all__ = ["parse", "read_call"]

_MAX_LENGTH = 10_000
_MAX_DEPTH = 50


def parse(text: str) -> Compressor:
    """Build the compressor a spec describes.

    Args:
        text: for instance ``"ef(topk(0.01) | fp16())"``; ``str(compressor)`` of any compressor is one.

    Returns:
        The compressor; ``parse(str(c)) == c``.

    Raises:
        ConfigError: on a spec that cannot be read or a parameter out of range; the message points at the character.

    Example:
        >>> import gradwire as gw
        >>> gw.parse("ef(topk(0.01))") == gw.ef(gw.topk(0.01))
        True
    """
    built: Compressor = read_call(text, Compressor, Compressor.registry, "stage", "topk(0.01)")
    return built


def read_call(text: str, base: type, registry: Mapping[str, type], kind: str, example: str) -> Any:
    """Build what a spec describes, whatever kind of thing it is.

    Args:
        text: the Python expression that builds it.
        base: what it must be an instance of.
        registry: name -> class of everything that may be called.
        kind: the word for one of these, for instance ``"stage"``.
        example: a call, for the message about a text that is none.

    Returns:
        An instance of ``base``.

    Raises:
        ConfigError: on a spec that cannot be read or a parameter out of range; the message points at the character.

    Example:
        >>> from fractions import Fraction
        >>> from gradwire.compressors.spec import read_call
        >>> read_call("fraction(3, 6)", Fraction, {"fraction": Fraction}, "number", "fraction(1, 2)")
        Fraction(1, 2)
    """
    if not isinstance(text, str):
        raise ConfigError(f"a spec is text, got {type(text).__name__}")
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"a spec has at most {_MAX_LENGTH} characters, got {len(text)}")
    source = _Source(text, registry, kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python would say of a literal is not about the spec
            tree = ast.parse(source.code, mode="eval")
    except SyntaxError as error:
        raise source.error(error.lineno or 1, None, error.msg or "cannot be read", error.offset) from None
    except (ValueError, RecursionError, MemoryError):
        raise ConfigError(f"spec {text[:60]!r}: cannot be read") from None
    built = _build(tree.body, source, 0)
    if not isinstance(built, base):
        raise source.at(tree.body, f"a spec is a call such as {example}, got {_short(built)}")
    return built


class _Source:
    """A spec's text, what may be called in it, and errors that point into it."""

    def __init__(self, text: str, registry: Mapping[str, type], kind: str) -> None:
        self.registry = registry
        self.kind = kind
        self.a_kind = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
        self.text = text
        self.code = text.strip()
        self._skipped = len(text) - len(text.lstrip())

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


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _build(node: ast.expr, source: _Source, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise source.at(node, f"nested more than {_MAX_DEPTH} deep")
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _build(node.left, source, depth + 1), _build(node.right, source, depth + 1)
        for side, value in ((node.left, left), (node.right, right)):
            if not isinstance(value, Compressor):
                raise source.at(side, f"'|' joins stages, got {_short(value)}")
        try:
            return left | right
        except ConfigError as error:
            raise source.at(node.right, str(error)) from None
    if isinstance(node, ast.Call):
        return _call(node, source, depth)
    if isinstance(node, ast.Name):
        hint = f"; write {node.id}(...)" if node.id in source.registry else nearest(node.id, source.registry)
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
        raise source.at(node, f"unknown {source.kind} {name!r}{nearest(name, source.registry)}")
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
