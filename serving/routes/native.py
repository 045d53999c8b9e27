"""The native dialect: predictions and model descriptions under ``/v1/models``."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from bundle.decode import FloatArray
from bundle.errors import LimitExceeded
from bundle.offsets import converter
from serving.catalogue import ServedModel
from serving.classifier import Answer
from serving.routes import gateway_of
from serving.schemas import (
    EntityPrediction,
    EntityView,
    FormatView,
    LabelPrediction,
    LabelScore,
    ModelDetail,
    ModelList,
    ModelSummary,
    PredictRequest,
    PredictResponse,
    TextLimits,
    Timing,
    WindowView,
    parse_request,
)

router = APIRouter(prefix="/v1/models", tags=["models"])

# Characters of a window's first and last words in an answer.
EDGE = 12

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
    404: "no such model",
    413: "a text, the list or the body is above its limit",
    422: "a field is wrong",
    503: "the engine cannot answer now; see Retry-After",
    504: "no answer in time",
}


def problems(*statuses: int) -> dict[int | str, dict[str, object]]:
    """Error responses for the API description."""
    return {
        status: {
            "description": _PROBLEMS[status],
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


@router.post(
    "/{model}/predict",
    response_model=PredictResponse,
    responses=problems(400, 404, 413, 422, 503, 504),
    summary="Classify texts or find entities",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": f"#/components/schemas/{PredictRequest.__name__}"},
                    "examples": _EXAMPLES,
                }
            },
        }
    },
)
async def predict(model: str, request: Request) -> Response:
    """Answers each text, however long: long texts are read in overlapping windows and pooled."""
    gateway = gateway_of(request)
    served = gateway.model(model)
    # Parsed here and not by the framework, so that no input can reach a parser without limits.
    wanted = parse_request(await request.body())
    texts = wanted.texts()
    if len(texts) > gateway.settings.max_texts:
        raise LimitExceeded("inputs", "texts", len(texts), gateway.settings.max_texts)
    answers = await gateway.classifier.answer(served, texts, truncate=wanted.truncate)
    gateway.telemetry.answered(served.name, answers)
    timing = {stage: round(seconds * 1000, 3) for stage, seconds in answers.seconds.items()}
    response = PredictResponse(
        model=served.name,
        version=served.manifest.version,
        format=served.format,
        predictions=[_prediction(served, answer, wanted) for answer in answers.answers],
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
    return ModelDetail(
        **_summary(served).model_dump(),
        text=TextLimits(
            max_tokens=text.max_tokens,
            overlap=text.overlap,
            max_windows=text.max_windows,
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
        live=gateway.measured.get(served.name),
    )


def _summary(model: ServedModel) -> ModelSummary:
    task = model.manifest.task
    return ModelSummary(
        name=model.name,
        task=task.kind,
        version=model.manifest.version,
        format=model.format,
        precision=model.artifact.precision,
        labels=list(task.entity_types or task.labels),
        max_tokens=model.manifest.text.max_tokens,
        max_windows=model.manifest.text.max_windows,
    )


def _prediction(model: ServedModel, answer: Answer, wanted: PredictRequest) -> LabelPrediction | EntityPrediction:
    encoded, found = answer.encoded, answer.classified
    reading: dict[str, Any] = {
        "tokens": encoded.tokens,
        "windows": len(encoded.windows),
        "covered": encoded.covered,
        "truncated": encoded.truncated,
        "window_list": _windows(model, answer, wanted) if wanted.return_windows else None,
    }
    if found is None:
        text = answer.text.text
        at = converter(text, wanted.offset_unit)
        entities = [
            EntityView(
                label=item.label,
                text=text[item.start : item.end],
                start=at(item.start),
                end=at(item.end),
                score=round(item.score, 6),
            )
            for item in answer.tagged
        ]
        return EntityPrediction(entities=entities, **reading)
    scores = _ranked(model, found.scores, wanted.top_k)
    return LabelPrediction(label=scores[0].label, score=scores[0].score, scores=scores, **reading)


def _ranked(model: ServedModel, scores: FloatArray, top_k: int | None) -> list[LabelScore]:
    """Labels, best first; equal scores in label order, as argmax has it."""
    order = np.argsort(-scores, kind="stable")[:top_k]
    labels = model.manifest.task.labels
    return [LabelScore(label=labels[index], score=round(float(scores[index]), 6)) for index in order]


def _windows(model: ServedModel, answer: Answer, wanted: PredictRequest) -> list[WindowView]:
    encoded, found = answer.encoded, answer.classified
    at = converter(encoded.text, wanted.offset_unit)
    views = []
    for number, window in enumerate(encoded.windows):
        read = encoded.text[window.start : window.end]
        views.append(
            WindowView(
                start=at(window.start),
                end=at(window.end),
                side="pair" if encoded.other_first else "text",
                begins=read[:EDGE],
                ends=read[-EDGE:],
                tokens=window.last - window.first,
                weight=None if found is None else round(float(found.weights[number]), 6),
                scores=None if found is None else _ranked(model, found.window_scores[number], wanted.top_k),
            )
        )
    return views
