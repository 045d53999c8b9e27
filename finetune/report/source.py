"""A run folder → everything that is known of the run, missing parts included: a page shows what there is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.errors import DataError
from finetune.curve.diagnosis import Finding, Spell, timeline
from finetune.curve.record import NAME as CURVE
from finetune.curve.record import History, Point, read
from finetune.report.collect import NAME

Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: of its recipe; of runs of one recipe also the folder.
        spells: what was wrong when.
        evaluation: evaluation.json; empty while the run has not ended.
        about: report.json; empty for runs of an earlier version.
    """

    folder: Path
    name: str
    history: History
    spells: list[Spell]
    evaluation: Json
    about: Json

    @property
    def dev(self) -> list[Point]:
        return self.history.of("dev")

    @property
    def events(self) -> list[Point]:
        return self.history.of("event")

    @property
    def metric(self) -> str:
        return str(self.history.run["metric"])

    @property
    def best(self) -> Point | None:
        """The evaluation with the best dev score."""
        known = [point for point in self.dev if point["scores"].get(self.metric) is not None]
        return max(known, key=lambda point: float(point["scores"][self.metric])) if known else None

    def split(self, name: str) -> Json:
        """The evaluation of dev or test at the end; empty where there is none."""
        found: Json = self.evaluation.get("evaluations", {}).get(name) or {}
        return found


def find(given: str | Path, artifacts: Path = Path("artifacts")) -> Path:
    """The run folder that is meant: itself, the folder above it, or a recipe's name under ``artifacts``.

    Raises:
        DataError: none of them holds a record of a training.
    """
    tried = [Path(given), Path(given) / "run", artifacts / given / "run"]
    for folder in tried:
        if (folder / CURVE).is_file():
            return folder
    raise DataError(f"{given}: no record of a training ({CURVE}) in {', '.join(map(str, tried))}")


def open_run(folder: Path) -> Run:
    """Reads a run folder.

    Raises:
        DataError: it has no record, or one of its files is not what it should be.
    """
    history = read(folder)
    evaluation, about = _json(folder / "evaluation.json"), _json(folder / NAME)
    return Run(folder, str(history.run["name"]), history, _spells(history), evaluation, about)


def _spells(history: History) -> list[Spell]:
    """The timeline, and what interventions were for: a rollback takes its own reason out of the diagnosis."""
    spells = timeline(history)
    for event in history.of("event"):
        name, step = event["finding"], event["step"]
        own = [spell for spell in spells if spell.finding.name == name]
        if not any(spell.first <= step and (spell.last is None or step <= spell.last) for spell in own):
            spells.append(Spell(Finding(name, step, event["reason"]), step, step))
    return sorted(spells, key=lambda spell: spell.first)


def named_apart(runs: list[Run]) -> list[str]:
    """A name for each run: the recipe's, and where that is not enough the folder's as well."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({run.folder.parent.name}/{run.folder.name})"
        for name, run in zip(names, runs, strict=True)
    ]


def _json(path: Path) -> Json:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: is not a JSON object")
    return found
