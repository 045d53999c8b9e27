"""What is written reads back the same: manifests of every kind of task, rows, golden rows."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bundle.errors import ManifestInvalid
from bundle.golden import Golden, read_golden, write_golden
from bundle.manifest import (
    Artifact,
    FileRef,
    Joining,
    Manifest,
    Parity,
    Pooling,
    Provenance,
    Quality,
    Source,
    Stitching,
    Task,
    TaskKind,
    TextSpec,
    bio_labels,
    parse_manifest,
    signature_of,
)
from bundle.rows import Entity, Row, read_rows, row_to_json, write_rows
from tests.bundle.texts import CHARACTERS, HARD
from tests.properties import cases

KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
WORDS = st.sampled_from(["", "a b", "情感", "\u2028", '"\\', *HARD])
TEXTS = st.text(CHARACTERS, max_size=12) | st.lists(WORDS, max_size=4).map("".join)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.1, 1 / 3, 1e-7])
LABELS = st.lists(TEXTS.filter(bool), min_size=2, max_size=5, unique=True).map(tuple)
TYPES = st.lists(TEXTS.filter(bool), min_size=1, max_size=3, unique=True).map(bio_labels)
FILES = st.builds(FileRef, file=WORDS, sha256=st.just("0" * 64), bytes=st.integers(0, 2**40))
SOURCES = st.builds(Source, name=WORDS, licence=WORDS, note=TEXTS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def tasks(draw: st.DrawFn, kind: TaskKind) -> Task:
    if kind == "token-classification":
        return Task(kind=kind, labels=draw(TYPES))
    labels = draw(LABELS)
    if kind == "multi-task":
        return Task(kind=kind, labels=labels, token_labels=draw(TYPES))
    if kind == "multi-label" and draw(st.booleans()):
        size = len(labels)
        thresholds = tuple(draw(st.lists(st.floats(0, 1), min_size=size, max_size=size)))
        return Task(kind=kind, labels=labels, thresholds=thresholds)
    return Task(kind=kind, labels=labels)


def specs() -> st.SearchStrategy[TextSpec]:
    return st.builds(
        TextSpec,
        tokenizer=FILES,
        max_tokens=st.integers(23, 512),
        overlap=st.integers(0, 10),
        max_windows=st.integers(1, 10_000),
        pooling=st.sampled_from(get_args(Pooling)),
        pooling_weights=st.just(()) | st.tuples(*[NUMBERS] * 4),
        stitching=st.sampled_from(get_args(Stitching)),
        pad_id=st.just(0),
        cls_id=st.just(1),
        sep_id=st.just(2),
        length_buckets=st.lists(st.integers(1, 999), max_size=3).map(tuple),
    )


def artifacts() -> st.SearchStrategy[Artifact]:
    parity = st.builds(
        Parity,
        reference=WORDS,
        rows=st.integers(0, 99),
        windows=st.integers(0, 99),
        tolerance=NUMBERS,
        **dict.fromkeys(("max_abs", "mean_abs", "label_agreement"), NUMBERS),
    )
    quality = st.builds(
        Quality, split=st.sampled_from(["dev", "test"]), rows=st.just(3), metrics=st.dictionaries(WORDS, NUMBERS)
    )
    return st.builds(
        Artifact,
        file=WORDS,
        sha256=st.just("f" * 64),
        bytes=st.integers(0, 2**40),
        format=st.sampled_from(["paddle", "paddle-static", "onnx"]),
        precision=st.sampled_from(["fp32", "fp16", "int8"]),
        batch_invariant=st.booleans(),
        parity=st.none() | parity,
        quality=st.none() | quality,
        details=st.dictionaries(WORDS, JSON, max_size=2),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    task = draw(tasks(draw(st.sampled_from(KINDS))))
    forms = draw(st.dictionaries(st.sampled_from(["paddle", "onnx", "onnx_int8"]), artifacts(), max_size=2))
    made = Provenance(
        **{key: draw(TEXTS) for key in ("recipe", "recipe_sha256", "commit", "created", "architecture")},
        seed=draw(st.integers(0, 2**32)),
        data=draw(SOURCES),
        base=draw(SOURCES),
        packages=draw(st.dictionaries(WORDS, WORDS, max_size=2)),
    )
    return Manifest(
        name=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)),
        version=draw(st.integers(1, 99)),
        made=made,
        task=task,
        text=draw(specs()),
        signature=signature_of(task),
        scores=draw(st.dictionaries(WORDS, st.dictionaries(WORDS, JSON, max_size=2), max_size=2)),
        golden=draw(FILES),
        splits=draw(st.dictionaries(WORDS, FILES, max_size=2)),
        artifacts=forms,
        published=draw(st.sampled_from(["", *forms])),
    )


@cases(200)
@given(manifests())
def test_a_manifest_of_any_task_reads_back_as_written(manifest: Manifest) -> None:
    text = manifest.dumps()
    again = parse_manifest(text)
    assert again == manifest
    assert again.dumps() == text
    spec, joining = manifest.text, again.text.joining
    assert joining == Joining(pooling=spec.pooling, weights=spec.pooling_weights, stitching=spec.stitching)


@cases(60)
@given(manifests(), st.data())
def test_a_manifest_that_lacks_a_key_it_must_have_is_refused_by_its_name(
    manifest: Manifest, data: st.DataObject
) -> None:
    document = json.loads(manifest.dumps())
    lost = data.draw(st.sampled_from(["name", "made", "task", "text", "signature", "golden"]))
    del document[lost]
    with pytest.raises(ManifestInvalid, match=f"{lost}: "):
        parse_manifest(json.dumps(document))


def rows() -> st.SearchStrategy[Row]:
    entities = st.lists(st.builds(Entity, st.integers(0, 99), st.integers(0, 99), WORDS), max_size=3).map(tuple)
    return st.builds(
        Row,
        TEXTS,
        label=st.none() | TEXTS,
        pair=st.none() | TEXTS,
        entities=st.none() | entities,
        labels=st.none() | st.lists(TEXTS, max_size=3).map(tuple),
    )


@cases(600)
@given(st.lists(rows(), max_size=3))
def test_any_rows_read_back_as_written(wanted: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(f"{row_to_json(row)}\n" for row in wanted), encoding="utf-8", newline="\n")
        assert list(read_rows(path)) == wanted


@cases(60)  # each waits for the disk
@given(st.lists(rows(), max_size=4))
def test_written_rows_are_the_lines_of_each_row(wanted: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, wanted)
        assert list(read_rows(path)) == wanted


WINDOW = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(5)), elements=st.floats(-30, 30, width=32))


@cases(60)  # each waits for the disk
@given(TEXTS, st.none() | TEXTS, st.lists(WINDOW, min_size=1, max_size=3), st.booleans())
def test_golden_rows_read_back_as_written(text: str, pair: str | None, windows: list[np.ndarray], both: bool) -> None:
    ids = tuple(np.arange(len(values)) for values in windows)
    logits, token_logits = (tuple(values[0] for values in windows), tuple(windows)) if both else (tuple(windows), ())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "golden.jsonl"
        write_golden(path, [Golden(text, pair, ids, logits, token_logits)])
        (found,) = read_golden(path)
    assert (found.text, found.pair, len(found.ids)) == (text, pair, len(ids))
    for here, there in [(found.ids, ids), (found.logits, logits), (found.token_logits, token_logits)]:
        assert len(here) == len(there)
        for left, right in zip(here, there, strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-7, atol=1e-7)
