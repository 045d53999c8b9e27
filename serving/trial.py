"""Rules on trial: the dev rows of a bundle answered without them and with them, so that a rule that hurts is seen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle.errors import BundleError
from bundle.manifest import Task
from bundle.predict import answer_of, gold_of, readable, scores_of
from bundle.rows import Row, read_rows
from serving.gateway import Gateway
from serving.rules import Ruled, RuleSet, read_rules
from serving.settings import Settings

GROUP = 16


@dataclass(slots=True)
class Effect:
    """What one rule did to the rows: ``mended`` were wrong before all rules and right after, ``broken`` the reverse.

    A row's answer is judged as a whole: all its labels, all its entities, or both.
    """

    rule: str
    fired: int = 0
    mended: int = 0
    broken: int = 0


@dataclass(frozen=True, slots=True)
class Trial:
    """Scores of the same rows without and with the rules."""

    rows: int
    without: dict[str, float]
    with_rules: dict[str, float]
    effects: list[Effect] = field(default_factory=list)


def try_rules(
    bundles: Path, name: str, file: Path, rows: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> Trial:
    """Answers dev rows with ONNX Runtime and applies the rules of ``file``.

    Args:
        rows: at most so many.

    Raises:
        RulesInvalid: the file is wrong.
        BundleError: there is no such exported bundle, or it has no dev rows.
    """
    return asyncio.run(_try_rules(bundles, name, file, rows, progress))


async def _try_rules(bundles: Path, name: str, file: Path, most: int, progress: Callable[[int, int], None]) -> Trial:
    settings: dict[str, Any] = {"engine": "onnx", "bundles": bundles}
    gateway = Gateway(Settings(**settings))
    await gateway.start()
    try:
        model = gateway.model(name)
        task, joining = model.manifest.task, model.manifest.text.joining
        rules = read_rules(file, task)
        if "dev" not in model.manifest.splits:
            raise BundleError(f"{model.bundle.root}: holds no dev rows")
        rows = list(read_rows(model.bundle.path(model.manifest.splits["dev"].file)))[:most]
        before: list[Any] = []
        after: list[Ruled] = []
        for start in range(0, len(rows), GROUP):
            group = rows[start : start + GROUP]
            encoded = [model.encoder.encode(row.text, row.pair, truncate=True) for row in group]
            for row, item in zip(group, await gateway.classifier.infer(model, encoded), strict=True):
                classified = item.classified(task, joining) if task.classifies else None
                tagged = item.tagged(task, joining) if task.tags else []
                before.append(answer_of(item, task, joining))
                after.append(rules.apply(row.text, classified, tagged))
            progress(len(after), len(rows))
    finally:
        await gateway.stop()
    return _judge(rules, rows, before, after, task)


def _judge(rules: RuleSet, rows: Sequence[Row], before: Sequence[Any], ruled: Sequence[Ruled], task: Task) -> Trial:
    after = [_said(item, task) for item in ruled]
    effects = {rule.name: Effect(rule.name) for rule in rules.rules}
    for row, old, new, item in zip(rows, before, after, ruled, strict=True):
        was, became = _is_right(old, row, task), _is_right(new, row, task)
        for name in {fired.rule for fired in item.fired}:
            effects[name].fired += 1
            effects[name].mended += became and not was
            effects[name].broken += was and not became
    return Trial(len(rows), scores_of(rows, before, task), scores_of(rows, after, task), list(effects.values()))


def _said(ruled: Ruled, task: Task) -> Any:
    """An answer after the rules, in the form of `bundle.predict.answers_of`."""
    spans = tuple((item.start, item.end, item.label) for item in ruled.tagged)
    if task.kind == "multi-label":
        return ruled.chosen
    if task.kind == "multi-task":
        return ruled.chosen[0], spans
    return spans if task.tags else ruled.chosen[0]


def _is_right(answer: Any, row: Row, task: Task) -> bool:
    """Whether a whole answer is the row's own; where a multi-task row tells one half, that half alone is judged."""
    said, gold = readable(answer, task), gold_of(row, task)
    if task.kind == "multi-task":
        return all(wanted is None or said[half] == wanted for half, wanted in gold.items())
    if task.kind == "multi-label":
        return set(said) == set(gold)
    return bool(said == gold)
