"""Triton dies, hangs or computes something else; the gateway lives, and nothing that was let in is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.serving.conftest import Server, eventually
from tests.serving.tiny_bundle import make_bundle

pytestmark = pytest.mark.slow

PREDICT = "/v1/models/news/predict"
BODY = {"inputs": ["大国新闻，股市增长。" * 8, "他说你好！" * 30, "明天大跌"]}


@pytest.fixture(scope="module")
def server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway whose Triton the tests end in all ways; each leaves it ready again."""
    folder = tmp_path_factory.mktemp("recovery")
    shutil.copytree(bundles.parent / "model_repository", folder / "model_repository")
    server = Server(
        folder,
        *("--engine", "triton", "--bundles", str(bundles), "--model-repository", str(folder / "model_repository")),
        # Longer than a busy machine makes a server that lives wait.
        SLIPWAY_HANG_SECONDS="5",
        # However long a restart takes on a busy machine.
        SLIPWAY_RECOVER_SECONDS="100",
        SLIPWAY_TIMEOUT_SECONDS="100",
        SLIPWAY_MAX_TIMEOUT_SECONDS="100",
    ).until_ready()
    yield server
    assert server.stop() == 0, server.output
    assert "Traceback" not in server.output, server.output


class Asked:
    """Requests that are under way; ``answers`` has what came of them once `join` returned."""

    def __init__(self, server: Server, count: int, besides: int = 0) -> None:
        self.answers: list[httpx.Response] = []
        self._url = server.url
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self._threads:
            thread.start()
        # One is the look at the metrics itself.
        flying = count + besides + 1
        eventually(lambda: f"slipway_requests_in_flight {flying}.0" in httpx.get(self._url + "/metrics").text)

    def _ask(self) -> None:
        self.answers.append(httpx.post(self._url + PREDICT, json=BODY, timeout=120))

    def join(self) -> list[httpx.Response]:
        for thread in self._threads:
            thread.join()
        return self.answers


def ready(server: Server) -> httpx.Response:
    return httpx.get(server.url + "/health/ready", timeout=30)


def ask(server: Server) -> httpx.Response:
    return httpx.post(server.url + PREDICT, json=BODY, timeout=120)


def predictions(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def test_a_killed_triton_comes_back_and_what_was_under_way_is_answered_as_before(server: Server) -> None:
    before, killed = predictions(ask(server)), server.triton_pid
    dead, lines = threading.Event(), [json.dumps(text).encode() + b"\n" for text in BODY["inputs"]]

    def stream() -> Iterator[bytes]:
        yield lines[0]
        dead.wait()
        yield from lines[1:]

    def read() -> None:
        answer = httpx.post(server.url + PREDICT + "/stream", content=stream(), timeout=120)
        streamed.extend(json.loads(line) for line in answer.text.splitlines())

    streamed: list[dict[str, Any]] = []
    streaming = threading.Thread(target=read)
    streaming.start()
    eventually(lambda: "slipway_requests_in_flight 2.0" in httpx.get(server.url + "/metrics").text)
    # Stopped first, so that the requests are surely under way when it dies.
    psutil.Process(killed).suspend()
    under_way = Asked(server, 3, besides=1)
    os.kill(killed, signal.SIGKILL)

    refused: list[httpx.Response] = []
    eventually(lambda: refused.append(ask(server)) or refused[-1].status_code == 503)
    assert int(refused[-1].headers["retry-after"]) >= 1
    assert refused[-1].headers["content-type"] == "application/problem+json"
    assert "Triton" in refused[-1].json()["detail"]
    assert ready(server).status_code == 503
    dead.set()

    assert [predictions(answer) for answer in under_way.join()] == [before] * 3
    streaming.join()
    assert [line["prediction"] for line in streamed] == before
    eventually(lambda: ready(server).status_code == 200)
    assert server.triton_pid != killed
    assert predictions(ask(server)) == before


def test_a_triton_that_hangs_is_told_refused_and_started_anew(server: Server) -> None:
    before, hung = predictions(ask(server)), server.triton_pid
    psutil.Process(hung).suspend()
    under_way = Asked(server, 1)

    away = ready(server)
    assert away.status_code == 503 and "Triton" in away.text
    assert httpx.get(server.url + "/health/live").status_code == 200
    assert 'slipway_engine_up{engine="triton",model="news"} 0.0' in httpx.get(server.url + "/metrics").text
    assert ask(server).status_code == 503

    eventually(lambda: server.triton_pid != hung)
    assert [predictions(answer) for answer in under_way.join()] == [before]
    eventually(lambda: ready(server).status_code == 200)


def test_killed_stubs_cost_no_request(server: Server) -> None:
    before, triton = predictions(ask(server)), server.triton_pid
    stubs = [child for child in psutil.Process(triton).children() if "stub" in child.name()]
    assert len(stubs) == 6
    for stub in stubs:
        stub.kill()

    assert predictions(ask(server)) == before
    assert server.triton_pid == triton


def test_a_triton_that_comes_back_with_other_weights_is_not_let_in(
    server: Server, bundles: Path, tmp_path: Path
) -> None:
    before = predictions(ask(server))
    graph = next(path for path in Path(server.folder).glob("model_repository/news/1/model.onnx"))
    right, other = graph.read_bytes(), make_bundle(tmp_path / "other", "other", "single-label", seed=1)
    graph.unlink()  # it may be hard-linked to the bundle's own
    graph.write_bytes(other.path("onnx_fp32/model.onnx").read_bytes())
    os.kill(server.triton_pid, signal.SIGKILL)

    eventually(lambda: "does not compute what the bundle promises" in ready(server).text)
    assert ready(server).json()["models"]["ner"] == "ready"
    assert ask(server).status_code == 503
    assert httpx.post(server.url + "/v1/models/ner/predict", json={"inputs": "好"}, timeout=120).status_code == 200

    graph.write_bytes(right)
    os.kill(server.triton_pid, signal.SIGKILL)
    eventually(lambda: ready(server).status_code == 200)
    assert predictions(ask(server)) == before


def grpc_of(server: Server) -> str:
    return [line for line in server.output.splitlines() if "gRPC on" in line][-1].rpartition(" ")[2]


def test_of_two_tritons_elsewhere_one_may_die_without_a_refusal_and_is_let_in_again(
    server: Server, triton_server: Server, bundles: Path, tmp_path: Path
) -> None:
    urls = [grpc_of(server), grpc_of(triton_server)]
    second = Server(tmp_path, "--engine", "triton", "--bundles", str(bundles), TRITON_URL=",".join(urls)).until_ready()
    answers: list[httpx.Response] = []
    done = threading.Event()

    def traffic() -> None:
        while not done.is_set():
            answers.append(ask(second))

    def said(url: str, state: str) -> int:
        return second.output.count(f"{url} is {state}")

    threads = [threading.Thread(target=traffic) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: all(said(url, "up") for url in urls))
        os.kill(server.triton_pid, signal.SIGKILL)
        eventually(lambda: said(urls[0], "out"))
        eventually(lambda: said(urls[0], "up") == 2 or grpc_of(server) != urls[0])
        seen = len(answers)
        eventually(lambda: len(answers) > seen + 10)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    before = predictions(ask(triton_server))
    assert all(predictions(answer) == before for answer in answers)

    assert second.stop() == 0
    assert psutil.pid_exists(server.triton_pid) and psutil.pid_exists(triton_server.triton_pid)
    eventually(lambda: ready(server).status_code == 200)
