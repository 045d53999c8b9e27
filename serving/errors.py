"""The one table from error type to status, in every dialect, and the shapes in which an error leaves.

Native routes answer RFC 9457 problem details. A dialect's clients know its own shape and its own codes, so an error of
one of its routes leaves in those.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from starlette.responses import Response
from starlette.types import Scope

from bundle import errors
from serving.schemas import Problem

MEDIA_TYPE = "application/problem+json"

# tei: text-embeddings-inference, and Hugging Face's inference API, which has the same shape.
Dialect: TypeAlias = Literal["native", "kserve", "tei", "paddlenlp"]
TeiErrorType: TypeAlias = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of error.

    Attributes:
        name: the end of a problem's ``type``.
        status: over HTTP, of native routes and wherever a dialect has no code of its own.
        kserve: HTTP status in the Open Inference Protocol; 0 stands for ``status``, here and in ``tei``.
        tei: HTTP status and ``error_type`` of text-embeddings-inference.
        grpc: the name of the gRPC status.
    """

    name: str
    title: str
    status: int
    kserve: int = 0
    tei: tuple[int, TeiErrorType] = (0, "Validation")
    grpc: str = "INVALID_ARGUMENT"

    def code(self, dialect: Dialect) -> int:
        """The HTTP status in a dialect."""
        return {"kserve": self.kserve, "tei": self.tei[0]}.get(dialect, 0) or self.status


# The first line whose type fits is taken; so a class stands before its base.
TABLE: tuple[tuple[type[Exception], Kind], ...] = (
    (errors.MalformedRequest, Kind("malformed-request", "Malformed request", 400)),
    (errors.ModelUnknown, Kind("model-unknown", "Model unknown", 404, grpc="NOT_FOUND")),
    (errors.NoForm, Kind("no-form", "No form for this answer", 422, kserve=400, tei=(424, "Backend"))),
    (errors.TextTooLong, Kind("text-too-long", "Text too long", 413)),
    (errors.LimitExceeded, Kind("limit-exceeded", "Limit exceeded", 413)),
    (errors.BodyTooSlow, Kind("body-too-slow", "Body too slow", 408)),
    (errors.InvalidText, Kind("invalid-text", "Invalid text", 422, kserve=400, tei=(0, "Tokenizer"))),
    (errors.RequestError, Kind("invalid-request", "Invalid request", 422, kserve=400)),
    (errors.VersionRefused, Kind("version-refused", "Version refused", 409, grpc="FAILED_PRECONDITION")),
    (errors.KeyMissing, Kind("key-missing", "Key missing", 401, grpc="UNAUTHENTICATED")),
    (errors.KeyUnknown, Kind("key-unknown", "Key unknown", 401, grpc="UNAUTHENTICATED")),
    (errors.AccessError, Kind("not-allowed", "Not allowed", 403, grpc="PERMISSION_DENIED")),
    (errors.ClientGone, Kind("client-gone", "Client gone", 499, grpc="CANCELLED")),
    (
        errors.Overloaded,
        Kind("overloaded", "Overloaded", 429, tei=(0, "Overloaded"), grpc="RESOURCE_EXHAUSTED"),
    ),
    (
        errors.RateLimited,
        Kind("rate-limited", "Rate limited", 429, tei=(0, "Overloaded"), grpc="RESOURCE_EXHAUSTED"),
    ),
    (
        errors.EngineUnavailable,
        Kind("engine-unavailable", "Engine unavailable", 503, tei=(0, "Unhealthy"), grpc="UNAVAILABLE"),
    ),
    (
        errors.EngineTimeout,
        Kind("engine-timeout", "Engine timeout", 504, tei=(424, "Backend"), grpc="DEADLINE_EXCEEDED"),
    ),
)
INTERNAL = Kind("internal", "Internal error", 500, tei=(0, "Backend"), grpc="INTERNAL")
NO_ROUTE = Kind("no-such-route", "No such route", 404)
METHOD = Kind("method-not-allowed", "Method not allowed", 405)
# Of a connection that is closed before a request is understood.
BUSY = Kind("too-many-connections", "Too many connections", 503)
HEADERS_LARGE = Kind("headers-too-large", "Headers too large", 431)
HEADERS_SLOW = Kind("headers-too-slow", "Headers too slow", 408)
NOT_HTTP = Kind("not-http", "Not HTTP", 400)

