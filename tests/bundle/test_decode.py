"""Pooling, stitching and legal tag paths, each against a slow reference that is obviously right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bundle.decode import POOLINGS, classify, softmax, spans_of, stitch, tag, tag_path, token_labels
from bundle.manifest import Joining, Task, bio_labels
from tests.bundle.samples import make_encoder
from tests.properties import cases

LABELS = bio_labels(["PER", "LOC"])
MOOD = Task(kind="single-label", labels=("a", "b", "c", "d", "e"))
TASK = Task(kind="token-classification", labels=LABELS)
LOGITS = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(2, 5)), elements=st.floats(-20, 20, width=32))


@cases(200)
@given(LOGITS, st.sampled_from(POOLINGS))
def test_pooled_scores_are_probabilities_and_weights_sum_to_one(logits: np.ndarray, how: str) -> None:
    answer = classify(logits, np.arange(1, len(logits) + 1), MOOD, Joining(pooling=how))  # type: ignore[arg-type]
    assert answer.scores.sum() == pytest.approx(1, abs=1e-5)
    assert answer.weights.sum() == pytest.approx(1, abs=1e-5)
    assert answer.label == int(answer.scores.argmax())
    if len(logits) == 1:
        np.testing.assert_allclose(answer.scores, softmax(logits)[0], atol=1e-6)


def test_poolings_do_what_their_names_say() -> None:
    logits = np.array([[4.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    tokens = np.array([1, 10, 10])
    labels = {how: classify(logits, tokens, MOOD, Joining(pooling=how)).label for how in POOLINGS}
    assert labels["first"] == 0 and labels["weighted"] == 1 and labels["max"] == 0
    assert classify(logits, tokens, MOOD, Joining(pooling="confidence")).weights[0] > 0.6


def legal(path: tuple[int, ...]) -> bool:
    previous = 0
    for label in path:
        if label and label % 2 == 0 and previous not in (label, label - 1):
            return False
        previous = label
    return True


@cases(200)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.just(5)), elements=st.integers(-50, 50).map(float)))
def test_the_path_is_the_best_of_all_legal_ones(scores: np.ndarray) -> None:
    found = tag_path(scores)  # type: ignore[arg-type]
    assert legal(tuple(int(label) for label in found))
    totals = [
        sum(scores[place, label] for place, label in enumerate(path))
        for path in itertools.product(range(5), repeat=len(scores))
        if legal(path)
    ]
    assert scores[np.arange(len(scores)), found].sum() == pytest.approx(max(totals))


@cases(200)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.sampled_from([(8, 2), (12, 4), (16, 6)]))
def test_gold_tags_survive_windows_of_any_size(path: list[int], shape: tuple[int, int]) -> None:
    """A model that is always right gives back the gold entities, however the text was cut."""
    path = [label if legal((*path[:place], label)) else 0 for place, label in enumerate(path)]
    while not legal(tuple(path)):
        path = [label if legal((path[place - 1] if place else 0, label)) else 0 for place, label in enumerate(path)]
    text = "今" * len(path)
    encoded = make_encoder(*shape).encode(text)
    logits = []
    for window in encoded.windows:
        values = np.full((window.last - window.first, 5), -10, dtype=np.float32)
        for place, label in enumerate(path[window.first : window.last]):
            values[place, label] = 10
        logits.append(values)
    gold = [(first, last, label) for first, last, label in spans_of(np.array(path), LABELS)]
    found = [(item.start, item.end, item.label) for item in tag(logits, encoded, TASK)]
    assert found == gold


def test_a_token_is_decided_where_it_has_the_most_context() -> None:
    encoded = make_encoder(8, 2).encode("今" * 10)
    windows = encoded.windows
    logits = [np.full((w.last - w.first, 5), number, dtype=np.float32) for number, w in enumerate(windows)]
    joined = stitch(logits, encoded)[:, 0]
    for token, winner in enumerate(joined):
        contexts = {}
        for number, window in enumerate(windows):
            if window.first <= token < window.last:
                left = token - window.first if window.first else 99
                right = window.last - 1 - token if window.last < 10 else 99
                contexts[number] = min(left, right)
        assert contexts[int(winner)] == max(contexts.values())


def test_token_labels_mark_every_token_that_overlaps_an_entity() -> None:
    encoded = make_encoder().encode("hello北京ab人")
    labels = token_labels(encoded, [(5, 7, "LOC")], TASK)
    start = next(n for n, (a, b) in enumerate(encoded.spans) if a == 5)
    assert labels.tolist()[start : start + 2] == [3, 4]
    assert labels.sum() == 7
