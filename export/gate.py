"""Which form of the model is served: quality of fp32 and INT8 on the dev split, and the judgement between them.

INT8 that loses more than the tolerance is not published: the report (``gate.json`` beside the manifest, and a table)
says which figure fell and which rows changed, and the fused float32 graph is published instead. How INT8 is made is
`export.to_int8`'s part; it asks here too, to choose among its candidates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import JsonValue

from bundle.encode import Encoded, Encoder
from bundle.folder import Bundle, write_atomic
from bundle.manifest import Artifact, Manifest, Quality
from bundle.metrics import ClassRow
from bundle.predict import (
    Predicted,
    Run,
    agreement,
    answers_of,
    classes_of,
    encode_rows,
    gold_of,
    judged,
    predict,
    readable,
    scores_of,
)
from bundle.rows import Row, read_rows
from export.artifact import amend, identity, source_of
from export.journal import Journal
from export.session import open_session, run_of

FP32, INT8 = "onnx_fused", "onnx_int8"
REPORT = "gate.json"
# Rows listed in the report; the count is always of all of them.
LISTED_ROWS = 50

# The split of dev rows in long neutral text.
LONG = "dev_long"


@dataclass(frozen=True)
class Tolerance:
    """What INT8 may lose.

    Attributes:
        max_drop: largest loss of a headline figure (macro-F1, entity F1 of a tagger, both of a multi-task model), as a
            fraction: 0.01 is one point.
        min_agreement: smallest share of dev rows that INT8 answers as fp32 does.
    """

    max_drop: float = 0.01
    min_agreement: float = 0.99


@dataclass(frozen=True)
class Measured:
    """What one form of the model answered on the dev split."""

    quality: Quality
    classes: list[ClassRow]
    answers: list[object]


def spread(places: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of them, evenly spread."""
    if len(places) <= count:
        return list(places)
    return [places[index] for index in np.linspace(0, len(places) - 1, count).round().astype(int)]


