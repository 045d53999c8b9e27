"""Which form of the model is served: quality of fp32 and of a smaller form on the dev split, and the judgement between
them. The smaller form is INT8, or fp16 where the model is for a GPU.

One that loses more than the tolerance, as a whole, in a class or in texts of some length (`export.slices`), or whose
integer products are not those of the float32 graph (`export.products`), is not published: the report (``gate.json``
beside the manifest, and its tables) says what fell, which rows changed and which layers err most, and the fused float32
graph is published instead. How it is made is the part of `export.to_int8` and `export.to_fp16`; they ask here
too, to choose among their candidates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import JsonValue

from bundle.device import Device
from bundle.encode import Encoded, Encoder, WindowRow, pad
from bundle.folder import Bundle, write_atomic
from bundle.manifest import LONG, Artifact, Manifest, Quality
from bundle.metrics import ClassRow
from bundle.predict import (
    Predicted,
    Run,
    agreement,
    answers_of,
    classes_of,
    encode_rows,
    judged,
    predict,
    scores_of,
)
from bundle.rows import Row, read_rows
from export.artifact import SOURCE, amend, identity, source_of
from export.clues import DIFFERS_8_BITS, DIFFERS_16_BITS, first_difference, label_order
from export.gate_report import layers_record, named_rows, rows_record, show_report, slices_record
from export.half import rehearsed
from export.journal import Journal
from export.products import WINDOWS, ProductError, product_errors, wrong_products
from export.session import open_session, run_of
from export.slices import Comparison, compare_forms
from export.slices import Tolerance as Tolerance  # one name for those who ask the gate
from export.spread import spread

if TYPE_CHECKING:
    import onnx

FP32, INT8, FP16 = "onnx_fused", "onnx_int8", "onnx_fp16"
# The step that makes a form.
MADE_BY = {INT8: "to_int8", FP16: "to_fp16"}
REPORT = "gate.json"
# Windows of one named row that the layers are compared on.
WINDOWS_OF_ROW = 4


@dataclass(frozen=True)
class Measured:
    """What one form of the model answered on the dev split."""

    quality: Quality
    classes: list[ClassRow]
    answers: list[Any]
    found: list[Predicted]


@dataclass
class DevSplit:
    """The dev rows of a bundle, encoded once, and what graphs said of them in this process.

    Args:
        limit: use at most so many rows, evenly spread; 0 means all of them.
        also: lines of rows that are used in any case.
        rows, lines: the rows, and where each stands in the split's file, from 1.
    """

    bundle: Bundle
    limit: int = 0
    also: Sequence[int] = ()
    rows: list[Row] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    _encoded: list[Encoded] = field(default_factory=list)
    _known: dict[str, list[Predicted]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.encoder = Encoder.of(self.bundle)
        if "dev" in self.bundle.manifest.splits:
            rows = list(read_rows(self.bundle.path(self.bundle.manifest.splits["dev"].file)))
            chosen = set(self.also) | {place + 1 for place in spread(range(len(rows)), self.limit or len(rows))}
            self.lines = sorted(chosen)
            self.rows = [rows[line - 1] for line in self.lines]

    @property
    def encoded(self) -> list[Encoded]:
        """The rows' windows; long articles take a while, so not before they are needed."""
        if not self._encoded:
            self._encoded = encode_rows(self.rows, self.encoder)
        return self._encoded

    def windows(self, places: Sequence[int], limit: int) -> list[WindowRow]:
        """The first windows of some rows, at most ``limit`` of each."""
        return [
            self.encoder.row(self.encoded[place], number)
            for place in places
            for number in range(min(limit, len(self.encoded[place].windows)))
        ]

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
        return DevSplit(self.bundle, limit, self.lines)

    def take(self, wider: DevSplit) -> None:
        """Keeps what a graph said of these rows when it was asked for a wider split."""
        for key, found in wider._known.items() if wider is not self else ():
            said = dict(zip(wider.lines, found, strict=True))
            self._known.setdefault(key, [said[line] for line in self.lines])

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

    def predictions_of(self, name: str, journal: Journal, bundle: Bundle, device: Device = "cpu") -> list[Predicted]:
        """What an ONNX artifact of the bundle says of every row; half precision is rehearsed on a processor."""
        import onnx

        artifact = source_of(bundle, name)
        model: Path | bytes = bundle.path(artifact.file)
        if artifact.precision == "fp16" and device == "cpu":
            model = rehearsed(onnx.load(str(model))).SerializeToString()
        session = open_session(model, device=device, precision=artifact.precision)
        run = run_of(session, bundle.manifest.signature)
        key, what = key_on(identity(artifact), device), f"{name} on {len(self.rows)} dev rows"
        return self.predictions(key, what, run, journal, alone=not artifact.batch_invariant)

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
        return Measured(quality, classes_of(self.rows, answers, task), answers, list(found))

    def compare(self, before: Measured, after: Measured, tolerance: Tolerance, manifest: Manifest) -> Comparison:
        """Two measured forms as a whole, per class and per length, and what speaks against the second."""
        text = manifest.text
        return compare_forms(
            self.rows, before.found, after.found, manifest.task, text.joining, text.length_buckets, tolerance
        )

    def measure_artifact(
        self,
        name: str,
        journal: Journal,
        bundle: Bundle,
        reference: Sequence[object] | None = None,
        device: Device = "cpu",
    ) -> Measured:
        """Measures an ONNX artifact of the bundle."""
        return self.measure(self.predictions_of(name, journal, bundle, device), bundle.manifest, reference)


