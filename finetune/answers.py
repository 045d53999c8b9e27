"""A model's answers on rows while it is trained: logits of every window, and the loss on the watched dev rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from bundle.decode import FloatArray
from bundle.encode import Encoder, IntArray
from bundle.predict import Predicted, Progress, encode_rows, predict
from bundle.rows import Row
from finetune.prepare import Prepared
from finetune.targets import class_target, tag_target

# Padded tokens in one forward pass of an evaluation: enough to keep the cores busy, little enough to stay in cache.
EVAL_TOKENS = 4096


def predict_rows(
    model: Any,
    rows: list[Row],
    prepared: Prepared,
    progress: Progress | None = None,
    windows: int | None = None,
) -> list[Predicted]:
    """The model's logits for rows, in evaluation mode and without gradients.

    Args:
        windows: read at most so many windows of a row; by default as many as serving would.
    """
    import paddle

    def forward(ids: IntArray, types: IntArray) -> list[Any]:
        with paddle.no_grad():
            outputs = model(paddle.to_tensor(ids), token_type_ids=paddle.to_tensor(types))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return [logits.numpy().astype(np.float32) for logits in outputs]

    was_training = model.training
    model.eval()
    try:
        encoder = prepared.encoder
        if windows is not None:
            encoder = Encoder(encoder.tokenizer, encoder.spec.model_copy(update={"max_windows": windows}))
        return predict(encode_rows(rows, encoder), encoder, forward, batch_tokens=EVAL_TOKENS, progress=progress)
    finally:
        if was_training:
            model.train()


def dev_loss(prepared: Prepared, predicted: list[Predicted]) -> float:
    """Mean loss over the watched rows' windows (taggers: over their tokens); of two heads the sum of both means."""
    task = prepared.task
    heads: list[list[float]] = [[], []]
    for row, answer in zip(prepared.dev_watch, predicted, strict=True):
        target = class_target(row, task) if task.classifies else None
        if target is not None:
            heads[0].append(_entropy(np.stack(answer.logits), target))
        tags = tag_target(answer.encoded, row, task)
        if tags is not None:
            places = np.concatenate([tags[w.first : w.last] for w in answer.encoded.windows])
            heads[1].append(_entropy(np.concatenate(answer.outputs[-1]), places))
    return float(sum(np.mean(losses) for losses in heads if losses))


def _entropy(logits: FloatArray, gold: Any) -> float:
    """Mean cross-entropy; binary where ``gold`` is float32 (labels,) and not an index or an array of them."""
    values = logits.astype(np.float64)
    if isinstance(gold, np.ndarray) and gold.dtype == np.float32:
        return float((np.logaddexp(0, values) - values * gold).mean())
    values -= values.max(axis=1, keepdims=True)
    log_probabilities = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return float(-log_probabilities[np.arange(len(values)), gold].mean())
