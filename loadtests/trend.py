"""Whether a series of samples is flat: the slope that most pairs agree on, and whether there is one at all.

Theil–Sen's slope (the median over all pairs, Sen 1968) does not mind single spikes; Mann–Kendall's test says how likely
so many pairs point one way by chance. Samples that follow each other are alike, so the test alone finds trends too
easily: what it finds must also be large enough to matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Only what happens less often than this by chance is a trend.
CHANCE = 0.01


def slope_of(times: Sequence[float], values: Sequence[float]) -> float:
    """Theil–Sen's slope: change of value per unit of time."""
    first, second = np.triu_indices(len(times), 1)
    t, v = np.asarray(times, dtype=float), np.asarray(values, dtype=float)
    return float(np.median((v[second] - v[first]) / (t[second] - t[first]))) if len(first) else 0.0


def chance_of(values: Sequence[float]) -> float:
    """Mann–Kendall: two-sided probability of so clear an order by chance, with ties counted."""
    v = np.asarray(values, dtype=float)
    n = len(v)
    first, second = np.triu_indices(n, 1)
    score = float(np.sign(v[second] - v[first]).sum())
    _, ties = np.unique(v, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0 or score == 0:
        return 1.0
    z = (abs(score) - 1) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def trend(
    times: Sequence[float], values: Sequence[float], allowed_per_hour: float, floor: float = 0.0
) -> dict[str, object]:
    """Judges a series.

    Args:
        times: seconds.
        allowed_per_hour: rise per hour that does not matter, as a share of the median.
        floor: rise over the whole series that does not matter, in the unit of the values; of a short series, a single
            step of a pool would otherwise be a steep slope.

    Returns:
        the slope per hour, as a share of the median and with its unit; the probability; whether the series is flat.
        One that falls is flat, too: nothing grows.
    """
    middle = float(np.median(np.asarray(values))) if len(values) else 0.0
    slope, chance = slope_of(times, values) * 3600, chance_of(values)
    share = slope / middle if middle else 0.0
    rise = slope / 3600 * (times[-1] - times[0]) if len(times) else 0.0
    return {
        "median": round(middle, 2),
        "slope_per_hour": round(slope, 3),
        "slope_share_per_hour": round(share, 4),
        "chance": round(chance, 4),
        "allowed_share_per_hour": allowed_per_hour,
        "allowed_in_all": floor,
        "flat": chance >= CHANCE or share <= allowed_per_hour or rise <= floor,
    }
