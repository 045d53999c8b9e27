"""Some of many, evenly spread and always the same: the sample that needs no seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(places: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of them, evenly spread, the first and the last among them."""
    if len(places) <= count:
        return list(places)
    return [places[index] for index in np.linspace(0, len(places) - 1, count).round().astype(int)]
