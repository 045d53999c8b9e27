"""The whole journey as a user walks it: make finetune export serve, then HTTP. Small models, every real part."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bundle.folder import open_bundle
from tests.tiny_base import mood_rows, tiny_base

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent

MOOD = """
summary = "mood of made-up sentences"
task = "single-label"
[data]
train = "mood.csv"
dev = 0.2
test = 0.2
[base]
model = "ernie"
licence = "made by the tests"
[text]
max_tokens = 32
overlap = 8
max_windows = 100
[train]
epochs = 6
learning_rate = 5e-3
eval_every = 0.5
"""
NAMES = """
summary = "persons and places in made-up sentences"
task = "token-classification"
[data]
train = "names.bio"
format = "conll"
dev = 0.2
test = 0.2
[base]
model = "bert"
licence = "made by the tests"
[text]
max_tokens = 32
overlap = 8
[train]
epochs = 6
learning_rate = 5e-3
eval_every = 0.5
"""
PERSONS, PLACES = ["张三", "李四", "王五"], ["北京", "上海", "广州"]


def name_lines(count: int, seed: int = 5) -> str:
    """Sentences in BIO columns, such as 张三去了北京。"""
    generator, lines = random.Random(seed), []
    for _ in range(count):
        for _ in range(generator.choice([1, 1, 2, 6])):
            for word, kind in (
                (generator.choice(PERSONS), "PER"),
                (generator.choice(["去了", "在", "说", "和我们来了"]), ""),
                (generator.choice(PLACES), "LOC"),
                ("。", ""),
            ):
                for place, character in enumerate(word):
                    lines.append(f"{character} {('B-' if place == 0 else 'I-') + kind if kind else 'O'}")
        lines.append("")
    return "\n".join(lines) + "\n"


def make(*words: str, folder: Path) -> str:
    result = subprocess.run(
        ["make", *words, f"ARTIFACTS={folder / 'artifacts'}", f"REPOSITORY={folder / 'repository'}"],
        cwd=ROOT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("journey")
    tiny_base(folder / "ernie", "ernie")
    tiny_base(folder / "bert", "bert")
    with (folder / "mood.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(mood_rows(400))
    (folder / "names.bio").write_text(name_lines(300), encoding="utf-8")
    printed = ""
    for name, recipe in (("mood", MOOD), ("names", NAMES)):
        (folder / f"{name}.toml").write_text(recipe, encoding="utf-8")
        printed += make("finetune", "export", f"RECIPE={folder / name}.toml", folder=folder)
    return folder, printed


@contextmanager
def serving(folder: Path, engine: str) -> Iterator[str]:
    """`make serve` in the foreground of a process group of its own; yields the address that it prints."""
    log = folder / f"serve-{engine}.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["make", "serve", f"ENGINE={engine}", "PORT=0", f"ARTIFACTS={folder / 'artifacts'}",
             f"REPOSITORY={folder / 'repository'}"],
            cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            while True:
                try:
                    if httpx.get(f"{found[0]}/health/ready", timeout=5).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield found[0]
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)
    assert "Traceback" not in log.read_text()


TEXTS = [
    "今天我们喜欢这。",
    "讨厌",
    "北京" * 60 + "糟糕。" + "上海" * 60 + "糟糕。烂。烂。",
    "🙂 喜欢 X\tY  １２３",
]


@pytest.fixture(scope="module")
def answers(project: tuple[Path, str]) -> dict[str, dict[str, Any]]:
    """What each engine answers to the same requests."""
    folder, _ = project
    result: dict[str, dict[str, Any]] = {}
    for engine in ("onnx", "triton"):
        with serving(folder, engine) as address, httpx.Client(base_url=address, timeout=30) as client:
            result[engine] = {
                "models": client.get("/v1/models").json(),
                "mood": client.post("/v1/models/mood/predict", json={"inputs": TEXTS}).json(),
                "names": client.post(
                    "/v1/models/names/predict", json={"inputs": ["张三去了北京。" * 12, "我们🙂和李四在上海"]}
                ).json(),
            }
    return result


def test_each_stage_says_what_it_did_and_what_comes_next(project: tuple[Path, str]) -> None:
    _, printed = project
    for words in ("TF-IDF", "next: make export", "parity", "make serve"):
        assert words in printed


def test_the_manifest_lists_every_form_with_parity_and_quality(project: tuple[Path, str]) -> None:
    for name in ("mood", "names"):
        manifest = open_bundle(project[0] / "artifacts" / name / "bundle").manifest
        assert {"paddle", "paddle_static", "onnx_fp32", "onnx_fused"} <= set(manifest.artifacts)
        assert manifest.published in ("onnx_int8", "onnx_fused")
        for form in ("paddle_static", "onnx_fp32", "onnx_fused"):
            parity = manifest.artifacts[form].parity
            assert parity is not None and parity.max_abs <= 1e-4 and parity.label_agreement == 1.0
        for form in ("onnx_fused", manifest.published):
            assert manifest.artifacts[form].quality is not None


def test_both_engines_give_the_same_answers(answers: dict[str, dict[str, Any]]) -> None:
    left, right = answers["onnx"], answers["triton"]
    assert left["models"] == right["models"]
    assert {model["name"] for model in left["models"]["models"]} == {"mood", "names"}
    for a, b in zip(left["mood"]["predictions"], right["mood"]["predictions"], strict=True):
        assert a["label"] == b["label"] and a["windows"] == b["windows"]
        assert a["score"] == pytest.approx(b["score"], abs=1e-4)
    for a, b in zip(left["names"]["predictions"], right["names"]["predictions"], strict=True):
        spans = [[(e["start"], e["end"], e["label"], e["text"]) for e in item["entities"]] for item in (a, b)]
        assert spans[0] == spans[1] and spans[0]


def test_the_classifier_learned_and_reads_long_texts_to_the_end(answers: dict[str, dict[str, Any]]) -> None:
    predictions = answers["triton"]["mood"]["predictions"]
    assert [item["label"] for item in predictions[:3]] == ["好评", "差评", "差评"]
    assert predictions[2]["windows"] > 1 and predictions[2]["truncated"] is False
    assert predictions[0]["windows"] == 1


def test_entities_are_exact_in_the_callers_text(answers: dict[str, dict[str, Any]]) -> None:
    long, emoji = answers["triton"]["names"]["predictions"]
    text = "张三去了北京。" * 12
    found = {(item["start"], item["end"]) for item in long["entities"]}
    assert all(item["text"] == text[item["start"] : item["end"]] for item in long["entities"])
    wanted = {(7 * n, 7 * n + 2) for n in range(12)} | {(7 * n + 4, 7 * n + 6) for n in range(12)}
    assert len(found & wanted) >= 20 and long["windows"] > 1
    text = "我们🙂和李四在上海"
    assert {text[item["start"] : item["end"]] for item in emoji["entities"]} >= {"李四", "上海"}
    assert all(item["text"] == text[item["start"] : item["end"]] for item in emoji["entities"])


def test_finished_stages_are_not_repeated(project: tuple[Path, str]) -> None:
    folder, _ = project
    before = {path: path.stat().st_mtime_ns for path in (folder / "artifacts").rglob("*.onnx")}
    printed = make("finetune", "export", f"RECIPE={folder / 'mood.toml'}", folder=folder)
    assert printed.count("up to date") >= 4
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "artifacts").rglob("*.onnx")}


def test_the_whole_test_split_is_evaluated_on_the_exported_forms(project: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = project
    out = tmp_path / "results"
    printed = make(
        "evaluate", f"RECIPE={folder / 'mood.toml'}", f"RESULTS={out}", "ARGS=--paddle --compare-long", folder=folder
    )
    record = json.loads((out / "mood.json").read_text())
    assert record["agreement_with"] == "paddle" and record["paddle"]["accuracy"] > 0.9
    assert record["model"] == record["paddle"] and record["rows"] == 80
    baseline = json.loads((out / "baseline" / "mood.json").read_text())
    assert baseline["rows"] == 80 and baseline["tfidf"]["accuracy"] > 0.9
    long = json.loads((out / "long" / "mood.json").read_text())
    assert long["buckets"][-1]["rows"] == 80
    assert "next: make tables" in printed


def test_help_lists_every_target() -> None:
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets and all(f"make {target} " in printed for target in targets)
