"""Every error of the table, as a caller sees it, and that the server stays up."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving.conftest import Server, eventually, options

pytestmark = pytest.mark.slow

PREDICT = "/v1/models/news/predict"


def problem(response: httpx.Response, status: int, kind: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["type"] == f"urn:slipway:problem:{kind}"
    assert body["status"] == status
    assert body["instance"].endswith(response.headers["x-request-id"])
    assert "Traceback" not in response.text and ".py" not in response.text
    return body


@pytest.fixture(autouse=True)
def alive(http: httpx.Client) -> Iterator[None]:
    """Whatever was sent, the server answers the next request."""
    yield
    assert http.post(PREDICT, json={"inputs": "好"}).status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"{'inputs': 1}", b'{"inputs": "a"', b'{"inputs": ' + b"[" * 50_000]
)
def test_what_is_not_json_is_400(http: httpx.Client, body: bytes) -> None:
    found = problem(http.post(PREDICT, content=body), 400, "malformed-request")
    assert found["field"] == "body"


def test_a_lone_surrogate_is_refused(http: httpx.Client) -> None:
    problem(http.post(PREDICT, content=b'{"inputs": "a\\ud800b"}'), 400, "malformed-request")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "inputs"),
        (3, "body"),
        ({"inputs": 3}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": ["a", 3]}, "inputs[1]"),
        ({"inputs": [["a"]]}, "inputs[0]"),
        ({"inputs": [{"txt": "a"}]}, "inputs[0].text"),
        ({"inputs": [{"text": "a", "more": 1}]}, "inputs[0].more"),
        ({"inputs": "a", "top_k": 0}, "top_k"),
        ({"inputs": "a", "top_k": "3"}, "top_k"),
        ({"inputs": "a", "truncate": "yes"}, "truncate"),
        ({"inputs": "a", "topk": 3}, "topk"),
        ({"inputs": [{"text": "a", "pair": "b"}]}, "inputs[0].pair"),
    ],
)
def test_a_wrong_field_is_named(http: httpx.Client, body: object, field: str) -> None:
    assert problem(http.post(PREDICT, json=body), 422, "invalid-request")["field"] == field


def test_a_pair_model_asks_for_pairs(http: httpx.Client) -> None:
    url = "/v1/models/pairs/predict"
    assert problem(http.post(url, json={"inputs": "a"}), 422, "invalid-request")["field"] == "inputs"
    found = problem(http.post(url, json={"inputs": [{"text": "a"}]}), 422, "invalid-request")
    assert found["field"] == "inputs[0].pair"


@pytest.mark.parametrize("text", ["", "   ", "\n\t\u3000", "\u0000\u0007", "\u200b\u200e"])
def test_a_text_with_nothing_in_it_is_refused(http: httpx.Client, text: str) -> None:
    found = problem(http.post(PREDICT, json={"inputs": ["好", text]}), 422, "invalid-text")
    assert found["field"] == "inputs[1]"


@pytest.mark.parametrize(("text", "pair", "side"), [("好", " ", "pair"), ("\n", "好", "text"), ("", "", "text")])
def test_the_empty_side_of_a_pair_is_named(http: httpx.Client, text: str, pair: str, side: str) -> None:
    body = {"inputs": [{"text": "好", "pair": "好"}, {"text": text, "pair": pair}]}
    found = problem(http.post("/v1/models/pairs/predict", json=body), 422, "invalid-text")
    assert found["field"] == f"inputs[1].{side}"


@pytest.mark.parametrize(
    ("model", "inputs", "field"),
    [
        ("news", "a\0b", "inputs"),
        ("news", ["好", "\0"], "inputs[1]"),
        ("topics", [{"text": "好\0"}], "inputs[0].text"),
        ("pairs", [{"text": "好\0", "pair": "好"}], "inputs[0].text"),
        ("pairs", [{"text": "好", "pair": "好\0"}], "inputs[0].pair"),
    ],
)
def test_the_character_nul_is_refused_as_in_training(
    http: httpx.Client, model: str, inputs: object, field: str
) -> None:
    found = problem(http.post(f"/v1/models/{model}/predict", json={"inputs": inputs}), 422, "invalid-text")
    assert found["field"] == field
    assert "NUL" in found["detail"]


def test_too_many_texts_tell_the_limit(http: httpx.Client) -> None:
    found = problem(http.post(PREDICT, json={"inputs": ["好"] * 17}), 413, "limit-exceeded")
    assert (found["field"], found["limit"], found["value"]) == ("inputs", 16, 17)


def test_too_long_a_text_tells_the_numbers(http: httpx.Client) -> None:
    found = problem(http.post(PREDICT, json={"inputs": ["好", "大" * 1000]}), 413, "text-too-long")
    assert (found["field"], found["limit"]) == ("inputs[1]", 8)
    assert found["value"] > 8
    assert "truncate" in found["detail"]


def test_a_megabyte_of_one_character_is_answered_or_refused(http: httpx.Client) -> None:
    problem(http.post(PREDICT, json={"inputs": "大" * 1_000_000}), 413, "text-too-long")
    body = json.dumps({"inputs": "大" * 1_000_000, "truncate": True}, ensure_ascii=False).encode()
    assert http.post(PREDICT, content=body).json()["predictions"][0]["truncated"] is True
    # One word without an end is one unknown token, as BERT tokenizers have it.
    assert http.post(PREDICT, json={"inputs": "a" * 1_000_000}).status_code == 200
    problem(http.post(PREDICT, json={"inputs": " " * 1_000_000}), 422, "invalid-text")


def test_other_requests_are_answered_while_a_megabyte_is_tokenized(onnx_server: Server, http: httpx.Client) -> None:
    done: list[int] = []
    body = json.dumps({"inputs": "大" * 1_000_000}, ensure_ascii=False).encode()
    thread = threading.Thread(
        target=lambda: done.append(httpx.post(onnx_server.url + PREDICT, content=body, timeout=60).status_code)
    )
    thread.start()
    meanwhile = 0
    while thread.is_alive():
        assert http.post(PREDICT, json={"inputs": "好"}).status_code == 200
        meanwhile += not done
    assert done == [413]
    # One that holds the interpreter lets a request or two pass, before and after.
    assert meanwhile > 20


def test_a_body_too_large_is_refused(http: httpx.Client) -> None:
    found = problem(http.post(PREDICT, content=b" " * (5 << 20)), 413, "limit-exceeded")
    assert (found["field"], found["limit"], found["value"]) == ("body", 4 << 20, 5 << 20)


def test_a_body_too_large_is_refused_without_an_announced_length(http: httpx.Client) -> None:
    found = problem(http.post(PREDICT, content=(b" " * 65536 for _ in range(80))), 413, "limit-exceeded")
    assert found["limit"] == 4 << 20


def test_an_announced_length_is_enough_to_refuse(onnx_server: Server) -> None:
    host, port = onnx_server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(b"POST /v1/models/news/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert raw.recv(64).startswith(b"HTTP/1.1 413")


def test_a_body_that_never_comes_harms_nobody(onnx_server: Server, http: httpx.Client) -> None:
    host, port = onnx_server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(b"POST /v1/models/news/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert http.post(PREDICT, json={"inputs": "好"}).status_code == 200


def test_a_caller_who_hangs_up_is_no_fault_of_the_server(onnx_server: Server, http: httpx.Client) -> None:
    host, port = onnx_server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(b"POST /v1/models/news/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        eventually(lambda: "slipway_requests_in_flight 2.0" in http.get("/metrics").text)
    eventually(lambda: 'predict",status="499"' in http.get("/metrics").text)
    assert "Traceback" not in onnx_server.output


def test_an_unknown_model_is_404_and_tells_the_known_ones(http: httpx.Client) -> None:
    for response in (http.post("/v1/models/nix/predict", json={"inputs": "a"}), http.get("/v1/models/nix")):
        assert "news" in problem(response, 404, "model-unknown")["detail"]


def test_an_unknown_route_and_a_wrong_method_are_problems_too(http: httpx.Client) -> None:
    problem(http.get("/nix"), 404, "no-such-route")
    response = http.get(PREDICT)
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


def test_no_answer_in_time_is_504(bundles: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, *options(bundles, "onnx"), SLIPWAY_TIMEOUT_SECONDS="0.000001").until_ready()
    try:
        problem(httpx.post(server.url + PREDICT, json={"inputs": "好"}), 504, "engine-timeout")
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize(("query", "field", "words"), [
    ("ordered=maybe", "ordered", "valid boolean"),
    ("top_k=0", "top_k", "greater than or equal to 1"),
    ("offset_unit=line", "offset_unit", "'codepoint', 'utf16' or 'byte'"),
])  # fmt: skip
def test_a_wrong_query_parameter_is_a_problem_that_names_it(
    http: httpx.Client, query: str, field: str, words: str
) -> None:
    found = problem(http.post(f"{PREDICT}/stream?{query}", content=b'"a"'), 422, "invalid-request")
    assert found["field"] == field and words in found["detail"]
    assert found.get("limit") == (1 if field == "top_k" else None)
