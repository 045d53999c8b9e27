"""What an operator asks: is it alive, is it ready, what did it do."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serving.routes import gateway_of
from serving.schemas import Health
from serving.telemetry import CONTENT_TYPE

router = APIRouter(tags=["operations"])


@router.get("/health/live", response_model=Health, summary="Is the process alive?")
async def live() -> Health:
    """200 as long as the process answers at all; says nothing about the engine."""
    return Health(status="live")


@router.get(
    "/health/ready",
    response_model=Health,
    responses={503: {"model": Health, "description": "a model cannot answer now, or the server is stopping"}},
    summary="Can every model answer?",
)
async def ready(request: Request, response: Response) -> Health:
    """503 while a model cannot answer, with the reason for each."""
    gateway = gateway_of(request)
    reasons = await gateway.not_ready()
    if reasons:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    models = {name: reasons.get(name, "ready") for name in gateway.models}
    return Health(status="not ready" if reasons else "ready", models=models)


@router.get("/metrics", response_class=Response, summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """Requests, errors by kind, latency per stage, windows per text, engine state."""
    gateway = gateway_of(request)
    reasons = await gateway.not_ready()
    gateway.telemetry.model_info.clear()
    for name, model in gateway.models.items():
        gateway.telemetry.engine_up.labels(gateway.engine.name, name).set(name not in reasons)
        version = str(model.manifest.version)
        gateway.telemetry.model_info.labels(name, version, model.format, gateway.engine.name).set(1)
    classifier = gateway.classifier
    for name, lane in classifier.admission.lanes.items():
        gateway.telemetry.queue_tokens.labels(name).set(lane.tokens)
        gateway.telemetry.drain_rate.labels(name).set(lane.turns.drain.rate)
    gateway.telemetry.cache_entries.set(len(classifier.cache))
    gateway.telemetry.cache_bytes.set(classifier.cache.bytes)
    gateway.telemetry.outside.troubles = gateway.engine.troubles
    gateway.telemetry.outside.told = await gateway.engine.statistics()
    return Response(gateway.telemetry.exposition(), media_type=CONTENT_TYPE)
