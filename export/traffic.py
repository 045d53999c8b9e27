"""Clients that each wait for their answer, against one model in this process: how fast is a setup at real texts?

A lap is a list of texts. Each client sends one, waits until all its windows are computed, and sends the next, until the
list is through. The windows travel as serving sends them: in calls of like length, a bounded number of a request at a
time, put together by `bundle.batching`. Cutting texts into windows, HTTP and Triton are not in it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from bundle.batching import PARALLEL_CALLS, groups, taken
from bundle.encode import WindowRow, pad
from bundle.errors import ExportError
from bundle.folder import Bundle
from bundle.manifest import Setup
from bundle.predict import Run
from bundle.rows import read_rows
from export.session import open_session, run_of

if TYPE_CHECKING:
    from bundle.encode import Encoder

# Of the texts of a lap and their order.
SEED = 13
# Between two setups, so that the threads of the one before have stopped spinning.
PAUSE_SECONDS = 0.03


@dataclass(frozen=True)
class Mix:
    """Texts that stand for the dev split's lengths: those at evenly spaced places of it, sorted by length.

    Attributes:
        texts: the windows of each text, as the model reads them.
    """

    texts: tuple[tuple[WindowRow, ...], ...]
    pad_id: int

    @property
    def tokens(self) -> list[int]:
        """Tokens that the model reads of each text."""
        return [sum(len(row.ids) for row in text) for text in self.texts]

    def lap(self, number: int, size: int) -> list[tuple[WindowRow, ...]]:
        """The texts of one lap: evenly spaced by length as well, others in each lap, in a seeded order."""
        size = min(size, len(self.texts))
        dice = np.random.default_rng((SEED, number))
        edges = np.linspace(0, len(self.texts), size + 1).astype(int)
        chosen = [int(dice.integers(low, high)) for low, high in pairwise(edges)]
        return [self.texts[index] for index in dice.permutation(chosen)]


def mix_of(bundle: Bundle, encoder: Encoder, most: int) -> Mix:
    """The dev split's length mix in at most ``most`` texts.

    Raises:
        ExportError: the bundle has no dev rows.
    """
    split = bundle.manifest.splits.get("dev")
    rows = list(read_rows(bundle.path(split.file))) if split else []
    if not rows:
        raise ExportError(f"{bundle.root}: there are no dev rows, so there is no mix of lengths to plan for")
    rows.sort(key=lambda row: (len(row.text) + len(row.pair or ""), row.text))
    count = min(most, len(rows))
    places = [int((number + 0.5) * len(rows) / count) for number in range(count)]
    found = [encoder.encode(rows[place].text, rows[place].pair, truncate=True) for place in places]
    return Mix(tuple(tuple(encoder.rows(item)) for item in found), encoder.spec.pad_id)


@dataclass(frozen=True, slots=True)
class Lap:
    """One lap of a setup: how long it took (seconds), and each request from sent to answered (milliseconds)."""

    seconds: float
    latencies: tuple[float, ...]

    @property
    def texts_per_second(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def median(self) -> float:
        """Of the requests, in milliseconds."""
        return float(np.median(self.latencies))


@dataclass(slots=True)
class _Request:
    calls: Iterator[list[WindowRow]]
    open: int
    sent: float


@dataclass
class Traffic:
    """The clients of one lap, and the workers that compute for them: one for each session.

    Args:
        runs: a session each; the same one may stand several times.
        texts: what the clients send, in this order.
        clients: that are under way at a time.
    """

    setup: Setup
    runs: Sequence[Run]
    texts: Sequence[Sequence[WindowRow]]
    clients: int
    pad_id: int
    latencies: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._turn = threading.Condition()
        self._line: deque[tuple[_Request, list[WindowRow]]] = deque()
        self._next = iter(self.texts)
        self._failure: BaseException | None = None

    def drive(self) -> Lap:
        """Runs the lap to its end.

        Raises:
            ExportError: a session failed.
        """
        workers = [threading.Thread(target=self._work, args=(run,), daemon=True) for run in self.runs]
        begun = time.perf_counter()
        with self._turn:
            for _ in range(self.clients):
                self._send()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - begun
        if self._failure:
            raise ExportError(f"{self.setup}: {self._failure}") from self._failure
        return Lap(seconds, tuple(self.latencies))

    def _send(self) -> None:
        """A client's next request; nothing when the list is through."""
        text = next(self._next, None)
        if text is None:
            return
        # As `serving.classifier` cuts a request.
        rows = sorted(text, key=lambda row: len(row.ids)) if self.setup.by_length else list(text)
        size = self.setup.windows
        calls = [rows[start : start + size] for start in range(0, len(rows), size)]
        request = _Request(iter(calls), len(calls), time.perf_counter())
        for _ in range(PARALLEL_CALLS):
            self._queue(request)

    def _queue(self, request: _Request) -> None:
        call = next(request.calls, None)
        if call is not None:
            self._line.append((request, call))
            self._turn.notify()

    def _work(self, run: Run) -> None:
        try:
            while taken_calls := self._take():
                rows = [row for _, call in taken_calls for row in call]
                for group in groups([len(row.ids) for row in rows], self.setup.windows, self.setup.by_length):
                    run(*pad([rows[index] for index in group], self.pad_id))
                self._answer([request for request, _ in taken_calls])
        except BaseException as error:
            with self._turn:
                self._failure = error
                self._turn.notify_all()

    def _take(self) -> list[tuple[_Request, list[WindowRow]]]:
        """The calls of the next computation; none when the lap is over."""
        with self._turn:
            while not self._line:
                if self._failure or len(self.latencies) == len(self.texts):
                    return []
                self._turn.wait()
            count = taken((len(call) for _, call in self._line), self.setup.windows)
            return [self._line.popleft() for _ in range(count)]

    def _answer(self, requests: Sequence[_Request]) -> None:
        now = time.perf_counter()
        with self._turn:
            for request in requests:
                request.open -= 1
                self._queue(request)
                if not request.open:
                    self.latencies.append((now - request.sent) * 1000)
                    self._send()
            if len(self.latencies) == len(self.texts):
                self._turn.notify_all()


