"""INT8 for OpenVINO: ``onnx_int8`` written in pairs of QuantizeLinear and DequantizeLinear, as ``onnx_qdq``.

ONNX Runtime's integer products (QAttention, MatMulIntegerToFloat) are operators that no other runtime knows. Others
read the same arithmetic as a float product whose sides are quantized and dequantized around it, and compute it in 8
bits where they find such pairs. The integers and the scales stay as they are; what differs is how the float values
between the products are rounded.

Two things are written as such runtimes fuse them: all that is added to a product's columns is one bias, right behind
the product and before the residual; and attention is queries, keys and values of their own, scores, Softmax and sum.
A scale per channel in the place of the factors that even out an activation would save a pass, but OpenVINO 2026.4
quantizes with one scale per tensor there.

The form is proved on ONNX Runtime, which can run it but is quicker with its own operators, so only a plan for OpenVINO
may choose it (`bundle.manifest.Artifact.runtime`), once `export.on_openvino` has proved it there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto
from pydantic import JsonValue

from bundle.errors import ExportError, ParityFailed
from bundle.folder import Bundle
from bundle.predict import Predicted
from export.artifact import adopt, is_current, source_of, workplace
from export.graph import CONTRIB, Array, Graph, NoMatch, attribute
from export.journal import Journal
from export.parity import GoldenRows, check_session
from export.session import open_session, run_of
from export.to_int8 import NAME as SOURCE
from export.to_int8 import serialized

NAME = "onnx_qdq"
FILE = "onnx/model_qdq.onnx"
# Added to the scores of padding: small enough for sums to stay finite in bfloat16, large enough for Softmax to give 0.
MASKED = -10000.0
# How far its logits may be from those of `onnx_int8`, as a share of how far those are from the trained model's; means
# over the golden rows. Where a sum is rounded otherwise a value goes to the next integer; a tenth was measured.
OFF_SOURCE = 0.5
# Integer products whose scales are computed as they run, and weights that are no side of an integer product.
UNWRITABLE = ("DynamicQuantizeMatMul", "DynamicQuantizeLinear", "MatMulInteger", "MatMulNBits")


def to_qdq(bundle: Bundle, journal: Journal) -> Bundle:
    """Adds the artifact ``onnx_qdq`` to a bundle that publishes ``onnx_int8``, unless it is there already.

    Raises:
        ExportError: ``onnx_int8`` has products that cannot be written in pairs, or its golden rows were not measured.
        ParityFailed: it has other tensors or shapes, or its golden rows are too far from ``onnx_int8`` or the
            trained model.
    """
    if bundle.manifest.published != SOURCE:
        return bundle
    source = source_of(bundle, SOURCE)
    settings: dict[str, JsonValue] = {"pass": 1}
    if is_current(bundle, NAME, SOURCE, settings):
        return bundle
    if source.parity is None:
        raise ExportError(f"no parity was recorded for {SOURCE}; run `make export`")
    model = in_pairs(onnx.load(str(bundle.path(source.file))))
    golden = GoldenRows(bundle)
    with workplace(bundle, "onnx") as folder:
        path = folder / "model_qdq.onnx"
        path.write_bytes(serialized(model))
        session = open_session(path)
        check_session(NAME, session, bundle.manifest.signature)
        found = golden.predict(run_of(session, bundle.manifest.signature))
        parity = golden.measure(NAME, found, source.parity.tolerance)
        before = golden.predict(run_of(open_session(bundle.path(source.file)), bundle.manifest.signature))
        off, allowed = _distance(before, found), OFF_SOURCE * source.parity.mean_abs
        if not off <= allowed:
            raise ParityFailed(NAME, SOURCE, f"a logit differs by {off:.3g} on average, {allowed:.3g} are allowed")
        bundle = adopt(
            bundle,
            NAME,
            {path: FILE},
            source=SOURCE,
            settings=settings,
            artifact_format="onnx",
            precision=source.precision,
            runtime="openvino",
            parity=parity,
            details={"integer_products": integer_products(model), "mean_abs_off_source": off},
        )
    journal.say(f"    writes {bundle.path(FILE)} for OpenVINO: {SOURCE} in standard operators")
    return bundle


def _distance(one: Sequence[Predicted], other: Sequence[Predicted]) -> float:
    """Mean absolute difference of the logits."""
    gaps = [
        np.abs(mine - its).ravel()
        for left, right in zip(one, other, strict=True)
        for mine, its in zip(left.logits + left.token_logits, right.logits + right.token_logits, strict=True)
    ]
    return float(np.concatenate(gaps).mean())


def integer_products(model: onnx.ModelProto) -> int:
    """Products whose two sides are dequantized."""
    pairs = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return sum(node.op_type == "MatMul" and pairs >= set(node.input) for node in model.graph.node)


def in_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with the same integer products, in pairs.

    Args:
        model: with static scales, as `export.to_int8` makes it.

    Raises:
        ExportError: it has an integer product that cannot be written so.
    """
    graph = Graph(model)
    writer = _Writer(graph)
    for node in list(graph.nodes):
        if node.op_type == "MatMulIntegerToFloat":
            writer.product(node)
        elif node.op_type == "QAttention":
            writer.attention(node)
        elif node.op_type in UNWRITABLE:
            raise ExportError(f"{node.op_type} {node.name!r} has no static scales, so it cannot be written in pairs")
    writer.gather_biases()
    return graph.finish()