@dataclass
class DevSplit:
    """The dev rows of a bundle, encoded once, and what graphs said of them in this process.

    Args:
        limit: use at most so many rows, evenly spread; 0 means all of them.
        also: places of rows in the split that are used in any case.
        rows, places: the rows, and where each stands in the split.
    """

    bundle: Bundle
    limit: int = 0
    also: Sequence[int] = ()
    rows: list[Row] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    _encoded: list[Encoded] = field(default_factory=list)
    _known: dict[str, list[Predicted]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.encoder = Encoder.of(self.bundle)
        if "dev" in self.bundle.manifest.splits:
            rows = list(read_rows(self.bundle.path(self.bundle.manifest.splits["dev"].file)))
            chosen = set(self.also) | set(spread(range(len(rows)), self.limit or len(rows)))
            self.places = sorted(chosen)
            self.rows = [rows[place] for place in self.places]

    @property
    def encoded(self) -> list[Encoded]:
        """The rows' windows; long articles take a while, so not before they are needed."""
        if not self._encoded:
            self._encoded = encode_rows(self.rows, self.encoder)
        return self._encoded

    @property
    def fingerprint(self) -> dict[str, JsonValue]:
        """What a measurement depends on besides the graph."""
        ref = self.bundle.manifest.splits.get("dev")
        return {"dev_sha256": ref.sha256 if ref else "", "rows": len(self.rows)}

    def long_rows(self) -> list[Row]:
        """Rows of dev that training has set into long neutral text; none in most bundles."""
        splits = self.bundle.manifest.splits
        return list(read_rows(self.bundle.path(splits[LONG].file))) if LONG in splits else []

    def wider(self, limit: int) -> DevSplit:
        """At least so many rows, these among them; this split itself where it holds as many as there are."""
        if not self.limit or self.limit >= limit:
            return self
        return DevSplit(self.bundle, limit, self.places)

    def take(self, wider: DevSplit) -> None:
        """Keeps what a graph said of these rows when it was asked for a wider split."""
        for key, found in wider._known.items() if wider is not self else ():
            said = dict(zip(wider.places, found, strict=True))
            self._known.setdefault(key, [said[place] for place in self.places])

    def predictions(self, key: str, what: str, run: Run, journal: Journal, *, alone: bool) -> list[Predicted]:
        """What a graph says of every row.

        Args:
            key: checksum of the graph; a second call with it answers from memory.
            alone: one window per call, for a graph whose answers depend on the batch.
        """
        if key not in self._known:
            with journal.progress(what) as progress:
                self._known[key] = predict(
                    self.encoded, self.encoder, run, batch_tokens=1 if alone else 4096, progress=progress
                )
        return self._known[key]

    def predictions_of(self, name: str, journal: Journal, bundle: Bundle) -> list[Predicted]:
        """What an ONNX artifact of the bundle says of every row."""
        artifact = source_of(bundle, name)
        run = run_of(open_session(bundle.path(artifact.file)), bundle.manifest.signature)
        what = f"{name} on {len(self.rows)} dev rows"
        return self.predictions(identity(artifact), what, run, journal, alone=not artifact.batch_invariant)

    def measure(
        self, found: Sequence[Predicted], manifest: Manifest, reference: Sequence[object] | None = None
    ) -> Measured:
        """Scores what was said, joined as the manifest says.

        Args:
            reference: answers to compare with, row by row.
        """
        task = manifest.task
        answers = answers_of(found, task, manifest.text.joining)
        quality = Quality(
            split="dev",
            rows=len(self.rows),
            metrics=scores_of(self.rows, answers, task),
            agreement=None
            if reference is None
            else agreement(judged(self.rows, reference, task), judged(self.rows, answers, task)),
        )
        return Measured(quality, classes_of(self.rows, answers, task), answers)

    def measure_artifact(
        self, name: str, journal: Journal, bundle: Bundle, reference: Sequence[object] | None = None
    ) -> Measured:
        """Measures an ONNX artifact of the bundle."""
        return self.measure(self.predictions_of(name, journal, bundle), bundle.manifest, reference)


def headlines(metrics: dict[str, float]) -> list[str]:
    """The figures that are judged: ``macro_f1`` of a classifier, ``f1`` of a tagger, both of a multi-task model."""
    return [name for name in ("macro_f1", "f1") if name in metrics]


def judge(fp32: Quality, int8: Quality, tolerance: Tolerance) -> list[str]:
    """Why INT8 may not be served; empty if it may."""
    reasons: list[str] = []
    for name in headlines(fp32.metrics):
        drop = fp32.metrics[name] - int8.metrics[name]
        if drop > tolerance.max_drop + 1e-9:
            reasons.append(
                f"{name} falls by {100 * drop:.2f} points ({fp32.metrics[name]:.4f} to {int8.metrics[name]:.4f}); "
                f"{100 * tolerance.max_drop:g} are allowed"
            )
    share = int8.agreement if int8.agreement is not None else 0.0
    if share < tolerance.min_agreement - 1e-9:
        reasons.append(
            f"{share:.2%} of the {int8.rows} dev rows are answered as fp32 does; "
            f"{tolerance.min_agreement:.2%} are needed"
        )
    return reasons


def gate(
    bundle: Bundle, journal: Journal, dev: DevSplit, tolerance: Tolerance | None = None, *, force: bool = False
) -> Bundle:
    """Measures both forms, writes the report and publishes one of them.

    Raises:
        ExportError: there is no fused graph yet.
    """
    tolerance = tolerance or Tolerance()
    fp32_artifact, int8_artifact = source_of(bundle, FP32), bundle.manifest.artifacts.get(INT8)
    basis: dict[str, JsonValue] = {
        FP32: identity(fp32_artifact),
        INT8: identity(int8_artifact) if int8_artifact else "",
        "max_drop": tolerance.max_drop,
        "min_agreement": tolerance.min_agreement,
        "joining": bundle.manifest.text.joining.model_dump(mode="json"),
        "thresholds": list(bundle.manifest.task.thresholds),
        **dev.fingerprint,
    }
    known = _read_report(bundle)
    if not force and known.get("basis") == basis and known.get("published") == bundle.manifest.published != "":
        journal.say(f"  up to date: {bundle.manifest.published} is published")
        return bundle
    report: dict[str, JsonValue] = {"basis": basis}
    if not dev.rows:
        reasons = ["the bundle has no dev split, so the loss cannot be measured"]
    else:
        fp32 = dev.measure_artifact(FP32, journal, bundle)
        quality = fp32.quality.model_copy(update={"agreement": _paddle_agreement(fp32_artifact)})
        bundle = amend(
            bundle, FP32, quality=quality, agreement_reference="paddle, on the sample of dev rows that it answered"
        )
        report[FP32] = _figures(fp32)
        if int8_artifact is None:
            reasons = ["there is no onnx_int8"]
        else:
            int8 = dev.measure_artifact(INT8, journal, bundle, fp32.answers)
            reasons = judge(fp32.quality, int8.quality, tolerance)
            report[INT8] = _figures(int8)
            report["changed"] = _changed(dev.rows, fp32, int8, bundle)
            bundle = amend(
                bundle,
                INT8,
                quality=int8.quality,
                agreement_reference=f"{FP32}, on the same rows: its logits are those of the trained model within 1e-4",
                gate="passed" if not reasons else "refused: " + "; ".join(reasons),
            )
            _print_table(journal, fp32, int8)
    published = FP32 if reasons else INT8
    report["published"], report["reasons"] = published, list(reasons)
    write_atomic(bundle.path(REPORT), json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    for reason in reasons:
        journal.say(f"    INT8 is not published: {reason}")
    bundle = bundle.publish(published)
    journal.say(f"    published: {published} (report: {bundle.path(REPORT)})")
    return bundle


def _paddle_agreement(artifact: Artifact) -> float | None:
    """Agreement with Paddle itself, which `export.fuse` measured on a sample of dev rows."""
    return artifact.quality.agreement if artifact.quality else None


def _read_report(bundle: Bundle) -> dict[str, Any]:
    try:
        report = json.loads(bundle.path(REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def _figures(measured: Measured) -> dict[str, JsonValue]:
    return {
        "metrics": dict(measured.quality.metrics),
        "agreement": measured.quality.agreement,
        "rows": measured.quality.rows,
        "classes": [
            {"label": row.label, "precision": row.precision, "recall": row.recall, "f1": row.f1, "rows": row.support}
            for row in measured.classes
        ],
    }


def _changed(rows: list[Row], fp32: Measured, int8: Measured, bundle: Bundle) -> dict[str, JsonValue]:
    """Rows whose answer is another in INT8: their number in the dev split, gold label and both answers."""
    task = bundle.manifest.task
    found: list[JsonValue] = []
    count = 0
    told = (judged(rows, answers, task) for answers in (fp32.answers, int8.answers))
    changed = [left != right for left, right in zip(*told, strict=True)]
    for number, (row, left, right) in enumerate(zip(rows, fp32.answers, int8.answers, strict=True)):
        if not changed[number]:
            continue
        count += 1
        if len(found) < LISTED_ROWS:
            text = row.text[:80] + ("…" if len(row.text) > 80 else "")
            both = {FP32: readable(left, task), INT8: readable(right, task)}
            found.append({"row": number, "text": text, "gold": gold_of(row, task), **both})
    return {"count": count, "first": found}


def _print_table(journal: Journal, fp32: Measured, int8: Measured) -> None:
    from rich.table import Table

    table = Table(title=f"dev split, {fp32.quality.rows} rows", title_justify="left")
    table.add_column("")
    for column in ("fp32", "int8", "difference"):
        table.add_column(column, justify="right")
    for name, value in fp32.quality.metrics.items():
        other = int8.quality.metrics[name]
        table.add_row(name, f"{value:.4f}", f"{other:.4f}", f"{other - value:+.4f}")
    others = {row.label: row for row in int8.classes}
    for row in fp32.classes:
        if row.label != "micro" and row.label in others:
            other = others[row.label].f1
            table.add_row(f"f1 of {row.label}", f"{row.f1:.4f}", f"{other:.4f}", f"{other - row.f1:+.4f}")
    share = int8.quality.agreement
    table.add_row("same answer", "", "" if share is None else f"{share:.2%}", "")
    journal.console.print(table)
