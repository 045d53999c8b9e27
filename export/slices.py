"""Two forms of a model side by side on the dev rows: as a whole, per class and per length; and which losses count.

A slice of few rows must not decide by one of them: an earlier gate fell by 2.6 points of macro-F1 because one row of a
class of 13 had changed. So a loss above the tolerance counts only if it is also one that other rows of the same kind
would show:

- a figure (F1, accuracy) counts when a paired bootstrap over the rows (Efron 1979; Koehn 2004 for paired systems)
  says that it falls at all, with an error of at most `ERROR`, shared by all slices that are judged (Bonferroni);
- changed answers of a slice count when so many would be improbable (exact binomial tail) if the share that may change
  were the true one, and never fewer than `FEW` of them;
- of all rows together the share of equal answers counts as it stands, but again not below `FEW` changed rows: a dev
  split of under 200 rows cannot show 99%.

Calibration is the expected calibration error (Naeini et al. 2015; Guo et al. 2017) in ten bins of equal width. What is
binned: a classifier's best score, against whether the label is right; every label's score of a multi-label task,
against whether the row has it; every found entity's score, against whether it is right to the character.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from bundle.decode import FloatArray
from bundle.manifest import Joining, Task
from bundle.predict import Predicted
from bundle.rows import Row
from export.heads import Head, label_head, tag_head

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# The chance that any slice is refused though nothing was lost, for all slices together.
ERROR = 0.05
# Fewer changed rows than this never refuse a form, unless every answer must be the same.
FEW = 3
BINS = 10
# Losses told in sentences.
TOLD = 6
RESAMPLES = 2000


@dataclass(frozen=True)
class Tolerance:
    """What INT8 may lose.

    Attributes:
        max_drop: largest loss of a figure (macro-F1, entity F1 of a tagger, both of a multi-task model; F1 of a class;
            accuracy, exact match or F1 of a length), as a fraction: 0.01 is one point.
        min_agreement: smallest share of rows that INT8 answers as fp32 does, 0 to 1.
        max_shift: largest change of the mean confidence, and largest rise of the calibration error, over all rows, as
            a fraction.
        max_noise: largest mean difference of a logit, as a share of the spread (standard deviation) of fp32's logits.
    """

    max_drop: float = 0.01
    min_agreement: float = 0.99
    max_shift: float = 0.02
    max_noise: float = 0.15


@dataclass(frozen=True)
class Said:
    """What one form said of a head's rows, as numbers whose sums over any rows give that choice's figures.

    Attributes:
        answers: one of each row, comparable.
        parts: what of the answer belongs to each label: (rows)(labels).
        hits, found: float64 (rows, labels), right answers and answers given.
        right: bool (rows,), whether the whole answer is right.
        confidence, true, count: float64 (rows, labels, bins), see the module's docstring; by the label that is stated.
    """

    answers: list[Any]
    parts: list[tuple[Any, ...]]
    hits: Floats
    found: Floats
    right: Bools
    confidence: Floats
    true: Floats
    count: Floats


@dataclass
class Slice:
    """Some of the dev rows, and what both forms are worth on them.

    Attributes:
        head: ``labels`` or ``entities`` of a multi-task model; else empty.
        group, name: ``all``; ``class`` and a label (its rows are those that have it or are given it by either form);
            ``length`` and a range of tokens.
        figure: name of ``before`` (fp32) and ``after`` (INT8).
        changed: rows whose answer is another; of a class, whose answer as far as that class goes.
        max_logit, mean_logit: difference of a logit.
        ece, confidence: calibration error and mean confidence, fp32 and INT8, 0 to 1.
        failed: why the form may not be served.
    """

    head: str
    group: Literal["all", "class", "length"]
    name: str
    rows: int
    figure: str
    before: float
    after: float
    changed: int
    max_logit: float
    mean_logit: float
    ece: tuple[float, float]
    confidence: tuple[float, float]
    failed: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The slice in words, as a sentence begins."""
        words = {"all": "", "class": f"class {self.name}", "length": f"texts of {self.name} tokens"}[self.group]
        return ", ".join(filter(None, (self.head, words)))

    def record(self) -> dict[str, JsonValue]:
        """As the report keeps it."""
        return {
            "head": self.head,
            "group": self.group,
            "name": self.name,
            "rows": self.rows,
            "figure": self.figure,
            "before": round(self.before, 6),
            "after": round(self.after, 6),
            "changed": self.changed,
            "max_logit": round(self.max_logit, 6),
            "mean_logit": round(self.mean_logit, 6),
            "ece": [round(value, 6) for value in self.ece],
            "confidence": [round(value, 6) for value in self.confidence],
            "failed": list(self.failed),
        }


