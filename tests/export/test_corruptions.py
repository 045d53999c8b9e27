"""Exports that went wrong, made on purpose: each is refused, and the refusal names the part that is wrong.

The graphs are real ones, exported from tiny models; a corruption changes one thing in them. What float32 graphs are
refused by is parity; INT8 graphs are refused by their products and by the gate.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bundle.errors import ChecksumMismatch, ExportError, ParityFailed
from bundle.folder import Bundle
from export.artifact import adopt, identity, source_of
from export.gate import DevSplit, gate
from export.journal import Journal
from export.parity import GoldenRows, check_onnx
from export.products import product_errors, wrong_products

pytestmark = pytest.mark.slow

Copy = Callable[[str], Bundle]
Model = onnx.ModelProto
Corruption = Callable[[Model], None]
HEADS, HIDDEN = 4, 48


def load(bundle: Bundle, name: str) -> Model:
    return onnx.load(str(bundle.path(bundle.manifest.artifacts[name].file)))


def nodes(model: Model, op: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == op]


def change(model: Model, name: str, new: Callable[[np.ndarray], Any]) -> None:
    """Changes a constant's value."""
    (item,) = [item for item in model.graph.initializer if item.name == name]
    value = numpy_helper.to_array(item)
    item.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(np.asarray(new(value.copy()), value.dtype)), name))


def put(model: Model, old: onnx.NodeProto, *new: onnx.NodeProto) -> None:
    """Puts nodes in a node's place."""
    kept: list[onnx.NodeProto] = []
    for node in model.graph.node:
        kept.extend(new if node is old else [node])
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def drawn(value: np.ndarray) -> np.ndarray:
    return np.random.default_rng(3).normal(0, 0.25, value.shape)


def head(model: Model) -> tuple[str, str]:
    """Weight and bias of the classifier."""
    *_, product, add = model.graph.node
    names = {item.name for item in model.graph.initializer}
    return product.input[1], next(name for name in add.input if name in names)


def embeddings(model: Model) -> onnx.NodeProto:
    return nodes(model, "EmbedLayerNormalization")[0]


def head_not_loaded(model: Model) -> None:
    change(model, head(model)[0], drawn)


def layer_not_loaded(model: Model) -> None:
    change(model, "first_value_weight", drawn)


def residual_dropped(model: Model) -> None:
    del nodes(model, "Sum")[1].input[1]


def norm_dropped(model: Model) -> None:
    node = nodes(model, "LayerNormalization")[0]
    put(model, node, helper.make_node("Identity", list(node.input[:1]), list(node.output[:1])))


def activation_dropped(model: Model) -> None:
    node = nodes(model, "BiasGelu")[1]
    put(model, node, helper.make_node("Add", list(node.input), list(node.output)))


def activation_approximated(model: Model) -> None:
    node = nodes(model, "BiasGelu")[0]
    put(model, node, helper.make_node("FastGelu", list(node.input), list(node.output), domain="com.microsoft"))


def weight_turned(model: Model) -> None:
    square = [
        node.input[1]
        for node in nodes(model, "MatMul")
        for item in model.graph.initializer
        if item.name == node.input[1] and list(item.dims) == [HIDDEN, HIDDEN]
    ]
    change(model, square[0], np.transpose)


