"""A bundle says what is wrong with it before anyone relies on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bundle.encode import Encoder
from bundle.errors import BundleError, ChecksumMismatch, ManifestInvalid, RowError
from bundle.folder import Bundle, create_bundle, open_bundle, sha256_of, write_atomic
from bundle.golden import Golden, check_ids, compare, golden_of, read_golden, write_golden
from bundle.manifest import Artifact, FileRef, Joining, Manifest, Provenance, Signature, Source, Task
from bundle.predict import Predicted
from bundle.rows import Entity, Row, read_rows, write_rows
from tests.bundle.samples import make_encoder, make_spec

TASK = Task(kind="single-label", labels=("no", "yes"))


def make_bundle(root: Path, encoder: Encoder) -> Bundle:
    root.mkdir(parents=True)
    encoder.tokenizer.save(str(root / "tokenizer.json"))
    (root / "model.bin").write_bytes(b"weights")
    predicted = [Predicted(encoder.encode(text), [np.ones(2, np.float32)]) for text in ("今天", "北京")]
    write_golden(root / "golden.jsonl", [golden_of(p, encoder, p.encoded.text, None) for p in predicted])
    refs = {
        name: FileRef(file=name, sha256=sha256_of(root / name), bytes=(root / name).stat().st_size)
        for name in ("tokenizer.json", "model.bin", "golden.jsonl")
    }
    source = Source(name="made", licence="none")
    manifest = Manifest(
        name="small",
        made=Provenance(
            recipe="small",
            recipe_sha256="",
            commit="",
            created="",
            seed=1,
            data=source,
            base=source,
            architecture="BertForSequenceClassification",
            packages={},
        ),
        task=TASK,
        text=make_spec().model_copy(update={"tokenizer": refs["tokenizer.json"]}),
        signature=Signature(inputs=(), outputs=()),
        golden=refs["golden.jsonl"],
        artifacts={
            "paddle": Artifact(
                file="model.bin", sha256=refs["model.bin"].sha256, bytes=7, format="paddle", precision="fp32"
            )
        },
    )
    return create_bundle(root, manifest)


@pytest.fixture
def bundle(tmp_path: Path, encoder: Encoder) -> Bundle:
    return make_bundle(tmp_path / "small", encoder)


def test_a_bundle_reads_back_as_written(bundle: Bundle) -> None:
    assert open_bundle(bundle.root).manifest == bundle.manifest


def test_a_changed_file_is_named_with_both_checksums(bundle: Bundle) -> None:
    (bundle.root / "model.bin").write_bytes(b"weightz")
    with pytest.raises(ChecksumMismatch, match=r"model\.bin") as error:
        open_bundle(bundle.root)
    assert error.value.expected[:16] in str(error.value) and error.value.found[:16] in str(error.value)


def test_a_missing_file_is_named(bundle: Bundle) -> None:
    (bundle.root / "model.bin").unlink()
    with pytest.raises(BundleError, match=r"model\.bin: named in bundle\.json but missing"):
        open_bundle(bundle.root)


def test_no_bundle_at_all_says_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="make finetune"):
        open_bundle(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schema": "slipway.bundle/9"}, "schema"),
        ({"task": {"kind": "single-label", "labels": ["a", "a"]}}, "task"),
        ({"published": "onnx_int8"}, "onnx_int8"),
        ({"surprise": 1}, "surprise"),
        ({"name": "../up"}, "name"),
    ],
)
def test_a_manifest_that_breaks_the_schema_names_the_key(
    bundle: Bundle, change: dict[str, object], expected: str
) -> None:
    path = bundle.root / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ManifestInvalid, match=expected):
        open_bundle(bundle.root)


def test_a_file_name_may_not_lead_out_of_the_folder(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="leads out"):
        bundle.path("../../etc/passwd")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "new\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_the_published_artifact_unpublishes_it(bundle: Bundle) -> None:
    published = bundle.publish("paddle")
    again = published.add_artifact("paddle", published.manifest.artifacts["paddle"])
    assert again.manifest.published == ""
    with pytest.raises(BundleError, match="no artifact"):
        bundle.publish("onnx_int8")


def test_golden_rows_notice_another_tokenizer_and_other_logits(bundle: Bundle, encoder: Encoder) -> None:
    golden = read_golden(bundle.root / "golden.jsonl")
    check_ids(golden, encoder)
    with pytest.raises(BundleError, match="golden row 0"):
        check_ids([Golden(golden[0].text, None, (golden[0].ids[0] + 1,), golden[0].logits)], encoder)
    found = [Predicted(encoder.encode(row.text), [np.array([1.0, 1.5], np.float32)]) for row in golden]
    parity = compare(golden, found, TASK, Joining(), reference="paddle", tolerance=1e-4)
    assert parity.max_abs == pytest.approx(0.5)
    assert parity.label_agreement == 0.0
    broken = [Predicted(item.encoded, [np.array([np.nan, 1], np.float32)]) for item in found]
    with pytest.raises(BundleError, match="not finite"):
        compare(golden, broken, TASK, Joining(), reference="paddle", tolerance=1e-4)


def test_golden_texts_with_line_separators_survive(tmp_path: Path) -> None:
    encoder = make_encoder()
    text = "今天\u2028北京\x85好"
    row = golden_of(Predicted(encoder.encode(text), [np.ones(2, np.float32)]), encoder, text, None)
    write_golden(tmp_path / "g.jsonl", [row])
    assert read_golden(tmp_path / "g.jsonl")[0].text == text


def test_rows_read_back_as_written(tmp_path: Path) -> None:
    rows = [Row("今天\u2028\n", "好"), Row("a", None, "b"), Row("张三", entities=(Entity(0, 2, "PER"),))]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert list(read_rows(tmp_path / "rows.jsonl")) == rows
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"label": "x"}\n')
    with pytest.raises(RowError, match=r"rows\.jsonl:2"):
        list(read_rows(tmp_path / "rows.jsonl"))
