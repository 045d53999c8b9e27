"""Weights of 8 or 4 bits, activations in float32: a smaller file for where memory is what lacks.

ONNX Runtime's MatMulNBits holds a weight in blocks of `BLOCK` values with a scale each, and computes from them. A
packed Attention has no such form, so it is taken apart: three products and a MultiHeadAttention with the same mask.
Embeddings stay as they are; of a small model they are the larger part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np

from bundle.errors import ConversionFailed
from export.graph import CONTRIB, Graph, attribute
from export.journal import Journal

if TYPE_CHECKING:
    import onnx

BLOCK = 32
# Activations are rounded to 8 bits inside the kernel, row by row, so that an answer does not depend on its batch.
ACCURACY_LEVEL = 4
PREFIX = "slipway_bits_"


def weight_only(
    model: onnx.ModelProto, outputs: Iterable[str], bits: Literal[4, 8], journal: Journal
) -> onnx.ModelProto:
    """Gives the products their weights in few bits.

    Args:
        model: a fused float32 graph.
        outputs: outputs of the Attention and MatMul nodes that are meant.

    Raises:
        ConversionFailed: other products became smaller than those that were asked for.
    """
    graph = Graph(model)
    wanted = set(outputs)
    named = 0
    for node in [item for item in graph.nodes if item.output[0] in wanted]:
        if node.op_type == "Attention":
            _take_apart(graph, node, named)
            named += 3
        else:
            node.name = f"{PREFIX}{named}"
            named += 1
    apart = graph.finish()
    with journal.quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        chosen = [node.name for node in apart.graph.node if node.name.startswith(PREFIX)]
        quantizer = MatMulNBitsQuantizer(
            apart,
            bits=bits,
            block_size=BLOCK,
            is_symmetric=True,
            accuracy_level=ACCURACY_LEVEL,
            nodes_to_include=chosen,
            nodes_to_exclude=[node.name for node in apart.graph.node if node.name not in chosen],
        )
        quantizer.process()
    result: onnx.ModelProto = quantizer.model.model
    made = sum(node.op_type == "MatMulNBits" for node in result.graph.node)
    if made != named:
        raise ConversionFailed("to_int8", f"{made} products have weights of {bits} bits, {named} were asked for")
    return result


def _take_apart(graph: Graph, node: onnx.NodeProto, number: int) -> None:
    """Attention → three products and a MultiHeadAttention, which adds the bias and makes the same output."""
    weight = graph.constants[node.input[1]]  # (in, 3 out)
    parts = []
    for place, part in enumerate(np.split(weight, 3, axis=1)):
        product = graph.add("MatMul", [node.input[0], graph.add_constant("part_weight", part)])
        graph.nodes[-1].name = f"{PREFIX}{number + place}"
        parts.append(product)
    graph.replace(
        node,
        "MultiHeadAttention",
        [*parts, node.input[2], node.input[3]],
        num_heads=attribute(node, "num_heads"),
        mask_filter_value=attribute(node, "mask_filter_value"),
    )


def count_small(model: onnx.ModelProto) -> int:
    """Products whose weights are held in few bits; the three of an attention count as one."""
    ops = [node.op_type for node in model.graph.node if node.domain == CONTRIB]
    return ops.count("MatMulNBits") - 2 * ops.count("MultiHeadAttention")
