"""A model is run as its plan says, unless the user says otherwise or the plan is for another machine."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from bundle.decode import FloatArray
from bundle.folder import Bundle
from bundle.machine import cores
from bundle.manifest import Manifest
from export.to_triton import write_repository
from serving.catalogue import load
from serving.engines.onnx_engine import INLINE_SECONDS, PROBES, TRUSTED, Alone, OnnxEngine
from serving.gateway import Gateway
from serving.running import Running, running
from serving.settings import Settings
from tests.serving.conftest import Server, options
from tests.serving.tiny_bundle import elsewhere, make_bundle, with_plan


@pytest.fixture
def planned(tmp_path: Path) -> Bundle:
    bundle = make_bundle(tmp_path / "artifacts" / "desk" / "bundle", "desk", "multi-task")
    return with_plan(bundle, sessions=3, threads=1, windows=4, by_length=True)


def run_with(manifest: Manifest, **settings: object) -> Running:
    return running(manifest, Settings(engine="onnx", **settings))  # type: ignore[arg-type]


def numbers(how: Running) -> tuple[int, int, int, bool]:
    return how.sessions, how.threads, how.windows, how.foreign


def test_the_plan_of_this_machine_is_followed_and_told(planned: Bundle) -> None:
    how = run_with(planned.manifest)
    assert numbers(how) == (3, 1, 4, False)
    assert "planned for throughput" in how.told and "onnx_fp32 3×1" in how.told


def test_what_the_user_sets_wins_over_the_plan(planned: Bundle) -> None:
    assert numbers(run_with(planned.manifest, sessions=2, threads=6)) == (2, 3, 4, False)
    assert numbers(run_with(planned.manifest, threads=5)) == (1, 5, 4, False)
    how = run_with(planned.manifest, batch_tokens=100)
    assert (*numbers(how), how.batch_tokens) == (3, 1, 0, False, 100)
    assert "batching as set by the user" in how.told
    how = run_with(planned.manifest, aim="none")
    assert (*numbers(how), how.batch_tokens, how.told) == (1, cores(), 0, False, 2048, "")


def test_a_foreign_plan_falls_back_to_one_session_with_all_cores_and_says_so(planned: Bundle) -> None:
    foreign = with_plan(planned, elsewhere(), sessions=40, windows=32)
    how = run_with(foreign.manifest)
    assert numbers(how) == (1, cores(), 0, True)
    assert "the plan is foreign: measured on Abacus 3000, 77 core(s)" in how.told
    assert "python -m export plan" in how.told
    # A Triton elsewhere runs on a machine that the gateway cannot see.
    assert not running(foreign.manifest, Settings(engine="triton", triton_url="triton:8001")).foreign


def test_a_bundle_without_a_plan_is_run_as_before(tmp_path: Path) -> None:
    how = run_with(make_bundle(tmp_path, "a", "single-label").manifest)
    assert (*numbers(how), how.told) == (1, cores(), 0, False, "")


@pytest.mark.parametrize("by_length", [True, False])
def test_calls_that_are_computed_together_get_the_answers_that_they_get_alone(planned: Bundle, by_length: bool) -> None:
    """Calls of different lengths at once, on one session: of a model with an output per text and one per token."""
    texts = ["好" * 29, "中国", "王学在北京。", "大跌", "新闻股市增长。" * 3, "他说", "我们", "你好" * 7] * 3

    async def both(bundle: Bundle) -> tuple[Sequence[tuple[FloatArray, ...]], Sequence[tuple[FloatArray, ...]], int]:
        (model,) = load(bundle.root.parents[1], run_as=lambda manifest: run_with(manifest)).values()
        engine, noted = OnnxEngine(), []
        await engine.start([model])
        session = engine._loaded[model.id].sessions[0]

        class Counting:
            def run(self, outputs: list[str], inputs: dict[str, np.ndarray[tuple[int, int], np.dtype[np.int64]]]):  # type: ignore[no-untyped-def]
                noted.append(len(inputs["input_ids"]))
                return session.run(outputs, inputs)

        engine._loaded[model.id].sessions[:] = [Counting()]
        rows = [model.encoder.row(model.encoder.encode(text), 0) for text in texts]
        together = await asyncio.gather(*(engine.infer(model, row.ids[None], row.types[None]) for row in rows))
        most = max(noted)
        alone = [await engine.infer(model, row.ids[None], row.types[None]) for row in rows]
        await engine.stop()
        return together, alone, most

    bundle = with_plan(planned, sessions=1, windows=4, by_length=by_length)
    together, alone, most = asyncio.run(both(bundle))
    assert 1 < most <= 4
    for left, right in zip(together, alone, strict=True):
        for one, other in zip(left, right, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, atol=1e-5)


class Noting:
    """A session that notes which threads compute, each for so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.threads: list[threading.Thread] = []

    def run(self, outputs: list[str], inputs: dict[str, np.ndarray[tuple[int, int], np.dtype[np.int64]]]):  # type: ignore[no-untyped-def]
        self.threads.append(threading.current_thread())
        time.sleep(self.seconds)
        return [np.zeros((len(inputs["input_ids"]), 2), dtype=np.float32) for _ in outputs]


