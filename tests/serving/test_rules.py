"""Rules change answers as they say, show themselves, are read again, and never let a broken file act."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import numpy as np
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from bundle.decode import Classified, Tagged
from bundle.encode import Encoder
from bundle.errors import RulesInvalid
from bundle.folder import create_bundle, sha256_of
from bundle.manifest import FileRef, Task, bio_labels
from bundle.predict import encode_rows, predict
from bundle.rows import Row, write_rows
from serving.__main__ import app
from serving.rules import RuleSet, read_rules
from tests.serving.conftest import Server, eventually, options
from tests.serving.test_predict import ask
from tests.serving.tiny_bundle import make_bundle

MOODS = Task(kind="single-label", labels=("负面", "中性", "正面"))
NAMES = Task(kind="token-classification", labels=bio_labels(["PER", "LOC"]))


def rules_of(folder: Path, task: Task, *rules: str) -> RuleSet:
    file = folder / "rules.toml"
    file.write_text("\n".join("[[rule]]\nreason = 'r'\n" + rule for rule in rules), encoding="utf-8")
    return read_rules(file, task)


def mood(*scores: float) -> Classified:
    values = np.array(scores, dtype=np.float32)
    return Classified(int(values.argmax()), values, np.ones(1, np.float32), values[None])


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("name='a'\naction='relabel'\nlabel='负面'\nkeywords=['退款']", "我要退款", "负面"),
        ("name='a'\naction='relabel'\nlabel='负面'\nkeywords=['退款']", "很好", "正面"),
        ("name='a'\naction='veto'\nlabel='正面'\npattern='没.*好'", "没有那么好", "中性"),
        ("name='a'\naction='veto'\nlabel='负面'\nkeywords=['好']", "好", "正面"),
        ("name='a'\naction='relabel'\nlabel='负面'\nkeywords=['好']\nwhen=['中性']", "好", "正面"),
        ("name='a'\naction='relabel'\nlabel='负面'\nkeywords=['BAD']\nignore_case=true", "so bad", "负面"),
    ],
)
def test_a_classifiers_rule(tmp_path: Path, rule: str, text: str, expected: str) -> None:
    ruled = rules_of(tmp_path, MOODS, rule).apply(text, mood(0.1, 0.2, 0.7), ())
    assert MOODS.labels[ruled.label] == expected
    assert bool(ruled.fired) == (expected != "正面")


def test_rules_act_in_order_each_on_what_is_left(tmp_path: Path) -> None:
    rules = rules_of(
        tmp_path,
        MOODS,
        "name='first'\naction='veto'\nlabel='正面'\nkeywords=['好']",
        "name='second'\naction='relabel'\nlabel='负面'\nkeywords=['好']\nwhen=['中性']",
    )
    ruled = rules.apply("真好", mood(0.1, 0.2, 0.7), ())
    assert MOODS.labels[ruled.label] == "负面"
    assert [(fired.rule, fired.start, fired.end) for fired in ruled.fired] == [("first", 1, 2), ("second", 1, 2)]


def test_the_last_label_cannot_be_taken_away(tmp_path: Path) -> None:
    vetoes = [f"name='{label}'\naction='veto'\nlabel='{label}'\nkeywords=['好']" for label in MOODS.labels]
    assert rules_of(tmp_path, MOODS, *vetoes).apply("好", mood(0.1, 0.2, 0.7), ()).label in range(3)


def test_a_taggers_rules_add_veto_and_relabel(tmp_path: Path) -> None:
    rules = rules_of(
        tmp_path,
        NAMES,
        "name='add'\naction='add'\nlabel='LOC'\nkeywords=['北京', '北京站']",
        "name='veto'\naction='veto'\nlabel='PER'\nkeywords=['王府']",
        "name='re'\naction='relabel'\nlabel='PER'\npattern='小[明红]'",
    )
    text = "王府的小明在北京站，北京"
    found = [Tagged(0, 2, "PER", 0.9), Tagged(3, 5, "LOC", 0.8), Tagged(6, 8, "PER", 0.5)]
    ruled = rules.apply(text, None, found)
    assert [(text[item.start : item.end], item.label) for item in ruled.tagged] == [
        ("小明", "PER"),
        ("北京站", "LOC"),
        ("北京", "LOC"),
    ]
    assert [fired.rule for fired in ruled.fired] == ["add", "add", "veto", "re"]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("name='a'\naction='relabel'\nlabel='好'\nkeywords=['x']", "no label '好'"),
        ("name='a'\naction='add'\nlabel='负面'\nkeywords=['x']", "nothing to add to"),
        ("name='a'\naction='veto'\nlabel='负面'", "either keywords or pattern"),
        ("name='a'\naction='veto'\nlabel='负面'\npattern='('", "not a regular expression"),
        ("name='a'\naction='veto'\nlabel='负面'\npattern='x*'", "empty text"),
        ("name='a'\naction='veto'\nlabel='负面'\nkeywords=['']", "empty keyword"),
        ("name='a'\naction='drop'\nlabel='负面'\nkeywords=['x']", "rule.0.action"),
        ("name='a'\naction='veto'\nlabel='负面'\nkeywords=['x']\nwen=['负面']", "rule.0.wen"),
        ("name='a'\naction='veto'\nlabel='负面'\nkeywords=['x'", "rules.toml"),
    ],
)
def test_a_wrong_rule_is_named_with_file_and_reason(tmp_path: Path, rule: str, reason: str) -> None:
    with pytest.raises(RulesInvalid, match=r"rules\.toml") as error:
        rules_of(tmp_path, MOODS, rule)
    assert reason in str(error.value)


def test_two_rules_of_one_name_are_refused(tmp_path: Path) -> None:
    rule = "name='a'\naction='veto'\nlabel='负面'\nkeywords=['x']"
    with pytest.raises(RulesInvalid, match="two rules"):
        rules_of(tmp_path, MOODS, rule, rule)


GOOD = """
[[rule]]
name = "refund"
reason = "asks for the money back"
action = "relabel"
label = "{label}"
keywords = ["退款"]
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnx", "triton"])
def test_rules_are_seen_in_answers_counted_and_read_again(bundles: Path, tmp_path: Path, engine: str) -> None:
    folder = tmp_path / "rules"
    folder.mkdir()
    file = folder / "news.toml"
    text = "😀我要退款"
    server = Server(tmp_path, *options(bundles, engine), SLIPWAY_RULES=str(folder)).until_ready()
    try:
        plain = ask(server, "news", inputs=text)["predictions"][0]
        assert "rules" not in plain
        other = next(label for label in ("负面", "中性", "正面") if label != plain["label"])
        file.write_text(GOOD.format(label=other), encoding="utf-8")
        eventually(lambda: ask(server, "news", inputs=text)["predictions"][0]["label"] == other)
        answer = ask(server, "news", inputs=text, offset_unit="utf16")["predictions"][0]
        assert answer["rules"] == [
            {
                "rule": "refund",
                "action": "relabel",
                "label": other,
                "reason": "asks for the money back",
                "start": 4,
                "end": 6,
            }
        ]
        assert answer["scores"] == plain["scores"], "the model's scores stay its own"
        assert answer["score"] == next(item["score"] for item in plain["scores"] if item["label"] == other)
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'slipway_rules_fired_total{model="news",rule="refund"}' in metrics

        file.write_text(GOOD.format(label="nix"), encoding="utf-8")
        eventually(lambda: bool(ask(server, "news", inputs="x")) and "stay in force" in server.output)
        assert ask(server, "news", inputs=text)["predictions"][0]["label"] == other

        file.unlink()
        eventually(lambda: ask(server, "news", inputs=text)["predictions"][0]["label"] == plain["label"])
    finally:
        assert server.stop() == 0


