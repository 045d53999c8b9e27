"""Many rows through a model, in length-sorted batches: what evaluation and the export gate both run.

Serving does not use this loop (it answers request by request), but the same encode and decode around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.decode import Classified, FloatArray, Tagged, classify, tag
from bundle.encode import Encoded, Encoder, IntArray, pad
from bundle.manifest import Joining, Task
from bundle.metrics import (
    ClassRow,
    accuracy,
    best_thresholds,
    confusion,
    entity_scores,
    label_scores,
    macro_f1,
    per_class,
)
from bundle.rows import Row

# (input_ids, token_type_ids), int64 (windows, tokens) each → the signature's outputs in its order:
# logits (windows, labels) or (windows, tokens, labels); of a multi-task model the second follows the first.
Run = Callable[[IntArray, IntArray], Sequence[FloatArray]]
# Called with (windows done, windows in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Predicted:
    """A row's windows and what the model said.

    Attributes:
        logits: per window, float32 (labels,), or (tokens of the window, labels) of a tagger.
        token_logits: of a multi-task model, per window, float32 (tokens of the window, token labels).
    """

    encoded: Encoded
    logits: list[FloatArray]
    token_logits: list[FloatArray] = field(default_factory=list)

    def classified(self, task: Task, joining: Joining) -> Classified:
        logits = self.logits[0][None] if len(self.logits) == 1 else np.stack(self.logits)
        return classify(logits, self.encoded.window_tokens, task, joining)

    def tagged(self, task: Task, joining: Joining | None = None) -> list[Tagged]:
        return tag(self.token_logits or self.logits, self.encoded, task, joining)

    @property
    def outputs(self) -> list[list[FloatArray]]:
        """What stands for each of the signature's outputs."""
        return [self.logits, self.token_logits] if self.token_logits else [self.logits]


def of_window(outputs: Sequence[FloatArray], index: int, content: slice) -> list[FloatArray]:
    """One window of a call's outputs: what was said of the whole window, or of its own tokens alone."""
    return [values[index] if values.ndim == 2 else values[index][content] for values in outputs]


def gathered(encoded: Sequence[Encoded], windows: Sequence[Sequence[Sequence[FloatArray]]]) -> list[Predicted]:
    """Texts with the outputs of their windows, (texts) (windows) (outputs) → predictions."""
    return [
        Predicted(item, *([values[place] for values in own] for place in range(len(own[0]))))
        for item, own in zip(encoded, windows, strict=True)
    ]


def encode_rows(rows: Iterable[Row], encoder: Encoder) -> list[Encoded]:
    """Encodes rows for evaluation; a text past ``max_windows`` is cut there, since a score needs an answer."""
    return [encoder.encode(row.text, row.pair, truncate=True) for row in rows]


