"""What the doctor says of good and of broken deployments."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.doctor import Finding, look_over, prove, report
from serving.doctor_running import look_over_running
from serving.settings import Settings
from tests.serving.conftest import ROOT, Server, free_port


def settings_of(bundles: Path, **more: object) -> Settings:
    given: dict[str, object] = {"bundles": bundles, "engine": "onnx", "port": 0, "log_folder": bundles, **more}
    return Settings(**given)  # type: ignore[arg-type]


@pytest.fixture
def one(bundles: Path, tmp_path: Path) -> Path:
    """A folder with one bundle, to be broken."""
    shutil.copytree(bundles / "news", tmp_path / "artifacts" / "news")
    return tmp_path / "artifacts"


def bad(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {item.about: item for item in findings if item.level == "bad"}


def told(findings: Iterator[Finding], about: str) -> Finding:
    (found,) = [item for item in findings if item.about == about and item.level != "good"]
    return found


def test_a_good_deployment_has_nothing_bad_and_exit_status_0(bundles: Path) -> None:
    words = ["--engine", "onnx", "--bundles", str(bundles)]
    ended = subprocess.run(
        [sys.executable, "-m", "serving", "doctor", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "BAD" not in ended.stdout and ended.stdout.endswith("nothing is wrong\n")
    assert "golden rows agree" in ended.stdout and "bundle news: version 1" in ended.stdout


def test_a_bundle_whose_graph_was_changed_is_bad_and_exit_status_1(one: Path) -> None:
    graph = one / "news" / "bundle" / "onnx_fp32" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")
    words = ["--engine", "onnx", "--bundles", str(one)]
    ended = subprocess.run(
        [sys.executable, "-m", "serving", "doctor", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 1
    assert "BAD  bundles" in ended.stdout and "model.onnx" in ended.stdout and "→" in ended.stdout


def test_a_folder_without_bundles_is_bad(tmp_path: Path) -> None:
    assert "make finetune export" in bad(look_over(settings_of(tmp_path)))["bundles"].said


def test_a_clock_before_the_making_of_the_bundle_is_bad(one: Path) -> None:
    manifest = one / "news" / "bundle" / "bundle.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("2026-01-01T", "2126-01-01T"), encoding="utf-8")

    assert "2126-01-01" in bad(look_over(settings_of(one)))["clock"].said


def test_fewer_open_files_than_connections_are_bad(one: Path) -> None:
    finding = bad(look_over(settings_of(one, max_connections=10_000_000)))["open files"]

    assert "ulimit -n" in finding.mend


def test_a_file_of_keys_that_others_may_read_is_bad(one: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "a"\nsha256 = "{hashlib.sha256(b"x").hexdigest()}"\n', encoding="utf-8")
    keys.chmod(0o644)
    assert "chmod 640" in bad(look_over(settings_of(one, keys_file=str(keys))))["keys"].mend
    keys.chmod(0o600)
    assert "keys" not in bad(look_over(settings_of(one, keys_file=str(keys))))
    keys.write_text("[[keys]]\n", encoding="utf-8")
    assert "new-key" in bad(look_over(settings_of(one, keys_file=str(keys))))["keys"].mend


def test_an_open_address_without_keys_is_worth_a_note(one: Path) -> None:
    assert "0.0.0.0" in told(look_over(settings_of(one, host="0.0.0.0")), "keys").said


def test_a_port_that_is_taken_is_worth_a_note(one: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        finding = told(look_over(settings_of(one, port=taken.getsockname()[1])), "port")

    assert "cannot be taken" in finding.said


def test_a_receiver_of_traces_that_is_away_is_worth_a_note(one: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    assert endpoint in told(look_over(settings_of(one, otlp_endpoint=endpoint)), "traces").said


def test_a_triton_that_does_not_answer_is_bad(one: Path) -> None:
    url = f"127.0.0.1:{free_port()}"
    (finding,) = asyncio.run(prove(settings_of(one, engine="triton", triton_url=url, start_seconds=0.2)))

    assert finding.level == "bad" and url in finding.mend


def test_a_graph_that_computes_otherwise_is_bad(bundles: Path, one: Path) -> None:
    golden = one / "news" / "bundle" / "golden.jsonl"
    manifest = golden.with_name("bundle.json")
    before = hashlib.sha256(golden.read_bytes()).hexdigest()
    # Another model's logits: what a wrong runtime, or a swapped file, would look like.
    rows = [json.loads(line) for line in golden.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["logits"] = [[value + 1 for value in window] for window in row["logits"]]
    golden.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    after = hashlib.sha256(golden.read_bytes()).hexdigest()
    assert before != after
    manifest.write_text(manifest.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
    (finding,) = asyncio.run(prove(settings_of(one)))

    assert finding.level == "bad" and "logits" in finding.said


def test_a_gateway_that_runs_is_looked_over_from_outside(onnx_server: Server) -> None:
    findings = list(look_over_running(onnx_server.url))

    assert report(findings, lambda line: None)
    abouts = {item.about for item in findings}
    assert {"gateway", "clock", "model news", "golden rows of news", "answers of pairs", "open files"} <= abouts


def test_a_gateway_that_is_away_is_bad() -> None:
    (finding,) = look_over_running(f"http://127.0.0.1:{free_port()}")

    assert finding.level == "bad" and "make serve" in finding.mend
