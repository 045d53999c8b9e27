"""Which windows are computed together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bundle.batching import PADDING_BOUND, groups, taken

LENGTHS = st.lists(st.integers(1, 512), max_size=40)


def test_the_first_call_is_taken_whatever_its_size_and_others_as_long_as_they_fit() -> None:
    assert taken([], 8) == 0
    assert taken([20, 1], 8) == 1
    assert taken([3, 5, 1], 8) == 2
    assert taken([3, 6, 1], 8) == 1, "nobody overtakes"
    assert taken([1, 1, 1], 1) == 1


@given(LENGTHS, st.integers(1, 16), st.booleans())
def test_every_window_is_in_one_group_and_none_is_too_large(lengths: list[int], windows: int, by_length: bool) -> None:
    found = groups(lengths, windows, by_length)
    assert sorted(index for group in found for index in group) == list(range(len(lengths)))
    assert all(1 <= len(group) <= windows for group in found)


@given(LENGTHS, st.integers(1, 16))
def test_by_length_little_is_computed_for_padding(lengths: list[int], windows: int) -> None:
    for group in groups(lengths, windows, True):
        own = [lengths[index] for index in group]
        assert len(own) * max(own) <= PADDING_BOUND * sum(own)


def test_padded_windows_stay_in_their_order() -> None:
    assert groups([9, 1, 5, 2, 7], 2, False) == [[0, 1], [2, 3], [4]]
