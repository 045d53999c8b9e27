"""Logits → answers: pooling over windows, stitching of taggers' windows, scores.

`finetune.evaluate` and `serving` both call this, so that what was measured is what is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.encode import Encoded
from bundle.manifest import Pooling, Task

FloatArray = npt.NDArray[np.float32]

POOLINGS: tuple[Pooling, ...] = ("mean", "max", "first", "weighted", "lead", "logit-mean", "confidence")


@dataclass(frozen=True, slots=True)
class Classified:
    """A classifier's answer for one text.

    Attributes:
        scores: float32 (labels,), sums to 1.
        weights: float32 (windows,), each window's share in the pool; sums to 1.
        window_scores: float32 (windows, labels).
    """

    label: int
    scores: FloatArray
    weights: FloatArray
    window_scores: FloatArray


@dataclass(frozen=True, slots=True)
class Tagged:
    """One entity: ``text[start:end]``, code points; ``score`` is the mean probability of its tokens' tags."""

    start: int
    end: int
    label: str
    score: float


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities along the last axis, computed without overflow."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    scores: FloatArray = (shifted / shifted.sum(axis=-1, keepdims=True)).astype(np.float32)
    return scores


def classify(logits: FloatArray, window_tokens: npt.NDArray[np.int64], pooling: Pooling) -> Classified:
    """Pools the windows of one text.

    Args:
        logits: float32 (windows, labels).
        window_tokens: int64 (windows,), the tokens that each window reads.
        pooling: ``mean`` of probabilities; ``weighted`` by window length; ``max`` of each label's probability;
            ``first`` window alone; ``lead``: the n-th window weighs 1/n, as news tells most at its beginning;
            ``logit-mean``; ``confidence``: weighted by 1 - normalized entropy, so that a
            window that has nothing to say weighs little.
    """
    probabilities = softmax(logits)  # (W, C)
    count = len(probabilities)
    weights = np.full(count, 1.0 / count, dtype=np.float32)
    if pooling == "first":
        weights[:] = 0
        weights[0] = 1
    elif pooling == "weighted":
        weights = (window_tokens / window_tokens.sum()).astype(np.float32)
    elif pooling == "lead":
        harmonic = 1 / np.arange(1, count + 1)
        weights = (harmonic / harmonic.sum()).astype(np.float32)
    elif pooling == "confidence":
        entropy = -(probabilities * np.log(probabilities + 1e-9)).sum(axis=1) / np.log(probabilities.shape[1])
        certainty = np.maximum(1 - entropy, 1e-3)
        weights = (certainty / certainty.sum()).astype(np.float32)
    if count == 1:
        scores = probabilities[0]
    elif pooling == "max":
        peaks = probabilities.max(axis=0)
        scores = peaks / peaks.sum()
    elif pooling == "logit-mean":
        scores = softmax(logits.mean(axis=0))
    else:
        scores = weights @ probabilities
    return Classified(int(scores.argmax()), scores.astype(np.float32), weights, probabilities)


def stitch(logits: Sequence[FloatArray], encoded: Encoded) -> FloatArray:
    """Joins a tagger's windows: each token is decided by the window in which it has the most context.

    Args:
        logits: per window, float32 (tokens of the window, labels), special tokens cut off.

    Returns:
        float32 (tokens read, labels).
    """
    windows = encoded.windows
    total = windows[-1].last
    joined = np.empty((total, logits[0].shape[1]), dtype=np.float32)
    best = np.full(total, -1, dtype=np.int64)
    for window, values in zip(windows, logits, strict=True):
        length = window.last - window.first
        place = np.arange(length)
        # At the text's own edges there is no more context to be had, so they do not count as edges.
        left = place if window.first else np.full(length, np.iinfo(np.int64).max)
        right = length - 1 - place if window.last < len(encoded.ids) else np.full(length, np.iinfo(np.int64).max)
        context = np.minimum(left, right)
        part = slice(window.first, window.last)
        wins = context > best[part]
        joined[part][wins] = values[wins]
        best[part][wins] = context[wins]
    return joined


