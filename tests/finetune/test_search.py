"""A search over a recipe's keys: its space is checked first, it resumes, prunes, and its best recipe can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bundle.errors import RecipeError
from finetune.recipe import load
from finetune.search import check_space, make_study, objective, search, with_values
from tests.finetune.short_training import write_recipe

SPACE = """
[search]
trials = 2
unpruned = 1
warmup = 0.0
[search.space]
"train.learning_rate" = { low = 1e-3, high = 1e-2, log = true }
"train.batch" = { choices = [16, 32] }
"""


def recipe(folder: Path, space: str = SPACE, **more: Any) -> Path:
    path = write_recipe(folder, train={"epochs": "1", "eval_every": "0.25", "watch_rows": "40"}, **more)
    path.write_text(path.read_text(encoding="utf-8") + space, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('"train.learning_rat" = { low = 1.0, high = 2.0 }', "train.learning_rat"),
        ('"train.batch" = { choices = [16, 0] }', "train.batch = 0"),
        ('"train.schedule" = { choices = ["linear", "triangle"] }', "triangle"),
        ('"data.rows" = { choices = [10, 20] }', "only keys of train and text"),
        ('"train.seed" = { choices = [1, 2] }', "same in all"),
        ('"train.clip" = { low = 2.0, high = 1.0 }', "low must be below high"),
        ('"train.clip" = { low = 0.0, high = 1.0, log = true }', "above 0"),
    ],
)
def test_a_wrong_space_is_refused_before_anything_is_trained(tmp_path: Path, line: str, words: str) -> None:
    path = recipe(tmp_path, f"[search.space]\n{line}\n", base=tmp_path)
    with pytest.raises(RecipeError) as error:
        check_space(load(str(path)))
    assert words in str(error.value)


def test_a_recipe_without_a_space_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no table \[search\]; for example"):
        check_space(load(str(recipe(tmp_path, "", base=tmp_path))))


def test_the_space_is_no_part_of_what_a_recipe_trains(tmp_path: Path) -> None:
    plain, with_space = (
        load(str(recipe(tmp_path / name, space, base=tmp_path))) for name, space in (("a", ""), ("b", SPACE))
    )
    assert with_values(with_space, {}).checksum() == with_space.checksum()
    assert with_values(plain, {"train.batch": 32}).train.batch == 32


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_and_its_best_recipe_can_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path)
    search(str(path), out=tmp_path / "out", trials=1, form="quick", storage="")
    search(str(path), out=tmp_path / "out", form="quick", trials=None, storage="")
    printed = capsys.readouterr().out
    assert "0 of 1 trials are done" in printed and "1 of 2 trials are done" in printed
    folder = tmp_path / "out" / "mood" / "search"
    assert (folder / "search.db").is_file()
    assert sorted(child.name for child in folder.glob("trial-*")) == ["trial-0", "trial-1"]
    assert not list(folder.glob("trial-*/checkpoints")), "a trial leaves its curve, not its weights"
    best = load(str(folder / "best.toml"))
    assert best.search is None and 1e-3 <= best.train.learning_rate <= 1e-2 and best.train.batch in (16, 32)
    search(str(path), out=tmp_path / "out", form="quick", trials=None, storage="")
    assert "2 of 2 trials are done" in capsys.readouterr().out


@pytest.mark.slow
def test_a_trial_below_the_median_of_the_others_is_cut_short(tmp_path: Path) -> None:
    import optuna

    chosen = load(str(recipe(tmp_path, base=None)))
    settings = check_space(chosen)
    study = make_study(chosen, settings, f"sqlite:///{tmp_path / 'search.db'}")
    # An earlier trial that was right about everything from its start on.
    curve = dict.fromkeys(range(101), 1.01)
    perfect = optuna.trial.create_trial(
        params={"train.learning_rate": 2e-3, "train.batch": 16},
        distributions={
            "train.learning_rate": optuna.distributions.FloatDistribution(1e-3, 1e-2, log=True),
            "train.batch": optuna.distributions.CategoricalDistribution([16, 32]),
        },
        value=1.01,
        intermediate_values=curve,
    )
    study.add_trial(perfect)
    said: list[str] = []
    study.optimize(objective(chosen, settings, tmp_path / "trials", said.append), n_trials=1)
    assert study.trials[1].state == optuna.trial.TrialState.PRUNED
    assert "cut short" in said[-1] and len(study.trials[1].intermediate_values) == 1
