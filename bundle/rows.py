"""A labelled row, and the JSONL files of rows that travel in a bundle (dev, test, calibration).

`finetune.data` reads foreign formats into these rows; `export` reads them back to measure quality.
Offsets are code points, end-exclusive, into ``text`` as given: ``text[start:end]`` is the entity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bundle.errors import RowError
from bundle.folder import write_atomic

# Between texts that are joined, as between the lines of a news text: tokenizers drop it, and a window may end there.
SEPARATOR = "\n"


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity of a text: ``text[start:end]``, code points, end-exclusive."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text.

    A classifier's row has ``label``, a multi-label one's ``labels`` (which may be none at all), a tagger's
    ``entities``. A multi-task row has a label, entities, or both: each head learns from the rows that tell it what to
    say.
    """

    text: str
    label: str | None = None
    pair: str | None = None
    entities: tuple[Entity, ...] | None = None
    labels: tuple[str, ...] | None = None

    @property
    def spans(self) -> list[tuple[int, int, str]]:
        """The entities as (start, end, type)."""
        return [(item.start, item.end, item.label) for item in self.entities or ()]


def row_to_json(row: Row) -> str:
    """The row as one line of JSON."""
    record: dict[str, object] = {"text": row.text}
    if row.pair is not None:
        record["pair"] = row.pair
    if row.label is not None:
        record["label"] = row.label
    if row.labels is not None:
        record["labels"] = list(row.labels)
    if row.entities is not None:
        record["entities"] = [[entity.start, entity.end, entity.label] for entity in row.entities]
    return json.dumps(record, ensure_ascii=False)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows as JSONL, whole or not at all."""
    write_atomic(path, "".join(row_to_json(row) + "\n" for row in rows))


def checksum(rows: Iterable[Row]) -> str:
    """sha256 over the rows as lines of JSON, in hex: whether answers belong to these rows in this order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row_to_json(row)}\n".encode())
    return digest.hexdigest()


def join_rows(rows: Sequence[Row]) -> tuple[Row, tuple[int, ...]]:
    """Tagged rows as one text, each on a line of its own, with their entities.

    Returns:
        the text's row, and where each of the rows begins in it, code points.
    """
    starts, entities, position = [], [], 0
    for row in rows:
        starts.append(position)
        entities += [replace(item, start=item.start + position, end=item.end + position) for item in row.entities or ()]
        position += len(row.text) + len(SEPARATOR)
    return Row(SEPARATOR.join(row.text for row in rows), entities=tuple(entities)), tuple(starts)


def read_rows(path: Path) -> Iterator[Row]:
    """Reads what `write_rows` wrote.

    Raises:
        RowError: with the file and line.
    """
    with path.open(encoding="utf-8", newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            try:
                record = json.loads(line)
                entities, labels = record.get("entities"), record.get("labels")
                row = Row(
                    record["text"],
                    record.get("label"),
                    record.get("pair"),
                    None if entities is None else tuple(Entity(*entity) for entity in entities),
                    None if labels is None else tuple(labels),
                )
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RowError(path, number, f"not a row of a bundle: {error}") from error
            yield row
