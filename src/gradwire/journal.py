"""Journal: how to undo what was changed in place, where something later fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

__all__ = ["Journal"]

K = TypeVar("K")
T = TypeVar("T")


class Journal:
    """Actions that put memory back as it was, each noted before the change that it takes back.

    An action may be run whether its change was made, made in part or not at all, and more than once: so an undo that
    was itself interrupted can be run again.

    Example:
        >>> from gradwire.journal import Journal
        >>> journal, numbers, names = Journal(), [1, 2], {"a": 1}
        >>> journal.append(numbers, 3)
        >>> journal.put(names, "b", 2)
        >>> numbers, names
        ([1, 2, 3], {'a': 1, 'b': 2})
        >>> journal.undo()
        >>> numbers, names
        ([1, 2], {'a': 1})
    """

    def __init__(self) -> None:
        self._actions: list[Callable[[], object]] = []

    def note(self, action: Callable[[], object]) -> None:
        """Note how to take back what is about to be changed."""
        self._actions.append(action)

    def note_fields(self, holder: object) -> None:
        """Note what an object's fields are: those that are set to others, not what they hold."""
        self.note(partial(vars(holder).update, dict(vars(holder))))

    def append(self, items: list[T], item: T) -> None:
        """Append to a list."""
        self.note(partial(items.__delitem__, slice(len(items), None)))
        items.append(item)

    def put(self, items: dict[K, T], key: K, item: T) -> None:
        """Put something into a dict."""
        self.note(partial(items.__setitem__, key, items[key]) if key in items else partial(items.pop, key, None))
        items[key] = item

    def undo(self) -> None:
        """Take all back, the last change first, and forget it."""
        while self._actions:
            self._actions[-1]()
            self._actions.pop()

    def clear(self) -> None:
        """Forget how: what was done stays done."""
        self._actions.clear()
