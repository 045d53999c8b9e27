"""A plan that chose OpenVINO: the embedded engine and Triton follow it, or say that it is missing and go on without.

What needs the library runs where it is installed (`make openvino`); a machine without it is stood in for elsewhere.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from bundle.decode import FloatArray
from bundle.errors import BundleError
from bundle.folder import Bundle
from bundle.machine import cores
from bundle.manifest import Setup
from bundle.plan import openvino_missing
from export.to_triton import write_repository
from serving.catalogue import load
from serving.doctor import look_over
from serving.engines.onnx_engine import OnnxEngine
from serving.engines.openvino_streams import Stream
from serving.gateway import Gateway
from serving.running import Running, running
from serving.settings import Settings
from tests.serving.conftest import Server, options
from tests.serving.tiny_bundle import elsewhere, make_bundle, with_plan

installed = pytest.mark.skipif(openvino_missing(), reason="OpenVINO is optional and not installed; `make openvino`")
TEXTS = ["好" * 29, "中国", "王学在北京。", "大跌", "新闻股市增长。" * 3, "他说", "我们", "你好" * 7] * 3


@pytest.fixture
def planned(tmp_path: Path) -> Bundle:
    bundle = make_bundle(tmp_path / "artifacts" / "desk" / "bundle", "desk", "multi-task")
    return with_plan(bundle, runtime="openvino", sessions=2, threads=1, windows=4)


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine on which it is not installed."""
    monkeypatch.setitem(sys.modules, "openvino", None)


def with_instead(bundle: Bundle, setup: Setup) -> Bundle:
    plan = bundle.manifest.plan
    assert plan
    changed = plan.model_copy(update={"instead": {"latency": setup, "throughput": setup}})
    return bundle.save(bundle.manifest.model_copy(update={"plan": changed}))


def run_with(bundle: Bundle, **settings: object) -> Running:
    return running(bundle.manifest, Settings(**{"engine": "onnx", **settings}))  # type: ignore[arg-type]


async def answers(bundle: Bundle) -> tuple[OnnxEngine, Sequence[tuple[FloatArray, ...]]]:
    """What the embedded engine says of `TEXTS`, all asked at once, and the engine, stopped."""
    (model,) = load(bundle.root.parents[1], run_as=lambda manifest: running(manifest, Settings(engine="onnx"))).values()
    engine = OnnxEngine()
    await engine.start([model])
    rows = [model.encoder.row(model.encoder.encode(text), 0) for text in TEXTS]
    found = await asyncio.gather(*(engine.infer(model, row.ids[None], row.types[None]) for row in rows))
    await engine.stop()
    return engine, found


# --- without it ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_openvino")
def test_where_openvino_is_missing_the_best_of_onnx_runtime_is_served_and_the_start_says_so(planned: Bundle) -> None:
    stand_in = Setup(artifact="onnx_fp32", threads=1, sessions=3, windows=8, by_length=False)
    how = run_with(with_instead(planned, stand_in))
    assert (how.runtime, how.sessions, how.threads, how.windows, how.by_length) == ("onnxruntime", 3, 1, 8, False)
    assert how.lacking and not how.foreign
    assert "planned for throughput on this kind of machine: onnx_fp32 3×1, ≤ 8 windows, padded" in how.told
    assert "the plan chose onnx_fp32 on OpenVINO 2×1" in how.told
    assert "OpenVINO is not installed, so ONNX Runtime computes" in how.told and "`make openvino`" in how.told

    engine, found = asyncio.run(answers(planned))
    assert len(found) == len(TEXTS) and "OpenVINO" not in engine.describe()


@pytest.mark.usefixtures("without_openvino")
def test_a_plan_that_names_no_stand_in_falls_back_to_the_defaults(planned: Bundle) -> None:
    how = run_with(planned)
    assert (how.runtime, how.sessions, how.threads, how.windows) == ("onnxruntime", 1, cores(), 1)


@pytest.mark.usefixtures("without_openvino")
def test_triton_is_left_the_form_that_its_files_have_and_the_start_says_so(planned: Bundle) -> None:
    stand_in = Setup(artifact="onnx_fp32", threads=1, sessions=3, windows=8)
    how = run_with(with_instead(planned, stand_in), engine="triton")
    assert (how.form, how.sessions) == ("onnx_fp32", 2)
    assert how.lacking and "OpenVINO is not installed" in how.told
    # A Triton elsewhere has its own packages, which cannot be seen from here.
    assert not run_with(planned, engine="triton", triton_url="triton:8001").lacking


