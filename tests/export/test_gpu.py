"""A GPU that is not there is refused with all that is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from bundle.errors import GpuMissing
from export.__main__ import app
from export.gpu import missing_for_gpu, require_gpu

without_gpu = pytest.mark.skipif(not missing_for_gpu(), reason="a GPU can be used here")


@without_gpu
def test_what_is_missing_is_said_in_one_error() -> None:
    with pytest.raises(GpuMissing, match=r"--device gpu cannot be used here: ") as told:
        require_gpu()
    assert told.value.missing == tuple(missing_for_gpu())
    if not Path("/dev/nvidia0").exists():
        assert told.match("no NVIDIA device")


@without_gpu
def test_the_command_refuses_before_it_touches_anything(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["run", str(tmp_path), "--device", "gpu"])
    assert answer.exit_code == 1
    assert "--device gpu cannot be used here" in answer.output and "requirements/gpu.txt" in answer.output
    assert list(tmp_path.iterdir()) == []
