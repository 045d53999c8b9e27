"""Texts and answers as tensors: what the Open Inference Protocol V2 says, asks and answers, over whichever wire.

`serving.routes.kserve_v2` speaks it as JSON and binary data over HTTP, `serving.kserve_grpc` over gRPC. A row is one
element of the tensors: the texts come in the tensor ``text`` (and ``pair``), and every output has one element, or one
row of elements, for each.

| output   | type, shape         | of which tasks                                                       |
| -------- | ------------------- | -------------------------------------------------------------------- |
| `label`  | BYTES (rows)        | those with one label                                                 |
| `score`  | FP32 (rows)         | the same: the model's score of that label                            |
| `given`  | BOOL (rows, labels) | multi-label: which labels are given, after thresholds and rules      |
| `scores` | FP32 (rows, labels) | all with labels; as a classification, BYTES ``score:index:label``    |
| `json`   | BYTES (rows)        | all: the prediction of the native route, as JSON                     |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bundle.errors import InvalidText, LimitExceeded, RequestError
from bundle.manifest import Task
from serving.catalogue import ServedModel
from serving.classifier import Answer, Text
from serving.gateway import Gateway
from serving.schemas import parse_options
from serving.views import Shape, prediction_of, ranked

Datatype: TypeAlias = Literal["BYTES", "FP32", "BOOL"]

NAME = "slipway"
VERSION = "1"
EXTENSIONS = ("binary_tensor_data", "classification")


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor as a model's metadata has it; -1 stands for the number of texts."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """An input tensor as it came; the elements in row-major order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[str | bytes]


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that is asked for; ``classes`` above 0 asks for that many best labels instead of the numbers."""

    name: str
    classes: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """An inference request.

    Attributes:
        version: the one that is to answer; empty leaves it to the server.
        raw: by which a canary's share of the requests is told from the others.
    """

    model: str
    version: str
    inputs: tuple[Given, ...]
    outputs: tuple[Wanted, ...] = ()
    parameters: Mapping[str, object] = field(default_factory=dict)
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class Column:
    """An output tensor.

    Attributes:
        shape: (rows,) or (rows, labels).
        values: the elements in row-major order: UTF-8 for BYTES, else float32 or bool.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    values: list[bytes] | npt.NDArray[np.float32] | npt.NDArray[np.bool_]

    def packed(self) -> bytes:
        """The elements as the protocol's raw bytes: little-endian, a BYTES element after its length (uint32)."""
        if isinstance(self.values, list):
            return b"".join(len(value).to_bytes(4, "little") + value for value in self.values)
        return self.values.astype("<f4" if self.datatype == "FP32" else np.bool_).tobytes()

    def listed(self) -> list[str] | list[float] | list[bool]:
        """The elements as JSON has them."""
        if isinstance(self.values, list):
            return [value.decode() for value in self.values]
        if self.datatype == "BOOL":
            return [bool(value) for value in self.values.ravel()]
        return [round(float(value), 6) for value in self.values.ravel()]


def find(gateway: Gateway, name: str, version: str = "") -> ServedModel:
    """The model of this name, in the version that is asked for where it is loaded, else in the one that serves.

    Raises:
        ModelUnknown: no such model, or not this version of it.
    """
    model = gateway.model(name)
    return gateway.versions.find(name, version) if version else model


def versions_of(gateway: Gateway, model: ServedModel) -> list[str]:
    """The versions of a model that can be asked for."""
    line = gateway.versions.line(model.name)
    return [str(number) for number in sorted(line.loaded)] if line else [str(model.version)]


def inputs_of(model: ServedModel) -> list[Described]:
    """The tensors that a request for this model has."""
    names = ("text", "pair") if model.manifest.task.kind == "text-pair" else ("text",)
    return [Described(name, "BYTES", (-1,)) for name in names]


def outputs_of(model: ServedModel) -> list[Described]:
    """The tensors that an answer of this model has."""
    task = model.manifest.task
    labels = len(task.class_labels)
    one = [Described("label", "BYTES", (-1,)), Described("score", "FP32", (-1,))]
    several = [Described("given", "BOOL", (-1, labels))]
    scores = [Described("scores", "FP32", (-1, labels))]
    said: list[Described] = []
    if task.classifies:
        said = (several if task.kind == "multi-label" else one) + scores
    return [*said, Described("json", "BYTES", (-1,))]


async def infer(gateway: Gateway, asked: Asked) -> tuple[ServedModel, list[Column]]:
    """Answers a request.

    Raises:
        RequestError: no such model, tensor or option, or a text that cannot be answered.
        EngineUnavailable, EngineTimeout: no answer now.
    """
    model = find(gateway, asked.model, asked.version) if asked.version else gateway.choose(asked.model, asked.raw)
    wanted = _wanted(model, asked.outputs)
    options = parse_options(asked.parameters, "parameters")
    texts = _texts(model, asked.inputs, gateway.settings.max_texts)
    answers = await gateway.answer(model, texts, truncate=options.truncate, field="text")
    shape = Shape(options.top_k, options.return_windows, options.offset_unit)
    return model, [_column(model, answers.answers, item, shape) for item in wanted]


