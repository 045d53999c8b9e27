"""ONNX Runtime as the export steps use it: one session, its threads, its device, the bundle's tensor names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bundle.decode import FloatArray
from bundle.device import Device, check_opened, providers, require_gpu
from bundle.encode import IntArray
from bundle.machine import cores
from bundle.manifest import Precision, Signature
from bundle.predict import Run

if TYPE_CHECKING:
    import onnxruntime


def open_session(
    model: Path | bytes, threads: int | None = None, device: Device = "cpu", precision: Precision = "fp32"
) -> onnxruntime.InferenceSession:
    """Opens a graph, on the CPU unless a GPU is asked for.

    Args:
        model: a file, or a serialized model.
        threads: intra-op threads; by default all cores that this process may use.
        precision: of the graph; decides what of a GPU may compute it.

    Raises:
        GpuMissing: a GPU is asked for and cannot be used.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    available = ort.get_available_providers()
    if device == "gpu":
        require_gpu(ort.__version__, available)
    chosen = providers(device, precision, available)
    session = ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=chosen)
    check_opened(device, session.get_providers())
    return session


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
