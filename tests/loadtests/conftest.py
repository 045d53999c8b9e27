"""A stand-in for the gateway in a process of its own, and files of texts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

STAND_IN = Path(__file__).with_name("stand_in.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def stand_in(*options: str) -> Iterator[str]:
    """Runs a stand-in; yields its address."""
    port = free_port()
    process = subprocess.Popen([sys.executable, str(STAND_IN), "--port", str(port), *options])
    host = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert process.poll() is None, "the stand-in died"
            try:
                httpx.get(f"{host}/health/ready", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield host
    finally:
        # Not asked to end in peace: one that stands still would not.
        process.kill()
        process.wait()


@pytest.fixture
def start_gateway() -> Iterator[Callable[..., str]]:
    """Starts stand-ins with faults; returns the address of each."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(stand_in(*options))


@pytest.fixture(scope="session")
def shared_gateway() -> Iterator[str]:
    """One stand-in for all tests that do not break it."""
    with stand_in() as host:
        yield host


@pytest.fixture
def write_texts(tmp_path: Path) -> Callable[..., Path]:
    """Writes a JSONL file of texts."""

    def write(*texts: str, pair: str | None = None, name: str = "texts.jsonl") -> Path:
        file = tmp_path / name
        rows = [{"text": text, "label": "a"} | ({"pair": pair} if pair else {}) for text in texts]
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return file

    return write


@pytest.fixture
def articles(write_texts: Callable[..., Path]) -> Path:
    """Ten articles of many sentences."""
    return write_texts(
        *("".join(f"这是第{n}篇文章的第{k}个句子，讲的是股票和市场。" for k in range(20 + n)) for n in range(10))
    )
