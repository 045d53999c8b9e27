"""The dialect of Hugging Face's inference API, as huggingface_hub's InferenceClient speaks it.

The client is pointed at ``/models/{model}``, at ``/models/{model}/pipeline/{task}``, or at the base URL, which asks the
default model. Unlike in text-embeddings-inference, a list of strings is a batch here, and the labels of one text leave
in a list within a list, where the client looks for them.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from fastapi import APIRouter, Request, Response
from pydantic import Field, JsonValue, TypeAdapter

from bundle.errors import NoForm, RequestError
from serving.catalogue import ServedModel
from serving.classifier import Answer, Text
from serving.gateway import Gateway
from serving.routes import chosen, gateway_of, reads
from serving.routes.tei import needs_labels, responses
from serving.schemas import LabelScore, Strict, parse_as, parse_object
from serving.views import Shape, entities_of, given_first

router = APIRouter(tags=["Hugging Face inference"])

Task: TypeAlias = Literal["text-classification", "token-classification"]


class Entity(Strict):
    """One entity; ``start`` and ``end`` count code points."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


Said: TypeAlias = list[list[LabelScore]] | list[Entity] | list[list[Entity]]
_SAID: TypeAdapter[Said] = TypeAdapter(Said)


class HfParameters(Strict):
    top_k: int | None = Field(default=None, ge=1, description="labels to list")
    function_to_apply: str | None = Field(default=None, description="only what the task does: softmax or sigmoid")
    aggregation_strategy: str | None = Field(
        default=None, description="any but none: entities are always given whole, with their mean score"
    )
    ignore_labels: list[str] | None = Field(default=None, description="entity types to leave out")
    truncate: bool = Field(default=False, description="read only the first max_windows windows of a longer text")


class HfRequest(Strict):
    """What the client sends."""

    inputs: JsonValue = Field(
        description='a text, {"text": …, "text_pair": …} for a model of pairs, or a list of them',
        examples=["服务很好。"],
    )
    parameters: HfParameters = HfParameters()
    options: dict[str, JsonValue] = Field(default={}, description="of the hub's cache; means nothing here")


@router.post(
    "/",
    response_model=Said,
    responses=responses(400, 401, 413, 422, 424, 429, 503),
    openapi_extra=reads(HfRequest),
    summary="Labels or entities, of the default model",
)
async def ask_default(request: Request) -> Response:
    """As `/models/{model}`, of the default model."""
    body = await request.body()
    return await answered(gateway_of(request), chosen(request, "", body), parse_object(body))


@router.post(
    "/models/{model}/pipeline/{task}",
    response_model=Said,
    responses=responses(400, 401, 404, 413, 422, 424, 429, 503),
    openapi_extra=reads(HfRequest),
    summary="Labels, or entities, as the task says",
)
async def ask_task(model: str, task: Task, request: Request) -> Response:
    """Needed for a multi-task model's entities; others answer what they can without being told."""
    body = await request.body()
    return await answered(gateway_of(request), chosen(request, model, body), parse_object(body), task)


async def answered(
    gateway: Gateway, model: ServedModel, body: dict[str, JsonValue], task: Task | None = None
) -> Response:
    """Answers a body of this dialect; without a task, a multi-task model says its labels.

    Raises:
        RequestError: the body is none, or the model has no such answer.
        EngineUnavailable, EngineTimeout: no answer now.
    """
    wanted = parse_as(HfRequest, body)
    kind = model.manifest.task
    tags = task == "token-classification" or (task is None and not kind.classifies)
    if tags and not kind.tags:
        instead = f"ask POST /models/{model.name} for its labels"
        raise NoForm("token-classification", model.name, kind.kind, instead)
    if not tags:
        needs_labels(model, "text-classification")
    _check_parameters(model, wanted.parameters, tags)
    texts, batch = _texts(model, wanted.inputs)
    answers = (await gateway.answer(model, texts, truncate=wanted.parameters.truncate)).answers
    said: Said
    if not tags:
        said = [given_first(model, answer, wanted.parameters.top_k) for answer in answers]
    else:
        ignored = set(wanted.parameters.ignore_labels or ())
        entities = [_entities(answer, ignored) for answer in answers]
        said = entities if batch else entities[0]
    return Response(_SAID.dump_json(said), media_type="application/json")


def _check_parameters(model: ServedModel, parameters: HfParameters, tags: bool) -> None:
    applied = "sigmoid" if model.manifest.task.kind == "multi-label" else "softmax"
    if not tags and parameters.function_to_apply not in (None, applied):
        raise RequestError(
            "parameters.function_to_apply", f"parameters.function_to_apply can only be {applied!r} of {model.name!r}"
        )
    if tags and parameters.aggregation_strategy == "none":
        raise RequestError(
            "parameters.aggregation_strategy",
            "parameters.aggregation_strategy cannot be 'none': entities are given whole, not by token",
        )


def _texts(model: ServedModel, inputs: JsonValue) -> tuple[list[Text], bool]:
    pairs = model.manifest.task.kind == "text-pair"
    if isinstance(inputs, list):
        if not inputs:
            raise RequestError("inputs", "inputs is an empty list", limit=1)
        return [_text(item, f"inputs[{index}]", pairs) for index, item in enumerate(inputs)], True
    return [_text(inputs, "inputs", pairs)], False


def _text(item: JsonValue, field: str, pairs: bool) -> Text:
    text, pair = item, None
    if isinstance(item, dict) and item.keys() <= {"text", "text_pair"}:
        text, pair = item.get("text"), item.get("text_pair")
        field = f"{field}.text"
    if not isinstance(text, str) or isinstance(pair, str) is not pairs:
        form = 'a pair {"text": …, "text_pair": …}' if pairs else 'a text or {"text": …}'
        raise RequestError(field.removesuffix(".text"), f"{field.removesuffix('.text')} must be {form} for this model")
    return Text(text, pair if isinstance(pair, str) else None, field)


def _entities(answer: Answer, ignored: set[str]) -> list[Entity]:
    return [
        Entity(entity_group=item.label, score=item.score, word=item.text, start=item.start, end=item.end)
        for item in entities_of(answer, Shape())
        if item.label not in ignored
    ]
