"""Values that text names: printing, reading, and classes that are refused with what they lack."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from typing import ClassVar

import pytest

import gradwire as gw
from gradwire.aggregation import Aggregation
from gradwire.federated.algorithms import Algorithm
from gradwire.federated.network.budgets import Budget
from gradwire.named import Named, read


class Ingredient(Named, kind="ingredient", example="apple(3)"):
    """A kind of values made for these tests."""

    @abstractmethod
    def taste(self):
        """Say how it tastes."""


@dataclasses.dataclass(frozen=True, repr=False)
class apple(Ingredient):
    """Something to name in a text."""

    size: float = 1

    summary: ClassVar[str] = "a fruit"
    citation: ClassVar[str] = "Newton 1666"

    def __post_init__(self):
        if self.size < 1:
            raise gw.ConfigError(f"size must be 1 or more, got {self.size}")

    def taste(self):
        return "sweet"


def read_apple(text):
    return read(text, Ingredient)


def test_reads_any_kind():
    assert read_apple(" apple(size=3)") == apple(3)


@pytest.mark.parametrize("size", [1, 3, 2.5, math.inf])
def test_text_and_back(size):
    assert read_apple(str(apple(size))) == apple(size)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("appel(3)", "unknown ingredient 'appel'; did you mean 'apple'? (character 1 of 'appel(3)')"),
        ("apple", "'apple' is not an ingredient call; write apple(...) (character 1 of 'apple')"),
        ("3", "a spec is a call such as apple(3), got 3 (character 1 of '3')"),
        ("apple(size=0)", "size must be 1 or more, got 0 (character 1 of 'apple(size=0)')"),
        ("apple(sise=2)", "apple has no parameter 'sise'; did you mean 'size'?; it takes size (character 7 of"),
        ("apple(x.y)", "expected an ingredient call, a number, a text, None, True or False (character 7 of"),
        ("apple(1)(2)", "expected the name of an ingredient (character 1 of"),
        ("topk(0.1)", "unknown ingredient 'topk' (character 1 of"),
        ("apple() | apple()", "'|' joins stages, got "),
    ],
)
def test_errors_say_what_is_read(text, message):
    with pytest.raises(gw.ConfigError) as caught:
        read_apple(text)
    assert str(caught.value).startswith(message)


def test_kinds_keep_to_themselves():
    kinds = (gw.Compressor, Algorithm, Aggregation, Budget, Ingredient)
    assert len({id(kind.registry) for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert all(issubclass(cls, kind) and cls.__name__ == name for name, cls in kind.registry.items())


# --- classes that are refused ---------------------------------------------------------------------


def made(name, **attributes):
    """A class statement, as data."""
    return type(Ingredient)(
        name, (Ingredient,), {"__module__": __name__, "__qualname__": f"elsewhere.{name}", **attributes}
    )


SAID = {"summary": "a fruit", "citation": "Newton 1666", "taste": lambda self: "sour"}


@pytest.mark.parametrize("missing", ["taste", "summary", "citation"])
def test_a_half_built_class_is_refused_with_what_it_lacks(missing):
    with pytest.raises(gw.ConfigError, match=f"ingredient 'pear' lacks {missing}"):
        made("pear", **{name: value for name, value in SAID.items() if name != missing})
    assert "pear" not in Ingredient.registry


def test_all_that_is_lacking_is_said_at_once():
    with pytest.raises(gw.ConfigError, match=r"lacks taste\(\), summary, citation"):
        made("pear")


def test_a_second_class_of_one_name_is_refused():
    with pytest.raises(gw.ConfigError, match=r"ingredient 'apple' is there already, in .*test_named"):
        made("apple", **SAID)
    assert Ingredient.registry["apple"] is apple


def test_the_same_class_made_again_replaces_itself(monkeypatch):
    """As when a cell of a notebook is run again."""
    monkeypatch.setattr(Ingredient, "registry", dict(Ingredient.registry))
    again = made("apple", **SAID | {"__qualname__": "apple"})
    assert Ingredient.registry["apple"] is again


def test_a_capital_letter_makes_a_base_and_is_told():
    made("Pear", **SAID)
    assert "Pear" not in Ingredient.registry
    with pytest.raises(gw.ConfigError, match="'Pear': names in text are lower-case"):
        read_apple("Pear()")


def test_what_is_no_frozen_dataclass_cannot_be_read(monkeypatch):
    """Its text could not be printed, and two that are equal would not be the same."""
    monkeypatch.setattr(Ingredient, "registry", dict(Ingredient.registry))
    made("quince", **SAID)
    with pytest.raises(gw.ConfigError, match=r"quince must be a frozen dataclass: write @dataclass\(frozen=True"):
        read_apple("quince()")


def test_a_leading_underscore_keeps_a_class_out():
    made("_pear")
    assert "_pear" not in Ingredient.registry
