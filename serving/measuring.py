"""Measures around the work: what is counted, logged and recorded of every request, in whatever language it came.

One stands at the door of HTTP and at that of gRPC. Its parts are `serving.telemetry` (metrics), `serving.logs`,
`serving.tracing` (ids) and, where the settings name a receiver, `serving.spans`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from serving.catalogue import ServedModel
from serving.classifier import Answers
from serving.logs import requests
from serving.settings import Settings
from serving.telemetry import Telemetry
from serving.tracing import Call, begin, current

if TYPE_CHECKING:
    from serving.spans import Recorder

# In the order in which they follow each other.
_STAGES = ("tokenize", "queue", "infer", "decode")
# Seconds between two looks at how late the event loop is.
_LAG_EVERY = 0.5


class Measuring:
    """What is seen of a gateway from outside.

    Raises:
        SlipwayError: a receiver of spans is set and the packages for it are not installed.
    """

    def __init__(self, settings: Settings) -> None:
        self.telemetry = Telemetry()
        self._log_requests, self._log_texts = settings.log_requests, settings.log_texts
        self._recorder: Recorder | None = None
        self._lag: asyncio.Task[None] | None = None
        if settings.otlp_endpoint:
            from serving.spans import Recorder

            self._recorder = Recorder(settings.otlp_endpoint, settings.trace_share)

    @property
    def watches_each(self) -> bool:
        """Whether of each request more is wanted than that it is counted."""
        return self._log_requests or self._recorder is not None

    def start(self) -> None:
        """Begins to watch the event loop that this is called on."""
        self._lag = asyncio.create_task(self._watch_loop(), name="event-loop-lag")

    async def stop(self) -> None:
        """Sends the last spans; can be called twice."""
        if self._lag:
            self._lag.cancel()
        if self._recorder:
            recorder, self._recorder = self._recorder, None
            await asyncio.to_thread(recorder.close)

    def begin(self, method: str, request_id: str = "", traceparent: str = "", tracestate: str = "") -> Call:
        """Begins a request; what it says of itself is taken up where it can be read."""
        self.telemetry.in_flight.inc()
        return begin(method, request_id, traceparent, tracestate, self._recorder.begin if self._recorder else None)

    def end(self, call: Call, route: str, status: int | str, *, failed: bool) -> None:
        """Ends a request: counts it, logs it, lets its span go.

        Args:
            route: the route's pattern, not the path: a caller must not be able to make new time series.
            failed: whether the fault is ours.
        """
        seconds = time.perf_counter() - call.begun
        self.telemetry.ended(route, status, seconds)
        if self._log_requests:
            facts = {"route": route, "status": status, "ms": round(seconds * 1000, 3), **call.facts}
            requests.info("answered", extra={"facts": facts})
        if call.span:
            known = {name: value for name, value in call.facts.items() if isinstance(value, int | str)}
            facts = {"http.route": route, "http.response.status_code": status, "slipway.request_id": call.request_id}
            facts |= {f"slipway.{name}": value for name, value in known.items()}
            call.span.end(facts, failed=str(status) if failed else "", name=f"{call.method} {route}".strip())

    def answered(self, model: ServedModel, answers: Answers) -> None:
        """Notes one prediction; a stream has several in one request."""
        self.telemetry.answered(model, answers)
        call = current.get()
        if call is None or not (self._log_requests or call.span):
            return
        facts = call.facts
        facts["model"] = model.name
        facts["version"] = model.manifest.version
        facts["texts"] = facts.get("texts", 0) + len(answers.answers)
        facts["windows"] = facts.get("windows", 0) + sum(len(item.encoded.windows) for item in answers.answers)
        if self._log_requests:
            stages = facts.setdefault("stages_ms", {})
            for stage, seconds in answers.seconds.items():
                stages[stage] = round(stages.get(stage, 0.0) + seconds * 1000, 3)
        if self._log_texts:
            said = [(item.text.text, item.text.pair) for item in answers.answers]
            facts.setdefault("inputs", []).extend(text if pair is None else [text, pair] for text, pair in said)
        if call.span:
            # The stages follow each other, so the spans are made when all have ended.
            at = time.time_ns() - round(answers.seconds["total"] * 1e9)
            for name, seconds in ((name, answers.seconds.get(name)) for name in _STAGES):  # type: ignore[call-overload]
                if seconds is not None:
                    ended = at + round(seconds * 1e9)
                    call.span.child(name, at).end({}, ended)
                    at = ended

    async def _watch_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_EVERY
            await asyncio.sleep(_LAG_EVERY)
            self.telemetry.loop_lag.observe(max(0.0, loop.time() - due))
