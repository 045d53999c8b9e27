"""Whether a GPU can be used here, asked of onnxruntime as it is installed. What it is used for: `bundle.device`."""

from __future__ import annotations

from bundle import device


def missing_for_gpu() -> list[str]:
    """What this machine lacks to run a graph on a GPU, one sentence each; empty if it lacks nothing."""
    import onnxruntime as ort

    return device.missing_for_gpu(ort.__version__, ort.get_available_providers())


def require_gpu() -> None:
    """Returns where a GPU can be used.

    Raises:
        GpuMissing: saying all that is missing.
    """
    import onnxruntime as ort

    device.require_gpu(ort.__version__, ort.get_available_providers())
