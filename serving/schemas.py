"""What travels over HTTP, as typed models with examples: the request, the answers, a model's public description.

A request is parsed strictly: an unknown key, a number in quotes or a wrong type is an error that names the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    TypeAdapter,
    ValidationError,
)

from bundle.errors import MalformedRequest, RequestError
from bundle.manifest import Parity, Quality, Source, TaskKind
from bundle.offsets import OffsetUnit
from serving.classifier import Text

_LONG = "央行今日宣布下调存款准备金率0.25个百分点，释放长期资金约五千亿元。"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPair(Strict):
    """One input as an object; ``pair`` is the second text of a text-pair model."""

    text: str = Field(description="the text; must hold more than white space", examples=["怎么修改收货地址"])
    pair: str | None = Field(default=None, description="the second text", examples=["如何更改配送地址"])


class StreamItem(TextPair):
    """One line of a stream."""

    id: str | int | None = Field(default=None, description="given back with the answer")

    @classmethod
    def of(cls, line: bytes) -> StreamItem:
        """Reads a line: a JSON string, or an object.

        Raises:
            ValidationError: neither.
        """
        if line.lstrip()[:1] == b'"':
            return cls(text=_STRING.validate_json(line))
        return cls.model_validate_json(line)


_STRING = TypeAdapter(str)
_OBJECT: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])
M = TypeVar("M", bound=BaseModel)


def _kind_of_item(value: object) -> str | None:
    if isinstance(value, str):
        return "(text)"
    return "(object)" if isinstance(value, dict | TextPair) else None


def _kind_of_inputs(value: object) -> str | None:
    if isinstance(value, str):
        return "(text)"
    return "(list)" if isinstance(value, list) else None


# The tags show up in pydantic's error locations; parentheses tell them from field names.
Item: TypeAlias = Annotated[
    Annotated[str, Tag("(text)")] | Annotated[TextPair, Tag("(object)")],
    Discriminator(
        _kind_of_item,
        custom_error_type="item_type",
        custom_error_message='must be a text or an object {"text": …, "pair": …}',
    ),
]
Inputs: TypeAlias = Annotated[
    Annotated[str, Tag("(text)")] | Annotated[list[Item], Field(min_length=1, fail_fast=True), Tag("(list)")],
    Discriminator(
        _kind_of_inputs,
        custom_error_type="inputs_type",
        custom_error_message="must be a text or a list of texts or of text pairs",
    ),
]


class PredictRequest(Strict):
    """Texts to be answered by one model."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        json_schema_extra={"examples": [{"inputs": _LONG, "top_k": 2}]},
    )

    inputs: Inputs = Field(description="one text, a list of texts, or a list of objects with text and pair")
    top_k: int | None = Field(default=None, ge=1, description='labels to list in "scores"; all when left out')
    return_windows: bool = Field(default=False, description="show what each window of a long text said")
    truncate: bool = Field(
        default=False, description="read only the first max_windows windows of a longer text instead of refusing it"
    )
    offset_unit: OffsetUnit = Field(
        default="codepoint",
        description="what start and end count: codepoint (Python), utf16 (JavaScript, Java) or byte (UTF-8: Go, Rust)",
    )

    version: int | None = Field(
        default=None,
        ge=1,
        description="the version that answers, of those that are loaded; left out, the server chooses",
    )

    def texts(self) -> list[Text]:
        """The inputs in one form, each with the name of its field."""
        if isinstance(self.inputs, str):
            return [Text(self.inputs, None, "inputs")]
        return [
            Text(item, None, f"inputs[{index}]")
            if isinstance(item, str)
            else Text(item.text, item.pair, f"inputs[{index}].text")
            for index, item in enumerate(self.inputs)
        ]


def parse_request(body: bytes) -> PredictRequest:
    """Reads the body of a prediction request.

    Raises:
        MalformedRequest: not JSON.
        RequestError: JSON that is not such a request; names the field.
    """
    try:
        return PredictRequest.model_validate_json(body)
    except ValidationError as error:
        raise refusal(_first(error), "body", lambda field: PredictRequest if "." not in field else TextPair) from None


def parse_object(body: bytes) -> dict[str, JsonValue]:
    """Reads a body that must be a JSON object, of a route whose dialect the object itself tells.

    Raises:
        MalformedRequest: not JSON.
        RequestError: JSON, but no object.
    """
    try:
        return _OBJECT.validate_json(body)
    except ValidationError as error:
        raise refusal(_first(error), "body") from None


def parse_as(model: type[M], value: object) -> M:
    """Reads a dialect's request, from its bytes or from what `parse_object` gave.

    Raises:
        MalformedRequest: not JSON.
        RequestError: JSON that is not such a request; names the field.
    """
    try:
        if isinstance(value, bytes):
            return model.model_validate_json(value)
        return model.model_validate(value)
    except ValidationError as error:
        raise refusal(_first(error), "body", lambda field: _owner(model, field)) from None


