"""What is seen of a running gateway from outside: request ids, traces, logs, metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.tracing import begin
from tests.serving.conftest import ROOT, Server, eventually, options
from tests.serving.otlp_receiver import Receiver

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CANARY = "金丝雀不许说出去"
ASK = "/v1/models/news/predict"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def traced(bundles: Path, tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Server]:
    """A gateway and its Triton that both send their spans to the receiver, and log JSON at the deepest level."""
    server = Server(
        tmp_path_factory.mktemp("log"),
        *options(bundles, "triton"),
        *("--log-level", "debug"),
        SLIPWAY_OTLP_ENDPOINT=receiver.url,
        SLIPWAY_LOG_FORMAT="json",
        SLIPWAY_LOG_REQUESTS="true",
    ).until_ready()
    yield server
    assert server.stop() == 0, server.output


def lines_of(server: Server) -> list[dict[str, object]]:
    """Every line that the server wrote, which must each be JSON."""
    return [json.loads(line) for line in server.output.splitlines()]


@pytest.mark.slow
def test_a_callers_trace_goes_through_the_gateway_and_triton(traced: Server, receiver: Receiver) -> None:
    answer = httpx.post(
        traced.url + ASK,
        json={"inputs": ["好", "今天下雨。"]},
        headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"},
        timeout=60,
    )
    assert answer.status_code == 200
    version, trace, ours, flags = answer.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")

    def all_there() -> bool:
        names = {(span.service, span.name) for span in receiver.of(TRACE)}
        return {("slipway", "POST /v1/models/{model}/predict"), ("triton-inference-server", "news")} <= names

    eventually(all_there)
    spans = {(span.service, span.name): span for span in receiver.of(TRACE)}
    root = spans["slipway", "POST /v1/models/{model}/predict"]
    assert (root.span_id, root.parent_id) == (ours, PARENT)
    assert root.facts["slipway.texts"] == 2 and root.facts["slipway.model"] == "news"
    for stage in ("tokenize", "infer", "decode"):
        span = spans["slipway", stage]
        assert span.parent_id == ours
        assert root.began <= span.began <= span.ended <= root.ended
    call = spans["slipway", "triton ModelInfer"]
    assert call.parent_id == ours
    within = [span for span in receiver.of(TRACE) if span.service != "slipway"]
    assert call.span_id in {span.parent_id for span in within}, within
    assert not any("好".encode() in body for body in receiver.bodies)


@pytest.mark.slow
def test_what_the_caller_does_not_record_is_not_recorded(traced: Server, receiver: Receiver) -> None:
    other = TRACE[::-1]
    answer = httpx.post(
        traced.url + ASK, json={"inputs": "好"}, headers={"traceparent": f"00-{other}-{PARENT}-00"}, timeout=60
    )
    assert answer.headers["traceparent"].startswith(f"00-{other}-") and answer.headers["traceparent"].endswith("-00")
    # One that is recorded, asked later, has arrived from both: so would have the other. An exporter that cannot send in
    # time gives its spans up, so more are asked.
    recorded: list[str] = []

    def one_from_both() -> bool:
        answer = httpx.post(traced.url + ASK, json={"inputs": "好"}, timeout=60)
        recorded.append(answer.headers["traceparent"].split("-")[1])
        both = {"slipway", "triton-inference-server"}
        return any({span.service for span in receiver.of(trace)} == both for trace in recorded)

    eventually(one_from_both)
    assert not receiver.of(other)


@pytest.mark.slow
def test_each_line_of_the_log_is_json_and_names_its_request_and_no_text(traced: Server) -> None:
    with httpx.Client(base_url=traced.url, timeout=60) as client:
        good = client.post(ASK, json={"inputs": CANARY}, headers={"X-Request-Id": "mine-1"})
        client.post(ASK, json={"inputs": [CANARY + "\0"]}, headers={"X-Request-Id": "mine-2"})
        client.post(ASK, content=f'{{"inputs": "{CANARY}'.encode())
        client.post(ASK, json={"inputs": CANARY, CANARY: 1})
        client.post("/v1/models/news/predict/stream", content=f'"{CANARY}"\n{CANARY}'.encode())
        client.post("/v2/models/news/infer", json={"inputs": [{"name": CANARY}]})
    assert good.headers["x-request-id"] == "mine-1"
    eventually(lambda: sum("/v2/models" in line for line in traced.said) > 0)
    lines = lines_of(traced)
    (found,) = [line for line in lines if line.get("request_id") == "mine-1" and line["logger"] == "slipway.requests"]
    assert found["status"] == 200 and found["route"] == "/v1/models/{model}/predict"
    assert found["texts"] == 1 and found["model"] == "news" and found["ms"] > 0  # type: ignore[operator]
    assert found["trace_id"] == good.headers["traceparent"].split("-")[1]
    (refused,) = [line for line in lines if line.get("request_id") == "mine-2" and line["logger"] == "slipway.requests"]
    assert refused["status"] == 422
    assert CANARY not in traced.output and CANARY.encode("unicode_escape").decode() not in traced.output


@pytest.mark.slow
def test_texts_are_logged_where_the_settings_ask_for_them(bundles: Path, tmp_path: Path) -> None:
    server = Server(
        tmp_path, *options(bundles, "onnx"), SLIPWAY_LOG_REQUESTS="true", SLIPWAY_LOG_TEXTS="true"
    ).until_ready()
    httpx.post(server.url + ASK, json={"inputs": CANARY}, timeout=60)
    assert server.stop() == 0
    (line,) = [line for line in server.said if "/v1/models/{model}/predict" in line]
    assert CANARY in line and "status=200" in line and "request_id=" in line


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE.upper()}-{PARENT}-01",
    ],
)
def test_a_traceparent_that_cannot_be_read_begins_a_new_trace(header: str) -> None:
    call = begin("POST", "id with spaces", header, "vendor=1")

    assert call.trace_id != TRACE and len(call.trace_id) == 32 and call.parent_id == "" and call.state == ""
    assert call.request_id != "id with spaces" and len(call.request_id) == 16


def test_a_later_version_of_traceparent_is_read_as_far_as_it_is_known() -> None:
    call = begin("POST", "mine", f"cc-{TRACE}-{PARENT}-01-what-comes", "vendor=1")

    assert (call.trace_id, call.parent_id, call.flags, call.state) == (TRACE, PARENT, 1, "vendor=1")
    assert call.traceparent == f"00-{TRACE}-{call.span_id}-01" and call.request_id == "mine"


@pytest.mark.slow
def test_a_receiver_of_traces_without_the_packages_for_it_is_refused_at_the_start(bundles: Path) -> None:
    words = ["run", "--engine", "onnx", "--port", "0", "--bundles", str(bundles)]
    program = f"import sys; sys.modules['opentelemetry.sdk'] = None; sys.argv[1:] = {words!r}; "
    ended = subprocess.run(
        [sys.executable, "-c", f"{program}from serving.__main__ import app; app()"],
        env={**os.environ, "SLIPWAY_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "slipway[tracing]" in ended.stderr and "Traceback" not in ended.stderr


def test_what_was_answered_shows_in_class_counts_confidence_and_windows(http: httpx.Client) -> None:
    def counted(name: str) -> float:
        text = http.get("/metrics").text
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    names = (
        "slipway_predictions_total{",
        'slipway_confidence_count{model="news"}',
        'slipway_confidence_sum{model="news"}',
    )
    batches = 'slipway_batch_windows_sum{model="news"}'
    before = [counted(name) for name in names]
    windows = counted('slipway_request_windows_sum{model="news"}'), counted(batches)
    answer = http.post(ASK, json={"inputs": ["好" * 100, "今天下雨。"]}).json()
    after = [counted(name) for name in names]

    scores = [item["score"] for item in answer["predictions"]]
    read = sum(item["windows"] for item in answer["predictions"])
    assert [new - old for new, old in zip(after, before, strict=True)] == pytest.approx([2, 2, sum(scores)], abs=1e-4)
    label = answer["predictions"][0]["label"]
    assert f'slipway_predictions_total{{label="{label}",model="news"}}' in http.get("/metrics").text
    assert counted('slipway_request_windows_sum{model="news"}') - windows[0] == read > 2
    assert counted(batches) - windows[1] == read
    assert counted('slipway_stage_seconds_count{model="news",stage="queue"}') > 0
    assert counted('slipway_model_info{engine="onnx",format="onnx_fp32",model="news",version="1"}') == 1


def test_the_event_loops_lag_is_watched(http: httpx.Client) -> None:
    eventually(lambda: "slipway_event_loop_lag_seconds_count 0.0" not in http.get("/metrics").text)
