"""Journal: how to undo what was changed in place, where something later fails."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Journal"]


class Journal:
    """Actions that put memory back as it was, each noted before the change that it takes back.

    An action may be run whether its change was made, made in part or not at all, and more than once: so an undo that
    was itself interrupted can be run again.

    Example:
        >>> from gradwire.journal import Journal
        >>> journal, numbers = Journal(), [1, 2]
        >>> journal.note(lambda: numbers.__setitem__(0, 1))
        >>> numbers[0] = 5
        >>> journal.undo()
        >>> numbers
        [1, 2]
    """

    def __init__(self) -> None:
        self._actions: list[Callable[[], object]] = []

    def note(self, action: Callable[[], object]) -> None:
        """Note how to take back what is about to be changed."""
        self._actions.append(action)

    def undo(self) -> None:
        """Take all back, the last change first, and forget it."""
        while self._actions:
            self._actions[-1]()
            self._actions.pop()

    def clear(self) -> None:
        """Forget how: what was done stays done."""
        self._actions.clear()
