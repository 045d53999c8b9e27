"""``report.json``: what a page about a run needs and no other file of the run holds.

Written at the end of a run, while model, rows and predictions are at hand: the recipe, the machine, how sure the model
was of each answer, and the rows that deserve a look.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundle.folder import write_atomic
from bundle.machine import commit, hardware, versions
from bundle.manifest import Joining, Task
from bundle.predict import Predicted, answer_of, gold_of, judged, readable
from bundle.rows import Row
from finetune.curve.record import NAME as CURVE
from finetune.curve.record import read
from finetune.curve.signals import STATE, calibration_error, certainty
from finetune.prepare import Prepared
from finetune.save import PACKAGES
from finetune.targets import class_target, tag_target

NAME = "report.json"
# Rows of each kind that are shown, and how much of a text.
SHOWN, CHARACTERS = 12, 400
BINS = 10

Json = dict[str, Any]


def write(
    run: Path,
    prepared: Prepared,
    splits: dict[str, tuple[Sequence[Row], Sequence[Predicted]]],
    joining: Joining,
    seconds: float,
) -> Path:
    """Writes the file into the run folder.

    Args:
        splits: dev and test, with what the finished model said.
        joining: how windows' answers are joined.
        seconds: that the training took.
    """
    task = prepared.task
    record = {
        "recipe": prepared.recipe.model_dump(mode="json"),
        "given": prepared.recipe.model_dump(mode="json", exclude_unset=True),
        "labels": list(task.labels),
        "base": {"name": prepared.base.source.name, "licence": prepared.base.source.licence, **prepared.base.config},
        "data": {"name": prepared.source.name, "licence": prepared.source.licence, "sha256": prepared.data_sha256},
        "rows": {"train": len(prepared.train), "dev": len(prepared.dev), "test": len(prepared.test)},
        "seconds": round(seconds, 1),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(PACKAGES),
        "calibration": {name: calibration(*part, task) for name, part in splits.items()},
        "hardest": hardest(*splits["dev"], task, joining),
        "suspicious": suspicious(run, prepared),
    }
    path = run / NAME
    write_atomic(path, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    return path


def calibration(rows: Sequence[Row], predicted: Sequence[Predicted], task: Task) -> Json:
    """A reliability diagram (Guo et al. 2017): by equal bins of confidence, how many answers and how many right.

    An answer is a row's label; of a multi-label task each label of a row, of a tagger each token.
    """
    confidence, right, _ = certainty(predicted, rows, task)
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = []
    for number in range(BINS):
        own = place == number
        count = int(own.sum())
        bins.append(
            {
                "count": count,
                "confidence": round(float(confidence[own].mean()), 4) if count else None,
                "right": round(float(right[own].mean()), 4) if count else None,
            }
        )
    return {"answers": len(confidence), "error": round(calibration_error(confidence, right), 4), "bins": bins}


def hardest(rows: Sequence[Row], predicted: Sequence[Predicted], task: Task, joining: Joining) -> list[Json]:
    """Rows that are answered wrong, those first that the model is surest of being something else."""
    found = []
    for row, item in zip(rows, predicted, strict=True):
        answer = readable(answer_of(item, task, joining), task)
        gold = gold_of(row, task)
        if _judged(row, answer, task) == _judged(row, gold, task):
            continue
        found.append({**_shown(row), "gold": gold, "answer": answer, "loss": round(_loss(row, item, task, joining), 4)})
    return sorted(found, key=lambda one: -one["loss"])[:SHOWN]


def _judged(row: Row, answer: Any, task: Task) -> Any:
    """The part of an answer that the row can judge, spans in any order."""
    if task.kind == "multi-task":
        (answer,) = judged([row], [(answer["label"], answer["entities"])], task)
        return answer[0], sorted(answer[1] or [])
    return sorted(answer) if isinstance(answer, list) else answer


def _loss(row: Row, item: Predicted, task: Task, joining: Joining) -> float:
    """How surprised the model is by what the row says: mean negative log likelihood, over both heads."""
    losses = []
    gold = class_target(row, task) if task.classifies else None
    if gold is not None:
        scores = np.clip(item.classified(task, joining).scores.astype(np.float64), 1e-9, 1 - 1e-9)
        if task.kind == "multi-label":
            losses.append(float(-(gold * np.log(scores) + (1 - gold) * np.log(1 - scores)).mean()))
        else:
            losses.append(float(-np.log(scores[gold])))
    tags = tag_target(item.encoded, row, task)
    if tags is not None:
        logits = np.concatenate(item.outputs[-1]).astype(np.float64)
        own = np.concatenate([tags[window.first : window.last] for window in item.encoded.windows])
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(own)), own] - np.log(np.exp(logits).sum(axis=1))
        # The mean would hide one lost name among a hundred plain tokens.
        losses.append(float(-np.sort(chosen)[: max(1, len(chosen) // 20)].mean()))
    return float(np.mean(losses))


def suspicious(run: Path, prepared: Prepared) -> list[Json]:
    """Rows of train whose label the model contradicted at its best evaluation (confident learning)."""
    path = run / CURVE
    points = [point for point in read(path).of("dev") if point.get("suspicious")] if path.is_file() else []
    if not points:
        return []
    best = min(points, key=lambda point: float("inf") if point["loss"] is None else float(point["loss"]))
    believed = _believed(run)
    found = []
    for number in best["suspicious"]:
        row = prepared.lessons[number]
        shown = {**_shown(row), "gold": row.label}
        if believed is not None and not np.isnan(believed[number]).any():
            likely = int(believed[number].argmax())
            shown |= {"answer": prepared.task.labels[likely], "belief": round(float(believed[number, likely]), 3)}
        found.append(shown)
    return found[:SHOWN]


def _believed(run: Path) -> Any:
    """float64 (lessons, labels) from the newest checkpoint; None where there is none."""
    folders = [path for path in (run / "checkpoints").glob("checkpoint-*") if (path / STATE).is_file()]
    if not folders:
        return None
    newest = max(folders, key=lambda path: int(path.name.rpartition("-")[2]))
    with np.load(newest / STATE, allow_pickle=False) as arrays:
        return arrays.get("believed", None)


def _shown(row: Row) -> Json:
    text = row.text[:CHARACTERS] + ("…" if len(row.text) > CHARACTERS else "")
    pair = None if row.pair is None else row.pair[:CHARACTERS] + ("…" if len(row.pair) > CHARACTERS else "")
    return {"text": text, "pair": pair, "characters": len(row.text) + len(row.pair or "")}
