"""README's ways to ask the service, each run as it stands but for the address."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.conftest import ROOT, Server

pytestmark = pytest.mark.slow

CLIENTS = ROOT / "clients" / "python"


def snippet(language: str, mark: str, file: Path = ROOT / "README.md") -> str:
    """The one code block of a language that holds a mark."""
    blocks = re.findall(rf"```{language}\n(.*?)```", file.read_text(encoding="utf-8"), re.S)
    (found,) = [block for block in blocks if mark in block]
    text: str = found
    return text


def run(command: list[str], text: str, server: Server) -> str:
    """Runs a program with a snippet on its standard input."""
    assert "http://127.0.0.1:8000" in text
    text = text.replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(CLIENTS)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_of_the_readme_runs(onnx_server: Server) -> None:
    first, *lines = run([sys.executable, "-"], snippet("python", "slipway_client"), onnx_server).splitlines()
    assert re.fullmatch(r"(负面|中性|正面) 0\.\d+", first)
    assert [line[:13] for line in lines] == ["0 Prediction(", "1 Prediction("]


def test_the_python_of_the_clients_own_readme_runs(onnx_server: Server) -> None:
    text = snippet("python", "slipway_client", CLIENTS / "README.md")
    said = run([sys.executable, "-"], text, onnx_server).splitlines()
    assert said[0].startswith("Prediction(") and len(said) == 3


def test_the_curl_of_the_readme_is_a_request_that_is_answered(onnx_server: Server) -> None:
    said = run(["sh"], snippet("sh", '"top_k": 1}'), onnx_server)
    assert len(json.loads(said)["predictions"][0]["scores"]) == 1


# Where there is no node, its snippet cannot be run; nothing else needs it.
if NODE := shutil.which("node"):

    def test_the_javascript_of_the_readme_runs(onnx_server: Server) -> None:
        assert NODE
        said = run([NODE, "--input-type=module", "-"], snippet("js", "fetch"), onnx_server).splitlines()
        assert said
        assert all(re.fullmatch(r"(PER|LOC) \S+", line) for line in said)
