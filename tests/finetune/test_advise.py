"""Advice on a file of rows: what is seen in it, what follows from that, and a race that rows decide."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bundle.rows import Entity, Row
from finetune.advise import BASES, advise, advise_on, candidates, profile, recipe_of, warnings
from finetune.race import rungs, survivors
from finetune.recipe import load
from tests.tiny_base import mood_rows, tiny_base


def rows(count: int, text: str = "今天天气很好", rare: int = 2) -> list[Row]:
    return [Row(f"{text}{number}", "rare" if number % rare == 0 else "common") for number in range(count)]


def advice(found: list[Row]) -> dict[str, object]:
    seen = profile(found)
    return {one.key: one.value for one in advise_on(seen, candidates(seen)[0])}


def test_the_profile_sees_size_lengths_balance_language_and_duplicates() -> None:
    found = profile([*rows(100, "很好" * 20, rare=10), *rows(5, "很好" * 20, rare=10)])
    assert (found.rows, found.duplicates) == (100, 5)
    assert found.counts == {"common": 90, "rare": 10} and found.imbalance == 9
    assert found.language == "Chinese" and found.quantile(0.5) == 40
    assert profile(rows(10, "A nice day in May ")).language == "English or alike"


@pytest.mark.parametrize(
    ("row", "task"),
    [
        (Row("a", "x"), "single-label"),
        (Row("a", "x", pair="b"), "text-pair"),
        (Row("a", labels=("x", "y")), "multi-label"),
        (Row("a", entities=(Entity(0, 1, "PER"),)), "token-classification"),
        (Row("a", "x", entities=()), "multi-task"),
    ],
)
def test_the_task_is_told_from_what_rows_tell(row: Row, task: str) -> None:
    assert profile([row]).task == task


def test_few_rows_begin_with_the_head_and_many_train_all_layers() -> None:
    methods = [candidates(profile(rows(count)))[0].method for count in (300, 2000, 6000)]
    assert methods == ["head first", "lower half frozen", "all layers"]
    assert advice(rows(300))["train.batch"] == 8 and advice(rows(6000))["train.batch"] == 16


def test_windows_hold_most_texts_and_a_rare_label_weighs_more() -> None:
    short, long = advice(rows(300)), advice(rows(300, "很好" * 400, rare=10))
    assert (short["text.max_tokens"], long["text.max_tokens"]) == (32, 256)
    assert "train.class_balance" not in short and long["train.class_balance"] == 0.5


def test_a_base_of_the_texts_language_comes_first_and_a_large_one_only_with_a_gpu() -> None:
    chinese, english = profile(rows(6000)), profile(rows(6000, "A nice day in May "))
    assert candidates(chinese)[0].base == "m3e-small"
    assert candidates(chinese, gpu=True)[0].base in ("ernie-3.0-medium-zh", "ernie-3.0-base-zh", "m3e-small")
    assert candidates(english)[0].base == "bert-base-uncased"
    assert {one.base for one in candidates(chinese)} == set(BASES)


def test_what_should_be_mended_first_is_said() -> None:
    notes = " ".join(warnings(profile([*rows(60, rare=30), *rows(10, rare=30)])))
    assert "rare (2)" in notes and "10 rows are duplicates" in notes and "60 rows are few" in notes


def test_every_proposal_is_a_recipe_that_can_be_read() -> None:
    for count in (300, 2000, 6000):
        found = profile(rows(count, rare=10))
        for one in candidates(found):
            assert recipe_of(advise_on(found, one), found, {"train": "rows.csv"}, "a test").base.model == one.base


def test_a_race_doubles_the_rows_as_it_halves_the_racers() -> None:
    assert rungs(1000, 4) == [500, 1000] and rungs(1000, 2) == [1000] and rungs(100, 8) == [64, 64, 100]
    assert survivors({"a": 0.5, "b": 0.7, "c": 0.6, "d": 0.7}) == ["b", "d"]


@pytest.mark.slow
def test_a_race_is_run_with_real_trainings_and_the_advice_becomes_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_base(tmp_path / "base")
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(mood_rows(80))
    advise(
        tmp_path / "rows.csv", text="text", label="label", pair=None, multi=False, gpu=False, base=str(base),
        write=tmp_path / "my.toml", race=True, racers=2, out=tmp_path / "race",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.count("rung 1, ") == 2 and "the race is won by base-" in printed
    recipe = load(str(tmp_path / "my.toml"))
    assert recipe.base.model == str(base) and recipe.task == "single-label"