def predict(
    encoded: Sequence[Encoded],
    encoder: Encoder,
    run: Run,
    *,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[Predicted]:
    """Runs every window of every text, windows of like length together.

    Args:
        batch_tokens: padded tokens in one call of ``run``; 1 gives every window a call of its own, which is what
            an artifact that is not batch-invariant needs.
    """
    places = [(text, window) for text, item in enumerate(encoded) for window in range(len(item.windows))]
    rows = [encoder.row(encoded[text], window) for text, window in places]
    answers: list[list[list[FloatArray]]] = [[[]] * len(item.windows) for item in encoded]
    done = 0
    for batch in batches([len(row.ids) for row in rows], batch_tokens):
        outputs = run(*pad([rows[index] for index in batch], encoder.spec.pad_id))
        for number, index in enumerate(batch):
            text, window = places[index]
            answers[text][window] = of_window(outputs, number, rows[index].content)
        done += len(batch)
        if progress:
            progress(done, len(rows))
    return gathered(encoded, answers)


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Groups inputs of like length: batches of indexes, at most ``batch_tokens`` padded tokens each (at least one)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def answers_of(predicted: Sequence[Predicted], task: Task, joining: Joining) -> list[Any]:
    """Each row's answer in a form that can be compared.

    A label's index; of a multi-label task the chosen indexes as a tuple; of a tagger the entities as a tuple of
    (start, end, type); of a multi-task model a label's index and such a tuple.
    """
    return [answer_of(row, task, joining) for row in predicted]


def answer_of(row: Predicted, task: Task, joining: Joining) -> Any:
    """One row's answer; see `answers_of`."""
    spans = tuple((item.start, item.end, item.label) for item in row.tagged(task, joining)) if task.tags else ()
    if not task.classifies:
        return spans
    found = row.classified(task, joining)
    if task.kind == "multi-label":
        return found.chosen
    return (found.label, spans) if task.tags else found.label


def readable(answer: Any, task: Task) -> Any:
    """An answer of `answers_of` in words: label names, and entities as lists."""
    if task.kind == "multi-label":
        return [task.labels[index] for index in answer]
    if task.kind == "multi-task":
        return {"label": task.labels[answer[0]], "entities": [list(span) for span in answer[1]]}
    return [list(span) for span in answer] if task.tags else task.labels[answer]


def gold_of(row: Row, task: Task) -> Any:
    """A row's own answer in words, as `readable` writes one; None where the row does not tell."""
    spans = None if row.entities is None else [list(span) for span in row.spans]
    if task.kind == "multi-label":
        return None if row.labels is None else list(row.labels)
    if task.kind == "multi-task":
        return {"label": row.label, "entities": spans}
    return spans if task.tags else row.label


def agreement(left: Sequence[object], right: Sequence[object]) -> float:
    """Share of rows with the same answer, 0 to 1."""
    return float(np.mean([a == b for a, b in zip(left, right, strict=True)])) if left else 1.0


def judged(rows: Sequence[Row], answers: Sequence[Any], task: Task) -> list[Any]:
    """The part of each answer that its row can judge.

    The row's whole answer, except of a multi-task model: an article that tells a label alone is answered alike if its
    label is, whatever entities are found in its five thousand characters, and a sentence if its entities are.
    """
    if task.kind != "multi-task":
        return list(answers)
    return [
        (None if row.label is None else label, None if row.entities is None else spans)
        for row, (label, spans) in zip(rows, answers, strict=True)
    ]


def metrics_of(rows: Sequence[Row], predicted: Sequence[Predicted], task: Task, joining: Joining) -> dict[str, float]:
    """The headline figures of what a model said; see `scores_of`."""
    return scores_of(rows, answers_of(predicted, task, joining), task)


def scores_of(rows: Sequence[Row], answers: Sequence[Any], task: Task) -> dict[str, float]:
    """The headline figures.

    accuracy and macro_f1 of a classifier; exact_match (the share of rows with just the right labels), micro_f1 and
    macro_f1 of a multi-label one; precision, recall and f1 (micro) of a tagger. A multi-task model has accuracy and
    macro_f1 on the rows that have a label, precision, recall and f1 on those that have entities (where there are such
    rows), and mean_f1, the mean of the two.

    Args:
        answers: in the form of `answers_of`, for each row.
    """
    if task.kind == "multi-task":
        labelled, tagged = (split_answers(rows, answers, head) for head in (0, 1))
        scores = _class_scores(*labelled, task) if labelled[0] else {}
        scores |= _span_scores(*tagged) if tagged[0] else {}
        heads = [scores[name] for name in ("macro_f1", "f1") if name in scores]
        return scores | ({"mean_f1": sum(heads) / len(heads)} if heads else {})
    if task.tags:
        return _span_scores(rows, answers)
    return _class_scores(rows, answers, task)


def split_answers(rows: Sequence[Row], answers: Sequence[Any], head: int) -> tuple[list[Row], list[Any]]:
    """The rows that tell what a head of a multi-task model should say (0 the label, 1 entities), and its answers."""
    chosen = [n for n, row in enumerate(rows) if (row.entities if head else row.label) is not None]
    return [rows[n] for n in chosen], [answers[n][head] for n in chosen]


def classes_of(rows: Sequence[Row], answers: Sequence[Any], task: Task) -> list[ClassRow]:
    """The table behind `scores_of`: one line per label, then per entity type and ``micro``."""
    if task.kind == "multi-task":
        labels, entities = (split_answers(rows, answers, head) for head in (0, 1))
        return per_class(_table(*labels, task), task.labels) + _span_table(*entities)
    if task.tags:
        return _span_table(rows, answers)
    if task.kind == "multi-label":
        gold = [row.labels or () for row in rows]
        return label_scores(gold, [[task.labels[n] for n in answer] for answer in answers], task.labels)
    return per_class(_table(rows, answers, task), task.labels)


def confusion_of(rows: Sequence[Row], answers: Sequence[Any], task: Task) -> IntArray | None:
    """int64 (gold label, predicted label); None of a tagger or a multi-label task, which have no such table."""
    if task.kind == "multi-task":
        rows, answers = split_answers(rows, answers, 0)
    elif task.kind in ("multi-label", "token-classification"):
        return None
    return _table(rows, answers, task)


def _table(rows: Sequence[Row], answers: Sequence[int], task: Task) -> IntArray:
    index = {label: number for number, label in enumerate(task.labels)}
    return confusion([index[row.label or ""] for row in rows], answers, len(task.labels))


def _span_table(rows: Sequence[Row], answers: Sequence[Any]) -> list[ClassRow]:
    return entity_scores([row.spans for row in rows], answers)


def _span_scores(rows: Sequence[Row], answers: Sequence[Any]) -> dict[str, float]:
    micro = _span_table(rows, answers)[-1]
    return {"precision": micro.precision, "recall": micro.recall, "f1": micro.f1}


def _class_scores(rows: Sequence[Row], answers: Sequence[Any], task: Task) -> dict[str, float]:
    if task.kind == "multi-label":
        table = classes_of(rows, answers, task)
        gold = [{task.labels.index(label) for label in row.labels or ()} for row in rows]
        exact = [wanted == set(answer) for wanted, answer in zip(gold, answers, strict=True)]
        return {
            "exact_match": float(np.mean(exact)) if exact else 0.0,
            "micro_f1": table[-1].f1,
            "macro_f1": macro_f1(table[:-1]),
        }
    counts = _table(rows, answers, task)
    return {"accuracy": accuracy(counts), "macro_f1": macro_f1(per_class(counts, task.labels))}


def gold_matrix(rows: Sequence[Row], task: Task) -> npt.NDArray[np.bool_]:
    """What the rows of a classifier say: bool (rows, labels); one label each, or any number of a multi-label task."""
    wanted = [row.labels or () if task.kind == "multi-label" else (row.label,) for row in rows]
    return np.array([[label in labels for label in task.labels] for labels in wanted], dtype=bool)


def thresholds_of(
    rows: Sequence[Row], predicted: Sequence[Predicted], task: Task, joining: Joining
) -> tuple[float, ...]:
    """The thresholds of a multi-label task, by label, that are best on these rows."""
    scores = np.stack([item.classified(task, joining).scores for item in predicted])
    return best_thresholds(scores, gold_matrix(rows, task))
