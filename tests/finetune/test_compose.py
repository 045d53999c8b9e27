"""Lessons for long texts: what is joined and hidden stays true to the rows it came from."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.rows import Entity, Row
from finetune.data.compose import hide, join

SENTENCES = [Row(f"{n}张三在北京。", entities=(Entity(len(str(n)), len(str(n)) + 2, "PER"),)) for n in range(60)]
REVIEWS = [Row(f"{n}很好", "好") for n in range(60)]
NEUTRAL = ["中新社记者今天报道", "会议在上海召开"]


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.integers(1, 120), st.integers(0, 99))
def test_joined_sentences_keep_their_entities_and_none_is_lost(share: float, characters: int, seed: int) -> None:
    lessons = join(SENTENCES, share, characters, seed)
    assert sorted(line for row in lessons for line in row.text.split("\n")) == sorted(row.text for row in SENTENCES)
    for row in lessons:
        assert len(row.text) <= max(characters, 12)
        assert [row.text[start:end] for start, end, _ in row.spans] == ["张三"] * (row.text.count("\n") + 1)


def test_only_the_share_is_joined_and_the_same_seed_joins_the_same() -> None:
    assert join(SENTENCES, 0.0, 100, 1) == SENTENCES
    assert len(join(SENTENCES, 1.0, 100, 1)) < len(join(SENTENCES, 0.5, 100, 1)) < len(SENTENCES)
    assert join(SENTENCES, 0.5, 100, 1) == join(SENTENCES, 0.5, 100, 1) != join(SENTENCES, 0.5, 100, 2)


def test_rows_that_tell_a_label_are_not_joined() -> None:
    assert join(REVIEWS, 1.0, 100, 1) == REVIEWS


@settings(max_examples=200, deadline=None)
@given(st.floats(0.01, 1), st.integers(5, 120), st.integers(0, 99))
def test_a_hidden_row_keeps_its_label_and_neutral_text_has_none(share: float, characters: int, seed: int) -> None:
    lessons = hide(REVIEWS, NEUTRAL, share, characters, seed)
    told, silent = lessons[: len(REVIEWS)], lessons[len(REVIEWS) :]
    for row, lesson in zip(REVIEWS, told, strict=True):
        assert lesson.label == "好" and row.text in lesson.text.split("\n")
        assert lesson == row or len(lesson.text) <= characters
    assert all(row.label is None and 0 < len(row.text) <= characters and "很好" not in row.text for row in silent)
    assert len(silent) == round(share * len(REVIEWS))
