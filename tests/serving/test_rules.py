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
from bundle.folder import Bundle, create_bundle, sha256_of
from bundle.manifest import FileRef, Task, bio_labels
from bundle.predict import answers_of, encode_rows, predict, readable
from bundle.rows import Entity, Row, write_rows
from serving.__main__ import app
from serving.rules import Ruled, RuleSet, read_rules
from tests.serving.conftest import Server, eventually, options
from tests.serving.test_predict import ask
from tests.serving.tiny_bundle import make_bundle

MOODS = Task(kind="single-label", labels=("负面", "中性", "正面"))
NAMES = Task(kind="token-classification", labels=bio_labels(["PER", "LOC"]))
TOPICS = Task(kind="multi-label", labels=("财经", "地方", "人物", "天气"))
# "LOC" is the name of a label and of an entity type too.
DESK = Task(kind="multi-task", labels=("询问", "预订", "LOC"), token_labels=bio_labels(["PER", "LOC"]))


def rules_of(folder: Path, task: Task, *rules: str) -> RuleSet:
    file = folder / "rules.toml"
    file.write_text("\n".join("[[rule]]\nreason = 'r'\n" + rule for rule in rules), encoding="utf-8")
    return read_rules(file, task)


def named(ruled: Ruled, task: Task) -> list[str]:
    return [task.labels[index] for index in ruled.chosen]


def mood(*scores: float) -> Classified:
    values = np.array(scores, dtype=np.float32)
    best = int(values.argmax())
    return Classified(best, (best,), values, np.ones(1, np.float32), values[None])


def topics(*chosen: int) -> Classified:
    """A text that has some labels of `TOPICS`."""
    values = np.full(4, 0.1, dtype=np.float32)
    values[list(chosen)] = 0.9
    return Classified(int(values.argmax()), chosen, values, np.ones((1, 4), np.float32), values[None])


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
    assert named(ruled, MOODS) == [expected]
    assert bool(ruled.fired) == (expected != "正面")


def test_rules_act_in_order_each_on_what_is_left(tmp_path: Path) -> None:
    rules = rules_of(
        tmp_path,
        MOODS,
        "name='first'\naction='veto'\nlabel='正面'\nkeywords=['好']",
        "name='second'\naction='relabel'\nlabel='负面'\nkeywords=['好']\nwhen=['中性']",
    )
    ruled = rules.apply("真好", mood(0.1, 0.2, 0.7), ())
    assert named(ruled, MOODS) == ["负面"]
    assert [(fired.rule, fired.start, fired.end) for fired in ruled.fired] == [("first", 1, 2), ("second", 1, 2)]


def test_the_last_label_cannot_be_taken_away(tmp_path: Path) -> None:
    vetoes = [f"name='{label}'\naction='veto'\nlabel='{label}'\nkeywords=['好']" for label in MOODS.labels]
    assert len(rules_of(tmp_path, MOODS, *vetoes).apply("好", mood(0.1, 0.2, 0.7), ()).chosen) == 1


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
    ("rule", "given", "expected"),
    [
        ("action='add'\nlabel='天气'", (0,), ["财经", "天气"]),
        ("action='add'\nlabel='天气'", (), ["天气"]),
        ("action='add'\nlabel='天气'", (0, 3), None),
        ("action='add'\nlabel='天气'\nwhen=['地方']", (0,), None),
        ("action='veto'\nlabel='财经'", (0, 2), ["人物"]),
        ("action='veto'\nlabel='财经'", (0,), []),
        ("action='veto'\nlabel='财经'", (1,), None),
        ("action='relabel'\nlabel='天气'", (0, 2), ["天气"]),
        ("action='relabel'\nlabel='天气'\nwhen=['人物']", (0, 2), ["财经", "天气"]),
        ("action='relabel'\nlabel='天气'\nwhen=['人物']", (0,), None),
        ("action='relabel'\nlabel='天气'", (), None),
    ],
)
def test_a_rule_on_several_labels(
    tmp_path: Path, rule: str, given: tuple[int, ...], expected: list[str] | None
) -> None:
    ruled = rules_of(tmp_path, TOPICS, f"name='a'\nkeywords=['好']\n{rule}").apply("真好", topics(*given), ())
    assert named(ruled, TOPICS) == ([TOPICS.labels[index] for index in given] if expected is None else expected)
    assert [(fired.start, fired.end) for fired in ruled.fired] == ([] if expected is None else [(1, 2)])


