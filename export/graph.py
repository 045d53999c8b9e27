"""An ONNX graph that is being rewritten: who produces and reads a tensor, constants, pattern steps, pruning.

Just enough for `export.fuse` and `export.to_int8`; it knows nothing of transformers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

CONTRIB = "com.microsoft"
# What closes the halves of a layer, fused with the residual or not; the embeddings' norm is part of another operator.
NORMS = ("LayerNormalization", "SkipLayerNormalization")
Array = npt.NDArray[Any]


class NoMatch(Exception):
    """A pattern does not apply here; never leaves this package."""


class Graph:
    """A model's graph with its lookups. Nodes are added and marked dead; `finish` prunes and sorts."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.nodes: list[onnx.NodeProto] = list(self.model.graph.node)
        self.constants: dict[str, Array] = {
            item.name: numpy_helper.to_array(item) for item in self.model.graph.initializer
        }
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.outputs = [item.name for item in self.model.graph.output]
        self.inputs = [item.name for item in self.model.graph.input]
        self._taken = {*self.constants, *self.inputs, *self.outputs}
        self._taken |= {name for node in self.nodes for name in (node.name, *node.input, *node.output)}
        self._index()

    def _index(self) -> None:
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def made_by(self, name: str, *ops: str) -> onnx.NodeProto:
        """The node that makes a tensor, which must be one of ``ops``.

        Raises:
            NoMatch: it is another, or the tensor is an input or a constant.
        """
        node = self.producer.get(name)
        if node is None or node.op_type not in ops:
            raise NoMatch
        return node

    def constant(self, name: str) -> Array:
        """A constant's value.

        Raises:
            NoMatch: the tensor is computed.
        """
        if name not in self.constants:
            raise NoMatch
        return self.constants[name]

    def scalar(self, name: str) -> float:
        """A constant with one element."""
        value = self.constant(name)
        if value.size != 1:
            raise NoMatch
        return float(value.reshape(-1)[0])

    def sides(self, node: onnx.NodeProto) -> tuple[str, Array]:
        """A two-input node's computed side and its constant side, in whichever order they stand."""
        left, right = node.input
        if right in self.constants:
            return left, self.constants[right]
        if left in self.constants:
            return right, self.constants[left]
        raise NoMatch

    def dense(self, name: str) -> tuple[str, Array, Array]:
        """``x @ W + b`` that makes a tensor: x's name, W (in, out), b (out,)."""
        product, bias = self.sides(self.made_by(name, "Add"))
        matmul = self.made_by(product, "MatMul")
        weight = self.constant(matmul.input[1])
        if weight.ndim != 2 or bias.shape != (weight.shape[1],):
            raise NoMatch
        return matmul.input[0], weight, bias

    def only_reader(self, name: str, *ops: str) -> onnx.NodeProto:
        """The one node that reads a tensor."""
        readers = self.readers.get(name, [])
        if len(readers) != 1 or readers[0].op_type not in ops or name in self.outputs:
            raise NoMatch
        return readers[0]

    def fresh(self, stem: str) -> str:
        """A tensor or node name that is not taken."""
        name, number = stem, 0
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name

    def add_constant(self, stem: str, value: Array) -> str:
        name = self.fresh(stem)
        self.constants[name] = value
        self.model.graph.initializer.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def add(
        self,
        op: str,
        inputs: Iterable[str],
        outputs: Iterable[str] | None = None,
        *,
        domain: str = "",
        **attributes: object,
    ) -> str:
        """Adds a node and returns its first output's name."""
        made = list(outputs) if outputs is not None else [self.fresh(op.lower())]
        self.nodes.append(
            helper.make_node(op, list(inputs), made, name=self.fresh(f"slipway_{op}"), domain=domain, **attributes)
        )
        return made[0]

    def remove(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Removes nodes; whatever only they read goes with `finish`."""
        gone = {id(node) for node in nodes}
        self.nodes = [node for node in self.nodes if id(node) not in gone]

    def replace(self, node: onnx.NodeProto, op: str, inputs: Iterable[str], **attributes: object) -> None:
        """Puts one contrib node in a node's place: it makes the same output."""
        self.remove([node])
        self.add(op, inputs, [node.output[0]], domain=CONTRIB, **attributes)
        self._index()

    def depends_on(self, name: str, inputs: Iterable[str]) -> bool:
        """Whether a tensor is computed from any of the graph's inputs named here."""
        wanted, seen, todo = set(inputs), set(), [name]
        while todo:
            here = todo.pop()
            if here in wanted:
                return True
            if here in seen or here not in self.producer:
                continue
            seen.add(here)
            todo.extend(self.producer[here].input)
        return False

    def counts(self) -> Counter[str]:
        """How many nodes there are of each operator."""
        return Counter(node.op_type for node in self.nodes)

    def finish(self, outputs: Iterable[str] | None = None) -> onnx.ModelProto:
        """The model with what nothing needs removed, in execution order.

        Args:
            outputs: tensors to make outputs instead of the graph's own (their element types stay unset).
        """
        self._index()
        graph = self.model.graph
        wanted = list(outputs) if outputs is not None else self.outputs
        order: list[onnx.NodeProto] = []
        state: set[int] = set()
        todo: list[tuple[onnx.NodeProto, bool]] = [
            (self.producer[name], False) for name in reversed(wanted) if name in self.producer
        ]
        while todo:
            node, ready = todo.pop()
            if ready:
                order.append(node)
                continue
            if id(node) in state:
                continue
            state.add(id(node))
            todo.append((node, True))
            todo += [(self.producer[name], False) for name in node.input if name in self.producer]
        used = {name for node in order for name in node.input}
        kept = [item for item in graph.initializer if item.name in used]
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        for field in ("node", "initializer", "value_info"):
            result.graph.ClearField(field)
        result.graph.node.extend(order)
        result.graph.initializer.extend(kept)
        if outputs is not None:
            result.graph.ClearField("output")
            result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        if all(item.domain != CONTRIB for item in result.opset_import):
            result.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        return result


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """A node's attribute, or the default."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default
