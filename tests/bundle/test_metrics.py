"""Our figures are scikit-learn's and seqeval's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.decode import spans_of
from bundle.manifest import bio_labels
from bundle.metrics import accuracy, confusion, entity_scores, macro_f1, per_class
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
