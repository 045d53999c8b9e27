"""The Open Inference Protocol as tritonclient and a raw caller see it, over HTTP and gRPC."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as services
from tritonclient.utils import InferenceServerException

from tests.serving.conftest import Server, eventually, free_port, options

pytestmark = pytest.mark.slow

LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/news/infer"


@pytest.fixture(scope="module")
def over_http(onnx_server: Server) -> Iterator[triton_http.InferenceServerClient]:
    with triton_http.InferenceServerClient(onnx_server.url.removeprefix("http://"), network_timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def over_grpc(onnx_server: Server) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(onnx_server.grpc) as client:
        yield client


def tensor(module: Any, *texts: str, name: str = "text", shape: list[int] | None = None) -> Any:
    item = module.InferInput(name, shape or [len(texts)], "BYTES")
    values = np.array([text.encode() for text in texts], dtype=np.object_)
    item.set_data_from_numpy(values.reshape(shape or [len(texts)]))
    return item


def text(*texts: str, **more: object) -> dict[str, Any]:
    return {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts), **more}


def refused(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    assert "Traceback" not in response.text and ".py" not in response.text
    sentence: str = response.json()["error"]
    return sentence


def test_server_and_model_metadata_and_readiness_over_http(over_http: triton_http.InferenceServerClient) -> None:
    assert over_http.is_server_live() and over_http.is_server_ready()
    assert over_http.is_model_ready("news") and over_http.is_model_ready("news", "1")
    assert not over_http.is_model_ready("news", "2") and not over_http.is_model_ready("nix")
    assert over_http.get_server_metadata() == {
        "name": "slipway",
        "version": "1",
        "extensions": ["binary_tensor_data", "classification"],
    }
    found = over_http.get_model_metadata("pairs", "1")
    assert (found["name"], found["versions"], found["platform"]) == ("pairs", ["1"], "slipway_onnx_fp32")
    assert found["inputs"] == [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in ("text", "pair")]
    assert [(item["name"], item["datatype"], item["shape"]) for item in found["outputs"]] == [
        ("label", "BYTES", [-1]),
        ("score", "FP32", [-1]),
        ("scores", "FP32", [-1, 2]),
        ("json", "BYTES", [-1]),
    ]
    assert [item["name"] for item in over_http.get_model_metadata("topics")["outputs"]] == ["given", "scores", "json"]
    assert [item["name"] for item in over_http.get_model_metadata("ner")["outputs"]] == ["json"]


def test_server_and_model_metadata_and_readiness_over_grpc(
    over_http: triton_http.InferenceServerClient, over_grpc: triton_grpc.InferenceServerClient
) -> None:
    assert over_grpc.is_server_live() and over_grpc.is_server_ready()
    assert over_grpc.is_model_ready("news") and over_grpc.is_model_ready("news", "1")
    assert not over_grpc.is_model_ready("news", "2") and not over_grpc.is_model_ready("nix")
    assert over_grpc.get_server_metadata(as_json=True) == over_http.get_server_metadata()
    for model in ("news", "pairs", "topics", "ner", "desk"):
        found = over_grpc.get_model_metadata(model, as_json=True)
        for item in (*found["inputs"], *found["outputs"]):
            item["shape"] = [int(number) for number in item["shape"]]
        assert found == over_http.get_model_metadata(model)


def test_a_request_id_comes_back_and_only_what_is_asked_for(
    over_http: triton_http.InferenceServerClient, over_grpc: triton_grpc.InferenceServerClient
) -> None:
    for client, module in ((over_http, triton_http), (over_grpc, triton_grpc)):
        wanted = [module.InferRequestedOutput("label"), module.InferRequestedOutput("scores", class_count=2)]
        result = client.infer(
            "news", [tensor(module, "好", "坏")], outputs=wanted, request_id="mine", model_version="1"
        )
        answer = result.get_response() if module is triton_http else result.get_response(as_json=True)
        assert answer["id"] == "mine"
        assert [item["name"] for item in answer["outputs"]] == ["label", "scores"]
        best = [[entry.decode().split(":") for entry in row] for row in result.as_numpy("scores")]
        assert [row[0][2] for row in best] == [label.decode() for label in result.as_numpy("label")]
        assert all(len(row) == 2 and float(row[0][0]) >= float(row[1][0]) for row in best)
        assert result.as_numpy("score") is None


def test_options_travel_as_parameters(
    over_http: triton_http.InferenceServerClient, over_grpc: triton_grpc.InferenceServerClient
) -> None:
    for client, module in ((over_http, triton_http), (over_grpc, triton_grpc)):
        result = client.infer(
            "news", [tensor(module, "大国新闻" * 200)], parameters={"truncate": True, "top_k": 1, "anything": "else"}
        )
        said = json.loads(result.as_numpy("json")[0])
        assert said["truncated"] is True and len(said["scores"]) == 1
        with pytest.raises(InferenceServerException, match=r"parameters\.offset_unit"):
            client.infer("news", [tensor(module, "好")], parameters={"offset_unit": "line"})


def test_texts_in_a_column_are_texts_too(over_http: triton_http.InferenceServerClient, http: httpx.Client) -> None:
    result = over_http.infer("news", [tensor(triton_http, "好", "坏", shape=[2, 1])])
    assert result.as_numpy("label").shape == (2,)
    body = {"inputs": [text("好", "坏", shape=[2, 1], data=[["好"], ["坏"]])]}
    assert http.post(INFER, json=body).json()["outputs"][0]["shape"] == [2]


def test_binary_data_in_and_json_out_and_both_mixed(http: httpx.Client) -> None:
    packed = b"".join(len(item).to_bytes(4, "little") + item for item in ("好".encode(), "坏".encode()))
    head = {
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(packed)}}
        ],
        "outputs": [{"name": "score", "parameters": {"binary_data": True}}, {"name": "label"}],
    }
    body = json.dumps(head).encode()
    answer = http.post(INFER, content=body + packed, headers={LENGTH: str(len(body))})

    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers[LENGTH])
    score, label = json.loads(answer.content[:length])["outputs"]
    assert score == {"name": "score", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
    assert label["data"] == http.post(INFER, json={"inputs": [text("好", "坏")]}).json()["outputs"][0]["data"]
    plain = http.post(INFER, json={"inputs": [text("好", "坏")], "outputs": [{"name": "score"}]})
    assert LENGTH not in plain.headers
    numbers = np.frombuffer(answer.content[length:], "<f4")
    assert plain.json()["outputs"][0]["data"] == pytest.approx(numbers.tolist(), abs=1e-6)


CLASSES_OF_LABEL = {"name": "label", "parameters": {"classification": 1}}
BINARY = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7}}


@pytest.mark.parametrize(("model", "body", "status", "words"), [
    ("news", {}, 400, "inputs: field required"),
    ("news", {"inputs": []}, 400, "inputs"),
    ("news", {"inputs": [text("好", datatype="INT64")]}, 400, "texts are BYTES"),
    ("news", {"inputs": [text("好", shape=[2])]}, 400, "has 1 elements; its shape [2] says 2"),
    ("news", {"inputs": [text("好", shape=[])]}, 400, "must be [texts] or [texts, 1]"),
    ("news", {"inputs": [text("好", shape=[-1])]}, 400, "must be [texts] or [texts, 1]"),
    ("news", {"inputs": [text("好", data=[3])]}, 400, "is no text"),
    ("news", {"inputs": [text("好", data=None)]}, 400, "either data or binary_data_size"),
    ("news", {"inputs": [text("好", name="txt")]}, 400, "it has 'text'"),
    ("news", {"inputs": [text("好"), text("坏")]}, 400, "comes twice"),
    ("news", {"inputs": [text("好"), text("坏", name="pair")]}, 400, "no input 'pair'"),
    ("news", {"inputs": [BINARY]}, 400, "says 7 bytes of binary data, and 0 are left"),
    ("news", {"inputs": [text("好")], "outputs": [{"name": "entities"}]}, 400, "no output 'entities'"),
    ("news", {"inputs": [text("好")], "outputs": [CLASSES_OF_LABEL]}, 400, "only 'scores'"),
    ("news", {"inputs": [text("好")], "parameters": {"top_k": 0}}, 400, "parameters.top_k"),
    ("news", {"inputs": [text("好", " ")]}, 400, "row[1].text is empty"),
    ("news", {"inputs": [text("大" * 1000)]}, 413, "row[0].text has 1000 tokens"),
    ("news", {"inputs": [text(*["好"] * 17)]}, 413, "text has 17 texts; the limit is 16"),
    ("pairs", {"inputs": [text("好")]}, 400, "reads the input 'pair', which is missing"),
    ("pairs", {"inputs": [text("好", "坏"), text("好", name="pair")]}, 400, "they need as many"),
    ("pairs", {"inputs": [text("好"), text(" ", name="pair")]}, 400, "row[0].pair is empty"),
    ("nix", {"inputs": [text("好")]}, 404, "there is no model 'nix'"),
    ("news/versions/2", {"inputs": [text("好")]}, 404, "no version 2 of 'news'; served here: 1"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_the_protocols_shape(
    http: httpx.Client, model: str, body: object, status: int, words: str
) -> None:
    assert words in refused(http.post(f"/v2/models/{model}/infer", json=body), status)


@pytest.mark.parametrize(("content", "headers", "words"), [
    (b"{", {}, "not JSON"),
    (b"", {}, "not JSON"),
    (b'{"inputs": ' + b"[" * 50_000, {}, "not JSON"),
    (b"{}", {LENGTH: "3"}, "the body has 2 bytes"),
    (b"{}", {LENGTH: "-1"}, "the body has 2 bytes"),
    (b"{}", {LENGTH: "9" * 5000}, "the body has 2 bytes"),
    (b"{}", {LENGTH: "0" * 5000}, "the body has 2 bytes"),
    (b"{}", {"Content-Encoding": "gzip"}, "send it uncompressed"),
    (json.dumps({"inputs": [BINARY]}).encode() + b"\x09\0\0\0abc", None, "ends in the middle of element 0"),
    (json.dumps({"inputs": [BINARY]}).encode() + b"\x03\0\0\0\xff\xff\xff", None, "row[0].text is not UTF-8"),
    (json.dumps({"inputs": [text("好")]}).encode() + b"abc", None, "3 bytes of binary data are no input's"),
])  # fmt: skip
def test_broken_bodies_and_binary_data_are_refused(
    http: httpx.Client, content: bytes, headers: dict[str, str] | None, words: str
) -> None:
    if headers is None:
        headers = {LENGTH: str(content.rindex(b"}") + 1)}
    assert words in refused(http.post(INFER, content=content, headers=headers), 400)
    assert http.post(INFER, json={"inputs": [text("好")]}).status_code == 200


def test_routes_and_bodies_that_are_refused_before_any_route_have_the_shape_too(http: httpx.Client) -> None:
    refused(http.post("/v2/repository/index"), 404)
    refused(http.get(INFER), 405)
    refused(http.post(INFER, content=b" " * (5 << 20)), 413)
    refused(http.get("/v2/models/nix"), 404)


@pytest.mark.parametrize(("model", "version", "texts", "code", "words"), [
    ("nix", "", ["好"], "NOT_FOUND", "there is no model 'nix'"),
    ("news", "2", ["好"], "NOT_FOUND", "there is no version 2 of 'news'"),
    ("news", "", [" "], "INVALID_ARGUMENT", "row[0].text is empty"),
    ("news", "", ["大" * 1000], "INVALID_ARGUMENT", "the limit is 8"),
    ("news", "", ["好"] * 17, "INVALID_ARGUMENT", "text has 17 texts; the limit is 16"),
    ("pairs", "", ["好"], "INVALID_ARGUMENT", "'pair', which is missing"),
])  # fmt: skip
def test_what_is_wrong_has_a_grpc_status(
    over_grpc: triton_grpc.InferenceServerClient, model: str, version: str, texts: list[str], code: str, words: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        over_grpc.infer(model, [tensor(triton_grpc, *texts)], model_version=version)
    assert str(refused.value.status()) == f"StatusCode.{code}"
    assert words in refused.value.message()


def test_calls_that_a_classifier_has_not_and_messages_too_large_have_a_grpc_status(onnx_server: Server) -> None:
    with grpc.insecure_channel(onnx_server.grpc) as channel:
        stub = services.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelStatistics(messages.ModelStatisticsRequest(name="news"))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        request = messages.ModelInferRequest(model_name="news", raw_input_contents=[b" " * (5 << 20)])
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_texts_may_also_lie_in_the_message_itself_and_its_id_comes_back(
    onnx_server: Server, http: httpx.Client
) -> None:
    item = messages.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1])
    item.contents.bytes_contents.append("好".encode())
    with grpc.insecure_channel(onnx_server.grpc) as channel:
        infer = services.GRPCInferenceServiceStub(channel).ModelInfer
        request = messages.ModelInferRequest(model_name="news", id="7", inputs=[item])
        answer, call = infer.with_call(request, metadata=(("x-request-id", "mine-1"),))
        raw = messages.ModelInferRequest(model_name="news", inputs=[item], raw_input_contents=[b"", b""])
        with pytest.raises(grpc.RpcError, match="1 inputs and 2 raw contents"):
            infer(raw)
    assert answer.id == "7"
    assert dict(call.trailing_metadata())["x-request-id"] == "mine-1"
    counted = http.get("/metrics").text
    assert 'slipway_requests_total{route="grpc ModelInfer",status="OK"}' in counted
    assert 'slipway_requests_total{route="grpc ModelInfer",status="INVALID_ARGUMENT"}' in counted


def test_no_answer_in_time_has_a_status_over_both(bundles: Path, tmp_path: Path) -> None:
    server = Server(
        tmp_path,
        *options(bundles, "onnx"),
        SLIPWAY_TIMEOUT_SECONDS="0.000001",
        SLIPWAY_GRPC_PORT=str(free_port()),
    ).until_ready()
    try:
        refused(httpx.post(server.url + INFER, json={"inputs": [text("好")]}), 504)
        with triton_grpc.InferenceServerClient(server.grpc) as client, pytest.raises(InferenceServerException) as late:
            client.infer("news", [tensor(triton_grpc, "好")])
        assert str(late.value.status()) == "StatusCode.DEADLINE_EXCEEDED"
    finally:
        assert server.stop() == 0


def test_a_dead_engine_is_unavailable_over_both_until_it_is_back(bundles: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, *options(bundles, "triton"), SLIPWAY_GRPC_PORT=str(free_port())).until_ready()
    try:
        with triton_grpc.InferenceServerClient(server.grpc) as client:
            os.kill(server.triton_pid, signal.SIGKILL)
            # A call that is let in before the death is seen is carried over it, so none is sent before.
            eventually(lambda: not client.is_server_ready())
            with pytest.raises(InferenceServerException) as gone:
                client.infer("news", [tensor(triton_grpc, "好")])
            assert str(gone.value.status()) == "StatusCode.UNAVAILABLE"
            eventually(lambda: client.is_server_ready())
            client.infer("news", [tensor(triton_grpc, "好")])
    finally:
        assert server.stop() == 0, server.output


def test_a_call_in_flight_is_finished_before_the_gateway_stops(bundles: Path, tmp_path: Path) -> None:
    # Many windows one at a time, so that the call is still under way when the signal comes.
    server = Server(
        tmp_path,
        *options(bundles, "onnx"),
        SLIPWAY_BATCH_TOKENS="1",
        SLIPWAY_PARALLEL_CALLS="1",
        SLIPWAY_GRPC_PORT=str(free_port()),
    ).until_ready()
    answers: list[Any] = []

    def ask() -> None:
        with triton_grpc.InferenceServerClient(server.grpc) as client:
            answers.append(client.infer("ner", [tensor(triton_grpc, *["大国新闻" * 40] * 60)]))

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: "slipway_requests_in_flight 2.0" in httpx.get(server.url + "/metrics").text)

    assert server.stop() == 0, server.output
    thread.join()
    assert answers[0].as_numpy("json").shape == (60,)


def test_a_taken_port_is_told_before_anything_starts(bundles: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server(tmp_path, *options(bundles, "onnx"), SLIPWAY_GRPC_PORT=str(port))
        assert server.process.wait(timeout=60) == 1
        server.stop()
    assert f"cannot take gRPC calls on 127.0.0.1:{port}" in server.output
    assert "Traceback" not in server.output