class _Writer:
    """Rewrites node by node; every value that is asked for twice is made once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.known: dict[tuple[str, ...], str] = {}

    # --- products ----------------------------------------------------------------------------------------------------

    def product(self, node: onnx.NodeProto) -> None:
        """MatMulIntegerToFloat → MatMul of two dequantized sides, and its bias."""
        graph = self.graph
        values, weight, value_scale, weight_scale, value_zero, weight_zero, bias = (list(node.input) + [""] * 7)[:7]
        if weight_zero and np.any(graph.constant(weight_zero)):
            raise ExportError(f"{node.name}: its weights have a zero point, which is not one of pairs here")
        sides = [
            self.dequantized(values, value_scale, value_zero),
            self.weight(graph.constant(weight), graph.constant(weight_scale)),
        ]
        self.put(node, "MatMul", sides, bias)

    def dequantized(self, name: str, scale: str, zero: str) -> str:
        key = (name, scale, zero)
        if key not in self.known:
            self.known[key] = self.graph.add("DequantizeLinear", [name, scale, *([zero] if zero else [])])
        return self.known[key]

    def weight(self, values: Array, scale: Array) -> str:
        graph = self.graph
        inputs = [graph.add_constant("pair_weight", values), graph.add_constant("pair_scale", scale)]
        # The axis of the scales, which are one for each column or one in all.
        return graph.add("DequantizeLinear", inputs, axis=1)

    def put(self, node: onnx.NodeProto, op: str, inputs: list[str], bias: str) -> None:
        """An operator in the place of a node, with a bias behind it if there is one."""
        graph = self.graph
        graph.remove([node])
        if bias:
            graph.add("Add", [graph.add(op, inputs), bias], [node.output[0]])
        else:
            graph.add(op, inputs, [node.output[0]])
        graph._index()

    # --- attention ---------------------------------------------------------------------------------------------------

    def attention(self, node: onnx.NodeProto) -> None:
        """QAttention → the products of queries, keys and values, scores, Softmax, the weighted sum."""
        graph = self.graph
        values, weight, bias, value_scale, weight_scale, mask, value_zero = list(node.input)[:7]
        read = self.dequantized(values, value_scale, value_zero)
        weights, scales, biases = (graph.constant(name) for name in (weight, weight_scale, bias))
        hidden, heads = weights.shape[1] // 3, attribute(node, "num_heads")
        apart = graph.add_constant("apart", np.array([0, 0, heads, hidden // heads], np.int64))
        sides = []
        for place in range(3):
            columns = slice(place * hidden, (place + 1) * hidden)
            scale = scales[columns] if scales.size > 1 else scales
            made = graph.add("MatMul", [read, self.weight(weights[:, columns], scale)])
            made = graph.add("Add", [made, graph.add_constant("pair_bias", biases[columns])])
            order = [0, 2, 3, 1] if place == 1 else [0, 2, 1, 3]
            sides.append(graph.add("Transpose", [graph.add("Reshape", [made, apart])], perm=order))
        query, key, value = sides
        width = graph.add_constant("width", np.array(1 / np.sqrt(hidden // heads), np.float32))
        scores = graph.add("Mul", [graph.add("MatMul", [query, key]), width])
        scores = graph.add("Softmax", [graph.add("Add", [scores, self.masked(mask)])], axis=-1)
        summed = graph.add("Transpose", [graph.add("MatMul", [scores, value])], perm=[0, 2, 1, 3])
        together = graph.add_constant("together", np.array([0, 0, hidden], np.int64))
        self.put(node, "Reshape", [summed, together], "")

    def masked(self, mask: str) -> str:
        """What is added to the scores: float32 (windows, 1, 1, tokens) of a mask of ones and zeros."""
        key = ("masked", mask)
        if key not in self.known:
            graph = self.graph
            real = graph.add("Cast", [mask], to=TensorProto.FLOAT)
            real = graph.add("Unsqueeze", [real, graph.add_constant("axes", np.array([1, 2], np.int64))])
            away = graph.add("Sub", [graph.add_constant("real", np.array(1, np.float32)), real])
            self.known[key] = graph.add("Mul", [away, graph.add_constant("away", np.array(MASKED, np.float32))])
        return self.known[key]

    # --- what stands around products ---------------------------------------------------------------------------------

    def gather_biases(self) -> None:
        """One bias for each product: what is added to its columns later goes into the one right behind it."""
        graph = self.graph
        for node in list(graph.nodes):
            try:
                if node.op_type == "BiasGelu":
                    inside = self._with(node.input[0], graph.constant(node.input[1]))
                    graph.remove([node])
                    graph.add("Gelu", [inside], [node.output[0]], domain=CONTRIB)
                elif node.op_type == "Sum" and len(node.input) == 3:
                    inside = self._with(node.input[0], graph.constant(node.input[2]))
                    graph.remove([node])
                    graph.add("Add", [inside, node.input[1]], [node.output[0]])
                elif node.op_type == "Add":
                    values, more = graph.sides(node)
                    product, both = self._both(values, more)
                    graph.remove([node])
                    graph.add("Add", [product, both], [node.output[0]])
                else:
                    continue
            except NoMatch:
                continue
            graph._index()

    def _with(self, name: str, more: Array) -> str:
        """A product's output with more added to its columns, in one bias."""
        graph = self.graph
        if graph.made_by(name, "MatMul", "Add").op_type == "MatMul":
            return graph.add("Add", [name, graph.add_constant("pair_bias", more)])
        return graph.add("Add", self._both(name, more))

    def _both(self, name: str, more: Array) -> tuple[str, str]:
        """A product whose output has a bias already, and that bias with more added.

        Raises:
            NoMatch: it has none, or others read what it is without more.
        """
        graph = self.graph
        product, bias = graph.sides(graph.made_by(name, "Add"))
        graph.made_by(product, "MatMul")
        if bias.shape != more.shape or len(graph.readers[name]) != 1:
            raise NoMatch
        return product, graph.add_constant("pair_bias", bias + more)
