"""An evaluation counts what it says it counts, and its picture is drawn for both kinds of task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundle.manifest import Joining, Task, bio_labels
from bundle.predict import Predicted
from bundle.rows import Entity, Row
from finetune.baseline import tfidf_baselines
from finetune.evaluate import choose_pooling, evaluate, with_thresholds, write
from tests.bundle.samples import make_encoder

TASK = Task(kind="single-label", labels=("no", "yes"))
ENCODER = make_encoder(8, 2)


def answer(text: str, *windows: tuple[float, float]) -> Predicted:
    encoded = ENCODER.encode(text)
    assert len(encoded.windows) == len(windows)
    return Predicted(encoded, [np.array(values, dtype=np.float32) for values in windows])


ROWS = [Row("今天", "yes"), Row("今" * 10, "yes"), Row("北京", "no")]
ANSWERS = [answer("今天", (0, 1)), answer("今" * 10, (4, 0), (0, 1)), answer("北京", (0, 1))]


def test_accuracy_confusion_and_length_buckets_add_up() -> None:
    found = evaluate("test", ROWS, ANSWERS, TASK, Joining(pooling="first"), (4, 8), of_rows=30)
    assert found.table is not None and found.table.tolist() == [[0, 1], [1, 1]]
    assert found.metrics["accuracy"] == pytest.approx(1 / 3)
    assert {name: values["rows"] for name, values in found.buckets.items()} == {"≤ 4": 2.0, "> 8": 1.0}
    assert (found.rows, found.of_rows, found.windows) == (3, 30, 4)


def test_auto_pooling_takes_what_is_best_on_dev() -> None:
    rows = [Row("今" * 10, "yes"), Row("北" * 10, "no")]
    predicted = [answer("今" * 10, (0, 1), (1.2, 0)), answer("北" * 10, (1, 0), (0, 1.2))]
    best, scores = choose_pooling(rows, predicted, TASK, "accuracy")
    assert scores["first"]["accuracy"] == 1.0 and scores["max"]["accuracy"] == 0.0
    assert scores[best]["accuracy"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "tagger"])
def test_json_and_picture_are_written(tmp_path: Path, kind: str) -> None:
    if kind == "classifier":
        task, rows, answers = TASK, ROWS, ANSWERS
    else:
        task = Task(kind="token-classification", labels=bio_labels(["PER"]))
        rows = [Row("今天", entities=(Entity(0, 2, "PER"),))]
        answers = [Predicted(ENCODER.encode("今天"), [np.array([[0, 9, 0], [0, 0, 9]], dtype=np.float32)])]
    found = evaluate("test", rows, answers, task, Joining(), (4, 8), len(rows))
    history = [{"step": 1, "loss": 1.0}, {"step": 2, "dev_loss": 0.5, "dev_f1": 0.4}]
    paths = write(tmp_path, [found], {"history": history}, task.labels)
    assert [path.name for path in paths] == ["evaluation.json", "evaluation.png"]
    assert paths[1].read_bytes().startswith(b"\x89PNG") and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_the_baseline_learns_words() -> None:
    rows = [Row(f"{'很好' if n % 2 else '很坏'}{n}", "yes" if n % 2 else "no") for n in range(40)]
    scores = tfidf_baselines(rows[:30], rows[30:], TASK)
    assert set(scores) == {"tfidf", "tfidf_balanced"}
    assert all(values["accuracy"] == 1.0 for values in scores.values())


@pytest.mark.slow
def test_the_baseline_knows_several_labels_and_pairs_and_leaves_entities_alone() -> None:
    words = {"甲": "很好", "乙": "很坏"}
    many = [
        Row(f"今天{n}" + "".join(words[label] for label in labels), labels=labels)
        for n in range(30)
        for labels in ((), ("甲",), ("乙",), ("甲", "乙"))
    ]
    task = Task(kind="multi-label", labels=("甲", "乙"))
    assert tfidf_baselines(many[:80], many[80:], task)["tfidf"]["exact_match"] == 1.0
    titles = ["股市大涨", "球队输了", "今天下雨", "天气很好"]
    pairs = [
        Row(titles[n % 4], "own" if own else "other", titles[n % 4 if own else (n + 1) % 4] + f"，{n}")
        for n in range(40)
        for own in (True, False)
    ]
    task = Task(kind="text-pair", labels=("other", "own"))
    assert tfidf_baselines(pairs[:60], pairs[60:], task)["tfidf"]["accuracy"] == 1.0
    assert tfidf_baselines([], [], Task(kind="token-classification", labels=bio_labels(["X"]))) == {}


def test_thresholds_are_chosen_on_dev_for_each_label() -> None:
    task = Task(kind="multi-label", labels=("a", "b"))
    rows = [Row("今", labels=("a",)), Row("天", labels=("a", "b")), Row("北", labels=())]
    logits = [(-1.0, -3.0), (-0.5, -2.0), (-4.0, -4.0)]
    predicted = [
        Predicted(ENCODER.encode(row.text), [np.array(v, np.float32)]) for row, v in zip(rows, logits, strict=True)
    ]
    chosen = with_thresholds(rows, predicted, task, Joining())
    found = evaluate("dev", rows, predicted, chosen, Joining(), (4,), 3)
    assert found.metrics == {"exact_match": 1.0, "micro_f1": 1.0, "macro_f1": 1.0}
    assert found.table is None and [row.label for row in found.classes] == ["a", "b", "micro"]
    assert evaluate("dev", rows, predicted, task, Joining(), (4,), 3).metrics["micro_f1"] == 0.0


def test_each_head_is_measured_on_the_rows_that_tell_it_something() -> None:
    task = Task(kind="multi-task", labels=("no", "yes"), token_labels=bio_labels(["PER"]))
    rows = [Row("今天", "yes"), Row("北京", entities=(Entity(0, 2, "PER"),))]
    tags = np.array([[0, 9, 0], [0, 0, 9]], dtype=np.float32)
    predicted = [Predicted(ENCODER.encode(row.text), [np.array([0, 1], np.float32)], [tags]) for row in rows]
    found = evaluate("test", rows, predicted, task, Joining(), (4,), 2)
    assert found.metrics["accuracy"] == 1.0 and found.metrics["f1"] == 1.0
    assert found.table is not None and found.table.sum() == 1
    only = evaluate("test", rows[:1], predicted[:1], task, Joining(), (4,), 1)
    assert "f1" not in only.metrics and only.metrics["mean_f1"] == only.metrics["macro_f1"]
