"""The rate runs as the recipe says, over the run and from layer to layer; old recipes run as they always did."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.errors import RecipeError
from finetune.recipe import load
from finetune.schedules import factor, peak_rates
from finetune.train_settings import Train
from tests.finetune.short_training import write_recipe

LAYERS = ["embeddings", "layer.0", "layer.1", "layer.2", "pooler", "head"]


def course(updates: int = 100, **settings: Any) -> list[float]:
    now = factor(Train(**settings), updates)
    return [now(update) for update in range(updates)]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("updates", [7, 100])
def test_the_schedules_of_old_recipes_are_paddlenlps_to_the_last_bit(schedule: str, updates: int) -> None:
    from finetune.machine import quiet_paddle

    quiet_paddle()
    from paddlenlp.trainer.trainer_utils import get_scheduler

    name = "constant_with_warmup" if schedule == "constant" else schedule
    rise = int(np.ceil(updates * 0.1))
    theirs = get_scheduler(name, learning_rate=3e-4, num_warmup_steps=rise, num_training_steps=updates)
    ours = factor(Train(schedule=schedule), updates)
    for update in range(updates):
        assert 3e-4 * ours(update) == theirs.get_lr()
        theirs.step()


def test_the_warm_up_may_be_told_in_steps() -> None:
    assert course(warmup_steps=4)[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert course(warmup_steps=0)[0] == 1.0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial", "one-cycle"])
def test_a_rate_falls_from_its_peak_to_the_floor(schedule: str) -> None:
    rates = course(schedule=schedule, floor=0.1)
    assert max(rates) == rates[10] == 1.0
    assert all(left > right for left, right in itertools.pairwise(rates[10:]))
    assert 0.1 < rates[-1] < 0.13


def test_a_cosine_restarts_at_its_peak_after_longer_and_longer_stretches() -> None:
    rates = course(700, schedule="cosine", warmup=0.0, floor=0.2, restarts=2, restart_growth=2.0)
    peaks = [update for update in range(700) if rates[update] == pytest.approx(1.0, abs=1e-9)]
    assert peaks == [0, 100, 300]
    assert all(rates[peak - 1] == pytest.approx(0.2, abs=1e-3) for peak in peaks[1:])
    assert min(rates) >= 0.2


def test_a_polynomial_of_power_one_is_linear() -> None:
    np.testing.assert_allclose(course(schedule="polynomial", power=1.0), course())
    assert course(schedule="polynomial")[55] == pytest.approx(0.25)


def test_one_cycle_begins_low_rises_and_ends_at_nothing() -> None:
    rates = course(schedule="one-cycle", warmup=0.3, start=0.1)
    assert rates[0] == pytest.approx(0.1)
    assert np.argmax(rates) == 30
    assert rates[-1] < 1e-3


def recipe_with(folder: Path, base: Path, **train: str) -> Any:
    return load(str(write_recipe(folder, base=base, train=train)))


def test_each_layer_has_its_rate(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, tmp_path, learning_rate="8e-5", layer_decay="0.5", head_learning_rate="1e-3")
    expected = {"embeddings": 1e-5, "layer.0": 2e-5, "layer.1": 4e-5, "layer.2": 8e-5, "pooler": 8e-5, "head": 1e-3}
    assert peak_rates(recipe, LAYERS) == pytest.approx(expected)
    rates = '{ head = 1e-3, encoder = 5e-5, "layer.0" = 1e-6 }'
    found = peak_rates(recipe_with(tmp_path, tmp_path, rates=rates), LAYERS)
    assert found == {**dict.fromkeys(LAYERS, 5e-5), "head": 1e-3, "layer.0": 1e-6}


def test_a_rate_for_a_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, tmp_path, rates='{ "layer.7" = 1e-3 }')
    with pytest.raises(RecipeError, match=r"train\.rates\.layer\.7: the model has no such layer .*layer\.2"):
        peak_rates(recipe, LAYERS)


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"restarts": "2"}, "restarts is for the schedule cosine, not for linear"),
        ({"schedule": '"constant"', "floor": "0.1"}, "floor is for the schedule linear or cosine"),
        ({"warmup": "0.1", "warmup_steps": "9"}, "either warmup or warmup_steps"),
        ({"rates": "{ head = 1e-3 }", "head_learning_rate": "1e-3"}, "either head_learning_rate or"),
        ({"head_init_std": "0.1"}, 'head_init_std is for head_init = "normal"'),
        ({"freeze_layers": "1", "train_layers": "1"}, "either freeze_layers or train_layers"),
        ({"unfreeze_until": "0.4"}, 'unfreeze_until is for unfreeze = "by-schedule"'),
        ({"unfreeze": '"by-schedule"', "head_first": "0.6"}, "unfreeze_until must be after head_first"),
        ({"unfreeze": '"by-diagnosis"', "head_first": "0.1"}, "leave out head_first"),
    ],
)
def test_keys_that_do_not_belong_together_are_refused(tmp_path: Path, train: dict[str, str], sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe_with(tmp_path, tmp_path, **train)
    assert sentence in str(error.value)


def test_a_new_key_at_its_default_leaves_a_bundle_up_to_date(tmp_path: Path) -> None:
    plain = recipe_with(tmp_path, tmp_path).checksum()
    assert recipe_with(tmp_path, tmp_path, floor="0.0", layer_decay="1.0", head_init='"default"').checksum() == plain
    assert recipe_with(tmp_path, tmp_path, floor="0.1").checksum() != plain


def test_the_shipped_recipes_have_the_checksums_that_their_bundles_were_made_with() -> None:
    """Of bundles made before schedules had more keys; a recipe that changes on purpose changes its line here."""
    assert load("ernie-3.0-nano").checksum().startswith("5af52532")
    assert load("ner", "full").checksum().startswith("d16271f2")
