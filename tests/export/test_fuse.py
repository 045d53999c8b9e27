"""Fusion: the counts of the architecture, the same answers with padding and pairs, and errors where it cannot fuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bundle.encode import IntArray
from bundle.errors import FusionMissing
from bundle.folder import Bundle
from export.fuse import assert_fused, expected_counts, fuse_graph, slim
from export.journal import Journal
from export.session import open_session, run_of

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
LAYERS = 2


def converted(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(str(bundle.path("onnx/model_fp32.onnx")))


def batch(windows: int, tokens: int, seed: int = 3) -> tuple[IntArray, IntArray]:
    """Random ids with padding at the ends and token types 1 in the second half."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, 160, (windows, tokens))
    types = np.zeros_like(ids)
    for row in range(windows):
        real = tokens - row * tokens // (2 * windows)
        types[row, real // 2 : real] = 1
        ids[row, real:] = 0
    return ids, types


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_fused_counts_are_those_of_the_architecture(name: str, exported: Copy) -> None:
    bundle = exported(name)
    graph = onnx.load(str(bundle.path("onnx/model_fused.onnx"))).graph
    counts = Counter(node.op_type for node in graph.node)
    # ernie-pairs has relu; ELECTRA's sequence head has a gelu of its own.
    gelus = {"ernie-pairs": 0, "electra-classes": LAYERS + 1}.get(name, LAYERS)
    wanted = {
        "EmbedLayerNormalization": 1,
        "Attention": LAYERS,
        "SkipLayerNormalization": 2 * LAYERS,
        "BiasGelu": gelus,
    }
    # Passes take a classifier's last Attention apart, and every SkipLayerNormalization.
    first = not bundle.manifest.task.tags
    assert {op: counts[op] for op in wanted} == wanted | {"Attention": LAYERS - first, "SkipLayerNormalization": 0}
    assert counts["Softmax"] == first
    assert counts["LayerNormalization"] == counts["Sum"] == 2 * LAYERS
    assert not {"Erf", "CumSum"} & (set(counts) - ({"CumSum"} if "rob" in name else set()))
    recorded = bundle.manifest.artifacts["onnx_fused"].details["fused"]
    assert recorded == {op: count for op, count in wanted.items() if count}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("windows", "tokens"), [(1, 3), (1, 32), (4, 17), (7, 9)])
def test_padding_and_second_texts_change_nothing(name: str, windows: int, tokens: int, exported: Copy) -> None:
    bundle = exported(name)
    signature = bundle.manifest.signature
    ids, types = batch(windows, tokens)
    if bundle.manifest.task.kind != "text-pair":
        types[:] = 0  # the encoder gives no other, and the graph relies on it
    left = run_of(open_session(bundle.path("onnx/model_fp32.onnx")), signature)(ids, types)
    right = run_of(open_session(bundle.path("onnx/model_fused.onnx")), signature)(ids, types)
    assert len(left) == len(signature.outputs)
    for one, other in zip(left, right, strict=True):
        # What stands at padded places is nobody's answer.
        real = ids != 0 if one.ndim == 3 else slice(None)
        np.testing.assert_allclose(one[real], other[real], atol=2e-5)


@pytest.mark.slow
def test_another_scale_of_q_is_folded_into_its_weights(exported: Copy, journal: Journal) -> None:
    bundle = exported("bert-classes")
    model = slim(converted(bundle), journal)
    scales = {
        node.input[1]
        for node in model.graph.node
        if node.op_type == "Mul" and any(name.startswith("p2o.pd_op.transpose") for name in node.input[:1])
    }
    assert scales
    for item in model.graph.initializer:
        if item.name in scales:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(1.5), item.name))
    fused = fuse_graph(model, "input_ids", "token_type_ids", 0)
    assert_fused(fused, expected_counts({"layers": LAYERS, "activation": "gelu"}, "single-label"))
    ids, types = batch(3, 12)
    left = run_of(open_session(model.SerializeToString()), bundle.manifest.signature)(ids, types)
    right = run_of(open_session(fused.SerializeToString()), bundle.manifest.signature)(ids, types)
    np.testing.assert_allclose(left, right, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "other", "missing"),
    [
        ("Erf", "Tanh", "BiasGelu: 0 of 2"),
        ("Softmax", "Sigmoid", "Attention: 0 of 2"),
        ("CumSum", "Identity", "EmbedLayerNormalization: 0 of 1"),
    ],
)
def test_a_graph_that_does_not_fuse_is_an_error_with_both_counts(
    op: str, other: str, missing: str, exported: Copy, journal: Journal
) -> None:
    model = slim(converted(exported("bert-classes")), journal)
    for node in model.graph.node:
        if node.op_type == op:
            node.op_type = other
            del node.attribute[:]
            del node.input[1:]
    fused = fuse_graph(model, "input_ids", "token_type_ids", 0)
    with pytest.raises(FusionMissing, match=missing):
        assert_fused(fused, expected_counts({"layers": LAYERS, "activation": "gelu"}, "single-label"))


@pytest.mark.slow
def test_another_padding_id_is_not_fused_silently(exported: Copy, journal: Journal) -> None:
    model = slim(converted(exported("bert-classes")), journal)
    fused = fuse_graph(model, "input_ids", "token_type_ids", 1)
    with pytest.raises(FusionMissing, match="Attention: 0 of 2"):
        assert_fused(fused, expected_counts({"layers": LAYERS, "activation": "gelu"}, "single-label"))


def test_an_activation_without_a_fused_form_is_an_error() -> None:
    with pytest.raises(FusionMissing, match="an activation 'swish': 0 of 3"):
        expected_counts({"layers": 3, "activation": "swish"}, "single-label")


def test_expected_counts_follow_from_the_architecture() -> None:
    counts = expected_counts(
        {"layers": 12, "activation": "gelu"}, "token-classification", "ErnieForTokenClassification"
    )
    assert counts["Attention"] == counts["BiasGelu"] == 12
    assert counts["SkipLayerNormalization"] == 24
    assert counts["Softmax"] == counts["LayerNormalization"] == 0
