"""ONNX Runtime in the gateway's own process, on worker threads of its own; OpenVINO where a plan chose it.

Calls wait in one line. When a session is idle, its thread takes the first of them and, where a plan says that this
pays, those behind it that fit into one computation (`bundle.batching`). Nobody waits for company, and no session for
the event loop: the loop shares the cores and the interpreter's lock with the computations, and is late when they are
busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnxruntime as ort

from bundle.batching import groups, taken
from bundle.decode import FloatArray
from bundle.device import check_opened, providers, require_gpu
from bundle.encode import IntArray
from bundle.errors import BundleError, EngineUnavailable
from serving.catalogue import ServedModel
from serving.engines import Watcher, feeds, outputs_of
from serving.engines.openvino_streams import open_streams, openvino_version

# So many calls must have the engine for themselves while threads compute, before the event loop computes calls itself;
# and so many it computes before that is looked at again.
PROBES, TRUSTED = 8, 32
# Seconds that the event loop may stand still for a computation.
INLINE_SECONDS = 0.003


class Session(Protocol):
    """What computes a batch: ONNX Runtime's session, or a stream of OpenVINO's."""

    def run(self, outputs: Sequence[str], feeds: dict[str, IntArray]) -> Sequence[FloatArray]:
        """Named outputs of one batch: float32 (windows, labels) or (windows, tokens, labels) each."""


class Alone:
    """Whether calls come one at a time, so that the event loop may compute a short one itself.

    Handing a call to a thread and its answer back wakes two cores that sleep, which on a virtual machine can take
    longer than all else that is done for a short text. But while the loop computes it does not see who else comes; so
    it goes by what it saw while threads computed, and looks again after a while.
    """

    def __init__(self) -> None:
        self._lone = 0
        # Seconds of the last computation of a thread for each of its tokens; 0 is not known.
        self._pace = 0.0

    def computed(self, tokens: int, seconds: float) -> None:
        """Told of what a thread has computed."""
        self._pace = seconds / tokens

    def trusted(self, alone: bool, tokens: int) -> bool:
        """Whether the loop may compute a call that comes now.

        Args:
            alone: no other call waits or is computed.
            tokens: of the call, padding included.
        """
        self._lone = self._lone + 1 if alone else 0
        turn = (self._lone - 1) % (PROBES + TRUSTED) >= PROBES
        return alone and turn and 0 < self._pace * tokens <= INLINE_SECONDS


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
    """One model: its sessions, each with a thread of its own, and the calls that wait for them.

    The line and what has ended are shared by the event loop and the threads, under a lock that nobody holds for long.

    Attributes:
        sessions: by the number of their thread.
        waiting: calls that no thread has taken.
        computing: calls that threads have taken.
    """

    def __init__(self, model: ServedModel, watcher: Watcher | None) -> None:
        self.model, self._watcher, how = model, watcher, model.running
        self.outputs = outputs_of(model)
        opened = _on_openvino(model) if how.runtime == "openvino" else _on_onnxruntime(model)
        self.sessions = [opened[number % len(opened)] for number in range(how.sessions)]
        self.waiting: deque[_Call] = deque()
        self.computing = 0
        self._alone = Alone()
        self._lock = threading.Lock()
        # Wakes a thread for each call that came; ends one with False.
        self._come: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._ended: list[tuple[list[_Call], list[tuple[FloatArray, ...]] | Exception]] = []
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"onnx-{model.name}-{number}", daemon=True)
            for number in range(how.sessions)
        ]
        for thread in self._threads:
            thread.start()

    async def infer(self, input_ids: IntArray, token_type_ids: IntArray) -> tuple[FloatArray, ...]:
        """Outputs of some windows; a call that is given up before its turn is not computed."""
        call = _Call(input_ids, token_type_ids, asyncio.get_running_loop().create_future())
        if self._alone.trusted(not self.computing and not self.waiting, input_ids.size):
            (found,) = self._compute(self.sessions[0], [call])
            return found
        with self._lock:
            self.waiting.append(call)
        self._come.put(True)
        try:
            return await call.answer
        finally:
            if call.answer.cancelled():
                with self._lock, contextlib.suppress(ValueError):  # a thread may have taken it
                    self.waiting.remove(call)

    def give_up(self, reason: str) -> None:
        """Gives up what waits."""
        with self._lock:
            calls = list(self.waiting)
            self.waiting.clear()
        for call in calls:
            if not call.answer.done():
                call.answer.set_exception(EngineUnavailable(reason))

    async def end(self, reason: str) -> None:
        """Lets the computations end and gives up what waits."""
        self.give_up(reason)
        for _ in self._threads:
            self._come.put(False)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _work(self, number: int) -> None:
        """A session's thread: computes what waits until it is ended."""
        while self._come.get():
            # Another thread may have taken this call with its own.
            if calls := self._take():
                begun = time.perf_counter()
                try:
                    found = self._compute(self.sessions[number], calls)
                except Exception as error:
                    self._tell(calls, error)
                else:
                    self._alone.computed(sum(call.input_ids.size for call in calls), time.perf_counter() - begun)
                    self._tell(calls, found)

    def _take(self) -> list[_Call]:
        """The calls of the next computation."""
        with self._lock:
            count = taken((len(call.input_ids) for call in self.waiting), max(1, self.model.running.windows))
            self.computing += count
            return [self.waiting.popleft() for _ in range(count)]

    def _tell(self, calls: list[_Call], found: list[tuple[FloatArray, ...]] | Exception) -> None:
        """On a session's thread: has the event loop answer; it is woken once for all that ends before it comes."""
        with self._lock:
            self._ended.append((calls, found))
            self.computing -= len(calls)
            first = len(self._ended) == 1
        if first:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                calls[0].answer.get_loop().call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, []
        for calls, found in ended:
            for number, call in enumerate(calls):
                if call.answer.done():
                    continue
                if isinstance(found, Exception):
                    call.answer.set_exception(found)
                else:
                    call.answer.set_result(found[number])

    def _compute(self, session: Session, calls: Sequence[_Call]) -> list[tuple[FloatArray, ...]]:
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

    def _run(self, session: Session, ids: IntArray, types: IntArray) -> tuple[FloatArray, ...]:
        if self._watcher:
            self._watcher.computed(self.model.name, len(ids))
        found = session.run(self.outputs, feeds(self.model, ids, types))
        return tuple(np.asarray(values, dtype=np.float32) for values in found)