class Track:
    """Sets of sessions, opened when first needed and kept, on which setups are driven."""

    def __init__(self, bundle: Bundle, mix: Mix, warmup: int) -> None:
        self.bundle, self.mix, self.warmup = bundle, mix, warmup
        self._runs: dict[tuple[str, int], list[Run]] = {}
        self._streams: dict[tuple[str, int, int], list[Run]] = {}
        self._warm: set[Setup] = set()

    def runs(self, setup: Setup) -> list[Run]:
        """One session for each computation at a time.

        A session of one thread has no pool of its own and computes in whichever thread calls it, several at a time: one
        set of weights does for all. OpenVINO's streams share theirs.
        """
        if setup.runtime == "openvino":
            return self._on_openvino(setup)
        key = setup.artifact, setup.threads
        known = self._runs.setdefault(key, [])
        while len(known) < setup.sessions:
            if known and setup.threads == 1:
                known.append(known[0])
                continue
            path = self.bundle.path(self.bundle.manifest.artifacts[setup.artifact].file)
            known.append(run_of(open_session(path, setup.threads), self.bundle.manifest.signature))
        return known[: setup.sessions]

    def _on_openvino(self, setup: Setup) -> list[Run]:
        from export.on_openvino import open_streams

        key = setup.artifact, setup.sessions, setup.threads
        if key not in self._streams:
            manifest = self.bundle.manifest
            artifact = manifest.artifacts[setup.artifact]
            path = self.bundle.path(artifact.file)
            self._streams[key] = open_streams(path, manifest, artifact, setup.sessions, setup.threads)
        return self._streams[key]

    def drive(self, setup: Setup, clients: int, number: int, size: int) -> Lap:
        """One lap of a setup, after its warm-up where it is its first."""
        runs = self.runs(setup)
        time.sleep(PAUSE_SECONDS)
        if setup not in self._warm:
            self._warm.add(setup)
            texts = self.mix.lap(0, self.warmup)
            Traffic(setup, runs, texts, max(clients, setup.sessions), self.mix.pad_id).drive()
        return Traffic(setup, runs, self.mix.lap(number, size), clients, self.mix.pad_id).drive()
