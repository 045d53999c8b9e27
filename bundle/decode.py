"""Logits → answers: pooling over windows, stitching of taggers' windows, scores.

`finetune.evaluate` and `serving` both call this, so that what was measured is what is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.encode import Encoded
from bundle.manifest import LONG, Joining, Manifest, Pooling, Task

FloatArray = npt.NDArray[np.float32]

# The poolings that need neither fitting nor lessons of what tells nothing.
POOLINGS: tuple[Pooling, ...] = ("mean", "max", "first", "weighted", "lead", "logit-mean", "confidence")
# What the pooling "learned" weighs a window by; its weights stand in this order in the manifest.
FEATURES = ("position", "first", "certainty", "length")
# And by this one in a model that has learned which windows tell anything; its weight then stands last.
LEVEL = "level"
# A label of a multi-label task is given from this score on, unless the manifest has a threshold of its own.
THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Classified:
    """A classifier's answer for one text.

    Attributes:
        label: the best one.
        chosen: the labels that are given: of a multi-label task those that reach their thresholds, in label order,
            perhaps none; else the best one.
        scores: float32 (labels,); sums to 1, except those of a multi-label task, which are probabilities each.
        weights: float32 (windows,), or (windows, labels) of a multi-label task: each window's share in the pool;
            sums to 1 over the windows.
        window_scores: float32 (windows, labels).
    """

    label: int
    chosen: tuple[int, ...]
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


def sigmoid(logits: FloatArray) -> FloatArray:
    """Each label's own probability, computed without overflow."""
    scores: FloatArray = (0.5 * (1 + np.tanh(logits.astype(np.float64) / 2))).astype(np.float32)
    return scores


def classify(logits: FloatArray, window_tokens: npt.NDArray[np.int64], task: Task, joining: Joining) -> Classified:
    """Pools the windows of one text; a multi-label task's labels each on their own.

    Args:
        logits: float32 (windows, labels).
        window_tokens: int64 (windows,), the tokens that each window reads.
        joining: its pooling is ``mean`` of probabilities; ``weighted`` by window length; ``max`` of each label's
            probability; ``first`` window alone; ``lead``: the n-th window weighs 1/n, as news tells most at its
            beginning; ``logit-mean``; ``confidence``: weighted by 1 - normalized entropy, so that a window that has
            nothing to say weighs little; ``telling``: by the odds that a window tells anything of the labels
            (`level`), which many windows that tell nothing do not outvote; or ``learned``: by the softmax of a weighted
            sum of `features`.
    """
    multi, how = task.kind == "multi-label", joining.pooling
    probabilities = sigmoid(logits) if multi else softmax(logits)  # (W, C)
    shares = _shares(logits, probabilities, window_tokens, joining, multi)
    if len(probabilities) == 1:
        scores = probabilities[0]
    elif how == "max" and not multi:
        peaks = probabilities.max(axis=0)
        scores = peaks / peaks.sum()
    elif how == "logit-mean":
        mean = logits.mean(axis=0, dtype=np.float64)
        scores = sigmoid(mean) if multi else softmax(mean)
    else:
        scores = (shares * probabilities).sum(axis=0) if multi else shares @ probabilities
    # Computed in float64 up to here, so that rounding lifts no score above 1.
    scores = scores.astype(np.float32)
    label = int(scores.argmax())
    chosen = reaching(scores, task) if multi else (label,)
    return Classified(label, chosen, scores, shares.astype(np.float32), probabilities)


def reaching(scores: FloatArray, task: Task) -> tuple[int, ...]:
    """The labels of a multi-label task whose scores, float32 (labels,), reach their thresholds, in label order."""
    return tuple(int(index) for index in np.flatnonzero(scores >= np.array(thresholds(task))))


def thresholds(task: Task) -> tuple[float, ...]:
    """Of a multi-label task, by label: the score from which it is given."""
    return task.thresholds or (THRESHOLD,) * len(task.labels)


