"""Long texts by how they are read: the head alone, head and tail, or every window pooled, by length bucket.

One pass of the model over all windows serves every way of reading, so they differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bundle.decode import POOLINGS, softmax
from bundle.manifest import Joining, Pooling, Task
from bundle.predict import Predicted, scores_of
from bundle.rows import Row

# Windows of a text: from, to.
BUCKETS = ((1, 1), (2, 3), (4, 8), (9, 1 << 30))


@dataclass(frozen=True, slots=True)
class Bucket:
    """Texts of like length.

    Attributes:
        scores: way of reading → accuracy and macro_f1 of these rows.
    """

    name: str
    rows: int
    scores: dict[str, dict[str, float]]


def bucket_name(low: int, high: int) -> str:
    """``1``, ``2-3``, ``> 8``."""
    return str(low) if low == high else f"{low}-{high}" if high < 1 << 30 else f"> {low - 1}"


def compare(rows: Sequence[Row], found: Sequence[Predicted], task: Task) -> list[Bucket]:
    """Scores of every way of reading, per bucket and over all rows (the last bucket, ``all``).

    ``head`` is truncation: the first window alone (as the pooling ``first``). ``head+tail`` is the mean of the first
    and the last window, which many write for BERT's 512 tokens (Sun et al. 2019, "How to Fine-Tune BERT for Text
    Classification?").
    """
    windows = np.array([len(item.logits) for item in found])
    ways: dict[str, np.ndarray[Any, Any]] = {
        "head": np.array([_label(item, task, "first") for item in found]),
        "head+tail": np.array([_ends(item) for item in found]),
    }
    for pooling in POOLINGS:
        if pooling != "first":
            ways[pooling] = np.array([_label(item, task, pooling) for item in found])
    buckets = []
    places = [(bucket_name(*bounds), (windows >= bounds[0]) & (windows <= bounds[1])) for bounds in BUCKETS]
    for name, chosen in [*places, ("all", windows > 0)]:
        if chosen.any():
            part = [row for row, here in zip(rows, chosen, strict=True) if here]
            scores = {way: scores_of(part, labels[chosen].tolist(), task) for way, labels in ways.items()}
            buckets.append(Bucket(name, len(part), scores))
    return buckets


def _label(item: Predicted, task: Task, pooling: Pooling) -> int:
    return item.classified(task, Joining(pooling=pooling)).label


def _ends(item: Predicted) -> int:
    return int(softmax(np.stack([item.logits[0], item.logits[-1]])).mean(axis=0).argmax())
