"""Rules on trial: the dev rows of a bundle answered without them and with them, so that a rule that hurts is seen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle.decode import Tagged
from bundle.errors import BundleError
from bundle.predict import scores_of
from bundle.rows import Row, read_rows
from serving.catalogue import ServedModel
from serving.gateway import Gateway
from serving.rules import Ruled, RuleSet, read_rules
from serving.settings import Settings

GROUP = 16


@dataclass(slots=True)
class Effect:
    """What one rule did to the rows: ``mended`` were wrong before all rules and right after, ``broken`` the reverse."""

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
        rules = read_rules(file, model.manifest.task)
        if "dev" not in model.manifest.splits:
            raise BundleError(f"{model.bundle.root}: holds no dev rows")
        rows = list(read_rows(model.bundle.path(model.manifest.splits["dev"].file)))[:most]
        before: list[object] = []
        after: list[Ruled] = []
        for start in range(0, len(rows), GROUP):
            group = rows[start : start + GROUP]
            encoded = [model.encoder.encode(row.text, row.pair, truncate=True) for row in group]
            for row, item in zip(group, await gateway.classifier.infer(model, encoded), strict=True):
                tagged = item.tagged(model.manifest.task) if model.is_tagger else []
                classified = None if model.is_tagger else item.classified(model.manifest.text.pooling)
                before.append(_spans(tagged) if classified is None else classified.label)
                after.append(rules.apply(row.text, classified, tagged))
            progress(len(after), len(rows))
    finally:
        await gateway.stop()
    return _judge(model, rules, rows, before, after)


def _judge(
    model: ServedModel, rules: RuleSet, rows: Sequence[Row], before: Sequence[object], ruled: Sequence[Ruled]
) -> Trial:
    labels = model.manifest.task.labels
    gold: list[object]
    after: list[object]
    if model.is_tagger:
        gold = [[(item.start, item.end, item.label) for item in row.entities or ()] for row in rows]
        after = [_spans(item.tagged) for item in ruled]
    else:
        gold = [labels.index(row.label or "") for row in rows]
        after = [item.label for item in ruled]
    effects = {rule.name: Effect(rule.name) for rule in rules.rules}
    for wanted, old, new, item in zip(gold, before, after, ruled, strict=True):
        for name in {fired.rule for fired in item.fired}:
            effects[name].fired += 1
            effects[name].mended += old != wanted and new == wanted
            effects[name].broken += old == wanted and new != wanted
    task = model.manifest.task
    return Trial(len(rows), scores_of(rows, before, task), scores_of(rows, after, task), list(effects.values()))


def _spans(tagged: Iterable[Tagged]) -> list[tuple[int, int, str]]:
    return [(item.start, item.end, item.label) for item in tagged]
