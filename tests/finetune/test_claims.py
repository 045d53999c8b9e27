"""Claims: rows resume, stale ones do not count, the verdict is a rule, and a controller that rests changes no bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.errors import DataError
from finetune.claims.arms import ARMS, SEEDS, Arm
from finetune.claims.measure import add_row, measure, missing, read_rows
from finetune.claims.table import CLAIMS, Comparison, Measured, measured, render
from tests.finetune.short_training import run, weights, write_recipe

SCORES = Comparison("score", "few-constant", "few-cosine", lambda a, b: (a["score"], b["score"]), claimed=0.1)


def row(name: str, seed: int, **more: Any) -> dict[str, Any]:
    origin = {"created": "2026-11-28T10:00:00+00:00", "commit": "abc", "machine": "Some CPU, 2 cores", "load": 1.0}
    return {"arm": name, "seed": seed, "sha256": ARMS[name].checksum(seed), "score": 0.5, **origin, **more}


def test_every_arm_of_a_claim_is_a_recipe_that_can_be_read() -> None:
    names = [name for claim in CLAIMS for name in claim.arms]
    assert set(names) == set(ARMS), "no arm is trained for nothing, and no claim lacks one"
    assert len({ARMS[name].checksum(SEEDS[0]) for name in ARMS}) == len(ARMS)
    assert all(claim.comparisons or claim.not_here for claim in CLAIMS)


def test_an_interrupted_run_goes_on_behind_its_last_whole_row(tmp_path: Path) -> None:
    path, arms = tmp_path / "rows.jsonl", [ARMS["few-constant"], ARMS["few-cosine"]]
    add_row(path, row("few-constant", 13))
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"arm": "few-cos')
    assert [(arm.name, seed) for arm, seed in missing(read_rows(path), arms, [13, 14])] == [
        ("few-cosine", 13),
        ("few-constant", 14),
        ("few-cosine", 14),
    ]
    add_row(path, row("few-cosine", 13))
    assert [line["arm"] for line in read_rows(path)] == ["few-constant", "few-cosine"]


def test_a_row_of_a_recipe_that_has_changed_is_trained_again_and_not_judged() -> None:
    old = row("few-constant", 13, sha256="of another recipe")
    assert missing([old], [ARMS["few-constant"]], [13])
    assert not measured([old, row("few-cosine", 13)], SCORES).pairs
    changed = replace(ARMS["few-constant"], changes={"train": {"epochs": 3}})
    assert changed.checksum(13) != ARMS["few-constant"].checksum(13)


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row("few", 13)) + '\n{"arm": "few"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not a row"):
        read_rows(path)


def test_a_results_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "claims.jsonl").write_bytes(b"\xff\xfe\0")
    with pytest.raises(DataError, match=r"claims\.jsonl: is not UTF-8"):
        read_rows(tmp_path / "claims.jsonl")


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(0.5, 0.60), (0.6, 0.70), (0.55, 0.66)], "holds"),
        ([(0.5, 0.51), (0.6, 0.61), (0.55, 0.56)], "smaller than claimed"),
        ([(0.5, 0.40), (0.6, 0.49), (0.55, 0.45)], "the reverse"),
        ([(0.5, 0.70), (0.6, 0.50), (0.55, 0.65)], "not told from noise"),
        ([(0.5, 0.50), (0.6, 0.60)], "no difference at all"),
        ([(0.5, 0.90)], "one seed: no verdict"),
        ([], "not run"),
    ],
)
def test_the_verdict_is_a_rule(pairs: list[tuple[float, float]], words: str) -> None:
    assert Measured(SCORES, tuple(pairs)).verdict().strip("*") == words


def test_the_table_says_what_was_run_and_what_was_not() -> None:
    rows = [row(name, seed, dev=[], events=[]) for name in ("reviews-on", "reviews-off") for seed in SEEDS]
    text = render(rows)
    assert "| `reviews`: test score | 0.500 ± 0.000 | 0.500 ± 0.000 | +0.0% ± 0.0% |" in text
    assert "over 1 of 6 tasks" in text and "no GPU was at hand" in text
    assert f"{len(rows)} of {len(ARMS) * len(SEEDS)} trainings were run" in text
    assert "Nothing was run yet" in render([])


@pytest.mark.slow
def test_a_row_comes_from_a_real_training_of_the_reduced_recipe(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    few = {"train": {"epochs": 1, "eval_every": 0.5, "watch_rows": 40}, "data": {"rows": 64}}
    found = measure(Arm("tiny", str(recipe), few, layers=1), 13)
    assert found["steps"] == found["planned"] == 8 and 0 <= found["score"] <= 1
    assert [point[0] for point in found["dev"]] == [4, 8]
    assert all(len(point) == 5 and None not in point for point in found["dev"])


@pytest.mark.slow
def test_a_controller_that_does_not_fire_changes_no_bit(tmp_path: Path) -> None:
    found = [
        weights(
            run(
                write_recipe(tmp_path / name, train={"epochs": "1"}, curve=f'control = "{name}"'),
                tmp_path / name / "run",
            )
        )
        for name in ("off", "on")
    ]
    assert '"event"' not in (tmp_path / "on" / "run" / "curve.jsonl").read_text(encoding="utf-8")
    for name, value in found[0].items():
        np.testing.assert_array_equal(value, found[1][name], err_msg=name)