def computed_by(planned: Bundle, calls: list[int], seconds: float = 0.0) -> list[bool]:
    """For so many calls at a time, one after another, whether the event loop computed each."""

    async def ask() -> list[bool]:
        (model,) = load(planned.root.parents[1], run_as=lambda manifest: run_with(manifest)).values()
        engine, session = OnnxEngine(), Noting(seconds)
        await engine.start([model])
        loaded = engine._loaded[model.id]
        loaded.sessions[:] = [session] * len(loaded.sessions)
        row = model.encoder.row(model.encoder.encode("王学在北京。"), 0)
        for count in calls:
            await asyncio.gather(*(engine.infer(model, row.ids[None], row.types[None]) for _ in range(count)))
        await engine.stop()
        return [thread is threading.current_thread() for thread in session.threads]

    return asyncio.run(ask())


def test_the_event_loop_computes_short_calls_that_come_one_at_a_time_and_now_and_then_lets_threads_do_it() -> None:
    alone, once = Alone(), [False] * PROBES + [True] * TRUSTED
    alone.computed(10, INLINE_SECONDS / 2)
    assert [alone.trusted(True, 10) for _ in once * 2] == once * 2
    assert not alone.trusted(False, 10)
    assert [alone.trusted(True, 10) for _ in once] == once
    assert not any(alone.trusted(True, 30) for _ in once), "too long"
    alone.computed(10, INLINE_SECONDS * 2)
    assert not any(alone.trusted(True, 10) for _ in once), "too slow"


def test_what_the_event_loop_computes_is_answered_like_the_rest(planned: Bundle) -> None:
    found = computed_by(planned, [1] * 8 * (PROBES + TRUSTED))
    assert len(found) == 8 * (PROBES + TRUSTED)
    assert any(found)
    assert not all(found)


def test_the_event_loop_computes_nothing_where_calls_meet_or_take_long(planned: Bundle) -> None:
    assert not any(computed_by(planned, [2, 1, 1] * 20))
    assert not any(computed_by(planned, [1] * 10, seconds=2 * INLINE_SECONDS))


def test_windows_of_a_request_travel_in_calls_of_the_planned_size(planned: Bundle) -> None:
    async def shapes() -> list[tuple[int, ...]]:
        gateway = Gateway(Settings(engine="onnx", bundles=planned.root.parents[1], parallel_calls=1))
        await gateway.start()
        model, found = gateway.models["desk"], []
        infer = gateway.engine.infer

        async def noted(*arguments):  # type: ignore[no-untyped-def]
            found.append(arguments[1].shape)
            return await infer(*arguments)

        gateway.engine.infer = noted  # type: ignore[method-assign]
        await gateway.classifier.infer(model, [model.encoder.encode("王学在北京。" * 25)])
        await gateway.stop()
        return found

    assert [shape[0] for shape in asyncio.run(shapes())] == [4, 4]


@pytest.mark.slow
@pytest.mark.parametrize("setup", [{"windows": 1}, {"windows": 6, "by_length": False}, {"windows": 16}])
def test_triton_runs_the_planned_instances_and_answers_as_the_embedded_engine(
    tmp_path: Path, setup: dict[str, object]
) -> None:
    bundle = with_plan(
        make_bundle(tmp_path / "artifacts" / "desk" / "bundle", "desk", "multi-task"), sessions=2, **setup
    )
    write_repository(bundle, tmp_path / "model_repository")
    texts, answers = ["王学在北京。" * count for count in (1, 9, 20, 2)], []
    for engine in ("triton", "onnx"):
        server = Server(tmp_path, *options(tmp_path / "artifacts", engine)).until_ready()
        try:
            assert "desk: planned for throughput on this kind of machine" in server.output
            answer = httpx.post(f"{server.url}/v1/models/desk/predict", json={"inputs": texts}, timeout=60)
            answers.append([(row["label"], len(row["entities"])) for row in answer.json()["predictions"]])
        finally:
            assert server.stop() == 0
    assert answers[0] == answers[1]
    log = (tmp_path / "triton.log").read_text(encoding="utf-8")
    assert "TRITONBACKEND_ModelInstanceInitialize: desk_0_1 " in log, "two instances"
    assert "foreign" not in log


@pytest.mark.slow
def test_a_start_with_a_foreign_plan_says_so_on_both_engines(tmp_path: Path) -> None:
    bundle = with_plan(make_bundle(tmp_path / "artifacts" / "news" / "bundle", "news", "single-label"), elsewhere())
    write_repository(bundle, tmp_path / "model_repository")
    for engine in ("onnx", "triton"):
        server = Server(tmp_path, *options(tmp_path / "artifacts", engine)).until_ready()
        assert server.stop() == 0
        assert re.search(r"news: the plan is foreign: measured on Abacus 3000, 77 core\(s\)", server.output)
    assert "news: the plan is foreign" in (tmp_path / "triton.log").read_text(encoding="utf-8")
