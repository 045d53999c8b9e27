"""What an administrator does to the versions of a model, under ``/v1/admin/models``: each call needs an admin key.

Takes care of keys, bodies and descriptions; what a change means is `serving.versions`.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from fastapi import APIRouter, Request
from fastapi import Path as FromPath
from pydantic import BaseModel, Field

from bundle.errors import AccessError
from bundle.manifest import Parity
from serving.door import log
from serving.gateway import Gateway
from serving.routes import gateway_of, reads, refuses
from serving.schemas import Strict, parse_as
from serving.versions import Canary, Line

router = APIRouter(prefix="/v1/admin/models/{model}", tags=["administration"])

_PROBLEMS = {
    400: "not JSON",
    401: "no key, or an unknown one",
    403: "the key is not an administrator's, or this server has no such key",
    404: "no such model or version",
    409: "the version is broken, does not compute what it promises, or is in use; what answered goes on answering",
    413: "the body is above its limit",
    422: "a field is wrong",
    503: "the engine cannot do this now; see Retry-After",
}
_CHANGES = (401, 403, 404, 409, 422, 503)


_problems = partial(refuses, _PROBLEMS)


class CanaryRequest(Strict):
    """A version and its share of the requests."""

    version: int = Field(ge=1)
    percent: float = Field(gt=0, le=100, description="of the requests; the same request always gets the same version")


class ShadowRequest(Strict):
    """A version that computes beside the one that serves."""

    version: int = Field(ge=1)


class CanaryView(BaseModel):
    version: int
    percent: float


class ShadowView(BaseModel):
    """How often the shadow agrees; texts are counted since it was set."""

    version: int
    texts: int = Field(description="texts that both versions answered")
    same: int = Field(description="those with the same labels and entities")
    share: float | None = Field(description="same / texts; null before the first")
    max_score_difference: float = Field(description="of a score that both gave to the same label or entity")
    dropped: int = Field(description="texts that were not computed, because requests came first")
    failed: int = Field(description="texts that the shadow could not answer")


class VersionView(BaseModel):
    """One version of a model."""

    version: int
    state: Literal["serving", "loaded", "kept"] = Field(description="kept: on disk, not loaded")
    roles: list[str] = Field(description="serving, previous (what a rollback serves), canary, shadow")
    format: str | None = Field(description="the artifact that answers; null unless loaded")
    created: str | None
    uses: int = Field(description="requests and streams that use it now")
    live: Parity | None = Field(description="what the engine measured on its golden rows when it was loaded")


class VersionsView(BaseModel):
    """A model's versions and what each is there for."""

    model: str
    serving: int
    previous: int | None
    survives: bool = Field(description="false: the last promotion could not be written down; a restart will not know")
    canary: CanaryView | None
    shadow: ShadowView | None
    versions: list[VersionView]


@router.get("/versions", response_model=VersionsView, responses=_problems(401, 403, 404), summary="Versions of a model")
async def list_versions(model: str, request: Request) -> VersionsView:
    """What is loaded, what lies on disk, what is on trial and how the trial goes."""
    return _view(*_administered(request, model)[:2])


@router.post(
    "/versions/{version}:load", response_model=VersionsView, responses=_problems(*_CHANGES), summary="Load a version"
)
async def load(model: str, request: Request, version: int = FromPath(ge=1)) -> VersionsView:
    """Loads a kept version beside the one that serves, once its checksums and golden rows are right."""
    gateway, name, by = _administered(request, model)
    await gateway.versions.load(name, version, by)
    return _view(gateway, name)


@router.post(
    "/versions/{version}:promote",
    response_model=VersionsView,
    responses=_problems(*_CHANGES),
    summary="Let a version serve",
)
async def promote(model: str, request: Request, version: int = FromPath(ge=1)) -> VersionsView:
    """The version answers from now on, loaded first if need be; the one before stays for a rollback; trials end."""
    gateway, name, by = _administered(request, model)
    await gateway.versions.promote(name, version, by)
    return _view(gateway, name)


@router.post(
    "/versions/{version}:unload",
    response_model=VersionsView,
    responses=_problems(*_CHANGES),
    summary="Unload a version",
)
async def unload(model: str, request: Request, version: int = FromPath(ge=1)) -> VersionsView:
    """Refused while it serves, is on trial, or a request still uses it."""
    gateway, name, by = _administered(request, model)
    await gateway.versions.unload(name, version, by)
    return _view(gateway, name)