# Whose route it is; a route that two dialects share says so itself, once it has read the body.
_ROUTES: tuple[tuple[re.Pattern[str], Dialect], ...] = (
    # A caller may put a line break into a path (%0A), so that a dot must mean that too.
    (re.compile(r"[A-Z]+ /v2(/.*)?", re.DOTALL), "kserve"),
    (re.compile(r"[A-Z]+ /(predict|info|health)|POST /|[A-Z]+ /models/.*", re.DOTALL), "tei"),
    (re.compile(r"[A-Z]+ /taskflow/.*", re.DOTALL), "paddlenlp"),
)


# What was found in the table: each refusal asks three times, and an overload brings hundreds of them a second.
_KINDS: dict[type[Exception], Kind] = {}


def kind_of(error: Exception) -> Kind:
    """The line of the table for an error; what is not in it is a fault of ours."""
    kind = _KINDS.get(type(error))
    if kind is None:
        kind = _KINDS[type(error)] = next((kind for known, kind in TABLE if isinstance(error, known)), INTERNAL)
    return kind


def dialect_of(scope: Scope) -> Dialect:
    """The dialect that a request is made in."""
    place = f"{scope['method']} {scope['path']}"
    default: Dialect = next((dialect for pattern, dialect in _ROUTES if pattern.fullmatch(place)), "native")
    said: Dialect = scope.get("state", {}).get("dialect", default)
    return said


def problem(kind: Kind, detail: str, scope: Scope, headers: dict[str, str] | None = None) -> Response:
    """An error that is no exception of ours, as a response."""
    return _response(kind, _body(kind, detail, scope["state"]["request_id"]), dialect_of(scope), headers)


def problem_of(error: Exception, scope: Scope) -> Response:
    """An exception as a response in the dialect of the request; nothing internal leaves with it."""
    headers = {} if (seconds := retry_after(error)) is None else {"Retry-After": str(seconds)}
    if isinstance(error, errors.KeyMissing | errors.KeyUnknown):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.BodyTooSlow):
        headers["Connection"] = "close"  # the rest of the body is not waited for
    return _response(kind_of(error), problem_body(error, scope["state"]["request_id"]), dialect_of(scope), headers)


def retry_after(error: Exception) -> int | None:
    """Whole seconds after which the same request makes sense again; None where it does not."""
    if isinstance(error, errors.EngineUnavailable | errors.EngineTimeout | errors.BusyError):
        return max(1, math.ceil(error.retry_after))
    return None


def problem_body(error: Exception, request_id: str) -> Problem:
    """An exception as problem details; nothing internal leaves with it."""
    kind = kind_of(error)
    if kind is INTERNAL:
        return _body(kind, f"a fault of the server; its log tells more under the id {request_id}", request_id)
    if isinstance(error, errors.RequestError):
        return _body(kind, str(error), request_id, error.field, error.limit, error.value)
    return _body(kind, str(error), request_id)


def _body(
    kind: Kind,
    detail: str,
    request_id: str,
    field: str | None = None,
    limit: int | None = None,
    value: int | None = None,
) -> Problem:
    return Problem(
        type=f"urn:slipway:problem:{kind.name}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=f"urn:slipway:request:{request_id}",
        field=field,
        limit=limit,
        value=value,
    )


def _response(kind: Kind, body: Problem, dialect: Dialect, headers: dict[str, str] | None) -> Response:
    if dialect == "native":
        return Response(body.model_dump_json(exclude_none=True), body.status, headers, MEDIA_TYPE)
    shapes: dict[Dialect, dict[str, Any]] = {
        "kserve": {"error": body.detail},
        "tei": {"error": body.detail, "error_type": kind.tei[1]},
        "paddlenlp": {"detail": body.detail},
    }
    text = json.dumps(shapes[dialect], ensure_ascii=False)
    return Response(text, kind.code(dialect), headers, "application/json")
