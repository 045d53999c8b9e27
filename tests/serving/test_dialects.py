"""The same texts through every dialect and both engines: labels, scores and entities are the native route's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.serving.conftest import ROOT, Server

pytestmark = pytest.mark.slow

TEXTS = ["大国新闻，股市增长。", "坏", "大国新闻，股市增长，他们都说好。明天王学北京到上海。" * 3, "😀我们在北京😀 ABC"]
PAIR = "你是我们的人"
MODELS = ["news", "news-int8", "topics", "pairs", "ner", "desk"]


@dataclass
class Said:
    """What an answer says; what a dialect cannot say stays None.

    Attributes:
        labels: those that are given.
        scores: of the labels that were told, or of those that are given.
        entities: type, start, end, text, score.
    """

    labels: set[str] | None = None
    scores: dict[str, float] | None = None
    entities: list[tuple[str, int, int, str, float]] | None = None


@pytest.fixture(scope="module", params=["onnx_server", "triton_server"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


def native(server: Server, model: str) -> list[Said]:
    inputs = [{"text": text, "pair": PAIR} for text in TEXTS] if model == "pairs" else TEXTS
    answer = httpx.post(f"{server.url}/v1/models/{model}/predict", json={"inputs": inputs}, timeout=60).json()
    return [of_prediction(item) for item in answer["predictions"]]


def of_prediction(item: dict[str, Any]) -> Said:
    said = Said()
    if "scores" in item:
        said.scores = {entry["label"]: entry["score"] for entry in item["scores"]}
        said.labels = {entry["label"] for entry in item["labels"]} if "labels" in item else {item["label"]}
    if "entities" in item:
        said.entities = [
            (entry["label"], entry["start"], entry["end"], entry["text"], entry["score"]) for entry in item["entities"]
        ]
    return said


def kserve_http(server: Server, model: str, binary: bool) -> list[Said]:
    tensors = {"text": TEXTS, **({"pair": [PAIR] * len(TEXTS)} if model == "pairs" else {})}
    with triton_http.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=60) as client:
        inputs = []
        for name, texts in tensors.items():
            item = triton_http.InferInput(name, [len(texts)], "BYTES")
            item.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_), binary_data=binary)
            inputs.append(item)
        outputs = [
            triton_http.InferRequestedOutput(item["name"], binary_data=binary)
            for item in client.get_model_metadata(model)["outputs"]
        ]
        return of_tensors(server, model, client.infer(model, inputs, outputs=outputs))


def kserve_grpc(server: Server, model: str) -> list[Said]:
    tensors = {"text": TEXTS, **({"pair": [PAIR] * len(TEXTS)} if model == "pairs" else {})}
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        inputs = []
        for name, texts in tensors.items():
            item = triton_grpc.InferInput(name, [len(texts)], "BYTES")
            item.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_))
            inputs.append(item)
        return of_tensors(server, model, client.infer(model, inputs))


def of_tensors(server: Server, model: str, result: Any) -> list[Said]:
    """Reads the tensors, and that the JSON beside them says the same."""
    detail = httpx.get(f"{server.url}/v1/models/{model}").json()
    names = [name for name in detail["labels"] if name not in detail["entity_types"]]
    whole = [of_prediction(json.loads(item)) for item in result.as_numpy("json")]
    if not names:
        return whole
    scores = result.as_numpy("scores")
    assert scores.shape == (len(TEXTS), len(names))
    said = []
    for row, item in enumerate(whole):
        if model == "topics":
            labels = {name for name, given in zip(names, result.as_numpy("given")[row], strict=True) if given}
        else:
            label = result.as_numpy("label")[row]  # text in JSON, bytes in binary data
            labels = {label.decode() if isinstance(label, bytes) else label}
            (label,) = labels
            assert result.as_numpy("score")[row] == scores[row][names.index(label)]
        found = Said(labels, dict(zip(names, map(float, scores[row]), strict=True)), item.entities)
        same(found, item)
        said.append(found)
    return said


def tei(server: Server, model: str) -> list[Said]:
    inputs = [[text, PAIR] if model == "pairs" else [text] for text in TEXTS]
    batch = httpx.post(f"{server.url}/models/{model}/predict", json={"inputs": inputs}, timeout=60).json()
    alone = [
        httpx.post(f"{server.url}/models/{model}/predict", json={"inputs": item}, timeout=60).json() for item in inputs
    ]
    for one, other in zip(batch, alone, strict=True):
        same(of_ranks(one), of_ranks(other))
    return [of_ranks(ranks) for ranks in batch]


def huggingface(server: Server, model: str) -> list[Said]:
    client = InferenceClient(model=f"{server.url}/models/{model}")
    if model == "ner":
        return [of_groups(client.token_classification(text)) for text in TEXTS]
    inputs: list[Any] = [{"text": text, "text_pair": PAIR} for text in TEXTS] if model == "pairs" else TEXTS
    said = [of_ranks(client.text_classification(item)) for item in inputs]
    if model == "desk":
        tagger = InferenceClient(model=f"{server.url}/models/{model}/pipeline/token-classification")
        for item, text in zip(said, TEXTS, strict=True):
            item.entities = of_groups(tagger.token_classification(text)).entities
    return said


def of_ranks(ranks: Sequence[Any]) -> Said:
    return Said(None, {item["label"]: item["score"] for item in ranks})


def of_groups(groups: Sequence[Any]) -> Said:
    return Said(None, None, [(item.entity_group, item.start, item.end, item.word, item.score) for item in groups])


def paddle(server: Server, model: str, route: str) -> list[Said]:
    data: dict[str, Any] = {"text": TEXTS}
    if model == "pairs":
        data["text_pair"] = [PAIR] * len(TEXTS)
    body = {"data": data, "parameters": {"max_seq_len": 128, "batch_size": 1}}
    answer = httpx.post(f"{server.url}/{route}/{model}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    result = answer.json()["result"]
    if model == "ner":
        return [
            Said(
                None,
                None,
                [(kind, e["start"], e["end"], e["text"], e["probability"]) for kind in row for e in row[kind]],
            )
            for row in result
        ]
    if route == "taskflow":
        assert [row["text"] for row in result] == TEXTS
        told = [{item["label"]: item["score"] for item in row["predictions"]} for row in result]
        return [Said(set(row), row) for row in told]
    names = httpx.get(f"{server.url}/v1/models/{model}").json()["labels"]
    rows = zip(result["label"], result["confidence"], result["name"], strict=True)
    said = []
    for ids, scores, own in rows if model == "topics" else ([[item] for item in row] for row in rows):
        assert [names[index] for index in ids] == own
        said.append(Said(set(own), dict(zip(own, scores, strict=True))))
    return said


def same(found: Said, wanted: Said) -> None:
    """What was found says is what is wanted; scores up to the last digits of a float32."""
    if found.labels is not None:
        assert found.labels == wanted.labels
    if found.scores is not None:
        assert wanted.scores
        assert found.scores == pytest.approx({label: wanted.scores[label] for label in found.scores}, abs=2e-5)
    if found.entities is not None:
        assert wanted.entities is not None
        # By place, since one of the dialects sorts them by type.
        left, right = sorted(found.entities, key=lambda item: item[1]), wanted.entities
        assert [item[:4] for item in left] == [item[:4] for item in right]
        assert [item[4] for item in left] == pytest.approx([item[4] for item in right], abs=2e-5)


# The dialects, and for each the models that it has a form for.
DIALECTS: dict[str, tuple[Callable[[Server, str], list[Said]], list[str]]] = {
    "native": (native, MODELS),
    "kserve, binary": (lambda server, model: kserve_http(server, model, True), MODELS),
    "kserve, JSON": (lambda server, model: kserve_http(server, model, False), MODELS),
    "kserve, gRPC": (kserve_grpc, MODELS),
    "text-embeddings-inference": (tei, ["news", "news-int8", "topics", "pairs", "desk"]),
    "huggingface_hub": (huggingface, MODELS),
    "PaddleNLP models": (lambda server, model: paddle(server, model, "models"), MODELS[:-1]),
    "PaddleNLP taskflow": (lambda server, model: paddle(server, model, "taskflow"), MODELS[:-1]),
}


@pytest.mark.parametrize("model", MODELS)
def test_every_dialect_and_engine_says_the_same(server: Server, onnx_server: Server, model: str) -> None:
    wanted = native(onnx_server, model)

    assert len({str(item) for item in wanted}) == len(TEXTS)
    for name, (ask, models) in DIALECTS.items():
        if model in models:
            found = ask(server, model)
            assert len(found) == len(TEXTS), name
            for left, right in zip(found, wanted, strict=True):
                same(left, right)
                assert (left.labels, left.scores, left.entities) != (None, None, None), name


@pytest.mark.parametrize("model", ["ner", "desk"])
def test_a_dialect_without_a_form_for_an_answer_says_so_and_where_it_is(server: Server, model: str) -> None:
    client = InferenceClient(model=f"{server.url}/models/news")
    with pytest.raises(HfHubHTTPError, match="no form for the answers of 'news'") as refused:
        client.token_classification("好", model=f"{server.url}/models/news/pipeline/token-classification")
    assert refused.value.response.json()["error_type"] == "Backend"

    if model == "ner":
        answer = httpx.post(f"{server.url}/models/ner/predict", json={"inputs": "好"})
        assert (answer.status_code, answer.json()["error_type"]) == (424, "Backend")
        assert "POST /models/ner" in answer.json()["error"]
        answer = httpx.post(f"{server.url}/models/ner/pipeline/text-classification", json={"inputs": "好"})
        assert answer.status_code == 424 and "no form for the answers of 'ner'" in answer.json()["error"]
    else:
        for route in ("models", "taskflow"):
            answer = httpx.post(f"{server.url}/{route}/desk", json={"data": {"text": ["好"]}})
            assert answer.status_code == 422 and list(answer.json()) == ["detail"]
            assert "POST /v1/models/desk/predict" in answer.json()["detail"]


def test_the_documented_dialects_answer_as_documented(onnx_server: Server) -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"```json POST (\S+)\n(.*?)```\n```json (\d+) [\w ]+\n(.*?)```", text, re.S)

    assert {path.split("/")[1] for path, *_ in documented} == {"v2", "models", "taskflow"}
    for path, asked, status, shown in documented:
        found = httpx.post(onnx_server.url + path, json=json.loads(asked))
        assert found.status_code == int(status), f"{path}: {found.text}"
        # A refusal is shown word for word, an answer in its form.
        assert alike(json.loads(shown), found.json()) if status == "200" else json.loads(shown) == found.json(), path


def alike(shown: Any, found: Any) -> bool:
    """Whether two answers have the same fields and types; of lists, whether the first items do."""
    if isinstance(shown, dict) and isinstance(found, dict):
        return list(shown) == list(found) and all(alike(shown[key], found[key]) for key in shown)
    if isinstance(shown, list) and isinstance(found, list):
        return bool(found) and alike(shown[0], found[0])
    return type(shown) is type(found)