def parse_options(values: Mapping[str, object], whole: str) -> PredictRequest:
    """The options of a prediction where a dialect has a place for them; what is no option of ours is left alone.

    Args:
        whole: the place, as an error names it: ``parameters``.

    Raises:
        RequestError: an option is wrong; names it.
    """
    ours = [name for name in PredictRequest.model_fields if name not in ("inputs", "version")]
    known = {name: values[name] for name in ours if name in values}
    try:
        return PredictRequest.model_validate({"inputs": "-", **known})
    except ValidationError as error:
        first = _first(error)
        raise refusal({**first, "loc": (whole, *first["loc"])}, "body") from None


def parse_line(line: bytes) -> StreamItem:
    """Reads one line of a stream.

    Raises:
        MalformedRequest: not JSON.
        RequestError: JSON that is neither a text nor such an object; names the field.
    """
    try:
        return StreamItem.of(line)
    except ValidationError as error:
        raise refusal(_first(error), "line", lambda field: StreamItem) from None


def _owner(model: type[BaseModel], field: str) -> type[BaseModel]:
    """The model that a dotted field belongs to, to tell which fields there are."""
    for part in field.split(".")[:-1]:
        inner = model.model_fields[part.partition("[")[0]].annotation
        for candidate in (inner, *get_args(inner)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return model


def _first(error: ValidationError) -> Mapping[str, Any]:
    return error.errors(include_url=False, include_input=False)[0]


def refusal(
    first: Mapping[str, Any], whole: str, model_of: Callable[[str], type[BaseModel]] = lambda field: BaseModel
) -> RequestError:
    """What pydantic found first, as an error that names the field.

    Args:
        first: the first of its error details.
        whole: how the error names what was read as a whole.
        model_of: the model that a field belongs to, to tell which fields there are.
    """
    message = first["msg"]
    if first["type"] == "json_invalid":
        return MalformedRequest(whole, message.removeprefix("Invalid JSON: "))
    field = whole
    for part in first["loc"]:
        if isinstance(part, int):
            field += f"[{part}]"
        elif not part.startswith("("):
            field = part if field == whole else f"{field}.{part}"
    context: dict[str, Any] = first.get("ctx", {})
    limit = next((context[key] for key in ("ge", "min_length") if isinstance(context.get(key), int)), None)
    if first["type"] == "extra_forbidden":
        message = f"is not a known field; known are {', '.join(model_of(field).model_fields)}"
    return RequestError(field, f"{field}: {message[0].lower()}{message[1:]}", limit=limit)


class LabelScore(BaseModel):
    label: str
    score: float = Field(description="probability, 0 to 1")


class GivenLabel(LabelScore):
    """One of the labels that a text has."""

    threshold: float = Field(description="the score from which this label is given")


class WindowScore(LabelScore):
    weight: float | None = Field(
        default=None, description="the window's share in the pooled score of this label; multi-label tasks only"
    )


class WindowView(BaseModel):
    """What one window of a text read and said."""

    start: int = Field(description="its first offset_unit of the side that the windows run over")
    end: int = Field(description="the unit after its last")
    side: Literal["text", "pair"] = Field(description="which text of a pair the windows run over")
    begins: str = Field(description="its first characters")
    ends: str = Field(description="its last characters")
    tokens: int
    weight: float | None = Field(
        default=None, description="its share in the pooled scores; not of taggers, nor of multi-label tasks"
    )
    scores: list[WindowScore] | None = Field(default=None, description="its own scores; not of taggers")


class EntityView(BaseModel):
    label: str
    text: str
    start: int = Field(description="its first code point (or offset_unit) of the input text")
    end: int = Field(description="the one after its last")
    score: float = Field(description="mean probability of its tokens' tags, 0 to 1")


class RuleView(BaseModel):
    """A rule that changed the answer, and where its keyword or pattern stands in the text."""

    rule: str
    action: Literal["add", "veto", "relabel"]
    label: str
    reason: str
    start: int
    end: int


class Reading(BaseModel):
    """How much of the text was read."""

    tokens: int = Field(description="tokens of the text, special tokens not counted")
    windows: int = Field(description="windows that were read")
    covered: float = Field(description="share of the text's characters that a window read; 1.0 unless truncated")
    truncated: bool = Field(description='true only when "truncate" was asked for and text was left out')
    rules: list[RuleView] | None = Field(default=None, description="the operator's rules that changed this answer")
    window_list: list[WindowView] | None = Field(default=None, description='with "return_windows"')


class Labels(BaseModel):
    label: str
    score: float = Field(description="the model's score of this label")
    scores: list[LabelScore] = Field(description="the model's scores, best first")


class GivenLabels(BaseModel):
    labels: list[GivenLabel] = Field(
        description="those that reach their thresholds, as the rules left them; best first, perhaps none"
    )
    scores: list[LabelScore] = Field(
        description="the model's score of each label, a probability of its own; best first"
    )


class Entities(BaseModel):
    entities: list[EntityView] = Field(description="in reading order")


# Several bases, the reading first: pydantic then writes the answer before how much was read.
class LabelPrediction(Reading, Labels):
    """A classifier's answer to one text."""


class LabelsPrediction(Reading, GivenLabels):
    """A multi-label classifier's answer to one text."""


class EntityPrediction(Reading, Entities):
    """A tagger's answer to one text."""


class LabelEntityPrediction(Reading, Entities, Labels):
    """A multi-task model's answer to one text: its label, and its entities."""


# None of these is the base of another, so that each is written with all of its fields and no more.
Prediction: TypeAlias = LabelPrediction | LabelsPrediction | EntityPrediction | LabelEntityPrediction


class Timing(BaseModel):
    """Milliseconds."""

    tokenize: float
    infer: float
    decode: float
    total: float


_LABEL: dict[str, Any] = {
    "label": "positive",
    "score": 0.91,
    "scores": [{"label": "positive", "score": 0.91}, {"label": "neutral", "score": 0.07}],
}
_ENTITIES: dict[str, Any] = {"entities": [{"label": "LOC", "text": "北京", "start": 4, "end": 6, "score": 0.98}]}
# An answer of each form, by an imagined model.
_ANSWERS: dict[str, dict[str, Any]] = {
    "news": _LABEL,
    "topics": {
        "labels": [{"label": "finance", "score": 0.83, "threshold": 0.45}],
        "scores": [{"label": "finance", "score": 0.83}, {"label": "sports", "score": 0.04}],
    },
    "ner": _ENTITIES,
    "desk": {**_LABEL, **_ENTITIES},
}


class PredictResponse(BaseModel):
    """The answers, in the order of the inputs."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": model,
                    "version": 1,
                    "format": "onnx_int8",
                    "predictions": [{**answer, "tokens": 31, "windows": 1, "covered": 1.0, "truncated": False}],
                    "timing_ms": {"tokenize": 0.2, "infer": 6.1, "decode": 0.1, "total": 6.4},
                }
                for model, answer in _ANSWERS.items()
            ]
        }
    )

    model: str
    version: int
    format: str = Field(description="the artifact that answered, such as onnx_int8")
    predictions: list[Prediction] = Field(description="one for each text; which fields it has follows from the task")
    timing_ms: Timing


class ModelSummary(BaseModel):
    name: str
    task: TaskKind
    version: int
    format: str
    precision: Literal["fp32", "fp16", "int8", "int4"]
    labels: list[str] = Field(description="what an answer can name: labels of the text, then entity types")
    entity_types: list[str] = Field(description="those of them that are types of entities; empty for a classifier")
    thresholds: dict[str, float] = Field(
        description="label → score from which it is given; empty unless the task is multi-label"
    )
    max_tokens: int = Field(description="tokens in one window")
    max_windows: int = Field(description="windows of one text; beyond it 413")


class ModelList(BaseModel):
    models: list[ModelSummary]


class TextLimits(BaseModel):
    max_tokens: int
    overlap: int = Field(description="tokens that neighbouring windows share")
    max_windows: int
    pooling: str
    max_texts: int = Field(description="texts in one request")
    max_body_bytes: int


class FormatView(BaseModel):
    """One form of the model that export made, and how good it is."""

    precision: Literal["fp32", "fp16", "int8", "int4"]
    bytes: int
    sha256: str
    published: bool
    parity: Parity | None
    quality: Quality | None


class LoadedVersion(BaseModel):
    """A version that can be asked for."""

    version: int
    roles: list[str] = Field(description="serving, previous, canary (answers a share of the requests), shadow")


class ModelDetail(ModelSummary):
    """A bundle's manifest as far as it concerns a caller."""

    versions: list[LoadedVersion] = Field(description="those that are loaded here; an answer says which one gave it")

    text: TextLimits
    scores: dict[str, dict[str, JsonValue]] = Field(description="what was measured on dev and test rows")
    formats: dict[str, FormatView]
    licences: dict[str, Source] = Field(description="of the data and of the base weights")
    recipe: str
    form: str
    architecture: str
    created: str
    live: Parity | None = Field(description="what this server measured on the golden rows when it started")


class Health(BaseModel):
    status: Literal["live", "ready", "not ready"]
    models: dict[str, str] = Field(default_factory=dict, description="model → ready, or why not")


class Problem(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:slipway:problem:text-too-long",
                    "title": "Text too long",
                    "status": 413,
                    "detail": "inputs has 9042 tokens and needs 80 windows; the limit is 64. Send a shorter text, …",
                    "instance": "urn:slipway:request:5f0c6c1a",
                    "field": "inputs",
                    "limit": 64,
                    "value": 80,
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str = Field(description="urn of the request; the id is also in X-Request-Id and in the log")
    field: str | None = None
    limit: int | None = None
    value: int | None = None
