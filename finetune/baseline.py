"""TF-IDF with logistic regression on the same rows: the mark that a transformer has to beat to be worth its cost."""

from __future__ import annotations

from collections.abc import Sequence

from bundle.metrics import accuracy, confusion, macro_f1, per_class
from bundle.rows import Row

NAMES = {"tfidf": None, "tfidf_balanced": "balanced"}


def tfidf_baselines(train: Sequence[Row], test: Sequence[Row], labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Trains on whole texts (character 1- and 2-grams), plain and with balanced class weights.

    The balanced one is printed too because it is the stronger baseline in macro-F1 where classes are uneven.

    Returns:
        accuracy and macro_f1 by baseline name.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    index = {label: number for number, label in enumerate(labels)}
    vectorizer = TfidfVectorizer(
        analyzer="char", ngram_range=(1, 2), min_df=min(2, len(train)), sublinear_tf=True, max_features=200_000
    )
    features = vectorizer.fit_transform([_text(row) for row in train])
    gold = [index[row.label or ""] for row in train]
    unseen = vectorizer.transform([_text(row) for row in test])
    wanted = [index[row.label or ""] for row in test]
    scores = {}
    for name, weight in NAMES.items():
        model = LogisticRegression(C=10, max_iter=300, class_weight=weight).fit(features, gold)
        table = confusion(wanted, list(model.predict(unseen)), len(labels))
        scores[name] = {"accuracy": accuracy(table), "macro_f1": macro_f1(per_class(table, labels))}
    return scores


def _text(row: Row) -> str:
    return row.text if row.pair is None else f"{row.text}\n{row.pair}"
