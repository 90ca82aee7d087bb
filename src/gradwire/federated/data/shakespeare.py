"""Task shakespeare: what each speaker of tinyshakespeare says, cut into windows; the next character is the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from gradwire.errors import ConfigError
from gradwire.federated.data.files import DataFiles, read_packed
from gradwire.federated.data.task import Labels, Task, TaskRow, make_task

__all__ = ["CONTEXT_CHARACTERS", "SHAKESPEARE", "speaker_texts"]

CONTEXT_CHARACTERS = 64
_NAMES = ("input.txt", "tinyshakespeare.txt", "shakespeare.txt")


def speaker_texts(text: str) -> dict[str, str]:
    r"""Gather what each speaker of a play says.

    A block is what stands between blank lines; one whose first line is ``NAME:`` opens a turn of that
    speaker, any other continues the turn before it. What precedes the first speaker belongs to nobody and is
    left out. A speaker's text is the turns, without the names, joined by a newline.

    Args:
        text: the play.

    Returns:
        Text by speaker, in the order of first appearance; empty when no block names a speaker.

    Example:
        >>> speaker_texts("A:\nOne.\n\nB:\nTwo.\n\nA:\nThree.")
        {'A': 'One.\nThree.', 'B': 'Two.'}

    Source: arXiv:1602.05629 (a client a role).

    Deviations: tinyshakespeare does not name its plays, so roles of one name in several plays are one client.
    """
    turns: dict[str, list[str]] = {}
    current: list[str] | None = None
    for block in text.strip("\n").split("\n\n"):
        first, _, rest = block.lstrip("\n").partition("\n")
        if len(first) > 1 and first.find(":") == len(first) - 1:
            current = turns.setdefault(first[:-1], [])
            current.append(rest)
        elif current is not None:
            current.append(block)
    return {speaker: "\n".join(spoken) for speaker, spoken in turns.items()}


def _load(files: Mapping[str, Path]) -> Task:
    """Cut each speaker's text into windows; the vocabulary is the whole file's sorted characters (65)."""
    (path,) = files.values()
    try:
        text = read_packed(path).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(path)!r} is damaged, got {error}, expected UTF-8 text") from error
    number = {character: index for index, character in enumerate(sorted(set(text)))}
    speakers = speaker_texts(text)
    train: list[Labels] = []
    test: list[Labels] = []
    groups: list[int] = []
    for speaker, spoken in enumerate(speakers.values() if speakers else (text,)):
        symbols = np.array([number[character] for character in spoken], np.int64)
        cut = len(symbols) - len(symbols) // 10
        before = len(train)
        train.extend(_windows(symbols[:cut]))
        test.extend(_windows(symbols[cut:]))
        groups.extend([speaker] * (len(train) - before))
    if not train or not test:
        raise ConfigError(
            f"{str(path)!r} is too short, got {len(train)} training and {len(test)} held-out windows of "
            f"{CONTEXT_CHARACTERS} characters, expected one or more of each"
        )
    stacked, held_out = np.stack(train), np.stack(test)
    return make_task(
        SHAKESPEARE,
        (stacked[:, :-1], stacked[:, 1:]),
        (held_out[:, :-1], held_out[:, 1:]),
        "held-out tenth",
        len(number),
        np.array(groups, np.int64) if speakers else None,
    )


def _windows(symbols: Labels) -> Iterator[Labels]:
    """Yield each context with the character after it: 65 symbols, of which the last opens the next window."""
    for start in range(0, len(symbols) - CONTEXT_CHARACTERS, CONTEXT_CHARACTERS):
        yield symbols[start : start + CONTEXT_CHARACTERS + 1]


_FOLDERS = ("shakespeare", "tinyshakespeare", "shakespeare_char")

SHAKESPEARE = TaskRow(
    "shakespeare",
    _load,
    DataFiles(choices=tuple((name,) for name in _NAMES), folders=_FOLDERS),
    default_model="char_transformer",
    learning_rate=0.3,
)
