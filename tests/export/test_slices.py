"""Losses that count and losses that do not: by class, by length, of each kind of task; on rows made here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.encode import Encoded, Window
from bundle.manifest import Joining, Task, bio_labels
from bundle.predict import Predicted
from bundle.rows import Entity, Row
from export.slices import FEW, Comparison, Slice, Tolerance, compare_forms, tail

CLASSES = Task(kind="single-label", labels=("bad", "fine", "good"))
TAGS = Task(kind="token-classification", labels=bio_labels(("LOC", "PER")))
MANY = Task(kind="multi-label", labels=("bad", "fine", "good"))
BOTH = Task(kind="multi-task", labels=CLASSES.labels, token_labels=TAGS.labels)
ENDS = (16, 64)


def encoded(tokens: int) -> Encoded:
    spans = np.stack([np.arange(tokens), np.arange(tokens) + 1], axis=1)
    window = Window(0, tokens, 0, tokens)
    nothing = np.zeros(0, np.int64)
    return Encoded("x" * tokens, np.zeros(tokens, np.int64), spans, (window,), tokens, False, nothing, False, False)


def one_hot(labels: Sequence[int], width: int, strength: float = 3.0) -> np.ndarray:
    return np.eye(width, dtype=np.float32)[list(labels)] * strength


def said(answers: Sequence[int], tokens: int = 10, strength: float = 3.0) -> list[Predicted]:
    return [Predicted(encoded(tokens), [values]) for values in one_hot(answers, 3, strength)]


def rows_of(answers: Sequence[int]) -> list[Row]:
    return [Row("x", CLASSES.labels[answer]) for answer in answers]


def compare(
    rows: Sequence[Row],
    before: Sequence[Predicted],
    after: Sequence[Predicted],
    task: Task = CLASSES,
    tolerance: Tolerance | None = None,
) -> Comparison:
    return compare_forms(rows, before, after, task, Joining(), ENDS, tolerance or Tolerance())


def part(found: Comparison, group: str, name: str, head: str = "") -> Slice:
    (item,) = [item for item in found.slices if (item.group, item.name, item.head) == (group, name, head)]
    return item


def flipped(answers: Sequence[int], places: Sequence[int], to: int) -> list[int]:
    return [to if place in places else answer for place, answer in enumerate(answers)]


GOLD = [0] * 13 + [1] * 187 + [2] * 200


def test_equal_forms_pass_with_every_class_and_length_listed() -> None:
    found = compare(rows_of(GOLD), said(GOLD), said(GOLD))
    assert found.reasons == [] and not found.changed.any()
    assert [item.name for item in found.slices] == ["", "bad", "fine", "good", "1-16"]
    assert [item.rows for item in found.slices] == [400, 13, 187, 200, 400]


def test_one_changed_row_of_a_class_of_13_refuses_nothing_though_macro_f1_falls_by_more_than_the_tolerance() -> None:
    found = compare(rows_of(GOLD), said(GOLD), said(flipped(GOLD, [3], 1)))
    whole = part(found, "all", "")
    assert whole.before - whole.after > 0.01
    assert part(found, "class", "bad").changed == 1
    assert found.reasons == []


def test_a_class_that_is_lost_is_named_even_where_all_rows_together_pass() -> None:
    """Half of a small class of a large split: 0.35% of all rows."""
    gold = [0] * 14 + [1] * 986 + [2] * 1000
    found = compare(rows_of(gold), said(gold), said(flipped(gold, range(7), 1)), tolerance=Tolerance(max_drop=0.2))
    assert part(found, "all", "").failed == []
    assert found.reasons == [
        "class bad: f1 falls by 33.33 points (1.0000 to 0.6667); 20 are allowed",
        "class bad: 7 of 14 rows are answered otherwise; 1.0% may be",
    ]
    assert np.flatnonzero(found.failing).tolist() == list(range(14))


def test_losses_everywhere_are_told_in_few_sentences() -> None:
    labels = tuple(f"label {n}" for n in range(40))
    rows = [Row("x", labels[n % 40]) for n in range(400)]
    logits = one_hot([n % 40 for n in range(400)], 40)
    before = [Predicted(encoded(10), [values]) for values in logits]
    after = [Predicted(encoded(10), [values]) for values in np.roll(logits, 1, axis=1)]
    found = compare(rows, before, after, Task(kind="single-label", labels=labels))
    assert len(found.reasons) == 7 and found.reasons[-1].endswith(" more losses of classes and lengths")
    assert sum(bool(item.failed) for item in found.slices) == 42


def test_a_length_that_is_lost_is_named() -> None:
    gold = [1, 2] * 500
    before = [item for n, answer in enumerate(gold) for item in said([answer], 10 if n < 970 else 70)]
    wrong = said(flipped(gold, range(980, 989), 0))
    after = [replace(old, logits=new.logits) for old, new in zip(before, wrong, strict=True)]
    found = compare(rows_of(gold), before, after)
    assert any(reason.startswith("texts of over 64 tokens: accuracy falls by 30.00 points") for reason in found.reasons)
    assert not any(reason.startswith("texts of 1-16 tokens") for reason in found.reasons)
    assert part(found, "all", "").changed == 9


def test_a_real_loss_of_macro_f1_is_refused_with_both_figures() -> None:
    found = compare(rows_of(GOLD), said(GOLD), said(flipped(GOLD, range(20, 50), 2)))
    first, second = part(found, "all", "").failed
    assert first.startswith("macro_f1 falls by 5.") and first.endswith("; 1 are allowed")
    assert second == "92.50% of the 400 dev rows are answered as fp32 does; 99.00% are needed"


def test_changed_answers_are_refused_even_if_the_score_rises() -> None:
    wrong = flipped(GOLD, range(20, 40), 2)
    found = compare(rows_of(GOLD), said(wrong), said(GOLD))
    assert "95.00% of the 400 dev rows are answered as fp32 does; 99.00% are needed" in found.reasons
    assert not any("falls" in reason for reason in found.reasons)


def test_a_dev_split_of_40_rows_does_not_fall_by_two_of_them_and_says_that_it_proves_little() -> None:
    gold = [0, 1, 2, 1] * 10
    assert compare(rows_of(gold), said(gold), said(flipped(gold, [3, 7], 2))).reasons == []
    found = compare(rows_of(gold), said(gold), said(flipped(gold, [3, 7, 11], 2)))
    assert "92.50% of the 40 dev rows are answered as fp32 does; 99.00% are needed" in found.reasons
    assert found.notes == [
        f"40 rows cannot show that 99.00% are answered alike: fewer than {FEW} changed rows are not counted against it"
    ]


def test_who_asks_for_every_answer_to_be_the_same_gets_that() -> None:
    gold = [0, 1, 2, 1] * 10
    found = compare(rows_of(gold), said(gold), said(flipped(gold, [3], 2)), tolerance=Tolerance(1, 1))
    assert "97.50% of the 40 dev rows are answered as fp32 does; 100.00% are needed" in found.reasons
    assert compare(rows_of(gold), said(gold), said(gold), tolerance=Tolerance(1, 1)).reasons == []


def test_logits_that_are_doubled_keep_every_label_and_are_refused_for_their_confidence() -> None:
    found = compare(rows_of(GOLD), said(GOLD, strength=2.0), said(GOLD, strength=4.0))
    assert part(found, "all", "").changed == 0
    assert any(reason.startswith("the mean confidence moves from 0.787 to 0.965") for reason in found.reasons)
    assert any("of their spread" in reason for reason in found.reasons)


def test_a_confidence_that_is_less_right_is_refused_for_its_calibration_error() -> None:
    wrong = flipped(GOLD, range(0, 200, 2), 2)  # 0.787 sure, 0.75 right
    found = compare(rows_of(GOLD), said(wrong, strength=2.0), said(wrong, strength=3.5))
    assert any(reason.startswith("the calibration error rises from ") for reason in found.reasons)


def test_a_multi_label_task_is_cut_by_label_and_by_exact_match() -> None:
    gold = [(0,), (0, 2), (), (2,)] * 50
    rows = [Row("x", labels=tuple(MANY.labels[n] for n in labels)) for labels in gold]
    logits = np.array([[3.0 if n in labels else -3.0 for n in range(3)] for labels in gold], np.float32)
    before = [Predicted(encoded(10), [values]) for values in logits[:, None].reshape(-1, 3)]
    worse = logits.copy()
    worse[1::4, 2] = -3
    found = compare(rows, before, [Predicted(encoded(10), [values]) for values in worse], MANY)
    assert part(found, "class", "good").changed == 50 and part(found, "class", "bad").changed == 0
    assert part(found, "class", "good").before == 1 and part(found, "class", "good").after == pytest.approx(2 / 3)
    assert part(found, "length", "1-16").figure == "exact_match" and part(found, "length", "1-16").after == 0.75
    assert "fine" not in [item.name for item in found.slices], "a label that nobody gives has no figures"
    assert any(reason.startswith("class good: f1 falls by 33.33 points") for reason in found.reasons)


def tags(path: Sequence[int]) -> np.ndarray:
    return one_hot(path, 5)


def test_a_tagger_is_cut_by_entity_type() -> None:
    rows = [Row("x" * 6, entities=(Entity(0, 2, "LOC"), Entity(3, 5, "PER")))] * 100
    right, lost = [1, 2, 0, 3, 4, 0], [1, 2, 0, 0, 0, 0]
    before = [Predicted(encoded(6), [tags(right)]) for _ in rows]
    after = [Predicted(encoded(6), [tags(lost if n < 20 else right)]) for n in range(100)]
    found = compare(rows, before, after, TAGS)
    assert part(found, "class", "PER").changed == 20 and part(found, "class", "LOC").changed == 0
    assert part(found, "class", "PER").after == pytest.approx(2 * 80 / 180)
    assert part(found, "all", "").figure == "f1"
    assert any(reason.startswith("class PER: 20 of 100 rows") for reason in found.reasons)
    assert not any(reason.startswith("class LOC") for reason in found.reasons)
    assert part(found, "class", "LOC").ece[0] == part(found, "class", "LOC").ece[1]


def test_two_heads_are_judged_each_on_the_rows_that_tell_it() -> None:
    rows = [Row("x" * 6, "good") if n % 2 else Row("x" * 6, entities=(Entity(0, 2, "LOC"),)) for n in range(200)]
    before = [Predicted(encoded(6), [one_hot([2], 3)[0]], [tags([1, 2, 0, 0, 0, 0])]) for _ in rows]
    # The articles' entities change, which nobody asked for; the sentences' label as well.
    after = [
        Predicted(encoded(6), [one_hot([2 if n % 2 else 0], 3)[0]], [tags([0] * 6 if n % 2 else [1, 2, 0, 0, 0, 0])])
        for n in range(200)
    ]
    found = compare(rows, before, after, BOTH)
    assert found.reasons == [] and not found.changed.any()
    assert [(item.head, item.rows) for item in found.slices if item.group == "all"] == [
        ("labels", 100),
        ("entities", 100),
    ]
    after[0] = replace(after[0], token_logits=[tags([3, 4, 0, 0, 0, 0])])
    assert np.flatnonzero(compare(rows, before, after, BOTH).changed).tolist() == [0]


@given(st.integers(1, 300), st.integers(0, 300), st.floats(0, 1))
def test_the_tail_is_a_chance_that_falls_with_the_count(rows: int, changed: int, share: float) -> None:
    changed = min(changed, rows)
    value = tail(rows, changed, share)
    assert 0 <= value <= 1
    assert tail(rows, max(0, changed - 1), share) >= value - 1e-9


def test_the_tail_of_one_in_thirteen_and_of_three_in_three() -> None:
    assert tail(13, 1, 0.01) == pytest.approx(1 - 0.99**13)
    assert tail(3, 3, 0.1) == pytest.approx(0.001)


def test_logits_that_are_no_numbers_are_refused() -> None:
    after = said(GOLD)
    after[7] = replace(after[7], logits=[np.full(3, np.nan, np.float32)])
    found = compare(rows_of(GOLD), said(GOLD), after)
    assert any("of their spread" in reason for reason in found.reasons)
