"""Answers → what travels: labels ranked, offsets in the caller's unit, windows explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bundle.decode import FloatArray
from bundle.offsets import OffsetUnit, converter
from serving.catalogue import ServedModel
from serving.classifier import Answer
from serving.schemas import EntityPrediction, EntityView, LabelPrediction, LabelScore, RuleView, WindowView

# Characters of a window's first and last words in an answer.
EDGE = 12


@dataclass(frozen=True, slots=True)
class Shape:
    """What a caller wants to see of an answer: see the fields of the same names in `serving.schemas.PredictRequest`."""

    top_k: int | None = None
    return_windows: bool = False
    offset_unit: OffsetUnit = "codepoint"


def prediction_of(model: ServedModel, answer: Answer, shape: Shape) -> LabelPrediction | EntityPrediction:
    """One answer as it travels."""
    encoded, found = answer.encoded, answer.classified
    reading: dict[str, Any] = {
        "tokens": encoded.tokens,
        "windows": len(encoded.windows),
        "covered": encoded.covered,
        "truncated": encoded.truncated,
        "window_list": _windows(model, answer, shape) if shape.return_windows else None,
        "rules": _rules(answer, shape) or None,
    }
    if found is None:
        text = answer.text.text
        at = converter(text, shape.offset_unit)
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
    scores = _ranked(model, found.scores, shape.top_k)
    return LabelPrediction(
        label=model.manifest.task.labels[answer.label],
        score=round(float(found.scores[answer.label]), 6),
        scores=scores,
        **reading,
    )


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


def _ranked(model: ServedModel, scores: FloatArray, top_k: int | None) -> list[LabelScore]:
    """Labels, best first; equal scores in label order, as argmax has it."""
    order = np.argsort(-scores, kind="stable")[:top_k]
    labels = model.manifest.task.labels
    return [LabelScore(label=labels[index], score=round(float(scores[index]), 6)) for index in order]


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
                weight=None if found is None else round(float(found.weights[number]), 6),
                scores=None if found is None else _ranked(model, found.window_scores[number], shape.top_k),
            )
        )
    return views
