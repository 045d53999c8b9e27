"""Short rows → lessons for long texts: sentences joined to documents, and text that tells nothing.

A model that has only seen single sentences is worse at a window full of them, and one that has only seen text that
tells something believes that every window does. Both are mended in training, on windows of the length that serving
reads. What is measured stays as it is: dev, test and the TF-IDF baseline never see these rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from bundle.rows import Row

# As between the lines of a news text; tokenizers drop it.
SEPARATOR = "\n"
# Neutral text beside a row is at least so long, code points; less would teach nothing.
LEAST = 10


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
            result.append(_document(open_))
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


def _document(rows: Sequence[Row]) -> Row:
    entities, start = [], 0
    for row in rows:
        entities += [replace(item, start=item.start + start, end=item.end + start) for item in row.entities or ()]
        start += len(row.text) + len(SEPARATOR)
    return Row(SEPARATOR.join(row.text for row in rows), entities=tuple(entities))


def hide(rows: Sequence[Row], neutral: Sequence[str], share: float, characters: int, seed: int) -> list[Row]:
    """Puts neutral text around a share of the rows, and adds as many rows of neutral text alone, without a label.

    A model that answers evenly where nothing is told lets the window that tells something decide ("outlier exposure",
    Hendrycks et al. 2019).

    Args:
        neutral: texts that tell nothing of the labels.
        share: 0 to 1, of the rows.
        characters: code points of a lesson, at most; a row that leaves less than `LEAST` of them stays as it is.
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
        room = characters - len(row.text) - 2 * len(SEPARATOR)
        if dice.random() >= share or room < LEAST or row.pair is not None:
            result.append(row)
            continue
        length = dice.randint(LEAST, room)
        before = dice.randint(0, length)
        parts = (some(before), row.text, some(length - before))
        result.append(replace(row, text=SEPARATOR.join(part for part in parts if part)))
    silent = [some(dice.randint(characters // 2, characters)) for _ in range(round(share * len(rows)))]
    return result + [Row(text) for text in silent if text.strip()]
