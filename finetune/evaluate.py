"""A trained model on dev and test rows: scores, tables and pictures. Windows are pooled exactly as in serving."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bundle.decode import POOLINGS
from bundle.folder import write_atomic
from bundle.manifest import Joining, Pooling, Task
from bundle.metrics import ClassRow
from bundle.predict import (
    Predicted,
    answers_of,
    classes_of,
    confusion_of,
    metrics_of,
    scores_of,
    thresholds_of,
)
from bundle.rows import Row
from finetune.curve.record import NAME as CURVE
from finetune.curve.record import read
from finetune.report.curves import mark_events

# A bucket with fewer rows says nothing and is left out of the picture.
MIN_BUCKET = 5


@dataclass(frozen=True)
class Evaluation:
    """A model on one split.

    Attributes:
        metrics: see `bundle.predict.scores_of`.
        classes: per class (and entity type) table.
        table: confusion matrix, int64 (gold, predicted); None for a tagger or a multi-label task.
        buckets: the headline metrics of rows by their length in tokens.
    """

    split: str
    rows: int
    of_rows: int
    windows: int
    pooling: Pooling
    metrics: dict[str, float]
    classes: list[ClassRow]
    table: np.ndarray[Any, np.dtype[np.int64]] | None
    buckets: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "rows": self.rows,
            "of_rows": self.of_rows,
            "windows": self.windows,
            "pooling": self.pooling,
            "metrics": self.metrics,
            "classes": [asdict(row) for row in self.classes],
            "confusion": None if self.table is None else self.table.tolist(),
            "buckets": self.buckets,
        }


def choose_pooling(
    rows: Sequence[Row], predicted: Sequence[Predicted], task: Task, metric: str
) -> tuple[Pooling, dict[str, dict[str, float]]]:
    """The pooling that is best on dev (ties: the one named first in `POOLINGS`), and the scores of all.

    Each pooling of a multi-label task is judged with the thresholds that are best for it.
    """
    scores: dict[str, dict[str, float]] = {}
    for how in POOLINGS:
        joining = Joining(pooling=how)
        scores[how] = metrics_of(rows, predicted, with_thresholds(rows, predicted, task, joining), joining)
    return max(POOLINGS, key=lambda how: (scores[how][metric], -POOLINGS.index(how))), scores


def with_thresholds(rows: Sequence[Row], predicted: Sequence[Predicted], task: Task, joining: Joining) -> Task:
    """A multi-label task with the thresholds that are best on these rows; any other task as it is."""
    if task.kind != "multi-label":
        return task
    return task.model_copy(update={"thresholds": thresholds_of(rows, predicted, task, joining)})


def evaluate(
    split: str,
    rows: Sequence[Row],
    predicted: Sequence[Predicted],
    task: Task,
    joining: Joining,
    buckets: Sequence[int],
    of_rows: int,
) -> Evaluation:
    """Scores one split.

    Args:
        buckets: upper ends, in tokens, of the length buckets.
        of_rows: rows of the whole split, of which ``rows`` may be a sample.
    """
    answers = answers_of(predicted, task, joining)
    return Evaluation(
        split,
        len(rows),
        of_rows,
        sum(len(answer.encoded.windows) for answer in predicted),
        joining.pooling,
        scores_of(rows, answers, task),
        classes_of(rows, answers, task),
        confusion_of(rows, answers, task),
        _by_length(rows, predicted, answers, task, buckets),
    )


def _by_length(
    rows: Sequence[Row], predicted: Sequence[Predicted], answers: Sequence[Any], task: Task, ends: Sequence[int]
) -> dict[str, dict[str, float]]:
    result = {}
    edges = [0, *ends, 1 << 62]
    for low, high in pairwise(edges):
        chosen = [number for number, answer in enumerate(predicted) if low < answer.encoded.tokens <= high]
        if chosen:
            name = f"≤ {high}" if high < 1 << 62 else f"> {low}"
            part = scores_of([rows[n] for n in chosen], [answers[n] for n in chosen], task)
            result[name] = {"rows": float(len(chosen)), **part}
    return result


def show(evaluation: Evaluation, baselines: dict[str, dict[str, float]], print_: Callable[[Any], None]) -> None:
    """Prints the tables of an evaluation, with the baselines beside a classifier."""
    from rich.table import Table

    sample = "" if evaluation.rows == evaluation.of_rows else f" (a stratified sample of {evaluation.of_rows:,})"
    title = f"{evaluation.split}: {evaluation.rows:,} rows{sample}, {evaluation.windows:,} windows"
    classes = Table(title=f"{title}, pooling {evaluation.pooling}", title_justify="left")
    for column in ("class", "precision", "recall", "F1", "rows"):
        classes.add_column(column, justify="left" if column == "class" else "right")
    for row in evaluation.classes:
        figures = (f"{row.precision:.3f}", f"{row.recall:.3f}", f"{row.f1:.3f}", f"{row.support:,}")
        classes.add_row(row.label, *figures)
    print_(classes)
    show_scores(evaluation.split, {"model": evaluation.metrics, **baselines}, print_)


def show_scores(title: str, scores: dict[str, dict[str, float]], print_: Callable[[Any], None]) -> None:
    """Prints one line per model or baseline: all of them measured on the same rows."""
    from rich.table import Table

    titles = {
        "model": "[bold]this model[/bold]",
        "tfidf": "TF-IDF + logistic regression",
        "tfidf_balanced": "the same, balanced classes",
    }
    table = Table()
    table.add_column(title)
    names = list(next(iter(scores.values())))
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for name, values in scores.items():
        table.add_row(
            titles.get(name, name), *(f"{values[metric]:.3f}" if metric in values else "–" for metric in names)
        )
    print_(table)


def write(folder: Path, evaluations: Sequence[Evaluation], extra: dict[str, Any], labels: Sequence[str]) -> list[Path]:
    """Writes ``evaluation.json`` and ``evaluation.png`` into the run folder."""
    report = {"evaluations": {item.split: item.to_json() for item in evaluations}, "labels": list(labels), **extra}
    path = folder / "evaluation.json"
    write_atomic(path, json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    return [path, draw(folder, evaluations[-1], extra.get("history", []), labels)]


def draw(folder: Path, evaluation: Evaluation, history: Sequence[dict[str, float]], labels: Sequence[str]) -> Path:
    """The picture: training curve, confusion matrix (or entity table), score by length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (curve, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.4), constrained_layout=True)
    _draw_curve(curve, history)
    if (folder / CURVE).is_file():
        mark_events([curve], read(folder).of("event"), "black")
    if evaluation.table is not None:
        _draw_confusion(middle, evaluation.table, labels)
    else:
        _draw_classes(middle, evaluation.classes)
    metric = next(name for name in ("mean_f1", "accuracy", "micro_f1", "f1") if name in evaluation.metrics)
    buckets = {k: v for k, v in evaluation.buckets.items() if v["rows"] >= MIN_BUCKET and metric in v}
    places = np.arange(len(buckets))
    right.bar(places, [value[metric] for value in buckets.values()], color="#4c78a8")
    for place, value in zip(places, buckets.values(), strict=True):
        right.annotate(f"{value[metric]:.2f}\nn={value['rows']:.0f}", (place, value[metric]), ha="center", va="bottom")
    right.set_xticks(places, list(buckets))
    right.set_ylim(0, 1.18)
    right.set_xlabel("tokens in the text")
    right.set_title(f"{metric.replace('_', ' ')} on {evaluation.split} by length")
    path = folder / "evaluation.png"
    temporary = folder / ".evaluation.tmp.png"
    figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
    temporary.replace(path)
    return path


