"""The training set as the Trainer sees it: which windows a batch holds and what the heads should say of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bundle.encode import Encoded, IntArray, Window
from finetune.batches import Item, plan
from finetune.data.compose import tells
from finetune.prepare import Prepared
from finetune.targets import IGNORED, class_target, tag_target


def planned(prepared: Prepared, encoded: list[Encoded], epochs: float) -> list[list[Item]]:
    """The batches of so many passes over the lessons, as the recipe draws their windows."""
    train = prepared.recipe.train
    return plan(
        [item.window_tokens.tolist() for item in encoded],
        epochs=epochs,
        batch=train.batch,
        windows=train.windows,
        head_share=train.head_share,
        seed=train.seed,
        telling=telling(prepared, encoded),
        telling_share=prepared.recipe.data.neutral_telling,
    )


def telling(prepared: Prepared, encoded: list[Encoded]) -> dict[int, list[int]]:
    """Row → the windows that tell its label, of the lessons that stand in neutral text."""
    if prepared.recipe.data.neutral is None or prepared.task.kind != "single-label":
        return {}
    return {
        row: [number for number, window in enumerate(item.windows) if tells(lesson, window.start, window.end)]
        for row, (lesson, item) in enumerate(zip(prepared.lessons, encoded, strict=True))
        if lesson.entities
    }


class Windows:
    """Windows of the lessons: one item is one (row, window)."""

    def __init__(self, prepared: Prepared, encoded: list[Encoded]) -> None:
        self.prepared, self.encoded = prepared, encoded
        task = prepared.task
        # Per row, what its classification and its tagging head should say; None where the row does not tell.
        self.classes = [class_target(row, task) for row in prepared.lessons] if task.classifies else None
        self.tags = [tag_target(item, row, task) for item, row in zip(encoded, prepared.lessons, strict=True)]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, item: Item) -> tuple[IntArray, IntArray, Any, Any]:
        row, window = item
        encoded = self.encoded[row]
        inputs = self.prepared.encoder.row(encoded, window)
        tags = np.full(len(inputs.ids), IGNORED, dtype=np.int64)
        gold = self.tags[row]
        if gold is not None:
            place = encoded.windows[window]
            tags[inputs.content] = gold[place.first : place.last]
        return inputs.ids, inputs.types, self._class(row, encoded.windows[window]), tags

    def _class(self, row: int, window: Window) -> Any:
        """What the classification head should say of a window; None where it tells nothing."""
        if self.classes is None:
            return None
        lesson, task = self.prepared.lessons[row], self.prepared.task
        silent = task.kind == "single-label" and not tells(lesson, window.start, window.end)
        return None if silent else self.classes[row]

    def collate(self, items: list[tuple[IntArray, IntArray, Any, Any]]) -> dict[str, Any]:
        """What one step reads.

        int64 input_ids and token_type_ids (batch, longest); labels int64 (batch,), or float32 (batch, labels) of a
        multi-label task; token_labels int64 (batch, longest). `IGNORED` where a row does not tell.
        """
        longest = max(len(ids) for ids, *_ in items)
        task = self.prepared.task
        batch = {
            "input_ids": np.full((len(items), longest), self.prepared.encoder.spec.pad_id, dtype=np.int64),
            "token_type_ids": np.zeros((len(items), longest), dtype=np.int64),
        }
        if task.tags:
            batch["token_labels"] = np.full((len(items), longest), IGNORED, dtype=np.int64)
        for place, (own, kinds, _, tags) in enumerate(items):
            batch["input_ids"][place, : len(own)] = own
            batch["token_type_ids"][place, : len(own)] = kinds
            if task.tags:
                batch["token_labels"][place, : len(own)] = tags
        if task.classifies:
            batch["labels"] = np.array([IGNORED if gold is None else gold for _, _, gold, _ in items])
        return batch


class Planned:
    """A batch sampler that hands out the plan.

    Attributes:
        length: batches of the whole run, also where it once began anew.
        endless: a run that may begin anew reads the plan in a circle, and the trainer ends it. Paddle's loader reads
            ahead, so that the end cannot be put off when it is near.
    """

    def __init__(self, batches: list[list[Item]], endless: bool) -> None:
        self.batches, self.length, self.endless = batches, len(batches), endless

    def __iter__(self) -> Iterator[list[Item]]:
        place = 0
        while self.endless or place < self.length:
            yield self.batches[place % len(self.batches)]
            place += 1

    def __len__(self) -> int:
        return self.length