@dataclass
class Comparison:
    """Two forms on the same rows.

    Attributes:
        slices: all rows of each head first, then classes, then lengths.
        changed: bool (rows,); a row counts if a head that it can judge answers otherwise.
        failing: bool (rows,); rows of a slice that failed.
        differences: float64 (rows,), the largest difference of a logit.
        noise: mean difference of a logit as a share of fp32's spread; the worse head's.
        spread: standard deviation of fp32's logits; the first head's.
        notes: what the reader should know of the judgement.
    """

    slices: list[Slice]
    changed: Bools
    failing: Bools
    differences: Floats
    noise: float
    spread: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> list[str]:
        """Why the form may not be served, the losses of all rows first; empty if it may. `slices` has all of it."""
        told = [f"{item.where}: {reason}" if item.where else reason for item in self.slices for reason in item.failed]
        more = len(told) - TOLD
        return told if more <= 1 else [*told[:TOLD], f"{more} more losses of classes and lengths"]


def compare_forms(
    rows: Sequence[Row],
    before: Sequence[Predicted],
    after: Sequence[Predicted],
    task: Task,
    joining: Joining,
    ends: Sequence[int],
    tolerance: Tolerance,
) -> Comparison:
    """Compares two forms of a model and judges the second.

    Args:
        before, after: what fp32 and INT8 said of the rows.
        ends: upper ends of the length buckets, in tokens.
    """
    total = Comparison([], np.zeros(len(rows), bool), np.zeros(len(rows), bool), np.zeros(len(rows)), 0.0)
    heads = _heads(rows, before, after, task)
    sides = [Pair(name, places, old, new, joining, ends) for name, places, old, new in heads if places]
    total.spread = sides[0].spread if sides else 0.0
    shares = sum(len(side.labels) + len(side.lengths) for side in sides) * 2
    for side in sides:
        _judge_all(side, tolerance, total)
        places = np.array(side.places)
        total.changed[places] |= ~side.same
        total.differences[places] = np.maximum(total.differences[places], side.differences)
    for side in sides:  # after all rows of every head
        for item, chosen in side.parts():
            _judge_part(side, item, chosen, tolerance, ERROR / max(1, shares))
            total.slices.append(item)
            if item.failed:
                total.failing[np.array(side.places)[chosen.rows]] = True
    return total


def _heads(
    rows: Sequence[Row], before: Sequence[Predicted], after: Sequence[Predicted], task: Task
) -> list[tuple[str, list[int], Head, Head]]:
    if task.kind != "multi-task":
        make = tag_head if task.tags else label_head
        return [("", list(range(len(rows))), make(rows, before, task), make(rows, after, task))]
    told = (
        ("labels", label_head, [n for n, row in enumerate(rows) if row.label is not None]),
        ("entities", tag_head, [n for n, row in enumerate(rows) if row.entities is not None]),
    )
    return [(name, places, make(rows, before, task), make(rows, after, task)) for name, make, places in told]


@dataclass(frozen=True)
class Chosen:
    """What a slice is made of.

    Attributes:
        rows: bool (rows,), the rows it tells about.
        label: the label whose F1 it is; None for whole answers.
        same: bool (rows,), whether both forms answer alike as far as the slice goes.
    """

    rows: Bools
    label: int | None
    same: Bools


