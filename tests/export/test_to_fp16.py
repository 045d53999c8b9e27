"""Half precision: really made, run on this processor through the runtime's casts, judged by the gate, published."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from rich.console import Console

from bundle.errors import ParityFailed
from bundle.folder import Bundle, open_bundle
from bundle.manifest import Artifact
from bundle.predict import Predicted
from export.artifact import adopt, workplace
from export.gate import FP16, FP32, DevSplit, Tolerance, gate, read_report
from export.half import half, rehearsed
from export.journal import Journal
from export.parity import GoldenRows
from export.session import open_session, run_of
from export.to_fp16 import CANDIDATES, to_fp16
from export.to_int8 import serialized
from tests.export.test_export_command import export

Copy = Callable[[str], Bundle]
pytestmark = pytest.mark.slow
STRICT = Tolerance(max_drop=0, min_agreement=1.01)  # nothing can agree so much
# Of random weights, many answers are nearly ties, and few rows make a class; logits are held to the usual noise.
RANDOM = Tolerance(max_drop=0.05, min_agreement=0.8)
# Every base, and every kind of head.
NAMES = ["bert-classes", "ernie-pairs", "roberta-classes", "electra-tags", "bert-multilabel", "ernie-multitask"]


def fused(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(str(bundle.path(bundle.manifest.artifacts[FP32].file)))


def floats(model: onnx.ModelProto) -> dict[str, int]:
    """How many weights there are in each float type."""
    kinds = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
    found = dict.fromkeys(kinds.values(), 0)
    for item in model.graph.initializer:
        if item.data_type in kinds:
            found[kinds[item.data_type]] += int(np.prod(item.dims))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_made_judged_by_the_gate_and_published(name: str, copied: Copy, journal: Journal) -> None:
    bundle = copied(name)
    dev = DevSplit(bundle)
    bundle = gate(to_fp16(bundle, journal, dev, RANDOM), journal, dev, RANDOM, form=FP16)
    bundle = open_bundle(bundle.root)
    assert bundle.manifest.published == FP16
    artifact = bundle.manifest.artifacts[FP16]
    assert artifact.precision == "fp16" and artifact.batch_invariant and artifact.details["gate"] == "passed"
    assert artifact.quality and artifact.quality.agreement is not None and artifact.quality.agreement >= 0.8
    assert artifact.parity and 0 < artifact.parity.max_abs < 0.05
    assert artifact.bytes < 0.6 * bundle.manifest.artifacts[FP32].bytes
    model = onnx.load(str(bundle.path(artifact.file)))
    assert floats(model)["float32"] == 0
    # The signature's types outside: the gateway and Triton see the model that they know.
    assert {item.type.tensor_type.elem_type for item in model.graph.input} == {TensorProto.INT64}
    assert {item.type.tensor_type.elem_type for item in model.graph.output} == {TensorProto.FLOAT}


def test_norms_and_softmax_can_stay_float32(exported: Copy) -> None:
    bundle = exported("bert-classes")
    model = half(fused(bundle), CANDIDATES[1][1])
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    weights = {item.name: item.data_type for item in model.graph.initializer}
    kept = [node for node in model.graph.node if node.op_type in CANDIDATES[1][1]]
    assert {node.op_type for node in kept} >= {"LayerNormalization", "Softmax"}
    for node in kept:
        for name in node.input:
            assert weights.get(name) == TensorProto.FLOAT or casts[name].attribute[0].i == TensorProto.FLOAT
        (reader,) = [item for item in casts.values() if item.input[0] == node.output[0]]
        assert reader.attribute[0].i == TensorProto.FLOAT16
    golden = GoldenRows(bundle)
    found = golden.predict(run_of(open_session(serialized(model)), bundle.manifest.signature))
    assert golden.measure(FP16, found, tolerance=None).max_abs < 0.1


def test_the_converters_folder_does_not_stay_on_the_path(exported: Copy) -> None:
    before = list(sys.path)
    half(fused(exported("bert-tags")))
    assert sys.path == before


def test_a_form_that_loses_too_much_is_kept_and_not_published(copied: Copy, tmp_path: Path) -> None:
    words = io.StringIO()
    journal = Journal(tmp_path / "export.log", Console(file=words, width=200))
    bundle = copied("bert-classes")
    dev = DevSplit(bundle)
    bundle = gate(to_fp16(bundle, journal, dev, STRICT), journal, dev, STRICT, form=FP16)
    assert bundle.manifest.published == FP32
    candidates = bundle.manifest.artifacts[FP16].details["candidates"]
    assert isinstance(candidates, list) and len(candidates) == len(CANDIDATES)
    assert "fp16 against fp32 on the dev split" in words.getvalue() and "fp16 is not published" in words.getvalue()
    assert read_report(bundle)["form"] == FP16


def spoilt(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The graph with its largest product of an encoder layer scaled."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    names = {node.input[1] for node in result.graph.node if node.op_type == "MatMul"}
    weights = [item for item in result.graph.initializer if item.name in names]
    largest = max(weights, key=lambda item: int(np.prod(item.dims)))
    values = numpy_helper.to_array(largest)
    largest.CopyFrom(numpy_helper.from_array((values * np.float16(factor)).astype(values.dtype), largest.name))
    return result


def test_weights_of_another_model_are_refused_with_the_part_that_differs(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-classes")
    bundle = to_fp16(bundle, journal, DevSplit(bundle))
    artifact: Artifact = bundle.manifest.artifacts[FP16]
    model = spoilt(onnx.load(str(bundle.path(artifact.file))), -2)
    with workplace(bundle, "onnx") as folder:
        (folder / "new.onnx").write_bytes(serialized(model))
        bundle = adopt(
            bundle,
            FP16,
            {folder / "new.onnx": artifact.file},
            source=FP32,
            settings={},
            artifact_format="onnx",
            precision="fp16",
            parity=artifact.parity,
        )
    bundle = gate(bundle, journal, DevSplit(bundle), form=FP16)
    assert bundle.manifest.published == FP32
    verdict = str(bundle.manifest.artifacts[FP16].details["gate"])
    assert verdict.startswith("refused: ") and "the first tensor that differs is" in verdict and "layer" in verdict


def beyond(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The same function in float32, with values inside that half precision has no numbers for.

    What a ReLU gives is made larger by a factor and its reader's weights smaller.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    weights = {item.name: item for item in result.graph.initializer}
    relu = next(node for node in result.graph.node if node.op_type == "Relu")
    made = next(node for node in result.graph.node if node.output[0] == relu.input[0])
    product = next(node for node in result.graph.node if node.output[0] in made.input)
    reader = next(node for node in result.graph.node if relu.output[0] in node.input)
    into = [name for node in (made, product) for name in node.input if name in weights]
    for names, scale in ((into, factor), ([name for name in reader.input if name in weights], 1 / factor)):
        for name in names:
            values = numpy_helper.to_array(weights[name]) * np.float32(scale)
            weights[name].CopyFrom(numpy_helper.from_array(values, name))
    return result


def test_values_beyond_half_precision_show_in_the_rehearsal_alone(exported: Copy) -> None:
    bundle = exported("ernie-pairs")
    golden, signature = GoldenRows(bundle), bundle.manifest.signature

    def run(model: onnx.ModelProto) -> list[Predicted]:
        return golden.predict(run_of(open_session(serialized(model)), signature))

    model = beyond(fused(bundle), 2.0**14)
    golden.measure("float32", run(model))
    # On a processor the runtime keeps float32 between its operators.
    assert golden.measure("as it is", run(half(model)), tolerance=None).max_abs < 0.1
    with pytest.raises(ParityFailed, match="not finite"):
        golden.measure("rehearsed", run(rehearsed(half(model))), tolerance=None)


def test_the_rehearsal_rounds_what_every_operator_gives(exported: Copy) -> None:
    bundle = exported("bert-tags")
    model = rehearsed(half(fused(bundle)))
    narrowed = {node.input[0] for node in model.graph.node if node.op_type == "Cast" and node.attribute[0].i == 10}
    floats = {"Attention", "BiasGelu", "EmbedLayerNormalization", "LayerNormalization", "MatMul", "Sum"}
    for node in model.graph.node:
        if node.op_type in floats:
            assert node.output[0] in narrowed, node.op_type


def test_the_step_is_not_repeated_and_the_other_chain_is_judged_anew(copied: Copy, tmp_path: Path) -> None:
    words = io.StringIO()
    journal = Journal(tmp_path / "export.log", Console(file=words, width=200))
    bundle = copied("bert-tags")
    dev, before = DevSplit(bundle), bundle.manifest.published
    bundle = gate(to_fp16(bundle, journal, dev), journal, dev, form=FP16)
    assert "up to date" not in words.getvalue()
    bundle = gate(to_fp16(bundle, journal, dev), journal, dev, form=FP16)
    assert words.getvalue().count("up to date") == 2
    assert gate(bundle, journal, dev).manifest.published == before


def test_run_for_a_gpu_elsewhere_writes_a_repository_for_it(copied: Copy, tmp_path: Path) -> None:
    bundle = copied("bert-classes")
    words = ("--device", "gpu-elsewhere", "--backend", "onnxruntime", "--repository", str(tmp_path / "repository"))
    answer = export("run", str(bundle.root), *words)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "to_fp16 reads" in answer.stdout
    assert "to_int8 reads" not in answer.stdout and "plan reads" not in answer.stdout
    bundle = open_bundle(bundle.root)
    assert bundle.manifest.published == FP16 and bundle.manifest.plan is None
    for name in (bundle.name, f"{bundle.name}_16"):
        config = (tmp_path / "repository" / name / "config.pbtxt").read_text(encoding="utf-8")
        assert "kind: KIND_GPU count: 1" in config and 'key: "format" value { string_value: "onnx_fp16" }' in config
        graph = tmp_path / "repository" / name / "1" / "model.onnx"
        assert graph.read_bytes() == bundle.path(bundle.manifest.artifacts[FP16].file).read_bytes()
