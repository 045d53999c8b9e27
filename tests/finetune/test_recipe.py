"""A recipe says what is wrong with it: file, key and what would be allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.errors import RecipeError
from finetune.recipe import Recipe, load, shipped

GOOD = """
summary = "a test"
task = "single-label"
[data]
train = "rows.csv"
[base]
model = "m3e-small"
[full]
train = { epochs = 9 }
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_shipped_recipe_is_valid_in_both_forms() -> None:
    assert {"news", "reviews", "ner", "ernie-3.0-nano", "ernie-3.0-medium"} <= set(shipped())
    for name in shipped():
        quick, full = load(name), load(name, "full")
        assert quick.name == name and full.name == f"{name}-full"
        assert quick.summary and quick.expect and full.expect, f"{name} explains what it should yield"
        assert quick.checksum() != full.checksum()


def test_a_recipe_is_named_by_its_file_and_reads_files_beside_it(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, GOOD))
    assert recipe.name == "mine"
    assert recipe.data.train == str(tmp_path / "rows.csv")


def test_the_full_form_replaces_single_keys(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert (load(path).train.epochs, load(path, "full").train.epochs) == (2.0, 9.0)
    assert load(path, "full").data == load(path).data


@pytest.mark.parametrize(
    ("change", "key", "expected"),
    [
        (("[base]", "[train]\nlearning_rat = 1\n[base]"), "train.learning_rat", "did you mean learning_rate"),
        (("[base]", '[train]\nschedule = "step"\n[base]'), "train.schedule", "cosine"),
        (("[base]", "[train]\nbatch = 0\n[base]"), "train.batch", "greater than or equal to 1"),
        (("[base]", '[text]\npooling = "median"\n[base]'), "text.pooling", "logit-mean"),
        (('train = "rows.csv"', ""), "data", "either `dataset` or `train`"),
        (('model = "m3e-small"', ""), "base.model", "missing"),
        (("epochs = 9", "epoch = 9"), "train.epoch", "did you mean epochs"),
        (('summary = "a test"', 'summary = "a test"\nname = "other"'), "name", "named by its file"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_file_and_allowed_values(
    tmp_path: Path, change: tuple[str, str], key: str, expected: str
) -> None:
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(RecipeError) as error:
        load(path)
    assert error.value.key == key
    assert str(error.value).startswith(path) and expected in str(error.value)


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="did you mean news") as error:
        load("new")
    assert "reviews" in error.value.allowed


def test_broken_toml_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not a TOML file"):
        load(write(tmp_path, "summary = "))


def test_comments_do_not_change_the_checksum(tmp_path: Path) -> None:
    first = load(write(tmp_path, GOOD)).checksum()
    assert load(write(tmp_path, "# a word\n" + GOOD)).checksum() == first
    assert load(write(tmp_path, GOOD.replace("a test", "another"))).checksum() == first
    assert load(write(tmp_path, GOOD.replace("[base]", "[train]\nseed = 2\n[base]"))).checksum() != first


def test_the_models_of_a_recipe_refuse_change() -> None:
    recipe: Recipe = load("news")
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"
