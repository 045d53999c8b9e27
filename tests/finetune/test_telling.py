"""A model that was trained with neutral text says which windows tell anything, by the level of its logits."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from bundle.decode import level, softmax
from bundle.manifest import Joining
from bundle.predict import metrics_of
from finetune.answers import predict_rows
from finetune.level import fit_level
from finetune.prepare import prepare
from finetune.recipe import load
from finetune.train import train
from tests.finetune.short_training import write_recipe

pytestmark = pytest.mark.slow
FILLER = "今天北京上海广州人民日报记者张三李四王五在去来了说是不的一大中国这那我们你他她"
MOODS = "喜欢极棒赞讨厌糟糕烂"
LONGER = {"epochs": "8", "eval_every": "1.0"}


def test_windows_of_neutral_text_have_a_low_level_and_leave_the_answer_to_the_others(tmp_path: Path) -> None:
    dice = random.Random(5)
    lines = ["".join(dice.choices(FILLER, k=dice.randrange(8, 30))) for _ in range(300)]
    recipe = write_recipe(
        tmp_path, data='neutral = "neutral.txt"\nneutral_share = 0.5\nneutral_end = 0.5', train=LONGER
    )
    (tmp_path / "neutral.txt").write_text("\n".join(lines), encoding="utf-8")
    prepared = prepare(load(str(recipe)), lambda _: None)
    model = train(prepared, tmp_path / "run", lambda _: None, watched=False).model
    before = predict_rows(model, prepared.dev_long, prepared)
    right = fit_level(model, prepared)
    found = predict_rows(model, prepared.dev_long, prepared)
    for was, item in zip(before, found, strict=True):
        np.testing.assert_allclose(softmax(np.stack(item.logits)), softmax(np.stack(was.logits)), atol=1e-5)
    levels: dict[bool, list[float]] = {True: [], False: []}
    for row, item in zip(prepared.dev_long, found, strict=True):
        for window, height in zip(item.encoded.windows, level(np.stack(item.logits)), strict=True):
            levels[any(sign in row.text[window.start : window.end] for sign in MOODS)].append(float(height))
    assert len(levels[True]) > 50 and len(levels[False]) > 50
    assert right > 0.7 and np.median(levels[True]) > 0.3 and np.median(levels[False]) < -1
    telling, mean = (
        metrics_of(prepared.dev_long, found, prepared.task, Joining(pooling=how))["accuracy"]
        for how in ("telling", "mean")
    )
    assert telling >= mean
    fitted = {name: values.numpy() for name, values in model.state_dict().items()}
    assert fit_level(model, prepared) == right
    for name, values in model.state_dict().items():  # what is fitted is fitted anew and not added once more
        np.testing.assert_allclose(values.numpy(), fitted[name], atol=1e-4)
