"""A tagger's windows on long documents: with overlap and stitching, without either, and sentence by sentence.

Documents are joined from real test sentences, so what the model finds in each sentence alone is the mark: a document's
windows may lose entities at their seams, and may gain from what stands around a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.encode import Encoded, Encoder, Window
from bundle.manifest import Joining
from bundle.predict import Predicted, Progress, Run, answers_of, predict, scores_of
from export.documents import Document, answer, joined
from export.heads import Head
from export.pooling import stitched

CHARACTERS = 2000
# Documents that are measured, at most.
DOCUMENTS = 50


@dataclass(frozen=True)
class Held:
    """Gold entities and the windows that hold them.

    Attributes:
        entities, short: all of them, and those of at most as many tokens as windows share.
        split, short_split: those of them that no window holds whole.
    """

    entities: int
    split: int
    short: int
    short_split: int


def tokens_of(encoded: Encoded, spans: Sequence[tuple[int, int, str]]) -> npt.NDArray[np.int64]:
    """int64 (entities, 2): the tokens ``[first, last)`` of each span of code points; without a token it is left out."""
    found = []
    for start, end, _ in spans:
        inside = np.flatnonzero((encoded.spans[:, 0] < end) & (encoded.spans[:, 1] > start))
        if len(inside):
            found.append((int(inside[0]), int(inside[-1]) + 1))
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def held(encoded: Sequence[Encoded], documents: Sequence[Document], overlap: int) -> Held:
    """Which gold entities a window holds whole."""
    counts = np.zeros(4, dtype=np.int64)
    for item, document in zip(encoded, documents, strict=True):
        spans = tokens_of(item, document.row.spans)
        whole = np.zeros(len(spans), dtype=bool)
        for window in item.windows:
            whole |= (window.first <= spans[:, 0]) & (spans[:, 1] <= window.last)
        short = spans[:, 1] - spans[:, 0] <= overlap
        counts += [len(spans), int((~whole).sum()), int(short.sum()), int((short & ~whole).sum())]
    return Held(*counts.tolist())


def cut_apart(encoded: Encoded, room: int) -> Encoded:
    """The same text in windows of ``room`` tokens that share nothing and end wherever they are full."""
    count = len(encoded.ids)
    windows = tuple(
        Window(
            first,
            last := min(first + room, count),
            int(encoded.spans[first, 0]) if first else 0,
            int(encoded.spans[last, 0]) if last < count else len(encoded.text),
        )
        for first in range(0, count, room)
    )
    return replace(encoded, windows=windows)


def measure(
    head: Head,
    encoder: Encoder,
    run: Run,
    two_heads: bool,
    joining: Joining,
    *,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Entity scores of test sentences, one by one and as documents.

    Args:
        head: the sentences and what the model says of each alone.
        two_heads: whether tags are the second output of ``run``.
        joining: as the manifest says; its stitching is what is served.

    Returns:
        ``scores`` (precision, recall and F1) by way of reading: ``sentences``, each stitching, and ``naive``, windows
        without overlap; ``served_minus_sentences`` in points of F1; how many entities no window holds whole. Only
        ``documents``, 0, where no row has entities to look for.
    """
    spec = encoder.spec
    documents = joined(head.rows, CHARACTERS)[:DOCUMENTS]
    if not documents:
        return {"documents": 0}
    rows = [item.row for item in documents]
    parts = [place for item in documents for place in item.parts]
    alone = [head.rows[place] for place in parts]
    sentences = scores_of(alone, answers_of([head.found[place] for place in parts], head.task, joining), head.task)
    whole = _tags(answer(documents, encoder, run, batch_tokens=batch_tokens, progress=progress), two_heads)
    ways = stitched(Head(rows, whole, head.task), joining)
    both = {way: scores_of(rows, answers, head.task) for way, answers in ways.items()}
    room = spec.max_tokens - 2
    apart = [cut_apart(item.encoded, room) for item in whole]
    naive = _tags(predict(apart, encoder, run, batch_tokens=batch_tokens, progress=progress), two_heads)
    naive_held = held(apart, documents, spec.overlap)
    ours = held([item.encoded for item in whole], documents, spec.overlap)
    return {
        "documents": len(documents),
        "sentences": len(parts),
        "mean_characters": float(np.mean([len(row.text) for row in rows])),
        "mean_windows": float(np.mean([len(item.logits) for item in whole])),
        "scores": {
            "sentences": sentences,
            **both,
            "naive": scores_of(rows, answers_of(naive, head.task, joining), head.task),
        },
        # Points of F1 that reading a document costs (or gains) against its sentences one by one.
        "served_minus_sentences": 100 * (both[joining.stitching]["f1"] - sentences["f1"]),
        "entities": ours.entities,
        "no_window_holds": ours.split,
        "no_window_holds_short": ours.short_split,
        "naive_cut": naive_held.split,
        "naive_cut_rate": naive_held.split / ours.entities if ours.entities else 0.0,
    }


def _tags(found: Sequence[Predicted], two_heads: bool) -> list[Predicted]:
    return [Predicted(item.encoded, item.token_logits) for item in found] if two_heads else list(found)
