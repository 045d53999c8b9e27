"""Spans that leave over OTLP: the only file that imports opentelemetry, and only where the settings name a receiver.

The packages are the extra `tracing`; serving installs and runs without them. Spans are sent from a thread of their own
in batches, and are dropped rather than waited for when the receiver is slow or away.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from bundle.errors import SlipwayError

# Seconds that one delivery may take, and so about how long a stop waits for the last one.
_DELIVERY_SECONDS = 3
SERVICE = "slipway"


class Recorder:
    """Records requests and sends them to an OTLP receiver over HTTP.

    Args:
        endpoint: its base, such as ``http://127.0.0.1:4318``; traces go to ``/v1/traces`` under it.
        share: of the requests whose caller has not decided, those that are recorded, 0 to 1.

    Raises:
        SlipwayError: the packages are not installed.
    """

    def __init__(self, endpoint: str, share: float = 1.0) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        except ImportError as error:
            raise SlipwayError(
                f"otlp_endpoint is set and {error.name} is not installed; `pip install 'slipway[tracing]'` brings it"
            ) from error
        self.api, self._share = trace, share
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_DELIVERY_SECONDS)
        self._provider = TracerProvider(
            # Whether a request is recorded was decided here, by share, or by the caller.
            sampler=ALWAYS_ON,
            resource=Resource.create({"service.name": SERVICE}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer: Any = self._provider.get_tracer(SERVICE)

    def begin(self, method: str, trace_id: str, parent_id: str, state: str) -> _Span | None:
        """The span of a request; see `serving.tracing.Spans`."""
        api = self.api
        if not trace_id:
            if random.random() >= self._share:
                return None
            root = api.set_span_in_context(api.INVALID_SPAN)
            return _Span(self, self.tracer.start_span(method or SERVICE, root, api.SpanKind.SERVER))
        parent = api.SpanContext(
            int(trace_id, 16),
            int(parent_id, 16),
            is_remote=True,
            trace_flags=api.TraceFlags(api.TraceFlags.SAMPLED),
            trace_state=api.TraceState.from_header([state]) if state else None,
        )
        context = api.set_span_in_context(api.NonRecordingSpan(parent))
        return _Span(self, self.tracer.start_span(method or SERVICE, context, api.SpanKind.SERVER))

    def close(self) -> None:
        """Sends what is left; takes a few seconds at most."""
        self._provider.shutdown()


class _Span:
    """One span of the SDK, as `serving.tracing.Span`."""

    def __init__(self, recorder: Recorder, span: Any) -> None:
        self._recorder, self._span = recorder, span
        context = span.get_span_context()
        self.trace_id, self.span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"

    def child(self, name: str, begun: int | None = None, *, client: bool = False) -> _Span:
        api = self._recorder.api
        kind = api.SpanKind.CLIENT if client else api.SpanKind.INTERNAL
        context = api.set_span_in_context(self._span)
        return _Span(self._recorder, self._recorder.tracer.start_span(name, context, kind, start_time=begun))

    def end(self, facts: Mapping[str, Any], ended: int | None = None, failed: str = "", name: str = "") -> None:
        if name:
            self._span.update_name(name)
        self._span.set_attributes(dict(facts))
        if failed:
            self._span.set_status(self._recorder.api.StatusCode.ERROR, failed)
        self._span.end(ended)
