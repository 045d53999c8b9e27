"""Each integer product beside the float32 product that it stands for: which layer a loss comes from.

A product is run on the very input that float32 has there, so that its own error shows and not what earlier layers
brought along. A wrong scale, a wrong zero point or another model's weights stand out by an order of magnitude, even in
a single channel of a single layer, whatever the labels of a few rows say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper
from pydantic import JsonValue

from bundle.encode import WindowRow, pad
from bundle.errors import ExportError
from bundle.manifest import Signature
from bundle.predict import batches
from export.graph import CONTRIB, NORMS, Graph
from export.passes import KEY, QUERY, VALUE
from export.session import open_session, run_outputs

if TYPE_CHECKING:
    import onnx

INTEGER = ("QAttention", "MatMulIntegerToFloat")
# The products of an attention of which one query is left, by their weights.
APART = {QUERY: "attention query", KEY: "attention keys", VALUE: "attention values"}
SMALL = ("MatMulNBits", "MultiHeadAttention")
# A product's own error as a share of its output, root mean square. Measured on trained models: 0.006 to 0.055.
MAX_ERROR = 0.25
# The same of a single output channel, measured up to 0.16; a weak channel is measured against a tenth of the mean one.
MAX_CHANNEL = 0.6
WEAK = 0.1
# Attention heads of the largest base model.
MOST_HEADS = 16
# Windows that are enough to tell.
WINDOWS = 32
# Fewer tokens than this say nothing of a single channel.
FEW_TOKENS = 16


@dataclass(frozen=True)
class ProductError:
    """How far an integer product is from float32's.

    Attributes:
        name: layer and product in words.
        tensor: its output's name in both graphs.
        own: error on float32's input, as a share of the output (root mean square).
        arrived: error in the whole graph, where earlier layers add theirs.
        channel, channel_error: the output channel with the largest own error, and that error.
        tokens: how many were compared.
    """

    name: str
    tensor: str
    own: float
    arrived: float
    channel: int
    channel_error: float
    tokens: int

    @property
    def failed(self) -> str:
        """What is wrong with it; empty if its error is that of rounding."""
        if not np.isfinite([self.own, self.channel_error]).all():
            return f"{self.name} gives values that are no numbers"
        if self.own > MAX_ERROR:
            return (
                f"{self.name} is off by {self.own:.0%} of its output on fp32's own input (8 bits explain a few "
                "percent): a wrong scale or zero point, or weights of another model"
            )
        if self.channel_error > MAX_CHANNEL and self.tokens >= FEW_TOKENS:
            return (
                f"{self.name}: output channel {self.channel} is off by {self.channel_error:.0%} on fp32's own input: "
                "a wrong scale or wrong weights of that channel"
            )
        return ""

    def record(self) -> dict[str, JsonValue]:
        """As the report keeps it."""
        return {
            "name": self.name,
            "tensor": self.tensor,
            "own": round(self.own, 5),
            "arrived": round(self.arrived, 5),
            "channel": self.channel,
            "channel_error": round(self.channel_error, 5),
        }


def product_errors(
    fp32: onnx.ModelProto,
    int8: onnx.ModelProto,
    windows: Sequence[WindowRow],
    signature: Signature,
    pad_id: int,
) -> list[ProductError]:
    """Compares every integer product with float32's on some windows, in the order of the graph.

    Args:
        int8: made from ``fp32``; a product's output has the same name in both.
        windows: at most `WINDOWS` of them are run.

    Raises:
        ExportError: a product's input or output is not in ``fp32``: the graph was made from another.
    """
    graph, source = Graph(int8), Graph(fp32)
    # Of an attention that was taken apart for weights of few bits, its result is compared.
    products = [
        node
        for node in graph.nodes
        if node.domain == CONTRIB
        and (node.op_type in INTEGER or (node.op_type in SMALL and node.output[0] in source.producer))
    ]
    outputs = [node.output[0] for node in products]
    if not products:
        return []
    inputs = [_float_input(graph, node, source) for node in products]
    absent = [name for name in (*outputs, *inputs) if name not in source.producer]
    if absent:
        raise ExportError(f"the integer graph was not made from this float32 graph, which has no {absent[0]!r}")
    wanted = list(dict.fromkeys([*inputs, *outputs]))
    exact_session = open_session(source.finish(wanted).SerializeToString())
    whole_session = open_session(graph.finish(outputs).SerializeToString())
    own_session = open_session(_isolated(int8, set(inputs), outputs).SerializeToString())
    own_inputs = [item.name for item in own_session.get_inputs()]
    names = [tensor.name for tensor in signature.inputs]
    sums = {name: _Sums() for name in outputs}
    windows = windows[:WINDOWS]
    for batch in batches([len(window.ids) for window in windows], 1024):
        ids, types = pad([windows[index] for index in batch], pad_id)
        if ids.shape[1] <= MOST_HEADS:
            # What has a row per head must not look as if it had one per token.
            ids, types = (
                np.pad(array, ((0, 0), (0, MOST_HEADS + 1 - array.shape[1])), constant_values=value)
                for array, value in ((ids, pad_id), (types, 0))
            )
        feeds = dict(zip(names, (ids, types), strict=True))
        exact = dict(zip(wanted, run_outputs(exact_session, wanted, _used(exact_session, feeds)), strict=True))
        whole = run_outputs(whole_session, outputs, _used(whole_session, feeds))
        given = {**feeds, **{name: exact[name] for name in inputs}}
        own = run_outputs(own_session, [_own(name) for name in outputs], {name: given[name] for name in own_inputs})
        real = ids != pad_id
        for name, here, arrived in zip(outputs, own, whole, strict=True):
            sums[name].add(*(_tokens(value, real) for value in (exact[name], here, arrived)))
    told = product_names(fp32)
    return [sums[name].error(told.get(name, name), name) for name in outputs]


def _used(session: object, feeds: dict[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[np.int64]]:
    known = {item.name for item in session.get_inputs()}  # type: ignore[attr-defined]
    return {name: value for name, value in feeds.items() if name in known}


class _Sums:
    """Squares over tokens, by channel."""

    def __init__(self) -> None:
        self.exact, self.own, self.arrived = (np.zeros(1) for _ in range(3))
        self.tokens = 0

    def add(self, *values: npt.NDArray[np.float64]) -> None:
        exact, own, arrived = values
        self.tokens += len(exact)
        self.exact = self.exact + np.square(exact).sum(axis=0)
        self.own = self.own + np.square(own - exact).sum(axis=0)
        self.arrived = self.arrived + np.square(arrived - exact).sum(axis=0)

    def error(self, name: str, tensor: str) -> ProductError:
        size = max(float(self.exact.sum()), 1e-12)
        channels = np.sqrt(self.own / np.maximum(self.exact, WEAK * size / len(self.exact)))
        channel = int(np.argmax(channels))
        own, arrived = (float(np.sqrt(lost.sum() / size)) for lost in (self.own, self.arrived))
        return ProductError(name, tensor, own, arrived, channel, float(channels[channel]), self.tokens)


def _tokens(value: npt.NDArray[np.float32], real: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """float64 (real tokens, channels); all of them where only the first token goes on."""
    flat = value[real] if value.shape[:2] == real.shape else value.reshape(-1, value.shape[-1])
    return flat.astype(np.float64)


def _own(name: str) -> str:
    return f"{name}/own"


def _float_input(graph: Graph, node: onnx.NodeProto, source: Graph) -> str:
    """The float32 tensor that a product is computed from, before its channels were evened out and quantized."""
    name: str = node.input[0]
    while name in graph.producer and name not in source.producer:
        name = graph.producer[name].input[0]
    return name


def _isolated(int8: onnx.ModelProto, inputs: set[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The integer products alone: their float32 inputs are inputs of the graph, so that no error is passed on."""
    graph = Graph(int8)
    for node in graph.nodes:
        # An Attention's output is the next product's input: what is computed must not stand where exact values go in.
        node.output[:] = [_own(name) if name in outputs else name for name in node.output]
    graph.remove([node for node in graph.nodes if any(name in inputs for name in node.output)])
    model = graph.finish([_own(name) for name in outputs])
    read = {name for node in model.graph.node for name in node.input}
    kept = [item for item in model.graph.input if item.name in read]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sorted(inputs))
    return model


