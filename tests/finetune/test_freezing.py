"""What is trained, and from when on, is what the recipe says; layers that wait stay as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.errors import RecipeError
from finetune.curve.record import read
from finetune.freezing import UNFREEZE, Freezer
from finetune.optimizer import make_optimizer, make_schedule
from finetune.prepare import Prepared, prepare
from finetune.recipe import load
from tests.finetune.short_training import run, weights, write_recipe
from tests.tiny_base import tiny_base

pytestmark = pytest.mark.slow
ALL = {"embeddings", "layer.0", "layer.1", "pooler", "head"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "base")


def prepared_with(folder: Path, base: Path, **train: str) -> Prepared:
    return prepare(load(str(write_recipe(folder, base=base, train=train))), lambda _: None)


def model_of(prepared: Prepared) -> Any:
    import paddle

    with paddle.utils.unique_name.guard():
        return prepared.base.build(prepared.task)


def trained(freezer: Freezer, update: int, turned: int | None = None) -> set[str]:
    freezer.apply(update, turned)
    return {place for _, place, parameter in freezer.parameters if not parameter.stop_gradient}


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, ALL),
        ({"freeze_embeddings": "true"}, ALL - {"embeddings"}),
        ({"freeze_layers": "1"}, ALL - {"embeddings", "layer.0"}),
        ({"train_layers": "1"}, ALL - {"embeddings", "layer.0"}),
        ({"train_layers": "0"}, {"pooler", "head"}),
        ({"train_only": '["layer.0"]'}, {"layer.0", "head"}),
        ({"train_parts": '"attention-output"'}, ALL - {"embeddings"}),
    ],
)
def test_the_recipe_chooses_what_is_trained(
    tmp_path: Path, base: Path, train: dict[str, str], expected: set[str]
) -> None:
    prepared = prepared_with(tmp_path, base, **train)
    freezer = Freezer(model_of(prepared), prepared.recipe, 100)
    assert trained(freezer, 0) == trained(freezer, 99) == expected
    if "train_parts" in train:
        names = [n for n, place, p in freezer.parameters if place.startswith("layer") and not p.stop_gradient]
        assert names and all(".self_attn.out_proj." in name for name in names)


def test_layers_are_unfrozen_from_the_top_and_the_embeddings_with_the_lowest(tmp_path: Path, base: Path) -> None:
    prepared = prepared_with(tmp_path, base, head_first="0.1", unfreeze='"by-schedule"', unfreeze_until="0.5")
    freezer = Freezer(model_of(prepared), prepared.recipe, 100)
    assert [freezer.frozen_at(update) for update in (0, 9, 10, 29, 30, 49, 50, 99)] == [2, 2, 1, 1, 0, 0, 0, 0]
    assert trained(freezer, 0) == {"pooler", "head"}
    assert trained(freezer, 10) == {"layer.1", "pooler", "head"}
    assert trained(freezer, 30) == ALL
    # What a finding has frozen stays frozen, whatever the schedule says.
    assert trained(freezer, 40, turned=1) == {"layer.1", "pooler", "head"}


def test_first_the_head_and_then_all(tmp_path: Path, base: Path) -> None:
    prepared = prepared_with(tmp_path, base, head_first="0.2", freeze_embeddings="true")
    freezer = Freezer(model_of(prepared), prepared.recipe, 100)
    assert trained(freezer, 19) == {"pooler", "head"}
    assert trained(freezer, 20) == ALL - {"embeddings"}


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"train_only": '["layer.5"]'}, "train.train_only: the model has no layer.5 (allowed: embeddings, layer.0"),
        ({"train_layers": "3"}, "train.train_layers: 3 layers are to be trained, the model has 2"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(tmp_path: Path, base: Path, train: dict[str, str], sentence: str) -> None:
    prepared = prepared_with(tmp_path, base, **train)
    with pytest.raises(RecipeError) as error:
        Freezer(model_of(prepared), prepared.recipe, 100)
    assert sentence in str(error.value)


def test_an_update_moves_each_layer_by_its_rate(tmp_path: Path, base: Path) -> None:
    """Adam's first step is as long as the rate, wherever the gradient is large."""
    import paddle

    train = {"learning_rate": "1e-3", "layer_decay": "0.5", "head_learning_rate": "1e-2", "warmup": "0.0"}
    prepared = prepared_with(tmp_path, base, weight_decay="0.0", **train)
    model = model_of(prepared)
    freezer = Freezer(model, prepared.recipe, 100)
    optimizer = make_optimizer(prepared, freezer, make_schedule(prepared, 100))
    before = {name: parameter.numpy().copy() for name, parameter in model.named_parameters()}
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    moved: dict[str, float] = {}
    for name, place, parameter in freezer.parameters:
        moved[place] = float(np.abs(parameter.numpy() - before[name]).max())
    expected = {"embeddings": 2.5e-4, "layer.0": 5e-4, "layer.1": 1e-3, "pooler": 1e-3, "head": 1e-2}
    assert moved == pytest.approx(expected, rel=2e-2)
    assert isinstance(paddle.to_tensor(0), paddle.Tensor)


@pytest.mark.parametrize("how", ["normal", "xavier"])
def test_a_new_head_is_drawn_as_the_recipe_says(tmp_path: Path, base: Path, how: str) -> None:
    from finetune.model.heads import draw_head

    more = {"head_init_std": "0.5"} if how == "normal" else {}
    prepared = prepared_with(tmp_path, base, head_init=f'"{how}"', **more)
    model = model_of(prepared)
    draw_head(model, prepared.recipe.train)
    head, bias = model.classifier.weight.numpy(), model.classifier.bias.numpy()
    assert not bias.any()
    if how == "normal":
        assert 0.35 < head.std() < 0.65
    else:
        limit = (6 / sum(head.shape)) ** 0.5  # Glorot and Bengio 2010, equation 16
        assert 0.8 * limit < np.abs(head).max() <= limit


def test_by_diagnosis_the_next_layer_is_trained_once_the_dev_loss_stands_still(tmp_path: Path, base: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        base=base,
        train={"unfreeze": '"by-diagnosis"', "epochs": "3", "watch_rows": "40"},
        curve="level = 2\nlayers_every = 1\nthresholds = { flat = 0.2 }",
    )
    done = run(recipe, tmp_path / "run")
    history = read(tmp_path / "run")
    events = [event for event in history.of("event") if event["strategy"] == UNFREEZE]
    assert [event["after"]["frozen"] for event in events] == [1, 0]
    layers = history.run["layers"]
    for point in history.of("train"):
        moving = {layer for layer, own in zip(layers, point["grad_spread"], strict=True) if own is not None}
        open_ = sum(event["step"] < point["step"] for event in events)
        assert moving == {"pooler", "head", *["layer.1"][:open_], *["layer.0", "embeddings"][: 2 * (open_ - 1)]}
    start = base_weights(base)
    assert not np.array_equal(weights(done)["ernie.encoder.layers.0.linear1.weight"], start)


def base_weights(base: Path) -> np.ndarray[Any, Any]:
    from finetune.model.paddle_weights import read_paddle_state

    return np.asarray(read_paddle_state(base / "model_state.pdparams")["encoder.layers.0.linear1.weight"])
