"""How the windows of a text become one answer: pooling, thresholds and stitching, chosen on the dev rows.

Training chose a pooling by the checkpoint's answers to a sample of dev rows; here the fused graph has answered more of
them, and one more pooling stands for election: ``learned`` (`export.learned`). Its weights are fitted on these very
rows, so it is scored by cross-validation: every row under weights that were fitted without it.

Where training has set dev rows into long neutral text (`finetune.data.compose`), those choose beside the plain ones.

The rule of the election, where the recipe says ``auto``: the pooling with the highest macro-F1. Of those that are at
most one row (1 / rows) below it, which is no evidence, the one with the lowest mean negative log-likelihood is taken,
and of equals the simplest. A stricter rule, the simplest within one standard error of the best, was tried: it takes the
mean wherever some hundred rows cannot prove that another is better.

Each pooling of a multi-label task is scored with the thresholds that are best for it; where another pooling is chosen
than in training, its thresholds are kept. A tagger's sentences mostly have one window, so its two ways of stitching are
tried on documents joined from dev rows. ``context`` promises that one window decides an entity and has seen it whole;
``average`` must be better by two standard errors.

What is chosen stands in the manifest; artifacts stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from bundle.decode import POOLINGS, poolings_of, reaching
from bundle.errors import ExportError
from bundle.folder import Bundle
from bundle.manifest import LONG, Artifact, Joining, Manifest, Pooling, Stitching, Task
from bundle.metrics import best_thresholds
from bundle.predict import (
    Predicted,
    Run,
    answers_of,
    encode_rows,
    gold_matrix,
    predict,
    scores_of,
    thresholds_of,
)
from bundle.rows import Row
from export.artifact import identity, source_of
from export.documents import answer, joined
from export.gate import DevSplit
from export.heads import Head, label_head, tag_head
from export.journal import Journal
from export.learned import MIN_ROWS, cross_validated, fit, losses, several
from export.parity import GoldenRows
from export.session import open_session, run_of
from export.to_static import GOLDEN, load_answers

SOURCE, KEY = "onnx_fused", "pooling"
FIGURE = "macro_f1"
# From the simplest on; `first` alone leaves text unread.
ORDER: tuple[Pooling, ...] = (*(how for how in POOLINGS if how != "first"), "telling", "first", "learned")
# Dev rows that choose a pooling, where there are so many: 400 took one for `news` that was worse on test than what all
# 991 take, and its weights were fitted on half as many rows.
ROWS = 1000
DRAWS, SEED = 200, 13
STITCHINGS: tuple[Stitching, ...] = ("context", "average")
# Windows that a joined document has at least, so that most of its tokens stand near a seam.
DOCUMENT_WINDOWS = 4
TOO_FEW = f"fewer than {MIN_ROWS} dev rows have several windows, too few to learn from"


@dataclass(frozen=True)
class Candidate:
    """A pooling and what it scored.

    Attributes:
        metrics: on the dev rows; of ``learned`` cross-validated.
        nll: mean negative log-likelihood of what the rows say.
    """

    name: Pooling
    metrics: dict[str, float]
    nll: float


def pooling(bundle: Bundle, journal: Journal, dev: DevSplit, *, force: bool = False) -> Bundle:
    """Chooses and writes pooling, thresholds and stitching; the scores of all candidates stand with ``onnx_fused``.

    Raises:
        ExportError: there is no fused graph yet.
    """
    source, manifest = source_of(bundle, SOURCE), bundle.manifest
    # What the recipe asks for travels with the checkpoint; bundles from before there was a choice say nothing.
    recipe = str(manifest.artifacts["paddle"].details.get(KEY, "auto"))
    settings: dict[str, JsonValue] = {
        "pass": 5,
        "graph": identity(source),
        "recipe": recipe,
        "most_rows": ROWS,
        **dev.fingerprint,
    }
    if LONG in manifest.splits:
        settings[LONG] = manifest.splits[LONG].sha256
    known = source.details.get(KEY)
    standing = {"settings": settings, "chosen": _standing(manifest)}
    if not force and isinstance(known, dict) and standing.items() <= known.items():
        journal.say("  up to date")
        return bundle
    if not dev.rows:
        journal.say(f"    there are no dev rows to choose by: the pooling stays {manifest.text.pooling}")
        return bundle
    text, task = manifest.text, manifest.task
    record: dict[str, JsonValue] = {"settings": settings, "rows": len(dev.rows)}
    if task.classifies:
        wide = dev.wider(ROWS)
        found = wide.predictions_of(SOURCE, journal, bundle)
        dev.take(wide)
        record["rows"] = len(wide.rows)
        long, answers = _long(dev, manifest, bundle.path(source.file), journal)
        head = label_head([*wide.rows, *long], [*found, *answers], task)
        record["long_rows"] = len(long)
        joining, facts = _pooling(head, text.joining, recipe, journal, poolings_of(manifest))
        text = text.model_copy(update={"pooling": joining.pooling, "pooling_weights": joining.weights})
        record |= facts
        if task.kind == "multi-label":
            # Under the same pooling those of the training stand, which were chosen on more rows.
            if not task.thresholds or text.pooling != manifest.text.pooling:
                thresholds = thresholds_of(wide.rows, found, task, text.joining)
                task = task.model_copy(update={"thresholds": thresholds})
            pairs = zip(task.labels, task.thresholds, strict=True)
            journal.say("    thresholds: " + ", ".join(f"{label} {value:.3f}" for label, value in pairs))
    if task.tags:
        run = run_of(open_session(bundle.path(source.file)), manifest.signature)
        stitching, facts = _stitching(dev, run, task, text.joining, journal)
        text = text.model_copy(update={"stitching": stitching})
        record["stitching"] = facts
    chosen = manifest.model_copy(update={"text": text, "task": task})
    record["chosen"] = _standing(chosen)
    artifacts = dict(manifest.artifacts)
    if _standing(manifest) != _standing(chosen):
        artifacts |= _parity_again(replace(bundle, manifest=chosen))
    fused = artifacts[SOURCE]
    artifacts[SOURCE] = fused.model_copy(update={"details": {**fused.details, KEY: record}})
    return bundle.save(chosen.model_copy(update={"artifacts": artifacts}))


def _long(dev: DevSplit, manifest: Manifest, graph: Path, journal: Journal) -> tuple[list[Row], list[Predicted]]:
    """The dev rows in long neutral text, and what the fused graph says of them.

    Rows that fit one window cannot tell poolings apart. A model that is taught to find a short row in a long text is
    to be read as it will be used, so such texts are among those that choose.
    """
    rows = dev.long_rows()
    if not rows:
        return [], []
    run = run_of(open_session(graph), manifest.signature)
    with journal.progress(f"{len(rows)} dev rows in long neutral text") as progress:
        return rows, predict(encode_rows(rows, dev.encoder), dev.encoder, run, progress=progress)


def _standing(manifest: Manifest) -> dict[str, JsonValue]:
    """What the manifest says about joining, as it is recorded."""
    return {**manifest.text.joining.model_dump(mode="json"), "thresholds": list(manifest.task.thresholds)}


def _pooling(
    head: Head, now: Joining, recipe: str, journal: Journal, poolings: Sequence[Pooling]
) -> tuple[Joining, dict[str, JsonValue]]:
    """The pooling to take, with the weights of ``learned`` in any case, and what to record."""
    several_windows = len(several(head.found))
    facts: dict[str, JsonValue] = {"rows_with_several_windows": several_windows}
    if not several_windows:
        journal.say(f"    every dev row has one window: there is nothing to choose, the pooling stays {now.pooling}")
        return now, facts
    candidates, weights = compare(head, poolings)
    if recipe == "auto":
        best = elect(candidates, head.rows)
        reason = f"{several_windows} of {len(head.rows)} rows have several windows"
    elif recipe == "learned":
        best, reason = ("learned", "as the recipe says") if weights else (elect(candidates, head.rows), TOO_FEW)
    else:
        best, reason = now.pooling, "as the recipe says"
    _show(candidates, best, journal)
    journal.say(f"    pooling: {best} ({reason})")
    facts["candidates"] = {item.name: {**item.metrics, "nll": item.nll} for item in candidates}
    return Joining(pooling=best, weights=weights), facts


def compare(head: Head, poolings: Sequence[Pooling] = POOLINGS) -> tuple[list[Candidate], tuple[float, ...]]:
    """Scores every pooling on a classifier's dev rows; ``learned``, the last, by cross-validation.

    Args:
        poolings: those that need no fitting; with ``telling`` among them ``learned`` weighs that as well.

    Returns:
        the candidates, and the weights of ``learned`` fitted on all rows; empty where too few have several windows.
    """
    leveled = "telling" in poolings
    candidates = [_scored(how, head, [Joining(pooling=how)] * len(head.rows)) for how in poolings]
    if len(several(head.found)) < MIN_ROWS:
        return candidates, ()
    candidates.append(_scored("learned", head, cross_validated(head.rows, head.found, head.task, leveled=leveled)))
    return candidates, fit(head.rows, head.found, head.task, leveled=leveled)


def _scored(name: Pooling, head: Head, joinings: Sequence[Joining]) -> Candidate:
    """Scores a pooling whose weights may be other ones for every row."""
    task = head.task
    pooled = [item.classified(task, joining) for item, joining in zip(head.found, joinings, strict=True)]
    scores = np.stack([item.scores for item in pooled])  # float32 (rows, labels)
    gold = gold_matrix(head.rows, task)
    answers: list[Any] = [item.label for item in pooled]
    if task.kind == "multi-label":
        task = task.model_copy(update={"thresholds": best_thresholds(scores, gold)})
        answers = [reaching(row, task) for row in scores]
    return Candidate(name, scores_of(head.rows, answers, task), float(losses(scores, gold, task).mean()))


def elect(candidates: Sequence[Candidate], rows: Sequence[Row]) -> Pooling:
    """The pooling to take; see the module's docstring for the rule."""
    best = max(item.metrics[FIGURE] for item in candidates)
    close = [item for item in candidates if item.metrics[FIGURE] >= best - 1 / len(rows) - 1e-9]
    return min(close, key=lambda item: (round(item.nll, 9), ORDER.index(item.name))).name


