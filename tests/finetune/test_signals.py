"""A training is measured, its record can be read, and measuring changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bundle.errors import DataError, RecipeError
from bundle.manifest import Task
from bundle.rows import Row
from finetune.curve.record import Record, read
from finetune.curve.signals import attention_entropy, calibration_error, chance_losses, mean_cosine, suspects
from finetune.prepare import prepare
from finetune.recipe import load


def test_attention_entropy_is_one_where_all_tokens_are_seen_alike_and_padding_does_not_count() -> None:
    even = np.full((1, 2, 4, 4), 0.0)
    even[..., :2] = 0.5  # two real tokens
    even[:, 1, :, 0], even[:, 1, :, 1] = 1.0, 0.0
    real = np.array([[True, True, False, False]])
    np.testing.assert_allclose(attention_entropy(even, real), [1.0, 0.0], atol=1e-9)


def test_mean_cosine_tells_collapse_from_difference() -> None:
    assert mean_cosine(np.ones((5, 3))) == pytest.approx(1.0)
    assert mean_cosine(np.eye(4)) == pytest.approx(0.0)


def test_calibration_error_is_the_distance_of_confidence_and_accuracy() -> None:
    assert calibration_error(np.full(10, 0.8), np.arange(10) < 8) == pytest.approx(0.0)
    assert calibration_error(np.full(10, 0.99), np.arange(10) < 5) == pytest.approx(0.49)


def test_a_label_that_the_model_contradicts_is_suspicious() -> None:
    believed = np.array([[0.9, 0.1], [0.8, 0.2], [0.05, 0.95], [0.1, 0.9], [0.2, 0.8], [np.nan, np.nan]])
    share, worst = suspects(believed, np.array([0, 0, 0, 1, 1, 1]))
    assert worst == [2] and share == pytest.approx(1 / 4)  # of the four rows that reach a label's bar


@pytest.mark.slow
def test_the_chance_loss_is_the_same_where_rows_stand_in_the_order_of_their_labels(tmp_path: Path) -> None:
    from tests.finetune.short_training import write_recipe

    prepared = prepare(load(str(write_recipe(tmp_path))), lambda _: None)
    ordered = [Row("x", label) for label in prepared.task.labels for _ in range(6000)]
    assert chance_losses(replace(prepared, train=ordered)) == pytest.approx((np.log(2), np.log(2)), abs=1e-6)


@pytest.mark.parametrize("kind", ["single-label", "multi-label"])
def test_no_constant_answer_is_better_than_the_chance_loss_where_classes_have_weights(kind: str) -> None:
    """As the training weighs them; on dev it is the unweighted loss of the same answer."""
    import paddle

    from finetune.answers import dev_loss
    from finetune.losses import class_weights, loss_of
    from finetune.targets import class_target

    task = Task(kind=kind, labels=("a", "b", "c"))  # type: ignore[arg-type]
    names = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    rows = [Row("x", name) if kind == "single-label" else Row("x", labels=(name,)) for name in names]
    prepared: Any = SimpleNamespace(
        task=task,
        train=rows,
        dev_watch=rows,
        recipe=SimpleNamespace(train=SimpleNamespace(class_balance=0.5)),
    )
    chance, dev_chance = chance_losses(prepared)
    golds = np.array([class_target(row, task) for row in rows])
    weight = paddle.to_tensor(class_weights(rows, prepared), dtype="float32")

    def weighted(logits: Any) -> Any:
        many = paddle.tile(logits, [len(rows), 1])
        return loss_of((many,), {"labels": paddle.to_tensor(golds)}, task, weight)

    logits = paddle.zeros([1, 3])
    logits.stop_gradient = False
    for _ in range(500):
        loss = weighted(logits)
        loss.backward()
        logits = (logits - 2 * logits.grad).detach()
        logits.stop_gradient = False
    assert float(loss) == pytest.approx(chance, abs=1e-4)
    encoded = SimpleNamespace(windows=[])
    answer: Any = SimpleNamespace(logits=[logits.numpy()[0]], encoded=encoded)
    assert dev_loss(prepared, [answer] * len(rows)) == pytest.approx(dev_chance, abs=1e-3)


def test_a_record_comes_back_as_it_was_written_and_drops_what_a_resumed_run_makes_again(tmp_path: Path) -> None:
    record = Record(tmp_path / "curve.jsonl")
    record.begin({"steps": 9, "chance": 0.693147}, 0)
    record.add("train", 1, loss=0.1234567)
    record.add("train", 5, loss=float("nan"))
    known = read(tmp_path)
    assert (
        known.points
        == record.history.points
        == [
            {"kind": "train", "step": 1, "loss": 0.12346},
            {"kind": "train", "step": 5, "loss": None},
        ]
    )
    again = Record(tmp_path / "curve.jsonl")
    again.begin({"steps": 9, "chance": 0.693147}, 4)
    assert [point["step"] for point in again.history.points] == [1]
    assert read(tmp_path).points == again.history.points


def test_a_line_cut_by_a_kill_is_left_out_and_other_rubbish_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_text('{"kind":"run","step":0}\n{"kind":"train","st', encoding="utf-8")
    assert read(path).points == []
    path.write_text('{"kind":"run","step":0}\nnonsense\n{"kind":"train","step":1}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"curve\.jsonl:2"):
        read(path)
    with pytest.raises(DataError, match="no record"):
        read(tmp_path / "other")


@pytest.mark.parametrize(
    ("lines", "key", "expected"),
    [
        ("level = 4", "curve.level", "1, 2, 3"),
        ("evry = 3", "curve.evry", "did you mean every"),
        ("[curve.thresholds]\ngapp = 1", "curve.thresholds.gapp", "did you mean gap"),
        ("[curve.thresholds]\ngap = 0", "curve.thresholds.gap", "greater than 0"),
    ],
)
def test_a_wrong_key_of_the_curve_is_named(tmp_path: Path, lines: str, key: str, expected: str) -> None:
    path = tmp_path / "mine.toml"
    text = 'summary = "x"\ntask = "single-label"\n[data]\ntrain = "rows.csv"\n[base]\nmodel = "m3e-small"\n[curve]\n'
    path.write_text(text + lines, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load(str(path))
    assert error.value.key == key and expected in str(error.value)


def test_how_closely_a_run_is_watched_does_not_change_what_run_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = 'summary = "x"\ntask = "single-label"\n[data]\ntrain = "rows.csv"\n[base]\nmodel = "m3e-small"\n'
    path.write_text(text, encoding="utf-8")
    plain = load(str(path)).checksum()
    path.write_text(text + "[curve]\nlevel = 3\n", encoding="utf-8")
    assert load(str(path)).checksum() == plain


@pytest.mark.slow
def test_watching_changes_no_bit_and_records_all_three_levels(tmp_path: Path) -> None:
    from tests.finetune.short_training import run, weights, write_recipe

    few = {"epochs": "1", "eval_every": "0.5"}
    deep = write_recipe(tmp_path / "deep", train=few, curve="level = 3\nlayers_every = 4\ndeep_every = 10")
    plain = write_recipe(tmp_path / "plain", train=few, base=tmp_path / "deep" / "base")
    ends = [
        weights(run(recipe, tmp_path / name, watched=name != "unwatched"))
        for recipe, name in ((plain, "unwatched"), (plain, "level-1"), (deep, "level-3"))
    ]
    for other in ends[1:]:
        for name, value in ends[0].items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)

    assert not (tmp_path / "unwatched" / "curve.jsonl").exists()
    cheap, full = read(tmp_path / "level-1"), read(tmp_path / "level-3")
    assert full.run["layers"] == ["embeddings", "layer.0", "layer.1", "pooler", "head"]
    assert full.run["chance"] == pytest.approx(np.log(2), rel=1e-3)
    assert [point["loss"] for point in cheap.of("train")] == [point["loss"] for point in full.of("train")]
    assert {"loss", "rate", "tokens_s", "left_s"} <= cheap.of("train")[0].keys()
    assert {"loss", "scores", "gap", "train_loss", "top_answer", "suspects"} <= cheap.of("dev")[0].keys()
    looks = [point for point in full.of("train") if "grad" in point]
    assert len(looks) > 3 and all(len(point["grad"]) == len(point["update"]) == 5 for point in looks)
    # The first step of a warm-up has a rate of 0.
    assert all(0 < ratio < 1 for point in looks[1:] for ratio in point["update"])
    assert "noise_scale" in full.of("train")[-1] and "loss_var" in full.of("train")[-1]
    assert len(looks[0]["grad_correlation"]) == 1 and abs(looks[0]["grad_correlation"][0]) <= 1
    inside = full.of("deep")[0]
    assert np.shape(inside["attention"]) == (2, 4) and 0 < np.min(inside["attention"]) < np.max(inside["attention"]) < 1
    assert -1 <= inside["cosine"] <= 1
    assert 0 <= full.of("dev")[-1]["calibration"] <= 1 and 0 <= full.of("dev")[-1]["entropy"] <= 1
    assert list((tmp_path / "level-3" / "visualdl" / "curve").glob("vdlrecords*"))
    for line in (tmp_path / "level-3" / "curve.jsonl").read_text().splitlines():
        assert len(line) < 2000 and json.loads(line), "the record is compact"


def test_a_sparkline_shows_what_is_not_a_number() -> None:
    pytest.importorskip("paddlenlp")
    from finetune.watch import sparkline

    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert sparkline([1.0, None]) == "▁x"
    assert len(sparkline([float(value) for value in range(1000)])) == 16
