"""What comes back, as frozen dataclasses, and how it is read from JSON.

A field that this client does not know is left out, so that a newer server does not break an older client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, TypeVar

OffsetUnit: TypeAlias = Literal["codepoint", "utf16", "byte"]
# Two texts that a text-pair model compares.
Pair: TypeAlias = tuple[str, str]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label and its probability, 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class GivenLabel:
    """A label that a text has, and the score from which it is given."""

    label: str
    score: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity: ``text[start:end]`` of the text that was sent, in the offset unit that was asked for."""

    label: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class FiredRule:
    """A rule of the operator's that changed the answer."""

    rule: str
    action: str
    label: str
    reason: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class WindowScore:
    """What a window says of a label; ``weight`` only of multi-label tasks."""

    label: str
    score: float
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """A window of a long text; ``scores`` is empty for a tagger."""

    start: int
    end: int
    side: str
    begins: str
    ends: str
    tokens: int
    weight: float | None = None
    scores: tuple[WindowScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one text; what the model's task does not say is None or empty.

    Attributes:
        label, score: of single-label, text-pair and multi-task models.
        labels: of multi-label models: those that are given, best first.
        scores: the model's score of each label, best first.
        entities: of taggers and multi-task models, in reading order.
        tokens, windows, covered, truncated: how much was read; ``covered`` is the share of the characters.
        rules: what the operator's rules changed.
        window_list: where it was asked for.
    """

    tokens: int
    windows: int
    covered: float
    truncated: bool
    label: str | None = None
    score: float | None = None
    labels: tuple[GivenLabel, ...] = ()
    scores: tuple[LabelScore, ...] = ()
    entities: tuple[Entity, ...] = ()
    rules: tuple[FiredRule, ...] = ()
    window_list: tuple[Window, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds in the server."""

    tokenize: float
    infer: float
    decode: float
    total: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The answers to one request, in the order of its texts."""

    model: str
    version: int
    format: str
    predictions: tuple[Prediction, ...]
    timing_ms: Timing

    @property
    def prediction(self) -> Prediction:
        """The answer to the one text that was asked.

        Raises:
            ValueError: several were asked.
        """
        (only,) = self.predictions
        return only


@dataclass(frozen=True, slots=True)
class Model:
    """A served model: see `GET /v1/models`."""

    name: str
    task: str
    version: int
    format: str
    precision: str
    labels: tuple[str, ...]
    entity_types: tuple[str, ...]
    thresholds: Mapping[str, float]
    max_tokens: int
    max_windows: int


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a stream; ``id`` comes back with its answer."""

    text: str
    pair: str | None = None
    id: str | int | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, as the server says it (RFC 9457); ``kind`` is the end of its type."""

    status: int
    kind: str
    title: str
    detail: str
    instance: str = ""
    field: str | None = None
    limit: int | None = None
    value: int | None = None


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """The answer to one line: either a prediction or a problem. ``index`` counts the lines from 0."""

    index: int
    id: str | int | None = None
    prediction: Prediction | None = None
    error: Problem | None = None


def read(cls: type[T], data: Mapping[str, Any], **inner: Callable[[Any], Any]) -> T:
    """An object of a class from JSON.

    Args:
        inner: how to read a field that is no plain value, by its name.
    """
    known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
    found = {name: inner[name](value) if name in inner else value for name, value in data.items() if name in known}
    return cls(**found)


def several(cls: type[T], **inner: Callable[[Any], Any]) -> Callable[[Any], tuple[T, ...]]:
    """How to read a list of objects of a class."""
    return lambda items: tuple(read(cls, item, **inner) for item in items)


def prediction_of(data: Mapping[str, Any]) -> Prediction:
    """A prediction from JSON."""
    return read(
        Prediction,
        data,
        labels=several(GivenLabel),
        scores=several(LabelScore),
        entities=several(Entity),
        rules=several(FiredRule),
        window_list=several(Window, scores=several(WindowScore)),
    )


def answer_of(data: Mapping[str, Any]) -> Answer:
    """The answer to a request from JSON."""
    return read(
        Answer,
        data,
        predictions=lambda items: tuple(map(prediction_of, items)),
        timing_ms=lambda item: read(Timing, item),
    )


def models_of(data: Mapping[str, Any]) -> list[Model]:
    """The list of models from JSON."""
    return list(several(Model, labels=tuple, entity_types=tuple)(data["models"]))


def problem_of(data: Mapping[str, Any]) -> Problem:
    """A problem from JSON."""
    return read(Problem, {**data, "kind": str(data.get("type", "")).rpartition(":")[2]})


def stream_answer_of(data: Mapping[str, Any]) -> StreamAnswer:
    """One line of a stream from JSON."""
    return read(StreamAnswer, data, prediction=prediction_of, error=problem_of)
