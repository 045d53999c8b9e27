"""Routes: each file speaks one dialect and hands the work to the gateway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request

from serving.catalogue import ServedModel
from serving.gateway import Gateway


def gateway_of(request: Request) -> Gateway:
    """The gateway that this application was made for."""
    return cast(Gateway, request.app.state.gateway)


async def body_of(request: Request) -> bytes:
    """The whole body, which is mostly there already; read without the framework's generator of its parts.

    Raises:
        ClientDisconnect: the caller hung up first.
    """
    parts, more = [], True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def chosen(request: Request, name: str, body: bytes, version: int | None = None) -> ServedModel:
    """The version of a model that answers this request; every answer names it in ``X-Model-Version`` (`serving.door`).

    Args:
        name: of the model; empty for the default one.
        body: by which a canary's share is told from the others.
        version: the one that the caller asks for; None leaves it to the server.

    Raises:
        ModelUnknown, RequestError: no such model or version, or no default one.
    """
    gateway = gateway_of(request)
    name = name or gateway.default_model().name
    model = gateway.versions.find(name, str(version)) if version else gateway.choose(name, body)
    request.state.model_version = model.version
    return model


def refuses(problems: Mapping[int, str], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of a native route's errors.

    Args:
        problems: what each status means there.
        statuses: those that the route has.
    """
    return {
        status: {
            "description": problems[status],
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def reads(*bodies: type[BaseModel], **more: object) -> dict[str, Any]:
    """What OpenAPI says of a JSON body that a route parses itself, so that no input reaches a parser without limits.

    Args:
        bodies: the form that it has, or the forms of which it has one.
        more: what else stands with the schema, such as ``examples``.
    """
    known = [{"$ref": f"#/components/schemas/{body.__name__}"} for body in bodies]
    schema = known[0] if len(known) == 1 else {"oneOf": known}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, **more}}}}
