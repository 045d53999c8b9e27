"""The dialect of text-embeddings-inference: ``/predict``, ``/info``, ``/health`` (``/metrics`` is everybody's).

Such a server has one model: at the base URL it is the default one, and ``/models/{model}`` is the base URL of each. A
list of strings is a pair, a list of lists a batch; labels leave with scores, best first, and errors as ``error`` and
``error_type`` under that server's own status codes.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, JsonValue, TypeAdapter

from bundle.errors import EngineUnavailable, NoForm, RequestError
from serving.catalogue import ServedModel
from serving.classifier import Text
from serving.errors import TeiErrorType
from serving.gateway import Gateway
from serving.routes import body_of, chosen, gateway_of, reads
from serving.schemas import LabelScore, Strict, parse_as
from serving.views import given_first

router = APIRouter(tags=["text-embeddings-inference"])

Ranked = list[LabelScore] | list[list[LabelScore]]
_RANKED: TypeAdapter[Ranked] = TypeAdapter(Ranked)


class TeiError(BaseModel):
    error: str
    error_type: TeiErrorType


class TeiPredictRequest(Strict):
    """What `/predict` reads."""

    inputs: JsonValue = Field(
        description='one text, a pair ["a", "b"], or a batch of both [["a"], ["b", "c"]]', examples=["早餐种类太少。"]
    )
    truncate: bool | None = Field(default=None, description="read only the first max_windows windows of a longer text")
    raw_scores: bool = Field(default=False, description="not known here: scores are pooled as probabilities")
    truncation_direction: str = Field(default="Right", description="Right; a text is never cut at its beginning")


class Classes(BaseModel):
    id2label: dict[str, str]
    label2id: dict[str, int]


class TeiInfo(BaseModel):
    """The default model, as far as that server's clients ask."""

    model_id: str
    model_sha: str | None = Field(description="sha256 of the graph")
    model_dtype: str
    model_type: dict[str, Classes] = Field(description='{"classifier": …}')
    max_concurrent_requests: int
    max_input_length: int = Field(description="tokens of the longest text that is answered")
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error responses for the API description."""
    said = {
        400: "not JSON",
        401: "a key is needed",
        404: "no such model",
        413: "a text, the batch or the body is above its limit",
        422: "a field or a text is wrong",
        429: "full, or more than the key may ask for; see Retry-After",
        424: "the model says no labels, or there was no answer in time",
        503: "the engine cannot answer now; see Retry-After",
    }
    return {status: {"model": TeiError, "description": said[status]} for status in statuses}


_PREDICT: dict[str, Any] = {
    "response_model": Ranked,
    "openapi_extra": reads(TeiPredictRequest),
}


@router.post(
    "/predict",
    responses=responses(400, 401, 413, 422, 424, 429, 503),
    summary="Labels with scores, of the default model",
    **_PREDICT,
)
async def predict(request: Request) -> Response:
    """A text or a pair gets a list of labels, a batch a list of such lists."""
    return await _predicted(request, "")


@router.post(
    "/models/{model}/predict",
    responses=responses(400, 401, 404, 413, 422, 424, 429, 503),
    summary="Labels with scores",
    **_PREDICT,
)
async def predict_by_name(model: str, request: Request) -> Response:
    """A text or a pair gets a list of labels, a batch a list of such lists."""
    return await _predicted(request, model)


async def _predicted(request: Request, name: str) -> Response:
    body = await body_of(request)
    model = chosen(request, name, body)
    wanted = parse_as(TeiPredictRequest, body)
    if wanted.raw_scores:
        raise RequestError("raw_scores", "raw_scores is not known here: windows are pooled as probabilities")
    if wanted.truncation_direction != "Right":
        raise RequestError("truncation_direction", "truncation_direction can only be 'Right'")
    needs_labels(model, "/predict")
    texts, batch = texts_of(wanted.inputs)
    _check_pairs(model, texts)
    answers = await gateway_of(request).answer(model, texts, truncate=bool(wanted.truncate))
    found = [given_first(model, answer) for answer in answers.answers]
    return Response(_RANKED.dump_json(found if batch else found[0]), media_type="application/json")


@router.get("/info", response_model=TeiInfo, responses=responses(422, 424), summary="The default model")
async def info(request: Request) -> TeiInfo:
    """The default model's labels and the limits of a request."""
    gateway = gateway_of(request)
    return _info(gateway, gateway.default_model())


