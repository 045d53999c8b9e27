"""Triton's response cache: used where a model was exported with it and the server started with it, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tests.serving.conftest import Server

pytestmark = pytest.mark.slow


def hits(server: Server, model: str) -> float:
    """Calls of a model that Triton answered from its cache, by its own metrics."""
    command = Path(f"/proc/{server.triton_pid}/cmdline").read_bytes().decode().split("\0")
    (port,) = [part.partition("=")[2] for part in command if part.startswith("--metrics-port=")]
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    found = re.findall(rf'^nv_cache_num_hits_per_model{{model="{model}",version="\d+"}} (\S+)', metrics, re.MULTILINE)
    return sum(map(float, found))


def test_equal_calls_of_a_model_with_a_cache_are_computed_once(triton_server: Server) -> None:
    def ask(model: str) -> object:
        body = {"inputs": "响应缓存只回答完全一样的问题。"}
        return httpx.post(f"{triton_server.url}/v1/models/{model}/predict", json=body).json()["predictions"]

    for model, expected in (("topics", 1), ("news", 0)):
        before = hits(triton_server, model)
        assert ask(model) == ask(model)
        assert hits(triton_server, model) - before == expected