@pytest.mark.usefixtures("without_openvino")
def test_the_doctor_notes_a_runtime_that_is_missing(planned: Bundle) -> None:
    settings = Settings(engine="onnx", bundles=planned.root.parents[1])
    (note,) = [item for item in look_over(settings) if item.about == "plan of desk"]
    assert note.level == "note" and "OpenVINO is not installed" in note.said and "make openvino" in note.mend


def test_aim_none_leaves_openvino_aside_with_the_plan(planned: Bundle) -> None:
    how = run_with(planned, aim="none")
    assert (how.runtime, how.told, how.lacking) == ("onnxruntime", "", False)


# --- with it ---------------------------------------------------------------------------------------------------------


@installed
def test_the_embedded_engine_follows_a_plan_for_openvino_and_answers_the_same(planned: Bundle) -> None:
    how = run_with(planned)
    assert (how.runtime, how.sessions, how.threads, how.windows, how.lacking) == ("openvino", 2, 1, 4, False)
    engine, found = asyncio.run(answers(planned))
    assert "desk 2×1 on OpenVINO 20" in engine.describe()
    (loaded,) = engine._loaded.values()
    assert all(isinstance(session, Stream) for session in loaded.sessions) and len(set(loaded.sessions)) == 2
    assert sys.modules["openvino_telemetry"] is None, "it reports nothing to its makers"

    _, usual = asyncio.run(answers(with_plan(planned, windows=1)))
    for left, right in zip(found, usual, strict=True):
        for one, other in zip(left, right, strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype
            np.testing.assert_allclose(one, other, atol=1e-5)


@installed
def test_the_gateway_proves_openvino_with_the_golden_rows_at_its_start(planned: Bundle) -> None:
    async def start() -> tuple[float, list[str]]:
        gateway, said = Gateway(Settings(engine="onnx", bundles=planned.root.parents[1])), []
        await gateway.start(said.append)
        await gateway.stop()
        return gateway.measured["desk"].max_abs, said

    worst, said = asyncio.run(start())
    assert worst < 1e-4
    assert any("planned for throughput on this kind of machine: onnx_fp32 on OpenVINO 2×1" in line for line in said)


@installed
def test_a_foreign_plan_keeps_the_runtime_and_takes_one_session_with_all_cores(planned: Bundle) -> None:
    foreign = with_plan(planned, elsewhere(), runtime="openvino", sessions=40, windows=32)
    how = run_with(foreign)
    assert (how.runtime, how.sessions, how.threads, how.windows, how.foreign) == ("openvino", 1, cores(), 0, True)


@installed
def test_a_graph_that_openvino_cannot_load_is_refused_by_its_name(planned: Bundle, tmp_path: Path) -> None:
    from serving.engines.openvino_streams import open_streams

    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"broken\.onnx: OpenVINO cannot load it"):
        open_streams(tmp_path / "broken.onnx", planned.manifest, planned.manifest.artifacts["onnx_fp32"], 1, 1)


@installed
@pytest.mark.slow
def test_triton_computes_on_openvino_and_answers_as_the_embedded_engine(planned: Bundle, tmp_path: Path) -> None:
    write_repository(planned, tmp_path / "model_repository")
    texts, found = ["王学在北京。" * count for count in (1, 9, 20, 2)], []
    for engine in ("triton", "onnx"):
        server = Server(tmp_path, *options(tmp_path / "artifacts", engine)).until_ready()
        try:
            assert "onnx_fp32 on OpenVINO 2×1" in server.output
            answer = httpx.post(f"{server.url}/v1/models/desk/predict", json={"inputs": texts}, timeout=60)
            found.append([(row["label"], len(row["entities"])) for row in answer.json()["predictions"]])
        finally:
            assert server.stop() == 0
    assert found[0] == found[1]
    assert "desk: OpenVINO 20" in (tmp_path / "triton.log").read_text(encoding="utf-8")


@pytest.mark.skipif(not openvino_missing(), reason="OpenVINO is installed")
@pytest.mark.slow
def test_triton_without_openvino_serves_the_same_form_on_onnx_runtime(planned: Bundle, tmp_path: Path) -> None:
    write_repository(planned, tmp_path / "model_repository")
    server = Server(tmp_path, *options(tmp_path / "artifacts", "triton")).until_ready()
    try:
        assert "OpenVINO is not installed, so ONNX Runtime computes" in server.output
        answer = httpx.post(f"{server.url}/v1/models/desk/predict", json={"inputs": "王学在北京。"}, timeout=60)
        assert answer.status_code == 200
    finally:
        assert server.stop() == 0
    log = (tmp_path / "triton.log").read_text(encoding="utf-8")
    assert "desk: the plan chose OpenVINO, which is not installed" in log
