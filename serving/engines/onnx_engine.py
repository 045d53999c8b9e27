"""ONNX Runtime in the gateway's own process, on worker threads of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort

from bundle.decode import FloatArray
from bundle.encode import IntArray
from bundle.errors import BundleError, EngineUnavailable
from serving.catalogue import ServedModel
from serving.engines import feeds, outputs_of


class _Loaded:
    """One model: its sessions, and workers that each own one of them."""

    def __init__(self, model: ServedModel, threads: int, sessions: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = max(1, threads // sessions)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(str(model.graph), options, providers=["CPUExecutionProvider"])
            self.others = [
                ort.InferenceSession(str(model.graph), options, providers=["CPUExecutionProvider"])
                for _ in range(sessions - 1)
            ]
        except Exception as error:  # ONNX Runtime raises many kinds, all meaning: not a graph that it can run
            raise BundleError(f"{model.graph}: ONNX Runtime cannot load it: {error}") from error
        self.outputs = outputs_of(model)
        for kind, here, wanted in (
            ("inputs", self.session.get_inputs(), [tensor.name for tensor in model.manifest.signature.inputs]),
            ("outputs", self.session.get_outputs(), self.outputs),
        ):
            found = sorted(tensor.name for tensor in here)
            if found != sorted(wanted):
                raise BundleError(f"{model.graph}: its {kind} are {found}, bundle.json says {sorted(wanted)}")
        self.idle = [self.session, *self.others]
        self.workers = ThreadPoolExecutor(sessions, thread_name_prefix=f"onnx-{model.name}")
        self.pending = 0

    def run(self, inputs: dict[str, IntArray]) -> tuple[FloatArray, ...]:
        # There are as many workers as sessions, so one is always idle here; list.pop and append are atomic.
        session = self.idle.pop()
        try:
            found = session.run(self.outputs, inputs)
        finally:
            self.idle.append(session)
        return tuple(np.asarray(values, dtype=np.float32) for values in found)


class OnnxEngine:
    """The engine for laptops and small servers: nothing to start, nothing to supervise.

    Args:
        threads: intra-op threads of one model, shared by its sessions.
        sessions: computations of one model at the same time.
        max_pending: calls of one model that may be under way or waiting.
    """

    name = "onnx"

    def __init__(self, threads: int, sessions: int = 1, max_pending: int = 256) -> None:
        self._threads, self._sessions, self._max_pending = threads, sessions, max_pending
        self._loaded: dict[str, _Loaded] = {}
        self._stopped = False

    async def start(self, models: Sequence[ServedModel]) -> None:
        for model in models:
            self._loaded[model.name] = await asyncio.to_thread(_Loaded, model, self._threads, self._sessions)

    async def stop(self) -> None:
        self._stopped = True
        for loaded in self._loaded.values():
            await asyncio.to_thread(loaded.workers.shutdown, wait=True, cancel_futures=True)

    async def ready(self) -> dict[str, str]:
        return dict.fromkeys(self._loaded, "the engine was stopped") if self._stopped else {}

    async def infer(self, model: ServedModel, input_ids: IntArray, token_type_ids: IntArray) -> tuple[FloatArray, ...]:
        loaded = self._loaded[model.name]
        if self._stopped:
            raise EngineUnavailable("the server is stopping")
        if loaded.pending >= self._max_pending:
            raise EngineUnavailable(f"{loaded.pending} computations are waiting, which is the limit")
        loaded.pending += 1
        try:
            future = loaded.workers.submit(loaded.run, feeds(model, input_ids, token_type_ids))
            # Cancelling the request cancels what has not begun; a computation that runs is left to end.
            return await asyncio.wrap_future(future)
        finally:
            loaded.pending -= 1

    def rows_per_call(self, model: ServedModel) -> int:
        return 1 << 16

    def describe(self) -> str:
        return f"ONNX Runtime {ort.__version__} in this process, {self._sessions} session(s), {self._threads} thread(s)"
