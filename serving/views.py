"""Answers → what travels: labels ranked, offsets in the caller's unit, windows explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bundle.decode import Classified, FloatArray, thresholds
from bundle.offsets import OffsetUnit, converter
from serving.catalogue import ServedModel
from serving.classifier import Answer
from serving.schemas import (
    EntityPrediction,
    EntityView,
    GivenLabel,
    LabelEntityPrediction,
    LabelPrediction,
    LabelScore,
    LabelsPrediction,
    Prediction,
    RuleView,
    WindowScore,
    WindowView,
)

# Characters of a window's first and last words in an answer.
EDGE = 12


@dataclass(frozen=True, slots=True)
class Shape:
    """What a caller wants to see of an answer: see the fields of the same names in `serving.schemas.PredictRequest`."""

    top_k: int | None = None
    return_windows: bool = False
    offset_unit: OffsetUnit = "codepoint"


def prediction_of(model: ServedModel, answer: Answer, shape: Shape) -> Prediction:
    """One answer as it travels."""
    encoded, found, task = answer.encoded, answer.classified, model.manifest.task
    reading: dict[str, Any] = {
        "tokens": encoded.tokens,
        "windows": len(encoded.windows),
        "covered": encoded.covered,
        "truncated": encoded.truncated,
        "window_list": _windows(model, answer, shape) if shape.return_windows else None,
        "rules": _rules(answer, shape) or None,
    }
    if found is None:
        return EntityPrediction(entities=_entities(answer, shape), **reading)
    scores = [
        LabelScore(label=task.labels[index], score=_short(found.scores[index]))
        for index in _ranked(found.scores, shape.top_k)
    ]
    if task.kind == "multi-label":
        limits = thresholds(task)
        given = [
            GivenLabel(label=task.labels[index], score=_short(found.scores[index]), threshold=_short(limits[index]))
            for index in _ranked(found.scores)
            if index in answer.chosen
        ]
        return LabelsPrediction(labels=given, scores=scores, **reading)
    (label,) = answer.chosen
    best: dict[str, Any] = {"label": task.labels[label], "score": _short(found.scores[label]), "scores": scores}
    if task.tags:
        return LabelEntityPrediction(entities=_entities(answer, shape), **best, **reading)
    return LabelPrediction(**best, **reading)


def _entities(answer: Answer, shape: Shape) -> list[EntityView]:
    text = answer.text.text
    at = converter(text, shape.offset_unit)
    return [
        EntityView(
            label=item.label,
            text=text[item.start : item.end],
            start=at(item.start),
            end=at(item.end),
            score=_short(item.score),
        )
        for item in answer.tagged
    ]


def _rules(answer: Answer, shape: Shape) -> list[RuleView]:
    at = converter(answer.text.text, shape.offset_unit) if answer.fired else int
    return [
        RuleView(
            rule=item.rule,
            action=item.action,
            label=item.label,
            reason=item.reason,
            start=at(item.start),
            end=at(item.end),
        )
        for item in answer.fired
    ]


def _ranked(scores: FloatArray, top_k: int | None = None) -> list[int]:
    """Label indexes, best first; equal scores in label order, as argmax has it."""
    return [int(index) for index in np.argsort(-scores, kind="stable")[:top_k]]


def _short(value: float) -> float:
    return round(float(value), 6)


def _windows(model: ServedModel, answer: Answer, shape: Shape) -> list[WindowView]:
    encoded, found = answer.encoded, answer.classified
    at = converter(encoded.text, shape.offset_unit)
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
                weight=_short(found.weights[number]) if found and found.weights.ndim == 1 else None,
                scores=_window_scores(model, found, number, shape.top_k) if found else None,
            )
        )
    return views


def _window_scores(model: ServedModel, found: Classified, window: int, top_k: int | None) -> list[WindowScore]:
    """What one window says of each label; of a multi-label task, with its weight in that label's own pool."""
    scores = found.window_scores[window]
    return [
        WindowScore(
            label=model.manifest.task.labels[index],
            score=_short(scores[index]),
            weight=_short(found.weights[window, index]) if found.weights.ndim == 2 else None,
        )
        for index in _ranked(scores, top_k)
    ]