def _shares(
    logits: FloatArray,
    probabilities: FloatArray,
    window_tokens: npt.NDArray[np.int64],
    joining: Joining,
    multi: bool,
) -> npt.NDArray[np.float64]:
    """Each window's share in the pool: float64 (windows,), or (windows, labels) of a multi-label task."""
    count = len(probabilities)
    # A window that is alone has the whole pool, whatever is thought of it.
    how = joining.pooling if count > 1 else "mean"
    shares = np.full(count, 1.0 / count)
    if how == "first":
        shares[:] = 0
        shares[0] = 1
    elif how == "weighted":
        shares = window_tokens / window_tokens.sum()
    elif how == "lead":
        harmonic = 1 / np.arange(1, count + 1)
        shares = harmonic / harmonic.sum()
    elif how == "confidence":
        certain = np.maximum(certainty(probabilities, multi), 1e-3)
        shares = certain / certain.sum(axis=0)
    elif how == "telling":
        odds = np.exp(level(logits) - level(logits).max())
        shares = odds / odds.sum()
    elif how == "learned":
        known = features(probabilities, window_tokens, multi)
        if len(joining.weights) > len(FEATURES):
            known = with_level(known, logits)
        votes = known @ np.array(joining.weights)
        votes = np.exp(votes - votes.max(axis=0))
        shares = votes / votes.sum(axis=0)
    elif how == "max" and multi:
        shares = (np.arange(count)[:, None] == probabilities.argmax(axis=0)).astype(np.float64)
    if multi and shares.ndim == 1:
        shares = np.repeat(shares[:, None], probabilities.shape[1], axis=1)
    return shares


def level(logits: FloatArray) -> npt.NDArray[np.float64]:
    """The mean of each window's logits, which softmax does not see: float64 (windows,).

    After a training with neutral text it is the log-odds that a window tells anything of the labels (`finetune.level`);
    a model says so without one tensor or label more, and whatever else reads its logits does not notice.
    """
    mean: npt.NDArray[np.float64] = logits.mean(axis=-1, dtype=np.float64)
    return mean


def poolings_of(manifest: Manifest) -> tuple[Pooling, ...]:
    """The poolings that need no fitting: `POOLINGS`, and ``telling`` where the model has learned it."""
    return (*POOLINGS, "telling") if LONG in manifest.splits else POOLINGS


def certainty(probabilities: FloatArray, multi: bool) -> npt.NDArray[np.float64]:
    """1 - normalized entropy: float64 (windows,), or (windows, labels) of a multi-label task."""
    values = probabilities.astype(np.float64)
    if multi:
        inside = np.clip(values, 1e-9, 1 - 1e-9)
        binary: npt.NDArray[np.float64] = 1 + (inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside))
        return binary
    result: npt.NDArray[np.float64] = 1 + (values * np.log(values + 1e-9)).sum(axis=1) / np.log(values.shape[1])
    return result


def features(probabilities: FloatArray, window_tokens: npt.NDArray[np.int64], multi: bool) -> npt.NDArray[np.float64]:
    """What the learned pooling knows of each window, in the order of `FEATURES`.

    ``position`` is -log n of the n-th window, so that a weight of 1 is the pooling ``lead``; ``first`` tells the first
    window from all others; ``certainty`` as in the pooling ``confidence``; ``length`` is the log of the window's share
    in the longest one, so that a weight of 1 is the pooling ``weighted``. All weights 0 is ``mean``.

    Returns:
        float64 (windows, features), or (windows, labels, features) of a multi-label task.
    """
    certain = certainty(probabilities, multi)
    order = np.arange(len(probabilities))
    place = (-np.log(order + 1.0), (order == 0).astype(np.float64), np.log(window_tokens / window_tokens.max()))
    if multi:
        place = tuple(np.repeat(values[:, None], probabilities.shape[1], axis=1) for values in place)  # type: ignore[assignment]
    return np.stack([place[0], place[1], certain, place[2]], axis=-1)