def heads_permuted(model: Model) -> None:
    def turn(value: np.ndarray) -> np.ndarray:
        values = value[:, 2 * HIDDEN :].reshape(HIDDEN, HEADS, HIDDEN // HEADS)
        value[:, 2 * HIDDEN :] = values[:, [1, 0, 2, 3]].reshape(HIDDEN, HIDDEN)
        return value

    change(model, nodes(model, "Attention")[0].input[1], turn)


def labels_permuted(model: Model) -> None:
    weight, bias = head(model)
    change(model, weight, lambda value: value[:, [2, 0, 1]])
    change(model, bias, lambda value: value[[2, 0, 1]])


def mask_ignored(model: Model) -> None:
    for node in nodes(model, "Attention"):
        del node.input[3]


def types_zeroed(model: Model) -> None:
    change(model, embeddings(model).input[4], np.zeros_like)


def second_type_zeroed(model: Model) -> None:
    change(model, embeddings(model).input[4], lambda table: table * np.array([[1.0], [0.0]]))


def positions_off_by_one(model: Model) -> None:
    change(model, embeddings(model).input[3], lambda table: np.roll(table, 1, axis=0))


def positions_off_by_two(model: Model) -> None:
    change(model, embeddings(model).input[3], lambda table: np.roll(table, -2, axis=0))


def epsilon_changed(model: Model) -> None:
    for node in nodes(model, "LayerNormalization"):
        (epsilon,) = [item for item in node.attribute if item.name == "epsilon"]
        epsilon.f = 1e-2


FUSED: list[tuple[Corruption, str]] = [
    (head_not_loaded, "the first tensor that differs is '.*' in the head, made by "),
    (layer_not_loaded, "the first tensor that differs is '.*' in layer 2, made by LayerNormalization"),
    (residual_dropped, "the first tensor that differs is '.*' in layer 1, made by LayerNormalization"),
    (norm_dropped, "the first tensor that differs is '.*' in layer 1, made by Identity"),
    (activation_dropped, "the first tensor that differs is '.*' in layer 2, made by Add"),
    (activation_approximated, "the first tensor that differs is '.*' in layer 1, made by FastGelu"),
    (weight_turned, "the first tensor that differs is '.*' in layer 1, made by MatMul"),
    (heads_permuted, "the first tensor that differs is '.*' in layer 1, made by Attention"),
    (labels_permuted, r"the labels stand in another order \(label 0 at 1, 1 at 2, 2 at 0\)"),
    (mask_ignored, "every window is right where it is alone: padding in a batch is not masked"),
    (types_zeroed, "the first tensor that differs is '.*' in the embeddings"),
    (second_type_zeroed, "the first tensor that differs is '.*' in the embeddings"),
    (positions_off_by_one, "the first tensor that differs is '.*' in the embeddings"),
    (epsilon_changed, "the first tensor that differs is '.*' in layer 1, made by LayerNormalization"),
]


@pytest.mark.parametrize(("corrupt", "named"), FUSED, ids=[item[0].__name__ for item in FUSED])
def test_a_corrupted_fused_graph_is_refused(corrupt: Corruption, named: str, exported: Copy) -> None:
    bundle = exported("bert-pairs")
    model = load(bundle, "onnx_fused")
    corrupt(model)
    with pytest.raises(ParityFailed, match=r"onnx_fused does not compute what paddle does: .*a logit differs") as told:
        check_onnx("onnx_fused", model.SerializeToString(), GoldenRows(bundle))
    assert told.match(named)


def test_roberta_positions_that_begin_where_bert_begins_are_refused(exported: Copy) -> None:
    bundle = exported("roberta-classes")
    model = load(bundle, "onnx_fused")
    positions_off_by_two(model)
    with pytest.raises(ParityFailed, match=r"the first tensor that differs is '.*' in the embeddings"):
        check_onnx("onnx_fused", model.SerializeToString(), GoldenRows(bundle))


def test_positions_that_no_golden_row_reaches_are_proved_by_whole_windows(exported: Copy) -> None:
    bundle = exported("bert-classes")
    model = load(bundle, "onnx_fused")
    change(model, embeddings(model).input[3], lambda table: np.concatenate([table[:28], table[28:] * 0]))
    golden = GoldenRows(bundle)
    short = [n for n, row in enumerate(golden.rows) if max(len(ids) for ids in row.ids) <= 28]
    golden.rows, golden.encoded = [golden.rows[n] for n in short], [golden.encoded[n] for n in short]
    with pytest.raises(ParityFailed, match=r"on windows of 32 random tokens a logit differs .* in the embeddings"):
        check_onnx("onnx_fused", model.SerializeToString(), golden)


def test_only_long_windows_that_are_wrong_point_to_positions(exported: Copy) -> None:
    bundle = exported("bert-classes")
    model = load(bundle, "onnx_fused")
    change(model, embeddings(model).input[3], lambda table: np.concatenate([table[:28], table[28:] * 0]))
    with pytest.raises(ParityFailed, match=r"only windows of more than \d+ tokens are wrong: positions from there on"):
        check_onnx("onnx_fused", model.SerializeToString(), GoldenRows(bundle))


def test_the_graph_of_another_training_run_is_refused(exported: Copy) -> None:
    bundle, other = exported("bert-pairs"), exported("bert-classes")
    with pytest.raises(ParityFailed, match=r"the first tensor that differs is '.*' in the embeddings"):
        check_onnx("onnx_fused", load(other, "onnx_fused").SerializeToString(), GoldenRows(bundle))


def test_a_softmax_over_another_axis_is_refused(exported: Copy) -> None:
    bundle = exported("bert-classes")
    model = load(bundle, "onnx_fp32")
    softmax = nodes(model, "Softmax")[0]
    del softmax.attribute[:]
    softmax.attribute.append(helper.make_attribute("axis", 1))
    with pytest.raises(ParityFailed, match="onnx_fp32 does not compute what paddle does: a logit differs"):
        check_onnx("onnx_fp32", model.SerializeToString(), GoldenRows(bundle))


def test_an_operator_set_in_which_softmax_means_something_else_is_refused_by_its_number(exported: Copy) -> None:
    bundle = exported("bert-classes")
    model = load(bundle, "onnx_fp32")
    for item in model.opset_import:
        if item.domain == "":
            item.version = 11
    with pytest.raises(ParityFailed, match="it says operator set 11; before 13 Softmax flattens"):
        check_onnx("onnx_fp32", model.SerializeToString(), GoldenRows(bundle))


def test_a_truncated_weights_file_is_refused_by_parity_and_by_its_checksum(
    copied: Copy, journal: Journal, tmp_path: Path
) -> None:
    bundle = copied("bert-classes")
    model = load(bundle, "onnx_fused")
    graph, weights = tmp_path / "model_fused.onnx", tmp_path / "model_fused.onnx.data"
    onnx.save(model, str(graph), save_as_external_data=True, location=weights.name, size_threshold=1024)
    check_onnx("onnx_fused", graph, GoldenRows(bundle))
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ParityFailed, match="the graph cannot be opened"):
        check_onnx("onnx_fused", graph, GoldenRows(bundle))
    weights.write_bytes(whole)
    files = {graph: "onnx/model_fused.onnx", weights: "onnx/model_fused.onnx.data"}
    bundle = adopt(bundle, "onnx_fused", files, source="onnx_fp32", settings={}, artifact_format="onnx")
    path = bundle.path("onnx/model_fused.onnx.data")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ChecksumMismatch, match=r"model_fused\.onnx\.data"):
        source_of(bundle, "onnx_fused")


