"""Accuracy, macro-F1, confusion matrix, entity P/R/F1: one definition for evaluation and for the export gate.

Checked in the tests against scikit-learn and seqeval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Span = tuple[int, int, str]

# A threshold below this would not survive being written with six digits.
LEAST_THRESHOLD = 1e-6


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One line of a per-class table. ``support`` is the number of gold rows (or entities)."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


def confusion(gold: Sequence[int], predicted: Sequence[int], labels: int) -> npt.NDArray[np.int64]:
    """int64 (gold label, predicted label)."""
    table = np.zeros((labels, labels), dtype=np.int64)
    np.add.at(table, (np.asarray(gold, dtype=np.int64), np.asarray(predicted, dtype=np.int64)), 1)
    return table


def accuracy(table: npt.NDArray[np.int64]) -> float:
    """Share of rows on the diagonal of a confusion matrix."""
    total = int(table.sum())
    return float(np.trace(table) / total) if total else 0.0


def per_class(table: npt.NDArray[np.int64], labels: Sequence[str]) -> list[ClassRow]:
    """Precision, recall and F1 of every label; 0 where nothing was predicted or nothing was there."""
    return [
        _row(label, int(table[k, k]), int(table[:, k].sum()), int(table[k].sum())) for k, label in enumerate(labels)
    ]


def macro_f1(rows: Iterable[ClassRow]) -> float:
    """The unweighted mean of F1 over labels."""
    values = [row.f1 for row in rows]
    return sum(values) / len(values) if values else 0.0


def entity_scores(gold: Sequence[Sequence[Span]], predicted: Sequence[Sequence[Span]]) -> list[ClassRow]:
    """Strict span match over documents (seqeval's convention): type, start and end must all be right.

    Returns:
        one row per entity type in alphabetical order, then ``micro``.
    """
    hits: Counter[str] = Counter()
    found: Counter[str] = Counter()
    wanted: Counter[str] = Counter()
    for true, answer in zip(gold, predicted, strict=True):
        true_set, answer_set = set(true), set(answer)
        wanted.update(label for *_, label in true_set)
        found.update(label for *_, label in answer_set)
        hits.update(label for *_, label in true_set & answer_set)
    rows = [_row(label, hits[label], found[label], wanted[label]) for label in sorted(wanted | found)]
    rows.append(_row("micro", hits.total(), found.total(), wanted.total()))
    return rows


def label_scores(
    gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]], labels: Sequence[str]
) -> list[ClassRow]:
    """Precision, recall and F1 of every label of a multi-label task over its rows, then ``micro``."""
    hits: Counter[str] = Counter()
    given: Counter[str] = Counter()
    wanted: Counter[str] = Counter()
    for true, answer in zip(gold, found, strict=True):
        wanted.update(set(true))
        given.update(set(answer))
        hits.update(set(true) & set(answer))
    rows = [_row(label, hits[label], given[label], wanted[label]) for label in labels]
    rows.append(_row("micro", hits.total(), given.total(), wanted.total()))
    return rows


def best_threshold(scores: npt.NDArray[np.float32], gold: npt.NDArray[np.bool_]) -> float:
    """The threshold of one label with the best F1: half way between two scores; of equals, the one nearest to 0.5.

    Args:
        scores: float32 (rows,), 0 to 1.
        gold: bool (rows,); without a single true one, or a score above nothing, there is nothing to choose by, and
            0.5 is returned.
    """
    if not gold.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order].astype(np.float64), np.cumsum(gold[order])
    taken = np.arange(1, len(scores) + 1)
    f1 = 2 * hits / (taken + int(gold.sum()))
    following = np.append(ranked[1:], 0.0)
    middles = (ranked + following) / 2
    places = np.flatnonzero((ranked > following) & (middles >= LEAST_THRESHOLD))  # equal scores cannot be parted
    if not len(places):
        return 0.5
    places = places[f1[places] >= f1[places].max() - 1e-12]
    return float(middles[places[np.argmin(np.abs(middles[places] - 0.5))]])


def best_thresholds(scores: npt.NDArray[np.float32], gold: npt.NDArray[np.bool_]) -> tuple[float, ...]:
    """`best_threshold` of every label, with six digits; float32 and bool (rows, labels)."""
    return tuple(round(best_threshold(scores[:, n], gold[:, n]), 6) for n in range(scores.shape[1]))


def _row(label: str, hits: int, found: int, wanted: int) -> ClassRow:
    precision = hits / found if found else 0.0
    recall = hits / wanted if wanted else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return ClassRow(label, precision, recall, f1, wanted)
