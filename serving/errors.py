"""The one table from error type to HTTP status, and the shape of an error: RFC 9457 problem details."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starlette.responses import Response

from bundle import errors
from serving.schemas import Problem

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of error: its name (the end of ``type``), title and status."""

    name: str
    title: str
    status: int


# The first line whose type fits is taken; so a class stands before its base.
TABLE: tuple[tuple[type[Exception], Kind], ...] = (
    (errors.MalformedRequest, Kind("malformed-request", "Malformed request", 400)),
    (errors.ModelUnknown, Kind("model-unknown", "Model unknown", 404)),
    (errors.TextTooLong, Kind("text-too-long", "Text too long", 413)),
    (errors.LimitExceeded, Kind("limit-exceeded", "Limit exceeded", 413)),
    (errors.InvalidText, Kind("invalid-text", "Invalid text", 422)),
    (errors.RequestError, Kind("invalid-request", "Invalid request", 422)),
    (errors.EngineUnavailable, Kind("engine-unavailable", "Engine unavailable", 503)),
    (errors.EngineTimeout, Kind("engine-timeout", "Engine timeout", 504)),
)
INTERNAL = Kind("internal", "Internal error", 500)
NO_ROUTE = Kind("no-such-route", "No such route", 404)
METHOD = Kind("method-not-allowed", "Method not allowed", 405)


def kind_of(error: Exception) -> Kind:
    """The line of the table for an error; what is not in it is a fault of ours."""
    return next((kind for type_, kind in TABLE if isinstance(error, type_)), INTERNAL)


def problem(kind: Kind, detail: str, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """An error that is no exception of ours, as a response."""
    return _response(_body(kind, detail, request_id), headers)


def problem_of(error: Exception, request_id: str) -> Response:
    """An exception as a response; nothing internal leaves with it."""
    headers = {}
    if isinstance(error, errors.EngineUnavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return _response(problem_body(error, request_id), headers)


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


def _response(body: Problem, headers: dict[str, str] | None) -> Response:
    return Response(body.model_dump_json(exclude_none=True), body.status, headers, MEDIA_TYPE)
