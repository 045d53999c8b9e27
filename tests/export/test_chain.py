"""The whole chain on tiny models of every architecture, and what a rerun, a change or an interruption does to it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from bundle.errors import ChecksumMismatch, ConversionFailed, ExportError, ParityFailed
from bundle.folder import Bundle, open_bundle
from bundle.rows import read_rows
from export.artifact import adopt, identity
from export.fuse import fuse
from export.gate import DevSplit, gate
from export.journal import Journal
from export.pooling import pooling
from export.to_int8 import to_int8
from export.to_onnx import to_onnx
from export.to_static import to_static

pytestmark = pytest.mark.slow

Copy = Callable[[str], Bundle]
NAMES = [
    "bert-classes",
    "bert-pairs",
    "bert-tags",
    "ernie-classes",
    "ernie-pairs",
    "ernie-tags",
    "roberta-classes",
    "electra-classes",
    "electra-tags",
    "bert-multilabel",
    "ernie-multitask",
]
CHAIN = {
    "paddle_static": "paddle",
    "onnx_fp32": "paddle_static",
    "onnx_fused": "onnx_fp32",
    "onnx_int8": "onnx_fused",
}


def listening(path: Path) -> tuple[Journal, io.StringIO]:
    words = io.StringIO()
    return Journal(path / "export.log", Console(file=words, width=200)), words


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_and_head_passes_the_whole_chain(name: str, exported: Copy) -> None:
    bundle = open_bundle(exported(name).root)  # checks every checksum
    artifacts = bundle.manifest.artifacts
    assert {key: item.made_from for key, item in artifacts.items() if key != "paddle"} == CHAIN
    for key in ("paddle_static", "onnx_fp32", "onnx_fused"):
        parity, quality = artifacts[key].parity, artifacts[key].quality
        assert parity is not None and parity.max_abs <= parity.tolerance == 1e-4, key
        assert parity.label_agreement == 1, key
        assert quality is not None and quality.agreement == 1, key
    int8 = artifacts["onnx_int8"]
    assert int8.precision == "int8" and int8.parity is not None and int8.quality is not None
    assert int8.parity.max_abs <= int8.parity.tolerance
    assert bundle.manifest.published in ("onnx_fused", "onnx_int8")
    assert int8.bytes < artifacts["onnx_fused"].bytes


def test_multi_label_rows_have_none_one_and_several_labels_and_are_all_answered(exported: Copy) -> None:
    bundle = exported("bert-multilabel")
    rows = read_rows(bundle.path(bundle.manifest.splits["dev"].file))
    assert {len(row.labels or ()) for row in rows} >= {0, 1, 2}
    quality = bundle.manifest.artifacts["onnx_fused"].quality
    assert quality is not None and quality.metrics["exact_match"] == 1


def test_a_rerun_says_up_to_date_and_writes_nothing(copied: Copy, tmp_path: Path) -> None:
    bundle = copied("bert-classes")
    before = {path: path.stat().st_mtime_ns for path in bundle.root.rglob("*") if path.is_file()}
    journal, words = listening(tmp_path)
    dev = DevSplit(bundle)
    for step in (to_static, to_onnx, fuse):
        bundle = step(bundle, journal)
    bundle = gate(to_int8(pooling(bundle, journal, dev), journal, dev), journal, dev)
    assert words.getvalue().count("up to date") == 6
    assert {path: path.stat().st_mtime_ns for path in bundle.root.rglob("*") if path.is_file()} == before


def test_force_repeats_a_step_and_gives_the_same_bytes(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-classes")
    known = {name: identity(item) for name, item in bundle.manifest.artifacts.items()}
    published = bundle.manifest.published
    bundle = fuse(to_onnx(bundle, journal, force=True), journal, force=True)
    assert {name: identity(item) for name, item in bundle.manifest.artifacts.items()} == known
    assert bundle.manifest.published == published


def test_other_tolerances_make_the_int8_step_run_again(copied: Copy, tmp_path: Path) -> None:
    from export.gate import Tolerance

    bundle = copied("bert-classes")
    journal, words = listening(tmp_path)
    to_int8(bundle, journal, DevSplit(bundle), Tolerance(min_agreement=0.5))
    assert "up to date" not in words.getvalue()


def test_what_was_made_from_an_older_artifact_is_dropped_with_it(copied: Copy, tmp_path: Path) -> None:
    bundle = copied("bert-classes")
    other = tmp_path / "other.onnx"
    other.write_bytes(b"another graph")
    bundle = adopt(
        bundle,
        "onnx_fp32",
        {other: "onnx/model_fp32.onnx"},
        source="paddle_static",
        settings={},
        artifact_format="onnx",
    )
    assert set(bundle.manifest.artifacts) == {"paddle", "paddle_static", "onnx_fp32"}
    assert bundle.manifest.published == ""
    open_bundle(bundle.root)


class Interrupted(Journal):
    """A person presses Ctrl-C as soon as the step tells its first figures."""

    def say(self, text: str) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["fuse", "to_int8"])
def test_an_interrupted_step_leaves_the_old_bundle(step: str, copied: Copy, tmp_path: Path) -> None:
    bundle = copied("bert-classes")
    before = {path: path.read_bytes() for path in bundle.root.rglob("*") if path.is_file()}
    journal = Interrupted(tmp_path / "export.log")
    with pytest.raises(KeyboardInterrupt):
        if step == "fuse":
            fuse(bundle, journal, force=True)
        else:
            to_int8(bundle, journal, DevSplit(bundle), force=True)
    assert {path: path.read_bytes() for path in bundle.root.rglob("*") if path.is_file()} == before


def test_a_converter_that_dies_is_reported_with_its_log_and_changes_nothing(copied: Copy, tmp_path: Path) -> None:
    bundle = copied("bert-classes")
    broken = tmp_path / "model.json"
    broken.write_text('{"not": "a program"}', encoding="utf-8")
    weights, answers = tmp_path / "model.pdiparams", tmp_path / "answers.npz"
    shutil.copy(bundle.path("static/model.pdiparams"), weights)
    shutil.copy(bundle.path("static/answers.npz"), answers)
    bundle = adopt(
        bundle,
        "paddle_static",
        {
            broken: "static/model.json",
            weights: "static/model.pdiparams",
            answers: "static/answers.npz",
        },
        source="paddle",
        settings={},
        artifact_format="paddle-static",
    )
    manifest = (bundle.root / "bundle.json").read_bytes()
    journal = Journal(tmp_path / "export.log")
    with pytest.raises(ConversionFailed, match=r"to_onnx: the converter ended with .*export\.log"):
        to_onnx(bundle, journal)
    assert (bundle.root / "bundle.json").read_bytes() == manifest
    assert "to_onnx" in journal.log.read_text(encoding="utf-8")


def test_a_changed_source_file_is_refused_with_its_name(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-classes")
    with bundle.path("onnx/model_fp32.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ChecksumMismatch, match=r"model_fp32\.onnx"):
        fuse(bundle, journal, force=True)


def test_a_damaged_result_is_made_again(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-classes")
    path = bundle.path("onnx/model_fused.onnx")
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    bundle = fuse(bundle, journal)
    assert path.read_bytes() == good
    bundle.verify(["onnx_fused"])


def test_a_step_without_its_source_says_which_artifact_is_missing(trained: Path, journal: Journal) -> None:
    bundle = open_bundle(trained / "bert-classes" / "bundle")
    with pytest.raises(ExportError, match="no artifact 'onnx_fp32' yet"):
        fuse(bundle, journal)


def test_an_architecture_that_is_not_on_the_list_is_not_loaded(trained: Path, journal: Journal, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(trained / "bert-classes" / "bundle", root)
    manifest = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
    manifest["made"]["architecture"] = "AutoModel"
    (root / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ExportError, match="cannot export 'AutoModel'"):
        to_static(open_bundle(root), journal)


def test_a_checkpoint_that_is_not_the_one_that_gave_the_golden_rows_fails_parity(
    trained: Path, journal: Journal, tmp_path: Path
) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(trained / "bert-classes" / "bundle", root)
    shutil.copy(trained / "bert-pairs" / "bundle" / "paddle" / "model_state.pdparams", root / "paddle")
    bundle = open_bundle(root, verify=False)
    weights = bundle.refer("paddle/model_state.pdparams")
    artifact = bundle.manifest.artifacts["paddle"].model_copy(update={"sha256": weights.sha256, "bytes": weights.bytes})
    bundle = bundle.add_artifact("paddle", artifact)
    with pytest.raises(ParityFailed, match="paddle does not compute what paddle does"):
        to_static(bundle, journal)