class Pair:
    """One head's rows with what two forms said of them."""

    def __init__(
        self, name: str, places: list[int], before: Head, after: Head, joining: Joining, ends: Sequence[int]
    ) -> None:
        self.name, self.places, self.task = name, places, before.task
        self.labels = self.task.entity_types if self.task.tags else self.task.labels
        self.before, self.after = said(before, joining), said(after, joining)
        self.wanted = wanted(before, self.labels)
        self.same = np.array([a == b for a, b in zip(self.before.answers, self.after.answers, strict=True)], bool)
        gaps = [_gaps(a, b) for a, b in zip(before.found, after.found, strict=True)]
        self.differences = np.array([gap.max() for gap in gaps])
        self.sums = np.array([(gap.sum(), gap.size) for gap in gaps])  # (rows, 2)
        self.spread = _spread(before.found)
        tokens = np.array([item.encoded.tokens for item in before.found])
        self.lengths: list[tuple[str, Bools]] = []
        for low, high in pairwise([0, *ends, 1 << 62]):
            chosen = (tokens > low) & (tokens <= high)
            if chosen.any():
                self.lengths.append((f"{low + 1}-{high}" if high < 1 << 62 else f"over {low}", chosen))
        self._weights: npt.NDArray[np.float32] | None = None

    @property
    def headline(self) -> str:
        """The figure that all rows are judged by."""
        return "f1" if self.task.tags else "macro_f1"

    @property
    def row_figure(self) -> str:
        """The figure of a few rows."""
        return "f1" if self.task.tags else "exact_match" if self.task.kind == "multi-label" else "accuracy"

    def parts(self) -> list[tuple[Slice, Chosen]]:
        """The classes, then the lengths."""
        made: list[tuple[Slice, Chosen]] = []
        for number, label in enumerate(self.labels):
            given = self.before.found[:, number] + self.after.found[:, number] + self.wanted[:, number] > 0
            same = np.array(
                [a[number] == b[number] for a, b in zip(self.before.parts, self.after.parts, strict=True)], bool
            )
            if given.any():
                chosen = Chosen(given, number, same)
                made.append((self.slice("class", label, "f1", chosen), chosen))
        for name, inside in self.lengths:
            chosen = Chosen(inside, None, self.same)
            made.append((self.slice("length", name, self.row_figure, chosen), chosen))
        return made

    def slice(self, group: Literal["all", "class", "length"], name: str, figure: str, chosen: Chosen) -> Slice:
        """Measures some rows."""
        weights = chosen.rows.astype(np.float64)[None]
        before, after = (float(self.value(form, figure, chosen, weights)[0]) for form in (self.before, self.after))
        total, count = self.sums[chosen.rows].sum(axis=0)
        calibrated = [self.calibration(form, chosen, weights) for form in (self.before, self.after)]
        return Slice(
            head=self.name,
            group=group,
            name=name,
            rows=int(chosen.rows.sum()),
            figure=figure,
            before=before,
            after=after,
            changed=int((~chosen.same & chosen.rows).sum()),
            max_logit=float(self.differences[chosen.rows].max()),
            mean_logit=float(total / count),
            ece=(float(calibrated[0][0][0]), float(calibrated[1][0][0])),
            confidence=(float(calibrated[0][1][0]), float(calibrated[1][1][0])),
        )

    def value(self, form: Said, figure: str, chosen: Chosen, weights: npt.NDArray[Any]) -> Floats:
        """A figure under weights (ways, rows) of the rows: float64 (ways,)."""
        weights = weights * chosen.rows
        if figure in ("accuracy", "exact_match"):
            mean: Floats = (weights @ form.right) / np.maximum(weights.sum(axis=1), 1e-9)
            return mean
        counts = [form.hits, form.found, self.wanted]  # (rows, labels) each
        if chosen.label is not None:
            counts = [values[:, [chosen.label]] for values in counts]
        elif figure == "f1":
            counts = [values.sum(axis=1, keepdims=True) for values in counts]
        hits, found, gold = (weights @ values for values in counts)  # (ways, labels)
        f1: Floats = (2 * hits / np.maximum(found + gold, 1e-9)).mean(axis=1)
        return f1

    def calibration(self, form: Said, chosen: Chosen, weights: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        """Expected calibration error and mean confidence under weights (ways, rows): float64 (ways,) each."""
        weights = weights * chosen.rows
        label = slice(None) if chosen.label is None else slice(chosen.label, chosen.label + 1)
        confidence, true, count = (
            weights @ values[:, label].sum(axis=1) for values in (form.confidence, form.true, form.count)
        )  # (ways, bins)
        number = np.maximum(count.sum(axis=1), 1e-9)
        return np.abs(confidence - true).sum(axis=1) / number, confidence.sum(axis=1) / number

    @property
    def resampled(self) -> npt.NDArray[np.float32]:
        """float32 (ways, rows): how often each row is drawn; the same on every run."""
        if self._weights is None:
            count = len(self.places)
            rng = np.random.default_rng(20)
            self._weights = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float32)
        return self._weights

    def is_loss(self, loss: Callable[[npt.NDArray[Any]], Floats], error: float) -> bool:
        """Whether a loss is above zero on nearly all choices of rows: all but the share ``error``."""
        return float((loss(self.resampled) <= 1e-12).mean()) <= error