def unpacked(raw: bytes, name: str) -> list[bytes]:
    """The elements of a BYTES tensor's raw bytes.

    Raises:
        RequestError: a length says more than there is.
    """
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if len(raw) - at < 4 or end > len(raw):
            raise RequestError(name, f"the raw data of {name!r} ends in the middle of element {len(found)}")
        found.append(raw[at + 4 : end])
        at = end
    return found


def _wanted(model: ServedModel, outputs: Sequence[Wanted]) -> list[Wanted]:
    known = [item.name for item in outputs_of(model)]
    for item in outputs:
        if item.name not in known:
            raise RequestError(
                "outputs", f"{model.name!r} has no output {item.name!r}; it has {', '.join(map(repr, known))}"
            )
        if item.classes and item.name != "scores":
            raise RequestError("outputs", f"only 'scores' can be had as a classification, not {item.name!r}")
        if item.classes < 0:
            raise RequestError("outputs", f"classification is {item.classes}; it counts labels, from 1", limit=1)
    return list(outputs) or [Wanted(name) for name in known]


def _texts(model: ServedModel, inputs: Sequence[Given], most: int) -> list[Text]:
    wanted = [item.name for item in inputs_of(model)]
    found: dict[str, Given] = {}
    for item in inputs:
        if item.name not in wanted:
            raise RequestError(
                "inputs", f"{model.name!r} has no input {item.name!r}; it has {', '.join(map(repr, wanted))}"
            )
        if item.name in found:
            raise RequestError("inputs", f"the input {item.name!r} comes twice")
        found[item.name] = item
    for name in wanted:
        if name not in found:
            raise RequestError("inputs", f"{model.name!r} reads the input {name!r}, which is missing")
    for item in found.values():
        _check(item, most)
    sides = [_decoded(found[name], "text" if name == "text" else "pair") for name in wanted]
    if len({len(side) for side in sides}) > 1:
        raise RequestError(
            "inputs", f"'text' has {len(sides[0])} elements and 'pair' {len(sides[1])}; they need as many"
        )
    # A row and not a tensor is named, since a fault of a pair's second text is told by the row as well.
    return [
        Text(row[0], row[1] if len(row) > 1 else None, f"row[{at}].text")
        for at, row in enumerate(zip(*sides, strict=True))
    ]


def _check(item: Given, most: int) -> None:
    if item.datatype != "BYTES":
        raise RequestError("inputs", f"the datatype of {item.name!r} is {item.datatype!r}; texts are BYTES")
    rows = math.prod(item.shape)
    if not item.shape or min(item.shape) < 1 or rows != max(item.shape):
        raise RequestError(
            "inputs", f"the shape of {item.name!r} is {list(item.shape)}; it must be [texts] or [texts, 1]"
        )
    if rows > most:
        raise LimitExceeded(item.name, "texts", rows, most)
    if rows != len(item.values):
        raise RequestError(
            "inputs", f"{item.name!r} has {len(item.values)} elements; its shape {list(item.shape)} says {rows}"
        )


def _decoded(item: Given, side: str) -> list[str]:
    texts = []
    for at, value in enumerate(item.values):
        try:
            texts.append(value.decode() if isinstance(value, bytes) else value)
        except UnicodeDecodeError as error:
            place = f"row[{at}].{side}"
            raise InvalidText(place, f"{place} is not UTF-8 from byte {error.start} on") from None
    return texts


def _column(model: ServedModel, answers: Sequence[Answer], wanted: Wanted, shape: Shape) -> Column:
    task, rows = model.manifest.task, len(answers)
    if wanted.name == "json":
        said = [prediction_of(model, answer, shape).model_dump_json(exclude_none=True).encode() for answer in answers]
        return Column("json", "BYTES", (rows,), said)
    if wanted.name == "label":
        labels = [task.labels[answer.chosen[0]].encode() for answer in answers]
        return Column("label", "BYTES", (rows,), labels)
    scores = np.stack([found.scores for answer in answers if (found := answer.classified)])
    if wanted.name == "score":
        chosen = np.array([answer.chosen[0] for answer in answers])
        return Column("score", "FP32", (rows,), scores[np.arange(rows), chosen])
    if wanted.name == "given":
        given = np.zeros(scores.shape, dtype=np.bool_)
        for row, answer in enumerate(answers):
            given[row, list(answer.chosen)] = True
        return Column("given", "BOOL", given.shape, given)
    if wanted.classes:
        most = min(wanted.classes, scores.shape[1])
        return Column("scores", "BYTES", (rows, most), _classification(task, scores, most))
    return Column("scores", "FP32", scores.shape, scores)


def _classification(task: Task, scores: npt.NDArray[np.float32], most: int) -> list[bytes]:
    """The best labels of each row, as the protocol's classification extension writes them."""
    return [f"{row[index]:f}:{index}:{task.labels[index]}".encode() for row in scores for index in ranked(row, most)]
