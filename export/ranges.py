"""Which range of an activation is represented in 8 bits: four ways to choose it from values of the calibration rows.

error       of the whole range and narrower ones, what changes the products least (the default)
min-max     the whole range
entropy     the range whose 256 steps tell most about the values: least Kullback-Leibler divergence between the
            clipped values and their quantized form (Migacz, 8-bit inference with TensorRT, 2017)
percentile  all but the outermost values: `TAIL` of them at either end are clipped
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.manifest import Calibration

Array = npt.NDArray[Any]
Range = tuple[float, float]

# Shares of the whole range that a narrower end is looked for at.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
# Share of the values that lie outside at either end.
TAIL = 1e-4
STEPS, BINS = 256, 2048


def grid(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of an unsigned 8-bit grid that holds [low, high] and zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / 255)) or 1.0
    return scale, int(np.clip(round(-low / scale), 0, 255))


def ranges(values: Array, low: float, high: float, how: Calibration) -> set[Range]:
    """The ranges that a way of calibration has to offer.

    Args:
        values: float32 (values,), a sample.
        low, high: the smallest and the largest of all values.
    """
    if how == "min-max":
        return {(low, high)}
    if how == "entropy":
        return {least_divergence(values, low, high)}
    if how == "percentile":
        bottom, top = np.quantile(values, [TAIL, 1 - TAIL])
        return {(float(bottom), float(top))}
    return {(low, high), least_error(values, low, high)}


def least_error(values: Array, low: float, high: float) -> Range:
    """The range in [low, high] whose 8-bit grid represents the values with the least squared error."""

    def error(bottom: float, top: float) -> float:
        scale, zero = grid(bottom, top)
        back = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
        return float(np.square(values - back).mean())

    top = min((high * share for share in SHARES), key=lambda value: error(low, value))
    bottom = min((low * share for share in SHARES), key=lambda value: error(value, top))
    return float(bottom), float(top)


def least_divergence(values: Array, low: float, high: float) -> Range:
    """The range in [low, high] that loses the least information; one end after the other."""
    if not high > low:
        return low, high
    counts, edges = np.histogram(values, BINS, (low, high))
    tops = [int(np.searchsorted(edges, high * share)) for share in SHARES] if high > 0 else [BINS]
    top = min(tops, key=lambda last: divergence(counts, 0, last))
    bottoms = [int(np.searchsorted(edges, low * share, "right")) - 1 for share in SHARES] if low < 0 else [0]
    bottom = min(bottoms, key=lambda first: divergence(counts, first, top))
    return float(edges[bottom]), float(edges[top])


def divergence(counts: npt.NDArray[np.int64], first: int, last: int) -> float:
    """Kullback-Leibler divergence, in nats, of 256 steps over some bins from the values clipped to those bins.

    Args:
        counts: int64 (bins,), how many values each bin of the whole range holds. The bins stay the same for every
            range, or a narrow one would be judged by the chance of its sparser bins.
        first, last: the bins ``[first, last)`` are represented.
    """
    inside = counts[first:last].astype(np.float64)
    if not inside.sum():
        return float("inf")
    clipped = inside.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    step = np.arange(len(inside)) * STEPS // len(inside)
    filled = inside > 0
    # Each step spreads what it holds over those of its bins that hold anything.
    held, bins = np.bincount(step, inside, STEPS), np.bincount(step, filled, STEPS)
    told = np.where(filled, (held / np.maximum(bins, 1))[step], 0.0)
    p, q = clipped / clipped.sum(), told / told.sum()
    some = p > 0
    return float((p[some] * np.log(p[some] / np.maximum(q[some], 1e-9))).sum())
