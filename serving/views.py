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
        return EntityPrediction(entities=entities_of(answer, shape), **reading)
    scores = [
        LabelScore(label=task.labels[index], score=short(found.scores[index]))
        for index in ranked(found.scores, shape.top_k)
    ]
    if task.kind == "multi-label":
        limits = thresholds(task)
        given = [
            GivenLabel(label=task.labels[index], score=short(found.scores[index]), threshold=short(limits[index]))
            for index in ranked(found.scores)
            if index in answer.chosen
        ]
        return LabelsPrediction(labels=given, scores=scores, **reading)
    (label,) = answer.chosen
    best: dict[str, Any] = {"label": task.labels[label], "score": short(found.scores[label]), "scores": scores}
    if task.tags:
        return LabelEntityPrediction(entities=entities_of(answer, shape), **best, **reading)
    return LabelPrediction(**best, **reading)


def entities_of(answer: Answer, shape: Shape) -> list[EntityView]:
    text = answer.text.text
    at = converter(text, shape.offset_unit)
    return [
        EntityView(
            label=item.label,
            text=text[item.start : item.end],
            start=at(item.start),
            end=at(item.end),
            score=short(item.score),
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


def given_first(model: ServedModel, answer: Answer, top_k: int | None = None) -> list[LabelScore]:
    """Every label with the model's score, for dialects that know nothing else: first those that are given.

    Mostly that is the order of the scores; where a rule or a threshold decided otherwise, the first is still the
    answer. Within the given and the others it is best first.
    """
    assert answer.classified
    scores = answer.classified.scores
    order = sorted(ranked(scores), key=lambda index: index not in answer.chosen)
    return [LabelScore(label=model.manifest.task.labels[index], score=short(scores[index])) for index in order[:top_k]]


def ranked(scores: FloatArray, top_k: int | None = None) -> list[int]:
    """Label indexes, best first; equal scores in label order, as argmax has it."""
    return [int(index) for index in np.argsort(-scores, kind="stable")[:top_k]]


def short(value: float) -> float:
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
                weight=short(found.weights[number]) if found and found.weights.ndim == 1 else None,
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
            score=short(scores[index]),
            weight=short(found.weights[window, index]) if found.weights.ndim == 2 else None,
        )
        for index in ranked(scores, top_k)
    ]
