"""Everything that is measured about long texts, as one record and as tables: ``export.evaluate --compare-long``.

What is measured stands in `export.long` (classifiers by length), `export.telling` (one late sentence that tells) and
`export.stitched` (taggers on joined documents).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bundle.decode import poolings_of
from bundle.encode import Encoder
from bundle.folder import Bundle
from bundle.predict import Predicted, Run
from bundle.rows import Row, read_rows
from export import stitched, telling
from export.heads import label_head, tag_head
from export.journal import Journal
from export.long import compare, read_baselines, served_way

NO_NEUTRAL = (
    "no late telling sentence without neutral text: --neutral FILE (one text a line) or another bundle's folder"
)


def report(
    bundle: Bundle,
    rows: Sequence[Row],
    found: Sequence[Predicted],
    encoder: Encoder,
    run: Run,
    journal: Journal,
    *,
    batch_tokens: int = 4096,
    baseline: Path,
    neutral: telling.Neutral | None = None,
) -> dict[str, Any]:
    """Measures a bundle's model on long texts and prints the tables.

    Args:
        rows, found: the test split and what the model says of it.
        baseline: the file of `finetune`'s baseline scores; may be missing.
        neutral: None leaves the late telling sentence out.

    Returns:
        ``pooling``, ``weights``, ``stitching``, ``overlap``; ``buckets``, none for a tagger, and ``served``, the way of
        reading that is served; ``late`` and ``documents`` where they were measured.
    """
    manifest, console = bundle.manifest, journal.console
    task, joining, poolings = manifest.task, manifest.text.joining, poolings_of(manifest)
    record: dict[str, Any] = {
        "pooling": joining.pooling,
        "weights": list(joining.weights),
        "stitching": joining.stitching,
        "overlap": manifest.text.overlap,
        "buckets": [],
    }
    if task.classifies:
        head = label_head(rows, found, task)
        baselines, why = read_baselines(baseline, head)
        buckets = compare(head, joining, baselines, poolings)
        record |= {"served": served_way(joining), "buckets": [asdict(bucket) for bucket in buckets]}
        _show_buckets(console, record)
        if why:
            console.print(f"  {why}", markup=False)
    if task.kind == "single-label" and neutral is None:
        console.print(f"  {NO_NEUTRAL}", markup=False)
    elif task.kind == "single-label" and neutral is not None:
        dev = list(read_rows(bundle.path(manifest.splits["dev"].file))) if "dev" in manifest.splits else []
        with journal.progress("one late telling sentence") as progress:
            late = telling.measure(
                (rows, found),
                dev,
                neutral,
                encoder,
                run,
                task,
                joining,
                poolings=poolings,
                batch_tokens=batch_tokens,
                progress=progress,
            )
        record["late"] = {"neutral": neutral.name, **late}
        _show_late(console, record["late"], served_way(joining))
    if task.tags:
        tags = tag_head(rows, found, task)
        two = task.kind == "multi-task"
        with journal.progress("joined documents") as progress:
            record["documents"] = stitched.measure(
                tags, encoder, run, two, joining, batch_tokens=batch_tokens, progress=progress
            )
        _show_documents(console, record["documents"], joining.stitching)
    return record


def _show_buckets(console: Console, record: dict[str, Any]) -> None:
    buckets, served = record["buckets"], record["served"]
    figure = next(iter(buckets[-1]["scores"]["head"]))
    table = Table(title=f"{figure.replace('_', ' ')} by windows of a text", title_justify="left")
    table.add_column("read", no_wrap=True)
    for bucket in buckets:
        table.add_column(f"{bucket['name']}\n{bucket['rows']:,} texts", justify="right")
    for way in buckets[-1]["scores"]:
        figures = (f"{bucket['scores'][way][figure]:.3f}" for bucket in buckets)
        table.add_row(f"{way} (served)" if way == served else way, *figures)
    table.add_section()
    table.add_row("only served right", *(f"{bucket['only_served']:,}" for bucket in buckets))
    table.add_row("only head right", *(f"{bucket['only_head']:,}" for bucket in buckets))
    table.add_row("McNemar's p", *(p_value(bucket["p_value"]) for bucket in buckets))
    console.print(table)


def p_value(value: float) -> str:
    """A p-value with three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _show_late(console: Console, late: dict[str, Any], served: str) -> None:
    if not late["documents"]:
        console.print("  no text of the dev or the test rows fits one window: no late telling sentence")
        return
    title = f"{late['documents']:,} short test texts at the end of {late['mean_windows']:.1f} windows"
    table = Table(title=title, title_justify="left")
    table.add_column("read")
    table.add_column("accuracy", justify="right")
    for way, accuracy in late["accuracy"].items():
        name = "the short text alone" if way == "short" else way
        table.add_row(f"{name} (served)" if way == served else name, f"{accuracy:.3f}")
    fitted = late["fitted"]
    table.add_section()
    table.add_row(f"chosen on dev documents: {fitted['pooling']}", f"{fitted['accuracy']:.3f}")
    if fitted["learned_accuracy"] is not None:
        table.add_row("learned on dev documents", f"{fitted['learned_accuracy']:.3f}")
    console.print(table)
    share = "" if late["served_of_short"] is None else f", {late['served_of_short']:.1%} of the short text's accuracy"
    console.print(f"  served: {late['served']:.3f}{share}; against the head alone p {p_value(late['p_value'])}")


def _show_documents(console: Console, record: dict[str, Any], served: str) -> None:
    if not record["documents"]:
        console.print("  no test row tells entities: no joined documents")
        return
    title = f"{record['documents']} documents of {record['mean_characters']:.0f} characters"
    table = Table(title=title, title_justify="left")
    for column in ("read", "precision", "recall", "F1"):
        table.add_column(column, justify="left" if column == "read" else "right")
    names = {"sentences": "sentence by sentence", "naive": "split without overlap"}
    for way, scores in record["scores"].items():
        name = names.get(way, f"windows, {way}") + (" (served)" if way == served else "")
        table.add_row(name, *(f"{scores[figure]:.4f}" for figure in ("precision", "recall", "f1")))
    console.print(table)
    console.print(
        f"  served as a document against sentence by sentence: {record['served_minus_sentences']:+.2f} points of F1\n"
        f"  entities that no window holds whole: {record['no_window_holds']} of {record['entities']} with overlap "
        f"({record['no_window_holds_short']} of those shorter than it), {record['naive_cut']} "
        f"({record['naive_cut_rate']:.2%}) split without",
        highlight=False,
    )
