"""Ways of reading a long text, told apart on logits that are made so that each reads something else."""

from __future__ import annotations

import numpy as np

from bundle.encode import Encoded, Window
from bundle.manifest import Task
from bundle.predict import Predicted
from bundle.rows import Row
from export.long import compare

TASK = Task(kind="single-label", labels=("no", "yes"))
NO, YES, SURE = [2.0, 0.0], [0.0, 2.0], [0.0, 9.0]


def read(*logits: list[float]) -> Predicted:
    windows = tuple(Window(n, n + 1, n, n + 1) for n in range(len(logits)))
    empty = np.empty(0, dtype=np.int64)
    encoded = Encoded("x" * len(logits), empty, empty, windows, len(logits), False, empty, False, False)
    return Predicted(encoded, [np.array(values, dtype=np.float32) for values in logits])


def test_each_way_reads_its_own_windows_and_buckets_are_by_length() -> None:
    found = [read(YES), read(NO, NO, SURE), read(NO, *[YES] * 8, SURE), read(NO, YES, YES, YES, NO)]
    buckets = {bucket.name: bucket for bucket in compare([Row("x", "yes")] * 4, found, TASK)}

    assert {name: bucket.rows for name, bucket in buckets.items()} == {"1": 1, "2-3": 1, "4-8": 1, "> 8": 1, "all": 4}

    def right(name: str, way: str) -> bool:
        return buckets[name].scores[way]["accuracy"] == 1.0

    assert all(right("1", way) for way in buckets["1"].scores)
    assert not right("2-3", "head") and right("2-3", "head+tail") and not right("2-3", "mean") and right("2-3", "max")
    assert not right("4-8", "head") and not right("4-8", "head+tail") and right("4-8", "mean")
    assert not right("> 8", "head") and right("> 8", "head+tail") and right("> 8", "mean")
    assert buckets["all"].scores["head"]["accuracy"] == 0.25
