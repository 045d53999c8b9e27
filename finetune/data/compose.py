"""Short rows → lessons for long texts: sentences joined to documents, and text that tells nothing.

A model that has only seen single sentences is worse at a window full of them, and one that has only seen text that
tells something believes that every window does. Both are mended in training, on windows of the length that serving
reads. What is measured stays as it is: dev, test and the TF-IDF baseline never see these rows.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from bundle.rows import SEPARATOR, Entity, Row, join_rows

# Marks the place of a row in the neutral text around it.
TELLING = "telling"
# Code points of a long row that are enough to tell its label.
ENOUGH = 40
# Share of the other hidden rows that stand at the very beginning of their text; a place drawn evenly would almost never
# be that, and a model that has not seen them there is unsure of them.
AT_START = 0.3


def join(rows: Sequence[Row], share: float, characters: int, seed: int) -> list[Row]:
    """Joins a share of the tagged rows, in their order, to documents of at most ``characters`` code points.

    A row that is longer alone stays as it is, as do rows without entities to shift.
    """
    dice = random.Random(f"{seed}/join")
    result: list[Row] = []
    open_: list[Row] = []
    length = 0

    def close() -> None:
        nonlocal length
        if open_:
            result.append(join_rows(open_)[0])
        open_.clear()
        length = 0

    for row in rows:
        if row.entities is None or row.label is not None or dice.random() >= share:
            result.append(row)
            continue
        if open_ and length + len(SEPARATOR) + len(row.text) > characters:
            close()
        open_.append(row)
        length += len(row.text) + (len(SEPARATOR) if len(open_) > 1 else 0)
    close()
    return result


def hide(
    rows: Sequence[Row],
    neutral: Sequence[str],
    share: float,
    characters: int,
    seed: int,
    *,
    shortest: int = 0,
    at_end: float = 0.3,
) -> list[Row]:
    """Sets a share of the rows into longer neutral text, where most windows tell nothing.

    A model that answers evenly where nothing is told lets the window that tells something decide ("outlier exposure",
    Hendrycks et al. 2019).

    Args:
        neutral: texts that tell nothing of the labels.
        share: 0 to 1, of the rows.
        characters: code points of neutral text around a row, at most.
        shortest: at least.
        at_end: 0 to 1, share of the hidden rows that stand at the very end of their text; of the others `AT_START` at
            the very beginning and the rest anywhere.

    Returns:
        as many rows; the hidden ones have an entity `TELLING` where the row itself stands.
    """
    dice = random.Random(f"{seed}/hide")

    def some(length: int) -> str:
        words = ""
        while len(words) < length:
            words += (SEPARATOR if words else "") + dice.choice(neutral)
        start = dice.randrange(len(words) - length + 1)
        return words[start : start + length]

    result: list[Row] = []
    for row in rows:
        if dice.random() >= share:
            result.append(row)
            continue
        length = dice.randint(shortest, characters)
        before = _before(length, at_end, dice)
        head, tail = some(before), some(length - before)
        text = (head + SEPARATOR if head else "") + row.text + (SEPARATOR + tail if tail else "")
        start = len(head) + len(SEPARATOR) if head else 0
        result.append(replace(row, text=text, entities=(Entity(start, start + len(row.text), TELLING),)))
    return result


def _before(length: int, at_end: float, dice: random.Random) -> int:
    """How many of the neutral code points stand before a row."""
    if dice.random() < at_end:
        return length
    return 0 if dice.random() < AT_START else dice.randint(0, length)


def plain(rows: Iterable[Row]) -> list[Row]:
    """Hidden rows as rows that anyone may read: without the mark of the place."""
    return [replace(row, entities=None) for row in rows]


def tells(row: Row, start: int, end: int) -> bool:
    """Whether the code points ``[start, end)`` of a lesson hold enough of what tells its label.

    Half of it, or `ENOUGH` code points; a row that was not hidden tells everywhere.
    """
    return not row.entities or any(
        2 * (shared := min(end, item.end) - max(start, item.start)) >= item.end - item.start or shared >= ENOUGH
        for item in row.entities
    )
