"""Pooling, stitching and legal tag paths, each against a slow reference that is obviously right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bundle.decode import POOLINGS, FloatArray, classify, softmax, spans_of, stitch, tag, tag_path, token_labels
from bundle.encode import Encoded
from bundle.manifest import Joining, Task, bio_labels
from tests.bundle.samples import SHAPES, make_encoder
from tests.properties import cases

LABELS = bio_labels(["PER", "LOC"])
MOOD = Task(kind="single-label", labels=("a", "b", "c", "d", "e"))
TASK = Task(kind="token-classification", labels=LABELS)
STITCHINGS = [Joining(stitching="context"), Joining(stitching="average")]
CUTS = ["none", "begin", "other"]
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


# Gold entities as (gap before it, length, type), laid out from left to right; types are the places in LABELS of B-X.
ENTITIES = st.lists(st.tuples(st.integers(0, 7), st.integers(1, 12), st.sampled_from([1, 3])), max_size=12)
Spans = list[tuple[int, int, str]]


def laid_out(entities: list[tuple[int, int, int]], longest: int, tail: int) -> list[int]:
    """The labels of a text with these entities, none longer than ``longest``, and ``tail`` tokens after the last."""
    path: list[int] = []
    for gap, length, label in entities:
        path += [0] * gap + [label] + [label + 1] * (min(length, longest) - 1)
    return path + [0] * tail


def one_token_each(count: int, shape: tuple[int, int], ends: int = 0) -> Encoded:
    """A text of as many tokens as code points, in windows; every ``ends``-th one ends a sentence."""
    text = "".join("。" if ends and place % ends == ends - 1 else "今" for place in range(count))
    return make_encoder(*shape).encode(text)


def spans_found(logits: list[FloatArray], encoded: Encoded, joining: Joining | None = None) -> Spans:
    return [(item.start, item.end, item.label) for item in tag(logits, encoded, TASK, joining)]


def sure(path: list[int]) -> FloatArray:
    """The logits of a model that has no doubt."""
    return np.where(np.arange(5) == np.array(path)[:, None], 10, -10).astype(np.float32)


@cases(500)
@given(ENTITIES, st.integers(1, 30), SHAPES, st.integers(0, 9), st.sampled_from(STITCHINGS))
def test_gold_tags_survive_windows_of_any_size(
    entities: list[tuple[int, int, int]], tail: int, shape: tuple[int, int], ends: int, joining: Joining
) -> None:
    """A model that is always right gives back the gold entities, however the text was cut."""
    path = laid_out(entities, 99, tail)
    encoded = one_token_each(len(path), shape, ends)
    logits = [sure(path[window.first : window.last]) for window in encoded.windows]
    assert spans_found(logits, encoded, joining) == spans_of(np.array(path), LABELS)


def partial(path: list[int], first: int, last: int, cut: str) -> list[int]:
    """What a window ``[first, last)`` says that knows an entity only when it sees all of it.

    Args:
        cut: what it takes the rest of an entity at its edge for: ``none``, a ``begin`` of the same one, or ``other``.
    """
    seen = path[first:last]
    for begin, end, _ in spans_of(np.array(path), LABELS):
        if first <= begin and end <= last:
            continue
        for place in range(max(begin, first), min(end, last)):
            label = path[begin] if cut == "begin" else 4 - path[begin]
            starts = place == max(begin, first)
            seen[place - first] = 0 if cut == "none" else label if starts else label + 1
    return seen


@cases(1200)
@given(ENTITIES, st.integers(1, 30), SHAPES, st.integers(0, 9), st.lists(st.sampled_from(CUTS), min_size=1, max_size=4))
def test_an_entity_no_longer_than_the_overlap_is_found_whole(
    entities: list[tuple[int, int, int]], tail: int, shape: tuple[int, int], ends: int, cuts: list[str]
) -> None:
    path = laid_out(entities, max(shape[1], 1), tail)
    encoded = one_token_each(len(path), shape, ends)
    logits = [
        sure(partial(path, window.first, window.last, cuts[number % len(cuts)]))
        for number, window in enumerate(encoded.windows)
    ]
    assert spans_found(logits, encoded) == spans_of(np.array(path), LABELS)


def read_with(context: int, values: FloatArray, kernel: FloatArray, first: int, last: int) -> FloatArray:
    """The logits of a model that reads ``context`` tokens to each side of a token, as far as its window shows them.

    Args:
        values: float32 (tokens, labels), what each token says by itself.
        kernel: float32 (2 context + 1,), how much its neighbours add.
    """
    seen = values[first:last]
    joined = np.zeros_like(seen)
    for away in range(-context, context + 1):
        begin, end = max(0, -away), min(len(seen), len(seen) - away)  # the tokens whose neighbour is shown
        if begin < end:
            joined[begin:end] += kernel[away + context] * seen[begin + away : end + away]
    return joined


@cases(1200)
@given(
    *(st.integers(0, 2**32 - 1), st.integers(20, 150), st.integers(0, 8), st.sampled_from([-1.5, -0.5, 0, 0.5])),
    *(st.integers(0, 6), st.integers(3, 23), st.integers(0, 9)),
)
def test_windows_give_what_the_whole_text_gives_where_context_and_entities_fit_in_half_the_overlap(
    seed: int, count: int, context: int, inside: float, more: int, rest: int, ends: int
) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, 5)).astype(np.float32)
    values[:, 2::2] += inside  # few or many tokens that go on with an entity
    kernel = np.abs(random.normal(size=2 * context + 1)).astype(np.float32)
    whole = read_with(context, values, kernel, 0, count)
    overlap = 2 * (context + longest_run(whole)) + more
    encoded = one_token_each(count, (max(8, 2 * overlap + rest), overlap), ends)
    logits = [read_with(context, values, kernel, window.first, window.last) for window in encoded.windows]
    np.testing.assert_array_equal(stitch(logits, encoded), whole)
    assert spans_found(logits, encoded) == spans_found([whole], one_token_each(count, (count + 8, 0)))


def longest_run(logits: FloatArray) -> int:
    """The tokens of the longest entity that a model's first choices make."""
    longest = length = 0
    for label in logits.argmax(axis=1):
        length = 0 if label == 0 else length + 1 if label % 2 == 0 else 1
        longest = max(longest, length)
    return longest