def _draw_curve(axes: Any, history: Sequence[dict[str, float]]) -> None:
    train = [(point["step"], point["loss"]) for point in history if "loss" in point]
    dev = [(point["step"], point["dev_loss"]) for point in history if "dev_loss" in point]
    if train:
        axes.plot(*zip(*train, strict=True), label="train loss", color="#4c78a8")
    if dev:
        axes.plot(*zip(*dev, strict=True), "o-", label="dev loss", color="#f58518")
    # A model with two heads has all three; the mean of both is what decides.
    names = ("dev_mean_f1", "dev_macro_f1", "dev_f1")
    if name := next((name for name in names if any(name in point for point in history)), ""):
        other = axes.twinx()
        points = [(point["step"], point[name]) for point in history if name in point]
        other.plot(*zip(*points, strict=True), "s--", color="#54a24b", label=name.replace("_", " "))
        other.set_ylim(0, 1)
        other.legend(loc="upper right")
    axes.set_xlabel("step")
    axes.set_title("training curve")
    if train or dev:
        axes.legend(loc="lower left")


def _draw_confusion(axes: Any, table: Any, labels: Sequence[str]) -> None:
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for gold in range(len(labels)):
        for answer in range(len(labels)):
            colour = "white" if share[gold, answer] > 0.55 else "black"
            axes.text(answer, gold, str(table[gold, answer]), ha="center", va="center", color=colour)
    # Chinese label names may have no glyph in the default font; numbers always have.
    names = [label if label.isascii() else f"class {number}" for number, label in enumerate(labels)]
    axes.set_xticks(range(len(labels)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(labels)), names)
    axes.set_xlabel("answer")
    axes.set_ylabel("gold")
    axes.set_title("confusion matrix (rows)")


def _draw_classes(axes: Any, classes: Sequence[ClassRow]) -> None:
    places = np.arange(len(classes))
    for shift, name in enumerate(("precision", "recall", "f1")):
        axes.bar(places + 0.27 * (shift - 1), [getattr(row, name) for row in classes], 0.25, label=name)
    axes.set_xticks(places, [row.label if row.label.isascii() else f"type {n}" for n, row in enumerate(classes)])
    axes.set_ylim(0, 1.05)
    axes.legend(loc="lower right")
    axes.set_title("by class (entities: strict span match)")
