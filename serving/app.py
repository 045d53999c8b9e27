"""The ASGI application around a gateway: routes, errors, what OpenAPI says, and which origins may ask."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from bundle.errors import SlipwayError
from serving.door import Door, log
from serving.errors import METHOD, NO_ROUTE, Kind, kind_of, problem, problem_of
from serving.gateway import Gateway
from serving.routes import admin, by_name, huggingface, kserve_v2, native, operations, paddlenlp, stream, tei, web
from serving.schemas import PredictRequest, Problem, refusal
from serving.shortcut import Shortcut

# What the door answers before a route is reached; in the shape of the route's other refusals.
_DOOR = {
    "401": "a key is needed, or what was sent is none",
    "408": "the body did not arrive in time",
    "413": "the body is above its limit",
    "429": "too many texts for this key, or too many requests; see Retry-After",
    "503": "not now; see Retry-After",
}

# Models that no route declares: bodies are parsed, and problems are written, outside the framework.
_UNDECLARED: tuple[type[BaseModel], ...] = (
    PredictRequest,
    Problem,
    stream.StreamAnswer,
    kserve_v2.InferRequest,
    tei.TeiPredictRequest,
    huggingface.HfRequest,
    paddlenlp.PaddleRequest,
    admin.CanaryRequest,
    admin.ShadowRequest,
)


def make_app(gateway: Gateway) -> FastAPI:
    """The application of a gateway, which may be started before or after."""
    settings = gateway.settings
    app = FastAPI(
        title="Slipway",
        summary="Text classification and entity recognition, for texts of any length.",
        version="1",
        docs_url=None,
        redoc_url=None,
        # The framework would build such a redirect from the caller's own Host header.
        redirect_slashes=False,
    )
    app.state.gateway = gateway
    app.include_router(native.router)
    app.include_router(stream.router)
    for dialect in (kserve_v2, tei, huggingface, paddlenlp, by_name):
        app.include_router(dialect.router)
    app.include_router(admin.router)
    app.include_router(operations.router)
    app.include_router(web.router)
    _complete_description(app)

    async def refused(request: Request, error: Exception) -> Response:
        kind = kind_of(error)
        if kind.status == 500:
            log.error("request %s failed", request.state.request_id, exc_info=error)
        gateway.telemetry.errors.labels(kind.name).inc()
        return problem_of(error, request.scope)

    async def unrouted(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = {404: NO_ROUTE, 405: METHOD}
        kind = known.get(error.status_code, Kind("http", str(error.detail), error.status_code))
        gateway.telemetry.errors.labels(kind.name).inc()
        detail = f"there is no {request.method} {request.url.path} here; /docs lists what there is"
        headers = dict(error.headers or {})
        return problem(kind, detail, request.scope, headers)

    async def misasked(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        # A parameter's place begins with where it stood: query or path.
        return await refused(request, refusal({**first, "loc": first["loc"][1:]}, str(first["loc"][0])))

    app.add_exception_handler(SlipwayError, refused)
    app.add_exception_handler(RequestValidationError, misasked)
    app.add_exception_handler(HTTPException, unrouted)
    app.add_middleware(
        Shortcut,
        routers=(native.router, tei.router),
        endpoints=(native.predict, tei.predict, tei.predict_by_name),
    )
    app.add_middleware(
        Door,
        measuring=gateway.measuring,
        keys=gateway.keys,
        settings=gateway.settings,
        check_room=gateway.check_room,
        endless=stream.PATH,
    )
    if settings.origins:
        # Outermost, so that a page of such an origin can read refusals as well. No cookies: keys come in a header.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Priority", "X-Request-Id", "X-Request-Timeout-Ms"],
            expose_headers=["Retry-After", "Server-Timing", "X-Model-Version", "X-Request-Id"],
        )
    return app


def _complete_description(app: FastAPI) -> None:
    """Adds to what OpenAPI says: the models that no route declares, and what the door answers in any route's place."""
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        description = generated()
        schemas = description.setdefault("components", {}).setdefault("schemas", {})
        for model in _UNDECLARED:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        for methods in description["paths"].values():
            for asked in methods.values():
                if "requestBody" in asked and (like := asked["responses"].get("413")):
                    for status, said in _DOOR.items():
                        asked["responses"].setdefault(status, {**like, "description": said})
        return description

    app.openapi = openapi  # type: ignore[method-assign]
