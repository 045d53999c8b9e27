"""The latency bench on a small bundle whose graphs are made here, without Paddle."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from bundle.encode import Encoder, wordpiece_tokenizer
from bundle.errors import BundleError, ExportError, ParityFailed
from bundle.folder import Bundle, create_bundle, open_bundle, sha256_of
from bundle.golden import golden_of, write_golden
from bundle.manifest import (
    Artifact,
    FileRef,
    Manifest,
    Parity,
    Provenance,
    Signature,
    Source,
    Task,
    Tensor,
    TextSpec,
)
from bundle.predict import encode_rows, predict
from bundle.rows import Row
from export.bench import app, bench, find_bundle
from export.bench_cells import MANY_TEXTS, ONE_TEXT, Call, Cell, Effort, Timed, cells_of, figures, time_cell
from export.forms import Candidate, environment_of
from export.parity import GoldenRows
from export.peak import Shape
from export.references.known import Reference, python_of
from export.session import open_session, run_of

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好北京上海人民日报。，"]
TEXTS = ("今天天气很好", "北京人民日报。上海天气很好，北京今天很好。", "上海")
BRIEF = Effort(rounds=4, least_rounds=2, warmups=2, budget=60.0, slowest_call=5.0, peak_seconds=0.001)


def graph(weights: np.ndarray[Any, Any], *, wide: bool = False) -> onnx.ModelProto:
    """Logits = Σ of the rows of ``weights`` that the ids name; ``wide`` computes the same in other steps."""
    nodes = [helper.make_node("Gather", ["weights", "input_ids"], ["rows"], axis=0)]
    if wide:
        nodes += [
            helper.make_node("Add", ["rows", "rows"], ["twice"]),
            helper.make_node("ReduceSum", ["twice", "axis"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "half"], ["logits"]),
        ]
    else:
        nodes.append(helper.make_node("ReduceSum", ["rows", "axis"], ["logits"], keepdims=0))
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"),
        numpy_helper.from_array(np.array(0.5, dtype=np.float32), "half"),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["windows", "tokens"])
        for name in ("input_ids", "token_type_ids")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["windows", 3])]
    opset = [helper.make_opsetid("", 17)]
    made = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    return helper.make_model(made, opset_imports=opset, ir_version=8)


def artifact_of(root: Path, file: str, precision: str = "fp32", tolerance: float | None = None) -> Artifact:
    path = root / file
    parity = tolerance and Parity(
        reference="paddle", rows=3, windows=3, max_abs=0, mean_abs=0, label_agreement=1, tolerance=tolerance
    )
    return Artifact.model_validate(
        {
            "file": file,
            "sha256": sha256_of(path),
            "bytes": path.stat().st_size,
            "format": "onnx",
            "precision": precision,
            "parity": parity or None,
        }
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle with ``onnx_fp32`` and ``onnx_fused``, which compute the same, and ``onnx_int8``, a little off."""
    root = tmp_path / "artifacts" / "tiny" / "bundle"
    (root / "onnx").mkdir(parents=True)
    # Padding weighs nothing, as behind an attention mask.
    weights = np.random.default_rng(7).normal(size=(len(VOCAB), 3)).astype(np.float32)
    weights[0] = 0
    onnx.save(graph(weights), str(root / "onnx" / "fp32.onnx"))
    onnx.save(graph(weights, wide=True), str(root / "onnx" / "fused.onnx"))
    onnx.save(graph(np.round(weights, 2)), str(root / "onnx" / "int8.onnx"))
    tokenizer = wordpiece_tokenizer(VOCAB)
    (root / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    pending = FileRef(file="tokenizer.json", sha256="", bytes=0)
    spec = TextSpec(
        tokenizer=pending, max_tokens=16, overlap=4, max_windows=9, pooling="mean", pad_id=0, cls_id=2, sep_id=3,
        length_buckets=(16,),
    )  # fmt: skip
    axes = ("windows", "tokens")
    source = Source(name="none", licence="none")
    manifest = Manifest(
        name="tiny",
        made=Provenance(
            recipe="tiny", recipe_sha256="", commit="", created="", seed=1, data=source, base=source,
            architecture="BertForSequenceClassification", packages={},
        ),
        task=Task(kind="single-label", labels=("a", "b", "c")),
        text=spec,
        signature=Signature(
            inputs=tuple(Tensor(name=name, dtype="int64", shape=axes) for name in ("input_ids", "token_type_ids")),
            outputs=(Tensor(name="logits", dtype="float32", shape=("windows", "labels")),),
        ),
        golden=pending,
    )  # fmt: skip
    run = run_of(open_session(root / "onnx" / "fp32.onnx", 1), manifest.signature)
    encoder = Encoder(tokenizer, spec)
    rows = predict(encode_rows([Row(text) for text in TEXTS], encoder), encoder, run, batch_tokens=1)
    golden = [golden_of(row, encoder, text, None) for row, text in zip(rows, TEXTS, strict=True)]
    write_golden(root / "golden.jsonl", golden)
    draft = Bundle(root, manifest)
    artifacts = {
        "onnx_fp32": artifact_of(root, "onnx/fp32.onnx"),
        "onnx_fused": artifact_of(root, "onnx/fused.onnx"),
        "onnx_int8": artifact_of(root, "onnx/int8.onnx", "int8", 0.5),
    }
    return create_bundle(
        root,
        manifest.model_copy(
            update={
                "text": spec.model_copy(update={"tokenizer": draft.refer("tokenizer.json")}),
                "golden": draft.refer("golden.jsonl"),
                "artifacts": artifacts,
            }
        ),
    )


def spoil(bundle: Bundle, name: str, precision: str = "fp32", tolerance: float | None = None) -> Bundle:
    """Replaces an artifact with a graph that computes something else."""
    file = "onnx/other.onnx"
    weights = np.random.default_rng(8).normal(size=(len(VOCAB), 3)).astype(np.float32)
    onnx.save(graph(weights), str(bundle.root / file))
    return bundle.add_artifact(name, artifact_of(bundle.root, file, precision, tolerance))


def command(bundle: Bundle, *options: str | Path) -> Result:
    return CliRunner().invoke(app, [str(bundle.root), *map(str, options)])


@pytest.mark.parametrize("place", ["/dev/null/folder/latency.json", "."])
def test_a_results_file_that_cannot_be_written_is_told_before_anything_is_timed(bundle: Bundle, place: str) -> None:
    result = command(bundle, "--out", place)
    assert result.exit_code == 2 and "cannot be written: " in result.output
    assert "opened" not in result.output


@pytest.mark.slow
def test_every_form_is_timed_on_every_shape_and_written_to_a_file(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "docs" / "latency-tiny.json"
    result = command(bundle, "--batches", "1,4", "--tokens", "8,512", "--rounds", "4", "--threads", "1", "--out", out)
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text(encoding="utf-8"))
    assert list(record["candidates"]) == ["onnx_fp32", "onnx_fused", "onnx_int8"]
    # 512 tokens are capped by the bundle's 16.
    assert [cell["label"] for cell in record["cells"]] == ["1×8", "1×16", "4×8", "4×16", ONE_TEXT, MANY_TEXTS]
    for cell in record["cells"]:
        for shown in cell["results"].values():
            # Three texts three times; all their windows are one batch, three times.
            assert shown["n"] == {ONE_TEXT: 9, MANY_TEXTS: 3}.get(cell["label"], 4)
            assert 0 < shown["median_ms"] <= shown["p99_ms"]
            assert shown["texts_per_second"] > 0
            assert shown["tokens_per_second"] >= shown["texts_per_second"]
        if not cell["batch"]:
            continue
        fp32 = cell["results"]["onnx_fp32"]
        assert fp32["speedup"] == 1
        assert cell["results"]["onnx_int8"]["speedup"] == pytest.approx(
            fp32["median_ms"] / cell["results"]["onnx_int8"]["median_ms"], rel=0.05
        )
    assert record["left_out"]["paddle_dygraph"] == "the bundle has no artifact 'paddle'"
    assert record["left_out"]["paddle_inference_onednn"] == "the bundle has no artifact 'paddle_static'"
    assert (record["threads"], record["environment"]["FLAGS_paddle_num_threads"]) == (1, "1")
    assert {"hardware", "versions", "commit", "created"} <= record.keys()
    assert min(record["peak_gops"].values()) > 0
    assert record["texts"]["texts"] == len(TEXTS)
    for facts in record["candidates"].values():
        assert facts["bytes"] > 100
        assert facts["load_seconds"] > 0
        assert 0 < facts["resident_mib"] <= facts["peak_mib"]
        assert facts["quality"]["agreement"] == 1
    assert "without paddle_dygraph: the bundle has no artifact 'paddle'" in result.output
    assert f"wrote {out}" in result.output
    pictures = {f"latency-tiny-{name}.png" for name in ("by-length", "by-batch")}
    assert {path.name for path in out.parent.iterdir()} == {out.name, *pictures}
    assert set(record["pictures"]) == pictures
    assert all((out.parent / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


@pytest.mark.slow
def test_a_graph_with_other_logits_is_refused_and_nothing_is_written(bundle: Bundle, tmp_path: Path) -> None:
    spoil(bundle, "onnx_fused")
    result = command(bundle, "--out", tmp_path / "out.json")
    assert result.exit_code == 2
    assert "onnx_fused does not compute what paddle does" in result.output
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_a_quantized_graph_is_held_to_its_recorded_tolerance(bundle: Bundle) -> None:
    with pytest.raises(ParityFailed, match=r"onnx_int8 .* the tolerance is 0\.5"):
        bench(spoil(bundle, "onnx_int8", "int8", 0.5), effort=BRIEF, only=["onnx_int8"], threads=1)


@pytest.mark.slow
def test_a_quantized_graph_without_recorded_parity_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ParityFailed, match="no parity was recorded"):
        bench(spoil(bundle, "onnx_int8", "int8"), effort=BRIEF, only=["onnx_int8"], threads=1)


@pytest.mark.slow
def test_a_form_that_cannot_be_opened_is_left_out_with_its_reason(bundle: Bundle) -> None:
    (bundle.root / "onnx" / "fused.onnx").write_bytes(b"not a graph")
    said: list[str] = []
    record = bench_of(bundle, said)
    assert list(record["candidates"]) == ["onnx_fp32", "onnx_int8"]
    assert "onnx_fused" in record["left_out"]
    assert any(line.startswith("without onnx_fused: ") for line in said)


def bench_of(bundle: Bundle, said: list[str], effort: Effort = BRIEF, tokens: Sequence[int] = (8,)) -> dict[str, Any]:
    from export.bench import Report

    report = Report(say=said.append)
    return bench(bundle, batches=[1], tokens=tokens, effort=effort, threads=1, report=report)


@pytest.mark.slow
def test_what_would_be_too_slow_is_left_out_and_said(bundle: Bundle) -> None:
    said: list[str] = []
    hasty = replace(BRIEF, slowest_call=1e-9)
    record = bench_of(bundle, said, hasty)
    assert record["cells"] == []
    assert {item["candidate"] for item in record["skipped"]} == {"onnx_fp32", "onnx_fused", "onnx_int8"}
    assert any(line.startswith("skipped 1×8 for onnx_fp32") for line in said)


@pytest.mark.slow
def test_a_spent_budget_ends_the_bench_and_not_the_results(bundle: Bundle) -> None:
    said: list[str] = []
    record = bench_of(
        bundle, said, Effort(rounds=4, least_rounds=2, warmups=2, budget=0.0, slowest_call=5.0, peak_seconds=0.001)
    )
    assert record["cells"] == []
    assert {item["candidate"] for item in record["skipped"]} == {"onnx_fp32", "onnx_fused", "onnx_int8"}
    assert all("would take longer" in item["reason"] for item in record["skipped"])


def environment(root: Path, name: str) -> None:
    """A reference's environment that has this interpreter's packages."""
    python = python_of(name, root)
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)


@pytest.mark.slow
def test_references_run_beside_the_forms_and_one_that_differs_is_void(bundle: Bundle, tmp_path: Path) -> None:
    weights = np.random.default_rng(7).normal(size=(len(VOCAB), 3)).astype(np.float32)
    weights[0] = 0
    files = {"right": weights, "near": np.round(weights, 2), "off": weights + 1, "far": -weights}
    for name, values in files.items():
        onnx.save(graph(values), str(tmp_path / f"{name}.onnx"))

    def reference(file: str, precision: str, where: str = "here") -> Reference:
        return Reference(where, "onnx", precision, str(tmp_path / f"{file}.onnx"), about=file)

    environment(tmp_path / "environments", "here")
    record = bench(
        bundle,
        batches=[1],
        tokens=[8],
        effort=BRIEF,
        threads=1,
        references={
            "right_fp32": reference("right", "fp32"),
            "right_int8": reference("near", "int8"),
            "wrong_fp32": reference("off", "fp32"),
            "wrong_int8": reference("far", "int8"),
            "broken": reference("none", "fp32"),
            "absent": reference("right", "fp32", "elsewhere"),
        },
        environments=tmp_path / "environments",
    )
    assert [name for name in record["candidates"] if not name.startswith("onnx")] == ["right_fp32", "right_int8"]
    assert [cell["label"] for cell in record["cells"]] == ["1×8", ONE_TEXT, MANY_TEXTS]
    for cell in record["cells"]:
        assert {"onnx_fp32", "right_fp32", "right_int8"} <= set(cell["results"])
    left_out = record["left_out"]
    assert left_out["wrong_fp32"].startswith("void: wrong_fp32 does not compute what paddle does: a logit differs by")
    assert "of the golden rows have the same answer" in left_out["wrong_int8"]
    assert "none.onnx" in left_out["broken"]
    assert left_out["absent"].endswith("elsewhere; `make references` makes it")
    facts = record["candidates"]["right_fp32"]
    assert (facts["environment"], facts["about"], facts["artifact"]) == ("here", "right", None)
    assert facts["bytes"] == (tmp_path / "right.onnx").stat().st_size
    assert record["reference_versions"]["here"]["onnxruntime"]


@pytest.mark.slow
def test_paddle_and_onnx_forms_of_a_trained_model_agree_and_are_all_timed(exported: Callable[[str], Bundle]) -> None:
    record = bench_of(exported("ernie-multitask"), [], tokens=(16,))
    forms = ["paddle_dygraph", "paddle_inference", "paddle_inference_onednn", "onnx_fp32", "onnx_fused", "onnx_int8"]
    assert list(record["candidates"]) == forms
    assert record["left_out"] == {}
    assert [cell["label"] for cell in record["cells"]] == ["1×16", ONE_TEXT, MANY_TEXTS]
    assert [list(cell["results"]) for cell in record["cells"]] == [forms] * 3
    # A tiny model is far from the peak, but asks for something.
    assert all(0 < item["share_of_peak"] < 1 for cell in record["cells"] for item in cell["results"].values())
    assert all(item["quality"]["metrics"] for item in record["candidates"].values())
    fp32 = [item for item in record["candidates"].values() if item["precision"] == "fp32"]
    assert all(item["parity_max_abs"] <= 1e-4 for item in fp32)


class Sleeper:
    """A process that takes as long as it is told, and answers nothing."""

    pid = 0

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def call(self, ids: Any, types: Any) -> tuple[float, list[Any]]:
        return self.seconds, [np.zeros((len(ids), 3), dtype=np.float32)]

    def close(self) -> None: ...


def test_a_cell_that_is_too_long_for_all_is_timed_for_the_quicker_ones() -> None:
    ids = np.zeros((1, 10), dtype=np.int64)
    cell = Cell("1×10", 1, 10, (Call(((ids, ids),), 1, 10, 0),), 1)
    candidates = [Candidate(name, Sleeper(seconds), "int8") for name, seconds in (("a", 1.0), ("b", 3.0), ("c", 0.5))]
    # Nothing sleeps: the seconds are what the processes say. Two rounds of all would take nine.
    timed = time_cell(cell, candidates, replace(BRIEF, rounds=2), 6.5, random.Random(1))
    assert {name: len(seconds) for name, seconds in timed.seconds.items()} == {"a": 2, "c": 2}
    assert list(timed.dropped) == ["b"]
    # Paces are known now, so the second time it is not even tried.
    assert list(time_cell(cell, candidates, replace(BRIEF, rounds=2), 6.5, random.Random(1)).dropped) == ["b"]


def test_shapes_are_filled_with_real_tokens_between_the_special_ones(bundle: Bundle) -> None:
    cells = cells_of(GoldenRows(bundle), [2, 1], [16, 8, 99], 13)[:-2]
    assert [cell.label for cell in cells] == ["1×8", "1×16", "2×8", "2×16"]
    assert [cell.size for cell in cells] == sorted(cell.size for cell in cells)
    ids, types = cells[-1].calls[0].batches[0]
    assert ids.shape == types.shape == (2, 16)
    assert (ids[:, 0] == 2).all()
    assert (ids[:, -1] == 3).all()
    assert (ids[:, 1:-1] >= 5).all()
    assert not types.any()
    again = cells_of(GoldenRows(bundle), [2, 1], [16, 8, 99], 13)[:-2]
    assert np.array_equal(again[-1].calls[0].batches[0][0], ids)


def test_real_texts_keep_all_their_windows_one_by_one_and_in_length_sorted_batches(bundle: Bundle) -> None:
    golden = GoldenRows(bundle)
    one, many = cells_of(golden, [1], [8], 13)[-2:]
    windows = [len(encoded.windows) for encoded in golden.encoded]
    assert (one.label, many.label) == (ONE_TEXT, MANY_TEXTS)
    assert sorted(sum(len(ids) for ids, _ in call.batches) for call in one.calls) == sorted(windows)
    assert sum(len(ids) for call in many.calls for ids, _ in call.batches) == sum(windows)
    assert sum(call.texts for call in many.calls) == pytest.approx(len(windows))
    for cell in (one, many):
        # Tokens without padding; the padding is what the batches hold beyond.
        assert sum(call.tokens for call in cell.calls) == sum(
            golden.encoder.lengths(item).sum() for item in golden.encoded
        )
        assert all(call.tokens <= call.size for call in cell.calls)


def test_operations_are_counted_from_the_shape_of_the_model() -> None:
    # By hand: 2 · (4·4·4 + 2·4·8) · 3 tokens for the products with weights, 4 · 3 · 3 · 4 for the attention, 2 layers.
    body = 2 * (2 * (4 * 4 * 4 + 2 * 4 * 8) * 3 + 4 * 3 * 3 * 4)
    assert Shape(2, 4, 8, 0, 0, 0).flops(3) == body
    assert Shape(2, 4, 8, 0, 5, 0).flops(3) == body + 2 * 4 * 4 + 2 * 4 * 5
    assert Shape(2, 4, 8, 0, 0, 7).flops(3) == body + 2 * 3 * 4 * 7
    assert Shape(2, 4, 8, 6, 0, 0).flops(3) == body + 2 * 3 * 6 * 4


def test_figures_of_shapes_come_from_medians_and_those_of_texts_from_sums() -> None:
    ids = np.zeros((2, 5), dtype=np.int64)
    call = Call(((ids, ids),), 2, 8, 1e9)
    timings = {"onnx_fp32": [0.1, 0.1, 0.4], "onnx_int8": [0.05, 0.05, 0.1]}
    precisions, peaks = {"onnx_fp32": "fp32", "onnx_int8": "int8"}, {"fp32": 20.0, "int8": 80.0}

    def of(cell: Cell) -> dict[str, Any]:
        return figures(Timed(cell, [call] * 3, timings), "onnx_fp32", precisions, peaks)

    fixed, texts = of(Cell("2×5", 2, 5, (call,), 1)), of(Cell(MANY_TEXTS, 0, 0, (call,), 1))
    assert (fixed["onnx_int8"]["speedup"], texts["onnx_int8"]["speedup"]) == (2, 3)
    assert (fixed["onnx_fp32"]["texts_per_second"], texts["onnx_fp32"]["texts_per_second"]) == (20, 10)
    assert (fixed["onnx_fp32"]["tokens_per_second"], texts["onnx_fp32"]["tokens_per_second"]) == (80, 40)
    # 10 GFLOP/s of 20 and 20 of 80.
    assert [fixed[name]["share_of_peak"] for name in timings] == [0.5, 0.25]
    assert fixed["onnx_fp32"]["p99_ms"] == 400


def test_a_candidate_that_does_not_exist_is_named_with_those_that_do(bundle: Bundle) -> None:
    with pytest.raises(ExportError, match=r"no candidate onnx_fp8; there are paddle_dygraph, .*onnx_int8"):
        bench(bundle, only=["onnx_fp8"], effort=BRIEF)


def test_a_bundle_is_found_by_folder_or_by_recipe(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_bundle(str(bundle.root)) == bundle.root
    assert open_bundle(find_bundle("tiny")).name == "tiny"
    with pytest.raises(BundleError, match="make finetune export RECIPE=none"):
        find_bundle("none")


@pytest.mark.parametrize("options", [("--batches", "1,x"), ("--batches", "0"), ("--tokens", "4"), ("--tokens", "")])
def test_shapes_that_are_none_are_refused(bundle: Bundle, options: tuple[str, str]) -> None:
    result = command(bundle, *options)
    assert result.exit_code == 2
    assert "whole numbers" in result.output


def test_paddle_gets_as_many_threads_as_onnx_runtime() -> None:
    wanted = environment_of(3)
    assert (wanted["OMP_NUM_THREADS"], wanted["FLAGS_paddle_num_threads"]) == ("3", "3")
