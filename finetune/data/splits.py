"""Rows → train, dev and test: stratified, repeatable, and without the same text on two sides.

Knows rows only. Every choice depends on the rows, their order and the seed, never on Python's hash randomisation.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bundle.errors import DataError
from bundle.rows import Row

# What makes two rows the same text.
Key = Callable[[Row], str]

# A class with at least so many rows can stand in train, dev and test at once.
SPREADABLE = 3


def text_key(row: Row) -> str:
    """Two rows are the same text when text and pair are equal but for outer white space."""
    # NUL cannot stand in a row that was read, so that no two different pairs share a key.
    return row.text.strip() if row.pair is None else f"{row.text.strip()}\0{row.pair.strip()}"


def stratum_of(row: Row) -> str:
    """What rows are stratified by: the label, or the set of labels; for a tagger the set of its entity types."""
    if row.label is not None:
        return row.label
    if row.labels is not None:
        return "+".join(sorted(row.labels)) or "(no label)"
    return "+".join(sorted({entity.label for entity in row.entities or ()})) or "(no entity)"


@dataclass(frozen=True, slots=True)
class SplitReport:
    """How many rows of each stratum went where.

    Attributes:
        counts: split name → stratum → rows.
        notes: strata that are too small to stand everywhere, one sentence each.
    """

    counts: dict[str, dict[str, int]]
    notes: list[str]

    def sentences(self) -> list[str]:
        """The report in sentences."""
        lines = []
        for name, counts in self.counts.items():
            detail = ", ".join(f"{stratum} {count:,}" for stratum, count in counts.items())
            lines.append(f"{name}: {sum(counts.values()):,} rows" + (f" ({detail})." if detail else "."))
        return lines + self.notes


@dataclass(frozen=True, slots=True)
class Splits:
    """Rows in their original order within each split."""

    train: list[Row]
    dev: list[Row]
    test: list[Row]
    report: SplitReport


def split(rows: Sequence[Row], *, dev: float, test: float, seed: int) -> Splits:
    """Splits rows, each stratum in proportion.

    Args:
        dev, test: a share of all rows (float, 0 ≤ share < 1) or a number of rows (int).
        seed: the same seed and rows give the same split.

    Returns:
        Three disjoint lists that together are ``rows``. A stratum with three rows or more stands in each split that
        is not empty, where the sizes allow it.

    Raises:
        DataError: a size is out of range, or nothing would be left for train.
    """
    dev_count, test_count = (_count_of("dev", dev, len(rows)), _count_of("test", test, len(rows)))
    if dev_count + test_count >= len(rows):
        raise DataError(f"{len(rows)} rows cannot give {dev_count} for dev and {test_count} for test and leave a train")
    strata = _shuffled_strata(rows, seed)
    sizes = {name: len(places) for name, places in strata.items()}
    # What a stratum keeps back for the splits that are cut later.
    for_dev = 1 if dev_count else 0
    test_from = _allocate(sizes, sizes, test_count, keep=1 + for_dev)
    left = {name: size - test_from[name] for name, size in sizes.items()}
    dev_from = _allocate(sizes, left, dev_count, keep=1)
    places: dict[str, list[int]] = {"train": [], "dev": [], "test": []}
    for name, order in strata.items():
        first, second = test_from[name], test_from[name] + dev_from[name]
        places["test"] += order[:first]
        places["dev"] += order[first:second]
        places["train"] += order[second:]
    parts = {name: [rows[place] for place in sorted(chosen)] for name, chosen in places.items()}
    counts = {name: _counts(part, sizes) for name, part in parts.items()}
    wanted = ["train"] + ["dev"] * bool(dev_count) + ["test"] * bool(test_count)
    notes = []
    for stratum, size in sizes.items():
        missing = [name for name in wanted if stratum not in counts[name]]
        if missing:
            notes.append(f"{stratum} has {size} rows in all and none in {' and '.join(missing)}.")
    return Splits(parts["train"], parts["dev"], parts["test"], SplitReport(counts, notes))


def sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """A stratified part of the rows, in their original order.

    Args:
        count: how many; all rows when there are no more than that.

    Raises:
        DataError: ``count`` is negative.
    """
    if count < 0:
        raise DataError(f"cannot take a sample of {count} rows")
    if count >= len(rows):
        return list(rows)
    strata = _shuffled_strata(rows, seed)
    sizes = {name: len(places) for name, places in strata.items()}
    taken = _allocate(sizes, sizes, count, keep=0)
    return [rows[place] for place in sorted(p for name, order in strata.items() for p in order[: taken[name]])]


def _count_of(name: str, size: float, total: int) -> int:
    if isinstance(size, bool) or size < 0 or (isinstance(size, float) and size >= 1):
        raise DataError(f"{name} = {size!r}: give a share from 0 up to (not including) 1, or a number of rows")
    return round(size * total) if isinstance(size, float) else int(size)


def _shuffled_strata(rows: Sequence[Row], seed: int) -> dict[str, list[int]]:
    """Stratum → the places of its rows in random order; strata in alphabetical order."""
    strata: defaultdict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        strata[stratum_of(row)].append(place)
    for name, places in strata.items():
        # Seeding by a string goes through SHA-512: independent of hash randomisation and of the other strata.
        random.Random(f"{seed}/{name}").shuffle(places)
    return dict(sorted(strata.items()))


def _allocate(sizes: dict[str, int], left: dict[str, int], total: int, *, keep: int) -> dict[str, int]:
    """Shares ``total`` rows out over the strata.

    Args:
        sizes: rows of each stratum in all; the shares are in proportion to these.
        left: rows of each stratum that can still be taken.
        keep: rows that a stratum should keep back, given up only when there is no other way to reach ``total``.
    """
    everything = sum(sizes.values())
    quota = {name: total * size / everything for name, size in sizes.items()}
    taken = dict.fromkeys(sizes, 0)
    small = [name for name, size in sizes.items() if size >= SPREADABLE and left[name] > keep]
    if len(small) <= total:
        taken.update(dict.fromkeys(small, 1))
    order = {name: place for place, name in enumerate(sizes)}
    for reserve in (keep, 0):
        heap = [(taken[name] - quota[name], order[name], name) for name in sizes if left[name] - taken[name] > reserve]
        heapq.heapify(heap)
        missing = total - sum(taken.values())
        while missing and heap:
            _, place, name = heapq.heappop(heap)
            taken[name] += 1
            missing -= 1
            if left[name] - taken[name] > reserve:
                heapq.heappush(heap, (taken[name] - quota[name], place, name))
    return taken


def _counts(rows: Sequence[Row], strata: dict[str, int]) -> dict[str, int]:
    counted = Counter(stratum_of(row) for row in rows)
    return {name: counted[name] for name in strata if counted[name]}


@dataclass(slots=True)
class DuplicateReport:
    """What `deduplicate` removed; numbers are rows unless said otherwise.

    Attributes:
        within: split name → later copies of a text inside that split.
        train_in_test, train_in_dev, dev_in_test: rows of the first split whose text also stands in the second.
        conflicting: rows of train that were dropped because copies of one text carry different labels there.
        conflicts: texts (not rows) that carry different labels anywhere in the three splits.
        examples: the beginning of up to three removed texts for each reason.
    """

    within: dict[str, int] = field(default_factory=lambda: {"train": 0, "dev": 0, "test": 0})
    train_in_test: int = 0
    train_in_dev: int = 0
    dev_in_test: int = 0
    conflicting: int = 0
    conflicts: int = 0
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def removed(self) -> int:
        """Rows removed in all."""
        return sum(self.before.values()) - sum(self.after.values())

    def note(self, reason: str, row: Row) -> None:
        """Keeps the beginning of a removed text as an example."""
        kept = self.examples.setdefault(reason, [])
        if len(kept) < 3:
            text = " ".join(row.text.split())
            kept.append(text if len(text) <= 40 else text[:40] + "…")

    def sentences(self, *, examples: bool = True) -> list[str]:
        """The report in sentences; one sentence when there was nothing to remove.

        Args:
            examples: quote the beginning of up to three removed texts for each reason.
        """
        if not self.removed:
            return ["No text stands twice in or across the splits."]
        lines = [
            f"{name}: {self.before[name]:,} rows, {self.after[name]:,} after de-duplication."
            for name in ("train", "dev", "test")
            if self.before[name] != self.after[name]
        ]
        facts = [
            (self.train_in_test, "train-test", "rows of train also stand in test and were removed from train"),
            (self.train_in_dev, "train-dev", "rows of train also stand in dev and were removed from train"),
            (self.dev_in_test, "dev-test", "rows of dev also stand in test and were removed from dev"),
            (self.conflicting, "conflict", "rows of train carry another label than a copy of theirs; all were dropped"),
        ]
        facts += [
            (count, f"within-{name}", f"later copies inside {name} were removed") for name, count in self.within.items()
        ]
        for count, reason, sentence in facts:
            if count:
                quoted = "; ".join(f"“{text}”" for text in self.examples.get(reason, []) if examples)
                lines.append(f"{count:,} {sentence}" + (f", such as {quoted}." if quoted else "."))
        if self.conflicts:
            lines.append(f"{self.conflicts:,} texts carry different labels in different places of the data.")
        return lines


def deduplicate(
    train: Sequence[Row], dev: Sequence[Row], test: Sequence[Row], *, key: Key = text_key
) -> tuple[list[Row], list[Row], list[Row], DuplicateReport]:
    """Removes exact duplicates within and across splits.

    The first copy inside a split stays. A text of test is removed from dev and train, a text of dev from train, so
    that the evaluation splits keep what they are known by. Copies in train that carry different labels are all
    dropped: nothing says which is right. In dev and test the first copy stays even then, and it is counted.

    Args:
        key: what makes two rows the same text; by default text and pair without outer white space.

    Returns:
        train, dev and test without duplicates, in their original order, and the report.
    """
    report = DuplicateReport(before={"train": len(train), "dev": len(dev), "test": len(test)})
    golds: defaultdict[str, set[object]] = defaultdict(set)
    train_golds: defaultdict[str, set[object]] = defaultdict(set)
    for rows in (train, dev, test):
        for row in rows:
            golds[key(row)].add(_gold(row))
    for row in train:
        train_golds[key(row)].add(_gold(row))
    report.conflicts = sum(len(answers) > 1 for answers in golds.values())
    in_test, in_dev = {key(row) for row in test}, {key(row) for row in dev}

    kept_test = _first_copies(test, key, "test", report)
    unique_dev = []
    for row in dev:
        if key(row) in in_test:
            report.dev_in_test += 1
            report.note("dev-test", row)
        else:
            unique_dev.append(row)
    kept_dev = _first_copies(unique_dev, key, "dev", report)
    unique_train = []
    for row in train:
        name = key(row)
        if name in in_test:
            report.train_in_test += 1
            report.note("train-test", row)
        elif name in in_dev:
            report.train_in_dev += 1
            report.note("train-dev", row)
        elif len(train_golds[name]) > 1:
            report.conflicting += 1
            report.note("conflict", row)
        else:
            unique_train.append(row)
    kept_train = _first_copies(unique_train, key, "train", report)
    report.after = {"train": len(kept_train), "dev": len(kept_dev), "test": len(kept_test)}
    return kept_train, kept_dev, kept_test, report


def _first_copies(rows: Sequence[Row], key: Key, name: str, report: DuplicateReport) -> list[Row]:
    seen: set[str] = set()
    kept = []
    for row in rows:
        mark = key(row)
        if mark in seen:
            report.within[name] += 1
            report.note(f"within-{name}", row)
        else:
            seen.add(mark)
            kept.append(row)
    return kept


def _gold(row: Row) -> object:
    """A row's answer, comparable between copies that differ in outer white space."""
    if row.entities is None:
        return row.label if row.labels is None else tuple(sorted(row.labels))
    lead = len(row.text) - len(row.text.lstrip())
    return row.label, tuple(sorted((item.start - lead, item.end - lead, item.label) for item in row.entities))
