"""A multi-task model's two heads as two plain tasks, each with the rows that tell what it should say.

What chooses a pooling or a stitching, or measures long texts, then knows classifiers and taggers only. A model with one
head is the one or the other as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bundle.manifest import Task
from bundle.predict import Predicted
from bundle.rows import Row


@dataclass(frozen=True)
class Head:
    """What one head should say and said.

    Attributes:
        rows, found: a row and what the model said of it, in the same order.
        task: of any kind but ``multi-task``.
    """

    rows: list[Row]
    found: list[Predicted]
    task: Task


def label_task(task: Task) -> Task:
    """The task of a multi-task model's classification head; any other task as it is."""
    return Task(kind="single-label", labels=task.labels) if task.kind == "multi-task" else task


def tag_task(task: Task) -> Task:
    """The task of a multi-task model's tagging head; any other task as it is."""
    return Task(kind="token-classification", labels=task.token_labels) if task.kind == "multi-task" else task


def label_head(rows: Sequence[Row], found: Sequence[Predicted], task: Task) -> Head:
    """The head that classifies, on the rows that have a label."""
    return _head(rows, found, task, 0)


def tag_head(rows: Sequence[Row], found: Sequence[Predicted], task: Task) -> Head:
    """The head that tags, on the rows that have entities, perhaps none of any type."""
    return _head(rows, found, task, 1)


def _head(rows: Sequence[Row], found: Sequence[Predicted], task: Task, output: int) -> Head:
    if task.kind != "multi-task":
        return Head(list(rows), list(found), task)
    places = [place for place, row in enumerate(rows) if (row.entities if output else row.label) is not None]
    said = [Predicted(found[place].encoded, found[place].outputs[output]) for place in places]
    return Head([rows[place] for place in places], said, tag_task(task) if output else label_task(task))
