"""The ASGI application around a gateway: routes, errors, and a documentation page that needs no internet."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, RedirectResponse

from bundle.errors import SlipwayError
from serving.door import Door, log
from serving.errors import METHOD, NO_ROUTE, Kind, kind_of, problem, problem_of
from serving.gateway import Gateway
from serving.routes import admin, by_name, huggingface, kserve_v2, native, operations, paddlenlp, stream, tei
from serving.schemas import PredictRequest, Problem, refusal

# The files of Swagger UI, which the package fastapi-swagger carries; nothing else of it is used.
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
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
    app = FastAPI(
        title="Slipway",
        summary="Text classification and entity recognition, for texts of any length.",
        version="1",
        docs_url=None,
        redoc_url=None,
    )
    app.state.gateway = gateway
    app.include_router(native.router)
    app.include_router(stream.router)
    for dialect in (kserve_v2, tei, huggingface, paddlenlp, by_name):
        app.include_router(dialect.router)
    app.include_router(admin.router)
    app.include_router(operations.router)
    _add_docs(app)

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
        Door,
        measuring=gateway.measuring,
        keys=gateway.keys,
        max_body_bytes=gateway.settings.max_body_bytes,
        endless=stream.PATH,
    )
    return app


def _add_docs(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Slipway",
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="/docs/favicon-32x32.png",
            # Without this, Swagger UI would send every description to an outside validator.
            swagger_ui_parameters={"validatorUrl": None},
        )

    @app.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise HTTPException(404)
        with as_file(files("fastapi_swagger.resources") / name) as path:
            return FileResponse(path, media_type=_ASSETS[name], headers={"Cache-Control": "max-age=86400"})

    generated = app.openapi

    def openapi() -> dict[str, Any]:
        description = generated()
        schemas = description.setdefault("components", {}).setdefault("schemas", {})
        for model in _UNDECLARED:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        return description

    app.openapi = openapi  # type: ignore[method-assign]