def headlines(metrics: dict[str, float]) -> list[str]:
    """The figures that are judged: ``macro_f1`` of a classifier, ``f1`` of a tagger, both of a multi-task model."""
    return [name for name in ("macro_f1", "f1") if name in metrics]


def key_on(checksum: str, device: Device) -> str:
    """What a graph's predictions are kept under; the kernels of a GPU round differently."""
    return checksum if device == "cpu" else f"{checksum} on {device}"


def gate(
    bundle: Bundle,
    journal: Journal,
    dev: DevSplit,
    tolerance: Tolerance | None = None,
    *,
    form: str = INT8,
    device: Device = "cpu",
    force: bool = False,
) -> Bundle:
    """Measures the fused float32 graph and a smaller form, writes the report and publishes one of them.

    A plan says how a processor's cores are used best, so the bundle has none after fp16 was judged.

    Args:
        form: the artifact that is judged: `INT8` or `FP16`.
        device: where that form is run; float32, to which Paddle was compared, is always run on the processor.

    Raises:
        ExportError: there is no fused graph yet.
        GpuMissing: the form is to be run on a GPU and there is none.
    """
    tolerance = tolerance or Tolerance()
    fp32_artifact, small_artifact = source_of(bundle, FP32), bundle.manifest.artifacts.get(form)
    basis: dict[str, JsonValue] = {
        "pass": 2,
        FP32: identity(fp32_artifact),
        form: identity(small_artifact) if small_artifact else "",
        **asdict(tolerance),
        "joining": bundle.manifest.text.joining.model_dump(mode="json"),
        "thresholds": list(bundle.manifest.task.thresholds),
        **dev.fingerprint,
        **({} if device == "cpu" else {"device": device}),
    }
    known = read_report(bundle)
    # A form that was made again to the same bytes has lost what was said of it.
    told = small_artifact is None or "gate" in small_artifact.details
    if not force and told and known.get("basis") == basis and known.get("published") == bundle.manifest.published != "":
        journal.say(f"  up to date: {bundle.manifest.published} is published")
        return bundle
    report: dict[str, JsonValue] = {"basis": basis, "form": form}
    if not dev.rows:
        reasons = ["the bundle has no dev split, so the loss cannot be measured"]
    else:
        fp32 = dev.measure_artifact(FP32, journal, bundle)
        quality = fp32.quality.model_copy(update={"agreement": _paddle_agreement(fp32_artifact)})
        bundle = amend(
            bundle, FP32, quality=quality, agreement_reference="paddle, on the sample of dev rows that it answered"
        )
        report[FP32] = _figures(fp32)
        if small_artifact is None:
            reasons = [f"there is no {form}"]
        else:
            small = dev.measure_artifact(form, journal, bundle, fp32.answers, device)
            reasons = _compare(bundle, dev, form, fp32, small, tolerance, report)
            report[form] = _figures(small)
            bundle = amend(
                bundle,
                form,
                quality=small.quality,
                agreement_reference=f"{FP32}, on the same rows: its logits are those of the trained model within 1e-4",
                gate="passed" if not reasons else "refused: " + "; ".join(reasons),
            )
    published = FP32 if reasons else form
    report["published"], report["reasons"] = published, list(reasons)
    write_atomic(bundle.path(REPORT), json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    show_report(journal.console, report)
    if form == FP16:
        bundle = bundle.save(bundle.manifest.model_copy(update={"plan": None}))
    bundle = bundle.publish(published)
    journal.say(f"    published: {published} (report: {bundle.path(REPORT)})")
    return bundle


def _compare(
    bundle: Bundle,
    dev: DevSplit,
    form: str,
    fp32: Measured,
    small: Measured,
    tolerance: Tolerance,
    report: dict[str, JsonValue],
) -> list[str]:
    """Judges a form, writes what it was judged by into the report, and returns what speaks against it."""
    import onnx

    manifest = bundle.manifest
    graphs = [onnx.load(str(bundle.path(manifest.artifacts[name].file))) for name in (FP32, form)]
    comparison = dev.compare(fp32, small, tolerance, manifest)
    reasons = comparison.reasons
    if manifest.artifacts[form].details.get(SOURCE) != identity(manifest.artifacts[FP32]):
        reasons.append(
            f"{form} was made from another {FP32} than the one that is here; run {MADE_BY.get(form, form)} again"
        )
    # Judged on rows of every kind, as one token of one row would say little of a channel; told on the named rows.
    every_kind = dev.windows(spread(range(len(dev.rows)), WINDOWS), 1)
    reasons += wrong_products(_product_errors(bundle, graphs, every_kind))
    places = named_rows(comparison) or [int(np.argmax(comparison.differences))]
    errors = _product_errors(bundle, graphs, dev.windows(places, WINDOWS_OF_ROW))
    if reasons:
        reasons += _clues(bundle, dev, form, fp32, small, places, comparison.spread)
    answers = {FP32: fp32.answers, form: small.answers}
    file = manifest.splits["dev"].file
    report["slices"] = slices_record(comparison.slices)
    report["changed"] = rows_record(comparison, dev.rows, dev.lines, answers, manifest.task, file)
    report["layers"] = layers_record(errors)
    report["noise"] = round(comparison.noise, 6)
    report["notes"] = list(comparison.notes)
    return reasons


def _clues(
    bundle: Bundle,
    dev: DevSplit,
    form: str,
    fp32: Measured,
    small: Measured,
    places: Sequence[int],
    size: float,
) -> list[str]:
    """What may be wrong with a form that lost too much: labels in another order, or a part of the graph."""
    manifest = bundle.manifest
    # Other labels' logits are about their spread apart, INT8's own errors a tenth of it.
    if clue := label_order(fp32.found, small.found, size / 2):
        return [clue]
    fp32_file, small_file = (bundle.path(manifest.artifacts[name].file) for name in (FP32, form))
    arrays = pad(dev.windows(places, 1), manifest.text.pad_id)
    feeds = dict(zip([tensor.name for tensor in manifest.signature.inputs], arrays, strict=True))
    share = DIFFERS_16_BITS if form == FP16 else DIFFERS_8_BITS
    clue = first_difference(fp32_file, small_file, feeds, share)
    return [clue] if clue else []


def _product_errors(
    bundle: Bundle, graphs: Sequence[onnx.ModelProto], windows: Sequence[WindowRow]
) -> list[ProductError]:
    """The integer products of the INT8 graph beside those of the float32 graph, on some windows."""
    fp32, int8 = graphs
    return product_errors(fp32, int8, windows, bundle.manifest.signature, bundle.manifest.text.pad_id)


def _paddle_agreement(artifact: Artifact) -> float | None:
    """Agreement with Paddle itself, which `export.fuse` measured on a sample of dev rows."""
    return artifact.quality.agreement if artifact.quality else None


def read_report(bundle: Bundle) -> dict[str, Any]:
    """The report of the last judgement; empty where there is none."""
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
