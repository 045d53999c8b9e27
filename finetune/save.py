"""A trained model → a bundle: checkpoint, tokenizer, golden rows, splits and the manifest that binds them."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import Any

from bundle.folder import MANIFEST, Bundle, create_bundle, sha256_of
from bundle.golden import golden_of, write_golden
from bundle.machine import commit, versions
from bundle.manifest import (
    Artifact,
    FileRef,
    Manifest,
    Pooling,
    Provenance,
    Quality,
    signature_of,
)
from bundle.predict import Predicted
from bundle.rows import Row, write_rows
from bundle.versions import home_of, next_version
from finetune.data.splits import sample
from finetune.prepare import Prepared, text_spec

PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddlenlp", "tokenizers", "numpy", "scikit-learn")
# Reference rows: enough to show every class and window count, few enough to check at every start.
GOLDEN_ROWS = 16
GOLDEN_WINDOWS = 4
CALIBRATION_ROWS = 256


def save(
    model: Any,
    prepared: Prepared,
    root: Path,
    *,
    form: str,
    pooling: Pooling,
    dev: list[Predicted],
    scores: dict[str, dict[str, Any]],
    quality: Quality,
    predict: Any,
) -> Bundle:
    """Writes the bundle into a new folder and puts it in the place of the old one.

    Args:
        root: the bundle folder.
        dev: predictions of ``prepared.dev_sample``, from which golden rows are chosen.
        predict: rows → predictions by the model, for the golden rows of short texts made here.
    """
    folder = root.parent / f".{root.name}.new"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.save_pretrained(str(folder / "paddle"))
    for surplus in (folder / "paddle").glob("*"):
        if surplus.name not in ("config.json", "model_state.pdparams"):
            surplus.unlink()
    prepared.encoder.tokenizer.save(str(folder / "tokenizer.json"))
    spec = text_spec(prepared.recipe, prepared.base, pooling).model_copy(
        update={"tokenizer": _refer(folder, "tokenizer.json"), "pooling": pooling}
    )
    # Golden rows are encoded by the tokenizer as it was just written, which is what the other rooms will read.
    rows = _golden_rows(prepared.dev_sample, dev)
    predicted = predict(rows)
    write_golden(
        folder / "golden.jsonl",
        [golden_of(p, prepared.encoder, row.text, row.pair) for row, p in zip(rows, predicted, strict=True)],
    )
    calibration = sample(prepared.lessons, CALIBRATION_ROWS, prepared.recipe.train.seed)
    splits = {"dev": prepared.dev, "test": prepared.test, "calibration": calibration}
    if prepared.dev_long:
        splits["dev_long"] = prepared.dev_long
    for name, split in splits.items():
        write_rows(folder / "splits" / f"{name}.jsonl", split)
    weights = _refer(folder, "paddle/model_state.pdparams")
    manifest = Manifest(
        name=prepared.recipe.name,
        version=next_version(home_of(root)),
        made=_provenance(prepared, form),
        task=prepared.task,
        text=spec,
        signature=signature_of(prepared.task),
        scores=scores,
        golden=_refer(folder, "golden.jsonl"),
        splits={name: _refer(folder, f"splits/{name}.jsonl") for name in splits},
        artifacts={
            "paddle": Artifact(
                file=weights.file,
                sha256=weights.sha256,
                bytes=weights.bytes,
                files=(_refer(folder, "paddle/config.json"),),
                format="paddle",
                precision="fp32",
                quality=quality,
                details={
                    **prepared.recipe.export.model_dump(mode="json"),
                    # What the recipe asks for: "auto" lets export choose again, on more rows.
                    "pooling": prepared.recipe.text.pooling,
                },
            )
        },
    )
    create_bundle(folder, manifest)
    old = root.parent / f".{root.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if root.exists():
        root.rename(old)
    folder.rename(root)
    shutil.rmtree(old, ignore_errors=True)
    return Bundle(root, manifest)


def _refer(folder: Path, file: str) -> FileRef:
    path = folder / file
    return FileRef(file=file, sha256=sha256_of(path), bytes=path.stat().st_size)


def _golden_rows(rows: list[Row], predicted: list[Predicted]) -> list[Row]:
    """Dev rows of at most a few windows: half by length from short to long, the rest to show every answer."""
    fit = [n for n, item in enumerate(predicted) if len(item.encoded.windows) <= GOLDEN_WINDOWS] or [0]
    fit.sort(key=lambda n: predicted[n].encoded.tokens)
    several = [n for n, item in enumerate(predicted) if len(item.encoded.windows) > 1]
    if several and len(predicted[fit[-1]].encoded.windows) == 1:
        # Long texts only: the shortest of them stands in, or pooling would go unproved.
        fit.append(min(several, key=lambda n: predicted[n].encoded.tokens))
    half = min(GOLDEN_ROWS // 2, len(fit))
    chosen = [fit[round(k * (len(fit) - 1) / max(half - 1, 1))] for k in range(half)]
    by_gold: dict[object, list[int]] = {}
    for number in fit:
        by_gold.setdefault(_kind(rows[number]), []).append(number)
    queues = list(by_gold.values())
    turn = 0
    while len(set(chosen)) < min(GOLDEN_ROWS, len(fit)) and any(queues):
        queue = queues[turn % len(queues)]
        turn += 1
        if queue:
            chosen.append(queue.pop(len(queue) // 2))
    return [rows[number] for number in dict.fromkeys(chosen)]


def _kind(row: Row) -> object:
    """What a row shows: its label, its labels, or whether it has entities."""
    return row.label or (row.labels if row.labels is not None else bool(row.entities))


def _provenance(prepared: Prepared, form: str) -> Provenance:
    recipe = prepared.recipe
    return Provenance(
        recipe=recipe.name,
        recipe_sha256=recipe.checksum(),
        form=form,
        commit=commit(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seed=recipe.train.seed,
        data=prepared.source.model_copy(update={"sha256": prepared.data_sha256}),
        base=prepared.base.source,
        architecture=prepared.base.architecture(prepared.task.kind),
        packages=versions(PACKAGES),
    )


def up_to_date(root: Path, prepared: Prepared) -> bool:
    """Whether the bundle was made from this very recipe and data."""
    if not (root / MANIFEST).is_file():
        return False
    from bundle.folder import open_bundle

    made = open_bundle(root).manifest.made
    return made.recipe_sha256 == prepared.recipe.checksum() and made.data.sha256 == prepared.data_sha256
