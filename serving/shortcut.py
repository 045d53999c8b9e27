"""The way from the door to the routes that answer predictions, past the framework.

These routes read their bodies and write their answers themselves, and depend on nothing but the request and names in
its path. What the framework does in between (contexts for dependencies and files, parameters that are validated, errors
that the door answers too) would do nothing for them, and cost a short text more than reading it. OpenAPI is still the
framework's, and so is everything that is not found here.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

# Called with the names in the path, and the request.
Endpoint: TypeAlias = Callable[..., Awaitable[Response]]


class Shortcut:
    """ASGI middleware behind the door, which answers whatever an endpoint raises.

    Args:
        routers: where the routes of the endpoints are declared.
        endpoints: those that need nothing of the framework.
    """

    def __init__(self, app: ASGIApp, *, routers: Iterable[APIRouter], endpoints: Iterable[Endpoint]) -> None:
        self._app, wanted = app, set(endpoints)
        self._known: list[tuple[re.Pattern[str], APIRoute, Endpoint]] = [
            (route.path_regex, route, route.endpoint)
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute) and route.endpoint in wanted
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and not scope["root_path"]:
            for pattern, route, endpoint in self._known:
                if found := pattern.match(scope["path"]):
                    scope["route"] = route
                    response = await endpoint(**found.groupdict(), request=Request(scope, receive, send))
                    await response(scope, receive, send)
                    return
        await self._app(scope, receive, send)
