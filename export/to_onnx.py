"""Static graph → ONNX: the graph as paddle2onnx converts it, with the manifest's tensor names and axes.

The converter may abort the whole process, so it runs in one of its own (`python -m export.to_onnx …`). What the graph
computes is not touched here; that is `export.fuse`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from bundle.encode import Encoder
from bundle.errors import ConversionFailed
from bundle.folder import Bundle
from bundle.manifest import Quality, Signature
from bundle.predict import encode_rows, predict
from export.artifact import adopt, is_current, source_of, workplace
from export.journal import Journal
from export.parity import FP32_TOLERANCE, GoldenRows, check_onnx
from export.session import open_session, run_of
from export.to_static import WEIGHTS, load_answers, quality_of, sample_rows

if TYPE_CHECKING:
    import onnx

NAME, SOURCE = "onnx_fp32", "paddle_static"
FILE = "onnx/model_fp32.onnx"
OPSET = 17


def to_onnx(bundle: Bundle, journal: Journal, *, force: bool = False) -> Bundle:
    """Adds the artifact ``onnx_fp32``.

    Raises:
        ConversionFailed: paddle2onnx failed or crashed, or the graph is not valid.
        ParityFailed: names, dtypes, axes, shapes or values differ.
    """
    source = source_of(bundle, SOURCE)
    settings: dict[str, JsonValue] = {"opset": OPSET, "tolerance": FP32_TOLERANCE}
    if not force and is_current(bundle, NAME, SOURCE, settings):
        journal.say("  up to date")
        return bundle
    golden = GoldenRows(bundle)
    with workplace(bundle, "onnx") as folder:
        raw, named = (folder / "raw.onnx").resolve(), folder / "model_fp32.onnx"
        graph, weights = bundle.path(source.file), bundle.path(WEIGHTS)
        journal.worker("to_onnx", "export.to_onnx", [str(graph), str(weights), str(raw)])
        if not raw.is_file():
            raise ConversionFailed("to_onnx", f"paddle2onnx wrote no file (all it said: {journal.log})")
        nodes = name_tensors(raw, named, bundle.manifest.signature)
        parity = check_onnx(NAME, named, golden)
        return adopt(
            bundle,
            NAME,
            {named: FILE},
            source=SOURCE,
            settings=settings,
            artifact_format="onnx",
            parity=parity,
            quality=sample_quality(bundle, named, golden.encoder),
            details={"nodes": nodes},
        )


def sample_quality(bundle: Bundle, graph: Path, encoder: Encoder) -> Quality | None:
    """Quality on the sample of dev rows that the training framework has answered too; None without a dev split."""
    rows = sample_rows(bundle)
    if not rows:
        return None
    encoded = encode_rows(rows, encoder)
    found = predict(encoded, encoder, run_of(open_session(graph), bundle.manifest.signature))
    return quality_of(bundle, rows, found, load_answers(bundle, encoded))


def name_tensors(source: Path, target: Path, signature: Signature) -> int:
    """Gives a converted graph the manifest's output names and axis names; outputs keep their order.

    Returns:
        the number of nodes.

    Raises:
        ConversionFailed: other inputs than the manifest's, or not as many outputs or axes.
    """
    import onnx

    model = onnx.load(str(source))
    graph = model.graph
    found = [item.name for item in graph.input]
    wanted = [tensor.name for tensor in signature.inputs]
    if found != wanted or len(graph.output) != len(signature.outputs):
        outputs = [item.name for item in graph.output]
        raise ConversionFailed(
            "to_onnx",
            f"the graph has inputs {found} and outputs {outputs}; wanted {wanted} and {len(signature.outputs)} outputs",
        )
    for item, tensor in zip(graph.output, signature.outputs, strict=True):
        rename(graph, item.name, tensor.name)
        item.name = tensor.name
        if (axes := len(item.type.tensor_type.shape.dim)) != len(tensor.shape):
            raise ConversionFailed("to_onnx", f"{tensor.name} has {axes} axes; wanted {len(tensor.shape)}")
    for item, tensor in zip([*graph.input, *graph.output], [*signature.inputs, *signature.outputs], strict=True):
        for dim, axis in zip(item.type.tensor_type.shape.dim, tensor.shape, strict=True):
            # Only the name of a free axis is set: a fixed one stays what the converter says, for parity to see.
            if axis in ("windows", "tokens") and not dim.dim_value:
                dim.dim_param = str(axis)
    # Shapes inside still carry the converter's axis names, which would now contradict these.
    del graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, str(target))
    return len(graph.node)


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Renames a tensor wherever it is produced or read."""
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = new


def convert(graph: str, weights: str, target: str) -> None:
    """The worker: runs in a process of its own."""
    import paddle2onnx

    paddle2onnx.export(graph, weights, target, opset_version=OPSET, auto_upgrade_opset=False)


if __name__ == "__main__":
    convert(*sys.argv[1:4])
