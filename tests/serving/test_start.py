"""What refuses a start, and what it says."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from bundle.errors import BundleError
from export.to_triton import write_repository
from serving import catalogue
from serving.settings import Settings
from tests.serving.conftest import ROOT, Server, free_port, options
from tests.serving.tiny_bundle import make_bundle, rebind


def refusal(tmp_path: Path, *options: str, **environment: str) -> str:
    """Starts a server that must not start; returns what it says."""
    server = Server(tmp_path, *options, **environment)
    status = server.process.wait(timeout=60)
    server.stop()
    assert status == 1, server.output
    assert "Traceback" not in server.output
    return next(line for line in server.output.splitlines() if line.startswith("error: "))


def test_nothing_to_serve_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="make finetune export"):
        catalogue.load(tmp_path)


def test_a_bundle_that_was_not_exported_is_skipped_and_alone_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path / "raw" / "bundle", "raw", "single-label", published=False)
    with pytest.raises(BundleError, match="make export"):
        catalogue.load(tmp_path)

    make_bundle(tmp_path / "done", "done", "single-label")
    skipped: list[str] = []
    assert set(catalogue.load(tmp_path, skipped.append)) == {"done"}
    assert "raw" in skipped[0] and "make export" in skipped[0]


def test_two_bundles_of_one_name_are_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path / "a" / "bundle", "twin", "single-label")
    make_bundle(tmp_path / "b" / "bundle", "twin", "single-label")
    with pytest.raises(BundleError, match="same name"):
        catalogue.load(tmp_path)


def test_a_tokenizer_that_gives_other_ids_than_recorded_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "a" / "bundle", "a", "single-label")
    golden = bundle.path("golden.jsonl")
    golden.write_text(
        golden.read_text(encoding="utf-8").replace('"ids": [[2, ', '"ids": [[2, 9, ', 1), encoding="utf-8"
    )
    bundle.save(bundle.manifest.model_copy(update={"golden": bundle.refer("golden.jsonl")}))
    with pytest.raises(BundleError, match="golden row 0"):
        catalogue.load(tmp_path)


@pytest.mark.slow
def test_a_corrupt_graph_refuses_the_start_with_its_name(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "news" / "bundle", "news", "single-label")
    graph = bundle.path("onnx_fp32/model.onnx")
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)

    said = refusal(tmp_path, "--engine", "onnx", "--bundles", str(tmp_path))
    assert "model.onnx" in said and "sha256" in said


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnx", "triton"])
def test_a_graph_that_computes_something_else_refuses_the_start_and_says_both_sides(
    tmp_path: Path, engine: str
) -> None:
    bundle = make_bundle(tmp_path / "artifacts" / "news" / "bundle", "news", "single-label")
    other = make_bundle(tmp_path / "other", "other", "single-label", seed=1)
    bundle = rebind(bundle, other.path("onnx_fp32/model.onnx"))
    write_repository(bundle, tmp_path / "model_repository")

    said = refusal(tmp_path, *options(tmp_path / "artifacts", engine))
    assert "news/onnx_fp32" in said and "golden rows do not match" in said
    assert f"{engine} engine" in said and "the bundle allows 0.0001" in said


@pytest.mark.slow
def test_a_repository_older_than_the_bundle_asks_for_an_export(bundles: Path, tmp_path: Path) -> None:
    shutil.copytree(bundles / "news", tmp_path / "artifacts" / "news")
    older = make_bundle(tmp_path / "older", "news", "single-label", seed=1)
    arguments = options(tmp_path / "artifacts", "triton")

    assert "make export" in refusal(tmp_path, *arguments)
    write_repository(older, tmp_path / "model_repository")
    said = refusal(tmp_path, *arguments)
    assert "newer than the repository" in said and "make export" in said


@pytest.mark.slow
def test_a_repository_for_the_native_backend_is_not_for_the_local_server(bundles: Path, tmp_path: Path) -> None:
    shutil.copytree(bundles / "news", tmp_path / "artifacts" / "news")
    bundle = make_bundle(tmp_path / "same", "news", "single-label")
    write_repository(bundle, tmp_path / "model_repository", backend="onnxruntime")

    assert "NVIDIA's container" in refusal(tmp_path, *options(tmp_path / "artifacts", "triton"))


@pytest.mark.slow
def test_a_script_that_triton_cannot_load_refuses_the_start_with_tritons_words(bundles: Path, tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    shutil.copytree(bundles.parent / "model_repository", repository)
    (repository / "ner" / "1" / "model.py").write_text("raise RuntimeError('broken on purpose')\n")

    said = refusal(tmp_path, "--engine", "triton", "--bundles", str(bundles), "--model-repository", str(repository))
    assert "broken on purpose" in said and "triton.log" in said


@pytest.mark.slow
def test_validate_proves_a_repository_on_a_real_triton_and_refuses_another_graph(bundles: Path, tmp_path: Path) -> None:
    def validate(bundle: Path, repository: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "export", "validate", str(bundle), "--repository", str(repository)]
        environment = {**os.environ, "SLIPWAY_LOG_FOLDER": str(tmp_path)}
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)

    proved = validate(bundles / "news", bundles.parent / "model_repository")
    assert proved.returncode == 0, proved.stdout + proved.stderr
    assert "100.0% of the rows are answered as recorded" in proved.stdout

    shutil.copytree(bundles.parent / "model_repository", tmp_path / "older")
    write_repository(make_bundle(tmp_path / "other", "news", "single-label", seed=1), tmp_path / "older")
    refused = validate(bundles / "news", tmp_path / "older")
    assert refused.returncode == 1 and "newer than the repository" in refused.stderr


@pytest.mark.slow
def test_a_port_in_use_is_a_clear_error(bundles: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refusal(tmp_path, *options(bundles, "onnx"), "--port", str(port))
    assert f"127.0.0.1:{port}" in said and "in use" in said and "--port" in said


@pytest.mark.slow
def test_no_triton_elsewhere_is_a_clear_error(bundles: Path, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{closed.getsockname()[1]}"
        said = refusal(tmp_path, *options(bundles, "triton"), TRITON_URL=url, SLIPWAY_START_SECONDS="1")
    assert url in said


@pytest.mark.slow
def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    assert "engine" in refusal(tmp_path, "--engine", "oven")
    assert "max_texts" in refusal(tmp_path, SLIPWAY_MAX_TEXTS="none").lower()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_can_be_interrupted(bundles: Path, tmp_path: Path, number: int) -> None:
    server = Server(tmp_path, *options(bundles, "triton"))
    while "starting the triton engine" not in server.output:
        assert server._lines.get(timeout=60) is not None, server.output
    assert server.stop(number) == 0, server.output
    assert "stopped while starting" in server.output


@pytest.mark.slow
def test_the_summary_tells_the_models_and_a_request_to_try_that_works(onnx_server: Server) -> None:
    lines = onnx_server.output.splitlines()
    curls = [line.strip() for line in lines if line.strip().startswith("curl ")]

    assert len(curls) == 6
    assert any("news: single-label, version 1, onnx_fp32" in line for line in lines)
    for curl in curls:
        url, body = curl.removeprefix("curl -s ").split(" -d ")
        assert httpx.post(url, content=body.strip("'").encode()).status_code == 200


@pytest.mark.slow
def test_help_has_examples() -> None:
    text = subprocess.run(
        [sys.executable, "-m", "serving", "run", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "python -m serving run --engine onnx" in text


@pytest.mark.slow
def test_every_setting_is_listed() -> None:
    text = subprocess.run(
        [sys.executable, "-m", "serving", "settings"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert all(f"SLIPWAY_{name.upper()}" in text for name in Settings.model_fields)


@pytest.mark.slow
def test_serving_runs_from_its_own_requirements_and_without_paddle(bundles: Path, tmp_path: Path) -> None:
    """Builds a fresh environment from the hashed lock file, as the Dockerfile does."""
    environment = tmp_path / "venv"
    python = environment / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*install, "-r", str(ROOT / "requirements" / "serving.txt")], check=True)
    # Only the two rooms, so that nothing else of the repository can be imported by accident.
    for room in ("bundle", "serving"):
        shutil.copytree(ROOT / room, tmp_path / "app" / room, ignore=shutil.ignore_patterns("__pycache__"))

    for absent in ("paddle", "paddlenlp", "onnx", "finetune", "export"):
        probe = subprocess.run(
            [str(python), "-c", f"import {absent}"], cwd=tmp_path / "app", capture_output=True, text=True
        )
        assert "ModuleNotFoundError" in probe.stderr
    port = str(free_port())
    server = Server(
        tmp_path, *options(bundles, "onnx"), python=str(python), cwd=tmp_path / "app", SLIPWAY_GRPC_PORT=port
    ).until_ready()
    try:
        assert server.grpc == f"127.0.0.1:{port}"
        assert httpx.post(f"{server.url}/v1/models/news/predict", json={"inputs": "好"}).status_code == 200
    finally:
        assert server.stop() == 0


def test_the_listening_socket_says_that_it_is_tcp() -> None:
    """Otherwise the event loop leaves Nagle's algorithm on, and every small answer waits 40 ms."""
    from serving.__main__ import _listening

    with _listening("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_the_server_can_raise_the_limit_of_windows(bundles: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, *options(bundles, "onnx"), SLIPWAY_MAX_WINDOWS="2000").until_ready()
    try:
        url = f"{server.url}/v1/models/news/predict"
        (answer,) = httpx.post(url, json={"inputs": "大跌，" * 10_000}, timeout=60).json()["predictions"]
        assert answer["windows"] > 1000 and answer["covered"] == 1.0
        assert httpx.get(f"{server.url}/v1/models/news").json()["text"]["max_windows"] == 2000
    finally:
        assert server.stop() == 0
