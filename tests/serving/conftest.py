"""Running servers for the tests of this room: `python -m serving` over real sockets, on tiny bundles."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from export.to_triton import write_repository
from tests.serving.tiny_bundle import make_bundle

ROOT = Path(__file__).parents[2]


class Server:
    """A gateway in a process of its own.

    Args:
        folder: for logs.
        options: of ``python -m serving run``.
        environment: settings as SLIPWAY_… variables.
    """

    def __init__(
        self, folder: Path, *options: str, python: str = sys.executable, cwd: Path = ROOT, **environment: str
    ) -> None:
        self.folder = folder
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLIPWAY_", "TRITON_"))}
        inherited.pop("PYTHONPATH", None)
        self.process = subprocess.Popen(
            [python, "-m", "serving", "run", "--port", "0", *options],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **inherited,
                "PYTHONUNBUFFERED": "1",
                "SLIPWAY_LOG_FOLDER": str(folder),
                "SLIPWAY_DRAIN_SECONDS": "0",
                **environment,
            },
        )
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = ""
        # host:port of the gRPC side, where one was asked for.
        self.grpc = ""

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.append(line)
            self._lines.put(line)
        self._lines.put(None)

    @property
    def output(self) -> str:
        return "".join(self.said)

    def until_ready(self) -> Server:
        """Waits for the line with the address."""
        while (line := self._lines.get(timeout=120)) is not None:
            if found := re.match(r"gRPC .* on (\S+)", line):
                self.grpc = found[1]
            if found := re.search(r"serving on (http://\S+);", line):
                self.url = found[1]
                return self
        raise AssertionError(f"the server did not start:\n{self.output}")

    @property
    def triton_pid(self) -> int:
        found = re.findall(r"Triton started, process (\d+)", self.output)
        return int(found[-1])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        assert self.process.stdout
        self.process.stdout.close()
        return status


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def eventually(condition, seconds: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    """Waits until a condition holds; fails the test when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `make export` leaves it: a bundle of each task, and a Triton repository beside it."""
    root = tmp_path_factory.mktemp("serving")
    places = {
        name: root / "artifacts" / name / "bundle" for name in ("news", "news-int8", "ner", "pairs", "topics", "desk")
    }
    for bundle in (
        make_bundle(places["news"], "news", "single-label"),
        make_bundle(places["news-int8"], "news-int8", "single-label", precision="int8"),
        make_bundle(places["ner"], "ner", "token-classification"),
        make_bundle(places["pairs"], "pairs", "text-pair"),
        # These weights give some texts no label, some one, some several.
        make_bundle(places["topics"], "topics", "multi-label", seed=2),
        make_bundle(places["desk"], "desk", "multi-task"),
    ):
        write_repository(bundle, root / "model_repository", response_cache=bundle.name == "topics")
    return root / "artifacts"


def options(bundles: Path, engine: str) -> list[str]:
    return [
        "--engine",
        engine,
        "--bundles",
        str(bundles),
        "--model-repository",
        str(bundles.parent / "model_repository"),
    ]


@pytest.fixture(scope="session")
def onnx_server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(
        tmp_path_factory.mktemp("log"),
        *options(bundles, "onnx"),
        SLIPWAY_MAX_TEXTS="16",
        SLIPWAY_DEFAULT_MODEL="news",
        SLIPWAY_GRPC_PORT=str(free_port()),
    ).until_ready()
    yield server
    assert server.stop() == 0, server.output
    assert "Traceback" not in server.output, server.output


@pytest.fixture(scope="session")
def triton_server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(
        tmp_path_factory.mktemp("log"),
        *options(bundles, "triton"),
        SLIPWAY_DEFAULT_MODEL="news",
        SLIPWAY_TRITON_CACHE_MIB="8",
        SLIPWAY_GRPC_PORT=str(free_port()),
    ).until_ready()
    yield server
    assert server.stop() == 0, server.output


@pytest.fixture
def http(onnx_server: Server) -> Iterator[httpx.Client]:
    """A client of the server with the ONNX engine."""
    with httpx.Client(base_url=onnx_server.url, timeout=60) as client:
        yield client
