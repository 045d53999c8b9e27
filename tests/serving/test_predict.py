"""What the API answers, over real sockets, with both engines."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import random
import re

import httpx
import pytest

from tests.serving.conftest import ROOT, Server

pytestmark = pytest.mark.slow

LONG = "大国新闻，股市增长，他们都说好。明天王学北京到上海。" * 3
TEXTS = [
    "大国新闻，股市增长。",
    "坏",
    LONG,
    "😀我们在北京😀，\u202eabc 123\u202c。 שלום",
    "a\u0007b 你好",
    "ABC  跌落\n\n大跌",
    "生僻字龘靐齉，未知符号€",
    "x" * 3000,
]


def ask(server: Server, model: str, **body: object) -> dict:
    response = httpx.post(f"{server.url}/v1/models/{model}/predict", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def same(left: object, right: object) -> bool:
    """Whether two answers are equal, numbers up to the last digits of a float32."""
    if isinstance(left, float) and isinstance(right, float):
        return left == pytest.approx(right, abs=2e-5)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@pytest.mark.parametrize("model", ["news", "news-int8", "ner", "topics", "desk"])
def test_both_engines_give_the_same_answers(onnx_server: Server, triton_server: Server, model: str) -> None:
    found = [ask(server, model, inputs=TEXTS, return_windows=True) for server in (onnx_server, triton_server)]

    assert len(found[0]["predictions"]) == len(TEXTS)
    assert same(found[0]["predictions"], found[1]["predictions"])


def test_both_engines_give_the_same_answers_to_pairs(onnx_server: Server, triton_server: Server) -> None:
    pairs = [{"text": text, "pair": pair} for text in TEXTS for pair in ("你是我们的人", "大跌")]
    for part in (pairs[:8], pairs[8:]):
        found = [ask(server, "pairs", inputs=part) for server in (onnx_server, triton_server)]
        assert same(found[0]["predictions"], found[1]["predictions"])


@pytest.mark.parametrize("model", ["news", "news-int8", "ner", "topics", "desk"])
def test_an_answer_does_not_depend_on_what_else_is_asked(triton_server: Server, model: str) -> None:
    together = ask(triton_server, model, inputs=TEXTS)["predictions"]
    alone = [ask(triton_server, model, inputs=text)["predictions"][0] for text in TEXTS]

    assert same(together, alone)


def test_concurrent_requests_of_different_lengths_get_their_own_answers(
    onnx_server: Server, triton_server: Server
) -> None:
    characters = "的一是了不在有人我他这中大来上国个到说们，。"
    draw = random.Random(7)
    texts = ["".join(draw.choices(characters, k=draw.randint(1, 120))) for _ in range(60)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda text: ask(triton_server, "ner", inputs=text)["predictions"][0], texts))

    for text, answer in zip(texts, found, strict=True):
        assert same(answer, ask(onnx_server, "ner", inputs=text)["predictions"][0])


def test_a_long_text_is_read_whole_in_windows(onnx_server: Server) -> None:
    (answer,) = ask(onnx_server, "news", inputs=LONG, return_windows=True)["predictions"]

    assert answer["windows"] > 1
    assert (answer["truncated"], answer["covered"]) == (False, 1.0)
    windows = answer["window_list"]
    assert len(windows) == answer["windows"]
    assert (windows[0]["start"], windows[-1]["end"]) == (0, len(LONG))
    assert all(right["start"] <= left["end"] for left, right in itertools.pairwise(windows))
    assert sum(window["weight"] for window in windows) == pytest.approx(1, abs=1e-4)


def test_the_answer_has_the_documented_fields(onnx_server: Server) -> None:
    answer = ask(onnx_server, "news", inputs="大国新闻")

    assert set(answer) == {"model", "version", "format", "predictions", "timing_ms"}
    assert (answer["model"], answer["version"], answer["format"]) == ("news", 1, "onnx_fp32")
    assert set(answer["timing_ms"]) == {"tokenize", "infer", "decode", "total"}
    (prediction,) = answer["predictions"]
    assert set(prediction) == {"label", "score", "scores", "tokens", "windows", "covered", "truncated"}
    assert [item["score"] for item in prediction["scores"]] == sorted(
        (item["score"] for item in prediction["scores"]), reverse=True
    )
    assert sum(item["score"] for item in prediction["scores"]) == pytest.approx(1, abs=1e-5)
    assert prediction["label"] == prediction["scores"][0]["label"]
    assert prediction["tokens"] == 4


def test_a_text_may_have_several_labels_each_with_its_threshold(onnx_server: Server) -> None:
    thresholds = {"财经": 0.4, "地方": 0.5, "人物": 0.6, "天气": 0.5}
    answers = ask(onnx_server, "topics", inputs=TEXTS)["predictions"]

    assert len({len(answer["labels"]) for answer in answers}) > 2
    for answer in answers:
        assert set(answer) == {"labels", "scores", "tokens", "windows", "covered", "truncated"}
        assert {item["label"] for item in answer["scores"]} == set(thresholds)
        reached = [item for item in answer["scores"] if item["score"] >= thresholds[item["label"]]]
        assert answer["labels"] == [{**item, "threshold": thresholds[item["label"]]} for item in reached]
    # top_k shortens the list of scores, never the answer.
    cut = ask(onnx_server, "topics", inputs=TEXTS, top_k=1)["predictions"]
    assert [len(answer["scores"]) for answer in cut] == [1] * len(TEXTS)
    assert [answer["labels"] for answer in cut] == [answer["labels"] for answer in answers]


def test_windows_of_several_labels_weigh_in_each_labels_own_pool(onnx_server: Server) -> None:
    (answer,) = ask(onnx_server, "topics", inputs=LONG, return_windows=True)["predictions"]

    windows = answer["window_list"]
    assert len(windows) > 1 and all("weight" not in window for window in windows)
    for label in answer["scores"]:
        own = [item for window in windows for item in window["scores"] if item["label"] == label["label"]]
        assert sum(item["weight"] for item in own) == pytest.approx(1, abs=1e-5)
        assert sum(item["weight"] * item["score"] for item in own) == pytest.approx(label["score"], abs=1e-5)


def test_one_answer_has_a_label_and_entities(onnx_server: Server) -> None:
    (answer,) = ask(onnx_server, "desk", inputs=LONG, return_windows=True)["predictions"]

    assert list(answer)[:4] == ["label", "score", "scores", "entities"]
    assert answer["label"] == answer["scores"][0]["label"] and answer["score"] == answer["scores"][0]["score"]
    assert answer["entities"]
    assert all(LONG[item["start"] : item["end"]] == item["text"] for item in answer["entities"])
    assert {item["label"] for item in answer["entities"]} <= {"PER", "LOC"}
    windows = answer["window_list"]
    assert sum(window["weight"] for window in windows) == pytest.approx(1, abs=1e-4)
    assert all("weight" not in item for window in windows for item in window["scores"])


def test_entities_are_cut_from_the_callers_own_text(onnx_server: Server) -> None:
    text = "😀 王学 在北京。ABC" + LONG
    (answer,) = ask(onnx_server, "ner", inputs=[text])["predictions"]

    assert answer["entities"]
    for entity in answer["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
        assert entity["label"] in {"PER", "LOC"}
        assert 0 < entity["score"] <= 1


def test_entities_are_found_in_the_units_of_other_languages(onnx_server: Server) -> None:
    text = "😀👩‍👩‍👧 王学é 在北京。\U00020000ABC" + LONG
    units = {"codepoint": "utf-32-le", "utf16": "utf-16-le", "byte": "utf-8"}
    width = {"codepoint": 4, "utf16": 2, "byte": 1}
    starts = {}
    for unit, encoding in units.items():
        (answer,) = ask(onnx_server, "ner", inputs=text, offset_unit=unit, return_windows=True)["predictions"]
        carried, size = text.encode(encoding), width[unit]
        for entity in answer["entities"]:
            assert carried[size * entity["start"] : size * entity["end"]].decode(encoding) == entity["text"]
        assert answer["window_list"][-1]["end"] == len(carried) // size
        starts[unit] = [entity["start"] for entity in answer["entities"]]
    assert starts["codepoint"] != starts["utf16"] != starts["byte"]


def test_top_k_cuts_the_list_and_may_be_larger_than_it(onnx_server: Server) -> None:
    assert len(ask(onnx_server, "news", inputs="好", top_k=1)["predictions"][0]["scores"]) == 1
    assert len(ask(onnx_server, "news", inputs="好", top_k=99)["predictions"][0]["scores"]) == 3


def test_truncate_answers_the_beginning_and_says_so(onnx_server: Server) -> None:
    (answer,) = ask(onnx_server, "news", inputs=LONG * 20, truncate=True)["predictions"]

    assert answer["truncated"] is True
    assert answer["windows"] == 8
    assert 0.05 < answer["covered"] < 0.9


def test_models_are_listed_and_described(http: httpx.Client) -> None:
    models = http.get("/v1/models").json()["models"]
    assert {(item["name"], item["task"], item["version"], item["format"]) for item in models} == {
        ("news", "single-label", 1, "onnx_fp32"),
        ("news-int8", "single-label", 1, "onnx_int8"),
        ("ner", "token-classification", 1, "onnx_fp32"),
        ("pairs", "text-pair", 1, "onnx_fp32"),
        ("topics", "multi-label", 1, "onnx_fp32"),
        ("desk", "multi-task", 1, "onnx_fp32"),
    }

    named = {item["name"]: (item["labels"], item["entity_types"], item["thresholds"]) for item in models}
    assert named["news"] == (["负面", "中性", "正面"], [], {})
    assert named["topics"] == (
        ["财经", "地方", "人物", "天气"],
        [],
        {"财经": 0.4, "地方": 0.5, "人物": 0.6, "天气": 0.5},
    )
    assert named["desk"] == (["询问", "预订", "抱怨", "PER", "LOC"], ["PER", "LOC"], {})

    detail = http.get("/v1/models/ner").json()
    assert detail["labels"] == detail["entity_types"] == ["PER", "LOC"]
    assert detail["text"]["max_windows"] == 8
    assert detail["licences"]["data"]["licence"] == "CC0-1.0"
    assert detail["formats"]["onnx_fp32"]["published"] is True
    assert detail["live"]["max_abs"] <= 1e-4


def test_metrics_count_requests_stages_windows_and_the_engine(http: httpx.Client) -> None:
    http.post("/v1/models/news/predict", json={"inputs": LONG})
    http.post("/v1/models/news/predict", json={"inputs": ""})
    text = http.get("/metrics").text

    assert 'slipway_requests_total{route="/v1/models/{model}/predict",status="200"}' in text
    assert 'slipway_errors_total{kind="invalid-text"}' in text
    assert 'slipway_stage_seconds_bucket{le="0.001",model="news",stage="tokenize"}' in text
    assert 'slipway_text_windows_count{model="news"}' in text
    assert 'slipway_engine_up{engine="onnx",model="news"} 1.0' in text
    assert "process_resident_memory_bytes" in text


def test_a_request_id_is_kept_or_made(http: httpx.Client) -> None:
    assert http.get("/health/live", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = http.get("/health/live", headers={"X-Request-Id": "not <good>"}).headers["x-request-id"]
    assert made and made != "not <good>"


def test_timings_are_also_a_header(http: httpx.Client) -> None:
    response = http.post("/v1/models/news/predict", json={"inputs": "好"})
    assert "infer;dur=" in response.headers["server-timing"]


def test_the_documented_answers_have_the_fields_of_real_ones(onnx_server: Server) -> None:
    documented = re.findall(r"```json (\S+)\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.S)
    models = {item["task"]: item["name"] for item in httpx.get(f"{onnx_server.url}/v1/models").json()["models"]}

    assert {task for task, _ in documented} == set(models) - {"text-pair"}
    for task, text in documented:
        shown, found = json.loads(text), ask(onnx_server, models[task], inputs=LONG)["predictions"][0]
        assert list(shown) == list(found)
        for field, value in shown.items():
            if isinstance(value, list):
                assert list(value[0]) == list(found[field][0])