def with_level(known: npt.NDArray[np.float64], logits: FloatArray) -> npt.NDArray[np.float64]:
    """The `features` of a text's windows and their `LEVEL`, so that a weight of 1 is the pooling ``telling``."""
    height = level(logits).reshape(len(known), *[1] * (known.ndim - 1))
    return np.concatenate([known, np.broadcast_to(height, (*known.shape[:-1], 1))], axis=-1)


def stitch(logits: Sequence[FloatArray], encoded: Encoded, joining: Joining | None = None) -> FloatArray:
    """Joins a tagger's windows.

    With the stitching ``context`` each token is decided by the window in which it has the most context: of two
    neighbours, the left one up to the middle of what they share. Where either of them sees an entity across that
    middle, the seam moves to the nearest place that cuts none, so that an entity which is shorter than the overlap is
    decided by one window that sees all of it. ``average`` takes the mean of the logits of all windows that saw a token.

    Args:
        logits: per window, float32 (tokens of the window, labels), special tokens cut off.

    Returns:
        float32 (tokens read, labels).
    """
    windows = encoded.windows
    if len(windows) == 1:
        return np.asarray(logits[0], dtype=np.float32)
    joined = np.zeros((windows[-1].last, logits[0].shape[1]), dtype=np.float32)
    if joining is not None and joining.stitching == "average":
        seen = np.zeros(len(joined), dtype=np.float32)
        for window, values in zip(windows, logits, strict=True):
            joined[window.first : window.last] += values
            seen[window.first : window.last] += 1
        joined /= seen[:, None]
        return joined
    begin = 0
    for number, (window, values) in enumerate(zip(windows, logits, strict=True)):
        end = window.last
        if number + 1 < len(windows):
            following = windows[number + 1]
            end = _seam(values, window.first, logits[number + 1], following.first, max(begin, following.first), end)
        joined[begin:end] = values[begin - window.first : end - window.first]
        begin = end
    return joined


def _seam(left: FloatArray, left_first: int, right: FloatArray, right_first: int, low: int, high: int) -> int:
    """The token of ``[low, high]`` from which the right window decides: near the middle, and inside no entity."""
    middle = max(low, (right_first + high + 1) // 2)
    # bool (high - low + 1,): an entity that a window sees stands on both sides of this place.
    cuts = np.zeros(high - low + 1, dtype=bool)
    for values, first in ((left, left_first), (right, right_first)):
        best = values[low - first : high + 1 - first].argmax(axis=1)
        cuts[: len(best)] |= (best > 0) & (best % 2 == 0)  # an I-X goes on with what stands before it
    free = np.flatnonzero(~cuts) + low
    return int(free[np.argmin(np.abs(free - middle))]) if len(free) else middle


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


def tag(logits: Sequence[FloatArray], encoded: Encoded, task: Task, joining: Joining | None = None) -> list[Tagged]:
    """Entities of one text, in reading order, from the logits of its windows."""
    joined = stitch(logits, encoded, joining)
    probabilities = softmax(joined)
    # Log-probabilities, so that windows of different confidence are comparable in one path.
    path = tag_path(np.log(probabilities + 1e-12))
    entities: list[Tagged] = []
    for first, last, label in spans_of(path, task.tag_labels):
        start, end = encoded.reach(first, last)
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
    index = {label: number for number, label in enumerate(task.tag_labels)}
    path = np.zeros(len(encoded.ids), dtype=np.int64)
    starts, ends = encoded.spans[:, 0], encoded.spans[:, 1]
    for start, end, label in entities:
        inside = np.flatnonzero((starts < end) & (ends > start))
        if len(inside):
            path[inside] = index[f"I-{label}"]
            path[inside[0]] = index[f"B-{label}"]
    return path
