"""Triton dies, the gateway lives; the gateway dies, Triton does not outlive it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serving.conftest import Server, eventually, options

pytestmark = pytest.mark.slow

PREDICT = "/v1/models/news/predict"


@pytest.fixture
def server(bundles: Path, tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, *options(bundles, "triton")).until_ready()
    yield server
    server.stop()


def test_a_killed_triton_gives_503_and_comes_back_by_itself(server: Server) -> None:
    answers: list[httpx.Response] = []
    done = threading.Event()

    def traffic() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not done.is_set():
                answers.append(client.post(PREDICT, json={"inputs": "大国新闻，股市增长。" * 8}))

    threads = [threading.Thread(target=traffic) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(answers) > 20)
        for _ in range(2):
            killed = server.triton_pid
            os.kill(killed, signal.SIGKILL)
            seen = len(answers)
            eventually(lambda seen=seen: any(answer.status_code == 503 for answer in answers[seen:]))
            eventually(lambda: httpx.get(server.url + "/health/ready").status_code == 200)
            eventually(lambda killed=killed: server.triton_pid != killed)
            back = len(answers)
            eventually(lambda back=back: len(answers) > back + 10)
    finally:
        done.set()
        for thread in threads:
            thread.join()

    assert {answer.status_code for answer in answers} == {200, 503}
    assert answers[-1].status_code == 200
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["content-type"] == "application/problem+json"
            assert "Triton" in answer.json()["detail"]
    assert server.stop() == 0, server.output


def test_health_and_metrics_tell_that_triton_is_away(server: Server) -> None:
    # Stopped rather than killed, so that it stays away while the test looks.
    triton = psutil.Process(server.triton_pid)
    triton.suspend()
    try:
        ready = httpx.get(server.url + "/health/ready", timeout=30)
        assert ready.status_code == 503
        assert "Triton" in ready.text or "engine" in ready.text
        assert httpx.get(server.url + "/health/live").status_code == 200
        assert 'slipway_engine_up{engine="triton",model="news"} 0.0' in httpx.get(server.url + "/metrics").text
    finally:
        triton.resume()
    eventually(lambda: httpx.get(server.url + "/health/ready", timeout=30).status_code == 200)


def test_a_stub_that_is_killed_comes_back(server: Server) -> None:
    stubs = [child for child in psutil.Process(server.triton_pid).children() if "stub" in child.name()]
    assert len(stubs) == 6
    for stub in stubs:
        stub.kill()

    def answered() -> bool:
        status = httpx.post(server.url + PREDICT, json={"inputs": "好"}, timeout=60).status_code
        assert status in (200, 503)
        return status == 200

    eventually(answered)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_gateway_stops_triton_and_exits_with_0(server: Server, number: int) -> None:
    pids = [server.triton_pid, *(child.pid for child in psutil.Process(server.triton_pid).children())]

    assert server.stop(number) == 0
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert not list(Path("/dev/shm").glob(f"slipway-{server.process.pid}-*"))
    assert server.output.rstrip().endswith("stopped")


def test_a_request_in_flight_is_finished_before_the_gateway_stops(bundles: Path, tmp_path: Path) -> None:
    # Many windows one at a time, so that the request is still under way when the signal comes.
    server = Server(
        tmp_path, *options(bundles, "onnx"), SLIPWAY_BATCH_TOKENS="1", SLIPWAY_PARALLEL_CALLS="1"
    ).until_ready()
    answers: list[httpx.Response] = []
    body = {"inputs": ["大国新闻" * 40] * 60}
    thread = threading.Thread(
        target=lambda: answers.append(httpx.post(server.url + "/v1/models/ner/predict", json=body, timeout=60))
    )
    thread.start()
    eventually(lambda: "slipway_requests_in_flight 2.0" in httpx.get(server.url + "/metrics").text)

    assert server.stop() == 0
    thread.join()
    assert answers[0].status_code == 200
    assert len(answers[0].json()["predictions"]) == 60


def test_triton_does_not_outlive_a_killed_gateway(server: Server) -> None:
    pids = [server.triton_pid, *(child.pid for child in psutil.Process(server.triton_pid).children())]
    server.process.kill()

    def gone() -> bool:
        return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)

    eventually(gone)


def test_a_triton_elsewhere_is_used_and_left_running(server: Server, bundles: Path, tmp_path: Path) -> None:
    found = [line for line in server.output.splitlines() if "gRPC on" in line]
    url = found[-1].rpartition(" ")[2]
    second = Server(tmp_path, "--engine", "triton", "--bundles", str(bundles), TRITON_URL=url).until_ready()

    body = {"inputs": "大国新闻"}
    mine = httpx.post(second.url + PREDICT, json=body).json()["predictions"]
    assert mine == httpx.post(server.url + PREDICT, json=body).json()["predictions"]
    assert second.stop() == 0
    assert psutil.pid_exists(server.triton_pid)
    assert httpx.post(server.url + PREDICT, json=body).status_code == 200
