"""How windows are joined: what the learned pooling learns, which candidate is elected, what the step writes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.optimize import check_grad

from bundle.decode import FEATURES, POOLINGS, FloatArray
from bundle.encode import Encoded, Window
from bundle.folder import Bundle, open_bundle, sha256_of
from bundle.manifest import Artifact, FileRef, Joining, Pooling, Task
from bundle.predict import Predicted, answers_of, gold_matrix, metrics_of, scores_of
from bundle.rows import Entity, Row, write_rows
from export.documents import joined
from export.gate import DevSplit, gate
from export.heads import label_head, tag_head
from export.journal import Journal
from export.learned import Windows, cross_validated, fit, losses
from export.pooling import Candidate, compare, elect, pooling

Copy = Callable[[str], Bundle]
TASK = Task(kind="single-label", labels=("no", "yes"))
MULTI = Task(kind="multi-label", labels=("a", "b", "c"))


def said(logits: FloatArray, tokens: int = 10) -> Predicted:
    """A text whose windows of ``tokens`` tokens each gave these logits, (windows, labels)."""
    windows = tuple(Window(n * tokens, (n + 1) * tokens, n, n + 1) for n in range(len(logits)))
    empty = np.empty(0, dtype=np.int64)
    encoded = Encoded("x" * len(logits), empty, empty, windows, len(logits) * tokens, False, empty, False, False)
    return Predicted(encoded, list(logits))


def last_tells(count: int, seed: int = 1) -> tuple[list[Row], list[Predicted]]:
    """Texts of two to six windows, the last of which knows the label; the others are sure of a random one."""
    rng = np.random.default_rng(seed)
    rows, found = [], []
    for _ in range(count):
        label = int(rng.integers(2))
        logits = np.zeros((int(rng.integers(2, 7)), 2), dtype=np.float32)
        guesses = rng.integers(2, size=len(logits))
        guesses[-1] = label
        logits[np.arange(len(logits)), guesses] = 2
        rows.append(Row("x", TASK.labels[label]))
        found.append(said(logits))
    return rows, found


def test_learned_finds_the_last_window_where_it_alone_tells() -> None:
    rows, found = last_tells(200)
    weights = fit(rows, found, TASK)
    others, unseen = last_tells(200, seed=2)
    learned = metrics_of(others, unseen, TASK, Joining(pooling="learned", weights=weights))
    mean = metrics_of(others, unseen, TASK, Joining(pooling="mean"))
    assert weights[FEATURES.index("position")] < -1
    assert learned["accuracy"] > 0.95 > 0.8 > mean["accuracy"]


def test_learned_finds_the_one_certain_window_wherever_it_stands() -> None:
    rng = np.random.default_rng(3)
    rows, found = [], []
    for _ in range(120):
        label, count = int(rng.integers(2)), 6
        logits = rng.normal(size=(count, 2)).astype(np.float32) * 0.3
        logits[:, 0] += 0.8  # a neutral window leans to "no"
        logits[int(rng.integers(count)), :] = [-4.0, 4.0] if label else [4.0, -4.0]
        rows.append(Row("x", TASK.labels[label]))
        found.append(said(logits))
    weights = fit(rows, found, TASK)
    assert weights[FEATURES.index("certainty")] > 3
    assert metrics_of(rows, found, TASK, Joining(pooling="learned", weights=weights))["accuracy"] == 1
    assert metrics_of(rows, found, TASK, Joining(pooling="mean"))["accuracy"] < 0.7


def test_learned_finds_the_window_that_says_that_it_tells_something_where_others_are_as_certain() -> None:
    rng = np.random.default_rng(5)
    rows, found = [], []
    for _ in range(120):
        label, guesses = int(rng.integers(2)), rng.integers(2, size=6)
        logits = np.where(np.arange(2) == guesses[:, None], 2.0, -2.0)
        tells = int(rng.integers(6))
        logits[tells] = [-2.0, 2.0] if label else [2.0, -2.0]
        logits += np.where(np.arange(6) == tells, 2.0, -2.0)[:, None]  # softmax does not see it
        rows.append(Row("x", TASK.labels[label]))
        found.append(said(logits.astype(np.float32)))
    weights = fit(rows, found, TASK, leveled=True)
    assert len(weights) == len(FEATURES) + 1 and weights[-1] > 0.5
    assert metrics_of(rows, found, TASK, Joining(pooling="learned", weights=weights))["accuracy"] > 0.95
    blind = Joining(pooling="learned", weights=fit(rows, found, TASK))
    assert metrics_of(rows, found, TASK, blind)["accuracy"] < 0.8


def test_the_fit_is_the_same_every_time_and_weights_stay_near_0_where_nothing_is_to_be_learned() -> None:
    rng = np.random.default_rng(4)
    found = [said(np.repeat(rng.normal(size=(1, 2)), 3, axis=0).astype(np.float32)) for _ in range(40)]
    rows = [Row("x", TASK.labels[int(rng.integers(2))]) for _ in found]
    assert fit(rows, found, TASK) == fit(rows, found, TASK)
    assert max(map(abs, fit(rows, found, TASK))) < 0.05
    assert fit(rows[:2], [said(np.zeros((1, 2), np.float32))] * 2, TASK) == (0.0,) * len(FEATURES)


@pytest.mark.parametrize("task", [TASK, MULTI])
def test_the_loss_is_that_of_the_scores_which_are_served_and_its_gradient_is_right(task: Task) -> None:
    rng = np.random.default_rng(5)
    found = [said(rng.normal(size=(int(rng.integers(2, 5)), len(task.labels))).astype(np.float32)) for _ in range(12)]
    rows = [
        Row("x", labels=tuple(label for label in MULTI.labels if rng.random() < 0.4))
        if task.kind == "multi-label"
        else Row("x", task.labels[int(rng.integers(2))])
        for _ in found
    ]
    windows = Windows.of(rows, found, task)
    weights = np.array([-0.4, 0.9, 1.5, 0.3])
    served = np.stack([i.classified(task, Joining(pooling="learned", weights=tuple(weights))).scores for i in found])
    expected = losses(served, gold_matrix(rows, task), task).mean() + weights @ weights / 50 / len(rows)
    assert windows.loss(weights)[0] == pytest.approx(expected, abs=1e-5)
    assert check_grad(lambda w: windows.loss(w)[0], lambda w: windows.loss(w)[1], weights) < 1e-5


def test_a_row_is_scored_under_weights_that_were_fitted_without_it() -> None:
    rows, found = last_tells(30)
    found[7] = said(np.zeros((1, 2), np.float32))
    joinings = cross_validated(rows, found, TASK)
    assert len({joining.weights for joining in joinings}) == 5 + 1  # five folds, and the row with a single window
    lies = list(rows)
    lies[3] = Row("x", "yes" if rows[3].label == "no" else "no")
    again = cross_validated(lies, found, TASK)
    assert again[3] == joinings[3] and any(a != b for a, b in zip(again, joinings, strict=True))


def candidate(name: Pooling, wrong: range, nll: float = 0.5) -> Candidate:
    """A pooling that is wrong on some of 400 rows, half of which say "yes"."""
    answers = [1 - row % 2 if row in wrong else row % 2 for row in range(400)]
    return Candidate(name, scores_of(ROWS, answers, TASK), nll)


ROWS = [Row("x", TASK.labels[row % 2]) for row in range(400)]


def test_the_best_on_dev_is_taken() -> None:
    mean = candidate("mean", range(60), 0.4)
    assert elect([mean, candidate("lead", range(2, 59), 0.6)], ROWS) == "lead"
    assert (
        elect([mean, candidate("lead", range(2, 59), 0.6), candidate("learned", range(10, 62), 0.7)], ROWS) == "learned"
    )


def test_one_row_is_no_evidence_and_likelihood_decides_then() -> None:
    mean, lead = candidate("mean", range(60), 0.4), candidate("lead", range(1, 60), 0.5)
    assert elect([mean, lead], ROWS) == "mean"
    assert elect([candidate("mean", range(60), 0.5), candidate("lead", range(60), 0.4)], ROWS) == "lead"
    assert elect([candidate("lead", range(60), 0.4), candidate("mean", range(60), 0.4)], ROWS) == "mean"


def test_where_the_last_window_tells_learned_is_elected() -> None:
    rows, found = last_tells(100)
    candidates, weights = compare(label_head(rows, found, TASK))
    assert [item.name for item in candidates][-1] == "learned" and weights
    assert elect(candidates, rows) == "learned"


def test_a_few_rows_with_several_windows_teach_nothing() -> None:
    rows, found = last_tells(9)
    candidates, weights = compare(label_head(rows, found, TASK))
    assert "learned" not in [item.name for item in candidates] and weights == ()


def test_joined_documents_keep_their_entities() -> None:
    rows = [
        Row("甲在北京。", entities=(Entity(0, 1, "PER"), Entity(2, 4, "LOC"))),
        Row("没有。", entities=()),
        Row("去上海", entities=(Entity(1, 3, "LOC"),)),
        Row("乙来了", entities=(Entity(0, 1, "PER"),)),
    ]
    documents = joined(rows, 8)
    assert [item.parts for item in documents] == [(0, 1), (2, 3)]
    for document in documents:
        told = [document.row.text[item.start : item.end] for item in document.row.entities or ()]
        assert told == [rows[p].text[e.start : e.end] for p in document.parts for e in rows[p].entities or ()]
        for place, start in zip(document.parts, document.starts, strict=True):
            assert document.row.text[start:].startswith(rows[place].text)


def test_the_heads_of_two_are_two_plain_tasks_with_the_rows_that_tell() -> None:
    task = Task(kind="multi-task", labels=("no", "yes"), token_labels=("O", "B-PER", "I-PER"))
    rows = [Row("x", "no"), Row("x", entities=()), Row("x", "yes", entities=())]
    found = [Predicted(said(np.zeros((1, 2))).encoded, [np.zeros(2)], [np.zeros((10, 3))]) for _ in rows]
    labels, tags = label_head(rows, found, task), tag_head(rows, found, task)
    assert (labels.rows, labels.task.kind) == ([rows[0], rows[2]], "single-label")
    assert (tags.rows, tags.task.kind, tags.task.labels) == (rows[1:], "token-classification", task.token_labels)
    assert tags.found[0].logits[0].shape == (10, 3) and label_head(rows, found, TASK).found == found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert-classes", "bert-multilabel", "ernie-multitask", "bert-pairs"])
def test_the_step_records_every_candidate_and_what_was_chosen(name: str, exported: Copy) -> None:
    manifest = exported(name).manifest
    record = manifest.artifacts["onnx_fused"].details["pooling"]
    assert isinstance(record, dict) and isinstance(record["candidates"], dict)
    assert list(record["candidates"]) == [*POOLINGS, "learned"]
    assert record["chosen"] == {
        "pooling": manifest.text.pooling,
        "weights": list(manifest.text.pooling_weights),
        "stitching": manifest.text.stitching,
        "thresholds": list(manifest.task.thresholds),
    }
    assert len(manifest.text.pooling_weights) == len(FEATURES)
    assert bool(manifest.task.thresholds) == (name == "bert-multilabel")
    assert ("stitching" in record) == (name == "ernie-multitask")
    for artifact in ("onnx_fp32", "onnx_fused"):
        parity = manifest.artifacts[artifact].parity
        assert parity is not None and parity.label_agreement == 1


@pytest.mark.slow
def test_a_tagger_is_tried_on_joined_documents(exported: Copy) -> None:
    manifest = exported("bert-tags").manifest
    record = manifest.artifacts["onnx_fused"].details["pooling"]
    assert isinstance(record, dict) and isinstance(record["stitching"], dict)
    assert "candidates" not in record
    assert set(record["stitching"]) == {"documents", "standard_error", "context", "average"}


def _without_agreement(artifact: Artifact) -> Artifact:
    parity = artifact.parity and artifact.parity.model_copy(update={"label_agreement": 0.0})
    return artifact.model_copy(update={"parity": parity})


@pytest.mark.slow
def test_another_pooling_is_written_artifacts_stay_and_quality_follows(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-classes")
    text = bundle.manifest.text.model_copy(update={"pooling": "first"})
    bundle = bundle.save(bundle.manifest.model_copy(update={"text": text}))
    before = bundle.manifest.artifacts
    wrong = {name: _without_agreement(item) for name, item in before.items()}
    bundle = bundle.save(bundle.manifest.model_copy(update={"artifacts": wrong}))
    dev = DevSplit(bundle)
    bundle = pooling(bundle, journal, dev)
    assert bundle.manifest.text.pooling == "mean"  # the tiny dev rows are labelled with what the mean says
    bundle.verify()
    after = open_bundle(bundle.root).manifest.artifacts
    assert {name: item.sha256 for name, item in after.items()} == {name: item.sha256 for name, item in before.items()}
    # What an artifact's answers share with the trained model's is measured anew under the new pooling.
    for name in ("paddle_static", "onnx_fp32", "onnx_fused", "onnx_int8"):
        assert after[name].parity == before[name].parity, name
    bundle = gate(bundle, journal, dev)
    fused = bundle.manifest.artifacts["onnx_fused"]
    assert fused.quality is not None and fused.quality.metrics["accuracy"] == 1
    assert "pooling" in fused.details


@pytest.mark.slow
def test_the_same_pooling_twice_is_up_to_date_and_answers_are_not_computed_again(copied: Copy, tmp_path: Path) -> None:
    bundle = copied("bert-multilabel")
    words = io.StringIO()
    journal = Journal(tmp_path / "export.log", Console(file=words, width=200))
    dev = DevSplit(bundle)
    manifest = (bundle.root / "bundle.json").read_bytes()
    assert pooling(bundle, journal, dev) == bundle and "up to date" in words.getvalue()
    assert dev.predictions_of("onnx_fused", journal, bundle) is dev.predictions_of("onnx_fused", journal, bundle)
    pooling(bundle, journal, dev, force=True)
    assert (bundle.root / "bundle.json").read_bytes() == manifest
    assert "learned" in words.getvalue() and "thresholds: bad" in words.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "taken"), [("first", "first"), ("learned", "learned")])
def test_a_pooling_that_the_recipe_names_is_kept(recipe: str, taken: str, copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-multilabel")
    paddle = bundle.manifest.artifacts["paddle"]
    artifacts = {
        **bundle.manifest.artifacts,
        "paddle": paddle.model_copy(update={"details": {"pooling": recipe}}),
    }
    text = bundle.manifest.text.model_copy(update={"pooling": "first"})
    bundle = bundle.save(bundle.manifest.model_copy(update={"artifacts": artifacts, "text": text}))
    bundle = pooling(bundle, journal, DevSplit(bundle))
    assert bundle.manifest.text.pooling == taken


@pytest.mark.slow
def test_rows_of_one_window_leave_nothing_to_choose(copied: Copy, tmp_path: Path) -> None:
    bundle = copied("bert-classes")
    text = bundle.manifest.text.model_copy(update={"pooling": "lead"})
    bundle = bundle.save(bundle.manifest.model_copy(update={"text": text}))
    words = io.StringIO()
    dev = DevSplit(bundle)
    dev.rows = [row for row in dev.rows if len(row.text) < 20]
    bundle = pooling(bundle, Journal(tmp_path / "export.log", Console(file=words, width=200)), dev)
    assert "every dev row has one window" in words.getvalue() and bundle.manifest.text.pooling == "lead"


@pytest.mark.slow
def test_dev_rows_in_long_neutral_text_choose_too(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-classes")
    dev = DevSplit(bundle)
    found = dev.predictions_of("onnx_fused", journal, bundle)
    long = [place for place, item in enumerate(found) if len(item.logits) > 1]
    first = answers_of([found[place] for place in long], bundle.manifest.task, Joining(pooling="first"))
    labels = bundle.manifest.task.labels
    said_first = [Row(dev.rows[place].text, labels[answer]) for place, answer in zip(long, first, strict=True)]
    file = bundle.path("splits/dev_long.jsonl")
    write_rows(file, said_first)
    ref = FileRef(file="splits/dev_long.jsonl", sha256=sha256_of(file), bytes=file.stat().st_size)
    splits = {**bundle.manifest.splits, "dev_long": ref}
    bundle = bundle.save(bundle.manifest.model_copy(update={"splits": splits}))
    dev = DevSplit(bundle)
    dev.rows = [row for row in dev.rows if len(row.text) < 20]  # of one window each: alone they choose nothing
    record = pooling(bundle, journal, dev).manifest.artifacts["onnx_fused"].details["pooling"]
    assert isinstance(record, dict) and isinstance(record["candidates"], dict)
    assert record["long_rows"] == record["rows_with_several_windows"] == len(long)
    assert record["candidates"]["first"]["accuracy"] == 1 > record["candidates"]["mean"]["accuracy"]
    assert list(record["candidates"]) == [*POOLINGS, "telling", "learned"]  # only such lessons teach what tells
