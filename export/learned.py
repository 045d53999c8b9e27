"""The pooling ``learned``: a few weights over `bundle.decode.FEATURES`, fitted on dev rows.

The loss is the mean negative log-likelihood of what the rows say, under the pooled scores that `bundle.decode.classify`
gives, with a small pull of the weights towards 0, which is the mean of all windows. The model itself does not change:
only what its windows said is weighed. Rows with a single window have nothing to weigh and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.decode import FEATURES, features, sigmoid, softmax, with_level
from bundle.manifest import Joining, Task
from bundle.predict import Predicted, gold_matrix
from bundle.rows import Row

Floats = npt.NDArray[np.float64]

FOLDS = 5
SEED = 13
# Fewer rows with several windows than this cannot tell four weights.
MIN_ROWS = 10
# Weights are pulled to 0 as if each had been drawn around it with a variance of 25: a hint where rows are few.
PULL = 1 / 50
# The loss has more than one valley; the deepest found from these is taken: mean, lead, certain windows, long windows,
# and windows that tell anything, where the model says so.
STARTS = ((), (1.0,), (0.0, 0.0, 8.0), (0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 0.0, 1.0))


def losses(scores: npt.NDArray[Any], gold: npt.NDArray[np.bool_], task: Task) -> Floats:
    """Each row's negative log-likelihood: float64 (rows,); of a multi-label task the mean over its labels."""
    inside = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    right: Floats = np.where(gold, np.log(inside), 0)
    wrong: Floats = np.where(gold, 0, np.log1p(-inside))
    result: Floats = -(right + wrong).mean(axis=1) if task.kind == "multi-label" else -right.sum(axis=1)
    return result


@dataclass(frozen=True)
class Windows:
    """All windows of some rows, one row after the other.

    Attributes:
        probabilities: float64 (windows, labels).
        features: float64 (windows, features), or (windows, labels, features) of a multi-label task.
        starts: int64 (rows,), where a row's windows begin.
        owner: int64 (windows,), the row of each window.
        gold: bool (rows, labels).
    """

    probabilities: Floats
    features: Floats
    starts: npt.NDArray[np.int64]
    owner: npt.NDArray[np.int64]
    gold: npt.NDArray[np.bool_]
    task: Task

    @classmethod
    def of(cls, rows: Sequence[Row], found: Sequence[Predicted], task: Task, leveled: bool = False) -> Windows:
        multi = task.kind == "multi-label"
        each = [(sigmoid if multi else softmax)(np.stack(item.logits)) for item in found]
        known = [features(values, item.encoded.window_tokens, multi) for values, item in zip(each, found, strict=True)]
        if leveled:
            known = [with_level(own, np.stack(item.logits)) for own, item in zip(known, found, strict=True)]
        counts = np.array([len(values) for values in each])
        return cls(
            np.concatenate(each).astype(np.float64),
            np.concatenate(known),
            np.cumsum(counts) - counts,
            np.repeat(np.arange(len(counts)), counts),
            gold_matrix(rows, task),
            task,
        )

    def loss(self, weights: Floats) -> tuple[float, Floats]:
        """The loss and its gradient, float64 (features,)."""
        votes = self.features @ weights  # (W,) or (W, C)
        votes = np.exp(votes - np.maximum.reduceat(votes, self.starts, axis=0)[self.owner])
        shares = votes / np.add.reduceat(votes, self.starts, axis=0)[self.owner]
        multi = self.task.kind == "multi-label"
        weighed = (shares if multi else shares[:, None]) * self.probabilities
        scores = np.add.reduceat(weighed, self.starts, axis=0)  # (R, C)
        inside = np.clip(scores, 1e-7, 1 - 1e-7)
        # (R, C): how the loss moves with each pooled score.
        slope = np.where(self.gold, -1 / inside, 1 / (1 - inside) if multi else 0.0)
        slope = slope / scores.shape[1] if multi else slope
        pushed = slope[self.owner] * self.probabilities
        pushed = pushed if multi else pushed.sum(axis=1)
        mean = np.add.reduceat(shares * pushed, self.starts, axis=0)[self.owner]
        moved = shares * (pushed - mean)  # (W,) or (W, C): how it moves with each vote
        gradient = np.tensordot(moved, self.features, axes=moved.ndim) / len(scores)
        pull = PULL / len(scores)
        value = float(losses(scores, self.gold, self.task).mean() + pull * weights @ weights)
        return value, gradient + 2 * pull * weights


def several(found: Sequence[Predicted]) -> list[int]:
    """The places of the rows that have more than one window."""
    return [place for place, item in enumerate(found) if len(item.logits) > 1]


def fit(rows: Sequence[Row], found: Sequence[Predicted], task: Task, *, leveled: bool = False) -> tuple[float, ...]:
    """The weights that make the rows with several windows most likely, in the order of `FEATURES`; always the same.

    Args:
        leveled: the model has learned to say which windows tell anything; one more weight is for that.
    """
    from scipy.optimize import minimize

    places, count = several(found), len(FEATURES) + leveled
    if not places:
        return (0.0,) * count
    windows = Windows.of([rows[place] for place in places], [found[place] for place in places], task, leveled)
    starts = [np.array((*start, *[0.0] * (count - len(start)))) for start in STARTS if len(start) <= count]
    tried = [minimize(windows.loss, start, jac=True, method="L-BFGS-B") for start in starts]
    best = min(tried, key=lambda result: float(result.fun))
    return tuple(round(float(weight), 4) for weight in best.x)


def cross_validated(
    rows: Sequence[Row], found: Sequence[Predicted], task: Task, *, leveled: bool = False
) -> list[Joining]:
    """For every row the learned pooling as fitted without it, so that a score on the same rows is an honest one.

    The rows with several windows are dealt into `FOLDS` parts; each part gets the weights fitted on the others.
    """
    places = np.array(several(found), dtype=np.int64)
    order = np.random.default_rng(SEED).permutation(places)
    result = [Joining(pooling="learned", weights=(0.0,) * (len(FEATURES) + leveled))] * len(found)
    for fold in range(FOLDS):
        inside = set(order[fold::FOLDS].tolist())
        rest = [place for place in places.tolist() if place not in inside]
        weights = fit([rows[place] for place in rest], [found[place] for place in rest], task, leveled=leveled)
        for place in inside:
            result[place] = Joining(pooling="learned", weights=weights)
    return result
