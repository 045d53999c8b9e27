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
from export.artifact import amend
from export.gate import DevSplit, Tolerance, gate, headlines, read_report
from export.gate_report import LISTED_ROWS, show_report
from export.journal import Journal

Copy = Callable[[str], Bundle]
STRICT = Tolerance(max_drop=0, min_agreement=1.01)  # nothing can agree so much
MILD = Tolerance(max_drop=1, min_agreement=0, max_shift=1, max_noise=1)


def test_a_multi_task_model_has_a_headline_of_each_head() -> None:
    figures = {"accuracy": 0.9, "macro_f1": 0.8, "precision": 0.9, "recall": 0.9, "f1": 0.9, "mean_f1": 0.85}
    assert headlines(figures) == ["macro_f1", "f1"]


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
    assert "INT8 is not published" in words.getvalue() and "changed" in words.getvalue()
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
    bundle = gate(bundle, journal, dev, MILD)
    assert bundle.manifest.artifacts["onnx_int8"].details["gate"] == "passed"
    assert bundle.manifest.published == "onnx_int8"


@pytest.mark.slow
def test_the_report_lists_the_rows_whose_answer_changed(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-tags")
    dev = DevSplit(bundle)
    bundle = gate(bundle, journal, dev, MILD)
    report = json.loads((bundle.root / "gate.json").read_text(encoding="utf-8"))
    agreement = report["onnx_int8"]["agreement"]
    assert report["changed"]["count"] == round((1 - agreement) * len(dev.rows))
    assert 0 < len(report["changed"]["first"]) <= LISTED_ROWS
    lines = bundle.path(report["changed"]["file"]).read_text(encoding="utf-8").splitlines()
    for row in report["changed"]["first"]:
        assert row["onnx_fused"] != row["onnx_int8"]
        assert json.loads(lines[row["line"] - 1])["text"].startswith(row["text"].removesuffix("…"))
    differences = [row["logit_difference"] for row in report["changed"]["first"]]
    assert differences == sorted(differences, reverse=True)
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
    assert few.lines[0] == 1 and few.lines[-1] == len(every.rows)
    assert len(few.rows) == 5 and few.rows[0] == every.rows[0] and few.rows[-1] == every.rows[-1]
    bundle = gate(bundle, journal, few, MILD)
    found = bundle.manifest.artifacts["onnx_int8"].quality
    assert found is not None and found.rows == 5


@pytest.mark.slow
def test_what_a_graph_said_of_more_rows_is_known_of_those_among_them(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-classes")
    few = DevSplit(bundle, 5)
    wide = few.wider(12)
    assert len(wide.rows) >= 12 and set(few.lines) <= set(wide.lines) and few.wider(3) is few
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


@pytest.mark.slow
def test_the_report_has_classes_lengths_and_layers_and_is_printed_again_from_its_file(
    copied: Copy, tmp_path: Path
) -> None:
    bundle = copied("bert-classes")
    words, again = io.StringIO(), io.StringIO()
    journal = Journal(tmp_path / "export.log", Console(file=words, width=80))
    bundle = gate(bundle, journal, DevSplit(bundle), STRICT)
    report = read_report(bundle)
    named = [(item["group"], item["name"]) for item in report["slices"]]
    assert named[:4] == [("all", ""), ("class", "bad"), ("class", "fine"), ("class", "good")]
    assert {group for group, _ in named[4:]} == {"length"}
    lengths = [item for item in report["slices"] if item["group"] == "length"]
    assert sum(item["rows"] for item in lengths) == 40
    products = {item["name"] for item in report["layers"]}
    assert products <= {
        f"layer {layer}, {name}"
        for layer in (1, 2)
        for name in ("attention QKV", "attention output", "feed-forward in", "feed-forward out")
    } | {f"layer 2, attention {name}" for name in ("query", "keys", "values")}
    assert len(products) == bundle.manifest.artifacts["onnx_int8"].details["integer_products"]
    assert all(0 < item["own"] < 0.1 for item in report["layers"])
    show_report(Console(file=again, width=80), report)
    assert again.getvalue() and again.getvalue() in words.getvalue()
    assert (bundle.root / "gate.json").stat().st_size < 40_000


@pytest.mark.slow
def test_an_int8_graph_that_was_made_from_another_float32_graph_is_not_published(
    copied: Copy, journal: Journal
) -> None:
    bundle = copied("bert-tags")
    bundle = amend(bundle, "onnx_int8", source_sha256="0" * 64)
    bundle = gate(bundle, journal, DevSplit(bundle), MILD)
    assert bundle.manifest.published == "onnx_fused"
    assert "run to_int8 again" in str(bundle.manifest.artifacts["onnx_int8"].details["gate"])
