"""ONNX Runtime on the CPU, as the export steps use it: one session, its threads, the bundle's tensor names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bundle.decode import FloatArray
from bundle.encode import IntArray
from bundle.machine import cores
from bundle.manifest import Signature
from bundle.predict import Run

if TYPE_CHECKING:
    import onnxruntime


def open_session(model: Path | bytes, threads: int | None = None) -> onnxruntime.InferenceSession:
    """Opens a graph on the CPU.

    Args:
        model: a file, or a serialized model.
        threads: intra-op threads; by default all cores that this process may use.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def run_of(session: onnxruntime.InferenceSession, signature: Signature) -> Run:
    """The session as the function that `bundle.predict` calls."""
    names = [tensor.name for tensor in signature.inputs]
    outputs = [tensor.name for tensor in signature.outputs]

    def run(ids: IntArray, types: IntArray) -> list[FloatArray]:
        return run_outputs(session, outputs, dict(zip(names, (ids, types), strict=True)))

    return run


def run_outputs(
    session: onnxruntime.InferenceSession, outputs: Sequence[str], feeds: dict[str, IntArray]
) -> list[FloatArray]:
    """Named tensors of a graph for one batch."""
    return [np.asarray(value) for value in session.run(list(outputs), feeds)]
