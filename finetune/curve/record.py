"""``curve.jsonl``: everything that was measured of a training, one JSON object a line.

The first line (kind ``run``) says what the run is; the others are points in order of their step:

- ``train``: loss, rate, tokens per second, seconds left; from level 2 on the layers
- ``dev``: an evaluation
- ``deep``: level 3, a look inside the model
- ``event``: an intervention
- ``finding``: a diagnosis that began or ended

Diagnosis and intervention see a training only through this record, so that a resumed run decides as an uninterrupted
one and a finished run can be diagnosed again.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle.errors import DataError

Point = dict[str, Any]
NAME = "curve.jsonl"


@dataclass
class History:
    """A record in memory.

    Attributes:
        run: its first line: ``steps`` of a whole run, ``chance`` loss, ``metric``, ``layers`` by name, and so on.
        points: the others.
    """

    run: Point = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)

    def of(self, kind: str) -> list[Point]:
        return [point for point in self.points if point["kind"] == kind]

    @property
    def step(self) -> int:
        """The last step of which anything is known."""
        return int(self.points[-1]["step"]) if self.points else 0

    @property
    def begun(self) -> int:
        """The step at which the run began: above 0 where the controller had it begin anew."""
        anew = [event["step"] for event in self.of("event") if event.get("restart") and not event.get("dry_run")]
        return int(anew[-1]) if anew else 0

    @property
    def planned(self) -> int:
        """The step at which the run is over."""
        return self.begun + int(self.run["steps"])

    def until(self, step: int) -> History:
        """What was known after a step."""
        return History(self.run, [point for point in self.points if point["step"] <= step])


class Record:
    """A history that is written down as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history = History()

    def begin(self, run: Point, step: int) -> None:
        """Starts a record, or goes on with that of a run resumed at a step: points after it are dropped."""
        before = read_until(self.path, step) if step else History()
        known = before.points
        # The weights' size is that of the start; a resumed run no longer knows it, nor what was trained then.
        self.history = History(
            {**_plain(run), **{name: before.run[name] for name in ("rms", "trained") if name in before.run}}, known
        )
        lines = [{"kind": "run", "step": 0, **self.history.run}, *known]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(_line(point) for point in lines), encoding="utf-8")

    def add(self, kind: str, step: int, **values: Any) -> Point:
        """Appends a point. Floats keep five digits; what is not finite becomes null."""
        point = {"kind": kind, "step": step, **_plain(values)}
        self.history.points.append(point)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(_line(point))
        return point


def read(path: Path) -> History:
    """Reads ``curve.jsonl``, or that of a run folder.

    Raises:
        DataError: there is none, or it is not a record. A last line that a kill cut short is left out.
    """
    path = path / NAME if path.is_dir() else path
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"{path}: no record of a training: {error.strerror}") from error
    points = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            points.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
    if not points or points[0].get("kind") != "run":
        raise DataError(f"{path}: does not begin with the line of a run")
    return History({name: value for name, value in points[0].items() if name not in ("kind", "step")}, points[1:])


def read_until(path: Path, step: int) -> History:
    """What a record knew after a step; an empty history where the file is not there."""
    return read(path).until(step) if path.is_file() else History()


def _line(point: Point) -> str:
    return json.dumps(point, ensure_ascii=False, separators=(",", ":")) + "\n"


def _plain(value: Any) -> Any:
    """What JSON can hold, and what it gives back unchanged."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    number = float(value)
    return float(f"{number:.5g}") if math.isfinite(number) else None