def _judge_all(side: Pair, tolerance: Tolerance, total: Comparison) -> None:
    every = Chosen(np.ones(len(side.places), bool), None, side.same)
    item = side.slice("all", "", side.headline, every)
    total.slices.append(item)
    _judge_figure(side, item, every, tolerance, ERROR)
    changed, share = item.changed, 1 - item.changed / item.rows
    allowed = math.floor(item.rows * (1 - tolerance.min_agreement) + 1e-9)
    if tolerance.min_agreement < 1 and allowed < FEW - 1:
        total.notes.append(
            f"{item.rows} rows cannot show that {tolerance.min_agreement:.2%} are answered alike: "
            f"fewer than {FEW} changed rows are not counted against it"
        )
        allowed = FEW - 1
    if changed > allowed:
        item.failed.append(
            f"{share:.2%} of the {item.rows} dev rows are answered as fp32 does; "
            f"{tolerance.min_agreement:.2%} are needed"
        )
    shift = item.confidence[1] - item.confidence[0]
    if abs(shift) > tolerance.max_shift and side.is_loss(
        lambda weights: (
            np.sign(shift)
            * (side.calibration(side.after, every, weights)[1] - side.calibration(side.before, every, weights)[1])
        ),
        ERROR,
    ):
        item.failed.append(
            f"the mean confidence moves from {item.confidence[0]:.3f} to {item.confidence[1]:.3f}; "
            f"{tolerance.max_shift:g} is allowed"
        )
    if item.ece[1] - item.ece[0] > tolerance.max_shift and side.is_loss(
        lambda weights: (
            side.calibration(side.after, every, weights)[0] - side.calibration(side.before, every, weights)[0]
        ),
        ERROR,
    ):
        item.failed.append(
            f"the calibration error rises from {item.ece[0]:.3f} to {item.ece[1]:.3f}; "
            f"{tolerance.max_shift:g} is allowed"
        )
    noise = item.mean_logit / side.spread
    total.noise = max(total.noise, noise)
    if not noise <= tolerance.max_noise:  # not a number either
        item.failed.append(
            f"a logit differs by {item.mean_logit:.3g} in the mean, {noise:.1%} of their spread; "
            f"{tolerance.max_noise:.1%} is allowed"
        )


def _judge_part(side: Pair, item: Slice, chosen: Chosen, tolerance: Tolerance, error: float) -> None:
    _judge_figure(side, item, chosen, tolerance, error)
    may = 1 - tolerance.min_agreement
    if item.changed >= FEW and item.changed > may * item.rows and tail(item.rows, item.changed, may) <= error:
        item.failed.append(f"{item.changed} of {item.rows} rows are answered otherwise; {may:.1%} may be")


def _judge_figure(side: Pair, item: Slice, chosen: Chosen, tolerance: Tolerance, error: float) -> None:
    if item.before - item.after > tolerance.max_drop + 1e-9 and side.is_loss(
        lambda weights: (
            side.value(side.before, item.figure, chosen, weights) - side.value(side.after, item.figure, chosen, weights)
        ),
        error,
    ):
        item.failed.append(
            f"{item.figure} falls by {100 * (item.before - item.after):.2f} points ({item.before:.4f} to "
            f"{item.after:.4f}); {100 * tolerance.max_drop:g} are allowed"
        )


