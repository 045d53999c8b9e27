"""text-embeddings-inference and Hugging Face's inference API, as their clients see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.serving.conftest import Server, options
from tests.serving.tiny_bundle import make_bundle

pytestmark = pytest.mark.slow


def refused(response: httpx.Response, status: int, kind: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error", "error_type"]
    assert response.json()["error_type"] == kind
    assert "Traceback" not in response.text and ".py" not in response.text
    sentence: str = response.json()["error"]
    return sentence


def labels(http: httpx.Client, inputs: object, path: str = "/predict", **more: object) -> list[Any]:
    response = http.post(path, json={"inputs": inputs, **more})
    assert response.status_code == 200, response.text
    found: list[Any] = response.json()
    return found


def test_a_text_gets_a_list_and_a_batch_a_list_of_lists(http: httpx.Client) -> None:
    one = labels(http, "大国新闻")
    assert [set(item) for item in one] == [{"label", "score"}] * 3
    assert [item["score"] for item in one] == sorted((item["score"] for item in one), reverse=True)
    assert labels(http, ["大国新闻"]) == one
    assert labels(http, [["大国新闻"], ["坏"]]) == [one, labels(http, "坏")]
    assert labels(http, [["大国新闻"]]) == [one]


def test_two_strings_are_a_pair(http: httpx.Client) -> None:
    path = "/models/pairs/predict"
    one = labels(http, ["怎么学", "如何学"], path)
    assert labels(http, [["怎么学", "如何学"], ["好", "坏"]], path) == [one, labels(http, ["好", "坏"], path)]
    sentence = refused(http.post("/predict", json={"inputs": ["a", "b"]}), 422, "Validation")
    assert 'a batch is [["a"], ["b"]]' in sentence
    assert 'as ["a", "b"]' in refused(http.post(path, json={"inputs": "a"}), 422, "Validation")


@pytest.mark.parametrize(("body", "status", "kind", "words"), [
    ({}, 422, "Validation", "inputs: field required"),
    ({"inputs": []}, 422, "Validation", "inputs must be a text or a pair"),
    ({"inputs": ["a", "b", "c"]}, 422, "Validation", "inputs must be"),
    ({"inputs": [["a"], "b"]}, 422, "Validation", "inputs[1] must be"),
    ({"inputs": [["a"], []]}, 422, "Validation", "inputs[1] must be"),
    ({"inputs": {"text": "a"}}, 422, "Validation", "inputs must be"),
    ({"inputs": 3}, 422, "Validation", "inputs must be"),
    ({"inputs": "a", "raw_scores": True}, 422, "Validation", "raw_scores"),
    ({"inputs": "a", "truncation_direction": "Left"}, 422, "Validation", "truncation_direction"),
    ({"inputs": "a", "truncat": True}, 422, "Validation", "known are inputs, truncate"),
    ({"inputs": " "}, 422, "Tokenizer", "inputs is empty"),
    ({"inputs": [["a"], ["b\0"]]}, 422, "Tokenizer", "inputs[1] holds the character NUL"),
    ({"inputs": "大" * 1000}, 413, "Validation", "the limit is 8"),
    ({"inputs": [["a"]] * 17}, 413, "Validation", "inputs has 17 texts; the limit is 16"),
])  # fmt: skip
def test_errors_have_that_servers_shape_and_codes(
    http: httpx.Client, body: object, status: int, kind: str, words: str
) -> None:
    assert words in refused(http.post("/predict", json=body), status, kind)


def test_errors_before_and_beside_the_routes_have_the_shape_too(http: httpx.Client) -> None:
    refused(http.post("/predict", content=b"{"), 400, "Validation")
    refused(http.post("/predict", content=b" " * (5 << 20)), 413, "Validation")
    refused(http.get("/predict"), 405, "Validation")
    refused(http.post("/models/nix/predict", json={"inputs": "a"}), 404, "Validation")
    refused(http.post("/models/nix", json={"inputs": "a"}), 404, "Validation")
    refused(http.get("/models/nix/info"), 404, "Validation")
    refused(http.post("/models/news", json={"input": "a"}), 422, "Validation")
    refused(http.post("/models/news", json=["a"]), 422, "Validation")
    refused(http.post("/models/news/pipeline/fill-mask", json={"inputs": "a"}), 422, "Validation")


def test_a_longer_text_is_cut_where_the_caller_says_so(http: httpx.Client) -> None:
    assert len(labels(http, "大国" * 1000, truncate=True)) == 3


def test_info_tells_labels_and_limits(http: httpx.Client) -> None:
    info = http.get("/info").json()
    assert info["model_id"] == "news" and info["model_dtype"] == "float32"
    assert info["model_type"]["classifier"]["id2label"] == {"0": "负面", "1": "中性", "2": "正面"}
    assert info["model_type"]["classifier"]["label2id"]["正面"] == 2
    assert info["max_client_batch_size"] == 16 and info["auto_truncate"] is False
    assert http.get("/models/topics/info").json()["model_id"] == "topics"
    refused(http.get("/models/ner/info"), 424, "Backend")
    # The longest text that is answered, to the token.
    longest = info["max_input_length"]
    assert http.post("/predict", json={"inputs": "大" * longest}).status_code == 200
    refused(http.post("/predict", json={"inputs": "大" * (longest + 1)}), 413, "Validation")


def test_health_is_an_empty_answer(http: httpx.Client) -> None:
    for path in ("/health", "/models/news/health"):
        response = http.get(path)
        assert (response.status_code, response.content) == (200, b"")
    assert "slipway_requests_total" in http.get("/metrics").text


def test_the_client_asks_a_model_or_the_base_url(onnx_server: Server) -> None:
    by_name = InferenceClient(model=f"{onnx_server.url}/models/news")
    (best,) = by_name.text_classification("大国新闻", top_k=1)
    assert best in by_name.text_classification("大国新闻", function_to_apply="softmax")
    assert InferenceClient(model=onnx_server.url).text_classification("大国新闻")[0] == best
    assert InferenceClient(base_url=f"{onnx_server.url}/").text_classification("大国新闻")[0] == best


def test_the_clients_entities_are_cut_from_its_own_text(onnx_server: Server) -> None:
    client = InferenceClient(model=f"{onnx_server.url}/models/ner")
    text = "😀 王学 在北京。ABC" + "大国新闻，股市增长，他们都说好。明天王学北京到上海。" * 3
    found = client.token_classification(text, aggregation_strategy="simple")
    assert found and all(text[item.start : item.end] == item.word for item in found)
    ignored = found[0].entity_group
    kept = client.token_classification(text, ignore_labels=[ignored])
    assert kept == [item for item in found if item.entity_group != ignored]


@pytest.mark.parametrize(("model", "body", "status", "kind", "words"), [
    ("news", {"inputs": []}, 422, "Validation", "empty list"),
    ("news", {"inputs": [["a"]]}, 422, "Validation", 'inputs[0] must be a text or {"text": …}'),
    ("news", {"inputs": {"text": "a", "text_pair": "b"}}, 422, "Validation", "inputs must be a text"),
    ("pairs", {"inputs": "a"}, 422, "Validation", "inputs must be a pair"),
    ("pairs", {"inputs": [{"text": "a", "text_pair": " "}]}, 422, "Tokenizer", "inputs[0].pair is empty"),
    ("news", {"inputs": "a", "parameters": {"topk": 1}}, 422, "Validation", "known are top_k, function_to_apply"),
    ("news", {"inputs": "a", "parameters": {"top_k": 0}}, 422, "Validation", "parameters.top_k"),
    ("news", {"inputs": "a", "parameters": {"function_to_apply": "none"}}, 422, "Validation", "only be 'softmax'"),
    ("ner", {"inputs": "a", "parameters": {"aggregation_strategy": "none"}}, 422, "Validation", "cannot be 'none'"),
    ("news", {"inputs": "大" * 1000}, 413, "Validation", "the limit is 8"),
    ("news", {"inputs": ["a"] * 17}, 413, "Validation", "the limit is 16"),
])  # fmt: skip
def test_what_the_client_sends_wrong_is_told(
    http: httpx.Client, model: str, body: object, status: int, kind: str, words: str
) -> None:
    assert words in refused(http.post(f"/models/{model}", json=body), status, kind)


def test_lists_are_batches_for_hugging_face(http: httpx.Client) -> None:
    both = http.post("/models/news", json={"inputs": ["好", "坏"], "options": {"use_cache": False}}).json()
    assert both == [http.post("/models/news", json={"inputs": text}).json()[0] for text in ("好", "坏")]
    both = http.post("/models/ner", json={"inputs": ["王学在北京", "上海"]}).json()
    assert both == [http.post("/models/ner", json={"inputs": text}).json() for text in ("王学在北京", "上海")]


def test_the_clients_error_carries_ours(onnx_server: Server) -> None:
    with pytest.raises(HfHubHTTPError, match="inputs is empty"):
        InferenceClient(model=f"{onnx_server.url}/models/news").text_classification(" ")


def test_without_a_default_the_only_model_is_it_and_several_are_refused(bundles: Path, tmp_path: Path) -> None:
    several = Server(tmp_path, *options(bundles, "onnx")).until_ready()
    try:
        for path in ("/predict", "/"):
            sentence = refused(httpx.post(several.url + path, json={"inputs": "好"}), 422, "Validation")
            assert "desk, ner, news" in sentence and "SLIPWAY_DEFAULT_MODEL" in sentence
    finally:
        assert several.stop() == 0
    make_bundle(tmp_path / "one" / "only", "only", "single-label")
    single = Server(tmp_path, *options(tmp_path / "one", "onnx")).until_ready()
    try:
        assert httpx.get(f"{single.url}/info").json()["model_id"] == "only"
    finally:
        assert single.stop() == 0


def test_a_default_that_is_not_served_is_told_at_the_start(bundles: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, *options(bundles, "onnx"), SLIPWAY_DEFAULT_MODEL="nix")
    assert server.process.wait(timeout=60) == 1
    server.stop()
    assert "the default model 'nix' is not served; served are" in server.output


def test_what_a_rule_decides_stands_first_and_in_every_dialect(
    bundles: Path, tmp_path: Path, http: httpx.Client
) -> None:
    rule = '[[rule]]\nname = "r"\nreason = "known"\naction = "{}"\nlabel = "{}"\nkeywords = ["好"]\n'
    last = {model: labels(http, "好", f"/models/{model}/predict")[-1] for model in ("news", "topics")}
    rules = tmp_path / "rules"
    rules.mkdir()
    for model, action in (("news", "relabel"), ("topics", "add")):
        (rules / f"{model}.toml").write_text(rule.format(action, last[model]["label"]), encoding="utf-8")
    server = Server(tmp_path, *options(bundles, "onnx"), SLIPWAY_RULES=str(rules)).until_ready()
    try:
        with httpx.Client(base_url=server.url, timeout=60) as ruled:
            label, score = last["news"]["label"], last["news"]["score"]
            ranks = labels(ruled, "好", "/models/news/predict")
            assert ranks[0] == last["news"] and len(ranks) == 3
            assert labels(ruled, "好", "/models/news") == [ranks]
            result = ruled.post("/models/news", json={"data": {"text": "好"}}).json()["result"]
            assert (result["name"], result["confidence"]) == ([label], [score])
            body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["好"]}]}
            said = {
                item["name"]: item["data"] for item in ruled.post("/v2/models/news/infer", json=body).json()["outputs"]
            }
            assert (said["label"], said["score"]) == ([label], [score])
            assert json.loads(said["json"][0])["rules"][0]["reason"] == "known"
            given = ruled.post("/models/topics", json={"data": {"text": "好"}}).json()["result"]["name"][0]
            assert last["topics"]["label"] in given
            first = labels(ruled, "好", "/models/topics/predict")[: len(given)]
            assert {item["label"] for item in first} == set(given)
    finally:
        assert server.stop() == 0, server.output
