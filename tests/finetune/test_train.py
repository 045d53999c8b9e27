"""Real PaddleNLP training on a small ERNIE: it learns, resumes, repeats and writes a bundle that is what it says."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.encode import Encoder
from bundle.folder import open_bundle
from bundle.golden import check_ids, read_golden
from finetune.model.paddle_weights import read_paddle_state
from tests.tiny_base import mood_rows, tiny_base

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

RECIPE = """
summary = "mood of made-up sentences"
task = "single-label"
[data]
train = "rows.csv"
dev = 0.2
test = 0.2
[base]
model = "base"
licence = "made by the tests"
[text]
max_tokens = 32
overlap = 8
[train]
epochs = 6
batch = 16
learning_rate = 5e-3
eval_every = 0.2
watch_rows = 60
freeze_embeddings = false
"""


def write_project(folder: Path, recipe: str = RECIPE) -> Path:
    """A recipe, its rows and its base model; returns the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(mood_rows(400))
    tiny_base(folder / "base")
    path = folder / "mood.toml"
    path.write_text(recipe, encoding="utf-8")
    return path


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "finetune", "run", str(recipe), "--out", str(out), *more]


def run(recipe: Path, out: Path, *more: str) -> str:
    result = subprocess.run(command(recipe, out, *more), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def weights_of(out: Path) -> dict[str, np.ndarray[Any, Any]]:
    return read_paddle_state(out / "mood" / "bundle" / "paddle" / "model_state.pdparams")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("mood"))


@pytest.fixture(scope="module")
def trained(project: Path) -> tuple[Path, str]:
    out = project.parent / "artifacts"
    return out, run(project, out)


def test_it_learns_what_the_rows_show_and_says_so(trained: tuple[Path, str]) -> None:
    out, printed = trained
    report = json.loads((out / "mood" / "run" / "evaluation.json").read_text())
    assert report["evaluations"]["test"]["metrics"]["accuracy"] > 0.9
    assert "TF-IDF" in printed and "next: make export" in printed
    assert (out / "mood" / "run" / "evaluation.png").stat().st_size > 10_000
    assert any((out / "mood" / "run" / "visualdl").rglob("vdlrecords*")), "VisualDL has a log to show"


def test_the_bundle_is_whole_and_its_golden_rows_are_its_models(trained: tuple[Path, str]) -> None:
    import paddle
    from paddlenlp import transformers

    out, _ = trained
    bundle = open_bundle(out / "mood" / "bundle")
    manifest = bundle.manifest
    assert manifest.task.labels == ("好评", "差评")
    assert manifest.made.architecture == "ErnieForSequenceClassification"
    assert manifest.made.base.licence == "made by the tests"
    golden = read_golden(bundle.path(manifest.golden.file))
    check_ids(golden, Encoder.of(bundle))
    assert max(len(row.ids) for row in golden) > 1, "a golden row has more than one window"
    model = getattr(transformers, manifest.made.architecture).from_pretrained(str(bundle.path("paddle")))
    model.eval()
    for row in golden:
        for ids, logits in zip(row.ids, row.logits, strict=True):
            with paddle.no_grad():
                found = model(paddle.to_tensor(ids[None])).numpy()[0]
            np.testing.assert_allclose(found, logits, atol=1e-5)


def test_a_rerun_says_that_it_is_up_to_date_and_changes_nothing(project: Path, trained: tuple[Path, str]) -> None:
    out, _ = trained
    before = (out / "mood" / "bundle" / "bundle.json").read_bytes()
    assert "up to date" in run(project, out)
    assert (out / "mood" / "bundle" / "bundle.json").read_bytes() == before


def test_the_same_recipe_gives_the_same_weights_elsewhere(
    project: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    (tmp_path / "mood" / "versions" / "6").mkdir(parents=True)
    run(project, tmp_path)
    assert_same(weights_of(trained[0]), weights_of(tmp_path))
    # A number means one content: a new training has one above those of the kept versions.
    numbers = [open_bundle(out / "mood" / "bundle").manifest.version for out in (trained[0], tmp_path)]
    assert numbers == [1, 7]


def test_a_killed_run_resumes_and_ends_with_the_same_weights(
    project: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(project, tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoints = tmp_path / "mood" / "run" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("checkpoint-*/scheduler.pdparams")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "mood" / "bundle").exists(), "a killed run leaves no half bundle"
    spent = max(checkpoints.glob("checkpoint-*/scheduler.pdparams"), key=lambda path: path.stat().st_mtime).parent
    assert json.loads((spent / "spent.json").read_text(encoding="utf-8"))["seconds"] > 0
    (spent / "spent.json").write_text('{"seconds": 7000}', encoding="utf-8")
    assert "resuming at step" in run(project, tmp_path)
    scores = json.loads((tmp_path / "mood" / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert 7000 < scores["train_seconds"] < 7120, "how long it took counts what was done before the kill"
    assert_same(weights_of(trained[0]), weights_of(tmp_path))


def test_a_changed_recipe_trains_anew(project: Path, tmp_path: Path) -> None:
    changed = write_project(tmp_path / "p", RECIPE.replace("epochs = 6", "epochs = 1"))
    out = tmp_path / "out"
    run(changed, out)
    first = weights_of(out)
    changed.write_text(RECIPE.replace("epochs = 6", "epochs = 1").replace("5e-3", "4e-3"), encoding="utf-8")
    printed = run(changed, out)
    assert "recipe or data changed" in printed
    assert any(not np.array_equal(first[name], value) for name, value in weights_of(out).items())


def test_frozen_layers_stay_as_the_base_model_has_them(tmp_path: Path) -> None:
    recipe = write_project(
        tmp_path / "p",
        RECIPE.replace("freeze_embeddings = false", "freeze_layers = 1").replace("epochs = 6", "epochs = 1"),
    )
    run(recipe, tmp_path)
    base = read_paddle_state(tmp_path / "p" / "base" / "model_state.pdparams")
    found = weights_of(tmp_path)
    for name, value in found.items():
        inner = name.removeprefix("ernie.")
        if inner in base and inner.startswith(("embeddings.", "encoder.layers.0.")):
            np.testing.assert_array_equal(value, base[inner], err_msg=name)
        elif inner in base and inner.endswith("linear1.weight"):
            assert not np.array_equal(value, base[inner]), f"{name} was trained"


def test_a_bad_row_stops_the_run_with_file_and_line(project: Path, tmp_path: Path) -> None:
    recipe = write_project(tmp_path)
    rows = (tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()
    rows[7] = "没有标签,"
    (tmp_path / "rows.csv").write_text("\n".join(rows), encoding="utf-8")
    result = subprocess.run(command(recipe, tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "rows.csv:8:" in result.stdout.replace("\n", "") and "Traceback" not in result.stdout + result.stderr


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], atol=1e-6, err_msg=name)


def test_the_last_step_is_evaluated_and_may_be_the_best(trained: tuple[Path, str]) -> None:
    report = json.loads((trained[0] / "mood" / "run" / "evaluation.json").read_text())
    last = max(point["step"] for point in report["history"] if "dev_loss" in point)
    assert last == report["steps"]
