"""A gateway that is told to stop: what it finishes, what it ends, and that nothing of it stays behind."""

from __future__ import annotations

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


def processes_of(server: Server) -> list[int]:
    return [server.triton_pid, *(child.pid for child in psutil.Process(server.triton_pid).children())]


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_gateway_stops_triton_and_exits_with_0(server: Server, number: int) -> None:
    pids = processes_of(server)

    assert server.stop(number) == 0
    eventually(lambda: gone(pids))
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
    pids = processes_of(server)
    server.process.kill()

    eventually(lambda: gone(pids))


def test_after_sigterm_it_is_not_ready_at_once_and_serves_on_for_the_time_of_grace(
    bundles: Path, tmp_path: Path
) -> None:
    server = Server(tmp_path, *options(bundles, "onnx"), SLIPWAY_DRAIN_SECONDS="600").until_ready()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.post(PREDICT, json={"inputs": "好"}).headers.get("connection") != "close"
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: client.get("/health/ready").status_code == 503)
        assert client.get("/health/live").status_code == 200
        answer = client.post(PREDICT, json={"inputs": "好"})
        assert answer.status_code == 200
        # So that a caller who keeps connections goes elsewhere before the port is closed.
        assert answer.headers["connection"] == "close"

    # The second signal does not wait for the rest of the ten minutes.
    assert server.stop() == 1
    assert server.output.rstrip().endswith("what was under way is lost")


def test_a_second_signal_ends_at_once_even_with_a_triton_that_hangs(server: Server) -> None:
    pids, answers = processes_of(server), []
    psutil.Process(server.triton_pid).suspend()

    def ask() -> None:
        answers.append(httpx.post(server.url + PREDICT, json={"inputs": "好"}, timeout=600))

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: "slipway_requests_in_flight 2.0" in httpx.get(server.url + "/metrics").text)
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: "stopping: requests in flight" in server.output)
    assert server.process.poll() is None

    assert server.stop() == 1, server.output
    thread.join()
    assert answers[0].status_code == 503 and answers[0].json()["detail"] == "the server is stopping"
    eventually(lambda: gone(pids))
    assert not list(Path("/dev/shm").glob(f"slipway-{server.process.pid}-*"))
