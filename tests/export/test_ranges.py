"""The ways to choose the range of an activation, on values whose right range is known."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.manifest import Calibration
from export.ranges import divergence, grid, least_divergence, ranges


@pytest.mark.parametrize("how", get_args(Calibration))
def test_every_way_keeps_an_even_tensor_nearly_whole(how: Calibration) -> None:
    even = np.random.default_rng(1).uniform(-2, 3, 50_000).astype(np.float32)
    for low, high in ranges(even, float(even.min()), float(even.max()), how):
        assert low < -1.9 and high > 2.9


def test_min_max_takes_the_whole_range_even_with_an_outlier_that_the_others_cut() -> None:
    values = np.append(np.random.default_rng(2).normal(size=100_000).astype(np.float32), np.float32(40))
    (whole,) = ranges(values, float(values.min()), 40.0, "min-max")
    assert whole[1] == 40
    for how in ("entropy", "percentile"):
        ((_, high),) = ranges(values, float(values.min()), 40.0, how)
        assert high < 20, how


def test_a_percentile_leaves_the_outermost_values_out() -> None:
    values = np.arange(100_001, dtype=np.float32)
    ((low, high),) = ranges(values, 0.0, 100_000.0, "percentile")
    assert (low, high) == pytest.approx((10, 99_990))


def test_bins_in_which_everything_is_clipped_diverge_more() -> None:
    counts, _ = np.histogram(np.random.default_rng(3).normal(size=50_000), 2048, (-4, 4))
    assert divergence(counts, 0, 2048) < divergence(counts, 900, 1100)
    assert divergence(counts * 0, 0, 2048) == float("inf")


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 50))
def test_the_least_divergence_lies_inside_the_whole_range(seed: int, size: float) -> None:
    values = (np.random.default_rng(seed).normal(size=500) * size).astype(np.float32)
    low, high = least_divergence(values, float(values.min()), float(values.max()))
    assert values.min() <= low <= high <= values.max()
    assert grid(low, high)[0] > 0
