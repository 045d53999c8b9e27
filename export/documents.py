"""Documents made of short labelled rows, whose entities keep their places; a tagger's windows are tried on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bundle.encode import Encoder
from bundle.predict import Predicted, Progress, Run, predict
from bundle.rows import SEPARATOR, Row, join_rows


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
        row, starts = join_rows(rows[begin:end])
        documents.append(Document(row, tuple(range(begin, end)), starts))
        begin = end
    return documents


def answer(
    documents: Sequence[Document],
    encoder: Encoder,
    run: Run,
    *,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[Predicted]:
    """Answers whole documents: none is cut at ``max_windows``, which is a server's limit and no property of a model."""
    encoded = [encoder.encode(item.row.text, max_windows=len(item.row.text)) for item in documents]
    return predict(encoded, encoder, run, batch_tokens=batch_tokens, progress=progress)
