"""What the gateway itself does with one short text, step by step, without a server: microseconds of each, alone.

Complements the measured stages: those hold waiting for the processor and for each other, these do not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bundle.encode import pad
from bundle.predict import gathered, of_window
from serving.catalogue import ServedModel
from serving.classifier import Answers, Text, decoded
from serving.engines import feeds
from serving.schemas import PredictResponse, Timing, parse_request
from serving.telemetry import Telemetry
from serving.tracing import begin
from serving.views import Shape, prediction_of

ROUNDS = 200


def steps(model: ServedModel, body: str) -> dict[str, float]:
    """Median microseconds of each step for a request with one text."""
    asked = body.encode()
    texts: list[Text] = parse_request(asked).texts()
    encoded = [model.encoder.encode(texts[0].text, texts[0].pair, truncate=True)]
    rows = [model.encoder.row(encoded[0], window) for window in range(len(encoded[0].windows))]
    tensors = pad(rows, model.encoder.spec.pad_id)
    labels = [len(model.manifest.task.class_labels), len(model.manifest.task.tag_labels)]
    shapes: list[tuple[int, ...]] = [(len(rows), labels[0])] if labels[0] else []
    shapes += [(len(rows), tensors[0].shape[1], labels[1])] if labels[1] else []
    outputs = tuple(np.zeros(shape, dtype=np.float32) for shape in shapes)
    predicted = gathered(encoded, [[of_window(outputs, number, row.content) for number, row in enumerate(rows)]])
    answers = decoded(model, texts, predicted)
    seconds = {"tokenize": 0.001, "infer": 0.005, "decode": 0.001, "total": 0.007}
    view = prediction_of(model, answers[0], Shape())
    response = _response(model, view, seconds)
    telemetry = Telemetry()
    found: dict[str, Callable[[], object]] = {
        "begin (ids, trace context)": lambda: begin("POST", "", "", ""),
        "parse JSON": lambda: parse_request(asked).texts(),
        "tokenize": lambda: model.encoder.encode(texts[0].text, texts[0].pair, truncate=True),
        "pad and name tensors": lambda: feeds(model, *pad(rows, model.encoder.spec.pad_id)),
        "decode": lambda: decoded(model, texts, predicted),
        "metrics": lambda: telemetry.answered(model, Answers(answers, seconds)),  # type: ignore[arg-type]
        "make the answer": lambda: _response(model, prediction_of(model, answers[0], Shape()), seconds),
        "write JSON": lambda: response.model_dump_json(exclude_none=True),
    }
    return {name: _median(work) for name, work in found.items()}


def _response(model: ServedModel, view: Any, seconds: dict[str, float]) -> PredictResponse:
    timing = {stage: round(value * 1000, 3) for stage, value in seconds.items()}
    return PredictResponse(
        model=model.name,
        version=model.version,
        format=model.format,
        predictions=[view],
        timing_ms=Timing.model_validate(timing),
    )


def _median(work: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return round(statistics.median(times[ROUNDS // 10 :]) * 1e6, 1)
