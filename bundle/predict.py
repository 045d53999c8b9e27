"""Many rows through a model, in length-sorted batches: what evaluation and the export gate both run.

Serving does not use this loop (it answers request by request), but the same encode and decode around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bundle.decode import Classified, FloatArray, Tagged, classify, tag
from bundle.encode import Encoded, Encoder, IntArray, pad
from bundle.manifest import Pooling, Task
from bundle.metrics import accuracy, confusion, entity_scores, macro_f1, per_class
from bundle.rows import Row

# (input_ids, token_type_ids), int64 (windows, tokens) each → logits (windows, labels) or (windows, tokens, labels).
Run = Callable[[IntArray, IntArray], FloatArray]
# Called with (windows done, windows in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Predicted:
    """A row's windows and what the model said: per window float32 (labels,) or (tokens, labels)."""

    encoded: Encoded
    logits: list[FloatArray]

    def classified(self, pooling: Pooling) -> Classified:
        return classify(np.stack(self.logits), self.encoded.window_tokens, pooling)

    def tagged(self, task: Task) -> list[Tagged]:
        return tag(self.logits, self.encoded, task)


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
    answers: list[list[FloatArray]] = [[np.empty(0, np.float32)] * len(item.windows) for item in encoded]
    done = 0
    for batch in batches([len(row.ids) for row in rows], batch_tokens):
        logits = run(*pad([rows[index] for index in batch], encoder.spec.pad_id))
        for index, values in zip(batch, logits, strict=True):
            text, window = places[index]
            answers[text][window] = values if values.ndim == 1 else values[rows[index].content]
        done += len(batch)
        if progress:
            progress(done, len(rows))
    return [Predicted(item, values) for item, values in zip(encoded, answers, strict=True)]


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


def answers_of(predicted: Sequence[Predicted], task: Task, pooling: Pooling) -> list[object]:
    """Each row's answer in a form that can be compared: a label index, or the entities as a tuple of spans."""
    if task.kind == "token-classification":
        return [tuple((item.start, item.end, item.label) for item in row.tagged(task)) for row in predicted]
    return [row.classified(pooling).label for row in predicted]


def agreement(left: Sequence[object], right: Sequence[object]) -> float:
    """Share of rows with the same answer, 0 to 1."""
    return float(np.mean([a == b for a, b in zip(left, right, strict=True)])) if left else 1.0


def metrics_of(rows: Sequence[Row], predicted: Sequence[Predicted], task: Task, pooling: Pooling) -> dict[str, float]:
    """The headline figures of what a model said; see `scores_of`."""
    return scores_of(rows, answers_of(predicted, task, pooling), task)


def scores_of(rows: Sequence[Row], answers: Sequence[Any], task: Task) -> dict[str, float]:
    """The headline figures: accuracy and macro_f1 of a classifier; precision, recall and f1 (micro) of a tagger.

    Args:
        answers: in the form of `answers_of`: a label's index, or entities as (start, end, type), for each row.
    """
    if task.kind == "token-classification":
        gold = [[(item.start, item.end, item.label) for item in row.entities or ()] for row in rows]
        micro = entity_scores(gold, answers)[-1]
        return {"precision": micro.precision, "recall": micro.recall, "f1": micro.f1}
    index = {label: number for number, label in enumerate(task.labels)}
    table = confusion([index[row.label or ""] for row in rows], answers, len(task.labels))
    return {"accuracy": accuracy(table), "macro_f1": macro_f1(per_class(table, task.labels))}