def standard_error(left: Sequence[Any], right: Sequence[Any], rows: Sequence[Row], task: Task, figure: str) -> float:
    """The standard error of the difference between two sets of answers in a figure, by bootstrap over the rows."""
    if list(left) == list(right):
        return 0.0
    dice = np.random.default_rng(SEED)
    differences = []
    for _ in range(DRAWS):
        drawn = dice.integers(len(rows), size=len(rows)).tolist()
        some = [rows[place] for place in drawn]
        one, other = (scores_of(some, [side[place] for place in drawn], task)[figure] for side in (left, right))
        differences.append(one - other)
    return float(np.std(differences))


def _stitching(
    dev: DevSplit, run: Run, task: Task, joining: Joining, journal: Journal
) -> tuple[Stitching, dict[str, JsonValue]]:
    """The way to join a tagger's windows, tried on documents joined from the dev rows, and what to record."""
    rows = [row for row in dev.rows if row.entities is not None]
    documents = joined(rows, DOCUMENT_WINDOWS * dev.encoder.spec.max_tokens)
    with journal.progress(f"{len(documents)} joined documents") as progress:
        found = answer(documents, dev.encoder, run, progress=progress)
    head = tag_head([item.row for item in documents], found, task)
    answers = stitched(head, joining)
    scores = {way: scores_of(head.rows, found, head.task) for way, found in answers.items()}
    error = standard_error(answers["average"], answers["context"], head.rows, head.task, "f1")
    gain = scores["average"]["f1"] - scores["context"]["f1"]
    best: Stitching = "average" if gain > 2 * error + 1e-9 else "context"
    told = ", ".join(f"{way} {values['f1']:.4f}" for way, values in scores.items())
    journal.say(
        f"    stitching: {best} (F1 on {len(documents)} documents joined from {len(rows)} dev rows: {told}; "
        f"standard error of the difference {error:.4f})"
    )
    facts: dict[str, JsonValue] = {"documents": len(documents), "standard_error": error}
    return best, facts | {way: dict(values) for way, values in scores.items()}


