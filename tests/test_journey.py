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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bundle.folder import open_bundle
from finetune.data.readers import read_file
from finetune.report.page import write_page
from finetune.report.source import find, open_run
from tests.tiny_base import many_label_rows, mood_rows, pair_rows, tiny_base

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent

# What every recipe here shares: a base of two layers, small windows, a minute of training at most.
COMMON = """
[base]
model = "{base}"
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
RECIPES = {
    "mood": (
        "ernie",
        """
summary = "mood of made-up sentences"
task = "single-label"
[data]
train = "mood.csv"
dev = 0.2
test = 0.2
""",
    ),
    "many": (
        "bert",
        """
summary = "several labels of made-up sentences"
task = "multi-label"
[data]
train = "many.jsonl"
label = "labels"
dev = 0.2
test = 0.2
""",
    ),
    "pairs": (
        "ernie",
        """
summary = "made-up pairs of texts"
task = "text-pair"
[data]
train = "pairs.tsv"
pair = "pair"
dev = 0.2
test = 0.2
""",
    ),
    "names": (
        "bert",
        """
summary = "persons and places in made-up sentences"
task = "token-classification"
[data]
train = "names.bio"
format = "conll"
dev = 0.2
test = 0.2
""",
    ),
    "both": (
        "ernie",
        """
