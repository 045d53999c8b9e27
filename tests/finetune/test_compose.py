"""Lessons for long texts: what is joined and hidden stays true to the rows it came from."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.rows import Entity, Row
from finetune.data.compose import hide, join, plain, tells

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
@given(st.floats(0, 1), st.integers(0, 300), st.integers(0, 99))
def test_a_hidden_row_keeps_its_label_and_its_place_is_known(share: float, characters: int, seed: int) -> None:
    lessons = hide(REVIEWS, NEUTRAL, share, characters, seed)
    for row, lesson in zip(REVIEWS, lessons, strict=True):
        assert lesson.label == "好"
        if lesson.entities is None:
            assert lesson == row
        else:
            ((start, end, _),) = lesson.spans
            assert lesson.text[start:end] == row.text
            assert len(lesson.text) <= len(row.text) + characters + 2
            rest = lesson.text[:start] + lesson.text[end:]
            assert "很好" not in rest


def test_hidden_rows_often_stand_at_the_beginning_or_the_end() -> None:
    spans = [(lesson, lesson.spans[0]) for lesson in hide(REVIEWS * 20, NEUTRAL, 1.0, 300, 1)]
    first = sum(start == 0 for _, (start, _, _) in spans) / len(spans)
    last = sum(end == len(lesson.text) for lesson, (_, end, _) in spans) / len(spans)
    assert 0.1 < first < 0.35 and 0.2 < last < 0.45
    assert all(row.entities is None for row in plain(lesson for lesson, _ in spans))


def test_neutral_text_around_a_row_is_as_long_as_is_asked() -> None:
    for lesson in hide(REVIEWS * 5, NEUTRAL, 1.0, 300, 1, shortest=200):
        start, end, _ = lesson.spans[0]
        assert 200 <= len(lesson.text) - (end - start) <= 302  # a separator on either side


def test_a_window_tells_if_it_holds_enough_of_the_row() -> None:
    lesson = Row("甲" * 100 + "很好" * 10 + "乙" * 100, "好", entities=(Entity(100, 120, "telling"),))
    assert tells(lesson, 50, 110) and tells(lesson, 110, 200) and tells(lesson, 0, 220)
    assert not tells(lesson, 0, 100) and not tells(lesson, 50, 109) and not tells(lesson, 120, 220)
    assert tells(Row("很好", "好"), 0, 1)
    long = Row("很好" * 100, "好", entities=(Entity(0, 200, "telling"),))
    assert tells(long, 0, 40) and not tells(long, 161, 200)
