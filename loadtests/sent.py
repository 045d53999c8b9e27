"""One row per request, kept while the load runs and written as CSV: the raw data of every figure in a summary."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Sent:
    """A request and what came of it. Times are seconds from the start of the run unless named ``_ms``.

    Attributes:
        user: number of the caller; of the connection in an open loop.
        number: which request of this user it was; which arrival in an open loop.
        intended: when it should have started; equal to ``start`` in a closed loop.
        start: when it was really sent; when it was given up, if it never was.
        kind: short or long.
        place: which text of its kind.
        status: HTTP status, 0 without an answer.
        error: kind of error, empty when all is well.
        latency_ms: from the intended start to the end of the answer.
        total_ms: the gateway's own time for the request, as the answer tells, and its parts.
    """

    user: int
    number: int
    intended: float
    start: float
    kind: str
    place: int
    chars: int
    tokens: int
    windows: int
    status: int
    error: str
    latency_ms: float
    tokenize_ms: float
    infer_ms: float
    decode_ms: float
    total_ms: float
    warmup: bool

    @property
    def end(self) -> float:
        return self.intended + self.latency_ms / 1000


COLUMNS = tuple(field.name for field in fields(Sent))


def to_csv(rows: Iterable[Sent]) -> str:
    """The rows as CSV text in order of their intended start; times with microseconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in sorted(rows, key=lambda item: (item.intended, item.user, item.number)):
        writer.writerow([_cell(getattr(row, name)) for name in COLUMNS])
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return f"{value:.6f}" if isinstance(value, float) else value


def from_csv(file: Path) -> list[Sent]:
    """Reads what `to_csv` wrote."""
    kinds: dict[str, Callable[[str], Any]] = {
        "int": int,
        "float": float,
        "str": str,
        "bool": lambda cell: cell == "1",
    }
    readers = {field.name: kinds[str(field.type)] for field in fields(Sent)}
    with file.open(encoding="utf-8", newline="") as stream:
        return [Sent(**{name: readers[name](cell) for name, cell in row.items()}) for row in csv.DictReader(stream)]
