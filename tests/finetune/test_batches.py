"""The plan of a run reads every row in every pass, repeats for a seed, and pads little."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.batches import plan

LENGTHS = st.lists(st.lists(st.integers(1, 100), min_size=1, max_size=4), min_size=1, max_size=80)


@settings(max_examples=200)
@given(LENGTHS, st.integers(1, 3), st.integers(1, 9), st.sampled_from(["first", "random", "head-heavy"]))
def test_each_pass_reads_one_window_of_every_row(lengths: list[list[int]], epochs: int, batch: int, how: str) -> None:
    batches = plan(lengths, epochs=epochs, batch=batch, windows=how, seed=1)  # type: ignore[arg-type]
    counts = Counter(row for items in batches for row, _ in items)
    assert all(counts[row] == epochs for row in range(len(lengths)))
    assert all(0 <= window < len(lengths[row]) for items in batches for row, window in items)
    assert max(map(len, batches)) <= batch
    if how == "first":
        assert all(window == 0 for items in batches for _, window in items)


def test_a_seed_repeats_the_plan_and_another_seed_does_not() -> None:
    lengths = [[5, 6], [7], [3, 3, 3]] * 30
    first = plan(lengths, epochs=2, batch=4, windows="random", seed=1)
    assert first == plan(lengths, epochs=2, batch=4, windows="random", seed=1)
    assert first != plan(lengths, epochs=2, batch=4, windows="random", seed=2)


def test_windows_that_tell_are_drawn_as_often_as_is_asked_and_other_rows_as_before() -> None:
    lengths = [[5, 6, 7, 8, 9]] * 2000
    known = {row: [3] for row in range(0, 2000, 2)} | {1: []}
    always, half, never = (
        [item for items in plan(lengths, epochs=1, batch=8, windows="first", seed=1, telling=known, telling_share=share)
         for item in items]
        for share in (1.0, 0.5, 0.0)
    )  # fmt: skip
    assert all(window == (0 if row % 2 else 3) for row, window in always)
    assert all(window == 0 for row, window in half if row % 2) and all(window == 0 for _, window in never)
    assert 0.4 < sum(window == 3 for row, window in half if not row % 2) / 1000 < 0.6


def test_a_part_of_an_epoch_reads_a_part_of_the_rows() -> None:
    batches = plan([[9]] * 100, epochs=1.5, batch=10, windows="first", seed=1)
    assert sum(map(len, batches)) == 150


def test_rows_of_like_length_share_a_batch() -> None:
    lengths = [[1 + number % 100] for number in range(640)]
    batches = plan(lengths, epochs=1, batch=8, windows="first", seed=1)
    padded = sum(max(lengths[row][window] for row, window in items) * len(items) for items in batches)
    assert padded < 1.15 * sum(length for (length,) in lengths)
