"""Poolings: shares that sum to one, probabilities that are some, and what each pooling promises by its name."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bundle.decode import (
    FEATURES,
    POOLINGS,
    Classified,
    FloatArray,
    classify,
    features,
    level,
    reaching,
    sigmoid,
    softmax,
)
from bundle.encode import IntArray
from bundle.manifest import Joining, Pooling, Task
from tests.properties import cases

LABELS = tuple("abcde")
TASKS = {kind: Task(kind=kind, labels=LABELS) for kind in ("single-label", "multi-label", "text-pair")}  # type: ignore[arg-type]
ALL: tuple[Pooling, ...] = get_args(Pooling)
UNORDERED: tuple[Pooling, ...] = ("mean", "max", "weighted", "logit-mean", "confidence", "telling")


def logits_of(seed: int, windows: int, scale: float, digits: int) -> FloatArray:
    """Random logits; on a large scale most probabilities are 0 or 1 to the last digit, and few digits make equals."""
    random = np.random.default_rng(seed)
    return (scale * random.normal(size=(windows, len(LABELS))).round(digits)).astype(np.float32)


SEEDS = st.integers(0, 2**32 - 1)
LOGITS = st.builds(
    logits_of, SEEDS, st.integers(1, 8), st.sampled_from([0.1, 3.0, 30.0, 1e4]), st.sampled_from([0, 1, 9])
)
WEIGHTS = st.lists(st.floats(-8, 8), min_size=len(FEATURES), max_size=len(FEATURES)).map(tuple)


def asked_of(logits: FloatArray, seed: int, task: Task) -> tuple[FloatArray, IntArray, Task]:
    """Logits of some windows, the tokens of each, and a task."""
    return logits, np.random.default_rng(seed).integers(1, 511, size=len(logits)), task


CASES = st.builds(asked_of, LOGITS, SEEDS, st.sampled_from(list(TASKS.values())))


def pooled(case: tuple[FloatArray, IntArray, Task], how: Pooling, *weights: float) -> Classified:
    return classify(*case, Joining(pooling=how, weights=weights))


def test_every_pooling_of_the_manifest_is_tested() -> None:
    assert {*POOLINGS, "telling", "learned"} == set(ALL)


@cases(1500)
@given(CASES, st.sampled_from(ALL), WEIGHTS)
def test_shares_sum_to_one_and_scores_are_probabilities(
    case: tuple[FloatArray, IntArray, Task], how: Pooling, weights: tuple[float, ...]
) -> None:
    answer = pooled(case, how, *weights)
    logits, _, task = case
    multi = task.kind == "multi-label"
    assert answer.weights.shape == (logits.shape if multi else logits.shape[:1])
    assert (answer.weights >= 0).all() and (answer.weights <= 1).all()
    np.testing.assert_allclose(answer.weights.sum(axis=0), 1, atol=1e-6)
    assert answer.scores.dtype == np.float32 and answer.scores.shape == (len(LABELS),)
    assert (answer.scores >= 0).all() and (answer.scores <= 1).all()
    assert multi or answer.scores.sum() == pytest.approx(1, abs=1e-5)
    own = sigmoid(logits) if multi else softmax(logits)
    np.testing.assert_array_equal(answer.window_scores, own)
    if how != "logit-mean" and not (how == "max" and not multi):  # no label scores more than in its best window
        assert (answer.scores <= own.max(axis=0) + 1e-6).all() and (answer.scores >= own.min(axis=0) - 1e-6).all()
    if len(logits) == 1:
        np.testing.assert_array_equal(answer.scores, own[0])
    assert answer.label == int(answer.scores.argmax())
    assert answer.chosen == (reaching(answer.scores, task) if multi else (answer.label,))


@cases(1000)
@given(CASES, st.sampled_from(UNORDERED), SEEDS)
def test_a_pooling_without_an_order_does_not_mind_the_order_of_windows(
    case: tuple[FloatArray, IntArray, Task], how: Pooling, seed: int
) -> None:
    logits, tokens, task = case
    order = np.random.default_rng(seed).permutation(len(logits))
    answer, other = pooled(case, how), pooled((logits[order], tokens[order], task), how)
    np.testing.assert_allclose(other.scores, answer.scores, atol=1e-6)
    if how != "max":  # of two equal peaks the first one counts
        np.testing.assert_allclose(other.weights, answer.weights[order], atol=1e-6)


@cases(1000)
@given(CASES, st.sampled_from([("mean", -1), ("lead", 0), ("weighted", 3)]))
def test_the_learned_pooling_has_others_as_special_cases(
    case: tuple[FloatArray, IntArray, Task], pair: tuple[Pooling, int]
) -> None:
    name, feature = pair
    answer = pooled(case, "learned", *(float(place == feature) for place in range(len(FEATURES))))
    known = pooled(case, name)
    np.testing.assert_allclose(answer.weights, known.weights, atol=1e-6)
    np.testing.assert_allclose(answer.scores, known.scores, atol=1e-6)


@cases(500)
@given(CASES)
def test_a_weight_for_the_level_alone_is_the_pooling_telling(case: tuple[FloatArray, IntArray, Task]) -> None:
    answer, telling = pooled(case, "learned", 0.0, 0.0, 0.0, 0.0, 1.0), pooled(case, "telling")
    np.testing.assert_allclose(answer.weights, telling.weights, atol=1e-6)
    np.testing.assert_allclose(answer.scores, telling.scores, atol=1e-6)


@cases(600)
@given(CASES, WEIGHTS)
def test_learned_shares_are_the_softmax_of_the_weighted_features(
    case: tuple[FloatArray, IntArray, Task], weights: tuple[float, ...]
) -> None:
    logits, tokens, task = case
    multi = task.kind == "multi-label"
    answer = pooled(case, "learned", *weights)
    known = features(answer.window_scores, tokens, multi)
    for label in range(len(LABELS) if multi else 1):
        votes = []
        for window in range(len(logits)):
            values = known[window, label] if multi else known[window]
            assert values[0] == pytest.approx(-np.log(window + 1)) and values[1] == (window == 0)
            assert -1e-6 <= values[2] <= 1 + 1e-6
            assert values[3] == pytest.approx(np.log(tokens[window] / max(tokens)))
            votes.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
        shares = np.exp(np.array(votes) - max(votes))
        found = answer.weights[:, label] if multi else answer.weights
        np.testing.assert_allclose(found, shares / shares.sum(), atol=1e-5)


@cases(500)
@given(LOGITS, st.lists(st.floats(0, 1), min_size=5, max_size=5).map(tuple))
def test_a_label_is_given_from_its_threshold_on(logits: FloatArray, thresholds: tuple[float, ...]) -> None:
    task = Task(kind="multi-label", labels=LABELS, thresholds=thresholds)
    answer = classify(logits, np.ones(len(logits), dtype=np.int64), task, Joining(pooling="mean"))
    assert answer.chosen == tuple(n for n in range(5) if float(answer.scores[n]) >= thresholds[n])


@cases(500)
@given(LOGITS, st.integers(0, 4))
def test_a_window_that_says_nothing_weighs_least_by_confidence(logits: FloatArray, place: int) -> None:
    assume(len(logits) > 1)
    logits = logits.copy()
    logits[place % len(logits)] = 0
    answer = classify(
        logits, np.ones(len(logits), dtype=np.int64), TASKS["single-label"], Joining(pooling="confidence")
    )
    assert answer.weights[place % len(logits)] == pytest.approx(answer.weights.min(), abs=1e-6)


@cases(500)
@given(LOGITS, st.sampled_from([how for how in ALL if how != "telling"]), WEIGHTS, SEEDS)
def test_the_level_of_the_logits_is_free_to_say_what_a_window_tells(
    logits: FloatArray, how: Pooling, weights: tuple[float, ...], seed: int
) -> None:
    logits = logits.clip(-30, 30)
    raised = logits + np.random.default_rng(seed).integers(-8, 9, size=(len(logits), 1)).astype(np.float32)
    task, tokens = TASKS["single-label"], np.ones(len(logits), dtype=np.int64)
    answer, other = (classify(item, tokens, task, Joining(pooling=how, weights=weights)) for item in (logits, raised))
    np.testing.assert_allclose(other.scores, answer.scores, atol=1e-4)


@cases(500)
@given(CASES, st.floats(-8, 8))
def test_windows_that_tell_alike_weigh_alike(case: tuple[FloatArray, IntArray, Task], height: float) -> None:
    logits, tokens, task = case
    even = (logits.clip(-30, 30).astype(np.float64) - logits.clip(-30, 30).mean(axis=1, keepdims=True)) + height
    answer, mean = (pooled((even.astype(np.float32), tokens, task), how) for how in ("telling", "mean"))
    np.testing.assert_allclose(answer.weights, mean.weights, atol=1e-4)
    np.testing.assert_allclose(answer.scores, mean.scores, atol=1e-4)


@cases(500)
@given(LOGITS, st.integers(0, 7))
def test_the_one_window_that_tells_decides_however_sure_the_others_are(logits: FloatArray, place: int) -> None:
    place %= len(logits)
    height = np.full((len(logits), 1), -20.0)
    height[place] = 20.0
    told = (logits - logits.mean(axis=1, keepdims=True, dtype=np.float64) + height).clip(-1e4, 1e4).astype(np.float32)
    assume(np.allclose(level(told), height[:, 0], atol=1))
    answer = classify(told, np.ones(len(told), dtype=np.int64), TASKS["single-label"], Joining(pooling="telling"))
    assert answer.weights[place] > 0.999
    np.testing.assert_allclose(answer.scores, softmax(told)[place], atol=1e-4)
    # How little all of them tell makes no difference: what they tell in comparison does.
    less = (told.astype(np.float64) - 60).astype(np.float32)
    alike = classify(less, np.ones(len(told), dtype=np.int64), TASKS["single-label"], Joining(pooling="telling"))
    assert len(told) == 1 or alike.weights[place] > 0.999