@router.post(
    ":rollback", response_model=VersionsView, responses=_problems(*_CHANGES), summary="Let the version before serve"
)
async def rollback(model: str, request: Request) -> VersionsView:
    """Promotes the version that served before; asked twice, it is as it was."""
    gateway, name, by = _administered(request, model)
    await gateway.versions.rollback(name, by)
    return _view(gateway, name)


@router.put(
    "/canary",
    response_model=VersionsView,
    responses=_problems(400, 413, *_CHANGES),
    openapi_extra=reads(CanaryRequest),
    summary="Let a version answer a share of the requests",
)
async def set_canary(model: str, request: Request) -> VersionsView:
    """Which requests is decided by a hash of their bodies; each answer names its version. Loads it if need be."""
    gateway, name, by = _administered(request, model)
    wanted = parse_as(CanaryRequest, await request.body())
    await gateway.versions.set_canary(name, Canary(wanted.version, wanted.percent), by)
    return _view(gateway, name)


@router.delete("/canary", response_model=VersionsView, responses=_problems(401, 403, 404), summary="End the canary")
async def end_canary(model: str, request: Request) -> VersionsView:
    """All requests go to the version that serves; the canary stays loaded."""
    gateway, name, by = _administered(request, model)
    await gateway.versions.set_canary(name, None, by)
    return _view(gateway, name)


@router.put(
    "/shadow",
    response_model=VersionsView,
    responses=_problems(400, 413, *_CHANGES),
    openapi_extra=reads(ShadowRequest),
    summary="Compare a version with the one that serves",
)
async def set_shadow(model: str, request: Request) -> VersionsView:
    """It computes what was answered, behind all requests, and is compared; nobody sees it answer. Counts begin anew."""
    gateway, name, by = _administered(request, model)
    wanted = parse_as(ShadowRequest, await request.body())
    await gateway.versions.set_shadow(name, wanted.version, by)
    return _view(gateway, name)


@router.delete("/shadow", response_model=VersionsView, responses=_problems(401, 403, 404), summary="End the shadow")
async def end_shadow(model: str, request: Request) -> VersionsView:
    """Its counts go with it; the version stays loaded."""
    gateway, name, by = _administered(request, model)
    await gateway.versions.set_shadow(name, None, by)
    return _view(gateway, name)


def _administered(request: Request, model: str) -> tuple[Gateway, str, str]:
    """The gateway, the name of the model, and who asks, for the log.

    Raises:
        AccessError: who asks may not; told in the log.
        ModelUnknown: no such model.
    """
    gateway = gateway_of(request)
    try:
        caller = gateway.keys.admin(request.headers.get("authorization"))
    except AccessError as error:
        log.warning("request %s to %s is refused: %s", request.state.request_id, request.url.path, error)
        raise
    return gateway, gateway.model(model).name, f"key {caller.name}, request {request.state.request_id}"


def _view(gateway: Gateway, name: str) -> VersionsView:
    versions = gateway.versions
    line = versions.line(name)
    assert line is not None
    numbers = sorted({*line.loaded, *versions.on_disk(name)})
    return VersionsView(
        model=name,
        serving=line.serving,
        previous=line.previous,
        survives=line.survives,
        canary=CanaryView(version=line.canary.version, percent=line.canary.percent) if line.canary else None,
        shadow=_shadow_view(line),
        versions=[_version_view(gateway, line, number) for number in numbers],
    )


def _version_view(gateway: Gateway, line: Line, number: int) -> VersionView:
    item = line.loaded.get(number)
    return VersionView(
        version=number,
        state="serving" if number == line.serving else "loaded" if item else "kept",
        roles=line.roles(number),
        format=item.model.format if item else None,
        created=item.model.manifest.made.created if item else None,
        uses=gateway.versions.uses(item.model) if item else 0,
        live=item.live if item else None,
    )


def _shadow_view(line: Line) -> ShadowView | None:
    if line.shadow is None:
        return None
    seen = line.shadow.agreement
    return ShadowView(
        version=line.shadow.second.version,
        texts=seen.texts,
        same=seen.counts["same"],
        share=seen.share,
        max_score_difference=round(seen.max_score_difference, 6),
        dropped=seen.counts["dropped"],
        failed=seen.counts["failed"],
    )
