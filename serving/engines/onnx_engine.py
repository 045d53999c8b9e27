"""ONNX Runtime in the gateway's own process, on worker threads of its own.

Calls wait in one line. When a session is idle, it takes the first of them and, where a plan says that this pays, those
behind it that fit into one computation (`bundle.batching`). Nobody waits for company.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from bundle.batching import groups, taken
from bundle.decode import FloatArray
from bundle.encode import IntArray
from bundle.errors import BundleError, EngineUnavailable
from serving.catalogue import ServedModel
from serving.engines import Watcher, feeds, outputs_of


# Compared by identity: equality would compare arrays.
@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """Some windows of one request, and where their outputs go.

    Attributes:
        input_ids, token_type_ids: int64 (windows, tokens).
    """

    input_ids: IntArray
    token_type_ids: IntArray
    answer: asyncio.Future[tuple[FloatArray, ...]]


class _Loaded:
    """One model: its sessions, the calls that wait for them, and a worker thread for each session.

    Everything but the computation itself happens on the event loop, so nothing here needs a lock.
    """

    def __init__(self, model: ServedModel, watcher: Watcher | None) -> None:
        self.model, self._watcher, how = model, watcher, model.running
        options = ort.SessionOptions()
        options.intra_op_num_threads = how.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A session of one thread has no pool of its own: it computes in the threads that call it, several at a time.
        copies = 1 if how.threads == 1 else how.sessions
        try:
            opened = [
                ort.InferenceSession(str(model.graph), options, providers=["CPUExecutionProvider"])
                for _ in range(copies)
            ]
        except Exception as error:  # ONNX Runtime raises many kinds, all meaning: not a graph that it can run
            raise BundleError(f"{model.graph}: ONNX Runtime cannot load it: {error}") from error
        self.outputs = outputs_of(model)
        for kind, here, wanted in (
            ("inputs", opened[0].get_inputs(), [tensor.name for tensor in model.manifest.signature.inputs]),
            ("outputs", opened[0].get_outputs(), self.outputs),
        ):
            found = sorted(tensor.name for tensor in here)
            if found != sorted(wanted):
                raise BundleError(f"{model.graph}: its {kind} are {found}, bundle.json says {sorted(wanted)}")
        self.idle = [opened[number % copies] for number in range(how.sessions)]
        self.workers = ThreadPoolExecutor(how.sessions, thread_name_prefix=f"onnx-{model.name}")
        self.waiting: deque[_Call] = deque()
        self.running = 0

    @property
    def pending(self) -> int:
        """Calls that wait or are computed."""
        return len(self.waiting) + self.running

    async def infer(self, input_ids: IntArray, token_type_ids: IntArray) -> tuple[FloatArray, ...]:
        """Outputs of some windows; a call that is given up before its turn is not computed."""
        loop = asyncio.get_running_loop()
        call = _Call(input_ids, token_type_ids, loop.create_future())
        self.waiting.append(call)
        self._go_on()
        try:
            return await call.answer
        finally:
            if call.answer.cancelled() and call in self.waiting:
                self.waiting.remove(call)

    def give_up(self, reason: str) -> None:
        """Gives up what waits."""
        for call in self.waiting:
            if not call.answer.done():
                call.answer.set_exception(EngineUnavailable(reason))
        self.waiting.clear()

    async def end(self, reason: str) -> None:
        """Lets the computations end and gives up what waits."""
        self.give_up(reason)
        await asyncio.to_thread(self.workers.shutdown, wait=True, cancel_futures=True)

    def _go_on(self) -> None:
        """Gives every idle session its next computation."""
        most = max(1, self.model.running.windows)
        while self.idle and self.waiting:
            count = taken((len(call.input_ids) for call in self.waiting), most)
            calls = [self.waiting.popleft() for _ in range(count)]
            self.running += count
            session = self.idle.pop()
            loop = asyncio.get_running_loop()
            done = loop.run_in_executor(self.workers, self._compute, session, calls)
            done.add_done_callback(lambda future, session=session, calls=calls: self._answer(future, session, calls))  # type: ignore[misc]

    def _answer(
        self, done: asyncio.Future[list[tuple[FloatArray, ...]]], session: ort.InferenceSession, calls: list[_Call]
    ) -> None:
        self.idle.append(session)
        self.running -= len(calls)
        failure = None if done.cancelled() else done.exception()
        for number, call in enumerate(calls):
            if call.answer.done():
                continue
            if done.cancelled():
                call.answer.cancel()
            elif failure:
                call.answer.set_exception(failure)
            else:
                call.answer.set_result(done.result()[number])
        self._go_on()

    def _compute(self, session: ort.InferenceSession, calls: Sequence[_Call]) -> list[tuple[FloatArray, ...]]:
        """On a worker thread: the outputs of each call, at the shape that it came in."""
        how, pad_id = self.model.running, self.model.manifest.text.pad_id
        if not how.windows:
            return [self._run(session, call.input_ids, call.token_type_ids) for call in calls]
        rows = [(call, row) for call in calls for row in range(len(call.input_ids))]
        # Tokens up to the last one that is not padding.
        lengths = [int(np.flatnonzero(call.input_ids[row] != pad_id)[-1]) + 1 for call, row in rows]
        found: list[tuple[FloatArray, ...]] = [()] * len(rows)
        for group in groups(lengths, how.windows, how.by_length):
            longest = max(lengths[index] for index in group)
            ids = np.full((len(group), longest), pad_id, dtype=np.int64)
            types = np.zeros((len(group), longest), dtype=np.int64)
            for number, index in enumerate(group):
                (call, row), length = rows[index], lengths[index]
                ids[number, :length] = call.input_ids[row, :length]
                types[number, :length] = call.token_type_ids[row, :length]
            outputs = self._run(session, ids, types)
            for number, index in enumerate(group):
                found[index] = tuple(values[number] for values in outputs)
        every = iter(found)
        return [_stacked([next(every) for _ in call.input_ids], call.input_ids.shape[1]) for call in calls]

    def _run(self, session: ort.InferenceSession, ids: IntArray, types: IntArray) -> tuple[FloatArray, ...]:
        if self._watcher:
            self._watcher.computed(self.model.name, len(ids))
        found = session.run(self.outputs, feeds(self.model, ids, types))
        return tuple(np.asarray(values, dtype=np.float32) for values in found)


def _stacked(rows: Sequence[tuple[FloatArray, ...]], tokens: int) -> tuple[FloatArray, ...]:
    """The outputs of a call's windows: float32 (windows, labels), or (windows, tokens, labels) padded with zeros."""
    stacked = []
    for values in zip(*rows, strict=True):
        if values[0].ndim == 1:
            stacked.append(np.stack(values))
            continue
        filled = np.zeros((len(values), tokens, values[0].shape[-1]), dtype=np.float32)
        for row, own in zip(filled, values, strict=True):
            row[: len(own)] = own[:tokens]
        stacked.append(filled)
    return tuple(stacked)


