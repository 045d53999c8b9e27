"""Pictures of a finished model's answers: which labels are confused, how sure it is, how it fares by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.report.drawing import Figure, Palette
from finetune.report.source import Json

# A confusion matrix with more labels shows no counts, and with still more nothing that an eye can tell.
COUNTED, MOST_LABELS = 12, 40
# Rows of a length bucket without which its score says nothing.
MIN_BUCKET = 5


def confusion(split: Json, labels: Sequence[str]) -> Figure | None:
    """The confusion matrix of a split; None of a tagger or a multi-label task."""
    if not split.get("confusion") or len(labels) > MOST_LABELS:
        return None
    table = np.array(split["confusion"])
    size = len(labels)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)

    def draw(figure: Any, palette: Palette) -> None:
        axes = figure.subplots()
        axes.spines[:].set_visible(False)
        for gold in range(size):
            for answer in range(size):
                # By opacity, so that an empty cell has the page's own colour, dark or light.
                colour = palette.series[2 if gold == answer else 1]
                axes.add_patch(
                    _rectangle(answer - 0.48, gold - 0.48, 0.96, 0.96, colour, 0.06 + 0.6 * float(share[gold, answer]))
                )
                if size <= COUNTED:
                    axes.text(
                        answer, gold, f"{table[gold, answer]}\n{share[gold, answer]:.0%}", ha="center", va="center"
                    )
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.set_xticks(range(size), labels, rotation=0 if size < 6 else 40, ha="center" if size < 6 else "right")
        axes.set_yticks(range(size), labels)
        axes.tick_params(length=0)
        axes.set_xlabel("answer")
        axes.set_ylabel("label of the row")
        axes.set_title(f"{split['split']}, {split['rows']:,} rows")

    width = min(9.0, 3.0 + 0.9 * min(size, COUNTED))
    return Figure(
        f"confusion-{split['split']}",
        "Which labels are taken for which",
        (width, 0.8 * width),
        draw,
        "A row is what a text is, a column what the model said: how many, and the share of its row. Green is right.",
        "The strongest orange cell: the two labels that are most often confused. A whole orange column is a "
        "label that is "
        "given too readily.",
    )


def _rectangle(left: float, top: float, width: float, height: float, colour: str, opacity: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((left, top), width, height, facecolor=colour, alpha=opacity, linewidth=0)


def classes(split: Json) -> Figure | None:
    """Precision, recall and F1 by label or entity type."""
    rows = split.get("classes") or []
    if not rows or len(rows) > MOST_LABELS:
        return None

    def draw(figure: Any, palette: Palette) -> None:
        axes = figure.subplots()
        places = np.arange(len(rows))
        for number, name in enumerate(("precision", "recall", "f1")):
            axes.barh(
                places + 0.26 * (number - 1),
                [row[name] for row in rows],
                0.24,
                label=name,
                color=palette.series[number],
            )
        for place, row in zip(places, rows, strict=True):
            axes.annotate(f"{row['f1']:.2f}", (row["f1"], place + 0.26), textcoords="offset points", xytext=(4, -4))
        axes.set_yticks(places, [f"{row['label']} ({row['support']:,})" for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.08)
        axes.grid(True, axis="x")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12 - 0.25 / len(rows)), ncols=3)
        axes.set_title(f"{split['split']} (in brackets: rows or entities of each)")

    return Figure(
        f"classes-{split['split']}",
        "Label by label",
        (6.4, 1.5 + 0.55 * len(rows)),
        draw,
        "Precision (how many of the given ones are right), recall (how many of the true ones are found) and "
        "their mean F1.",
        "Low recall beside high precision: the label is given too rarely. Low F1 with few rows: more rows of it, or "
        "train.class_balance.",
    )


def reliability(split: str, found: Json) -> Figure:
    """How often answers of a certain confidence are right."""
    bins, count = found["bins"], len(found["bins"])

    def draw(figure: Any, palette: Palette) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        middles = (np.arange(count) + 0.5) / count
        known = [(m, one) for m, one in zip(middles, bins, strict=True) if one["count"]]
        upper.plot([0, 1], [0, 1], ":", color=palette.ink, linewidth=1, label="as right as sure")
        upper.bar([m for m, _ in known], [one["right"] for _, one in known], 0.9 / count, color=palette.series[0])
        upper.plot([one["confidence"] for _, one in known], [one["right"] for _, one in known], "o", color=palette.ink)
        upper.set_ylim(0, 1.02)
        upper.set_xlim(0, 1)
        upper.grid(True)
        upper.legend(loc="upper left")
        upper.set_title(f"share of right answers, {split}: expected calibration error {found['error']:.3f}")
        lower.bar(
            middles, [one["count"] / max(found["answers"], 1) for one in bins], 0.9 / count, color=palette.series[3]
        )
        lower.set_title(f"share of all {found['answers']:,} answers")
        lower.set_xlabel("confidence")

    return Figure(
        f"calibration-{split}",
        "Is it as right as it is sure?",
        (6.4, 5.2),
        draw,
        "Answers by the probability that the model gives them (of a tagger: tokens; of a multi-label task: each "
        "label of "
        "a row), and how many of each group are right.",
        "Bars below the dotted line: the model is surer than it is right, and a threshold on its scores would "
        "promise too "
        "much. Bars with few answers (lower picture) say little.",
    )


def by_length(split: Json) -> Figure | None:
    """The headline score by length of the text."""
    buckets = {name: one for name, one in (split.get("buckets") or {}).items() if one["rows"] >= MIN_BUCKET}
    names = ("mean_f1", "accuracy", "exact_match", "f1")
    metric = next((name for name in names if name in split.get("metrics", {})), None)
    if metric is None or len(buckets) < 2:
        return None

    def draw(figure: Any, palette: Palette) -> None:
        axes = figure.subplots()
        values = [one.get(metric, 0.0) for one in buckets.values()]
        axes.bar(range(len(buckets)), values, 0.7, color=palette.series[0])
        for place, (value, one) in enumerate(zip(values, buckets.values(), strict=True)):
            axes.annotate(f"{value:.2f}\nn={one['rows']:.0f}", (place, value), ha="center", va="bottom")
        axes.set_xticks(range(len(buckets)), list(buckets))
        axes.set_ylim(0, 1.2)
        axes.set_xlabel("tokens in the text")
        axes.set_title(f"{metric.replace('_', ' ')}, {split['split']}")

    return Figure(
        f"length-{split['split']}",
        "Short and long texts",
        (6.4, 3.8),
        draw,
        "The score of texts of each length, with how many there are.",
        "A fall at the right: long texts are read in windows, and their pooling or text.max_tokens may need "
        "another look.",
    )
