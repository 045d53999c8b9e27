"""TF-IDF with logistic regression on the same rows: the mark that a transformer has to beat to be worth its cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bundle.manifest import Task
from bundle.predict import scores_of
from bundle.rows import Row

NAMES = {"tfidf": None, "tfidf_balanced": "balanced"}


def tfidf_baselines(train: Sequence[Row], test: Sequence[Row], task: Task) -> dict[str, dict[str, float]]:
    """Trains on whole texts (character 1- and 2-grams), plain and with balanced class weights.

    The balanced one is printed too because it is the stronger baseline in macro-F1 where classes are uneven.

    Returns:
        the scores of `bundle.predict.scores_of` by baseline name; none for a tagger, where TF-IDF has nothing to say.
    """
    train, test, task = labelled(train, test, task)
    return {name: scores_of(test, answers, task) for name, answers in tfidf_answers(train, test, task).items()}


def labelled(train: Sequence[Row], test: Sequence[Row], task: Task) -> tuple[Sequence[Row], Sequence[Row], Task]:
    """What TF-IDF can be asked: of a multi-task recipe, the label of the rows that have one."""
    if task.kind != "multi-task":
        return train, test, task
    parts = [[row for row in rows if row.label is not None] for rows in (train, test)]
    return parts[0], parts[1], Task(kind="single-label", labels=task.labels)


def tfidf_answers(train: Sequence[Row], test: Sequence[Row], task: Task) -> dict[str, list[Any]]:
    """Each test row's answer in the form of `bundle.predict.answers_of`, by baseline name.

    A pair is judged by how alike its sides are: the cosine of their TF-IDF vectors, and the share of the shorter one's
    n-grams that stand in the longer one.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    if not task.classifies:
        return {}
    index = {label: number for number, label in enumerate(task.labels)}
    vectorizer = TfidfVectorizer(
        analyzer="char", ngram_range=(1, 2), min_df=min(2, len(train)), sublinear_tf=True, max_features=200_000
    )
    vectorizer.fit([row.text if row.pair is None else f"{row.text}\n{row.pair}" for row in train])
    seen, unseen = (_features(rows, vectorizer) for rows in (train, test))
    answers: dict[str, list[Any]] = {}
    for name, weight in NAMES.items():
        model: Any = LogisticRegression(C=10, max_iter=300, class_weight=weight)
        if task.kind == "multi-label":
            gold = np.array([[label in (row.labels or ()) for label in task.labels] for row in train], dtype=int)
            found = OneVsRestClassifier(model).fit(seen, gold).predict(unseen)
            answers[name] = [tuple(int(place) for place in np.flatnonzero(given)) for given in found]
        else:
            model.fit(seen, [index[row.label or ""] for row in train])
            answers[name] = [int(answer) for answer in model.predict(unseen)]
    return answers


def _features(rows: Sequence[Row], vectorizer: Any) -> Any:
    if not rows or rows[0].pair is None:
        return vectorizer.transform([row.text for row in rows])
    left, right = (
        vectorizer.transform(side) for side in zip(*((row.text, row.pair or "") for row in rows), strict=True)
    )
    cosine = np.asarray(left.multiply(right).sum(axis=1)).ravel()
    shared = np.asarray((left > 0).multiply(right > 0).sum(axis=1)).ravel()
    fewest = np.maximum(np.minimum((left > 0).sum(axis=1), (right > 0).sum(axis=1)), 1)
    return np.stack([cosine, shared / np.asarray(fewest).ravel()], axis=1)