def products(model: Model) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in ("QAttention", "MatMulIntegerToFloat")]


def own_constant(model: Model, node: onnx.NodeProto, place: int, new: Callable[[np.ndarray], Any]) -> None:
    """Changes a constant for one node alone, which others may read too."""
    (item,) = [item for item in model.graph.initializer if item.name == node.input[place]]
    value = numpy_helper.to_array(item)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(new(value.copy()), value.dtype), "own_constant"))
    node.input[place] = "own_constant"


def place_of(node: onnx.NodeProto, what: str) -> int:
    attention = {"weight": 1, "scale": 3, "weight_scale": 4, "zero": 6}
    product = {"weight": 1, "scale": 2, "weight_scale": 3, "zero": 4}
    return (attention if node.op_type == "QAttention" else product)[what]


def wrong(what: str, number: int, new: Callable[[np.ndarray], Any]) -> Corruption:
    def corrupt(model: Model) -> None:
        node = products(model)[number]
        own_constant(model, node, place_of(node, what), new)

    return corrupt


def one_channel(value: np.ndarray) -> np.ndarray:
    value[5] *= 2
    return value


INT8: dict[str, tuple[Corruption, str]] = {
    "a weight scale doubled": (
        wrong("weight_scale", 0, lambda v: v * 2),
        r"^layer 1, attention QKV is off by \d+%",
    ),
    "the scale of one channel doubled": (
        wrong("weight_scale", 2, one_channel),
        r"^layer 1, feed-forward in: output channel 5 is off by \d+% on fp32's own input",
    ),
    "an activation scale halved": (wrong("scale", 7, lambda v: v / 2), "^layer 2, attention output is off by"),
    "a zero point off by 9": (wrong("zero", 4, lambda v: v - 9), "^layer 2, attention query"),
    "weights of another order": (wrong("weight", 1, np.transpose), "^layer 1, attention output is off by"),
    "weights of zero": (wrong("weight", 9, np.zeros_like), "^layer 2, feed-forward out is off by 100%"),
}


