"""One telling sentence at the end of a long neutral text: does the answer still see it?

Documents are made of real texts: a labelled row that fits one window, after neutral text of several windows. Reading
the head alone must fail on them, and so must a pooling that lets the many neutral windows outvote the one that tells.
What finds it is chosen and fitted on documents made of dev rows, and measured on others made of test rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from bundle.decode import POOLINGS
from bundle.encode import Encoded, Encoder
from bundle.errors import BundleError
from bundle.folder import open_bundle
from bundle.manifest import Joining, Pooling, Task
from bundle.predict import Predicted, Progress, Run, answers_of, encode_rows, predict
from bundle.rows import SEPARATOR, Row, read_rows
from export.heads import label_head
from export.long import HEAD, mcnemar, right_of, served_way, ways_of
from export.pooling import compare, elect
from export.spread import spread

# Documents of each split, at most.
DOCUMENTS = 1500
# Neutral text before the row, in windows.
WINDOWS = 4


@dataclass(frozen=True)
class Neutral:
    """Texts that tell nothing of the labels; those of the dev documents are others than those of the test documents."""

    dev: list[str]
    test: list[str]
    name: str = ""


def read_neutral(path: Path) -> Neutral:
    """Neutral text from a file, one a line (by turns for dev and test), or from the dev and test rows of a bundle.

    Raises:
        BundleError: neither of them, or it has no text.
    """
    folder = path / "bundle" if (path / "bundle" / "bundle.json").is_file() else path
    if folder.is_dir():
        bundle = open_bundle(folder, verify=False)
        splits = bundle.manifest.splits
        texts = [
            [row.text for row in read_rows(bundle.path(splits[name].file))] if name in splits else []
            for name in ("dev", "test")
        ]
    else:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path}: cannot be read: {error}") from error
        texts = [lines[::2], lines[1::2]]
    if not all(texts):
        raise BundleError(f"{path}: holds no neutral text; give a file of lines or a bundle with dev and test rows")
    return Neutral(texts[0], texts[1], str(path))


def late(rows: Sequence[Row], neutral: Sequence[str], characters: int) -> list[Row]:
    """Each row's text at the end of neutral text of at least so many code points; always the same."""
    texts = cycle(neutral)
    return [Row(SEPARATOR.join([*_before(texts, characters), row.text]), row.label) for row in rows]


def _before(texts: Iterator[str], characters: int) -> Iterator[str]:
    length = 0
    while length < characters:
        text = next(texts)
        # A long article is cut, so that documents are of like length.
        yield text[: characters - length] or text
        length += len(text) + len(SEPARATOR)


def fitting(encoded: Sequence[Encoded]) -> list[int]:
    """The places of texts that fit one window."""
    return [place for place, item in enumerate(encoded) if len(item.windows) == 1]


def measure(
    test: tuple[Sequence[Row], Sequence[Predicted]],
    dev: Sequence[Row],
    neutral: Neutral,
    encoder: Encoder,
    run: Run,
    task: Task,
    joining: Joining,
    *,
    poolings: Sequence[Pooling] = POOLINGS,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Accuracy of every way of reading such documents, and of the short texts alone.

    Args:
        test: the test rows and what the model says of them.
        joining: as the manifest says.
        poolings: those that need no fitting; see `bundle.decode.poolings_of`.

    Returns:
        ``accuracy`` by way of reading (``short`` is the row alone, ``learned`` has the manifest's weights), ``served``
        and its share in ``short``, the p-value of served against the head alone, and ``fitted``: what the dev documents
        choose, its weights, and what it scores on the test documents. Only ``documents``, 0, where no short text is.
    """
    rows, said = test
    characters = WINDOWS * encoder.spec.max_tokens
    places = spread(fitting([item.encoded for item in said]), DOCUMENTS)
    short = [rows[place] for place in places]

    def read(some: Sequence[Row], texts: Sequence[str]) -> tuple[list[Row], list[Predicted]]:
        made = late(some, texts, characters)
        encoded = encode_rows(made, encoder)
        return made, predict(encoded, encoder, run, batch_tokens=batch_tokens, progress=progress)

    learn = [dev[place] for place in spread(fitting(encode_rows(dev, encoder)), DOCUMENTS)]
    if not short or not learn:
        return {"documents": 0}
    candidates, weights = compare(label_head(*read(learn, neutral.dev), task), poolings)
    best = elect(candidates, learn)
    documents, found = read(short, neutral.test)
    ways = ways_of(joining, poolings)
    right = {way: right_of(answers_of(found, task, how), documents, task) for way, how in ways.items()}
    right["short"] = right_of(answers_of([said[place] for place in places], task, joining), short, task)
    served = right[served_way(joining)]
    fitted = Joining(pooling="learned", weights=weights)
    chosen = fitted if best == "learned" else Joining(pooling=best)

    def accuracy(how: Joining) -> float:
        return float(right_of(answers_of(found, task, how), documents, task).mean())

    return {
        "documents": len(documents),
        "dev_documents": len(learn),
        "mean_windows": float(np.mean([len(item.logits) for item in found])),
        "accuracy": {way: float(right[way].mean()) for way in ("short", *ways)},
        "served": float(served.mean()),
        "served_of_short": float(served.mean() / right["short"].mean()) if right["short"].any() else None,
        "p_value": mcnemar(served, right[HEAD]),
        "fitted": {
            "pooling": best,
            "accuracy": accuracy(chosen),
            "weights": list(weights),
            "learned_accuracy": accuracy(fitted) if weights else None,
            "dev": {item.name: item.metrics["accuracy"] for item in candidates},
        },
    }
