"""What a training minimizes: the loss of a batch, the weights of its classes, and what a controller adds to it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from bundle.manifest import Task
from bundle.rows import Row
from finetune.curve.intervention import Knobs
from finetune.prepare import Prepared
from finetune.targets import IGNORED


def class_weights(rows: list[Row], prepared: Prepared) -> list[float] | None:
    """Loss weight of each class: (mean count / count) ** class_balance, scaled to a mean of 1 over the rows.

    Of a multi-label task: the weight of a label's positive rows, (negative rows / positive rows) ** class_balance.
    """
    exponent, task = prepared.recipe.train.class_balance, prepared.task
    if not exponent or not task.classifies:
        return None
    if task.kind == "multi-label":
        given = Counter(label for row in rows for label in row.labels or ())
        positive = np.array([max(given[label], 1) for label in task.labels], dtype=np.float64)
        return [float(value) for value in (np.maximum(len(rows) - positive, 1) / positive) ** exponent]
    counts = Counter(row.label for row in rows if row.label is not None)
    sizes = np.array([max(counts[label], 1) for label in task.labels], dtype=np.float64)
    weights = (sizes.mean() / sizes) ** exponent
    scaled = weights * sizes.sum() / (weights * sizes).sum()
    return [float(value) for value in scaled]


def loss_of(outputs: tuple[Any, ...], inputs: dict[str, Any], task: Task, weight: Any) -> Any:
    """The training loss of a batch.

    Cross-entropy of a classifier, and of a tagger's tokens; binary cross-entropy of a multi-label task. A window that
    tells a single-label model nothing should be answered evenly, so its target is the uniform distribution. A
    multi-task model's loss is the mean over the batch's rows of what each row tells: the entropy of its label, plus the
    mean entropy of its tokens. So a lonely row of one kind counts no more than its neighbours.

    Args:
        outputs: the model's, in the order of the signature.
        weight: float32 (labels,) from `class_weights`, or None.
    """
    import paddle

    functional = paddle.nn.functional
    if task.kind == "multi-label":
        return functional.binary_cross_entropy_with_logits(
            outputs[0].astype("float32"), inputs["labels"], pos_weight=weight
        )

    def entropy(logits: Any, gold: Any, weight: Any = None, reduction: str = "mean") -> Any:
        flat = logits.reshape([-1, logits.shape[-1]]).astype("float32")
        return functional.cross_entropy(
            flat, gold.reshape([-1]), weight=weight, ignore_index=IGNORED, reduction=reduction
        )

    if task.kind == "single-label" and bool((inputs["labels"] == IGNORED).any()):
        silent = (inputs["labels"] == IGNORED).astype("float32")
        even = -functional.log_softmax(outputs[0].astype("float32"), axis=-1).mean(axis=-1)
        return (entropy(outputs[0], inputs["labels"], weight, "none") + silent * even).mean()
    if task.kind != "multi-task":
        return entropy(outputs[0], inputs["labels" if task.classifies else "token_labels"], weight)
    # Paddle's own mean would count what is ignored, as long as the ignored index is negative.
    tags = inputs["token_labels"]
    of_tokens = entropy(outputs[1], tags, reduction="none").reshape(tags.shape).sum(axis=1)
    told = (tags != IGNORED).astype("float32").sum(axis=1).clip(min=1)
    return entropy(outputs[0], inputs["labels"], weight, "none").mean() + (of_tokens / told).mean()


def regularized(
    loss: Any, outputs: tuple[Any, ...], inputs: dict[str, Any], task: Task, weight: Any, knobs: Knobs, model: Any
) -> Any:
    """The loss of a batch with what the controller switched on."""
    import paddle

    functional = paddle.nn.functional
    if knobs.r_drop:
        other = model(inputs["input_ids"], token_type_ids=inputs["token_type_ids"])
        twice = (loss_of(outputs, inputs, task, weight), loss_of((other,), inputs, task, weight))
        first, second = (functional.log_softmax(one.astype("float32"), axis=-1) for one in (outputs[0], other))
        apart = functional.kl_div(first, second.exp(), "batchmean") + functional.kl_div(
            second, first.exp(), "batchmean"
        )
        loss = sum(twice) / 2 + knobs.r_drop * apart / 4
    if knobs.smoothing:
        even = -functional.log_softmax(outputs[0].astype("float32"), axis=-1).mean()
        loss = (1 - knobs.smoothing) * loss + knobs.smoothing * even
    return loss
