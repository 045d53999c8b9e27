"""Splits: disjoint, complete, stratified, repeatable; duplicates are removed and told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import DataError
from bundle.rows import Entity, Row
from finetune.data.splits import deduplicate, sample, split, stratum_of
from tests.properties import cases

ROOT = Path(__file__).parents[2]

many = cases(150)
classes = st.lists(st.integers(0, 4), min_size=3, max_size=120)


def rows_of(numbers: list[int]) -> list[Row]:
    """Rows with distinct texts, whose labels are the numbers."""
    return [Row(f"text {place}", f"class {number}") for place, number in enumerate(numbers)]


@many
@given(numbers=classes, dev=st.floats(0, 0.3), test=st.floats(0, 0.3), seed=st.integers(0, 9))
def test_a_split_is_disjoint_complete_and_of_the_wanted_sizes(
    numbers: list[int], dev: float, test: float, seed: int
) -> None:
    rows = rows_of(numbers)
    parts = split(rows, dev=dev, test=test, seed=seed)
    assert len(parts.dev) == round(dev * len(rows))
    assert len(parts.test) == round(test * len(rows))
    assert sorted(row.text for part in (parts.train, parts.dev, parts.test) for row in part) == sorted(
        row.text for row in rows
    )
    assert parts == split(rows, dev=dev, test=test, seed=seed)
    for part in (parts.train, parts.dev, parts.test):
        assert part == sorted(part, key=rows.index)


@many
@given(sizes=st.lists(st.integers(3, 60), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_every_class_with_three_rows_stands_in_every_split(sizes: list[int], seed: int) -> None:
    rows = rows_of([number for number, size in enumerate(sizes) for _ in range(size)])
    wanted = {row.label for row in rows}
    parts = split(rows, dev=len(wanted), test=len(wanted), seed=seed)
    for part in (parts.train, parts.dev, parts.test):
        assert {row.label for row in part} == wanted
    assert parts.report.notes == []


def test_classes_keep_their_proportions() -> None:
    rows = rows_of([0] * 700 + [1] * 200 + [2] * 100)
    parts = split(rows, dev=0.1, test=200, seed=7)
    assert Counter(row.label for row in parts.dev) == {"class 0": 70, "class 1": 20, "class 2": 10}
    assert Counter(row.label for row in parts.test) == {"class 0": 140, "class 1": 40, "class 2": 20}
    assert parts.report.sentences()[1] == "dev: 100 rows (class 0 70, class 1 20, class 2 10)."


def test_another_seed_gives_another_split() -> None:
    rows = rows_of([0, 1] * 50)
    assert split(rows, dev=0.2, test=0.2, seed=1).dev != split(rows, dev=0.2, test=0.2, seed=2).dev


def test_a_split_does_not_depend_on_hash_randomisation() -> None:
    program = (
        "from bundle.rows import Entity, Row\n"
        "from finetune.data.splits import sample, split\n"
        "pairs = [(Entity(0, 1, 'ABC'[n % 3]), Entity(1, 2, 'BCD'[n % 2])) for n in range(90)]\n"
        "rows = [Row(f'{n}', entities=pair) for n, pair in enumerate(pairs)]\n"
        "print([row.text for row in split(rows, dev=0.2, test=0.2, seed=3).dev + sample(rows, 20, 3)])\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(printed) == 1


def test_taggers_are_stratified_by_their_set_of_entity_types() -> None:
    person, place = Entity(0, 1, "PER"), Entity(2, 3, "LOC")
    assert stratum_of(Row("a b", entities=(place, person, place))) == "LOC+PER"
    rows = [Row(f"{n} a", entities=(person,)) for n in range(40)] + [Row(f"{n} b", entities=()) for n in range(60)]
    parts = split(rows, dev=10, test=0, seed=0)
    assert Counter(stratum_of(row) for row in parts.dev) == {"PER": 4, "(no entity)": 6}
    assert parts.test == []


def test_a_class_too_small_for_every_split_is_told() -> None:
    parts = split(rows_of([0] * 20 + [1] * 2), dev=2, test=2, seed=0)
    assert any(note.startswith("class 1 has 2 rows in all and none in") for note in parts.report.notes)


@pytest.mark.parametrize(("dev", "test"), [(1.0, 0), (-1, 0), (0, -0.1), (True, 0), (5, 5), (0.5, 0.5), (11, 0)])
def test_sizes_that_make_no_sense_are_refused(dev: float, test: float) -> None:
    with pytest.raises(DataError):
        split(rows_of([0, 1] * 5), dev=dev, test=test, seed=0)


@many
@given(numbers=classes, count=st.integers(0, 130), seed=st.integers(0, 5))
def test_a_sample_has_the_wanted_size_and_keeps_the_order(numbers: list[int], count: int, seed: int) -> None:
    rows = rows_of(numbers)
    chosen = sample(rows, count, seed)
    assert len(chosen) == min(count, len(rows))
    assert chosen == [row for row in rows if row in chosen]
    assert chosen == sample(rows, count, seed)


def test_a_sample_is_stratified() -> None:
    rows = rows_of([0] * 800 + [1] * 150 + [2] * 50)
    assert Counter(row.label for row in sample(rows, 100, 1)) == {"class 0": 80, "class 1": 15, "class 2": 5}
    with pytest.raises(DataError):
        sample(rows, -1, 1)


# Duplicates


@many
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", " a", "b", "b\n", "c", "d"]), st.sampled_from("xy"), st.integers(0, 2)),
        max_size=30,
    )
)
def test_after_deduplication_no_text_stands_twice(items: list[tuple[str, str, int]]) -> None:
    splits = [[Row(text, label) for text, label, place in items if place == wanted] for wanted in range(3)]
    train, dev, test, report = deduplicate(*splits)
    texts = [row.text.strip() for row in (*train, *dev, *test)]
    assert len(texts) == len(set(texts))
    # Evaluation loses no text; training loses only what was in dev or test or was contradicted.
    assert {row.text.strip() for row in test} == {row.text.strip() for row in splits[2]}
    assert {row.text.strip() for row in (*dev, *test)} == {row.text.strip() for row in (*splits[1], *splits[2])}
    removed = report.train_in_dev + report.train_in_test + report.dev_in_test + report.conflicting
    assert removed + sum(report.within.values()) == len(items) - len(texts) == report.removed
    assert deduplicate(train, dev, test)[:3] == (train, dev, test)


def test_duplicates_are_reported_in_sentences_with_examples() -> None:
    train = [Row("in test", "x"), Row("in dev", "x"), Row("twice", "x"), Row(" twice ", "x"), Row("torn", "x")]
    train += [Row("torn", "y"), Row("alone", "y")]
    dev = [Row("in dev", "x"), Row("dev and test", "x")]
    test = [Row("in test", "y"), Row("dev and test", "x"), Row("dev and test", "x")]
    kept = deduplicate(train, dev, test)
    assert [row.text for row in kept[0]] == ["twice", "alone"]
    assert [row.text for row in kept[1]] == ["in dev"]
    assert [row.text for row in kept[2]] == ["in test", "dev and test"]
    assert kept[3].sentences() == [
        "train: 7 rows, 2 after de-duplication.",
        "dev: 2 rows, 1 after de-duplication.",
        "test: 3 rows, 2 after de-duplication.",
        "1 rows of train also stand in test and were removed from train, such as “in test”.",
        "1 rows of train also stand in dev and were removed from train, such as “in dev”.",
        "1 rows of dev also stand in test and were removed from dev, such as “dev and test”.",
        "2 rows of train carry another label than a copy of theirs; all were dropped, such as “torn”; “torn”.",
        "1 later copies inside train were removed, such as “twice”.",
        "1 later copies inside test were removed, such as “dev and test”.",
        "2 texts carry different labels in different places of the data.",
    ]


def test_clean_data_is_said_to_be_clean() -> None:
    *_, report = deduplicate([Row("a", "x")], [Row("b", "x")], [Row("c", "x")])
    assert report.sentences() == ["No text stands twice in or across the splits."]


def test_a_pair_is_a_duplicate_only_as_a_whole() -> None:
    rows = [Row("a", "x", "b"), Row("a", "x", "c"), Row("a", "x"), Row("a ", "x", " b")]
    assert deduplicate(rows, [], [])[0] == rows[:3]


def test_tagged_copies_conflict_only_when_their_entities_differ() -> None:
    same = [Row("张三", entities=(Entity(0, 2, "PER"),)), Row(" 张三", entities=(Entity(1, 3, "PER"),))]
    assert deduplicate(same, [], [])[0] == same[:1]
    assert deduplicate([*same, Row("张三", entities=())], [], [])[0] == []


def test_the_caller_may_say_what_makes_two_rows_the_same_text() -> None:
    rows = [Row("title 1\nbody", "x"), Row("title 2\nbody", "x")]
    assert deduplicate(rows, [], [], key=lambda row: row.text.split("\n")[1])[0] == rows[:1]
