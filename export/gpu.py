"""What a GPU needs, and a plain refusal where it is missing.

Nothing more yet: half precision and sessions on onnxruntime-gpu's CUDA and TensorRT providers are not built, as no GPU
was at hand to prove them on. Where a GPU could be used, the export says that, and stops.
"""

from __future__ import annotations

import ctypes.util
from pathlib import Path

from bundle.errors import GpuMissing

# In the order of preference.
PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")


def missing_for_gpu() -> list[str]:
    """What this machine lacks to run a graph on a GPU, one sentence each; empty if it lacks nothing."""
    import onnxruntime as ort

    missing = []
    if not Path("/dev/nvidia0").exists():
        missing.append("no NVIDIA device (/dev/nvidia0)")
    if ctypes.util.find_library("cuda") is None:
        missing.append("no CUDA driver (libcuda.so.1)")
    found = ort.get_available_providers()
    if not set(PROVIDERS) & set(found):
        missing.append(
            f"onnxruntime {ort.__version__} has only {', '.join(found)}, none of {', '.join(PROVIDERS)}: install "
            "requirements/gpu.txt, which has onnxruntime-gpu in its place"
        )
    return missing


def require_gpu() -> tuple[str, ...]:
    """The providers to open a session with, the best first.

    Raises:
        GpuMissing: saying all that is missing.
    """
    if missing := missing_for_gpu():
        raise GpuMissing(missing)
    import onnxruntime as ort

    return tuple(name for name in PROVIDERS if name in ort.get_available_providers())
