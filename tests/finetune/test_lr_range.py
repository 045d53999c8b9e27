"""The range test suggests, says that it is a hint, and tries it; the layers' weight in the loss is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from finetune.lr_range import range_test, read_sweep
from finetune.prepare import Prepared, prepare
from finetune.recipe import load
from finetune.sensitivity import Layer, agreement, analyse, propose
from tests.finetune.short_training import write_recipe


def test_the_suggestion_is_where_the_loss_falls_fastest_and_well_below_where_it_is_lowest() -> None:
    rates = np.geomspace(1e-6, 1.0, 121)
    place = np.log10(rates)
    # Falls around 1e-3, is lowest near 1e-2 and is lost from 0.1 on.
    losses = 0.7 - 0.5 / (1 + np.exp(-6 * (place + 3))) + np.exp(6 * (place + 1.2))
    found = read_sweep(rates.tolist(), losses.tolist())
    assert 3e-4 < found.steepest < 1e-2
    lowest = found.rates[int(np.argmin(found.smooth))]
    assert found.suggested == pytest.approx(min(found.steepest, lowest / 10))


def test_a_sweep_that_is_lost_at_once_still_gives_a_rate() -> None:
    found = read_sweep([1e-3, 1e-2, 1e-1], [0.7, 9.0, float("nan")])
    assert found.rates == [1e-3, 1e-2] and found.suggested == pytest.approx(1e-4)


def test_a_budget_is_spent_on_the_layers_that_weigh_most_for_each_parameter() -> None:
    layers = [
        Layer("embeddings", 60, 0.1, 0.1),
        Layer("layer.0", 15, 0.3, 0.2),
        Layer("layer.1", 15, 0.2, 0.5),
        Layer("pooler", 10, 0.9, 0.9),
        Layer("head", 1, 5.0, 5.0),
    ]
    assert propose(layers, 0.25) == ["layer.1", "pooler"]
    assert propose(layers, 0.25, by="taylor") == ["layer.0", "pooler"]
    assert propose(layers, 0.05) == []
    assert propose(layers, 1.0) == ["embeddings", "layer.0", "layer.1", "pooler"]
    assert agreement(layers) == pytest.approx(0.8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A base model whose layer 1 passes its input on and has no gradient."""
    import paddle

    from tests.finetune.faults import _dead_layer
    from tests.tiny_base import tiny_base

    folder = tmp_path_factory.mktemp("range")
    base = tiny_base(folder / "base")
    state = paddle.load(str(base / "model_state.pdparams"))
    _dead_layer(state)
    paddle.save(state, str(base / "model_state.pdparams"))
    return prepare(load(str(write_recipe(folder, base=base, train={"watch_rows": "20"}))), lambda _: None)


@pytest.mark.slow
def test_a_range_test_sweeps_tries_two_rates_and_writes_picture_and_numbers(prepared: Prepared, tmp_path: Path) -> None:
    told: list[str] = []
    record = range_test(prepared, tmp_path, told.append, low=1e-5, high=10.0, updates=40, check=10)
    assert record == json.loads((tmp_path / "lr-range.json").read_text())
    assert (tmp_path / "lr-range.png").read_bytes().startswith(b"\x89PNG")
    assert 10 < len(record["losses"]) < 40, "the sweep ends where the loss is lost"
    assert [one["rate"] for one in record["tried"]] == pytest.approx([record["suggested"], record["suggested"] / 10])
    assert all(one["updates"] == 10 and one["dev_loss"] > 0 for one in record["tried"])
    assert record["better"] in [one["rate"] for one in record["tried"]]
    assert any("a hint" in sentence and "transformer" in sentence for sentence in told)


@pytest.mark.slow
def test_a_layer_that_does_nothing_weighs_least_and_is_not_proposed(prepared: Prepared, tmp_path: Path) -> None:
    told: list[str] = []
    record = analyse(prepared, tmp_path, told.append, batches=4, warm=4, budget=0.5)
    assert record == json.loads((tmp_path / "sensitivity.json").read_text())
    layers = {layer["name"]: layer for layer in record["layers"]}
    for measure in ("taylor", "fisher"):
        assert layers["layer.1"][measure] == min(layer[measure] for layer in layers.values())
    assert record["proposed"] and "layer.1" not in record["proposed"] and record["used"] <= 0.5
    # What it proposes is a line of a recipe.
    (key, value) = record["train"].split(" = ")
    assert load(str(write_recipe(tmp_path, base=tmp_path, train={key: value}))).train.train_only == tuple(
        record["proposed"]
    )