class OnnxEngine:
    """The engine for laptops and small servers: nothing to start, nothing to supervise.

    Sessions, their threads and what is computed together are each model's own (`serving.running`). How much may wait
    here is bounded by who calls (`serving.turns`).
    """

    name = "onnx"

    def __init__(self) -> None:
        self.watcher: Watcher | None = None
        self._loaded: dict[str, _Loaded] = {}
        self._stopped = False

    async def start(self, models: Sequence[ServedModel]) -> None:
        for model in models:
            await self.load(model)

    def watch(self, prove: Callable[[ServedModel], Awaitable[object]]) -> None:
        """Nothing here can go away and come back."""

    def check_open(self, model: ServedModel) -> None:
        if self._stopped:
            raise EngineUnavailable("the server is stopping")

    def abandon(self) -> None:
        self._stopped = True
        for loaded in self._loaded.values():
            loaded.give_up("the server is stopping")

    async def stop(self) -> None:
        self._stopped = True
        for loaded in self._loaded.values():
            await loaded.end("the server is stopping")

    async def load(self, model: ServedModel) -> None:
        self._loaded[model.id] = await asyncio.to_thread(_Loaded, model, self.watcher)

    async def unload(self, model: ServedModel) -> None:
        if loaded := self._loaded.pop(model.id, None):
            await loaded.end(f"version {model.version} of {model.name!r} was unloaded")

    async def ready(self) -> dict[str, str]:
        return dict.fromkeys(self._loaded, "the engine was stopped") if self._stopped else {}

    async def infer(self, model: ServedModel, input_ids: IntArray, token_type_ids: IntArray) -> tuple[FloatArray, ...]:
        if self._stopped:
            raise EngineUnavailable("the server is stopping")
        if (loaded := self._loaded.get(model.id)) is None:
            raise EngineUnavailable(f"version {model.version} of {model.name!r} is not loaded")
        return await loaded.infer(input_ids, token_type_ids)

    @property
    def troubles(self) -> tuple[int, int]:
        return 0, 0

    async def statistics(self) -> dict[str, dict[str, float]]:
        return {}

    def rows_per_call(self, model: ServedModel) -> int:
        return 1 << 16

    def parallel(self, model: ServedModel) -> int:
        return model.running.sessions

    def describe(self) -> str:
        hows = {item.model.name: item.model.running for item in self._loaded.values()}
        told = ", ".join(f"{name} {how.sessions}×{how.threads}" for name, how in hows.items())
        return f"ONNX Runtime {ort.__version__} in this process, sessions × threads: {told}"
