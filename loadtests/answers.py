"""What a right answer of the native route looks like; everything else is an error of a named kind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

STAGES = ("tokenize", "infer", "decode")


@dataclass(frozen=True, slots=True)
class Answer:
    """A checked answer.

    Attributes:
        error: the kind of error, empty when the answer is right; a short name, so that kinds can be counted.
        detail: what the server said about it.
        stages: milliseconds per stage and in ``total``, as the gateway reports them.
    """

    error: str
    detail: str = ""
    tokens: int = 0
    windows: int = 0
    stages: dict[str, float] | None = None


def check(status: int, body: bytes) -> Answer:
    """Checks one answer to a request with one text.

    Args:
        status: HTTP status.
        body: the answer's body.
    """
    try:
        answer: Any = json.loads(body)
    except ValueError:
        answer = None
    if status != 200:
        detail = answer.get("detail") or answer.get("title") if isinstance(answer, dict) else None
        return Answer(f"http {status}", str(detail or body[:200].decode("utf-8", "replace")))
    if not isinstance(answer, dict):
        return Answer("not JSON", body[:200].decode("utf-8", "replace"))
    predictions, timing = answer.get("predictions"), answer.get("timing_ms")
    if not isinstance(predictions, list) or len(predictions) != 1 or not isinstance(predictions[0], dict):
        return Answer("missing predictions", "one text was sent, so one prediction is due")
    prediction = predictions[0]
    told = ("label" in prediction and "score" in prediction) or "labels" in prediction or "entities" in prediction
    if not told:
        return Answer("missing label", "a prediction has label and score, labels, or entities")
    for field in ("tokens", "windows"):
        if type(prediction.get(field)) is not int or prediction[field] < 1:
            return Answer(f"missing {field}")
    if not isinstance(prediction.get("truncated"), bool):
        return Answer("missing truncated")
    if not isinstance(timing, dict) or not all(isinstance(timing.get(s), (int, float)) for s in (*STAGES, "total")):
        return Answer("missing timing_ms", f"timing_ms has {', '.join(STAGES)} and total")
    stages = {stage: float(timing[stage]) for stage in (*STAGES, "total")}
    error = "truncated" if prediction["truncated"] else ""
    return Answer(error, "", prediction["tokens"], prediction["windows"], stages)
