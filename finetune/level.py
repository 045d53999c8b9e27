"""Which windows tell anything of the labels: fitted after training into the level of a classifier's logits.

Softmax does not see the mean of a window's logits, so it is free to say something else (`bundle.decode.level`). The
lessons of a recipe with neutral text have windows of both kinds. A logistic regression on the features before the
model's last layer tells them from each other, and its weights replace the mean over the labels of that layer's weights:
the labels' probabilities stay as they were trained. As a second loss in training the same lesson cost accuracy
(docs/decisions/0004-long-text.md).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.encode import WindowRow, pad
from bundle.predict import batches, encode_rows
from finetune.answers import EVAL_TOKENS
from finetune.data.compose import tells
from finetune.prepare import Prepared

# Windows of the lessons that the fit reads, at most; every fourth of them is left out of it and tells how well it went.
WINDOWS = 3000
HELD_OUT = 4
# The inverse strength of the pull of the weights to 0; more windows than features need little of it.
STRENGTH = 0.1


def fit_level(model: Any, prepared: Prepared) -> float:
    """Writes into a trained single-label model which windows tell anything.

    Returns:
        the share of windows it had not read for the fit on whose side of level 0 it is right.
    """
    import paddle
    from sklearn.linear_model import LogisticRegression

    rows, told = _windows(prepared)
    features = _features(model, rows, prepared)
    fitted = np.arange(len(told)) % HELD_OUT > 0
    found = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1000).fit(features[fitted], told[fitted])
    right = float((found.predict(features[~fitted]) == told[~fitted]).mean())
    layer = _last(model)
    weight, bias = layer.weight.numpy(), layer.bias.numpy()  # (features, labels), (labels,)
    with paddle.no_grad():
        layer.weight.set_value(_raised(weight, found.coef_[0][:, None]))
        layer.bias.set_value(_raised(bias, found.intercept_))
    return right


def _raised(values: npt.NDArray[np.float32], mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The values with another mean over the labels, their last axis."""
    raised: npt.NDArray[np.float32] = (values - values.mean(axis=-1, keepdims=True) + mean).astype(np.float32)
    return raised


def _windows(prepared: Prepared) -> tuple[list[WindowRow], npt.NDArray[np.bool_]]:
    """Windows of the lessons, drawn evenly from those that tell something and those that do not, and which do."""
    encoder = prepared.encoder
    kinds: tuple[list[WindowRow], list[WindowRow]] = ([], [])
    for lesson, encoded in zip(prepared.lessons, encode_rows(prepared.lessons, encoder), strict=True):
        for number, window in enumerate(encoded.windows):
            kinds[tells(lesson, window.start, window.end)].append(encoder.row(encoded, number))
    dice = random.Random(f"{prepared.recipe.train.seed}/level")
    drawn = [
        (row, bool(kind))
        for kind, known in enumerate(kinds)
        for row in dice.sample(known, min(len(known), WINDOWS // 2))
    ]
    dice.shuffle(drawn)
    return [row for row, _ in drawn], np.array([kind for _, kind in drawn])


def _last(model: Any) -> Any:
    """The layer that makes the logits; RoBERTa's and ELECTRA's classifier has one before it."""
    return getattr(model.classifier, "out_proj", model.classifier)


def _features(model: Any, rows: list[WindowRow], prepared: Prepared) -> npt.NDArray[np.float32]:
    """What the last layer reads of each window: float32 (windows, features), in evaluation mode."""
    import paddle

    kept: list[Any] = []
    hook = _last(model).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].numpy()))
    was_training = model.training
    model.eval()
    result: npt.NDArray[np.float32] | None = None
    try:
        with paddle.no_grad():
            for batch in batches([len(row.ids) for row in rows], EVAL_TOKENS):
                kept.clear()
                ids, types = pad([rows[place] for place in batch], prepared.encoder.spec.pad_id)
                model(paddle.to_tensor(ids), token_type_ids=paddle.to_tensor(types))
                if result is None:
                    result = np.zeros((len(rows), kept[0].shape[1]), dtype=np.float32)
                result[batch] = kept[0]
    finally:
        hook.remove()
        if was_training:
            model.train()
    assert result is not None
    return result
