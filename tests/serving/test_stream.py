"""The NDJSON route: in order or as soon as ready, without holding back, in bounded memory; no bad line ends it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from loadtests.__main__ import app as bulk
from tests.serving.conftest import Server, eventually
from tests.serving.test_predict import LONG, TEXTS, ask, same

pytestmark = pytest.mark.slow

# Takes a second to tokenize, of which only the first windows are read.
LONG_LINE = "大" * 150_000


class Stream:
    """A caller that writes and reads at its own pace, over a raw socket with chunked bodies."""

    def __init__(self, server: Server, model: str, query: str = "") -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.socket.sendall(
            f"POST /v1/models/{model}/predict/stream{query} HTTP/1.1\r\nHost: x\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        self._file = self.socket.makefile("rb")

    def send(self, *lines: object) -> None:
        self.send_raw("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())

    def send_raw(self, body: bytes) -> None:
        self.socket.sendall(f"{len(body):x}\r\n".encode() + body + b"\r\n")

    def end(self) -> None:
        self.socket.sendall(b"0\r\n\r\n")

    def head(self) -> str:
        lines = []
        while (line := self._file.readline().strip()) != b"":
            lines.append(line.decode())
        return "\n".join(lines)

    def answers(self) -> Iterator[dict]:
        """Every line of the answer: one chunk each."""
        while size := int(self._file.readline().strip(), 16):
            yield json.loads(self._file.read(size))
            self._file.readline()
        self._file.readline()

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@pytest.fixture(params=["onnx", "triton"])
def server(request: pytest.FixtureRequest, onnx_server: Server, triton_server: Server) -> Server:
    return onnx_server if request.param == "onnx" else triton_server


@pytest.mark.parametrize("model", ["news", "ner", "news-int8", "topics", "desk"])
def test_lines_are_answered_in_order_as_single_requests_are(server: Server, model: str) -> None:
    texts = TEXTS * 12
    body = "\n".join(json.dumps(text) for text in texts)
    response = httpx.post(f"{server.url}/v1/models/{model}/predict/stream", content=body, timeout=60)
    assert response.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [line["index"] for line in lines] == list(range(len(texts)))
    alone = [ask(server, model, inputs=text)["predictions"][0] for text in TEXTS]
    assert same([line["prediction"] for line in lines], alone * 12)


def test_an_answer_does_not_wait_for_the_next_line(server: Server) -> None:
    stream = Stream(server, "ner", "?offset_unit=utf16&return_windows=true")
    stream.send({"text": "😀王学在北京。", "id": "a"})
    assert "200 OK" in stream.head()
    answers = stream.answers()
    first = next(answers)  # nothing more was sent, and the body has not ended
    assert (first["index"], first["id"]) == (0, "a")
    assert first["prediction"]["window_list"][0]["end"] == 8
    stream.send("大国新闻")
    stream.end()
    assert [line["index"] for line in answers] == [1]
    stream.close()


def test_a_bad_line_is_a_problem_in_its_place_and_the_stream_goes_on(server: Server) -> None:
    bad = [
        *(b"{", b'{"text": 3}', b'{"text": "a", "more": 1}', b'""', b'{"text": "a", "pair": "b"}', b"[1]"),
        b'"a\\u0000b"',
    ]
    body = b"\r\n\n".join([b'"\xe5\xa5\xbd"', *bad, json.dumps(LONG * 50).encode(), b'"\xe5\xa5\xbd"'])
    response = httpx.post(f"{server.url}/v1/models/news/predict/stream", content=body, timeout=60)
    lines = [json.loads(line) for line in response.text.splitlines()]
    kinds = [line["error"]["type"].rpartition(":")[2] if "error" in line else "" for line in lines]
    assert kinds == [
        *("", "malformed-request", "invalid-request", "invalid-request", "invalid-text", "invalid-request"),
        *("invalid-request", "invalid-text", "text-too-long", ""),
    ]
    fields = [line["error"]["field"] for line in lines[1:8]]
    assert fields == ["line", "text", "more", "line.text", "line.pair", "line", "line.text"]
    assert lines[1]["error"]["detail"].startswith("the line is not JSON")
    assert lines[0]["prediction"] == {**lines[-1]["prediction"]}


def test_options_are_those_of_a_single_request(server: Server) -> None:
    body = json.dumps(LONG * 20)
    response = httpx.post(f"{server.url}/v1/models/news/predict/stream?truncate=true&top_k=1", content=body, timeout=60)
    prediction = response.json()["prediction"]
    assert prediction["truncated"] is True and len(prediction["scores"]) == 1


def test_pairs_go_through_too(server: Server) -> None:
    pair = {"text": "今天", "pair": "大跌"}
    response = httpx.post(f"{server.url}/v1/models/pairs/predict/stream", content=json.dumps(pair), timeout=60)
    assert same(response.json()["prediction"], ask(server, "pairs", inputs=[pair])["predictions"][0])


@pytest.mark.parametrize(
    ("side", "body"), [("text", {"text": "", "pair": "b"}), ("pair", {"text": "a", "pair": "b\0"})]
)
def test_the_side_of_a_pair_that_is_wrong_is_named(server: Server, side: str, body: dict) -> None:
    response = httpx.post(f"{server.url}/v1/models/pairs/predict/stream", content=json.dumps(body), timeout=60)
    assert response.json()["error"]["field"] == f"line.{side}"


def test_a_short_line_before_a_long_one_is_not_held_back_by_it(server: Server) -> None:
    stream = Stream(server, "news", "?truncate=true")
    begun = time.perf_counter()
    stream.send("好", LONG_LINE)  # in one piece, so that both are there when the first is looked at
    stream.end()
    assert "200 OK" in stream.head()
    after = [time.perf_counter() - begun for _ in stream.answers()]
    assert len(after) == 2 and after[0] < after[1] / 2
    stream.close()


def test_without_order_the_lines_after_a_long_one_do_not_wait_for_it(server: Server) -> None:
    lines = [LONG_LINE, *({"text": "好", "id": number} for number in range(30)), {"txt": "?"}]
    body = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode()
    url = f"{server.url}/v1/models/news/predict/stream?truncate=true&ordered="
    unordered, ordered = (
        [json.loads(line) for line in httpx.post(url + word, content=body, timeout=60).text.splitlines()]
        for word in ("false", "true")
    )
    assert [line["index"] for line in ordered] == list(range(32))
    assert unordered[-1]["index"] == 0 and "error" in next(line for line in unordered if line["index"] == 31)
    assert sorted(line["index"] for line in unordered) == list(range(32))
    assert all(line["index"] == line["id"] + 1 for line in unordered if "id" in line)
    assert same(unordered[-1]["prediction"], ordered[0]["prediction"])


def test_a_stream_without_order_is_as_long_as_one_likes(onnx_server: Server) -> None:
    body = b'"\xe5\xa5\xbd"\n' * 2000
    url = f"{onnx_server.url}/v1/models/news/predict/stream?ordered=false&top_k=1"
    lines = [json.loads(line) for line in httpx.post(url, content=body, timeout=60).text.splitlines()]
    assert sorted(line["index"] for line in lines) == list(range(2000))


def test_a_line_above_the_limit_is_refused_alone(server: Server) -> None:
    big = b'"' + b"x" * (5 << 20) + b'"'
    response = httpx.post(
        f"{server.url}/v1/models/news/predict/stream", content=big + b'\n"\xe5\xa5\xbd"\n', timeout=60
    )
    first, second = (json.loads(line) for line in response.text.splitlines())
    assert first["error"]["type"].endswith("limit-exceeded") and first["error"]["limit"] == 4 << 20
    assert "prediction" in second


def test_an_unknown_model_is_refused_before_anything_is_read(server: Server) -> None:
    response = httpx.post(f"{server.url}/v1/models/nix/predict/stream", content=b'"a"', timeout=60)
    assert response.status_code == 404


def test_a_caller_who_does_not_read_slows_the_sending(onnx_server: Server) -> None:
    stream = Stream(onnx_server, "news", "?return_windows=true")
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    stream.socket.settimeout(3)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 100_000:  # without back-pressure all of it would be taken in
            stream.send(*[LONG] * 50)
            sent += 50
    stream.socket.settimeout(60)
    assert sent < 100_000
    assert httpx.post(f"{onnx_server.url}/v1/models/news/predict", json={"inputs": "好"}).status_code == 200
    stream.close()
    metrics = f"{onnx_server.url}/metrics"
    eventually(lambda: "slipway_requests_in_flight 1.0" in httpx.get(metrics).text)
    assert "Traceback" not in onnx_server.output


def test_a_stream_as_long_as_one_likes_is_read_while_it_is_written(onnx_server: Server) -> None:
    stream, count = Stream(onnx_server, "news", "?top_k=1"), 3000
    writer = threading.Thread(
        target=lambda: [*(stream.send(*["大国新闻，股市增长。"] * 100) for _ in range(count // 100)), stream.end()]
    )
    writer.start()
    assert "200 OK" in stream.head()
    assert [line["index"] for line in stream.answers()] == list(range(count))
    writer.join()
    stream.close()


def test_the_bulk_command_sends_lines_and_novels_and_watches_the_memory(onnx_server: Server, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in (LONG, "大国新闻，股市增长。坏。")))
    common = ["--host", onnx_server.url, "--model", "news", "--texts", str(texts)]
    out = tmp_path / "figures.json"

    told = CliRunner().invoke(bulk, ["bulk", *common, "--lines", "700", "--publish", str(out)])
    assert told.exit_code == 0, told.output
    figures = json.loads(out.read_text())
    assert (figures["answered"], figures["covered_whole"], figures["errors"]) == (700, 700, {})
    assert figures["gateway_mib"]["highest"] >= figures["gateway_mib"]["before"] > 1
    assert "700 of 700 lines" in told.output

    told = CliRunner().invoke(bulk, ["bulk", *common, "--characters", "20000"])
    assert "1 of 1 lines" in told.output and "text-too-long" in told.output

    told = CliRunner().invoke(bulk, ["bulk", *common[:2], "--model", "nix"])
    assert told.exit_code == 2 and "it serves" in told.output