def static_int8(bundle: Bundle) -> Model:
    """The static candidate, whatever the gate's timing chose for this bundle."""
    from export.to_int8 import Bench, Scheme

    bench = Bench(bundle, load(bundle, "onnx_fused"), GoldenRows(bundle), Journal(bundle.root.parent / "trial.log"))
    return bench.candidate(Scheme("static")).model


@pytest.fixture(scope="module")
def int8(exported: Copy) -> Model:
    return static_int8(exported("bert-pairs"))


@pytest.mark.parametrize("name", INT8)
def test_a_wrong_integer_product_is_named_with_its_layer(name: str, int8: Model, exported: Copy) -> None:
    bundle = exported("bert-pairs")
    golden = GoldenRows(bundle)
    windows = [golden.encoder.row(item, n) for item in golden.encoded for n in range(len(item.windows))]
    fused, signature = load(bundle, "onnx_fused"), bundle.manifest.signature
    assert wrong_products(product_errors(fused, int8, windows, signature, 0)) == []
    corrupt, named = INT8[name]
    model = Model.FromString(int8.SerializeToString())
    corrupt(model)
    (reason,) = wrong_products(product_errors(fused, model, windows, signature, 0))
    assert re.search(named, reason), reason


def test_an_integer_graph_of_another_structure_is_told(int8: Model, exported: Copy) -> None:
    bundle = exported("bert-pairs")
    model = Model.FromString(int8.SerializeToString())
    node = products(model)[0]
    for reader in model.graph.node:
        reader.input[:] = ["elsewhere" if name == node.output[0] else name for name in reader.input]
    node.output[0] = "elsewhere"
    golden = GoldenRows(bundle)
    with pytest.raises(ExportError, match="was not made from this float32 graph, which has no 'elsewhere'"):
        product_errors(
            load(bundle, "onnx_fused"), model, golden.encoder.rows(golden.encoded[0]), bundle.manifest.signature, 0
        )


def published(bundle: Bundle, model: Model, tmp_path: Path) -> tuple[str, str]:
    """What the gate makes of an INT8 graph: the form that is published, and its words."""
    path = tmp_path / "model_int8.onnx"
    path.write_bytes(model.SerializeToString())
    bundle = adopt(
        bundle,
        "onnx_int8",
        {path: "onnx/model_int8.onnx"},
        source="onnx_fused",
        settings={},
        artifact_format="onnx",
        precision="int8",
    )
    assert bundle.manifest.artifacts["onnx_int8"].details["source_sha256"] == identity(
        bundle.manifest.artifacts["onnx_fused"]
    )
    bundle = gate(bundle, Journal(tmp_path / "export.log"), DevSplit(bundle))
    return bundle.manifest.published, str(bundle.manifest.artifacts["onnx_int8"].details["gate"])


GATED: list[tuple[Corruption | None, str]] = [
    (None, "^passed$"),
    (labels_permuted, r"dev rows are answered as fp32 does.*the labels stand in another order \(label 0 at 1"),
    (norm_dropped, "the first tensor that differs is '.*' in layer 1, made by Identity"),
    (head_not_loaded, "the first tensor that differs is '.*' in the head"),
    (types_zeroed, "the first tensor that differs is '.*' in the embeddings"),
    (INT8["a weight scale doubled"][0], "layer 1, attention QKV is off by"),
    (INT8["the scale of one channel doubled"][0], "layer 1, feed-forward in: output channel 5 is off by"),
]


@pytest.mark.parametrize(("corrupt", "named"), GATED, ids=[getattr(item[0], "__name__", "good") for item in GATED])
def test_a_corrupted_int8_graph_is_not_published(
    corrupt: Corruption | None, named: str, int8: Model, copied: Copy, tmp_path: Path
) -> None:
    model = Model.FromString(int8.SerializeToString())
    if corrupt:
        corrupt(model)
    form, words = published(copied("bert-pairs"), model, tmp_path)
    assert form == ("onnx_fused" if corrupt else "onnx_int8")
    assert re.search(named, words), words
