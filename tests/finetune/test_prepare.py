"""From a recipe to rows: split, de-duplicated, labelled; what cannot be trained on is refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundle.errors import DataError, RecipeError
from bundle.predict import encode_rows
from finetune.prepare import Prepared, prepare
from finetune.recipe import load
from finetune.windows import planned, telling
from tests.tiny_base import PIECES

RECIPE = """
summary = "a test"
task = "{task}"
[data]
train = "rows.jsonl"
{data}
[base]
model = "base"
[text]
max_tokens = 32
overlap = 8
"""


def project(
    folder: Path, rows: list[dict[str, object]], data: str = "", task: str = "single-label", positions: int = 64
) -> Prepared:
    base = folder / "base"
    base.mkdir()
    shape = {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 32, "max_position_embeddings": positions}
    (base / "config.json").write_text(json.dumps(shape))
    (base / "vocab.txt").write_text("\n".join(PIECES), encoding="utf-8")
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "mine.toml").write_text(RECIPE.format(task=task, data=data), encoding="utf-8")
    said: list[str] = []
    prepared = prepare(load(str(folder / "mine.toml")), said.append)
    assert said
    return prepared


ROWS: list[dict[str, object]] = [
    {"text": f"今天{number}", "label": "好" if number % 3 else "坏"} for number in range(60)
]


def test_rows_are_split_in_proportion_and_none_is_lost(tmp_path: Path) -> None:
    prepared = project(tmp_path, ROWS, "dev = 0.2\ntest = 12")
    assert len(prepared.dev) == 12 and len(prepared.test) == 12 and len(prepared.train) == 36
    texts = [row.text for split in (prepared.train, prepared.dev, prepared.test) for row in split]
    assert sorted(texts) == sorted(str(row["text"]) for row in ROWS)
    assert sum(row.label == "坏" for row in prepared.dev) == 4
    assert prepared.task.labels == ("坏", "好")


def test_copies_of_a_text_never_stand_on_two_sides(tmp_path: Path) -> None:
    prepared = project(tmp_path, ROWS + ROWS[:30], "dev = 0.3\ntest = 0.3")
    splits = [{row.text for row in split} for split in (prepared.train, prepared.dev, prepared.test)]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]
    assert sum(map(len, splits)) == 60


def test_the_same_recipe_gives_the_same_split(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = project(tmp_path / "a", ROWS), project(tmp_path / "b", ROWS)
    assert first.data_sha256 == second.data_sha256 and first.dev == second.dev


def test_a_single_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs two"):
        project(tmp_path, [{"text": f"今天{n}", "label": "好"} for n in range(20)])


def test_windows_longer_than_the_positions_of_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"max_tokens is 32.*16 positions"):
        project(tmp_path, ROWS, positions=16)


def test_a_tagger_takes_its_types_from_the_rows(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": f"张三在北京{n}", "entities": [[0, 2, "PER"], [3, 5, "LOC"]]} for n in range(30)
    ]
    prepared = project(tmp_path, rows, task="token-classification")
    assert prepared.task.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def test_a_pair_task_keeps_both_sides(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": f"今天{n}", "other": f"天气{n}", "label": "是" if n % 2 else "否"} for n in range(40)
    ]
    prepared = project(tmp_path, rows, 'pair = "other"', task="text-pair")
    assert all(row.pair and row.pair.startswith("天气") for row in prepared.train)


def test_a_label_that_train_lacks_is_named_by_its_row(tmp_path: Path) -> None:
    dev = [*ROWS[:3], {"text": "今天很好", "label": "新"}]
    (tmp_path / "dev.jsonl").write_text("\n".join(json.dumps(row) for row in dev), encoding="utf-8")
    with pytest.raises(DataError, match=r"dev\.jsonl:4: label '新' is none of 坏, 好"):
        project(tmp_path, ROWS, 'dev = "dev.jsonl"')


def test_an_entity_type_that_train_lacks_is_named_by_its_row(tmp_path: Path) -> None:
    rows = [{"text": f"{n}北京", "entities": [[len(str(n)), len(str(n)) + 2, "LOC"]]} for n in range(20)]
    test = [{"text": "张三", "entities": [[0, 2, "PER"]]}]
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(row) for row in test), encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.jsonl:1: entity type 'PER' is none of LOC"):
        project(tmp_path, rows, 'test = "test.jsonl"', task="token-classification")


def test_rows_with_several_labels_make_a_multi_label_task(tmp_path: Path) -> None:
    rows = [
        {"text": f"今天{n}", "label": [name for name, k in (("二", 2), ("三", 3)) if n % k == 0]} for n in range(60)
    ]
    prepared = project(tmp_path, rows, "dev = 0.2\ntest = 0.2", task="multi-label")
    assert prepared.task.labels == ("三", "二") and not prepared.task.thresholds
    for split in (prepared.train, prepared.dev, prepared.test):
        assert {row.labels for row in split} == {(), ("二",), ("三",), ("二", "三")}


def test_a_multi_task_recipe_takes_rows_that_tell_one_thing_or_both(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [*ROWS]
    rows += [{"text": f"{n}北京", "entities": [[len(str(n)), len(str(n)) + 2, "LOC"]]} for n in range(40)]
    prepared = project(tmp_path, rows, "dev = 0.2\ntest = 0.2", task="multi-task")
    assert prepared.task.labels == ("坏", "好") and prepared.task.token_labels == ("O", "B-LOC", "I-LOC")
    assert {(row.label is None, row.entities is None) for row in prepared.dev} == {(True, False), (False, True)}


def test_a_row_that_tells_nothing_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:61: the row has no label or entities"):
        project(tmp_path, [*ROWS, {"text": "今天"}], task="multi-task")


def test_pairs_need_a_second_column_and_other_tasks_take_none(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(RecipeError, match=r"needs data\.pair"):
        project(tmp_path / "a", ROWS, task="text-pair")
    with pytest.raises(RecipeError, match=r"data\.pair is for text-pair recipes"):
        project(tmp_path / "b", ROWS, 'pair = "other"')


def test_dev_rows_are_set_into_neutral_text_that_training_does_not_see(tmp_path: Path) -> None:
    # Each line is a character of its own, so that a text shows which lines it was made of.
    lines = [chr(0x4E00 + number) * 60 for number in range(40)]
    (tmp_path / "neutral.txt").write_text("\n".join(lines), encoding="utf-8")
    prepared = project(tmp_path, ROWS, 'dev = 0.2\ntest = 12\nneutral = "neutral.txt"\nneutral_share = 0.5')
    around = {line[0] for line in lines}
    taught = {character for row in prepared.lessons for character in row.text} & around
    tried = {character for row in prepared.dev_long for character in row.text} & around
    assert taught and tried and not taught & tried
    assert len(prepared.dev_long) == len(prepared.dev) and all(row.entities is None for row in prepared.dev_long)
    assert {row.label for row in prepared.dev_long} == {"好", "坏"}


def test_a_hidden_row_is_read_where_it_stands_as_often_as_the_recipe_says(tmp_path: Path) -> None:
    (tmp_path / "neutral.txt").write_text("\n".join(chr(0x4E00 + number) * 60 for number in range(40)), "utf-8")
    for share in (0.0, 1.0):
        folder = tmp_path / str(share)
        folder.mkdir()
        data = f'neutral = "{tmp_path}/neutral.txt"\nneutral_share = 1.0\nneutral_telling = {share}'
        prepared = project(folder, ROWS, f"dev = 0.2\ntest = 12\n{data}", "single-label")
        encoded = encode_rows(prepared.lessons, prepared.encoder)
        items = [item for batch in planned(prepared, encoded, 4) for item in batch]
        places = telling(prepared, encoded)
        told = [window in places[row] for row, window in items]
        assert len(told) == 4 * len(prepared.train)
        assert all(told) if share else 0.1 < sum(told) / len(told) < 0.8


def test_without_neutral_text_there_are_no_long_rows(tmp_path: Path) -> None:
    assert project(tmp_path, ROWS).dev_long == []
