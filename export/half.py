"""Graphs in half precision: made from float32, and rehearsed on a processor that has no kernels for it.

ONNX Runtime runs a float16 graph on the processor by computing float32 wherever it has no float16 kernel, and
leaves out the casts between two such operators. So nothing is rounded between them, and nothing passes the range, which
ends at 65,504: that a graph answers well there says little of a GPU. `rehearsed` puts the casts in for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from export.graph import Graph
from export.session import open_session

if TYPE_CHECKING:
    import onnx

# ONNX's numbers for element types.
FLOAT, FLOAT16 = 1, 10


def half(model: onnx.ModelProto, keep: Sequence[str] = ()) -> onnx.ModelProto:
    """A float32 graph in half precision; its inputs and outputs keep their types.

    Args:
        keep: operators, all of whose inputs and outputs are floats, that read and give float32.
    """
    import onnx

    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    # Its package puts its own folder on the path, which its other modules go on to need.
    from onnxruntime.transformers import float16

    # Shapes need not be inferred: ONNX does not know ONNX Runtime's own operators, and what stays float32 is taken
    # care of below. Weights that only such an operator reads are left float32.
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *keep]
    converted = float16.convert_float_to_float16(
        converted, keep_io_types=True, disable_shape_infer=True, op_block_list=blocked
    )
    graph = Graph(converted)
    weights = {item.name for item in converted.graph.initializer}
    kept = [node for node in graph.nodes if node.op_type in keep]
    # The empty name stands for an input or output that is left out.
    _in_float32(graph, kept, {name for node in kept for name in (*node.input, *node.output)} - weights - {""})
    return graph.finish()


def rehearsed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A half-precision graph as a GPU stores its tensors: each operator computes float32 and rounds its result.

    Args:
        model: what `half` made.
    """
    graph = Graph(model)
    names = [name for node in graph.nodes for name in node.output if name]
    # ONNX Runtime knows the types of its own operators' results, which ONNX does not.
    session = open_session(graph.finish(dict.fromkeys([*names, *graph.outputs])).SerializeToString())
    halves = {item.name for item in session.get_outputs() if item.type == "tensor(float16)"}
    halves |= {item.name for item in graph.model.graph.initializer if item.data_type == FLOAT16}
    _in_float32(graph, [node for node in graph.nodes if node.op_type != "Cast"], halves)
    return graph.finish()


def _in_float32(graph: Graph, nodes: Sequence[onnx.NodeProto], halves: set[str]) -> None:
    """Has nodes compute float32, with casts around them.

    Args:
        halves: float16 tensors; all others of the nodes stay as they are.
    """
    widened: dict[str, str] = {}
    for node in nodes:
        for place, name in enumerate(node.input):
            if name in halves:
                if name not in widened:
                    widened[name] = graph.add("Cast", [name], [graph.fresh(f"{name}_float32")], to=FLOAT)
                node.input[place] = widened[name]
        for place, name in enumerate(node.output):
            if name in halves:
                node.output[place] = graph.fresh(f"{name}_float32")
                graph.add("Cast", [node.output[place]], [name], to=FLOAT16)
