"""`SLIPWAY_DEVICE=gpu`: which form is run, how, and what a start says where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from bundle.device import missing_for_gpu
from bundle.machine import cores
from serving.doctor import look_over
from serving.running import running
from serving.settings import Settings
from tests.serving.conftest import ROOT
from tests.serving.test_start import refusal
from tests.serving.tiny_bundle import make_bundle, with_plan

MISSING = missing_for_gpu(ort.__version__, ort.get_available_providers())
without_gpu = pytest.mark.skipif(not MISSING, reason="a GPU can be used here")
with_gpu = pytest.mark.skipif(bool(MISSING), reason=f"no GPU can be used here: {'; '.join(MISSING)}")


def on_gpu(**more: object) -> Settings:
    return Settings(engine="onnx", device="gpu", **more)  # type: ignore[arg-type]


def test_a_gpu_follows_no_plan_and_keeps_what_is_built_for_a_graph_under_its_checksum(tmp_path: Path) -> None:
    bare = make_bundle(tmp_path / "b", "news", "single-label")
    manifest = with_plan(bare, sessions=3, threads=1, windows=4).manifest
    how = running(manifest, on_gpu(tensorrt_cache=tmp_path))

    assert (how.device, how.sessions, how.threads, how.windows, how.told) == ("gpu", 1, cores(), 0, "")
    assert how.engines == tmp_path / manifest.artifacts["onnx_fp32"].sha256[:16]
    planned = running(manifest, Settings(engine="onnx"))
    assert (planned.device, planned.sessions, planned.engines) == ("cpu", 3, None)


def test_an_integer_form_gives_way_to_float32_and_the_start_says_so(tmp_path: Path) -> None:
    quantized = make_bundle(tmp_path / "i", "news", "single-label", precision="int8")
    exact = make_bundle(tmp_path / "f", "news", "single-label")
    artifacts = {**exact.manifest.artifacts, **quantized.manifest.artifacts}
    both = quantized.manifest.model_copy(update={"artifacts": artifacts})
    how = running(both, on_gpu())

    assert how.form == "onnx_fp32"
    assert "onnx_int8 has integer products" in how.told and "python -m export run --device gpu" in how.told
    assert running(both, Settings(engine="onnx")).form == "onnx_int8"


@without_gpu
def test_the_doctor_says_what_is_missing(bundles: Path) -> None:
    settings = on_gpu(bundles=bundles, port=0, log_folder=bundles)
    (found,) = [item for item in look_over(settings) if item.about == "device"]
    assert found.level == "bad" and "requirements/gpu.txt" in found.said and "SLIPWAY_DEVICE=cpu" in found.mend


@pytest.mark.slow
@without_gpu
def test_a_start_without_a_gpu_is_refused_with_all_that_is_missing(bundles: Path, tmp_path: Path) -> None:
    said = refusal(tmp_path, "--engine", "onnx", "--bundles", str(bundles), SLIPWAY_DEVICE="gpu")
    assert said.startswith("error: a GPU was asked for and cannot be used here: ") and "requirements/gpu.txt" in said


@pytest.mark.slow
@with_gpu
def test_a_gpu_serves_and_reproduces_the_golden_rows(bundles: Path, tmp_path: Path) -> None:
    words = ["--engine", "onnx", "--bundles", str(bundles / "ner")]
    ended = subprocess.run(
        [sys.executable, "-m", "serving", "check", *words],
        cwd=ROOT,
        env={**os.environ, "SLIPWAY_DEVICE": "gpu", "SLIPWAY_TENSORRT_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "on a GPU" in ended.stdout and "100.0% of the rows" in ended.stdout