def tail(rows: int, changed: int, share: float) -> float:
    """The chance that at least ``changed`` of so many rows change if each does with this chance (exact binomial)."""
    share = min(max(share, 0.0), 1.0)
    if changed <= 0 or share >= 1:
        return 1.0
    if share <= 0:
        return 0.0
    logs = [
        math.lgamma(rows + 1)
        - math.lgamma(k + 1)
        - math.lgamma(rows - k + 1)
        + k * math.log(share)
        + (rows - k) * math.log1p(-share)
        for k in range(changed)
    ]
    return max(0.0, 1 - math.fsum(math.exp(value) for value in logs))


def wanted(head: Head, labels: Sequence[str]) -> Floats:
    """How many answers of each label a row wants: float64 (rows, labels)."""
    table = np.zeros((len(head.rows), len(labels)))
    index = {label: number for number, label in enumerate(labels)}
    for number, row in enumerate(head.rows):
        for name in _gold(row, head.task):
            if name in index:
                table[number, index[name]] += 1
    return table


def _gold(row: Row, task: Task) -> Sequence[str]:
    if task.tags:
        return [label for *_, label in set(row.spans)]
    return tuple(row.labels or ()) if task.kind == "multi-label" else (row.label or "",)


def said(head: Head, joining: Joining) -> Said:
    """Counts what one form said of a head's rows."""
    task = head.task
    labels = task.entity_types if task.tags else task.labels
    shape = (len(head.rows), len(labels))
    result = Said([], [], np.zeros(shape), np.zeros(shape), np.zeros(shape[0], bool), *np.zeros((3, *shape, BINS)))
    for number, (row, item) in enumerate(zip(head.rows, head.found, strict=True)):
        (_say_entities if task.tags else _say_labels)(result, number, row, item, task, joining)
    return result


def _say_labels(result: Said, number: int, row: Row, item: Predicted, task: Task, joining: Joining) -> None:
    found = item.classified(task, joining)
    gold = {task.labels.index(name) for name in _gold(row, task) if name in task.labels}
    result.answers.append(found.chosen)
    result.parts.append(tuple(label in found.chosen for label in range(len(task.labels))))
    for label in found.chosen:
        result.found[number, label] = 1
        result.hits[number, label] = label in gold
    result.right[number] = set(found.chosen) == gold
    stated = range(len(task.labels)) if task.kind == "multi-label" else found.chosen
    for label in stated:
        _state(result, number, label, float(found.scores[label]), label in gold)


def _say_entities(result: Said, number: int, row: Row, item: Predicted, task: Task, joining: Joining) -> None:
    found = item.tagged(task, joining)
    gold = set(row.spans)
    spans = [(entity.start, entity.end, entity.label) for entity in found]
    result.answers.append(tuple(spans))
    result.parts.append(tuple(tuple(span for span in spans if span[2] == name) for name in task.entity_types))
    for entity, span in zip(found, spans, strict=True):
        label = task.entity_types.index(entity.label)
        result.found[number, label] += 1
        result.hits[number, label] += span in gold
        _state(result, number, label, entity.score, span in gold)
    result.right[number] = set(spans) == gold


def _state(result: Said, number: int, label: int, score: float, true: bool) -> None:
    score = float(np.nan_to_num(score))  # a logit that is no number is told by the noise
    place = (number, label, min(int(score * BINS), BINS - 1))
    result.confidence[place] += score
    result.true[place] += true
    result.count[place] += 1


def _gaps(left: Predicted, right: Predicted) -> FloatArray:
    """Absolute differences of all logits of a row, flat."""
    return np.concatenate([np.abs(a - b).ravel() for a, b in zip(left.logits, right.logits, strict=True)])


def _spread(found: Sequence[Predicted]) -> float:
    """The standard deviation of a label's logits over windows or tokens; the mean over labels."""
    logits = np.concatenate([np.atleast_2d(values) for item in found for values in item.logits])
    return max(float(logits.std(axis=0).mean()), 1e-6)
