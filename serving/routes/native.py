"""The native dialect: predictions and model descriptions under ``/v1/models``."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from bundle.decode import thresholds
from serving.catalogue import ServedModel
from serving.routes import body_of, chosen, gateway_of, reads, refuses
from serving.schemas import (
    FormatView,
    LoadedVersion,
    ModelDetail,
    ModelList,
    ModelSummary,
    PredictRequest,
    PredictResponse,
    TextLimits,
    Timing,
    parse_request,
)
from serving.views import Shape, prediction_of

router = APIRouter(prefix="/v1/models", tags=["models"])

_EXAMPLES = {
    "one text": {"value": {"inputs": "这家酒店位置很好，服务也很周到。"}},
    "several texts, best label only": {"value": {"inputs": ["早餐种类太少。", "房间干净整洁。"], "top_k": 1}},
    "text pairs": {"value": {"inputs": [{"text": "怎么修改收货地址", "pair": "如何更改配送地址"}]}},
    "a long text, window by window": {
        "value": {"inputs": "（一篇长文章）……", "return_windows": True, "truncate": False}
    },
}
_PROBLEMS = {
    400: "not JSON",
    401: "a key is needed",
    404: "no such model",
    413: "a text, the list or the body is above its limit",
    422: "a field is wrong",
    429: "full, or more than the key may ask for; see Retry-After",
    503: "the engine cannot answer now; see Retry-After",
    504: "no answer in time",
}


problems = partial(refuses, _PROBLEMS)


@router.post(
    "/{model}/predict",
    response_model=PredictResponse,
    responses=problems(400, 401, 404, 413, 422, 429, 503, 504),
    summary="Classify texts or find entities",
    openapi_extra=reads(PredictRequest, examples=_EXAMPLES),
)
async def predict(model: str, request: Request) -> Response:
    """Answers each text, however long: long texts are read in overlapping windows and pooled."""
    gateway = gateway_of(request)
    body = await body_of(request)
    name = gateway.model(model).name
    # Parsed here and not by the framework, so that no input can reach a parser without limits.
    wanted = parse_request(body)
    served = chosen(request, name, body, wanted.version)
    texts = wanted.texts()
    answers = await gateway.answer(served, texts, truncate=wanted.truncate)
    timing = {stage: round(seconds * 1000, 3) for stage, seconds in answers.seconds.items()}
    shape = Shape(wanted.top_k, wanted.return_windows, wanted.offset_unit)
    response = PredictResponse(
        model=served.name,
        version=served.manifest.version,
        format=served.format,
        predictions=[prediction_of(served, answer, shape) for answer in answers.answers],
        timing_ms=Timing.model_validate(timing),
    )
    return Response(
        response.model_dump_json(exclude_none=True),
        media_type="application/json",
        headers={"Server-Timing": ", ".join(f"{stage};dur={value}" for stage, value in timing.items())},
    )


@router.get("", response_model=ModelList, summary="The models served here")
async def list_models(request: Request) -> ModelList:
    """Name, task, version and format of every model."""
    return ModelList(models=[_summary(model) for model in gateway_of(request).models.values()])


@router.get("/{model}", response_model=ModelDetail, responses=problems(404), summary="One model")
async def describe_model(model: str, request: Request) -> ModelDetail:
    """The public part of the model's manifest: labels, scores, formats, licences, limits."""
    gateway = gateway_of(request)
    served = gateway.model(model)
    manifest, text = served.manifest, served.manifest.text
    line = gateway.versions.line(served.name)
    loaded = line.loaded if line else {}
    return ModelDetail(
        **_summary(served).model_dump(),
        versions=[LoadedVersion(version=number, roles=line.roles(number) if line else []) for number in sorted(loaded)],
        text=TextLimits(
            max_tokens=text.max_tokens,
            overlap=text.overlap,
            max_windows=served.max_windows,
            pooling=text.pooling,
            max_texts=gateway.settings.max_texts,
            max_body_bytes=gateway.settings.max_body_bytes,
        ),
        scores=manifest.scores,
        formats={
            name: FormatView(
                precision=item.precision,
                bytes=item.bytes,
                sha256=item.sha256,
                published=name == served.format,
                parity=item.parity,
                quality=item.quality,
            )
            for name, item in manifest.artifacts.items()
        },
        licences={"data": manifest.made.data, "base": manifest.made.base},
        recipe=manifest.made.recipe,
        form=manifest.made.form,
        architecture=manifest.made.architecture,
        created=manifest.made.created,
        live=loaded[served.version].live if served.version in loaded else None,
    )


def _summary(model: ServedModel) -> ModelSummary:
    task = model.manifest.task
    return ModelSummary(
        name=model.name,
        task=task.kind,
        version=model.manifest.version,
        format=model.format,
        precision=model.artifact.precision,
        labels=[*task.class_labels, *task.entity_types],
        entity_types=list(task.entity_types),
        thresholds=dict(zip(task.labels, thresholds(task), strict=True)) if task.kind == "multi-label" else {},
        max_tokens=model.manifest.text.max_tokens,
        max_windows=model.max_windows,
    )
