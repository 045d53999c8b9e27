"""Which windows are computed together: one rule that `export plan` measures and the embedded engine follows.

Calls wait in one line. A computation takes the first of them, and those behind it as long as they fit; nobody waits for
company. The script inside Triton (`export/triton_model.py`) stands alone and therefore says the same once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Padded tokens over real tokens of a computation, at most, where windows are sorted: padding is computed for nothing.
PADDING_BOUND = 1.25
# Engine calls that one request may have under way at a time, so that an article does not stand before all others.
PARALLEL_CALLS = 4


def taken(waiting: Iterable[int], windows: int) -> int:
    """How many of the waiting calls are computed next: at least the first, whatever its size.

    Args:
        waiting: windows of each call, in the order in which they came.
        windows: most windows of a computation.
    """
    count = room = 0
    for size in waiting:
        if count and size > room:
            break
        count, room = count + 1, (room if count else windows) - size
    return count


def groups(lengths: Sequence[int], windows: int, by_length: bool) -> list[list[int]]:
    """Cuts windows into computations of at most ``windows``, each padded to its longest; as indexes.

    Args:
        lengths: tokens of each window.
        by_length: windows of like length come together, and a group ends where padding would pass `PADDING_BOUND`;
            otherwise they stay in their order and are padded as they come.
    """
    if not by_length:
        return [list(range(start, min(start + windows, len(lengths)))) for start in range(0, len(lengths), windows)]
    found: list[list[int]] = []
    real = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[index]
        room = bool(found) and len(found[-1]) < windows
        if room and (len(found[-1]) + 1) * length <= PADDING_BOUND * (real + length):
            found[-1].append(index)
            real += length
        else:
            found.append([index])
            real = length
    return found