summary = "mood of made-up sentences, and persons and places in others"
task = "multi-task"
[data]
train = "both.jsonl"
dev = 0.2
test = 0.2
""",
    ),
}
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


def write_rows(folder: Path) -> None:
    """The rows of every recipe, each in another format."""
    for name, header, rows in (
        ("mood.csv", ["text", "label"], mood_rows(400)),
        ("pairs.tsv", ["text", "pair", "label"], pair_rows(400)),
    ):
        with (folder / name).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter="," if name.endswith("csv") else "\t", lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
    (folder / "names.bio").write_text(name_lines(300), encoding="utf-8")
    tagged = read_file(folder / "names.bio", format="conll", require="entities")
    both: list[dict[str, object]] = [{"text": text, "label": label} for text, label in mood_rows(300, 4)]
    both += [{"text": row.text, "entities": row.spans} for row in tagged]
    for name, lines in (("many.jsonl", many_label_rows(600)), ("both.jsonl", both)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("journey")
    tiny_base(folder / "ernie", "ernie")
    tiny_base(folder / "bert", "bert")
    write_rows(folder)
    for name, (base, recipe) in RECIPES.items():
        (folder / f"{name}.toml").write_text(recipe + COMMON.format(base=base), encoding="utf-8")

    def walk(name: str) -> str:
        return make("finetune", "export", f"RECIPE={folder / name}.toml", folder=folder)

    # Two at a time: much of a run is one thread that imports Paddle.
    with ThreadPoolExecutor(2) as pool:
        return folder, "".join(pool.map(walk, RECIPES))


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


NAMES = ["张三去了北京。" * 12, "我们🙂和李四在上海"]
MANY = ["今天快赞北京快赞。", "今天北京上海人民在这。", "今天北京烂烂" * 30]
PAIRS = [
    {"text": "北京日报", "pair": "赞赞"},
    {"text": "北京日报", "pair": "烂" + "上海" * 80 + "烂。" + "今天" * 60 + "烂烂"},
]
REFUSED: list[tuple[str, Any]] = [
    ("mood", "今天\0"),
    ("pairs", [{"text": "北京", "pair": " "}]),
    ("pairs", "北京"),
    ("names", [{"text": "北京", "pair": "上海"}]),
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
                "many": client.post("/v1/models/many/predict", json={"inputs": MANY}).json(),
                "pairs": client.post("/v1/models/pairs/predict", json={"inputs": PAIRS}).json(),
                "names": client.post("/v1/models/names/predict", json={"inputs": NAMES}).json(),
                "both": client.post("/v1/models/both/predict", json={"inputs": [*TEXTS, *NAMES]}).json(),
                "refused": [
                    client.post(f"/v1/models/{model}/predict", json={"inputs": inputs}).json()
                    for model, inputs in REFUSED
                ],
            }
    return result


def test_each_stage_says_what_it_did_and_what_comes_next(project: tuple[Path, str]) -> None:
    _, printed = project
    for words in ("TF-IDF", "next: make export", "parity", "make serve"):
        assert words in printed


@pytest.mark.parametrize("name", RECIPES)
def test_the_manifest_lists_every_form_with_parity_and_quality(project: tuple[Path, str], name: str) -> None:
    manifest = open_bundle(project[0] / "artifacts" / name / "bundle").manifest
    assert {"paddle", "paddle_static", "onnx_fp32", "onnx_fused"} <= set(manifest.artifacts)
    assert manifest.published in ("onnx_int8", "onnx_fused")
    for form in ("paddle_static", "onnx_fp32", "onnx_fused"):
        parity = manifest.artifacts[form].parity
        assert parity is not None and parity.max_abs <= 1e-4 and parity.label_agreement == 1.0
    for form in ("onnx_fused", manifest.published):
        assert manifest.artifacts[form].quality is not None
    outputs = [tensor.name for tensor in manifest.signature.outputs]
    assert outputs == (["logits", "token_logits"] if name == "both" else ["logits"])
    assert len(manifest.task.thresholds) == (3 if name == "many" else 0)


def spans(prediction: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(item["start"], item["end"], item["label"], item["text"]) for item in prediction.get("entities", ())]


@pytest.mark.parametrize("name", RECIPES)
def test_both_engines_give_the_same_answers(answers: dict[str, dict[str, Any]], name: str) -> None:
    left, right = answers["onnx"], answers["triton"]
    assert left["models"] == right["models"]
    assert {model["name"] for model in left["models"]["models"]} == set(RECIPES)
    assert left[name]["predictions"]
    for a, b in zip(left[name]["predictions"], right[name]["predictions"], strict=True):
        assert a["windows"] == b["windows"] and a["covered"] == b["covered"] == 1.0
        assert spans(a) == spans(b) and a.get("label") == b.get("label")
        scores = [{item["label"]: item["score"] for item in answer.get("scores", ())} for answer in (a, b)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_every_label_that_applies_is_given(answers: dict[str, dict[str, Any]]) -> None:
    first, none, long = answers["triton"]["many"]["predictions"]
    assert {item["label"] for item in first["labels"]} == {"好评", "速度"}
    assert none["labels"] == [] and {item["label"] for item in none["scores"]} == {"好评", "差评", "速度"}
    assert long["windows"] > 1 and "差评" in {item["label"] for item in long["labels"]}


def test_a_long_side_of_a_pair_is_read_in_windows(answers: dict[str, dict[str, Any]]) -> None:
    short, long = answers["triton"]["pairs"]["predictions"]
    assert (short["label"], short["windows"]) == ("yes", 1)
    assert long["label"] == "no" and long["windows"] > 3


def test_one_pass_gives_a_label_and_entities(answers: dict[str, dict[str, Any]]) -> None:
    predictions = answers["triton"]["both"]["predictions"]
    assert [item["label"] for item in predictions[:2]] == ["好评", "差评"]
    assert {item["text"] for item in predictions[-1]["entities"]} >= {"李四", "上海"}
    text = NAMES[0]
    assert all(item["text"] == text[item["start"] : item["end"]] for item in predictions[-2]["entities"])
    assert len(predictions[-2]["entities"]) >= 20


def test_what_cannot_be_answered_is_refused_with_its_field(answers: dict[str, dict[str, Any]]) -> None:
    for engine in ("onnx", "triton"):
        problems = answers[engine]["refused"]
        assert [problem["status"] for problem in problems] == [422] * 4
        assert [problem["field"] for problem in problems] == ["inputs", "inputs[0].pair", "inputs", "inputs[0].pair"]


def test_the_classifier_learned_and_reads_long_texts_to_the_end(answers: dict[str, dict[str, Any]]) -> None:
    predictions = answers["triton"]["mood"]["predictions"]
    assert [item["label"] for item in predictions[:3]] == ["好评", "差评", "差评"]
    assert predictions[2]["windows"] > 1 and predictions[2]["truncated"] is False
    assert predictions[0]["windows"] == 1


def test_entities_are_exact_in_the_callers_text(answers: dict[str, dict[str, Any]]) -> None:
    long, emoji = answers["triton"]["names"]["predictions"]
    text = NAMES[0]
    found = {(item["start"], item["end"]) for item in long["entities"]}
    assert all(item["text"] == text[item["start"] : item["end"]] for item in long["entities"])
    wanted = {(7 * n, 7 * n + 2) for n in range(12)} | {(7 * n + 4, 7 * n + 6) for n in range(12)}
    assert len(found & wanted) >= 20 and long["windows"] > 1
    text = "我们🙂和李四在上海"
    assert {text[item["start"] : item["end"]] for item in emoji["entities"]} >= {"李四", "上海"}
    assert all(item["text"] == text[item["start"] : item["end"]] for item in emoji["entities"])


@pytest.mark.parametrize("name", RECIPES)
def test_every_kind_of_task_has_a_page_about_its_training(project: tuple[Path, str], tmp_path: Path, name: str) -> None:
    (path, *pictures) = write_page([open_run(find(project[0] / "artifacts" / name))], tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert "Beside a baseline" in text or name == "names"
    assert "The hardest" in text and "expected calibration error" in text
    drawn = {picture.stem for picture in pictures}
    assert {"curves", "classes-test", "calibration-test"} <= drawn
    assert ("confusion-test" in drawn) == (name not in ("many", "names"))


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
