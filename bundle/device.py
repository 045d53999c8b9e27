"""Where a graph is computed: on the processor, or on a GPU through ONNX Runtime's providers for it.

Export proves on a device what serving computes on it, so both open their sessions with what stands here. No runtime is
imported: what onnxruntime says of itself is passed in. The script inside Triton (`export/triton_model.py`) stands alone
and therefore says a part of it once more.
"""

from __future__ import annotations

import ctypes.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bundle.errors import GpuMissing
from bundle.manifest import Precision

Device = Literal["cpu", "gpu"]
# A provider's name, and its options as the runtime takes them.
Provider = tuple[str, dict[str, Any]]

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"


def missing_for_gpu(version: str, available: Sequence[str]) -> list[str]:
    """What this machine lacks to run a graph on a GPU, one sentence each; empty if it lacks nothing.

    Args:
        version: of onnxruntime.
        available: providers that it was built with, as it tells them.
    """
    missing = []
    if not Path("/dev/nvidia0").exists():
        missing.append("no NVIDIA device (/dev/nvidia0)")
    if ctypes.util.find_library("cuda") is None:
        missing.append("no CUDA driver (libcuda.so.1)")
    if CUDA not in available:
        missing.append(
            f"onnxruntime {version} has only {', '.join(available)}, not {CUDA}: install requirements/gpu.txt, which "
            "has onnxruntime-gpu in its place"
        )
    return missing


def require_gpu(version: str, available: Sequence[str]) -> None:
    """Returns where a GPU can be used.

    Args:
        version, available: see `missing_for_gpu`.

    Raises:
        GpuMissing: saying all that is missing.
    """
    if missing := missing_for_gpu(version, available):
        raise GpuMissing(missing)


def providers(
    device: Device, precision: Precision, available: Sequence[str], engines: Path | None = None
) -> list[Provider]:
    """What a session is opened with, the best provider first; each takes what those before it cannot compute.

    Args:
        precision: of the graph. TensorRT gets half precision alone: by default it computes float32 products in TF32,
            which has 10 bits of mantissa and would not hold a float32 graph's parity. CUDA is told not to.
        available: see `missing_for_gpu`; of a GPU, only what is there is asked for.
        engines: folder in which TensorRT keeps what it built for this one graph: what it finds there it takes, and it
            does not look at the weights. None keeps nothing.
    """
    if device == "cpu":
        return [(CPU, {})]
    found: list[Provider] = []
    if TENSORRT in available and precision == "fp16":
        kept: dict[str, Any] = {}
        if engines is not None:
            kept = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(engines)}
            kept |= {"trt_timing_cache_enable": True, "trt_timing_cache_path": str(engines)}
        found.append((TENSORRT, {"trt_fp16_enable": True, **kept}))
    # Windows have many lengths, and memory doubled for each new one would not come back.
    found.append((CUDA, {"use_tf32": 0, "arena_extend_strategy": "kSameAsRequested"}))
    return [*found, (CPU, {})]


def check_opened(device: Device, used: Sequence[str]) -> None:
    """Whether a session computes where it was meant to: ONNX Runtime falls back to the processor without an error.

    Args:
        used: providers of the session, as it tells them.

    Raises:
        GpuMissing: a GPU is asked for and the session has none.
    """
    if device == "gpu" and not {TENSORRT, CUDA} & set(used):
        raise GpuMissing(
            [
                f"onnxruntime has its GPU providers and opened the graph with {', '.join(used)} alone: CUDA or cuDNN "
                "of the version that it needs is not there"
            ]
        )
