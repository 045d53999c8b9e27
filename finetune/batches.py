"""Which window of which row stands in which batch: the whole run, planned before it starts.

A plan that depends on the seed alone makes a run repeatable and lets an interrupted one resume at any step. Rows of
like length share a batch, so that little is padded ("length-grouped" batches).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

# Batches whose rows are sorted by length together: longer stretches pad less and shuffle less.
GROUP = 16

Item = tuple[int, int]  # (row, window)


def plan(
    lengths: Sequence[Sequence[int]],
    *,
    epochs: float,
    batch: int,
    windows: Literal["first", "random", "head-heavy"],
    seed: int,
    head_share: float = 0.5,
    telling: Mapping[int, Sequence[int]] | None = None,
    telling_share: float = 0.0,
) -> list[list[Item]]:
    """Plans all batches of a run.

    Args:
        lengths: per row, the tokens of each of its windows.
        epochs: passes over the rows; in each pass a row gives one window.
        batch: windows in a batch.
        windows: which one. ``head-heavy`` takes the first with probability ``head_share``, else any: titles and
            leads tell most.
        telling: row → its windows that tell its label, of rows where most windows tell nothing. With the probability
            ``telling_share`` a pass reads one of those, else what ``windows`` says.

    Returns:
        batches in order, at least one.
    """
    generator = random.Random(seed)
    batches: list[list[Item]] = []
    whole = int(epochs)
    for number in range(whole + (epochs > whole)):
        items = []
        for row, own in enumerate(lengths):
            known = telling.get(row) if telling else None
            if known and generator.random() < telling_share:
                items.append((row, generator.choice(known)))
            else:
                items.append((row, _pick(len(own), windows, head_share, generator)))
        generator.shuffle(items)
        if number == whole:  # the last, partial pass
            items = items[: max(1, round((epochs - whole) * len(items)))]
        one_pass: list[list[Item]] = []
        for start in range(0, len(items), batch * GROUP):
            stretch = sorted(items[start : start + batch * GROUP], key=lambda item: lengths[item[0]][item[1]])
            one_pass += [stretch[place : place + batch] for place in range(0, len(stretch), batch)]
        generator.shuffle(one_pass)
        batches += one_pass
    return batches


def _pick(count: int, windows: str, head_share: float, generator: random.Random) -> int:
    if count == 1 or windows == "first" or (windows == "head-heavy" and generator.random() < head_share):
        return 0
    return generator.randrange(count)