def stitched(head: Head, joining: Joining) -> dict[Stitching, list[Any]]:
    """A tagger's answers by each way of stitching its windows."""
    return {way: answers_of(head.found, head.task, joining.model_copy(update={"stitching": way})) for way in STITCHINGS}


def _parity_again(bundle: Bundle) -> dict[str, Artifact]:
    """The artifacts with the share of golden rows that they answer alike under the joining that stands now.

    Logits are what they were; a server compares the answers too, and joins them as the manifest says.
    """
    golden = GoldenRows(bundle)
    changed: dict[str, Artifact] = {}
    for name, artifact in bundle.manifest.artifacts.items():
        if artifact.parity is not None:
            if artifact.format == "onnx":
                run = run_of(open_session(bundle.path(source_of(bundle, name).file)), bundle.manifest.signature)
                found = golden.predict(run, 4096 if artifact.batch_invariant else 1)
            else:
                try:
                    found = load_answers(bundle, golden.encoded, GOLDEN)
                except ExportError:  # static graphs from before pooling was chosen here left no answers
                    continue
            share = golden.measure(name, found, tolerance=None).label_agreement
            parity = artifact.parity.model_copy(update={"label_agreement": share})
            changed[name] = artifact.model_copy(update={"parity": parity})
    return changed


def _show(candidates: Sequence[Candidate], best: Pooling, journal: Journal) -> None:
    from rich.table import Table

    table = Table(title="on dev; learned: cross-validated", title_justify="left")
    table.add_column("pooling")
    names: Mapping[str, float] = candidates[0].metrics
    for name in (*names, "mean NLL"):
        table.add_column(name.replace("_", " "), justify="right")
    for item in candidates:
        figures = (f"{item.metrics[name]:.4f}" for name in names)
        table.add_row(item.name + (" *" if item.name == best else ""), *figures, f"{item.nll:.4f}")
    journal.console.print(table)