def test_a_rules_label_tells_which_half_of_an_answer_it_acts_on(tmp_path: Path) -> None:
    rules = rules_of(
        tmp_path,
        DESK,
        "name='label'\naction='relabel'\nlabel='预订'\nkeywords=['订']\nwhen=['询问']",
        "name='type'\naction='relabel'\nlabel='PER'\nkeywords=['小明']\nwhen=['LOC']",
        "name='both'\naction='add'\nlabel='LOC'\nkeywords=['北京']",
    )
    ruled = rules.apply("小明订到北京", mood(0.7, 0.2, 0.1), [Tagged(0, 2, "LOC", 0.8)])
    assert named(ruled, DESK) == ["预订"]
    assert [(item.start, item.end, item.label) for item in ruled.tagged] == [(0, 2, "PER"), (4, 6, "LOC")]
    assert [fired.rule for fired in ruled.fired] == ["label", "type", "both"]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("action='veto'\nlabel='LOC'", "a label and an entity type"),
        ("action='add'\nlabel='预订'", "nothing to add to"),
        ("action='relabel'\nlabel='PER'\nwhen=['预订']", "acts on entities"),
        ("action='relabel'\nlabel='预订'\nwhen=['PER']", "acts on labels"),
        ("action='veto'\nlabel='nix'", "it has 询问, 预订, LOC, PER"),
    ],
)
def test_a_rule_that_could_mean_either_half_is_refused(tmp_path: Path, rule: str, reason: str) -> None:
    with pytest.raises(RulesInvalid, match=reason):
        rules_of(tmp_path, DESK, f"name='a'\nkeywords=['好']\n{rule}")


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
    given, marked = (GOOD.format(label=label).replace("relabel", "add") for label in ("天气", "PER"))
    (folder / "topics.toml").write_text(given, encoding="utf-8")
    (folder / "desk.toml").write_text(GOOD.format(label="询问") + marked.replace("refund", "mark"), encoding="utf-8")
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

        # Several labels, and a label beside entities: the same on both engines, and the scores stay the model's.
        several = ask(server, "topics", inputs=[text, "坏"])["predictions"]
        assert [item["label"] for item in several[0]["labels"]][-1] == "天气"
        assert several[0]["labels"][-1]["score"] < several[0]["labels"][-1]["threshold"]
        assert several[0]["rules"][0]["action"] == "add" and "rules" not in several[1]
        (both,) = ask(server, "desk", inputs=text)["predictions"]
        assert both["label"] == "询问" and {"label": "PER", "text": "退款"}.items() <= both["entities"][-1].items()
        assert [item["rule"] for item in both["rules"]] == ["refund", "mark"]

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


def said_by(bundle: Bundle, texts: list[str]) -> list[Row]:
    """Rows that are labelled with what the model itself says of them."""
    task, encoder = bundle.manifest.task, Encoder.of(bundle)
    session = ort.InferenceSession(str(bundle.path("onnx_fp32/model.onnx")), providers=["CPUExecutionProvider"])
    found = predict(
        encode_rows([Row(text) for text in texts], encoder),
        encoder,
        lambda ids, types: session.run(None, {"input_ids": ids, "token_type_ids": types}),
    )
    rows = []
    for text, answer in zip(texts, answers_of(found, task, bundle.manifest.text.joining), strict=True):
        said = readable(answer, task)
        if task.kind == "multi-label":
            rows.append(Row(text, labels=tuple(said)))
        elif task.kind == "multi-task":
            rows.append(Row(text, said["label"], entities=tuple(Entity(*span) for span in said["entities"])))
        else:
            rows.append(Row(text, said))
    return rows


def tried(bundle: Bundle, rows: list[Row], rules: str) -> str:
    """What the command says of some rules on a bundle whose dev rows are these."""
    file = bundle.root / "dev.jsonl"
    write_rows(file, rows)
    ref = FileRef(file=file.name, sha256=sha256_of(file), bytes=file.stat().st_size)
    create_bundle(bundle.root, bundle.manifest.model_copy(update={"splits": {"dev": ref}}))
    mine = bundle.root / "mine.toml"
    mine.write_text(rules, encoding="utf-8")
    told = CliRunner().invoke(app, ["try-rules", bundle.name, str(mine), "--bundles", str(bundle.root)])
    assert told.exit_code == 0, told.output
    return told.output


@pytest.mark.slow
def test_a_rule_that_hurts_is_seen_on_dev(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "moody", "single-label")
    # Three rows labelled with what the model says of them; a rule then turns one of them wrong.
    rows = said_by(bundle, ["股市大跌", "我们在北京", *(f"{word}，真好" for word in ("大国", "北京", "我", "新闻"))])
    good = next(row for row in rows[2:] if row.label != "负面")

    told = tried(bundle, [*rows[:2], good], GOOD.format(label="负面").replace("退款", "好"))
    assert "3 dev rows" in told
    assert "accuracy: 1.0000 → 0.6667" in told
    assert "rule refund: fired on 1 rows, mended 0, broke 1  HURTS" in told


@pytest.mark.slow
def test_rules_on_several_labels_are_judged_by_all_of_them(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "topics", "multi-label", seed=2)
    said = said_by(bundle, ["大国新闻，股市增长。", "坏", "生僻字"])
    # The first row should have one label more than the model gives, and in an order that is not the model's.
    rows = [Row(said[0].text, labels=("天气", *(said[0].labels or ()))), *said[1:]]

    told = tried(bundle, rows, GOOD.format(label="天气").replace("relabel", "add").replace('"退款"', '"新闻", "坏"'))
    assert "exact_match: 0.6667 → 0.6667" in told
    assert "rule refund: fired on 2 rows, mended 1, broke 1" in told


@pytest.mark.slow
def test_a_row_that_tells_one_half_is_judged_by_that_half(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "desk", "multi-task")
    rows = said_by(bundle, ["股市大跌，我们在北京", "股市大跌，他们说你好"])
    assert rows[0].label is not None and rows[1].entities
    other = next(label for label in bundle.manifest.task.labels if label != rows[1].label)
    only_label, only_entities = Row(rows[0].text, rows[0].label), Row(rows[1].text, entities=rows[1].entities)

    told = tried(bundle, [only_label, only_entities], GOOD.format(label=other).replace("退款", "他们"))
    assert "rule refund: fired on 1 rows, mended 0, broke 0" in told  # its label is right or wrong, nobody knows
    told = tried(
        bundle, [only_label, only_entities], GOOD.format(label="LOC").replace("relabel", "add").replace("退款", "股市")
    )
    assert "rule refund: fired on 2 rows, mended 0, broke 1" in told
