"""Where a graph is computed: what a session is opened with, and what is refused."""

from __future__ import annotations

import ctypes.util
from pathlib import Path

import pytest

from bundle.device import CPU, CUDA, TENSORRT, check_opened, missing_for_gpu, providers, require_gpu
from bundle.errors import GpuMissing


def test_on_a_processor_the_providers_of_a_gpu_are_left_alone() -> None:
    assert providers("cpu", "fp16", [TENSORRT, CUDA, CPU]) == [(CPU, {})]


def test_half_precision_goes_to_tensorrt_then_cuda_then_the_processor(tmp_path: Path) -> None:
    found = providers("gpu", "fp16", [TENSORRT, CUDA, CPU], tmp_path)
    assert [name for name, _ in found] == [TENSORRT, CUDA, CPU]
    assert dict(found)[TENSORRT] == {
        "trt_fp16_enable": True,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(tmp_path),
    }
    assert dict(found)[CUDA] == {"use_tf32": 0, "arena_extend_strategy": "kSameAsRequested"}
    assert dict(providers("gpu", "fp16", [TENSORRT, CUDA, CPU]))[TENSORRT] == {"trt_fp16_enable": True}


def test_float32_stays_float32_and_what_is_not_installed_is_not_asked_for() -> None:
    assert [name for name, _ in providers("gpu", "fp32", [TENSORRT, CUDA, CPU])] == [CUDA, CPU]
    assert [name for name, _ in providers("gpu", "fp16", [CUDA, CPU])] == [CUDA, CPU]


def test_a_runtime_without_cuda_is_named_with_the_way_out() -> None:
    missing = missing_for_gpu("1.32.0", [CPU])
    assert missing[-1] == (
        "onnxruntime 1.32.0 has only CPUExecutionProvider, not CUDAExecutionProvider: install requirements/gpu.txt, "
        "which has onnxruntime-gpu in its place"
    )
    assert ("no NVIDIA device (/dev/nvidia0)" in missing) is not Path("/dev/nvidia0").exists()
    assert ("no CUDA driver (libcuda.so.1)" in missing) is (ctypes.util.find_library("cuda") is None)
    with pytest.raises(GpuMissing, match="a GPU was asked for and cannot be used here: ") as told:
        require_gpu("1.32.0", [CPU])
    assert list(told.value.missing) == missing


def test_a_session_that_fell_back_to_the_processor_is_refused() -> None:
    check_opened("cpu", [CPU])
    check_opened("gpu", [CUDA, CPU])
    with pytest.raises(GpuMissing, match="opened the graph with CPUExecutionProvider alone"):
        check_opened("gpu", [CPU])
