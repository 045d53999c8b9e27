"""How fast this machine multiplies matrices, and how much of that a model asks for.

The roof under which every form stands: the best rate that a large matrix product reaches here, now, with the bench's
threads, in float32 (ONNX Runtime's MatMul) and in 8-bit integers (its MatMulInteger).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle.manifest import Signature

if TYPE_CHECKING:
    from bundle.folder import Bundle

# (rows, inner, columns): as long as a batch of windows, as wide as the layers of a small and a base encoder.
SIZES = ((1024, 512, 2048), (1024, 1024, 1024), (2048, 768, 3072))


@dataclass(frozen=True, slots=True)
class Shape:
    """What the arithmetic of an encoder follows from.

    Attributes:
        layers, hidden, inner: number of layers, width, width of the feed-forward part.
        embedding: width of the embeddings, where it differs from ``hidden``; else 0.
        labels: of all heads that answer a window once.
        token_labels: of all heads that answer each token.
    """

    layers: int
    hidden: int
    inner: int
    embedding: int
    labels: int
    token_labels: int

    def flops(self, tokens: int) -> float:
        """Floating-point operations of one window of ``tokens`` tokens: two for each multiplication in a product.

        Of the model as it was trained. A graph that leaves out what no output needs does fewer, which shows as a
        larger share of the peak. Norms, Gelu and Softmax are not products and not counted.
        """
        h, t = self.hidden, tokens
        layer = 8 * t * h * h + 4 * t * h * self.inner + 4 * t * t * h
        heads = (2 * h * h + 2 * h * self.labels if self.labels else 0) + 2 * t * h * self.token_labels
        return float(self.layers * layer + 2 * t * self.embedding * h + heads)


def shape_of(bundle: Bundle) -> Shape | None:
    """The shape of a bundle's model, from the configuration beside its checkpoint; None where there is none."""
    trained = bundle.manifest.artifacts.get("paddle")
    if trained is None:
        return None
    file = bundle.path(trained.file).parent / "config.json"
    try:
        config: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        hidden = int(config["hidden_size"])
        embedding = int(config.get("embedding_size") or hidden)
        once, each = _heads(bundle.manifest.signature)
        return Shape(
            int(config["num_hidden_layers"]),
            hidden,
            int(config["intermediate_size"]),
            0 if embedding == hidden else embedding,
            once,
            each,
        )
    except (OSError, ValueError, KeyError):
        return None


def _heads(signature: Signature) -> tuple[int, int]:
    """Labels that are answered once a window, and once a token."""
    once = each = 0
    for tensor in signature.outputs:
        size = tensor.shape[-1]
        labels = size if isinstance(size, int) else 0
        if "tokens" in tensor.shape:
            each += labels
        else:
            once += labels
    return once, each


def measure_peaks(threads: int, seconds: float) -> dict[str, float]:
    """The best rates of this machine in 10⁹ operations per second: ``fp32`` and ``int8``.

    A busy machine gives too little, so the caller measures more than once and takes the best.

    Args:
        seconds: for each of nine products, which is repeated for so long.
    """
    best = {"fp32": 0.0, "int8": 0.0}
    random = np.random.default_rng(0)
    for rows, inner, columns in SIZES:
        left = random.normal(size=(rows, inner)).astype(np.float32)
        right = random.normal(size=(inner, columns)).astype(np.float32)
        bytes_ = random.integers(0, 255, (rows, inner)).astype(np.uint8)
        runs: list[tuple[str, Any]] = [("fp32", product(threads, left, right))]
        # Both kinds of weights: which is faster depends on the instructions that the CPU has.
        for kind in (np.int8, np.uint8):
            low = 0 if kind is np.uint8 else -63
            runs.append(("int8", product(threads, bytes_, random.integers(low, 64, (inner, columns)).astype(kind))))
        for precision, run in runs:
            run()
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                start = time.perf_counter()
                run()
                rate = 2.0 * rows * inner * columns / (time.perf_counter() - start) / 1e9
                best[precision] = max(best[precision], rate)
    return {name: round(rate, 1) for name, rate in best.items()}


def product(threads: int, left: Any, right: Any) -> Any:
    """One matrix product in ONNX Runtime as a call without arguments, the right side a constant as weights are.

    Args:
        left: float32 (rows, inner), or uint8 for an integer product.
        right: float32 (inner, columns), or int8 or uint8.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from export.session import open_session

    integer = left.dtype == np.uint8
    kind, result = (TensorProto.UINT8, TensorProto.INT32) if integer else (TensorProto.FLOAT, TensorProto.FLOAT)
    node = helper.make_node("MatMulInteger" if integer else "MatMul", ["left", "right"], ["product"])
    graph = helper.make_graph(
        [node],
        "peak",
        [helper.make_tensor_value_info("left", kind, list(left.shape))],
        [helper.make_tensor_value_info("product", result, [left.shape[0], right.shape[1]])],
        [numpy_helper.from_array(right, "right")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = open_session(model.SerializeToString(), threads)
    return lambda: session.run(None, {"left": left})
