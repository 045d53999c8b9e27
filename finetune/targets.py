"""What a model's heads should say of a row."""

from __future__ import annotations

from typing import Any

import numpy as np

from bundle.decode import token_labels
from bundle.encode import Encoded, IntArray
from bundle.manifest import Task
from bundle.rows import Row

# Stands in a target where a row does not tell; Paddle's losses leave it out.
IGNORED = -100


def class_target(row: Row, task: Task) -> Any:
    """What the classification head should say of a row: a label's index, or float32 (labels,) of 0 and 1; or None."""
    if task.kind == "multi-label":
        return np.array([label in (row.labels or ()) for label in task.labels], dtype=np.float32)
    return None if row.label is None else task.labels.index(row.label)


def tag_target(encoded: Encoded, row: Row, task: Task) -> IntArray | None:
    """What the tagging head should say of a row's tokens: int64 (tokens,); None without entities or such a head."""
    if not task.tags or row.entities is None:
        return None
    return token_labels(encoded, row.spans, task)
