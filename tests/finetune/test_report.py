"""A page about a run: one file that needs nothing else, with what the run recorded and how to get what it did not."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from bundle.errors import DataError, InvalidText
from finetune.__main__ import run as train
from finetune.attention import attention, content_of, rollout
from finetune.curve.record import Record
from finetune.report.command import report
from finetune.report.page import write_page
from finetune.report.source import find, open_run
from tests.finetune.short_training import RUN, write_recipe
from tests.tiny_base import mood_rows

pytestmark = pytest.mark.slow
DEEP = 'level = 3\nlayers_every = 5\ndeep_every = 20\ncontrol = "on"'


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run at level 3 whose rate is 100 times too high, so that the controller intervenes; one dev
    label in ten is wrong, so that some rows are answered wrong."""
    folder = tmp_path_factory.mktemp("report")
    dev = [(text, "差评" if place % 20 == 0 else label) for place, (text, label) in enumerate(mood_rows(120, seed=77))]
    recipe = write_recipe(folder, dev=dev, train={"learning_rate": "0.3"}, curve=DEEP)
    train(str(recipe), "quick", folder / "artifacts", False)
    return folder / "artifacts" / "mood"


def page(runs: list[Path], out: Path) -> str:
    report([str(run) for run in runs], out)
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def told(hot: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The page about that run, and the folder of its pictures."""
    out = tmp_path_factory.mktemp("page") / "page.html"
    return page([hot], out), out.with_suffix("")


def test_the_page_shows_a_run_whole_and_needs_nothing_else(told: tuple[str, Path]) -> None:
    text, folder = told
    for section in ("training", "layers", "attention", "answers", "examples", "recipe"):
        assert f'<section id="{section}">' in text
    assert text.count("<svg") >= 6 and "Not recorded" not in text
    assert "prefers-color-scheme:dark" in text and "var(--series-1)" in text
    # Namespaces and words are no resources; nothing is loaded, and nothing runs.
    assert not re.findall(r"(?:src|href)=[\"'](?!#)|url\((?!#)|<script|<link|@import", text)
    pictures = sorted(path.stem for path in folder.glob("*.png"))
    assert {"curves", "layers", "attention", "confusion-test", "calibration-dev"} <= set(pictures)
    assert all((folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG" for name in pictures)


def test_interventions_stand_on_the_page_with_what_they_did_and_why(hot: Path, told: tuple[str, Path]) -> None:
    events = open_run(hot / "run").events
    assert events
    for event in events:
        assert event["reason"] in told[0] and f"<b>{event['strategy']}</b>" in told[0]
    assert "rate-too-high" in told[0].split("<h3>Findings</h3>")[1]


def test_the_hardest_rows_are_those_whose_label_the_model_denies(hot: Path, told: tuple[str, Path]) -> None:
    about = json.loads((hot / "run" / "report.json").read_text(encoding="utf-8"))
    hardest = about["hardest"]
    assert hardest and all(row["gold"] != row["answer"] for row in hardest)
    assert [row["loss"] for row in hardest] == sorted((row["loss"] for row in hardest), reverse=True)
    bins = about["calibration"]["dev"]["bins"]
    assert sum(one["count"] for one in bins) == about["calibration"]["dev"]["answers"] == 120
    assert hardest[0]["text"][:8] in told[0]


def test_runs_are_drawn_over_each_other_with_what_their_recipes_differ_in(hot: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "cool", train={"epochs": "1"})
    train(str(recipe), "quick", tmp_path / "artifacts", False)
    text = page([tmp_path / "artifacts" / "mood", hot], tmp_path / "page.html")
    assert "<td>train.learning_rate</td><td class=n>0.003</td><td class=n>0.3</td>" in text
    assert "mood (mood/run)" in text and '<section id="compare">' in text
    # The first run was watched at level 1: the page says how to get the rest.
    assert "[curve] level = 2" in text and "[curve] level = 3" in text


TEXT = "今天北京🙂 很 赞，<b>说</b>喜欢。"


def test_attention_stands_on_the_real_text_with_every_head(hot: Path, tmp_path: Path) -> None:
    out = tmp_path / "attention.html"
    attention(TEXT, str(hot), None, 0, out)
    content = out.read_text(encoding="utf-8")
    # 2 layers of 4 heads; each picture is in the page itself, and nothing is loaded.
    assert content.count('src="data:image/png;base64,') == 8
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:)|<script|<link", content)
    for block in re.findall(r'<div class="marked">(.*?)</div>', content, re.DOTALL):
        assert html.unescape(re.sub(r"<[^>]+>", "", block)) == TEXT
    for start, end, word in re.findall(r'title="(\d+)–(\d+): [\d.]+">([^<]*)</span>', content):
        assert TEXT[int(start) : int(end)] == html.unescape(word)
    assert "好评" in content or "差评" in content
    with pytest.raises(InvalidText, match="there is no window 1; the text has 1"):
        attention(TEXT, str(hot), None, 1, out)


def test_rollout_multiplies_layers_and_keeps_half_of_each_token() -> None:
    even, still = np.full((1, 2, 3, 3), 1 / 3), np.eye(3)[None, None].repeat(2, axis=1)
    np.testing.assert_allclose(rollout(still), np.eye(3))
    once = 0.5 * np.eye(3) + 0.5 / 3
    np.testing.assert_allclose(rollout(even), once, rtol=1e-6)
    np.testing.assert_allclose(rollout(np.concatenate([even, still, even])), once @ once, rtol=1e-6)


def test_a_run_that_has_not_ended_has_a_page_too(tmp_path: Path) -> None:
    record = Record(tmp_path / "run" / "curve.jsonl")
    record.begin({"name": "young", "task": "single-label", "batch": 8, "level": 1, "metric": "macro_f1", **RUN}, 0)
    record.add("train", 1, loss=0.7, rate=1e-3, travel=1e-3)
    (path, *_) = write_page([open_run(find(tmp_path))], tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert "The run has no evaluation yet" in text and "The same command resumes it" in text


def test_a_folder_without_a_record_is_an_error_that_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no record of a training \(curve.jsonl\) in .*run"):
        find(tmp_path, tmp_path)


def test_a_file_that_is_no_text_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\0")
    for name, reason in (("binary.txt", r"binary\.txt: is not UTF-8"), ("absent.txt", r"absent\.txt: No such file")):
        with pytest.raises(DataError, match=reason):
            content_of(f"@{tmp_path / name}")
    assert content_of("@") == "@" and content_of("好") == "好"
