"""What belongs together: request ids and W3C trace contexts, known to whatever runs for a request.

A caller's `traceparent` is taken up, or a trace begun; ours is returned to the caller and given on to Triton. Needs no
package. Spans that leave over OTLP are `serving.spans`, which is there only where the settings name a receiver.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
# W3C Trace Context, level 1: version, trace id, the caller's span id, flags; later versions may add fields behind.
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE_CHARACTERS = 512
SAMPLED = 1


class Span(Protocol):
    """A span that is recorded."""

    trace_id: str
    span_id: str

    def child(self, name: str, begun: int | None = None, *, client: bool = False) -> Span:
        """A span within this one; ``begun`` is in nanoseconds since 1970, now where it is left out."""

    def end(self, facts: Mapping[str, Any], ended: int | None = None, failed: str = "", name: str = "") -> None:
        """Ends it, with what is known of it; ``name`` replaces that which it began with."""


# Begins a request's span: name, the caller's trace id, span id and tracestate, all empty where it gave none; None where
# it is not recorded.
Spans = Callable[[str, str, str, str], Span | None]


@dataclass(slots=True)
class Call:
    """The request under way.

    Attributes:
        parent_id: the caller's span; empty where it named none.
        state: the caller's `tracestate`, given on as it is.
        span: None where nothing is recorded.
        facts: what is known of it by its end, for the log; never a text, unless the settings ask for that.
        begun: when, by `time.perf_counter`.
    """

    request_id: str
    trace_id: str
    span_id: str
    parent_id: str = ""
    flags: int = 0
    state: str = ""
    method: str = ""
    span: Span | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    begun: float = field(default_factory=time.perf_counter)

    @property
    def traceparent(self) -> str:
        return _header(self.trace_id, self.span_id, self.flags)


current: ContextVar[Call | None] = ContextVar("call", default=None)


def begin(
    method: str, request_id: str = "", traceparent: str = "", tracestate: str = "", spans: Spans | None = None
) -> Call:
    """Begins a request, as part of the caller's trace where it named one that can be read.

    Args:
        method: of HTTP; empty otherwise.
        request_id: the caller's own; another is made where it is missing or is none.
        spans: records it, if the caller's trace is recorded, or if there is none.
    """
    # One look at the system's randomness for all that this request may need.
    fresh = secrets.token_hex(32)
    if not ID.fullmatch(request_id):
        request_id = fresh[:16]
    trace_id, parent_id, flags = _read(traceparent)
    state = tracestate if trace_id and len(tracestate) <= _STATE_CHARACTERS and tracestate.isascii() else ""
    wanted = spans is not None and (not trace_id or flags & SAMPLED)
    span = spans(method, trace_id, parent_id, state) if spans and wanted else None
    if span:
        call = Call(request_id, span.trace_id, span.span_id, parent_id, SAMPLED, state, method, span)
    else:
        call = Call(request_id, trace_id or fresh[16:48], fresh[48:], parent_id, flags, state, method)
    current.set(call)
    return call


def _read(traceparent: str) -> tuple[str, str, int]:
    """Trace id, span id and flags; empty where the header is missing or invalid, which the standard has ignored."""
    found = _PARENT.fullmatch(traceparent.strip())
    if not found:
        return "", "", 0
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
        return "", "", 0
    return trace_id, span_id, int(flags, 16) & SAMPLED


def _header(trace_id: str, span_id: str, flags: int) -> str:
    return f"00-{trace_id}-{span_id}-{flags:02x}"


@contextmanager
def outgoing(name: str) -> Iterator[dict[str, str]]:
    """Around a call to Triton: what to send along. Empty outside of a request, as in a golden run.

    Triton (2.43) records whatever names a trace, also one whose caller records nothing; so such a trace is not named.
    """
    call = current.get()
    if call is None:
        yield {}
        return
    headers = {"x-request-id": call.request_id}
    if call.flags & SAMPLED:
        headers["traceparent"] = call.traceparent
        if call.state:
            headers["tracestate"] = call.state
    if call.span is None:
        yield headers
        return
    span = call.span.child(name, client=True)
    headers["traceparent"] = _header(span.trace_id, span.span_id, SAMPLED)
    failed = ""
    try:
        yield headers
    except BaseException as error:
        failed = type(error).__name__
        raise
    finally:
        span.end({}, failed=failed)
