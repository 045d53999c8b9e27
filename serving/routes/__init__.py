"""Routes: each file speaks one dialect and hands the work to the gateway."""

from __future__ import annotations

from typing import cast

from starlette.requests import Request

from serving.gateway import Gateway


def gateway_of(request: Request) -> Gateway:
    """The gateway that this application was made for."""
    return cast(Gateway, request.app.state.gateway)
