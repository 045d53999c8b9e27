"""Long texts by how they are read: the head alone, head and tail, or every window pooled, by length bucket.

One pass of the model over all windows serves every way of reading, so they differ in nothing else. Beside them stand
baselines that read whole texts without a transformer, where `finetune` has left their answers to the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.decode import POOLINGS, reaching, sigmoid, softmax
from bundle.errors import BundleError
from bundle.manifest import Joining, Pooling, Task
from bundle.predict import Predicted, answers_of, scores_of
from bundle.rows import Row, checksum
from export.heads import Head

# Windows of a text: from, to.
BUCKETS = ((1, 1), (2, 3), (4, 8), (9, 1 << 30))
HEAD, ENDS = "head", "head+tail"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Texts of like length.

    Attributes:
        scores: way of reading → accuracy and macro_f1 of these rows; exact_match, micro_f1 and macro_f1 where a text
            can have several labels.
        only_served, only_head: rows that only the served way, or only the head alone, answers rightly.
        p_value: how likely a difference like this is where both ways are equally good; see `mcnemar`.
    """

    name: str
    rows: int
    scores: dict[str, dict[str, float]]
    only_served: int
    only_head: int
    p_value: float


def bucket_name(low: int, high: int) -> str:
    """``1``, ``2-3``, ``> 8``."""
    return str(low) if low == high else f"{low}-{high}" if high < 1 << 30 else f"> {low - 1}"


def ways_of(joining: Joining, poolings: Sequence[Pooling] = POOLINGS) -> dict[str, Joining]:
    """The ways of reading that are poolings: name → joining. The head alone is what the pooling ``first`` reads."""
    known = {HEAD: Joining(pooling="first")} | {how: Joining(pooling=how) for how in poolings if how != "first"}
    return known | ({"learned": Joining(pooling="learned", weights=joining.weights)} if joining.weights else {})


def served_way(joining: Joining) -> str:
    """The name in `ways_of` of what is served."""
    return HEAD if joining.pooling == "first" else joining.pooling


def mcnemar(left: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]) -> float:
    """Exact p-value (two-sided) of two ways to answer the same rows, from the rows where just one of them is right.

    Args:
        left, right: bool (rows,): which rows each answers rightly.
    """
    from scipy.stats import binomtest

    one, other = int((left & ~right).sum()), int((right & ~left).sum())
    return float(binomtest(one, one + other).pvalue) if one + other else 1.0


def gold_answers(rows: Sequence[Row], task: Task) -> list[Any]:
    """What the rows of a classifier say, in the form of `bundle.predict.answers_of`."""
    index = {label: number for number, label in enumerate(task.labels)}
    if task.kind == "multi-label":
        return [tuple(sorted(index[label] for label in row.labels or ())) for row in rows]
    return [index[row.label or ""] for row in rows]


def right_of(answers: Sequence[Any], rows: Sequence[Row], task: Task) -> npt.NDArray[np.bool_]:
    """bool (rows,): where an answer is what the row says."""
    return np.array([a == b for a, b in zip(answers, gold_answers(rows, task), strict=True)], dtype=bool)


def compare(
    head: Head,
    joining: Joining,
    baselines: Mapping[str, Sequence[Any]] | None = None,
    poolings: Sequence[Pooling] = POOLINGS,
) -> list[Bucket]:
    """Scores of every way of reading, per bucket and over all rows (the last bucket, ``all``).

    ``head`` is truncation: the first window alone. ``head+tail`` is the mean of the first and the last window, which
    many write for BERT's 512 tokens (Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?").

    Args:
        joining: as the manifest says; ``learned`` is read with its weights, where there are any.
        baselines: name → answers to the same rows.
        poolings: those that need no fitting; see `bundle.decode.poolings_of`.
    """
    rows, found, task = head.rows, head.found, head.task
    answers = {way: answers_of(found, task, how) for way, how in ways_of(joining, poolings).items()}
    answers[ENDS] = [_ends(item, task) for item in found]
    order = [HEAD, ENDS, *(way for way in answers if way not in (HEAD, ENDS))]
    given: dict[str, Sequence[Any]] = {**{way: answers[way] for way in order}, **(baselines or {})}
    served = right_of(answers[served_way(joining)], rows, task)
    alone = right_of(answers[HEAD], rows, task)
    windows = np.array([len(item.logits) for item in found])
    places = [(bucket_name(*bounds), (windows >= bounds[0]) & (windows <= bounds[1])) for bounds in BUCKETS]
    buckets = []
    for name, chosen in [*places, ("all", windows > 0)]:
        if chosen.any():
            here = np.flatnonzero(chosen).tolist()
            part = [rows[place] for place in here]
            scores = {way: scores_of(part, [all_of[place] for place in here], task) for way, all_of in given.items()}
            one, other = served[chosen], alone[chosen]
            gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
            buckets.append(Bucket(name, len(part), scores, gained, lost, mcnemar(one, other)))
    return buckets


def _ends(item: Predicted, task: Task) -> Any:
    ends = np.stack([item.logits[0], item.logits[-1]])
    if task.kind == "multi-label":
        return reaching(sigmoid(ends).mean(axis=0), task)
    return int(softmax(ends).mean(axis=0).argmax())


def read_baselines(path: Path, head: Head) -> tuple[dict[str, list[Any]], str]:
    """The answers of the baselines to a classifier's rows, and a sentence where there are none.

    Raises:
        BundleError: the file is not JSON, or an answer is none of the labels.
    """
    how = "`make evaluate` writes TF-IDF's answers to these rows there"
    if not path.is_file():
        return {}, f"no baseline beside the model: {path} is not there; {how}"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        given = dict(record.get("predictions") or {})
    except (ValueError, AttributeError, TypeError) as error:
        raise BundleError(f"{path}: not a file of baseline scores: {error}") from error
    recorded = given.pop("test_sha256", record.get("test_sha256"))
    if not given or recorded != checksum(head.rows):
        reason = "holds no answers" if not given else "holds answers to other rows"
        return {}, f"no baseline beside the model: {path} {reason}; {how}"
    index = {label: number for number, label in enumerate(head.task.labels)}
    known: dict[str, list[Any]] = {}
    try:
        for name, answers in given.items():
            multi = head.task.kind == "multi-label"
            known[name] = [tuple(sorted(index[one] for one in said)) if multi else index[said] for said in answers]
    except (KeyError, IndexError, TypeError) as error:
        raise BundleError(f"{path}: an answer is none of the labels, or answers are missing: {error}") from error
    return known, ""
