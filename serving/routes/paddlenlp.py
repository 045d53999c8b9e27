"""The dialect of PaddleNLP's SimpleServer, for those who migrate: ``{"data", "parameters"}`` in, ``{"result"}`` out.

``/models/{model}`` answers as the handlers of a registered model do (label ids and confidences), ``/taskflow/{model}``
as a registered Taskflow does (labels by name). Entities leave in the form of information extraction from both. Label
ids are those of the bundle; ``name`` is added, since that server's callers keep lists of their own.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, JsonValue

from bundle.errors import NoForm, RequestError
from serving.catalogue import ServedModel
from serving.classifier import Answer, Text
from serving.gateway import Gateway
from serving.routes import chosen, gateway_of, reads
from serving.schemas import Strict, parse_as, parse_object
from serving.views import Shape, entities_of, short

router = APIRouter(tags=["PaddleNLP SimpleServer"])


class PaddleData(Strict):
    text: str | list[str] = Field(description="one text or a list of texts")
    text_pair: str | list[str] | None = Field(default=None, description="the second texts, as many")


class PaddleParameters(Strict):
    max_seq_len: int | None = Field(default=None, description="accepted and not needed: texts are read whole")
    batch_size: int | None = Field(default=None, description="accepted and not needed")
    return_attention_mask: bool | None = Field(default=None, description="accepted and not needed")
    truncate: bool = Field(default=False, description="read only the first max_windows windows of a longer text")


class PaddleRequest(Strict):
    """What the client of a SimpleServer sends."""

    data: PaddleData
    parameters: PaddleParameters = PaddleParameters()


class PaddleResult(BaseModel):
    result: JsonValue


class PaddleError(BaseModel):
    detail: str


@router.post(
    "/taskflow/{model}",
    response_model=PaddleResult,
    responses={
        status: {"model": PaddleError, "description": why}
        for status, why in {
            400: "not JSON",
            401: "a key is needed",
            404: "no such model",
            413: "a text, the list or the body is above its limit",
            422: "a field or a text is wrong, or there is no form for the answer",
            429: "full, or more than the key may ask for; see Retry-After",
            503: "the engine cannot answer now; see Retry-After",
            504: "no answer in time",
        }.items()
    },
    openapi_extra=reads(PaddleRequest),
    summary="Answer as a Taskflow does",
)
async def taskflow(model: str, request: Request) -> Response:
    """One object for each text: its labels by name, or its entities by type."""
    body = await request.body()
    return await answered(gateway_of(request), chosen(request, model, body), parse_object(body), taskflow=True)


async def answered(
    gateway: Gateway, model: ServedModel, body: dict[str, JsonValue], *, taskflow: bool = False
) -> Response:
    """Answers a body of this dialect.

    Args:
        taskflow: in the form of a Taskflow instead of a model handler's.

    Raises:
        RequestError: the body is none, or there is no form for what the model answers.
        EngineUnavailable, EngineTimeout: no answer now.
    """
    wanted = parse_as(PaddleRequest, body)
    task = model.manifest.task
    if task.classifies and task.tags:
        instead = f"ask POST /v1/models/{model.name}/predict"
        raise NoForm("PaddleNLP's SimpleServer", model.name, task.kind, instead)
    texts = _texts(model, wanted.data)
    answers = (await gateway.answer(model, texts, truncate=wanted.parameters.truncate, field="data.text")).answers
    result: Any
    if task.tags:
        result = [_extracted(answer) for answer in answers]
    elif taskflow:
        result = [_predicted(model, answer) for answer in answers]
    else:
        result = _handled(model, answers)
    return Response(json.dumps({"result": result}, ensure_ascii=False), media_type="application/json")


def _texts(model: ServedModel, data: PaddleData) -> list[Text]:
    texts = [data.text] if isinstance(data.text, str) else data.text
    if not texts:
        raise RequestError("data.text", "data.text is an empty list", limit=1)
    if model.manifest.task.kind != "text-pair":
        if data.text_pair is not None:
            raise RequestError("data.text_pair", f"{model.name!r} reads single texts; leave out data.text_pair")
        return [Text(text, None, f"data.text[{index}]") for index, text in enumerate(texts)]
    pairs = [data.text_pair] if isinstance(data.text_pair, str) else data.text_pair
    if pairs is None or len(pairs) != len(texts):
        raise RequestError(
            "data.text_pair",
            f"{model.name!r} compares two texts; data.text_pair needs as many as data.text ({len(texts)})",
        )
    return [
        Text(text, pair, f"data[{index}].text") for index, (text, pair) in enumerate(zip(texts, pairs, strict=True))
    ]


def _handled(model: ServedModel, answers: tuple[Answer, ...]) -> dict[str, Any]:
    """As the post-handlers of classification: an id and a confidence for each text, or lists of both."""
    labels = model.manifest.task.labels
    chosen = [list(answer.chosen) for answer in answers]
    scores = [_scores(answer) for answer in answers]
    names = [[labels[index] for index in row] for row in chosen]
    if model.manifest.task.kind == "multi-label":
        return {"label": chosen, "confidence": scores, "name": names}
    return {
        "label": [row[0] for row in chosen],
        "confidence": [row[0] for row in scores],
        "name": [row[0] for row in names],
    }


def _predicted(model: ServedModel, answer: Answer) -> dict[str, Any]:
    """As the Taskflow of text classification."""
    labels = model.manifest.task.labels
    predictions = [
        {"label": labels[index], "score": score} for index, score in zip(answer.chosen, _scores(answer), strict=True)
    ]
    pair = {} if answer.text.pair is None else {"text_pair": answer.text.pair}
    return {"predictions": predictions, "text": answer.text.text, **pair}


def _extracted(answer: Answer) -> dict[str, Any]:
    """As the Taskflow of information extraction: type → entities in reading order."""
    found: dict[str, Any] = {}
    for item in entities_of(answer, Shape()):
        entity = {"text": item.text, "start": item.start, "end": item.end, "probability": item.score}
        found.setdefault(item.label, []).append(entity)
    return found


def _scores(answer: Answer) -> list[float]:
    """The model's scores of the labels that are given, in label order."""
    assert answer.classified
    return [short(answer.classified.scores[index]) for index in answer.chosen]
