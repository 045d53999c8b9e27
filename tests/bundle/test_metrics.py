"""Our figures are scikit-learn's and seqeval's."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.decode import spans_of
from bundle.manifest import Task, bio_labels
from bundle.metrics import accuracy, best_threshold, confusion, entity_scores, label_scores, macro_f1, per_class
from bundle.predict import agreement, judged
from bundle.rows import Row
from tests.properties import cases

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)
LABELS = bio_labels(["PER", "LOC"])


@cases(100)
@given(PAIRS)
def test_classification_figures_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

    gold, answer = [a for a, _ in pairs], [b for _, b in pairs]
    table = confusion(gold, answer, 4)
    rows = per_class(table, list("abcd"))
    assert accuracy(table) == pytest.approx(accuracy_score(gold, answer))
    options = {"labels": range(4), "zero_division": 0}
    assert macro_f1(rows) == pytest.approx(f1_score(gold, answer, average="macro", **options))
    reference = np.array(precision_recall_fscore_support(gold, answer, **options))
    found = np.array([[row.precision, row.recall, row.f1, row.support] for row in rows]).T
    np.testing.assert_allclose(found, reference)


LABEL_SETS = st.lists(st.tuples(*[st.sets(st.sampled_from("abc"))] * 2), min_size=1, max_size=20)


@cases(150)
@given(LABEL_SETS)
def test_multi_label_figures_are_those_of_scikit_learn(rows: list[tuple[set[str], set[str]]]) -> None:
    from sklearn.metrics import precision_recall_fscore_support

    gold, found = (np.array([[label in row[side] for label in "abc"] for row in rows]) for side in (0, 1))
    table = label_scores([sorted(row[0]) for row in rows], [sorted(row[1]) for row in rows], list("abc"))
    reference = np.array(precision_recall_fscore_support(gold, found, zero_division=0)).T
    np.testing.assert_allclose([[row.precision, row.recall, row.f1, row.support] for row in table[:3]], reference)
    micro = precision_recall_fscore_support(gold, found, average="micro", zero_division=0)
    assert (table[3].label, table[3].support) == ("micro", gold.sum())
    np.testing.assert_allclose((table[3].precision, table[3].recall, table[3].f1), micro[:3])


def f1_of(scores: np.ndarray, gold: np.ndarray, threshold: float) -> float:
    found = scores >= threshold
    return float(2 * (found & gold).sum() / max(found.sum() + gold.sum(), 1))


SCORED = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1, width=32), st.booleans()),
    min_size=1,
    max_size=12,
)


@cases(1200)
@given(SCORED)
def test_the_best_threshold_is_the_best_of_all_and_the_nearest_to_one_half(rows: list[tuple[float, bool]]) -> None:
    scores, gold = np.array([row[0] for row in rows], dtype=np.float32), np.array([row[1] for row in rows])
    found = best_threshold(scores, gold)
    assert 0 < found <= 1
    if not gold.any():
        assert found == 0.5
        return
    # Half way between two neighbouring scores, or between the lowest and nothing; a millionth is the least.
    steps = sorted({0.0, *(float(score) for score in scores)})
    middles = [(low + high) / 2 for low, high in pairwise(steps) if low + high >= 2e-6]
    best = max((f1_of(scores, gold, middle) for middle in middles), default=0)
    assert f1_of(scores, gold, found) == pytest.approx(best)
    equals = [middle for middle in middles if f1_of(scores, gold, middle) >= best - 1e-9]
    assert not equals or abs(found - 0.5) == pytest.approx(min(abs(middle - 0.5) for middle in equals))


PATHS = st.lists(st.integers(0, 4), min_size=1, max_size=25)


@cases(150)
@given(st.lists(st.tuples(PATHS, PATHS), min_size=1, max_size=5))
def test_entity_figures_are_those_of_seqeval(documents: list[tuple[list[int], list[int]]]) -> None:
    from seqeval.metrics import f1_score, precision_score, recall_score
    from seqeval.scheme import IOB2

    gold_tags, answer_tags, gold, answer = [], [], [], []
    for left, right in documents:
        size = min(len(left), len(right))
        paths = [_legal(path[:size]) for path in (left, right)]
        gold_tags.append([LABELS[label] for label in paths[0]])
        answer_tags.append([LABELS[label] for label in paths[1]])
        gold.append(spans_of(np.array(paths[0]), LABELS))
        answer.append(spans_of(np.array(paths[1]), LABELS))
    micro = entity_scores(gold, answer)[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
        assert micro.precision == pytest.approx(precision_score(gold_tags, answer_tags, **options))
        assert micro.recall == pytest.approx(recall_score(gold_tags, answer_tags, **options))
        assert micro.f1 == pytest.approx(f1_score(gold_tags, answer_tags, **options))


def _legal(path: list[int]) -> list[int]:
    fixed: list[int] = []
    for label in path:
        previous = fixed[-1] if fixed else 0
        fixed.append(label if label % 2 or not label or previous in (label, label - 1) else 0)
    return fixed


def test_an_entity_of_the_wrong_type_or_length_is_no_hit() -> None:
    rows = entity_scores([[(0, 2, "PER")]], [[(0, 2, "LOC"), (0, 3, "PER")]])
    assert {row.label: row.f1 for row in rows} == {"LOC": 0.0, "PER": 0.0, "micro": 0.0}


def test_a_multi_task_row_judges_only_the_part_of_an_answer_that_it_tells() -> None:
    task = Task(kind="multi-task", labels=("no", "yes"), token_labels=LABELS)
    rows = [Row("x", "yes"), Row("x", entities=()), Row("x", "no", entities=())]
    left = [(1, ((0, 1, "PER"),)), (0, ()), (0, ())]
    right = [(1, ()), (1, ()), (0, ((0, 1, "PER"),))]
    assert agreement(judged(rows, left, task), judged(rows, right, task)) == pytest.approx(2 / 3)
    single = Task(kind="single-label", labels=("no", "yes"))
    assert judged(rows, [1, 0, 1], single) == [1, 0, 1]
