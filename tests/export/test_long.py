"""Long texts: ways of reading told apart on made-up logits, baselines, one late telling sentence, joined documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from bundle.decode import POOLINGS
from bundle.encode import Encoded, IntArray, Window
from bundle.errors import BundleError
from bundle.folder import Bundle
from bundle.manifest import Joining, Task, bio_labels
from bundle.predict import Predicted, encode_rows, predict
from bundle.rows import Entity, Row, checksum
from export.documents import joined
from export.evaluate import main
from export.heads import label_head, tag_head
from export.long import compare, mcnemar, read_baselines
from export.stitched import cut_apart, held, measure, tokens_of
from export.telling import Neutral, late, read_neutral, spread
from export.telling import measure as measure_late
from tests.bundle.samples import make_encoder

Copy = Callable[[str], Bundle]
TASK = Task(kind="single-label", labels=("no", "yes"))
MEAN = Joining(pooling="mean")
NO, YES, SURE = [2.0, 0.0], [0.0, 2.0], [0.0, 9.0]


def read(*logits: list[float]) -> Predicted:
    windows = tuple(Window(n, n + 1, n, n + 1) for n in range(len(logits)))
    empty = np.empty(0, dtype=np.int64)
    encoded = Encoded("x" * len(logits), empty, empty, windows, len(logits), False, empty, False, False)
    return Predicted(encoded, [np.array(values, dtype=np.float32) for values in logits])


FOUND = [read(YES), read(NO, NO, SURE), read(NO, *[YES] * 8, SURE), read(NO, YES, YES, YES, NO)]
ROWS = [Row("x", "yes")] * 4


def test_each_way_reads_its_own_windows_and_buckets_are_by_length() -> None:
    buckets = {bucket.name: bucket for bucket in compare(label_head(ROWS, FOUND, TASK), MEAN)}

    assert {name: bucket.rows for name, bucket in buckets.items()} == {"1": 1, "2-3": 1, "4-8": 1, "> 8": 1, "all": 4}

    def right(name: str, way: str) -> bool:
        return buckets[name].scores[way]["accuracy"] == 1.0

    assert all(right("1", way) for way in buckets["1"].scores)
    assert not right("2-3", "head") and right("2-3", "head+tail") and not right("2-3", "mean") and right("2-3", "max")
    assert not right("4-8", "head") and not right("4-8", "head+tail") and right("4-8", "mean")
    assert not right("> 8", "head") and right("> 8", "head+tail") and right("> 8", "mean")
    assert buckets["all"].scores["head"]["accuracy"] == 0.25


def test_served_and_head_are_told_apart_row_by_row() -> None:
    every = compare(label_head(ROWS, FOUND, TASK), MEAN)[-1]
    assert (every.only_served, every.only_head) == (2, 0)
    assert every.p_value == binomtest(0, 2).pvalue == 0.5


def test_learned_is_read_with_the_manifests_weights_and_served_under_its_name() -> None:
    last = Joining(pooling="learned", weights=(-20.0, 0.0, 0.0, 0.0))
    every = compare(label_head(ROWS, FOUND, TASK), last)[-1]
    # The last window alone: right but for the text that ends in a "no".
    assert every.scores["learned"]["accuracy"] == 0.75 and every.only_served == 2
    assert "learned" not in compare(label_head(ROWS, FOUND, TASK), MEAN)[-1].scores


def test_several_labels_are_right_only_all_together() -> None:
    task = Task(kind="multi-label", labels=("a", "b"))
    rows = [Row("x", labels=("b", "a")), Row("x", labels=())]
    found = [read([-3.0, 3.0], [9.0, 3.0]), read([-1.0, -1.0])]
    every = compare(label_head(rows, found, task), Joining(pooling="max"))[-1]
    assert every.scores["max"]["exact_match"] == 1 and every.scores["head"]["exact_match"] == 0.5
    assert every.scores["head+tail"]["exact_match"] == 1 and every.only_served == 1


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (12, 3), (40, 10)])
def test_mcnemar_is_the_binomial_test_of_the_rows_on_which_one_way_is_right(gained: int, lost: int) -> None:
    left = np.array([True] * gained + [False] * lost + [True] * 30 + [False] * 7)
    right = np.array([False] * gained + [True] * lost + [True] * 30 + [False] * 7)
    wanted = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(left, right) == mcnemar(right, left) == pytest.approx(wanted)


def test_baselines_stand_beside_the_model_where_they_answered_the_same_rows(tmp_path: Path) -> None:
    head = label_head(ROWS, FOUND, TASK)
    path = tmp_path / "mood.json"
    answers = {"tfidf": ["yes", "no", "no", "yes"], "test_sha256": checksum(ROWS)}
    path.write_text(json.dumps({"tfidf": {"accuracy": 0.5}, "predictions": answers}), encoding="utf-8")
    known, why = read_baselines(path, head)
    assert known == {"tfidf": [1, 0, 0, 1]} and why == ""
    assert compare(head, MEAN, known)[-1].scores["tfidf"]["accuracy"] == 0.5

    answers = {"tfidf": ["yes", "no", "no", "yes"]}
    record = {"predictions": answers, "test_sha256": checksum(ROWS[:3])}
    path.write_text(json.dumps(record), encoding="utf-8")
    known, why = read_baselines(path, head)
    assert known == {} and "answers to other rows" in why and "`make evaluate` writes" in why
    assert "is not there" in read_baselines(tmp_path / "other.json", head)[1]
    path.write_text(json.dumps({**record, "test_sha256": checksum(ROWS), "predictions": {"x": ["maybe"] * 4}}))
    with pytest.raises(BundleError, match="none of the labels"):
        read_baselines(path, head)


def test_the_baselines_of_two_heads_answered_the_rows_that_have_a_label(tmp_path: Path) -> None:
    task = Task(kind="multi-task", labels=TASK.labels, token_labels=("O", "B-X", "I-X"))
    rows = [Row("x", "yes"), Row("y", entities=()), Row("z", "no")]
    found = [Predicted(item.encoded, item.logits, [np.zeros((1, 3), np.float32)]) for item in FOUND[:3]]
    head = label_head(rows, found, task)
    path = tmp_path / "desk.json"
    record = {"predictions": {"tfidf": ["no", "no"]}, "test_sha256": checksum([rows[0], rows[2]])}
    path.write_text(json.dumps(record), encoding="utf-8")
    assert read_baselines(path, head) == ({"tfidf": [0, 0]}, "")


# --- one telling sentence --------------------------------------------------------------------------------------------


def speaks(ids: IntArray, types: IntArray) -> list[np.ndarray]:
    """A model of two words: 好 says yes, 京 says no, anything else leans to no a little."""
    del types
    good, bad = (ids == GOOD).any(axis=1), (ids == BAD).any(axis=1)
    logits = np.where(good[:, None], [[0.0, 6.0]], np.where(bad[:, None], [[6.0, 0.0]], [[0.5, 0.0]]))
    return [logits.astype(np.float32)]


ENCODER = make_encoder(max_tokens=16, overlap=4, max_windows=99)
GOOD, BAD = (int(ENCODER.tokenize(word)[0][0]) for word in "好京")
assert GOOD != BAD


def test_a_late_telling_sentence_is_found_by_max_and_learned_and_missed_by_the_head() -> None:
    rows = [Row("好" if n % 2 else "京", "yes" if n % 2 else "no") for n in range(40)]
    found = predict(encode_rows(rows, ENCODER), ENCODER, speaks)
    neutral = Neutral(["天" * 9, "气" * 12], ["气" * 12, "天" * 9])
    measured = measure_late((rows, found), rows, neutral, ENCODER, speaks, TASK, MEAN)
    accuracy = measured["accuracy"]
    assert measured["documents"] == measured["dev_documents"] == 40 and measured["mean_windows"] > 4
    assert accuracy["short"] == 1 and accuracy["head"] == accuracy["mean"] == 0.5
    assert accuracy["max"] == accuracy["confidence"] == 1
    assert measured["served"] == measured["served_of_short"] == 0.5 and measured["p_value"] == 1
    # What is chosen on dev documents, and what is learned there, finds everything.
    assert measured["fitted"]["accuracy"] == measured["fitted"]["learned_accuracy"] == 1


def test_a_window_that_is_falsely_sure_is_outvoted_where_the_model_says_what_tells() -> None:
    def misled(ids: IntArray, types: IntArray) -> list[np.ndarray]:
        """Sure of a "no" where nothing is told, but not that anything is."""
        (logits,) = speaks(ids, types)
        told = np.abs(logits).max(axis=1, keepdims=True) > 1
        return [np.where(told, logits + 5, np.array([[9.0, 0.0]]) - 20).astype(np.float32)]

    rows = [Row("好" if n % 2 else "京", "yes" if n % 2 else "no") for n in range(40)]
    found = predict(encode_rows(rows, ENCODER), ENCODER, misled)
    neutral = Neutral(["天" * 9, "气" * 12], ["气" * 12, "天" * 9])
    served = Joining(pooling="telling")
    measured = measure_late(
        (rows, found), rows, neutral, ENCODER, misled, TASK, served, poolings=(*POOLINGS, "telling")
    )
    assert measured["accuracy"]["max"] == measured["accuracy"]["confidence"] == 0.5
    assert measured["served"] == measured["accuracy"]["telling"] == 1 and measured["fitted"]["dev"]["telling"] == 1


def test_without_a_short_text_nothing_is_measured() -> None:
    assert measure_late(([], []), ROWS, Neutral(["天"], ["气"]), ENCODER, speaks, TASK, MEAN) == {"documents": 0}
    assert measure(tag_head([], [], TAGS), ENCODER, tags, False, MEAN) == {"documents": 0}


def test_documents_end_in_the_row_and_begin_with_so_much_neutral_text() -> None:
    rows = [Row("好", "yes"), Row("京", "no")]
    first, second = late(rows, ["天" * 10, "气" * 30], 25)
    assert first == Row("天" * 10 + "\n" + "气" * 14 + "\n好", "yes")
    assert second.text.endswith("\n京") and second.label == "no"
    assert late(rows, ["天" * 10, "气" * 30], 25) == [first, second]


def test_neutral_text_comes_from_a_file_or_from_a_bundle_and_never_the_same_for_dev_and_test(tmp_path: Path) -> None:
    path = tmp_path / "neutral.txt"
    path.write_text("甲\n\n乙\n丙\n", encoding="utf-8")
    neutral = read_neutral(path)
    assert (neutral.dev, neutral.test) == (["甲", "丙"], ["乙"])
    path.write_text("甲\n", encoding="utf-8")
    with pytest.raises(BundleError, match="holds no neutral text"):
        read_neutral(path)
    with pytest.raises(BundleError, match="cannot be read"):
        read_neutral(tmp_path / "nothing")


def test_places_are_spread_evenly() -> None:
    assert spread(range(10), 4) == [0, 3, 6, 9] and spread([4, 5], 4) == [4, 5]


# --- joined documents ------------------------------------------------------------------------------------------------

TAGS = Task(kind="token-classification", labels=bio_labels(["X"]))
SENTENCES = [
    Row("天气很好，今天" + "好" * n + "。", entities=(Entity(0, 2, "X"), Entity(5, 7, "X"))) for n in range(12)
]


def tags(ids: IntArray, types: IntArray) -> list[np.ndarray]:
    """Marks the first two characters of 天气 and 今天 wherever both are in the window."""
    del types
    first, second = ENCODER.tokenize("天气")[0], ENCODER.tokenize("今天")[0]
    logits = np.zeros((*ids.shape, 3), dtype=np.float32)
    logits[..., 0] = 1
    for pair in (first, second):
        here = (ids[:, :-1] == pair[0]) & (ids[:, 1:] == pair[1])
        logits[:, :-1, 1] += 5 * here
        logits[:, 1:, 2] += 5 * here
    return [logits]


def test_a_cut_without_overlap_splits_entities_that_overlapping_windows_hold() -> None:
    found = predict(encode_rows(SENTENCES, ENCODER), ENCODER, tags)
    measured = measure(tag_head(SENTENCES, found, TAGS), ENCODER, tags, False, Joining(stitching="context"))
    scores = measured["scores"]
    assert (measured["documents"], measured["sentences"], measured["entities"]) == (1, 12, 24)
    assert scores["sentences"]["f1"] == scores["context"]["f1"] == 1
    assert measured["no_window_holds"] == measured["no_window_holds_short"] == 0
    assert measured["naive_cut"] > 0 and scores["naive"]["f1"] < 1
    assert measured["served_minus_sentences"] == 0


def test_what_no_window_holds_is_counted_apart_for_entities_that_are_longer_than_the_overlap() -> None:
    text = "".join("天气很好今"[n % 5] for n in range(60))
    row = Row(text, entities=(Entity(0, 40, "X"), Entity(3, 5, "X")))
    document = joined([row], 1)
    encoded = encode_rows([row], ENCODER)
    assert tokens_of(encoded[0], row.spans).tolist() == [[0, 40], [3, 5]]
    ours = held(encoded, document, 4)
    assert (ours.entities, ours.split, ours.short, ours.short_split) == (2, 1, 1, 0)
    apart = cut_apart(encoded[0], 4)
    assert [window.first for window in apart.windows] == list(range(0, 60, 4)) and apart.windows[-1].end == len(text)
    assert held([apart], document, 4).short_split == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert-classes", "bert-multilabel", "ernie-multitask", "bert-tags"])
def test_the_command_measures_every_task_and_writes_a_file(name: str, exported: Copy, tmp_path: Path) -> None:
    bundle = exported(name)
    neutral = tmp_path / "neutral.txt"
    neutral.write_text("七丈三上下不与丑\n丐专且世丘丙业丛\n", encoding="utf-8")
    main(bundle.root, tmp_path, paddle=False, compare_long=True, baseline=None, neutral=neutral)
    record = json.loads((tmp_path / "long" / f"{name}.json").read_text(encoding="utf-8"))
    task = bundle.manifest.task
    assert (len(record["buckets"]) > 1) == task.classifies and record["artifact"] == bundle.manifest.published
    if task.classifies:
        assert record["buckets"][-1]["rows"] == sum(bucket["rows"] for bucket in record["buckets"][:-1])
        assert {"head", "head+tail", "mean", "learned"} <= set(record["buckets"][-1]["scores"])
    assert ("documents" in record) == task.tags and ("late" in record) == (task.kind == "single-label")
    if task.tags:
        assert set(record["documents"]["scores"]) == {"sentences", "context", "average", "naive"}
        assert record["documents"]["no_window_holds_short"] == 0
    if "late" in record:
        assert record["late"]["accuracy"]["short"] == 1 and record["late"]["mean_windows"] > 3


@pytest.mark.slow
def test_a_wrong_path_of_neutral_text_is_told_before_anything_is_measured(exported: Copy, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nope: cannot be read"):
        main(
            exported("bert-classes").root,
            tmp_path,
            paddle=False,
            compare_long=True,
            baseline=None,
            neutral=tmp_path / "nope",
        )
    assert not list(tmp_path.iterdir())
