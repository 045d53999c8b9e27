"""Who may import whom: the rooms meet on disk, in the bundle, and nowhere else."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("bundle", "finetune", "export", "serving", "loadtests", "slipway_client")
# Where a room is, if not under its own name.
PLACES = {"slipway_client": "clients/python/slipway_client"}
MAY_IMPORT = {
    "bundle": set(),
    "finetune": {"bundle"},
    "export": {"bundle"},
    "serving": {"bundle"},
    "loadtests": set(),
    "slipway_client": set(),
}
PADDLE = ("paddle", "paddlenlp", "paddle2onnx")
WEB = ("fastapi", "starlette", "uvicorn", "tritonclient", "prometheus_client")
FORBIDDEN = {
    "bundle": (*PADDLE, *WEB, "onnx", "onnxruntime", "openvino", "sklearn", "rich", "typer"),
    "serving": (*PADDLE, "onnx", "onnxslim", "sklearn", "torch"),
    "loadtests": (*PADDLE, "onnx", "onnxruntime", "openvino", "tokenizers"),
    "finetune": (*WEB, "onnx", "onnxruntime", "openvino", "torch"),
    "export": (*WEB, "torch", "sklearn"),
    "slipway_client": (),
}


# Run by the outside references' own interpreters, in environments that have none of ours.
WORKER = ROOT / "export" / "references" / "worker.py"


def imports_of(room: str) -> list[tuple[Path, str]]:
    """Every module that a room's files import anywhere, also inside functions."""
    found = []
    for path in sorted((ROOT / PLACES.get(room, room)).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(path, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.append((path, node.module))
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_it_may(room: str) -> None:
    assert imports_of(room), f"{room} has no imports: this test looks at nothing"
    for path, module in imports_of(room):
        top = module.partition(".")[0]
        if top in ROOMS and top != room:
            assert top in MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_library_of_another_rooms_work(room: str) -> None:
    for path, module in imports_of(room):
        top = module.partition(".")[0]
        assert top not in FORBIDDEN[room] or path == WORKER, f"{path.relative_to(ROOT)} imports {module}"


def test_what_another_interpreter_runs_imports_nothing_of_the_project() -> None:
    modules = {module.partition(".")[0] for path, module in imports_of("export") if path == WORKER}
    assert "torch" in modules
    assert not modules & set(ROOMS)


def test_the_client_needs_httpx_and_nothing_else() -> None:
    tops = {module.partition(".")[0] for _, module in imports_of("slipway_client")}
    assert tops - sys.stdlib_module_names == {"httpx", "slipway_client"}


def test_one_file_of_serving_talks_to_triton_and_one_as_triton() -> None:
    users = {path.name for path, module in imports_of("serving") if module.startswith("tritonclient")}
    assert users == {"triton_client.py", "kserve_grpc.py"}


def test_no_tracked_file_names_an_index_address_in_a_lock() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        assert "://" not in text and "--index-url" not in text, path
        assert "--hash=sha256:" in text