def _on_onnxruntime(model: ServedModel) -> list[Session]:
    """The sessions of a model.

    Raises:
        BundleError: it cannot be loaded, or its tensors are not those of the manifest.
    """
    how = model.running
    options = ort.SessionOptions()
    options.intra_op_num_threads = how.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A session of one thread has no pool of its own: it computes in the threads that call it, several at a time.
    copies = 1 if how.threads == 1 else how.sessions
    available = ort.get_available_providers()
    if how.device == "gpu":
        require_gpu(ort.__version__, available)
    chosen = providers(how.device, model.artifact.precision, available, how.engines)
    try:
        if how.engines:
            how.engines.mkdir(parents=True, exist_ok=True)
        opened = [ort.InferenceSession(str(model.graph), options, providers=chosen) for _ in range(copies)]
    except Exception as error:  # ONNX Runtime raises many kinds, all meaning: not a graph that it can run
        raise BundleError(f"{model.graph}: ONNX Runtime cannot load it: {error}") from error
    check_opened(how.device, opened[0].get_providers())
    inputs, outputs = (sorted(item.name for item in side) for side in (opened[0].get_inputs(), opened[0].get_outputs()))
    _check_names(model, inputs, outputs)
    return opened


def _on_openvino(model: ServedModel) -> list[Session]:
    """The streams of a model.

    Raises:
        BundleError: as `_on_onnxruntime`.
    """
    how = model.running
    opened = open_streams(model.graph, model.manifest, model.artifact, how.sessions, how.threads)
    unread = {tensor.name for tensor in model.manifest.signature.inputs} - set(opened[0].inputs)
    _check_names(model, sorted({*opened[0].inputs, *unread}), opened[0].outputs)
    return [*opened]


def _check_names(model: ServedModel, inputs: list[str], outputs: list[str]) -> None:
    for kind, found, wanted in (
        ("inputs", inputs, sorted(tensor.name for tensor in model.manifest.signature.inputs)),
        ("outputs", outputs, sorted(outputs_of(model))),
    ):
        if found != wanted:
            raise BundleError(f"{model.graph}: its {kind} are {found}, bundle.json says {wanted}")


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
        on = f" on OpenVINO {openvino_version()}"
        told = ", ".join(
            f"{name} {how.sessions}×{how.threads}"
            + (" on a GPU" if how.device == "gpu" else on if how.runtime == "openvino" else "")
            for name, how in hows.items()
        )
        return f"ONNX Runtime {ort.__version__} in this process, sessions × threads: {told}"