def tag_path(scores: FloatArray) -> npt.NDArray[np.int64]:
    """The best legal tag sequence in the internal BIO scheme (Viterbi with rule transitions).

    Args:
        scores: float (tokens, labels), log-probabilities or logits; labels are O, B-X, I-X, B-Y, I-Y, …

    Returns:
        int64 (tokens,). ``I-X`` follows only ``B-X`` or ``I-X``.
    """
    path: npt.NDArray[np.int64] = scores.argmax(axis=1)
    if not _breaks_bio(path).any():
        return path  # the unconstrained optimum is legal, so it is the constrained one too
    count, labels = scores.shape
    inside = np.arange(2, labels, 2)
    # A token that begins nothing: from any tag. An I-X: from B-X or I-X only.
    best = scores[0].astype(np.float64)
    best[inside] = -np.inf
    back = np.zeros((count, labels), dtype=np.int64)
    for step in range(1, count):
        top = int(best.argmax())
        arrive = np.full(labels, best[top])
        origin = np.full(labels, top)
        from_begin, from_inside = best[inside - 1], best[inside]
        arrive[inside] = np.maximum(from_begin, from_inside)
        origin[inside] = np.where(from_begin >= from_inside, inside - 1, inside)
        best = arrive + scores[step]
        back[step] = origin
    path = np.empty(count, dtype=np.int64)
    path[-1] = int(best.argmax())
    for step in range(count - 1, 0, -1):
        path[step - 1] = back[step, path[step]]
    return path


def _breaks_bio(path: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """bool (tokens,): where an I-X follows neither B-X nor I-X."""
    previous = np.concatenate([[0], path[:-1]])
    inside = (path > 0) & (path % 2 == 0)
    result: npt.NDArray[np.bool_] = inside & (previous != path) & (previous != path - 1)
    return result


def tag(logits: Sequence[FloatArray], encoded: Encoded, task: Task) -> list[Tagged]:
    """Entities of one text, in reading order, from the logits of its windows."""
    joined = stitch(logits, encoded)
    probabilities = softmax(joined)
    # Log-probabilities, so that windows of different confidence are comparable in one path.
    path = tag_path(np.log(probabilities + 1e-12))
    entities: list[Tagged] = []
    for first, last, label in spans_of(path, task.labels):
        start, end = int(encoded.spans[first, 0]), int(encoded.spans[last - 1, 1])
        score = float(probabilities[np.arange(first, last), path[first:last]].mean())
        entities.append(Tagged(start, end, label, score))
    return entities


def spans_of(path: npt.NDArray[np.int64], labels: Sequence[str]) -> list[tuple[int, int, str]]:
    """Token spans (first, last, entity type) of a legal BIO sequence."""
    spans: list[tuple[int, int, str]] = []
    begins = np.flatnonzero(path % 2 == 1)
    for begin in begins:
        last = int(begin) + 1
        while last < len(path) and path[last] == path[begin] + 1:
            last += 1
        spans.append((int(begin), last, labels[path[begin]][2:]))
    return spans


def token_labels(encoded: Encoded, entities: Sequence[tuple[int, int, str]], task: Task) -> npt.NDArray[np.int64]:
    """The gold label of each token: int64 (tokens,).

    Args:
        entities: (start, end, type) in code points. A token that overlaps an entity belongs to it.
    """
    index = {label: number for number, label in enumerate(task.labels)}
    path = np.zeros(len(encoded.ids), dtype=np.int64)
    starts, ends = encoded.spans[:, 0], encoded.spans[:, 1]
    for start, end, label in entities:
        inside = np.flatnonzero((starts < end) & (ends > start))
        if len(inside):
            path[inside] = index[f"I-{label}"]
            path[inside[0]] = index[f"B-{label}"]
    return path