@cases(500)
@given(st.integers(1, 60), SHAPES, st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_the_average_is_what_windows_say_that_agree_and_the_mean_of_what_those_say_that_do_not(
    count: int, shape: tuple[int, int], ends: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    encoded = one_token_each(count, shape, ends)
    said = random.normal(size=(count, 5)).astype(np.float32)
    agreeing = [said[window.first : window.last] for window in encoded.windows]
    np.testing.assert_allclose(stitch(agreeing, encoded, Joining(stitching="average")), said, rtol=1e-5, atol=1e-6)
    apart = [random.normal(size=values.shape).astype(np.float32) for values in agreeing]
    joined = stitch(apart, encoded, Joining(stitching="average"))
    for token in range(count):
        views = [v[token - w.first] for w, v in zip(encoded.windows, apart, strict=True) if w.first <= token < w.last]
        np.testing.assert_allclose(joined[token], np.mean(views, axis=0), rtol=1e-4, atol=1e-5)


@cases(500)
@given(st.integers(1, 150), SHAPES, st.integers(0, 9))
def test_a_token_is_decided_where_it_has_the_most_context(count: int, shape: tuple[int, int], ends: int) -> None:
    encoded = one_token_each(count, shape, ends)
    windows = encoded.windows
    logits = [np.full((w.last - w.first, 5), number, dtype=np.float32) for number, w in enumerate(windows)]
    joined = stitch(logits, encoded)[:, 0]
    for token, winner in enumerate(joined):
        contexts = {}
        for number, window in enumerate(windows):
            if window.first <= token < window.last:
                left = token - window.first if window.first else count
                right = window.last - 1 - token if window.last < count else count
                contexts[number] = min(left, right)
        assert contexts[int(winner)] == max(contexts.values())


def test_token_labels_mark_every_token_that_overlaps_an_entity() -> None:
    encoded = make_encoder().encode("hello北京ab人")
    labels = token_labels(encoded, [(5, 7, "LOC")], TASK)
    start = next(n for n, (a, b) in enumerate(encoded.spans) if a == 5)
    assert labels.tolist()[start : start + 2] == [3, 4]
    assert labels.sum() == 7
