"""The gate: what passes, what is refused and why, and what is published then."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bundle.folder import Bundle, open_bundle
from bundle.manifest import Quality
from export.gate import DevSplit, Tolerance, gate, headlines, judge
from export.journal import Journal

Copy = Callable[[str], Bundle]
STRICT = Tolerance(max_drop=0, min_agreement=1.01)  # nothing can agree so much
MILD = Tolerance(max_drop=1, min_agreement=0)


def quality(score: float, agreement: float | None = None, name: str = "macro_f1") -> Quality:
    return Quality(split="dev", rows=200, metrics={"accuracy": score, name: score}, agreement=agreement)


def test_a_small_loss_passes() -> None:
    assert judge(quality(0.80), quality(0.795, 0.99), Tolerance()) == []


def test_exactly_the_tolerance_passes() -> None:
    assert judge(quality(0.80), quality(0.79, 0.99), Tolerance(0.01, 0.99)) == []


def test_a_loss_of_macro_f1_is_named_with_both_figures() -> None:
    (reason,) = judge(quality(0.80), quality(0.78, 1.0), Tolerance())
    assert reason == "macro_f1 falls by 2.00 points (0.8000 to 0.7800); 1 are allowed"


def test_a_tagger_is_judged_by_its_entity_f1() -> None:
    (reason,) = judge(quality(0.9, name="f1"), quality(0.85, 1.0, "f1"), Tolerance())
    assert reason.startswith("f1 falls by 5.00 points")


def test_a_multi_task_model_is_judged_by_both_heads() -> None:
    before = Quality(split="dev", rows=200, metrics={"accuracy": 0.9, "macro_f1": 0.8, "f1": 0.9, "mean_f1": 0.85})
    after = Quality(split="dev", rows=200, metrics={**before.metrics, "macro_f1": 0.7, "f1": 0.85}, agreement=1)
    assert headlines(before.metrics) == ["macro_f1", "f1"]
    assert [reason.split()[0] for reason in judge(before, after, Tolerance())] == ["macro_f1", "f1"]


def test_too_many_changed_answers_are_refused_even_if_the_score_rises() -> None:
    (reason,) = judge(quality(0.80), quality(0.81, 0.97), Tolerance())
    assert reason == "97.00% of the 200 dev rows are answered as fp32 does; 99.00% are needed"


def test_an_unknown_agreement_is_no_agreement() -> None:
    assert judge(quality(0.80), quality(0.80, None), Tolerance())


@pytest.mark.slow
def test_a_refused_int8_leaves_a_report_and_fp32_is_published(copied: Copy, tmp_path: Path) -> None:
    bundle = copied("bert-classes")
    words = io.StringIO()
    journal = Journal(tmp_path / "export.log", Console(file=words, width=200))
    bundle = gate(bundle, journal, DevSplit(bundle), STRICT)
    assert open_bundle(bundle.root).manifest.published == "onnx_fused"
    report = json.loads((bundle.root / "gate.json").read_text(encoding="utf-8"))
    assert report["published"] == "onnx_fused"
    assert any("answered as fp32 does" in reason for reason in report["reasons"])
    assert "INT8 is not published" in words.getvalue() and "same answer" in words.getvalue()
    assert str(bundle.manifest.artifacts["onnx_int8"].details["gate"]).startswith("refused: ")


@pytest.mark.slow
def test_an_int8_that_passes_is_published(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-tags")
    bundle = gate(bundle, journal, DevSplit(bundle), MILD)
    assert bundle.manifest.published == "onnx_int8"
    assert bundle.manifest.artifacts["onnx_int8"].details["gate"] == "passed"


@pytest.mark.slow
def test_the_verdict_follows_the_tolerance_when_it_is_run_again(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-classes")
    dev = DevSplit(bundle)
    assert gate(bundle, journal, dev, STRICT).manifest.published == "onnx_fused"
    bundle = open_bundle(bundle.root)
    assert gate(bundle, journal, dev, MILD).manifest.published == "onnx_int8"


@pytest.mark.slow
def test_the_report_lists_the_rows_whose_answer_changed(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-tags")
    dev = DevSplit(bundle)
    bundle = gate(bundle, journal, dev, MILD)
    report = json.loads((bundle.root / "gate.json").read_text(encoding="utf-8"))
    agreement = report["onnx_int8"]["agreement"]
    assert report["changed"]["count"] == round((1 - agreement) * len(dev.rows))
    for row in report["changed"]["first"]:
        assert row["onnx_fused"] != row["onnx_int8"]
        assert dev.rows[row["row"]].text.startswith(row["text"].removesuffix("…"))
    assert {row["label"] for row in report["onnx_fused"]["classes"]} >= {"micro"}


@pytest.mark.slow
def test_the_quality_of_both_forms_stands_in_the_manifest(exported: Copy) -> None:
    artifacts = exported("ernie-classes").manifest.artifacts
    for name in ("onnx_fused", "onnx_int8"):
        found = artifacts[name].quality
        assert found is not None and found.split == "dev" and found.rows == 40
        assert set(found.metrics) == {"accuracy", "macro_f1"}
    fused = artifacts["onnx_fused"].quality
    # The dev labels are the model's own answers, so a faithful graph is always right.
    assert fused is not None and fused.metrics["accuracy"] == 1 and fused.agreement == 1


@pytest.mark.slow
def test_fewer_dev_rows_are_spread_over_the_split_and_counted(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-classes")
    every, few = DevSplit(bundle), DevSplit(bundle, 5)
    assert len(few.rows) == 5 and few.rows[0] == every.rows[0] and few.rows[-1] == every.rows[-1]
    bundle = gate(bundle, journal, few, MILD)
    found = bundle.manifest.artifacts["onnx_int8"].quality
    assert found is not None and found.rows == 5


@pytest.mark.slow
def test_what_a_graph_said_of_more_rows_is_known_of_those_among_them(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-classes")
    few = DevSplit(bundle, 5)
    wide = few.wider(12)
    assert len(wide.rows) >= 12 and set(few.places) <= set(wide.places) and few.wider(3) is few
    wide.predictions_of("onnx_fused", journal, bundle)
    few.take(wide)
    known = few.predictions_of("onnx_fused", journal, bundle)
    alone = DevSplit(bundle, 5).predictions_of("onnx_fused", journal, bundle)
    for one, other in zip(known, alone, strict=True):
        assert one.encoded.text == other.encoded.text
        np.testing.assert_allclose(np.stack(one.logits), np.stack(other.logits), atol=1e-5)


@pytest.mark.slow
def test_without_dev_rows_int8_cannot_be_judged_and_fp32_is_published(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-classes")
    splits = {name: ref for name, ref in bundle.manifest.splits.items() if name != "dev"}
    bundle = bundle.save(bundle.manifest.model_copy(update={"splits": splits}))
    bundle = gate(bundle, journal, DevSplit(bundle), MILD)
    assert bundle.manifest.published == "onnx_fused"
    assert "no dev split" in (bundle.root / "gate.json").read_text(encoding="utf-8")


@pytest.mark.slow
def test_changed_rows_of_two_heads_are_listed_in_words(copied: Copy, journal: Journal) -> None:
    bundle = copied("ernie-multitask")
    dev = DevSplit(bundle)
    bundle = gate(bundle, journal, dev, MILD)
    report = json.loads((bundle.root / "gate.json").read_text(encoding="utf-8"))
    quality = bundle.manifest.artifacts["onnx_fused"].quality
    assert quality is not None and quality.metrics["mean_f1"] == 1
    labels = [row["label"] for row in report["onnx_fused"]["classes"]]
    assert labels == ["bad", "fine", "good", "LOC", "PER", "micro"]
    for row in report["changed"]["first"]:
        assert row["onnx_fused"] != row["onnx_int8"] and set(row["onnx_fused"]) == set(row["gold"])
