"""The gate's report: what is written to ``gate.json`` of a judged form, and the tables that are printed from it.

The tables are made from the file alone, so that `python -m export gate` prints later what the step printed. Its size is
bounded: at most `LISTED_ROWS` rows and `LISTED_SLICES` slices are kept, those that failed first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import JsonValue

from bundle.manifest import Task
from bundle.predict import gold_of, readable
from bundle.rows import Row
from export.products import ProductError
from export.slices import Comparison, Slice

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Rows listed in the report; the count is always of all of them.
LISTED_ROWS = 10
LISTED_SLICES = 60
LISTED_ENTITIES = 10
TEXT = 80


def named_rows(comparison: Comparison) -> list[int]:
    """Places of the rows that tell most: changed ones, of slices that failed first, by their largest logit difference.

    Where a form failed and no answer has changed, the rows with the largest differences.
    """
    places = np.flatnonzero(comparison.changed)
    if not len(places) and comparison.reasons:
        places = np.arange(len(comparison.changed))
    order = sorted(places, key=lambda n: (not comparison.failing[n], -comparison.differences[n], n))
    return [int(place) for place in order[:LISTED_ROWS]]


def rows_record(
    comparison: Comparison,
    rows: Sequence[Row],
    lines: Sequence[int],
    answers: Mapping[str, Sequence[Any]],
    task: Task,
    file: str,
) -> dict[str, JsonValue]:
    """The named rows: where they stand, what both forms and the row itself say, and how far the logits are apart.

    Args:
        lines: the line of each row in ``file``, from 1.
        answers: by form, one for each row, in the form of `bundle.predict.answers_of`.
    """
    listed: list[JsonValue] = []
    for place in named_rows(comparison):
        row = rows[place]
        told = {name: readable(said[place], task) for name, said in answers.items()}
        listed.append(
            {
                "line": lines[place],
                "text": row.text[:TEXT] + ("…" if len(row.text) > TEXT else ""),
                "logit_difference": round(float(comparison.differences[place]), 6),
                **_bounded({"gold": gold_of(row, task), **told}, task),
            }
        )
    return {"file": file, "count": int(comparison.changed.sum()), "first": listed}


def _bounded(told: dict[str, Any], task: Task) -> dict[str, Any]:
    """Answers in words without the entities that all of them share, and at most so many of the others."""
    if not task.tags:
        return told
    lists = {key: _entities(value) for key, value in told.items()}
    known = [{tuple(span) for span in spans} for spans in lists.values() if spans is not None]
    shared = set.intersection(*known) if known else set()
    short = {
        key: None if spans is None else [span for span in spans if tuple(span) not in shared][:LISTED_ENTITIES]
        for key, spans in lists.items()
    }
    if task.kind == "multi-task":
        return {
            **{key: {"label": value["label"], "entities": short[key]} for key, value in told.items()},
            "shared_entities": len(shared),
        }
    return {**short, "shared_entities": len(shared)}


def _entities(value: Any) -> list[list[Any]] | None:
    spans: list[list[Any]] | None = value["entities"] if isinstance(value, dict) else value
    return spans


def slices_record(slices: Sequence[Slice]) -> list[JsonValue]:
    """The slices in their order; of very many, those that failed and those with the most changed rows."""
    kept = sorted(slices, key=lambda item: (item.group != "all", not item.failed, -item.changed / item.rows))
    chosen = {id(item) for item in kept[:LISTED_SLICES]}
    return [item.record() for item in slices if id(item) in chosen]


def layers_record(errors: Sequence[ProductError]) -> list[JsonValue]:
    """The integer products by their own error, the largest first."""
    return [item.record() for item in sorted(errors, key=lambda item: -item.own)[:LISTED_ROWS]]


def show_report(console: Console, report: dict[str, Any]) -> None:
    """Prints the tables of a report as it was written; they fit a terminal of 80 columns."""
    slices = report.get("slices") or []
    if slices:
        figures: dict[str, str] = {}
        for item in slices:
            figures.setdefault(item["group"], item["figure"])
        told = ", ".join(f"{figure} of {_GROUPS[group]}" for group, figure in figures.items())
        console.print(f"{_form(report)} against fp32 on the dev split: {told}", highlight=False, soft_wrap=True)
        forms = f"fp32→{_form(report).lower()}"
        table = _table("", "rows", forms, "changed", "logit max", "mean", "ece", "confidence")
        for item in slices:
            words = item["name"] or "all"
            table.add_row(
                ("✗ " if item["failed"] else "") + (f"{item['head']}: {words}" if item["head"] else words),
                str(item["rows"]),
                f"{item['before']:.3f}→{item['after']:.3f}",
                str(item["changed"]),
                f"{item['max_logit']:.3f}",
                f"{item['mean_logit']:.3f}",
                "{:.3f}→{:.3f}".format(*item["ece"]),
                "{:.3f}→{:.3f}".format(*item["confidence"]),
            )
        console.print(table)
    changed = report.get("changed") or {}
    if changed.get("first"):
        said = "no answer changed; rows with the largest differences"
        if changed["count"]:
            said = f"rows with another answer: {changed['count']}, the largest differences first"
        console.print(said, highlight=False)
        for item in changed["first"]:
            names = [key for key in item if key not in ("line", "logit_difference", "text", "shared_entities")]
            answers = "; ".join(f"{key} {_short(item[key])}" for key in names)
            console.print(
                f"  {changed['file']}:{item['line']}: {answers}; a logit differs by {item['logit_difference']:.3f}: "
                f"{item['text'][:24]}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    if report.get("layers"):
        console.print("integer products on these rows, the largest error first", highlight=False)
        layers = _table("", "own error", "in the graph", "worst channel")
        for item in report["layers"][:5]:
            worst = f"{item['channel']}: {item['channel_error']:.2%}"
            layers.add_row(item["name"], f"{item['own']:.2%}", f"{item['arrived']:.2%}", worst)
        console.print(layers)
    for note in report.get("notes", []):
        console.print(f"    note: {note}", markup=False, highlight=False, soft_wrap=True)
    for reason in report.get("reasons", []):
        console.print(f"    {_form(report)} is not published: {reason}", markup=False, highlight=False, soft_wrap=True)


_GROUPS = {"all": "all rows", "class": "a class", "length": "texts of so many tokens"}


def _form(report: Mapping[str, Any]) -> str:
    """The judged form in a word; reports from before there were two kinds do not name it."""
    return "fp16" if report.get("form") == "onnx_fp16" else "INT8"


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(f" {column}" if number else column, justify="right" if number else "left", overflow="fold")
    return table


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 120 else text[:119] + "…"