@router.get("/models/{model}/info", response_model=TeiInfo, responses=responses(404, 424), summary="A model")
async def info_by_name(model: str, request: Request) -> TeiInfo:
    """A model's labels and the limits of a request."""
    gateway = gateway_of(request)
    return _info(gateway, gateway.model(model))


def _info(gateway: Gateway, model: ServedModel) -> TeiInfo:
    settings = gateway.settings
    needs_labels(model, "/info")
    text, labels = model.manifest.text, model.manifest.task.class_labels
    # Two special tokens in each window; what neighbours share is read twice and counts once.
    fresh = text.max_tokens - 2 - text.overlap
    return TeiInfo(
        model_id=model.name,
        model_sha=model.artifact.sha256,
        model_dtype={"fp32": "float32", "fp16": "float16", "int8": "int8"}[model.artifact.precision],
        model_type={
            "classifier": Classes(
                id2label={str(index): label for index, label in enumerate(labels)},
                label2id={label: index for index, label in enumerate(labels)},
            )
        },
        max_concurrent_requests=max(1, settings.max_pending_tokens // text.max_tokens),
        max_input_length=fresh * model.max_windows + text.overlap,
        max_batch_tokens=model.running.windows * text.max_tokens or model.running.batch_tokens,
        max_batch_requests=None,
        max_client_batch_size=settings.max_texts,
        auto_truncate=False,
        tokenization_workers=1,
        version="1",
        sha=None,
        docker_label=None,
    )


@router.get("/health", response_class=Response, responses=responses(503), summary="Can every model answer?")
async def health(request: Request) -> Response:
    """200 when every model can answer."""
    if reasons := await gateway_of(request).not_ready():
        name, why = next(iter(reasons.items()))
        raise EngineUnavailable(f"{name}: {why}")
    return Response()


@router.get(
    "/models/{model}/health",
    response_class=Response,
    responses=responses(404, 503),
    summary="Can this model answer?",
)
async def health_by_name(model: str, request: Request) -> Response:
    """200 when this model can answer."""
    gateway = gateway_of(request)
    await gateway.check_ready(gateway.model(model))
    return Response()


def needs_labels(model: ServedModel, dialect: str) -> None:
    """Raises `NoForm` for a model that says no labels of a whole text."""
    if not model.manifest.task.classifies:
        instead = f"ask POST /models/{model.name} or POST /v1/models/{model.name}/predict"
        raise NoForm(dialect, model.name, model.manifest.task.kind, instead)


def texts_of(inputs: JsonValue) -> tuple[list[Text], bool]:
    """The texts of a request, and whether they are a batch.

    Raises:
        RequestError: none of the forms; names the place.
    """
    if isinstance(inputs, list) and inputs and isinstance(inputs[0], list):
        return [_sequence(item, f"inputs[{index}]") for index, item in enumerate(inputs)], True
    return [_sequence(inputs if isinstance(inputs, list) else [inputs], "inputs")], False


def _sequence(item: JsonValue, field: str) -> Text:
    if isinstance(item, list) and 1 <= len(item) <= 2:
        sides = [side for side in item if isinstance(side, str)]
        if len(sides) == len(item):
            return Text(sides[0], sides[1], f"{field}.text") if len(sides) > 1 else Text(sides[0], None, field)
    raise RequestError(field, f'{field} must be a text or a pair ["a", "b"]; a batch is a list of such lists')


def _check_pairs(model: ServedModel, texts: list[Text]) -> None:
    """Says it in the words of this dialect, where two texts for a batch of two are the commonest slip."""
    pairs = model.manifest.task.kind == "text-pair"
    for text in texts:
        field = text.field.removesuffix(".text")
        if pairs and text.pair is None:
            raise RequestError(field, f'{model.name!r} compares two texts; send {field} as ["a", "b"]')
        if not pairs and text.pair is not None:
            raise RequestError(
                field, f'{field} is a pair, and {model.name!r} reads single texts; a batch is [["a"], ["b"]]'
            )
