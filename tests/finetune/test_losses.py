"""What a step of each task is taught, on real Paddle tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bundle.manifest import Task, bio_labels
from finetune.losses import loss_of
from finetune.machine import quiet_paddle
from finetune.targets import IGNORED

pytestmark = pytest.mark.slow
HEADS = Task(kind="multi-task", labels=("no", "yes"), token_labels=bio_labels(["X"]))


def tensors(**arrays: Any) -> dict[str, Any]:
    quiet_paddle()
    import paddle

    return {name: paddle.to_tensor(values) for name, values in arrays.items()}


def entropy(logits: Any, gold: int) -> float:
    values = np.array(logits, dtype=np.float64)
    return float(np.log(np.exp(values).sum()) - values[gold])


def test_each_head_learns_from_its_own_rows_by_their_share_in_the_batch() -> None:
    words = [[1.0, -1.0], [0.5, 2.0]]
    tags = [[[0.0, 1.0, 2.0]] * 3, [[2.0, 0.0, 1.0]] * 3]
    made = tensors(
        words=np.array(words, np.float32),
        tags=np.array(tags, np.float32),
        labels=np.array([1, IGNORED]),
        token_labels=np.array([[IGNORED] * 3, [IGNORED, 1, 2]]),
    )
    loss = float(loss_of((made["words"], made["tags"]), made, HEADS, None))
    wanted = 0.5 * entropy(words[0], 1) + 0.5 * (entropy(tags[1][1], 1) + entropy(tags[1][2], 2)) / 2
    assert loss == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("weight", [None, [1.0, 2.0]])
def test_a_batch_that_tells_one_head_nothing_has_a_finite_loss(weight: list[float] | None) -> None:
    made = tensors(
        words=np.zeros((1, 2), np.float32),
        tags=np.zeros((1, 2, 3), np.float32),
        labels=np.array([IGNORED]),
        token_labels=np.array([[0, 1]]),
        weight=np.array(weight or [1.0, 1.0], np.float32),
    )
    loss = loss_of((made["words"], made["tags"]), made, HEADS, made["weight"] if weight else None)
    assert float(loss) == pytest.approx(np.log(3), abs=1e-5)


def test_each_label_of_many_has_a_loss_of_its_own() -> None:
    task = Task(kind="multi-label", labels=("a", "b"))
    made = tensors(logits=np.array([[2.0, -1.0]], np.float32), labels=np.array([[1.0, 1.0]], np.float32))
    wanted = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(1.0))) / 2
    assert float(loss_of((made["logits"],), made, task, None)) == pytest.approx(wanted, abs=1e-5)


def test_text_that_tells_nothing_should_be_answered_evenly() -> None:
    task = Task(kind="single-label", labels=("no", "yes"))
    logits = np.array([[3.0, -1.0], [3.0, -1.0]], np.float32)
    made = tensors(logits=logits, labels=np.array([0, IGNORED]))
    wanted = (entropy(logits[0], 0) + (entropy(logits[1], 0) + entropy(logits[1], 1)) / 2) / 2
    assert float(loss_of((made["logits"],), made, task, None)) == pytest.approx(wanted, abs=1e-5)
