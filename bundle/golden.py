"""Golden rows: texts with the ids and logits that the training framework gave, and how to compare with them.

Every conversion is proved on them, and a server refuses to become ready until its live engine reproduces them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bundle.decode import FloatArray
from bundle.encode import Encoded, Encoder, IntArray
from bundle.errors import BundleError
from bundle.folder import write_atomic
from bundle.manifest import Joining, Parity, Task
from bundle.predict import Predicted, agreement, answers_of


@dataclass(frozen=True, slots=True)
class Golden:
    """One reference row.

    Attributes:
        ids: per window, int64 (tokens,), special tokens included.
        logits: per window, float32 (labels,), or (tokens of the window, labels) for a tagger.
        token_logits: of a multi-task model, per window, float32 (tokens of the window, token labels).
    """

    text: str
    pair: str | None
    ids: tuple[IntArray, ...]
    logits: tuple[FloatArray, ...]
    token_logits: tuple[FloatArray, ...] = ()

    def predicted(self, encoded: Encoded) -> Predicted:
        """The row as what the training framework said of a text that was encoded here."""
        return Predicted(encoded, list(self.logits), list(self.token_logits))


def golden_of(predicted: Predicted, encoder: Encoder, text: str, pair: str | None) -> Golden:
    """A reference row from what the training framework answered."""
    rows = encoder.rows(predicted.encoded)
    return Golden(text, pair, tuple(row.ids for row in rows), *map(tuple, predicted.outputs))


def write_golden(path: Path, rows: Sequence[Golden]) -> None:
    """Writes reference rows as JSON lines; logits keep all digits of a float32."""
    lines = [
        json.dumps(
            {
                "text": row.text,
                "pair": row.pair,
                "ids": [ids.tolist() for ids in row.ids],
                "logits": _numbers(row.logits),
                **({"token_logits": _numbers(row.token_logits)} if row.token_logits else {}),
            },
            ensure_ascii=False,
        )
        for row in rows
    ]
    write_atomic(path, "\n".join(lines) + "\n")


def _numbers(logits: Sequence[FloatArray]) -> list[object]:
    return [np.round(values.astype(np.float64), 7).tolist() for values in logits]


def read_golden(path: Path) -> list[Golden]:
    """Reads reference rows.

    Raises:
        BundleError: the file is not what `write_golden` writes.
    """
    rows: list[Golden] = []
    try:
        for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
            record = json.loads(line)
            rows.append(
                Golden(
                    record["text"],
                    record["pair"],
                    tuple(np.array(ids, dtype=np.int64) for ids in record["ids"]),
                    tuple(np.array(values, dtype=np.float32) for values in record["logits"]),
                    tuple(np.array(values, dtype=np.float32) for values in record.get("token_logits", ())),
                )
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: not a file of golden rows: {error}") from error
    if not rows:
        raise BundleError(f"{path}: holds no golden rows")
    return rows


def check_ids(golden: Sequence[Golden], encoder: Encoder) -> None:
    """Compares the ids that this tokenizer gives with the recorded ones.

    Raises:
        BundleError: naming the first text and window that differ.
    """
    for number, row in enumerate(golden):
        encoded = encoder.encode(row.text, row.pair, truncate=True)
        found = [item.ids for item in encoder.rows(encoded)]
        if len(found) != len(row.ids):
            raise BundleError(f"golden row {number}: {len(found)} windows here, {len(row.ids)} recorded")
        for window, (here, recorded) in enumerate(zip(found, row.ids, strict=True)):
            if not np.array_equal(here, recorded):
                raise BundleError(f"golden row {number}, window {window}: the tokenizer gives other ids than recorded")


def compare(
    golden: Sequence[Golden],
    found: Sequence[Predicted],
    task: Task,
    joining: Joining,
    *,
    reference: str,
    tolerance: float,
) -> Parity:
    """Measures how far a live model is from the golden rows; judging is the caller's part.

    Raises:
        BundleError: shapes differ or a value is not finite, where no distance can be given.
    """
    differences: list[FloatArray] = []
    recorded = [row.predicted(answer.encoded) for row, answer in zip(golden, found, strict=True)]
    for number, (row, answer) in enumerate(zip(recorded, found, strict=True)):
        for wants, gots in zip(row.outputs, answer.outputs, strict=True):
            for window, (want, got) in enumerate(zip(wants, gots, strict=True)):
                if want.shape != got.shape:
                    raise BundleError(f"golden row {number}, window {window}: shape {got.shape}, recorded {want.shape}")
                if not np.isfinite(got).all():
                    raise BundleError(f"golden row {number}, window {window}: the answer is not finite")
                differences.append(np.abs(want - got).ravel())
    flat = np.concatenate(differences)
    return Parity(
        reference=reference,
        rows=len(golden),
        windows=sum(len(row.ids) for row in golden),
        max_abs=float(flat.max()),
        mean_abs=float(flat.mean()),
        label_agreement=agreement(answers_of(recorded, task, joining), answers_of(found, task, joining)),
        tolerance=tolerance,
    )
