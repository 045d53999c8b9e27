"""`python -m export`: what a person types and reads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.folder import Bundle, open_bundle

Copy = Callable[[str], Bundle]
ROOT = Path(__file__).resolve().parents[2]


def export(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "export", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_help_imports_no_heavy_library() -> None:
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom export.__main__ import app\n"
        "result = CliRunner().invoke(app, ['run', '--help'])\n"
        "assert result.exit_code == 0 and 'Examples' in result.stdout\n"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'paddle', 'bundle.manifest'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.stdout.strip() == "[]", answer.stderr


def test_a_folder_without_a_bundle_is_named_in_the_error(tmp_path: Path) -> None:
    answer = export("run", str(tmp_path))
    assert answer.returncode == 1
    assert "no such file" in answer.stdout.replace("\n", " ") and "bundle.json" in answer.stdout.replace("\n", "")
    assert "Traceback" not in answer.stdout + answer.stderr


def test_an_unknown_step_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    answer = export("run", str(tmp_path), "--only", "to_mars")
    assert answer.returncode == 2
    assert "to_int8" in answer.stderr


@pytest.mark.slow
def test_run_takes_a_trained_bundle_to_a_model_repository(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "ernie-classes", tmp_path / "ernie-classes")
    answer = export("run", str(tmp_path / "ernie-classes"), "--repository", str(tmp_path / "repository"))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    text = answer.stdout
    for step in ("to_static", "to_onnx", "fuse", "pooling", "to_int8", "gate", "plan", "to_triton"):
        assert f"{step} reads" in text
    assert "parity on 10 golden rows" in text and text.rstrip().endswith("Next: make serve")
    assert "Paddle2ONNX" not in text + answer.stderr, "the libraries' own words belong into export.log"
    assert "Paddle2ONNX" in (tmp_path / "ernie-classes" / "export.log").read_text(encoding="utf-8")
    bundle = open_bundle(tmp_path / "ernie-classes" / "bundle")
    assert bundle.manifest.published
    assert bundle.manifest.plan and bundle.manifest.plan.search == "brief"
    assert (tmp_path / "repository" / bundle.name / "config.pbtxt").is_file()

    again = export("run", str(tmp_path / "ernie-classes"), "--repository", str(tmp_path / "repository"))
    assert again.returncode == 0
    assert again.stdout.count("up to date") == 7


@pytest.mark.slow
def test_show_lists_the_artifacts_and_marks_the_served_one(exported: Copy) -> None:
    bundle = exported("bert-classes")
    answer = export("show", str(bundle.root.parent))
    assert answer.returncode == 0
    for name in bundle.manifest.artifacts:
        assert name in answer.stdout
    assert f"{bundle.manifest.published} *" in answer.stdout


@pytest.mark.slow
def test_a_failing_step_names_the_log_and_leaves_status_1(copied: Copy) -> None:
    bundle = copied("bert-classes")
    file = bundle.root / "bundle.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    manifest["artifacts"]["paddle_static"]["details"]["architecture"]["layers"] = 3
    file.write_text(json.dumps(manifest), encoding="utf-8")
    answer = export("run", str(bundle.root), "--only", "fuse", "--force")
    assert answer.returncode == 1
    text = answer.stdout.replace("\n", " ")
    assert "Attention: 2 of 3" in text and "export.log" in text


@pytest.mark.slow
def test_gate_prints_the_last_judgement_again(copied: Copy) -> None:
    bundle = copied("bert-classes")
    answer = export("gate", str(bundle.root.parent))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "INT8 against fp32 on the dev split" in answer.stdout
    assert f"published: {bundle.manifest.published}" in answer.stdout
    (bundle.root / "gate.json").unlink()
    answer = export("gate", str(bundle.root.parent))
    assert answer.returncode == 1 and "no report yet" in answer.stdout


@pytest.mark.slow
def test_buckets_are_lengths_with_commas_or_none(copied: Copy, tmp_path: Path) -> None:
    # What INT8 became depends on the machine; dynamic quantization can have no buckets.
    bundle = copied("bert-classes").publish("onnx_fused")
    words = ("run", str(bundle.root), "--only", "to_triton", "--backend", "onnxruntime")
    words += ("--repository", str(tmp_path / "models"))
    for asked, added in ((("--buckets", "12, 24"), {"_12", "_24"}), ((), {"_16"}), (("--buckets", "none"), set())):
        answer = export(*words, *asked)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert {path.parent.name for path in tmp_path.glob("models/*/config.pbtxt")} == {
            bundle.name,
            *(bundle.name + tokens for tokens in added),
        }
    answer = export(*words, "--buckets", "short")
    assert answer.returncode == 1 and "lengths are whole numbers with commas" in answer.stdout
