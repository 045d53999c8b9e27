"""PaddleNLP's SimpleServer, as the clients of one see it who migrate."""

from __future__ import annotations

import httpx
import pytest

pytestmark = pytest.mark.slow

PARAMETERS = {"max_seq_len": 128, "batch_size": 4}


def result(http: httpx.Client, path: str, text: object, **data: object) -> object:
    response = http.post(path, json={"data": {"text": text, **data}, "parameters": PARAMETERS})
    assert response.status_code == 200, response.text
    assert list(response.json()) == ["result"]
    return response.json()["result"]


def test_a_model_answers_ids_and_confidences(http: httpx.Client) -> None:
    both = result(http, "/models/news", ["大国新闻", "坏"])
    assert isinstance(both, dict) and list(both) == ["label", "confidence", "name"]
    names = http.get("/v1/models/news").json()["labels"]
    assert both["name"] == [names[index] for index in both["label"]]
    one = result(http, "/models/news", "坏")
    assert one == {key: values[1:] for key, values in both.items()}


def test_a_model_of_several_labels_answers_lists(http: httpx.Client) -> None:
    texts = ["大国新闻，股市增长。", "坏", "我们在北京", "他们都说好"]
    found = result(http, "/models/topics", texts)
    native = http.post("/v1/models/topics/predict", json={"inputs": texts}).json()["predictions"]
    assert isinstance(found, dict)
    assert [set(row) for row in found["name"]] == [{item["label"] for item in said["labels"]} for said in native]
    assert [len(row) for row in found["label"]] == [len(row) for row in found["confidence"]]
    assert found["label"] == [sorted(row) for row in found["label"]]


def test_a_taskflow_answers_labels_by_name_with_the_text(http: httpx.Client) -> None:
    (one,) = result(http, "/taskflow/news", "坏")  # type: ignore[misc]
    assert list(one) == ["predictions", "text"] and one["text"] == "坏"
    assert [list(item) for item in one["predictions"]] == [["label", "score"]]
    (pair,) = result(http, "/taskflow/pairs", ["怎么学"], text_pair=["如何学"])  # type: ignore[misc]
    assert (pair["text"], pair["text_pair"]) == ("怎么学", "如何学")


@pytest.mark.parametrize("path", ["/models/ner", "/taskflow/ner"])
def test_entities_come_by_type(http: httpx.Client, path: str) -> None:
    text = "王学在北京，他们到上海去。" * 5
    (found,) = result(http, path, text)  # type: ignore[misc]
    assert found and set(found) <= {"PER", "LOC"}
    for entities in found.values():
        assert all(text[item["start"] : item["end"]] == item["text"] for item in entities)
        assert all(list(item) == ["text", "start", "end", "probability"] for item in entities)


@pytest.mark.parametrize(("path", "body", "status", "words"), [
    ("/models/news", {"data": {}}, 422, "data.text: field required"),
    ("/models/news", {"data": "a"}, 422, "data"),
    ("/models/news", {"data": {"text": []}}, 422, "data.text is an empty list"),
    ("/models/news", {"data": {"text": [3]}}, 422, "data.text"),
    ("/models/news", {"data": {"text": "a", "text_pair": "b"}}, 422, "leave out data.text_pair"),
    ("/models/news", {"data": {"text": ["a", " "]}}, 422, "data.text[1] is empty"),
    ("/models/news", {"data": {"text": "大" * 1000}}, 413, "the limit is 8"),
    ("/models/news", {"data": {"text": ["a"] * 17}}, 413, "data.text has 17 texts; the limit is 16"),
    ("/models/news", {"data": {"text": "a"}, "inputs": "a"}, 422, "inputs: is not a known field"),
    ("/models/news", {"data": {"text": "a"}, "parameters": {"prob_limit": 0.5}}, 422, "known are max_seq_len"),
    ("/models/pairs", {"data": {"text": "a"}}, 422, "data.text_pair needs as many as data.text (1)"),
    ("/models/pairs", {"data": {"text": ["a"], "text_pair": ["a", "b"]}}, 422, "needs as many"),
    ("/models/pairs", {"data": {"text": "a", "text_pair": " "}}, 422, "data[0].pair is empty"),
    ("/models/nix", {"data": {"text": "a"}}, 404, "there is no model 'nix'"),
    ("/taskflow/nix", {"data": {"text": "a"}}, 404, "there is no model 'nix'"),
    ("/taskflow/news", {"inputs": "a"}, 422, "data: field required"),
])  # fmt: skip
def test_what_is_wrong_is_told_as_detail(http: httpx.Client, path: str, body: object, status: int, words: str) -> None:
    response = http.post(path, json=body)
    assert response.status_code == status, response.text
    assert list(response.json()) == ["detail"]
    assert words in response.json()["detail"]


def test_a_longer_text_is_cut_where_the_caller_says_so(http: httpx.Client) -> None:
    body = {"data": {"text": "大国" * 1000}, "parameters": {"truncate": True}}
    assert http.post("/models/news", json=body).status_code == 200
