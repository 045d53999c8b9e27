"""Documents made of short labelled rows, whose entities keep their places; a tagger's windows are tried on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bundle.encode import Encoder
from bundle.predict import Predicted, Run, predict
from bundle.rows import Row

# Sentences stand on lines of their own, as in a news text; tokenizers drop it, and a window may end there.
SEPARATOR = "\n"


@dataclass(frozen=True)
class Document:
    """A row made of several.

    Attributes:
        row: its text and entities; ``text[start:end]`` is what it was in the row that it came from.
        parts: the places of those rows.
        starts: where each of them begins in the text, code points.
    """

    row: Row
    parts: tuple[int, ...]
    starts: tuple[int, ...]


def joined(rows: Sequence[Row], characters: int) -> list[Document]:
    """Joins rows in their order to documents of at least ``characters`` code points; the last may be shorter."""
    documents: list[Document] = []
    begin = 0
    while begin < len(rows):
        end, length = begin, 0
        while end < len(rows) and length < characters:
            length += len(rows[end].text) + len(SEPARATOR)
            end += 1
        documents.append(_document(rows, tuple(range(begin, end))))
        begin = end
    return documents


def _document(rows: Sequence[Row], parts: tuple[int, ...]) -> Document:
    starts: list[int] = []
    position = 0
    for place in parts:
        starts.append(position)
        position += len(rows[place].text) + len(SEPARATOR)
    entities = tuple(
        replace(entity, start=entity.start + start, end=entity.end + start)
        for place, start in zip(parts, starts, strict=True)
        for entity in rows[place].entities or ()
    )
    text = SEPARATOR.join(rows[place].text for place in parts)
    return Document(Row(text, entities=entities), parts, tuple(starts))


def answer(documents: Sequence[Document], encoder: Encoder, run: Run, *, batch_tokens: int = 4096) -> list[Predicted]:
    """Answers whole documents: none is cut at ``max_windows``, which is a server's limit and no property of a model."""
    encoded = [encoder.encode(item.row.text, max_windows=len(item.row.text)) for item in documents]
    return predict(encoded, encoder, run, batch_tokens=batch_tokens)
