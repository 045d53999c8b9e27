"""A GPU that is not there is refused with all that is missing; one that is there computes the form made for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bundle.device import CPU
from bundle.errors import GpuMissing
from bundle.folder import Bundle
from export.__main__ import app
from export.gate import FP16, DevSplit, gate
from export.gpu import missing_for_gpu, require_gpu
from export.journal import Journal
from export.parity import GoldenRows
from export.session import open_session, run_of
from export.to_fp16 import to_fp16

Copy = Callable[[str], Bundle]
MISSING = missing_for_gpu()
without_gpu = pytest.mark.skipif(not MISSING, reason="a GPU can be used here")
with_gpu = pytest.mark.skipif(bool(MISSING), reason=f"no GPU can be used here: {'; '.join(MISSING)}")


@without_gpu
def test_what_is_missing_is_said_in_one_error() -> None:
    with pytest.raises(GpuMissing, match=r"a GPU was asked for and cannot be used here: ") as told:
        require_gpu()
    assert told.value.missing == tuple(missing_for_gpu())
    if not Path("/dev/nvidia0").exists():
        assert told.match("no NVIDIA device")


@without_gpu
def test_the_command_refuses_before_it_touches_anything(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["run", str(tmp_path), "--device", "gpu"])
    assert answer.exit_code == 1
    assert "a GPU was asked for and cannot be used here" in answer.output and "requirements/gpu.txt" in answer.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@without_gpu
def test_a_session_and_the_step_refuse_as_well(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-classes")
    with pytest.raises(GpuMissing, match="requirements/gpu"):
        open_session(bundle.path("onnx/model_fused.onnx"), device="gpu")
    with pytest.raises(GpuMissing, match="requirements/gpu"):
        to_fp16(bundle, journal, DevSplit(bundle), device="gpu")
    assert FP16 not in bundle.manifest.artifacts and not bundle.path("onnx/model_fp16.onnx").exists()


@pytest.mark.slow
@with_gpu
def test_a_gpu_computes_half_precision_as_the_gate_demands(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-classes")
    dev = DevSplit(bundle)
    bundle = to_fp16(bundle, journal, dev, device="gpu")
    bundle = gate(bundle, journal, dev, form=FP16, device="gpu")
    assert bundle.manifest.published == FP16
    artifact = bundle.manifest.artifacts[FP16]
    session = open_session(bundle.path(artifact.file), device="gpu", precision="fp16")
    assert session.get_providers()[0] != CPU
    golden = GoldenRows(bundle)
    found = golden.predict(run_of(session, bundle.manifest.signature))
    assert artifact.parity and golden.measure(FP16, found, artifact.parity.tolerance).label_agreement == 1


@pytest.mark.slow
@with_gpu
def test_a_gpu_computes_float32_within_its_tolerance(copied: Copy) -> None:
    bundle = copied("bert-tags")
    golden = GoldenRows(bundle)
    session = open_session(bundle.path("onnx/model_fused.onnx"), device="gpu")
    golden.measure("onnx_fused", golden.predict(run_of(session, bundle.manifest.signature)))