def product_names(model: onnx.ModelProto) -> dict[str, str]:
    """What each product of a fused float32 graph is, in words, by its output: ``layer 2, feed-forward in``."""
    graph = Graph(model)
    norms: dict[str, int] = {}
    names: dict[str, str] = {}
    for node in graph.finish().graph.node:
        passed = max([norms.get(name, 0) for name in node.input], default=0)
        if node.op_type in NORMS:
            passed += 1
        norms.update(dict.fromkeys(node.output, passed))
        # Two norms close a layer.
        layer = f"layer {passed // 2 + 1}"
        if node.op_type == "Attention":
            names[node.output[0]] = f"{layer}, attention QKV"
        elif node.op_type == "MatMul" and node.input[1] in graph.constants:
            names[node.output[0]] = f"{layer}, {_kind(graph, node, passed)}"
    return names


def _kind(graph: Graph, node: onnx.NodeProto, passed: int) -> str:
    for weight, kind in APART.items():
        if node.input[1].startswith(weight):
            return kind
    closes = _is_normed(graph, node.output[0])
    if passed % 2 == 0:
        return "attention output" if closes else "product"
    return "feed-forward out" if closes else "feed-forward in"


def _is_normed(graph: Graph, name: str) -> bool:
    """Whether a norm reads the tensor, itself or after a sum with the residual."""
    readers = graph.readers.get(name, [])
    return any(
        reader.op_type in NORMS or (reader.op_type in ("Sum", "Add") and _is_normed(graph, reader.output[0]))
        for reader in readers
    )


def wrong_products(errors: Sequence[ProductError]) -> list[str]:
    """What is wrong with integer products, the worst first; empty if all errors are those of rounding."""
    failed = [item for item in sorted(errors, key=lambda item: -max(item.own, item.channel_error)) if item.failed]
    reasons = [item.failed for item in failed[:3]]
    if len(failed) > len(reasons):
        reasons.append(f"{len(failed)} of {len(errors)} integer products are wrong like that")
    return reasons