@pytest.mark.slow
def test_a_wrong_rule_file_stops_the_start(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "ner.toml").write_text(GOOD.format(label="nix"), encoding="utf-8")
    server = Server(tmp_path, *options(bundles, "onnx"), SLIPWAY_RULES=str(tmp_path))
    assert server.process.wait(timeout=60) == 1
    time.sleep(0.2)
    assert "ner.toml: refund: the model has no label 'nix'; it has PER, LOC" in server.output
    server.stop()


@pytest.mark.slow
def test_a_rule_that_hurts_is_seen_on_dev(tmp_path: Path) -> None:
    root = tmp_path / "artifacts" / "moody" / "bundle"
    bundle = make_bundle(root, "moody", "single-label")
    # Three rows labelled with what the model says of them; a rule then turns one of them wrong.
    session = ort.InferenceSession(str(root / "onnx_fp32" / "model.onnx"), providers=["CPUExecutionProvider"])
    encoder, labels = Encoder.of(bundle), bundle.manifest.task.labels
    texts = [*("股市大跌", "我们在北京", "他们说你"), *(f"{word}，真好" for word in ("大国", "北京", "我", "新闻"))]
    found = predict(
        encode_rows([Row(text) for text in texts], encoder),
        encoder,
        lambda ids, types: session.run(["logits"], {"input_ids": ids, "token_type_ids": types})[0],
    )
    rows = [Row(text, labels[item.classified("mean").label]) for text, item in zip(texts, found, strict=True)]
    good = next(row for row in rows[3:] if row.label != "负面")
    write_rows(root / "dev.jsonl", [rows[0], rows[1], good])
    file = root / "dev.jsonl"
    ref = FileRef(file="dev.jsonl", sha256=sha256_of(file), bytes=file.stat().st_size)
    create_bundle(root, bundle.manifest.model_copy(update={"splits": {"dev": ref}}))

    rules = tmp_path / "mine.toml"
    rules.write_text(GOOD.format(label="负面").replace("退款", "好"), encoding="utf-8")
    told = CliRunner().invoke(app, ["try-rules", "moody", str(rules), "--bundles", str(tmp_path / "artifacts")])
    assert told.exit_code == 0, told.output
    assert "3 dev rows" in told.output
    assert "accuracy: 1.0000 → 0.6667" in told.output
    assert "rule refund: fired on 1 rows, mended 0, broke 1  HURTS" in told.output
