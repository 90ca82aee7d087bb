"""Specs: text <-> compressor. A spec is the Python expression that builds the compressor, read, never run."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from gradwire.compressor import Compressor
from gradwire.errors import ConfigError, nearest

__all__ = ["parse"]

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
    if not isinstance(text, str):
        raise ConfigError(f"a spec is text, got {type(text).__name__}")
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"a spec has at most {_MAX_LENGTH} characters, got {len(text)}")
    source = text.strip()
    try:
        tree = ast.parse(source, mode="eval")
    except SyntaxError as error:
        raise _at(source, (error.offset or 1) - 1, error.msg or "cannot be read") from None
    except (ValueError, RecursionError, MemoryError):
        raise ConfigError(f"spec {source[:60]!r}: cannot be read") from None
    built = _build(tree.body, source, 0)
    if not isinstance(built, Compressor):
        raise _at(source, 0, f"a spec is a call such as topk(0.01), got {built!r}")
    return built


def _build(node: ast.expr, source: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise _at(source, node.col_offset, f"nested more than {_MAX_DEPTH} deep")
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _build(node.left, source, depth + 1), _build(node.right, source, depth + 1)
        for side, value in ((node.left, left), (node.right, right)):
            if not isinstance(value, Compressor):
                raise _at(source, side.col_offset, f"'|' joins stages, got {value!r}")
        try:
            return left | right
        except ConfigError as error:
            raise _at(source, node.right.col_offset, str(error)) from None
    if isinstance(node, ast.Call):
        return _call(node, source, depth)
    if isinstance(node, ast.Name):
        hint = f"; write {node.id}(...)" if node.id in Compressor.registry else nearest(node.id, Compressor.registry)
        raise _at(source, node.col_offset, f"{node.id!r} is not a stage call{hint}")
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise _at(source, node.col_offset, "expected a stage call, a number, a text, None, True or False") from None


def _call(node: ast.Call, source: str, depth: int) -> Compressor:
    if not isinstance(node.func, ast.Name):
        raise _at(source, node.col_offset, "expected the name of a stage")
    name = node.func.id
    stage = Compressor.registry.get(name)
    if stage is None:
        raise _at(source, node.col_offset, f"unknown stage {name!r}{nearest(name, Compressor.registry)}")
    parameters = inspect.signature(stage).parameters
    variadic = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for argument in node.args:
        if isinstance(argument, ast.Starred):
            raise _at(source, argument.col_offset, "'*' is not allowed in a spec")
    for keyword in node.keywords:
        if keyword.arg is None:
            raise _at(source, keyword.value.col_offset, "'**' is not allowed in a spec")
        if keyword.arg not in parameters and not variadic:
            raise _at(
                source,
                keyword.col_offset,
                f"{name} has no parameter {keyword.arg!r}{nearest(keyword.arg, parameters)}; "
                f"it takes {', '.join(parameters)}",
            )
    args = [_build(a, source, depth + 1) for a in node.args]
    kwargs = {str(k.arg): _build(k.value, source, depth + 1) for k in node.keywords}
    try:
        inspect.signature(stage).bind(*args, **kwargs)
    except TypeError as error:
        raise _at(source, node.col_offset, f"{name}: {error}; it takes {', '.join(parameters)}") from None
    try:
        return stage(*args, **kwargs)
    except ConfigError as error:
        raise _at(source, node.col_offset, str(error)) from None


def _at(source: str, column: int, reason: str) -> ConfigError:
    """An error that points at a character of the spec."""
    shown = source if len(source) <= 120 else f"{source[:117]}..."
    return ConfigError(f"{reason} (character {column + 1} of {shown!r})")
